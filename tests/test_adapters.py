"""Every kind of adapter: made again it is the same, and beside the plain base it is what was trained."""

import json
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from recipe_runs import made, pairs, spec_of
from safetensors.torch import load_file, save_file
from test_training import T5, base, faults, finish, stop_after_checkpoint

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.inference import bases
from ftaas_pipelines.inference.decoding import Model
from ftaas_pipelines.projects.adapter import FullFineTuning, LoRA
from ftaas_pipelines.store import Artifact, Store
from ftaas_pipelines.training import adapters, save

PLAIN: dict[str, LoRA] = {
    "lora": LoRA(),
    "dora": LoRA(dora=True),
    "rslora": LoRA(rslora=True),
    "plus": LoRA(plus_ratio=16.0),
    "embeddings": LoRA(embeddings=True),
    "named": LoRA(target_modules=["q_proj", "v_proj"], r=4),
    "dropout": LoRA(dropout=0.2),
}
FROM_THE_BASE = {"pissa": LoRA(init="pissa"), "olora": LoRA(init="olora")}
QUANTISED = {
    "nf4": LoRA(quantise="nf4"),
    "nf4 single": LoRA(quantise="nf4", double_quantise=False),
    "nf4 dora": LoRA(quantise="nf4", dora=True),
    "int8": LoRA(quantise="int8"),
}
ALL = {**PLAIN, **FROM_THE_BASE, **QUANTISED}
SHORT = {
    "max_steps": 4,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "samples": 0,
    "eval_steps": 9,
    "save_steps": 9,
}
LONG = {**SHORT, "max_steps": 30, "save_steps": 4}
ROWS = faults(0, 24)
IDS = [[4, 10, 20, 30, 500, 600, 70], [9, 8, 7, 6, 5, 44, 33]]
Trained = tuple[Artifact, Any]  # and the logits of the model that was trained


def logits(model: Any) -> Any:
    import torch

    model.eval()
    with torch.inference_mode():
        return model(torch.tensor(IDS)).logits.float()


def opened(folder: Path, of: Path | None = None, **options: Any) -> Any:
    """The artifact beside its base, as anybody opens it."""
    from peft import PeftModel

    return PeftModel.from_pretrained(bases.load_model(of or base(), **options), str(folder))


def apart(one: Any, other: Any) -> float:
    return float((one - other).abs().max())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Trains a variant, once."""
    root = tmp_path_factory.mktemp("adapters")

    @cache
    def train(name: str) -> Trained:
        seen: list[Any] = []
        write = save.lora

        def look(model: Any, *more: Any, **options: Any) -> None:
            seen.append(logits(model))
            write(model, *more, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(save, "lora", look)
            artifact = made(
                spec_of(root / name, {"adapter": ALL[name].model_dump(), "training": SHORT}, ROWS)
            )
        return artifact, seen[0]

    return train


@pytest.mark.parametrize("name", [*PLAIN, *FROM_THE_BASE])
def test_beside_the_plain_base_it_is_what_was_trained(name: str, trained: Callable[[str], Trained]) -> None:
    artifact, expected = trained(name)
    model = opened(artifact.path)
    assert apart(logits(model), expected) < (1e-4 if name in FROM_THE_BASE else 1e-6)
    with model.disable_adapter():
        assert apart(logits(model), logits(bases.load_model(base()))) == 0.0
        assert apart(logits(model), expected) > 0.01, "it learnt something"
    config = json.loads(artifact.file("adapter_config.json").read_text("utf-8"))
    assert config["init_lora_weights"] is True
    assert config["r"] == (16 if name in FROM_THE_BASE else ALL[name].r)


@pytest.mark.parametrize("name", QUANTISED)
def test_beside_a_base_quantised_alike_it_is_what_was_trained(
    name: str, trained: Callable[[str], Trained]
) -> None:
    """The plain base, which is what is served, differs by what quantising it took away."""
    import torch
    from transformers import BitsAndBytesConfig

    artifact, expected = trained(name)
    if name == "int8":
        alike = BitsAndBytesConfig(load_in_8bit=True)
    else:
        alike = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=ALL[name].double_quantise,
            bnb_4bit_compute_dtype=torch.float32,
        )
    model = opened(artifact.path, quantization_config=alike)
    for module in model.modules():  # as in training: the layout that AVX512-BF16 likes rounds further
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    assert apart(logits(model), expected) < 1e-5
    served, plain = logits(opened(artifact.path)), logits(bases.load_model(base()))
    with model.disable_adapter():
        taken = apart(logits(model), plain)
    assert 0 < apart(served, expected) < 1.5 * taken
    assert {value.dtype for value in _weights(artifact).values()} == {torch.float32}


def _weights(artifact: Artifact) -> dict[str, Any]:
    return load_file(artifact.file("adapter_model.safetensors"))


def test_looking_at_a_quantised_model_while_it_learns_changes_nothing(
    tmp_path: Path, trained: Callable[[str], Trained]
) -> None:
    """bitsandbytes packs weights at the first evaluation, and they take no gradient from then on."""
    often = {
        "adapter": QUANTISED["nf4"].model_dump(),
        "training": {**SHORT, "eval_steps": 1, "save_steps": 1},
    }
    looked_at = made(spec_of(tmp_path, often, ROWS, faults(1000, 4)))
    assert apart_most(_weights(looked_at), _weights(trained("nf4")[0])) == 0.0


def apart_most(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert one.keys() == other.keys()
    return max(apart(one[name], other[name]) for name in one)


def test_loraplus_moves_b_so_many_times_as_fast(tmp_path: Path) -> None:
    """Adam's first step is the learning rate itself, and B begins at zero."""
    moved: dict[float | None, float] = {}
    for ratio in (None, 16.0):
        adapter = LoRA(plus_ratio=ratio).model_dump()
        recipe = {"adapter": adapter, "training": {**SHORT, "max_steps": 1, "learning_rate": 1e-3}}
        weights = _weights(made(spec_of(tmp_path, recipe, ROWS)))
        moved[ratio] = max(float(value.abs().max()) for name, value in weights.items() if ".lora_B." in name)
    assert moved[None] == pytest.approx(1e-3, rel=0.01)
    assert moved[16.0] == pytest.approx(16e-3, rel=0.01)


def test_many_kinds_share_one_base_and_none_disturbs_another(
    tmp_path: Path, trained: Callable[[str], Trained]
) -> None:
    labels = pairs([(f"Code {'AB'[i % 2]}{i}?", ("pump", "belt")[i % 2]) for i in range(12)])
    classifier = {
        "method": "classification",
        "adapter": {"dora": True, "embeddings": True},
        "training": SHORT,
    }
    folders = {name.replace(" ", "_"): trained(name)[0].path for name in ALL}
    folders["labels"] = made(spec_of(tmp_path, classifier, labels)).path
    prompts = [[{"role": "user", "content": f"What does fault E{i} of unit {i} mean?"}] for i in range(5)]
    together = Model(base(), folders)
    for name, folder in folders.items():
        alone = Model(base(), {name: folder})
        if name == "labels":
            expected = alone.loss(prompts, ["pump"] * 5, name)
            assert together.loss(prompts, ["pump"] * 5, name) == pytest.approx(expected, abs=1e-5)
        else:
            assert apart(together.first_logits(prompts, name), alone.first_logits(prompts, name)) < 1e-5, name
    plain = Model(base()).first_logits(prompts)
    assert apart(together.first_logits(prompts), plain) < 1e-5
    for name in folders:
        together.remove(name)
        rest = [n for n in folders if n in together.adapters and n != "labels"]
        if rest:
            assert apart(together.first_logits(prompts, rest[0]), plain) > 1e-4
        assert apart(together.first_logits(prompts), plain) < 1e-5
    together.add("embeddings", folders["embeddings"])
    alone = Model(base(), {"embeddings": folders["embeddings"]})
    again = together.first_logits(prompts, "embeddings")
    assert apart(again, alone.first_logits(prompts, "embeddings")) < 1e-5


def test_tied_embeddings_stay_tied(tmp_path: Path) -> None:
    folder = tmp_path / "tied"
    shutil.copytree(base(), folder)
    config = json.loads((folder / "config.json").read_text("utf-8")) | {"tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    adapter = LoRA(embeddings=True)
    model = adapters.attach(bases.load_model(folder), adapter, "CAUSAL_LM")
    embeddings = model.get_input_embeddings().modules_to_save["default"]
    embeddings.weight.data *= 1.1
    assert model.get_output_embeddings().weight is embeddings.weight
    (tmp_path / "adapter").mkdir()
    save.lora(model, "0" * 64, tmp_path / "adapter")
    assert apart(logits(opened(tmp_path / "adapter", of=folder)), logits(model)) == 0.0
    ids = [[{"role": "user", "content": "What does fault E1 of unit 1 mean?"}]]
    engine = Model(folder, {"a": tmp_path / "adapter"})
    assert apart(engine.first_logits(ids, "a"), engine.first_logits(ids)) > 0.01
    with pytest.raises(InputInvalid, match=r"adapter\.embeddings.*T5ForConditionalGeneration"):
        adapters.attach(bases.load_model(base(T5)), adapter, "SEQ_2_SEQ_LM")


# -- going on from one another ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora", "dora", "pissa", "embeddings"])
def test_a_recipe_goes_on_where_the_one_before_it_ended(name: str, trained: Callable[[str], Trained]) -> None:
    artifact, _ = trained(name)
    going_on = adapters.attach(bases.load_model(base()), ALL[name], "CAUSAL_LM", init_from=artifact.path)
    assert apart(logits(going_on), logits(opened(artifact.path))) == 0.0
    assert adapters.start(going_on) is None, "its base was not changed"


@pytest.mark.parametrize(
    ("before", "adapter", "said"),
    [
        ("lora", LoRA(r=4), r"adapter\.r.*4, not 8"),
        ("lora", LoRA(dora=True), r"adapter\.dora"),
        ("named", LoRA(r=4), r"target_modules"),
        ("lora", LoRA(target_modules=["q_proj"]), r"target_modules"),
        ("embeddings", LoRA(), r"adapter\.embeddings"),
    ],
    ids=["rank", "dora", "more layers", "fewer layers", "embeddings"],
)
def test_an_adapter_of_another_shape_is_refused(
    before: str, adapter: LoRA, said: str, trained: Callable[[str], Trained]
) -> None:
    folder = trained(before)[0].path
    with pytest.raises(InputInvalid, match=said):
        adapters.attach(bases.load_model(base()), adapter, "CAUSAL_LM", init_from=folder)


def test_a_low_rank_adapter_cannot_stand_on_a_model_that_is_not_served(tmp_path: Path) -> None:
    whole = made(spec_of(tmp_path, {"adapter": {"kind": "full"}, "training": SHORT}, ROWS))
    with pytest.raises(InputInvalid, match="served beside the plain base"):
        adapters.attach(bases.load_model(base()), LoRA(), "CAUSAL_LM", init_from=whole.path)
    model = adapters.attach(bases.load_model(whole.path), FullFineTuning(kind="full"), "CAUSAL_LM")
    assert apart(logits(model), logits(bases.load_model(base()))) > 0.01


def test_full_fine_tuning_goes_on_from_a_merged_adapter(trained: Callable[[str], Trained]) -> None:
    folder = trained("dora")[0].path
    merged = adapters.attach(
        bases.load_model(base()), FullFineTuning(kind="full"), "CAUSAL_LM", init_from=folder
    )
    assert apart(logits(merged), logits(opened(folder))) < 1e-4
    assert all(p.requires_grad for p in merged.parameters())


def test_dora_names_a_layer_that_has_no_direction() -> None:
    with pytest.raises(InputInvalid, match=r"rows of zeros.*layers\.0\.self_attn\.q_proj"):
        adapters.attach(bases.load_model(base()), LoRA(dora=True, target_modules=["q_proj"]), "CAUSAL_LM")


# -- made again ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pissa", "plus", "dora"])
def test_killed_it_still_makes_the_same_adapter(name: str, tmp_path: Path) -> None:
    """Another process, another hash seed, kill -9 in the middle: the digest of an undisturbed run."""
    recipe = {"adapter": ALL[name].model_dump(), "training": LONG}
    expected = made(spec_of(tmp_path / "a", recipe, ROWS)).digest
    spec = spec_of(tmp_path / "b", recipe, ROWS)
    assert stop_after_checkpoint(spec, tmp_path / "b", 8, signal.SIGKILL) == -signal.SIGKILL
    assert finish(spec, tmp_path / "b", hash_seed=2) == expected
    assert Store(tmp_path / "b").get(expected).attestation["resumed_from"] >= 8
