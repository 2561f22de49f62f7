"""Low-rank adapters side by side in one base network: each row of a batch has its own.

PEFT loops over the adapters in every layer (32 rows of 20 adapters, 24 tokens: 0.87 CPU s). Here the
matrices of the rows are gathered, each row's once while it stays in its place, and every layer adds one
batched product (0.14 CPU s, whatever the number of adapters). What is no plain LoRA stays with PEFT.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch  # noqa: TID253 imported by stage programs and the engine only
from safetensors.torch import load_file
from torch import Tensor, nn  # noqa: TID253

_PREFIX = "base_model.model."
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
# Anything of these in an adapter's configuration changes more than `x A B` does.
_MORE = (
    "use_dora",
    "lora_bias",
    "fan_in_fan_out",
    "use_qalora",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
)


@dataclass(frozen=True)
class Adapter:
    """A plain LoRA: what it adds to each linear layer it has, by the layer's name.

    Attributes:
        down: `[in, rank]`.
        up: `[rank, out]`, the scale in it.
    """

    down: Mapping[str, Tensor]
    up: Mapping[str, Tensor]
    rank: int


def configuration(folder: Path) -> dict[str, Any]:
    """PEFT's configuration of an adapter's folder."""
    return json.loads((folder / "adapter_config.json").read_text("utf-8"))


def read(folder: Path, model: nn.Module, beside: Sequence[str] = ()) -> Adapter | None:
    """A plain LoRA from its folder; None where it is more than that (DoRA, whole embeddings, …).

    Args:
        beside: modules kept whole in the folder that somebody else takes care of (a classifier's head).
    """
    config = configuration(folder)
    kept = {*(config.get("modules_to_save") or ())} - {*beside}
    if config.get("peft_type") != "LORA" or kept or config.get("bias", "none") != "none":
        return None
    if any(config.get(name) for name in _MORE):
        return None
    weights = {
        name.removeprefix(_PREFIX): value
        for name, value in load_file(folder / "adapter_model.safetensors").items()
        if not any(name.endswith(f".{module}.weight") for module in beside)
    }
    names = {name.removesuffix(_DOWN) for name in weights if name.endswith(_DOWN)}
    if not names or weights.keys() != {n + end for n in names for end in (_DOWN, _UP)}:
        return None
    if len({len(weights[name + _DOWN]) for name in names}) > 1:
        return None
    if not all(isinstance(_linear(model, name), nn.Linear) for name in names):
        return None
    rank = len(weights[next(iter(names)) + _DOWN])
    scale = config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank)
    at: Any = next(model.parameters())
    kind = {"device": at.device, "dtype": at.dtype}
    return Adapter(
        {n: weights[n + _DOWN].to(**kind).t().contiguous() for n in sorted(names)},
        {n: (weights[n + _UP].to(**kind).t() * scale).contiguous() for n in sorted(names)},
        rank,
    )


def _linear(model: nn.Module, name: str) -> nn.Module | None:
    """The layer of this name: the plain one, also where PEFT has put its own around it."""
    try:
        module = model.get_submodule(name)
    except AttributeError:
        return None
    inner: Any = getattr(module, "base_layer", module)
    return inner


class _Layer:
    """What one linear layer adds for the rows at work: nothing, one adapter's product, or one a row."""

    def __init__(self, inputs: int, outputs: int):
        self.inputs, self.outputs = inputs, outputs
        self.one: tuple[Tensor, Tensor] | None = None
        self.each: tuple[Tensor, Tensor] | None = None

    def __call__(self, linear: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self.one:
            down, up = self.one
            return output + (given[0] @ down) @ up
        if self.each:  # [rows, n, in] x [rows, in, rank] x [rows, rank, out]
            down, up = self.each
            return torch.baddbmm(output, torch.bmm(given[0], down), up)
        return output


class Bank:
    """The plain adapters of one rank in one network. Whoever computes says before which rows are at work.

    An adapter lies in one piece, layer behind layer, zeros where it has none. A place in a batch is a copy
    of one: as long as a row keeps its place, nothing is copied.
    """

    def __init__(self, model: nn.Module, rank: int):
        self._model, self.rank = model, rank
        self._layers: dict[str, _Layer] = {}
        self._adapters: dict[str, Tensor] = {}  # [size]
        self._places: Tensor | None = None  # [places, size]
        self._in_place: list[str | None] = []
        self._merged: set[str] = set()
        self._chosen: tuple[str | None, ...] | None = None

    def __contains__(self, name: str | None) -> bool:
        return name in self._adapters

    @property
    def names(self) -> list[str]:
        return sorted(self._adapters)

    def add(self, name: str, adapter: Adapter) -> None:
        assert adapter.rank == self.rank
        for layer in adapter.down.keys() - self._layers.keys():
            shape = (len(adapter.down[layer]), adapter.up[layer].shape[1])
            self._grow(layer, _Layer(*shape))
        pieces: list[Tensor] = []
        like = next(iter(adapter.down.values()))
        for layer, known in self._layers.items():
            has = layer in adapter.down
            pieces.append(adapter.down[layer] if has else like.new_zeros(known.inputs, self.rank))
            pieces.append(adapter.up[layer] if has else like.new_zeros(self.rank, known.outputs))
        self._adapters[name] = torch.cat([p.reshape(-1) for p in pieces])
        self._forget_places()

    def _grow(self, name: str, layer: _Layer) -> None:
        """Know one more layer: those that were here add nothing in it."""
        linear = _linear(self._model, name)
        assert linear is not None
        linear.register_forward_hook(layer)
        self._layers[name] = layer
        more = (layer.inputs + layer.outputs) * self.rank
        for known, weights in self._adapters.items():
            self._adapters[known] = torch.cat([weights, weights.new_zeros(more)])

    def remove(self, name: str) -> None:
        del self._adapters[name]
        self._merged.discard(name)
        self._forget_places()

    def _forget_places(self) -> None:
        self._places, self._in_place = None, []
        self.choose(())

    def choose(self, rows: Sequence[str | None]) -> None:
        """Set the adapter of each row of the batches to come; None is the base, so is no row at all.

        Where all rows have the same, batches may have any number of rows.
        """
        chosen = tuple(rows)
        if chosen == self._chosen:
            return
        self._chosen = chosen
        if len({*chosen}) > 1:
            self._gather(chosen)
            return
        only = chosen[0] if chosen and chosen[0] not in self._merged else None
        weights = self._adapters[only][None] if only else None
        for layer, pair in self._views(weights):
            layer.each = None
            layer.one = (pair[0][0], pair[1][0]) if pair else None

    def _gather(self, rows: tuple[str | None, ...]) -> None:
        if self._places is None or len(rows) > len(self._places):
            some = next(iter(self._adapters.values()))
            self._places = some.new_zeros(2 * len(rows), len(some))
            self._in_place = [None] * len(self._places)
        for place, name in enumerate(rows):
            if self._in_place[place] != name:
                if name:
                    self._places[place].copy_(self._adapters[name])
                else:
                    self._places[place].zero_()
                self._in_place[place] = name
        for layer, pair in self._views(self._places[: len(rows)]):
            layer.one, layer.each = None, pair

    def _views(self, weights: Tensor | None) -> Iterator[tuple[_Layer, tuple[Tensor, Tensor] | None]]:
        """Each layer's part of whole adapters `[rows, size]`: `[rows, in, rank]` and `[rows, rank, out]`."""
        at = 0
        for layer in self._layers.values():
            middle, end = at + layer.inputs * self.rank, at + (layer.inputs + layer.outputs) * self.rank
            if weights is None:
                yield layer, None
            else:
                down = weights[:, at:middle].unflatten(1, (layer.inputs, self.rank))
                yield layer, (down, weights[:, middle:end].unflatten(1, (self.rank, layer.outputs)))
            at = end

    def merge(self, name: str) -> None:
        """Work an adapter into the base's own weights, for good: it has the network to itself."""
        with torch.no_grad():
            names = list(self._layers)
            for layer, (_, pair) in zip(names, self._views(self._adapters[name][None]), strict=True):
                linear: Any = _linear(self._model, layer)
                assert pair is not None
                linear.weight += (pair[0][0] @ pair[1][0]).t()
        self._merged.add(name)
        self._forget_places()
