"""Several processes: what the trainer is told, and how a model in shares becomes whole again."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.errors import InputInvalid, SpecUnusable
from ftaas_pipelines.projects.recipe import Distributed
from ftaas_pipelines.training import ranks

if TYPE_CHECKING:
    from transformers import Trainer


def arguments(asked: Distributed) -> dict[str, Any]:
    """The trainer's arguments for a strategy; none for one process.

    Raises:
        SpecUnusable: the processes are not there; InputInvalid: DeepSpeed is asked for and not installed.
    """
    if ranks.world() != asked.world:
        raise SpecUnusable(
            f"the training wants {asked.world} processes",
            "training.distributed",
            f"{ranks.world()} run",
            "start it with `python -m ftaas_pipelines.stages.ranks train --spec …`, on every node",
        )
    if asked.world == 1:
        return {}
    if asked.strategy == "fsdp2":
        return {"fsdp": True, "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT"}}
    if asked.strategy.startswith("zero"):
        if find_spec("deepspeed") is None:
            raise InputInvalid(
                "DeepSpeed is not installed",
                "training.distributed.strategy",
                asked.strategy,
                "pip install deepspeed into this environment, or take fsdp2, which needs nothing more",
            )
        return {"deepspeed": _zero(int(asked.strategy[-1]))}
    return {"ddp_find_unused_parameters": False}


def _zero(stage: int) -> dict[str, Any]:
    """DeepSpeed's configuration of a ZeRO stage; what the trainer knows already is `auto`."""
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "contiguous_gradients": True}
    if stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True
    batch = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto"},
        "gradient_clipping": "auto",
        **dict.fromkeys(batch, "auto"),
    }


def gathered(trainer: "Trainer", asked: Distributed) -> dict[str, Any] | None:
    """The whole weights by name, where each process holds a share; every rank must call it."""
    if asked.world == 1 or asked.strategy in ("ddp", "zero1", "zero2"):
        return None
    return dict(trainer.accelerator.get_state_dict(trainer.model_wrapped))
