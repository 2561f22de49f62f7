"""The evaluation report: one HTML file that needs nothing else, for people who did not train it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftaas_pipelines.evaluation.compare import CANDIDATE, CHAMPION, SLICES
from ftaas_pipelines.evaluation.inputs import EvaluateInputs
from ftaas_pipelines.evaluation.records import draw
from ftaas_pipelines.evaluation.run import BASE, Results
from ftaas_pipelines.metrics.bootstrap import LEVEL, RESAMPLES

METRIC_NAMES = {
    "exact_match": "Exact match",
    "token_f1": "Token F1",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "loss": "Loss",
}
METRIC_NOTES = {
    "exact_match": "answers equal to the reference; JSON compared as data",
    "token_f1": "words shared with the reference, precision and recall",
    "rouge_l": "longest common run of words, in order",
    "chrf": "shared character sequences, 0 to 100, mean over records",
    "loss": "nats a token of the reference answer; lower is better",
}
SYSTEM_NAMES = {
    CANDIDATE: "adapter",
    BASE: "base model",
    CHAMPION: "champion",
    "untouched_input": "untouched input",
    "majority": "most frequent answer",
    "retrieval": "nearest training prompt",
}
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


def number(metric: str, value: float) -> str:
    """A score as people read it: percent for shares, one digit for chrF, three for loss."""
    if metric == "loss":
        return f"{value:.3f}"
    return f"{value:.1f}" if metric == "chrf" else f"{100 * value:.1f}%"


def span(metric: str, interval: Mapping[str, float]) -> str:
    """An interval as people read it."""
    low, high = number(metric, interval["low"]), number(metric, interval["high"])
    return f"{low.removesuffix('%')} to {high}"


def headline(scores: Mapping[str, Any], split: str = "test") -> str:
    """Who wins, in one sentence of plain English, by the primary metric on the whole test split."""
    metric, systems = scores["primary"], scores["sets"][split]["systems"]
    win = scores["wins"]["naive"]

    def score(label: str) -> str:
        return number(metric, systems[label]["overall"][metric]["value"])

    count = scores["sets"][split]["n"]
    does = (
        f"answers {score(CANDIDATE)} of the {count} {split} questions exactly"
        if metric == "exact_match"
        else f"reaches {METRIC_NAMES[metric]} {score(CANDIDATE)} on the {count} {split} questions"
    )
    base = f", the base model {score(BASE)}" if BASE in systems else ""
    if not win:
        return f"The adapter {does}{base}."
    naive = f"the {SYSTEM_NAMES[win['baseline']]} {score(win['baseline'])}"
    tie = win["candidate"] == win["other"]
    verdict = "wins" if win["beaten"] else "ties" if tie else "loses"
    return f"The adapter {verdict}: it {does}; {naive}{base}."


def remarks(scores: Mapping[str, Any], split: str = "test") -> list[str]:
    """What else a decision needs: the slices, the challenges, the champion, and what a loss means."""
    metric, found = scores["primary"], []
    name = METRIC_NAMES[metric].lower() if metric != "chrf" else "chrF"
    win = scores["wins"]["naive"]
    if win and not win["beaten"]:
        found.append(
            f"The {SYSTEM_NAMES[win['baseline']]} needs no model and does as well or better, "
            "so the gate refuses this adapter whatever its other scores."
        )
    elif win and win["verdict"] != "better":
        found.append("Its lead over the naive baseline is within chance: the interval includes zero.")
    systems, slices = scores["sets"][split]["systems"], scores["sets"][split]["slices"]
    if len(slices) > 1:
        parts = [
            f"{number(metric, systems[CANDIDATE][part][metric]['value'])} on the {count} {part} answers"
            for part, count in slices.items()
        ]
        found.append(f"By kind of answer, {name} is {' and '.join(parts)}.")
    for challenge, one in list(scores["sets"].items())[1:]:
        value = number(metric, one["systems"][CANDIDATE]["overall"][metric]["value"])
        found.append(f"On the challenge {_words(challenge)} ({one['n']} records) {name} is {value}.")
    champion = scores["wins"][CHAMPION]
    if champion:
        found.append(
            f"Against the champion in production: {champion['verdict']} ({_signed(metric, champion)})."
        )
    return found


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
        project=_words(facts.project),
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


def _words(name: str) -> str:
    return name.replace("_", " ")


def _signed(metric: str, difference: Mapping[str, float]) -> str:
    scale, unit = (100, " points") if metric not in ("chrf", "loss") else (1, "")
    value, low, high = (scale * difference[k] for k in ("value", "low", "high"))
    return f"{value:+.1f}{unit}, {low:+.1f} to {high:+.1f}"


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
    return {"name": _words(name), "n": one["n"], "rows": rows}


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
                {"other": other, "difference": _signed(metric, win), "verdict": win["verdict"], "tone": tone}
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
