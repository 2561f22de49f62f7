"""What goes into generation: the project's own rows, seeds among them, and passages of documents."""

import heapq
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ftaas_pipelines.data.raw import readers
from ftaas_pipelines.data.rows import formats, records, template_tokens
from ftaas_pipelines.data.rows.records import Record, RowFault
from ftaas_pipelines.data.sources.landing import Landing
from ftaas_pipelines.errors import InputInvalid, Problem
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.projects.dataset import Dataset, Source

if TYPE_CHECKING:
    from ftaas_pipelines.data.synthesis.known import Known

MOST_SEEDS = 2_000
PASSAGE = 2_000  # characters, at most
DOCUMENTS = (".md", ".rst", ".txt")
_BATCH = 2_000


@dataclass(frozen=True)
class Pair:
    """One question and its answer."""

    prompt: str
    completion: str

    def record(self) -> Record:
        """As the record that `prepare` makes of it."""
        messages = [
            {"role": "user", "content": self.prompt},
            {"role": "assistant", "content": self.completion},
        ]
        return Record("", messages, "", None, 0)


def real_rows(dataset: Dataset, landings: Mapping[str, Landing]) -> Iterator[Record]:
    """Every readable record of every source, test and challenge too. Faults are for `prepare` to report.

    Raises:
        InputInvalid: a file cannot be read at all, or fits no format.
    """
    with tempfile.TemporaryDirectory() as spool:
        for source in dataset.sources:
            landing = landings[source.name]
            for path in landing.files:
                yield from _records(dataset, source, path, Path(spool))


def _records(dataset: Dataset, source: Source, path: Path, spool: Path) -> Iterator[Record]:
    encoding = source.encoding or dataset.encoding
    look = readers.look(path, encoding)
    columns, declared = source.columns or dataset.columns, source.format or dataset.format
    layout = formats.resolve(look.columns, path, declared, columns, look.rows)
    read = records.reader(layout, source.name, source.split, source.synthetic, None, ())
    for row in raw_rows(path, encoding, spool):
        try:
            yield read(row)
        except RowFault:
            continue


def raw_rows(path: Path, encoding: str, spool: Path) -> Iterator[readers.Row]:
    """The readable rows of one file, in bounded memory.

    Raises:
        InputInvalid: the file cannot be read at all.
    """
    from ftaas_pipelines.data.raw import shards

    for shard in shards.cut(path, spool, encoding, "", path.name, str(path)):
        for row in shards.rows(shard):
            if not isinstance(row, Problem):
                yield row


def know(known: "Known", rows: Iterable[Record], on: str) -> Iterator[Record]:
    """Make rows known as they pass."""
    from ftaas_pipelines.data.made import near_text

    iterator = iter(rows)
    while batch := list(islice(iterator, _BATCH)):
        known.add([r.normal_prompt for r in batch], [near_text(r, on) for r in batch])
        yield from batch


def few(rows: Iterable[Record], source: str, kinds: Sequence[str], train: set[str] | None) -> list[Record]:
    """Rows of a source to show to a model: of very many the 2,000 with the least `record_id`.

    Args:
        kinds: of these kinds.
        train: only rows that stand in the train split, by `record_id`; None where there are no splits yet.

    Raises:
        InputInvalid: there is none.
    """
    fitting = (
        row
        for row in rows
        if row.source == source
        and row.kind in kinds
        and row.extra.get("label") is not False  # a bad answer is no example
        and all(len(message) == 2 for message in row.turns)  # no images, no calls
        and (train is None or row.record_id in train)
    )
    found = heapq.nsmallest(MOST_SEEDS, fitting, key=lambda row: row.record_id)
    if not found:
        do = f"name a source with rows of kind {', '.join(kinds)}" + (" in the train split" if train else "")
        raise InputInvalid("the source has no row to begin with", "--source", source, do)
    return found


def documents(folder: Path) -> list[Record]:
    """The documents of a folder at every depth, by name, each a record of kind `text`.

    Raises:
        InputInvalid: there is none, one is not UTF-8, or a symbolic link leads out of the folder.
    """
    root = folder.resolve()
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in DOCUMENTS and p.is_file())
    if not found:
        do = f"documents end in {', '.join(DOCUMENTS)}"
        raise InputInvalid("there is no document", "--documents", str(folder), do)
    out: list[Record] = []
    for path in found:
        if not path.resolve().is_relative_to(root):
            do = "copy the document into the folder"
            raise InputInvalid("is a symbolic link that leads out of its folder", str(path), do=do)
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputInvalid(
                "cannot be read", str(path), type(error).__name__, "write it as UTF-8"
            ) from None
        messages = [{"role": "assistant", "content": text}]
        out.append(Record(records.identity(messages), messages, path.name, None, 1))
    return out


def treat(rows: list[Record], loaded: Loaded) -> list[str | None]:
    """Treat the rows in place as `dataset.privacy` says: this is what a model may see of them.

    Returns:
        For each row why it may not be seen at all (`personal_data`, `toxic`), or None.
    """
    from ftaas_pipelines.data.privacy.screen import Screen

    privacy = loaded.project.dataset.privacy
    named = {"names": privacy.names_model, "toxicity": privacy.toxicity_model}
    models = {use: loaded.path(folder) for use, folder in named.items() if folder}
    return Screen(privacy, models).screen(rows)[1]


def passages(texts: Iterable[str]) -> list[str]:
    """Texts as passages of at most 2,000 characters, cut between paragraphs where that is possible."""
    out: list[str] = []
    for text in texts:
        held = ""
        for paragraph in filter(None, map(str.strip, re.split(r"\n\s*\n", text))):
            if held and len(held) + len(paragraph) + 2 > PASSAGE:
                out.append(held)
                held = ""
            held = f"{held}\n\n{paragraph}" if held else paragraph
            while len(held) > PASSAGE:
                space = held.rfind(" ", PASSAGE // 2, PASSAGE)
                cut = space if space > 0 else PASSAGE
                out.append(held[:cut])
                held = held[cut:].strip()
        if held:
            out.append(held)
    return [passage for passage in out if template_tokens.find(passage.encode()) is None]
