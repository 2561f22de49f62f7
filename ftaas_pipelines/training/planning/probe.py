"""The probe: before step 1, passes of the very training on its longest batches and on some usual ones.

It runs where the trainer has prepared everything (sharded, cast, compiled) and leaves no trace (`untouched`).
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, cast

from ftaas_pipelines.training import ranks
from ftaas_pipelines.training.planning import held, memory
from ftaas_pipelines.training.planning.lengths import IDS, expected_longest
from ftaas_pipelines.training.planning.untouched import untouched

if TYPE_CHECKING:
    from transformers import Trainer

FILE = "probe.json"
CONTRACT = 1
_USUAL = (2, 8)  # usual batches that are tried: at least, at most
_SHARE = 0.005  # of the training that they may take
_LOOP_S = 0.002  # what the trainer does around a step
_LATER_GIB = 0.02  # a process grows on by as much: what checkpoints import, pieces of freed memory
_COPIED = 16_000_000  # numbers of an optimizer that is tried on copies; more are extrapolated
_GIB = 2**30


@dataclass(frozen=True)
class Probed:
    """What the probe measured.

    Attributes:
        pass_s: a usual batch forward and back, collating with it; `longest_s` the longest.
        update_s: clipping and one step of the optimizer.
        evaluation_s: one round of validation loss; `samples_s` one round of sampled answers.
        gib: peak memory, with the optimizer states that were not there yet.
        took_s: what the probe itself cost, and `busy` which part of it this process computed (CPU).
        machine: where it ran: elsewhere it says nothing.
    """

    pass_s: float
    longest_s: float
    update_s: float
    evaluation_s: float
    samples_s: float
    gib: float
    took_s: float
    busy: float
    machine: str
    contract: int = CONTRACT

    def seconds(self, trainer: "Trainer", saving_s: float) -> float:
        """Training time of all steps, and of what stands between them.

        Args:
            saving_s: of writing one checkpoint.
        """
        args, steps = trainer.args, trainer.state.max_steps
        step = args.gradient_accumulation_steps * self.pass_s + self.update_s + _LOOP_S
        evaluations = steps // max(1, round(args.eval_steps or steps)) if self.evaluation_s else 0
        saves = steps // max(1, round(args.save_steps or steps))
        between = evaluations * (self.evaluation_s + self.samples_s) + saves * saving_s
        return self.took_s + steps * step + between


def probe(
    trainer: "Trainer", work: Path, machine: str, rehearse: Callable[[Any], float] | None = None
) -> Probed:
    """Measure a training that is about to begin; what was measured here before is read again.

    Args:
        work: the training's work folder.
        machine: what it runs on, in words.
        rehearse: gives the seconds of one round of sampled answers.
    """
    found = _kept(work, machine)
    [missing] = ranks.highest([int(found is None)])
    if found is not None and not missing:
        return found
    began, worked = time.perf_counter(), time.process_time()
    before = held.peak_gib(_device(trainer))
    with untouched(trainer):
        measured = _measure(trainer, rehearse)
    took, busy = time.perf_counter() - began, time.process_time() - worked
    held.forget(_device(trainer))
    measured = {**measured, "gib": max(measured["gib"], before), "took_s": took}
    agreed = _agreed(measured)
    probed = Probed(busy=round(busy / took, 3), machine=machine, **agreed)  # pyright: ignore[reportArgumentType]
    if ranks.first():
        temporary = work / f".{FILE}"
        temporary.write_text(json.dumps(asdict(probed)), encoding="utf-8")
        temporary.replace(work / FILE)
    return probed


def _kept(work: Path, machine: str) -> Probed | None:
    try:
        said = json.loads((work / FILE).read_text("utf-8"))
        found = Probed(**said)
    except (OSError, ValueError, TypeError):
        return None
    return found if (found.machine, found.contract) == (machine, CONTRACT) else None


def _agreed(measured: dict[str, float]) -> dict[str, float]:
    """The highest of all ranks: the slowest decides, and all must come to one answer."""
    highest = ranks.highest([round(value * 1e9) for value in measured.values()])
    return {name: value / 1e9 for name, value in zip(measured, highest, strict=True)}


def _measure(trainer: "Trainer", rehearse: Callable[[Any], float] | None) -> dict[str, float]:
    device = _device(trainer)
    sizes = row_lengths(trainer.train_dataset)
    size = trainer.args.per_device_train_batch_size
    order = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)
    held.forget(device)
    # Two: the second meets the gradients of the first, as with accumulation it will. It is also the first
    # whose time counts: before, libraries choose their kernels.
    _pass(trainer, order[:size])
    second = order[size : 2 * size] or order[:size]
    longest_s = _pass(trainer, second)
    usual = _usual(trainer, sizes)
    model: Any = trainer.model_wrapped
    model.zero_grad(set_to_none=True)
    evaluation_s = _evaluation(trainer)
    samples_s = 0.0
    if rehearse and ranks.world() == 1:
        model.eval()
        samples_s = rehearse(trainer.model)
    # One peak over all of it: on a CPU what one kind of pass frees is not always what the next one needs.
    gib = held.peak_gib(device) + _states_gib(trainer) + (_LATER_GIB if device == "cpu" else 0.0)
    long_x = max(sizes[i] for i in second) * len(second)
    mean_x = expected_longest(sorted(sizes), size) * min(size, len(sizes))
    return {
        "pass_s": _at(mean_x, usual, (long_x, longest_s)),
        "longest_s": longest_s,
        "update_s": _update(trainer, device),
        "evaluation_s": evaluation_s,
        "samples_s": samples_s,
        "gib": gib,
    }


def row_lengths(dataset: Any) -> list[int]:
    """Tokens of each row, over all its columns of token ids: what a batch is padded to grows with them."""
    columns = [name for name in IDS if name in dataset.column_names and name != "labels"]
    if columns == ["input_ids"] and "labels" in dataset.column_names:
        columns.append("labels")
    total = [0] * len(dataset)
    for name in columns:
        for i, value in enumerate(dataset[name]):
            total[i] += len(value) if isinstance(value, list) else 0
    return total


def _usual(trainer: "Trainer", sizes: Sequence[int]) -> list[tuple[float, float]]:
    """Size and seconds of some batches drawn as the sampler would, by numbers of our own."""
    size, own = trainer.args.per_device_train_batch_size, Random(0)
    passes = trainer.state.max_steps * trainer.args.gradient_accumulation_steps
    count = min(_USUAL[1], max(_USUAL[0], round(passes * _SHARE)))
    [count] = ranks.highest([count])
    found: list[tuple[float, float]] = []
    for _ in range(count):
        rows = own.sample(range(len(sizes)), min(size, len(sizes)))
        found.append((float(max(sizes[i] for i in rows) * len(rows)), _pass(trainer, rows)))
    return found


def _at(x: float, usual: Sequence[tuple[float, float]], longest: tuple[float, float]) -> float:
    """Seconds of a batch of size x: the mean of the usual ones, moved along the line to the longest."""
    mean_x = sum(size for size, _ in usual) / len(usual)
    mean_s = sum(seconds for _, seconds in usual) / len(usual)
    slope = mean_s / max(1.0, mean_x)
    if longest[0] > 1.3 * mean_x and longest[1] > mean_s:
        slope = (longest[1] - mean_s) / (longest[0] - mean_x)
    return max(0.1 * mean_s, mean_s + slope * (x - mean_x))


def _pass(trainer: "Trainer", rows: Sequence[int]) -> float:
    """One batch forward and back; its gradients stay. Returns the seconds, collating with them."""
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    dataset, model = cast(Any, trainer.train_dataset), cast(Any, trainer.model_wrapped)
    began = time.perf_counter()
    inputs = trainer.data_collator([dataset[i] for i in rows])
    trainer.training_step(model, inputs)
    _wait(trainer)
    return time.perf_counter() - began


def _evaluation(trainer: "Trainer") -> float:
    """Seconds of one round of validation loss, from its longest batch, which also shows its memory."""
    dataset: Any = trainer.eval_dataset
    if dataset is None or isinstance(dataset, dict):
        return 0.0
    sizes = row_lengths(dataset)
    size = trainer.args.per_device_eval_batch_size
    rows = sorted(range(len(sizes)), key=sizes.__getitem__, reverse=True)[:size]
    model: Any = trainer.model_wrapped
    began = time.perf_counter()
    model.eval()
    inputs = trainer.data_collator([dataset[i] for i in rows])
    trainer.prediction_step(model, inputs, prediction_loss_only=True)
    _wait(trainer)
    took = time.perf_counter() - began
    share = expected_longest(sorted(sizes), len(rows)) / max(1, sizes[rows[0]])
    return took * share * ceil(len(sizes) / ranks.world()) / len(rows)


def _update(trainer: "Trainer", device: str) -> float:
    """Seconds of clipping and one optimizer step, on copies: the weights stay as they are."""
    import torch

    model: Any = trainer.model
    learns = [p for p in model.parameters() if p.requires_grad]
    total = sum(p.numel() for p in learns)
    if ranks.world() > 1 or not learns:  # in shares: what it moves, at a memory's usual rate
        return total * 32 / (1e12 if device == "cuda" else 5e9) / ranks.world()
    copies: list[Any] = []
    count = 0
    for parameter in learns:
        if copies and count + parameter.numel() > _COPIED:
            break
        copy = torch.nn.Parameter(parameter.detach().clone())
        copy.grad = torch.full_like(copy, 1e-3)
        copies.append(copy)
        count += parameter.numel()
    kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)  # type: ignore[arg-type]
    optimizer = kind(copies, **options)
    optimizer.step()  # makes its states
    _wait(trainer)
    began = time.perf_counter()
    torch.nn.utils.clip_grad_norm_(copies, 1.0)
    optimizer.step()
    _wait(trainer)
    return (time.perf_counter() - began) * max(total / count, len(learns) / len(copies))


def _states_gib(trainer: "Trainer") -> float:
    """Optimizer states that the first step will make; a resumed training has them already."""
    optimizer: Any = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    if getattr(optimizer, "state", None):
        return 0.0
    model: Any = trainer.model
    learns = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return learns * memory.STATES.get(getattr(trainer.args.optim, "value", ""), 8.0) / _GIB


def _device(trainer: "Trainer") -> str:
    return trainer.accelerator.device.type


def _wait(trainer: "Trainer") -> None:
    if _device(trainer) == "cuda":
        import torch

        torch.cuda.synchronize()
