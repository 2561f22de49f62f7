"""A base model as far as time and memory depend on it: sizes, read off its folder. Light: no torch."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from ftaas_pipelines.projects.adapter import Adapter, LoRA
from ftaas_pipelines.training.base_facts import OUTPUTS, BaseFacts

_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "F8_E4M3": 1}


@dataclass(frozen=True)
class Stack:
    """One stack of layers.

    Attributes:
        width: of the residual stream; `attended` of all query heads together, `kept` of all key heads.
        inner: of the feed-forward part; `gated`: it has two of them (SwiGLU).
        crossed: its layers also attend to an encoder.
        multiplied: parameters that every token of this stack is multiplied with.
    """

    layers: int
    width: int
    heads: int
    attended: int
    kept: int
    inner: int
    gated: bool
    crossed: bool
    multiplied: int


@dataclass(frozen=True)
class Network:
    """A base model.

    Attributes:
        decoder: the stack that writes; a causal base has no other.
        encoder: the stack that reads, of an encoder-decoder.
        vocabulary: rows of the output layer; `output` its parameters, which every written token meets.
        parameters: numbers in the checkpoint; `frozen_small` of them stay as they are when it is quantised.
        linears: `[out, in]` of each linear layer but the output, by module name.
        image_tokens: that one image becomes; 0 for a base that sees none.
    """

    decoder: Stack
    encoder: Stack | None
    vocabulary: int
    output: int
    parameters: int
    frozen_small: int
    linears: dict[str, tuple[int, int]]
    image_tokens: int = 0

    @property
    def layers(self) -> int:
        return self.decoder.layers + (self.encoder.layers if self.encoder else 0)

    def targets(self, adapter: LoRA) -> dict[str, tuple[int, int]]:
        """The linear layers that an adapter stands beside, by name."""
        wanted = adapter.target_modules
        if wanted == "all-linear":
            return {name: shape for name, shape in self.linears.items() if not _of_images(name)}
        names = [wanted] if isinstance(wanted, str) else wanted
        return {n: s for n, s in self.linears.items() if any(n == w or n.endswith("." + w) for w in names)}

    def trained(self, adapter: Adapter) -> int:
        """How many numbers learn."""
        if not isinstance(adapter, LoRA):
            return self.parameters
        targets = self.targets(adapter).values()
        count = sum(adapter.r * (out + inn) + (out if adapter.dora else 0) for out, inn in targets)
        return count + (self.parameters - self.body if adapter.embeddings else 0)

    @property
    def body(self) -> int:
        """Parameters of the linear layers."""
        return sum(prod(shape) for shape in self.linears.values())


def read(folder: Path) -> Network:
    """The network in a folder.

    Raises:
        InputInvalid: a file of it cannot be read.
    """
    return of(BaseFacts(folder))


def of(facts: BaseFacts) -> Network:
    """The network that a folder, or the catalogue, tells of."""
    config = facts.text_config
    vocabulary = facts.rows or int(config.get("vocab_size", 0))
    width = _number(config, "hidden_size", "d_model", "n_embd")
    both = bool(config.get("is_encoder_decoder"))
    linears = facts.linears
    own = {name: shape for name, shape in linears.items() if not _of_images(name)}
    decoding = {n: s for n, s in own.items() if not both or "decoder." in n}
    named = next(
        (s for n, s in facts.shapes.items() if n.removesuffix(".weight").rpartition(".")[2] in OUTPUTS), None
    )
    body = sum(prod(shape) for shape in linears.values())
    return Network(
        decoder=_stack(config, decoding, width, crossed=both),
        encoder=_stack(config, {n: s for n, s in own.items() if n not in decoding}, width) if both else None,
        vocabulary=named[0] if named else vocabulary,
        output=prod(named) if named else vocabulary * width,
        parameters=facts.parameters,
        frozen_small=facts.parameters - body,
        linears=linears,
        image_tokens=_image_tokens(facts.config),
    )


def _stack(
    config: dict[str, Any], linears: dict[str, tuple[int, int]], width: int, crossed: bool = False
) -> Stack:
    layers = _number(config, "num_decoder_layers") if crossed else 0
    layers = layers or _number(config, "num_hidden_layers", "num_layers", "n_layer")
    heads = _number(config, "num_attention_heads", "num_heads", "n_head") or 1
    head = _number(config, "head_dim", "d_kv") or width // heads
    kept = _number(config, "num_key_value_heads") or heads
    gated = any("gate_proj" in n or "gate_up" in n or n.endswith((".w1", ".wi_0")) for n in linears)
    return Stack(
        layers=layers,
        width=width,
        heads=heads,
        attended=heads * head,
        kept=kept * head,
        inner=_number(config, "intermediate_size", "d_ff", "n_inner") or 4 * width,
        gated=gated,
        crossed=crossed,
        multiplied=round(sum(prod(s) * _met(n, config) for n, s in linears.items())),
    )


def _met(name: str, config: dict[str, Any]) -> float:
    """The share of tokens that meet a layer: an expert of a mixture is asked by few."""
    experts = _number(config, "num_local_experts", "num_experts", "n_routed_experts")
    asked = _number(config, "num_experts_per_tok")
    return asked / experts if ".experts." in name and experts and asked else 1.0


def _of_images(name: str) -> bool:
    """Whether a layer is of the image encoder, which only `train_vision_tower` adapts."""
    return "vision" in name or "visual" in name


def _image_tokens(config: dict[str, Any]) -> int:
    """Tokens that one image becomes: its patches, as far as the model does not fold them together."""
    vision: dict[str, Any] = config.get("vision_config") or {}
    size, patch = _number(vision, "image_size"), _number(vision, "patch_size")
    if not size or not patch:
        return 0
    folded = _number(config, "scale_factor") or 1
    return max(1, (size // patch) ** 2 // folded**2)


def _number(config: dict[str, Any], *names: str) -> int:
    """The first of these that the configuration gives as a number; 0 for none."""
    return next((int(v) for n in names if isinstance(v := config.get(n), int | float) and v), 0)
