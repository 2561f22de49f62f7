"""What an adapter is made from: exactly what its input digest is taken over."""

from ftaas_pipelines.data.inputs import Inputs
from ftaas_pipelines.projects.project import FullFineTuning, LoRA, Training

TRAIN_CONTRACT = 1


class TrainInputs(Inputs):
    """Splits and a base model to an adapter (artifact kind `adapter`).

    `training` is resolved: every default that depends on data or machine is written in
    (`max_steps`, `eval_steps`, `save_steps`). `base` is the digest of the base model's files.
    """

    contract: int = TRAIN_CONTRACT
    splits: str
    base: str
    family: str
    method: str
    adapter: LoRA | FullFineTuning
    training: Training
    threads: int
