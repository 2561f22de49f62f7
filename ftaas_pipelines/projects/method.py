"""How a recipe learns: one typed section a method. `method: dpo` is short for `method: {kind: dpo}`."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ftaas_pipelines.projects.base_model import BaseModelRef
from ftaas_pipelines.projects.reward import Grader
from ftaas_pipelines.projects.section import Section

RecipeName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,19}$")]
Packing = Literal["none", "bfd", "wrapped"]
_PACKING = (
    "fill each row of max_seq_tokens with several examples: bfd keeps examples whole, wrapped cuts them "
    "where a row ends"
)


class Sft(Section):
    """Supervised fine-tuning: the answers of conversations, by a causal base."""

    kind: Literal["sft"] = "sft"
    packing: Packing = Field(default="none", description=_PACKING)
    padding_free: bool = Field(
        default=False, description="one long row a batch without padding; needs flash attention on a GPU"
    )

    @model_validator(mode="after")
    def _one_way(self) -> "Sft":
        if self.padding_free and self.packing != "none":
            raise ValueError("packing leaves no padding: take padding_free or packing, not both")
        return self


class Pretrain(Section):
    """Continued pre-training: every token of plain texts, by a causal base."""

    kind: Literal["pretrain"]
    packing: Packing = Field(default="wrapped", description=_PACKING)


class Seq2Seq(Section):
    """Supervised fine-tuning of an encoder-decoder base (T5)."""

    kind: Literal["seq2seq"]
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


class Classification(Section):
    """A head that names one of a few labels: where a label is all that is wanted.

    The labels are the different answers of the training split, sorted.
    """

    kind: Literal["classification"]
    max_labels: int = Field(default=1000, ge=2, description="more different answers than this are no labels")
    balance: bool = Field(default=False, description="weigh each label by its inverse frequency")


class Vision(Section):
    """Supervised fine-tuning on conversations that show images, by a vision-language base."""

    kind: Literal["vision"]
    train_vision_tower: bool = Field(
        default=False, description="adapt the image encoder too, not the language model alone"
    )


class Dpo(Section):
    """Direct preference optimisation (Rafailov et al. 2023): chosen over rejected answers."""

    kind: Literal["dpo"]
    beta: float = Field(default=0.1, gt=0, description="how near to the reference the policy stays")
    loss: Literal["sigmoid", "hinge", "ipo", "robust", "apo_zero"] = "sigmoid"
    label_smoothing: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="loss robust: share of preferences that are turned round",
    )

    @model_validator(mode="after")
    def _smoothing_is_heard(self) -> "Dpo":
        if self.label_smoothing and self.loss != "robust":
            raise ValueError(f"loss {self.loss} takes no label_smoothing; use loss robust, or leave it out")
        return self


class Kto(Section):
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024): single answers, each good or bad."""

    kind: Literal["kto"]
    beta: float = Field(default=0.1, gt=0)
    desirable_weight: float = Field(default=1.0, gt=0)
    undesirable_weight: float = Field(default=1.0, gt=0)


class Orpo(Section):
    """Odds-ratio preference optimisation (Hong et al. 2024): SFT and preferences in one, no reference."""

    kind: Literal["orpo"]
    beta: float = Field(default=0.1, gt=0, description="weight of the odds ratio (lambda in the paper)")


class Reward(Section):
    """A reward model: scores answers, learnt from preferences (Bradley-Terry). Never a candidate."""

    kind: Literal["reward"]
    center_coefficient: float | None = Field(
        default=None, gt=0, description="keeps rewards around zero (Eisenstein et al. 2023: 0.01)"
    )


class _Online(Section):
    """Answers are sampled from the model that learns, several a prompt, and rewarded. Dropout is off.

    `training.batch_size` counts answers; those of a step are whole groups of `generations`. Validation is
    the mean reward of greedy answers, its loss the same with the sign turned.
    """

    rewards: list[Grader] = []
    generations: int = Field(default=8, ge=2, description="answers sampled for each prompt")
    max_new_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    beta: float = Field(default=0.0, ge=0, description="weight of the KL divergence from the reference")


class Grpo(_Online):
    """Group relative policy optimisation (Shao et al. 2024) with rewards that a program computes."""

    kind: Literal["grpo"]
    loss: Literal["grpo", "dapo", "dr_grpo", "bnpo"] = "dapo"

    @model_validator(mode="after")
    def _rewarded(self) -> "Grpo":
        if not self.rewards:
            raise ValueError("names no rewards; add one, such as {kind: exact_match}")
        return self


class Rloo(_Online):
    """Reinforcement learning from human feedback: REINFORCE leave-one-out (Ahmadian et al. 2024).

    The reward is a model that a recipe of method `reward` learnt, graders may stand beside it.
    """

    kind: Literal["rloo"]
    reward_model: RecipeName | None = Field(default=None, description="a recipe of method reward")
    beta: float = Field(default=0.05, ge=0)

    @model_validator(mode="after")
    def _rewarded(self) -> "Rloo":
        if not self.rewards and self.reward_model is None:
            raise ValueError("names no reward; set reward_model to a recipe of method reward, or add rewards")
        return self


class Distillation(Section):
    """A larger teacher's distributions to a smaller student, on the training answers and the student's own.

    Generalised knowledge distillation (Agarwal et al. 2024). Teacher and student share a vocabulary.
    """

    kind: Literal["distillation"]
    teacher: BaseModelRef
    teacher_recipe: RecipeName | None = Field(
        default=None,
        description="a recipe of this project that the teacher, then this project's base, learnt by",
    )
    temperature: float = Field(default=1.0, gt=0)
    divergence: float = Field(default=0.5, ge=0, le=1, description="0 forward KL, 1 reverse KL, between: JSD")
    on_policy: float = Field(
        default=0.0, ge=0, le=1, description="share of steps on the student's own answers"
    )
    max_new_tokens: int = Field(default=128, ge=1, description="of such an answer")


Method = Annotated[
    Sft
    | Pretrain
    | Seq2Seq
    | Classification
    | Vision
    | Dpo
    | Kto
    | Orpo
    | Reward
    | Grpo
    | Rloo
    | Distillation,
    Field(discriminator="kind"),
]
