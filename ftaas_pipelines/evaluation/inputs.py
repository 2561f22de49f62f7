"""What a comparison or an evaluation is made from: exactly what its input digest is taken over."""

from typing import Literal

from ftaas_pipelines.data.inputs import Inputs
from ftaas_pipelines.projects.project import Evaluation

EVALUATE_CONTRACT = 2


class EvaluateInputs(Inputs):
    """Adapters and splits to scores and answers.

    `split: validation` compares recipes (artifact kind `comparison`); `split: test` scores one
    candidate beside base, champion and the naive baselines (artifact kind `evaluation`).
    `adapters` maps a label (a recipe's name, `candidate`, `champion`) to an adapter digest.
    """

    contract: int = EVALUATE_CONTRACT
    split: Literal["validation", "test"]
    splits: str
    base: str
    family: str
    task: str
    adapters: dict[str, str]
    options: Evaluation
    threads: int
