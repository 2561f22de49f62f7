"""The weights of a base that is not on this machine, as its configuration tells them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ftaas_pipelines.training.base_facts import BaseFacts

Shapes = dict[str, tuple[int, ...]]
_UNGATED = ("gpt_neox",)


@dataclass(frozen=True)
class DescribedBase(BaseFacts):
    """A base by its configuration alone; there is no folder to read.

    Attributes:
        told: keys of its config.json.
    """

    told: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @cached_property
    def config(self) -> dict[str, Any]:
        return dict(self.told)

    @cached_property
    def shapes(self) -> Shapes:
        return _encoder_decoder(self.told) if self.told.get("is_encoder_decoder") else _causal(self.told)


def _causal(config: Mapping[str, Any]) -> Shapes:
    """Weights of Llama and its like; biases and norms, less than a thousandth, are left out."""
    width, inner, heads = (config[n] for n in ("hidden_size", "intermediate_size", "num_attention_heads"))
    head = config.get("head_dim") or width // heads
    attended, kept = heads * head, config.get("num_key_value_heads", heads) * head
    layer = {
        "self_attn.q_proj": (attended, width),
        "self_attn.k_proj": (kept, width),
        "self_attn.v_proj": (kept, width),
        "self_attn.o_proj": (width, attended),
        "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }
    if config.get("model_type") not in _UNGATED:
        layer["mlp.gate_proj"] = (inner, width)
    found: Shapes = {"model.embed_tokens.weight": (config["vocab_size"], width)}
    for i in range(config["num_hidden_layers"]):
        found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    if not config.get("tie_word_embeddings"):
        found["lm_head.weight"] = (config["vocab_size"], width)
    return found


def _encoder_decoder(config: Mapping[str, Any]) -> Shapes:
    """Weights of a T5."""
    width, inner = config["d_model"], config["d_ff"]
    attended = config["num_heads"] * config["d_kv"]
    attention = {n: (attended, width) for n in "qkv"} | {"o": (width, attended)}
    gated = str(config.get("feed_forward_proj", "")).startswith("gated")
    forward = {n: (inner, width) for n in (("wi_0", "wi_1") if gated else ("wi",))} | {"wo": (width, inner)}
    found: Shapes = {"shared.weight": (config["vocab_size"], width)}
    for stack, layers, crossed in (
        ("encoder", config["num_layers"], False),
        ("decoder", config["num_decoder_layers"], True),
    ):
        for i in range(layers):
            block = f"{stack}.block.{i}.layer"
            parts = [("SelfAttention", attention), *([("EncDecAttention", attention)] if crossed else [])]
            for at, (name, shapes) in enumerate([*parts, ("DenseReluDense", forward)]):
                found |= {f"{block}.{at}.{name}.{n}.weight": shape for n, shape in shapes.items()}
    if not config.get("tie_word_embeddings"):
        found["lm_head.weight"] = (config["vocab_size"], width)
    return found
