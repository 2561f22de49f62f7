"""Forward passes of the two families: next-token logits with a cache, and the loss of an answer.

Everything here is over one batch of padded rows; who is in the batch is decided in `decoding`.
"""

from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any, Protocol, cast

import torch  # noqa: TID253 imported by stage programs and the engine only
from transformers import PreTrainedModel, PreTrainedTokenizerBase  # noqa: TID253

from ftaas_pipelines.inference import bases, templates
from ftaas_pipelines.inference.templates import IGNORED


@dataclass
class Network:
    """One set of weights with its tokenizer. LoRA adapters live inside the base's network."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: bases.Family

    @cached_property
    def ends(self) -> frozenset[int]:
        """Token ids that end an answer."""
        generation = getattr(self.model, "generation_config", None)
        named: int | list[int] | None = getattr(generation, "eos_token_id", None)
        listed = named if isinstance(named, list) else [named]
        own = cast("int | None", self.tokenizer.eos_token_id)
        return frozenset(i for i in [*listed, own] if i is not None)

    @cached_property
    def accepts(self) -> frozenset[str]:
        """Names of the arguments that the model's forward takes."""
        return frozenset(signature(self.model.forward).parameters)

    @cached_property
    def context_tokens(self) -> int | None:
        """Most tokens of prompt and answer together; None where positions are relative (T5)."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)


def load(folder: Path) -> Network:
    model = bases.load_model(folder).eval()
    if torch.cuda.is_available():
        model.to("cuda")  # type: ignore[arg-type]
    return Network(model, bases.load_tokenizer(folder), bases.family(folder))


class Steps(Protocol):
    """Rows being decoded together."""

    def logits(self) -> torch.Tensor: ...

    def advance(self, tokens: list[int], going: list[int]) -> None: ...


def begin(network: Network, prompts: list[list[int]]) -> Steps:
    """Start decoding a batch of prompts (token ids)."""
    return CausalSteps(network, prompts) if network.family == "causal" else Seq2SeqSteps(network, prompts)


class CausalSteps:
    """Forward passes of a decoder-only model with a key-value cache, prompts padded on the left."""

    def __init__(self, network: Network, prompts: list[list[int]]):
        self._network = network
        self._ids, self._mask = _padded(prompts, network, left=True)
        self._positions = (self._mask.cumsum(1) - 1).clamp(min=0)
        self._cache: Any = None

    def logits(self) -> torch.Tensor:
        """Scores of the next token, `[rows, vocab]`."""
        extra: dict[str, Any] = {"position_ids": self._positions, "logits_to_keep": 1}
        out = self._network.model(
            input_ids=self._ids,
            attention_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
            **{k: v for k, v in extra.items() if k in self._network.accepts},
        )
        self._cache = out.past_key_values
        return out.logits[:, -1]

    def advance(self, tokens: list[int], going: list[int]) -> None:
        """Append a token to each row that goes on; the others leave mask and cache."""
        if len(going) < len(self._mask):
            keep = torch.tensor(going, device=self._mask.device)
            self._mask, self._positions = self._mask[keep], self._positions[keep]
            self._cache.batch_select_indices(keep)
        self._ids = torch.tensor(tokens, device=self._mask.device)[:, None]
        self._mask = torch.cat([self._mask, torch.ones_like(self._ids)], dim=1)
        self._positions = self._positions[:, -1:] + 1


class Seq2SeqSteps:
    """Forward passes of an encoder-decoder: the encoder once, then the decoder with its cache."""

    def __init__(self, network: Network, prompts: list[list[int]]):
        self._network = network
        ids, self._mask = _padded(prompts, network, left=False)
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


def _padded(sequences: list[list[int]], network: Network, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
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


def losses(network: Network, examples: list[templates.Example]) -> list[float]:
    """Mean cross-entropy of each example's last answer; zero where the context cut all of it off."""
    causal = network.family == "causal"
    logits, targets = (_causal_targets if causal else _seq2seq_targets)(network, examples)
    each = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
    )
    counts = (targets != IGNORED).sum(1)
    return (each.sum(1) / counts.clamp(min=1)).tolist()


def _causal_targets(network: Network, examples: list[templates.Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[rows, n, vocab]` and what each should have said `[rows, n]`, over the answers alone."""
    ids, mask = _padded([e.input_ids for e in examples], network, left=True)
    width = ids.shape[1]
    targets = torch.full_like(ids, IGNORED)
    first = width
    for row, example in enumerate(examples):
        start, end = (place + width - len(example.labels) for place in _last_answer(example.labels))
        targets[row, start:end] = ids[row, start:end]
        first = min(first, start)
    # On the left-padded batch the answers end together: only their logits are computed.
    extra: dict[str, Any] = {
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
        "logits_to_keep": min(width, width - first + 1),
    }
    extra = {k: v for k, v in extra.items() if k in network.accepts}
    logits = network.model(input_ids=ids, attention_mask=mask, use_cache=False, **extra).logits
    return logits[:, :-1], targets[:, width - logits.shape[1] + 1 :]


def _seq2seq_targets(
    network: Network, examples: list[templates.Example]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[rows, longest answer, vocab]` and the answers' tokens `[rows, longest answer]`."""
    ids, mask = _padded([e.input_ids for e in examples], network, left=False)
    targets, taught = _padded([e.labels for e in examples], network, left=False)
    targets = targets.masked_fill(taught == 0, IGNORED)
    return network.model(input_ids=ids, attention_mask=mask, labels=targets).logits, targets
