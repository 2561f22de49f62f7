"""The data half of a project's line: what its dataset version and its splits are made from.

Everything here is computed from the project's YAML, the bytes of its sources, the store and the
ledger, so that content put back finds what it made before.
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
from ftaas_pipelines.errors import FtaasError, Problem, Refused
from ftaas_pipelines.governance.ledger import Ledger, open_ledger
from ftaas_pipelines.governance.requirement import policy_version
from ftaas_pipelines.inference import bases
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.projects.catalog import Loaded
from ftaas_pipelines.projects.dataset import Splits
from ftaas_pipelines.projects.policy import PlatformPolicy
from ftaas_pipelines.review.rows import row_standing, verdicts
from ftaas_pipelines.review.rows.row_standing import Progress, Terms
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.stages.spec import Run, Spec, Stage
from ftaas_pipelines.store import Artifact, Store, digest_of


class NotMade(FtaasError):
    """Something upstream is not made for the current content, so this has no inputs yet."""

    def __init__(self, project: str, asset: str, needs: str):
        super().__init__(
            f"'{needs}' is not made for the current content",
            f"{project}/{asset}",
            do=f"materialise '{needs}' first, or `ftaas run {project}`",
        )
        self.needs = needs


class DataLine:
    """One project's line up to its splits. Reads; never makes anything."""

    def __init__(self, loaded: Loaded, policy: PlatformPolicy, settings: Settings):
        self.loaded, self.policy, self.settings = loaded, policy, settings
        self.project = loaded.project
        self.store = Store(settings.store_path)

    @cached_property
    def ledger(self) -> Ledger:
        return open_ledger(self.settings, policy_version(self.policy))

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
        """What reviewers said of records, from the row reviews that are closed."""
        return verdicts.verdicts_of(self.ledger, self.store, self.project.name)

    @property
    def review_terms(self) -> Terms:
        """What policy and project ask of a row review."""
        return Terms.of(self.policy, self.project)

    @property
    def row_review(self) -> Progress:
        """How the review of the rows stands that the dataset is made from."""
        return row_standing.standing(
            self.ledger, self.review_terms, row_standing.rows_digest(self.dataset_inputs())
        )

    def require_row_review(self, asset: str) -> None:
        """Only a version whose rows were reviewed, where that is asked for, is signed and trained on.

        Raises:
            Refused: the row review is not closed; says who is awaited.
        """
        found = self.row_review
        if not found.done:
            where = f"{self.project.name}/{asset}"
            do = f"open {found.link}" if "://" in found.link else f"`{found.link or 'ftaas review list'}`"
            raise Refused([Problem(found.says, where, do=do)], waiting=row_review_awaited(found))

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
                ledger_head=self.settings.ledger_head,
                policy=policy_version(self.policy),
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


def row_review_awaited(found: Progress) -> list[dict[str, Any]]:
    """Who is awaited for a row review: the `waiting` of interface.md."""
    if found.done or not found.round:
        return []
    return [
        {
            "asset": row_standing.ASSET,
            "role": "sme",
            "who": found.who,
            "since": found.since,
            "link": found.link,
            "review": found.round,
        }
    ]


def landing_root(settings: Settings, loaded: Loaded) -> Path:
    """Where what a project fetches is kept."""
    return settings.home / "landing" / loaded.name


def anchors_pin(project: str, dataset: str, options: Splits) -> str:
    """Where the store keeps what the splits of a dataset under these options grew from."""
    return f"anchors/{project}/{digest_of([dataset, options.model_dump(mode='json')])}.json"
