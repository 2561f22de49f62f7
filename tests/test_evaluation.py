"""Promises of decoding, metrics, comparison and the `evaluate` stage."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_training import chat, record, write_splits

from ftaas_pipelines.data import tables
from ftaas_pipelines.evaluation import choose, records
from ftaas_pipelines.inference import bases
from ftaas_pipelines.metrics import baselines, bootstrap, text
from ftaas_pipelines.metrics.baselines import Example
from ftaas_pipelines.store import Store, digest_of

ROOT = Path(__file__).parent.parent
CAUSAL = ROOT / "ftaas_pipelines/bases/tiny-causal"
T5 = ROOT / "ftaas_pipelines/bases/tiny-t5"


def _questions(count: int) -> list[tuple[str, str]]:
    """Real test rows of the demo: prompt and answer."""
    lines = (ROOT / "projects/maintenance_assistant/data/test.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines[:count]]
    return [("\n".join(filter(None, (r["instruction"], r.get("input")))), r["output"]) for r in rows]


def _sentences(count: int) -> list[tuple[str, str]]:
    with (ROOT / "projects/grammar_correction/data/test.csv").open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["target"]) for row in csv.DictReader(file)][:count]


def _asked(pairs: list[tuple[str, str]]) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": prompt}] for prompt, _ in pairs]


def _lora(base: Path, folder: Path) -> Path:
    """An untrained LoRA adapter that changes what the base says, named the way the platform does."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    task = "CAUSAL_LM" if bases.family(base) == "causal" else "SEQ_2_SEQ_LM"
    options = LoraConfig(
        r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type=task
    )
    get_peft_model(bases.load_model(base), options).save_pretrained(folder)
    file = folder / "adapter_config.json"
    config = {
        **json.loads(file.read_text("utf-8")),
        "base_model_name_or_path": "sha256:" + bases.digest(base),
    }
    file.write_text(json.dumps(config, sort_keys=True), encoding="utf-8")
    return folder


@pytest.fixture(scope="module", params=[CAUSAL, T5], ids=["causal", "seq2seq"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from ftaas_pipelines.inference.decoding import Model

    base: Path = request.param
    lora = _lora(base, tmp_path_factory.mktemp("lora"))
    model = Model(base, {"lora": lora, "full": base}, threads=1)
    return model, (_questions(32) if base == CAUSAL else _sentences(32))


@pytest.mark.parametrize("adapter", [None, "lora", "full"])
def test_a_batch_answers_as_single_prompts_do(loaded: Any, adapter: str | None) -> None:
    model, pairs = loaded
    together = model.generate(_asked(pairs), adapter, max_new_tokens=24)
    alone = [model.generate([prompt], adapter, max_new_tokens=24)[0] for prompt in _asked(pairs)]
    assert together == alone
    assert len({tuple(a.token_ids) for a in together}) > 1


def test_an_adapter_is_at_work_only_when_asked(loaded: Any) -> None:
    model, pairs = loaded
    prompts = _asked(pairs[:4])
    base, lora = model.generate(prompts, max_new_tokens=8), model.generate(prompts, "lora", max_new_tokens=8)
    assert base != lora
    assert (
        base == model.generate(prompts, max_new_tokens=8) == model.generate(prompts, "full", max_new_tokens=8)
    )


def test_loss_does_not_depend_on_padding_and_matches_transformers(loaded: Any) -> None:
    import torch

    from ftaas_pipelines.inference import templates

    model, pairs = loaded
    prompts, answers = _asked(pairs[:12]), [answer for _, answer in pairs[:12]]
    together = model.loss(prompts, answers, "full")
    alone = [model.loss([p], [a], "full")[0] for p, a in zip(prompts, answers, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)

    base = CAUSAL if model.context_tokens("full") else T5
    network, tokenizer = bases.load_model(base), bases.load_tokenizer(base)
    conversation = [*prompts[0], {"role": "assistant", "content": answers[0]}]
    example = templates.example(tokenizer, conversation, bases.family(base), 4096)
    with torch.inference_mode():
        expected = network(
            input_ids=torch.tensor([example.input_ids]), labels=torch.tensor([example.labels])
        ).loss
    assert together[0] == pytest.approx(expected.item(), abs=1e-5)


def test_sampling_is_seeded_stop_strings_cut_and_streams_add_up(loaded: Any) -> None:
    from ftaas_pipelines.inference.decoding import Sampling
    from ftaas_pipelines.inference.scheduler import Scheduler

    model, pairs = loaded
    prompts, warm = _asked(pairs[:4]), Sampling(temperature=1.0, top_p=0.9, seed=5)
    sampled = model.generate(prompts, max_new_tokens=12, sampling=warm)
    assert sampled[2] == model.generate([prompts[2]], max_new_tokens=12, sampling=warm)[0]

    scheduler = Scheduler(model)

    def streamed(sampling: Sampling) -> tuple[Any, str]:
        pieces: list[str] = []
        ticket = scheduler.submit(
            prompts[0],
            "lora",
            max_new_tokens=12,
            sampling=sampling,
            on_text=lambda text, _: pieces.append(text),
        )
        return ticket.result.result(), "".join(pieces)

    whole, told = streamed(Sampling())
    assert told == whole.text
    assert whole == model.generate([prompts[0]], "lora", max_new_tokens=12)[0]
    stop = whole.text[3:5]
    cut, told = streamed(Sampling(stop=(stop,)))
    assert cut.text == whole.text[: whole.text.index(stop)] == told
    assert cut.finish_reason == "stop"
    scheduler.close()
    assert model.generate([prompts[0]], "lora", max_new_tokens=1)[0].finish_reason in ("length", "stop")


def test_metrics_have_the_values_computed_by_hand() -> None:
    assert text.exact_match(' {"b": [1, 2],\n"a": "x"}', '{"a":"x","b":[1,2]}') == 1.0
    assert text.exact_match('{"a": 1}', '{"a": true}') == 0.0
    assert text.exact_match('{"a": "x"', '{"a": "x"}') == 0.0
    assert text.exact_match("two  words\n", "two words") == 1.0
    assert text.token_f1("the pump is hot", "The pump leaks.") == pytest.approx(4 / 7)  # 2 common of 4 and 3
    assert text.token_f1("", "") == 1.0
    assert text.rouge_l("a x b", "a b c") == pytest.approx(2 / 3)  # "a b" of 3 and 3
    assert text.rouge_l("Überhitzung", "Überhitzung") == 1.0
    assert text.chrf("same text", "same text") == pytest.approx(100.0)
    assert text.chrf("", "something") == 0.0


def test_the_metrics_are_evaluate_metrics_that_need_no_hub(tmp_path: Path) -> None:
    from ftaas_pipelines.metrics.record_metric import RecordMetric

    got = RecordMetric("exact_match", tmp_path).compute(predictions=["a", "b"], references=["a", "c"])
    assert got == {"exact_match": 0.5, "scores": [1.0, 0.0]}


def test_bootstrap_is_deterministic_paired_and_covers() -> None:
    generator = np.random.default_rng(7)
    covered = 0
    for trial in range(100):
        [one] = bootstrap.intervals(generator.random((80, 1)), seed=trial, resamples=500)
        covered += one.low <= 0.5 <= one.high
    assert 88 <= covered <= 100
    scores = generator.random((50, 1))
    better = np.hstack([scores, scores + 0.01, np.full_like(scores, 0.01)])
    first, second, difference = bootstrap.intervals(better)
    assert bootstrap.intervals(better) == [first, second, difference]
    assert second.low - first.low == pytest.approx(0.01)  # the same resamples for both
    assert difference.low == pytest.approx(difference.high) == pytest.approx(0.01)


def test_naive_baselines() -> None:
    train = [
        Example("fault E12 on the press", "E12!"),
        Example("fault E99 on the press", "E99!"),
        Example("hi", "E12!"),
    ]
    asked = ["the press says E99", "hi there"]
    found = baselines.for_task("classification", train)
    assert {name: answer(asked) for name, answer in found.items()} == {
        "majority": ["E12!", "E12!"],
        "retrieval": ["E99!", "E12!"],
    }
    assert list(baselines.for_task("correction", train)) == ["untouched_input", "retrieval"]
    assert baselines.for_task("correction", train)["untouched_input"](asked) == asked
    assert list(baselines.for_task("qa", train)) == ["retrieval"]


def test_the_candidate_is_the_best_then_the_surest_then_the_first() -> None:
    def scores(**recipes: tuple[float, float]) -> dict[str, Any]:
        systems = {
            name: {"overall": {"exact_match": {"value": match}, "loss": {"value": loss}}}
            for name, (match, loss) in recipes.items()
        }
        return {"primary": "exact_match", "sets": {"validation": {"systems": systems}}}

    assert choose.candidate(scores(a=(0.5, 0.1), b=(0.6, 0.9)), ["a", "b"])[0] == "b"
    assert choose.candidate(scores(a=(0.5, 0.2), b=(0.5, 0.1)), ["a", "b"])[0] == "b"
    assert choose.candidate(scores(a=(0.5, 0.1), b=(0.5, 0.1)), ["b", "a"])[0] == "b"


def test_plain_texts_beside_questions_are_not_asked(tmp_path: Path) -> None:
    questions = [record(chat(f"What is {i}?", f"{i}.")) for i in range(4)]
    texts = [record([{"role": "assistant", "content": f"Unit {i} hums."}]) for i in range(3)]
    write_splits(tmp_path, [*questions, *texts], texts)
    tables.write_rows(tmp_path / "test.parquet", [*texts, *questions], tables.RECORDS)
    asked = records.read(tmp_path, "test", None)["test"]
    assert [r.record_id for r in asked] == sorted(row["record_id"] for row in questions)
    assert len(records.training_examples(tmp_path)) == 4
    alone = records.read(tmp_path, "validation", None)["validation"]
    assert len(alone) == 3, "a project of texts alone is scored by their loss"


def _rows(pairs: list[tuple[str, str]]) -> pa.Table:
    rows = [
        {
            "record_id": digest_of([prompt, answer]),
            "prompt": prompt,
            "answer": answer,
            "messages": json.dumps(
                [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
            ),
            "kind": "text_pair",
        }
        for prompt, answer in pairs
    ]
    return pa.Table.from_pylist(sorted(rows, key=lambda r: r["record_id"]))


def _evaluate(folder: Path, lora: Path, hash_seed: str) -> tuple[Store, dict[str, Any]]:
    """Run the stage as a program in a fresh store. Returns the store and what `--out` holds."""
    pairs, store = _questions(60), Store(folder / "store")
    with store.create("splits", digest_of("splits")) as splits:
        parts = {
            "train": pairs[:30],
            "validation": pairs[30:40],
            "test": pairs[40:52],
            "challenge_new": pairs[52:],
        }
        for name, rows in parts.items():
            pq.write_table(_rows(rows), splits.path / f"{name}.parquet")
    with store.create("adapter", digest_of("adapter")) as adapter:
        for file in lora.glob("adapter_*"):
            (adapter.path / file.name).write_bytes(file.read_bytes())
    spec = {
        "stage": "evaluate",
        "project": "demo",
        "asset": "evaluation",
        "inputs": {
            "split": "test",
            "splits": splits.made.digest,
            "base": bases.digest(CAUSAL),
            "family": "causal",
            "task": "qa",
            "adapters": {"candidate": adapter.made.digest},
            "options": {"max_new_tokens": 8, "samples": 4},
            "threads": 1,
        },
        "run": {
            "home": str(folder),
            "store": str(store.root),
            "ledger": f"sqlite:///{folder / 'ledger.db'}",
            "actor": "anna@example.com",
            "base_path": str(CAUSAL),
        },
    }
    (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "ftaas_pipelines.stages.evaluate",
        "--spec",
        "spec.json",
        "--out",
        "out.json",
    ]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return store, json.loads((folder / "out.json").read_text("utf-8"))


def test_the_stage_makes_the_same_evaluation_in_every_process(tmp_path: Path) -> None:
    lora = _lora(CAUSAL, tmp_path / "lora")
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    store, first = _evaluate(folders[0], lora, "1")
    _, second = _evaluate(folders[1], lora, "2")
    assert first["digest"] == second["digest"]

    evaluation = store.get(first["digest"])
    scores = json.loads(evaluation.file("scores.json").read_text("utf-8"))
    assert scores == evaluation.content["scores"]
    assert {name: one["n"] for name, one in scores["sets"].items()} == {"test": 12, "new": 8}
    systems = scores["sets"]["test"]["systems"]
    assert set(systems) == {"candidate", "base", "retrieval"}
    assert set(systems["candidate"]["overall"]) == {"exact_match", "token_f1", "rouge_l", "chrf", "loss"}
    naive = scores["wins"]["naive"]
    assert naive["baseline"] == "retrieval"
    assert naive["beaten"] == (naive["candidate"] > naive["other"])
    answers = [json.loads(line) for line in evaluation.file("answers.jsonl").read_text("utf-8").splitlines()]
    assert len(answers) == 20
    assert all(set(a["token_ids"]) == {"candidate"} and set(a["answers"]) == set(systems) for a in answers)

    html = evaluation.file("beside/report.html").read_text("utf-8")
    assert not re.search(r"(src|href|url\()\s*=?\s*['\"]?\s*(https?:)?//", html)
    assert "<link" not in html
    assert "<script" not in html
    assert "The adapter" in html
    assert not list(evaluation.problems())


def _results(candidate: list[str], references: list[str], prompts: list[str]) -> Any:
    from ftaas_pipelines.evaluation.records import Record
    from ftaas_pipelines.evaluation.run import Results, SetResult

    records = [
        Record(f"r{i}", (), p, r, "text") for i, (p, r) in enumerate(zip(prompts, references, strict=True))
    ]
    one = SetResult(
        "test", records, {"candidate": candidate, "base": [""] * len(records), "untouched_input": prompts}
    )
    for label, texts in one.texts.items():
        pairs = list(zip(texts, references, strict=True))
        one.scores[label] = {m: np.array([text.scorer(m)(*pair) for pair in pairs]) for m in text.METRICS}
    return Results([one], ["candidate", "base"], ["untouched_input"])


@pytest.mark.parametrize(
    ("candidate", "verdict", "beaten"),
    [
        (["good day", "well done"], "wins: it answers 100.0%", True),
        (["good day", "weldone"], "ties: it answers 50.0%", False),
        (["no", "none"], "loses: it answers 0.0%", False),
    ],
)
def test_the_headline_says_who_wins_and_a_tie_beats_nothing(
    candidate: list[str], verdict: str, beaten: bool
) -> None:
    from ftaas_pipelines.evaluation import compare, wording

    results = _results(candidate, ["good day", "well done"], ["good day", "wel done"])
    scores = compare.scores(results, "exact_match")
    assert scores["wins"]["naive"]["beaten"] is beaten
    assert scores["wins"]["champion"] is None
    sentence = wording.headline(scores)
    assert sentence == (
        f"The adapter {verdict} of the 2 test questions exactly; "
        "the untouched input 50.0%, the base model 0.0%."
    )
    assert any("gate refuses" in remark for remark in wording.remarks(scores)) is not beaten
