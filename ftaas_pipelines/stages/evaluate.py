"""Score adapters: recipes on validation (asset `candidate`), the candidate on test (asset `evaluation`).

`python -m ftaas_pipelines.stages.evaluate --spec SPEC.json`
"""

import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ftaas_pipelines.errors import SpecUnusable
from ftaas_pipelines.evaluation.inputs import EvaluateInputs
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.stages import program
from ftaas_pipelines.stages.program import Report
from ftaas_pipelines.stages.spec import Spec, base_folder
from ftaas_pipelines.store import Artifact, Store, canonical, short
from ftaas_pipelines.training.remote_models import require_loadable

LOOK = "test_look"  # the ledger entry of each look at a test split
_LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "numpy",
    "scikit-learn",
    "sacrebleu",
    "rouge_score",
    "evaluate",
)


def make(spec: Spec, store: Store, report: Report) -> Artifact:
    """Answer, score and compare; see `evaluation.run` and `evaluation.compare`.

    Raises:
        SpecUnusable: the inputs are not those of an evaluation, or the base model's bytes are others.
        InputInvalid: an artifact is not in the store.
    """
    try:
        inputs = EvaluateInputs.model_validate(spec.inputs)
    except ValidationError as error:
        raise SpecUnusable("are not an evaluation's", "inputs", str(error).splitlines()[0]) from None
    report.progress(0.0, "loading")
    base = base_folder(spec, inputs.base)
    splits = store.get(inputs.splits)
    dataset = store.get(splits.content["dataset"]).path if inputs.family == "vision" else None
    found = {label: store.get(digest) for label, digest in inputs.adapters.items()}
    adapters = {label: require_loadable(adapter).path for label, adapter in found.items()}
    started = time.perf_counter()
    looks = _look(spec, inputs) if inputs.split == "test" else 0

    from ftaas_pipelines.inference import process

    process.prepare(inputs.threads)  # before torch is loaded, which the next line does
    from ftaas_pipelines.evaluation import compare, run
    from ftaas_pipelines.evaluation.report import Facts, render

    with tempfile.TemporaryDirectory() as scratch:
        results = run.evaluate(inputs, splits.path, base, adapters, Path(scratch), report.progress, dataset)
    scores = compare.scores(results, inputs.options.primary)
    kind = "evaluation" if inputs.split == "test" else "comparison"
    with store.create(kind, spec.input_digest) as draft:
        (draft.path / "scores.json").write_bytes(canonical(scores))
        (draft.path / "answers.jsonl").write_bytes(b"".join(canonical(a) + b"\n" for a in answers(results)))
        if inputs.split == "test":
            (draft.path / "beside").mkdir()
            html = render(results, scores, Facts(spec.project, inputs, looks))
            (draft.path / "beside" / "report.html").write_text(html, encoding="utf-8")
        draft.content = {
            "split": inputs.split,
            "splits": inputs.splits,
            "base": inputs.base,
            "adapters": inputs.adapters,
            "scores": scores,
        }
        draft.attestation = _attestation(spec, time.perf_counter() - started)
    report.metrics(0, flat(scores))
    report.progress(1.0, f"{kind} {short(draft.made.digest)}")
    return draft.made


def answers(results: Any) -> list[dict[str, Any]]:
    """The lines of `answers.jsonl`: per record what each system said, and the candidate's tokens."""
    return [
        {
            "record_id": record.record_id,
            "set": one.name,
            "slice": record.slice,
            "prompt": record.prompt,
            "messages": list(record.messages),
            "reference": record.reference,
            "answers": {label: texts[i] for label, texts in one.texts.items()},
            "token_ids": {label: ids[i] for label, ids in one.token_ids.items() if label == "candidate"},
        }
        for one in results.sets
        for i, record in enumerate(one.records)
    ]


def flat(scores: dict[str, Any]) -> dict[str, float]:
    """Scores as MLflow takes them: `<set>/<system>/<metric>`, over all records of a set."""
    return {
        f"{name}/{label}/{metric}": interval["value"]
        for name, one in scores["sets"].items()
        for label, parts in one["systems"].items()
        for metric, interval in parts["overall"].items()
    }


def _look(spec: Spec, inputs: EvaluateInputs) -> int:
    """Put a look at the test split on record, before anything is seen: killed or not, it has looked.

    Returns:
        How often this test split was looked at, this time included.
    """
    ledger = Ledger(spec.run.ledger, spec.run.home, spec.run.policy, spec.run.ledger_head)
    body = {"input": spec.input_digest, "adapter": inputs.adapters["candidate"]}
    ledger.append(LOOK, inputs.splits, body, project=spec.project, actor=spec.run.actor)
    return len(ledger.entries(LOOK, project=spec.project, subject=inputs.splits))


def _attestation(spec: Spec, seconds: float) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 1),
        "cost_usd": round(seconds / 3600 * spec.run.usd_per_hour, 6),
        "host": platform.node(),
        "cpu": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "threads": spec.inputs["threads"],
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in _LIBRARIES},
        "spec": {"stage": spec.stage, "project": spec.project, "asset": spec.asset, "inputs": spec.inputs},
        "actor": spec.run.actor,
    }


if __name__ == "__main__":
    sys.exit(program.main("evaluate", make))
