"""`python -m ftaas_pipelines.stages.train`: splits and a base model to an adapter."""

import json
import platform
import shutil
import socket
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from ftaas_pipelines.errors import FtaasError, SpecUnusable
from ftaas_pipelines.inference import bases
from ftaas_pipelines.projects.prices import Terms
from ftaas_pipelines.stages import program
from ftaas_pipelines.stages.spec import Spec, base_folder, model_folder
from ftaas_pipelines.store import Artifact, Draft, Store, file_digest, short
from ftaas_pipelines.training import ranks, run, sweep
from ftaas_pipelines.training.inputs import TrainInputs
from ftaas_pipelines.training.materials import Materials
from ftaas_pipelines.training.planning.costs import UNPRICED, Costs

if TYPE_CHECKING:
    from ftaas_pipelines.training.run import Trained

_LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "tokenizers", "safetensors")


def make(spec: Spec, store: Store, report: program.Report) -> Artifact | None:
    """Train the adapter the spec asks for, or go on with it; artifact kind `adapter`.

    Raises:
        SpecUnusable: the spec's inputs are none of a training, or its base is not the one named.
        FtaasError: see `ftaas_pipelines.training.run.train`.
    """
    inputs = _inputs(spec)
    materials = _materials(spec, inputs, store)
    if not ranks.first():  # it learns with the others; rank 0 writes
        train = sweep.run if inputs.sweep else run.train
        train(materials, store.work(spec.input_digest), report, spec.run.max_minutes)
        return None
    # The draft surrounds the training, so that a disk that fills up while a checkpoint is written
    # is reported like one that fills up while the artifact is.
    with store.create("adapter", spec.input_digest) as draft:
        work = store.work(spec.input_digest)
        train = sweep.run if inputs.sweep else run.train
        trained = train(materials, work, report, spec.run.max_minutes)
        report.progress(0.97, "writing the adapter")
        _write(draft, spec, inputs, trained, materials.base)
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


def _materials(spec: Spec, inputs: TrainInputs, store: Store) -> Materials:
    """Every input as a folder, each held against its digest."""
    base = base_folder(spec, inputs.base)
    bases.check(base, inputs.family, str(base))  # type: ignore[arg-type]
    splits = _artifact(store, inputs.splits, "splits")
    teacher = None
    if inputs.teacher:
        teacher = model_folder(spec.run.teacher_path, inputs.teacher, "run.teacher_path")
    _check_code(spec.run.code_path, inputs.code)

    def adapter(digest: str | None) -> Path | None:
        return _artifact(store, digest, "adapter").path if digest else None

    return Materials(
        inputs=inputs,
        splits=splits.path,
        base=base,
        dataset=_dataset(store, splits),
        init_from=adapter(inputs.init_from),
        reward_model=adapter(inputs.reward_model),
        teacher=teacher,
        teacher_adapter=adapter(inputs.teacher_adapter),
        code=spec.run.code_path,
        proofs=store.root / "proofs",
        costs=_costs(spec),
    )


def _costs(spec: Spec) -> Costs:
    """What the machine costs, and what may be spent; a spec written by hand may say nothing of it."""
    terms = (
        Terms(**spec.run.terms) if spec.run.terms else replace(UNPRICED, usd_per_hour=spec.run.usd_per_hour)
    )
    return Costs(terms, spec.run.budget)


def _artifact(store: Store, digest: str, kind: str) -> Artifact:
    """An input from the store, every byte as it was made."""
    found = store.get(digest)
    if found.kind != kind:
        raise SpecUnusable(f"is no artifact of kind {kind}", "inputs", f"{short(digest)}, {found.kind}")
    broken = list(found.problems())
    if broken:
        raise FtaasError(broken)
    return found


def _dataset(store: Store, splits: Artifact) -> Path | None:
    """The dataset version behind the splits; it holds the images that messages show."""
    digest = splits.content.get("dataset")
    return store.get(digest).path if digest else None


def _check_code(folder: Path | None, code: dict[str, str]) -> None:
    for name, digest in code.items():
        if folder is None or not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise SpecUnusable(
                "the file of a reward is not the one the spec names", name, do="run `ftaas run` again"
            )


def _write(draft: Draft, spec: Spec, inputs: TrainInputs, trained: "Trained", base_path: Path) -> None:
    from ftaas_pipelines.training import curves, save

    if inputs.adapter.kind == "lora":
        save.lora(trained.model, inputs.base, draft.path, trained.state)
    else:
        save.full(trained.model, trained.tokenizer, base_path, draft.path, trained.state)
    for name in inputs.code:  # so that it can be made again from the store alone
        (draft.path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        assert spec.run.code_path is not None
        shutil.copyfile(spec.run.code_path / name, draft.path / "code" / name)
    if inputs.method.kind == "classification":
        save.labels(trained.model, draft.path)
    beside = draft.path / "beside"
    beside.mkdir()
    for name, rows in (
        ("metrics", trained.history),
        ("samples", trained.samples),
        ("trials", trained.trials),
    ):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (beside / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    curves.draw(trained.history, beside / "loss.png")
    if trained.trials:
        curves.draw_trials(trained.trials, beside / "trials.png")
    draft.content |= {
        "splits": inputs.splits,
        "base": inputs.base,
        "family": inputs.family,
        "method": inputs.method.kind,
        "adapter": inputs.adapter.kind,
        "steps": trained.steps,
        "experiment": spec.run.experiment,
        "trainable_parameters": trained.trainable_parameters,
    }
    chained = {"init_from": inputs.init_from, "reward_model": inputs.reward_model, "teacher": inputs.teacher}
    draft.content |= {name: digest for name, digest in chained.items() if digest}
    if trained.best is not None:
        draft.content["trial"] = trained.trials[trained.best]["values"]
    draft.attestation |= {
        "spec": {"stage": spec.stage, "project": spec.project, "asset": spec.asset, "inputs": spec.inputs},
        "bases": [{"id": id, "revision": revision} for id, revision in spec.run.base_names],
        "actor": spec.run.actor,
        "grant": spec.run.grant,
        "seconds": round(trained.seconds, 3),
        "cost_usd": trained.actual["usd"],
        "quote": trained.quote,
        "actual": trained.actual,
        "resumed_from": trained.resumed_from,
        "records": trained.data,
        "supervision": trained.supervision,
        "truncated_records": trained.data["truncated"],
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
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "threads": threads,
        "libraries": {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}},
    }


if __name__ == "__main__":
    sys.exit(program.main("train", make))
