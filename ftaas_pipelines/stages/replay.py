"""A training done again from what store and ledger keep, beside the store, and compared with what it made.

The same lock, instruction set and threads give the same digest. Elsewhere the weights and the loss curve must
lie within a tolerance that depends on the precision.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.stages.spec import Run, Spec, program
from ftaas_pipelines.store import Artifact, Store, short
from ftaas_pipelines.training.inputs import TrainInputs

# Largest relative difference: of the loss at any step, and of all weights together (norm of the difference).
TOLERANCE = {"fp32": (1e-3, 2e-2), "bf16": (5e-2, 0.2), "fp16": (5e-2, 0.2)}


@dataclass(frozen=True)
class Replay:
    """What came out.

    Attributes:
        same: digest for digest.
        loss_difference, weights_difference: largest relative ones; `within` says whether both are tolerable.
        differs: what of the machine differs from that of the first making.
    """

    digest: str
    again: str
    same: bool
    within: bool
    loss_difference: float
    weights_difference: float
    loss_tolerance: float
    weights_tolerance: float
    differs: dict[str, list[str]]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def replay(
    artifact: Artifact, store: Store, settings: Settings, bases: dict[str, Path], say: Callable[[str], None]
) -> Replay:
    """Make an adapter again in a store of its own, removed afterwards; a killed replay goes on where it was.

    Args:
        bases: folders of the base models that its inputs name, by digest.
        say: told each line of progress.

    Raises:
        InputInvalid: it was not made by a training here.
        Refused: its grant is not in the ledger.
        FtaasError: the training failed.
    """
    made_from: dict[str, Any] | None = artifact.attestation.get("spec")
    if artifact.kind != "adapter" or not made_from or made_from.get("stage") != "train":
        raise InputInvalid("was not made by a training here", short(artifact.digest), artifact.kind)
    inputs = TrainInputs.model_validate(made_from["inputs"])
    root = (settings.home / "replays" / artifact.digest).resolve()
    beside = Store(root / "store")
    _lend(store, beside, inputs)
    spec = _spec(artifact, made_from, inputs, settings, beside, bases)
    _run(spec, root, say)
    found = beside.find(spec.input_digest)
    assert found is not None, "the stage said that it made it"
    out = compared(artifact, found, inputs.training.precision)

    shutil.rmtree(root)
    return out


def _lend(store: Store, beside: Store, inputs: TrainInputs) -> None:
    """The artifacts that the training reads, as links."""
    splits = store.get(inputs.splits)
    wanted = [inputs.splits, splits.content.get("dataset")]
    wanted += [inputs.init_from, inputs.reward_model, inputs.teacher_adapter]
    for digest in filter(None, wanted):
        found = store.get(digest)
        place = beside.root / "artifacts" / found.kind / found.digest
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.is_symlink():
            place.symlink_to(found.path.resolve(), target_is_directory=True)


def _spec(
    artifact: Artifact,
    made_from: dict[str, Any],
    inputs: TrainInputs,
    settings: Settings,
    beside: Store,
    bases: dict[str, Path],
) -> Spec:
    code = artifact.path / "code"
    return Spec(
        stage="train",
        project=made_from["project"],
        asset=made_from["asset"],
        inputs=made_from["inputs"],
        run=Run(
            home=settings.home.resolve(),
            store=beside.root,
            ledger=settings.ledger,
            ledger_head=settings.ledger_head,
            actor=settings.who,
            base_path=bases.get(inputs.base),
            teacher_path=bases.get(inputs.teacher or ""),
            code_path=code if code.is_dir() else None,
            grant=artifact.attestation.get("grant"),
            experiment=bool(artifact.content["experiment"]),
        ),
    )


def _run(spec: Spec, root: Path, say: Callable[[str], None]) -> None:
    file = root / "spec.json"
    file.write_text(spec.model_dump_json(), encoding="utf-8")
    result = root / "result.json"
    command = [sys.executable, "-m", *program(spec), "--spec", str(file), "--out", str(result), "--replay"]
    threads = str(spec.inputs["threads"])
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("DAGSTER_PIPES")},
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "FTAAS_LAUNCHER_PID": str(os.getpid()),
    }
    child = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, encoding="utf-8")
    assert child.stderr is not None
    last = ""
    for line in child.stderr:
        last = line.strip() or last
        if "%" in line[:8]:
            say(line.strip())
    if code := child.wait():
        raise FtaasError(
            "the training did not come to its end", short(spec.input_digest), f"exit {code}", last
        )


def compared(first: Artifact, again: Artifact, precision: str) -> Replay:
    """Two makings of one training: by digest, and by loss curve and weights."""
    loss, weights = _loss_difference(first, again), _weights_difference(first, again)
    loss_limit, weights_limit = TOLERANCE.get(precision, TOLERANCE["fp32"])
    same = first.digest == again.digest
    return Replay(
        digest=first.digest,
        again=again.digest,
        same=same,
        within=same or (loss <= loss_limit and weights <= weights_limit),
        loss_difference=loss,
        weights_difference=weights,
        loss_tolerance=loss_limit,
        weights_tolerance=weights_limit,
        differs=_differs(first.attestation, again.attestation),
        seconds=float(again.attestation["seconds"]),
    )


def _loss_difference(first: Artifact, again: Artifact) -> float:
    """Largest relative difference of the training loss at a step that both logged; infinite where none."""

    def curve(artifact: Artifact) -> dict[int, float]:
        lines = artifact.file("beside/metrics.jsonl").read_text("utf-8").splitlines()
        return {row["step"]: row["loss"] for row in map(json.loads, lines) if "loss" in row}

    before, after = curve(first), curve(again)
    steps = before.keys() & after.keys()
    if not steps or len(before) != len(after):
        return float("inf")
    return max(abs(before[s] - after[s]) / max(abs(before[s]), 1e-6) for s in steps)


def _weights_difference(first: Artifact, again: Artifact) -> float:
    """Norm of the difference over the norm, of all weights; infinite where names or shapes differ."""
    from safetensors.numpy import load_file

    total = apart = 0.0
    files = sorted(p.name for p in first.path.glob("*.safetensors"))
    if files != sorted(p.name for p in again.path.glob("*.safetensors")):
        return float("inf")
    for name in files:
        before, after = load_file(first.file(name)), load_file(again.file(name))
        if {k: v.shape for k, v in before.items()} != {k: v.shape for k, v in after.items()}:
            return float("inf")
        for key, value in before.items():
            one, two = value.astype("float64"), after[key].astype("float64")
            total += float((one**2).sum())
            apart += float(((one - two) ** 2).sum())
    return (apart / total) ** 0.5 if total else 0.0


def _differs(first: dict[str, Any], again: dict[str, Any]) -> dict[str, list[str]]:
    """What of machine and libraries differs, each as [then, now]."""
    then, now = _facts(first), _facts(again)
    names = sorted(then.keys() | now.keys())
    return {n: [str(then.get(n)), str(now.get(n))] for n in names if then.get(n) != now.get(n)}


def _facts(attestation: dict[str, Any]) -> dict[str, Any]:
    machine = {name: attestation.get(name) for name in ("cpu_instructions", "gpu")}
    return {**attestation.get("libraries", {}), **machine}
