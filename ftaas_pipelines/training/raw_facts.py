"""Facts of a project's data before its splits are made: of the first rows of each file that lies here."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftaas_pipelines.data import made
from ftaas_pipelines.data.raw import readers
from ftaas_pipelines.data.rows import formats, records
from ftaas_pipelines.data.rows.cells import RowFault
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects import data_files
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.projects.dataset import Source
from ftaas_pipelines.training.data_facts import DataFacts, of_rows
from ftaas_pipelines.training.planning.tokens import row_count

_HELD_OUT = ("validation", "test", "challenge")


def of_sources(loaded: Loaded) -> DataFacts:
    """Facts of the rows that may be trained on: at most 200 of each file, and about how many there are.

    Raises:
        InputInvalid: none of the sources lies here as files that can be read.
    """
    dataset = loaded.project.dataset
    sources = [s for s in dataset.sources if s.in_place and s.split not in _HELD_OUT]
    rows: list[dict[str, Any]] = []
    total = 0.0
    for source in sources:
        for file in data_files.find(loaded.folder, source.path or ""):
            looked = readers.look(file, source.encoding or dataset.encoding)
            rows += _records(loaded, source, file, looked)
            total += row_count(file, looked, source.encoding or dataset.encoding)
    if not rows:
        raise InputInvalid(
            "no row of the sources can be read here",
            f"{loaded.name}: dataset.sources",
            ", ".join(s.place for s in dataset.sources),
            f"run `ftaas run {loaded.name} --until splits` first",
        )
    own_test = any(s.split == "test" for s in dataset.sources)
    share = 1 - dataset.splits.validation - (0 if own_test else dataset.splits.test)
    return of_rows(rows, max(1, round(total * share)))


def _records(loaded: Loaded, source: Source, file: Path, looked: readers.Rows) -> Iterator[dict[str, Any]]:
    """Rows of the record table; rows that are none are left out: `prepare` says which."""
    dataset = loaded.project.dataset
    declared, columns = source.format or dataset.format, source.columns or dataset.columns
    layout = formats.resolve(looked.columns, file, declared, columns, looked.rows)
    read = records.reader(layout, source.name, None, False, None, [])
    for row in looked.rows:
        try:
            yield made.row(read(row))
        except RowFault:
            continue
