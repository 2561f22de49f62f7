"""The artifact of a training: weights and configuration that depend on nothing but what was trained.

No paths, no times, no library versions; keys and lists are sorted. What of that is worth knowing
stands in the attestation.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.inference import bases

if TYPE_CHECKING:
    from peft import PeftModel
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


def lora(model: "PreTrainedModel | PeftModel", base: str, folder: Path) -> None:
    """Write a plain PEFT folder: `PeftModel.from_pretrained(base_model, folder)` opens it anywhere.

    Args:
        base: digest of the base model; `adapter_config.json` names the base by it.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import save_file

    assert isinstance(model, PeftModel)
    # "auto" would ask the Hub whether the base's vocabulary grew; ours never does.
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    if not weights:
        raise FtaasError("the adapter holds no weights", "adapter", do="check adapter.target_modules")
    tensors = {name: weights[name].detach().contiguous().cpu() for name in sorted(weights)}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config: dict[str, Any] = model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": f"sha256:{base}", "inference_mode": True}
    _write_json(folder / "adapter_config.json", {key: config[key] for key in _SAID})


def full(
    model: "PreTrainedModel | PeftModel", tokenizer: "PreTrainedTokenizerBase", base_path: Path, folder: Path
) -> None:
    """Write a whole model folder: trained weights, the base's own tokenizer files."""
    from transformers import PreTrainedModel

    assert isinstance(model, PreTrainedModel)
    model.save_pretrained(folder)
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            _write_json(folder / name, json.loads((folder / name).read_text("utf-8")))
    (folder / "README.md").unlink(missing_ok=True)
    for file in bases.tokenizer_files(base_path):
        shutil.copyfile(file, folder / file.name)
    if isinstance(tokenizer.chat_template, str) and not (folder / "chat_template.jinja").exists():
        (folder / "chat_template.jinja").write_text(tokenizer.chat_template, encoding="utf-8")


def _write_json(file: Path, config: dict[str, Any]) -> None:
    content = {key: value for key, value in config.items() if key not in _OF_THE_MAKING}
    text = json.dumps(content, indent=2, sort_keys=True, default=_plain) + "\n"
    file.write_text(text, encoding="utf-8")


def _plain(value: Any) -> Any:
    """What JSON lacks: sets as sorted lists, enumerations by value."""
    return sorted(value) if isinstance(value, set | frozenset) else value.value
