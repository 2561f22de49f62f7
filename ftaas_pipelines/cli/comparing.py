"""`ftaas deployment compare`: what a canary or an A/B test shows so far."""

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import output
from ftaas_pipelines.cli.answers import moment
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.governance.ledger import open_ledger
from ftaas_pipelines.serving.desired import Folder
from ftaas_pipelines.settings import ENVIRONMENTS
from ftaas_pipelines.store import short

if TYPE_CHECKING:
    from ftaas_pipelines.serving.rollout.comparison import Row


def compare(
    name: Annotated[str, typer.Argument(help="The project's name.")],
    env: Annotated[str, typer.Option(help="staging or production.")] = "production",
    since: Annotated[str, typer.Option(help="30m, 24h, 7d, a UTC date or time; else its start.")] = "",
    share: Annotated[float, typer.Option(min=0.0001, max=1, help="Least difference of shares.")] = 0.02,
    ratio: Annotated[float, typer.Option(min=0.001, max=10, help="Least difference of times.")] = 0.1,
    as_json: output.Json = False,
) -> None:
    """Compare what is tried (b) with what serves (a): the canary or A/B test that runs, or the last one."""
    from ftaas_pipelines.serving.rollout import comparison, windows

    if env not in ENVIRONMENTS:
        raise InputInvalid("there is no such environment", "--env", env, f"use {' or '.join(ENVIRONMENTS)}")
    settings = configuration.load()
    folder = Folder(settings.home, env)
    tried = comparison.find(folder, open_ledger(settings), name)
    begin = max(tried.since, moment("--since", since) or 0.0)
    traffic = windows.read(folder.answers, name, begin, tried.until)
    report = comparison.compare(tried, traffic, share, ratio)

    def show(screen: Console) -> None:
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(begin))
        state = (
            f"{'running' if tried.running else 'over'}, {(tried.until - begin) / 3600:.1f} h since {when} UTC"
        )
        sides = f"{short(tried.release)} (b) beside {short(report.serving)} (a)"
        screen.print(f"{name} in {env}: {tried.kind} of {sides}, {state}")
        units = "requests (callers)" if report.by_caller else "requests"
        heads = ["measure", "a", units, "b", units, "b against a", "interval", "b needs", ""]
        screen.print(output.table(heads, [_cells(row, report.by_caller) for row in report.rows]))
        screen.print(report.verdict)

    output.emit(as_json, report.as_dict(), show)


def _cells(row: "Row", by_caller: bool) -> list[str]:
    ratio = row.measure.endswith("_ms") or row.measure == "tokens"

    def value(of: float | None) -> str:
        return "" if of is None else f"{of:.1f}" if ratio else f"{of:.2%}"

    def effect(of: float | None) -> str:
        return "" if of is None else f"{of:+.1%}" if ratio else f"{100 * of:+.2f} pp"

    def count(requests: int, units: int) -> str:
        return f"{requests} ({units})" if by_caller else str(requests)

    interval = "" if row.low is None else f"{effect(row.low)} to {effect(row.high)}"
    return [
        row.measure,
        value(row.a),
        count(row.a_requests, row.a_units),
        value(row.b),
        count(row.b_requests, row.b_units),
        effect(row.effect),
        interval,
        "" if row.needed is None else str(row.needed),
        row.verdict,
    ]
