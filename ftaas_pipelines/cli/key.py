"""`ftaas key`: who may ask the endpoints, and how much."""

import re
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from typing import Annotated, Any

import typer
from rich.console import Console

from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import output
from ftaas_pipelines.errors import InputInvalid, Refused
from ftaas_pipelines.settings import ENVIRONMENTS, Settings

app = typer.Typer(no_args_is_help=True, help="API keys of the endpoints: new, list, show, rotate, revoke.")
_UNITS = {"m": 60, "h": 3600, "d": 86400}
_PATTERN = set("*?[")
Which = Annotated[str, typer.Argument(help="The key's id (key_…), or its name.")]


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="What uses it, such as the service's name.")],
    project: Annotated[list[str], typer.Option(help="A project, or a pattern (support_*); may repeat.")],
    env: Annotated[list[str] | None, typer.Option(help="Environments; all, unless told.")] = None,
    action: Annotated[
        list[str] | None, typer.Option(help="answer, feedback, models; all, unless told.")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    requests_per_day: Annotated[int | None, typer.Option(min=1)] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    tokens_per_day: Annotated[int | None, typer.Option(min=1)] = None,
    concurrent: Annotated[int | None, typer.Option(min=1, help="Requests at once, in one gateway.")] = None,
    expires: Annotated[str, typer.Option(help="In how long: 90d, 12h, 30m, or never.")] = "365d",
    as_json: output.Json = False,
) -> None:
    """Issue a key. It is shown once: what is kept is a hash of it."""
    from ftaas_pipelines.governance.ledger import open_ledger
    from ftaas_pipelines.serving.access import keys
    from ftaas_pipelines.serving.access.caller import ACTIONS, Allowance

    settings = configuration.load()
    _may_issue(settings, project)
    environments, actions = env or list(ENVIRONMENTS), action or list(ACTIONS)
    _known("--env", environments, ENVIRONMENTS)
    _known("--action", actions, ACTIONS)
    allowance = Allowance(
        requests_per_minute, requests_per_day, tokens_per_minute, tokens_per_day, concurrent
    )
    id, key = keys.issue(
        open_ledger(settings),
        keys.pepper(settings.home, settings.access_pepper),
        name=name,
        projects=project,
        environments=environments,
        actions=[a for a in ACTIONS if a in actions],
        allowance=allowance,
        expires=_until(expires),
        actor=settings.who,
    )
    _show_new(as_json, id, key, name)


@app.command("list")
def list_(
    all_: Annotated[bool, typer.Option("--all", help="Also those that are over.")] = False,
    as_json: output.Json = False,
) -> None:
    """Keys and what they may do; never the keys themselves."""
    from ftaas_pipelines.governance.ledger import open_ledger
    from ftaas_pipelines.serving.access import keys

    now = time.time()
    known = keys.all_keys(open_ledger(configuration.load())).values()
    found = [key.as_dict(now) for key in known if all_ or key.state(now) == "valid"]

    def show(screen: Console) -> None:
        rows = [
            [k["id"], k["name"], k["state"], ", ".join(k["projects"]), ", ".join(k["environments"]), _day(k)]
            for k in found
        ]
        if rows:
            screen.print(output.table(["id", "name", "state", "projects", "environments", "expires"], rows))
        else:
            screen.print("no key; `ftaas key new NAME --project P` issues one")

    output.emit(as_json, {"keys": found}, show)


@app.command()
def show(key: Which, as_json: output.Json = False) -> None:
    """One of them."""
    from ftaas_pipelines.governance.ledger import open_ledger
    from ftaas_pipelines.serving.access import keys

    found = keys.find(open_ledger(configuration.load()), key).as_dict(time.time())
    output.emit(
        as_json,
        found,
        lambda screen: screen.print("\n".join(f"{name}: {value}" for name, value in found.items())),
    )


@app.command()
def rotate(
    key: Which,
    grace: Annotated[str, typer.Option(help="How long the old key lives on: 24h, 0m.")] = "24h",
    expires: Annotated[str, typer.Option(help="The successor's: 90d, 12h; the old one's, unless told.")] = "",
    as_json: output.Json = False,
) -> None:
    """Issue a successor with the same rights; both are valid for a while."""
    from ftaas_pipelines.governance.ledger import open_ledger
    from ftaas_pipelines.serving.access import keys

    settings = configuration.load()
    ledger, now = open_ledger(settings), time.time()
    known = keys.find(ledger, key, now)
    _may_issue(settings, known.projects)
    if known.state(now) != "valid":
        raise InputInvalid(f"the key is {known.state(now)}", known.id, do="issue a new one: `ftaas key new`")
    new = keys.rotate(
        ledger,
        keys.pepper(settings.home, settings.access_pepper),
        known,
        grace_s=_span(grace, "--grace"),
        now=now,
        actor=settings.who,
        expires=now + _span(expires, "--expires") if expires else None,
    )
    _show_new(as_json, *new, known.name)


@app.command()
def revoke(
    key: Which,
    reason: Annotated[str, typer.Option(help="Why; it stands in the ledger.")] = "",
    as_json: output.Json = False,
) -> None:
    """End a key: every endpoint refuses it within seconds."""
    from ftaas_pipelines.governance.ledger import open_ledger
    from ftaas_pipelines.serving.access import keys

    settings = configuration.load()
    ledger = open_ledger(settings)
    known = keys.find(ledger, key)
    if settings.who != known.issued_by:
        _may_end(settings, known.projects)
    if not known.revoked:
        keys.revoke(ledger, known, reason=reason, actor=settings.who)
    text = f"{known.id} ({known.name}) is revoked"
    output.emit(as_json, {"id": known.id, "revoked": True}, lambda screen: screen.print(text))


def _may_issue(settings: Settings, names: Sequence[str]) -> None:
    """Who may let somebody ask these projects: an owner or approver of each, or of none that is here yet.

    A pattern takes in projects to come, and is for the policy's approvers.

    Raises:
        Refused: the actor may not.
    """
    from ftaas_pipelines.projects import catalog
    from ftaas_pipelines.projects import policy as platform

    policy = platform.load(settings.policy)
    here = catalog.load_all(settings.projects, settings.policy)[0] if settings.projects.is_dir() else []
    _may_end(settings, names)
    for name in names:
        if _PATTERN & set(name) and not policy.roles.allows("approver", settings.who):
            raise _refused(settings, name, "a key for a pattern is for approvers by the platform policy")
        for project in (one.project for one in here if fnmatch(one.name, name)):
            people = project.people.owners + project.people.approvers
            if settings.who.lower() not in {person.lower() for person in people}:
                raise _refused(settings, project.name, "only its owners and approvers may issue a key for it")


def _may_end(settings: Settings, names: Sequence[str]) -> None:
    """Whoever may own projects or approve releases by the platform policy may end any key: in haste, too.

    Raises:
        Refused: the actor may not.
    """
    from ftaas_pipelines.projects import policy as platform

    policy = platform.load(settings.policy)
    if not any(policy.roles.allows(role, settings.who) for role in ("owner", "approver")):
        what = "keys are issued and ended by owners and approvers by the platform policy"
        raise _refused(settings, ", ".join(names), what)


def _refused(settings: Settings, where: str, what: str) -> Refused:
    do = "set FTAAS_ACTOR to who you are, or have somebody do it who may"
    return Refused(what, where, settings.who, do)


def _known(where: str, given: list[str], known: tuple[str, ...]) -> None:
    if wrong := [one for one in given if one not in known]:
        raise InputInvalid("is not known", where, ", ".join(wrong), f"use {', '.join(known)}")


def _until(text: str) -> float | None:
    """UTC seconds at which a span from now ends; None for `never`."""
    return None if text == "never" else time.time() + _span(text, "--expires")


def _span(text: str, where: str) -> int:
    """Seconds of a span such as 90d."""
    match = re.fullmatch(r"([0-9]{1,6})([mhd])", text)
    if not match:
        raise InputInvalid("is no span of time", where, text, "write 90d, 12h or 30m")
    return int(match[1]) * _UNITS[match[2]]


def _day(key: dict[str, Any]) -> str:
    return "never" if key["expires"] is None else time.strftime("%Y-%m-%d", time.gmtime(key["expires"]))


def _show_new(as_json: bool, id: str, key: str, name: str) -> None:
    def show(screen: Console) -> None:
        screen.print(f"{id} for {name}. It is shown this once:")
        screen.print(key, soft_wrap=True, highlight=False)

    output.emit(as_json, {"id": id, "name": name, "key": key}, show)
