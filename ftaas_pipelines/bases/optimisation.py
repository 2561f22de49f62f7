"""The optimiser loop that the bases share."""

# ruff: noqa: TID253 (training code: only make.py and contamination.py load it, inside a function)

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

IGNORED = -100
WARM_UP_STEPS = 100
WEIGHT_DECAY = 0.1
MAX_GRADIENT_NORM = 1.0
REPORT_EVERY = 100


@dataclass(frozen=True)
class Progress:
    """What a training run took, and the mean loss of its last steps by series of batches."""

    steps: int
    cpu_seconds: float
    final_loss: dict[str, float]


def _parameter_groups(model: torch.nn.Module) -> list[dict]:
    """Decay matrices only: decayed embeddings shrink together, and rare tokens lose their identity."""
    groups: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        embedding = any(part in name for part in ("embed_tokens", "shared", "relative_attention_bias"))
        groups[parameter.ndim == 2 and not embedding].append(parameter)
    return [
        {"params": groups[True], "weight_decay": WEIGHT_DECAY},
        {"params": groups[False], "weight_decay": 0.0},
    ]


def _schedule(step: int, steps: int) -> float:
    """Linear warm-up, then a straight line to a twentieth of the rate."""
    if step < WARM_UP_STEPS:
        return (step + 1) / WARM_UP_STEPS
    return 1.0 - 0.95 * (step - WARM_UP_STEPS) / max(1, steps - WARM_UP_STEPS)


def optimise(
    model: torch.nn.Module,
    batches: Iterator[dict],
    *,
    steps: int,
    learning_rate: float,
    series: Sequence[str],
) -> Progress:
    """Run AdamW over the batches; batch ``i`` belongs to series ``i mod len(series)``."""
    optimiser = torch.optim.AdamW(_parameter_groups(model), lr=learning_rate, betas=(0.9, 0.98))
    started = time.process_time()
    recent: dict[str, list[float]] = {name: [] for name in series}
    model.train()
    for step, batch in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * _schedule(step, steps)
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        optimiser.step()
        optimiser.zero_grad()
        recent[series[step % len(series)]].append(loss.item())
        if (step + 1) % REPORT_EVERY == 0:
            means = ", ".join(
                f"{name} {sum(losses[-50:]) / len(losses[-50:]):.3f}"
                for name, losses in recent.items()
                if losses
            )
            print(
                f"step {step + 1}/{steps}: {means}, {time.process_time() - started:.0f} CPU s",
                file=sys.stderr,
            )
    model.eval()
    final = {
        name: round(sum(losses[-50:]) / len(losses[-50:]), 4) for name, losses in recent.items() if losses
    }
    return Progress(steps=steps, cpu_seconds=round(time.process_time() - started, 1), final_loss=final)
