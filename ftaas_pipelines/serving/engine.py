"""The engine inside the Bento: releases verified, loaded and asked. No HTTP here."""

import asyncio
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.inference import bases, process
from ftaas_pipelines.serving import runtime
from ftaas_pipelines.serving.openai_shapes import RequestRefused, unknown_model
from ftaas_pipelines.serving.runtime import RuntimeState, ServedRelease
from ftaas_pipelines.store import Artifact, short

if TYPE_CHECKING:
    from ftaas_pipelines.inference.batch import Constraint, OnText, Sampling
    from ftaas_pipelines.inference.decoding import Model
    from ftaas_pipelines.inference.forward import Network
    from ftaas_pipelines.inference.scheduler import Scheduler, Ticket
    from ftaas_pipelines.inference.tools import Tool

PREFIX_MIB = 256  # of each base: beginnings that prompts share


@dataclass
class _Base:
    """One base model in memory, and the thread that answers with it."""

    model: "Model"
    scheduler: "Scheduler"


class Engine:
    """The releases of one process. Those that fail verification are not loaded, and say why.

    Adapters of many releases lie on one base; the least recently asked leave memory where `adapter_mib` of
    the state is exceeded, and come back, verified again, when they are asked.

    Attributes:
        releases: what answers, by name (`ServedRelease.name`).
        problems: why a release does not answer, by name.
        took: seconds that each part of the start took.
    """

    def __init__(self) -> None:
        self.took: dict[str, float] = {}
        self.evicted = self.brought_back = 0  # adapters that left memory for others, and came back
        self.releases: dict[str, ServedRelease] = {}
        self.problems: dict[str, str] = {}
        self._bases: dict[str, _Base] = {}
        self._limit_bytes = 0
        self._threads = 1
        self._held: OrderedDict[str, int] = OrderedDict()  # adapter to bytes, least recently asked first
        self._changing = threading.Lock()
        self._asking = threading.Lock()  # an adapter is not removed between being found and being asked
        self._merged = False

    def load(self, state: RuntimeState) -> None:
        """Make what answers equal to a state: verify and load what is new, forget what is gone.

        Never raises for a bad release. Requests go on meanwhile; those of a forgotten release end first.
        """
        with self._changing:
            process.prepare(state.threads)
            self._threads, self._limit_bytes = state.threads, state.adapter_mib << 20
            wanted = {release.name: release for release in state.releases}
            self.problems = {}
            for name, release in wanted.items():
                if self.releases.get(name) != release:
                    self._try(name, release, state)
            for name in self.releases.keys() - wanted.keys():
                del self.releases[name]
            self._forget({r.adapter for r in self.releases.values()})
            if state.merge and len(self.releases) == 1 and not self._merged:
                self._merged = any(b.model.merge(n) for b in self._bases.values() for n in b.model.adapters)

    def _try(self, name: str, release: ServedRelease, state: RuntimeState) -> None:
        try:
            with self._timed("verification"):
                problem = _problem(release, state)
            if problem is None and self._merged:
                problem = "this process serves one release alone; start another for more"
            if problem is None:
                self._hold(release)
                with self._timed("first_answer"):
                    self._warm(release)
        except Exception as error:
            traceback.print_exc()
            problem = f"{type(error).__name__}: {error}"
        if problem is None:
            self.releases[name] = release
        else:
            self.problems[name] = problem

    def _base(self, folder: str) -> _Base:
        if folder not in self._bases:
            with self._timed("torch"):
                from ftaas_pipelines.inference.decoding import Model
                from ftaas_pipelines.inference.scheduler import Scheduler

            model = Model(Path(folder), threads=self._threads, prefix_bytes=PREFIX_MIB << 20)
            with self._timed("base"):
                model.read()
            self._bases[folder] = _Base(model, Scheduler(model))
        return self._bases[folder]

    @contextmanager
    def _timed(self, part: str) -> Generator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.took[part] = self.took.get(part, 0.0) + time.monotonic() - started

    def _hold(self, release: ServedRelease) -> None:
        """Have an adapter in memory; make room for it first."""
        base, folder = self._base(release.base_path), Path(release.adapter_path)
        if release.adapter in base.model.adapters:
            return
        size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
        self._make_room(size)
        with self._timed("adapters"):
            base.scheduler.between(lambda: base.model.add(release.adapter, folder)).result()
        self._held[release.adapter] = size

    def _make_room(self, size: int) -> None:
        """Let the least recently asked go, but none that is answering."""
        for adapter in list(self._held):
            if not self._limit_bytes or sum(self._held.values()) + size <= self._limit_bytes:
                return
            self._let_go(adapter)
            self.evicted += adapter not in self._held

    def _let_go(self, adapter: str) -> None:
        """Free an adapter's memory, unless somebody is waiting for it or answered with it."""
        for base in self._bases.values():
            if adapter in base.model.adapters:
                base.scheduler.between(lambda base=base: self._remove(base, adapter)).result()

    def _remove(self, base: _Base, adapter: str) -> None:
        with self._asking:
            if adapter not in base.scheduler.in_use():
                base.model.remove(adapter)
                self._held.pop(adapter, None)

    def _forget(self, wanted: set[str]) -> None:
        """Free what no release names any more, as soon as nobody is answered with it."""
        for adapter in [a for a in self._held if a not in wanted]:
            self._let_go(adapter)

    def _warm(self, release: ServedRelease) -> None:
        """One token, so that the first caller does not wait for lazy loading, and bad weights show here."""
        prompt = [{"role": "user", "content": "ok"}]
        self._base(release.base_path).scheduler.submit(
            prompt, release.adapter, max_new_tokens=1
        ).result.result()

    def release(self, model: str) -> ServedRelease:
        """The release that answers for a name: a release's digest, or a project's where it has one only.

        Raises:
            RequestRefused: 404 for an unknown name, 503 for one that could not be loaded.
        """
        if model in self.releases:
            return self.releases[model]
        named = [r for r in self.releases.values() if r.project == model]
        if len(named) == 1:
            return named[0]
        if model in self.problems:
            raise RequestRefused(503, f"'{model}' is not served: {self.problems[model]}", "release_invalid")
        raise unknown_model(model, sorted({r.project for r in self.releases.values()}))

    async def submit(
        self,
        release: ServedRelease,
        prompt: list[dict[str, Any]],
        max_new_tokens: int,
        sampling: "Sampling",
        on_text: "OnText | None" = None,
        constraint: "Constraint | None" = None,
        tools: "Sequence[Tool]" = (),
    ) -> "Ticket":
        """Hand a prompt in; at most as many tokens as the release allows.

        Raises:
            RequestRefused: 400, the prompt shows an image to a model that sees none; 503, the adapter had
                left memory for others, and is no longer what its digest says.
        """
        if release.family != "vision" and any("images" in message for message in prompt):
            raise RequestRefused(
                400, f"'{release.project}' does not see images", "image_not_supported", "messages"
            )
        base = self._base(release.base_path)
        while True:
            with self._asking:
                if release.adapter in base.model.adapters:
                    if release.adapter in self._held:
                        self._held.move_to_end(release.adapter)
                    return base.scheduler.submit(
                        prompt,
                        release.adapter,
                        max_new_tokens=min(max_new_tokens, release.max_new_tokens),
                        sampling=sampling,
                        on_text=on_text,
                        constraint=constraint,
                        tools=tools,
                    )
            await self._have_back(release)

    async def _have_back(self, release: ServedRelease) -> None:
        if problem := await asyncio.to_thread(self._bring_back, release):
            raise RequestRefused(503, f"'{release.project}' is not served: {problem}", "release_invalid")

    def _bring_back(self, release: ServedRelease) -> str | None:
        with self._changing:
            problem = _adapter_problem(release)
            if problem is None:
                self._hold(release)
                self.brought_back += 1
            return problem

    async def network(self, release: ServedRelease) -> "Network":
        """What a release answers with, brought back where it had left memory.

        Raises:
            RequestRefused: 503, its adapter is no longer what its digest says.
        """
        model = self._base(release.base_path).model
        while True:
            with self._asking:
                if release.adapter in model.adapters:
                    return model.network(release.adapter)
            await self._have_back(release)

    def answers_with_labels(self, release: ServedRelease) -> bool:
        """Whether it names one of its labels, whatever it is asked."""
        return self._base(release.base_path).model.names_labels(release.adapter)

    def load_now(self) -> tuple[int, int]:
        """Requests that wait, and that are being answered."""
        schedulers = [b.scheduler for b in self._bases.values()]
        return sum(s.waiting for s in schedulers), sum(s.running for s in schedulers)

    def held_now(self) -> tuple[int, int]:
        """Adapters in memory, and their bytes."""
        sizes = list(self._held.values())
        return len(sizes), sum(sizes)

    def close(self) -> None:
        for base in self._bases.values():
            base.scheduler.close()


def _problem(release: ServedRelease, state: RuntimeState) -> str | None:
    """Why a release must not be loaded: its bytes, its base's or this runtime's are not those named."""
    if runtime.digest() != state.runtime:
        return f"this runtime is {short(runtime.digest())}, the release names {short(state.runtime)}"
    try:
        base = bases.digest(Path(release.base_path))
    except (FtaasError, OSError) as error:
        return f"the base model cannot be read: {error}"
    if base != release.base:
        return f"the base model is {short(base)}, the release names {short(release.base)}"
    return _adapter_problem(release)


def _adapter_problem(release: ServedRelease) -> str | None:
    artifact = Artifact("adapter", release.adapter, Path(release.adapter_path))
    try:
        found = list(artifact.problems())
    except (OSError, ValueError, KeyError) as error:
        return f"adapter {short(release.adapter)} cannot be read: {type(error).__name__}: {error}"
    return "; ".join(str(p) for p in found) or None
