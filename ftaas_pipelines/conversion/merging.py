"""An adapter as one whole model: LoRA merged into the base; a full fine-tuning is one already."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ftaas_pipelines.conversion.inputs import Precision
from ftaas_pipelines.inference import bases
from ftaas_pipelines.store import Artifact
from ftaas_pipelines.training import save

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_PEFT = "adapter_config.json"


def source(adapter: Artifact, base: Path | None) -> Path:
    """The folder whose configuration and tokenizer the whole model has: the base's, or its own."""
    if base is None or not adapter.file(_PEFT).is_file():
        return adapter.path
    return base


def whole(adapter: Artifact, base: Path | None) -> "PreTrainedModel":
    """The model with the adapter in its weights, in fp32: W + (alpha / r) B A for each adapted layer.

    Raises:
        ValueError: a merged weight is not a number (PEFT's safe merge).
    """
    folder = source(adapter, base)
    if folder == adapter.path:
        return bases.load_model(folder).eval()
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(cast(Any, bases.load_model(folder)), adapter.path)
    return cast(Any, adapted).merge_and_unload(safe_merge=True).eval()


def write(model: "PreTrainedModel", folder: Path, source: Path, precision: Precision) -> None:
    """A folder that `AutoModelForCausalLM.from_pretrained` opens, with tokenizer and chat template.

    Args:
        source: where the tokenizer's files lie.
        precision: of the weights; the model itself is turned into it.
    """
    save.full(model.to(dtype(precision)), bases.load_tokenizer(source), source, folder)  # type: ignore[arg-type]


def copy(adapter: Artifact, folder: Path) -> None:
    """A full fine-tuning as it is: every file of its identity."""
    for name in adapter.manifest["files"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(adapter.file(name), folder / name)


def dtype(precision: Precision) -> "torch.dtype":
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
