"""Raw files to a dataset version, in three passes over work shards that any worker may do.

    cut       files to shards, by streaming bytes                           shards
    clean     a shard's rows to records, cleaned, private, with their keys  pipeline   (spread)
    reduce    on keys alone: which records go, and why                      reduce
    gather    buckets of the record_id, sorted, verdicts applied, written   gather     (spread)
    judge     Great Expectations, histograms, facts                         quality

The result does not depend on the order of files, the size of shards, how many workers there are or
where they run. What a shard has done is kept in the work folder: a killed run goes on there.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

from ftaas_pipelines.data import engine, gather, pipeline, tables
from ftaas_pipelines.data.cleaning import boilerplate
from ftaas_pipelines.data.engine import Runner
from ftaas_pipelines.data.inputs import DatasetInputs, SourceInput
from ftaas_pipelines.data.raw import readers, shards
from ftaas_pipelines.data.raw.shards import Shard
from ftaas_pipelines.data.reduce import Decided, reduce, wants_items
from ftaas_pipelines.data.rows import formats, records
from ftaas_pipelines.data.rows.formats import Layout
from ftaas_pipelines.data.sources import files as fingerprints
from ftaas_pipelines.errors import FtaasError, InputInvalid, Problem
from ftaas_pipelines.store import digest_of

SHARD_BYTES = 32 * 2**20
_FINE_FROM = 8 * 2**20  # bytes of raw rows from which shards are cut by the record_id's first byte
_LINES = "ftaas_pipelines.data.pipeline:lines"

Progress = Callable[[float, str], None]


@dataclass(frozen=True)
class Files:
    """Where the inputs lie: files by source name, benchmarks by name, model folders by use."""

    sources: Mapping[str, Sequence[Path]]
    benchmarks: Mapping[str, Path] = field(default_factory=dict[str, Path])
    models: Mapping[str, Path] = field(default_factory=dict[str, Path])


@dataclass
class Facts:
    """What `prepare` found, added up over shards and buckets. Counts are of records unless said.

    Attributes:
        rows: by source: in, kept, and each reason.
        images: how often kept records show one that is stored, and one that is not checked (a URL).
        near: confirmed near-duplicate pairs among kept records.
    """

    rows: dict[str, dict[str, int]]
    cleaned: dict[str, int]
    verdicts: dict[str, int]
    findings: dict[str, int | str]
    kinds: dict[str, int]
    languages: dict[str, int]
    labels: dict[str, int]
    synthetic: int
    images: dict[str, int]
    near: int
    contaminated: dict[str, int]
    lengths: dict[str, Counter[int]]
    format: str
    preview: list[dict[str, str]]
    quarantined: list[dict[str, Any]]

    @property
    def records(self) -> int:
        return sum(counts["kept"] for counts in self.rows.values())

    @property
    def dropped(self) -> dict[str, int]:
        """Rows that are not in the dataset version, by reason."""
        total: Counter[str] = Counter()
        for counts in self.rows.values():
            total.update({k: n for k, n in counts.items() if k not in ("in", "kept")})
        return dict(sorted(total.items()))

    @property
    def dropped_share(self) -> float:
        """Dropped rows over all that came in, 0 to 1."""
        return 1 - self.records / max(1, sum(counts["in"] for counts in self.rows.values()))


@dataclass(frozen=True)
class Compared:
    """The shards of a dataset version, cleaned, and what the reduce decided of their rows.

    Attributes:
        tasks: what each shard was made from; `out` is its folder.
        metas: what each shard says of itself.
        formats: the formats read.
    """

    tasks: list[dict[str, Any]]
    metas: list[dict[str, Any]]
    formats: list[str]
    decided: Decided


def prepare(
    inputs: DatasetInputs,
    files: Files,
    work: Path,
    out: Path,
    runner: Runner | None = None,
    progress: Progress = lambda _, __: None,
    shard_bytes: int = SHARD_BYTES,
) -> Facts:
    """Write a dataset version's tables into `out`.

    Args:
        work: folder for what can be resumed; it may hold what an earlier, killed call has done.

    Raises:
        InputInvalid: every problem of every file, or no record is left.
        FtaasError: a file is not the one that was fingerprinted.
    """
    runner = runner or Runner()
    made = compare(inputs, files, work, runner, progress, shard_bytes)
    quarantined = _faults(inputs, made.metas)
    prefixes = tables.prefixes(made.decided.kept)
    one = made.tasks[0]
    shared: dict[str, Any] = {
        "inputs": one["inputs"],
        "shards": [task["out"] for task in made.tasks],
        "out": str(out.resolve()),
        "fine": one["fine"],
        "models": one["models"],
    }
    found = _run(
        "ftaas_pipelines.data.gather:gather",
        [
            asdict(gather.Task(prefix=side, parts=[p for p in prefixes if p.startswith(side)], **shared))
            for side in tables.prefixes(made.decided.kept, most_digits=1)
        ],
        runner,
        progress,
        0.7,
        0.85,
        "groups of buckets written",
    )
    near = gather.without(made.decided.near, [digest for part in found for digest in part["rejected"]])
    tables.write(out / "near.parquet", near)
    tables.write_rows(out / "beside" / "quarantine.parquet", quarantined, tables.QUARANTINE)
    return _facts(inputs, made, found, len(near), quarantined)


def compare(
    inputs: DatasetInputs,
    files: Files,
    work: Path,
    runner: Runner,
    progress: Progress = lambda _, __: None,
    shard_bytes: int = SHARD_BYTES,
) -> Compared:
    """Read, clean and compare every row: passes 1 and 2. What stays is written by the third.

    Raises:
        InputInvalid: every problem of every file.
        FtaasError: a file is not the one that was fingerprinted.
    """
    (work / "shards").mkdir(parents=True, exist_ok=True)
    named = work / "inputs.json"
    named.write_text(inputs.model_dump_json(), "utf-8")
    progress(0.0, f"reading {len(inputs.sources)} sources")
    plan, layouts = _plan(inputs, files, work, shard_bytes)
    fine = sum(s.end - s.start for s in plan if s.container not in ("Parquet", "Arrow")) > _FINE_FROM or any(
        s.container in ("Parquet", "Arrow") and os.path.getsize(s.path) > _FINE_FROM for s in plan
    )
    models = {use: str(path.resolve()) for use, path in files.models.items()}
    tasks = [
        asdict(
            pipeline.Task(
                inputs=str(named.resolve()),
                shard=asdict(shard),
                out=str((work / "shards" / name).resolve()),
                layout=asdict(layouts[shard.source, shard.path]),
                models=models,
                boilerplate="",
                fine=fine,
                near=wants_items(inputs),
            )
        )
        for name, shard in zip(_names(plan), plan, strict=True)
    ]
    if inputs.cleaning.boilerplate:
        common = _common_lines(tasks, runner, work)
        tasks = [{**task, "boilerplate": common} for task in tasks]
    metas = _run("ftaas_pipelines.data.pipeline:shard", tasks, runner, progress, 0.05, 0.55, "shards cleaned")
    for source in inputs.sources:
        _check_unchanged(source, files.sources[source.name])
    _faults(inputs, metas)  # what cannot be read is said before anything is compared
    progress(0.55, "comparing records")
    decided = reduce(inputs, [Path(task["out"]) for task in tasks], files.benchmarks, work)
    return Compared(tasks, metas, sorted({layout.format for layout in layouts.values()}), decided)


def _plan(
    inputs: DatasetInputs, files: Files, work: Path, size: int
) -> tuple[list[Shard], dict[tuple[str, str], Layout]]:
    """Every source's shards, by source name and file digest, and the layout by source and path."""
    plan, layouts, problems = list[Shard](), dict[tuple[str, str], Layout](), list[Problem]()
    for source in sorted(inputs.sources, key=lambda s: s.name):
        paths = files.sources[source.name]
        _check_unchanged(source, paths)
        digests = {path: fingerprints.digest(path) for path in paths}
        for path in sorted(paths, key=lambda p: (digests[p], str(p))):
            try:
                cut, layout = _cut(path, digests[path], source, inputs, work, size)
            except InputInvalid as error:
                problems.extend(error.problems)
                continue
            plan.extend(cut)
            layouts.update({(source.name, shard.path): layout for shard in cut})
    readers.raise_all(problems)
    return plan, layouts


def _cut(
    path: Path, digest: str, source: SourceInput, inputs: DatasetInputs, work: Path, size: int
) -> tuple[list[Shard], Layout]:
    look = readers.look(path, source.encoding)
    if not look.rows:
        readers.raise_all(look.problems)
    layout = formats.resolve(look.columns, path, source.format, source.columns, look.rows)
    readers.raise_all(records.check_columns(look.columns, path, inputs.group_by, inputs.keep))
    return shards.cut(path, work / "spool", source.encoding, source.name, digest, str(path), size), layout


def _check_unchanged(source: SourceInput, paths: Sequence[Path]) -> None:
    if fingerprints.digest_all(paths) != source.sha256:
        do = "wait until it is written, then run the same command again"
        raise FtaasError("changed while being read", str(paths[0]), do=do)


def _names(plan: Sequence[Shard]) -> Iterator[str]:
    """The shards' folders, by what they hold: the same cut finds them again; equal files have their own."""
    seen = Counter[str]()
    for shard in plan:
        name = digest_of({**asdict(shard), "path": "", "shown": ""})[:32]
        yield f"{name}-{seen[name]}"
        seen[name] += 1


def _common_lines(tasks: Sequence[dict[str, Any]], runner: Runner, work: Path) -> str:
    """The file of the lines that are boilerplate: candidates of every shard, then counted in all."""
    path = work / "boilerplate.json"
    if not path.is_file():
        named = {key for part in engine.run(_LINES, tasks, runner) for key in part} - {"records"}
        candidates = work / "candidates.json"
        candidates.write_bytes(orjson.dumps(sorted(named)))
        counting = [{**task, "boilerplate": str(candidates.resolve())} for task in tasks]
        counts, rows = Counter[bytes](), 0
        for part in engine.run(_LINES, counting, runner):
            rows += part.pop("records")
            counts.update({bytes.fromhex(key): n for key, n in part.items()})
        common = sorted(key.hex() for key in boilerplate.common(counts, rows))
        _replace(path, orjson.dumps(common))
    return str(path.resolve())


def _replace(path: Path, data: bytes) -> None:
    draft = path.with_suffix(".draft")
    draft.write_bytes(data)
    draft.replace(path)


def _run(
    function: str,
    tasks: Sequence[dict[str, Any]],
    runner: Runner,
    progress: Progress,
    start: float,
    end: float,
    what: str,
) -> list[dict[str, Any]]:
    done = 0

    def tell(_: int, __: Any) -> None:
        nonlocal done
        done += 1
        progress(start + (end - start) * done / len(tasks), f"{done} of {len(tasks)} {what}")

    return engine.run(function, tasks, runner, tell)


def _faults(inputs: DatasetInputs, metas: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that could not be read: refused all together, or set aside, as the project says."""
    problems = [(meta, Problem(**fault)) for meta in metas for fault in meta["faults"]]
    count = sum(meta["counts"].get("bad_row", 0) for meta in metas)
    if inputs.bad_rows == "refuse" and count:
        shown = [problem for _, problem in problems[: readers.SHOWN]]
        more = Problem(
            f"and {count - len(shown)} more problems",
            do="mend these first, or set dataset.bad_rows: quarantine",
        )
        raise InputInvalid([*shown, more] if count > len(shown) else shown)
    return [
        {
            "source": meta["source"],
            "sha256": meta["sha256"],
            "row": int(problem.where.rpartition(":")[2]),
            "what": problem.what,
        }
        for meta, problem in problems
    ]


def _facts(
    inputs: DatasetInputs,
    made: Compared,
    found: Sequence[dict[str, Any]],
    near: int,
    quarantined: list[dict[str, Any]],
) -> Facts:
    def total(name: str) -> dict[str, int]:
        counter: Counter[str] = Counter()
        for part in found:
            counter.update(part["counts"].get(name, {}))
        return dict(sorted(counter.items()))

    rows: dict[str, dict[str, int]] = {}
    for source in sorted(inputs.sources, key=lambda s: s.name):
        mine = [meta["counts"] for meta in made.metas if meta["source"] == source.name]
        gone = {
            "bad_row": sum(counts.get("bad_row", 0) for counts in mine),
            **total(f"dropped {source.name}"),
        }
        rows[source.name] = {
            "in": sum(counts.get("in", 0) for counts in mine),
            "kept": total("source").get(source.name, 0),
            **{reason: n for reason, n in gone.items() if n},
        }
    cleaned: Counter[str] = Counter()
    for meta in made.metas:
        cleaned.update(meta["cleaned"])
    verdicts = {"approve": 0, "fix": 0, "reject": 0, **total("verdict")}
    verdicts["stale_verdict"] = len(inputs.verdicts) - sum(verdicts.values())
    lengths: dict[str, Counter[int]] = {"prompt": Counter(), "answer": Counter()}
    for part in found:
        for name, counter in lengths.items():
            counter.update({int(k): n for k, n in part["lengths"][name].items()})
    labels = total("label")
    few = len(labels) <= gather.LABELS and not total("label_left").get("answers")
    facts = Facts(
        rows=rows,
        cleaned=dict(cleaned),
        verdicts=verdicts,
        findings={
            **dict.fromkeys(made.metas[0]["not_checked"], "not checked"),
            **dict.fromkeys(made.metas[0]["checked"], 0),
            **total("findings"),
        },
        kinds=total("kind"),
        languages=total("language"),
        labels=labels if few else {},
        synthetic=total("synthetic").get("records", 0),
        images=total("images"),
        near=near,
        contaminated=made.decided.contaminated,
        lengths=lengths,
        format=", ".join(made.formats),
        preview=[row for part in found for row in part["preview"]][: gather.PREVIEW],
        quarantined=quarantined,
    )
    if not facts.records:
        reasons = ", ".join(f"{n} {reason}" for reason, n in facts.dropped.items())
        raise InputInvalid("no record is left", "dataset", reasons, "loosen dataset.cleaning or add rows")
    return facts


def write_json(path: Path, value: Any) -> None:
    """A JSON file for people."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
