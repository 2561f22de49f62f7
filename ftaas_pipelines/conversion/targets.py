"""The forms an adapter can be given, and which of them a model admits. Pure: nothing heavy is loaded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ftaas_pipelines.conversion.inputs import Precision, Target
from ftaas_pipelines.errors import InputInvalid

_WEIGHTS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
_DTYPES: dict[str, Precision] = {
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
}  # as config.json says them
# Methods whose result gives no answers: nothing could be compared.
_WITHOUT_ANSWERS = ("reward", "classification")


@dataclass(frozen=True)
class Form:
    """What a target is.

    Attributes:
        what: what is written.
        families: of base models that it can be made of.
        precisions: that may be asked for; the first is the default, none means the base's own.
    """

    what: str
    families: tuple[str, ...]
    precisions: tuple[Precision, ...] = ()


FORMS: dict[Target, Form] = {
    "merged": Form("one model folder, the adapter inside", ("causal", "seq2seq")),
    "gguf": Form("one file for llama.cpp", ("causal",), ("fp16", "fp32", "q8_0")),
    "onnx": Form("a graph for ONNX Runtime, with key-value cache", ("causal",), ("fp32", "int8")),
    "int8": Form("a model folder with LLM.int8() weights", ("causal", "seq2seq")),
    "int4": Form("a model folder with NF4 weights", ("causal", "seq2seq")),
    "pruned": Form("a model folder with its smallest weights at zero", ("causal", "seq2seq")),
}


def resolve(
    target: str, precision: str | None, sparsity: float | None, config: Mapping[str, Any]
) -> tuple[Target, Precision, float]:
    """Target, precision and sparsity with every default written in.

    Args:
        config: `config.json` of the model that is converted.

    Raises:
        InputInvalid: there is no such target, or it does not take these options.
    """
    form = FORMS.get(cast(Target, target))
    if form is None:
        raise InputInvalid("is no form to convert to", "--to", target, f"use one of {', '.join(FORMS)}")
    own = precision_of(config)
    allowed = form.precisions or (own, *(p for p in _WEIGHTS if p != own))
    if precision is not None and precision not in allowed:
        raise InputInvalid(
            f"{target} takes no such precision", "--precision", precision, f"use {' or '.join(allowed)}"
        )
    if sparsity is not None and target != "pruned":
        raise InputInvalid("only pruned takes a sparsity", "--sparsity", f"{sparsity:g}", "leave it out")
    share = 0.3 if sparsity is None else sparsity
    if not 0 < share < 1:
        raise InputInvalid("is no share between 0 and 1", "--sparsity", f"{share:g}", "use 0.3, say")
    chosen = precision or allowed[0]
    return cast(Target, target), cast(Precision, chosen), share if target == "pruned" else 0.0


def precision_of(config: Mapping[str, Any]) -> Precision:
    """The precision that a model's weights lie in, as its `config.json` says it; fp32 where it does not."""
    return _DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")), "fp32")


def configuration(folder: Path) -> dict[str, Any]:
    """The `config.json` of a model folder.

    Raises:
        InputInvalid: it cannot be read.
    """
    file = folder / "config.json"
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputInvalid(
            "is not a model folder: its config.json cannot be read", str(file), type(error).__name__
        ) from None


def check(target: Target, family: str, method: str, config: Mapping[str, Any]) -> None:
    """Make sure that this model can be given that form, before anything is loaded.

    Args:
        config: `config.json` of the model that is converted.

    Raises:
        InputInvalid: it cannot; says what can.
    """
    if method in _WITHOUT_ANSWERS:
        raise InputInvalid(
            f"an adapter of method {method} gives no answers to hold a conversion against",
            "adapter",
            method,
            "convert an adapter that answers",
        )
    if family not in FORMS[target].families:
        others = [name for name, form in FORMS.items() if family in form.families]
        raise InputInvalid(
            f"{target} is not written for {family} models",
            "--to",
            target,
            f"it is for {' and '.join(FORMS[target].families)}"
            + (f"; {family} can become {', '.join(others)}" if others else ""),
        )
    problem = {"gguf": _not_gguf, "onnx": _not_onnx}.get(target, _nothing)(config)
    if problem:
        what, got = f"this model cannot become {target}: {problem}", str(config.get("model_type"))
        raise InputInvalid(what, "config.json: model_type", got, _SUPPORTED[target])


_SUPPORTED: dict[Target, str] = {
    "gguf": "GGUF is written for Llama models (RoPE unscaled, no biases); for others convert to merged, "
    "and let llama.cpp's convert_hf_to_gguf.py do the rest",
    "onnx": "ONNX is written for decoder-only models with full attention in every layer",
}


def _nothing(_: Mapping[str, Any]) -> str:
    return ""


def _not_gguf(config: Mapping[str, Any]) -> str:
    if config.get("model_type") != "llama":
        return "it is no Llama"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
        return f"its RoPE is scaled ({kind})"
    return "its layers have biases" if config.get("attention_bias") or config.get("mlp_bias") else ""


def _not_onnx(config: Mapping[str, Any]) -> str:
    kinds = set(config.get("layer_types") or ["full_attention"])
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        kinds.add("sliding_attention")
    kinds.discard("full_attention")
    return f"it has layers of {', '.join(sorted(kinds))}" if kinds else ""
