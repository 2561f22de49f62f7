"""Run a trainer's own passes and leave it as it was: no random number drawn, no gradient, no count."""

import contextlib
import copy
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Trainer

# What the trainers of transformers and TRL count while they compute a loss.
_COUNTED = (
    "_metrics",
    "_stored_metrics",
    "_total_train_tokens",
    "_step",
    "_current_train_step_time",
    "current_gradient_accumulation_steps",
    "current_flos",
)
_OF_STATE = ("num_input_tokens_seen", "total_flos")


@contextlib.contextmanager
def untouched(trainer: "Trainer") -> Iterator[None]:
    """Whatever passes run in here, the training that follows is the one that would have been without them.

    Weights are not kept aside: nothing in here may step an optimizer.
    """
    model: Any = trainer.model
    counts = {name: copy.deepcopy(vars(trainer)[name]) for name in _COUNTED if name in vars(trainer)}
    state = {name: getattr(trainer.state, name) for name in _OF_STATE}
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    synced = trainer.accelerator.gradient_state.sync_gradients
    with _random_kept():
        try:
            yield
        finally:
            (trainer.model_wrapped or model).zero_grad(set_to_none=True)
            model.zero_grad(set_to_none=True)
            for module, training in modes:
                module.training = training
            for buffer, value in buffers:
                buffer.copy_(value)
            for name in _COUNTED:
                if name in counts:
                    setattr(trainer, name, counts[name])
                elif name in vars(trainer):
                    delattr(trainer, name)
            for name, value in state.items():
                setattr(trainer.state, name, value)
            trainer.accelerator.gradient_state._set_sync_gradients(synced)  # pyright: ignore[reportPrivateUsage]


@contextlib.contextmanager
def _random_kept() -> Iterator[None]:
    """Every generator that a training draws from goes on as if nothing had been drawn."""
    import numpy as np
    import torch

    python, numbers, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
