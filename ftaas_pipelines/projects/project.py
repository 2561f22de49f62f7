"""The contract of `project.yaml`: one use case, in at most a page. Defaults are meant to be good.

Every field's unit is in its name or its description; `ftaas project schema` prints all of it.
"""

import re
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, field_validator, model_validator

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects.adapter import Adapter
from ftaas_pipelines.projects.answers import AnswerPolicy
from ftaas_pipelines.projects.base_model import BaseModelRef
from ftaas_pipelines.projects.dataset import Dataset
from ftaas_pipelines.projects.guard import GuardRules
from ftaas_pipelines.projects.licences import Licences
from ftaas_pipelines.projects.recipe import Recipe
from ftaas_pipelines.projects.rollout import Rollout
from ftaas_pipelines.projects.section import Section
from ftaas_pipelines.projects.upstream import Upstream

Task = Literal["qa", "chat", "functions", "agents", "classification", "correction", "extraction"]
Tier = Literal["low", "medium", "high"]
Sensitivity = Literal["public", "internal", "confidential", "restricted"]
Environment = Literal["staging", "production"]
MetricName = Literal["exact_match", "token_f1", "rouge_l", "chrf"]
Email = Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+\.[^@\s]+$")]
Signers = Annotated[int, Field(ge=0, le=9)]
SENSITIVITIES: tuple[Sensitivity, ...] = ("public", "internal", "confidential", "restricted")


def _scores_in_range(thresholds: dict[str, float]) -> dict[str, float]:
    for key, value in thresholds.items():
        slice_name, _, metric = key.rpartition(".")
        if metric not in get_args(MetricName):
            raise ValueError(f"'{key}' names no metric; use {', '.join(get_args(MetricName))}")
        if slice_name not in ("", "structured", "text"):
            raise ValueError(f"'{key}' names no slice; use structured or text")
        top = 100.0 if metric == "chrf" else 1.0
        if not 0 <= value <= top:
            raise ValueError(f"'{key}' must lie between 0 and {top:g}, got {value:g}")
    return thresholds


Thresholds = Annotated[dict[str, float], AfterValidator(_scores_in_range)]


class People(Section):
    """Who is who, by e-mail. The platform policy must allow each in that role."""

    owners: list[Email] = Field(min_length=1)
    smes: list[Email] = Field(default=[], description="domain experts who may sign the dataset")
    rai_reviewers: list[Email] = Field(default=[], description="Responsible-AI reviewers")
    approvers: list[Email] = Field(default=[], description="who may approve a release")

    def holding(self, role: str) -> list[str]:
        """The e-mails of a role: owner, sme, rai or approver."""
        lists = {
            "owner": self.owners,
            "sme": self.smes,
            "rai": self.rai_reviewers,
            "approver": self.approvers,
        }
        return lists[role]


class Batch(Section):
    """How often people are asked: a new review round is opened only when one of these is reached."""

    rows: int = Field(default=1, ge=1, description="so many rows came, went or changed since the last round")
    days: float = Field(default=0.0, ge=0, description="or so long ago was the last round opened")


class Reviews(Section):
    """How many people must sign; the platform policy's minimum for the risk tier holds anyway."""

    sme: Signers | None = None
    rai: Signers | None = None
    approvals: dict[Environment, Signers] = {}
    row_sample: int = Field(
        default=0, ge=0, description="rows to ask SMEs about: all up to so many, else a sample; 0: none"
    )
    reviewers_per_row: int = Field(default=1, ge=1, le=3, description="2 or 3: agreement is measured")
    batch: Batch = Batch()
    sign_off_days: float | None = Field(
        default=None, gt=0, description="a sign-off expires after so many days"
    )


class Evaluation(Section):
    metrics: list[MetricName] = ["exact_match", "token_f1", "rouge_l", "chrf"]
    primary: MetricName = Field(
        default="exact_match", description="chooses the candidate; must beat the naive"
    )
    thresholds: Thresholds = Field(
        default={}, description="least test score, by `metric` or `slice.metric` (slices: structured, text)"
    )
    champion_margin: float = Field(
        default=0.0,
        ge=0,
        description="non-inferiority margin on the primary metric, in its units: how much below the champion "
        "the best case of the 95% interval may lie; the platform policy caps it",
    )
    max_new_tokens: int = Field(default=128, ge=1, le=4096)
    samples: int = Field(default=8, ge=0, description="answers shown side by side")
    max_records: int | None = Field(default=None, ge=1, description="score at most so many, by seed")

    @model_validator(mode="after")
    def _metrics_are_scored(self) -> "Evaluation":
        asked = [self.primary, *(key.rpartition(".")[2] for key in self.thresholds)]
        if unscored := sorted(set(asked) - set(self.metrics)):
            raise ValueError(
                f"{', '.join(unscored)} is asked for but not among the metrics; add it to metrics"
            )
        return self


class Serving(Section):
    environments: list[Environment] = Field(default=["staging", "production"], min_length=1)
    max_new_tokens: int = Field(default=128, ge=1, le=4096)
    smoke_questions: int = Field(
        default=8, ge=1, le=64, description="test prompts a release must answer as evaluated"
    )
    upstream: Upstream | None = Field(
        default=None, description="a server (vLLM, say) that answers in place of our engine"
    )
    guard: GuardRules = Field(
        default=GuardRules(), description="what may not pass; stricter than the policy's, never looser"
    )
    answers: AnswerPolicy = Field(
        default=AnswerPolicy(), description="what is kept of answers, and its price"
    )
    rollout: Rollout = Field(
        default=Rollout(), description="what ends or promotes a trial, and rolls back, by rule"
    )

    @field_validator("environments")
    @classmethod
    def _environments_differ(cls, environments: list[Environment]) -> list[Environment]:
        if len(set(environments)) < len(environments):
            raise ValueError("an environment stands twice")
        return environments


class Budget(Section):
    """What one training may cost. Quoted before it begins, held while it runs."""

    usd: float | None = Field(default=None, ge=0)
    training_minutes: float | None = Field(default=None, gt=0, description="a training may take at most this")
    kwh: float | None = Field(default=None, gt=0, description="energy of one training")
    co2e_kg: float | None = Field(default=None, gt=0, description="emissions of one training")
    hardware: str = Field(
        default="", description="what trains, a name of policy/prices.yaml; empty: this machine"
    )
    region: str = Field(default="", description="where, a region of policy/prices.yaml; empty: its default")
    spot: bool = Field(default=False, description="count with spot prices")
    usd_per_hour: float = Field(
        default=0.0, ge=0, description="price of the machine that trains; above 0 it stands for the table's"
    )


class Retraining(Section):
    cron: str | None = Field(default=None, description="take changed data at these times")
    on_change: bool = Field(default=True, description="take changed data at once when no cron is set")

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, cron: str | None) -> str | None:
        if cron is not None and not re.fullmatch(r"\S+(\s+\S+){4}", cron):
            raise ValueError("a cron expression has five fields, such as '0 6 * * 1'")
        return cron


def _check_chain(recipe: Recipe, before: dict[str, Recipe], all_names: set[str]) -> None:
    """That what a recipe builds on stands before it, and is of the right kind."""
    for name in recipe.needs:
        if name not in before:
            do = "move it up" if name in all_names else "there is no such recipe"
            raise ValueError(f"recipe {recipe.name} builds on {name}, which does not stand before it; {do}")
        if before[name].remote:
            raise ValueError(f"recipe {recipe.name} builds on {name}, whose provider keeps the result")
    scorer = getattr(recipe.method, "reward_model", None)
    if scorer and before[scorer].answers:
        raise ValueError(f"recipe {recipe.name}: the method of {scorer} is not reward; name a reward model")
    start = recipe.init_from
    if start and recipe.answers and not before[start].answers:
        raise ValueError(f"recipe {recipe.name}: {start} is a reward model, which answers nothing")


class Project(Section):
    """One `project.yaml`."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)
    title: str
    task: Task
    intended_use: str
    people: People
    dataset: Dataset
    base_model: BaseModelRef
    recipes: list[Recipe] = Field(default=[Recipe(name="lora")], min_length=1)
    evaluation: Evaluation = Evaluation()
    licences: Licences = Field(default=Licences(), description="of base models, beside the platform policy's")
    industry: str = ""
    department: str = ""
    customer: str = ""
    not_for: str = ""
    business_kpi: str = ""
    risk_tier: Tier = "low"
    data_sensitivity: Sensitivity = "internal"
    reviews: Reviews = Reviews()
    serving: Serving = Serving()
    budget: Budget = Budget()
    retraining: Retraining = Retraining()

    @field_validator("recipes")
    @classmethod
    def _recipes_fit_together(cls, recipes: list[Recipe]) -> list[Recipe]:
        if len({r.name for r in recipes}) < len(recipes):
            raise ValueError("two recipes have the same name")
        if not any(r.answers for r in recipes):
            raise ValueError(
                "no recipe makes a model that answers here; add one whose method is not reward and whose "
                "provider does not keep the result"
            )
        before: dict[str, Recipe] = {}
        for recipe in recipes:
            _check_chain(recipe, before, {r.name for r in recipes})
            before[recipe.name] = recipe
        return recipes

    @model_validator(mode="after")
    def _recipes_name_sources_to_train_on(self) -> "Project":
        known = [s.name for s in self.dataset.sources if s.split in (None, "train")]
        for recipe in self.recipes:
            if unknown := [name for name in recipe.sources or () if name not in known]:
                raise ValueError(
                    f"recipe {recipe.name}: {unknown[0]} is no source of training records; "
                    f"known: {', '.join(known)}"
                )
        return self

    def adapter_before(self, recipe: Recipe) -> Adapter | None:
        """The adapter section of the chain that a recipe goes on with: the nearest that is written out."""
        before: Adapter | None = None
        while recipe.init_from:
            recipe = self.recipe(recipe.init_from)
            before = recipe.adapter
            if "adapter" in recipe.model_fields_set:
                break
        return before

    def recipe(self, name: str) -> Recipe:
        """The recipe of that name.

        Raises:
            InputInvalid: there is none.
        """
        for recipe in self.recipes:
            if recipe.name == name:
                return recipe
        known = ", ".join(r.name for r in self.recipes)
        raise InputInvalid("there is no recipe of this name", self.name, name, f"known: {known}")
