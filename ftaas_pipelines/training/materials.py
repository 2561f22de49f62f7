"""What one training has before it: its inputs, and where each of them lies on this machine."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ftaas_pipelines.training.inputs import TrainInputs
from ftaas_pipelines.training.planning.costs import Costs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Materials:
    """The inputs of a training as folders.

    Attributes:
        splits: folder of the splits artifact.
        base: folder of the base model; `tokenizer` is its tokenizer, completed.
        dataset: folder of the dataset version that the splits were made of; it holds the images.
        init_from, reward_model, teacher_adapter: folders of adapter artifacts, where the method has them.
        teacher: folder of the teacher's base model.
        code: folder that Python rewards are read from.
        proofs: folder where proofs of supervision are kept.
        costs: what time costs on the machine that trains, and what may be spent.
    """

    inputs: TrainInputs
    splits: Path
    base: Path
    dataset: Path | None = None
    init_from: Path | None = None
    reward_model: Path | None = None
    teacher: Path | None = None
    teacher_adapter: Path | None = None
    code: Path | None = None
    proofs: Path | None = None
    costs: Costs = field(default_factory=Costs)
    loaded_tokenizer: "PreTrainedTokenizerBase | None" = None

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        assert self.loaded_tokenizer is not None, "with_tokenizer() first"
        return self.loaded_tokenizer

    def with_tokenizer(self) -> "Materials":
        """The same, with the base's tokenizer read."""
        from ftaas_pipelines.inference import bases

        return replace(self, loaded_tokenizer=bases.load_tokenizer(self.base))

    def with_inputs(self, inputs: TrainInputs) -> "Materials":
        """The same folders for other inputs (a trial of a sweep)."""
        return replace(self, inputs=inputs)
