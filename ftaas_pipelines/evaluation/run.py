"""Ask every system every question and score each answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftaas_pipelines.evaluation.inputs import EvaluateInputs
from ftaas_pipelines.evaluation.records import Record, read, training_examples
from ftaas_pipelines.inference.decoding import Model
from ftaas_pipelines.metrics import baselines
from ftaas_pipelines.metrics.record_metric import RecordMetric
from ftaas_pipelines.metrics.text import METRICS

BASE = "base"
Progress = Callable[[float, str], None]
Scores = dict[str, NDArray[np.float64]]


@dataclass
class SetResult:
    """One set of records with everything every system said.

    Attributes:
        texts: system to its answers, in the order of `records`.
        token_ids: the same for models, as token ids.
        scores: system to metric to `[records]`; models also have `loss`.
    """

    name: str
    records: Sequence[Record]
    texts: dict[str, list[str]] = field(default_factory=dict)
    token_ids: dict[str, list[list[int]]] = field(default_factory=dict)
    scores: dict[str, Scores] = field(default_factory=dict)


@dataclass
class Results:
    """A whole comparison or evaluation. The first set is the split itself, challenges follow."""

    sets: list[SetResult]
    models: list[str]
    naive: list[str]


def evaluate(
    inputs: EvaluateInputs,
    splits: Path,
    base: Path,
    adapters: dict[str, Path],
    scratch: Path,
    progress: Progress,
    dataset: Path | None = None,
) -> Results:
    """Answer and score.

    On validation the recipes alone are asked; on test also the base model and the naive baselines.

    Args:
        inputs: what is asked for.
        splits: folder of the `splits` artifact.
        base: folder of the base model.
        adapters: label to folder of an `adapter` artifact.
        scratch: a folder for what libraries insist on writing; not kept.
        progress: told the share done, 0 to 1, and what is being done.
        dataset: folder of the dataset version, which holds the images that a vision-language base is shown.
    """
    found = read(splits, inputs.split, inputs.options.max_records)
    sets = [SetResult(name, records) for name, records in found.items()]
    model = Model(base, adapters, threads=inputs.threads, images=dataset)
    models = [*adapters, BASE] if inputs.split == "test" else list(adapters)
    work = _Share(progress, len(models) * sum(len(s.records) for s in sets))
    for label in models:
        for one in sets:
            _ask(model, label, one, inputs.options.max_new_tokens, work)
    naive: list[str] = []
    if inputs.split == "test":
        known = baselines.for_task(inputs.task, training_examples(splits))
        for label, answer in known.items():
            for one in sets:
                one.texts[label] = answer([r.prompt for r in one.records])
        naive = list(known)
    progress(0.95, "scoring")
    for one in sets:
        _score(one, scratch)
    return Results(sets, models, naive)


class _Share:
    """Turns finished records into a share of all work (scoring and reports take the last part)."""

    def __init__(self, progress: Progress, total: int):
        self._progress, self._total, self._done = progress, total, 0

    def batch(self, label: str, one: SetResult, done: int) -> None:
        share = 0.95 * (self._done + done) / self._total
        self._progress(share, f"{label} answers {one.name}: {done} of {len(one.records)}")

    def finished(self, one: SetResult) -> None:
        self._done += len(one.records)


def _ask(model: Model, label: str, one: SetResult, max_new_tokens: int, work: _Share) -> None:
    adapter = None if label == BASE else label
    prompts = [r.messages for r in one.records]
    answers = model.generate(
        prompts,
        adapter,
        max_new_tokens=max_new_tokens,
        on_batch=lambda done: work.batch(label, one, done),
    )
    one.texts[label] = [a.text for a in answers]
    one.token_ids[label] = [a.token_ids for a in answers]
    losses = model.loss(prompts, [r.reference for r in one.records], adapter)
    one.scores[label] = {"loss": np.asarray(losses, dtype=np.float64)}
    work.finished(one)


def _score(one: SetResult, scratch: Path) -> None:
    """All metrics, not only the project's: they cost little, and a later question finds its answer."""
    references = [r.reference for r in one.records]
    for name in METRICS:
        metric = RecordMetric(name, scratch)
        for label, texts in one.texts.items():
            result: Any = metric.compute(predictions=texts, references=references)
            one.scores.setdefault(label, {})[name] = np.asarray(result["scores"], dtype=np.float64)
