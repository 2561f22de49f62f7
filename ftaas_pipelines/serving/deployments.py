"""Deployments on this machine: bring a release up, try it, stop it, roll it back.

Light: assets and the CLI import it. The supervisor does the work; this writes what should be
(desired.json) and waits until it is (state.json).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ftaas_pipelines.errors import FtaasError, InputInvalid, Refused
from ftaas_pipelines.projects.upstream import Upstream
from ftaas_pipelines.serving import smoke, supervisor_process, tls
from ftaas_pipelines.serving.desired import HISTORY, Folder, ReleaseToServe, Terms, Trial, Wanted
from ftaas_pipelines.serving.smoke import Question
from ftaas_pipelines.settings import ENVIRONMENTS, Settings
from ftaas_pipelines.store import Artifact, Store, short

_POLL_S = 0.1


@dataclass(frozen=True)
class Deployment:
    """A release answering in an environment. `state` is running, starting, failed or stopped.

    `rollout`: what the project's rules say now; empty where it has none.
    """

    project: str
    env: str
    url: str
    release: str
    state: str
    pinned: bool
    reason: str = ""
    rollout: dict[str, Any] = field(default_factory=dict[str, Any])

    def as_dict(self) -> dict[str, Any]:
        """As `ftaas deployment list --json` prints it."""
        names = ("project", "env", "url", "release", "state", "pinned", "rollout")
        return {name: getattr(self, name) for name in names}


def release_to_serve(
    settings: Settings,
    project: str,
    release: str,
    bento: Artifact,
    base_path: str,
    max_new_tokens: int,
    upstream: Upstream | None = None,
) -> ReleaseToServe:
    """What an engine needs to know of a release, read off its Bento.

    Raises:
        FtaasError: the Bento's or the adapter's bytes are not what their digests say.
    """
    content = bento.content
    adapter = Store(settings.store_path).get(content["adapter"])
    problems = [*bento.problems(), *adapter.problems()]
    if problems:
        raise FtaasError(problems)
    return ReleaseToServe(
        project=project,
        release=release,
        bento=bento.digest,
        bento_path=str(bento.path.resolve() / "bento"),
        adapter=adapter.digest,
        adapter_path=str(adapter.path.resolve()),
        base=content["base"],
        base_path=str(base_path),
        runtime=content["runtime"],
        family=content["family"],
        max_new_tokens=max_new_tokens,
        upstream=upstream,
    )


def up(
    settings: Settings,
    environment: str,
    release: ReleaseToServe,
    wait_s: float = 240.0,
    terms: Terms | None = None,
    judged: Wanted | None = None,
    questions: Sequence[Question] = (),
) -> Deployment:
    """Serve a release: returns once it answers. What answered before does so until then.

    Args:
        terms: what its answers are held to; None: as before, or the defaults.
        judged: what a rule looked at; where it stands no more, nothing is done.
        questions: asked before it answers anybody.

    Raises:
        InputInvalid: the public port belongs to someone else.
        Refused: the project is pinned to another release, or was changed since it was judged.
        FtaasError: it did not become healthy; what was served before still is.
    """
    folder = Folder(settings.home, environment)
    if folder.supervisor() is None:
        supervisor_process.check_port(settings, environment)
    with folder.changing() as desired:
        before = desired.projects.get(release.project)
        _unchanged(folder, release.project, before, judged)
        if before and before.pinned and before.release.release != release.release:
            raise Refused(
                f"{release.project} is pinned to release {short(before.release.release)}",
                environment,
                short(release.release),
                f"run `ftaas deployment unpin {release.project} --env {environment}` first",
            )
        smoke.write(folder, release.release, questions, desired)
        answers = folder.state()["projects"].get(release.project, {}).get("state") == "running"
        held = terms or (before.terms if before else Terms())
        if before is None:
            desired.projects[release.project] = Wanted(release=release, terms=held, since=time.time())
        elif before.release != release:
            same = before.release.release == release.release
            history = before.history if same else [*before.history, before.release][-HISTORY:]
            desired.projects[release.project] = Wanted(
                release=release, pinned=before.pinned, history=history, terms=held, since=time.time()
            )
        elif before.terms != held:
            before.terms = held
        elif not answers:
            desired.attempt += 1  # asked again for what failed: the supervisor tries again
    return _settle(settings, folder, release, before, wait_s)


def rollback(
    settings: Settings,
    environment: str,
    project: str,
    wait_s: float = 240.0,
    judged: Wanted | None = None,
) -> Deployment:
    """Serve the release before this one, and pin it. `judged` as for `up`.

    Raises:
        InputInvalid: nothing was served before.
        Refused: it was changed since it was judged.
        FtaasError: the earlier release does not become healthy; the present one still answers.
    """
    folder = Folder(settings.home, environment)
    if folder.supervisor() is None:
        supervisor_process.check_port(settings, environment)
    with folder.changing() as desired:
        before = _known(folder, desired.projects, project)
        _unchanged(folder, project, before, judged)
        if not before.history:
            raise InputInvalid(
                "no earlier release was served here",
                f"{environment}/{project}",
                do="see `ftaas deployment list`",
            )
        back = before.history[-1]
        desired.projects[project] = Wanted(
            release=back,
            pinned=True,
            history=before.history[:-1],
            terms=before.terms,
            since=time.time(),
        )
    return _settle(settings, folder, back, before, wait_s)


def try_beside(
    settings: Settings,
    environment: str,
    trial: Trial,
    wait_s: float = 240.0,
    questions: Sequence[Question] = (),
) -> dict[str, Any]:
    """Try a release beside the one that serves; returns when it answers. One at a time.

    `questions` as for `up`. A deployment, a rollback or `end_trial` ends it.

    Raises:
        InputInvalid: the project is not deployed there.
        Refused: it is that release which serves.
        FtaasError: it cannot be served; the one that serves does not notice.
    """
    folder, project = Folder(settings.home, environment), trial.release.project
    with folder.changing() as desired:
        wanted = _known(folder, desired.projects, project)
        if wanted.release.release == trial.release.release:
            raise Refused(
                "this release serves already", f"{environment}/{project}", short(trial.release.release)
            )
        smoke.write(folder, trial.release.release, questions, desired)
        wanted.trial = trial.model_copy(update={"since": time.time()})
    attempt, deadline = folder.desired().attempt, time.monotonic() + wait_s
    found: dict[str, Any] = {}
    while time.monotonic() < deadline:
        state = folder.state()
        if state.get("attempt", -1) >= attempt:  # else it tells of what was tried before
            found = state["projects"].get(project, {}).get("trial") or {}
        if found.get("state") == "running":
            return found
        if found.get("state") == "failed":
            break
        time.sleep(_POLL_S)
    end_trial(settings, environment, project)
    raise FtaasError(
        f"release {short(trial.release.release)} of {project} cannot be tried",
        environment,
        str(found.get("reason") or f"no answer within {wait_s:.0f} s"),
        f"see {folder.log}",
    )


def end_trial(
    settings: Settings, environment: str, project: str, judged: Wanted | None = None
) -> Trial | None:
    """Go on with the release that serves alone. Returns what was tried. `judged` as for `up`.

    Raises:
        Refused: it was changed since it was judged.
    """
    folder = Folder(settings.home, environment)
    with folder.changing() as desired:
        wanted = _known(folder, desired.projects, project)
        _unchanged(folder, project, wanted, judged)
        ended, wanted.trial = wanted.trial, None
    return ended


def trial(settings: Settings, environment: str, project: str) -> Trial | None:
    """What is tried there."""
    entry = Folder(settings.home, environment).desired().projects.get(project)
    return entry.trial if entry else None


def pin(settings: Settings, environment: str, project: str, pinned: bool = True) -> None:
    """Keep a project at its release until unpinned."""
    folder = Folder(settings.home, environment)
    with folder.changing() as desired:
        wanted = _known(folder, desired.projects, project)
        if wanted.pinned and not pinned:
            wanted.since = time.time()  # what was, was judged: rules see what comes
        wanted.pinned = pinned


def unpin(settings: Settings, environment: str, project: str) -> None:
    """Let later releases replace this one again."""
    pin(settings, environment, project, pinned=False)


def stop(settings: Settings, environment: str, project: str | None = None) -> list[str]:
    """Serve a project no more; with none left, or None given, end the supervisor and its engines.

    Returns:
        The projects that were stopped.
    """
    folder = Folder(settings.home, environment)
    if not folder.path.exists():
        return []
    with folder.changing() as desired:
        stopped = sorted(p for p in desired.projects if project in (None, p))
        for name in stopped:
            del desired.projects[name]
        empty = not desired.projects
    if empty:
        supervisor_process.end(folder)
    return stopped


def start(settings: Settings, environment: str) -> bool:
    """Serve again what should be served, after `halt` or a reboot; does not wait until it answers.

    Returns:
        Whether a supervisor was started: not when one lives, or nothing is deployed there.

    Raises:
        InputInvalid: the public port belongs to someone else.
    """
    folder = Folder(settings.home, environment)
    if folder.supervisor() is not None or not folder.desired().projects:
        return False
    supervisor_process.check_port(settings, environment)
    supervisor_process.start(settings, folder)
    return True


def settled(settings: Settings, environment: str, wait_s: float = 240.0) -> list[Deployment]:
    """What is deployed there, once each project runs or has failed, or when the time is over."""
    deadline = time.monotonic() + wait_s
    while True:
        found = [d for d in deployments(settings) if d.env == environment]
        if all(d.state in ("running", "failed") for d in found) or time.monotonic() > deadline:
            return found
        time.sleep(_POLL_S)


def halt(settings: Settings, environment: str) -> None:
    """End the environment's processes; what should be served stays written down for `start`."""
    supervisor_process.end(Folder(settings.home, environment))


def current(settings: Settings, environment: str, project: str) -> ReleaseToServe | None:
    """The release that should be served; None when the project is not deployed there."""
    entry = Folder(settings.home, environment).desired().projects.get(project)
    return entry.release if entry else None


def previous(settings: Settings, environment: str, project: str) -> ReleaseToServe | None:
    """The release that a rollback would serve."""
    entry = Folder(settings.home, environment).desired().projects.get(project)
    return entry.history[-1] if entry and entry.history else None


def deployments(settings: Settings) -> list[Deployment]:
    """Every project in every environment, and how it stands now."""
    found: list[Deployment] = []
    for environment in ENVIRONMENTS:
        folder = Folder(settings.home, environment)
        state, ruled = folder.state(), folder.ruled()
        for project, entry in sorted(folder.desired().projects.items()):
            now = state["projects"].get(project, {"state": state["state"], "reason": ""})
            url = _url(settings, environment, state)
            found.append(
                Deployment(
                    project,
                    environment,
                    url,
                    entry.release.release,
                    now["state"],
                    entry.pinned,
                    now["reason"],
                    ruled.get(project, {}) if entry.ruled else {},
                )
            )
    return found


def deployment(settings: Settings, environment: str, project: str) -> Deployment:
    """One of them.

    Raises:
        InputInvalid: the project is not deployed there.
    """
    for found in deployments(settings):
        if (found.env, found.project) == (environment, project):
            return found
    raise InputInvalid(
        "is not deployed",
        f"{environment}/{project}",
        do=f"run `ftaas run {project}` or `ftaas deployment up`",
    )


def _settle(
    settings: Settings, folder: Folder, release: ReleaseToServe, before: Wanted | None, wait_s: float
) -> Deployment:
    """Wait until a release answers; if it does not, put back what was wanted before."""
    try:
        attempt = folder.desired().attempt
        supervisor_process.start(settings, folder)
        _wait(folder, release, attempt, wait_s)
    except FtaasError:
        with folder.changing() as desired:
            entry = desired.projects.get(release.project)
            if entry and entry.release == release:  # nobody has asked for another since
                if before is not None:
                    desired.projects[release.project] = before
                else:
                    del desired.projects[release.project]
            empty = not desired.projects
        if empty:
            supervisor_process.end(folder)
        raise
    return deployment(settings, folder.environment, release.project)


def _wait(folder: Folder, release: ReleaseToServe, attempt: int, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    reason = ""
    while time.monotonic() < deadline:
        state = folder.state()
        if state["state"] == "stopped":
            raise FtaasError(
                "the supervisor ended", str(folder.log), supervisor_process.tail(folder), "see its log"
            )
        mine = state["projects"].get(release.project)
        if mine and state["attempt"] >= attempt:
            reason = mine["reason"]
            if mine["release"] != release.release:
                raise FtaasError(
                    "another release was asked for meanwhile", folder.environment, mine["release"]
                )
            if mine["state"] == "running":
                return
            if mine["state"] == "failed":
                raise FtaasError(
                    f"release {short(release.release)} of {release.project} cannot be served: {reason}",
                    folder.environment,
                    do=f"see {folder.log}",
                )
        time.sleep(_POLL_S)
    raise FtaasError(
        f"release {short(release.release)} did not answer within {wait_s:.0f} s",
        folder.environment,
        reason,
        f"see {folder.log}",
    )


def _unchanged(folder: Folder, project: str, now: Wanted | None, judged: Wanted | None) -> None:
    """That nobody changed what a rule has judged: a person's word comes first."""
    if judged is not None and now != judged:
        raise Refused("was changed since it was judged", f"{folder.environment}/{project}")


def _url(settings: Settings, environment: str, state: dict[str, Any]) -> str:
    return state.get("url") or tls.url(settings, environment)


def _known(folder: Folder, projects: dict[str, Wanted], project: str) -> Wanted:
    if project not in projects:
        raise InputInvalid(
            "is not deployed", f"{folder.environment}/{project}", do=f"run `ftaas run {project}` first"
        )
    return projects[project]
