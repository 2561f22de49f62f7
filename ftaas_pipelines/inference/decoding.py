"""The engine: a base model, its adapters, and the one way text comes out of them.

Evaluation calls it in batches, the server through a scheduler (`scheduler.py`) that mixes requests; in
fp32 both get the same tokens, so what was evaluated is what is served.
"""

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch  # noqa: TID253 imported by stage programs and the engine only

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.inference import classifier, forward, lora
from ftaas_pipelines.inference.batch import GREEDY, Batch, Constraint, Generation, OnText, Row, Sampling, room
from ftaas_pipelines.inference.forward import Network
from ftaas_pipelines.inference.prefixes import Prefixes
from ftaas_pipelines.inference.templates import Message
from ftaas_pipelines.inference.tools import Tool

__all__ = ["BATCH", "GREEDY", "Generation", "Model", "Prompt", "Sampling"]

Prompt = Sequence[Message]
BATCH = 32


class Model:
    """A base model and any number of adapters (LoRA of any kind, or whole fine-tuned models), in fp32.

    Adapters that hold labels answer with one of them; the others write. Calls from several threads wait for
    each other.

    Args:
        base: folder of the base model; read when first needed.
        adapters: name to folder.
        threads: CPU threads of torch; None leaves them alone.
        images: folder that holds the `images/` of the prompts, for a vision-language base.
        prefix_bytes: memory for beginnings that prompts share; 0: every prompt is read whole.
    """

    def __init__(
        self,
        base: Path,
        adapters: dict[str, Path] | None = None,
        threads: int | None = None,
        images: Path | None = None,
        prefix_bytes: int = 0,
    ):
        self._prefixes = Prefixes(prefix_bytes) if prefix_bytes else None
        if threads is not None:
            torch.set_num_threads(threads)
        self._base_path, self._images = base, images
        self._base_network: Network | None = None
        self._banks: dict[int, lora.Bank] = {}  # plain LoRA, by rank: any mixture in one batch
        self._peft: Any = None  # other LoRA: one at a time
        self._others: set[str] = set()  # the names in it
        self._full: dict[str, Network] = {}
        self._heads: dict[str, classifier.Head] = {}
        self._lock = threading.RLock()
        for name, folder in (adapters or {}).items():
            self.add(name, folder)

    @property
    def adapters(self) -> list[str]:
        """The names that `generate` and `loss` know, sorted."""
        plain = [name for bank in self._banks.values() for name in bank.names]
        return sorted({*plain, *self._others, *self._full})

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
            network = self._base
            beside = (classifier.HEAD,) if labels else ()
            plain = lora.read(folder, cast(Any, network.model), beside)
            if plain:
                if plain.rank not in self._banks:
                    self._banks[plain.rank] = lora.Bank(cast(Any, network.model), plain.rank)
                self._banks[plain.rank].add(name, plain)
                if labels:
                    self._heads[name] = classifier.head(network, folder, labels)
                return
            self._add_other(name, folder, labels)

    def _add_other(self, name: str, folder: Path, labels: list[str] | None) -> None:
        from peft import PeftModel

        if labels:
            self._peft, self._heads[name] = classifier.load_beside(
                self._base, self._peft, name, folder, labels
            )
        elif self._peft is None:
            # The base learns LoRA in place; calling it directly keeps its own forward signature.
            self._peft = PeftModel.from_pretrained(cast(Any, self._base.model), folder, adapter_name=name)
        else:
            self._peft.load_adapter(folder, adapter_name=name)
        self._peft.eval()
        self._others.add(name)

    def hold(self, name: str, network: Network) -> None:
        """Take a network that was loaded elsewhere (GGUF, ONNX), under a name."""
        with self._lock:
            self._full[name] = network

    def merge(self, name: str) -> bool:
        """Work an adapter into the base for good, where it is a plain one; nothing may be added then.

        Returns:
            Whether it was done.
        """
        with self._lock:
            bank = self._bank(name)
            if bank:
                bank.merge(name)
            return bank is not None

    def remove(self, name: str) -> None:
        """Forget an adapter and free its memory."""
        with self._lock:
            self._full.pop(name, None)
            self._heads.pop(name, None)
            if self._prefixes:
                self._prefixes.forget(name)
            if bank := self._bank(name):
                bank.remove(name)
            if name in self._others:
                self._others.remove(name)
                self._peft.delete_adapter(name)
                if self._others:  # PEFT forgets it, but not that it was the one at work
                    self._peft.set_adapter(min(self._others), inference_mode=True)
                else:  # PEFT's layers cannot be without an adapter
                    self._peft.unload()
                    self._peft = None

    def read(self) -> None:
        """Read the base now, not when it is first needed."""
        with self._lock:
            _ = self._base

    def context_tokens(self, adapter: str | None = None) -> int | None:
        """Most tokens of prompt and answer together; None without a limit."""
        return self.network(adapter).context_tokens

    def names_labels(self, adapter: str | None) -> bool:
        """Whether this adapter answers with one of its labels instead of writing."""
        return adapter in self._heads

    def lane(self, adapter: str | None) -> str:
        """Rows of the same lane may be answered in one batch: plain adapters of one rank, or one other."""
        bank = self._bank(adapter)
        if bank is None or adapter in self._heads or self.network(adapter).family == "vision":
            return adapter or ""
        return f"rank {bank.rank}"

    def row(
        self,
        prompt: Prompt,
        adapter: str | None,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        on_text: OnText | None = None,
        constraint: Constraint | None = None,
        tools: Sequence[Tool] = (),
    ) -> Row:
        """A prompt, ready to join a batch.

        Raises:
            InputInvalid: no such adapter, or an image of the prompt cannot be had.
        """
        network = self.network(adapter)
        ids = network.prompt_ids(prompt, tools)
        space = room(network, ids, max_new_tokens)
        images = network.images(ids, prompt)
        return Row(network, adapter, ids, images, space, sampling, on_text, constraint)

    def batch(self, adapter: str | None) -> Batch:
        """An empty batch for rows of this adapter's lane."""
        return Batch(self.network(adapter), self._at_work, self._prefixes)

    def generate(
        self,
        prompts: Sequence[Prompt],
        adapter: str | None = None,
        *,
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        batch_size: int = BATCH,
        on_batch: Callable[[int], None] | None = None,
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

        Raises:
            InputInvalid: no such adapter, or an image of a prompt cannot be had.
        """
        if self.names_labels(adapter):
            return self.name(prompts, adapter, batch_size=batch_size, on_batch=on_batch)
        rows = [self.row(prompt, adapter, max_new_tokens, sampling) for prompt in prompts]
        done = 0
        for indices in forward.batches([r.prompt for r in rows], batch_size):
            batch = self.batch(adapter)
            batch.join([rows[i] for i in indices])
            while batch.rows:
                batch.step()
            done += len(indices)
            if on_batch:
                on_batch(done)
        return [row.generation() for row in rows]

    def name(
        self,
        prompts: Sequence[Prompt],
        adapter: str | None,
        *,
        batch_size: int = BATCH,
        on_batch: Callable[[int], None] | None = None,
    ) -> list[Generation]:
        """Answers of an adapter that names labels; none to a prompt that fills the context."""
        assert adapter is not None
        network, labels = self.network(adapter), self._heads[adapter].labels
        ids = [network.prompt_ids(p) for p in prompts]
        fits = [i for i, prompt in enumerate(ids) if room(network, prompt, 1) > 0]
        logits = self._label_scores([ids[i] for i in fits], adapter, batch_size, on_batch)
        said = dict(zip(fits, (labels[i] for i in logits.argmax(-1).tolist()), strict=True))
        return [
            Generation(
                said.get(i, ""),
                list(network.tokenizer(said[i], add_special_tokens=False)["input_ids"]) if i in said else [],
                "stop" if i in said else "length",
                len(prompt),
            )
            for i, prompt in enumerate(ids)
        ]

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
        network = self.network(adapter)
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
        network = self.network(adapter)
        ids = [network.prompt_ids(p) for p in prompts]
        out: dict[int, torch.Tensor] = {}
        for indices in forward.batches(ids, batch_size):
            images = [image for i in indices for image in network.images(ids[i], prompts[i])]
            with self._only(adapter), torch.inference_mode():
                logits = forward.begin(network, [ids[i] for i in indices], images).logits()
            out |= dict(zip(indices, logits.float().cpu(), strict=True))
        return torch.stack([out[i] for i in range(len(ids))])

    def _label_scores(
        self,
        ids: list[list[int]],
        adapter: str,
        batch_size: int,
        on_batch: Callable[[int], None] | None = None,
    ) -> torch.Tensor:
        """Logits of an adapter's labels, `[prompts, labels]`; a prompt too long loses its beginning."""
        network, head = self.network(adapter), self._heads[adapter]
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

    def _bank(self, adapter: str | None) -> lora.Bank | None:
        return next((bank for bank in self._banks.values() if adapter in bank), None)

    def network(self, adapter: str | None) -> Network:
        """The weights that an adapter answers with.

        Raises:
            InputInvalid: no such adapter is loaded.
        """
        if adapter is not None and not (
            adapter in self._full or adapter in self._others or self._bank(adapter)
        ):
            raise InputInvalid(
                "no such adapter is loaded", "model", adapter, f"use {', '.join(self.adapters)}"
            )
        return self._full[adapter] if adapter in self._full else self._base

    def _only(self, adapter: str | None) -> Any:
        """Hold the model with exactly this adapter at work."""
        return self._at_work([adapter])

    @contextmanager
    def _at_work(self, adapters: Sequence[str | None]) -> Generator[None]:
        """Hold the model with these adapters at work, one a row of the batches to come, or one for all.

        Several at once are plain ones of one rank: `lane` keeps the others apart.
        """
        first = adapters[0]
        with self._lock:
            if first in self._full:
                yield
                return
            at_work = self._bank(first)
            for bank in self._banks.values():
                bank.choose(adapters if bank is at_work else ())
            if self._peft is None:
                yield
            elif first in self._others:
                if self._peft.active_adapters != [first]:
                    self._peft.set_adapter(first, inference_mode=True)
                yield
            else:
                with self._peft.disable_adapter():
                    yield
