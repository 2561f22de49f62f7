"""`ftaas model replay`: a training done again from the store and the ledger alone, and compared."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import artifacts, output
from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.governance.ledger import open_ledger
from ftaas_pipelines.governance.requirement import policy_version
from ftaas_pipelines.inference import bases
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import Artifact, short

REPLAYED = "replay"
"""Ledger entry of an adapter that was made again, and how near it came."""


def replay(
    digest: Annotated[str, typer.Argument(metavar="DIGEST", help="An adapter, by 6 characters or more.")],
    base: Annotated[
        list[Path] | None, typer.Option(help="Folder of a base model, where it is no longer where it was.")
    ] = None,
    as_json: output.Json = False,
) -> None:
    """Train an adapter again from the store and the ledger alone, and compare; exit 1 when they differ."""
    from ftaas_pipelines.stages import replay as replaying

    config = configuration.load()
    artifact = artifacts.get(digest, ("adapter",), "adapter")
    found = replaying.replay(
        artifact, artifacts.store(), config, _bases(artifact, base or [], config), output.say
    )
    ledger = open_ledger(config, policy_version(load_policy(config.policy)))
    project = str(artifact.attestation["spec"]["project"])
    ledger.append(REPLAYED, artifact.digest, found.as_dict(), project=project, actor=config.who)

    def show(screen: Console) -> None:
        if found.same:
            screen.print(f"{short(found.digest)}: made again in {found.seconds:.0f} s, every byte the same")
            return
        verdict = "within" if found.within else "BEYOND"
        screen.print(
            f"{short(found.digest)}: made again as {short(found.again)}, {verdict} the tolerance: "
            f"loss {found.loss_difference:.2e} of {found.loss_tolerance:g}, "
            f"weights {found.weights_difference:.2e} of {found.weights_tolerance:g}"
        )
        for name, (then, now) in found.differs.items():
            screen.print(f"  {name}: {then} then, {now} now")

    output.emit(as_json, found.as_dict(), show)
    if not found.within:
        raise typer.Exit(1)


def _bases(artifact: Artifact, given: list[Path], config: Settings) -> dict[str, Path]:
    """The folders of the base models that a training read, by digest.

    Raises:
        InputInvalid: one is not where it was, or holds other weights now.
    """
    inputs: dict[str, Any] = artifact.attestation["spec"]["inputs"]
    wanted = [d for d in (inputs["base"], inputs.get("teacher")) if d]
    found = {bases.digest(folder): folder for folder in given}
    for named in artifact.attestation.get("bases", []):
        try:
            folder = bases.resolve(named["id"], named["revision"], _folder(artifact, config))
            found.setdefault(bases.digest(folder), folder)
        except FtaasError:  # said below, with what to do
            continue
    for digest in wanted:
        if digest not in found:
            raise InputInvalid(
                "a base model it was made from is not at hand",
                short(artifact.digest),
                short(digest),
                "name its folder with --base",
            )
    return found


def _folder(artifact: Artifact, config: Settings) -> Path:
    """The project's folder, that a base's folder counts from."""
    name = str(artifact.attestation["spec"]["project"])
    try:
        return catalog.load_one(config.projects, config.policy, name).folder
    except FtaasError:
        return config.projects
