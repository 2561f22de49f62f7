"""Promises of the batching engine: whoever is beside it, and whenever it joins, an answer is the same."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.inference import bases, lora
from ftaas_pipelines.inference.batch import NEAR
from ftaas_pipelines.inference.decoding import Model, Sampling
from ftaas_pipelines.inference.forward import CausalSteps
from ftaas_pipelines.inference.prefixes import Prefixes
from ftaas_pipelines.inference.scheduler import Scheduler

CAUSAL = bases.resolve("embedded/tiny-causal", "main", Path())
T5 = bases.resolve("embedded/tiny-t5", "main", Path())
KINDS: dict[str, dict[str, Any]] = {
    "r4": {"r": 4, "lora_alpha": 8},
    "r8": {"r": 8, "lora_alpha": 12},
    "r16_attention": {"r": 16, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "rslora": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True},
}
QUESTIONS = [
    "What does fault E42 mean?",
    "Line 3 stopped.",
    "Give the code in " + "the very long report about the belt of line seven, " * 4 + "please.",
    "a",
    "Copy: X100",
]


def adapters(folder: Path, base: Path, kinds: dict[str, dict[str, Any]]) -> dict[str, Path]:
    """Random adapters of several kinds."""
    out: dict[str, Path] = {}
    for seed, (name, options) in enumerate(kinds.items()):
        torch.manual_seed(seed)
        given = {"target_modules": "all-linear", "init_lora_weights": False, **options}
        model = get_peft_model(bases.load_model(base), LoraConfig(**given))
        model.save_pretrained(folder / name)
        out[name] = folder / name
    return out


def prompt(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Scheduler]]:
    folder = tmp_path_factory.mktemp("adapters")
    model = Model(CAUSAL, adapters(folder, CAUSAL, KINDS), threads=1)
    scheduler = Scheduler(model, most=6)
    yield model, scheduler
    scheduler.close()


def test_a_plain_adapter_adds_what_peft_adds(tmp_path: Path) -> None:
    from peft import PeftModel

    for base in (CAUSAL, T5):
        kinds = {name: KINDS[name] for name in ("r8", "rslora")}
        if base == CAUSAL:
            kinds["r16_attention"] = KINDS["r16_attention"]
        for name, folder in adapters(tmp_path / base.name, base, kinds).items():
            model: Any = bases.load_model(base)
            found = lora.read(folder, model)
            assert found is not None, name
            ids = torch.arange(5, 25)[None].repeat(3, 1)
            asked = {"input_ids": ids, **({} if base == CAUSAL else {"decoder_input_ids": ids})}
            with torch.inference_mode():
                plain = model(**asked).logits
                bank = lora.Bank(model, found.rank)
                bank.add(name, found)
                bank.choose([name])
                ours = model(**asked).logits
                bank.choose([None, name, name])
                mixed = model(**asked).logits
                bank.choose([])
                assert torch.equal(model(**asked).logits, plain)
                bank.choose([name])
                bank.merge(name)
                merged = model(**asked).logits
                theirs = PeftModel.from_pretrained(bases.load_model(base), folder)(**asked).logits
            scale = theirs.abs().max()
            assert (theirs - plain).abs().max() > 0.01 * scale, "the adapter does nothing"
            for got in (ours, merged, torch.cat([theirs[:1], mixed[1:]])):
                assert (got - theirs).abs().max() < 5e-5 * scale, name
            assert torch.allclose(mixed[:1], plain[:1], atol=1e-5 * float(scale))


def test_answers_do_not_depend_on_who_is_beside_them_or_when_they_join(made: tuple[Model, Scheduler]) -> None:
    model, scheduler = made
    asked = [
        (name, QUESTIONS[i % len(QUESTIONS)], 4 + 7 * (i % 4)) for i, name in enumerate([*KINDS, None] * 5)
    ]
    alone = [
        model.generate([prompt(text)], name, max_new_tokens=room)[0].token_ids for name, text, room in asked
    ]
    tickets: list[Any] = []
    for i, (name, text, room) in enumerate(asked):
        tickets.append(scheduler.submit(prompt(text), name, max_new_tokens=room))
        if i % 3 == 0:
            time.sleep(0.004)  # the others are some steps ahead
    together = [ticket.result.result(60).token_ids for ticket in tickets]
    assert together == alone
    assert max(t.beside for t in tickets) > 1 and all(t.first_token_s > 0 for t in tickets)


def test_all_but_equally_likely_tokens_are_settled_as_if_alone(
    made: tuple[Model, Scheduler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores a thousandth apart from each other, and noise in every batch: what other kernels may do."""
    model, scheduler = made
    plain = CausalSteps.logits

    def flat(steps: CausalSteps) -> torch.Tensor:
        scores = plain(steps) * 2e-4
        if len(scores) > 1:
            scores += torch.rand_like(scores) * NEAR / 2
        return scores

    monkeypatch.setattr(CausalSteps, "logits", flat)
    asked = [(name, text) for text in QUESTIONS for name in ("r4", "r8")]
    alone = [model.generate([prompt(t)], name, max_new_tokens=16)[0].token_ids for name, t in asked]
    tickets = [scheduler.submit(prompt(t), name, max_new_tokens=16) for name, t in asked]
    assert [ticket.result.result(120).token_ids for ticket in tickets] == alone
    for name in ("r4", "r8"):
        mine = [(t, tokens) for (n, t), tokens in zip(asked, alone, strict=True) if n == name]
        together = model.generate([prompt(t) for t, _ in mine], name, max_new_tokens=16)
        assert [g.token_ids for g in together] == [tokens for _, tokens in mine]


def test_sampled_answers_depend_on_their_seed_alone(made: tuple[Model, Scheduler]) -> None:
    model, scheduler = made
    warm = [Sampling(temperature=1.2, top_p=0.9, seed=seed) for seed in (1, 1, 2)]
    tickets = [
        scheduler.submit(prompt("Line 3 stopped."), name, max_new_tokens=12, sampling=sampling)
        for name in ("r4", "r8")
        for sampling in warm
    ]
    texts = [t.result.result(60).text for t in tickets]
    assert texts[0] == texts[1] != texts[2] and texts[3] == texts[4] != texts[5]
    assert (
        texts[0]
        == model.generate([prompt("Line 3 stopped.")], "r4", max_new_tokens=12, sampling=warm[0])[0].text
    )


def test_scores_are_the_models_own(made: tuple[Model, Scheduler]) -> None:
    model, scheduler = made
    asked = Sampling(top_logprobs=3)
    found = scheduler.submit(prompt("Line 3 stopped."), "r8", max_new_tokens=6, sampling=asked).result.result(
        60
    )
    assert found.scores and [s.token for s in found.scores] == found.token_ids
    first = model.first_logits([prompt("Line 3 stopped.")], "r8")[0].log_softmax(-1)
    assert found.scores[0].logprob == pytest.approx(float(first[found.token_ids[0]]), abs=1e-4)
    assert found.scores[0].top[0][0] == found.token_ids[0]
    assert [value for _, value in found.scores[0].top] == pytest.approx(
        first.topk(3).values.tolist(), abs=1e-4
    )


def test_a_beginning_that_was_read_before_changes_no_answer(
    made: tuple[Model, Scheduler], tmp_path: Path
) -> None:
    """Prompts of several adapters with long beginnings in common, whole and in every mixture."""
    plain, _ = made
    model = Model(CAUSAL, adapters(tmp_path, CAUSAL, KINDS), threads=1, prefix_bytes=1 << 24)
    scheduler = Scheduler(model, most=6)
    systems = [
        "You answer operators of plant seven. " * 12,
        "You write reports about the belt. " * 9,
        "Short.",
    ]
    asked = [
        (name, [{"role": "system", "content": system}, *prompt(f"{text} {n}")])
        for n in range(3)
        for name in ("r4", "r8", "dora")
        for system in systems
        for text in ("What does E42 mean?", "Line 3")
    ]
    try:
        tickets = [scheduler.submit(p, name, max_new_tokens=12) for name, p in asked]
        got = [ticket.result.result(60) for ticket in tickets]
        for (name, p), answer in zip(asked, got, strict=True):
            assert answer.token_ids == plain.generate([p], name, max_new_tokens=12)[0].token_ids
        reused = [answer.reused for answer in got]
        assert all(not n or n >= 64 for n in reused) and sum(n > 0 for n in reused) > len(asked) / 3
        for (_, p), n in zip(asked, reused, strict=True):
            assert n == 0 or p[0]["content"] != "Short."
        # What one adapter has read is of no use to another, and goes with it.
        scheduler.between(lambda: model.remove("r4")).result()
        scheduler.between(lambda: model.add("r4", tmp_path / "r4")).result()
        name, p = asked[0]
        again = scheduler.submit(p, name, max_new_tokens=12).result.result(60)
        assert again.reused == 0 and again.token_ids == got[0].token_ids
    finally:
        scheduler.close()


def test_beginnings_keep_within_their_memory() -> None:
    prefixes = Prefixes(limit=3 * 100 * 8)

    def layers(tokens: int) -> list[Any]:
        return [(torch.zeros(1, tokens, 1), torch.zeros(1, tokens, 1))]

    prompts = [[n] * 100 + [7] for n in range(5)]
    for tokens in prompts:
        assert prefixes.worth("a", [*tokens, 1]) == 0  # nothing came before it
        assert prefixes.worth("a", [*tokens, 2]) == 101 and prefixes.worth("b", [*tokens, 3]) == 0
        prefixes.keep("a", tokens[:100], layers(100))
    held = [n for n, tokens in enumerate(prompts) if prefixes.find("a", tokens)]
    assert held == [2, 3, 4]  # the least recently used left
    assert prefixes.find("b", prompts[4]) is None and prefixes.find("a", prompts[4][:100]) is None
    prefixes.keep("a", [9] * 1000, layers(1000))  # larger than all there is
    assert prefixes.find("a", [9] * 1001) is None


def test_encoder_decoders_take_turns(tmp_path: Path) -> None:
    model = Model(T5, adapters(tmp_path, T5, {"r8": KINDS["r8"], "r4": KINDS["r4"]}), threads=1)
    alone = [
        model.generate([prompt(q)], n, max_new_tokens=9)[0] for q in QUESTIONS for n in ("r8", "r4", None)
    ]
    scheduler = Scheduler(model)
    tickets: list[Any] = []
    for question in QUESTIONS:
        tickets += [scheduler.submit(prompt(question), n, max_new_tokens=9) for n in ("r8", "r4", None)]
        time.sleep(0.01)
    assert [t.result.result(60) for t in tickets] == alone
    scheduler.close()


def test_a_cancelled_request_stops_generating_and_the_others_do_not_notice(
    made: tuple[Model, Scheduler],
) -> None:
    model, scheduler = made
    told: list[str] = []
    started = threading.Event()

    def on_text(piece: str, _: int) -> None:
        told.append(piece)
        started.set()

    kept = scheduler.submit(prompt("a"), "r4", max_new_tokens=200)
    given_up = scheduler.submit(prompt("Line 3"), "r8", max_new_tokens=900, on_text=on_text)
    assert started.wait(30)
    given_up.cancel()
    with pytest.raises(CancelledError):
        given_up.result.result()
    assert (
        kept.result.result(60).token_ids
        == model.generate([prompt("a")], "r4", max_new_tokens=200)[0].token_ids
    )
    seen = len(told)
    time.sleep(0.1)
    assert len(told) == seen < 900 and scheduler.running == 0


def test_an_adapter_comes_and_goes_while_others_answer(made: tuple[Model, Scheduler], tmp_path: Path) -> None:
    model, scheduler = made
    folder = adapters(tmp_path, CAUSAL, {"late": {"r": 8, "lora_alpha": 16}})["late"]
    before = model.generate([prompt("a")], "r4", max_new_tokens=150)[0].token_ids
    busy = scheduler.submit(prompt("a"), "r4", max_new_tokens=150)
    scheduler.between(lambda: model.add("late", folder)).result(30)
    late = scheduler.submit(prompt("a"), "late", max_new_tokens=8).result.result(30)
    assert (
        late.token_ids
        == Model(CAUSAL, {"late": folder}).generate([prompt("a")], "late", max_new_tokens=8)[0].token_ids
    )
    scheduler.between(lambda: model.remove("late")).result(30)
    assert busy.result.result(60).token_ids == before
    with pytest.raises(InputInvalid, match="no such adapter"):
        scheduler.submit(prompt("a"), "late", max_new_tokens=8).result.result(30)
    assert scheduler.submit(prompt("a"), "r4", max_new_tokens=150).result.result(60).token_ids == before


def test_what_breaks_one_request_breaks_no_other(made: tuple[Model, Scheduler]) -> None:
    model, scheduler = made
    good = scheduler.submit(prompt("a"), "r4", max_new_tokens=60)
    nobody = scheduler.submit(prompt("a"), "nobody", max_new_tokens=5)
    long = scheduler.submit(prompt("long " * 3000), "r4", max_new_tokens=5)
    with pytest.raises(InputInvalid):
        nobody.result.result(30)
    assert long.result.result(30).token_ids == [] and long.result.result().finish_reason == "length"
    assert (
        good.result.result(60).token_ids
        == model.generate([prompt("a")], "r4", max_new_tokens=60)[0].token_ids
    )
