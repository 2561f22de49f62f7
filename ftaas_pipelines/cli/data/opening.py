"""What every `ftaas data` command starts with: an artifact, its project, what is known of it."""

from typing import Annotated

import typer

from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import artifacts
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects import catalog as projects
from ftaas_pipelines.projects.project import Project
from ftaas_pipelines.store import Artifact

KINDS = ("dataset", "splits")
Digest = Annotated[str, typer.Argument(metavar="DIGEST", help="A digest, or its first 6 characters or more.")]


def dataset_of(artifact: Artifact) -> Artifact:
    """The dataset version itself, or the one that splits were made of."""
    return artifact if artifact.kind == "dataset" else artifacts.store().get(artifact.content["dataset"])


def project_of(artifact: Artifact) -> Project | None:
    """The project it was first made for, as its YAML is now; None when that is gone or wrong."""
    name = artifact.attestation.get("spec", {}).get("project", "")
    settings = configuration.load()
    try:
        return projects.load_one(settings.projects, settings.policy, name).project if name else None
    except InputInvalid:
        return None
