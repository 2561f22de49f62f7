"""The evaluation report: one HTML file that needs nothing else, for people who did not train it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftaas_pipelines.evaluation.compare import CANDIDATE, CHAMPION, SLICES
from ftaas_pipelines.evaluation.inputs import EvaluateInputs
from ftaas_pipelines.evaluation.records import draw
from ftaas_pipelines.evaluation.run import BASE, Results
from ftaas_pipelines.evaluation.wording import (
    METRIC_NAMES,
    METRIC_NOTES,
    SYSTEM_NAMES,
    difference,
    headline,
    number,
    remarks,
    span,
    words,
)
from ftaas_pipelines.metrics.bootstrap import LEVEL, RESAMPLES

_LEFT, _RIGHT, _ROW = 150.0, 400.0, 30.0  # the plots' track and row height, in SVG units


@dataclass(frozen=True)
class Facts:
    """What the report says besides scores and answers.

    Attributes:
        project: its name.
        inputs: what the evaluation was made from.
        looks: how often this test split was scored, this time included.
    """

    project: str
    inputs: EvaluateInputs
    looks: int


def render(results: Results, scores: Mapping[str, Any], facts: Facts) -> str:
    """The whole report as HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    split = facts.inputs.split
    primary = scores["primary"]
    systems = list(scores["sets"][split]["systems"])
    metrics = [primary, *(m for m in METRIC_NAMES if m != primary)]
    return environment.get_template("report.html.j2").render(
        project=words(facts.project),
        headline=headline(scores, split),
        remarks=remarks(scores, split),
        wins=_wins(scores),
        metrics=[(m, METRIC_NAMES[m], METRIC_NOTES[m]) for m in metrics],
        tables=[_table(name, one, metrics) for name, one in scores["sets"].items()],
        plots=[_plot(scores["sets"][split]["systems"], m) for m in metrics],
        slices=[
            _slice_plot(scores, split, part) for part in SLICES if len(scores["sets"][split]["slices"]) > 1
        ],
        samples=_samples(results, facts.inputs.options.samples, primary),
        sample_systems=[(s, SYSTEM_NAMES.get(s, s)) for s in systems if s in results.models],
        facts=facts,
        inputs=facts.inputs,
        adapters={SYSTEM_NAMES.get(k, k): v for k, v in facts.inputs.adapters.items()},
        resamples=f"{RESAMPLES:,}",
        level=f"{LEVEL:.0%}",
        primary_name=METRIC_NAMES[primary],
    )


def _table(name: str, one: Mapping[str, Any], metrics: Sequence[str]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    for label, parts in one["systems"].items():
        cells = [
            (number(m, parts["overall"][m]["value"]), span(m, parts["overall"][m]))
            if m in parts["overall"]
            else None
            for m in metrics
        ]
        rows.append({"label": label, "name": SYSTEM_NAMES.get(label, label), "cells": cells})
    return {"name": words(name), "n": one["n"], "rows": rows}


def _plot(
    systems: Mapping[str, Any], metric: str, part: str = "overall", title: str | None = None
) -> dict[str, Any]:
    """A dot and its interval for each system that has the metric, on one scale."""
    found = {label: parts[part][metric] for label, parts in systems.items() if metric in parts.get(part, {})}
    top = {"loss": max(i["high"] for i in found.values()) * 1.05 or 1.0, "chrf": 100.0}.get(metric, 1.0)

    def x(value: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * min(max(value / top, 0.0), 1.0), 1)

    rows = [
        {
            "label": label,
            "name": SYSTEM_NAMES.get(label, label),
            "y": 18 + i * _ROW,
            "x": x(interval["value"]),
            "low": x(interval["low"]),
            "high": x(interval["high"]),
            "text": number(metric, interval["value"]),
        }
        for i, (label, interval) in enumerate(found.items())
    ]
    ticks = [
        (x(top * k / 4), number(metric, top * k / 4).removesuffix(".0").replace(".0%", "%"))
        for k in (0, 2, 4)
    ]
    return {
        "title": title or METRIC_NAMES[metric],
        "note": METRIC_NOTES[metric],
        "rows": rows,
        "ticks": ticks,
        "bottom": 6 + len(rows) * _ROW,
    }


def _slice_plot(scores: Mapping[str, Any], split: str, part: str) -> dict[str, Any]:
    one, metric = scores["sets"][split], scores["primary"]
    title = f"{part.capitalize()} answers, {one['slices'][part]} records"
    return _plot(one["systems"], metric, part, title)


def _wins(scores: Mapping[str, Any]) -> list[dict[str, str]]:
    metric, rows = scores["primary"], []
    for key in ("naive", BASE, CHAMPION):
        win = scores["wins"][key]
        if win:
            other = SYSTEM_NAMES[win.get("baseline", key)]
            tone = {"better": "good", "worse": "bad"}.get(win["verdict"], "even")
            rows.append(
                {
                    "other": other,
                    "difference": difference(metric, win),
                    "verdict": win["verdict"],
                    "tone": tone,
                }
            )
    return rows


def _samples(results: Results, count: int, primary: str) -> list[dict[str, Any]]:
    """Answers side by side, drawn by hash; up to half are ones the adapter got less than right."""
    first = results.sets[0]
    if CANDIDATE not in first.scores:
        return []
    values = first.scores[CANDIDATE][primary]
    best = 100.0 if primary == "chrf" else 1.0
    order = sorted(range(len(first.records)), key=lambda i: draw(first.records[i].record_id))
    wrong = [i for i in order if values[i] < best][: count // 2]
    right = [i for i in order if values[i] >= best][: count - len(wrong)]
    chosen = [i for i in order if i in {*wrong, *right}]
    return [
        {
            "prompt": first.records[i].prompt,
            "reference": first.records[i].reference,
            "answers": {label: first.texts[label][i] for label in results.models},
            "right": bool(values[i] >= best),
            "score": number(primary, float(values[i])),
        }
        for i in chosen
    ]
