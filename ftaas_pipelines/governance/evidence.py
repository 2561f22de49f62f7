"""Whether an evaluation is good enough to release: pure functions over its scores."""

from typing import Any

from ftaas_pipelines.errors import Problem
from ftaas_pipelines.projects.policy import PlatformPolicy
from ftaas_pipelines.projects.project import Project

LABELS = {
    "untouched_input": "the untouched input",
    "majority": "always answering the most frequent label",
    "retrieval": "the answer of the nearest training prompt",
}


def threshold_problems(policy: PlatformPolicy, project: Project, scores: dict[str, Any]) -> list[Problem]:
    """Thresholds (platform's and project's) that the candidate's test scores miss."""
    systems = scores["sets"]["test"]["systems"]
    problems: list[Problem] = []
    for key, least in sorted(policy.thresholds(project).items()):
        slice_name, _, metric = key.rpartition(".")
        scored = systems["candidate"].get(slice_name or "overall", {}).get(metric)
        value = scored["value"] if scored else None
        if value is None or value < least:
            problems.append(
                Problem(
                    f"{key} on the test split is below its threshold of {least:g}",
                    f"{project.name}/evaluation",
                    "no record in that slice" if value is None else f"{value:.3f}",
                    "improve data or recipe; the threshold stands in project.yaml or the platform policy",
                )
            )
    return problems


def naive_problems(policy: PlatformPolicy, project: Project, scores: dict[str, Any]) -> list[Problem]:
    """Whether the candidate loses to its task's naive baseline, which no other score makes good."""
    naive = scores["wins"].get("naive")
    if not policy.must_beat_naive or naive is None or naive["beaten"]:
        return []
    metric = scores["primary"]
    systems = scores["sets"]["test"]["systems"]
    own = systems["candidate"]["overall"][metric]["value"]
    other = systems[naive["baseline"]]["overall"][metric]["value"]
    return [
        Problem(
            f"the adapter does not beat {LABELS.get(naive['baseline'], naive['baseline'])}: {metric} "
            f"{own:.3f} against {other:.3f}",
            f"{project.name}/evaluation",
            do="do not release it: a model that is worse than doing nothing clever helps nobody; "
            "try a larger base model or more data",
        )
    ]


def champion_problems(project: Project, scores: dict[str, Any]) -> list[Problem]:
    """Whether the candidate is clearly worse than the champion: the whole interval below the margin.

    The interval covers the sampling of test rows, not the chance of a training run; that is what a
    project's `champion_margin` is for (a non-inferiority margin, zero unless asked for).
    """
    champion = scores["wins"].get("champion")
    margin = project.evaluation.champion_margin
    if champion is None or champion["high"] >= -margin:
        return []
    return [
        Problem(
            f"the adapter is worse than the champion: {scores['primary']} differs by "
            f"{champion['value']:+.3f} ({champion['low']:+.3f} to {champion['high']:+.3f}), "
            f"the margin is {margin:g}",
            f"{project.name}/evaluation",
            do="keep the champion, or improve data or recipe",
        )
    ]


def release_problems(policy: PlatformPolicy, project: Project, scores: dict[str, Any]) -> list[Problem]:
    """Everything that speaks against a release; empty when nothing does."""
    return [
        *threshold_problems(policy, project, scores),
        *naive_problems(policy, project, scores),
        *champion_problems(project, scores),
    ]
