"""A recipe made definite: every `auto`, and whatever depends on data, base or machine, written out. Pure.

What is written here is part of the adapter's input digest, so two ways of asking for the same are one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ftaas_pipelines.projects.adapter import Adapter, FullFineTuning
from ftaas_pipelines.projects.method import Method, Seq2Seq, Sft
from ftaas_pipelines.projects.recipe import Recipe, Training
from ftaas_pipelines.training import plan
from ftaas_pipelines.training.machine import Machine


@dataclass(frozen=True)
class Resolved:
    """What a recipe comes to on some data, base and machine."""

    method: Method
    adapter: Adapter
    training: Training


def resolve(
    recipe: Recipe, counts: Mapping[str, int], family: str, machine: Machine, before: Adapter | None = None
) -> Resolved:
    """The recipe with every default written in.

    Args:
        counts: records of each split.
        family: of the base: causal, seq2seq or vision.
        before: the adapter section of the recipe that this one goes on with, which it takes over where it
            names none of its own.
    """
    adapter = before if before and "adapter" not in recipe.model_fields_set else recipe.adapter
    how, asked = method(recipe.method, family), recipe.training
    # How many rows packing leaves, (kto) how many answers pairs hold, or what some sources bring is known
    # once the records are read: the stage works the steps out then.
    later = how.kind == "kto" or getattr(how, "packing", "none") != "none" or bool(recipe.sources)
    examples = plan.examples_of(how, counts["train"])
    steps = asked if later and asked.max_steps is None else plan.resolve_training(asked, examples)
    return Resolved(how, adapter, training(steps, adapter, machine))


def method(asked: Method, family: str) -> Method:
    """Supervised fine-tuning of an encoder-decoder is `seq2seq`, whatever it was called."""
    return Seq2Seq(kind="seq2seq") if family == "seq2seq" and asked == Sft() else asked


def training(asked: Training, adapter: Adapter, machine: Machine) -> Training:
    """The training on this machine: precision, attention and optimizer, and steps that fit each other."""
    gpu = machine.device == "cuda"
    fitted = {
        "precision": asked.precision
        if asked.precision != "auto"
        else ("bf16" if gpu and machine.bf16 else "fp32"),
        "attention": asked.attention if asked.attention != "auto" else "sdpa",
        "optimizer": asked.optimizer if asked.optimizer != "auto" else _optimizer(gpu, adapter),
    }
    return asked.model_copy(update=fitted)


def _optimizer(gpu: bool, adapter: Adapter) -> str:
    if gpu and not isinstance(adapter, FullFineTuning) and adapter.quantise:
        return "paged_adamw_8bit"
    return "adamw_torch_fused"
