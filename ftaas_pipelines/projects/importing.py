"""A LLaMA-Factory or Axolotl YAML to the fields of a `project.yaml`. Nothing is dropped unsaid.

LLaMA-Factory's keys are those of its `examples/train_lora/*.yaml`; Axolotl's of its `examples/`.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

import yaml

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects import yaml_lines
from ftaas_pipelines.projects.project import Training

_SCHEDULES = get_args(Training.model_fields["schedule"].annotation)
# Our place of a key, and how its value is turned; a ValueError says why it cannot be taken over.
_Rule = tuple[str, Callable[[Any], Any]]


@dataclass
class Imported:
    """What a foreign file became.

    Attributes:
        tool: LLaMA-Factory or Axolotl.
        fields: our dotted key to its value, such as `recipe.training.epochs`.
        taken: their key to ours.
        left_out: their key, its value and why it was not taken over.
        sources: data files as the file names them, each with its split.
        columns: our column name to the file's name.
    """

    tool: str
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    taken: dict[str, str] = field(default_factory=dict[str, str])
    left_out: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    sources: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])
    format: str | None = None
    columns: dict[str, str] = field(default_factory=dict[str, str])

    def leave(self, key: str, value: Any, why: str) -> None:
        self.left_out.append({"key": key, "value": json.dumps(value, default=str), "why": why})


def convert(path: Path) -> Imported:
    """Read a training file of LLaMA-Factory or Axolotl.

    Raises:
        InputInvalid: it is not YAML, of neither tool, or trains in a way that is not supported here.
    """
    value, lines = yaml_lines.read(path)
    if "model_name_or_path" in value:
        out, rules, special = Imported("LLaMA-Factory"), _LLAMA_FACTORY, _llama_factory
    elif "base_model" in value:
        out, rules, special = Imported("Axolotl"), _AXOLOTL, _axolotl
    else:
        raise InputInvalid(
            "is neither a LLaMA-Factory nor an Axolotl file",
            f"{path}:1",
            ", ".join(list(value)[:6]),
            "name a file that has model_name_or_path (LLaMA-Factory) or base_model (Axolotl)",
        )
    handled = special(out, value, path, lines)
    for key, given in value.items():
        if key in handled or given is None:  # an empty key sets nothing
            continue
        if key not in rules:
            out.leave(key, given, _OURS.get(key, "there is no such setting here"))
            continue
        place, turn = rules[key]
        try:
            out.fields[place] = turn(given)
            out.taken[key] = place
        except (ValueError, TypeError) as error:
            out.leave(key, given, str(error))
    if out.fields["recipe.adapter.kind"] == "full":
        for key, place in list(out.taken.items()):
            if place.startswith("recipe.adapter.") and place != "recipe.adapter.kind":
                out.leave(key, value[key], "full fine-tuning has no adapter")
                del out.taken[key], out.fields[place]
    return out


def render(found: Imported, name: str, who: Mapping[str, list[str]], files: Sequence[str]) -> str:
    """The `project.yaml` of an imported file; what was left out stands in it as comments.

    Args:
        who: people by the keys of `people`.
        files: paths of the data files, in the order of `found.sources`.
    """
    sources = [
        {"name": "validation" if split else "rows", "path": path, **({"split": split} if split else {})}
        for path, (_, split) in zip(files, found.sources, strict=True)
    ]
    names = [source["name"] for source in sources]
    for i, source in enumerate(sources):
        if names.count(source["name"]) > 1:
            source["name"] += f"_{names[: i + 1].count(source['name'])}"
    document: dict[str, Any] = {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "task": "chat" if found.format == "messages" else "qa",
        "intended_use": "Say here who uses the answers, and for what.",
        "people": dict(who),
        "dataset": {
            **({"format": found.format} if found.format else {}),
            **({"columns": found.columns} if found.columns else {}),
            "sources": sources,
        },
        "base_model": {},
        "recipes": [{"name": "imported"}],
    }
    for place, given in found.fields.items():
        *path, last = place.split(".")
        section = document["recipes"][0] if path[0] == "recipe" else document.setdefault(path[0], {})
        for step in path[1:]:
            section = section.setdefault(step, {})
        section[last] = given
    left = "".join(f"#   {x['key']}: {x['value']}  ({x['why']})\n" for x in found.left_out)
    head = f"# Imported from {found.tool}.\n" + (f"# Not taken over:\n{left}" if left else "")
    return head + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)


# -- values --------------------------------------------------------------------------------------


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


_TRAINING: dict[str, _Rule] = {
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
_LLAMA_FACTORY: dict[str, _Rule] = {
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
_AXOLOTL: dict[str, _Rule] = {
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
_OURS = {
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


# -- what takes more than one key ----------------------------------------------------------------


def _llama_factory(out: Imported, value: dict[str, Any], path: Path, lines: yaml_lines.Lines) -> set[str]:
    stage = value.get("stage", "sft")
    if stage != "sft":
        raise _unsupported("stage", stage, path, lines, "only sft is trained here")
    kind = value.get("finetuning_type", "lora")
    if kind not in ("lora", "full"):
        raise _unsupported("finetuning_type", kind, path, lines, "use lora or full")
    _adapter(out, kind, "finetuning_type")
    if kind == "lora":
        # LLaMA-Factory's own default, which is not ours.
        out.fields["recipe.adapter.alpha"] = 2 * int(value.get("lora_rank") or 8)
    folder = Path(value.get("dataset_dir") or "data")
    for key, split in (("dataset", None), ("eval_dataset", "validation")):
        names = value.get(key) or []
        for name in [n.strip() for n in names.split(",")] if isinstance(names, str) else names:
            out.taken[key] = "dataset.sources"
            _registered(out, name, split, [path.parent / folder, folder])
    return {"stage", "finetuning_type", "dataset", "eval_dataset", "dataset_dir"}


def _registered(out: Imported, name: str, split: str | None, folders: list[Path]) -> None:
    """A data set by its name in LLaMA-Factory's `dataset_info.json`, or by its file."""
    registry = next((f / "dataset_info.json" for f in folders if (f / "dataset_info.json").is_file()), None)
    try:
        entry: Any = json.loads(registry.read_text("utf-8")).get(name) if registry else None
    except (ValueError, AttributeError) as error:
        raise InputInvalid("is not a JSON object", str(registry), str(error), "mend it") from None
    if registry is None or not isinstance(entry, dict):
        out.sources.append((name, split))
        return
    described = cast(dict[str, Any], entry)
    file = described.pop("file_name", None)
    out.sources.append((str(registry.parent / file) if file else name, split))
    columns: dict[str, str] = described.pop("columns", None) or {}
    formatting = described.pop("formatting", "alpaca")
    tags: dict[str, str] = described.pop("tags", None) or {}
    if formatting == "alpaca":
        out.format = "alpaca"
        names = {"prompt": "instruction", "query": "input", "response": "output"}
    elif tags.get("role_tag") == "role" and tags.get("content_tag") == "content":
        out.format = "messages"
        names = {"messages": "messages"}
    else:
        out.leave(f"{name}.formatting", formatting, "ShareGPT is not read: rewrite it as role and content")
        names = {}
    for theirs, column in columns.items():
        if theirs not in names:
            out.leave(f"{name}.columns.{theirs}", column, "there is no such column here")
        elif names[theirs] != column:
            out.columns[names[theirs]] = column
    for key, rest in described.items():
        out.leave(f"{name}.{key}", rest, "there is no such setting of a data set here")


def _axolotl(out: Imported, value: dict[str, Any], path: Path, lines: yaml_lines.Lines) -> set[str]:
    if value.get("rl"):
        raise _unsupported("rl", value["rl"], path, lines, "only supervised fine-tuning is trained here")
    kind = value.get("adapter") or "full"
    if kind not in ("lora", "qlora", "full"):
        raise _unsupported("adapter", kind, path, lines, "use lora, or leave it out for full fine-tuning")
    _adapter(out, "full" if kind == "full" else "lora", "adapter")
    if kind == "qlora":
        out.leave("adapter", kind, "taken over as lora: base models are not quantized for training")
    if value.get("lora_target_linear"):
        out.fields["recipe.adapter.target_modules"] = "all-linear"
        out.taken["lora_target_linear"] = "recipe.adapter.target_modules"
    for key, split in (("datasets", None), ("test_datasets", "validation")):
        for i, described in enumerate(value.get(key) or []):
            out.taken[key] = "dataset.sources"
            _described(out, dict(described), split, f"{key}.{i}", path.parent)
    return {"rl", "adapter", "datasets", "test_datasets"} | (
        {"lora_target_linear"} if value.get("lora_target_linear") else set()
    )


def _described(out: Imported, entry: dict[str, Any], split: str | None, where: str, folder: Path) -> None:
    """One item of Axolotl's `datasets`."""
    files = entry.pop("data_files", None) or entry.get("path", "")
    entry.pop("path", None)
    for file in [files] if isinstance(files, str) else files:
        beside = folder / file
        out.sources.append((str(beside if beside.is_file() else file), split))
    kind = entry.pop("type", None)
    known = {"alpaca": "alpaca", "chat_template": "messages"}
    if kind in known:
        out.format = known[kind]
    else:
        out.leave(f"{where}.type", kind, "the format is detected from the file instead")
    if kind == "chat_template":
        messages = entry.pop("field_messages", "conversations")
        if messages != "messages":
            out.columns["messages"] = messages
        for key, ours in (("message_field_role", "role"), ("message_field_content", "content")):
            given = entry.pop(key, ours)
            if given != ours:
                out.leave(f"{where}.{key}", given, f"messages must use '{ours}'")
    for key, rest in entry.items():
        out.leave(f"{where}.{key}", rest, "there is no such setting of a data set here")


def _adapter(out: Imported, kind: str, key: str) -> None:
    out.fields["recipe.adapter.kind"] = kind
    out.taken[key] = "recipe.adapter.kind"


def _unsupported(key: str, got: Any, path: Path, lines: yaml_lines.Lines, do: str) -> InputInvalid:
    return InputInvalid(
        f"'{key}' is not supported", f"{path}:{yaml_lines.line_of(lines, (key,))}", str(got), do
    )


def project_name(path: Path) -> str:
    """A project name made of a file's name."""
    name = re.sub(r"[^a-z0-9]+", "_", path.stem.lower()).strip("_")
    return (name if name[:1].isalpha() else f"project_{name}").rstrip("_")[:60]
