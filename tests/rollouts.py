"""Releases that are tried and served, on paper: no process lives there."""

from typing import Any

from ftaas_pipelines.projects.rollout import Rollout
from ftaas_pipelines.serving.desired import ReleaseToServe, Trial, Wanted

NOW = 1_800_000_000.0
OLD, NEW = "a" * 64, "b" * 64


def release(digest: str, project: str = "alpha") -> ReleaseToServe:
    facts = dict.fromkeys(("bento", "bento_path", "adapter", "adapter_path", "base", "base_path"), "d" * 64)
    return ReleaseToServe(
        project=project, release=digest, runtime="r", family="causal", max_new_tokens=8, **facts
    )


def tried(kind: Any = "canary", since: float = 600.0, **rules: Any) -> Wanted:
    """OLD serves since long, NEW is tried since so many seconds."""
    rollout = Rollout.model_validate(rules)
    trial = Trial(release=release(NEW), kind=kind, percent=50, since=NOW - since, rollout=rollout)
    return Wanted(release=release(OLD), trial=trial, since=NOW - 86_400 * 9)
