"""One training from its inputs to trained weights: seeded, resumable, within its time."""

import contextlib
import errno
import logging
import shutil
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ftaas_pipelines.errors import Interrupted, Refused
from ftaas_pipelines.inference import bases, process
from ftaas_pipelines.projects.project import Training
from ftaas_pipelines.training import checkpoints, data, plan
from ftaas_pipelines.training.inputs import TrainInputs

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

    from ftaas_pipelines.training.callbacks import Report


_FULL_BYTES = 1 << 20


@dataclass(frozen=True)
class Trained:
    """What came out of a training.

    Attributes:
        history: one entry a log: step, loss, eval_loss, learning_rate, grad_norm, …
        seconds: training time over all attempts.
        resumed_from: the step of the checkpoint it went on from, 0 for none.
        truncated: training records cut at `max_seq_tokens`.
    """

    model: "PreTrainedModel | PeftModel"
    tokenizer: "PreTrainedTokenizerBase"
    history: list[dict[str, Any]]
    trainable_parameters: int
    seconds: float
    resumed_from: int
    truncated: int


def train(
    inputs: TrainInputs,
    splits: Path,
    base_path: Path,
    work: Path,
    report: "Report",
    max_minutes: float | None = None,
) -> Trained:
    """Train what `inputs` ask for, going on from the newest whole checkpoint in `work`.

    Args:
        splits: folder of the splits artifact.
        max_minutes: training time this may take, over all attempts.

    Raises:
        InputInvalid: base, adapter or data do not fit together.
        Interrupted: a signal came; a checkpoint was saved.
        Refused: the time is used up; a checkpoint was saved.
        FtaasError: the loss diverged.
    """
    process.prepare(inputs.threads)
    import torch
    import transformers

    _quiet()
    torch.set_num_threads(inputs.threads)
    torch.use_deterministic_algorithms(True)
    # Also on by default then: every empty tensor is filled, which costs a third of a step here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    report.progress(0.02, "reading the base model and the records")
    tokenizer = bases.load_tokenizer(base_path)
    records = data.load(splits, tokenizer, inputs.family, inputs.training.max_seq_tokens)
    transformers.set_seed(inputs.training.seed)  # the adapter's first values are drawn below

    from ftaas_pipelines.training import adapters, callbacks

    model = adapters.attach(bases.load_model(base_path), inputs.adapter, inputs.family)
    checkpoint = checkpoints.newest(work)
    stop = callbacks.Stop(max_minutes * 60 if max_minutes else None, checkpoints.seconds(checkpoint))
    trainer = _trainer(inputs, model, tokenizer, records, work, [callbacks.Live(report), stop])
    with stop.listening(), _disk_errors(work):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if stop.reason:
        _stopped(stop.reason, trainer.state.global_step, max_minutes)
    return Trained(
        model=model,
        tokenizer=tokenizer,
        history=history(trainer.state.log_history),
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        seconds=stop.seconds,
        resumed_from=int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0,
        truncated=records.truncated,
    )


def _trainer(
    inputs: TrainInputs,
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    records: data.TrainingData,
    work: Path,
    hooks: list[Any],
) -> "Trainer":
    from transformers.trainer_callback import PrinterCallback

    settings = arguments(inputs.training, work, evaluate=records.validation is not None)
    if inputs.family == "causal":
        from ftaas_pipelines.training import sft as method
    else:
        from ftaas_pipelines.training import seq2seq as method
    made = method.trainer(model, tokenizer, records, settings, hooks)
    made.remove_callback(PrinterCallback)  # prints every log to stdout
    return made


def arguments(training: Training, work: Path, *, evaluate: bool) -> dict[str, Any]:
    """The trainer's arguments, common to both families, of a resolved training."""
    import torch

    assert training.max_steps and training.eval_steps and training.save_steps, "resolve_training() first"
    return {
        "output_dir": str(work),
        "max_steps": training.max_steps,
        "per_device_train_batch_size": training.batch_size,
        "per_device_eval_batch_size": 32,
        "gradient_accumulation_steps": training.gradient_accumulation,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.schedule,
        "warmup_steps": training.warmup_steps,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "seed": training.seed,
        "data_seed": training.seed,
        "bf16": training.precision == "bf16",
        "use_cpu": not torch.cuda.is_available(),  # bf16 on a CPU is refused unless asked for
        "logging_steps": plan.logging_steps(training.max_steps),
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if evaluate else "no",
        "eval_steps": training.eval_steps,
        "save_strategy": "steps",
        "save_steps": training.save_steps,
        "save_total_limit": 2,
        "include_num_input_tokens_seen": "all",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": [],
    }


def history(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trainer's log as kept in `metrics.jsonl`: steps with a loss, our names, numbers only."""
    from ftaas_pipelines.training import callbacks

    rows: list[dict[str, Any]] = []
    for entry in log:
        if "loss" in entry or "eval_loss" in entry:
            rows.append({"step": int(entry["step"]), **callbacks.named(entry)})
    return rows


def _stopped(reason: str, step: int, max_minutes: float | None) -> None:
    saved = f"a checkpoint of step {step} was saved"
    if reason == "signal":
        raise Interrupted(f"stopped by a signal; {saved}", do="run the same command to go on")
    raise Refused(
        f"the training used up its budget; {saved}",
        "budget.training_minutes",
        f"{max_minutes:g} minutes",
        "raise the budget and run again to go on, or lower training.max_steps",
    )


@contextlib.contextmanager
def _disk_errors(work: Path) -> Generator[None]:
    """PyTorch and safetensors hide a full disk in errors of their own: make it the OSError it is."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if "os error 28" in str(error) or shutil.disk_usage(work).free < _FULL_BYTES:
            raise OSError(errno.ENOSPC, "no space left", str(work)) from error
        raise


def _quiet() -> None:
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|trl|peft")
    logging.getLogger("accelerate").setLevel(logging.ERROR)
