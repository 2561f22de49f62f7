"""One training from its inputs to trained weights: seeded, resumable, within its time."""

import contextlib
import errno
import gc
import logging
import shutil
import warnings
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ftaas_pipelines.errors import Interrupted
from ftaas_pipelines.inference import process
from ftaas_pipelines.projects.recipe import Training
from ftaas_pipelines.training import checkpoints, distributed, plan
from ftaas_pipelines.training.materials import Materials

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

    from ftaas_pipelines.training.callbacks import Report
    from ftaas_pipelines.training.data import TrainingData
    from ftaas_pipelines.training.methods import Method
    from ftaas_pipelines.training.planning.settle import Settle
    from ftaas_pipelines.training.supervision import Proof


_FULL_BYTES = 1 << 20


@dataclass(frozen=True)
class Trained:
    """What came out of a training.

    Attributes:
        history: one entry a log: step, loss, eval_loss, learning_rate, grad_norm, …
        steps: optimizer steps that were asked for.
        seconds: training time over all attempts.
        resumed_from: the step of the checkpoint it went on from, 0 for none.
        data: how many records were learnt from, cut at `max_seq_tokens`, left out for it.
        quote, actual: what it was said to take, and what it took.
        supervision: see `supervision.Proof`.
        state: the whole weights, gathered, where each process holds a share of the model.
        trials: of a sweep, each with its settings and losses; `best` is the number of the one that was taken.
        samples: validation prompts with what was answered at each evaluation.
    """

    model: "PreTrainedModel | PeftModel"
    tokenizer: "PreTrainedTokenizerBase"
    history: list[dict[str, Any]]
    steps: int
    trainable_parameters: int
    seconds: float
    resumed_from: int
    data: dict[str, int]
    supervision: dict[str, Any]
    quote: dict[str, Any]
    actual: dict[str, Any]
    state: dict[str, Any] | None = None
    samples: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    trials: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    best: int | None = None


def train(
    materials: Materials,
    work: Path,
    report: "Report",
    max_minutes: float | None = None,
    more: Sequence[Any] = (),
) -> Trained:
    """Train what the inputs ask for, going on from the newest whole checkpoint in `work`.

    Args:
        max_minutes: training time this may take, over all attempts.
        more: trainer callbacks beside its own.

    Raises:
        InputInvalid: base, adapter or data do not fit together, or the memory is too small for them.
        Interrupted: a signal came; a checkpoint was saved.
        Refused: the budget does not cover it, as the probe before step 1 shows; or it is used up, and a
            checkpoint was saved.
        FtaasError: the loss diverged.
    """
    inputs = materials.inputs
    with _collector_off():
        prepare(inputs.threads)
        from ftaas_pipelines.training import adapters, callbacks, guard, methods, samples, supervision
        from ftaas_pipelines.training.planning import exhausted, settle

        report.progress(0.02, "reading the base model and the records")
        materials = materials.with_tokenizer()
        method = methods.of(inputs)
        data = method.data(materials)
        examples = plan.examples_of(inputs.method, len(data.train))
        training = plan.resolve_training(inputs.training, examples)
        materials = materials.with_inputs(inputs.model_copy(update={"training": training}))
        exhausted.require_memory(materials, data)
        with exhausted.memory_errors(materials, data):
            model = model_of(materials, method)
        proof = supervision.prove(materials, data, model)
        report.progress(0.06, f"{proof} (supervision proved in {proof.seconds:.1f} s)")
        checkpoint = checkpoints.newest(work)
        settling = settle.begin(
            materials, data, proof, work, report, max_minutes, checkpoints.seconds(checkpoint)
        )
    stop = callbacks.Stop(settling.spending)
    watch, said = callbacks.Watch(), samples.Samples(materials, data.prompts, report)
    live = callbacks.Live(report, method.FIGURES)
    hooks = [settling, live, watch, stop, *([said] if data.prompts else []), *more]
    with stop.listening(), _disk_errors(work), exhausted.memory_errors(materials, data):
        trainer = trainer_of(materials, method, model, data, work, hooks)
        watch.guard = guard.Guard(trainer, data.record_ids)
        adapters.set_optimizer(trainer, inputs.adapter)
        settling.attach(trainer, watch.guard, said.rehearse if data.prompts else None)
        _go(trainer, checkpoint)
    settling.end()
    if stop.reason:
        _stopped(stop.reason, trainer.state.global_step, settling)
    return _trained(materials, method, trainer, model, settling, checkpoint, data, said.said, proof)


def _go(trainer: "Trainer", checkpoint: Path | None) -> None:
    """Train from a checkpoint to the end; one that stands at the end is read, and nothing is trained.

    The trainer itself takes one step more from there (transformers 5.23): a training that was killed
    between its last step and its artifact would come out as another.
    """
    if checkpoint is None:
        trainer.train()
        return
    from transformers import TrainerState

    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    if state.global_step < trainer.args.max_steps and not _ended_early(state):
        trainer.train(resume_from_checkpoint=str(checkpoint))
        return
    best = state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    trainer._load_from_checkpoint(best or str(checkpoint))  # pyright: ignore[reportPrivateUsage]
    trainer.state = state


def _ended_early(state: Any) -> bool:
    """Whether the evaluation before a checkpoint was the last that early stopping waited for."""
    stopping: dict[str, Any] = state.stateful_callbacks.get("EarlyStoppingCallback", {})
    waited = stopping.get("attributes", {}).get("early_stopping_patience_counter", 0)
    return waited >= stopping.get("args", {}).get("early_stopping_patience", waited + 1)


def prepare(threads: int) -> None:
    """Fix what the last bits of a number depend on."""
    process.prepare(threads)
    import torch

    _quiet()
    torch.set_num_threads(threads)
    if torch.cuda.is_available():  # deterministic kernels cost a third there; a tolerance is promised instead
        torch.backends.cuda.matmul.allow_tf32 = True
        return
    torch.use_deterministic_algorithms(True)
    # Also on by default then: every empty tensor is filled, which costs a third of a step here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def model_of(materials: Materials, method: "Method") -> "PreTrainedModel | PeftModel":
    """The network with its adapter, first values drawn by the seed."""
    import transformers

    from ftaas_pipelines.training import adapters

    inputs = materials.inputs
    transformers.set_seed(inputs.training.seed)
    return adapters.attach(
        method.network(materials),
        inputs.adapter,
        method.TASK,
        method.KEEP,
        materials.init_from,
        inputs.training.gradient_checkpointing,
    )


def trainer_of(
    materials: Materials,
    method: "Method",
    model: "PreTrainedModel | PeftModel",
    data: "TrainingData",
    work: Path,
    hooks: list[Any],
) -> "Trainer":
    from transformers import EarlyStoppingCallback
    from transformers.trainer_callback import PrinterCallback

    training = materials.inputs.training
    if training.early_stopping:
        patience, delta = training.early_stopping.patience, training.early_stopping.min_delta
        hooks = [*hooks, EarlyStoppingCallback(patience, delta)]
    settings = arguments(training, work, evaluate=data.validation is not None)
    learning = [(p, p.data) for p in model.parameters() if p.requires_grad]
    made = method.trainer(materials, model, data, settings, hooks)
    for parameter, value in learning:  # TRL rounds what learns beside a quantised base to bf16
        if parameter.dtype != value.dtype:
            parameter.data = value.to(parameter.device)
    made.remove_callback(PrinterCallback)  # prints every log to stdout
    return made


def arguments(training: Training, work: Path, *, evaluate: bool) -> dict[str, Any]:
    """The trainer's arguments, common to all methods, of a resolved training."""
    import torch

    assert training.max_steps and training.eval_steps and training.save_steps, "resolve_training() first"
    return {
        "output_dir": str(work),
        "max_steps": training.max_steps,
        "per_device_train_batch_size": training.batch_size,
        "per_device_eval_batch_size": plan.evaluation_batch(training),
        "gradient_accumulation_steps": training.gradient_accumulation,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.schedule,
        "warmup_steps": training.warmup_steps,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "optim": training.optimizer,
        "seed": training.seed,
        "data_seed": training.seed,
        "bf16": training.precision == "bf16",
        "fp16": training.precision == "fp16",
        "gradient_checkpointing": training.gradient_checkpointing,
        "torch_compile": training.compile,
        "neftune_noise_alpha": training.neftune_alpha,
        "use_cpu": not torch.cuda.is_available(),  # bf16 on a CPU is refused unless asked for
        "logging_steps": plan.logging_steps(training.max_steps),
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if evaluate else "no",
        "eval_steps": training.eval_steps,
        "save_strategy": "steps",
        "save_steps": training.save_steps,
        "save_total_limit": 2,
        **(_KEEP_BEST if training.early_stopping and evaluate else {}),
        **distributed.arguments(training.distributed),
        "remove_unused_columns": False,
        "include_num_input_tokens_seen": "all",
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "disable_tqdm": True,
        "report_to": [],
    }


_KEEP_BEST = {
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
    "restore_callback_states_from_checkpoint": True,
}


def _trained(
    materials: Materials,
    method: "Method",
    trainer: "Trainer",
    model: "PreTrainedModel | PeftModel",
    settling: "Settle",
    checkpoint: Path | None,
    data: "TrainingData",
    said: list[dict[str, Any]],
    proof: "Proof",
) -> Trained:
    return Trained(
        model=model,
        tokenizer=materials.tokenizer,
        history=history(trainer.state.log_history, method.FIGURES),
        steps=trainer.state.max_steps,
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        seconds=settling.spending.seconds,
        resumed_from=int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0,
        data={"records": len(data.record_ids), "truncated": data.truncated, "dropped": data.dropped},
        supervision=proof.as_dict(),
        quote=settling.quote.as_dict(),
        actual=settling.actual(trainer),
        state=distributed.gathered(trainer, materials.inputs.training.distributed),
        samples=said,
    )


def history(log: list[dict[str, Any]], figures: Mapping[str, str]) -> list[dict[str, Any]]:
    """The trainer's log as kept in `metrics.jsonl`: steps with a loss, our names, numbers only."""
    from ftaas_pipelines.training import callbacks

    rows: list[dict[str, Any]] = []
    for entry in log:
        if "loss" in entry or "eval_loss" in entry:
            rows.append({"step": int(entry["step"]), **callbacks.named(entry, figures)})
    return rows


def _stopped(reason: str, step: int, settling: "Settle") -> None:
    saved = f"a checkpoint of step {step} was saved"
    if reason == "signal":
        raise Interrupted(f"stopped by a signal; {saved}", do="run the same command to go on")
    raise settling.used_up(saved)


@contextlib.contextmanager
def _collector_off() -> Generator[None]:
    """While libraries and a model are loaded: objects that stay, and a tenth of the start to look through."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


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
    for name in ("accelerate", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
