"""Which key of LLaMA-Factory and of Axolotl is which of ours, and how its value is turned.

The names are those of LLaMA-Factory's `examples/train_lora/*.yaml` and of Axolotl's `examples/`.
"""

from collections.abc import Callable
from typing import Any, get_args

from ftaas_pipelines.projects.recipe import Training

_SCHEDULES = get_args(Training.model_fields["schedule"].annotation)
# Our place of a key, and how its value is turned; a ValueError says why it cannot be taken over.
Rule = tuple[str, Callable[[Any], Any]]


def _number(value: Any) -> float:
    return float(value)


def _whole(value: Any) -> int:
    if int(value) != float(value) or int(value) < 0:
        raise ValueError("is not a whole number from 0")
    return int(value)


def _positive(value: Any) -> int:
    if _whole(value) == 0:
        raise ValueError("0 or less means: not set")
    return int(value)


def _steps(value: Any) -> int:
    if float(value) < 1:
        raise ValueError("a share of the run is not taken over; ten times a run is the default")
    return _positive(value)


def _schedule(value: Any) -> str:
    if value not in _SCHEDULES:
        raise ValueError(f"only {', '.join(_SCHEDULES)} are known")
    return value


def _targets(value: Any) -> str | list[str]:
    if value in ("all", "all-linear"):
        return "all-linear"
    return [v.strip() for v in value.split(",")] if isinstance(value, str) else list(value)


def _share(value: Any) -> float:
    if not 0 <= float(value) < 0.5:
        raise ValueError("only a share below 0.5 is known, not a number of rows")
    return float(value)


def _bf16(value: Any) -> str:
    if value == "auto":
        raise ValueError("the precision is not chosen by the machine here; set training.precision")
    return "bf16" if value else "fp32"


_TRAINING: dict[str, Rule] = {
    "learning_rate": ("recipe.training.learning_rate", _number),
    "gradient_accumulation_steps": ("recipe.training.gradient_accumulation", _positive),
    "max_steps": ("recipe.training.max_steps", _positive),
    "warmup_steps": ("recipe.training.warmup_steps", _whole),
    "weight_decay": ("recipe.training.weight_decay", _number),
    "max_grad_norm": ("recipe.training.max_grad_norm", _number),
    "seed": ("recipe.training.seed", _whole),
    "bf16": ("recipe.training.precision", _bf16),
    "eval_steps": ("recipe.training.eval_steps", _steps),
    "save_steps": ("recipe.training.save_steps", _steps),
    "lora_alpha": ("recipe.adapter.alpha", _positive),
    "lora_dropout": ("recipe.adapter.dropout", _number),
}
LLAMA_FACTORY: dict[str, Rule] = {
    **_TRAINING,
    "model_name_or_path": ("base_model.id", str),
    "model_revision": ("base_model.revision", str),
    "lora_rank": ("recipe.adapter.r", _positive),
    "lora_target": ("recipe.adapter.target_modules", _targets),
    "cutoff_len": ("recipe.training.max_seq_tokens", _positive),
    "num_train_epochs": ("recipe.training.epochs", _number),
    "per_device_train_batch_size": ("recipe.training.batch_size", _positive),
    "lr_scheduler_type": ("recipe.training.schedule", _schedule),
    "val_size": ("dataset.splits.validation", _share),
    "default_system": ("dataset.system", str),
    "max_new_tokens": ("evaluation.max_new_tokens", _positive),
}
AXOLOTL: dict[str, Rule] = {
    **_TRAINING,
    "base_model": ("base_model.id", str),
    "revision_of_model": ("base_model.revision", str),
    "lora_r": ("recipe.adapter.r", _positive),
    "lora_target_modules": ("recipe.adapter.target_modules", _targets),
    "sequence_len": ("recipe.training.max_seq_tokens", _positive),
    "num_epochs": ("recipe.training.epochs", _number),
    "micro_batch_size": ("recipe.training.batch_size", _positive),
    "lr_scheduler": ("recipe.training.schedule", _schedule),
    "val_set_size": ("dataset.splits.validation", _share),
    "eval_max_new_tokens": ("evaluation.max_new_tokens", _positive),
}

# What the platform decides by itself.
_OUTPUTS = "the platform keeps what is made in its store and follows it in MLflow"
_MACHINE = "a matter of the machine, not of the recipe"
OURS = {
    **dict.fromkeys(
        "output_dir overwrite_output_dir report_to plot_loss logging_steps logging_dir save_total_limit "
        "wandb_project wandb_entity wandb_watch wandb_name wandb_log_model run_name save_only_model "
        "saves_per_epoch evals_per_epoch resume_from_checkpoint save_safetensors mlflow_experiment_name "
        "mlflow_tracking_uri dataset_prepared_path overwrite_cache push_dataset_to_hub hub_model_id".split(),
        _OUTPUTS,
    ),
    **dict.fromkeys(
        "preprocessing_num_workers dataloader_num_workers dataset_processes ddp_timeout deepspeed fsdp "
        "fsdp_config local_rank flash_attn flash_attention xformers_attention tf32 gradient_checkpointing "
        "per_device_eval_batch_size eval_batch_size trust_remote_code".split(),
        _MACHINE,
    ),
    "template": "the chat template is the base model's own",
    "chat_template": "the chat template is the base model's own",
    "warmup_ratio": "only warmup_steps is known; set training.warmup_steps",
    "do_train": "`ftaas run` trains",
    "do_eval": "every candidate is evaluated",
    "eval_strategy": "validation loss is taken ten times a run; set training.eval_steps",
    "train_on_inputs": "loss is taken on the answer only",
    "fp16": "only fp32 and bf16 are known; set training.precision",
    "max_samples": "all rows are used",
    "load_in_4bit": "base models are not quantized for training",
    "load_in_8bit": "base models are not quantized for training",
    "quantization_bit": "base models are not quantized for training",
}
