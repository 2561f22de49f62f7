"""Pass 3 of `prepare`: the buckets of a dataset version, gathered from every shard.

Reads the shards' folders (`pipeline`) and what the reduce decided (`decisions.npy` beside each
shard's rows: 0 kept, else 1 + a number of `REASONS`), applies reviewers' verdicts, writes Parquet.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute

from ftaas_pipelines.data import made, tables
from ftaas_pipelines.data.inputs import DatasetInputs, Verdict
from ftaas_pipelines.data.privacy.screen import Screen
from ftaas_pipelines.data.rows import images
from ftaas_pipelines.data.rows.messages import of_row
from ftaas_pipelines.data.rows.records import Record

pc: Any = pyarrow.compute  # its functions are made at run time
REASONS = (
    "also_in_test",
    "also_in_challenge",
    "also_in_validation",
    "duplicate",
    "contaminated",
    "near_duplicate",
)
AT_ONCE = 4  # buckets of records held in memory together
PREVIEW = 8
LABELS = 200  # distinct answers up to which they are counted as labels


@dataclass(frozen=True)
class Task:
    """Some buckets' work, as JSON carries it.

    Attributes:
        inputs: file of the `DatasetInputs`.
        shards: folders of the shards, in order.
        prefix: the bucket of the side tables (findings, dropped, provenance).
        parts: the buckets of the records in it, in order.
        out: folder of the artifact being written.
        fine: whether shards' rows are in batches by first byte.
        models: folders of detector models.
    """

    inputs: str
    shards: list[str]
    prefix: str
    parts: list[str]
    out: str
    fine: bool
    models: dict[str, str]


def gather(task: dict[str, Any]) -> dict[str, Any]:
    """Write the buckets; returns their counts, added up."""
    job = Task(**task)
    work = _Gather(job)
    for start in range(0, len(job.parts), AT_ONCE):
        work.records(job.parts[start : start + AT_ONCE])
    work.aside()
    return work.facts()


class _Gather:
    def __init__(self, job: Task):
        self.job = job
        self.inputs = DatasetInputs.model_validate_json(Path(job.inputs).read_bytes())
        self.shards = [_Made(Path(folder)) for folder in job.shards]
        self.verdicts: dict[str, list[Verdict]] = defaultdict(list)
        for verdict in self.inputs.verdicts:
            self.verdicts[verdict.record_id].append(verdict)
        self.screen = Screen(self.inputs.privacy, {use: Path(path) for use, path in job.models.items()})
        self.images = images.held(job.shards)
        self.findings: list[Any] = []
        self.dropped: list[Any] = []
        self.origins: list[Any] = []
        self.counts: dict[str, Counter[str]] = defaultdict(Counter)
        self.lengths: dict[str, Counter[int]] = {"prompt": Counter(), "answer": Counter()}
        self.rejected: list[str] = []
        self.preview: list[dict[str, str]] = []

    def records(self, parts: list[str]) -> None:
        """Write some buckets of the record table that lie side by side."""
        kept, findings, late = [], [], []
        for shard in self.shards:
            part, reasons = shard.rows(parts, self.job.fine)
            self.origins.append(shard.origin(part))
            kept.append(shard.whole(part.filter(pa.array(reasons == 0))))
            late.append(_late(part, reasons, shard.source))
            findings.append(_on(shard.findings(parts), kept[-1]))
        table = pa.concat_tables(kept).drop_columns("line").sort_by("record_id")
        found = pa.concat_tables(findings)
        if self.verdicts and len(table):
            table, found, rejected = self._judged(table, found)
            late.append(rejected)
        self.findings.append(found)
        self.dropped += late
        folder = Path(self.job.out) / "records"
        whole = table.combine_chunks()
        for prefix in parts:
            mine = _of(whole, prefix) if len(parts) > 1 else whole
            tables.write(tables.bucket(folder, prefix), mine)
        self.counts["images"].update(images.pass_on(whole["messages"], self.images, folder.parent))
        self._count(table)

    def aside(self) -> None:
        """Write the bucket of the side tables."""
        for shard in self.shards:
            early = shard.early(self.job.prefix)
            self.origins.append(shard.origin(early))
            self.dropped.append(_dropped(early, shard.source, early["reason"]))
        out = Path(self.job.out)
        for folder, parts, schema in (
            ("findings", self.findings, tables.FINDINGS),
            ("dropped", self.dropped, tables.DROPPED),
            ("beside/provenance", self.origins, tables.PROVENANCE),
        ):
            table = pa.concat_tables(parts)
            if len(table):
                table = table.sort_by([(name, "ascending") for name in schema.names])
            tables.write(tables.bucket(out / folder, self.job.prefix), table)
        gone = pa.concat_tables(self.dropped).group_by(["source", "reason"]).aggregate([([], "count_all")])
        for row in gone.to_pylist():
            self.counts[f"dropped {row['source']}"][row["reason"]] += row["count_all"]
        found = pa.concat_tables(self.findings)
        self.counts["findings"].update(dict(_values(found["detector"])))

    def _count(self, table: Any) -> None:
        for name in ("source", "kind", "language"):
            self.counts[name].update({str(k): n for k, n in _values(table[name]) if k is not None})
        self.counts["synthetic"]["records"] += len(table) - table["synthetic"].null_count
        if len(self.counts["label"]) <= LABELS:
            short = table["answer"].filter(pc.less_equal(pc.utf8_length(table["answer"]), 80))
            self.counts["label"].update(dict(_values(short)))
            self.counts["label_left"]["answers"] += len(table) - len(short)
        for name, counter in self.lengths.items():
            counter.update(dict(_values(pc.utf8_length(table[name]))))
        for i in range(min(PREVIEW - len(self.preview), len(table))):
            self.preview.append({name: table[name][i].as_py() for name in ("prompt", "answer", "source")})

    def _judged(self, table: Any, found: Any) -> tuple[Any, Any, Any]:
        """Apply reviewers' words. One holds only for the very content its reviewer saw."""
        named = pc.is_in(table["record_id"], pa.array(sorted(self.verdicts), pa.string()))
        rows: list[dict[str, Any]] = []
        rejected: list[dict[str, str]] = []
        stale = list[str]()
        again = list[Any]()
        for row in table.filter(named).to_pylist():
            row, is_rejected, seen = self._applied(row)
            if is_rejected:
                rejected.append(
                    {"record_id": row["record_id"], "source": row["source"], "reason": "rejected"}
                )
            else:
                rows.append(row)
                if seen is not None:
                    again.append(seen)
            if is_rejected or seen is not None:
                stale.append(row["record_id"])  # what was found on the text as it was
        self.rejected += [r["record_id"] for r in rejected]
        others = table.filter(pc.invert(named))
        table = pa.concat_tables([others, pa.Table.from_pylist(rows, schema=tables.RECORDS)])
        found = found.filter(pc.invert(pc.is_in(found["record_id"], pa.array(stale, pa.string()))))
        gone = pa.Table.from_pylist(rejected, schema=tables.DROPPED)
        return table.sort_by("record_id"), pa.concat_tables([found, *again]), gone

    def _applied(self, row: dict[str, Any]) -> tuple[dict[str, Any], bool, Any]:
        """What verdicts make of a row, whether it is rejected, and what detectors see on a correction.

        A later reviewer may have spoken of what a correction made of it: that is followed, too.
        """
        seen, been = None, set[str]()
        while row["content_id"] not in been:
            been.add(row["content_id"])
            holding = [v for v in self.verdicts[row["record_id"]] if v.content_id == row["content_id"]]
            self.counts["verdict"].update(v.word for v in holding)
            words = {v.word: v.text for v in holding}
            if "reject" in words:
                return row, True, None
            if "fix" in words:
                row, seen = self._fixed(row, words["fix"])
        return row, False, seen

    def _fixed(self, row: dict[str, Any], text: str) -> tuple[dict[str, Any], Any]:
        """A row with a reviewer's answer in place of its own, and what detectors see on it now.

        Of a preference pair, the rejected answer as the correction means that the two change places.
        """
        messages = of_row(row)
        before = messages[-1]["content"]
        messages[-1] = {**messages[-1], "content": text}
        record = Record(row["record_id"], messages, row["source"], row["declared_split"], 0)
        record.extra = json.loads(row["extra"]) if row["extra"] else {}
        if record.extra.get("rejected") == text:
            record.extra["rejected"] = before
        record.synthetic = json.loads(row["synthetic"]) if row["synthetic"] else None
        record.language = row["language"]
        findings, _ = self.screen.screen([record])
        seen = [{name: getattr(f, name) for name in f.__dataclass_fields__} for f in findings]
        fixed = {**made.row(record), "group": row["group"]}
        return fixed, pa.Table.from_pylist(seen, schema=tables.FINDINGS)

    def facts(self) -> dict[str, Any]:
        return {
            "counts": {name: dict(counter) for name, counter in self.counts.items()},
            "lengths": {name: {str(k): n for k, n in c.items()} for name, c in self.lengths.items()},
            "rejected": self.rejected,
            "preview": self.preview,
        }


class _Made:
    """A finished shard, read bucket by bucket."""

    def __init__(self, folder: Path):
        self.folder = folder
        meta = orjson.loads((folder / "meta.json").read_bytes())
        self.source, self.split, self.sha256 = meta["source"], meta["split"], meta["sha256"]
        self.reader: Any = pa.ipc.open_file(pa.OSFile(str(folder / "rows.arrow")))
        self.decided = np.load(folder / "decisions.npy")
        first = made.Keys.load(folder / "keys.npz").first
        self.cuts = np.searchsorted(first, np.arange(257))
        self._dropped, self._findings = (_read(folder / f"{n}.arrow") for n in ("dropped", "findings"))

    def rows(self, parts: list[str], fine: bool) -> tuple[Any, Any]:
        """The rows of some buckets and their decisions."""
        low, high = _span(parts)
        start, end = int(self.cuts[low]), int(self.cuts[high])
        if not fine:
            whole = pa.Table.from_batches([self.reader.get_batch(0)])
            return whole.slice(start, end - start), self.decided[start:end]
        batches = [self.reader.get_batch(i) for i in range(low, high)]
        return pa.Table.from_batches(batches, schema=self.reader.schema), self.decided[start:end]

    def whole(self, part: Any) -> Any:
        """The rows with what holds for all of the shard."""
        challenge = self.source if self.split == "challenge" else None
        given = {"source": self.source, "declared_split": self.split, "challenge": challenge}
        columns = {name: pa.repeat(pa.scalar(value, pa.string()), len(part)) for name, value in given.items()}
        names = [*tables.RECORDS.names, "line"]
        return pa.table([columns[name] if name in columns else part[name] for name in names], names)

    def early(self, prefix: str) -> Any:
        """What cleaning and privacy dropped of a bucket."""
        return _of(self._dropped, prefix)

    def findings(self, parts: list[str]) -> Any:
        return pa.concat_tables([_of(self._findings, prefix) for prefix in parts])

    def origin(self, part: Any) -> Any:
        """Provenance of rows that have `record_id` and `line`."""
        source, sha256 = (pa.repeat(pa.scalar(v, pa.string()), len(part)) for v in (self.source, self.sha256))
        return pa.table([part["record_id"], source, sha256, part["line"]], schema=tables.PROVENANCE)


def _span(parts: list[str]) -> tuple[int, int]:
    """First bytes of the record_ids in buckets that lie side by side: from, to (exclusive)."""
    return int(parts[0].ljust(2, "0"), 16), int(parts[-1].ljust(2, "f"), 16) + 1


def _of(table: Any, prefix: str) -> Any:
    """The rows whose record_id begins so."""
    return table.filter(pc.starts_with(table["record_id"], prefix)) if prefix and len(table) else table


def _late(part: Any, reasons: Any, source: str) -> Any:
    gone = part.filter(pa.array(reasons != 0))
    names = pa.array(["", *REASONS]).take(pa.array(reasons[reasons != 0].astype(np.int32)))
    return _dropped(gone, source, names)


def _dropped(part: Any, source: str, reason: Any) -> Any:
    columns = [part["record_id"], pa.repeat(pa.scalar(source, pa.string()), len(part)), reason]
    return pa.table(columns, schema=tables.DROPPED)


def _on(findings: Any, kept: Any) -> Any:
    """The findings on rows that are kept; the same record may stand in another line that is not.

    It may also stand twice in one line (a JSON list), with all its findings.
    """
    if not len(findings):
        return findings.drop_columns("line")
    for name in ("record_id", "line"):
        findings = findings.filter(pc.is_in(findings[name], value_set=kept[name].combine_chunks()))
    return findings.group_by(tables.FINDINGS.names).aggregate([])


def without(near: Any, rejected: list[str]) -> Any:
    """The near-duplicate pairs (Arrow) of which reviewers rejected neither."""
    gone = pa.array(sorted(rejected), pa.string())
    for name in ("a", "b"):
        near = near.filter(pc.invert(pc.is_in(near[name], value_set=gone)))
    return near


def _values(column: Any) -> Iterator[tuple[Any, int]]:
    for entry in pc.value_counts(column).to_pylist():
        yield entry["values"], entry["counts"]


def _read(path: Path) -> Any:
    with pa.OSFile(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
