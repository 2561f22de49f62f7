"""Proof of supervision, before the first step: what is taught is the answers, all of them, and nothing else.

It looks at the examples that the trainer will read, not at the code that made them. What it found is kept by
splits, base (tokenizer and template are part of it) and method: the next training on them reads it.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, cast

from ftaas_pipelines.data.rows.messages import of_row
from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.inference import templates
from ftaas_pipelines.inference.templates import IGNORED
from ftaas_pipelines.store import canonical, digest_of
from ftaas_pipelines.training import data as examples
from ftaas_pipelines.training.data import ROW, TrainingData
from ftaas_pipelines.training.materials import Materials

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

CONTRACT = 1
LOOKED_AT = 500  # records whose text is read again; the counts are over all
_WHOLE = ("chosen_ids", "rejected_ids", "completion_ids")  # columns of token ids that are taught to the last
_PACKED_ROWS, _PACKED_TOKENS = 3, 128
_TOLERANCE = {"fp32": 1e-3, "bf16": 0.25, "fp16": 0.05}  # of a logit, packed against separate


@dataclass(frozen=True)
class Proof:
    """What was found.

    Attributes:
        taught: `answers`, `texts`, `labels` (a class) or `rewards` (of sampled answers; no token is taught).
        examples: training examples; `tokens` and `supervised` are their tokens, and those that carry loss.
        least, middle, most: supervised tokens of an example.
        unended: examples whose last answer has no end token: those that were cut short.
        read: records whose text was looked at; `round_trips` of them come back from their tokens unchanged.
        packed_difference: largest difference of a logit, packed against separate; None: nothing is packed.
        seconds: what the proof cost; 0 where it was read from before.
    """

    taught: str
    examples: int
    tokens: int
    supervised: int
    least: int
    middle: float
    most: int
    unended: int
    read: int
    round_trips: int
    packed_difference: float | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        if self.taught == "rewards":
            return f"{self.examples} prompts; rewards teach, no token does"
        cut = f", {self.unended} cut short" if self.unended else ""
        return f"{self.examples} examples teach {self.supervised} of {self.tokens} tokens{cut}"


def prove(materials: Materials, found: TrainingData, model: "PreTrainedModel | PeftModel") -> Proof:
    """Look at every example, read some of them back, and compare packed with separate rows.

    Raises:
        InputInvalid: an example teaches nothing, or something else than its record's answers; it names some.
        FtaasError: packed examples see each other.
    """
    started = time.perf_counter()
    kept = _kept(materials)
    if kept and kept.is_file():
        return replace(Proof(**json.loads(kept.read_text("utf-8"))), seconds=0.0)
    proof = _looked_at(materials, found, model)
    proof = replace(proof, seconds=round(time.perf_counter() - started, 3))
    if kept:
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_name(f".{kept.name}")
        temporary.write_bytes(canonical(proof.as_dict()))
        temporary.replace(kept)
    return proof


def _kept(materials: Materials) -> Path | None:
    if materials.proofs is None:
        return None
    inputs, training = materials.inputs, materials.inputs.training
    named = {
        "contract": CONTRACT,
        "splits": inputs.splits,
        "sources": inputs.sources,
        "base": inputs.base,
        "method": inputs.method.model_dump(mode="json"),
        "limits": [training.max_seq_tokens, training.too_long, training.attention, training.precision],
    }
    return materials.proofs / f"{digest_of(named)}.json"


def _looked_at(materials: Materials, found: TrainingData, model: Any) -> Proof:
    columns = set(found.train.column_names)
    if "labels" in columns and "input_ids" in columns:
        return _of_labels(materials, found, model)
    whole = [name for name in _WHOLE if name in columns]
    if whole:
        return _of_answers(found, whole)
    if "label" in columns:
        rows = found.train
        tokens = sum(len(ids) for ids in rows["input_ids"]) if "input_ids" in columns else 0
        return Proof("labels", len(rows), tokens, len(rows), 1, 1.0, 1, 0, 0, 0, None, 0.0)
    return Proof("rewards", len(found.train), 0, 0, 0, 0.0, 0, 0, 0, 0, None, 0.0)


def _of_answers(found: TrainingData, columns: Sequence[str]) -> Proof:
    """Preferences and labelled answers: every token of an answer counts."""
    answers = zip(*(found.train[column] for column in columns), strict=True)
    counts = [sum(len(ids) for ids in row) for row in answers]
    _refuse_silent(found, counts)
    prompts = (
        sum(len(ids) for ids in found.train["prompt_ids"]) if "prompt_ids" in found.train.column_names else 0
    )
    total = sum(counts)
    spread = (min(counts), float(median(counts)), max(counts))
    return Proof("answers", len(counts), prompts + total, total, *spread, found.truncated, 0, 0, None, 0.0)


def _of_labels(materials: Materials, found: TrainingData, model: Any) -> Proof:
    """Token ids with labels: supervised fine-tuning and pre-training."""
    tokenizer, train = materials.tokenizer, found.train
    labels: list[list[int]] = train["labels"][:]
    counts = [sum(label != IGNORED for label in row) for row in labels]
    _refuse_silent(found, counts)
    packed = "seq_lengths" in train.column_names or _first(train[ROW]) is list
    end = tokenizer.eos_token_id
    unended = sum(next((x for x in reversed(row) if x != IGNORED), None) != end for row in labels)
    if unended > found.truncated and not packed:
        rows = [i for i, row in enumerate(labels) if row and row[-1] == IGNORED and end not in row]
        if rows:
            raise InputInvalid(
                f"{len(rows)} of {len(labels)} examples never teach the end token: the model would not stop",
                "train.parquet",
                examples.named([found.record_ids[i] for i in rows]),
                "mend the chat template: it must close an answer with the tokenizer's end token",
            )
    read, round_trips = (0, 0) if packed else _read_back(materials, found)
    causal = materials.inputs.family == "causal"
    tokens = sum(map(len, train["input_ids"])) + (0 if causal else sum(map(len, labels)))
    return Proof(
        "texts" if materials.inputs.method.kind == "pretrain" else "answers",
        len(labels),
        tokens,
        sum(counts),
        min(counts),
        float(median(counts)),
        max(counts),
        0 if packed else unended,
        read,
        round_trips,
        _packed_difference(materials, found, model) if _isolates(materials) else None,
        0.0,
    )


def _first(column: Any) -> type:
    return type(next(iter(column), None))


def _refuse_silent(found: TrainingData, counts: Sequence[int]) -> None:
    """No example may teach nothing."""
    silent = [i for i, count in enumerate(counts) if count == 0]
    if not counts or silent:
        rows: Any = found.train[ROW] if ROW in found.train.column_names else []
        ids = [found.record_ids[r] for r in (rows[i] for i in silent if i < len(rows)) if isinstance(r, int)]
        raise InputInvalid(
            f"{len(silent)} of {len(counts)} examples teach nothing: no token of them carries loss",
            "train.parquet",
            examples.named(ids) if ids else "no example",
            "raise training.max_seq_tokens, or leave these records out",
        )


def _read_back(materials: Materials, found: TrainingData) -> tuple[int, int]:
    """Hold the taught tokens against their records' answers; returns how many were read, and came back."""
    step = max(1, len(found.train) // LOOKED_AT)
    chosen = list(range(0, len(found.train), step))
    chats = {row["record_id"]: of_row(row) for row in examples.learnt_from(materials)}
    wrong: list[str] = []
    round_trips = 0
    for place in chosen:
        one = found.train[place]
        record_id = found.record_ids[one[ROW]]
        chat = chats[record_id]
        taught = _taught(materials, one)
        if not _says(taught, chat, cut=len(one["labels"]) >= materials.inputs.training.max_seq_tokens):
            wrong.append(record_id)
        round_trips += _comes_back(materials, one, chat)
    if wrong:
        raise InputInvalid(
            f"{len(wrong)} of {len(chosen)} examples that were read teach something else than their answers",
            "train.parquet",
            examples.named(wrong),
            "look at one with `ftaas data rows DIGEST --rendered RECIPE`, and mend the chat template",
        )
    return len(chosen), round_trips


def _taught(materials: Materials, example: dict[str, Any]) -> str:
    ids = [label for label in example["labels"] if label != IGNORED]
    return str(materials.tokenizer.decode(ids, skip_special_tokens=True))


def _says(taught: str, chat: Sequence[dict[str, Any]], cut: bool) -> bool:
    """Whether the taught text is the answers: all of them, or the last where the template rewrites others.

    A template may add words of its own inside an answer's place; white space at the borders is its affair.
    """
    answers = [str(m["content"]) for m in chat if m["role"] == "assistant"]
    said = _bare(taught)
    wanted = (_bare("".join(answers)), _bare(answers[-1]))
    if cut:
        return any(
            said.startswith(want[: len(said)]) or want.startswith(said[: len(want)]) for want in wanted
        )
    asked = [_bare(str(m["content"])) for m in chat if m["role"] != "assistant"]
    if said in wanted:
        return True
    more = said.replace(wanted[1], "", 1)
    return wanted[1] in said and not any(text and text in more for text in asked)


def _bare(text: str) -> str:
    return "".join(text.split())


def _comes_back(materials: Materials, example: dict[str, Any], chat: Sequence[dict[str, Any]]) -> bool:
    """Whether prompt tokens decode to the text that the template wrote."""
    tokenizer, family = materials.tokenizer, materials.inputs.family
    if len(chat) == 1 or family != "causal":
        text = str(chat[0]["content"]) if len(chat) == 1 else templates.source_text(list(chat[:-1]))
        decoded = str(tokenizer.decode(example["input_ids"], skip_special_tokens=True))
        return _bare(text).startswith(_bare(decoded)) or _bare(decoded) == _bare(text)
    text = templates.prompt_text(tokenizer, list(chat[:-1]))
    decoded = str(tokenizer.decode(example["input_ids"], clean_up_tokenization_spaces=False))
    return decoded.startswith(text) or text.startswith(decoded)


def _isolates(materials: Materials) -> bool:
    """Whether several examples stand in one row and must not see each other."""
    method = materials.inputs.method
    return getattr(method, "packing", "none") == "bfd" or bool(getattr(method, "padding_free", False))


def _packed_difference(materials: Materials, found: TrainingData, model: Any) -> float:
    """Largest difference of a logit between examples in one row and each in its own.

    Raises:
        FtaasError: beyond what arithmetic explains.
    """
    import torch

    rows = _separate(found)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        ids = [torch.tensor([row], device=model.device) for row in rows]
        alone = torch.cat([model(input_ids=one, use_cache=False).logits[0] for one in ids])
        places = torch.cat([torch.arange(one.shape[1], device=model.device) for one in ids])[None]
        joint = model(input_ids=torch.cat(ids, 1), position_ids=places, use_cache=False).logits[0]
        difference = float((alone.float() - joint.float()).abs().max())
    model.train(was_training)
    limit = _TOLERANCE.get(materials.inputs.training.precision, 1e-3)
    if not difference <= limit:
        raise FtaasError(
            "examples that are packed into one row see each other",
            "training.attention",
            f"logits differ by {difference:.3g}, more than {limit:g}",
            "set attention to sdpa or flash_attention_2, or packing to none",
        )
    return difference


def _separate(found: TrainingData) -> list[list[int]]:
    """Some short examples, taken apart where they are packed already."""
    rows: list[list[int]] = []
    for row in found.train:
        one = cast(dict[str, Any], row)
        lengths = one.get("seq_lengths") or [len(one["input_ids"])]
        start = 0
        for length in lengths:
            rows.append(one["input_ids"][start : start + min(length, _PACKED_TOKENS)])
            start += length
        if len(rows) >= _PACKED_ROWS:
            break
    return [row for row in rows if row][:_PACKED_ROWS]
