"""GRPO, RLOO and distillation: what each optimises gets better, and a resumed training is the same one.

All on one task: a sentence reports a code at a part. It may be told back in words or as JSON.
"""

import json
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from test_training import Heard, base, chat, finish, record, stop_after_checkpoint, write_splits

from ftaas_pipelines.data.rows.messages import of_row
from ftaas_pipelines.errors import InputInvalid, Refused
from ftaas_pipelines.inference import bases, templates
from ftaas_pipelines.projects.recipe import Recipe
from ftaas_pipelines.stages.spec import Run, Spec
from ftaas_pipelines.store import Store, file_digest
from ftaas_pipelines.training import machine, rewards, run, save
from ftaas_pipelines.training.data import TrainingData
from ftaas_pipelines.training.inputs import TrainInputs
from ftaas_pipelines.training.materials import Materials
from ftaas_pipelines.training.resolve import resolve

Rows = list[dict[str, Any]]
PARTS = ("pump", "motor", "sensor", "belt", "fan")
HELD_OUT = range(9000, 9060)
NEVER = 10_000
JSON = {"type": "object", "required": ["part", "code"]}


def told(i: int) -> tuple[str, str, str]:
    """A report, and it told back as JSON and in words."""
    draw = random.Random(i)
    part, code, line = draw.choice(PARTS), f"X{draw.randrange(100, 1000)}", draw.randrange(1, 10)
    report = f"Line {line} reports {code} at the {part}."
    return report, json.dumps({"part": part, "code": code}), f"The {part} shows {code}."


def mixed(first: int, count: int) -> Rows:
    """Seven in ten in words, the others as JSON."""
    rows: Rows = []
    for i in range(first, first + count):
        report, as_json, in_words = told(i)
        rows.append(record(chat(report, as_json if random.Random(f"style {i}").random() < 0.3 else in_words)))
    return rows


def wanted(first: int, count: int) -> Rows:
    """Prompts whose checkable answer is the JSON, whatever the record's own answer says."""
    return [
        record(chat(report, in_words), expected=as_json)
        for report, as_json, in_words in map(told, range(first, first + count))
    ]


def preferred(first: int, count: int) -> Rows:
    """JSON chosen over words."""
    return [
        record(chat(report, as_json), rejected=in_words)
        for report, as_json, in_words in map(told, range(first, first + count))
    ]


def prepared(
    folder: Path,
    rows: tuple[Rows, Rows],
    method: dict[str, Any],
    base_path: Path | None = None,
    adapter: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    **folders: Path,
) -> Materials:
    """What a training has before it; `folders` are those of `Materials`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_splits(folder, *rows)
    asked = {
        "max_seq_tokens": 96,
        "samples": 0,
        "schedule": "constant",
        "eval_steps": NEVER,
        "save_steps": NEVER,
    }
    asked |= training or {}
    recipe = Recipe.model_validate(
        {"name": "r", "method": method, "training": asked, **({"adapter": adapter} if adapter else {})}
    )
    base_path = base_path or base()
    counts = {"train": len(rows[0]), "validation": len(rows[1])}
    how = resolve(recipe, counts, "causal", machine.found())
    inputs = TrainInputs(
        splits="0" * 64,
        base=bases.digest(base_path),
        family="causal",
        method=how.method,
        adapter=how.adapter,
        training=how.training,
        threads=1,
    )
    return Materials(inputs, folder, base_path, **folders)


def train(folder: Path, materials: Materials, max_minutes: float | None = None) -> tuple[Path, Heard]:
    """The adapter's folder, and what was reported."""
    heard, made = Heard(), folder / "made"
    (folder / "work").mkdir(parents=True, exist_ok=True)
    trained = run.train(materials, folder / "work", heard, max_minutes)
    made.mkdir(exist_ok=True)
    if materials.inputs.adapter.kind == "lora":
        save.lora(trained.model, materials.inputs.base, made)
    else:
        save.full(trained.model, trained.tokenizer, materials.base, made)
    return made, heard


def answers(adapter: Path | None, base_path: Path | None = None) -> list[str]:
    """Greedy answers to the held-out reports, as they are served."""
    from ftaas_pipelines.inference.decoding import Model

    model = Model(base_path or base(), {"a": adapter} if adapter else {}, threads=1)
    prompts = [chat(told(i)[0]) for i in HELD_OUT]
    return [g.text for g in model.generate(prompts, "a" if adapter else None, max_new_tokens=32)]


def share_right(said: list[str]) -> float:
    return sum(text == told(i)[1] for text, i in zip(said, HELD_OUT, strict=True)) / len(said)


def figures(heard: Heard, name: str) -> list[float]:
    return [values[name] for _, values in heard.figures if name in values]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that knows how to answer, in words mostly: where the online methods begin."""
    folder = tmp_path_factory.mktemp("sft")
    training = {"max_steps": 120, "batch_size": 16, "learning_rate": 3e-3, "seed": 1}
    return train(
        folder, prepared(folder / "splits", (mixed(0, 800), []), {"kind": "sft"}, training=training)
    )[0]


# -- what each optimises gets better ---------------------------------------------------------------


@pytest.mark.slow
def test_grpo_makes_the_rewarded_answer_the_likely_one(tuned: Path, tmp_path: Path) -> None:
    before = share_right(answers(tuned))
    method = {
        "kind": "grpo",
        "rewards": [{"kind": "exact_match"}, {"kind": "json_schema", "json_schema": JSON, "weight": 0}],
        "max_new_tokens": 32,
    }
    training = {"max_steps": 16, "batch_size": 32, "learning_rate": 1e-3, "seed": 1, "eval_steps": 8}
    made, heard = train(
        tmp_path,
        prepared(
            tmp_path / "s",
            (wanted(20_000, 400), wanted(6000, 16)),
            method,
            training=training,
            init_from=tuned,
        ),
    )
    after = share_right(answers(made))
    assert before <= 0.5 and after >= 0.9, (before, after)
    gained = figures(heard, "reward")
    assert sum(gained[-4:]) > 1.3 * sum(gained[:4])
    last = [values for _, values in heard.figures if "reward" in values][-1]
    assert last["reward"] == last["reward_exact_match"] <= last["reward_json_schema"], "weight 0 only shows"
    assert {"entropy", "answer_tokens", "ended", "reward_std", "groups_alike", "loss"} <= last.keys()
    assert figures(heard, "eval_loss") == pytest.approx([-value for value in figures(heard, "eval_reward")])
    assert figures(heard, "eval_reward_exact_match")[-1] >= 0.8


@pytest.mark.slow
def test_rloo_raises_the_score_of_a_learned_reward_model(tuned: Path, tmp_path: Path) -> None:
    from ftaas_pipelines.training import reward_model

    training = {"max_steps": 15, "batch_size": 16, "learning_rate": 3e-3, "seed": 1}
    judge, _ = train(
        tmp_path / "judge",
        prepared(tmp_path / "p", (preferred(0, 400), []), {"kind": "reward"}, training=training),
    )
    scorer = reward_model.load(base(), judge)

    def score(said: list[str]) -> float:
        asked = [chat(told(i)[0], text) for text, i in zip(said, HELD_OUT, strict=True)]
        return sum(scorer(asked)) / len(said)

    assert score([told(i)[1] for i in HELD_OUT]) > score([told(i)[2] for i in HELD_OUT]), (
        "it learnt the taste"
    )
    method = {"kind": "rloo", "reward_model": "judge", "max_new_tokens": 32, "beta": 0.02}
    training = {"max_steps": 16, "batch_size": 32, "learning_rate": 1e-3, "seed": 1}
    rows = ([record(chat(told(i)[0], "?")) for i in range(20_000, 20_400)], [])
    made, heard = train(
        tmp_path / "made",
        prepared(tmp_path / "s", rows, method, training=training, init_from=tuned, reward_model=judge),
    )
    best, worst = score([told(i)[1] for i in HELD_OUT]), score([told(i)[2] for i in HELD_OUT])
    assert best > worst, "the reward model learnt what is preferred"
    before, after = answers(tuned), answers(made)
    assert score(after) - score(before) > 0.8 * (best - worst), (score(before), score(after), worst, best)
    assert sum(text.startswith("{") for text in after) > 0.9 * len(after)
    last = [values for _, values in heard.figures if "reward" in values][-1]
    assert {"reward_model", "kl", "entropy", "ended"} <= last.keys() and last["kl"] > 0


# -- distillation ----------------------------------------------------------------------------------


def divergence(student: Path | None, teacher: Path, student_base: Path | None = None) -> float:
    """Mean KL divergence (nats a token) of the student from the teacher on held-out answers."""
    import torch
    from peft import PeftModel

    def log_probs(base_path: Path, adapter: Path | None, ids: list[int], start: int) -> torch.Tensor:
        key = (base_path, adapter)
        if key not in loaded:
            model: Any = bases.load_model(base_path)
            loaded[key] = (PeftModel.from_pretrained(model, str(adapter)) if adapter else model).eval()
        with torch.inference_mode():
            return loaded[key](torch.tensor([ids])).logits[0, start - 1 : -1].log_softmax(-1)

    loaded: dict[tuple[Path, Path | None], Any] = {}
    tokenizer, found = bases.load_tokenizer(base()), []
    for i in HELD_OUT:
        messages = chat(told(i)[0], told(i)[1])
        start = len(templates.prompt_ids(tokenizer, messages[:-1], "causal"))
        ids = templates.example(tokenizer, messages, "causal", 96).input_ids
        theirs = log_probs(base(), teacher, ids, start)
        ours = log_probs(student_base or base(), student, ids, start)
        found.append((theirs.exp() * (theirs - ours)).sum(-1))
    return float(torch.cat(found).mean())


@pytest.mark.slow
def test_distillation_brings_the_student_near_its_teacher(tuned: Path, tmp_path: Path) -> None:
    """On given answers, and in three steps of ten on its own."""
    method = {
        "kind": "distillation",
        "teacher": {"id": "embedded/tiny-causal"},
        "max_new_tokens": 32,
        "divergence": 0.0,
        "on_policy": 0.3,
    }
    training = {"max_steps": 60, "batch_size": 16, "learning_rate": 3e-3, "seed": 1, "eval_steps": 30}
    rows = (mixed(30_000, 400), mixed(31_000, 16))
    made, heard = train(
        tmp_path,
        prepared(tmp_path / "s", rows, method, training=training, teacher=base(), teacher_adapter=tuned),
    )
    before, after = divergence(None, tuned), divergence(made, tuned)
    assert before > 2 and after < before / 8, (before, after)
    assert sum(a == b for a, b in zip(answers(made), answers(tuned), strict=True)) > 0.9 * len(HELD_OUT)
    losses = figures(heard, "eval_loss")
    assert losses[-1] < losses[0] / 2 and figures(heard, "entropy")


def smaller(folder: Path, vocabulary: int | None = None) -> Path:
    """A student of another shape with the base's tokenizer, first values drawn by a seed."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(base())
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 64, 128, 2
    config.vocab_size = vocabulary or config.vocab_size
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for file in bases.tokenizer_files(base()):
        shutil.copyfile(file, folder / file.name)
    return folder


@pytest.mark.slow
def test_a_smaller_student_learns_from_a_teacher_whose_head_is_padded(tuned: Path, tmp_path: Path) -> None:
    student = smaller(tmp_path / "student")
    method = {"kind": "distillation", "teacher": {"id": "embedded/tiny-causal"}, "divergence": 0.0}
    training = {"max_steps": 40, "batch_size": 16, "learning_rate": 5e-3, "seed": 1, "eval_steps": 10}
    rows = (mixed(30_000, 400), mixed(31_000, 16))
    folders = {"teacher": base(), "teacher_adapter": tuned}
    full = {"kind": "full"}
    made, heard = train(tmp_path, prepared(tmp_path / "s", rows, method, student, full, training, **folders))
    losses = figures(heard, "eval_loss")
    assert losses[-1] < losses[0] / 2
    assert divergence(None, tuned, made) < divergence(None, tuned, student) / 2

    padded = smaller(tmp_path / "padded", vocabulary=4096 + 64)
    short = {**training, "max_steps": 1}
    train(tmp_path / "p", prepared(tmp_path / "s", rows, method, student, full, short, teacher=padded))
    with pytest.raises(InputInvalid, match=r"teacher's head is narrower than the student's .got 4096 rows"):
        train(tmp_path / "n", prepared(tmp_path / "s", rows, method, padded, full, short, teacher=base()))


def test_a_teacher_with_other_tokens_is_refused(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from ftaas_pipelines.training.methods import distillation

    other = smaller(tmp_path / "other")
    tokenizer: Any = AutoTokenizer.from_pretrained(base())
    tokenizer.add_tokens(["kilowatt"])
    tokenizer.save_pretrained(other)
    method = {"kind": "distillation", "teacher": {"id": "other"}}
    asked = prepared(tmp_path / "s", (mixed(0, 8), []), method, teacher=other).with_tokenizer()
    with pytest.raises(
        InputInvalid, match=r"a tokenizer that does not fit the student's.*4097 tokens, not 4096"
    ):
        distillation.teacher(asked)


# -- made again ------------------------------------------------------------------------------------

SHORT = {
    "max_steps": 5,
    "batch_size": 8,
    "gradient_accumulation": 2,
    "save_steps": 2,
    "eval_steps": 2,
    "seed": 3,
}
GRADED = {"rewards": [{"kind": "similarity"}], "generations": 4, "max_new_tokens": 6, "beta": 0.1}


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        {"kind": "grpo", **GRADED},
        {"kind": "rloo", **GRADED},
        {
            "kind": "distillation",
            "teacher": {"id": "embedded/tiny-causal"},
            "on_policy": 0.5,
            "max_new_tokens": 6,
        },
    ],
    ids=lambda method: method["kind"],
)
def test_resumed_after_a_stop_or_from_an_older_checkpoint_it_is_the_same_adapter(
    tmp_path: Path, method: dict[str, Any]
) -> None:
    """Ten prompts: the second epoch begins in the third step; dropout asked for, and off."""
    adapter = {"dropout": 0.1}
    asked = prepared(tmp_path / "s", (wanted(0, 10), wanted(50, 4)), method, None, adapter, SHORT)
    if method["kind"] == "distillation":
        asked = replace(asked, teacher=smaller(tmp_path / "teacher"))
    straight, _ = train(tmp_path / "a", asked)
    digest = file_digest(straight / "adapter_model.safetensors")
    work = tmp_path / "a" / "work"
    assert (work / "checkpoint-4").is_dir()
    shutil.rmtree(work / "checkpoint-5")  # as if it was killed in the fifth step
    resumed, heard = train(tmp_path / "a", asked)
    assert file_digest(resumed / "adapter_model.safetensors") == digest
    assert {step for step, _ in heard.figures} == {5}

    with pytest.raises(Refused, match="a checkpoint of step 1 was saved"):
        train(tmp_path / "c", asked, max_minutes=1e-6)
    resumed, _ = train(tmp_path / "c", asked)
    assert file_digest(resumed / "adapter_model.safetensors") == digest


@pytest.mark.slow
def test_grpo_killed_and_stopped_in_other_processes_makes_the_same_adapter(tmp_path: Path) -> None:
    """Rewards from a Python file; kill -9, SIGTERM, other hash seeds: one digest."""
    (tmp_path / "rewards.py").write_text(
        "def score(prompts, answers, expected):\n    return [len(set(a)) / 10 for a in answers]\n",
        encoding="utf-8",
    )
    method = {
        "kind": "grpo",
        "rewards": [{"kind": "python", "entry": "rewards.py:score"}],
        "generations": 4,
        "max_new_tokens": 6,
    }
    training = {**SHORT, "max_steps": 12, "gradient_accumulation": 1, "save_steps": 3}
    specs = [online_spec(tmp_path / name, tmp_path, method, training) for name in "ab"]
    assert specs[0].input_digest == specs[1].input_digest
    expected = finish(specs[0], tmp_path / "a", hash_seed=1)
    spec, folder = specs[1], tmp_path / "b"
    assert stop_after_checkpoint(spec, folder, 3, signal.SIGKILL) == -signal.SIGKILL
    assert stop_after_checkpoint(spec, folder, 6, signal.SIGTERM) == 130
    assert finish(spec, folder, hash_seed=2) == expected
    made = Store(folder).get(expected)
    assert made.attestation["resumed_from"] >= 6 and made.content["method"] == "grpo"


def online_spec(root: Path, code: Path, method: dict[str, Any], training: dict[str, Any]) -> Spec:
    with Store(root).create("splits", "online") as draft:
        write_splits(draft.path, wanted(0, 10), wanted(50, 4))
        draft.content["counts"] = {"train": 10, "validation": 4}
    asked = prepared(root / "s", (wanted(0, 10), wanted(50, 4)), method, training=training)
    digests = rewards.files(asked.inputs.method, code)
    inputs = asked.inputs.model_copy(update={"splits": draft.made.digest, "code": digests})
    where: dict[str, Any] = {
        "home": root,
        "store": root,
        "ledger": f"sqlite:///{root}/ledger.db",
        "actor": "a@b.c",
    }
    where |= {"base_path": base(), "code_path": code, "experiment": True}
    return Spec(
        stage="train",
        project="demo",
        asset="adapter_r",
        inputs=inputs.model_dump(mode="json"),
        run=Run(**where),
    )


def test_the_order_of_prompts_follows_from_the_seed_alone() -> None:
    from ftaas_pipelines.training.methods.online import Steps

    def order(seed: int, steps: int = 6) -> list[int]:
        sampler = Steps(rows=5, prompts=3, repeats=2, passes=2, steps=steps, seed=seed)
        rows = list(sampler)
        assert len(rows) == len(sampler) and rows == list(sampler)
        return rows

    rows = order(1)
    assert order(1, 4) == rows[: len(order(1, 4))] and order(2) != rows
    chosen: list[int] = []
    for start in range(0, len(rows), 12):  # a step: three prompts, two answers each, read in two passes
        step = rows[start : start + 12]
        assert step[:6] == step[6:] and step[0:6:2] == step[1:6:2]
        chosen += step[0:6:2]
    assert sorted(chosen[:5]) == sorted(chosen[5:10]) == sorted(chosen[10:15]) == [0, 1, 2, 3, 4]


# -- what it learns from ---------------------------------------------------------------------------


def grpo_on(folder: Path, rows: Rows, validation: Rows | None = None, **training: Any) -> TrainingData:
    from ftaas_pipelines.training.methods import grpo

    method = {"kind": "grpo", "rewards": [{"kind": "exact_match"}], "max_new_tokens": 16}
    asked = prepared(folder, (rows, validation or []), method, training=training).with_tokenizer()
    return grpo.data(asked)


def test_a_prompt_is_asked_as_it_is_served_and_held_against_what_is_expected(tmp_path: Path) -> None:
    rows = [*wanted(0, 3), *mixed(10, 2), record(chat("Hi", "Ho", "Is it hot?", "No."))]
    found = grpo_on(tmp_path, rows, wanted(20, 2))
    tokenizer = bases.load_tokenizer(base())
    by_id = {row["record_id"]: row for row in rows}
    for one, record_id in zip(found.train, found.record_ids, strict=True):
        row = by_id[record_id]
        messages = of_row(row)
        assert one["prompt"] == templates.prompt_ids(tokenizer, messages[:-1], "causal")
        extra = json.loads(row["extra"] or "{}")
        assert one["expected"] == extra.get("expected", messages[-1]["content"])
        assert one["record_id"] == record_id and one["question"] == row["prompt"]
    assert found.validation is not None and set(found.validation["row"]) == {-1}


def test_prompts_without_room_for_an_answer_are_left_out_or_refused(tmp_path: Path) -> None:
    long = record(chat("Say it again: " + "pump " * 80, "No."))
    found = grpo_on(tmp_path / "a", [*wanted(0, 3), long])
    assert len(found.train) == 3 and found.dropped == 1 and long["record_id"] not in found.record_ids
    with pytest.raises(
        InputInvalid, match=r"1 of 4 prompts are longer than 80 tokens .max_seq_tokens=96 less"
    ):
        grpo_on(tmp_path / "b", [*wanted(0, 3), long], too_long="refuse")
    with pytest.raises(InputInvalid, match=rf"1 of 1 prompts.*{long['record_id']}"):
        grpo_on(tmp_path / "c", [long])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (record(chat("", "A text alone.")[1:]), "no prompt: they are plain text"),
        (record(chat("Is it hot?", "No."), label=False), "an answer that is labelled bad"),
        (record(chat("Is it hot?", "No."), tools=[{"type": "function"}]), "tools"),
    ],
    ids=["text", "labelled bad", "tools"],
)
def test_what_cannot_be_asked_is_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(InputInvalid, match=rf"grpo cannot learn from 1 of 3.*{said}.*{row['record_id']}"):
        grpo_on(tmp_path, [*wanted(0, 2), row])


def test_a_step_is_whole_groups_of_answers() -> None:
    asked = {"name": "r", "method": {"kind": "grpo", "rewards": [{"kind": "exact_match"}], "generations": 6}}
    with pytest.raises(
        ValidationError, match=r"r: a step has 16 answers .*not a multiple of .*generations, 6"
    ):
        Recipe.model_validate(asked)
    assert Recipe.model_validate({**asked, "training": {"batch_size": 4, "gradient_accumulation": 3}})


@pytest.mark.slow
def test_a_reward_that_fails_stops_the_training_and_names_the_record(tmp_path: Path) -> None:
    body = "def score(prompts, answers, expected):\n    return [float('nan') for _ in answers]\n"
    (tmp_path / "rewards.py").write_text(body, encoding="utf-8")
    method = {"kind": "grpo", "rewards": [{"kind": "python", "entry": "rewards.py:score"}], "generations": 4}
    method["max_new_tokens"] = 4
    rows = wanted(0, 4)
    asked = prepared(tmp_path / "s", (rows, []), method, training=SHORT, code=tmp_path)
    with pytest.raises(InputInvalid, match=r"record [0-9a-f]{64}: grader score returned .* no finite number"):
        train(tmp_path, asked)
