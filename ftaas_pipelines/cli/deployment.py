"""`ftaas deployment`: what answers where."""

from typing import Annotated, Any

import typer
from rich.console import Console

from assets.line import Line, open_line
from assets.withdrawal import require_serving
from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import output
from ftaas_pipelines.cli.comparing import compare
from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.governance import gates
from ftaas_pipelines.review.identity import may_answer_as
from ftaas_pipelines.review.sign_offs import look_back
from ftaas_pipelines.serving import deployments
from ftaas_pipelines.serving.deployments import Deployment
from ftaas_pipelines.settings import ENVIRONMENTS
from ftaas_pipelines.store import short

app = typer.Typer(no_args_is_help=True)
app.command()(compare)
Name = Annotated[str, typer.Argument(help="The project's name.")]
Env = Annotated[str, typer.Option(help="staging or production.")]


@app.command("list")
def list_(as_json: output.Json = False) -> None:
    """Every deployment on this machine."""
    found = deployments.deployments(configuration.load())
    rows = [
        [d.project, d.env, d.state, d.url, short(d.release), "pinned" if d.pinned else d.reason, _ruled(d)]
        for d in found
    ]

    def show(screen: Console) -> None:
        if rows:
            screen.print(output.table(["project", "env", "state", "url", "release", "", "rules"], rows))
        else:
            screen.print("nothing is deployed")

    output.emit(as_json, {"deployments": [d.as_dict() for d in found]}, show)


@app.command()
def up(
    name: Annotated[str, typer.Argument(help="The project's name; none: all that is deployed.")] = "",
    env: Annotated[str, typer.Option(help="staging or production; for all projects: none means both.")] = "",
    as_json: output.Json = False,
) -> None:
    """Start what was deployed (after a reboot, say): the release that this environment served last."""
    if not name:
        _all_up(env, as_json)
        return
    env = env or "production"
    _known(env)
    line = open_line(name, configuration.load())
    entries = [
        e
        for e in line.ledger.entries(project=name, authentic=True)
        if e.kind in ("deployment", "rollback") and e.body["environment"] == env
    ]
    if not entries:
        raise InputInvalid("was never deployed", f"{name}/{env}", do=f"`ftaas run {name}`")
    served = _deploy(line, env, entries[-1].subject)
    _say(as_json, served.as_dict(), f"{name} answers in {env}: {served.url}")


def _all_up(env: str, as_json: bool) -> None:
    """Start every environment, or one, and wait until each project answers or cannot."""
    settings = configuration.load()
    if env:
        _known(env)
    wanted = [env] if env else list(ENVIRONMENTS)
    for environment in wanted:
        deployments.start(settings, environment)
    found = [d for environment in wanted for d in deployments.settled(settings, environment)]

    def show(screen: Console) -> None:
        for d in found:
            screen.print(f"{d.project} in {d.env}: {d.state}  {d.url}  {d.reason}".rstrip())
        if not found:
            screen.print("nothing is deployed")

    output.emit(as_json, {"deployments": [d.as_dict() for d in found]}, show)
    if failed := [d for d in found if d.state != "running"]:
        raise FtaasError(
            f"{len(failed)} of {len(found)} do not answer",
            ", ".join(f"{d.project}/{d.env}" for d in failed),
            failed[0].reason,
            "see `ftaas deployment list`",
        )


@app.command()
def promote(name: Name, env: Env = "production", as_json: output.Json = False) -> None:
    """Serve the newest release in an environment; its approval must hold."""
    _known(env)
    line = open_line(name, configuration.load())
    requirement = line.deployment_requirement(env)
    gates.require(line.ledger, requirement, asset=f"deployment_{env}", actor=line.actor)
    served = _deploy(line, env, requirement.digest)
    _say(as_json, served.as_dict(), f"{name} {short(requirement.digest)} answers in {env}: {served.url}")


@app.command()
def rollback(name: Name, env: Env = "production", as_json: output.Json = False) -> None:
    """Serve the release before this one, and pin the environment to it until `unpin`."""
    _known(env)
    line = open_line(name, configuration.load())
    back = deployments.previous(line.settings, env, name)
    if back:  # nothing to go back to is said by the rollback itself
        require_serving(line, back.release, env)
    served = deployments.rollback(line.settings, env, name)
    release = line.store.get(served.release)
    body = {"environment": env, "adapter": release.content["adapter"], "url": served.url}
    line.ledger.append("rollback", release.digest, body, project=name, actor=line.actor)
    if env == "production":
        # Dagster is imported with these, so only when they are needed.
        from assets.deployment import make_champion
        from resources.tracking import Tracking

        make_champion(line, release, Tracking())
    _say(
        as_json, served.as_dict(), f"{name} is back at {short(release.digest)} in {env}, pinned until `unpin`"
    )


@app.command()
def unpin(name: Name, env: Env = "production", as_json: output.Json = False) -> None:
    """Let automation change this environment again."""
    _known(env)
    line = open_line(name, configuration.load())
    deployments.unpin(line.settings, env, name)
    line.ledger.append("unpin", env, {"environment": env}, project=name, actor=line.actor)
    _say(as_json, {"project": name, "env": env, "pinned": False}, f"{name} in {env} is no longer pinned")


@app.command("try")
def try_(
    name: Name,
    as_: Annotated[str, typer.Option("--as", help="canary, ab or shadow; see docs/serving.md.")] = "canary",
    percent: Annotated[float, typer.Option(min=0.01, max=100, help="Of requests; ab: of callers.")] = 10.0,
    env: Env = "production",
    as_json: output.Json = False,
) -> None:
    """Try the newest release beside the one that serves; its approval must hold."""
    from assets.deployment import try_release

    _known(env)
    if as_ not in ("canary", "ab", "shadow"):
        raise InputInvalid("there is no such trial", "--as", as_, "use canary, ab or shadow")
    line = open_line(name, configuration.load())
    requirement = line.deployment_requirement(env)
    gates.require(line.ledger, requirement, asset=f"deployment_{env}", actor=line.actor)
    found = try_release(line, env, line.store.get(requirement.digest), as_, percent)
    document = {"project": name, "env": env, "trial": found}
    _say(as_json, document, f"{name} {short(requirement.digest)} is tried in {env}: {as_}, {percent:g}%")


@app.command("end-trial")
def end_trial(
    name: Name,
    promote: Annotated[bool, typer.Option("--promote", help="Serve what was tried.")] = False,
    env: Env = "production",
    as_json: output.Json = False,
) -> None:
    """End a trial: go on with the release that serves, or with the one that was tried."""
    from assets.deployment import end_trial as end

    _known(env)
    line = open_line(name, configuration.load())
    tried = deployments.trial(line.settings, env, name)
    if tried is None:
        raise InputInvalid("nothing is tried there", f"{name}/{env}", do=f"`ftaas deployment try {name}`")
    if promote:
        _deploy(line, env, tried.release.release)
    end(line, env)
    serves = deployments.deployment(line.settings, env, name).release
    document = {"project": name, "env": env, "serves": serves, "tried": tried.release.release}
    _say(as_json, document, f"{name} {short(serves)} answers alone in {env}")


@app.command("break-glass")
def break_glass(
    name: Name,
    reason: Annotated[str, typer.Option(help="What cannot wait, and why.")],
    env: Env = "production",
    by: Annotated[str, typer.Option("--as", help="Your e-mail (FTAAS_ACTOR, unless told).")] = "",
    as_json: output.Json = False,
) -> None:
    """Let the newest release through without its approvals, for some hours: it takes two people."""
    _known(env)
    line = open_line(name, configuration.load())
    by = by or line.settings.who
    may_answer_as(line.settings, line.project, by)
    word = look_back.break_the_glass(
        line.ledger, line.deployment_requirement(env), line.policy, line.project, by=by, reason=reason
    )
    if word.complete:
        output.say(f"BREAK-GLASS: {word.text}. Somebody else must look back at it:", style="bold red")
        output.say(f"  ftaas review show {word.review}", style="bold red")
    document = {
        "project": name,
        "env": env,
        "release": word.entry.subject,
        "by": by,
        "complete": word.complete,
        "until": word.until,
        "review": word.review,
        "entry": word.entry.seq,
    }
    do = f"`ftaas run {name}` deploys it" if word.complete else "have the second person run the same command"
    _say(as_json, document, f"{word.text}; {do}")


@app.command()
def stop(
    name: Name,
    env: Annotated[str, typer.Option(help="One environment; else all.")] = "",
    as_json: output.Json = False,
) -> None:
    """Stop answering; the process ends with its last project."""
    settings = configuration.load()
    stopped: list[str] = []
    for environment in [env] if env else ENVIRONMENTS:
        _known(environment)
        if deployments.stop(settings, environment, name):
            stopped.append(environment)
    text = f"{name} stopped in {', '.join(stopped)}" if stopped else f"{name} was not running"
    _say(as_json, {"project": name, "stopped": stopped}, text)


def _deploy(line: Line, environment: str, release: str) -> Deployment:
    from assets.deployment import deploy
    from resources.tracking import Tracking

    return deploy(line, environment, line.store.get(release), Tracking())


def _ruled(found: Deployment) -> str:
    """What the rules of `serving.rollout` say now, in a line."""
    said = found.rollout
    if why := said.get("refused"):
        return f"{said['action']} refused: {why}"
    return str(said.get("did") or said.get("reason", ""))


def _known(environment: str) -> None:
    if environment not in ENVIRONMENTS:
        raise InputInvalid(
            "there is no such environment", "--env", environment, f"use {' or '.join(ENVIRONMENTS)}"
        )


def _say(as_json: bool, document: dict[str, Any], text: str) -> None:
    output.emit(as_json, document, lambda screen: screen.print(text))
