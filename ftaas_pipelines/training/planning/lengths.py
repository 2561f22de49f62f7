"""How long the sequences of a training are, and how many: counted, sampled, or guessed from raw files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftaas_pipelines.training.planning.figure import Figure

# Columns of token ids that trainers read.
_PROMPTS = ("prompt_ids", "prompt_input_ids", "prompt")
_ANSWERS = (
    "chosen_ids",
    "rejected_ids",
    "completion_ids",
    "answer",
    "chosen_input_ids",
    "rejected_input_ids",
)
IDS = ("input_ids", "labels", *_PROMPTS, *_ANSWERS)


@dataclass(frozen=True)
class Lengths:
    """Sequences as the model meets them, a sample of them or all.

    A preference pair is two sequences, each prompt and answer; everything else is one.

    Attributes:
        tokens: of each sequence, sorted, cut at `max_seq_tokens`; of an encoder-decoder, what it reads.
        written: of an encoder-decoder, the tokens of each answer, sorted; empty for the others.
        supervised: mean tokens of a sequence that carry loss.
        rows: examples in the training split.
        validation: examples that the validation loss is taken on.
        spread: factors that bound the true lengths below and above those here.
    """

    tokens: Sequence[int]
    written: Sequence[int]
    supervised: float
    rows: Figure
    validation: int
    spread: tuple[float, float] = (1.0, 1.0)

    @property
    def longest(self) -> int:
        return self.tokens[-1]

    @property
    def longest_written(self) -> int:
        return self.written[-1] if self.written else 0

    def mean(self) -> float:
        """Tokens of a sequence, padding left out."""
        return (sum(self.tokens) + sum(self.written)) / len(self.tokens)

    def padded(self, batch: int) -> tuple[float, float]:
        """Tokens of a sequence in a batch of so many, padded to the longest of them: read, and written."""
        return expected_longest(self.tokens, batch), expected_longest(self.written, batch)


def expected_longest(ordered: Sequence[int], batch: int) -> float:
    """The expected maximum of `batch` draws, with replacement, from sorted numbers; 0 of none.

    P(max <= x_i) = (i / n) ** batch.
    """
    n = len(ordered)
    return sum(x * (((i + 1) / n) ** batch - (i / n) ** batch) for i, x in enumerate(ordered))


def packed(lengths: Lengths, max_tokens: int) -> Lengths:
    """The same examples in rows that are filled up to the limit."""
    total = lengths.mean() * lengths.rows.value
    rows = max(1.0, total / max_tokens)
    scale = rows / max(1e-9, lengths.rows.value)
    return Lengths(
        tokens=[max_tokens],
        written=[],
        supervised=lengths.supervised / max(1e-9, scale),
        rows=lengths.rows * scale,
        validation=lengths.validation,
        spread=(1.0, 1.0) if lengths.spread == (1.0, 1.0) else lengths.spread,
    )


def of_columns(dataset: Any, *, encoder: bool) -> tuple[list[int], list[int]]:
    """Sorted lengths of the sequences in a trainer's rows: as they are read, and (with an encoder) written.

    A row of a preference pair holds two: the prompt with each answer.
    """
    size = {
        name: [len(value) if isinstance(value, list) else 0 for value in dataset[name]]
        for name in IDS
        if name in dataset.column_names
    }
    if encoder:
        return sorted(size.get("input_ids", [0])), sorted(size.get("labels", [0]))
    prompts = next((size[name] for name in _PROMPTS if name in size), None)
    answers = [size[name] for name in _ANSWERS if name in size]
    if prompts and answers:
        return sorted(p + a for one in answers for p, a in zip(prompts, one, strict=True)), []
    return sorted(size.get("input_ids") or prompts or [0]), []
