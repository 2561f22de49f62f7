"""A conversion held against the adapter it was made of: the same questions, and what the answers became."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ftaas_pipelines.data.rows.messages import of_row
from ftaas_pipelines.errors import InputInvalid, Problem, Refused
from ftaas_pipelines.inference.templates import Message
from ftaas_pipelines.metrics.bootstrap import intervals
from ftaas_pipelines.metrics.text import scorer
from ftaas_pipelines.training import data

if TYPE_CHECKING:
    from ftaas_pipelines.inference.decoding import Model

RECORDS = 200  # as many as recipes are compared on: enough to see half a per cent
_RANGE = {"chrf": 100.0}  # of metrics that do not end at 1
_SHOWN = 3


@dataclass(frozen=True)
class Question:
    """A validation record: what the model is shown, and the answer it was to give ("" where it has none)."""

    record_id: str
    messages: tuple[Message, ...]
    reference: str


@dataclass(frozen=True)
class Said:
    """What one model makes of all questions.

    Attributes:
        losses: mean cross-entropy of each reference, in nats.
        logits: scores of each answer's first token, `[questions, vocab]`.
        tokens_per_second: of answering, end tokens not counted.
    """

    texts: list[str]
    losses: NDArray[np.float64]
    logits: NDArray[np.float32]
    tokens_per_second: float


def questions(splits: Path) -> list[Question]:
    """The validation records that ask something, at most `RECORDS`; never the test split.

    Raises:
        InputInvalid: there is none.
    """
    found: list[Question] = []
    for row in data.rows(splits, "validation"):
        messages = tuple(of_row(row))
        answered = messages[-1]["role"] == "assistant"
        asked = messages[:-1] if answered else messages
        if asked:
            reference = messages[-1]["content"] if answered else row["answer"]
            found.append(Question(row["record_id"], asked, str(reference or "")))
    if not found:
        raise InputInvalid(
            "the validation split asks no question to hold the conversion against",
            "validation.parquet",
            do="raise dataset.splits.validation, or add rows that ask something",
        )
    return found[:RECORDS]


def ask(model: "Model", name: str, asked: Sequence[Question], max_new_tokens: int) -> Said:
    """Answers, losses and first logits of the model that `Model` knows by this name."""
    prompts = [q.messages for q in asked]
    logits = model.first_logits(prompts, name).numpy()  # first, so that nothing is timed that only warms up
    started = time.perf_counter()
    answers = model.generate(prompts, name, max_new_tokens=max_new_tokens)
    seconds = time.perf_counter() - started
    losses = model.loss(prompts, [q.reference for q in asked], name)
    return Said(
        [answer.text for answer in answers],
        np.asarray(losses, dtype=np.float64),
        logits,
        sum(len(answer.token_ids) for answer in answers) / seconds,
    )


def compare(asked: Sequence[Question], was: Said, said: Said, primary: str) -> dict[str, Any]:
    """Scores of both and their differences, rounded to six digits; what a conversion's content holds.

    `difference` is converted minus adapter, with the 95% interval of the paired bootstrap. `first_token` is
    the share of questions whose answers begin with the same token when nothing but logits decides.
    """
    score = scorer(primary)
    references = [q.reference for q in asked]
    rows = [
        np.array([score(text, wanted) for text, wanted in zip(one.texts, references, strict=True)])
        for one in (was, said)
    ]
    apart = np.abs(said.logits - was.logits)
    losses = said.losses - was.losses
    changed = sum(a != b for a, b in zip(was.texts, said.texts, strict=True))
    return {
        "split": "validation",
        "records": len(asked),
        "changed": changed,
        "share_changed": round(changed / len(asked), 6),
        "primary": primary,
        "adapter": {primary: _rounded(rows[0].mean()), "loss": _rounded(was.losses.mean())},
        "converted": {primary: _rounded(rows[1].mean()), "loss": _rounded(said.losses.mean())},
        "difference": intervals((rows[1] - rows[0])[:, None])[0].as_dict(),
        "loss": {"mean": _rounded(losses.mean()), "largest": _rounded(np.abs(losses).max())},
        "logits": {
            "mean": _rounded(apart.mean()),
            "largest": _rounded(apart.max()),
            "first_token": _rounded((was.logits.argmax(1) == said.logits.argmax(1)).mean()),
        },
    }


def require(
    scores: dict[str, Any], threshold: float, asked: Sequence[Question], said: Said, was: Said
) -> None:
    """Let a conversion through only if it says what the adapter says.

    Args:
        threshold: largest share of changed answers, and largest drop of the primary metric, of its range.

    Raises:
        Refused: it is beyond one of them; says by how much, and shows some of the answers.
    """
    primary, problems = scores["primary"], list[Problem]()
    do = f"another form or precision may do; --threshold above {threshold:g} lets more through"
    share, drop = scores["share_changed"], -scores["difference"]["value"] / _RANGE.get(primary, 1.0)
    if share > threshold:
        examples = [
            f"{q.record_id[:12]}: {a!r} became {b!r}"
            for q, a, b in zip(asked, was.texts, said.texts, strict=True)
            if a != b
        ]
        problems.append(
            Problem(
                f"the conversion changes {scores['changed']} of {scores['records']} answers "
                f"({share:.1%}, more than {threshold:.1%})",
                "validation",
                "; ".join(examples[:_SHOWN]),
                do,
            )
        )
    if drop > threshold:
        before, after = scores["adapter"][primary], scores["converted"][primary]
        problems.append(
            Problem(
                f"the conversion lowers {primary} by {drop:.1%} of its range, more than {threshold:.1%}",
                "validation",
                f"{before:g} became {after:g}",
                do,
            )
        )
    if problems:
        raise Refused(problems)


def _rounded(value: Any) -> float:
    """Six digits: beyond them is arithmetic, not evidence."""
    return round(float(value), 6)
