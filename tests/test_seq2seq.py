"""Encoder-decoder fine-tuning: a narrow task is learnt, and label smoothing is what its paper says."""

import random
from pathlib import Path
from typing import Any

import pytest
from recipe_runs import losses, made, pairs, spec_of
from test_training import T5, Heard, base

from ftaas_pipelines.inference import bases, templates
from ftaas_pipelines.inference.decoding import Model

PARTS = ("pump", "belt", "valve", "sensor")


def orders(count: int, seed: int) -> list[tuple[str, str]]:
    """Reports of a code, and the order that answers it: the letter decides the words."""
    draw = random.Random(seed)
    found: set[tuple[str, str]] = set()
    while len(found) < count:
        letter = draw.randrange(4)
        code = f"{'BKTM'[letter]}{draw.randrange(100, 1000)}"
        place = draw.choice(("hall", "line", "bay"))
        found.add((f"{place} {draw.randrange(50)} shows {code}.", f"check the {PARTS[letter]}"))
    return sorted(found)


def recipe(**more: Any) -> dict[str, Any]:
    method = {"kind": "seq2seq", **more.pop("method", {})}
    training = {"max_steps": 120, "batch_size": 16, "learning_rate": 3e-3, "max_seq_tokens": 48, "samples": 0}
    return {"method": method, "adapter": more.pop("adapter", {}), "training": {**training, **more}}


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [{}, {"kind": "full"}], ids=["lora", "full"])
def test_a_t5_learns_orders_it_never_saw(adapter: dict[str, Any], tmp_path: Path) -> None:
    rows = orders(400, 1)
    random.Random(0).shuffle(rows)
    train, held_out = rows[:320], rows[320:]
    heard = Heard()
    spec = spec_of(tmp_path, recipe(adapter=adapter), pairs(train), pairs(held_out[:20]), base_id=T5)
    model = Model(base(T5), {"a": made(spec, heard).path})
    prompts = [[{"role": "user", "content": question}] for question, _ in held_out]

    def exact(name: str | None) -> float:
        said = model.generate(prompts, name, max_new_tokens=12)
        return sum(g.text == answer for g, (_, answer) in zip(said, held_out, strict=True)) / len(held_out)

    assert exact(None) == 0.0
    assert exact("a") > 0.9
    assert losses(heard, "eval_loss")[-1] < 0.02


def test_label_smoothing_spreads_a_share_of_the_target_over_the_vocabulary(tmp_path: Path) -> None:
    """The first loss is the base's own, as B is zero: (1 - e) nll + e mean (Szegedy et al. 2016)."""
    import torch

    rows, smoothing = orders(8, 3), 0.2
    tokenizer, model = bases.load_tokenizer(base(T5)), bases.load_model(base(T5)).eval()
    nll = spread = tokens = 0.0
    for question, answer in rows:
        one = templates.example(
            tokenizer,
            [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            "seq2seq",
            48,
        )
        labels = torch.tensor([one.labels])
        with torch.inference_mode():
            chances = model(input_ids=torch.tensor([one.input_ids]), labels=labels).logits.log_softmax(-1)
        nll -= float(chances.gather(-1, labels[..., None]).sum())
        spread -= float(chances.mean(-1).sum())
        tokens += labels.numel()
    for share in (0.0, smoothing):
        heard = Heard()
        asked = recipe(method={"label_smoothing": share}, max_steps=1, batch_size=8)
        made(spec_of(tmp_path, asked, pairs(rows), base_id=T5), heard)
        expected = ((1 - share) * nll + share * spread) / tokens
        assert losses(heard)[0] == pytest.approx(expected, rel=1e-4)
