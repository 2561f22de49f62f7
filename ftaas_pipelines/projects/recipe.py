"""The `recipes` of `project.yaml`: how an adapter is made."""

from typing import Any, Literal

from pydantic import Field, model_validator

from ftaas_pipelines.projects.adapter import Adapter, LoRA
from ftaas_pipelines.projects.method import Method, RecipeName, Sft
from ftaas_pipelines.projects.provider import Provider
from ftaas_pipelines.projects.section import Section


class EarlyStopping(Section):
    """End when validation loss has not improved for so many evaluations; the best weights are kept."""

    patience: int = Field(default=3, ge=1, description="evaluations without improvement")
    min_delta: float = Field(default=0.0, ge=0, description="least improvement that counts")


class Distributed(Section):
    """Several processes, by accelerate under torchrun. All of it is part of what the adapter is made from."""

    processes: int = Field(default=1, ge=1, description="processes (GPUs) on each node")
    nodes: int = Field(default=1, ge=1)
    strategy: Literal["ddp", "fsdp2", "zero1", "zero2", "zero3"] = "ddp"

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.processes * self.nodes


class Training(Section):
    """How long, how fast, and on what terms with the machine. Steps count optimizer updates.

    `auto` is written out before the input digest is taken, by `training.resolve`.
    """

    max_steps: int | None = Field(default=None, ge=1, description="optimizer steps; wins over epochs")
    epochs: float = Field(default=3.0, gt=0)
    batch_size: int = Field(default=16, ge=1, description="examples per device and forward pass")
    gradient_accumulation: int = Field(default=1, ge=1, description="forward passes per step")
    learning_rate: float = Field(default=2e-4, gt=0, lt=1)
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    warmup_steps: int = Field(default=0, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    optimizer: Literal[
        "auto",
        "adamw_torch",
        "adamw_torch_fused",
        "adamw_8bit",
        "paged_adamw_8bit",
        "adafactor",
        "sgd",
        "lion_8bit",
    ] = Field(default="auto", description="auto: AdamW, fused; paged in 8 bits for QLoRA on a GPU")
    max_seq_tokens: int = Field(default=512, ge=8)
    too_long: Literal["truncate", "refuse", "drop"] = Field(
        default="truncate", description="what becomes of an example longer than max_seq_tokens"
    )
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="auto: bf16 on a GPU that has it, else fp32"
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    gradient_checkpointing: bool = Field(default=False, description="less memory for a third more time")
    compile: bool = Field(default=False, description="torch.compile: slow to start, faster steps on a GPU")
    neftune_alpha: float | None = Field(
        default=None, gt=0, description="noise on embeddings (Jain et al. 2023)"
    )
    early_stopping: EarlyStopping | None = None
    eval_steps: int | None = Field(default=None, ge=1, description="default: ten times a run")
    save_steps: int | None = Field(default=None, ge=1, description="default: ten times a run")
    samples: int = Field(default=2, ge=0, le=16, description="validation prompts answered at each evaluation")
    distributed: Distributed = Distributed()

    @property
    def rows_per_step(self) -> int:
        """Examples that one optimizer step sees, over all processes."""
        return self.batch_size * self.gradient_accumulation * self.distributed.world


class Search(Section):
    """Values that a sweep tries for one setting: a range, or choices."""

    low: float | int | None = None
    high: float | int | None = None
    log: bool = Field(default=False, description="evenly on a logarithmic scale")
    choices: list[Any] = []

    @model_validator(mode="after")
    def _one_kind(self) -> "Search":
        ranged = self.low is not None and self.high is not None
        if ranged == bool(self.choices) or (self.low is None) != (self.high is None):
            raise ValueError("takes low and high, or choices")
        if ranged and not (self.low < self.high):  # type: ignore[operator]
            raise ValueError(f"low must be below high, got {self.low} and {self.high}")
        if self.log and not (ranged and self.low > 0):  # type: ignore[operator]
            raise ValueError("log needs a range above zero")
        return self


class Sweep(Section):
    """A search over settings of the recipe, by Optuna (TPE); the best trial's adapter is the recipe's.

    Judged on validation alone: the test split is never touched.
    """

    trials: int = Field(default=8, ge=2, le=1000)
    search: dict[str, Search] = Field(min_length=1, description="e.g. training.learning_rate, adapter.r")
    prune: bool = Field(default=True, description="end a trial early that is worse than the median so far")
    seed: int = 0


class Recipe(Section):
    """One way to train; its adapter asset is `adapter_<name>`."""

    name: RecipeName
    method: Method = Sft()
    adapter: Adapter = LoRA()
    training: Training = Training()
    init_from: RecipeName | None = Field(
        default=None, description="a recipe whose adapter this one goes on with (SFT, then DPO)"
    )
    sources: list[str] | None = Field(
        default=None,
        min_length=1,
        description="of dataset.sources, those whose records it learns from; default: all. For chains whose "
        "steps learn from records of different kinds",
    )
    sweep: Sweep | None = None
    provider: Provider | None = Field(default=None, description="someone else's machines; default: ours")
    description: str = ""

    @model_validator(mode="before")
    @classmethod
    def _shorthands(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        out = dict(value)
        if isinstance(out.get("method"), str):
            out["method"] = {"kind": out["method"]}
        adapter = out.get("adapter")
        if isinstance(adapter, dict) and "kind" not in adapter:
            out["adapter"] = {"kind": "lora", **adapter}
        return out

    @model_validator(mode="after")
    def _provider_stands_alone(self) -> "Recipe":
        if self.provider is None:
            return self
        if self.needs:
            raise ValueError(f"a provider cannot build on {self.needs[0]}, which is kept here; train it here")
        if self.sources:
            raise ValueError("a provider gets all of the records; leave out sources or provider")
        if self.sweep:
            raise ValueError("a sweep runs on this platform's machines; leave out sweep or provider")
        return self

    @model_validator(mode="after")
    def _groups_are_whole(self) -> "Recipe":
        group = getattr(self.method, "generations", 1)
        if self.training.rows_per_step % group:
            raise ValueError(
                f"{self.name}: a step has {self.training.rows_per_step} answers (batch_size x "
                f"gradient_accumulation x processes), not a multiple of method.generations, {group}"
            )
        return self

    @property
    def needs(self) -> list[str]:
        """The recipes whose adapters must be there first."""
        named = (
            self.init_from,
            getattr(self.method, "reward_model", None),
            getattr(self.method, "teacher_recipe", None),
        )
        return [name for name in named if name is not None]

    @property
    def answers(self) -> bool:
        """Whether what it makes can be asked here, and so be a candidate.

        A reward model scores answers; a model that stays at its provider is out of reach.
        """
        return self.method.kind != "reward" and not self.remote

    @property
    def remote(self) -> bool:
        """Whether what it makes stays at its provider under a name, and cannot be loaded here."""
        return self.provider is not None and self.provider.kind != "sagemaker"
