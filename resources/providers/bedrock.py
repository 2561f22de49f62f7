"""Amazon Bedrock model customization: JSONL in S3, a job, a custom model under an ARN."""

import csv
import io
from collections.abc import Callable, Container, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ftaas_pipelines.data.versions import export as exports
from ftaas_pipelines.data.versions import view
from ftaas_pipelines.errors import FtaasError, InputInvalid, Problem
from ftaas_pipelines.projects.provider import Bedrock
from ftaas_pipelines.store import short
from resources.providers import exporting, mapping
from resources.providers.aws import Account, not_found
from resources.providers.exporting import SPLITS, Export, Row
from resources.providers.job import News, Order, Outcome, State

_ATTEMPTS = 50
_CHARACTERS_A_TOKEN = 6  # AWS's own rule of thumb (user guide, "Prepare data for fine-tuning")
_LEARNING_RATE = {"learning_rate": "learningRate"}
_WARMUP = {"warmup_steps": "learningRateWarmupSteps"}
_BATCH = {"batch_size": "batchSize"}
_STOPPING = {"early_stopping": "earlyStopping"}
# What each family can be told (Bedrock user guide, "Custom model hyperparameters"). AWS checks ranges.
_FAMILIES: dict[str, dict[str, str]] = {
    "amazon.nova": _LEARNING_RATE | _WARMUP,
    "amazon.titan": _BATCH | _LEARNING_RATE | _WARMUP,
    "anthropic.claude": _BATCH | _STOPPING,
    "cohere.command": _BATCH | _LEARNING_RATE | _STOPPING,
    "meta.llama": _BATCH | _LEARNING_RATE,
}
_OTHERS = _BATCH | _LEARNING_RATE | _WARMUP
_FORMATS = {
    "amazon.nova": "conversation",
    "anthropic.claude": "messages",
    "amazon.titan": "pair",
    "cohere.command": "pair",
}


class BedrockJobs:
    """One order at Amazon Bedrock.

    Raises:
        InputInvalid: a secret is missing.
    """

    title = "Amazon Bedrock"

    def __init__(self, provider: Bedrock, order: Order):
        self._provider, self._order = provider, order
        self._account = Account(provider, self.title)
        self.secrets = self._account.secrets
        self._attempt = 1
        self._inputs: dict[str, str] = {}

    @cached_property
    def _bedrock(self) -> Any:
        return self._account.client("bedrock")

    @property
    def _family(self) -> str:
        """The known family of the base model, also where it is named by an ARN."""
        return next((family for family in _FAMILIES if family in self._provider.base_model), "")

    # -- what is asked -------------------------------------------------------------------------

    def problems(self) -> list[Problem]:
        names = _FAMILIES.get(self._family, _OTHERS)
        hints = {
            "max_steps": "set epochs",
            "learning_rate": "set learningRateMultiplier in provider.hyperparameters",
            "gradient_accumulation": "set batch_size to the product",
        }
        return [
            *mapping.unmapped(
                self._order,
                self.title,
                training={"epochs", *names},
                method={"sft": (), "pretrain": ("packing",)},
                hints=hints,
            ),
            *mapping.whole_epochs(self._order, self.title),
        ]

    def hyperparameters(self) -> dict[str, str]:
        """As the API takes them: text."""
        training = mapping.asked(self._order.training)
        out: dict[str, Any] = {"epochCount": int(self._order.training.epochs)}
        for name, theirs in _FAMILIES.get(self._family, _OTHERS).items():
            if name == "early_stopping" and name in training:
                out[f"{theirs}Patience"] = training[name].patience
                out[f"{theirs}Threshold"] = training[name].min_delta
            elif name in training:
                out[theirs] = training[name]
        return {name: str(value) for name, value in {**out, **self._provider.hyperparameters}.items()}

    def export(self, folder: Path) -> Export:
        form, shape = self._shape()
        return exporting.lines(self._order.splits, shape, form, folder)

    def _shape(self) -> tuple[str, Callable[[Row], Row]]:
        if self._order.method.kind == "pretrain":
            return "bedrock-text", _text
        form = self._provider.format
        if form == "auto":
            form = _FORMATS.get(self._family) or ("pair" if self._pairs() else "conversation")
        shapes: dict[str, tuple[str, Callable[[Row], Row]]] = {
            "conversation": ("bedrock-conversation-2024", exports.bedrock_conversation),
            "messages": ("bedrock-messages", _messages),
            "pair": ("bedrock-pair", _pair),
        }
        return shapes[form]

    def _pairs(self) -> bool:
        splits = self._order.splits
        return all(len(row["messages"]) == 2 for split in SPLITS for row in view.stream(splits, split))

    # -- the job -------------------------------------------------------------------------------

    def place(self) -> str:
        return self._account.bucket_url(self._order.spec.project)

    def _folder(self, *path: str) -> str:
        order = self._order
        return self._account.bucket_url(order.spec.project, order.spec.input_digest[:28], *path)

    def find(self) -> str | None:
        """The newest attempt, asked for by the name that its input gives it: from any machine."""
        for attempt in range(1, _ATTEMPTS + 1):
            self._attempt = attempt
            try:
                found = self._get(self._order.name(attempt))
            except FtaasError as error:
                if not_found(error):
                    return None
                raise
            if found["status"] in ("InProgress", "Completed"):
                return found["jobName"]
        raise FtaasError(f"{_ATTEMPTS} jobs of this input have failed", self.title, self._order.name(1))

    def upload(self, export: Export) -> None:
        for split, file in export.files.items():
            self._inputs[split] = self._folder("input", file.name)
            self._account.upload(file, self._inputs[split])

    def create(self) -> str:
        provider, name = self._provider, self._order.name(self._attempt)
        asked: dict[str, Any] = {
            "jobName": name,
            "customModelName": name,
            "clientRequestToken": name,
            "roleArn": provider.role_arn,
            "baseModelIdentifier": provider.base_model,
            "customizationType": "CONTINUED_PRE_TRAINING"
            if self._order.method.kind == "pretrain"
            else "FINE_TUNING",
            "trainingDataConfig": {"s3Uri": self._inputs["train"]},
            "outputDataConfig": {"s3Uri": self._folder("output")},
            "hyperParameters": self.hyperparameters(),
            "jobTags": self._tags(),
            "customModelTags": self._tags(),
        }
        if "validation" in self._inputs:
            asked["validationDataConfig"] = {"validators": [{"s3Uri": self._inputs["validation"]}]}
        if provider.kms_key:
            asked["customModelKmsKeyId"] = provider.kms_key
        if provider.subnets:
            asked["vpcConfig"] = {"subnetIds": provider.subnets, "securityGroupIds": provider.security_groups}
        with self._account.explained():
            self._bedrock.create_model_customization_job(**asked)
        return name

    def _tags(self) -> list[dict[str, str]]:
        spec = self._order.spec
        known = {
            "ftaas:project": spec.project,
            "ftaas:input": spec.input_digest,
            "ftaas:splits": self._order.splits.digest,
        }
        return [{"key": key, "value": value} for key, value in known.items()]

    def _get(self, job: str) -> dict[str, Any]:
        with self._account.explained():
            return self._bedrock.get_model_customization_job(jobIdentifier=job)

    def state(self, job: str) -> State:
        found = self._get(job)
        status = found["status"]
        if status == "Completed":
            return State("done", status)
        if status == "Failed":
            return State("failed", found.get("failureMessage") or status)
        return State("stopped" if status in ("Stopping", "Stopped") else "running", status)

    def news(self, job: str, seen: Container[str]) -> list[News]:
        details = self._get(job).get("statusDetails") or {}
        told = [
            f"{part.removesuffix('Details')}: {about['status']}"
            for part, about in details.items()
            if about.get("status")
        ]
        return [News(text, text) for text in told if text not in seen]

    def stop(self, job: str) -> None:
        with self._account.explained():
            self._bedrock.stop_model_customization_job(jobIdentifier=job)

    # -- the result ----------------------------------------------------------------------------

    def collect(self, job: str, folder: Path) -> Outcome:
        found = self._get(job)
        hyperparameters = found.get("hyperParameters") or self.hyperparameters()
        usd, basis = self._cost(int(hyperparameters["epochCount"]))
        last = {
            **({"loss": found["trainingMetrics"]["trainingLoss"]} if found.get("trainingMetrics") else {}),
            **({"eval_loss": m[0]["validationLoss"]} if (m := found.get("validationMetrics")) else {}),
        }
        figures = list(self._figures()) or ([{"step": 0, **last}] if last else [])
        began, ended = found.get("creationTime"), found.get("endTime")
        return Outcome(
            content={
                "adapter": "remote",
                "provider": "bedrock",
                "model": found["outputModelArn"],
                "job": found["jobArn"],
                "base": self._provider.base_model,
            },
            facts={
                "job": job,
                "model_name": found.get("outputModelName"),
                "base_model_arn": found.get("baseModelArn"),
                "hyperparameters": hyperparameters,
                "region": self._provider.region,
                "input": self._folder("input"),
                "output": self._folder("output"),
                "final_metrics": last,
                "attempt": self._attempt,
            },
            seconds=(ended - began).total_seconds() if began and ended else None,
            usd=usd,
            basis=basis,
            figures=figures,
        )

    def close(self) -> None:
        self._account.close()

    def _figures(self) -> Iterator[dict[str, Any]]:
        """What Bedrock writes beside the model: a CSV of the training steps and one of the validation."""
        names = {"step_wise_training_metrics.csv": "loss", "validation_metrics.csv": "eval_loss"}
        theirs = {"training_loss": "loss", "validation_loss": "eval_loss", "perplexity": "perplexity"}
        for url in self._account.below(self._folder("output")):
            if url.rpartition("/")[2] not in names:
                continue
            text = self._account.read(url).decode("utf-8-sig")
            for row in csv.DictReader(io.StringIO(text)):
                values = {theirs[k]: float(v) for k, v in row.items() if k in theirs and v}
                if names[url.rpartition("/")[2]] == "eval_loss" and "perplexity" in values:
                    values["eval_perplexity"] = values.pop("perplexity")
                yield {"step": int(float(row["step_number"])), **values}

    def _cost(self, epochs: int) -> tuple[float | None, str]:
        """Bedrock bills tokens and does not say how many: they are guessed from the characters sent."""
        price = self._provider.usd_per_1k_tokens
        if price is None:
            return None, "no price was given (provider.usd_per_1k_tokens)"
        splits = self._order.splits
        characters = sum(
            len(message["content"] or "")
            for row in view.stream(splits, "train")
            for message in row["messages"]
        )
        tokens = characters / _CHARACTERS_A_TOKEN * epochs
        basis = f"{characters} characters / {_CHARACTERS_A_TOKEN} x {epochs} epochs = {tokens:.0f} tokens"
        return tokens / 1000 * price, f"estimate: {basis}; Bedrock does not say how many it bills"


# -- shapes ----------------------------------------------------------------------------------------


def _text(row: Row) -> Row:
    if row["kind"] != "text":
        where = f"record {short(row['record_id'])}"
        raise InputInvalid(
            "continued pre-training takes plain texts", where, f"a {row['kind']}", "take method sft"
        )
    return {"input": row["messages"][-1]["content"]}


def _messages(row: Row) -> Row:
    """Claude's own: a system text, then messages whose content is text."""
    found = exports.bedrock_conversation(row)
    system = {"system": found["system"][0]["text"]} if "system" in found else {}
    return {
        **system,
        "messages": [{"role": m["role"], "content": m["content"][0]["text"]} for m in found["messages"]],
    }


def _pair(row: Row) -> Row:
    found = exports.bedrock_conversation(row)
    if "system" in found or len(found["messages"]) != 2:
        do = "take a base that knows conversations, such as a Nova, or drop dataset.system"
        where = f"record {short(row['record_id'])}"
        raise InputInvalid(
            "this base learns from one question and its answer alone", where, "a conversation", do
        )
    question, answer = found["messages"]
    return {"prompt": question["content"][0]["text"], "completion": answer["content"][0]["text"]}
