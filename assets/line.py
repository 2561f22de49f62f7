"""What each asset of a project is made from, and how it stands: the line without Dagster.

`data_line` is its first half, up to the splits.

Everything here is computed from the project's YAML, the bytes of its sources, the store and the
ledger. Dagster's event log shows the state and never decides it, so the CLI, the sensors and the
assets' own bodies all come to the same answer, and content put back finds what it made before.
"""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from assets.data_line import DataLine
from ftaas_pipelines.errors import raise_all
from ftaas_pipelines.evaluation.inputs import EvaluateInputs
from ftaas_pipelines.governance import gates
from ftaas_pipelines.governance.gates import Requirement
from ftaas_pipelines.inference import bases
from ftaas_pipelines.projects import catalog, prices
from ftaas_pipelines.projects.base_model import BaseModelRef
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.projects.method import Distillation
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.projects.prices import Gpus, Terms
from ftaas_pipelines.projects.recipe import Recipe
from ftaas_pipelines.serving import deployments, runtime
from ftaas_pipelines.serving.deployments import Deployment
from ftaas_pipelines.serving.inputs import BentoInputs
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Artifact, digest_of
from ftaas_pipelines.training import fitness, machine, rewards
from ftaas_pipelines.training.inputs import TrainInputs
from ftaas_pipelines.training.planning import quote
from ftaas_pipelines.training.planning.costs import Costs
from ftaas_pipelines.training.resolve import Resolved, resolve


def asset_names(loaded: Loaded) -> list[str]:
    """The assets of a project in the order in which data flows."""
    project = loaded.project
    return [
        *(f"source_{s.name}" for s in project.dataset.sources),
        "dataset",
        "row_review_request",
        "splits",
        "dataset_review_request",
        "dataset_sign_off",
        *(f"adapter_{r.name}" for r in project.recipes),
        "candidate",
        "evaluation",
        "bento",
        "release",
        *(
            f"{noun}_{environment}"
            for environment in project.serving.environments
            for noun in ("approval_request", "approval", "deployment")
        ),
    ]


class Line(DataLine):
    """One project's line on this platform, to what it serves. Reads; never makes anything."""

    def adapter_spec(
        self, recipe: Recipe, grant: dict[str, Any] | None = None, experiment: bool = False
    ) -> Spec:
        asset = f"adapter_{recipe.name}"
        splits = self._made(asset, "splits", self.splits)
        if recipe.provider:  # its machine is not this one
            how = Resolved(recipe.method, recipe.adapter, recipe.training)
        else:
            before = self.project.adapter_before(recipe)
            how = resolve(recipe, splits.content["counts"], self.family, machine.found(), before)
        made = {
            name: self._made(
                asset, f"adapter_{name}", self.adapter(self.project.recipe(name), experiment)
            ).digest
            for name in recipe.needs
        }
        teacher = self.teacher_path(recipe)
        inputs = TrainInputs(
            splits=splits.digest,
            base=self.base,
            family=self.family,
            method=how.method,
            adapter=how.adapter,
            training=how.training,
            threads=self.settings.threads,
            sources=sorted(recipe.sources) if recipe.sources else None,
            init_from=made.get(recipe.init_from or ""),
            reward_model=made.get(getattr(recipe.method, "reward_model", None) or ""),
            teacher=bases.digest(teacher) if teacher else None,
            teacher_adapter=made.get(getattr(recipe.method, "teacher_recipe", None) or ""),
            code=rewards.files(recipe.method, self.loaded.folder),
            sweep=recipe.sweep,
            provider=recipe.provider.identity if recipe.provider else None,
        )
        bounds = self.bounds(experiment)
        minutes = bounds.get("training_minutes")
        if recipe.provider:  # nobody counts its energy here
            minutes = Costs(self.terms, bounds).minutes(1, 1)
        return self._spec(
            "train",
            asset,
            inputs,
            base_path=self.base_path,
            base_names=[(one.id, one.revision) for one in self._bases(recipe)],
            teacher_path=teacher,
            code_path=self.loaded.folder if inputs.code else None,
            provider=recipe.provider.model_dump(mode="json") if recipe.provider else None,
            grant=grant,
            experiment=experiment,
            usd_per_hour=self.terms.usd_per_hour,
            terms=self.terms.as_dict(),
            budget={name: bound for name, bound in bounds.items() if name != "training_minutes"},
            max_minutes=minutes,
        )

    def require_fit(self, recipe: Recipe) -> None:
        """That recipe, base and data fit together, before anything is spent; the data only once it is split.

        Raises:
            InputInvalid: they do not; Refused: all that stands against it is a forbidden licence.
        """
        if recipe.provider:  # it checks what its machine can do
            return
        start = self.adapter(self.project.recipe(recipe.init_from)) if recipe.init_from else None
        teacher = self.teacher_path(recipe)
        found = fitness.problems(
            recipe,
            self._base(self.project.base_model, self.base_path),
            init_from=start.path if start else None,
            teacher=self._base(self._bases(recipe)[1], teacher) if teacher else None,
        )
        if self.splits:
            found += fitness.data_problems(recipe, self.splits.path, self.family, str(self._file))
        raise_all(found)

    def require_all_fit(self) -> None:
        """The same of every recipe, that base model and price table are at hand."""
        _ = self.base_path, self.terms
        for recipe in self.project.recipes:
            self.require_fit(recipe)

    @property
    def _file(self) -> Path:
        return self.loaded.folder / catalog.FILE

    def _base(self, ref: BaseModelRef, folder: Path) -> fitness.Base:
        licences = (self.policy.licences, self.project.licences)
        family, digest = bases.family(folder), bases.digest(folder)
        return fitness.Base(ref, folder, family, digest, *licences, str(self._file))

    @cached_property
    def terms(self) -> Terms:
        """What an hour of training takes, on the machine that the budget names.

        Raises:
            InputInvalid: the price table is wrong, or does not know that machine or region.
        """
        here = machine.found()
        gpus = Gpus(here.gpus, here.gpu, here.gpu_memory_gib) if here.gpus else None
        table = prices.load(self.settings.price_table)
        return prices.terms(table, self.project.budget, here.cores, here.memory_gib, gpus)

    def bounds(self, experiment: bool = False) -> dict[str, float]:
        """What one training may spend, by the budget's fields; experiments have a cap of their own."""
        found = quote.bounds(self.project.budget)
        if experiment:
            cap = self.policy.experiments.max_training_minutes
            found["training_minutes"] = min(found.get("training_minutes", cap), cap)
        return found

    def _bases(self, recipe: Recipe) -> list[BaseModelRef]:
        """The base models that a recipe reads."""
        teacher = [recipe.method.teacher] if isinstance(recipe.method, Distillation) else []
        return [self.project.base_model, *teacher]

    def teacher_path(self, recipe: Recipe) -> Path | None:
        """The folder of a distillation's teacher."""
        if not isinstance(recipe.method, Distillation):
            return None
        teacher = recipe.method.teacher
        return bases.resolve(teacher.id, teacher.revision, self.loaded.folder)

    def adapter(self, recipe: Recipe, experiment: bool = False) -> Artifact | None:
        """What a recipe made of the current content; for an experiment, that of an experiment will do."""
        found = self._found(lambda: self.adapter_spec(recipe))
        if found is None and experiment:
            found = self._found(lambda: self.adapter_spec(recipe, experiment=True))
        return found

    def adapters(self) -> dict[str, str]:
        """Adapter digests by recipe; raises NotMade for the first that is not made."""
        made = {
            r.name: self._made("candidate", f"adapter_{r.name}", self.adapter(r))
            for r in self.project.recipes
            if r.answers
        }
        return {name: artifact.digest for name, artifact in made.items()}

    def comparison_spec(self) -> Spec:
        """The recipes scored on validation."""
        return self._evaluate_spec("candidate", "validation", self.adapters())

    def candidate_digest(self) -> str:
        """Input digest of the candidate."""
        return digest_of({"asset": "candidate", "comparison": self.comparison_spec().input_digest})

    @cached_property
    def candidate(self) -> Artifact | None:
        return self._found_digest(self.candidate_digest)

    def evaluation_spec(self) -> Spec:
        candidate = self._made("evaluation", "candidate", self.candidate)
        adapters = {"candidate": candidate.content["adapter"]}
        champion = self.champion_before(candidate.content["adapter"])
        if champion:
            adapters["champion"] = champion
        return self._evaluate_spec("evaluation", "test", adapters)

    @cached_property
    def evaluation(self) -> Artifact | None:
        return self._found(self.evaluation_spec)

    def bento_spec(self) -> Spec:
        evaluation = self._made("bento", "evaluation", self.evaluation)
        inputs = BentoInputs(
            project=self.project.name,
            runtime=runtime.digest(),
            adapter=evaluation.content["adapters"]["candidate"],
            base=self.base,
            family=self.family,
            max_new_tokens=self.project.serving.max_new_tokens,
            threads=self.settings.threads,
        )
        return self._spec("build", "bento", inputs, base_path=self.base_path)

    @cached_property
    def bento(self) -> Artifact | None:
        return self._found(self.bento_spec)

    def release_content(self) -> dict[str, Any]:
        """What a release names: adapter, Bento and evidence, all by digest."""
        bento = self._made("release", "bento", self.bento)
        evaluation = self._made("release", "evaluation", self.evaluation)
        splits = self._made("release", "splits", self.splits)
        signed = gates.standing(self.ledger, self.training_requirement())
        return {
            "project": self.project.name,
            "adapter": bento.content["adapter"],
            "base": self.base,
            "runtime": bento.content["runtime"],
            "bento": bento.digest,
            "evaluation": evaluation.digest,
            "splits": splits.digest,
            "dataset": splits.content["dataset"],
            "sign_offs": sorted(e.hash for e in signed.decisions),
        }

    def release_digest(self) -> str:
        """Input digest of the release."""
        return digest_of({"asset": "release", **self.release_content()})

    @cached_property
    def release(self) -> Artifact | None:
        """The release, once the ledger holds it."""
        artifact = self._found_digest(self.release_digest)
        return (
            artifact
            if artifact and self.ledger.entries("release", subject=artifact.digest, authentic=True)
            else None
        )

    # -- gates ---------------------------------------------------------------------------------

    def training_requirement(self) -> Requirement:
        """What must be signed before an adapter is trained on the current splits."""
        splits = self._made("dataset_review_request", "splits", self.splits)
        return self._training_requirement(splits.digest, splits.content["dataset"])

    def deployment_requirement(self, environment: str) -> Requirement:
        """What must be approved before the current release goes to an environment."""
        release = self._made(f"approval_request_{environment}", "release", self.release)
        return self.requirements_of(release, environment)[1]

    def requirements_of(self, release: Artifact, environment: str) -> tuple[Requirement, Requirement]:
        """What a release that serves must go on to meet: the sign-off of its splits, and its approval."""
        splits, dataset = release.content["splits"], release.content["dataset"]
        grants = self.ledger.entries("grant", project=self.project.name, subject=splits, authentic=True)
        trained_by = {e.actor for e in grants if e.body["asset"].startswith("adapter_")}
        barred = sorted(trained_by | set(gates.submitted_by(self.ledger, self.project.name, dataset)))
        where = (self.policy, self.project, release.digest, environment)
        return self._training_requirement(splits, dataset), gates.deployment_requirement(*where, barred)

    def _training_requirement(self, splits: str, dataset: str) -> Requirement:
        brought = gates.submitted_by(self.ledger, self.project.name, dataset)
        return gates.training_requirement(self.policy, self.project, splits, brought)

    def champion_before(self, adapter: str) -> str | None:
        """The production adapter that this one has to beat: the one before it, never itself.

        Stable once the adapter is champion itself, so that its own evaluation does not become stale.
        """
        before: str | None = None
        for entry in self.ledger.entries("champion", project=self.project.name, authentic=True):
            if entry.body["adapter"] == adapter:
                break
            before = entry.body["adapter"]
        return before

    def deployed(self, environment: str) -> Deployment | None:
        """What answers (or should answer) for this project in an environment."""
        found = deployments.deployments(self.settings)
        return next((d for d in found if (d.project, d.env) == (self.project.name, environment)), None)

    # -- plumbing ------------------------------------------------------------------------------

    def spec_of(self, asset: str) -> Spec | None:
        """The stage spec of an asset that a stage makes; None for the others."""
        if asset.startswith("adapter_"):
            return self.adapter_spec(self.project.recipe(asset.removeprefix("adapter_")))
        makers: dict[str, Callable[[], Spec]] = {
            "dataset": self.dataset_spec,
            "splits": self.splits_spec,
            "evaluation": self.evaluation_spec,
            "bento": self.bento_spec,
        }
        return makers[asset]() if asset in makers else None

    def _evaluate_spec(self, asset: str, split: Any, adapters: dict[str, str]) -> Spec:
        splits = self._made(asset, "splits", self.splits)
        inputs = EvaluateInputs(
            split=split,
            splits=splits.digest,
            base=self.base,
            family=self.family,
            task=self.project.task,
            adapters=adapters,
            # Thresholds judge the scores; they do not make them.
            options=self.project.evaluation.model_copy(update={"thresholds": {}, "champion_margin": 0.0}),
            threads=self.settings.threads,
        )
        return self._spec("evaluate", asset, inputs, base_path=self.base_path)


def open_line(name: str, settings: Settings) -> Line:
    """The line of a project as its YAML, the policy and the data say right now.

    Raises:
        InputInvalid: there is no such project, or it or the policy is wrong.
    """
    loaded = catalog.load_one(settings.projects, settings.policy, name)
    return Line(loaded, load_policy(settings.policy), settings)
