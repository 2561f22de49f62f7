"""The model card and what an approver sees: everything in them is read off artifacts and the ledger.

Dataset and splits are made by the real stage, the scores by the real comparison; the adapter's weights are
left out, as no card speaks of them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preparing import ROWS, make_dataset, make_splits, write

from ftaas_pipelines import settings
from ftaas_pipelines.evaluation import compare
from ftaas_pipelines.evaluation.cards.approval import approval_summary
from ftaas_pipelines.evaluation.cards.page import model_card
from ftaas_pipelines.evaluation.records import Record
from ftaas_pipelines.evaluation.run import Results, SetResult
from ftaas_pipelines.governance import gates
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.metrics import text
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.projects.policy import PlatformPolicy
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.projects.project import Project
from ftaas_pipelines.review.sign_offs import requests
from ftaas_pipelines.store import Artifact, Store, digest_of

EXTRA = """
not_for: "Deciding anything | with a bar and a <tag>."
evaluation: {thresholds: {exact_match: 0.5, chrf: 99}}
"""
SECTIONS = (
    "Model details",
    "Intended use",
    "Factors",
    "Metrics",
    "Evaluation data",
    "Training data",
    "Quantitative analyses",
    "Sign-offs",
    "Ethical considerations",
    "Caveats and recommendations",
    "Cost",
    "How to reproduce",
)


@dataclass(frozen=True)
class Made:
    """A project with a release, and everything the release names."""

    project: Project
    policy: PlatformPolicy
    store: Store
    ledger: Ledger
    dataset: Artifact
    splits: Artifact
    adapter: Artifact
    release: Artifact

    def card(self, artifact: Artifact | None = None) -> str:
        return model_card(self.store, self.ledger, artifact or self.release, self.project, self.policy)

    def summary(self, environment: str = "production") -> dict[str, Any]:
        where = (self.store, self.ledger, self.release, self.project, self.policy)
        return approval_summary(*where, environment)

    def sign(self, asked: gates.Requirement, decision: str = "approve") -> None:
        requests.open_requests(self.ledger, asked, asset="a", summary={}, actor="line")
        for review in requests.reviews(self.ledger, project="codes"):
            if review.digest == asked.digest:
                by, conditions = review.who[0], "watch | it"
                said = {"decision": decision, "comment": "looked at <it>", "conditions": conditions}
                requests.decide(self.ledger, review.id, by=by, **said)


def scored(name: str, right: int, wrong: int) -> SetResult:
    """A set in which the candidate is right so often, the base never, the nearest prompt half as often."""
    records = [Record(f"{name}{i}", (), f"q{i}", f"answer {i}", "text") for i in range(right + wrong)]
    good = [r.reference for r in records]
    texts = {
        "candidate": [*good[:right], *["no"] * wrong],
        "base": [""] * len(records),
        "retrieval": [*good[: right // 2], *["no"] * (len(records) - right // 2)],
    }
    one = SetResult(name, records, texts)
    for label, answers in texts.items():
        pairs = list(zip(answers, good, strict=True))
        one.scores[label] = {m: np.array([text.scorer(m)(*pair) for pair in pairs]) for m in text.METRICS}
    return one


@pytest.fixture
def made(home: Path, project_factory: Callable[..., Path], tmp_path: Path) -> Made:
    project_factory("codes", extra=EXTRA)
    config = settings.load()
    loaded = catalog.load_one(config.projects, config.policy, "codes")
    store, ledger = Store(config.store_path), Ledger(config.ledger, config.home)
    rows = [*ROWS, ("Who knows?", "Ask mail.to.me@example.com about it.")]
    said = {"rows": {"licence": "Apache-2.0", "owner": "the plant"}}
    dataset = make_dataset(store, {"rows": write(tmp_path / "rows.jsonl", rows)}, said)
    splits = make_splits(store, dataset)
    inputs = {"splits": splits.digest, "training": {"seed": 7, "max_steps": 4}}
    with store.create("adapter", digest_of("adapter")) as adapter:
        adapter.content = {
            "splits": splits.digest, "base": "b" * 64, "family": "causal", "method": "sft",
            "adapter": "lora", "steps": 4, "experiment": False, "trainable_parameters": 1234,
        }  # fmt: skip
        adapter.attestation = {
            "actor": "owen.owner@example.com", "seconds": 12.34, "cost_usd": 0.5, "cpu": "x86_64",
            "threads": 1, "truncated_records": 3,
            "spec": {"stage": "train", "project": "codes", "asset": "adapter_lora", "inputs": inputs},
        }  # fmt: skip
    results = Results(
        [scored("test", 45, 5), scored("unseen_words", 2, 8)], ["candidate", "base"], ["retrieval"]
    )
    with store.create("evaluation", digest_of("evaluation")) as evaluation:
        evaluation.content = {
            "splits": splits.digest,
            "adapters": {"candidate": adapter.made.digest},
            "scores": compare.scores(results, "exact_match"),
        }
        evaluation.attestation = {"seconds": 3.0, "cost_usd": 0.0}
    with store.create("release", digest_of("release")) as release:
        release.content = {
            "project": "codes", "adapter": adapter.made.digest, "evaluation": evaluation.made.digest,
            "splits": splits.digest, "dataset": dataset.digest, "bento": "c" * 64, "runtime": "d" * 64,
        }  # fmt: skip
    for _ in range(2):
        ledger.append("test_look", splits.digest, {}, project="codes", actor="line")
    policy = load_policy(config.policy)
    return Made(loaded.project, policy, store, ledger, dataset, splits, adapter.made, release.made)


def test_the_card_says_what_is_known_and_what_is_not(made: Made) -> None:
    made.sign(gates.training_requirement(made.policy, made.project, made.splits.digest))
    card = made.card()
    assert card == made.card(), "the same bytes from the same content"
    headings = [line[3:] for line in card.splitlines() if line.startswith("## ")]
    assert tuple(headings) == SECTIONS
    for said in (
        "The adapter wins: it answers 90.0% of the 50 test questions exactly",
        "| adapter | 90.0% (80.0 to 98.0%) |",
        "Challenge unseen words, 10 records",
        "| exact_match | 50.0% | 90.0% | reached |",
        "| chrf | 99.0 | ",
        "MISSED",
        "this test split was looked at 2 times",
        "SME sam.expert@example.com said approve of the dataset",
        "Not checked in the data: address, age_over_89, date, person_names, url.",
        "| email | 1 |",
        "No consent or legal basis is said of source rows.",
        "| rows | Apache-2.0 | not said | the plant |",
        "0 of 61 records (0.0%)",
        "3 training records were longer than max_seq_tokens",
        "Its base is tiny",
        "| training | 12.3 | 0.5000 |",
        '"seed": 7',
        *(made.release.content[name] for name in ("adapter", "bento", "runtime", "splits", "dataset")),
    ):
        assert said in card, said
    # What people wrote breaks neither a table nor the page.
    assert card.count("anything \\| with a bar and a &lt;tag>.") == 2 and "<tag>" not in card
    assert "looked at &lt;it>" in card
    assert not [line for line in card.splitlines() if line.startswith("|") and not line.endswith("|")]

    entry = made.ledger.entries("decision")[0]
    body = {"decision": entry.hash, "why": "it was edited"}
    made.ledger.append("decision_revoked", entry.subject, body, project="codes", actor="platform")
    assert "Withdrawn since: it was edited" in made.card()


def test_the_hub_reads_the_front_matter(made: Made) -> None:
    from huggingface_hub import ModelCard

    data = ModelCard(made.card()).data
    assert data.base_model == "embedded/tiny-causal" and data.license == "unknown"
    assert data.library_name == "peft" and data.pipeline_tag == "text-generation"
    assert data.datasets == [f"codes-{made.dataset.digest[:12]}"] and "lora" in data.tags
    found = {(r.dataset_split, r.metric_type): r.metric_value for r in data.eval_results}
    assert found[("test", "exact_match")] == 0.9 and found[("unseen_words", "exact_match")] == 0.2

    named = made.project.base_model.model_copy(update={"licence": "PSF-2.0 text", "id": "acme/base"})
    other = made.project.model_copy(update={"base_model": named})
    card = model_card(made.store, made.ledger, made.release, other, made.policy)
    assert (ModelCard(card).data.license, ModelCard(card).data.license_name) == ("other", "PSF-2.0 text")
    assert "Its base is tiny" not in card


def test_an_adapter_has_a_card_before_it_is_evaluated_or_released(made: Made) -> None:
    card = made.card(made.adapter)
    assert "**Release:** none" in card and "answers 90.0%" in card, "its newest evaluation is found"
    with made.store.create("adapter", digest_of("another")) as draft:
        draft.content = {**made.adapter.content, "experiment": True}
    card = made.card(draft.made)
    assert "not evaluated on test" in card and "never released" in card and "model-index" not in card
    assert "nobody has signed yet" in card


def test_an_approver_sees_scores_thresholds_sign_offs_and_what_staging_showed(made: Made) -> None:
    training = gates.training_requirement(made.policy, made.project, made.splits.digest)
    made.sign(training)
    staging = made.summary("staging")
    assert staging["staging"] is None and staging["environment"] == "staging"
    assert made.summary()["staging"] is None, "it never ran there"

    def note(kind: str, **body: Any) -> None:
        values = {"environment": "staging", **body}
        made.ledger.append(kind, made.release.digest, values, project="codes", actor="line")

    note("deployment", url="http://127.0.0.1:8001", adapter="x")
    assert made.summary()["staging"]["smoke"] == "not on record"
    note("deployment_checked", check="smoke", passed=True, said="answered in 12 ms")
    note(
        "deployment_checked",
        check="served_equals_evaluated",
        passed=False,
        said="7 of 8 answers are the same",
    )
    found = made.summary()
    assert found["staging"]["smoke"] == "passed: answered in 12 ms"
    assert found["staging"]["served equals evaluated"] == "FAILED: 7 of 8 answers are the same"
    rows = {
        (r["set"], r["system"], r["metric"]): (r["value"], r["low"], r["high"]) for r in found["evaluation"]
    }
    assert rows[("test", "adapter", "Exact match")] == ("90.0%", "80.0%", "98.0%")
    assert {s for _, s, _ in rows} == {"adapter", "base model", "nearest training prompt"}
    assert {r["threshold"]: r["met"] for r in found["threshold_results"]} == {
        "exact_match": "reached",
        "chrf": "MISSED",
    }
    assert found["against"][0]["verdict"] == "better" and any("chrf" in p for p in found["problems"])
    assert {s["role"] for s in found["sign_offs"]} == {"sme", "rai"} and found["sign_offs_hold"]
    assert found["card"] == made.card()
    assert json.loads(json.dumps(found)) == found, "the ledger keeps it"

    entry = next(e for e in made.ledger.entries("decision") if e.body["role"] == "rai")
    body = {
        "decision": entry.hash,
        "role": "rai",
        "environment": "",
        "terms": training.terms,
        "why": "edited",
    }
    made.ledger.append("decision_revoked", entry.subject, body, project="codes", actor="platform")
    found = made.summary()
    assert not found["sign_offs_hold"] and "was withdrawn: edited" in found["void_sign_offs"][0]


def test_the_card_on_the_command_line(made: Made, ftaas: Callable[..., Any], tmp_path: Path) -> None:
    made.store.set_head("codes", "release", "i", {}, made.release.digest)
    by_name = ftaas("model", "card", "codes")
    assert by_name.code == 0, by_name.stderr
    assert by_name.stdout == made.card()
    file = tmp_path / "card.md"
    assert ftaas("model", "card", made.adapter.digest[:12], "--to", str(file)).code == 0
    assert file.read_text("utf-8") == made.card(made.adapter)
    assert ftaas("model", "card", "nobody").code == 2
    assert ftaas("model", "card", made.splits.digest).code == 2
