"""What a training will take, before anything is spent: bounds that hold, shapes that grow, words of help."""

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import PROJECT
from hypothesis import given, settings
from hypothesis import strategies as st
from preparing import Silent
from test_training import base, chat, finish, record, write_splits

from assets import quoting
from assets.line import open_line
from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import run as command
from ftaas_pipelines.errors import InputInvalid, Refused
from ftaas_pipelines.inference import bases, templates
from ftaas_pipelines.projects import prices
from ftaas_pipelines.projects.adapter import FullFineTuning, LoRA
from ftaas_pipelines.projects.method import Dpo, Sft
from ftaas_pipelines.projects.project import Budget
from ftaas_pipelines.projects.recipe import Training
from ftaas_pipelines.stages import prepare
from ftaas_pipelines.training.planning import duration, energy, fit, memory, network, quote, tokens
from ftaas_pipelines.training.planning.figure import Figure
from ftaas_pipelines.training.planning.job import Job
from ftaas_pipelines.training.planning.lengths import Lengths, expected_longest
from ftaas_pipelines.training.planning.network import Network, Stack

CAUSAL, T5 = "embedded/tiny-causal", "embedded/tiny-t5"
ROOT = Path(__file__).parents[1]
TABLE = prices.load(ROOT / "policy" / "prices.yaml")
HERE = prices.terms(TABLE, Budget(), cores=2, memory_gib=16)


def job(
    net: Network | None = None,
    adapter: LoRA | FullFineTuning | None = None,
    device: Any = "cpu",
    **training: Any,
) -> Job:
    asked = {"precision": "fp32", "attention": "sdpa", "optimizer": "adamw_torch", **training}
    return Job(Sft(), adapter or LoRA(), Training(**asked), net or network.read(base()), device)


def lengths(rows: int, *each: int) -> Lengths:
    return Lengths(sorted(each), [], 10.0, Figure.exact(rows), min(128, rows // 10))


def llama(layers: int, width: int, inner: int, heads: int, kept: int, words: int) -> Network:
    """A Llama of any shape, as `network.read` would read it."""
    one = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (kept, width),
        "self_attn.v_proj": (kept, width),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (inner, width),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    linears = {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in one.items()}
    body = sum(out * inn for out, inn in linears.values())
    stack = Stack(layers, width, heads, width, kept, inner, gated=True, crossed=False, multiplied=body)
    return Network(stack, None, words, words * width, body + 2 * words * width, 2 * words * width, linears)


EIGHT_BILLION = llama(32, 4096, 14336, 32, 1024, 128256)


# -- the price table -------------------------------------------------------------------------------


def test_the_table_knows_what_a_budget_names_and_says_what_it_does_not() -> None:
    named = prices.terms(TABLE, Budget(hardware="h100-x8", region="eu-north", spot=True), 2, 16)
    dearer = prices.terms(TABLE, Budget(hardware="h100-x8", region="eu-north"), 2, 16)
    assert named.gpus == 8 and named.usd_per_hour < dearer.usd_per_hour
    assert named.carbon_kg_per_kwh < prices.terms(TABLE, Budget(hardware="h100-x8"), 2, 16).carbon_kg_per_kwh
    assert prices.terms(TABLE, Budget(hardware="h100-x8", usd_per_hour=3.0), 2, 16).usd_per_hour == 3.0
    assert HERE.hardware == prices.THIS_MACHINE and HERE.gpus == 0 and HERE.kwh(3600) > 0
    found = prices.terms(TABLE, Budget(), 2, 16, prices.Gpus(2, "NVIDIA H100 80GB HBM3", 79.6))
    assert found.gpus == 2 and found.watts == TABLE.hardware["h100-x1"].watts
    with pytest.raises(InputInvalid, match=r"h100-x8.*budget\.hardware|budget\.hardware.*h100-x8"):
        prices.terms(TABLE, Budget(hardware="abacus"), 2, 16)
    with pytest.raises(InputInvalid, match=r"budget\.region"):
        prices.terms(TABLE, Budget(hardware="h100-x8", region="moon"), 2, 16)


def test_a_wrong_price_table_is_told_by_line(tmp_path: Path) -> None:
    file = tmp_path / "prices.yaml"
    text = (ROOT / "policy" / "prices.yaml").read_text("utf-8")
    file.write_text(text.replace("  us-west: {carbon", "  us-waste: {carbon"), encoding="utf-8")
    with pytest.raises(InputInvalid, match=r"us-west"):
        prices.load(file)
    file.write_text(text.replace("usd_per_hour: 0.71", "usd_per_hour: -1"), encoding="utf-8")
    with pytest.raises(InputInvalid, match=r"prices\.yaml:\d+"):
        prices.load(file)


# -- what grows with what --------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(st.integers(8, 5000), st.integers(1, 5000), st.sampled_from([1, 4, 16]), st.integers(8, 500))
def test_more_rows_are_never_cheaper(rows: int, more: int, batch: int, each: int) -> None:
    # Left to themselves, evaluations come ten a run or one fewer: how often is fixed, not how many.
    work = job(batch_size=batch, epochs=2.0, eval_steps=50, save_steps=50)
    small, large = (quote.quote(work, lengths(n, each), HERE, "estimate") for n in (rows, rows + more))
    for name in ("steps", "tokens", "supervised_tokens", "seconds", "kwh", "co2e_kg"):
        assert small[name].value <= large[name].value, name


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["lora", "full", "dora", "dropout"]),
    st.sampled_from(["fp32", "bf16"]),
    st.booleans(),
    st.integers(1, 64),
    st.integers(8, 2000),
    st.integers(1, 32),
)
def test_memory_grows_with_batch_and_length(
    kind: str, precision: str, checkpointing: bool, batch: int, longest: int, more: int
) -> None:
    adapters = {"full": FullFineTuning(kind="full"), "dora": LoRA(dora=True), "dropout": LoRA(dropout=0.1)}
    work = job(
        adapter=adapters.get(kind),
        batch_size=batch,
        precision=precision,
        gradient_checkpointing=checkpointing,
    )
    here = memory.peak(work, longest).gib * (1 - 1e-9)
    assert here <= memory.peak(work.with_training(batch_size=batch + more), longest).gib
    assert here <= memory.peak(work, longest + more).gib
    assert memory.peak(work.with_training(gradient_checkpointing=True), longest).gib <= here * (1 + 2e-9)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=30), st.integers(1, 8))
def test_the_expected_longest_is_what_drawing_gives(each: list[int], batch: int) -> None:
    ordered = sorted(each)
    exact = expected_longest(ordered, batch)
    assert min(each) - 1e-9 <= exact <= max(each) + 1e-9
    assert exact <= expected_longest(ordered, batch + 1) + 1e-9
    assert expected_longest(ordered, 1) == pytest.approx(sum(each) / len(each))


def test_a_reference_a_pair_and_shards_count() -> None:
    plain = job(EIGHT_BILLION, device="cuda", precision="bf16", batch_size=1, max_steps=90, save_steps=90)
    paired = Job(Dpo(kind="dpo"), LoRA(), plain.training, EIGHT_BILLION, "cuda")
    assert memory.peak(paired, 1000).gib > memory.peak(plain, 1000).gib
    gpu = prices.terms(TABLE, Budget(hardware="h100-x8"), 2, 16)
    seconds = [quote.quote(j, lengths(9, 500), gpu, "estimate")["seconds"].value for j in (plain, paired)]
    assert seconds[1] > 2 * seconds[0], "two sequences, and the reference reads both"
    whole = job(EIGHT_BILLION, FullFineTuning(kind="full"), "cuda", precision="bf16", batch_size=1)
    shares = [
        memory.peak(
            whole.with_training(distributed=whole.training.distributed.model_copy(update=d)), 1000
        ).gib
        for d in ({}, *({"processes": 8, "strategy": s} for s in ("zero1", "zero2", "fsdp2")))
    ]
    assert shares == sorted(shares, reverse=True) and shares[-1] < shares[0] / 4
    quantised = job(EIGHT_BILLION, LoRA(quantise="nf4"), "cuda", precision="bf16", batch_size=1)
    assert memory.peak(quantised, 1000).weights < memory.peak(plain, 1000).weights / 2


# -- the formulas against the libraries ------------------------------------------------------------


def _kept(config: Any, lora: dict[str, Any] | None, seq2seq: bool, checkpointing: bool) -> tuple[int, int]:
    """Bytes that autograd keeps of [2, 96] tokens, logits left out, and the parameters that learn."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    kind = AutoModelForSeq2SeqLM if seq2seq else AutoModelForCausalLM
    model: Any = kind.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    if lora is not None:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", **lora))
    model.train()
    if checkpointing:
        model.enable_input_require_grads()
        model.activation_checkpointing_enable()
    own = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}
    held: list[Any] = []

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            held.append(tensor)
            seen[storage._cdata] = storage.nbytes()
        return tensor

    ids = torch.zeros(2, 96, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(input_ids=ids, labels=ids, use_cache=False)
    learns = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return sum(seen.values()) - 2 * 96 * config.vocab_size * 4, learns


def test_activations_are_what_the_installed_libraries_keep() -> None:
    """No figure of the formula is trusted: the real layers are asked what they keep for the backward pass."""
    from transformers import LlamaConfig, T5Config

    shape = {"hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 8, "num_key_value_heads": 4}
    config = LlamaConfig(num_hidden_layers=3, vocab_size=512, **shape)
    net = llama(3, 256, 704, 8, 128, 512)
    cases: list[tuple[LoRA | FullFineTuning, dict[str, Any] | None]] = [
        (LoRA(), {"r": 8}),
        (LoRA(r=64, alpha=64), {"r": 64}),
        (LoRA(dropout=0.1), {"r": 8, "lora_dropout": 0.1}),
        (FullFineTuning(kind="full"), None),
    ]
    for adapter, lora in cases:
        found, learns = _kept(config, lora, seq2seq=False, checkpointing=False)
        work = job(net, adapter, batch_size=2)
        logits = 12 * 2 * 96 * 512
        said = 2 * memory.left_behind(work, 96) - logits
        assert said == pytest.approx(found, rel=0.1), adapter
        if lora:
            assert net.trained(adapter) == learns
    kept, _ = _kept(config, {"r": 8}, seq2seq=False, checkpointing=True)
    checkpointed = job(net, batch_size=2, gradient_checkpointing=True)
    one_layer = memory.left_behind(job(net, batch_size=2), 96) - memory.left_behind(checkpointed, 96)
    assert kept < 3 * 2 * 96 * 256 * 4 * 1.5 and one_layer > 0
    t5 = T5Config(
        num_layers=2, num_decoder_layers=2, d_model=128, d_ff=384, d_kv=32, num_heads=4, vocab_size=512,
        dropout_rate=0.0, decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    found, _ = _kept(t5, {"r": 8}, seq2seq=True, checkpointing=False)
    small = network.read(base(T5))
    scaled = Network(
        decoder=Stack(2, 128, 4, 128, 128, 384, gated=False, crossed=True, multiplied=0),
        encoder=Stack(2, 128, 4, 128, 128, 384, gated=False, crossed=False, multiplied=0),
        vocabulary=512, output=0, parameters=0, frozen_small=0,
        linears={n: s for n, s in small.linears.items() if ".block.2." not in n},
    )  # fmt: skip
    said = 2 * memory.left_behind(job(scaled, batch_size=2), 96, 96) - 12 * 2 * 96 * 512
    assert said == pytest.approx(found, rel=0.15)


def test_parameters_are_counted_without_reading_weights() -> None:
    from safetensors import safe_open

    for id in (CAUSAL, T5):
        net = network.read(base(id))
        with safe_open(base(id) / "model.safetensors", "pt") as file:
            held = sum(file.get_tensor(name).numel() for name in file.keys())
        assert net.parameters == held and net.trained(FullFineTuning(kind="full")) == held
    assert 7.9e9 < EIGHT_BILLION.parameters < 8.1e9


# -- what would fit --------------------------------------------------------------------------------


def test_what_is_said_to_fit_fits_and_changes_as_little_as_it_can() -> None:
    work = job(EIGHT_BILLION, LoRA(r=16), "cuda", precision="bf16", batch_size=16, max_seq_tokens=4096)
    needs = memory.peak(work, 4096).gib
    assert needs > 79
    found = fit.what_fits(work, 4096, 0, have_gib=79)
    assert found and all(one.gib < 79 for one in found)
    assert found[0].says == "batch_size: 2 with gradient_accumulation: 8"
    assert any(one.says == "gradient_checkpointing: true" for one in found)
    tight = fit.what_fits(work, 4096, 0, have_gib=14)
    assert len(tight) == 1 and "QLoRA" in tight[0].says and "gradient_checkpointing" in tight[0].says
    assert "smaller base" in fit.in_words(fit.what_fits(work, 4096, 0, have_gib=1))
    knows_better = fit.what_fits(work, 4096, 0, have_gib=79, needed_gib=1.5 * needs)
    assert knows_better[0].says == "batch_size: 1 with gradient_accumulation: 16"


# -- tokens ----------------------------------------------------------------------------------------


def test_tokens_are_those_that_are_trained_on(tmp_path: Path) -> None:
    tokenizer = bases.load_tokenizer(base())
    rows = [record(chat(f"What is fault E{i}?" * (1 + i % 5), f"Pump {i} is hot.")) for i in range(40)]
    write_splits(tmp_path, rows, rows[:3])
    found = tokens.of_splits(tmp_path, tokens.Counter(tokenizer, Sft(), "causal", 48))
    taught = [
        templates.example(
            tokenizer, chat(f"What is fault E{i}?" * (1 + i % 5), f"Pump {i} is hot."), "causal", 48
        )
        for i in range(40)
    ]
    assert list(found.tokens) == sorted(len(e.input_ids) for e in taught)
    assert found.supervised == pytest.approx(sum(e.supervised for e in taught) / 40)
    assert found.rows == Figure.exact(40) and found.validation == 3
    pair = record(chat("Which?", "This one."), rejected="That one, which is much longer than the other.")
    write_splits(tmp_path, [pair], [])
    both = tokens.of_splits(tmp_path, tokens.Counter(tokenizer, Dpo(kind="dpo"), "causal", 48))
    assert len(both.tokens) == 2 and both.tokens[0] < both.tokens[1]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".json"])
def test_rows_of_a_large_file_are_counted_about_right(tmp_path: Path, suffix: str) -> None:
    import csv

    from ftaas_pipelines.data.raw import readers

    rows = [{"prompt": f"fault\n{i}", "completion": "hot " * (1 + i % 9)} for i in range(3000)]
    file = tmp_path / f"rows{suffix}"
    with file.open("w", encoding="utf-8", newline="") as out:
        if suffix == ".csv":
            writer = csv.DictWriter(out, ["prompt", "completion"])
            writer.writeheader()
            writer.writerows(rows)
        elif suffix == ".json":
            json.dump(rows, out)
        else:
            out.writelines(json.dumps(row) + "\n" for row in rows)
    assert tokens.row_count(file, readers.look(file), "utf-8") == pytest.approx(3000, rel=0.15)


# -- range, estimate, measured ---------------------------------------------------------------------


def plan(capsys: pytest.CaptureFixture[str], name: str = "codes") -> dict[str, Any]:
    command.run(name, until="", wait=0, plan=True, as_json=True)
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_the_range_holds_the_estimate_and_both_hold_what_comes(
    project_factory: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = project_factory("codes")
    ranged = plan(capsys)["quotes"]["adapter_lora"]
    assert ranged["basis"] == "range" and ranged["hardware"] == prices.THIS_MACHINE
    line = open_line("codes", configuration.load())
    prepare.make(line.dataset_spec(), line.store, Silent())
    line = open_line("codes", configuration.load())
    prepare.make(line.splits_spec(), line.store, Silent())
    estimated = plan(capsys)["quotes"]["adapter_lora"]
    assert estimated["basis"] == "estimate"
    for name in ("supervised_tokens", "tokens", "steps", "memory_gib", "seconds", "kwh", "co2e_kg"):
        assert ranged[name]["low"] <= estimated[name]["value"] <= ranged[name]["high"], name
    line = open_line("codes", configuration.load())
    spec = line.adapter_spec(line.project.recipes[0], experiment=True)
    attested = line.store.get(finish(spec, tmp_path / "stage", hash_seed=1)).attestation
    actual, probed = attested["actual"], attested["quote"]
    assert probed["basis"] == "probed"
    for quoted in (ranged, estimated, probed):
        for name in ("steps", "memory_gib"):
            assert quoted[name]["low"] <= actual[name] <= quoted[name]["high"], (quoted["basis"], name)
    # Four batches of four are a small sample of lengths: one in ten either way.
    assert actual["tokens"] == pytest.approx(estimated["tokens"]["value"], rel=0.1)
    assert actual["kwh"] > 0 and actual["co2e_kg"] == pytest.approx(actual["kwh"] * 0.45, rel=1e-3)

    document = yaml.safe_load(path.read_text("utf-8")) | {"budget": {"kwh": 1e-12, "usd": 5.0}}
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(Refused, match=r"budget\.kwh.*1e-12 may be spent") as refused:
        quoting.check(quoting.Quoting(open_line("codes", configuration.load())).quotes(["adapter_lora"]),
                      {"kwh": 1e-12, "usd": 5.0})  # fmt: skip
    assert refused.value.exit_code == 3 and len(refused.value.problems) == 1


def test_the_plan_shows_a_table_and_refuses_a_budget_that_cannot_do(
    project_factory: Callable[..., Path], ftaas: Callable[..., Any]
) -> None:
    project_factory("codes", extra="budget: {hardware: h100-x1, region: eu-west, usd: 0.0000001}\n")
    done = ftaas("run", "codes", "--plan")
    assert done.code == 3
    assert "adapter_lora" in done.stdout and "range" in done.stdout and "h100-x1 in eu-west" in done.stdout
    assert "budget.usd" in done.stderr and "USD" in done.stderr
    sold = """- name: lora
    provider: {kind: openai, base_model: m, api_key: "env:KEY", usd_per_million_tokens: 25.0}"""
    bought = PROJECT.format(name="bought", title="bought").replace("- name: lora", sold)
    project_factory("bought", text=bought + "  - name: own\nbudget: {usd: 0.0001}\n")
    line = open_line("bought", configuration.load())
    with pytest.raises(Refused, match=r"budget\.usd: adapter_lora would break"):
        quoting.require_affordable(line, line.project.recipe("lora"))
    quoting.require_affordable(line, line.project.recipe("own"))
    project_factory("lost", extra="budget: {hardware: abacus}\n")
    with pytest.raises(InputInvalid, match=r"budget\.hardware.*abacus.*use one of cpu-16"):
        command.run("lost", until="", wait=0, plan=True, as_json=True)


def test_settings_name_the_price_table(home: Path) -> None:
    assert configuration.load().price_table == Path(os.environ["FTAAS_PRICES"])
    beside = configuration.load({"FTAAS_POLICY": "elsewhere/policy.yaml"})
    assert beside.price_table == Path("elsewhere/prices.yaml")


# -- energy ----------------------------------------------------------------------------------------


def test_codecarbon_measures_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a meter it guesses from load, which says that the wrapper works; RAPL and NVML it knows."""

    def no(*_: Any) -> None:
        raise AssertionError("reached for the network")

    monkeypatch.setattr(socket, "create_connection", no)
    meter = energy.Meter("load", pue=1.0)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        sum(range(10_000))
    meter.stop()
    first = meter.kwh()
    assert 0 < first < 0.01 and meter.kwh() == first, "it stands still once it is stopped"


def test_a_pace_is_measured_in_a_moment() -> None:
    duration.this_cpu.cache_clear()
    began = time.perf_counter()
    found = duration.this_cpu(1)
    assert time.perf_counter() - began < 5
    assert found.flops > 1e9 and found.bytes > 1e8 and 1e-8 < found.call_s < 1e-4
    assert duration.this_cpu(2).flops > found.flops
