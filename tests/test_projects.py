"""The contract of project.yaml and platform.yaml: every error, at once, where it stands."""

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftaas_pipelines.data.rows.formats import FORMATS
from ftaas_pipelines.errors import InputInvalid, Problem
from ftaas_pipelines.projects import catalog, importing, scaffold
from ftaas_pipelines.projects import policy as policies
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.projects.foreign_data import Data
from ftaas_pipelines.projects.project import Project

Factory = Callable[..., Path]


def load(path: Path) -> Loaded:
    return catalog.read(path, policies.load(Path(os.environ["FTAAS_POLICY"])))


def problems(path: Path) -> list[Problem]:
    with pytest.raises(InputInvalid) as caught:
        load(path)
    return caught.value.problems


def line(path: Path, text: str) -> str:
    """`file:line` of the first line that holds the text."""
    lines = path.read_text("utf-8").splitlines()
    return f"{path}:{next(i for i, held in enumerate(lines, 1) if text in held)}"


def edit(path: Path, *pairs: tuple[str, str]) -> Path:
    text = path.read_text("utf-8")
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")
    return path


def test_a_small_project_is_valid_and_its_defaults_are_whole(project_factory: Factory) -> None:
    path = project_factory()
    assert len(path.read_text("utf-8").splitlines()) <= 25
    loaded = load(path)
    assert Project.model_validate(loaded.project.model_dump(mode="json")) == loaded.project


def test_shipped_examples_are_valid() -> None:
    root = Path(__file__).parents[1]
    good, wrong = catalog.load_all(root / "projects", root / "policy" / "platform.yaml")
    assert not wrong
    for path in catalog.files(root / "projects"):
        assert path.parent.name in [p.name for p in good]


def test_every_error_of_a_file_at_once_with_line_and_nearest_key(project_factory: Factory) -> None:
    path = edit(
        project_factory(),
        ("intended_use:", "intended_usee:"),
        ("task: qa", "task: quiz"),
        ("learning_rate: 0.003", "lerning_rate: 0.003, epochs: many"),
        ("id: embedded/tiny-causal", "id: 7"),
    )
    found = {p.where: p for p in problems(path)}
    assert "did you mean 'intended_use'?" == found[line(path, "intended_usee")].do
    assert "'quiz'" in found[line(path, "quiz")].got
    assert found[line(path, "id: 7")].do == "put it in quotes"
    said = [str(p) for p in problems(path)]
    assert any("lerning_rate" in s and "did you mean 'learning_rate'?" in s for s in said)
    assert any("'recipes.0.training.epochs'" in s and "many" in s for s in said)
    assert any("'intended_use' is missing" in s for s in said)
    assert len(said) == 6
    numbers = [int(p.where.rpartition(":")[2]) for p in problems(path)]
    assert numbers == sorted(numbers)


def test_the_hint_names_a_key_of_the_same_section(project_factory: Factory) -> None:
    path = edit(project_factory(), ("  - name: lora\n", "  - name: lora\n    adapter:\n      rr: 8\n"))
    (problem,) = problems(path)
    assert (problem.where, problem.do) == (line(path, "rr: 8"), "did you mean 'r'?")
    path = edit(path, ("rr: 8", "target_modules: 5"))
    assert {p.where for p in problems(path)} == {line(path, "target_modules: 5")}


@pytest.mark.parametrize(
    ("extra", "at", "said"),
    [
        ("evaluation: {thresholds: {exact_match: 1.2}}\n", "1.2", "between 0 and 1"),
        ("evaluation: {thresholds: {structured.chrf: 101}}\n", "101", "between 0 and 100"),
        ("evaluation: {thresholds: {exact_match: .nan}}\n", ".nan", "finite"),
        ("evaluation: {thresholds: {bleu: 0.1}}\n", "bleu", "names no metric"),
        ("evaluation: {metrics: [chrf]}\n", "metrics", "not among the metrics"),
        ("evaluation: {max_new_tokens: 0}\n", "max_new_tokens", "greater than or equal to 1"),
        ("reviews: {sme: -1}\n", "sme: -1", "greater than or equal to 0"),
        ("serving: {environments: [staging, staging]}\n", "[staging", "stands twice"),
        ("retraining: {cron: daily}\n", "cron", "five fields"),
        ("title: again\n", "title: again", "stands twice"),
        ("budget: {usd: .inf}\n", ".inf", "finite"),
        ("risk_tier: 2024-13-45\n", "2024-13-45", "is no value"),
        ("industry: !tag x\n", "!tag", "could not determine a constructor"),
        ("industry: &a [*a]\n", "industry", "holds itself"),
        ("industry: [unclosed\n", "", "is not YAML"),
        ("industry: \x07\n", "\x07", "is not YAML"),
        ("? [a]\n: 1\n", "? [a]", "plain word"),
    ],
)
def test_bad_values_name_their_line(project_factory: Factory, extra: str, at: str, said: str) -> None:
    path = project_factory(extra=extra)
    found = [p for p in problems(path) if said in p.what]
    assert found, [str(p) for p in problems(path)]
    if at and said != "holds itself":
        assert line(path, at) in [p.where for p in found]


def test_scientific_notation_is_a_number(project_factory: Factory) -> None:
    path = edit(project_factory(), ("learning_rate: 0.003", "learning_rate: 3e-3"))
    assert load(path).project.recipe("lora").training.learning_rate == 0.003


def test_files_that_cannot_be_read(project_factory: Factory) -> None:
    path = project_factory()
    path.write_bytes(b"name: codes\ntitle: caf\xe9\n")
    assert [(p.what, p.where) for p in problems(path)] == [("is not UTF-8", f"{path}:2")]
    path.write_text("", encoding="utf-8")
    assert problems(path)[0].what == "holds no settings"
    path.unlink()
    path.mkdir()
    assert problems(path)[0].what == "cannot be read"


def test_a_missing_data_file(project_factory: Factory) -> None:
    path = project_factory()
    (path.parent / "data" / "rows.jsonl").unlink()
    (problem,) = problems(path)
    assert (problem.what, problem.where) == (catalog.NO_DATA, line(path, "data/rows.jsonl"))


def test_a_project_may_not_loosen_the_policy(project_factory: Factory) -> None:
    policy = Path(os.environ["FTAAS_POLICY"])
    edit(policy, ("  high:\n", "  high:\n    thresholds: {exact_match: 0.8}\n"))
    path = edit(
        project_factory(
            extra="risk_tier: high\nreviews: {sme: 1, approvals: {production: 1}}\n"
            "evaluation: {thresholds: {exact_match: 0.5}}\n"
        ),
        ("sam.expert@example.com", "owen.owner@example.com, bob@elsewhere.org"),
    )
    said = [str(p) for p in problems(path)]
    assert sum("loosens the platform policy" in s for s in said) == 3
    assert any("bob@elsewhere.org" in s and "does not allow this person as sme" in s for s in said)
    assert any("at least 0.8 at risk tier high" in s for s in said)
    assert any("2 sme sign-off(s) are needed" in s for s in said)
    assert any("2 approver sign-off(s) are needed" in s for s in said)


def test_a_project_may_not_ask_for_fewer_looks_or_a_longer_life_than_the_policy(
    project_factory: Factory,
) -> None:
    own = "reviews: {row_sample: 50, reviewers_per_row: 1, sign_off_days: 90}\n"
    path = project_factory(extra=own)
    load(path)  # the policy asks for nothing of it
    tier = "  low:\n    row_sample: 200\n    reviewers_per_row: 2\n    sign_off_days: 30\n"
    edit(Path(os.environ["FTAAS_POLICY"]), ("  low:\n", tier))
    said = "\n".join(str(p) for p in problems(path))
    assert "at least 200 at risk tier low (got 50)" in said
    assert "at least 2 at risk tier low (got 1)" in said
    assert "expires after 30 days at risk tier low (got 90)" in said
    edit(path, (own, ""))
    load(path)  # what a project leaves out loosens nothing
    tighter = "reviews: {row_sample: 500, reviewers_per_row: 3, sign_off_days: 7}\n"
    load(edit(path, ("task: qa\n", f"task: qa\n{tighter}")))


def test_break_glass_with_one_person_is_no_policy(project_factory: Factory) -> None:
    policy = Path(os.environ["FTAAS_POLICY"])
    text = policy.read_text("utf-8")
    policy.write_text(re.sub(r"people: \[.*\]", "people: [a@b.org, A@b.org]", text), "utf-8")
    with pytest.raises(InputInvalid, match="it takes two people"):
        policies.load(policy)


def test_owners_and_double_roles_do_not_count_as_signers(project_factory: Factory) -> None:
    policy = Path(os.environ["FTAAS_POLICY"])
    edit(
        policy,
        ('sme: ["sam', 'sme: ["owen.owner@example.com", "sam'),
        ('rai: ["', 'rai: ["sam.expert@example.com", "'),
    )
    path = edit(project_factory(), ("sam.expert", "owen.owner"))
    assert ["owners may not" in p.what for p in problems(path)] == [True]
    path = edit(path, ("smes: [owen.owner", "smes: [sam.expert"), ("rita.responsible", "sam.expert"))
    assert ["2 different people" in p.what for p in problems(path)] == [True]


def test_the_policy_itself_is_strict(home: Path) -> None:
    policy = Path(os.environ["FTAAS_POLICY"])
    text = policy.read_text("utf-8")
    edit(
        policy,
        ("  medium:\n", "  medum:\n"),
        ("staging: 0,", "staging: -1,"),
        ("must_beat_naive: true", "must_beat_naive: maybe"),
    )
    with pytest.raises(InputInvalid) as caught:
        policies.load(policy)
    said = str(caught.value)
    assert "medum" in said and "approvals.staging" in said and "must_beat_naive" in said
    policy.write_text(text[: text.index("  high:")] + text[text.index("\nseparation") :], encoding="utf-8")
    with pytest.raises(InputInvalid, match="says nothing of the tier high"):
        policies.load(policy)


def test_two_projects_of_one_name_and_a_broken_one_hide_no_other(project_factory: Factory) -> None:
    project_factory("good")
    project_factory("twin")
    project_factory("twin", folder="other")
    broken = project_factory("broken", text="name: [\n")
    project_factory("draft", folder=".draft")
    root, policy = Path(os.environ["FTAAS_PROJECTS"]), Path(os.environ["FTAAS_POLICY"])
    good, wrong = catalog.load_all(root, policy)
    assert [p.name for p in good] == ["good"]
    assert len(wrong) == 2
    with pytest.raises(InputInvalid, match="2 projects are named 'twin'"):
        catalog.load_one(root, policy, "twin")
    with pytest.raises(InputInvalid, match=str(broken)):
        catalog.load_one(root, policy, "broken")
    with pytest.raises(InputInvalid, match="known: good; 3 more have errors"):
        catalog.load_one(root, policy, "absent")


def test_a_new_project_is_valid_whatever_is_guessed(home: Path) -> None:
    policy = policies.load(Path(os.environ["FTAAS_POLICY"]))
    root = Path(os.environ["FTAAS_PROJECTS"])
    guesses = [
        scaffold.Guess(),
        scaffold.Guess("text_target", {"target": "yes: no"}, 300, 7),
        scaffold.Guess("text_target", {}, 300, 290),
        scaffold.Guess("messages", {}, 9, 0),
        *(
            scaffold.Guess(name, {}, 9, 9)
            for name in FORMATS
            if name not in ("alpaca", "text_target", "messages")
        ),
    ]
    tasks: list[str] = []
    for i, guess in enumerate(guesses):
        who = scaffold.people(policy, "low", "root")
        text = scaffold.render(f"p{i}", guess, who, "rows.jsonl")
        useful = [x for x in text.splitlines() if x.strip() and not x.startswith("#")]
        assert len(useful) <= 25
        assert not scaffold.write(root, policy, f"p{i}", text, {"rows.jsonl": scaffold.example_data()})
        project = catalog.load_one(root, Path(os.environ["FTAAS_POLICY"]), f"p{i}").project
        assert dict(guess.columns) == project.dataset.columns
        tasks.append(project.task)
        assert all(name in text for name in FORMATS), "every format is there to choose"
    assert tasks[:4] == ["qa", "classification", "correction", "chat"]
    assert sorted(p.name for p in root.iterdir()) == sorted(f"p{i}" for i in range(len(guesses)))


def test_a_new_project_looks_at_the_first_rows_alone(ftaas: Any, home: Path, tmp_path: Path) -> None:
    """What comes later need not even be JSON; rows with other keys and odd numbers are shown as well."""
    rows = [json.dumps({"prompt": f"q{i}", "completion": f"a{i}", "label": i % 2 == 0}) for i in range(200)]
    rows[1] = '{"completion": "a1", "score": NaN, "prompt": "q1", "label": false}'
    file = tmp_path / "judged.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join([*rows, "{broken"]).encode()))
    done = ftaas("project", "new", "judged", "--from", str(file), "--json")
    assert done.code == 0, done.stdout
    assert done.json["guessed"] == {"format": "kto", "columns": {}, "task": "qa", "records": 200}
    assert done.json["rows"][1] == {"prompt": "q1", "completion": "a1", "label": False, "score": None}
    assert ftaas("project", "validate", "judged").code == 0
    talk = [{"from": "human", "value": "Hot?"}, {"from": "gpt", "value": "No."}]
    (tmp_path / "talk.json").write_text(json.dumps([{"conversations": talk}] * 3), "utf-8")
    done = ftaas("project", "new", "talk", "--from", str(tmp_path / "talk.json"), "--json")
    assert (done.json["guessed"]["format"], done.json["guessed"]["task"]) == ("sharegpt", "chat")
    assert ftaas("project", "new", "shown", "--from", str(tmp_path / "talk.json")).code == 0


LLAMA_FACTORY = """\
model_name_or_path: Qwen/Qwen3-4B
stage: sft
finetuning_type: lora
lora_rank: 4
lora_target: q_proj,v_proj
dataset: faq
cutoff_len: 2048
learning_rate: 1e-4
num_train_epochs: 3.0
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
report_to: none
val_size: 0.1
neftune_noise_alpha: 5
max_steps: -1
resume_from_checkpoint: null
"""
REGISTRY = {"faq": {"file_name": "faq.json", "columns": {"prompt": "q", "response": "a", "system": "s"}}}
AXOLOTL = """\
base_model: NousResearch/Llama-3.2-1B
load_in_4bit: true
datasets:
  - path: team/chats
    type: chat_template
    field_messages: turns
    roles: {user: [user]}
    split: train[:9]
  - path: json
    data_files: old.jsonl
    ds_type: json
    type: chat_template
    field_messages: turns
    message_property_mappings: {role: from, content: value, weight: w}
  - {path: hall.txt, type: completion, field: body}
val_set_size: 0.05
adapter: qlora
lora_r: 16
lora_alpha: 32
lora_target_linear: true
sequence_len: 4096
micro_batch_size: 2
num_epochs: 1
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
wandb_project:
evals_per_epoch: 4
special_tokens: {pad_token: x}
"""


def test_llama_factory_file(home: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(REGISTRY), "utf-8")
    file = tmp_path / "Qwen3 LoRA.yaml"
    file.write_text(LLAMA_FACTORY, "utf-8")
    found = importing.convert(file)
    left = {x["key"]: x["why"] for x in found.left_out}
    assert set(left) == {
        "warmup_ratio",
        "report_to",
        "neftune_noise_alpha",
        "max_steps",
        "faq.columns.system",
    }
    path = str(tmp_path / "data" / "faq.json")
    assert found.sources == [Data({"path": path}, None, "alpaca", {"instruction": "q", "output": "a"})]
    policy = policies.load(Path(os.environ["FTAAS_POLICY"]))
    name = importing.project_name(file)
    text = importing.render(found, name, scaffold.people(policy, "low", "x"), {path: "data/faq.json"})
    missing = scaffold.write(Path(os.environ["FTAAS_PROJECTS"]), policy, name, text, {}, data_may_follow=True)
    assert name == "qwen3_lora" and [p.what for p in missing] == [catalog.NO_DATA]
    data = {"faq.json": b"[]"}
    scaffold.write(Path(os.environ["FTAAS_PROJECTS"]), policy, "again", text.replace(name, "again"), data)
    project = catalog.load_one(
        Path(os.environ["FTAAS_PROJECTS"]), Path(os.environ["FTAAS_POLICY"]), "again"
    ).project
    recipe = project.recipes[0]
    assert recipe.adapter.kind == "lora"
    assert (recipe.adapter.r, recipe.adapter.alpha, recipe.adapter.target_modules) == (
        4,
        8,
        ["q_proj", "v_proj"],
    )
    assert recipe.training.learning_rate == 1e-4 and recipe.training.precision == "bf16"
    assert project.dataset.sources[0].columns == {"instruction": "q", "output": "a"}
    for key in left:
        assert key in text


@pytest.mark.parametrize(
    ("stage", "entry", "expected", "left"),
    [
        ("sft", {"formatting": "sharegpt"}, ("sharegpt", {}), set[str]()),
        (
            "sft",
            {
                "formatting": "sharegpt",
                "columns": {"messages": "talk", "system": "system", "tools": "functions", "audios": "sound"},
                "tags": {"user_tag": "human", "assistant_tag": "bot", "function_tag": "function_call"},
            },
            ("sharegpt", {"conversations": "talk", "tools": "functions"}),
            {"d.tags.assistant_tag", "d.columns.audios"},
        ),
        (
            "sft",
            {
                "formatting": "sharegpt",
                "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user"},
            },
            ("messages", {"messages": "conversations"}),
            set[str](),
        ),
        (
            "sft",
            {
                "ranking": True,
                "columns": {"prompt": "instruction", "chosen": "good", "rejected": "rejected"},
            },
            ("preference", {"prompt": "instruction", "chosen": "good"}),
            set[str](),
        ),
        (
            "sft",
            {
                "ranking": True,
                "formatting": "sharegpt",
                "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
            },
            ("preference", {"prompt": "conversations"}),
            set[str](),
        ),
        (
            "sft",
            {"formatting": "sharegpt", "columns": {"messages": "messages", "kto_tag": "label"}},
            ("kto", {"completion": "messages"}),
            set[str](),
        ),
        (
            "pt",
            {"columns": {"prompt": "body"}, "num_samples": 5},
            ("text", {"text": "body"}),
            {"d.num_samples"},
        ),
    ],
    ids=["sharegpt", "its columns", "roles", "preference", "preference as turns", "kto", "pre-training"],
)
def test_a_llama_factory_data_set_keeps_its_meaning(
    tmp_path: Path, stage: str, entry: dict[str, Any], expected: tuple[str, dict[str, str]], left: set[str]
) -> None:
    registry = {
        "d": {"file_name": "d.json", **entry},
        "hub": {"hf_hub_url": "team/set", "subset": "en", **entry},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(registry), "utf-8")
    file = tmp_path / "a.yaml"
    file.write_text(f"model_name_or_path: x\nstage: {stage}\ndataset: d, hub\ndataset_dir: .\n", "utf-8")
    found = importing.convert(file)
    places = [{"path": str(tmp_path / "d.json")}, {"huggingface": {"id": "team/set", "config": "en"}}]
    assert found.sources == [Data(place, None, *expected) for place in places]
    assert {x["key"] for x in found.left_out if x["key"].startswith("d.")} == left
    for name, column in expected[1].items():
        assert name in FORMATS[expected[0]].columns, f"{column} would be mapped to nothing"


def test_an_imported_project_of_several_data_sets_is_valid(home: Path, tmp_path: Path) -> None:
    policy = policies.load(Path(os.environ["FTAAS_POLICY"]))
    root = Path(os.environ["FTAAS_PROJECTS"])
    (tmp_path / "old.jsonl").write_text("{}", "utf-8")
    (tmp_path / "a.yml").write_text(AXOLOTL, "utf-8")
    found = importing.convert(tmp_path / "a.yml")
    paths = {str(tmp_path / "old.jsonl"): "data/old.jsonl", "hall.txt": "data/hall.txt"}
    text = importing.render(found, "several", scaffold.people(policy, "low", "x"), paths)
    data = {"old.jsonl": b"{}", "hall.txt": b"Hall 1."}
    assert not scaffold.write(root, policy, "several", text, data)
    project = catalog.load_one(root, Path(os.environ["FTAAS_POLICY"]), "several").project
    assert [(s.name, s.format) for s in project.dataset.sources] == [
        ("rows_1", "messages"),
        ("rows_2", "sharegpt"),
        ("rows_3", "text"),
    ]
    assert project.dataset.sources[0].huggingface and project.task == "chat"


def test_axolotl_file_and_what_is_not_supported(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.yml"
    file.write_text(AXOLOTL, "utf-8")
    found = importing.convert(file)
    assert found.fields["recipe.adapter.target_modules"] == "all-linear"
    assert found.sources == [
        Data(
            {"huggingface": {"id": "team/chats", "split": "train[:9]"}},
            None,
            "messages",
            {"messages": "turns"},
        ),
        Data({"path": "old.jsonl"}, None, "sharegpt", {"conversations": "turns"}),
        Data({"path": "hall.txt"}, None, "text", {"text": "body"}),
    ]
    left = {x["key"] for x in found.left_out}
    assert left == {
        "load_in_4bit",
        "adapter",
        "bf16",
        "evals_per_epoch",
        "special_tokens",
        "datasets.0.roles",
        "datasets.1.weight",
        "datasets.1.ds_type",
    }
    file.write_text("base_model: x\nrl: dpo\n", "utf-8")
    with pytest.raises(InputInvalid, match=f"{file}:2: 'rl' is not supported"):
        importing.convert(file)
    file.write_text("model: x\n", "utf-8")
    with pytest.raises(InputInvalid, match="neither a LLaMA-Factory nor an Axolotl"):
        importing.convert(file)
    file.write_text("base_model: x\nlora_r: 8\n", "utf-8")
    full = importing.convert(file)
    assert full.fields == {"recipe.adapter.kind": "full", "base_model.id": "x"}
    assert [x["key"] for x in full.left_out] == ["lora_r"]
