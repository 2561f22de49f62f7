"""What would fit: the smallest changes to a recipe that bring its peak memory below what there is."""

from collections.abc import Iterator
from dataclasses import dataclass

from ftaas_pipelines.training.planning import memory
from ftaas_pipelines.training.planning.job import Job

_ROOM = 0.92  # of the memory: the rest is fragments, and other processes
_SHORTER = (0.75, 0.5, 0.25, 0.125)
_LEAST_TOKENS = 64


@dataclass(frozen=True)
class Fit:
    """A change that fits, in the words of the recipe, and what it takes."""

    says: str
    gib: float


def what_fits(
    job: Job, longest: int, longest_written: int, have_gib: float, needed_gib: float = 0.0
) -> list[Fit]:
    """Changes that fit, the one that changes least first; several levers together where one is not enough.

    Args:
        longest, longest_written: tokens of the longest example, as `memory.peak` takes them.
        have_gib: memory there is.
        needed_gib: what the training is known to need at least: where the formula says less, all it says is
            raised as much.
    """
    said = memory.peak(job, longest, longest_written).gib
    scale = max(1.0, needed_gib / said)
    room = have_gib * _ROOM
    found: list[Fit] = []
    for number, levers in enumerate(_levers(job)):
        for says, other, share in levers:
            tokens, written = max(1, round(longest * share)), round(longest_written * share)
            gib = memory.peak(other, tokens, written).gib * scale
            if gib <= room:
                found.append(Fit(says, gib))
                break
        if found and number >= 3:  # one lever alone would do, or the first combination that does
            break
    return found


def in_words(fits: list[Fit]) -> str:
    """What to do, for an error."""
    if not fits:
        return "take a smaller base or a larger machine: no batch, length, checkpointing or quantisation fits"
    return "; or ".join(f"{fit.says} (about {fit.gib:.3g} GiB)" for fit in fits)


_Lever = tuple[str, Job, float]  # what it says, the job so, and the share of the length


def _levers(job: Job) -> Iterator[list[_Lever]]:
    """Each lever alone, weakest setting first; then all of them together, one after the other."""
    yield list(_batches(job))
    yield [_checkpointed(job, "")] if not job.training.gradient_checkpointing else []
    small = job.lighter()
    yield [(*small, 1.0)] if small else []
    yield list(_lengths(job, ""))
    one = _batched(job, 1)
    spare = "" if job.training.batch_size == 1 else f"{_batch_words(job, 1)} and "
    ckpt = one.with_training(gradient_checkpointing=True)
    yield [_checkpointed(one, spare)]
    words = spare + "gradient_checkpointing: true"
    if small:
        ckpt = _batched(small[1], 1).with_training(gradient_checkpointing=True)
        words += f" and {small[0]}"
        yield [(words, ckpt, 1.0)]
    yield list(_lengths(ckpt, words + " and "))


def _batches(job: Job) -> Iterator[_Lever]:
    size = job.training.batch_size // 2
    while size >= 1:
        yield _batch_words(job, size), _batched(job, size), 1.0
        size //= 2


def _batched(job: Job, size: int) -> Job:
    times = -(-job.training.batch_size // size)
    return job.with_training(
        batch_size=size, gradient_accumulation=job.training.gradient_accumulation * times
    )


def _batch_words(job: Job, size: int) -> str:
    times = -(-job.training.batch_size // size)
    return f"batch_size: {size} with gradient_accumulation: {job.training.gradient_accumulation * times}"


def _checkpointed(job: Job, before: str) -> _Lever:
    return before + "gradient_checkpointing: true", job.with_training(gradient_checkpointing=True), 1.0


def _lengths(job: Job, before: str) -> Iterator[_Lever]:
    for share in _SHORTER:
        tokens = int(job.training.max_seq_tokens * share)
        if tokens >= _LEAST_TOKENS:
            yield f"{before}max_seq_tokens: {tokens}", job, share
