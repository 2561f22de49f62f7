"""The engine inside the Bento: releases verified, loaded and asked. No HTTP here."""

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.inference import bases, process
from ftaas_pipelines.serving import responses, runtime
from ftaas_pipelines.serving.openai_shapes import RequestRefused, unknown_model
from ftaas_pipelines.serving.runtime import RuntimeState, ServedRelease
from ftaas_pipelines.store import Artifact, short

if TYPE_CHECKING:
    from ftaas_pipelines.inference.decoding import Generation, Model, Sampling


class Engine:
    """The releases of one process. Those that fail verification are not loaded, and say why.

    Attributes:
        releases: what answers, by project.
        problems: why a project does not answer.
    """

    def __init__(self) -> None:
        self.releases: dict[str, ServedRelease] = {}
        self.problems: dict[str, str] = {}
        self._models: dict[str, Model] = {}
        self._responses: Path | None = None

    def load(self, state: RuntimeState) -> None:
        """Verify and load every release of a state. Never raises for a bad release."""
        process.prepare(state.threads)
        from ftaas_pipelines.inference.decoding import Model

        self._responses = Path(state.responses) if state.responses else None
        for release in state.releases:
            try:
                problem = _problem(release, state)
                if problem is None:
                    folder = release.base_path
                    if folder not in self._models:
                        self._models[folder] = Model(Path(folder), threads=state.threads)
                    self._models[folder].add(release.project, Path(release.adapter_path))
                    self._warm(release)
            except Exception as error:
                traceback.print_exc()
                problem = f"{type(error).__name__}: {error}"
            if problem is None:
                self.releases[release.project] = release
            else:
                self.problems[release.project] = problem

    def _warm(self, release: ServedRelease) -> None:
        """One token, so that the first caller does not wait for lazy loading, and bad weights show here."""
        prompt = [{"role": "user", "content": "ok"}]
        self._models[release.base_path].generate([prompt], release.project, max_new_tokens=1)

    def release(self, model: str) -> ServedRelease:
        """The release that answers for a model name.

        Raises:
            RequestRefused: 404 for an unknown name, 503 for one that could not be loaded.
        """
        if model in self.problems:
            raise RequestRefused(503, f"'{model}' is not served: {self.problems[model]}", "release_invalid")
        if model not in self.releases:
            raise unknown_model(model, sorted(self.releases))
        return self.releases[model]

    def room(self, release: ServedRelease, wanted: int | None) -> int:
        """How many tokens an answer may have: what is asked, at most what the release allows."""
        return min(wanted or release.max_new_tokens, release.max_new_tokens)

    def generate(
        self,
        release: ServedRelease,
        prompt: list[dict[str, Any]],
        max_new_tokens: int,
        sampling: "Sampling",
        on_text: Callable[[int, str], None] | None = None,
    ) -> "Generation":
        """Answer one prompt.

        Raises:
            RequestRefused: 400 when the prompt leaves no room in the model's context, or shows an image that
                cannot be read, or any to a model that sees none.
        """
        if release.family != "vision" and any("images" in message for message in prompt):
            raise RequestRefused(
                400, f"'{release.project}' does not see images", "image_not_supported", "messages"
            )
        model = self._models[release.base_path]
        try:
            answer = model.generate(
                [prompt], release.project, max_new_tokens=max_new_tokens, sampling=sampling, on_text=on_text
            )[0]
        except InputInvalid as error:
            raise RequestRefused(400, str(error), "invalid_image", "messages") from error
        limit = model.context_tokens(release.project)
        if limit is not None and answer.prompt_tokens >= limit:
            raise RequestRefused(
                400,
                f"The prompt has {answer.prompt_tokens} tokens, this model's context {limit}; shorten it",
                "context_length_exceeded",
                "messages",
            )
        return answer

    def log(self, response_id: str, release: ServedRelease, answer: "Generation") -> None:
        """Remember whose answer this was."""
        if self._responses is None:
            return
        responses.append(
            self._responses,
            responses.Answered(
                id=response_id,
                project=release.project,
                release=release.release,
                adapter_digest=release.adapter,
                base=release.base,
                at=time.time(),
                prompt_tokens=answer.prompt_tokens,
                completion_tokens=len(answer.token_ids),
            ),
        )


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
    artifact = Artifact("adapter", release.adapter, Path(release.adapter_path))
    try:
        found = list(artifact.problems())
    except (OSError, ValueError, KeyError) as error:
        return f"adapter {short(release.adapter)} cannot be read: {type(error).__name__}: {error}"
    return "; ".join(str(p) for p in found) or None
