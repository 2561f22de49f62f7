"""Too little memory for a training: said before it begins where that is known, and with what would fit."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.training import machine
from ftaas_pipelines.training.materials import Materials
from ftaas_pipelines.training.planning import fit, held, memory, quote
from ftaas_pipelines.training.planning import job as jobs
from ftaas_pipelines.training.planning.lengths import of_columns

if TYPE_CHECKING:
    from ftaas_pipelines.training.data import TrainingData

# How PyTorch says it, where it does not raise its OutOfMemoryError.
_SAID = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def require_memory(materials: Materials, data: "TrainingData") -> None:
    """Before anything is loaded: refuse what cannot fit.

    Raises:
        InputInvalid: even the low end of its estimated memory is more than there is; it says what would fit.
    """
    job, longest, have = jobs.of(materials), _longest(materials, data), have_gib()
    needed = memory.peak(job, *longest).gib
    if needed * (1 - quote.UNPROBED) > have:
        raise InputInvalid(
            "the training does not fit into memory",
            "recipes.training",
            f"about {needed:.3g} GiB where there are {have:.3g}",
            fit.in_words(fit.what_fits(job, *longest, have)),
        )


@contextlib.contextmanager
def memory_errors(materials: Materials, data: "TrainingData") -> Iterator[None]:
    """One error for a training that runs out of memory.

    Raises:
        InputInvalid: it did; it says what would fit.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not isinstance(error, MemoryError) and not any(said in str(error) for said in _SAID):
            raise
        job, have = jobs.of(materials), have_gib()
        fits = fit.what_fits(job, *_longest(materials, data), have, needed_gib=have)
        said = (str(error).splitlines() or ["MemoryError"])[0]
        raise InputInvalid(
            "the training ran out of memory",
            "recipes.training",
            f"{have:.3g} GiB{' on the GPU' if job.device == 'cuda' else ''}; {said[:160]}",
            fit.in_words(fits),
        ) from error


def have_gib() -> float:
    """Memory that a training on this machine may fill."""
    found = machine.found()
    if found.device == "cuda":
        return found.gpu_memory_gib - memory.CONTEXT_GIB
    return min(found.memory_gib, held.limit_gib())


def _longest(materials: Materials, data: "TrainingData") -> tuple[int, int]:
    read, written = of_columns(data.train, encoder=materials.inputs.family == "seq2seq")
    return read[-1], written[-1] if written else 0
