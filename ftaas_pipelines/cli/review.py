"""`ftaas review`: the local inbox."""

from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import output
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.review import requests
from ftaas_pipelines.review.requests import Review
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import short

app = typer.Typer(no_args_is_help=True)


def _ledger(settings: Settings) -> Ledger:
    return Ledger(settings.ledger, settings.home)


@app.command("list")
def list_(
    role: Annotated[str | None, typer.Option(help="sme, rai or approver.")] = None,
    project: Annotated[str | None, typer.Option(help="Only this project.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Decided and superseded ones too.")] = False,
    as_json: output.Json = False,
) -> None:
    """The reviews that wait for somebody."""
    found = requests.reviews(
        _ledger(configuration.load()), project=project, role=role, only_open=not everything
    )
    rows = [[r.id, r.state, r.title, " or ".join(r.who), r.since] for r in found]

    def show(screen: Console) -> None:
        if rows:
            screen.print(output.table(["id", "state", "what", "who may decide", "since"], rows))
        else:
            screen.print("nothing waits for a decision")

    output.emit(as_json, {"reviews": [_document(r) for r in found]}, show)


@app.command()
def show(identifier: Annotated[str, typer.Argument(metavar="ID")], as_json: output.Json = False) -> None:
    """What a reviewer should see before deciding."""
    review = requests.find(_ledger(configuration.load()), identifier)

    def render(screen: Console) -> None:
        screen.print(Text(review.title, style="bold"))
        pairs: list[tuple[str, Any]] = [
            ("state", review.state),
            ("digest", review.digest),
            ("who may decide", f"{' or '.join(review.who)} ({review.needed} needed)"),
            ("since", review.since),
        ]
        pairs += [
            (key, _brief(value)) for key, value in review.summary.items() if value not in (None, "", {})
        ]
        screen.print(output.facts(pairs))
        for d in review.decisions:
            screen.print(Text(f"{d['at']} {d['by']}: {d['decision']}: {d['comment']}"))
        noun = "model show" if review.environment else "data rows"
        screen.print(Text(f"look closer: ftaas {noun} {short(review.digest)}", style="dim"))
        screen.print(
            Text(
                f"answer: ftaas review decide {review.id} --decision approve --comment … --as EMAIL",
                style="dim",
            )
        )

    output.emit(as_json, _document(review), render)


@app.command()
def decide(
    identifier: Annotated[str, typer.Argument(metavar="ID")],
    decision: Annotated[str, typer.Option(help="approve, approve_with_conditions, changes or reject.")],
    comment: Annotated[str, typer.Option(help="What was checked, and why this decision.")],
    by: Annotated[str, typer.Option("--as", help="Your e-mail.")],
    conditions: Annotated[str, typer.Option(help="For approve_with_conditions.")] = "",
    risk: Annotated[str, typer.Option(help="low, medium or high.")] = "",
    as_json: output.Json = False,
) -> None:
    """Answer a review; the decision goes into the ledger."""
    entry = requests.decide(
        _ledger(configuration.load()),
        identifier,
        decision=decision,
        comment=comment,
        by=by,
        conditions=conditions,
        risk=risk,
    )
    document = {"review": identifier, "decision": decision, "by": by, "entry": entry.seq, "hash": entry.hash}
    output.emit(
        as_json,
        document,
        lambda screen: screen.print(
            f"{decision} by {by} on {short(entry.subject)}: ledger entry {entry.seq}"
        ),
    )


def _document(review: Review) -> dict[str, Any]:
    return {**asdict(review), "title": review.title}


def _brief(value: Any) -> str:
    """Nested facts as one readable line."""
    if isinstance(value, dict):
        if "sets" in value:
            value = {
                name: {
                    k: round(v["overall"][value["primary"]]["value"], 3) for k, v in found["systems"].items()
                }
                for name, found in value["sets"].items()
            }
        return ", ".join(f"{k}: {_brief(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "; ".join(_brief(v) for v in value)
    return str(value)
