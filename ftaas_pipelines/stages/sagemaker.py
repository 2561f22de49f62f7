"""`python -m ftaas_pipelines.stages.sagemaker`: the train stage inside a SageMaker training container.

SageMaker lays the channels under `/opt/ml/input/data`, packs `/opt/ml/model`, shows `/opt/ml/output/failure`
as the job's reason, and keeps `/opt/ml/checkpoints` across the machines of a spot job:

    spec/spec.json       the spec, without what is only true of the machine that sent it
    records/             train.parquet and validation.parquet; the test split is not there
    base/                the files of the base model, held against the spec's digest

The gate was asked by who sent the job; here no ledger can be reached. The result is registered there, too.
"""

import json
import os
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from ftaas_pipelines.errors import FtaasError, Interrupted
from ftaas_pipelines.stages import spec as specs
from ftaas_pipelines.stages import train
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import ATTESTATION, MANIFEST, Artifact, Store
from ftaas_pipelines.training import machine, plan, resolve
from ftaas_pipelines.training.inputs import TrainInputs

ROOT = Path("/opt/ml")
_REASON_CHARACTERS = 1024  # of the failure file, SageMaker shows no more


class _Lines:
    """Reports as JSON lines on stdout: CloudWatch keeps them, the launcher reads them there."""

    def _send(self, message: dict[str, Any]) -> None:
        print(json.dumps({**message, "at": time.time()}), flush=True)

    def progress(self, done: float, message: str) -> None:
        self._send({"type": "progress", "done": round(done, 4), "message": message})

    def metrics(self, step: int, values: dict[str, float], trial: int | None = None) -> None:
        self._send({"type": "metrics", "step": step, "values": values})

    def trial(self, number: int, values: dict[str, Any], state: str, loss: float | None) -> None:
        self._send({"type": "trial", "number": number, "values": values, "state": state, "loss": loss})

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Answers to validation prompts stay in the artifact: a log is not where data belongs."""


def main(root: Path = ROOT) -> int:
    """Train, and leave the adapter in `model/`; returns the exit code of `ftaas_pipelines.errors`."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _interrupt)
    try:
        spec, store = _prepared(root)
        made = store.find(spec.input_digest) or train.make(spec, store, _Lines())
        assert made is not None  # one process trains here: `SageMakerJobs.problems` refuses more
        _pack(made, root / "model")
    except FtaasError as error:
        _failed(root, str(error))
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        _failed(root, f"{type(error).__name__}: {error}")
        return 1
    return 0


def _prepared(root: Path) -> tuple[Spec, Store]:
    """The spec as it holds in this container, and a store with the splits in it."""
    data = root / "input" / "data"
    sent = specs.read(data / "spec" / "spec.json")
    store = Store(root / "checkpoints" / "store")
    splits = _splits(store, sent.inputs["splits"], data / "records")
    inputs = TrainInputs.model_validate({**sent.inputs, "splits": splits.digest})
    examples = plan.examples_of(inputs.method, splits.content["counts"]["train"])
    steps = plan.resolve_training(inputs.training, examples)
    fitted = resolve.training(steps, inputs.adapter, machine.found())
    inputs = inputs.model_copy(
        update={"training": fitted, "method": resolve.method(inputs.method, inputs.family)}
    )
    run = sent.run.model_copy(
        update={"home": root / "checkpoints", "store": store.root, "base_path": data / "base"}
    )
    return sent.model_copy(update={"inputs": inputs.model_dump(mode="json"), "run": run}), store


def _splits(store: Store, digest: str, records: Path) -> Artifact:
    """The records as an artifact of this container's store. Without the test split its digest is another."""
    import pyarrow.parquet as pq

    name = f"records of {digest}"
    found = store.find(name)
    if found:
        return found
    with store.create("splits", name) as draft:
        counts: dict[str, int] = {}
        for split in ("train", "validation"):
            source = records / f"{split}.parquet"
            if source.is_file():
                shutil.copyfile(source, draft.path / source.name)
                counts[split] = pq.read_metadata(source).num_rows
        draft.content = {"counts": counts, "of": digest}
    return draft.made


def _pack(artifact: Artifact, folder: Path) -> None:
    shutil.copytree(artifact.path, folder, dirs_exist_ok=True)
    missing = [name for name in (MANIFEST, ATTESTATION) if not (folder / name).is_file()]
    if missing:
        raise FtaasError("the adapter was not packed whole", str(folder), ", ".join(missing))


def _failed(root: Path, reason: str) -> None:
    print(reason, file=sys.stderr, flush=True)
    (root / "output").mkdir(parents=True, exist_ok=True)
    (root / "output" / "failure").write_text(reason[:_REASON_CHARACTERS], encoding="utf-8")


def _interrupt(number: int, _: Any) -> None:
    raise Interrupted(f"stopped by {signal.Signals(number).name}", do="run the same command to go on")


if __name__ == "__main__":
    sys.exit(main(Path(os.environ.get("FTAAS_SAGEMAKER_ROOT", str(ROOT)))))
