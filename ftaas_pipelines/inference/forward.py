"""Forward passes of the families: next-token logits with a cache, and the loss of an answer.

Everything here is over one batch of padded rows; who is in the batch is decided in `decoding`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch  # noqa: TID253 imported by stage programs and the engine only
from transformers import PreTrainedModel, PreTrainedTokenizerBase  # noqa: TID253
from transformers.cache_utils import DynamicCache, DynamicLayer  # noqa: TID253

from ftaas_pipelines.inference import bases, pictures, templates
from ftaas_pipelines.inference.prefixes import Layer, Prefix
from ftaas_pipelines.inference.templates import IGNORED, Example, Message
from ftaas_pipelines.inference.tools import Style, Tool, style_of

if TYPE_CHECKING:
    from ftaas_pipelines.inference.grammar import Grammars


@dataclass
class Network:
    """One set of weights with its tokenizer. LoRA adapters live inside the base's network.

    Attributes:
        viewer: what sees the images, of a vision-language base.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: bases.Family
    viewer: pictures.Viewer | None = None

    def prompt_ids(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """The tokens it is shown before it answers."""
        if self.viewer:
            return self.viewer.prompt_ids(messages)
        return templates.prompt_ids(self.tokenizer, messages, self.family, tools=tools)

    def example(self, messages: Sequence[Message], max_tokens: int) -> Example:
        """Tokens and labels of a conversation, as training teaches it."""
        if self.viewer:
            return self.viewer.example(messages, max_tokens)
        return templates.example(self.tokenizer, messages, self.family, max_tokens)

    def images(self, ids: list[int], messages: Sequence[Message]) -> list[pictures.Shown]:
        """The images that stand in the tokens of a conversation."""
        return self.viewer.within(ids, messages) if self.viewer else []

    def seen(self, ids: torch.Tensor, images: Sequence[pictures.Shown]) -> dict[str, torch.Tensor]:
        """What a forward pass over these tokens `[rows, n]` is given of the images in them."""
        return self.viewer.inputs(images, ids, self.accepts) if self.viewer else {}

    def positions(self, ids: torch.Tensor, mask: torch.Tensor, seen: dict[str, torch.Tensor]) -> torch.Tensor:
        """Places of the tokens, counted without padding, `[rows, n]`.

        `[3, rows, n]` in networks that also count rows and columns of an image (Qwen's M-RoPE).
        """
        index: Any = getattr(getattr(self.model, "model", None), "get_rope_index", None)
        if index is None or "image_grid_thw" not in seen:
            return (mask.cumsum(1) - 1).clamp(min=0)
        return index(ids, seen["mm_token_type_ids"], seen["image_grid_thw"], attention_mask=mask)[0]

    @cached_property
    def ends(self) -> frozenset[int]:
        """Token ids that end an answer."""
        generation = getattr(self.model, "generation_config", None)
        named: int | list[int] | None = getattr(generation, "eos_token_id", None)
        listed = named if isinstance(named, list) else [named]
        own = cast("int | None", self.tokenizer.eos_token_id)
        return frozenset(i for i in [*listed, own] if i is not None)

    @cached_property
    def grammars(self) -> "Grammars":
        """What its answers can be held to."""
        from ftaas_pipelines.inference.grammar import Grammars

        return Grammars(self.tokenizer, int(self.model.config.get_text_config().vocab_size), self.ends)

    @cached_property
    def calls(self) -> Style | None:
        """How it calls tools; None: it does not."""
        return style_of(self.tokenizer) if self.family == "causal" else None

    @cached_property
    def accepts(self) -> frozenset[str]:
        """Names of the arguments that the model's forward takes."""
        return frozenset(signature(self.model.forward).parameters)

    @cached_property
    def context_tokens(self) -> int | None:
        """Most tokens of prompt and answer together; None where positions are relative (T5)."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)


def load(folder: Path, images: Path | None = None) -> Network:
    """The network in a folder; `images` is the folder in which a vision-language base finds its images."""
    model = bases.load_model(folder).eval()
    if torch.cuda.is_available():
        model.to("cuda")  # type: ignore[arg-type]
    family = bases.family(folder)
    if family != "vision":
        return Network(model, bases.load_tokenizer(folder), family)
    viewer = pictures.Viewer(bases.load_processor(folder), images)
    return Network(model, viewer.tokenizer, family, viewer)


class Steps(Protocol):
    """Rows being decoded together."""

    @property
    def joinable(self) -> bool:
        """Whether other rows, begun later, can be decoded with these."""
        ...

    def logits(self) -> torch.Tensor: ...

    def advance(self, tokens: list[int], going: list[int]) -> None: ...


def begin(
    network: Network,
    prompts: list[list[int]],
    images: Sequence[pictures.Shown] = (),
    prefixes: Sequence[Prefix] = (),
) -> Steps:
    """Start decoding a batch of prompts (token ids) with the images in them, in the order of the rows.

    Args:
        prefixes: causal: the beginning of each prompt, where all have been read before.
    """
    if network.family == "seq2seq":
        return Seq2SeqSteps(network, prompts)
    return CausalSteps(network, prompts, images, prefixes)


class CausalSteps:
    """Forward passes of a decoder-only model with a key-value cache, prompts padded on the left."""

    def __init__(
        self,
        network: Network,
        prompts: list[list[int]],
        images: Sequence[pictures.Shown] = (),
        prefixes: Sequence[Prefix] = (),
    ):
        self._network = network
        self._cache: Any = None
        if prefixes:
            prompts = [p[len(known.tokens) :] for p, known in zip(prompts, prefixes, strict=True)]
        self._ids, self._mask = padded(prompts, network, left=True)
        self._seen = network.seen(self._ids, images)
        if prefixes:
            self._cache, before = _read_before(prefixes)
            self._mask = torch.cat([before.to(self._mask), self._mask], dim=1)
        self._positions = network.positions(self._ids, self._mask, self._seen)[..., -self._ids.shape[1] :]

    def read(self, row: int, count: int) -> list[Layer]:
        """Keys and values of a row's first tokens, as they are behind the first `logits`."""
        places = self._mask[row].nonzero()[:count, 0]
        return [
            (layer.keys[row][:, places].clone(), layer.values[row][:, places].clone())
            for layer in self._cache.layers
        ]

    def logits(self) -> torch.Tensor:
        """Scores of the next token, `[rows, vocab]`."""
        extra: dict[str, Any] = {"position_ids": self._positions, "logits_to_keep": 1}
        out = self._network.model(
            input_ids=self._ids,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            **self._seen,
            **{k: v for k, v in extra.items() if k in self._network.accepts},
        )
        self._cache, self._seen = out.past_key_values, {}
        return out.logits[:, -1]

    @property
    def joinable(self) -> bool:
        # A sliding window, or a state that is no list of keys and values, cannot be padded on the left.
        layers = getattr(self._cache, "layers", [None])
        return self._network.family == "causal" and all(type(layer) is DynamicLayer for layer in layers)

    def join(self, others: "CausalSteps") -> None:
        """Take rows in behind those that are here; both are joinable, and have been advanced.

        Rows end together: the shorter side is padded on the left, in its mask and in its cache.
        """
        width, other = self._mask.shape[1], others._mask.shape[1]
        self._widen(other - width)
        others._widen(width - other)
        self._ids = torch.cat([self._ids, others._ids])
        self._mask = torch.cat([self._mask, others._mask])
        self._positions = torch.cat([self._positions, others._positions])
        for mine, theirs in zip(self._cache.layers, others._cache.layers, strict=True):
            mine.keys = torch.cat([mine.keys, theirs.keys])
            mine.values = torch.cat([mine.values, theirs.values])

    def _widen(self, by: int) -> None:
        if by <= 0:
            return
        self._mask = torch.nn.functional.pad(self._mask, (by, 0))
        for layer in self._cache.layers:
            layer.keys = torch.nn.functional.pad(layer.keys, (0, 0, by, 0))
            layer.values = torch.nn.functional.pad(layer.values, (0, 0, by, 0))

    def _narrow(self) -> None:
        """Drop what is padding in every row: the longest has left."""
        gap = int(self._mask.any(0).int().argmax())
        if gap and self.joinable:
            self._mask = self._mask[:, gap:]
            for layer in self._cache.layers:
                layer.keys, layer.values = layer.keys[:, :, gap:], layer.values[:, :, gap:]

    def advance(self, tokens: list[int], going: list[int]) -> None:
        """Append a token to each row that goes on; the others leave mask and cache."""
        if len(going) < len(self._mask):
            keep = torch.tensor(going, device=self._mask.device)
            self._mask, self._positions = self._mask[keep], self._positions[..., keep, :]
            self._cache.batch_select_indices(keep)
            self._narrow()
        self._ids = torch.tensor(tokens, device=self._mask.device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(self._ids)], dim=1)
        self._positions = self._positions[..., -1:] + 1


def _read_before(prefixes: Sequence[Prefix]) -> tuple[DynamicCache, torch.Tensor]:
    """A cache of beginnings, a row each, padded on the left; and its mask, `[rows, n]`."""
    width = max(len(p.tokens) for p in prefixes)
    gaps = [width - len(p.tokens) for p in prefixes]
    cache = DynamicCache()
    for number in range(len(prefixes[0].layers)):
        keys, values = (
            torch.stack(
                [
                    torch.nn.functional.pad(p.layers[number][side], (0, 0, gap, 0))
                    for p, gap in zip(prefixes, gaps, strict=True)
                ]
            )
            for side in (0, 1)
        )
        cache.update(keys, values, number)
    return cache, torch.tensor([[0] * gap + [1] * (width - gap) for gap in gaps])


class Seq2SeqSteps:
    """Forward passes of an encoder-decoder: the encoder once, then the decoder with its cache."""

    joinable = False  # its decoder counts places from the cache's beginning, padding included

    def __init__(self, network: Network, prompts: list[list[int]]):
        self._network = network
        ids, self._mask = padded(prompts, network, left=False)
        self._encoded = network.model.get_encoder()(input_ids=ids, attention_mask=self._mask)
        start = cast(int, network.model.config.decoder_start_token_id)
        self._ids = torch.full_like(ids[:, :1], start)
        self._cache: Any = None

    def logits(self) -> torch.Tensor:
        """Scores of the next token, `[rows, vocab]`."""
        out = self._network.model(
            encoder_outputs=self._encoded,
            attention_mask=self._mask,
            decoder_input_ids=self._ids,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = out.past_key_values
        return out.logits[:, -1]

    def advance(self, tokens: list[int], going: list[int]) -> None:
        """Append a token to each row that goes on; the others leave mask, cache and encoding."""
        if len(going) < len(self._mask):
            keep = torch.tensor(going, device=self._mask.device)
            self._mask = self._mask[keep]
            self._encoded.last_hidden_state = self._encoded.last_hidden_state[keep]
            self._cache.batch_select_indices(keep)
        self._ids = torch.tensor(tokens, device=self._mask.device)[:, None]


def batches(sequences: list[list[int]], size: int) -> Iterator[list[int]]:
    """Indices in batches, longest first: little padding, and too much memory shows at once."""
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def padded(sequences: list[list[int]], network: Network, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both `[rows, longest]`."""
    width = max(len(s) for s in sequences)
    pad = cast(int, network.tokenizer.pad_token_id)

    def widen(values: list[int], filler: int) -> list[int]:
        gap = [filler] * (width - len(values))
        return gap + values if left else values + gap

    ids = torch.tensor([widen(s, pad) for s in sequences], device=network.model.device)
    mask = torch.tensor([widen([1] * len(s), 0) for s in sequences], device=network.model.device)
    return ids, mask


def _last_answer(labels: list[int]) -> tuple[int, int]:
    """Start and end of the last unbroken run of taught labels."""
    end = len(labels)
    while end and labels[end - 1] == IGNORED:
        end -= 1
    start = end
    while start and labels[start - 1] != IGNORED:
        start -= 1
    return start, end


def losses(network: Network, examples: list[Example], images: Sequence[pictures.Shown] = ()) -> list[float]:
    """Mean cross-entropy of each example's last answer; zero where the context cut all of it off.

    Args:
        images: those in the examples, in their order.
    """
    if network.family == "seq2seq":
        logits, targets = _seq2seq_targets(network, examples)
    else:
        logits, targets = _causal_targets(network, examples, images)
    each = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    counts = (targets != IGNORED).sum(1)
    return (each.sum(1) / counts.clamp(min=1)).tolist()


def _causal_targets(
    network: Network, examples: list[Example], images: Sequence[pictures.Shown]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[rows, n, vocab]` and what each should have said `[rows, n]`, over the answers alone."""
    ids, mask = padded([e.input_ids for e in examples], network, left=True)
    width = ids.shape[1]
    targets = torch.full_like(ids, IGNORED)
    first = width
    for row, example in enumerate(examples):
        start, end = (place + width - len(example.labels) for place in _last_answer(example.labels))
        targets[row, start:end] = ids[row, start:end]
        first = min(first, start)
    # On the left-padded batch the answers end together: only their logits are computed.
    seen = network.seen(ids, images)
    extra: dict[str, Any] = {
        "position_ids": network.positions(ids, mask, seen),
        "logits_to_keep": min(width, width - first + 1),
    }
    extra = {k: v for k, v in extra.items() if k in network.accepts} | seen
    logits = network.model(input_ids=ids, attention_mask=mask, use_cache=False, **extra).logits
    return logits[:, :-1], targets[:, width - logits.shape[1] + 1 :]


def _seq2seq_targets(network: Network, examples: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[rows, longest answer, vocab]` and the answers' tokens `[rows, longest answer]`."""
    ids, mask = padded([e.input_ids for e in examples], network, left=False)
    targets, taught = padded([e.labels for e in examples], network, left=False)
    targets = targets.masked_fill(taught == 0, IGNORED)
    return network.model(input_ids=ids, attention_mask=mask, labels=targets).logits, targets
