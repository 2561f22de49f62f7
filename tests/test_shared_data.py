"""Every file of ../shared/data by YAML alone: rows accounted for to the last, cards, exports, differences.

The stages run, nothing is trained. That training refuses what it would learn wrongly stands here too.
"""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from preparing import Silent, accounted_for
from test_training import materials

from assets.line import open_line
from ftaas_pipelines import settings
from ftaas_pipelines.cli.data.catalog import open_card
from ftaas_pipelines.data.versions import croissant, view
from ftaas_pipelines.data.versions.card import render
from ftaas_pipelines.data.versions.export import TARGETS, export
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.inference import bases
from ftaas_pipelines.stages import prepare
from ftaas_pipelines.store import Artifact
from ftaas_pipelines.training import data as training_data

Run = Callable[..., Any]
DATA = Path(__file__).parents[2] / "shared" / "data"
YAML = """\
name: {name}
title: {name}
task: {task}
intended_use: Tests of the platform.
people:
  owners: [owen.owner@example.com]
  smes: [sam.expert@example.com]
  rai_reviewers: [rita.responsible@example.com]
  approvers: [alex.approver@example.com]
base_model: {{id: embedded/tiny-causal}}
dataset:
{dataset}
"""
# Name of the project, task, folder of the data, `dataset`, rows that come in, kinds that come out.
PROJECTS: dict[str, tuple[str, str, str, int, set[str]]] = {
    "banking": (
        "classification",
        "banking77",
        """
  sources:
    - {name: questions, path: data/train.csv, licence: CC BY 4.0, owner: PolyAI}
    - {name: held_out, path: data/test.csv, split: test, licence: CC BY 4.0, owner: PolyAI}
  columns: {text: text, target: category}
  splits: {stratify_by: answer}""",
        13_083,
        {"text_pair"},
    ),
    "jfleg": (
        "correction",
        "jfleg",
        """
  sources:
    - {name: dev, path: data/dev.csv, licence: CC BY-NC-SA 4.0}
    - {name: held_out, path: data/test.csv, split: test, licence: CC BY-NC-SA 4.0}""",
        1_501,
        {"text_pair"},
    ),
    "maths": (
        "qa",
        "gsm8k",
        """
  sources:
    - {name: problems, path: data/train-2000.jsonl, licence: MIT}
    - {name: held_out, path: data/test-300.jsonl, split: test, licence: MIT}
  splits: {freeze: first}""",
        2_300,
        {"prompt"},
    ),
    "preferences": (
        "chat",
        "preferences",
        """
  sources:
    - {name: pairs, path: data/dpo_sharegpt.json, licence: Apache-2.0}""",
        300,
        {"preference"},
    ),
    "toolcalls": (
        "functions",
        "toolcalls",
        """
  sources:
    - {name: calls, path: data/sharegpt_tools.json, licence: Apache-2.0}""",
        300,
        {"conversation", "text_pair"},
    ),
    "bias": (
        "qa",
        "bias",
        """
  sources:
    - {name: sentences, path: data/crows_pairs.csv, licence: CC BY-SA 4.0}
  format: text_target
  columns: {text: sent_more, target: sent_less}
  keep: [stereo_antistereo, bias_type]
  splits: {group_by: bias_type}""",
        1_508,
        {"text_pair"},
    ),
}


def lay_out(name: str) -> Path:
    """The project of this name, with its data; returns the folder of the data."""
    task, folder, dataset, _, _ = PROJECTS[name]
    if not (DATA / folder).is_dir():
        pytest.skip(f"shared/data/{folder} is not beside this checkout")
    place = Path(os.environ["FTAAS_PROJECTS"]) / name
    place.mkdir(parents=True)
    shutil.copytree(DATA / folder, place / "data")
    text = YAML.format(name=name, task=task, dataset=dataset.strip("\n"))
    (place / "project.yaml").write_text(text, encoding="utf-8")
    return place / "data"


def made(name: str) -> tuple[Artifact, Artifact]:
    """The dataset and splits of this project as it lies there now: its specs, through the stages."""
    line = open_line(name, settings.load())
    line.look()
    artifacts: list[Artifact] = []
    for spec_of in (line.dataset_spec, line.splits_spec):
        spec = spec_of()
        artifacts.append(prepare.make(spec, line.store, Silent()))
        line.store.set_head(name, spec.asset, spec.input_digest, spec.inputs, artifacts[-1].digest)
    return artifacts[0], artifacts[1]


@pytest.fixture(autouse=True)
def one_worker(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTAAS_DATA_WORKERS", "1")


def count_rows(folder: Path) -> int:
    """How many rows lie there, by other readers than the platform's."""
    total = 0
    for path in folder.iterdir():
        text = path.read_text("utf-8")
        if path.suffix == ".csv":
            total += sum(1 for _ in csv.DictReader(text.splitlines(keepends=True)))
        else:
            total += len(json.loads(text)) if path.suffix == ".json" else len(text.splitlines())
    return total


@pytest.mark.parametrize("name", PROJECTS)
def test_every_row_is_accounted_for_and_told(ftaas: Run, name: str, tmp_path: Path) -> None:
    import mlcroissant

    folder = lay_out(name)
    dataset, splits = made(name)
    _, _, _, rows, kinds = PROJECTS[name]
    accounted_for(dataset)
    counts = dataset.content["rows"]
    print(name, counts, dataset.content["kinds"], splits.content["counts"], splits.content["quarantined"])
    assert sum(c["in"] for c in counts.values()) == rows == count_rows(folder)
    assert dataset.content["kinds"].keys() == kinds
    assert set(dataset.content["dropped"]) <= {"duplicate", "also_in_test", "contaminated"}
    assert splits.content["leakage"] == {"shared_groups": 0, "shared_prompts": 0, "near_pairs": 0}
    challenges = sum(n for split, n in splits.content["counts"].items() if split.startswith("challenge_"))
    placed = sum(splits.content["counts"].values()) + sum(splits.content["quarantined"].values())
    assert placed - challenges == dataset.content["records"]

    assert ftaas("data", "show", dataset.digest, "--json").json["content"]["rows"] == counts
    card = open_card(dataset.digest)
    text = render(card)
    for source, c in counts.items():
        assert f"| {source} | {c['in']} | {c['kept']} |" in text
    document = json.loads(json.dumps(croissant.metadata(card)))
    assert not mlcroissant.Dataset(jsonld=document).metadata.ctx.issues.errors
    for target in TARGETS:
        if target == "jsonl_bedrock" and name in ("preferences", "toolcalls"):
            with pytest.raises(InputInvalid, match="has no shape in Amazon Bedrock's customization"):
                export(dataset, target, tmp_path / target)
            assert not (tmp_path / target).exists()
        else:
            made_of = export(dataset, target, tmp_path / target, card=card)
            assert made_of.records == {"records": dataset.content["records"]}


def test_two_versions_differ_by_what_was_edited_and_the_frozen_test_stays(ftaas: Run) -> None:
    folder = lay_out("maths")
    before, first = made("maths")
    path = folder / "train-2000.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    placed = {row["record_id"] for row in view.rows(first, split="train", limit=3_000)}
    rows = {row["prompt"]: row["record_id"] for row in view.stream(before)}
    trained = [i for i, text in enumerate(lines) if rows.get(json.loads(text)["question"]) in placed]
    edited = json.loads(lines[trained[5]])
    lines[trained[5]] = json.dumps({**edited, "answer": "Think again. " + edited["answer"]}) + "\n"
    gone, new = lines.pop(trained[1]), {"question": "What is two and two?", "answer": "4\n#### 4"}
    path.write_text("".join([*lines, json.dumps(new) + "\n"]), encoding="utf-8")
    after, second = made("maths")
    found = ftaas("data", "diff", before.digest, after.digest, "--json").json
    assert (found["counts"]["came"], found["counts"]["went"], found["counts"]["edited"]) == (1, 1, 1)
    assert found["came"][0]["prompt"] == new["question"]
    assert found["went"][0]["prompt"] == json.loads(gone)["question"]
    assert found["went_because"] == {"not_in_source": 1}
    assert second.content["anchors"] == first.digest and second.content["moved"] == 0
    assert second.file("test.parquet").read_bytes() == first.file("test.parquet").read_bytes()


def test_training_refuses_tool_calls_that_no_template_shows() -> None:
    """Labels (KTO), images and tools one by one: test_training."""
    lay_out("toolcalls")
    _, splits = made("toolcalls")
    base = bases.resolve("embedded/tiny-causal", "main", Path())
    with pytest.raises(InputInvalid, match="method sft cannot learn from .* tools") as refused:
        training_data.load(materials(splits.path, base))
    assert refused.value.exit_code == 2 and "train.parquet" in str(refused.value)
