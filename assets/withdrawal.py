"""What becomes of a release that serves when a sign-off behind it holds no more.

Judged is the release that serves, pinned or not, by the decisions on its own digest and on its own
splits; a newer dataset or release changes nothing. The platform policy says per risk tier what follows:
`stop` at once, `flag` and leave it, or `grace`: flag, and stop some days after.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from assets.line import Line
from ftaas_pipelines.errors import Refused
from ftaas_pipelines.governance import gates
from ftaas_pipelines.governance.gates import ROLE_NAMES, Requirement
from ftaas_pipelines.governance.ledger import Entry
from ftaas_pipelines.serving import deployments
from ftaas_pipelines.store import short

FLAGGED, UNFLAGGED, STOPPED = "deployment_flagged", "deployment_unflagged", "deployment_stopped"
ACTOR = "platform"


@dataclass(frozen=True)
class Judged:
    """How a release that serves stands.

    Attributes:
        why: what holds no more, a line each; empty: every sign-off holds.
        did: what was done about it just now.
        ends: when its grace ends (ISO 8601, UTC); empty where it has none.
    """

    project: str
    environment: str
    release: str
    why: list[str]
    did: Literal["", "flagged", "unflagged", "stopped"] = ""
    ends: str = ""

    def __str__(self) -> str:
        what = f"release {short(self.release)} in {self.environment}"
        if not self.why:
            return f"every sign-off of {what} holds"
        then = f"; it is stopped at {self.ends}" if self.ends else ""
        then = "; it was stopped" if self.did == "stopped" else then
        return f"{what}: {'; '.join(self.why)}{then}"


def review_serving(line: Line, environment: str, at: datetime | None = None) -> Judged | None:
    """Judge what serves there and act by the policy of its tier; None when nothing does.

    Every action is a ledger entry with its reason, written before it is done: killed in between, the
    next look does it. Repeating it is harmless.

    Raises:
        FtaasError: it is being deployed just now, its artifact is gone, or it cannot be stopped.
    """
    if line.deployed(environment) is None:
        return None
    at = at or datetime.now(UTC)
    # What is being deployed is not judged: another release may answer in a moment.
    with line.store.lease(f"deploy-{environment}-{line.project.name}", wait_s=0):
        serving = line.deployed(environment)
        if serving is None:
            return None
        why = withdrawn(line, serving.release, environment, at)
        flag = _open_flag(line, serving.release, environment)
        if not why:
            if flag:
                _note(line, UNFLAGGED, serving.release, environment, ["every sign-off holds again"])
            did = "unflagged" if flag else ""
            return Judged(line.project.name, environment, serving.release, [], did)
        return _act(line, environment, serving.release, why, flag, at)


def _act(
    line: Line, environment: str, release: str, why: list[str], flag: Entry | None, at: datetime
) -> Judged:
    project, tier = line.project.name, line.policy.tier(line.project)
    ends = ""
    if tier.when_revoked == "grace":
        since = datetime.fromisoformat(flag.at) if flag else at
        ends = f"{since + timedelta(days=tier.grace_days):%Y-%m-%dT%H:%M:%SZ}"
    if flag is None:
        _note(line, FLAGGED, release, environment, why, ends)
    if tier.when_revoked == "stop" or (ends and datetime.fromisoformat(ends) <= at):
        if not _stopped_before(line, release, environment):
            _note(line, STOPPED, release, environment, why)
        deployments.stop(line.settings, environment, project)
        return Judged(project, environment, release, why, "stopped", ends)
    return Judged(project, environment, release, why, "" if flag else "flagged", ends)


def require_serving(line: Line, release: str, environment: str, at: datetime | None = None) -> None:
    """Leave to start, restart or go back to a release: by the ledger alone, no tool is asked.

    What serves already may be started again as long as its tier leaves it there.

    Raises:
        Refused: a sign-off holds no more; names which and what to do.
    """
    at = at or datetime.now(UTC)
    why = withdrawn(line, release, environment, at)
    if not why:
        return
    serving, tier = line.deployed(environment), line.policy.tier(line.project)
    flag = _open_flag(line, release, environment)
    if serving and serving.release == release and tier.when_revoked != "stop":
        grace = timedelta(days=tier.grace_days)
        if tier.when_revoked == "flag" or not flag or at < datetime.fromisoformat(flag.at) + grace:
            return
    raise Refused(
        f"release {short(release)} may not serve in {environment}: {'; '.join(why)}",
        f"{line.project.name}/deployment_{environment}",
        do="have it signed again; when that cannot wait: `ftaas deployment break-glass`",
    )


def withdrawn(line: Line, release: str, environment: str, at: datetime | None = None) -> list[str]:
    """What of the evidence behind a release holds no more, a line each.

    Raises:
        InputInvalid: the release is not in the store.
    """
    artifact = line.store.get(release)
    found: list[str] = []
    if not line.ledger.entries("release", subject=artifact.digest, authentic=True):
        found.append(f"release {short(release)} is not in the ledger")
    for requirement in line.requirements_of(artifact, environment):
        found += _not_standing(line, requirement, at)
    return found


def _not_standing(line: Line, requirement: Requirement, at: datetime | None) -> list[str]:
    found = gates.standing(line.ledger, requirement, at)
    if found.satisfied:
        return []
    target = f" for {requirement.environment}" if requirement.environment else ""
    what = f"of {requirement.noun} {short(requirement.digest)}{target}"
    said = [
        f"{ROLE_NAMES[e.body['role']]} {e.actor} said '{e.body['decision']}' {what}" for e in found.refusals
    ]
    for role, count in found.missing.items():
        void = [(e.actor, why) for e, why in found.void if e.body["role"] == role]
        said += [f"the {ROLE_NAMES[role]} sign-off {what} by {actor} {why}" for actor, why in void]
        if len(void) < count:
            said.append(f"{count - len(void)} {ROLE_NAMES[role]} sign-off {what} is missing")
    return said


def _own(line: Line, environment: str, *kinds: str) -> list[Entry]:
    """The project's entries of these kinds that speak of an environment, in order."""
    entries = [
        e
        for kind in kinds
        for e in line.ledger.entries(kind, project=line.project.name, authentic=True)
        if e.body["environment"] == environment
    ]
    return sorted(entries, key=lambda e: e.seq)


def _open_flag(line: Line, release: str, environment: str) -> Entry | None:
    """The flag that was set on a release and not lifted since: its time is that of the first flag."""
    own = [e for e in _own(line, environment, FLAGGED, UNFLAGGED) if e.subject == release]
    return own[-1] if own and own[-1].kind == FLAGGED else None


def _stopped_before(line: Line, release: str, environment: str) -> bool:
    """Whether the ledger says already that it was stopped, and nothing was started since."""
    own = _own(line, environment, STOPPED, "deployment", "rollback")
    return bool(own) and (own[-1].kind, own[-1].subject) == (STOPPED, release)


def _note(line: Line, kind: str, release: str, environment: str, why: list[str], ends: str = "") -> None:
    body = {
        "environment": environment,
        "why": why,
        "when_revoked": line.policy.tier(line.project).when_revoked,
        "policy": gates.policy_version(line.policy),
        **({"ends": ends} if ends else {}),
    }
    line.ledger.append(kind, release, body, project=line.project.name, actor=ACTOR)
