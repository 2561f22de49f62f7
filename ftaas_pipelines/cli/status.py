"""`ftaas status` and `ftaas logs`."""

from collections import deque
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from assets import activity
from assets.line import asset_names, open_line
from assets.states import AssetState, line_states
from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import output
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.store import short

_STYLES = {
    "fresh": "green",
    "pinned": "cyan",
    "running": "blue",
    "waiting": "yellow",
    "stale": "yellow",
    "refused": "red",
    "failed": "red",
    "missing": "dim",
}


def status(
    name: Annotated[str, typer.Argument(help="The project's name.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Every project.")] = False,
    as_json: output.Json = False,
) -> None:
    """Each asset of a project: state, digest, why."""
    settings = configuration.load()
    if not name and not everything:
        raise InputInvalid("name a project or say --all", "ftaas status", do="see `ftaas project list`")
    if name:
        states = line_states(open_line(name, settings))
        output.emit(as_json, _document(name, states), lambda screen: _show(screen, name, states))
        return
    projects, _ = catalog.load_all(settings.projects, settings.policy)
    found = {p.name: line_states(open_line(p.name, settings)) for p in projects}
    documents = [_document(n, states) for n, states in found.items()]

    def show(screen: Console) -> None:
        for project, states in found.items():
            _show(screen, project, states)

    output.emit(as_json, {"projects": documents}, show)


def _document(name: str, states: list[AssetState]) -> dict[str, Any]:
    return {"project": name, "assets": [s.as_dict() for s in states]}


def _show(screen: Console, name: str, states: list[AssetState]) -> None:
    rows = [
        [s.name, Text(s.state, style=_STYLES[s.state]), short(s.digest), s.updated_at or "", s.reason]
        for s in states
    ]
    screen.print(output.table(["asset", "state", "digest", "updated", "why"], rows, title=name))


def logs(
    name: Annotated[str, typer.Argument(help="The project's name.")],
    asset: Annotated[str, typer.Argument(help="One asset; else the one tried last.")] = "",
    lines: Annotated[int, typer.Option(help="How many lines from the end.", min=1)] = 60,
    as_json: output.Json = False,
) -> None:
    """The log of the asset that was tried last, or of one asset."""
    settings = configuration.load()
    names = asset_names(open_line(name, settings).loaded)
    if asset and asset not in names:
        raise InputInvalid("there is no such asset", "ASSET", asset, f"one of: {', '.join(names)}")
    tried = [a for n in names if (a := activity.read(settings.home, name, n)) and (not asset or n == asset)]
    if not tried:
        raise InputInvalid("nothing was tried yet", name, asset, f"`ftaas run {name}`")
    last = max(tried, key=lambda a: a.at)
    path = activity.log_path(settings.home, name, last.asset)
    text: list[str] = []
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as f:
            text = [line.rstrip("\n") for line in deque(f, lines)]
    document = {
        "project": name,
        "asset": last.asset,
        "state": last.state,
        "run": last.run_id,
        "at": last.at,
        "error": last.error,
        "log": str(path),
        "lines": text,
    }

    def show(screen: Console) -> None:
        screen.print(Text(f"{last.asset}: {last.state} at {last.at}, run {last.run_id[:8]}", style="bold"))
        for line in text:
            screen.print(Text(line))
        if last.error:
            screen.print(Text(last.error, style="red"))

    output.emit(as_json, document, show)
