"""A SageMaker training job: this platform's own program in a container, or a program of the image's."""

import json
from collections.abc import Container
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from ftaas_pipelines.data.versions import export as exports
from ftaas_pipelines.errors import FtaasError, InputInvalid, Problem
from ftaas_pipelines.inference import bases
from ftaas_pipelines.projects.provider import SageMaker
from ftaas_pipelines.stages.spec import Run
from ftaas_pipelines.store import short
from resources.providers import exporting, mapping
from resources.providers.aws import Account, not_found
from resources.providers.exporting import Export, Row
from resources.providers.job import News, Order, Outcome, State, Unreachable
from resources.providers.sagemaker_logs import JobLogs
from resources.providers.sagemaker_result import Result

_ATTEMPTS = 50
_DAY_S = 86_400
_PROGRAM = ["python", "-m", "ftaas_pipelines.stages.sagemaker"]
_FIGURES = ("loss", "eval_loss", "learning_rate", "grad_norm", "tokens_per_second")
# What program `image` is handed: the names of TRL's command line (SFTConfig, ModelConfig).
_TRAINING = {
    "max_steps": "max_steps",
    "epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "gradient_accumulation": "gradient_accumulation_steps",
    "learning_rate": "learning_rate",
    "schedule": "lr_scheduler_type",
    "warmup_steps": "warmup_steps",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "optimizer": "optim",
    "max_seq_tokens": "max_length",
    "seed": "seed",
    "attention": "attn_implementation",
    "gradient_checkpointing": "gradient_checkpointing",
    "neftune_alpha": "neftune_noise_alpha",
    "eval_steps": "eval_steps",
    "save_steps": "save_steps",
}
_LORA = {
    "r": "lora_r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "dora": "use_dora",
    "rslora": "use_rslora",
}
_PRECISION = {"bf16": "bf16", "fp16": "fp16"}


class SageMakerJobs:
    """One order at SageMaker.

    Raises:
        InputInvalid: a secret is missing.
    """

    title = "Amazon SageMaker"

    def __init__(self, provider: SageMaker, order: Order):
        self._provider, self._order = provider, order
        self._account = Account(provider, self.title)
        self.secrets = self._account.secrets
        self._attempt = 1
        self._channels: dict[str, str] = {}

    @cached_property
    def _sagemaker(self) -> Any:
        return self._account.client("sagemaker")

    @cached_property
    def _logs(self) -> JobLogs:
        return JobLogs(self._account)

    @property
    def _ours(self) -> bool:
        return self._provider.program == "ftaas"

    # -- what is asked -------------------------------------------------------------------------

    def problems(self) -> list[Problem]:
        order = self._order
        if not self._ours:
            return list(
                mapping.unmapped(
                    order,
                    f"{self.title} (program: image)",
                    training={*_TRAINING, "precision"},
                    method={"sft": (), "pretrain": ()},
                    adapter=_LORA,
                )
            )
        found: list[Problem] = []
        here = "train it on this platform's machines"
        if order.training.distributed.world > 1:
            where = order.where("training", "distributed")
            found.append(
                Problem("one process trains there", where, str(order.training.distributed.world), here)
            )
        if order.method.kind in ("rloo", "distillation", "vision") or order.spec.inputs.get("code"):
            what = "needs more than the records and the base, which is all that is sent"
            found.append(Problem(what, order.where("method"), order.method.kind, here))
        if self._provider.hyperparameters:
            got = ", ".join(self._provider.hyperparameters)
            do = "set them in training, method and adapter"
            found.append(Problem("program ftaas takes the recipe itself", order.where("provider"), got, do))
        if order.base_path is None:
            found.append(Problem("names no base model", order.where(), do="let `ftaas run` write the spec"))
        return found

    def hyperparameters(self) -> dict[str, str]:
        """For program `image`, as the API takes them: text. `auto` and what is not set it chooses itself."""
        training, adapter = self._order.training, self._order.adapter
        out = {theirs: getattr(training, name) for name, theirs in _TRAINING.items()}
        if training.max_steps:
            out.pop("num_train_epochs")
        if training.precision in _PRECISION:
            out[training.precision] = True
        if adapter.kind == "lora":
            out |= {"use_peft": True, **{theirs: getattr(adapter, name) for name, theirs in _LORA.items()}}
        said = {name: value for name, value in out.items() if value is not None and value != "auto"}
        return {name: _text(value) for name, value in {**said, **self._provider.hyperparameters}.items()}

    def export(self, folder: Path) -> Export:
        splits = self._order.splits
        if self._ours:
            return exporting.records(splits, folder)
        if self._order.method.kind == "pretrain":
            return exporting.lines(splits, _plain_text, "text", folder)
        return exporting.lines(splits, _chat, "openai-chat", folder)

    # -- the job -------------------------------------------------------------------------------

    def place(self) -> str:
        return self._account.bucket_url(self._order.spec.project)

    def _folder(self, *path: str) -> str:
        spec = self._order.spec
        return self._account.bucket_url(spec.project, spec.input_digest[:28], *path)

    def find(self) -> str | None:
        """The newest attempt, asked for by the name that its input gives it: from any machine."""
        for attempt in range(1, _ATTEMPTS + 1):
            self._attempt = attempt
            name = self._order.name(attempt)
            try:
                found = self._describe(name)
            except FtaasError as error:
                if not_found(error):
                    return None
                raise
            if found["TrainingJobStatus"] in ("InProgress", "Completed"):
                return name
        raise FtaasError(f"{_ATTEMPTS} jobs of this input have failed", self.title, self._order.name(1))

    def upload(self, export: Export) -> None:
        for split, file in export.files.items():
            channel = "records" if self._ours else split
            self._channels[channel] = self._folder("input", channel) + "/"
            self._account.upload(file, self._channels[channel] + file.name)
        if not self._ours:
            return
        order = self._order
        assert order.base_path is not None  # see problems()
        spec = order.work / "spec.json"
        spec.write_text(self.spec_sent(), encoding="utf-8")
        self._channels["spec"] = self._folder("input", "spec") + "/"
        self._account.upload(spec, self._channels["spec"] + spec.name)
        self._channels["base"] = self._account.bucket_url("bases", order.base) + "/"
        for file in bases.files(order.base_path):
            self._account.upload(file, self._channels["base"] + file.name)

    def spec_sent(self) -> str:
        """The spec without what is only true of this machine; the container fills in its own."""
        spec, nowhere = self._order.spec, Path("-")
        run = Run(
            home=nowhere,
            store=nowhere,
            ledger="",
            actor=spec.run.actor,
            grant=spec.run.grant,
            max_minutes=self._order.minutes,
        )
        inputs = {name: value for name, value in spec.inputs.items() if name != "provider"}
        return spec.model_copy(update={"run": run, "inputs": inputs}).model_dump_json()

    def create(self) -> str:
        name = self._order.name(self._attempt)
        with self._account.explained():
            self._sagemaker.create_training_job(**self._request(name))
        return name

    def _request(self, name: str) -> dict[str, Any]:
        provider, order = self._provider, self._order
        minutes = min(m for m in (provider.timeout_minutes, order.minutes) if m is not None)
        seconds = max(1, round(minutes * 60))
        image: dict[str, Any] = {"TrainingImage": provider.image, "TrainingInputMode": "File"}
        if self._ours:
            image["ContainerEntrypoint"] = _PROGRAM
            image["MetricDefinitions"] = [{"Name": n, "Regex": rf'"{n}": ([0-9.eE+-]+)'} for n in _FIGURES]
        known = {
            "ftaas:project": order.spec.project,
            "ftaas:input": order.spec.input_digest,
            "ftaas:splits": order.splits.digest,
        }
        output: dict[str, Any] = {"S3OutputPath": self._folder("output")}
        resources: dict[str, Any] = {
            "InstanceType": provider.instance_type,
            "InstanceCount": provider.instance_count,
            "VolumeSizeInGB": provider.volume_gib,
        }
        if provider.kms_key:
            output["KmsKeyId"] = resources["VolumeKmsKeyId"] = provider.kms_key
        asked: dict[str, Any] = {
            "TrainingJobName": name,
            "RoleArn": provider.role_arn,
            "AlgorithmSpecification": image,
            "InputDataConfig": [_channel(n, url) for n, url in self._channels.items()],
            "OutputDataConfig": output,
            "ResourceConfig": resources,
            "StoppingCondition": {"MaxRuntimeInSeconds": seconds},
            "EnableNetworkIsolation": provider.isolated,
            "Tags": [{"Key": key, "Value": value} for key, value in known.items()],
        }
        if not self._ours:
            asked["HyperParameters"] = self.hyperparameters()
        if provider.subnets:
            asked["VpcConfig"] = {"Subnets": provider.subnets, "SecurityGroupIds": provider.security_groups}
        if provider.spot:
            asked["EnableManagedSpotTraining"] = True
            asked["StoppingCondition"]["MaxWaitTimeInSeconds"] = seconds + _DAY_S
            asked["CheckpointConfig"] = {"S3Uri": self._folder("checkpoints")}
        return asked

    def _describe(self, job: str) -> dict[str, Any]:
        with self._account.explained():
            return self._sagemaker.describe_training_job(TrainingJobName=job)

    def state(self, job: str) -> State:
        found = self._describe(job)
        status, more = found["TrainingJobStatus"], found.get("SecondaryStatus") or ""
        if status == "Completed":
            return State("done", status)
        if status == "Failed":
            return State("failed", found.get("FailureReason") or more or status)
        if status in ("Stopping", "Stopped"):
            return State("stopped", more or status)
        return State("running" if more == "Training" else "waiting", more or status)

    def news(self, job: str, seen: Container[str]) -> list[News]:
        found = self._describe(job)
        told: list[News] = []
        for change in found.get("SecondaryStatusTransitions") or []:
            text = f"{change['Status']}: {change.get('StatusMessage', '')}".rstrip(": ")
            told.append(News(f"{change['Status']} {change['StartTime']} {text}", text))
        told += self._logs.news(job)
        for one in found.get("FinalMetricDataList") or []:
            key = f"{one['MetricName']} {one['Timestamp']} {one['Value']}"
            told.append(News(key, step=self._logs.step, values={one["MetricName"]: float(one["Value"])}))
        return [one for one in told if one.key not in seen]

    def stop(self, job: str) -> None:
        with self._account.explained():
            self._sagemaker.stop_training_job(TrainingJobName=job)

    # -- the result ----------------------------------------------------------------------------

    def collect(self, job: str, folder: Path) -> Outcome:
        found = self._describe(job)
        url: str = found["ModelArtifacts"]["S3ModelArtifacts"]
        packed = self._order.work / "model.tar.gz"
        try:
            self._account.download(url, packed)
        except Unreachable:
            raise
        except FtaasError as error:
            got = error.problems[0].got
            raise FtaasError("the job left no result", url, got, "see its log in CloudWatch") from None
        result = Result(packed, self._provider.volume_gib * 2**30, folder)
        content = result.ours(self._order) if self._ours else result.of_image(self._order)
        packed.unlink()
        seconds = _billed(found)
        usd, basis = self._cost(seconds)
        facts = {
            "job": job,
            "arn": found["TrainingJobArn"],
            "image": self._provider.image,
            "instance": f"{self._provider.instance_count} x {self._provider.instance_type}",
            "region": self._provider.region,
            "hyperparameters": found.get("HyperParameters") or {},
            "input": self._folder("input"),
            "result": url,
            "left_out": result.left_out,
            "attempt": self._attempt,
            **result.attested,
        }
        return Outcome(content, facts, seconds, usd, basis, result.figures)

    def close(self) -> None:
        self._account.close()

    def _cost(self, seconds: float | None) -> tuple[float | None, str]:
        price = self._provider.usd_per_hour or self._order.spec.run.usd_per_hour or None
        if price is None or seconds is None:
            return (
                None,
                "no price was given (provider.usd_per_hour)" if price is None else "no time was billed",
            )
        count = self._provider.instance_count
        return seconds / 3600 * price * count, f"{seconds:.0f} billed s x {count} x {price:g} USD an hour"


def _billed(found: dict[str, Any]) -> float | None:
    """Seconds that SageMaker bills; where it does not say, those between start and end of the training."""
    if "BillableTimeInSeconds" in found:
        return float(found["BillableTimeInSeconds"])
    began, ended = found.get("TrainingStartTime"), found.get("TrainingEndTime")
    if isinstance(began, datetime) and isinstance(ended, datetime):
        return (ended - began).total_seconds()
    return None


def _channel(name: str, url: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": url, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _chat(row: Row) -> Row:
    if row["kind"] == "preference":
        where = f"record {short(row['record_id'])}"
        raise InputInvalid(
            "sft learns from conversations", where, "a preference", "take a method for preferences"
        )
    return exports.openai(row)


def _plain_text(row: Row) -> Row:
    if row["kind"] != "text":
        where = f"record {short(row['record_id'])}"
        raise InputInvalid(
            "continued pre-training takes plain texts", where, f"a {row['kind']}", "take method sft"
        )
    return {"text": row["messages"][-1]["content"]}
