"""What a provider is asked for and what it says: the words that all providers share."""

import json
import re
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from ftaas_pipelines.errors import FtaasError, Problem
from ftaas_pipelines.projects.adapter import Adapter
from ftaas_pipelines.projects.method import Method
from ftaas_pipelines.projects.recipe import Training
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Artifact
from resources.providers.exporting import Export

Phase = Literal["waiting", "running", "done", "failed", "stopped"]


class Unreachable(FtaasError):
    """The provider did not answer, or has too much to do: the same call may work later.

    Attributes:
        retry_after: seconds that it asked to be left alone; None where it did not say.
    """

    def __init__(self, what: str, where: str = "", got: str = "", retry_after: float | None = None):
        super().__init__(what, where, got, "run the same command again: it finds its job")
        self.retry_after = retry_after


@dataclass(frozen=True)
class Order:
    """One training that a provider is to do.

    Attributes:
        base: digest of the project's base model; base_path: its folder.
        work: folder for what is needed until the result is there.
        minutes: what the budget leaves for it.
    """

    spec: Spec
    splits: Artifact
    method: Method
    adapter: Adapter
    training: Training
    base: str
    base_path: Path | None
    work: Path
    minutes: float | None

    @property
    def recipe(self) -> str:
        return self.spec.asset.removeprefix("adapter_")

    def name(self, attempt: int) -> str:
        """What a provider calls an attempt at this order: the same input has the same names.

        Letters, digits and single hyphens, at most 63: what SageMaker and Bedrock allow.
        """
        project = re.sub(r"-+", "-", self.spec.project.replace("_", "-"))[:20].strip("-")
        return f"ftaas-{project}-{self.spec.input_digest[:28]}-{attempt}"

    def where(self, *path: str) -> str:
        """A setting of this recipe, as errors name it."""
        return ".".join(["recipes", self.recipe, *path])


@dataclass(frozen=True)
class State:
    """How a job stands. `said` is the provider's own word for it, with its reason."""

    phase: Phase
    said: str


@dataclass(frozen=True)
class News:
    """Something a provider tells of a job, once by its key.

    Attributes:
        text: for people; raw: output of a program, for the log alone.
        values: figures at an optimizer step.
        share: of the work that is done, 0 to 1.
    """

    key: str
    text: str = ""
    raw: bool = False
    step: int = 0
    values: dict[str, float] = field(default_factory=dict[str, float])
    share: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What a finished job left, beside the files in the draft.

    Attributes:
        content: facts of the artifact's identity. facts: for the attestation.
        seconds: that were billed or worked. usd: None where no price was given.
        basis: what the cost was worked out from.
        figures: rows for metrics.jsonl where the provider keeps better ones than it told.
    """

    content: dict[str, Any]
    facts: dict[str, Any]
    seconds: float | None
    usd: float | None
    basis: str
    figures: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


class Remote(Protocol):
    """A provider, for one order. Every call may raise Unreachable, InputInvalid or FtaasError."""

    title: str
    secrets: list[str]

    def problems(self) -> list[Problem]:
        """Settings that it cannot be told, and others that it must be; nothing is asked of anyone."""
        ...

    def export(self, folder: Path) -> Export:
        """Write the training and validation split in its shape."""
        ...

    def place(self) -> str:
        """Where the data goes, for the ledger."""
        ...

    def find(self) -> str | None:
        """The job of this order that waits, runs or is done; failed and stopped ones are left alone."""
        ...

    def upload(self, export: Export) -> None:
        """Bring there what is not there yet."""
        ...

    def create(self) -> str:
        """Start the job; after `find` and `upload`."""
        ...

    def state(self, job: str) -> State: ...

    def news(self, job: str, seen: Container[str]) -> list[News]:
        """What is new, oldest first; keys in `seen` were told before."""
        ...

    def stop(self, job: str) -> None: ...

    def collect(self, job: str, folder: Path) -> Outcome:
        """Write the result's files to the folder of a draft."""
        ...

    def close(self) -> None:
        """Let its connections go."""
        ...


class Notes:
    """What a launcher writes down for the one that comes after it was killed: `provider.json` in the work."""

    def __init__(self, work: Path):
        self._path = work / "provider.json"

    def _read(self) -> dict[str, Any]:
        return json.loads(self._path.read_text("utf-8")) if self._path.is_file() else {}

    def get(self, name: str) -> Any:
        return self._read().get(name)

    def keep(self, **values: Any) -> None:
        temporary = self._path.with_suffix(".new")
        temporary.write_text(json.dumps({**self._read(), **values}), encoding="utf-8")
        temporary.replace(self._path)
