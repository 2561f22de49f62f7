"""Which weights are trained: a LoRA adapter beside the base, or all of the base."""

from typing import TYPE_CHECKING

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects.project import FullFineTuning, LoRA

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

_TASK_TYPES = {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM"}


def attach(
    model: "PreTrainedModel", adapter: LoRA | FullFineTuning, family: str
) -> "PreTrainedModel | PeftModel":
    """The model with what is to be trained: wrapped by PEFT for LoRA, as it is for full fine-tuning.

    The random state decides the first values of A (B starts at zero): seed before calling.

    Raises:
        InputInvalid: `target_modules` fit nothing in this base, or name the output layer.
    """
    if isinstance(adapter, FullFineTuning):
        return model
    from peft import LoraConfig, get_peft_model

    targets = adapter.target_modules
    config = LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=targets if isinstance(targets, str) else sorted(targets),
        task_type=_TASK_TYPES[family],
    )
    try:
        wrapped = get_peft_model(model, config)
    except ValueError as error:
        raise InputInvalid(
            "the adapter does not fit the base model",
            "recipes.adapter.target_modules",
            f"{targets}: {error}",
            "use all-linear, or names of linear layers of this base",
        ) from error
    if any(name.endswith("lm_head.lora_A") for name, _ in wrapped.named_modules()):
        raise InputInvalid(
            "the output layer takes no adapter",
            "recipes.adapter.target_modules",
            str(targets),
            "leave lm_head out, or use all-linear",
        )
    return wrapped
