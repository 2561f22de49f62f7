"""What each asset of a project is made from, and how it stands: the line without Dagster.

Everything here is computed from the project's YAML, the bytes of its sources, the store and the
ledger. Dagster's event log shows the state and never decides it, so the CLI, the sensors and the
assets' own bodies all come to the same answer, and content put back finds what it made before.
"""

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from ftaas_pipelines.data.inputs import DatasetInputs, SourceInput, SplitsInputs, Verdict
from ftaas_pipelines.data.sources import files, landing
from ftaas_pipelines.data.sources.landing import Landing
from ftaas_pipelines.data.splits.rules import grow_from
from ftaas_pipelines.errors import FtaasError, Refused
from ftaas_pipelines.evaluation.inputs import EvaluateInputs
from ftaas_pipelines.governance import gates
from ftaas_pipelines.governance.gates import Requirement
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.inference import bases
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.projects.dataset import Splits
from ftaas_pipelines.projects.policy import PlatformPolicy
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.projects.project import Recipe
from ftaas_pipelines.serving import deployments, runtime
from ftaas_pipelines.serving.deployments import Deployment
from ftaas_pipelines.serving.inputs import BentoInputs
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.stages.spec import Run, Spec, Stage
from ftaas_pipelines.store import Artifact, Store, digest_of
from ftaas_pipelines.training.inputs import TrainInputs
from ftaas_pipelines.training.plan import resolve_training


class NotMade(FtaasError):
    """Something upstream is not made for the current content, so this has no inputs yet."""

    def __init__(self, project: str, asset: str, needs: str):
        super().__init__(
            f"'{needs}' is not made for the current content",
            f"{project}/{asset}",
            do=f"materialise '{needs}' first, or `ftaas run {project}`",
        )
        self.needs = needs


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


class Line:
    """One project's line on this platform. Reads; never makes anything."""

    def __init__(self, loaded: Loaded, policy: PlatformPolicy, settings: Settings):
        self.loaded, self.policy, self.settings = loaded, policy, settings
        self.project = loaded.project
        self.store = Store(settings.store_path)

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.settings.ledger, self.settings.home)

    @property
    def actor(self) -> str:
        """Who acts: the actor of settings; for the daemon, the project's owner."""
        return self.project.people.owners[0] if self.settings.daemon else self.settings.who

    def require_known_actor(self, asset: str) -> None:
        """Above sensitivity `internal`, only a named person starts what needs separation of duties.

        Raises:
            Refused: nobody knows who acts.
        """
        if "@" not in self.actor and self.project.data_sensitivity in ("confidential", "restricted"):
            raise Refused(
                f"nobody knows who starts this, on {self.project.data_sensitivity} data",
                f"{self.project.name}/{asset}",
                self.actor,
                "set FTAAS_ACTOR to your e-mail, or map the OS user in FTAAS_ACTOR_MAP",
            )

    # -- what each asset is made from ----------------------------------------------------------

    @cached_property
    def landings(self) -> dict[str, Landing]:
        """The files of each source on this disk, by source name; a place never looked at is landed now.

        Raises:
            InputInvalid: a data file is missing, or a place or secret is wrong.
            FtaasError: a place cannot be reached.
        """
        found: dict[str, Landing] = {}
        for source in self.project.dataset.sources:
            where = (source, self.loaded.folder, landing_root(self.settings, self.loaded))
            found[source.name] = landing.landed(*where) or landing.land(*where)
        return found

    def look(self, younger_than_s: float = 0.0) -> None:
        """Look at every remote source and land what changed; a look younger than so much will do.

        Raises:
            InputInvalid: a place, its data or a secret is wrong.
            FtaasError: a place cannot be reached.
        """
        root = landing_root(self.settings, self.loaded)
        for source in self.project.dataset.sources:
            if not source.in_place:
                landing.land(source, self.loaded.folder, root, younger_than_s, self.settings.lease_wait_s)
        self.__dict__.pop("landings", None)

    @property
    def source_digests(self) -> dict[str, str]:
        """sha256 of each source's bytes, by source name. Raises like `landings`."""
        return {name: found.sha256 for name, found in self.landings.items()}

    def dataset_inputs(self) -> DatasetInputs:
        dataset = self.project.dataset
        own = {"name", "split", "synthetic", "licence", "owner", "vendor", "purpose", "consent", "cost_usd"}
        return DatasetInputs(
            sources=[
                SourceInput(
                    sha256=self.source_digests[source.name],
                    format=source.format or dataset.format,
                    columns=source.columns or dataset.columns,
                    encoding=source.encoding or dataset.encoding,
                    **source.model_dump(include=own),
                )
                for source in dataset.sources
            ],
            keep=dataset.keep,
            bad_rows=dataset.bad_rows,
            system=dataset.system,
            group_by=dataset.splits.group_by,
            cleaning=dataset.cleaning,
            duplicates=dataset.duplicates,
            privacy=dataset.privacy,
            quality=dataset.quality,
            benchmarks={name: files.digest(path) for name, path in self._benchmarks.items()},
            models={use: self._model_digest(use, path) for use, path in self._data_models.items()},
            verdicts=self.verdicts,
        )

    @property
    def _benchmarks(self) -> dict[str, Path]:
        return {name: self.loaded.path(name) for name in self.project.dataset.duplicates.benchmarks}

    @property
    def _data_models(self) -> dict[str, Path]:
        """Folders of the models that the dataset is made with, by use."""
        cleaning, privacy = self.project.dataset.cleaning, self.project.dataset.privacy
        named = {"names": privacy.names_model, "toxicity": privacy.toxicity_model}
        found = {use: self.loaded.path(folder) for use, folder in named.items() if folder}
        if cleaning.min_tokens is not None or cleaning.max_tokens is not None:
            found["tokenizer"] = self.base_path
        return found

    def _model_digest(self, use: str, folder: Path) -> str:
        if use != "tokenizer":
            return files.folder_digest(folder)
        return digest_of({path.name: files.digest(path) for path in bases.tokenizer_files(folder)})

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """The latest word on each record, from the ledger."""
        latest: dict[str, Verdict] = {}
        for entry in self.ledger.entries("verdict", project=self.project.name, authentic=True):
            latest[entry.subject] = Verdict(record_id=entry.subject, entry=entry.hash, **entry.body)
        return [latest[key] for key in sorted(latest)]

    def dataset_spec(self) -> Spec:
        return self._spec(
            "prepare",
            "dataset",
            self.dataset_inputs(),
            files={name: found.files for name, found in self.landings.items()},
            benchmarks=self._benchmarks,
            models=self._data_models,
            data_runner=self.settings.data_runner,
            data_workers=self.settings.data_workers or min(8, os.cpu_count() or 1),
            ray_address=self.settings.ray_address,
        )

    @cached_property
    def dataset(self) -> Artifact | None:
        return self.store.find(self.dataset_spec().input_digest)

    def splits_spec(self) -> Spec:
        dataset = self._made("splits", "dataset", self.dataset)
        options = self.project.dataset.splits
        inputs = SplitsInputs(
            dataset=dataset.digest, anchors=self._anchors(dataset.digest, options), options=options
        )
        return self._spec("prepare", "splits", inputs)

    def _anchors(self, dataset: str, options: Splits) -> str | None:
        """The splits that a dataset's grow from: what it grew from before, else the last ones made.

        Content that is put back finds its old splits so, whatever was made since.
        """
        pin = self.store.read_json(anchors_pin(self.project.name, dataset, options))
        if pin is not None:
            return pin["anchors"]
        head = self.store.head(self.project.name, "splits")
        path = self.store.root / "artifacts" / "splits" / head["output"] if head else None
        if path is None or not path.is_dir():
            return None
        last = Artifact("splits", path.name, path)
        declared: dict[str, str | None] = {s.name: s.split for s in self.project.dataset.sources}
        return last.digest if grow_from(last.content, options, declared) else None

    @cached_property
    def splits(self) -> Artifact | None:
        return self._found(self.splits_spec)

    @cached_property
    def base_path(self) -> Path:
        """Folder of the base model, fetched where it is a Hub id.

        Raises:
            InputInvalid: it is not there, or is of another family than the project says.
        """
        ref = self.project.base_model
        path = bases.resolve(ref.id, ref.revision, self.loaded.folder)
        if ref.family:
            bases.check(path, ref.family, f"{self.loaded.folder / catalog.FILE}: base_model")
        return path

    @cached_property
    def base(self) -> str:
        return bases.digest(self.base_path)

    @cached_property
    def family(self) -> str:
        return bases.family(self.base_path)

    def adapter_spec(
        self, recipe: Recipe, grant: dict[str, Any] | None = None, experiment: bool = False
    ) -> Spec:
        asset = f"adapter_{recipe.name}"
        splits = self._made(asset, "splits", self.splits)
        inputs = TrainInputs(
            splits=splits.digest,
            base=self.base,
            family=self.family,
            method=recipe.method,
            adapter=recipe.adapter,
            training=resolve_training(recipe.training, splits.content["counts"]),
            threads=self.settings.threads,
        )
        budget = self.project.budget
        limits = [budget.training_minutes]
        if budget.usd is not None and budget.usd_per_hour:
            limits.append(60 * budget.usd / budget.usd_per_hour)
        minutes = min((m for m in limits if m is not None), default=None)
        if experiment:
            cap = self.policy.experiments.max_training_minutes
            minutes = min(minutes, cap) if minutes else cap
        return self._spec(
            "train",
            asset,
            inputs,
            base_path=self.base_path,
            grant=grant,
            experiment=experiment,
            usd_per_hour=budget.usd_per_hour,
            max_minutes=minutes,
        )

    def adapter(self, recipe: Recipe) -> Artifact | None:
        return self._found(lambda: self.adapter_spec(recipe))

    def adapters(self) -> dict[str, str]:
        """Adapter digests by recipe; raises NotMade for the first that is not made."""
        made = {
            r.name: self._made("candidate", f"adapter_{r.name}", self.adapter(r))
            for r in self.project.recipes
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
        splits = self._made("dataset_review_request", "splits", self.splits)
        return gates.training_requirement(self.policy, self.project, splits.digest)

    def deployment_requirement(self, environment: str) -> Requirement:
        release = self._made(f"approval_request_{environment}", "release", self.release)
        grants = self.ledger.entries("grant", project=self.project.name, subject=release.content["splits"])
        trained_by = {e.actor for e in grants if e.body["asset"].startswith("adapter_")}
        return gates.deployment_requirement(
            self.policy, self.project, release.digest, environment, sorted(trained_by)
        )

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

    def _spec(self, stage: Stage, asset: str, inputs: Any, **run: Any) -> Spec:
        return Spec(
            stage=stage,
            project=self.project.name,
            asset=asset,
            inputs=inputs.model_dump(mode="json"),
            run=Run(
                home=self.settings.home.resolve(),
                store=self.store.root,
                ledger=self.settings.ledger,
                actor=self.actor,
                **run,
            ),
        )

    def _made(self, asset: str, needs: str, artifact: Artifact | None) -> Artifact:
        if artifact is None:
            raise NotMade(self.project.name, asset, needs)
        return artifact

    def _found(self, spec: Callable[[], Spec]) -> Artifact | None:
        return self._found_digest(lambda: spec().input_digest)

    def _found_digest(self, digest: Callable[[], str]) -> Artifact | None:
        try:
            return self.store.find(digest())
        except NotMade:
            return None


def landing_root(settings: Settings, loaded: Loaded) -> Path:
    """Where what a project fetches is kept."""
    return settings.home / "landing" / loaded.name


def anchors_pin(project: str, dataset: str, options: Splits) -> str:
    """Where the store keeps what the splits of a dataset under these options grew from."""
    return f"anchors/{project}/{digest_of([dataset, options.model_dump(mode='json')])}.json"


def open_line(name: str, settings: Settings) -> Line:
    """The line of a project as its YAML, the policy and the data say right now.

    Raises:
        InputInvalid: there is no such project, or it or the policy is wrong.
    """
    loaded = catalog.load_one(settings.projects, settings.policy, name)
    return Line(loaded, load_policy(settings.policy), settings)
