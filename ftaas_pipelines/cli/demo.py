"""`ftaas demo`: the example project from raw rows to an answered question (what `make demo` runs).

The demo answers its own reviews, under the invented people that the example's project.yaml names, and
says so on the screen. Nothing else on this platform ever answers a review by itself.
"""

import json
import time
from typing import Any

from rich.console import Console
from rich.text import Text

from assets.line import Line, open_line
from assets.states import line_states
from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import output
from ftaas_pipelines.cli.run import carry_out, due_assets
from ftaas_pipelines.errors import FtaasError, Refused
from ftaas_pipelines.governance.requirement import policy_version
from ftaas_pipelines.review.identity import may_answer_as
from ftaas_pipelines.review.sign_offs import requests
from ftaas_pipelines.serving import deployments
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import short

PROJECT = "maintenance_assistant"
_COMMENT = "Demo: answered by `ftaas demo` itself, not by a person."


def demo(as_json: output.Json = False) -> None:
    """The example project from raw rows to an answered question."""
    settings = configuration.load()
    began = time.monotonic()
    line = open_line(PROJECT, settings)
    if not due_assets(line) and not [s for s in line_states(line) if s.state in ("waiting", "refused")]:
        output.say(f"{PROJECT}: everything is up to date", style="bold")
    while True:
        try:
            carry_out(settings, PROJECT, quiet=as_json)
            break
        except Refused as refusal:
            if not refusal.waiting:
                raise
            _answer(settings, refusal.waiting)
    line = open_line(PROJECT, settings)
    report = _report(line, settings, time.monotonic() - began)
    output.emit(as_json, report, lambda screen: _show(screen, report))


def _answer(settings: Settings, waiting: list[dict[str, Any]]) -> None:
    """Decide the open reviews under demo identities: the invented people of the example project."""
    line = open_line(PROJECT, settings)
    for row in waiting:
        if row["review"] is None or not row["who"] or not row["who"][0].endswith("@example.com"):
            raise FtaasError(
                "the demo cannot answer this review", row["asset"], do="answer it with `ftaas review`"
            )
        output.say(
            f"  ! the demo itself signs {row['asset']} as {row['role']}: {row['who'][0]}, an invented person",
            style="yellow",
        )
        may_answer_as(settings, line.project, row["who"][0])
        requests.decide(
            line.ledger,
            row["review"],
            decision="approve",
            comment=_COMMENT,
            by=row["who"][0],
            policy=policy_version(line.policy),
        )


def _report(line: Line, settings: Settings, seconds: float) -> dict[str, Any]:
    assert line.evaluation is not None and line.release is not None
    with line.evaluation.file("answers.jsonl").open(encoding="utf-8") as lines:
        rows = [
            row for row in map(json.loads, lines) if row["set"] == "test" and row["slice"] == "structured"
        ]
    from ftaas_pipelines.serving import asking

    question = rows[0]["prompt"]
    answer = asking.ask(settings, "production", PROJECT, question)
    return {
        "project": PROJECT,
        "seconds": round(seconds, 1),
        "scores": line.evaluation.content["scores"],
        "question": question,
        "expected": rows[0]["reference"],
        "answer": answer,
        "release": line.release.digest,
        "report": str(line.evaluation.file("beside/report.html")),
        "deployments": [d.as_dict() for d in deployments.deployments(settings) if d.project == PROJECT],
    }


def _show(screen: Console, report: dict[str, Any]) -> None:
    screen.print()
    screen.print(score_table(report["scores"]))
    screen.print()
    screen.print(Text("question  ", style="bold") + Text(report["question"]))
    screen.print(Text("answer    ", style="bold") + Text(report["answer"]["answer"]))
    screen.print(
        Text(f"          {report['answer']['response_id']}, release {short(report['release'])}", style="dim")
    )
    screen.print()
    url = next(d["url"] for d in report["deployments"] if d["env"] == "production")
    pairs = [
        ("took", f"{report['seconds']:.0f} s"),
        ("report", report["report"]),
        ("endpoint", f"{url}/v1  (OpenAI's API; {url}/docs)"),
        ("trace", f".venv/bin/ftaas trace {report['answer']['response_id']}"),
        ("look", "make dev   (Dagster UI, MLflow)"),
        ("stop", f".venv/bin/ftaas deployment stop {PROJECT}"),
    ]
    screen.print(output.facts(pairs))


def score_table(scores: dict[str, Any]) -> Any:
    """Exact match of every system, by set and slice, with 95% intervals."""
    rows: list[list[str]] = []
    for set_name, found in scores["sets"].items():
        for system, slices in found["systems"].items():
            for slice_name in ("structured", "text"):
                score = slices.get(slice_name, {}).get("exact_match")
                if score:
                    interval = f"{score['low']:.3f} to {score['high']:.3f}"
                    rows.append([set_name, slice_name, system, f"{score['value']:.3f}", interval])
    rows.sort(key=lambda r: (r[0] != "test", r[0], r[1]))
    return output.table(["set", "slice", "system", "exact match", "95% interval"], rows)
