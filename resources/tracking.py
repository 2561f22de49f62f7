"""MLflow: runs that show a training while it goes on, and the registry of releases.

MLflow costs 3.5 CPU s to import, so it is imported when something is tracked, never at load.
"""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from ftaas_pipelines.store import hold, short


class TrackedRun:
    """One MLflow run, fed while a stage works."""

    def __init__(self, client: Any, run_id: str, experiment_id: str):
        self._client, self.run_id, self.experiment_id = client, run_id, experiment_id
        self._trials: dict[int, str] = {}  # number to child run

    def trial(self, number: int, values: dict[str, Any], state: str, loss: float | None) -> None:
        """A trial of a sweep: a child run, opened when it begins and closed when it ends."""
        if number not in self._trials:
            tags = {"mlflow.parentRunId": self.run_id, "ftaas.trial": str(number)}
            child = self._client.create_run(self.experiment_id, run_name=f"trial {number}", tags=tags)
            self._trials[number] = child.info.run_id
            for key, value in values.items():
                self._client.log_param(child.info.run_id, key, value)
        if state == "running":
            return
        run_id = self._trials[number]
        self._client.set_tag(run_id, "ftaas.state", state)
        if loss is not None:
            self._client.log_metric(run_id, "loss_of_trial", loss)
        self._client.set_terminated(run_id, "FAILED" if state == "failed" else "FINISHED")

    def metrics(self, step: int, values: dict[str, float], trial: int | None = None) -> None:
        """Numbers at one step, of the run or of one trial of its sweep."""
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        at = get_current_time_millis()
        numbers = {k: float(v) for k, v in values.items() if v == v}
        run_id = self.run_id if trial is None else self._trials[trial]
        self._client.log_batch(run_id, metrics=[Metric(k, v, at, step) for k, v in numbers.items()])

    def tag(self, **tags: str) -> None:
        for key, value in tags.items():
            self._client.set_tag(self.run_id, key, value)


class Tracking(dg.ConfigurableResource[Any]):
    """Runs and registered models in the MLflow that settings name."""

    def client(self, uri: str) -> Any:
        """An MlflowClient; the first use of a new SQLite file sets its tables up (some seconds)."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("DO_NOT_TRACK", "true")
        from mlflow import MlflowClient

        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        if uri.startswith("sqlite:///"):  # two first users would both set up the tables
            with hold(Path(uri.removeprefix("sqlite:///")).with_suffix(".lock"), wait_s=120):
                client.search_experiments(max_results=1)
        return client

    @contextlib.contextmanager
    def run(
        self, uri: str, artifacts: Path, project: str, name: str, params: dict[str, Any], tags: dict[str, str]
    ) -> Iterator[TrackedRun]:
        """A run of the project's experiment; FINISHED at the end, FAILED when the body raises."""
        client = self.client(uri)
        found = client.get_experiment_by_name(project)
        if found is None:
            location = (artifacts / project).resolve()
            experiment_id = client.create_experiment(project, artifact_location=location.as_uri())
        else:
            experiment_id = found.experiment_id
        run = client.create_run(experiment_id, run_name=name, tags=tags)
        for key, value in params.items():
            client.log_param(run.info.run_id, key, value)
        status = "FAILED"
        try:
            yield TrackedRun(client, run.info.run_id, experiment_id)
            status = "FINISHED"
        finally:
            client.set_terminated(run.info.run_id, status)

    def register(self, uri: str, project: str, release: str, source: Path, tags: dict[str, str]) -> str:
        """A model version for a release, once: found again by its tag. Gets the alias `challenger`.

        Returns:
            The version number.
        """
        client = self.client(uri)
        from mlflow.exceptions import MlflowException

        try:  # MLflow has no "create if absent"
            client.create_registered_model(project)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self._version(client, project, release)
        if version is None:
            made = client.create_model_version(
                project, source=source.resolve().as_uri(), tags={**tags, "release": release}
            )
            version = made.version
        client.set_registered_model_alias(project, "challenger", version)
        return str(version)

    def champion(self, uri: str, project: str, release: str) -> None:
        """Move the alias `champion` to the version of a release."""
        client = self.client(uri)
        version = self._version(client, project, release)
        if version is None:
            raise LookupError(f"no model version of {project} carries release {short(release)}")
        client.set_registered_model_alias(project, "champion", version)

    @staticmethod
    def _version(client: Any, project: str, release: str) -> str | None:
        for version in client.search_model_versions(f"name = '{project}'"):
            if version.tags.get("release") == release:
                return version.version
        return None
