"""Tokens per second of a Llama-3-8B-shaped model with random weights on one GPU, by the stage's own trainer.

LoRA r 16 on every linear layer, bf16, 4096 tokens a row, no padding. Printed beside it: the card's measured
bf16 matrix rate, and the fraction of it that the training achieved (4 FLOPs a frozen weight and token, whose
own gradient is never taken; attention added).
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from ftaas_pipelines.inference import bases

BOUND = 12_500  # tokens per second; NVIDIA publishes 12,473 for NeMo AutoModel on an H100
TOKENS, STEPS, WARM_UP = 4096, 24, 8
CHOICES: tuple[dict[str, Any], ...] = (
    {"batch_size": 4, "gradient_checkpointing": False},
    {"batch_size": 2, "gradient_checkpointing": False},
    {"batch_size": 1, "gradient_checkpointing": False},
    {"batch_size": 4, "gradient_checkpointing": True},
)
SHAPE = {
    "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    "rope_theta": 500_000.0,
}  # fmt: skip


def figures(folder: Path) -> list[tuple[str, str, str, bool]]:
    """The best of a few batch sizes, beside the bound."""
    import torch

    base = make_base(folder / "llama-8b-shape")
    peak = matrix_rate()
    name = torch.cuda.get_device_name()
    seen: list[tuple[float, str]] = []
    for choice in CHOICES:
        try:
            rate, memory = tokens_per_second(base, folder / "work", **choice)
        except torch.OutOfMemoryError:
            print(f"{choice}: out of memory")
            continue
        finally:
            shutil.rmtree(folder / "work", ignore_errors=True)
            torch.cuda.empty_cache()
        share = rate * flops_per_token() / peak
        card = f"{share:.0%} of {peak / 1e12:.0f} measured TFLOPS, {memory:.0f} GiB"
        text = f"{rate:,.0f} tokens/s, {card}, {choice}"
        print(text)
        seen.append((rate, text))
    best, text = max(seen, default=(0.0, "nothing fitted"))
    return [
        (
            f"8B shape, LoRA, bf16, {TOKENS} tokens on {name}: {text}",
            f"{best:,.0f}",
            f">= {BOUND:,}",
            best >= BOUND,
        )
    ]


def make_base(folder: Path) -> Path:
    """A folder with random weights in bf16 of Llama 3 8B's shape, and the embedded base's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = bases.resolve("embedded/tiny-causal", "main", folder.parent)
    for file in bases.tokenizer_files(tokenizer):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / file.name)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, dtype="bfloat16"))
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, max_shard_size="5GB")
    del model
    torch.cuda.empty_cache()
    return folder


def matrix_rate(size: int = 8192, seconds: float = 2.0) -> float:
    """FLOPs per second of a bf16 matrix product of `size` on this card."""
    import torch

    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(5):
        a @ b
    torch.cuda.synchronize()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        for _ in range(10):
            a @ b
        torch.cuda.synchronize()
        done += 10
    return done * 2 * size**3 / (time.perf_counter() - began)


def flops_per_token() -> float:
    """FLOPs of one training token: 2 forward and 2 backward a frozen weight, and attention."""
    hidden, inner, layers = SHAPE["hidden_size"], SHAPE["intermediate_size"], SHAPE["num_hidden_layers"]
    heads = SHAPE["num_key_value_heads"] / SHAPE["num_attention_heads"]
    weights = layers * (hidden * hidden * (2 + 2 * heads) + 3 * hidden * inner) + hidden * SHAPE["vocab_size"]
    attention = layers * 2 * 2 * hidden * TOKENS / 2
    return float(4 * weights + 3 * attention)


def tokens_per_second(base: Path, work: Path, **choice: Any) -> tuple[float, float]:
    """Rate and peak memory (GiB) of the stage's own trainer, over the steps after the warm-up."""
    import torch
    from datasets import Dataset

    from ftaas_pipelines.projects.adapter import LoRA
    from ftaas_pipelines.projects.method import Sft
    from ftaas_pipelines.projects.recipe import Recipe, Training
    from ftaas_pipelines.training import data, machine, plan, run
    from ftaas_pipelines.training.inputs import TrainInputs
    from ftaas_pipelines.training.materials import Materials
    from ftaas_pipelines.training.methods import sft
    from ftaas_pipelines.training.resolve import resolve

    rare = {"eval_steps": STEPS, "save_steps": STEPS, "samples": 0}
    asked = Training(max_steps=STEPS, max_seq_tokens=TOKENS, **rare, **choice)
    recipe = Recipe(name="lora", adapter=LoRA(r=16, alpha=32), training=asked)
    how = resolve(recipe, {"train": 4096}, "causal", machine.found())
    inputs = TrainInputs(
        splits="0" * 64,
        base="0" * 64,
        family="causal",
        method=Sft(),
        adapter=how.adapter,
        training=how.training,
        threads=8,
    )
    materials = Materials(inputs, base, base).with_tokenizer()
    run.prepare(8)
    torch.manual_seed(0)
    ids = torch.randint(0, 4000, (asked.batch_size * STEPS, TOKENS)).tolist()
    rows = Dataset.from_dict({"input_ids": ids, "labels": ids, data.ROW: list(range(len(ids)))})
    found = data.TrainingData(rows, None, [str(i) for i in range(len(ids))])
    model = run.model_of(materials, sft)
    times: list[float] = []
    trainer = run.trainer_of(materials, sft, model, found, work, [_clock(times)])
    trainer.args.save_strategy = "no"
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    assert plan.VALIDATION_ROWS and len(times) == STEPS
    seconds = times[-1] - times[WARM_UP - 1]
    memory = torch.cuda.max_memory_allocated() / 2**30
    print(json.dumps({"loss": trainer.state.log_history[0].get("loss")}))
    return asked.batch_size * TOKENS * (STEPS - WARM_UP) / seconds, memory


def _clock(times: list[float]) -> Any:
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            torch.cuda.synchronize()
            times.append(time.perf_counter())

    return Clock()
