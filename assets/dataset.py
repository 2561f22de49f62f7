"""`dataset` and `splits`: raw rows to clean records, clean records to train, validation and test."""

import json
from typing import Any

import dagster as dg

from assets.automation import carry_on, take_changed_data
from assets.builder_types import Definition
from assets.line import Line, open_line
from assets.making import Made, attempt, by_stage, result, table
from assets.naming import common, key
from ftaas_pipelines import settings
from ftaas_pipelines.governance import gates
from ftaas_pipelines.projects.catalog import Loaded
from resources.launcher import SubprocessLauncher

_LOOKED_S = 10  # `ftaas run` looks at the sources before it starts this: a query is not asked twice


def define(loaded: Loaded) -> list[Definition]:
    return [_dataset(loaded), _quality(loaded), _splits(loaded), *_split_checks(loaded)]


def _dataset(loaded: Loaded) -> Definition:
    sources = [key(loaded, f"source_{s.name}") for s in loaded.project.dataset.sources]

    @dg.asset(
        **common(
            loaded, "dataset", "Canonical records: cleaned, de-duplicated, verdicts applied.", "parquet"
        ),
        deps=sources,
        automation_condition=take_changed_data(loaded.project),
    )
    def dataset(context: dg.AssetExecutionContext, launcher: SubprocessLauncher) -> dg.MaterializeResult[Any]:
        line = open_line(loaded.name, settings.load())
        with attempt(context, line, "dataset", more=True):  # a source out of reach is a failure of this asset
            line.look(younger_than_s=_LOOKED_S)
            spec = line.dataset_spec()
        with attempt(context, line, "dataset", spec.input_digest):
            made = by_stage(context, line, spec, launcher)
            _note_submitter(line, made)
        return result(made, **_dataset_metadata(made))

    return dataset


def _note_submitter(line: Line, made: Made) -> None:
    """Who has a version made from its sources has submitted it, and never signs it. Once per person."""
    digest = made.artifact.digest
    known = gates.submitted_by(line.ledger, line.project.name, digest)
    if line.actor not in known and not (made.reused and known):
        body = {"asset": "dataset", "sources": line.source_digests}
        line.ledger.append(gates.SUBMITTED, digest, body, project=line.project.name, actor=line.actor)


def _dataset_metadata(made: Made) -> dict[str, Any]:
    content = made.artifact.content
    preview = json.loads(made.artifact.file("beside/preview.json").read_text("utf-8"))
    return {
        "dagster/row_count": content["records"],
        "preview": table(preview, ["prompt", "answer", "source"]),
        "dropped": dg.MetadataValue.json(content["dropped"]),
        "findings": dg.MetadataValue.json(content["findings"]),
        "quality report": dg.MetadataValue.path(str(made.artifact.file("beside/quality.html"))),
    }


def _quality(loaded: Loaded) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=key(loaded, "dataset"),
        name="quality",
        description="The Great Expectations suite of the dataset.",
        blocking=True,
    )
    def quality() -> dg.AssetCheckResult:
        line = open_line(loaded.name, settings.load())
        dataset = _need(line, "dataset")
        rows = json.loads(dataset.file("beside/quality.json").read_text("utf-8"))
        failed = [r for r in rows if not r["success"]]
        severe = any(r["severity"] == "error" for r in failed)
        return dg.AssetCheckResult(
            passed=not failed,
            severity=dg.AssetCheckSeverity.ERROR if severe else dg.AssetCheckSeverity.WARN,
            description=f"{len(rows) - len(failed)} of {len(rows)} expectations hold"
            + "".join(f"; {r['name']}: {r['observed']} {r['detail']}".rstrip() for r in failed),
            metadata={"expectations": table(rows, ["name", "type", "severity", "success", "detail"])},
        )

    return quality


def _splits(loaded: Loaded) -> Definition:
    @dg.asset(
        **common(loaded, "splits", "Train, validation and test, without a group in two of them.", "parquet"),
        deps=[key(loaded, "dataset")],
        automation_condition=carry_on(),
    )
    def splits(context: dg.AssetExecutionContext, launcher: SubprocessLauncher) -> dg.MaterializeResult[Any]:
        line = open_line(loaded.name, settings.load())
        with attempt(context, line, "splits"):
            made = by_stage(context, line, line.splits_spec(), launcher)
        content = made.artifact.content
        counts = content["counts"]
        rows = [{"split": name, "records": n} for name, n in counts.items()]
        return result(
            made,
            **{
                "dagster/row_count": sum(counts.values()),
                "counts": table(rows, ["split", "records"]),
                "leakage": dg.MetadataValue.json(content["leakage"]),
                "left out": dg.MetadataValue.json(content["quarantined"]),
            },
        )

    return splits


def _split_checks(loaded: Loaded) -> list[dg.AssetChecksDefinition]:
    asset = key(loaded, "splits")

    @dg.asset_check(asset=asset, name="leakage", description="No group stands in two splits.", blocking=True)
    def leakage() -> dg.AssetCheckResult:
        found = _need(open_line(loaded.name, settings.load()), "splits").content["leakage"]
        bad = {name: n for name, n in found.items() if n}
        return dg.AssetCheckResult(passed=not bad, description=str(bad or "none"), metadata=found)

    @dg.asset_check(asset=asset, name="size", description="The test split is large enough to judge by.")
    def size() -> dg.AssetCheckResult:
        counts = _need(open_line(loaded.name, settings.load()), "splits").content["counts"]
        return dg.AssetCheckResult(
            passed=counts.get("test", 0) >= 30,
            severity=dg.AssetCheckSeverity.WARN,
            description=f"{counts.get('test', 0)} test records; intervals are wide below 30",
        )

    @dg.asset_check(asset=asset, name="balance", description="Validation is not larger than train.")
    def balance() -> dg.AssetCheckResult:
        counts = _need(open_line(loaded.name, settings.load()), "splits").content["counts"]
        return dg.AssetCheckResult(
            passed=counts["train"] > counts.get("validation", 0),
            severity=dg.AssetCheckSeverity.WARN,
            description=", ".join(f"{name} {n}" for name, n in counts.items()),
        )

    return [leakage, size, balance]


def _need(line: Line, name: str) -> Any:
    artifact = getattr(line, name)
    if artifact is None:
        raise dg.Failure(f"'{name}' is not made for the current content", allow_retries=False)
    return artifact
