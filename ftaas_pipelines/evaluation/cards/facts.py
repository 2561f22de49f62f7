"""What is known of an adapter or a release, gathered once from its artifacts and the ledger."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftaas_pipelines.data.versions import card as data_card
from ftaas_pipelines.data.versions import catalog
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.evaluation import wording
from ftaas_pipelines.governance.gates import ROLE_NAMES
from ftaas_pipelines.governance.ledger import Entry, Ledger
from ftaas_pipelines.projects.policy import PlatformPolicy
from ftaas_pipelines.projects.project import Project
from ftaas_pipelines.store import Artifact, Store, short


@dataclass(frozen=True)
class Model:
    """An adapter with everything that is known of it, gathered once.

    Attributes:
        release, evaluation: None where there is none yet.
        looks: how often its test split was looked at.
    """

    project: Project
    policy: PlatformPolicy
    adapter: Artifact
    release: Artifact | None
    evaluation: Artifact | None
    splits: Artifact
    data: data_card.Card
    decisions: list[Entry]
    revoked: dict[str, str]
    looks: int

    @property
    def scores(self) -> dict[str, Any] | None:
        return self.evaluation.content["scores"] if self.evaluation else None


def gather(
    store: Store, ledger: Ledger, artifact: Artifact, project: Project, policy: PlatformPolicy
) -> Model:
    """What the card of a release or an adapter is made of.

    Raises:
        InputInvalid: it is of another kind, or something it was made from is not in the store.
    """
    if artifact.kind not in ("release", "adapter"):
        raise InputInvalid(
            "a card speaks of a release or an adapter", short(artifact.digest), artifact.kind, "name one"
        )
    release = artifact if artifact.kind == "release" else None
    adapter = store.get(release.content["adapter"]) if release else artifact
    splits = store.get(adapter.content["splits"])
    dataset = store.get(splits.content["dataset"])
    subjects = [splits.digest, *([release.digest] if release else [])]
    entries = [e for s in subjects for e in ledger.entries(project=project.name, subject=s, authentic=True)]
    return Model(
        project=project,
        policy=policy,
        adapter=adapter,
        release=release,
        evaluation=store.get(release.content["evaluation"]) if release else _evaluation(store, adapter),
        splits=splits,
        data=data_card.gather(dataset, project, catalog.version(dataset, store, ledger)),
        decisions=_latest(entries),
        revoked={e.body["decision"]: str(e.body["why"]) for e in entries if e.kind == "decision_revoked"},
        looks=len(ledger.entries("test_look", project=project.name, subject=splits.digest)),
    )


def _evaluation(store: Store, adapter: Artifact) -> Artifact | None:
    """The newest evaluation in which an adapter was the candidate."""
    own = (e for e in store.all("evaluation") if e.content["adapters"].get("candidate") == adapter.digest)
    return next(iter(reversed(list(own))), None)


def _latest(entries: Sequence[Entry]) -> list[Entry]:
    latest = {
        (e.subject, e.body["role"], e.body["environment"], e.actor.lower()): e
        for e in entries
        if e.kind == "decision"
    }
    return sorted(latest.values(), key=lambda e: e.seq)


def thresholds(model: Model) -> list[dict[str, str]]:
    """Each threshold of policy and project: what it asks, what the adapter reached, hit or missed."""
    systems = model.scores["sets"]["test"]["systems"]["candidate"] if model.scores else {}
    rows: list[dict[str, str]] = []
    for key, least in sorted(model.policy.thresholds(model.project).items()):
        part, _, metric = key.rpartition(".")
        scored = systems.get(part or "overall", {}).get(metric)
        met = scored is not None and scored["value"] >= least
        rows.append(
            {
                "threshold": key,
                "least": wording.number(metric, least),
                "reached": wording.number(metric, scored["value"]) if scored else "not scored",
                "met": "reached" if met else "MISSED",
            }
        )
    return rows


def evaluation_rows(scores: dict[str, Any]) -> list[dict[str, str]]:
    """Every system's scores on every set: value, low and high of the 95% interval, as people read them."""
    return [
        {
            "set": name,
            "system": wording.SYSTEM_NAMES.get(system) or system,
            "metric": wording.METRIC_NAMES[metric],
            **{k: wording.number(metric, interval[k]) for k in ("value", "low", "high")},
        }
        for name, one in scores["sets"].items()
        for system, parts in one["systems"].items()
        for metric, interval in parts["overall"].items()
    ]


def wins(scores: dict[str, Any]) -> list[dict[str, str]]:
    """The adapter against naive baseline, base and champion, by the primary metric."""
    found = [(key, scores["wins"].get(key)) for key in ("naive", "base", "champion")]
    return [
        {
            "other": wording.SYSTEM_NAMES[win.get("baseline", key)],
            "difference": wording.difference(scores["primary"], win),
            "verdict": win["verdict"],
        }
        for key, win in found
        if win
    ]


def sign_offs(model: Model) -> list[str]:
    """Each person's latest word on the splits and the release, a line each."""
    lines: list[str] = []
    for e in model.decisions:
        body = e.body
        what = f"the release for {body['environment']}" if body["environment"] else "the dataset"
        more = {"conditions": body.get("conditions"), "risk": body.get("risk"), "via": body.get("via")}
        said = "; ".join(f"{name}: {value}" for name, value in more.items() if value)
        line = (
            f"{ROLE_NAMES.get(body['role'], body['role'])} {e.actor} said {body['decision']} of {what} at "
            f"{e.at}: {body['comment']}" + (f" ({said})" if said else "")
        )
        lines.append(f"{line}. Withdrawn since: {model.revoked[e.hash]}" if e.hash in model.revoked else line)
    return lines
