"""What a person sees of an adapter on its page: curves, samples, proof, cost, and whether it learnt."""

import base64
import json
from statistics import fmean
from typing import Any

import dagster as dg

from assets.making import Made, table
from ftaas_pipelines import settings
from ftaas_pipelines.store import Artifact

_ALIKE = 0.9  # share of groups of sampled answers with one reward, from which on a training learns nothing


def metadata(made: Made, mlflow_url: str | None) -> dict[str, Any]:
    """What a person wants to see of a training: the curve, the cost, the run."""
    artifact = made.artifact
    attested = artifact.attestation
    known = {  # a provider does not tell all of it
        "steps": artifact.content.get("steps"),
        "trainable_parameters": artifact.content.get("trainable_parameters"),
        "training_seconds": _rounded(attested.get("seconds"), 1),
        "cost_usd": _rounded(attested.get("cost_usd"), 4),
    }
    shown: dict[str, Any] = {name: value for name, value in known.items() if value is not None}
    if artifact.file("beside/loss.png").is_file():
        shown["loss"] = _picture(artifact, "loss.png", "loss, what the method optimises, learning rate")
    if quoted := attested.get("quote"):
        columns = ["what", "quoted", "bounds", "actual"]
        shown["quote"] = table(_against(quoted, attested["actual"]), columns)
    if proof := attested.get("supervision"):
        shown["supervision"] = table([{"what": k, "found": v} for k, v in proof.items()], ["what", "found"])
    samples = _rows(artifact, "samples.jsonl")
    if samples:  # the last evaluation's
        last = [row for row in samples if row["step"] == samples[-1]["step"]]
        shown["samples"] = table(last, ["step", "prompt", "reference", "answer"])
    if trials := _rows(artifact, "trials.jsonl"):
        shown["trials"] = table(trials, ["number", "values", "state", "loss", "seconds"])
        shown["trial_losses"] = _picture(artifact, "trials.png", "validation loss of each trial")
    if mlflow_url:
        shown["mlflow"] = dg.MetadataValue.url(mlflow_url)
    return shown


def _against(quoted: dict[str, Any], actual: dict[str, Any]) -> list[dict[str, Any]]:
    """Quote and actual side by side, a row a figure; how each was come by in the first."""
    rows = [{"what": "basis", "quoted": quoted["basis"], "actual": actual["energy_source"]}]
    for name, figure in quoted.items():
        if isinstance(figure, dict):
            low, value, high = (f"{figure[bound]:.4g}" for bound in ("low", "value", "high"))
            bounds = f"{low} to {high}" if low != high else ""
            rows.append({"what": name, "quoted": value, "bounds": bounds, "actual": f"{actual[name]:.4g}"})
    return rows


def _rounded(value: Any, digits: int) -> float | None:
    return None if value is None else round(float(value), digits)


def _picture(artifact: Artifact, name: str, what: str) -> dg.MarkdownMetadataValue:
    """A picture beside an artifact, inside the page: the UI serves no files."""
    data = base64.b64encode(artifact.file(f"beside/{name}").read_bytes()).decode()
    return dg.MetadataValue.md(f"![{what}](data:image/png;base64,{data})")


def _rows(artifact: Artifact, name: str) -> list[dict[str, Any]]:
    file = artifact.file(f"beside/{name}")
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []


def mlflow_link(config: settings.Settings, experiment_id: str, run_id: str) -> str:
    """Where the MLflow UI of `make dev` shows a run."""
    root = config.mlflow if config.mlflow.startswith("http") else f"http://127.0.0.1:{config.port_mlflow}"
    return f"{root}/#/experiments/{experiment_id}/runs/{run_id}"


def learnt(artifact: Artifact) -> tuple[bool, str]:
    """Whether what the method optimises got better, and the figures: the first and last quarter of the steps.

    Rewards of sampled answers go up and down; so does a loss. Hence quarters.
    """
    rows = _rows(artifact, "metrics.jsonl")
    for name, better in (("reward", 1), ("loss", -1)):
        values = [row[name] for row in rows if name in row]
        if values:
            part = max(1, len(values) // 4)
            first, last = fmean(values[:part]), fmean(values[-part:])
            what = "mean reward" if name == "reward" else "training loss"
            said = f"{what} {first:.3f} at the start, {last:.3f} at the end"
            alike = [row["groups_alike"] for row in rows if "groups_alike" in row]
            if alike and fmean(alike) > _ALIKE:
                why = "all answers got one reward and taught nothing"
                do = "begin with an adapter that is right at times (init_from), or grade in steps"
                return False, f"{said}; in {fmean(alike):.0%} of the groups {why}: {do}"
            return better * (last - first) > 0, said
    return False, "no loss and no reward was reported"
