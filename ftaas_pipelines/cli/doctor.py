"""`ftaas doctor`: what is installed, configured, reachable, and what to do about the rest."""

import os
import platform
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import typer
from rich.console import Console
from rich.text import Text

import ftaas_pipelines
from ftaas_pipelines import settings
from ftaas_pipelines.cli.output import Json, emit, table
from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.governance.ledger import open_ledger
from ftaas_pipelines.monitoring.backoff import Backoff
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.settings import Settings
from resources import label_studio
from resources.label_studio import installation, server

PACKAGES = (
    "dagster",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "evaluate",
    "accelerate",
    "torch",
    "great-expectations",
    "label-studio-sdk",
    "mlflow",
    "bentoml",
    "openlineage-python",
    "pandas",
    "daft",
)
_LEAST_FREE_GB = 2.0
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Check:
    """One thing looked at. `do` says what to do when it is not ok."""

    name: str
    state: Literal["ok", "warn", "fail"]
    detail: str
    do: str = ""


def doctor(as_json: Json = False) -> None:
    """What is installed, configured, reachable; what to do about the rest. Exit 1 when a check fails."""
    chosen = settings.load()
    checks = [*_checks(chosen)]
    packages = {name: _version(name) for name in PACKAGES}
    failed = any(check.state == "fail" for check in checks)
    document = {
        "ok": not failed,
        "python": platform.python_version(),
        "packages": packages,
        "settings": chosen.table(),
        "checks": [asdict(check) for check in checks],
    }

    def render(screen: Console) -> None:
        screen.print(f"Python {platform.python_version()} on {platform.platform(terse=True)}\n")
        screen.print("  ".join(f"{name} {found or 'missing'}" for name, found in packages.items()) + "\n")
        rows = [(r["variable"], r["value"], r["origin"], r["doc"]) for r in chosen.table()]
        screen.print(table(("setting", "value", "from", "what it is"), rows))
        screen.print()
        found = [(Text(c.state, _STYLES[c.state]), c.name, c.detail, c.do) for c in checks]
        screen.print(table(("", "check", "found", "do"), found))

    emit(as_json, document, render)
    if failed:
        raise typer.Exit(1)


def _checks(chosen: Settings) -> Iterator[Check]:
    yield from _packages()
    yield _home(chosen.home)
    yield _disk(chosen.home)
    yield from _projects(chosen)
    yield _ledger(chosen)
    yield from _outbox(chosen)
    for name, port in (
        ("production endpoint", chosen.port_production),
        ("staging endpoint", chosen.port_staging),
        ("Dagster UI", chosen.port_dagster),
        ("MLflow UI", chosen.port_mlflow),
        ("Label Studio", chosen.port_label_studio),
    ):
        yield _port(name, port)
    yield _label_studio(chosen)
    yield _tool("chromium", "chromium", "screenshots and browser tests")
    yield _tool("psql", "postgresql-client", "the production profile's PostgreSQL")
    yield Check("network", "ok", "not asked: the embedded bases need none; Hub ids do")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _packages() -> Iterator[Check]:
    install = "pip install -r requirements.lock"
    missing = [name for name in PACKAGES if _version(name) is None]
    if missing:
        yield Check("packages", "fail", f"missing: {', '.join(missing)}", install)
    else:
        yield Check("packages", "ok", f"{len(PACKAGES)} there")
    lock = Path(ftaas_pipelines.__file__).parents[1] / "requirements.lock"
    if lock.is_file():
        pins = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", lock.read_text("utf-8"), re.MULTILINE)
        locked: dict[str, str] = dict(pins)
        # torch 2.13.0+cpu is the lock's torch 2.13.0, built for another device.
        found = {name: (_version(name) or "").partition("+")[0] for name in PACKAGES if name in locked}
        other = [f"{n} {v} (locked {locked[n]})" for n, v in found.items() if v and v != locked[n]]
        if other:
            yield Check("lock", "warn", ", ".join(other), f"{install}: other versions may give other digests")
        else:
            yield Check("lock", "ok", "installed as locked")


def _home(home: Path) -> Check:
    existing = next(p for p in (home.resolve(), *home.resolve().parents) if p.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return Check("FTAAS_HOME", "ok", f"{home.resolve()} can be written")
    do = "make it writable or set FTAAS_HOME elsewhere"
    return Check("FTAAS_HOME", "fail", f"{home.resolve()} cannot be written", do)


def _disk(home: Path) -> Check:
    existing = next(p for p in (home.resolve(), *home.resolve().parents) if p.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if free < _LEAST_FREE_GB:
        return Check("disk", "warn", f"{free:.1f} GB free", f"free space: {_LEAST_FREE_GB:g} GB are wanted")
    return Check("disk", "ok", f"{free:.1f} GB free")


def _projects(chosen: Settings) -> Iterator[Check]:
    try:
        good, problems = catalog.load_all(chosen.projects, chosen.policy)
    except FtaasError as error:
        yield Check("projects", "fail", "; ".join(str(p) for p in error.problems), "mend it")
        return
    if problems:
        shown = "; ".join(str(p) for p in problems)
        yield Check("projects", "fail", f"{len(problems)} problems: {shown}", "see `ftaas project validate`")
    elif not good:
        yield Check(
            "projects", "warn", f"none under {chosen.projects}", "`ftaas project new NAME --from FILE`"
        )
    else:
        yield Check("projects", "ok", f"{', '.join(p.name for p in good)}; the platform policy is valid")


def _ledger(chosen: Settings) -> Check:
    # Looking must not make anything: a ledger that is not there yet is fine.
    if not chosen.ledger_url and not (chosen.home / "ledger.db").exists():
        return Check("ledger", "ok", "none yet; the first run makes it")
    try:
        found = open_ledger(chosen).verify()
    except FtaasError as error:
        return Check("ledger", "fail", str(error), "see the line before")
    if found.first_bad:
        where = f"entry {found.first_bad['seq']}: {found.first_bad['why']}"
        return Check("ledger", "fail", where, "stop, keep a copy, and restore the last good backup")
    said = "; ".join([f"{found.entries} entries, the chain holds", *found.warnings])
    return Check("ledger", "ok", said)


def _label_studio(chosen: Settings) -> Check:
    name = "Label Studio"
    if not chosen.label_studio_url and server.running(chosen.home) is None:
        where = "reviews are in the local inbox"
        if chosen.profile == "production":
            do = "set FTAAS_LABEL_STUDIO_URL and FTAAS_LABEL_STUDIO_TOKEN"
            return Check(name, "fail", "none, and production has no local inbox", do)
        if installation.is_installed():
            return Check(name, "ok", f"installed, not running; {where}")
        return Check(name, "ok", f"not installed: `make dev` does it; {where}")
    try:
        tool = label_studio.connect(chosen, open_ledger(chosen))
        assert tool is not None
        found = f"{tool.url} ({tool.server}), {len(tool.people())} people may sign"
    except FtaasError as error:
        problem = error.problems[0]
        return Check(name, "fail", f"{problem.where}: {problem.what}", problem.do)
    return Check(name, "ok", found)


def _outbox(chosen: Settings) -> Iterator[Check]:
    if chosen.notify_email and not chosen.smtp_url:
        yield Check("notices", "warn", "FTAAS_NOTIFY_EMAIL is set, FTAAS_SMTP_URL is not", "set both")
    if chosen.smtp_url and not (chosen.mail_from or chosen.alert_email):
        yield Check("notices", "warn", "mails have no sender", "set FTAAS_MAIL_FROM")
    failing = list(Backoff(chosen.home))
    for way, found in failing:
        detail = f"fails since {found.since}, {found.times} times in a row: {found.why}"
        yield Check(f"notices by {way}", "warn", detail, f"mend it; it is tried again at {found.again}")
    if not failing:
        ways = [n for n, on in (("mail", chosen.notify_email), ("webhook", chosen.notify_webhook)) if on]
        said = (
            f"waiting reviews are told by {' and '.join(ways)}"
            if ways
            else "nobody is told; see docs/notices.md"
        )
        yield Check("notices", "ok", said)


def _port(name: str, port: int) -> Check:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            where = f"{port}: {getattr(error, 'strerror', None) or error}"
            do = "fine when it is ours (`ftaas deployment list`); else stop it or set FTAAS_PORT_…"
            return Check(f"port of the {name}", "warn", where, do)
    return Check(f"port of the {name}", "ok", f"{port} is free")


def _tool(command: str, package: str, wanted_for: str) -> Check:
    path = shutil.which(command)
    if path:
        return Check(command, "ok", path)
    return Check(command, "warn", f"not installed; only for {wanted_for}", f"apt-get install {package}")
