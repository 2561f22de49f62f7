"""What speaks against relying on a model, as far as its artifacts and its project tell."""

from collections.abc import Iterator
from typing import Any

from ftaas_pipelines.evaluation import wording
from ftaas_pipelines.evaluation.cards.facts import Model, thresholds
from ftaas_pipelines.governance.evidence import naive_problems

_FEW = 100


def limits(model: Model) -> list[str]:
    """What speaks against relying on it, as far as artifacts and project tell."""
    return [*_limits_of_data(model), *_limits_of_training(model), *_limits_of_scores(model)]


def _limits_of_data(model: Model) -> Iterator[str]:
    content = model.data.artifact.content
    findings: dict[str, Any] = content.get("findings", {})
    unchecked = sorted(name for name, n in findings.items() if isinstance(n, str))
    if unchecked or not findings:
        yield f"Not checked in the data: {', '.join(unchecked) or 'personal data, secrets, toxicity'}."
    if found := {name: n for name, n in findings.items() if isinstance(n, int) and n}:
        counted = ", ".join(f"{name} {n}" for name, n in sorted(found.items()))
        yield f"Detectors saw: {counted}. Personal data and secrets are {model.data.privacy}."
    for fact, words in (("licence", "licence"), ("consent", "consent or legal basis")):
        silent = [s["name"] for s in model.data.version.sources if not s.get(fact)]
        if silent:
            yield f"No {words} is said of source {', '.join(silent)}."
    if model.data.synthetic:
        yield f"{model.data.synthetic} of {model.data.version.records} records were written by a model."
    if failed := (content.get("quality") or {}).get("failed"):
        yield f"Expectations on the data that do not hold: {', '.join(map(str, failed))}."
    if not model.project.not_for:
        yield "Nobody said what it is not for."


def _limits_of_training(model: Model) -> Iterator[str]:
    if model.adapter.content.get("experiment"):
        yield "It was made as an experiment, outside the gates: it is never released."
    if cut := model.adapter.attestation.get("truncated_records"):
        yield f"{cut} training records were longer than max_seq_tokens and were cut."
    if model.project.base_model.id.startswith("embedded/"):
        yield "Its base is tiny and has no general language ability: off its task its answers mean nothing."
    yield "One training, one seed: another seed gives other scores; the intervals do not cover that."


def _limits_of_scores(model: Model) -> Iterator[str]:
    scores = model.scores
    if scores is None:
        yield "It is not evaluated on test."
        return
    yield from wording.remarks(scores)
    for row in thresholds(model):
        if row["met"] != "reached":
            yield f"{row['threshold']} is {row['reached']}, below its threshold of {row['least']}."
    if naive_problems(model.policy, model.project, scores):
        yield "The platform policy releases no model that does not beat its naive baseline."
    if scores["sets"]["test"]["n"] < _FEW:
        yield f"The test split has only {scores['sets']['test']['n']} records: its intervals are wide."
    if model.looks > 1:
        yield f"Its test split was looked at {model.looks} times: each look makes scores on it kinder."
    yield "Fairness across groups of people, robustness and red-teaming: not checked."
