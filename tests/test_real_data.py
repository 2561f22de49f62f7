"""Real input that nobody here wrote, by YAML alone, through the whole line with the embedded bases."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from assets.line import open_line
from ftaas_pipelines import settings

Run = Callable[..., Any]
DATA = Path(__file__).parents[2] / "shared" / "data"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

PEOPLE = """
people:
  owners: [owen.owner@example.com]
  smes: [sam.expert@example.com]
  rai_reviewers: [rita.responsible@example.com]
  approvers: [alex.approver@example.com]
"""
BANKING = """
name: banking77
title: Intents of a bank's customers
task: classification
intended_use: Route a customer's question.
dataset:
  sources:
    - {name: questions, path: data/train.csv, licence: CC BY 4.0}
    - {name: held_out, path: data/test.csv, split: test, licence: CC BY 4.0}
  format: text_target
  columns: {text: text, target: category}
  splits: {validation: 0.02}
base_model: {id: embedded/tiny-causal}
recipes:
  - name: lora
    adapter: {r: 32, alpha: 64}
    training: {max_steps: 1700, batch_size: 32, learning_rate: 0.004, warmup_steps: 50, max_seq_tokens: 160}
evaluation: {max_new_tokens: 24, thresholds: {exact_match: 0.75}}
serving: {environments: [staging]}
"""
JFLEG = """
name: jfleg
title: Learners' sentences
task: correction
intended_use: Suggest a fluent sentence.
dataset:
  sources:
    - {name: dev, path: data/dev.csv, licence: CC BY-NC-SA 4.0}
    - {name: held_out, path: data/test.csv, split: test, licence: CC BY-NC-SA 4.0}
base_model: {id: embedded/tiny-t5, family: seq2seq}
recipes:
  - name: full
    adapter: {kind: full}
    training: {max_steps: 150, batch_size: 16, learning_rate: 0.001, max_seq_tokens: 96}
evaluation: {primary: chrf, max_new_tokens: 48, max_records: 200}
serving: {environments: [staging]}
"""


def project(name: str, text: str) -> None:
    if not (DATA / name).is_dir():
        pytest.skip(f"shared/data/{name} is not beside this checkout")
    folder = Path(os.environ["FTAAS_PROJECTS"]) / name
    folder.mkdir(parents=True)
    shutil.copytree(DATA / name, folder / "data")
    (folder / "project.yaml").write_text(text + PEOPLE, encoding="utf-8")


def signed_run(ftaas: Run, name: str) -> Any:
    assert ftaas("run", name, "--json").code == 3
    for review in ftaas("review", "list", "--json").json["reviews"]:
        said = ("--decision", "approve", "--comment", "looked", "--as", review["who"][0])
        assert ftaas("review", "decide", review["id"], *said).code == 0
    return ftaas("run", name, "--json", timeout_s=1400)


def test_banking77_reaches_its_accuracy_and_answers(home: Path, ftaas: Run) -> None:
    project("banking77", BANKING)
    try:
        done = signed_run(ftaas, "banking77")
        assert done.code == 0, done.stdout + done.stderr
        evaluation = open_line("banking77", settings.load()).evaluation
        assert evaluation is not None
        test = evaluation.content["scores"]["sets"]["test"]
        accuracy = {system: s["overall"]["exact_match"]["value"] for system, s in test["systems"].items()}
        print(accuracy)
        assert test["n"] >= 3_000 and accuracy["candidate"] >= 0.75
        assert accuracy["candidate"] > max(accuracy["retrieval"], accuracy["majority"], accuracy["base"])
        answer = ftaas("ask", "banking77", "my card still has not arrived", "--env", "staging", "--json")
        assert answer.code == 0 and "card" in answer.json["answer"]
    finally:
        ftaas("deployment", "stop", "banking77")


def test_jfleg_is_refused_with_a_reason_a_person_understands(home: Path, ftaas: Run) -> None:
    project("jfleg", JFLEG)
    done = signed_run(ftaas, "jfleg")
    assert done.code == 3, done.stdout + done.stderr
    assert "does not beat the untouched input" in done.stdout
    states = {a["name"]: a for a in ftaas("status", "jfleg", "--json").json["assets"]}
    assert states["evaluation"]["state"] == "fresh" and states["bento"]["state"] == "refused"
    assert states["release"]["digest"] is None
