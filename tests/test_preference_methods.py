"""DPO, KTO, ORPO and reward models: what they read, what they are measured against, that they prefer."""

import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recipe_runs import Rows, losses, made, pairs, spec_of
from test_training import T5, Heard, base, chat, materials, record, stop_after_checkpoint, write_splits

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.inference import bases, templates
from ftaas_pipelines.inference.decoding import Model
from ftaas_pipelines.projects.recipe import Recipe
from ftaas_pipelines.store import Artifact
from ftaas_pipelines.training import machine, methods, reward_model, run
from ftaas_pipelines.training.data import TrainingData
from ftaas_pipelines.training.materials import Materials
from ftaas_pipelines.training.resolve import resolve

METHODS = ("dpo", "kto", "orpo", "reward")
Case = tuple[str, str, str]  # what is asked, the answer that the asker likes, and the other


def cases(count: int, seed: int) -> list[Case]:
    """Faults of made-up units. Anna likes whole sentences, Bert likes notes; both want the code repeated."""
    drawn, found = random.Random(seed), list[Case]()
    for i in range(count):
        code = drawn.choice("ABCDEFGH") + f"{drawn.randrange(1000):03d}"
        asked = f"{('Anna', 'Bert')[i % 2]}: unit {drawn.randrange(10)} shows {code}. What now?"
        answers = (f"Please check {code}, thank you.", f"{code} -> stop, call service.")
        found.append((asked, *(answers if i % 2 == 0 else answers[::-1])))
    return found


def preferences(found: Sequence[Case]) -> Rows:
    return [record(chat(asked, liked), rejected=other) for asked, liked, other in found]


def labelled(found: Sequence[Case]) -> Rows:
    """Of each case one answer, good and bad in turn for either asker."""
    return [
        record(chat(case[0], case[1 + i // 2 % 2]), label=i // 2 % 2 == 0) for i, case in enumerate(found)
    ]


def recipe(method: str | dict[str, Any], **training: Any) -> dict[str, Any]:
    shared = {"batch_size": 8, "max_seq_tokens": 96, "samples": 0, "learning_rate": 1e-3}
    return {"method": method, "training": shared | training}


def looked_at(
    folder: Path, method: str, max_tokens: int = 96, **training: Any
) -> tuple[Materials, TrainingData]:
    """What a method reads of the splits in a folder."""
    had = materials(folder, base(), max_tokens)
    asked = Recipe.model_validate({"name": "r", **recipe(method, max_seq_tokens=max_tokens, **training)})
    how = resolve(asked, {"train": 8, "validation": 0}, "causal", machine.found())
    inputs = had.inputs.model_copy(update={"method": how.method, "training": how.training})
    had = had.with_inputs(inputs)
    return had, methods.of(inputs).data(had)


# -- what they read --------------------------------------------------------------------------------

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Is E1 bad?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "And E2?"},
]


def sequences(method: str, batch: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Token ids of each row of a batch, and those of them that are judged; padding apart."""
    sides = ("chosen_", "rejected_") if method == "orpo" else ("",)
    found: list[tuple[list[int], list[int]]] = []
    for side in sides:
        rows, mask = batch[f"{side}input_ids"], batch[f"{side}attention_mask"].bool()
        if method == "orpo":
            judged = batch["chosen_labels" if side == "chosen_" else "rejected_labels"] != templates.IGNORED
        else:
            judged = batch.get("completion_mask", mask).bool()
        found += [(r[m].tolist(), r[j].tolist()) for r, m, j in zip(rows, mask, judged, strict=True)]
    return found


@pytest.mark.parametrize("method", METHODS)
def test_trainers_read_the_tokens_that_are_shown_and_taught_everywhere(method: str, tmp_path: Path) -> None:
    rows = [
        record([*TURNS, {"role": "assistant", "content": f"No, {i}."}], rejected="Yes!") for i in range(3)
    ]
    write_splits(tmp_path, rows, [])
    had, data = looked_at(tmp_path, method, max_steps=1, eval_steps=1, save_steps=1)
    how = methods.of(had.inputs)
    trainer = run.trainer_of(had, how, run.model_of(had, how), data, tmp_path / "work", [])
    tokenizer = bases.load_tokenizer(base())
    expected: list[tuple[list[int], list[int]]] = []
    for answer in ("No, 0.", "No, 1.", "No, 2.", "Yes!", "Yes!", "Yes!"):
        whole = templates.example(
            tokenizer, [*TURNS, {"role": "assistant", "content": answer}], "causal", 512
        )
        prompt = templates.prompt_ids(tokenizer, TURNS, "causal")
        assert whole.input_ids[: len(prompt)] == prompt
        judged = whole.input_ids[len(prompt) :]
        assert tokenizer.decode(judged) == f"{answer}<|end|>"
        expected.append((whole.input_ids, whole.input_ids if method == "reward" else judged))
    batches = [
        trainer.data_collator([{name: value for name, value in one.items() if name != "row"}])
        for one in trainer.train_dataset
    ]
    assert sorted(found for batch in batches for found in sequences(method, batch)) == sorted(expected)


@pytest.mark.parametrize("template", ["rewrites", "none"])
def test_an_answer_is_taught_behind_what_is_shown_whatever_the_template_does(template: str) -> None:
    from ftaas_pipelines.training.methods.preferences import tokens

    tokenizer = bases.load_tokenizer(base())
    tokenizer.chat_template = {
        "rewrites": "{% for m in messages %}{% if m['role'] == 'user' or loop.last %}[{{ m['content'] }}]"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}>{% endif %}",
        "none": templates.FALLBACK,
    }[template]
    prompt, answer = tokens(tokenizer, TURNS, "No.")
    assert prompt == templates.prompt_ids(tokenizer, TURNS, "causal")
    assert tokenizer.decode(answer) == "No.<|end|>", "and nothing of what the template puts behind it"


@pytest.mark.parametrize("method", METHODS)
def test_records_without_a_judgement_are_counted_and_named(method: str, tmp_path: Path) -> None:
    plain = pairs([("Is it hot?", "No."), ("Is it cold?", "Yes.")])
    write_splits(tmp_path, [*preferences(cases(2, 1)), *plain], [])
    with pytest.raises(InputInvalid) as refused:
        looked_at(tmp_path, method)
    [problem] = refused.value.problems
    assert f"method {method} learns from" in problem.what and "2 of 4 records" in problem.what
    assert "2 text_pair" in problem.what and problem.where == "train.parquet" and refused.value.exit_code == 2
    assert all(row["record_id"] in problem.got for row in plain)


def test_a_method_of_pairs_takes_no_single_labels_and_none_takes_a_t5(tmp_path: Path) -> None:
    write_splits(tmp_path, labelled(cases(4, 1)), [])
    with pytest.raises(InputInvalid, match=r"dpo learns from preferences.*4 of 4.*4 labelled"):
        looked_at(tmp_path, "dpo")
    had, data = looked_at(tmp_path, "kto")
    assert sorted(data.train["label"]) == [False, False, True, True]
    seq2seq = replace(had, inputs=had.inputs.model_copy(update={"family": "seq2seq"}), base=base(T5))
    with pytest.raises(InputInvalid, match=r"method kto compares answers of a causal base"):
        methods.of(had.inputs).data(seq2seq)


def test_kto_needs_both_labels_and_neighbours(tmp_path: Path) -> None:
    write_splits(tmp_path, [row for row in labelled(cases(8, 1)) if '"label":true' in row["extra"]], [])
    with pytest.raises(InputInvalid, match=r"good and from bad answers.*4 answers, all good"):
        looked_at(tmp_path, "kto")
    with pytest.raises(InputInvalid, match=r"batch_size"):
        looked_at(tmp_path, "kto", batch_size=1)


def test_kto_takes_pairs_apart_and_measures_the_divergence_on_another_prompts_answer(tmp_path: Path) -> None:
    found = cases(33, 1)  # 66 answers in batches of 13: one stands alone in the last
    write_splits(tmp_path, preferences(found), [])
    _, data = looked_at(tmp_path, "kto", batch_size=13)
    tokenizer = bases.load_tokenizer(base())
    said = {
        tokenizer.decode(ids): good
        for ids, good in zip(data.train["completion_ids"], data.train["label"], strict=True)
    }
    assert said == {
        f"{a}<|end|>": good for _, liked, other in found for a, good in ((liked, True), (other, False))
    }
    own, other = data.train["completion_ids"][:], data.train["KL_completion_ids"][:]
    assert all(a != b for a, b in zip(own, other, strict=True))
    for start in range(0, 65, 13):
        assert sorted(own[start : start + 13]) == sorted(other[start : start + 13])
    assert looked_at(tmp_path, "kto", batch_size=13)[1].train["row"][:] == data.train["row"][:]
    assert looked_at(tmp_path, "kto", batch_size=13, seed=1)[1].train["row"][:] != data.train["row"][:]


def test_long_answers_are_cut_dropped_or_refused_as_the_recipe_says(tmp_path: Path) -> None:
    long = record(chat("Is it hot?", "Yes, " + "very " * 60 + "hot."), rejected="No.")
    write_splits(tmp_path, [*preferences(cases(3, 1)), long], [])
    _, cut = looked_at(tmp_path, "dpo", 48)
    row = cut.record_ids.index(long["record_id"])
    assert cut.truncated == 1 and len(cut.train[row]["prompt_ids"] + cut.train[row]["chosen_ids"]) == 48
    _, fewer = looked_at(tmp_path, "dpo", 48, too_long="drop")
    assert fewer.dropped == 1 and long["record_id"] not in fewer.record_ids and len(fewer.train) == 3
    assert fewer.train["row"][:] == [0, 1, 2]
    with pytest.raises(InputInvalid, match=rf"1 of 4 records are longer.*{long['record_id']}"):
        looked_at(tmp_path, "dpo", 48, too_long="refuse")


def test_pairs_that_differ_only_behind_the_limit_teach_nothing_and_are_named(tmp_path: Path) -> None:
    same = record(chat("Is it hot?", "very " * 60 + "hot."), rejected="very " * 60 + "cold.")
    write_splits(tmp_path, [*preferences(cases(3, 1)), same], [])
    with pytest.raises(InputInvalid, match=rf"two answers that are the same.*{same['record_id']}"):
        looked_at(tmp_path, "reward", 48)
    silent = record(chat("Is it hot? " * 60, "No."), rejected="Yes.")
    write_splits(tmp_path, [*preferences(cases(3, 1)), silent], [])
    with pytest.raises(InputInvalid, match=rf"no token of their answer.*{silent['record_id']}"):
        looked_at(tmp_path, "orpo", 48)


# -- what they are measured against ----------------------------------------------------------------


def lengths(answers: Sequence[str]) -> list[int]:
    """Tokens of each answer, with its end token."""
    tokenizer = bases.load_tokenizer(base())
    return [len(tokenizer(answer)["input_ids"]) + 1 for answer in answers]


def said(found: Sequence[Case], answers: Sequence[str], folder: Path | None) -> list[float]:
    """Log-probability of each answer, its end token included, by the base with an adapter."""
    model = Model(base(), {"a": folder} if folder else None, threads=1)
    mean = model.loss([chat(asked) for asked, _, _ in found], answers, "a" if folder else None)
    return [-loss * count for loss, count in zip(mean, lengths(answers), strict=True)]


def mean_ratio(found: Sequence[Case], column: int, after: Path, before: Path | None) -> float:
    """How much likelier than before answers became: mean difference of log-probabilities."""
    answers = [case[column] for case in found]
    pairs_of = zip(said(found, answers, after), said(found, answers, before), strict=True)
    return sum(now - then for now, then in pairs_of) / len(found)


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize(
    "start", ["the base", "an adapter", "the base, PiSSA", "an adapter, then all weights"]
)
def test_rewards_are_measured_against_where_the_training_starts(
    method: str, start: str, tmp_path: Path
) -> None:
    before: Artifact | None = None
    if start.startswith("an adapter"):
        plain = pairs([(asked, liked) for asked, liked, _ in cases(32, 5)])
        before = made(spec_of(tmp_path, recipe("sft", max_steps=4, learning_rate=1e-2), plain))
    asked = recipe(method, max_steps=4, eval_steps=4, save_steps=2)
    if start.endswith("PiSSA"):
        asked["adapter"] = {"init": "pissa"}
    elif start.endswith("all weights"):
        asked["adapter"] = {"kind": "full"}
    held, heard = cases(8, 2), Heard()
    spec = spec_of(
        tmp_path,
        asked,
        preferences(cases(32, 1)),
        preferences(held),
        init_from=before.digest if before else None,
    )
    artifact = made(spec, heard)
    first = next(values for _, values in heard.figures if "loss" in values)
    assert first["reward_margin"] == pytest.approx(0, abs=1e-5), "where it starts, nothing is gained yet"
    kept = before.path if before else None
    for side, column in (("chosen", 1), ("rejected", 2)):
        [logged] = losses(heard, f"eval_reward_{side}")
        assert abs(logged) > 1e-3
        assert logged == pytest.approx(0.1 * mean_ratio(held, column, artifact.path, kept), abs=2e-3)
    if (artifact.path / "adapter_model.safetensors").is_file():
        from safetensors import safe_open

        with safe_open(artifact.path / "adapter_model.safetensors", "pt") as file:
            assert all(".lora_A.weight" in name or ".lora_B.weight" in name for name in file.keys())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed_elsewhere_it_makes_the_same_adapter(method: str, tmp_path: Path) -> None:
    """Also with an adapter to go on from, which is what DPO and KTO measure against after the resume, too."""
    straight, killed = tmp_path / "a", tmp_path / "b"
    plain = pairs([(asked, liked) for asked, liked, _ in cases(32, 5)])
    before = [made(spec_of(root, recipe("sft", max_steps=3), plain)) for root in (straight, killed)]
    assert before[0].digest == before[1].digest
    asked = recipe(method, max_steps=10, save_steps=3, eval_steps=10)
    specs = [
        spec_of(root, asked, preferences(cases(24, 1)), preferences(cases(4, 2)), init_from=before[0].digest)
        for root in (straight, killed)
    ]
    expected = made(specs[0])
    assert stop_after_checkpoint(specs[1], killed, 3, signal.SIGKILL) == -signal.SIGKILL
    resumed = made(specs[1])
    assert resumed.attestation["resumed_from"] >= 3 and resumed.digest == expected.digest
    assert resumed.content["init_from"] == before[0].digest and resumed.content["method"] == method


# -- that they prefer ------------------------------------------------------------------------------


def liked_share(found: Sequence[Case], folder: Path) -> float:
    """Which part of the answers, sampled greedily, is word for word the one that the asker likes."""
    answers = Model(base(), {"a": folder}, threads=1).generate(
        [chat(case[0]) for case in found], "a", max_new_tokens=24
    )
    return sum(one.text == case[1] for one, case in zip(answers, found, strict=True)) / len(found)


def preferred(found: Sequence[Case], folder: Path | None) -> float:
    """Which part of the answers that are liked is likelier than the other one."""
    liked, other = (said(found, [case[column] for case in found], folder) for column in (1, 2))
    return sum(a > b for a, b in zip(liked, other, strict=True)) / len(found)


@pytest.fixture(scope="module")
def both_styles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Artifact]:
    """A store with an adapter that answers everybody in both styles, half and half."""
    root = tmp_path_factory.mktemp("styles")
    drawn = random.Random(7)
    rows = pairs([(case[0], case[drawn.choice((1, 2))]) for case in cases(600, 7)])
    return root, made(spec_of(root, recipe("sft", max_steps=120, batch_size=16, learning_rate=4e-3), rows))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "rows", "batch"), [("dpo", preferences, 8), ("kto", labelled, 16)])
def test_after_sft_everybody_is_answered_in_the_style_they_like(
    method: str, rows: Callable[[Sequence[Case]], Rows], batch: int, both_styles: tuple[Path, Artifact]
) -> None:
    (root, before), heard, held = both_styles, Heard(), cases(64, 99)
    asked = recipe(
        {"kind": method, "beta": 0.3}, max_steps=40, batch_size=batch, learning_rate=1e-3, eval_steps=20
    )
    spec = spec_of(root, asked, rows(cases(600, 1)), rows(cases(32, 2)), init_from=before.digest)
    after = made(spec, heard)
    assert 0.3 <= preferred(held, before.path) <= 0.7 and preferred(held, after.path) >= 0.95
    assert 0.3 <= liked_share(held, before.path) <= 0.7 and liked_share(held, after.path) >= 0.8
    margins = losses(heard, "eval_reward_margin")
    assert margins[-1] > margins[0] > 0
    if method == "dpo":
        assert losses(heard, "eval_reward_accuracy")[-1] >= 0.95


@pytest.mark.slow
def test_orpo_teaches_answers_and_their_preference_at_once(tmp_path: Path) -> None:
    held, checked, heard = cases(64, 99), cases(32, 2), Heard()
    asked = recipe("orpo", max_steps=120, learning_rate=4e-3, eval_steps=60)
    after = made(spec_of(tmp_path, asked, preferences(cases(600, 1)), preferences(checked)), heard)
    assert 0.3 <= preferred(held, None) <= 0.7 and preferred(held, after.path) >= 0.95
    assert liked_share(held, after.path) >= 0.9
    assert losses(heard, "eval_log_odds_ratio")[-1] > 2
    answers = [case[1] for case in checked]
    mean = -sum(said(checked, answers, after.path)) / sum(lengths(answers))
    assert losses(heard, "eval_answer_loss")[-1] == pytest.approx(mean, abs=1e-3), "of answers alone"


# -- reward models ---------------------------------------------------------------------------------


def codes(count: int, seed: int) -> list[Case]:
    """Answers that name the code that was asked about, and another code."""
    drawn, found = random.Random(seed), list[Case]()
    for _ in range(count):
        right, wrong = (drawn.choice("ABCDEFGH") + f"{drawn.randrange(1000):03d}" for _ in range(2))
        asked = f"Unit {drawn.randrange(10)} shows {right}. What now?"
        found.append((asked, f"Please check {right}.", f"Please check {wrong}."))
    return found


def ranked(found: Sequence[Case], folder: Path) -> float:
    """Which part of pairs a reward model puts in the right order."""
    scores = reward_model.load(base(), folder)
    right, wrong = (scores([chat(case[0], case[column]) for case in found]) for column in (1, 2))
    return sum(a > b for a, b in zip(right, wrong, strict=True)) / len(found)


@pytest.mark.slow
def test_a_reward_model_learns_to_tell_the_right_code_from_a_wrong_one(tmp_path: Path) -> None:
    rows, held, heard = preferences(codes(1600, 1)), codes(128, 3), Heard()
    untrained = made(spec_of(tmp_path, recipe("reward", max_steps=1, learning_rate=1e-9), rows))
    asked = recipe("reward", max_steps=200, learning_rate=3e-3, eval_steps=100, samples=2)
    trained = made(spec_of(tmp_path, asked, rows, preferences(codes(64, 2))), heard)
    assert 0.35 <= ranked(held, untrained.path) <= 0.65 and ranked(held, trained.path) >= 0.9
    assert losses(heard, "eval_reward_accuracy")[-1] >= 0.9 and not heard.said, "it answers nothing"
    assert trained.content["method"] == "reward"


@pytest.mark.parametrize("whole", [False, True], ids=["lora", "full"])
def test_a_reward_model_goes_on_from_sft_and_scores_alone_as_in_a_batch(whole: bool, tmp_path: Path) -> None:
    sft = made(spec_of(tmp_path, recipe("sft", max_steps=2), pairs([("Hot?", "No."), ("Cold?", "Yes.")])))
    asked: dict[str, Any] = recipe("reward", max_steps=3)
    if whole:
        asked["adapter"] = {"kind": "full"}
    artifact = made(spec_of(tmp_path, asked, preferences(codes(16, 1)), init_from=sft.digest))
    scores = reward_model.load(base(), artifact.path)
    chats = [chat("Is it hot?", "No."), chat("Is unit 7 of hall 3 hot, or is it cold?", "It is cold.")]
    alone = [score for one in chats for score in scores([one])]
    assert scores(chats) == pytest.approx(alone, abs=1e-4) and alone[0] != alone[1]
    texts = ["<|user|>Is it hot?<|end|><|assistant|>No.<|end|>"]
    assert scores(texts) == pytest.approx(alone[:1], abs=1e-5)
    if not whole:
        with pytest.raises(InputInvalid, match="no head that scores"):
            reward_model.load(base(), sft.path)
