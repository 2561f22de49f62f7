"""Whether the ledger lets a release serve in an environment: asked whenever one is about to be loaded."""

from ftaas_pipelines.governance import gates, signing
from ftaas_pipelines.governance.gates import Requirement
from ftaas_pipelines.governance.ledger import Entry, Ledger
from ftaas_pipelines.serving.desired import ReleaseToServe
from ftaas_pipelines.store import short

_NAMED = ("bento", "adapter", "base")


def problem(ledger: Ledger, release: ReleaseToServe, environment: str) -> str | None:
    """Why a release must not be loaded; None: it may.

    The ledger must hold it, signed, with these very digests, and leave to deploy it here, whose sign-offs
    hold still, or that the platform has flagged and left serving by its policy (`assets/withdrawal.py`).
    """
    known = ledger.entries("release", project=release.project, subject=release.release, authentic=True)
    if not known:
        return f"release {short(release.release)} is not in the ledger"
    body = known[-1].body
    if not signing.verify(ledger.home, release.release.encode(), str(body.get("signature", ""))):
        return f"the signature of release {short(release.release)} does not hold"
    for name in _NAMED:
        if body.get(name) != getattr(release, name):
            named = short(str(body.get(name)))
            return f"the {name} is {short(getattr(release, name))}, the ledger's release has {named}"
    own = _of(ledger, release, environment)
    grants = [e for e in own if e.kind == "grant" and e.body["gate"] == "deploy"]
    if not grants:
        return f"nobody was given leave to deploy release {short(release.release)} in {environment}"
    stops = [e for e in own if e.kind == "deployment_stopped" and e.seq > grants[-1].seq]
    if stops:
        return f"it was stopped here: {'; '.join(stops[-1].body['why'])}"
    found = gates.standing(ledger, Requirement(**grants[-1].body["requirement"]))
    flags = [e for e in own if e.kind in ("deployment_flagged", "deployment_unflagged")]
    if found.satisfied or (flags and flags[-1].kind == "deployment_flagged"):
        return None
    return f"its approval for {environment} holds no more"


def _of(ledger: Ledger, release: ReleaseToServe, environment: str) -> list[Entry]:
    """The entries about a release in an environment, in order."""
    entries = ledger.entries(project=release.project, subject=release.release, authentic=True)
    return [e for e in entries if e.body.get("environment") == environment]
