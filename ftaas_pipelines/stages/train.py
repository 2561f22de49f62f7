"""`python -m ftaas_pipelines.stages.train`: splits and a base model to an adapter."""

import json
import platform
import socket
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ftaas_pipelines.errors import FtaasError, SpecUnusable
from ftaas_pipelines.inference import bases
from ftaas_pipelines.stages import program
from ftaas_pipelines.stages.spec import Spec, base_folder
from ftaas_pipelines.store import Artifact, Draft, Store
from ftaas_pipelines.training import run
from ftaas_pipelines.training.inputs import TrainInputs

if TYPE_CHECKING:
    from ftaas_pipelines.training.run import Trained

_LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "tokenizers", "safetensors")


def make(spec: Spec, store: Store, report: program.Report) -> Artifact:
    """Train the adapter the spec asks for, or go on with it; artifact kind `adapter`.

    Raises:
        SpecUnusable: the spec's inputs are none of a training, or its base is not the one named.
        FtaasError: see `ftaas_pipelines.training.run.train`.
    """
    inputs = _inputs(spec)
    base_path = _base(spec, inputs)
    splits = store.get(inputs.splits)
    if splits.kind != "splits":
        raise SpecUnusable("is not a splits artifact", "inputs.splits", splits.kind)
    broken = list(splits.problems())
    if broken:
        raise FtaasError(broken)
    # The draft surrounds the training, so that a disk that fills up while a checkpoint is written
    # is reported like one that fills up while the artifact is.
    with store.create("adapter", spec.input_digest) as draft:
        work = store.work(spec.input_digest)
        trained = run.train(inputs, splits.path, base_path, work, report, spec.run.max_minutes)
        report.progress(0.97, "writing the adapter")
        _write(draft, spec, inputs, trained, base_path)
    store.clear_work(spec.input_digest)
    report.progress(1.0, f"adapter made in {trained.seconds:.0f} s of training")
    return draft.made


def _inputs(spec: Spec) -> TrainInputs:
    try:
        return TrainInputs.model_validate(spec.inputs)
    except ValidationError as error:
        problem = error.errors()[0]
        raise SpecUnusable(
            f"the spec's inputs are none of a training: {problem['msg']}",
            ".".join(["inputs", *map(str, problem["loc"])]),
            do="let `ftaas run` write it",
        ) from None


def _base(spec: Spec, inputs: TrainInputs) -> Path:
    path = base_folder(spec, inputs.base)
    bases.check(path, inputs.family, str(path))  # type: ignore[arg-type]
    return path


def _write(draft: Draft, spec: Spec, inputs: TrainInputs, trained: "Trained", base_path: Path) -> None:
    from ftaas_pipelines.training import curves, save

    if inputs.adapter.kind == "lora":
        save.lora(trained.model, inputs.base, draft.path)
    else:
        save.full(trained.model, trained.tokenizer, base_path, draft.path)
    beside = draft.path / "beside"
    beside.mkdir()
    lines = "".join(json.dumps(row) + "\n" for row in trained.history)
    (beside / "metrics.jsonl").write_text(lines, encoding="utf-8")
    curves.draw(trained.history, beside / "loss.png")
    draft.content |= {
        "splits": inputs.splits,
        "base": inputs.base,
        "family": inputs.family,
        "method": inputs.method,
        "adapter": inputs.adapter.kind,
        "steps": inputs.training.max_steps,
        "experiment": spec.run.experiment,
        "trainable_parameters": trained.trainable_parameters,
    }
    draft.attestation |= {
        "spec": {"stage": spec.stage, "project": spec.project, "asset": spec.asset, "inputs": spec.inputs},
        "actor": spec.run.actor,
        "grant": spec.run.grant,
        "seconds": round(trained.seconds, 3),
        "cost_usd": round(trained.seconds / 3600 * spec.run.usd_per_hour, 6),
        "resumed_from": trained.resumed_from,
        "truncated_records": trained.truncated,
        "last": trained.history[-1] if trained.history else {},
        **_machine(inputs.threads),
    }


def _machine(threads: int) -> dict[str, Any]:
    """What decides the last bits of a number, and what was at work."""
    import torch

    return {
        "host": socket.gethostname(),
        "cpu": platform.processor() or platform.machine(),
        "cpu_instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "libraries": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
    }


if __name__ == "__main__":
    sys.exit(program.main("train", make))
