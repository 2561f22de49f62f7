"""The contract of `policy/platform.yaml`: what holds for every project. A project may only tighten it."""

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, field_validator

from ftaas_pipelines.errors import Problem, Refusal
from ftaas_pipelines.projects import yaml_lines
from ftaas_pipelines.projects.guard import GuardRules, looser, together
from ftaas_pipelines.projects.licences import Licences
from ftaas_pipelines.projects.method import Distillation
from ftaas_pipelines.projects.project import (
    Environment,
    People,
    Project,
    Sensitivity,
    Signers,
    Thresholds,
    Tier,
)
from ftaas_pipelines.projects.section import Section

ROLES = ("owner", "sme", "rai", "approver")


class Roles(Section):
    """Who may hold a role: e-mails, or patterns such as `*@acme.org`."""

    owner: list[str] = []
    sme: list[str] = []
    rai: list[str] = []
    approver: list[str] = []

    def allows(self, role: str, email: str) -> bool:
        return any(fnmatch(email.lower(), pattern.lower()) for pattern in getattr(self, role))


class TierPolicy(Section):
    """The least that a risk tier asks for."""

    sme: Signers = 1
    rai: Signers = 1
    approvals: dict[Environment, Signers] = {"staging": 0, "production": 1}
    thresholds: Thresholds = Field(default={}, description="least test scores, as in a project")
    row_sample: int = Field(default=0, ge=0, description="least rows that SMEs look at, as in a project")
    reviewers_per_row: int = Field(default=1, ge=1, le=3)
    max_batch_rows: int = Field(
        default=1000, ge=1, description="the largest reviews.batch.rows that a project may ask for"
    )
    sign_off_days: float | None = Field(
        default=None, gt=0, description="a sign-off expires after so many days"
    )
    when_revoked: Literal["stop", "flag", "grace"] = Field(
        default="flag", description="what becomes of a release that serves when its sign-off holds no more"
    )
    grace_days: float = Field(default=7.0, gt=0, description="of `grace`: then it is stopped")


class BreakGlass(Section):
    """Who may let one release through without its approvals for `hours`: two people, with a reason."""

    people: list[str] = Field(default=[], description="e-mails or patterns; empty: nobody may")
    hours: float = Field(default=24.0, gt=0, le=72)

    @field_validator("people")
    @classmethod
    def _two_at_least(cls, people: list[str]) -> list[str]:
        if len({p.lower() for p in people}) == 1 and "*" not in people[0]:
            raise ValueError("it takes two people, and this names one; name another, or nobody")
        return people


class Experiments(Section):
    """What may be trained on data nobody signed."""

    sensitivity: list[Sensitivity] = ["public", "internal"]
    max_training_minutes: float = Field(default=15, gt=0)


class PlatformPolicy(Section):
    roles: Roles
    tiers: dict[Tier, TierPolicy]
    separation_of_duties: bool = Field(
        default=True, description="who owns the data or started the training never signs it"
    )
    max_champion_margin: float = Field(
        default=0.0, ge=0, description="the largest evaluation.champion_margin that a project may ask for"
    )
    must_beat_naive: bool = Field(default=True, description="no release that loses to a naive baseline")
    experiments: Experiments = Experiments()
    break_glass: BreakGlass = BreakGlass()
    licences: Licences = Field(default=Licences(), description="of base models; a project may forbid more")
    guard: GuardRules = Field(default=GuardRules(), description="what may not pass any endpoint")

    @field_validator("tiers")
    @classmethod
    def _every_tier(cls, tiers: dict[Tier, TierPolicy]) -> dict[Tier, TierPolicy]:
        # A tier left out must not quietly fall to a lenient default.
        if missing := [tier for tier in get_args(Tier) if tier not in tiers]:
            raise ValueError(f"says nothing of the tier {', '.join(missing)}")
        return tiers

    def tier(self, project: Project) -> TierPolicy:
        return self.tiers[project.risk_tier]

    def guard_of(self, project: Project) -> GuardRules:
        """What an endpoint of this project lets pass: the stricter of policy and project, rule by rule."""
        return together(project.serving.guard, self.guard)

    def signers(self, people: People, role: str) -> set[str]:
        """The e-mails (lower case) that may sign in a role: an owner never does where duties are separate."""
        barred = people.owners if self.separation_of_duties else []
        return {p.lower() for p in people.holding(role)} - {p.lower() for p in barred}

    def reviews(self, project: Project) -> dict[str, int]:
        """How many SMEs and RAI reviewers must sign the dataset: policy, or more."""
        tier = self.tier(project)
        return {
            "sme": max(tier.sme, project.reviews.sme or 0),
            "rai": max(tier.rai, project.reviews.rai or 0),
        }

    def approvals(self, project: Project, environment: str) -> int:
        """How many approvers an environment asks for; 0: it passes by policy."""
        own = dict(project.reviews.approvals).get(environment, 0)  # type: ignore[arg-type]
        return max(self.tier(project).approvals.get(environment, 0), own)  # type: ignore[arg-type]

    def row_sample(self, project: Project) -> int:
        """How many rows SMEs look at: all up to so many, else a sample; 0: none."""
        return max(self.tier(project).row_sample, project.reviews.row_sample)

    def reviewers_per_row(self, project: Project) -> int:
        return max(self.tier(project).reviewers_per_row, project.reviews.reviewers_per_row)

    def sign_off_days(self, project: Project) -> float | None:
        """After how many days a sign-off expires: the sooner of policy and project; None: never."""
        asked = (self.tier(project).sign_off_days, project.reviews.sign_off_days)
        return min((days for days in asked if days is not None), default=None)

    def thresholds(self, project: Project) -> dict[str, float]:
        """Least scores: the higher of policy and project, key by key."""
        out = dict(self.tier(project).thresholds)
        for key, value in project.evaluation.thresholds.items():
            out[key] = max(value, out.get(key, value))
        return out


def load(path: Path) -> PlatformPolicy:
    """Read the platform policy. Raises InputInvalid with every error in it."""
    return yaml_lines.parse(path, PlatformPolicy)[0]


OTHER_BASE = "choose a base of another licence (`ftaas model bases` lists some)"
_FIELDS = {"owner": "owners", "sme": "smes", "rai": "rai_reviewers", "approver": "approvers"}
_Place = tuple[str | int, ...]
_Conflict = tuple[_Place, str, str, str]
"""Place in the file, what, got, do."""


def conflicts(policy: PlatformPolicy, project: Project, path: Path, lines: yaml_lines.Lines) -> list[Problem]:
    """Where a project asks for what the policy does not allow, or names too few people for it."""
    found = [*_unknown_people(policy, project), *_loosened(policy, project), *_too_few(policy, project)]
    problems = [
        Problem(what, f"{path}:{yaml_lines.line_of(lines, place)}", got, do) for place, what, got, do in found
    ]
    refused = [
        Refusal(what, f"{path}:{yaml_lines.line_of(lines, place)}", got, do)
        for place, what, got, do in _forbidden_licences(policy, project)
    ]
    return [*problems, *refused]


def _forbidden_licences(policy: PlatformPolicy, project: Project) -> Iterator[_Conflict]:
    """Licences that the project itself states. Those that only the base's folder states: training.fitness."""
    stated: list[tuple[_Place, str]] = [(("base_model", "licence"), project.base_model.licence)]
    for i, recipe in enumerate(project.recipes):
        if isinstance(recipe.method, Distillation):
            stated.append((("recipes", i, "method", "teacher", "licence"), recipe.method.teacher.licence))
    for place, licence in stated:
        for whose, terms in (("the platform policy", policy.licences), ("the project", project.licences)):
            if licence and (why := terms.why_not(licence)):
                yield place, f"{whose} {why}", licence, OTHER_BASE


def _unknown_people(policy: PlatformPolicy, project: Project) -> Iterator[_Conflict]:
    for role, field in _FIELDS.items():
        for i, email in enumerate(project.people.holding(role)):
            if not policy.roles.allows(role, email):
                what = f"the platform policy does not allow this person as {role}"
                do = f"name another, or have roles.{role} in the platform policy changed"
                yield ("people", field, i), what, email, do


def _loosened(policy: PlatformPolicy, project: Project) -> Iterator[_Conflict]:
    tier = policy.tier(project)
    asked: list[tuple[_Place, float | None, float]] = [
        (("reviews", "sme"), project.reviews.sme, tier.sme),
        (("reviews", "rai"), project.reviews.rai, tier.rai),
    ]
    asked += [
        (("reviews", "approvals", env), count, tier.approvals.get(env, 0))
        for env, count in project.reviews.approvals.items()
    ]
    asked += [
        (("evaluation", "thresholds", key), value, tier.thresholds.get(key, value))
        for key, value in project.evaluation.thresholds.items()
    ]
    # Left out, a project's own is zero or one; only what it says itself can loosen anything.
    reviews = project.reviews
    if "row_sample" in reviews.model_fields_set:
        asked.append((("reviews", "row_sample"), reviews.row_sample, tier.row_sample))
    if "reviewers_per_row" in reviews.model_fields_set:
        asked.append((("reviews", "reviewers_per_row"), reviews.reviewers_per_row, tier.reviewers_per_row))
    for place, value, least in asked:
        if value is not None and value < least:
            what = f"loosens the platform policy, which asks for at least {least:g} at risk tier "
            yield place, what + project.risk_tier, f"{value:g}", "raise it or leave it out"
    most = tier.sign_off_days
    if most is not None and (reviews.sign_off_days or 0) > most:
        what = f"loosens the platform policy, by which a sign-off expires after {most:g} days at risk tier "
        do = "lower it or leave it out"
        yield ("reviews", "sign_off_days"), what + project.risk_tier, f"{reviews.sign_off_days:g}", do
    if tier.row_sample and reviews.batch.rows > tier.max_batch_rows:
        what = f"loosens the platform policy: after {tier.max_batch_rows} rows people are asked at risk tier "
        do = "lower it or leave it out"
        yield ("reviews", "batch", "rows"), what + project.risk_tier, str(reviews.batch.rows), do
    margin = project.evaluation.champion_margin
    if margin > policy.max_champion_margin:
        what = f"loosens the platform policy, which allows at most {policy.max_champion_margin:g}"
        yield ("evaluation", "champion_margin"), what, f"{margin:g}", "lower it or leave it out"

    for side, rule in looser(project.serving.guard, policy.guard):
        own = getattr(getattr(project.serving.guard, side), rule)
        what = "loosens the platform policy, which guards every endpoint more strictly"
        yield ("serving", "guard", side, rule), what, str(own), "make it stricter or leave it out"


def _too_few(policy: PlatformPolicy, project: Project) -> Iterator[_Conflict]:
    needed = {**policy.reviews(project)}
    needed["approver"] = max(policy.approvals(project, e) for e in project.serving.environments)
    able = {role: policy.signers(project.people, role) for role in needed}
    short_of = [role for role, count in needed.items() if len(able[role]) < count]
    for role in short_of:
        what = (
            f"{needed[role]} {role} sign-off(s) are needed, but people.{_FIELDS[role]} names fewer who may"
            + (" (owners may not)" if policy.separation_of_duties else "")
        )
        yield ("people", _FIELDS[role]), what, str(len(able[role])), "name enough people"
    together = needed["sme"] + needed["rai"]
    both = able["sme"] | able["rai"]
    if not short_of and len(both) < together:
        what = f"the dataset needs {together} different people: nobody signs it in two roles"
        do = "name someone else as SME or as Responsible-AI reviewer"
        yield ("people",), what, ", ".join(sorted(both)), do
