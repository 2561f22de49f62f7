"""The model card: one page of Markdown on an adapter or a release.

Sections after Mitchell et al., Model Cards for Model Reporting (FAT* 2019). The same artifacts, decisions
and project give the same bytes.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ftaas_pipelines.data.versions import view
from ftaas_pipelines.evaluation import wording
from ftaas_pipelines.evaluation.cards.facts import Model, gather, sign_offs, thresholds, wins
from ftaas_pipelines.evaluation.cards.front_matter import front_matter
from ftaas_pipelines.evaluation.cards.limits import limits
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.projects.policy import PlatformPolicy
from ftaas_pipelines.projects.project import Project
from ftaas_pipelines.store import Artifact, Store, short


def model_card(
    store: Store, ledger: Ledger, artifact: Artifact, project: Project, policy: PlatformPolicy
) -> str:
    """The card of a release or an adapter, as Markdown. Raises like `gather`."""
    return render(gather(store, ledger, artifact, project, policy))


def render(model: Model) -> str:
    """The card as Markdown."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown, not HTML; what people wrote goes through `cell`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": cell, "said": _said, "short": short}
    scores, attested = model.scores, model.adapter.attestation
    metrics = _metrics(scores) if scores else []
    return environment.get_template("model_card.md.j2").render(
        front_matter=front_matter(model),
        project=model.project,
        headline=wording.headline(scores) if scores else "",
        adapter=model.adapter,
        made=model.adapter.content,
        release=model.release,
        recipe=attested.get("spec", {}).get("asset", "not said").removeprefix("adapter_"),
        splits=model.splits,
        counts=view.counts(model.splits),
        data=model.data,
        content=model.data.artifact.content,
        scores=scores,
        looks=model.looks,
        metrics=metrics,
        metric_names=wording.METRIC_NAMES,
        metric_notes=wording.METRIC_NOTES,
        thresholds=thresholds(model),
        tables=[*_tables(scores, metrics)] if scores else [],
        wins=wins(scores) if scores else [],
        sign_offs=sign_offs(model),
        limits=limits(model),
        costs=[*_costs(model)],
        digests=[*_digests(model)],
        inputs=json.dumps(attested.get("spec", {}).get("inputs", {}), indent=1, sort_keys=True),
    )


def cell(value: Any) -> str:
    """A value that cannot break out of its place: one line, no table bars, no tags, no links."""
    text = " ".join(str(value).split())
    for plain, escaped in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "\\`"), ("[", "\\[")):
        text = text.replace(plain, escaped)
    return text


def _said(value: Any) -> str:
    return cell(value or "not said")


def _metrics(scores: dict[str, Any]) -> list[str]:
    scored = scores["sets"]["test"]["systems"]["candidate"]["overall"]
    return sorted(scored, key=lambda m: (m != scores["primary"], list(wording.METRIC_NAMES).index(m)))


def _tables(scores: dict[str, Any], metrics: Sequence[str]) -> Iterator[dict[str, Any]]:
    def rows(parts: Iterator[tuple[str, Any]]) -> list[dict[str, Any]]:
        return [
            {"name": name, "cells": [_scored(metric, found.get(metric)) for metric in metrics]}
            for name, found in parts
        ]

    for name, one in scores["sets"].items():
        title = "Test split" if name == "test" else f"Challenge {wording.words(name)}"
        systems = (
            (wording.SYSTEM_NAMES.get(s) or s, parts["overall"]) for s, parts in one["systems"].items()
        )
        yield {"title": title, "n": one["n"], "rows": rows(systems)}
    test = scores["sets"]["test"]
    if len(test["slices"]) > 1:
        parts = ((part, test["systems"]["candidate"][part]) for part in test["slices"])
        yield {"title": "The adapter by kind of answer", "n": test["n"], "rows": rows(parts)}


def _scored(metric: str, interval: dict[str, float] | None) -> str:
    if interval is None:
        return "-"
    return f"{wording.number(metric, interval['value'])} ({wording.span(metric, interval)})"


def _costs(model: Model) -> Iterator[dict[str, str]]:
    for what, artifact in (("training", model.adapter), ("evaluation", model.evaluation)):
        attested = artifact.attestation if artifact else {}
        if "seconds" in attested:
            usd = attested.get("cost_usd")
            usd_said = f"{usd:.4f}" if usd is not None else "not said"
            yield {"what": what, "seconds": f"{attested['seconds']:.1f}", "usd": usd_said}
    yield {"what": "sources of the data", "seconds": "", "usd": f"{model.data.version.cost_usd:.2f}"}


def _digests(model: Model) -> Iterator[tuple[str, str]]:
    if model.release:
        yield "release", model.release.digest
        for name in ("bento", "runtime"):
            if name in model.release.content:
                yield name, model.release.content[name]
    yield "adapter", model.adapter.digest
    yield "base model", model.adapter.content["base"]
    if model.evaluation:
        yield "evaluation", model.evaluation.digest
    yield "splits", model.splits.digest
    yield "dataset", model.data.artifact.digest
    for source in model.data.version.sources:
        yield f"source {source['name']}", source["sha256"]
