"""Which weights a recipe trains, and how they are held."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ftaas_pipelines.projects.section import Section


class LoRA(Section):
    """A low-rank adapter beside the base (Hu et al. 2021), and what was made of it since."""

    kind: Literal["lora"] = "lora"
    r: int = Field(default=8, ge=1, le=512)
    alpha: int = Field(default=16, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"
    dora: bool = Field(default=False, description="weights as direction and magnitude (Liu et al. 2024)")
    rslora: bool = Field(default=False, description="scale by alpha / sqrt(r) (Kalajdzievski 2023)")
    init: Literal["default", "pissa", "olora"] = Field(
        default="default", description="pissa: from the base's principal components (Meng et al. 2024)"
    )
    plus_ratio: float | None = Field(
        default=None, ge=1, description="LoRA+: learning rate of B over that of A (Hayou et al. 2024: 16)"
    )
    quantise: Literal["nf4", "int8"] | None = Field(
        default=None, description="QLoRA: the frozen base in 4 or 8 bits (Dettmers et al. 2023)"
    )
    double_quantise: bool = Field(default=True, description="nf4: quantise its constants, too")
    embeddings: bool = Field(
        default=False,
        description="train and keep the embeddings too: for new tokens, or a base too small to tell rare "
        "tokens apart; ten times larger, and such adapters share no batch",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> "LoRA":
        if self.quantise and self.init != "default":
            raise ValueError(
                f"init {self.init} changes the base's weights, which quantise freezes; leave one out"
            )
        if self.init != "default" and (self.dora or self.rslora):
            raise ValueError(f"init {self.init} goes with neither dora nor rslora; leave one out")
        if isinstance(self.target_modules, list) and not self.target_modules:
            raise ValueError("target_modules is empty; name some, or all-linear")
        return self


class FullFineTuning(Section):
    """Every weight."""

    kind: Literal["full"]


Adapter = Annotated[LoRA | FullFineTuning, Field(discriminator="kind")]
