"""Recipes that build on each other in one project: what each goes on with, and what each learns from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recipe_runs import made
from test_preference_methods import cases
from test_training import base, chat

from assets.data_line import NotMade
from assets.line import open_line
from assets.quoting import Quoting
from ftaas_pipelines import settings
from ftaas_pipelines.cli.train import changed_recipe
from ftaas_pipelines.inference.decoding import Model
from ftaas_pipelines.store import Artifact

CHAIN = """name: chain
title: Chain
task: qa
intended_use: Tests of chained recipes.
people:
  owners: [owen.owner@example.com]
  smes: [sam.expert@example.com]
  rai_reviewers: [rita.responsible@example.com]
  approvers: [alex.approver@example.com]
dataset:
  sources: [{name: rows, path: data/rows.jsonl}]
base_model: {id: embedded/tiny-causal}
recipes:
  - name: sft
    adapter: {r: 4}
    training: {max_steps: 3, batch_size: 4, max_seq_tokens: 96}
  - name: dpo
    init_from: sft
    method: {kind: dpo, beta: 0.2}
    training: {max_steps: 3, batch_size: 4, max_seq_tokens: 96}
  - name: judge
    method: reward
    training: {max_steps: 3, batch_size: 4, max_seq_tokens: 96}
"""


@pytest.mark.slow
def test_a_project_chains_sft_and_dpo_and_its_reward_model_is_no_candidate(
    project_factory: Callable[..., Path], ftaas: Callable[..., Any]
) -> None:
    data = [{"prompt": asked, "chosen": liked, "rejected": other} for asked, liked, other in cases(60, 1)]
    project_factory("chain", text=CHAIN, data=data)
    assert ftaas("run", "chain", "--until", "splits").code == 0
    line = open_line("chain", settings.load())
    with pytest.raises(NotMade, match="adapter_sft"):
        line.adapter_spec(line.project.recipe("dpo"), experiment=True)
    first = made(line.adapter_spec(line.project.recipe("sft"), experiment=True))
    assert line.adapter_spec(line.project.recipe("dpo"), experiment=True).inputs["init_from"] == first.digest
    with pytest.raises(NotMade, match="adapter_sft"):  # what is governed stands on no experiment
        line.adapter_spec(line.project.recipe("dpo"))

    artifacts: dict[str, Artifact] = {}
    for one in line.project.recipes:  # dpo finds the adapter of sft that was just made
        artifacts[one.name] = made(line.adapter_spec(one))
    assert artifacts["dpo"].content["init_from"] == artifacts["sft"].digest
    assert artifacts["dpo"].attestation["spec"]["inputs"]["adapter"]["r"] == 4, "taken over from sft"
    assert set(line.adapters()) == {"sft", "dpo"}
    model = Model(base(), {name: artifacts[name].path for name in ("sft", "dpo")}, threads=1)
    assert model.loss([chat("Hot?")], ["No."], "sft") != model.loss([chat("Hot?")], ["No."], "dpo")
    states = {one["name"]: one["state"] for one in ftaas("status", "chain", "--json").json["assets"]}
    assert {"adapter_sft", "adapter_dpo", "adapter_judge", "candidate"} <= set(states)
    tried = changed_recipe(line.project.recipe("dpo"), ["training.learning_rate=1e-3"])
    inputs = line.adapter_spec(tried, experiment=True).inputs
    assert inputs["init_from"] == artifacts["sft"].digest and inputs["adapter"]["r"] == 4


FIELD = """
dataset:
  sources:
    - {name: manuals, path: data/manuals.jsonl, format: text, split: train}
    - {name: pairs, path: data/rows.jsonl}
    - {name: judged, path: data/judged.jsonl, format: preference, split: train}
base_model: {id: embedded/tiny-causal}
recipes:
  - name: field
    method: pretrain
    sources: [manuals]
    training: {max_steps: 3, batch_size: 4, max_seq_tokens: 96}
  - name: sft
    init_from: field
    sources: [pairs]
    training: {epochs: 1, batch_size: 8, max_seq_tokens: 96}
  - name: judge
    method: reward
    sources: [judged]
    training: {max_steps: 3, batch_size: 4, max_seq_tokens: 96}
  - name: rlhf
    init_from: sft
    method: {kind: rloo, reward_model: judge, generations: 4, max_new_tokens: 4}
    sources: [pairs]
    training: {max_steps: 2, batch_size: 8, max_seq_tokens: 96}
"""


@pytest.mark.slow
def test_each_recipe_of_a_chain_learns_from_sources_of_its_own(
    project_factory: Callable[..., Path], ftaas: Callable[..., Any]
) -> None:
    """Plain texts, then answers, then RLHF by a model of preferences: in one project, from three sources."""
    head = CHAIN[: CHAIN.index("dataset:")]
    judged = [{"prompt": asked, "chosen": liked, "rejected": other} for asked, liked, other in cases(30, 1)]
    manuals = [{"text": f"Unit {i} stands in hall {i % 7} and hums at {i * 3} Hz."} for i in range(30)]
    text = head + FIELD.lstrip()
    folder = project_factory("chain", text=text.replace("[judged]", "[elsewhere]")).parent
    refused = ftaas("project", "validate", "chain", "--json")
    assert refused.code == 2 and "elsewhere is no source of training records" in refused.stdout
    (folder / "project.yaml").write_text(text, encoding="utf-8")
    for name, found in (("judged", judged), ("manuals", manuals)):
        (folder / "data" / f"{name}.jsonl").write_text(
            "".join(json.dumps(one) + "\n" for one in found), encoding="utf-8"
        )
    assert ftaas("run", "chain", "--until", "splits").code == 0
    line = open_line("chain", settings.load())
    line.require_all_fit()
    artifacts = {one.name: made(line.adapter_spec(one)) for one in line.project.recipes}
    learnt = {name: one.attestation["records"]["records"] for name, one in artifacts.items()}
    assert learnt["field"] == learnt["judge"] == 30 and learnt["sft"] == learnt["rlhf"] > 60
    assert artifacts["sft"].content["steps"] == -(-learnt["sft"] // 8)
    assert set(line.adapters()) == {"field", "sft", "rlhf"}
    quoted = Quoting(line).quotes(["adapter_sft"])["adapter_sft"]
    assert quoted["steps"].value == artifacts["sft"].content["steps"]
