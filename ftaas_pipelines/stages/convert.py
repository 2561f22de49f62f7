"""`python -m ftaas_pipelines.stages.convert`: an adapter to another form of it, held against the adapter."""

import platform
import socket
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ftaas_pipelines.conversion import run, targets
from ftaas_pipelines.conversion.inputs import ConvertInputs
from ftaas_pipelines.conversion.run import Converted, Materials
from ftaas_pipelines.errors import FtaasError, SpecUnusable
from ftaas_pipelines.stages import program
from ftaas_pipelines.stages.spec import Spec, base_folder
from ftaas_pipelines.store import Artifact, Draft, Store, canonical, short

_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "gguf", "onnx", "onnxruntime", "onnxscript")


def make(spec: Spec, store: Store, report: program.Report) -> Artifact:
    """Convert the adapter the spec names; artifact kind `conversion`. What is refused leaves nothing behind.

    Raises:
        SpecUnusable: the spec's inputs are none of a conversion, or its base is not the one named.
        FtaasError: see `ftaas_pipelines.conversion.run.convert`.
    """
    inputs = _inputs(spec)
    adapter, splits = _whole(store, inputs.adapter, "adapter"), _whole(store, inputs.splits, "splits")
    base = None if adapter.content["adapter"] == "full" else base_folder(spec, inputs.base)
    config = targets.configuration(base or adapter.path)
    targets.check(inputs.target, inputs.family, adapter.content["method"], config)
    started = time.perf_counter()
    with store.create("conversion", spec.input_digest) as draft, tempfile.TemporaryDirectory() as scratch:
        materials = Materials(adapter, base, splits.path, Path(scratch))
        converted = run.convert(inputs, materials, draft.path, report.progress)
        report.progress(0.95, "writing the conversion")
        _describe(draft, spec, inputs, adapter, converted, time.perf_counter() - started)
    report.metrics(0, _figures(converted))
    report.progress(1.0, f"conversion {short(draft.made.digest)}")
    return draft.made


def _inputs(spec: Spec) -> ConvertInputs:
    try:
        return ConvertInputs.model_validate(spec.inputs)
    except ValidationError as error:
        problem = error.errors()[0]
        raise SpecUnusable(
            f"the spec's inputs are none of a conversion: {problem['msg']}",
            ".".join(["inputs", *map(str, problem["loc"])]),
            do="let `ftaas model convert` write it",
        ) from None


def _whole(store: Store, digest: str, kind: str) -> Artifact:
    """An artifact of this kind, every byte as it was made."""
    artifact = store.get(digest)
    if artifact.kind != kind:
        raise SpecUnusable(f"is no artifact of kind {kind}", "inputs", f"{short(digest)}, {artifact.kind}")
    broken = list(artifact.problems())
    if broken:
        raise FtaasError(broken)
    return artifact


def _describe(
    draft: Draft, spec: Spec, inputs: ConvertInputs, adapter: Artifact, converted: Converted, seconds: float
) -> None:
    (draft.path / "beside").mkdir(exist_ok=True)
    lines = b"".join(canonical(answer) + b"\n" for answer in converted.answers)
    (draft.path / "beside" / "answers.jsonl").write_bytes(lines)
    options: dict[str, Any] = {"precision": inputs.precision}
    if converted.sparsity is not None:
        options |= {"sparsity": inputs.sparsity, "sparsity_reached": round(converted.sparsity, 6)}
    draft.content |= {
        "adapter": inputs.adapter,
        "base": inputs.base,
        "family": inputs.family,
        "splits": inputs.splits,
        "target": inputs.target,
        "options": options,
        "experiment": bool(adapter.content["experiment"] or spec.run.experiment),
        "scores": converted.scores,
    }
    draft.attestation |= {
        "spec": {"stage": spec.stage, "project": spec.project, "asset": spec.asset, "inputs": spec.inputs},
        "actor": spec.run.actor,
        "seconds": round(seconds, 1),
        "tokens_per_second": converted.tokens_per_second,
        "host": socket.gethostname(),
        "cpu": platform.processor() or platform.machine(),
        "threads": inputs.threads,
        "libraries": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
    }


def _figures(converted: Converted) -> dict[str, float]:
    scores = converted.scores
    return {
        "share_changed": scores["share_changed"],
        f"difference/{scores['primary']}": scores["difference"]["value"],
        "loss_difference": scores["loss"]["mean"],
        "bytes": float(scores["bytes"]["converted"]),
        **{f"tokens_per_second/{name}": value for name, value in converted.tokens_per_second.items()},
    }


if __name__ == "__main__":
    sys.exit(program.main("convert", make))
