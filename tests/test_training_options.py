"""Every option of a training does what it says, and none of them costs exactness."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from recipe_runs import losses, made, pairs, spec_of
from safetensors.torch import load_file
from test_training import Heard, base, faults, finish, stop_after_checkpoint

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.inference.decoding import Model
from ftaas_pipelines.store import Artifact, Store
from ftaas_pipelines.training import save

ROWS = faults(0, 24)
ALL_AT_ONCE = {"max_steps": 3, "batch_size": 24, "learning_rate": 1e-3, "samples": 0}


def run(
    root: Path, method: dict[str, Any] | None = None, validation: Any = (), **training: Any
) -> tuple[Artifact, Heard]:
    heard = Heard()
    asked = {**ALL_AT_ONCE, "eval_steps": 9, "save_steps": 9, **training}
    recipe = {"method": {"kind": "sft", **(method or {})}, "training": asked}
    return made(spec_of(root, recipe, ROWS, validation), heard), heard


def difference(one: Artifact, other: Artifact) -> float:
    first, second = (load_file(a.file("adapter_model.safetensors")) for a in (one, other))
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Heard]:
    return run(tmp_path_factory.mktemp("plain"), validation=faults(1000, 8))


# -- rows in one another's company -----------------------------------------------------------------


@pytest.mark.parametrize(
    "method", [{"packing": "bfd"}, {"padding_free": True}], ids=["packed", "padding free"]
)
def test_without_padding_it_learns_exactly_what_it_learns_with_it(
    method: dict[str, Any], tmp_path: Path, plain: tuple[Artifact, Heard]
) -> None:
    """All rows in each step: the loss and every gradient are those of separate rows."""
    artifact, heard = run(tmp_path, method, validation=faults(1000, 8), max_seq_tokens=128)
    assert losses(heard) == pytest.approx(losses(plain[1]), rel=1e-5)
    assert losses(heard, "eval_loss") == pytest.approx(losses(plain[1], "eval_loss"), rel=1e-5)
    assert difference(artifact, plain[0]) < 1e-5
    if method.get("packing"):
        proved = artifact.attestation["supervision"]
        assert proved["examples"] < len(ROWS) / 3, "several records to a row"
        assert proved["packed_difference"] < 1e-4


def test_wrapped_rows_are_full_and_lose_no_token(tmp_path: Path, plain: tuple[Artifact, Heard]) -> None:
    artifact, heard = run(tmp_path, {"packing": "wrapped"}, max_seq_tokens=64)
    wrapped, separate = artifact.attestation["supervision"], plain[0].attestation["supervision"]
    assert wrapped["tokens"] == separate["tokens"] and wrapped["supervised"] == separate["supervised"]
    assert wrapped["examples"] == -(-separate["tokens"] // 64)
    assert losses(heard)[-1] < losses(heard)[0]


# -- arithmetic ------------------------------------------------------------------------------------


def test_gradient_checkpointing_and_looking_often_change_no_bit(
    tmp_path: Path, plain: tuple[Artifact, Heard]
) -> None:
    spared, _ = run(
        tmp_path,
        validation=faults(1000, 8),
        gradient_checkpointing=True,
        eval_steps=1,
        save_steps=1,
        samples=2,
    )
    assert spared.digest == plain[0].digest
    assert spared.file("beside/samples.jsonl").read_text("utf-8").count("\n") == 2 * 3


def test_attention_may_be_computed_otherwise(tmp_path: Path, plain: tuple[Artifact, Heard]) -> None:
    _, heard = run(tmp_path, attention="eager")
    assert losses(heard) == pytest.approx(losses(plain[1]), rel=1e-5)


def test_bf16_learns_nearly_the_same(tmp_path: Path, plain: tuple[Artifact, Heard]) -> None:
    artifact, heard = run(tmp_path, precision="bf16")
    assert losses(heard) == pytest.approx(losses(plain[1]), rel=0.02)
    weights = load_file(artifact.file("adapter_model.safetensors"))
    assert {str(value.dtype) for value in weights.values()} == {"torch.float32"}


def test_neftune_adds_noise_while_it_learns_and_never_after(
    tmp_path: Path, plain: tuple[Artifact, Heard]
) -> None:
    noisy, heard = run(tmp_path / "a", validation=faults(1000, 8), neftune_alpha=8.0)
    assert abs(losses(heard)[0] - losses(plain[1])[0]) > 0.01, "the first loss has the noise alone"
    assert losses(heard, "eval_loss")[0] == pytest.approx(losses(plain[1], "eval_loss")[0], rel=0.1)
    again, _ = run(tmp_path / "b", validation=faults(1000, 8), neftune_alpha=8.0)
    assert again.digest == noisy.digest != plain[0].digest


@pytest.mark.parametrize(
    "optimizer", ["adamw_torch_fused", "adafactor", "sgd", "adamw_8bit", "lion_8bit", "paged_adamw_8bit"]
)
def test_optimizers_that_a_cpu_has(optimizer: str, tmp_path: Path, plain: tuple[Artifact, Heard]) -> None:
    rate = {"sgd": 0.5, "lion_8bit": 3e-4}.get(optimizer, 1e-3)
    artifact, heard = run(tmp_path, optimizer=optimizer, learning_rate=rate, max_steps=4)
    assert losses(heard)[0] == pytest.approx(losses(plain[1])[0], rel=1e-6)
    assert losses(heard)[-1] < losses(heard)[0] - 0.05
    assert artifact.content["steps"] == 4


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("linear", [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [0.0, 0.5, 1.0, 0.8536, 0.5, 0.1464]),
        ("constant", [1.0] * 6),
        ("constant_with_warmup", [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_schedules(schedule: str, rates: list[float], tmp_path: Path) -> None:
    _, heard = run(tmp_path, schedule=schedule, warmup_steps=2, max_steps=6, batch_size=2)
    assert losses(heard, "learning_rate") == pytest.approx([1e-3 * rate for rate in rates], abs=1e-7)


@pytest.mark.parametrize(
    ("too_long", "records", "truncated"), [("truncate", 25, 1), ("drop", 24, 0), ("refuse", None, None)]
)
def test_what_becomes_of_a_long_example(
    too_long: str, records: int | None, truncated: int | None, tmp_path: Path
) -> None:
    long = pairs([("What does it mean?", "It is hot. " * 40)])
    recipe = {"training": {**ALL_AT_ONCE, "max_steps": 1, "max_seq_tokens": 64, "too_long": too_long}}
    spec = spec_of(tmp_path, recipe, [*ROWS, *long])
    if records is None:
        with pytest.raises(InputInvalid, match="1 of 25 records are longer") as refused:
            made(spec)
        assert long[0]["record_id"] in str(refused.value)
        return
    attested = made(spec).attestation["records"]
    assert (attested["records"], attested["truncated"]) == (records, truncated)
    assert attested["dropped"] == 25 - records


# -- the best weights, and the last step -----------------------------------------------------------

# Validation asks for other answers than are taught: it gets better (the words), then worse (which word).
OTHERS = pairs(
    [
        (f"What does fault E{i % 7} of unit {i} mean?", f"Pump {(i + 3) % 7} is hot.")
        for i in range(1000, 1016)
    ]
)
EARLY = {
    "max_steps": 60,
    "batch_size": 8,
    "learning_rate": 1e-2,
    "schedule": "constant",
    "early_stopping": {"patience": 2},
    "eval_steps": 3,
    "samples": 0,
}


def early(root: Path, **more: Any) -> Any:
    return spec_of(root, {"training": {**EARLY, **more}}, ROWS, OTHERS)


def test_early_stopping_keeps_the_best_weights(tmp_path: Path) -> None:
    heard = Heard()
    artifact = made(early(tmp_path), heard)
    curve = losses(heard, "eval_loss")
    best = curve.index(min(curve))
    assert len(curve) == best + 1 + 2 < 20, "two evaluations without improvement, then the end"
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in OTHERS]
    answers = [row["answer"] for row in OTHERS]
    model = Model(base(), {"a": artifact.path})
    nats = model.loss(prompts, answers, "a")
    assert sum(nats) / len(nats) == pytest.approx(min(curve), rel=0.02)
    assert artifact.content["steps"] == 60, "what was asked for"
    assert max(json.loads(x)["step"] for x in _history(artifact)) == 3 * len(curve)


def _history(artifact: Artifact) -> list[str]:
    return artifact.file("beside/metrics.jsonl").read_text("utf-8").splitlines()


@pytest.mark.parametrize("ends", ["early", "late"])
def test_killed_after_its_last_step_it_makes_the_same_adapter(
    ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left to learn: neither a step too many, nor a second early end."""
    more = {} if ends == "early" else {"max_steps": 6, "early_stopping": None, "save_steps": 6}
    expected = made(early(tmp_path / "a", **more))
    write = save.lora

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(save, "lora", killed)
    spec = early(tmp_path / "b", **more)
    with pytest.raises(KeyboardInterrupt):
        made(spec)
    monkeypatch.setattr(save, "lora", write)
    again = made(spec)
    assert again.digest == expected.digest
    assert again.attestation["resumed_from"] > 0
    assert _history(again)[-1] == _history(expected)[-1]


@pytest.mark.slow
def test_stopped_early_and_killed_before_that_it_is_the_same_adapter(tmp_path: Path) -> None:
    expected = made(early(tmp_path / "a")).digest
    spec = early(tmp_path / "b")
    assert stop_after_checkpoint(spec, tmp_path / "b", 6, signal.SIGKILL) == -signal.SIGKILL
    assert finish(spec, tmp_path / "b", hash_seed=3) == expected
    assert Store(tmp_path / "b").get(expected).attestation["resumed_from"] >= 6
