"""One recipe run on a few records, by the real train stage: what the tests of methods and adapters share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from test_training import CAUSAL, Heard, base, record, write_splits

from ftaas_pipelines.inference import bases
from ftaas_pipelines.projects.recipe import Recipe
from ftaas_pipelines.stages import train as stage
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Artifact, Store, digest_of
from ftaas_pipelines.training import machine
from ftaas_pipelines.training.inputs import TrainInputs
from ftaas_pipelines.training.resolve import resolve

Rows = Sequence[dict[str, Any]]


def pairs(rows: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Records of questions and answers."""
    return [record([{"role": "user", "content": q}, {"role": "assistant", "content": a}]) for q, a in rows]


def texts(rows: Sequence[str]) -> list[dict[str, Any]]:
    """Records of plain texts."""
    return [record([{"role": "assistant", "content": text}]) for text in rows]


def spec_of(
    root: Path, recipe: dict[str, Any], train: Rows, validation: Rows = (), base_id: str = CAUSAL, **more: Any
) -> Spec:
    """The spec of a recipe on these records; `more` are inputs such as `init_from`."""
    store, base_path = Store(root), base(base_id)
    counts = {"train": len(train), "validation": len(validation)}
    ids = [row["record_id"] for row in [*train, *validation]]
    named = f"splits {digest_of({'ids': ids, 'counts': counts})}"
    splits = store.find(named)
    if splits is None:
        with store.create("splits", named) as draft:
            write_splits(draft.path, list(train), list(validation))
            draft.content["counts"] = counts
        splits = draft.made
    asked = Recipe.model_validate({"name": "r", **recipe})
    family = bases.family(base_path)
    how = resolve(asked, counts, family, machine.found())
    inputs = TrainInputs(
        splits=splits.digest,
        base=bases.digest(base_path),
        family=family,
        method=how.method,
        adapter=how.adapter,
        training=how.training,
        threads=1,
        **more,
    )
    run = {
        "home": str(root),
        "store": str(root),
        "ledger": f"sqlite:///{root}/ledger.db",
        "actor": "anna@example.com",
        "base_path": str(base_path),
        "experiment": True,
    }
    spec = {
        "stage": "train",
        "project": "demo",
        "asset": "adapter_r",
        "inputs": inputs.model_dump(mode="json"),
    }
    return Spec.model_validate({**spec, "run": run})


def made(spec: Spec, heard: Heard | None = None) -> Artifact:
    """The adapter of a spec, trained in this process."""
    artifact = stage.make(spec, Store(spec.run.store), heard or Heard())
    assert artifact is not None
    return artifact


def losses(heard: Heard, name: str = "loss") -> list[float]:
    return [values[name] for _, values in heard.figures if name in values]
