"""The engine: a base model, its adapters, and the one way text comes out of them.

Evaluation calls it in batches, the server with single prompts; in fp32 both get the same tokens,
so what was evaluated is what is served. The loop is our own: as fast a step as transformers'
`generate`, but finished rows leave the batch, and a row's sampling never depends on its neighbours.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import torch  # noqa: TID253 imported by stage programs and the engine only

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.inference import classifier, forward
from ftaas_pipelines.inference.forward import Network
from ftaas_pipelines.inference.pictures import Shown
from ftaas_pipelines.inference.templates import Message

Prompt = Sequence[Message]
BATCH = 32
_UNFINISHED_CHARACTER = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        token_ids: what was generated, without the end token.
        finish_reason: `stop` for the end token or a stop string, `length` for the token limit.
    """

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked. Temperature 0 is greedy and ignores the rest."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: Sequence[str] = ()


GREEDY = Sampling()


class Model:
    """A base model and any number of adapters (PEFT LoRA, or whole fine-tuned models), in fp32.

    Adapters that hold labels answer with one of them; the others write. Calls from several threads wait for
    each other.

    Args:
        base: folder of the base model; read when first needed.
        adapters: name to folder.
        threads: CPU threads of torch; None leaves them alone.
        images: folder that holds the `images/` of the prompts, for a vision-language base.
    """

    def __init__(
        self,
        base: Path,
        adapters: dict[str, Path] | None = None,
        threads: int | None = None,
        images: Path | None = None,
    ):
        if threads is not None:
            torch.set_num_threads(threads)
        self._base_path, self._images = base, images
        self._base_network: Network | None = None
        self._peft: Any = None
        self._lora: set[str] = set()
        self._full: dict[str, Network] = {}
        self._heads: dict[str, classifier.Head] = {}
        self._lock = threading.RLock()
        for name, folder in (adapters or {}).items():
            self.add(name, folder)

    @property
    def adapters(self) -> list[str]:
        """The names that `generate` and `loss` know, sorted."""
        return sorted({*self._lora, *self._full})

    def add(self, name: str, folder: Path) -> None:
        """Load an adapter under a name (no dots: PEFT makes a module of it)."""
        labels = classifier.labels_of(folder)
        with self._lock:
            if not (folder / "adapter_config.json").is_file():
                if labels:
                    self._full[name], self._heads[name] = classifier.load_whole(folder, labels)
                else:
                    self._full[name] = forward.load(folder, self._images)
                return
            from peft import PeftModel

            if labels:
                loaded = classifier.load_beside(self._base, self._peft, name, folder, labels)
                self._peft, self._heads[name] = loaded
            elif self._peft is None:
                # The base learns LoRA in place; calling it directly keeps its own forward signature.
                self._peft = PeftModel.from_pretrained(cast(Any, self._base.model), folder, adapter_name=name)
            else:
                self._peft.load_adapter(folder, adapter_name=name)
            self._peft.eval()
            self._lora.add(name)

    def hold(self, name: str, network: Network) -> None:
        """Take a network that was loaded elsewhere (GGUF, ONNX), under a name."""
        with self._lock:
            self._full[name] = network

    def remove(self, name: str) -> None:
        """Forget an adapter and free its memory."""
        with self._lock:
            self._full.pop(name, None)
            self._heads.pop(name, None)
            if name in self._lora:
                self._lora.remove(name)
                self._peft.delete_adapter(name)
                if self._lora:  # PEFT forgets it, but not that it was the one at work
                    self._peft.set_adapter(min(self._lora), inference_mode=True)
                else:  # PEFT's layers cannot be without an adapter: begin with a clean base
                    self._peft, self._base_network = None, None

    def context_tokens(self, adapter: str | None = None) -> int | None:
        """Most tokens of prompt and answer together; None without a limit."""
        return self._network(adapter).context_tokens

    def generate(
        self,
        prompts: Sequence[Prompt],
        adapter: str | None = None,
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        batch_size: int = BATCH,
        on_batch: Callable[[int], None] | None = None,
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[Generation]:
        """Answer prompts, in their order. Greedy answers do not depend on how they are batched.

        A label comes whole and at once, however it is sampled.

        Args:
            prompts: each a list of messages that ends before the answer.
            adapter: whose answers; None: the base's.
            max_new_tokens: at most so many; fewer where the model's context ends. A prompt that
                fills the context gets an empty answer with finish reason `length`.
            sampling: how tokens are picked, and the strings that stop an answer.
            batch_size: prompts decoded together.
            on_batch: called with how many prompts are done.
            on_text: called with a prompt's index and the text it just got (streaming).

        Raises:
            InputInvalid: no such adapter, or an image of a prompt cannot be had.
        """
        network = self._network(adapter)
        ids = [network.prompt_ids(p) for p in prompts]
        if adapter in self._heads:
            return self._named(ids, adapter, batch_size, on_batch, on_text)
        rows = [
            _Row(
                network,
                i,
                p,
                network.images(p, prompts[i]),
                _room(network, p, max_new_tokens),
                sampling,
                on_text,
            )
            for i, p in enumerate(ids)
        ]
        done = 0
        for indices in forward.batches(ids, batch_size):
            batch = [rows[i] for i in indices]
            with self._only(adapter), torch.inference_mode():
                _decode(network, [r for r in batch if r.room > 0])
            done += len(batch)
            if on_batch:
                on_batch(done)
        return [row.generation() for row in rows]

    def loss(
        self,
        prompts: Sequence[Prompt],
        answers: Sequence[str],
        adapter: str | None = None,
        *,
        batch_size: int = BATCH // 2,
    ) -> list[float]:
        """Mean cross-entropy (nats) of each answer's tokens, its end token included.

        The tokens are those that training teaches (`templates.example`), of the last answer only. Where the
        adapter names labels: the cross-entropy of the label.
        """
        network = self._network(adapter)
        if adapter in self._heads:
            logits = self._label_scores([network.prompt_ids(p) for p in prompts], adapter, batch_size)
            return classifier.losses(self._heads[adapter], logits, list(answers))
        limit = network.context_tokens or 1 << 30
        examples = [
            network.example([*p, {"role": "assistant", "content": a}], limit)
            for p, a in zip(prompts, answers, strict=True)
        ]
        out = [0.0] * len(examples)
        for indices in forward.batches([e.input_ids for e in examples], batch_size):
            with self._only(adapter), torch.inference_mode():
                images = [
                    image for i in indices for image in network.images(examples[i].input_ids, prompts[i])
                ]
                values = forward.losses(network, [examples[i] for i in indices], images)
            for i, value in zip(indices, values, strict=True):
                out[i] = value
        return out

    def first_logits(
        self, prompts: Sequence[Prompt], adapter: str | None = None, *, batch_size: int = BATCH
    ) -> torch.Tensor:
        """Scores of each answer's first token, `[prompts, vocab]`."""
        network = self._network(adapter)
        ids = [network.prompt_ids(p) for p in prompts]
        out: dict[int, torch.Tensor] = {}
        for indices in forward.batches(ids, batch_size):
            images = [image for i in indices for image in network.images(ids[i], prompts[i])]
            with self._only(adapter), torch.inference_mode():
                logits = forward.begin(network, [ids[i] for i in indices], images).logits()
            out |= dict(zip(indices, logits.float().cpu(), strict=True))
        return torch.stack([out[i] for i in range(len(ids))])

    def _named(
        self,
        ids: list[list[int]],
        adapter: str,
        batch_size: int,
        on_batch: Callable[[int], None] | None,
        on_text: Callable[[int, str], None] | None,
    ) -> list[Generation]:
        """Answers of an adapter that names labels; none to a prompt that fills the context."""
        network, labels = self._network(adapter), self._heads[adapter].labels
        fits = [i for i, prompt in enumerate(ids) if _room(network, prompt, 1) > 0]
        logits = self._label_scores([ids[i] for i in fits], adapter, batch_size, on_batch)
        said = dict(zip(fits, (labels[i] for i in logits.argmax(-1).tolist()), strict=True))
        if on_text:
            for i, text in said.items():
                on_text(i, text)
        return [
            Generation(
                said.get(i, ""),
                list(network.tokenizer(said[i], add_special_tokens=False)["input_ids"]) if i in said else [],
                "stop" if i in said else "length",
                len(prompt),
            )
            for i, prompt in enumerate(ids)
        ]

    def _label_scores(
        self,
        ids: list[list[int]],
        adapter: str,
        batch_size: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Logits of an adapter's labels, `[prompts, labels]`; a prompt too long loses its beginning."""
        network, head = self._network(adapter), self._heads[adapter]
        out = torch.zeros(len(ids), len(head.labels))
        done = 0
        for indices in forward.batches(ids, batch_size):
            batch = [ids[i][-(network.context_tokens or 0) :] for i in indices]
            with self._only(adapter), torch.inference_mode():
                out[indices] = classifier.scores(network, head, batch).cpu()
            done += len(batch)
            if on_batch:
                on_batch(done)
        return out

    @property
    def _base(self) -> Network:
        if self._base_network is None:
            self._base_network = forward.load(self._base_path, self._images)
        return self._base_network

    def _network(self, adapter: str | None) -> Network:
        if adapter is not None and adapter not in self._lora and adapter not in self._full:
            raise InputInvalid(
                "no such adapter is loaded", "model", adapter, f"use {', '.join(self.adapters)}"
            )
        return self._full[adapter] if adapter in self._full else self._base

    @contextmanager
    def _only(self, adapter: str | None) -> Generator[None]:
        """Hold the model with exactly this adapter at work."""
        with self._lock:
            if self._peft is None or adapter in self._full:
                yield
            elif adapter is None:
                with self._peft.disable_adapter():
                    yield
            else:
                if self._peft.active_adapters != [adapter]:
                    self._peft.set_adapter(adapter, inference_mode=True)
                yield


def _room(network: Network, prompt: list[int], max_new_tokens: int) -> int:
    """How many tokens an answer may have before the limit or the model's context ends."""
    if network.context_tokens is None:
        return max_new_tokens
    return min(max_new_tokens, network.context_tokens - len(prompt))


@dataclass
class _Row:
    """One prompt on its way: its tokens so far, and when it is done."""

    network: Network
    index: int
    prompt: list[int]
    images: list[Shown]
    room: int
    sampling: Sampling
    on_text: Callable[[int, str], None] | None
    tokens: list[int] = field(default_factory=list)
    finish_reason: Literal["stop", "length"] = "length"
    cut: int | None = None  # where a stop string begins in the text
    told: int = 0  # characters given to on_text

    @cached_property
    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.sampling.seed)

    def pick(self, logits: torch.Tensor) -> int:
        """Sample the next token from its `[vocab]` logits: nucleus of mass `top_p`, one draw."""
        chances, tokens = (logits.float().cpu() / self.sampling.temperature).softmax(-1).sort(descending=True)
        before = chances.cumsum(-1) - chances
        chances = chances.masked_fill(before >= self.sampling.top_p, 0.0)
        chances[0] = chances[0].clamp(min=1e-9)  # top_p 0 still leaves the best token
        return int(tokens[torch.multinomial(chances, 1, generator=self._generator)])

    def take(self, token: int) -> bool:
        """Add a token. Returns whether the answer goes on."""
        if token in self.network.ends:
            self.finish_reason = "stop"
            return self._tell(last=True)
        self.tokens.append(token)
        if self.sampling.stop:
            text = self._text()
            places = [text.find(s) for s in self.sampling.stop if s in text]
            if places:
                self.cut, self.finish_reason = min(places), "stop"
                return self._tell(last=True)
        return self._tell(last=len(self.tokens) >= self.room)

    def _tell(self, last: bool) -> bool:
        if self.on_text:
            text = self._text()
            held = 0 if last else max((len(s) - 1 for s in self.sampling.stop), default=0)
            ready = text[: len(text) - held] if held else text
            if len(ready) > self.told and (last or not text.endswith(_UNFINISHED_CHARACTER)):
                self.on_text(self.index, ready[self.told :])
                self.told = len(ready)
        return not last

    def _text(self) -> str:
        text = cast(str, self.network.tokenizer.decode(self.tokens, skip_special_tokens=True))
        return text[: self.cut]

    def generation(self) -> Generation:
        return Generation(self._text(), self.tokens, self.finish_reason, len(self.prompt))


def _decode(network: Network, rows: list[_Row]) -> None:
    """Run rows to their ends, each step over those that are not done."""
    if not rows:
        return
    steps = forward.begin(network, [r.prompt for r in rows], [image for r in rows for image in r.images])
    while rows:
        logits = steps.logits()
        best = logits.argmax(-1).tolist()
        picked = [
            b if r.sampling.temperature <= 0 else r.pick(logits[i])
            for i, (r, b) in enumerate(zip(rows, best, strict=True))
        ]
        going = [i for i, (row, token) in enumerate(zip(rows, picked, strict=True)) if row.take(token)]
        rows = [rows[i] for i in going]
        if rows:
            steps.advance([picked[i] for i in going], going)
