"""From people's answers to verdicts, and from closed rounds to the verdicts that a dataset is made with.

One person's word is the verdict; several people's is, where all say the same. Two corrections are the same
when their text is. Of a preference pair, `fix` with the rejected answer as its text means that the two
change places. Whatever the order in which answers came, the verdicts are the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ftaas_pipelines.data.inputs import Verdict
from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.review import forms, round_log
from ftaas_pipelines.review.acceptance import Accepted
from ftaas_pipelines.review.rounds import Answer, Kind, Task
from ftaas_pipelines.store import Artifact, Store, digest_of, short

Word = Literal["approve", "fix", "reject"]
ROW_KINDS: tuple[Kind, ...] = ("rows", "preference", "adjudication")
_VERDICT_COLUMNS = ("record_id", "content_id", "word", "text", "by", "at", "reasons", "comment", "answer")
_ANSWER_COLUMNS = (
    "record_id", "round", "person", "annotation", "data_sha256", "word", "text", "reasons", "comment", "at",
    "answer",
)  # fmt: skip


@dataclass(frozen=True)
class Said:
    """What one person said of one row, as a verdict would have it."""

    round: str
    person: str
    answer: Answer
    word: Word
    text: str
    reasons: tuple[str, ...]
    comment: str

    @property
    def verdict(self) -> tuple[str, str]:
        """What agrees or differs: the word, and the text of a correction."""
        return self.word, self.text


@dataclass(frozen=True)
class Judgement:
    """The verdict on one row, and whose word it is."""

    task: Task
    says: list[Said]
    adjudicated: bool

    @property
    def word(self) -> Word:
        return self.says[0].word


def read(round_id: str, kind: Kind, task: Task, given: Accepted, seed: str) -> Said:
    """An accepted answer in words of a verdict.

    Args:
        seed: of the review, which says which answer of a preference pair was shown as A.
    """
    result = given.answer.result
    if kind == "preference":
        word, text, reasons = _preference(task, forms.field(result, "preference"), seed)
        return Said(round_id, given.person, given.answer, word, text, reasons, forms.field(result, "why"))
    word: Word = forms.field(result, "verdict")  # type: ignore[assignment]
    text = forms.field(result, "corrected") if word == "fix" else ""
    reasons = () if word == "approve" else tuple(sorted(set(forms.list_of(result, "reason"))))
    return Said(round_id, given.person, given.answer, word, text, reasons, forms.field(result, "comment"))


def _preference(task: Task, said: str, seed: str) -> tuple[Word, str, tuple[str, ...]]:
    if said in ("tie", "both_bad"):
        return "reject", "", ("no_difference" if said == "tie" else said,)
    chosen, rejected = ("a", "b") if forms.chosen_is_first(seed, task.key) else ("b", "a")
    if said.startswith(chosen):
        return "approve", "", ()
    if not task.data["may_swap"]:  # a rejected answer is text alone: a tool call cannot become one
        return "reject", "", ("other_preferred",)
    return "fix", task.data[f"answer_{rejected}"], ("other_preferred",)


def settle(
    tasks: Iterable[Task], votes: Mapping[str, Sequence[Said]], decided: Mapping[str, Sequence[Said]]
) -> tuple[list[Judgement], list[str]]:
    """Verdicts where people agree or somebody has decided between them, and the keys of the others.

    Args:
        votes: what people said, by key.
        decided: what those said who were asked to decide between them, by key.
    """
    found, disputed = list[Judgement](), list[str]()
    for task in tasks:
        says, last = votes.get(task.key, ()), decided.get(task.key, ())
        if len({s.verdict for s in says}) == 1:
            found.append(Judgement(task, sorted(says, key=lambda s: s.person), False))
        elif len({s.verdict for s in last}) == 1:
            found.append(Judgement(task, sorted(last, key=lambda s: s.person), True))
        else:
            disputed.append(task.key)
    return found, disputed


def answers_digest(said: Iterable[Said]) -> str:
    """Digest of every answer that counted: of what was said on which row, by whom, and where it stands."""
    return digest_of(
        sorted([s.answer.key, s.round, s.person, s.answer.annotation, s.answer.sha256] for s in said)
    )


def write(store: Store, round_id: str, found: Sequence[Judgement], said: Sequence[Said]) -> Artifact:
    """The artifact of a closed round: `verdicts.parquet`, and `answers.parquet` with all that was said."""
    import pyarrow as pa

    from ftaas_pipelines.data import tables

    answers = answers_digest(said)
    input_digest = digest_of({"verdicts": round_id, "answers": answers})
    if made := store.find(input_digest):
        return made
    rows = sorted((_row(judgement) for judgement in found), key=lambda row: row["record_id"])
    kept = sorted((_answer_row(s) for s in said), key=lambda r: (r["record_id"], r["round"], r["person"]))
    with store.create("verdicts", input_digest) as draft:
        for name, columns, values in (
            ("verdicts", _VERDICT_COLUMNS, rows),
            ("answers", _ANSWER_COLUMNS, kept),
        ):
            schema: Any = pa.schema([(column, pa.string()) for column in columns])
            tables.write_rows(draft.path / f"{name}.parquet", values, schema)
        draft.content = {"round": round_id, "rows": len(rows), "answers_sha256": answers}
    return draft.made


def _row(judgement: Judgement) -> dict[str, str]:
    says, data = judgement.says, judgement.task.data
    return {
        "record_id": data["record_id"],
        "content_id": data["content_id"],
        "word": says[0].word,
        "text": says[0].text,
        "by": ", ".join(s.person for s in says),
        "at": max(s.answer.updated_at for s in says),
        "reasons": ", ".join(sorted({reason for s in says for reason in s.reasons})),
        "comment": "\n".join(s.comment for s in says if s.comment),
        "answer": ", ".join(s.answer.sha256 for s in says),
    }


def _answer_row(said: Said) -> dict[str, str]:
    return {
        "record_id": said.answer.key,
        "round": said.round,
        "person": said.person,
        "annotation": said.answer.annotation,
        "data_sha256": said.answer.data_sha256,
        "word": said.word,
        "text": said.text,
        "reasons": ", ".join(said.reasons),
        "comment": said.comment,
        "at": said.answer.updated_at,
        "answer": said.answer.sha256,
    }


def answers_of(artifact: Artifact) -> list[dict[str, str]]:
    """Every answer that counted when a round was closed."""
    import pyarrow.parquet as pq

    return pq.read_table(artifact.file("answers.parquet")).to_pylist()


# -- what a dataset is made with -----------------------------------------------------------------


def verdicts_of(ledger: Ledger, store: Store, project: str) -> list[Verdict]:
    """The verdicts that hold: of each content of a record the latest, from rounds that are closed.

    One for each content, not each record: what a reviewer says of a correction must not undo the correction,
    and content that is put back finds its verdict.

    Raises:
        InputInvalid: the store has lost the verdicts of a closed round.
        FtaasError: their bytes are not those that the ledger names.
    """
    given: list[tuple[int, Sequence[Verdict]]] = [
        (e.seq, [Verdict(record_id=e.subject, entry=e.hash, **e.body)])
        for e in ledger.entries("verdict", project=project, authentic=True)
    ]
    for state in round_log.states(ledger, project, ROW_KINDS):
        if state.closed and "verdicts" in state.closed.body:
            artifact = store.get(state.closed.body["verdicts"])
            if artifact.kind != "verdicts" or artifact.content["round"] != state.id:
                what = f"the artifact is not the verdicts of round {state.id}"
                raise FtaasError(what, f"{artifact.kind} {short(artifact.digest)}", do="restore a backup")
            given.append((state.closed.seq, _verdicts(artifact.path, artifact.digest, state.closed.hash)))
    latest = {(v.record_id, v.content_id): v for _, group in sorted(given, key=lambda g: g[0]) for v in group}
    return [latest[key] for key in sorted(latest)]


@lru_cache(maxsize=64)
def _verdicts(path: Path, digest: str, entry: str) -> tuple[Verdict, ...]:
    """The verdicts of an artifact; cached, since it cannot change."""
    import pyarrow.parquet as pq

    artifact = Artifact("verdicts", digest, path)
    round_log.intact(artifact)
    names = ["record_id", "content_id", "word", "text"]
    rows = pq.read_table(artifact.file("verdicts.parquet"), columns=names).to_pylist()
    return tuple(Verdict(**row, entry=entry) for row in rows)
