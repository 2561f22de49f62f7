"""Raw files to the records of a dataset version: read, clean, keep tests apart, de-duplicate, judge.

The result does not depend on the order of files or rows: wherever one of several equal records is
kept, it is the same one, and everything is sorted by `record_id`.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ftaas_pipelines.data import cleaning, formats, readers
from ftaas_pipelines.data.inputs import DatasetInputs, Verdict
from ftaas_pipelines.data.records import Record, from_rows
from ftaas_pipelines.errors import FtaasError, InputInvalid, Problem
from ftaas_pipelines.projects.project import Cleaning

# Who keeps a record that several splits claim: the first. What others lose is dropped with the reason.
_PRECEDENCE: tuple[str | None, ...] = ("test", "challenge", "validation", "train", None)


@dataclass(frozen=True)
class Origin:
    """Where a record came from. `row` is its line in the file, from 1."""

    record_id: str
    source: str
    sha256: str
    row: int


@dataclass(frozen=True)
class Dropped:
    """A record that is not in the dataset version, and why."""

    record_id: str
    source: str
    reason: str


@dataclass
class Prepared:
    """What `prepare` found.

    Attributes:
        records: kept, sorted by `record_id`.
        cleaned: records that each cleaning option changed.
        verdicts: verdicts applied, by word, and `stale_verdict`: those that no longer hold.
        format: the formats read, comma separated.
    """

    records: list[Record]
    dropped: list[Dropped] = field(default_factory=list[Dropped])
    origins: list[Origin] = field(default_factory=list[Origin])
    cleaned: dict[str, int] = field(default_factory=dict[str, int])
    verdicts: dict[str, int] = field(default_factory=dict[str, int])
    format: str = ""

    @property
    def dropped_share(self) -> float:
        """Dropped records over all that came in, 0 to 1."""
        return len(self.dropped) / max(1, len(self.dropped) + len(self.records))

    @property
    def dropped_counts(self) -> dict[str, int]:
        return dict(sorted(Counter(d.reason for d in self.dropped).items()))


def prepare(inputs: DatasetInputs, files: dict[str, Path]) -> Prepared:
    """Make the records of a dataset version. `files` maps a source's name to its file.

    Raises:
        InputInvalid: every problem of every file.
        FtaasError: a file is not the one that was fingerprinted.
    """
    out = _read(inputs, files)
    out.cleaned = cleaning.clean(out.records, inputs.cleaning)
    _drop_by_length(out, inputs.cleaning)
    if inputs.system:
        for record in out.records:
            if record.turns is record.messages:  # a row's own system message wins
                record.messages = [{"role": "system", "content": inputs.system}, *record.messages]
    _drop_leaks(out)
    _drop_duplicates(out)
    _apply(inputs.verdicts, out)
    out.records.sort(key=lambda r: r.record_id)
    out.dropped.sort(key=lambda d: (d.record_id, d.source, d.reason))
    out.origins.sort(key=lambda o: (o.record_id, o.source, o.row))
    if not out.records:
        reasons = ", ".join(f"{n} {reason}" for reason, n in out.dropped_counts.items())
        raise InputInvalid("no record is left", "dataset", reasons, "loosen dataset.cleaning or add rows")
    return out


def _read(inputs: DatasetInputs, files: dict[str, Path]) -> Prepared:
    import hashlib

    out, problems, found = Prepared([]), list[Problem](), set[str]()
    for source in sorted(inputs.sources, key=lambda s: s.name):
        path = files[source.name]
        try:
            data = readers.load(path)
            if hashlib.sha256(data).hexdigest() != source.sha256:
                raise FtaasError("changed while being read", str(path), do="run the same command again")
            rows = readers.read(path, data, inputs.encoding)
            if not rows.rows:
                problems.extend(rows.problems)
                continue
            layout = formats.resolve(rows.columns, path, inputs.format, inputs.columns)
        except InputInvalid as error:
            problems.extend(error.problems)
            continue
        found.add(layout.format)
        records, faults = from_rows(rows, layout, source.name, source.split, inputs.group_by)
        problems.extend(faults)
        out.records.extend(records)
        out.origins.extend(Origin(r.record_id, source.name, source.sha256, r.line) for r in records)
    readers.raise_all(problems)
    out.format = ", ".join(sorted(found))
    return out


def _drop(out: Prepared, reasons: Sequence[str | None]) -> None:
    """Drop the records whose reason is not None; `reasons` stands beside `out.records`."""
    pairs = list(zip(out.records, reasons, strict=True))
    out.dropped.extend(Dropped(r.record_id, r.source, reason) for r, reason in pairs if reason)
    out.records = [r for r, reason in pairs if not reason]


def _drop_by_length(out: Prepared, options: Cleaning) -> None:
    _drop(out, [cleaning.length_fault(r, options) for r in out.records])


def _drop_leaks(out: Prepared) -> None:
    """Drop what a split that is held apart has already: the same prompt, or the same group."""
    held: list[tuple[str, set[str]]] = []
    for split in ("test", "challenge", "validation"):
        of_split = [r for r in out.records if r.declared_split == split]
        held.append((split, {r.normal_prompt for r in of_split} | {r.group for r in of_split}))

    def reason(record: Record) -> str | None:
        for split, keys in held:
            # A challenge is scored beside the test and trains nothing, so it may share prompts with it.
            if record.declared_split == split or record.declared_split == "challenge":
                return None
            if record.normal_prompt in keys or record.group in keys:
                return f"also_in_{split}"
        return None

    _drop(out, [reason(r) for r in out.records])


def _drop_duplicates(out: Prepared) -> None:
    """Keep one of the records that came in alike, or became alike by cleaning."""
    best: dict[str, Record] = {}
    for record in sorted(out.records, key=_preference):
        best.setdefault(record.content_id, record)
    kept = {id(record) for record in best.values()}
    _drop(out, [None if id(r) in kept else "duplicate" for r in out.records])


def _preference(record: Record) -> tuple[int, str, str, str]:
    return _PRECEDENCE.index(record.declared_split), record.record_id, record.source, record.group


def _apply(verdicts: Sequence[Verdict], out: Prepared) -> None:
    """Apply reviewers' words. One holds only for the very content its reviewer saw."""
    counts = Counter({"approve": 0, "fix": 0, "reject": 0, "stale_verdict": 0})
    by_record: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        by_record[verdict.record_id].append(verdict)
    reasons: list[str | None] = []
    for record in out.records:
        seen, rejected = record.content_id, False
        for verdict in by_record.pop(record.record_id, []):
            if verdict.content_id != seen:
                counts["stale_verdict"] += 1
                continue
            counts[verdict.word] += 1
            rejected = rejected or verdict.word == "reject"
            if verdict.word == "fix":
                answer = {**record.messages[-1], "content": verdict.text}
                record.messages = [*record.messages[:-1], answer]
        reasons.append("rejected" if rejected else None)
    counts["stale_verdict"] += sum(len(left) for left in by_record.values())  # their record is gone
    out.verdicts = dict(counts)
    _drop(out, reasons)
