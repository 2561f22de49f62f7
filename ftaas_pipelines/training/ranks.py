"""Which of the processes of a training this one is: torchrun says it; alone it is rank 0."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def rank() -> int:
    """This process among all; 0 reports, writes checkpoints and the adapter."""
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """Processes in all."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def first() -> bool:
    return rank() == 0


def together() -> None:
    """Wait until every rank is here."""
    if world() > 1:
        import torch.distributed as dist

        dist.barrier()


def highest(values: "Sequence[int]") -> list[int]:
    """The highest of each value over all ranks: what one of them knows, all of them do."""
    if world() == 1:
        return list(values)
    import torch
    import torch.distributed as dist

    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(list(values), device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [int(value) for value in tensor.tolist()]
