"""Pass 1 of `prepare`: one work shard of raw rows to clean, private records and their keys.

A shard's folder in the work folder, written whole or not at all:

    rows.arrow      the records that passed, sorted by record_id, in batches of the record_id's first byte
    keys.npz        what the reduce needs of each: identities as 128 bits, line (`Keys`)
    bands.npy       near-duplicate signatures, where they are asked for
    images/         what its messages show, named by sha256; where there is any (`images`)
    dropped.arrow   records that cleaning or privacy dropped
    findings.arrow  what detectors saw
    meta.json       counts and faults; written last
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from ftaas_pipelines.data import tables
from ftaas_pipelines.data.cleaning.cleaner import Cleaner
from ftaas_pipelines.data.inputs import DatasetInputs, SourceInput
from ftaas_pipelines.data.made import Made, write_ipc
from ftaas_pipelines.data.plain_pairs import Lane
from ftaas_pipelines.data.privacy.findings import Finding
from ftaas_pipelines.data.privacy.screen import Screen
from ftaas_pipelines.data.raw import shards
from ftaas_pipelines.data.raw.pieces import Piece, Row, understood
from ftaas_pipelines.data.rows import images, records
from ftaas_pipelines.data.rows.formats import Layout
from ftaas_pipelines.data.rows.images import Images
from ftaas_pipelines.data.rows.records import Record, RowFault
from ftaas_pipelines.errors import Problem

BATCH = 2_000
KEPT_FAULTS = 1_000  # of one shard that are spelled out; all are counted
_DROPPED: Any = pa.schema([("record_id", pa.string()), ("line", pa.int64()), ("reason", pa.string())])
_FINDINGS: Any = tables.FINDINGS.append(pa.field("line", pa.int64()))


@dataclass(frozen=True)
class Task:
    """One shard's work, as JSON carries it.

    Attributes:
        inputs: file of the `DatasetInputs`.
        shard: fields of a `shards.Shard`.
        out: folder to make.
        layout: format and columns of the source.
        models: folders of tokenizer and detector models, by use.
        boilerplate: file of line hashes (hex, JSON list); empty for none.
        fine: whether rows are cut into batches by their record_id's first byte.
        near: whether near-duplicate signatures are wanted.
    """

    inputs: str
    shard: dict[str, Any]
    out: str
    layout: dict[str, Any]
    models: dict[str, str]
    boilerplate: str
    fine: bool
    near: bool


def shard(task: dict[str, Any]) -> dict[str, Any]:
    """Make one shard's folder; returns its `meta.json`. One that is there already is left as it is."""
    job = Task(**task)
    out = Path(job.out)
    if (out / "meta.json").is_file():
        return json.loads((out / "meta.json").read_bytes())
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    meta = _Shard(job).write(draft)
    (draft / "meta.json").write_bytes(orjson.dumps(meta))
    draft.rename(out)
    return meta


def lines(task: dict[str, Any]) -> dict[str, int]:
    """How often lines stand in the records of one shard: line hash (hex) to records, and `records`.

    A line in over 1% of all records is in over 1% of some shard's: without `boilerplate` in the task those
    are named; with it (the candidates of all shards) they are counted.
    """
    from ftaas_pipelines.data.cleaning import boilerplate

    job, found, seen = Task(**task), Counter[bytes](), 0
    work = _Shard(job)
    before = Cleaner(boilerplate.before(work.inputs.cleaning))
    for batch in work.batches():
        before.clean(batch)
        found.update(boilerplate.lines(batch))
        seen += len(batch)
    if job.boilerplate:
        named = [bytes.fromhex(key) for key in json.loads(Path(job.boilerplate).read_bytes())]
        counts = {key.hex(): found[key] for key in named}
    else:
        counts = {key.hex(): n for key, n in found.items() if n > 0.01 * seen}
    return {"records": seen, **counts}


class _Shard:
    def __init__(self, job: Task):
        self.job = job
        self.inputs = DatasetInputs.model_validate_json(Path(job.inputs).read_bytes())
        fields: dict[str, Any] = {**job.shard, "columns": tuple(job.shard["columns"])}
        self.raw = shards.Shard(**fields)
        self.source: SourceInput = next(s for s in self.inputs.sources if s.name == self.raw.source)
        self.layout = Layout(job.layout["format"], job.layout["columns"])
        self.faults: list[Problem] = []
        self.counts: Counter[str] = Counter()
        self.images: Images | None = None

    def batches(self, found: Iterator[Row | Problem] | None = None) -> Iterator[list[Record]]:
        """The shard's records (or those of these rows), some thousand at a time; what is none is a fault."""
        s = self.source
        read = records.reader(
            self.layout, s.name, s.split, s.synthetic, self.inputs.group_by, self.inputs.keep, self.images
        )
        for chunk in _batched(found if found is not None else shards.rows(self.raw), BATCH):
            batch: list[Record] = []
            for row in chunk:
                self.counts["in"] += 1
                if isinstance(row, Problem):
                    self._fault(row)
                    continue
                try:
                    batch.append(read(row))
                except RowFault as fault:
                    where = f"{self.raw.shown}:{row.line}"
                    self._fault(Problem(fault.what, where, fault.got, fault.do))
            yield batch

    def _fault(self, problem: Problem) -> None:
        self.counts["bad_row"] += 1
        if len(self.faults) < KEPT_FAULTS:
            self.faults.append(problem)

    def write(self, draft: Path) -> dict[str, Any]:
        """Fill the draft folder; returns the shard's counts."""
        beside = self.raw.shown if os.path.exists(self.raw.shown) else self.raw.path
        self.images = Images(Path(beside).parent, draft / images.FOLDER)
        inputs, models = self.inputs, {use: Path(path) for use, path in self.job.models.items()}
        common = frozenset[bytes]()
        if self.job.boilerplate:
            common = frozenset(bytes.fromhex(h) for h in json.loads(Path(self.job.boilerplate).read_bytes()))
        cleaner = Cleaner(inputs.cleaning, models.get("tokenizer"), common)
        screen = Screen(inputs.privacy, models)
        made = Made(self.job.near, inputs.duplicates)
        if Lane.is_open(self.raw, self.layout, self.source, inputs):
            held: list[Piece] = []
            for pairs, rest in Lane(self.raw, self.layout, inputs, screen).blocks():
                if pairs is not None:
                    self.counts["in"] += len(pairs.line)
                    made.add_pairs(pairs)
                held.extend(rest)
                if len(held) >= BATCH:
                    self._long_way(held, cleaner, screen, made)
                    held = []
            self._long_way(held, cleaner, screen, made)
        else:
            self._long_way(None, cleaner, screen, made)
        made.write(draft, self.job.fine)
        write_ipc(draft / "dropped.arrow", [pa.Table.from_pylist(made.dropped, schema=_DROPPED)], _DROPPED)
        write_ipc(
            draft / "findings.arrow", [pa.Table.from_pylist(made.findings, schema=_FINDINGS)], _FINDINGS
        )
        self.counts.update(Counter(d["reason"] for d in made.dropped))
        return {
            "source": self.source.name,
            "split": self.source.split,
            "sha256": self.raw.sha256,
            "rows": made.rows,
            "counts": dict(self.counts),
            "cleaned": dict(cleaner.changed),
            "faults": [p.as_dict() for p in self.faults],
            "checked": list(screen.checked),
            "not_checked": list(screen.not_checked),
        }

    def _long_way(self, held: list[Piece] | None, cleaner: Cleaner, screen: Screen, made: "Made") -> None:
        """Rows to records, cleaned and private; all of the shard's, or these lines of it."""
        found = None
        if held is not None:
            found = understood(iter(held), self.raw.container, (), self.raw.shown, self.raw.end)
        system = {"role": "system", "content": self.inputs.system}
        for batch in self.batches(found):
            passed = _pass(batch, cleaner.clean(batch), made.dropped)
            if any(cleaner.changed.values()):  # what was taken out may have stood between two halves
                formed = [
                    "template_token" if records.template_token(r.messages, r.extra) else None for r in passed
                ]
                passed = _pass(passed, formed, made.dropped)
            for record in passed:
                # A row's own one wins, and a plain text has no prompt that it could stand before.
                if self.inputs.system and record.turns is record.messages and len(record.messages) > 1:
                    record.messages = [system, *record.messages]
            seen, reasons = screen.screen(passed)
            kept = _pass(passed, reasons, made.dropped)
            made.findings.extend(_with_line(seen, passed))
            made.add_records(kept)


def _pass(batch: list[Record], reasons: list[str | None], dropped: list[dict[str, Any]]) -> list[Record]:
    if not any(reasons):
        return batch
    pairs = list(zip(batch, reasons, strict=True))
    dropped.extend({"record_id": r.record_id, "line": r.line, "reason": why} for r, why in pairs if why)
    return [record for record, why in pairs if not why]


def _with_line(found: list[Finding], batch: list[Record]) -> Iterator[dict[str, Any]]:
    """A record that stands in two lines has its findings twice: each line is kept or dropped by itself."""
    if found:
        lines: dict[str, list[int]] = {}
        for record in batch:
            lines.setdefault(record.record_id, []).append(record.line)
        seen: set[Finding] = set()
        for finding in found:
            if finding not in seen:
                seen.add(finding)
                fields = {name: getattr(finding, name) for name in finding.__dataclass_fields__}
                yield from ({**fields, "line": line} for line in lines[finding.record_id])


def _batched(rows: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while batch := list(islice(rows, size)):
        yield batch
