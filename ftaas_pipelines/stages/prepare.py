"""Raw files to a dataset version, and a dataset version to its splits.

python -m ftaas_pipelines.stages.prepare --spec SPEC.json
"""

import json
import platform
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ftaas_pipelines.data import dataset, findings, splits
from ftaas_pipelines.data.dataset import Prepared
from ftaas_pipelines.data.inputs import DatasetInputs, SplitsInputs
from ftaas_pipelines.errors import InputInvalid, Problem, SpecUnusable
from ftaas_pipelines.stages import program
from ftaas_pipelines.stages.program import Report
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Artifact, Draft, Store, short

_PREVIEW = 8


def make(spec: Spec, store: Store, report: Report) -> Artifact:
    """Make what `spec.asset` names: `dataset` or `splits`.

    Raises:
        SpecUnusable: it names something else, or the inputs are not such an asset's.
        InputInvalid: the data is wrong; carries every problem found.
    """
    try:
        if spec.asset == "dataset":
            return _dataset(spec, DatasetInputs.model_validate(spec.inputs), store, report)
        if spec.asset == "splits":
            return _splits(spec, SplitsInputs.model_validate(spec.inputs), store, report)
    except ValidationError as error:
        first = str(error).splitlines()
        raise SpecUnusable(
            "the inputs are wrong", spec.asset, " ".join(first[1:3]), "let `ftaas run` write it"
        ) from None
    raise SpecUnusable("prepare makes no such asset", "asset", spec.asset, "use dataset or splits")


def _dataset(spec: Spec, inputs: DatasetInputs, store: Store, report: Report) -> Artifact:
    started = time.monotonic()
    if missing := sorted({s.name for s in inputs.sources} - set(spec.run.files)):
        raise SpecUnusable("a source has no file", "run.files", missing[0], "let `ftaas run` write the spec")
    report.progress(0.0, f"reading {len(inputs.sources)} sources")
    prepared = dataset.prepare(inputs, spec.run.files)
    report.progress(
        0.3, f"{len(prepared.records)} records kept, {len(prepared.dropped)} dropped; looking for findings"
    )
    found = findings.find(prepared.records)
    report.progress(0.5, "checking quality")
    with store.create("dataset", spec.input_digest) as draft:
        _write_dataset(draft, prepared, found, inputs)
        draft.attestation = {
            **_attestation(spec, started, "great-expectations", "pyarrow"),
            "sources": {s.name: s.sha256 for s in inputs.sources},
        }
    content = draft.made.content
    report.metrics(0, {"records": float(content["records"]), "dropped": float(len(prepared.dropped))})
    report.progress(1.0, f"dataset {short(draft.made.digest)}: {content['records']} records")
    return draft.made


def _write_dataset(
    draft: Draft, prepared: Prepared, found: list[findings.Finding], inputs: DatasetInputs
) -> None:
    from ftaas_pipelines.data import quality, quality_page, tables

    rows = [tables.row(record) for record in prepared.records]
    tables.write_records(draft.path, rows)
    results = quality.run(
        tables.read_records(draft.path), prepared.dropped_share, inputs.quality, inputs.cleaning
    )
    tables.write(draft.path / "findings.parquet", found, tables.FINDINGS)
    tables.write(draft.path / "dropped.parquet", prepared.dropped, tables.DROPPED)
    tables.write(draft.path / "beside" / "provenance.parquet", prepared.origins, tables.PROVENANCE)
    by_source = dict(sorted(Counter(r.source for r in prepared.records).items()))
    # No digest of a file here: the same records in another row order are the same dataset version.
    draft.content = {
        "records": len(rows),
        "by_source": by_source,
        "dropped": prepared.dropped_counts,
        "cleaned": prepared.cleaned,
        "verdicts": prepared.verdicts,
        "findings": findings.counts(found),
        "format": prepared.format,
        "quality": {"passed": not quality.failed(results), "failed": quality.failed(results)},
    }
    _write_json(draft.path / "beside" / "quality.json", [r.as_dict() for r in results])
    preview = [{"prompt": r.prompt, "answer": r.answer, "source": r.source} for r in rows[:_PREVIEW]]
    _write_json(draft.path / "beside" / "preview.json", preview)
    page = quality_page.render(
        results,
        {
            "Characters of the prompt": [len(r.prompt) for r in rows],
            "Characters of the answer": [len(r.answer) for r in rows],
        },
        {
            "Records by source": {**by_source, "all": len(rows)},
            "Dropped": draft.content["dropped"],
            "Changed by cleaning": prepared.cleaned,
            "Findings": draft.content["findings"],
            "Reviewers' verdicts": prepared.verdicts,
        },
    )
    (draft.path / "beside" / "quality.html").write_text(page, encoding="utf-8")


def _splits(spec: Spec, inputs: SplitsInputs, store: Store, report: Report) -> Artifact:
    from ftaas_pipelines.data import tables

    started = time.monotonic()
    source = store.get(inputs.dataset)
    if source.kind != "dataset":
        raise SpecUnusable("is not a dataset", "inputs.dataset", source.kind, "name the digest of a dataset")
    table = tables.read_records(source.path)
    columns: dict[str, list[Any]] = table.to_pydict()
    members = [
        splits.Member(record_id, group, " ".join(prompt.casefold().split()), declared)
        for record_id, group, prompt, declared in zip(
            columns["record_id"], columns["group"], columns["prompt"], columns["declared_split"], strict=True
        )
    ]
    split_of = splits.assign(members, inputs.options)
    placed = [
        split_of[m.group] if challenge is None else f"challenge_{challenge}"
        for m, challenge in zip(members, columns["challenge"], strict=True)
    ]
    counts = Counter(placed)
    problems: list[Problem] = splits.shortage(
        counts, inputs.options, f"splits of dataset {short(source.digest)}"
    )
    if problems:
        raise InputInvalid(problems)
    names = [*splits.SPLITS, *sorted(set(counts) - set(splits.SPLITS))]
    with store.create("splits", spec.input_digest) as draft:
        for name in names:
            rows = [i for i, split in enumerate(placed) if split == name]
            tables.write_table(draft.path / f"{name}.parquet", tables.pick(table, rows))
        tables.write_anchors(draft.path / "anchors.parquet", split_of)
        draft.content = {
            "dataset": source.digest,
            "counts": {name: counts[name] for name in names},
            "leakage": splits.leakage(members, split_of),
            "options": inputs.options.model_dump(mode="json"),
        }
        draft.attestation = _attestation(spec, started, "pyarrow")
    said = ", ".join(f"{n} {name}" for name, n in draft.made.content["counts"].items())
    report.progress(1.0, f"splits {short(draft.made.digest)}: {said}")
    return draft.made


def _attestation(spec: Spec, started: float, *libraries: str) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "seconds": round(time.monotonic() - started, 3),
        "host": platform.node(),
        "actor": spec.run.actor,
        "libraries": {"python": platform.python_version(), **{name: version(name) for name in libraries}},
        "spec": spec.model_dump(mode="json", exclude={"run"}),
    }


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(program.main("prepare", make))
