"""Our scores as `evaluate.Metric`s, built here because `evaluate.load` would ask the Hub.

Importing this costs several CPU seconds alone, next to nothing once PEFT is loaded.
"""

from pathlib import Path
from typing import Any

import datasets  # noqa: TID253 imported by the stage that evaluates only
import evaluate

from ftaas_pipelines.metrics import text


class RecordMetric(evaluate.Metric):
    """One score over many records: `compute` gives the mean under its name, and `scores` per record.

    Args:
        name: one of `text.METRICS`.
        folder: where the library may make its (empty) folder.
    """

    def __init__(self, name: str, folder: Path):
        super().__init__(config_name=name, keep_in_memory=True, cache_dir=str(folder))

    def _info(self) -> evaluate.MetricInfo:
        score = text.scorer(str(self.config_name))
        return evaluate.MetricInfo(
            description=score.__doc__ or "",
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, *, predictions: Any = None, references: Any = None, **_: Any) -> dict[str, Any]:
        score = text.scorer(str(self.config_name))
        scores = [score(p, r) for p, r in zip(predictions, references, strict=True)]
        return {str(self.config_name): sum(scores) / len(scores), "scores": scores}
