"""The artifact of a training: weights and configuration that depend on nothing but what was trained.

No paths, no times, no library versions; keys and lists are sorted. What of that is worth knowing
stands in the attestation.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.inference import bases, classifier
from ftaas_pipelines.training import adapters

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_OF_THE_MAKING = ("transformers_version", "_name_or_path")
# Everything else in a LoraConfig is at its default; its keys come and go with PEFT's versions.
_SAID = (
    "base_model_name_or_path",
    "bias",
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "lora_alpha",
    "lora_dropout",
    "modules_to_save",
    "peft_type",
    "r",
    "target_modules",
    "task_type",
    "use_dora",
    "use_rslora",
)
_SAID_WHERE_TRUE = ("ensure_weight_tying", "exclude_modules")


def lora(
    model: "PreTrainedModel | PeftModel", base: str, folder: Path, state: dict[str, Any] | None = None
) -> None:
    """Write a plain PEFT folder: `PeftModel.from_pretrained(base_model, folder)` opens it anywhere.

    Args:
        base: digest of the base model; `adapter_config.json` names the base by it.
    """
    from peft import PeftModel
    from safetensors.torch import save_file

    assert isinstance(model, PeftModel)
    weights = adapters.weights(model, state)
    if not weights:
        raise FtaasError("the adapter holds no weights", "adapter", do="check adapter.target_modules")
    config: dict[str, Any] = model.peft_config["default"].to_dict()
    first = adapters.start(model)
    if first is not None:
        weights = _beside_the_base(weights, first)
        config |= {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"], "init_lora_weights": True}
    # Copies: PEFT wants tied embeddings under both their names, and safetensors takes no shared memory.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config |= {"base_model_name_or_path": f"sha256:{base}", "inference_mode": True}
    config["modules_to_save"] = sorted(set(config["modules_to_save"] or ())) or None  # PEFT repeats heads
    said = [*_SAID, *(name for name in _SAID_WHERE_TRUE if config[name])]
    _write_json(folder / "adapter_config.json", {key: config[key] for key in said})


def _beside_the_base(last: "dict[str, Tensor]", first: "dict[str, Tensor]") -> "dict[str, Tensor]":
    """An adapter for the base as it is, of one that was made by changing it: B A - B0 A0, of twice the rank.

    PiSSA and OLoRA take their first values out of the base's weights; what they learnt is the difference.
    """
    import torch

    out: dict[str, torch.Tensor] = {}
    for name, value in last.items():
        if ".lora_A." in name:
            out[name] = torch.cat([value, first[name]], dim=0)
        elif ".lora_B." in name:
            out[name] = torch.cat([value, -first[name]], dim=1)
        else:
            out[name] = value
    return out


def full(
    model: "PreTrainedModel | PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    base_path: Path,
    folder: Path,
    state: dict[str, Any] | None = None,
) -> None:
    """Write a whole model folder: trained weights, the base's own tokenizer files."""
    from transformers import PreTrainedModel

    assert isinstance(model, PreTrainedModel)
    model.save_pretrained(folder, state_dict=state)
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            _write_json(folder / name, json.loads((folder / name).read_text("utf-8")))
    (folder / "README.md").unlink(missing_ok=True)
    for file in bases.tokenizer_files(base_path):
        shutil.copyfile(file, folder / file.name)
    if isinstance(tokenizer.chat_template, str) and not (folder / "chat_template.jinja").exists():
        (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")


def labels(model: "PreTrainedModel | PeftModel", folder: Path) -> None:
    """Write what a classifier answers with, in the order of its head: serving reads it."""
    named: dict[int, str] = model.config.id2label  # pyright: ignore[reportAssignmentType]
    text = json.dumps([named[i] for i in sorted(named)], ensure_ascii=False, indent=2) + "\n"
    (folder / classifier.LABELS).write_text(text, encoding="utf-8")


def _write_json(file: Path, config: dict[str, Any]) -> None:
    content = {key: value for key, value in config.items() if key not in _OF_THE_MAKING}
    text = json.dumps(content, indent=2, sort_keys=True, default=_plain) + "\n"
    file.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    """What JSON lacks: sets as sorted lists, enumerations by value."""
    return sorted(value) if isinstance(value, set | frozenset) else value.value
