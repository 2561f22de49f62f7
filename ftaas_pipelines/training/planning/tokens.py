"""Tokens of a training: counted on the splits where they are made, else guessed from the first raw rows.

Counting uses the base's own tokenizer and templates, so a number here is the number that is trained on.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from ftaas_pipelines.data.raw import columnar, containers, readers
from ftaas_pipelines.data.rows import formats
from ftaas_pipelines.data.rows.messages import of_row
from ftaas_pipelines.data.rows.records import RowFault, reader
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects.method import Method
from ftaas_pipelines.training.plan import VALIDATION_ROWS
from ftaas_pipelines.training.planning.figure import Figure
from ftaas_pipelines.training.planning.lengths import Lengths

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLE = 2000  # rows that are made tokens
_COLUMNS = ["record_id", "prompt", "answer", "messages", "extra"]
_COUNTED = 64 * 2**20  # bytes of a raw file whose lines are counted; more is extrapolated
# Raw rows: cleaning and duplicates may take half of them; the first rows of a file are no fair sample.
_RAW_ROWS = (0.5, 0.9, 1.0)
_RAW_SPREAD = (0.75, 1.3)
_SAMPLED_SPREAD = (0.95, 1.05)  # 2,000 rows of any usual distribution of lengths
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Counter:
    """Makes rows tokens, as a method will.

    Attributes:
        limit: `training.max_seq_tokens`.
        image_tokens: that one image becomes.
    """

    tokenizer: "PreTrainedTokenizerBase"
    method: Method
    family: str
    limit: int
    image_tokens: int = 0

    def sequences(self, messages: Messages, extra: dict[str, Any]) -> list[tuple[int, int, int]]:
        """Of each sequence: tokens read, written (an encoder-decoder's answer), and with loss."""
        kind = self.method.kind
        if kind in ("grpo", "rloo"):
            return [self._asked(messages[:-1])]
        found = [self._taught(messages)]
        if kind in ("dpo", "orpo", "reward") and "rejected" in extra:
            found.append(self._taught([*messages[:-1], {"role": "assistant", "content": extra["rejected"]}]))
        return found

    def _taught(self, messages: Messages) -> tuple[int, int, int]:
        from ftaas_pipelines.inference import templates

        images = sum(len(m.get("images") or ()) for m in messages) * self.image_tokens
        plain = [{"role": m["role"], "content": m.get("content") or ""} for m in messages]
        made = templates.example(
            self.tokenizer, plain, "causal" if self.family == "vision" else self.family, self.limit
        )
        if self.family == "seq2seq":
            return len(made.input_ids), len(made.labels), made.supervised
        if (
            self.method.kind == "classification"
        ):  # a label is no token: what is asked is read, one number is learnt
            return max(1, len(made.input_ids) - made.supervised), 0, 1
        return min(self.limit, len(made.input_ids) + images), 0, made.supervised

    def _asked(self, messages: Messages) -> tuple[int, int, int]:
        """A prompt and the answer that will be sampled, as long as it may be."""
        from ftaas_pipelines.inference import templates

        answer: int = getattr(self.method, "max_new_tokens", 0)
        read = len(templates.prompt_ids(self.tokenizer, messages, self.family)) if messages else 1
        return min(self.limit, read + answer), 0, answer

    def lengths(
        self,
        rows: Iterable[tuple[Messages, dict[str, Any]]],
        count: Figure,
        validation: int,
        spread: tuple[float, float] = (1.0, 1.0),
    ) -> Lengths:
        """Lengths of these rows, standing for `count`.

        Raises:
            InputInvalid: there are none, or they are of a kind that the base cannot learn.
        """
        found = [one for messages, extra in rows for one in self.sequences(messages, extra)]
        if not found:
            raise InputInvalid("there are no rows to count tokens of", "dataset", do="add records")
        return Lengths(
            tokens=sorted(read for read, _, _ in found),
            written=sorted(written for _, written, _ in found) if self.family == "seq2seq" else [],
            supervised=sum(loss for _, _, loss in found) / len(found),
            rows=count,
            validation=validation,
            spread=spread,
        )


def of_splits(splits: Path, counter: Counter, sources: Sequence[str] | None = None) -> Lengths:
    """Lengths of the training split of a splits artifact: of all rows up to `SAMPLE`, else of a fair sample.

    Args:
        sources: only rows of these.

    Raises:
        InputInvalid: its records are of a kind that the base cannot learn.
    """
    import pyarrow.parquet as pq

    train = _places(splits / "train.parquet", sources)
    with pq.ParquetFile(splits / "train.parquet") as file:
        rows = list(islice(_sampled(file, train), SAMPLE))
    total, held = len(train), len(_places(splits / "validation.parquet", sources))
    read = ((of_row(row), orjson.loads(row["extra"] or "{}")) for row in rows)
    spread = (1.0, 1.0) if len(rows) == total else _SAMPLED_SPREAD
    return counter.lengths(read, Figure.exact(total), min(held, VALIDATION_ROWS), spread)


def _places(file: Path, sources: Sequence[str] | None) -> Sequence[int]:
    """Where the rows of these sources stand."""
    import pyarrow.parquet as pq

    if not sources:
        return range(pq.read_metadata(file).num_rows)
    named = pq.read_table(file, columns=["source"]).column("source").to_pylist()
    return [i for i, name in enumerate(named) if name in sources]


def _sampled(file: Any, places: Sequence[int]) -> Iterable[dict[str, Any]]:
    """Rows of a fair sample, the same each time; read batch by batch, so that a large split fits."""
    wanted = set(random.Random(0).sample(places, SAMPLE) if len(places) > SAMPLE else places)
    at = 0
    for batch in file.iter_batches(columns=_COLUMNS, batch_size=4096):
        chosen = [i for i in range(len(batch)) if at + i in wanted]
        at += len(batch)
        if chosen:
            yield from batch.take(chosen).to_pylist()


@dataclass(frozen=True)
class RawSource:
    """A source as it lies on this disk: files of one layout."""

    name: str
    files: Sequence[Path]
    format: str | None
    columns: dict[str, str]
    encoding: str


def of_sources(sources: Sequence[RawSource], share: float, validation: float, counter: Counter) -> Lengths:
    """Lengths guessed from the first rows of each file, and rows from their sizes.

    Args:
        sources: those whose rows may be trained on.
        share: of the rows, that the training split will get.
        validation: of the rows, that the validation split will get.

    Raises:
        InputInvalid: no row of them can be read.
    """
    looked: list[tuple[Messages, dict[str, Any]]] = []
    total = 0.0
    for source in sources:
        for file in source.files:
            rows = readers.look(file, source.encoding)
            if not rows.rows:
                continue
            layout = formats.resolve(rows.columns, file, source.format, source.columns, rows.rows)
            read = reader(layout, source.name, None, False, None, [])
            looked += _readable(read, rows.rows)
            total += row_count(file, rows, source.encoding)
    low, value, high = (total * share * part for part in _RAW_ROWS)
    held = min(VALIDATION_ROWS, round(total * validation))
    return counter.lengths(looked, Figure(max(1.0, low), max(1.0, value), max(1.0, high)), held, _RAW_SPREAD)


def _readable(
    read: Callable[[readers.Row], Any], rows: Iterable[readers.Row]
) -> Iterable[tuple[Messages, dict[str, Any]]]:
    for row in rows:
        try:
            record = read(row)
        except RowFault:  # `prepare` says which; here it is one row less
            continue
        yield record.messages, record.extra


def row_count(file: Path, looked: readers.Rows, encoding: str) -> float:
    """About how many rows a data file holds, without reading a large one whole.

    Args:
        looked: its first rows.
    """
    seen = len(looked.rows)
    if seen < readers.LOOKED_AT:
        return seen
    name = str(file)
    if looked.container in containers.COLUMNAR:
        try:
            return sum(part.rows for part in columnar.parts(file, looked.container, name))
        except InputInvalid:  # compressed as a whole
            return file.stat().st_size * 4 / _written(looked.rows)
    with containers.open_file(file, name) as raw, containers.opened(raw, file.name, encoding, name) as source:
        size = lines = 0
        while size < _COUNTED and (piece := source.stream.read(containers.PIECE)):
            size += len(piece)
            lines += piece.count(b"\n")
        left = file.stat().st_size - raw.tell()
        read = max(1, raw.tell())
    whole = 1 + max(0, left) / read  # compressed or not, what is left holds rows like what was read
    each = (looked.rows[-1].line - looked.rows[0].line) / (seen - 1)
    rows = lines / each if each else size / _written(looked.rows)
    return max(float(seen), rows * whole)


def _written(rows: Sequence[readers.Row]) -> float:
    """Mean bytes of these rows as JSON."""
    return sum(len(orjson.dumps(row.value, default=str)) for row in rows) / len(rows)
