"""Live progress of a run: one line an asset, from the activity and the messages that stages leave."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from assets import activity
from ftaas_pipelines.cli.output import console
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import short

_EVERY_S = 0.25
_MARKS = {"done": "✓", "failed": "✗", "running": "▸", "waiting": "…"}


class RunWatch:
    """Shows the assets of one run as they are made; on a pipe, plain lines instead of bars."""

    def __init__(self, settings: Settings, project: str, assets: Sequence[str], quiet: bool = False):
        self._settings, self._project, self._assets, self._quiet = settings, project, assets, quiet
        self._console = console(stderr=True)
        self._told: dict[str, str] = {}
        self._begun: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, run_id: str) -> Iterator[None]:
        if self._quiet:
            yield
            return
        stop = threading.Event()
        show = self._bars if self._console.is_terminal else self._lines
        thread = threading.Thread(target=show, args=(run_id, stop), daemon=True, name="run-watch")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(5)

    def _current(self, run_id: str) -> Iterator[tuple[str, activity.Activity]]:
        for asset in self._assets:
            found = activity.read(self._settings.home, self._project, asset)
            if found and found.run_id == run_id:
                yield asset, found

    def _lines(self, run_id: str, stop: threading.Event) -> None:
        last = False
        while not last:
            last = stop.wait(_EVERY_S)
            for asset, found in self._current(run_id):
                text = self._text(asset, found)
                mark = f"{found.state}{self._tenth(asset, found)}"
                if self._told.get(asset) != mark:
                    self._told[asset] = mark
                    self._console.print(f"  {_MARKS[found.state]} {asset:<28} {text}")

    def _bars(self, run_id: str, stop: threading.Event) -> None:
        columns = (TextColumn("{task.fields[mark]}"), TextColumn("{task.fields[asset]:<28}"), BarColumn(24))
        with Progress(
            *columns, TextColumn("{task.fields[text]}"), TimeElapsedColumn(), console=self._console
        ) as bars:
            tasks: dict[str, Any] = {}
            last = False
            while not last:
                last = stop.wait(_EVERY_S)
                for asset, found in self._current(run_id):
                    if asset not in tasks:
                        tasks[asset] = bars.add_task("", total=1.0, asset=asset, mark="▸", text="")
                    if bars.tasks[tasks[asset]].finished:
                        continue
                    share = 1.0 if found.state in ("done", "waiting") else self._share(asset, found)
                    bars.update(
                        tasks[asset], completed=share, mark=_MARKS[found.state], text=self._text(asset, found)
                    )

    def _text(self, asset: str, found: activity.Activity) -> str:
        if found.state == "failed":
            return found.error.splitlines()[0] if found.error else "failed"
        if found.state == "waiting":
            return "waits for a person"
        message = self._message(asset, found)
        if found.state == "done":
            now = time.monotonic()
            seconds = now - self._begun.get(asset, now)
            head = Path(self._settings.store_path, "heads", self._project, f"{asset}.json")
            digest = json.loads(head.read_text("utf-8"))["output"] if head.exists() else None
            return f"{short(digest):<12}  {seconds:5.1f} s" if seconds else f"{short(digest):<12}"
        self._begun.setdefault(asset, time.monotonic())
        return message["message"] if message else "starts"

    def _tenth(self, asset: str, found: activity.Activity) -> str:
        return str(int(self._share(asset, found) * 10)) if found.state == "running" else ""

    def _share(self, asset: str, found: activity.Activity) -> float:
        message = self._message(asset, found)
        return float(message["done"]) if message else 0.0

    def _message(self, asset: str, found: activity.Activity) -> dict[str, Any] | None:
        """The newest progress report of an asset's stage, if it belongs to this try."""
        path = activity.messages_path(self._settings.home, self._project, asset)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime + 2 < time.time() and found.state != "running":
                return None
            tail = path.read_text("utf-8").splitlines()[-20:]
            for line in reversed(tail):
                with contextlib.suppress(ValueError):  # the line being written right now
                    message = json.loads(line)
                    if message["type"] == "progress":
                        return message
        return None
