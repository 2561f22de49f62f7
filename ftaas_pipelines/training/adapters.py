"""Which weights are trained: a low-rank adapter beside the base, or all of the base."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects.adapter import Adapter, LoRA
from ftaas_pipelines.training import parts

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, Trainer

_START = "ftaas_start"  # attribute of a wrapped model: the first values of an adapter that changed its base


def attach(
    model: "PreTrainedModel",
    adapter: Adapter,
    task: str,
    keep: tuple[str, ...] = (),
    init_from: Path | None = None,
    gradient_checkpointing: bool = False,
) -> "PreTrainedModel | PeftModel":
    """The model with what is to be trained: wrapped by PEFT for LoRA, as it is for full fine-tuning.

    The random state decides the first values of A (B starts at zero): seed before calling.

    Args:
        task: PEFT's task type.
        keep: modules that are trained and kept whole (a new head).
        init_from: folder of an adapter whose weights this one goes on from.

    Raises:
        InputInvalid: `target_modules` fit nothing in this base, or name the output layer, or (DoRA) a layer
            without direction; `init_from` is of another shape than this adapter, or a whole model.
    """
    if not isinstance(adapter, LoRA):
        return _whole(model, init_from)
    from peft import get_peft_model, prepare_model_for_kbit_training

    if init_from:
        adapter = as_saved(adapter)
    if adapter.quantise:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=gradient_checkpointing)
    try:
        wrapped = get_peft_model(model, config(model, adapter, task, keep))
    except ValueError as error:
        raise InputInvalid(
            "the adapter does not fit the base model",
            "recipes.adapter.target_modules",
            f"{adapter.target_modules}: {error}",
            "use all-linear, or names of linear layers of this base",
        ) from error
    if any(name.endswith("lm_head.lora_A") for name, _ in wrapped.named_modules()):
        raise InputInvalid(
            "the output layer takes no adapter",
            "recipes.adapter.target_modules",
            str(adapter.target_modules),
            "leave lm_head out, or use all-linear",
        )
    if init_from:
        _go_on(wrapped, adapter, init_from)
    elif adapter.init != "default":
        setattr(wrapped, _START, _copied(weights(wrapped)))
    return wrapped


def config(model: "PreTrainedModel", adapter: LoRA, task: str, keep: tuple[str, ...]) -> "LoraConfig":
    """PEFT's configuration of an adapter section."""
    from peft import LoraConfig

    kept = [*keep, *(_embeddings(model) if adapter.embeddings else ())]
    return LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=parts.targets(model, adapter.target_modules),
        exclude_modules=(_without_direction(model, adapter) or None) if adapter.dora else None,
        use_dora=adapter.dora,
        use_rslora=adapter.rslora,
        init_lora_weights=True if adapter.init == "default" else adapter.init,
        modules_to_save=sorted(set(kept)) or None,
        ensure_weight_tying=adapter.embeddings and _tied(model),
        task_type=task,
    )


def as_saved(adapter: LoRA) -> LoRA:
    """The section that describes the artifact: what changed its base is saved as one beside the plain base.

    PiSSA and OLoRA take their first values A0, B0 out of the base's weights. What they learnt is the
    difference B A - B0 A0, an adapter of twice the rank.
    """
    if adapter.init == "default":
        return adapter
    return adapter.model_copy(update={"init": "default", "r": 2 * adapter.r, "alpha": 2 * adapter.alpha})


def weights(model: "PeftModel", state: dict[str, Any] | None = None) -> "dict[str, Tensor]":
    """The adapter's weights by the names of a PEFT folder, sorted.

    Args:
        state: the whole weights, where the model itself holds a share of them.
    """
    from peft import get_peft_model_state_dict

    # "auto" would ask the Hub whether the base's vocabulary grew; what is kept whole is named in the config.
    found: dict[str, Any] = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    return {name: found[name] for name in sorted(found)}


def start(model: Any) -> "dict[str, Tensor] | None":
    """The first values of an adapter whose making changed the base (PiSSA, OLoRA); None for the others."""
    return getattr(model, _START, None)


def set_optimizer(trainer: "Trainer", adapter: Adapter) -> None:
    """LoRA+: B learns `plus_ratio` times as fast as A. The others keep the trainer's own optimizer."""
    if not isinstance(adapter, LoRA) or adapter.plus_ratio is None:
        return
    from peft.optimizers import create_loraplus_optimizer

    kind, options = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)  # type: ignore[arg-type]
    options.pop("lr", None)
    trainer.optimizer = create_loraplus_optimizer(
        trainer.model,  # type: ignore[arg-type]
        optimizer_cls=kind,
        lr=trainer.args.learning_rate,
        loraplus_lr_ratio=adapter.plus_ratio,
        loraplus_weight_decay=trainer.args.weight_decay,
        **options,
    )


def _without_direction(model: "PreTrainedModel", adapter: LoRA) -> list[str]:
    """Linear layers that DoRA leaves out: a row of zeros has no direction, and its norm divides by zero.

    Raises:
        InputInvalid: `target_modules` name one of them.
    """
    import torch
    from peft.utils.integrations import dequantize_module_weight

    head = model.get_output_embeddings()
    flat: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            weight: Any = dequantize_module_weight(module)
            if bool((weight == 0).all(dim=1).any()):
                flat.append(name)
    asked = () if isinstance(adapter.target_modules, str) else adapter.target_modules
    named = [name for name in flat if any(f".{name}".endswith(f".{target}") for target in asked)]
    if named:
        raise InputInvalid(
            "DoRA cannot adapt a layer that has rows of zeros: they have no direction",
            "recipes.adapter.target_modules",
            ", ".join(named[:3]),
            "use all-linear, which leaves such layers out, or set dora to false",
        )
    return flat


def _embeddings(model: "PreTrainedModel") -> list[str]:
    """Names of the input and output embedding modules; of tied ones the input alone, which leads the other.

    Raises:
        InputInvalid: they are tied in a way that PEFT 0.21 does not keep: of a T5 it makes linear layers.
    """
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    names = {name: module for name, module in model.named_modules() if module is first or module is last}
    if not _tied(model):
        return sorted(name.rpartition(".")[2] for name in names)
    (entry,) = (name for name, module in names.items() if module is first)
    if model.config.is_encoder_decoder or not f".{entry}".endswith(".embed_tokens"):
        raise InputInvalid(
            "this base ties its embeddings in a way that an adapter cannot keep",
            "recipes.adapter.embeddings",
            type(model).__name__,
            "leave embeddings out, or fine-tune fully: adapter: {kind: full}",
        )
    return [entry]


def _tied(model: "PreTrainedModel") -> bool:
    """Whether the output layer is the input embeddings."""
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    return last is not None and last.weight is first.weight


def _whole(model: "PreTrainedModel", init_from: Path | None) -> "PreTrainedModel":
    """The model itself; a low-rank adapter that it goes on from is merged into it first."""
    if init_from is None or not (init_from / "adapter_config.json").is_file():
        return model  # a whole model was loaded in the base's place
    from peft import PeftConfig, PeftModel

    config = PeftConfig.from_pretrained(str(init_from))
    config.task_type = None  # its weights are wanted, not its way to answer: this network may have a new head
    merged: Any = PeftModel.from_pretrained(model, init_from, config=config).merge_and_unload()
    merged.requires_grad_(True)
    return merged


def _go_on(wrapped: "PeftModel", adapter: LoRA, folder: Path) -> None:
    """Take the adapter's values from an earlier one. A new head keeps its own first values."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    if not (folder / "adapter_config.json").is_file():
        raise InputInvalid(
            "a low-rank adapter cannot go on from a model that was trained whole: it is served beside the "
            "plain base",
            "recipes.adapter",
            "lora",
            "leave adapter out: full fine-tuning is taken over from the recipe in init_from",
        )
    before: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    own = wrapped.peft_config["default"].to_dict()
    for key, ours in (("r", "r"), ("lora_alpha", "alpha"), ("use_dora", "dora"), ("use_rslora", "rslora")):
        if before.get(key) != own[key]:
            raise _other_shape("is of another shape than", ours, f"{own[key]}, not {before.get(key)}")
    kept = {*(before.get("modules_to_save") or ())} - {*(own["modules_to_save"] or ())}
    names = [name for name, _ in wrapped.get_base_model().named_modules()]
    lost = [name for name in names if any(f".{name}".endswith(f".{one}") for one in kept)]
    if lost:
        raise _other_shape("does not keep the embeddings of", "embeddings", lost[0])
    stored = load_file(folder / "adapter_model.safetensors")
    mine = weights(wrapped)
    lora = {name: value for name, value in stored.items() if name in mine and value.shape == mine[name].shape}
    differ = [name for name in sorted({*stored} ^ {*mine}) if ".lora_" in name]
    differ += [name for name in mine if ".lora_" in name and name in stored and name not in lora]
    if differ:
        raise _other_shape(f"has {len(differ)} other weights than", "target_modules", differ[0])
    set_peft_model_state_dict(wrapped, {**mine, **lora})


def _other_shape(what: str, field: str, got: str) -> InputInvalid:
    return InputInvalid(
        f"the adapter {what} the one it goes on from",
        f"recipes.adapter.{field}",
        got,
        "leave adapter out: it is taken over from the recipe in init_from",
    )


def _copied(values: "dict[str, Tensor]") -> "dict[str, Tensor]":
    return {name: value.detach().clone() for name, value in values.items()}
