"""Sequence classification: one of a few labels, trained, evaluated, served."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recipe_runs import losses, made, pairs, spec_of, texts
from test_line import easy_policy, states, through_every_gate  # noqa: F401  (easy_policy is a fixture)
from test_training import T5, Heard, base

from ftaas_pipelines import settings
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.inference import bases, templates
from ftaas_pipelines.inference.decoding import Model
from ftaas_pipelines.inference.scheduler import Scheduler
from ftaas_pipelines.store import Artifact, Store

PARTS = ("pump", "belt", "valve", "sensor", "motor", "fan", "gear")
# Which part a code's letter and first digit stand for: an invented table.
TABLE = {
    f"{letter}{digit}": random.Random(f"{letter}{digit}").choice(PARTS)
    for letter in "BKT"
    for digit in range(10)
}
SHORT = {"max_steps": 3, "batch_size": 4, "max_seq_tokens": 64}


def codes(count: int, seed: int) -> list[tuple[str, str]]:
    """Notes that mention a code, and its part."""
    draw = random.Random(seed)

    def note() -> tuple[str, str]:
        kind, place = draw.choice(sorted(TABLE)), draw.choice(("hall", "line", "unit", "bay", "rack"))
        code, number = f"{kind}{draw.randrange(10, 100)}", draw.randrange(50)
        return (
            draw.choice(
                [
                    f"{place} {number} shows {code}, what is it?",
                    f"Code {code} in {place} {number}.",
                    f"We see {code}.",
                ]
            ),
            TABLE[kind],
        )

    return sorted({note() for _ in range(count)})


def recipe(adapter: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    training = {
        "max_steps": 90,
        "batch_size": 16,
        "learning_rate": 5e-3,
        "max_seq_tokens": 64,
        "eval_steps": 45,
    }
    return {
        "method": {"kind": "classification", **more.pop("method", {})},
        "adapter": adapter or {},
        "training": {**training, **more},
    }


def asked(rows: list[tuple[str, str]]) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": question}] for question, _ in rows]


def accuracy(model: Model, rows: list[tuple[str, str]], adapter: str | None) -> float:
    said = model.generate(asked(rows), adapter, max_new_tokens=6)
    return sum(g.text == label for g, (_, label) in zip(said, rows, strict=True)) / len(rows)


def held_out(train: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [row for row in codes(200, 2) if row not in train]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Heard]:
    """A low-rank classifier of the codes."""
    heard, train = Heard(), codes(500, 1)
    spec = spec_of(tmp_path_factory.mktemp("codes"), recipe(), pairs(train), pairs(held_out(train)[:30]))
    return made(spec, heard), heard


def test_it_names_parts_of_codes_it_never_saw(labelled: tuple[Artifact, Heard]) -> None:
    artifact, heard = labelled
    train, rows = codes(500, 1), held_out(codes(500, 1))
    model = Model(base(), {"parts": artifact.path})
    most_frequent = Counter(label for _, label in train).most_common(1)[0][0]
    assert accuracy(model, rows, "parts") > 0.95
    assert sum(label == most_frequent for _, label in rows) / len(rows) < 0.3
    assert accuracy(model, rows[:40], None) == 0.0
    assert losses(heard, "eval_accuracy")[-1] > 0.9
    assert losses(heard)[0] == pytest.approx(2.0, abs=0.6) and losses(heard)[-1] < 0.2
    assert json.loads(artifact.file("labels.json").read_text("utf-8")) == sorted(PARTS)


def test_alone_in_a_batch_or_streamed_the_label_is_the_same(labelled: tuple[Artifact, Heard]) -> None:
    rows = held_out(codes(500, 1))[:30]
    model = Model(base(), {"parts": labelled[0].path})
    done: list[int] = []
    together = model.generate(asked(rows), "parts", max_new_tokens=1, batch_size=8, on_batch=done.append)
    alone = [model.generate([prompt], "parts", max_new_tokens=1)[0] for prompt in asked(rows)]
    assert together == alone and {g.finish_reason for g in together} == {"stop"}
    scheduler = Scheduler(model)
    heard: list[list[str]] = [[] for _ in rows]
    tickets = [
        scheduler.submit(
            prompt, "parts", max_new_tokens=1, on_text=lambda text, _, i=i: heard[i].append(text)
        )
        for i, prompt in enumerate(asked(rows))
    ]
    assert [t.result.result(30) for t in tickets] == together
    assert heard == [[g.text] for g in together], "each label whole, at once"

    def deaf(*_: object) -> None:
        raise ValueError("nobody listens")

    unheard = scheduler.submit(asked(rows)[0], "parts", max_new_tokens=1, on_text=deaf)
    with pytest.raises(ValueError, match="nobody listens"):
        unheard.result.result(30)
    again = scheduler.submit(asked(rows)[0], "parts", max_new_tokens=1)
    assert again.result.result(30) == together[0]
    scheduler.close()
    assert done == [8, 16, 24, 30]
    tokenizer = bases.load_tokenizer(base())
    assert all(tokenizer.decode(g.token_ids) == g.text for g in together)
    tokens = [len(templates.prompt_ids(tokenizer, prompt, "causal")) for prompt in asked(rows)]
    assert [g.prompt_tokens for g in together] == tokens
    [filled] = model.generate([[{"role": "user", "content": "B1 " * 2000}]], "parts", max_new_tokens=1)
    assert (filled.text, filled.finish_reason) == ("", "length")


def test_it_is_what_peft_and_transformers_make_of_its_folder(labelled: tuple[Artifact, Heard]) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    artifact, rows = labelled[0], held_out(codes(500, 1))[:20]
    tokenizer = bases.load_tokenizer(base())
    whole = AutoModelForSequenceClassification.from_pretrained(
        base(), num_labels=len(PARTS), pad_token_id=tokenizer.pad_token_id, dtype=torch.float32
    )
    theirs = PeftModel.from_pretrained(whole, str(artifact.path)).eval()
    ids = [{"input_ids": templates.prompt_ids(tokenizer, prompt, "causal")} for prompt in asked(rows)]
    with torch.inference_mode():
        logits = theirs(**tokenizer.pad(ids, return_tensors="pt")).logits
    expected = torch.nn.functional.cross_entropy(
        logits, torch.tensor([sorted(PARTS).index(label) for _, label in rows]), reduction="none"
    )
    model = Model(base(), {"parts": artifact.path})
    assert model.loss(asked(rows), [label for _, label in rows], "parts") == pytest.approx(
        expected.tolist(), abs=1e-5
    )
    [unknown] = model.loss(asked(rows[:1]), ["a part nobody taught"], "parts")
    assert 36 < unknown < 37, "as sure as not, and still a number"


def test_every_weight_may_learn_it(tmp_path: Path) -> None:
    train = codes(500, 1)
    artifact = made(spec_of(tmp_path, recipe({"kind": "full"}, learning_rate=2e-3), pairs(train)))
    model = Model(base(), {"parts": artifact.path})
    assert accuracy(model, held_out(train), "parts") > 0.95
    assert json.loads(artifact.file("config.json").read_text("utf-8"))["id2label"]["0"] == "belt"


def test_balance_weighs_the_rare_label(tmp_path: Path) -> None:
    """After a few steps on one alarm among nineteen calm notes, the alarm is already nearer."""
    rows = [
        (f"Unit {i} {'burns' if i % 20 == 0 else 'rests'}.", "alarm" if i % 20 == 0 else "calm")
        for i in range(80)
    ]
    loss: dict[bool, float] = {}
    for balance in (False, True):
        spec = spec_of(tmp_path, recipe(method={"balance": balance}, max_steps=6, batch_size=80), pairs(rows))
        model = Model(base(), {"a": made(spec).path})
        rare = [row for row in rows if row[1] == "alarm"]
        loss[balance] = sum(model.loss(asked(rare), ["alarm"] * len(rare), "a")) / len(rare)
    assert loss[True] < 0.7 * loss[False]


def test_accumulation_learns_what_a_large_batch_learns(tmp_path: Path) -> None:
    curves: list[list[float]] = []
    for batch, accumulation in ((8, 1), (4, 2)):
        heard, method = Heard(), {"balance": True}
        more = {"max_steps": 4, "batch_size": batch, "gradient_accumulation": accumulation}
        made(spec_of(tmp_path, recipe(method=method, **more), pairs(codes(40, 1))), heard)
        curves.append(losses(heard))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def test_validation_leaves_out_labels_that_training_does_not_know(tmp_path: Path) -> None:
    heard = Heard()
    unknown = [("Unit 9 shows Q99.", "a part nobody taught")]
    made(
        spec_of(
            tmp_path, recipe(**SHORT, eval_steps=3), pairs(codes(40, 1)), pairs([*codes(4, 2), *unknown])
        ),
        heard,
    )
    assert losses(heard, "eval_loss")[-1] < 10
    made(spec_of(tmp_path / "b", recipe(**SHORT), pairs(codes(40, 1)), pairs(unknown)), heard)


def test_a_long_prompt_loses_its_beginning_not_what_the_head_reads(tmp_path: Path) -> None:
    rows = [
        (f"Note {i}. {'The unit stands still. ' * 30}It is {word}.", word)
        for i in range(12)
        for word in ("hot", "cold")
    ]
    short = {**SHORT, "max_steps": 16, "batch_size": 16, "max_seq_tokens": 24, "eval_steps": 16}
    heard = Heard()
    artifact = made(spec_of(tmp_path, recipe(**short), pairs(rows[:16]), pairs(rows[16:])), heard)
    assert artifact.attestation["records"]["truncated"] == 16
    assert losses(heard, "eval_accuracy") == [1.0]
    for too_long, said in (("refuse", "16 of 16 records are longer"), ("drop", "none is left")):
        with pytest.raises(InputInvalid, match=said):
            made(spec_of(tmp_path, recipe(**short, too_long=too_long), pairs(rows[:16])))


@pytest.mark.parametrize(
    ("rows", "method", "said"),
    [
        (
            [(f"Unit {i}?", f"It stands in hall {i}.") for i in range(6)],
            {},
            r"6 different answers in 6 records",
        ),
        (
            codes(60, 1),
            {"max_labels": 3},
            r"different answers in \d+ records are free text.*max_labels \(3\)",
        ),
        ([(f"Unit {i}?", "pump") for i in range(6)], {}, "nothing to tell apart"),
    ],
    ids=["an answer each", "too many", "one"],
)
def test_what_is_no_label_is_refused_by_name(
    rows: list[tuple[str, str]], method: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputInvalid, match=said) as refused:
        made(spec_of(tmp_path, recipe(method=method, **SHORT), pairs(rows)))
    assert repr(rows[-1][1]) in str(refused.value) or method


def test_plain_texts_and_other_bases_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputInvalid, match="2 of 42 records are plain texts"):
        made(
            spec_of(tmp_path, recipe(**SHORT), [*pairs(codes(40, 1))[:40], *texts(["It rests.", "It runs."])])
        )
    with pytest.raises(InputInvalid, match=r"causal base.*seq2seq"):
        made(spec_of(tmp_path, recipe(**SHORT), pairs(codes(40, 1)), base_id=T5))


# -- through the whole line ------------------------------------------------------------------------

LINE = """\
name: codes
title: Parts of codes
task: qa
intended_use: Tests of the platform.
people:
  owners: [owen.owner@example.com]
  smes: [sam.expert@example.com]
  rai_reviewers: [rita.responsible@example.com]
  approvers: [alex.approver@example.com]
dataset:
  sources:
    - {name: rows, path: data/rows.jsonl}
base_model: {id: embedded/tiny-causal}
evaluation: {max_new_tokens: 4, max_records: 40}
recipes:
  - name: writes
    training: {max_steps: 2, batch_size: 4, max_seq_tokens: 64}
  - name: labels
    method: classification
    training: {max_steps: 90, batch_size: 16, learning_rate: 0.005, max_seq_tokens: 64}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("easy_policy")
def test_from_rows_to_an_answering_endpoint(
    project_factory: Callable[..., Path], ftaas: Callable[..., Any]
) -> None:
    """A classifier is chosen over a recipe that writes, evaluated, built, deployed and asked."""
    rows = [{"instruction": q, "input": "", "output": label} for q, label in codes(600, 1)]
    project_factory("codes", text=LINE, data=rows)
    try:
        through_every_gate(ftaas)
        store = Store(settings.load().store_path)
        digests = {name: one["digest"] for name, one in states(ftaas).items()}
        evaluation = store.get(digests["evaluation"])
        assert evaluation.content["adapters"]["candidate"] == digests["adapter_labels"]
        systems = evaluation.content["scores"]["sets"]["test"]["systems"]
        assert systems["candidate"]["overall"]["exact_match"]["value"] > 0.9
        assert systems["base"]["overall"]["exact_match"]["value"] == 0.0
        assert systems["candidate"]["overall"]["loss"]["value"] < 0.5
        told = ftaas("ask", "codes", "We see B712.", "--json").json
        assert told["answer"] == TABLE["B7"] and told["adapter_digest"] == digests["adapter_labels"]
        assert [text for text in streamed(ftaas, "We see K533.") if text] == [TABLE["K5"]]
    finally:
        ftaas("deployment", "stop", "codes")


def streamed(ftaas: Callable[..., Any], question: str) -> list[str]:
    """The pieces of an answer as they come."""
    import openai

    found = {d["env"]: d for d in ftaas("deployment", "list", "--json").json["deployments"]}
    client = openai.OpenAI(base_url=f"{found['production']['url']}/v1", api_key="none")
    chunks = client.chat.completions.create(
        model="codes", messages=[{"role": "user", "content": question}], stream=True
    )
    return [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
