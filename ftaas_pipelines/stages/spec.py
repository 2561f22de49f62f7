"""The spec a stage is handed: `inputs` are identity, `run` is circumstance."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ftaas_pipelines.errors import SpecUnusable
from ftaas_pipelines.inference import bases
from ftaas_pipelines.store import digest_of, short

Stage = Literal["prepare", "train", "evaluate", "build", "convert"]


class Run(BaseModel):
    """Where this run finds and puts things; nothing here changes what is made.

    `files` maps a source name to the files it is read from; `base_path` is the folder of the base
    model, `teacher_path` that of a teacher (`base_names` are their ids and revisions), `code_path` the one
    that Python rewards lie in; `policy` is the version of the platform policy; `grant` is what
    `governance.gates.require()` gave the asset (None when ungoverned); `provider` is the recipe's section on
    whose machines train it; `terms` are what its machine costs and draws, `budget` what may be spent.
    """

    model_config = ConfigDict(extra="forbid", defer_build=True)

    home: Path
    store: Path
    ledger: str
    ledger_head: str = ""
    policy: str = ""
    actor: str
    files: dict[str, list[Path]] = {}
    benchmarks: dict[str, Path] = {}
    models: dict[str, Path] = {}
    data_runner: Literal["native", "ray"] = "native"
    data_workers: int = 1
    ray_address: str = ""
    base_path: Path | None = None
    base_names: list[tuple[str, str]] = []
    teacher_path: Path | None = None
    code_path: Path | None = None
    grant: dict[str, Any] | None = None
    provider: dict[str, Any] | None = None
    experiment: bool = False
    usd_per_hour: float = 0.0
    terms: dict[str, Any] | None = None
    budget: dict[str, float] = {}
    max_minutes: float | None = None


class Spec(BaseModel):
    """`asset` says what is made: dataset, splits, adapter_<recipe>, candidate, evaluation or bento."""

    model_config = ConfigDict(extra="forbid", defer_build=True)

    stage: Stage
    project: str
    asset: str
    inputs: dict[str, Any]
    run: Run

    @property
    def input_digest(self) -> str:
        """Answers "was this already made?". Experiments never share a name with governed work."""
        identity: dict[str, Any] = {"stage": self.stage, "inputs": self.inputs}
        if self.run.experiment:
            identity["experiment"] = True
        return digest_of(identity)


def program(spec: Spec) -> list[str]:
    """The module that makes it, and its first argument: torchrun over the stage where it wants processes."""
    distributed: dict[str, Any] = (spec.inputs.get("training") or {}).get("distributed") or {}
    if int(distributed.get("processes", 1)) * int(distributed.get("nodes", 1)) > 1:
        return ["ftaas_pipelines.stages.ranks", spec.stage]
    return [f"ftaas_pipelines.stages.{spec.stage}"]


def read(path: Path) -> Spec:
    """Read a spec file.

    Raises:
        SpecUnusable: not there, not JSON, or not a spec.
    """
    try:
        return Spec.model_validate(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise SpecUnusable(
            "is not a stage spec", str(path), str(error).splitlines()[0], "let `ftaas run` write it"
        ) from None


def base_folder(spec: Spec, digest: str) -> Path:
    """The folder of the base model that a spec names, held against the digest in its inputs.

    Raises:
        SpecUnusable: none is named, or it holds another model.
    """
    return model_folder(spec.run.base_path, digest, "run.base_path")


def model_folder(path: Path | None, digest: str, where: str) -> Path:
    """A model's folder, held against the digest in the inputs.

    Raises:
        SpecUnusable: none is named, or it holds another model.
    """
    if path is None:
        raise SpecUnusable("names no model", where, do="let `ftaas run` write the spec")
    found = bases.digest(path)
    if found != digest:
        raise SpecUnusable(
            "the folder holds another base model than the spec names",
            str(path),
            f"{short(found)}, not {short(digest)}",
            "run `ftaas run` again: it makes a spec for the base as it is now",
        )
    return path
