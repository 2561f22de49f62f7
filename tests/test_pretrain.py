"""Continued pre-training: a language nobody wrote becomes predictable, and nothing but texts is learnt."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
from recipe_runs import losses, made, pairs, spec_of, texts
from test_training import Heard, base

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.inference import bases
from ftaas_pipelines.inference.decoding import Model
from ftaas_pipelines.store import Artifact

SUBJECTS = {
    "ur": ("brako", "temilo", "vundo", "kirpo", "salmeto"),
    "in": ("nilura", "posta", "grenka", "defila", "muvra"),
}
VERBS = ("kel", "tirn", "bosk", "vam", "drul")
KINDS = ("plem", "stogi", "ruft", "yall")
OBJECTS = ("hinzet", "corbat", "wupilt", "zamket", "fendrit")


def language(count: int, seed: int) -> list[str]:
    """Sentences of an invented language, whose verbs end by the class of their subject."""
    draw = random.Random(seed)

    def clause() -> str:
        ending = draw.choice(("ur", "in"))
        words = (draw.choice(SUBJECTS[ending]), draw.choice(VERBS) + ending, "ta", draw.choice(KINDS))
        return " ".join((*words, draw.choice(OBJECTS)))

    return [" mo ".join(clause() for _ in range(draw.randrange(1, 4))) + "." for _ in range(count)]


def recipe(packing: str = "wrapped", **training: Any) -> dict[str, Any]:
    asked = {"max_steps": 40, "batch_size": 8, "learning_rate": 5e-3, "max_seq_tokens": 128, "eval_steps": 20}
    return {"method": {"kind": "pretrain", "packing": packing}, "training": {**asked, **training}}


def perplexity(held_out: list[str], artifact: Artifact, adapter: str | None) -> float:
    """Of a token, over texts that nothing was learnt from."""
    model = Model(base(), {"learnt": artifact.path})
    tokenizer = bases.load_tokenizer(base())
    tokens = [len(tokenizer(text)["input_ids"]) for text in held_out]
    nats = model.loss([[] for _ in held_out], held_out, adapter)
    return math.exp(sum(x * n for x, n in zip(nats, tokens, strict=True)) / sum(tokens))


@pytest.mark.parametrize("packing", ["wrapped", "bfd"])
def test_an_invented_language_becomes_predictable(packing: str, tmp_path: Path) -> None:
    heard, held_out = Heard(), language(60, 2)
    spec = spec_of(tmp_path, recipe(packing), texts(language(300, 1)), texts(held_out[:20]))
    artifact = made(spec, heard)
    assert perplexity(held_out, artifact, None) > 500
    assert perplexity(held_out, artifact, "learnt") < 10
    assert losses(heard, "eval_loss")[-1] < losses(heard, "eval_loss")[0] < 5
    assert artifact.content["method"] == "pretrain" and artifact.attestation["records"]["truncated"] == 0


def test_steps_of_epochs_count_the_rows_that_packing_leaves(tmp_path: Path) -> None:
    rows = language(40, 1)
    tokenizer = bases.load_tokenizer(base())
    tokens = sum(len(tokenizer(text)["input_ids"]) + 1 for text in rows)  # each with its end token
    asked = recipe(max_steps=None, epochs=2.0, batch_size=2, max_seq_tokens=64)
    artifact = made(spec_of(tmp_path, asked, texts(rows)))
    assert artifact.content["steps"] == 2 * math.ceil(math.ceil(tokens / 64) / 2)


def test_a_long_text_goes_on_in_the_next_row(tmp_path: Path) -> None:
    """Wrapped, no token is lost; the other ways keep to max_seq_tokens, as the recipe says."""
    long = texts([" mo ".join(language(12, 3)), "Plem."])
    short = {"max_steps": 1, "max_seq_tokens": 16}
    whole = made(spec_of(tmp_path, recipe(**short), long))
    tokenizer = bases.load_tokenizer(base())
    tokens = sum(len(tokenizer(row["answer"])["input_ids"]) + 1 for row in long)
    supervised = whole.attestation["supervision"]
    assert supervised["supervised"] == tokens and supervised["examples"] == math.ceil(tokens / 16)
    cut = made(spec_of(tmp_path, recipe("none", **short), long))
    assert cut.attestation["records"]["truncated"] == 1 and cut.attestation["supervision"]["most"] == 16
    with pytest.raises(InputInvalid, match="1 of 2 records are longer than max_seq_tokens=16"):
        made(spec_of(tmp_path, recipe("none", **short, too_long="refuse"), long))


def test_conversations_are_refused_by_name(tmp_path: Path) -> None:
    [talk] = pairs([("Is it hot?", "No.")])
    with pytest.raises(InputInvalid, match=r"1 of 3 records are none.*use method sft") as refused:
        made(spec_of(tmp_path, recipe(), [*texts(language(2, 1)), talk]))
    assert talk["record_id"] in str(refused.value)
