"""Loading what learns: the base, or the whole model that an earlier recipe made of it."""

from typing import TYPE_CHECKING, Any

from ftaas_pipelines.inference import bases
from ftaas_pipelines.projects.adapter import LoRA
from ftaas_pipelines.training.materials import Materials

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def language_model(materials: Materials, kind: Any = None, **more: Any) -> "PreTrainedModel":
    """The network of a base as this training wants it: precision, attention, quantisation, device.

    Frozen weights stand in bf16 where the training computes in it; weights that learn stand in fp32.

    Args:
        kind: the transformers auto class; None: the one of the base's family.
        more: what `from_pretrained` takes besides, such as num_labels.
    """
    import torch

    inputs = materials.inputs
    folder = materials.base
    if materials.init_from and not (materials.init_from / "adapter_config.json").is_file():
        folder = materials.init_from
    lora = inputs.adapter if isinstance(inputs.adapter, LoRA) else None
    options: dict[str, Any] = {"attn_implementation": inputs.training.attention, **more}
    on_gpu = torch.cuda.is_available()
    if lora and lora.quantise:
        options["quantization_config"] = _quantised(lora, inputs.training.precision)
        if on_gpu:
            options["device_map"] = {"": torch.cuda.current_device()}
    halved = lora and on_gpu and inputs.training.precision == "bf16"
    model = bases.load_model(folder, "bf16" if halved else "fp32", kind=kind, **options)
    if lora and lora.quantise == "nf4":
        _keep_layout(model)
    return model


def _keep_layout(model: "PreTrainedModel") -> None:
    """Keep 4-bit weights on a CPU as they are.

    Where it has AVX512-BF16, bitsandbytes 0.50 packs them at the first evaluation: from then on no gradient
    passes them, their constants are rounded to bf16, and a checkpoint unpacks them wrongly.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 no attribute of every Module


def _quantised(adapter: LoRA, precision: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    if adapter.quantise == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=adapter.double_quantise,
        bnb_4bit_compute_dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
    )
