"""What an adapter is made from: exactly what its input digest is taken over."""

from typing import Any

from ftaas_pipelines.data.inputs import Inputs
from ftaas_pipelines.projects.adapter import Adapter
from ftaas_pipelines.projects.method import Method
from ftaas_pipelines.projects.recipe import Sweep, Training

TRAIN_CONTRACT = 2


class TrainInputs(Inputs):
    """Splits and a base model to an adapter (artifact kind `adapter`).

    `method`, `adapter` and `training` are resolved: whatever depends on data, base or machine is written in.
    `base` and `teacher` are digests of base models' files; `init_from`, `reward_model` and `teacher_adapter`
    are digests of adapters. `code` is the sha256 of each file of Python rewards, by its name. `provider` is
    what of a provider's section decides what is made; method, adapter and training then stand as they were
    asked for: the provider's machine fits them.
    """

    contract: int = TRAIN_CONTRACT
    splits: str
    base: str
    family: str
    method: Method
    adapter: Adapter
    training: Training
    threads: int
    sources: list[str] | None = None
    init_from: str | None = None
    reward_model: str | None = None
    teacher: str | None = None
    teacher_adapter: str | None = None
    code: dict[str, str] = {}
    sweep: Sweep | None = None
    provider: dict[str, Any] | None = None
