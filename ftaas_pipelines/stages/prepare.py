"""Raw files to a dataset version, and a dataset version to its splits.

python -m ftaas_pipelines.stages.prepare --spec SPEC.json
"""

import platform
import sys
import time
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ftaas_pipelines.data.engine import Runner
from ftaas_pipelines.data.inputs import DatasetInputs, SplitsInputs
from ftaas_pipelines.errors import SpecUnusable
from ftaas_pipelines.stages import program
from ftaas_pipelines.stages.program import Report
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Artifact, Draft, Store, short

if TYPE_CHECKING:
    from ftaas_pipelines.data.dataset import Facts


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
    from ftaas_pipelines.data import dataset

    started = time.monotonic()
    if missing := sorted({s.name for s in inputs.sources} - set(spec.run.files)):
        raise SpecUnusable("a source has no file", "run.files", missing[0], "let `ftaas run` write the spec")
    files = dataset.Files(spec.run.files, spec.run.benchmarks, spec.run.models)
    runner = Runner(spec.run.data_runner, spec.run.data_workers, spec.run.ray_address)
    work = store.work(spec.input_digest)
    with store.create("dataset", spec.input_digest) as draft:
        facts = dataset.prepare(inputs, files, work, draft.path, runner, report.progress)
        report.progress(0.85, f"{facts.records} records kept; checking quality")
        _judge(draft, facts, inputs)
        draft.attestation = {
            **_attestation(spec, started, "great-expectations", "pyarrow", "daft"),
            "sources": {s.name: s.sha256 for s in inputs.sources},
            "runner": {"kind": runner.kind, "workers": runner.workers},
        }
    store.clear_work(spec.input_digest)
    content = draft.made.content
    dropped = sum(content["dropped"].values())
    report.metrics(0, {"records": float(content["records"]), "dropped": float(dropped)})
    report.progress(1.0, f"dataset {short(draft.made.digest)}: {content['records']} records")
    return draft.made


def _judge(draft: Draft, facts: "Facts", inputs: DatasetInputs) -> None:
    """Quality, the facts that are part of the identity, and the report beside it."""
    from ftaas_pipelines.data import dataset, tables
    from ftaas_pipelines.data.quality import page as quality_page
    from ftaas_pipelines.data.quality import suite as quality

    shares: dict[str, float] = {"records": facts.records, "dropped_share": facts.dropped_share}
    results = quality.run(
        tables.pieces(draft.path / "records"), shares, inputs.quality, inputs.cleaning, facts.kinds
    )
    by_source = {name: counts["kept"] for name, counts in facts.rows.items() if counts["kept"]}
    failed = quality.failed(results)
    # No digest of a file here: the same records in another row order are the same dataset version.
    draft.content = {
        "records": facts.records,
        "by_source": by_source,
        "rows": facts.rows,
        "dropped": facts.dropped,
        "cleaned": facts.cleaned,
        "verdicts": facts.verdicts,
        "findings": facts.findings,
        "kinds": facts.kinds,
        "languages": facts.languages,
        "synthetic": facts.synthetic,
        "images": facts.images,
        "near_duplicates": facts.near,
        "contaminated": facts.contaminated,
        "format": facts.format,
        "quality": {"passed": not failed, "failed": failed},
    }
    beside = draft.path / "beside"
    dataset.write_json(beside / "quality.json", [r.as_dict() for r in results])
    dataset.write_json(beside / "preview.json", facts.preview)
    page = quality_page.render(
        results,
        {f"Characters of the {name}": counts for name, counts in facts.lengths.items()},
        {
            "Records by source": {**by_source, "all": facts.records},
            "Dropped": facts.dropped,
            "Changed by cleaning": facts.cleaned,
            "Findings": facts.findings,
            "Duplicates": {
                "exact": facts.dropped.get("duplicate", 0),
                "near, dropped": facts.dropped.get("near_duplicate", 0),
                "near, kept together (pairs)": facts.near,
            },
            "Reviewers' verdicts": facts.verdicts,
        },
        {"Kinds": facts.kinds, "Languages": facts.languages, "Labels": facts.labels},
    )
    (beside / "quality.html").write_text(page, encoding="utf-8")


def _splits(spec: Spec, inputs: SplitsInputs, store: Store, report: Report) -> Artifact:
    from ftaas_pipelines.data.splits import splitting

    started = time.monotonic()
    anchors = store.get(inputs.anchors) if inputs.anchors else None
    with store.create("splits", spec.input_digest) as draft:
        draft.content = splitting.write(store.get(inputs.dataset), anchors, inputs.options, draft.path)
        draft.attestation = _attestation(spec, started, "numpy", "pyarrow")
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


if __name__ == "__main__":
    sys.exit(program.main("prepare", make))
