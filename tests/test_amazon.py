"""Training on Amazon's machines: Bedrock and SageMaker as moto's server plays them, over the wire.

What their machines would do in between is told to moto's own objects, which live in this process.
"""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from preparing import Silent
from providing import KEY, ROOT, TRAINED, UNSEEN, VALIDATED, Bench, base, conversations, platform, wait_for

from ftaas_pipelines.errors import FtaasError, InputInvalid, Refused
from ftaas_pipelines.inference import bases
from ftaas_pipelines.stages import train
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Store
from ftaas_pipelines.training import machine, plan, resolve
from ftaas_pipelines.training.inputs import TrainInputs
from resources.providers import launching
from resources.providers.job import Order
from resources.providers.sagemaker_result import Result

BUCKET = "ftaas-tuning"
ROLE = "arn:aws:iam::123456789012:role/tuning"


class Amazon:
    """moto's server, asked over the wire; what its machines would do is told to its own objects."""

    def __init__(self, url: str):
        from boto3.session import Session

        session = Session("test", KEY, region_name="us-east-1")
        self.url = url
        self.s3, self.logs = (session.client(n, endpoint_url=url) for n in ("s3", "logs"))

    def at(self, kind: str, **more: Any) -> dict[str, Any]:
        place = {"region": "us-east-1", "role_arn": ROLE, "bucket": BUCKET, "endpoint_url": self.url}
        keys = {"access_key": "env:AWS_ID_OF_TEST", "secret_key": "env:AWS_KEY_OF_TEST"}
        return {"kind": kind, **place, **keys, "poll_seconds": 0.02, **more}

    def nova(self, **more: Any) -> dict[str, Any]:
        return self.at("bedrock", **{"base_model": "amazon.nova-micro-v1:0:128k", **more})

    def machine(self, **more: Any) -> dict[str, Any]:
        image = "123456789012.dkr.ecr.us-east-1.amazonaws.com/ftaas:1"
        return self.at("sagemaker", **{"image": image, "instance_type": "ml.g5.xlarge", **more})

    @property
    def customizations(self) -> dict[str, Any]:
        from moto.bedrock.models import bedrock_backends

        return bedrock_backends["123456789012"]["us-east-1"].model_customization_jobs

    @property
    def trainings(self) -> dict[str, Any]:
        from moto.sagemaker.models import sagemaker_backends

        return sagemaker_backends["123456789012"]["us-east-1"].training_jobs

    def put(self, url: str, body: bytes) -> None:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        self.s3.put_object(Bucket=bucket, Key=key, Body=body)

    def get(self, url: str) -> bytes:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        return self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()

    def below(self, url: str) -> list[str]:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        found = self.s3.list_objects_v2(Bucket=bucket, Prefix=key).get("Contents", [])
        return [f"s3://{bucket}/{one['Key']}" for one in found]

    def all_bytes(self) -> bytes:
        return b"".join(self.get(url) for url in self.below(f"s3://{BUCKET}/"))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with platform(tmp_path) as there:
        yield there


@pytest.fixture
def amazon(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Amazon]:
    monkeypatch.setenv("AWS_ID_OF_TEST", "test")
    monkeypatch.setenv("AWS_KEY_OF_TEST", KEY)
    there = Amazon(s3_url)
    there.s3.create_bucket(Bucket=BUCKET)
    yield there
    for url in there.below(f"s3://{BUCKET}/"):
        there.s3.delete_object(Bucket=BUCKET, Key=url.removeprefix(f"s3://{BUCKET}/"))
    there.s3.delete_bucket(Bucket=BUCKET)
    there.customizations.clear()
    there.trainings.clear()


class Meanwhile:
    """Does something beside the launcher, and says if that went wrong."""

    def __init__(self, work: Callable[[], None]):
        self._work, self._error = work, None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()
        if self._error:
            raise self._error


def test_a_custom_model_of_bedrock_comes_back_with_its_curve(bench: Bench, amazon: Amazon) -> None:
    training = {"epochs": 2.0, "learning_rate": 1e-5, "warmup_steps": 4}
    spec = bench.spec(amazon.nova(usd_per_1k_tokens=0.001), training=training)

    def finish() -> None:
        (job,) = wait_for(lambda: list(amazon.customizations.values()))
        asked = job.hyper_parameters
        assert asked == {"epochCount": "2", "learningRate": "1e-05", "learningRateWarmupSteps": "4"}
        assert job.customization_type == "FINE_TUNING" and job.client_request_token == job.job_name
        lines = amazon.get(job.training_data_config["s3Uri"]).splitlines()
        assert len(lines) == TRAINED and json.loads(lines[0])["schemaVersion"] == "bedrock-conversation-2024"
        assert amazon.get(job.validation_data_config["validators"][0]["s3Uri"]).count(b"\n") == VALIDATED
        out = f"{job.output_data_config['s3Uri']}/model-customization-job-abc"
        steps = "step_number,epoch_number,training_loss,perplexity\n0,0,2.5,12.2\n1,0,1.5,4.5\n"
        amazon.put(f"{out}/training_artifacts/step_wise_training_metrics.csv", steps.encode())
        validation = "step_number,epoch_number,validation_loss\n1,0,1.75\n"
        path = "validation_artifacts/post_fine_tuning_validation/validation_metrics.csv"
        amazon.put(f"{out}/{path}", validation.encode())
        job.status = "Completed"

    with Meanwhile(finish):
        made = bench.made(spec)
    (job,) = amazon.customizations.values()
    assert made.content["adapter"] == "remote" and made.content["provider"] == "bedrock"
    assert made.content["model"] == job.output_model_arn and made.content["job"] == job.job_arn
    rows = [json.loads(line) for line in (made.path / "beside" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [2.5, 1.5] and rows[1]["eval_loss"] == 1.75
    attested = made.attestation
    assert attested["cost_usd"] > 0 and attested["cost_basis"].startswith("estimate:")
    assert attested["grant"] == spec.run.grant and attested["exported"]["splits"] == spec.inputs["splits"]
    assert UNSEEN.encode() not in amazon.all_bytes() and KEY.encode() not in amazon.all_bytes()
    assert job.job_name == f"ftaas-demo-{spec.input_digest[:28]}-1"


def test_a_job_of_bedrock_that_hangs_fails_or_is_interrupted(bench: Bench, amazon: Amazon) -> None:
    """moto's jobs stay in progress, as real ones do for hours."""
    with pytest.raises(
        FtaasError, match=r"not done after 0\.0 minutes; it is being stopped \(got InProgress\)"
    ):
        bench.launch(bench.spec(amazon.nova(timeout_minutes=0.005)))
    (job,) = amazon.customizations.values()
    assert job.status == "Stopped"
    spec = bench.spec(amazon.nova())

    def fail() -> None:
        second = wait_for(lambda: amazon.customizations.get(job.job_name[:-1] + "2"))
        second.failure_message, second.status = "Your training data holds 3 lines too long", "Failed"

    with Meanwhile(fail), pytest.raises(FtaasError, match="the job failed: Your training data holds 3 lines"):
        bench.launch(spec)

    def interrupt() -> None:
        wait_for(lambda: amazon.customizations.get(job.job_name[:-1] + "3"))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with Meanwhile(interrupt), pytest.raises(KeyboardInterrupt):
        bench.launch(spec)
    assert [j.status for j in amazon.customizations.values()] == ["Stopped", "Failed", "Stopped"]


def test_each_family_of_bedrock_gets_its_own_lines_and_settings(bench: Bench, amazon: Amazon) -> None:
    def order(model: str, rows: Any = conversations, **recipe: Any) -> Any:
        spec = bench.spec(amazon.nova(base_model=model), rows=rows, **recipe)
        return launching.remote_of(launching.provider_of(spec), launching._order(spec, bench.store))

    def first(remote: Any) -> dict[str, Any]:
        return json.loads(
            remote.export(bench.root / "export").files["train"].read_text("utf-8").splitlines()[0]
        )

    stopping = {"batch_size": 8, "early_stopping": {"patience": 4, "min_delta": 0.5}}
    claude = order("anthropic.claude-3-haiku-20240307-v1:0:200k", training=stopping)
    assert claude.problems() == [] and claude.hyperparameters() == {
        "epochCount": "3",
        "batchSize": "8",
        "earlyStoppingPatience": "4",
        "earlyStoppingThreshold": "0.5",
    }
    messages = first(claude)["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant"] and isinstance(messages[0]["content"], str)
    titan = order("arn:aws:bedrock:us-east-1::foundation-model/amazon.titan-text-lite-v1:0:4k")
    assert set(first(titan)) == {"prompt", "completion"}
    nova = order("amazon.nova-lite-v1:0:300k", training={"batch_size": 8, "epochs": 2.5})
    assert [p.where for p in nova.problems()] == [
        "recipes.remote.training.batch_size",
        "recipes.remote.training.epochs",
    ]
    assert (
        "cannot do this method"
        in order("meta.llama3-1-8b-instruct-v1:0:128k", method="orpo").problems()[0].what
    )
    with pytest.raises(InputInvalid, match="continued pre-training takes plain texts"):
        first(order("amazon.titan-text-lite-v1:0:4k", method="pretrain"))


def packed(files: dict[str, bytes], *more: tarfile.TarInfo) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in more:
            archive.addfile(info)
    return out.getvalue()


PEFT = {
    "adapter_config.json": json.dumps(
        {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "/opt/base"}
    ).encode(),
    "adapter_model.safetensors": b"\x02\0\0\0\0\0\0\0{}",
}


def leave(amazon: Amazon, spec: Spec, result: bytes, attempt: int = 1) -> None:
    """Put the result where the job will say that it is: moto's jobs are done when they are asked for."""
    folder = f"s3://{BUCKET}/ftaas/demo/{spec.input_digest[:28]}/output"
    name = f"ftaas-demo-{spec.input_digest[:28]}-{attempt}"
    amazon.put(f"{folder}/{name}/output/model.tar.gz", result)


def test_an_image_of_ones_own_on_sagemaker_leaves_an_adapter(bench: Bench, amazon: Amazon) -> None:
    machine = amazon.machine(program="image", hyperparameters={"model_name_or_path": "/opt/base"}, spot=True)
    spec = bench.spec({**machine, "usd_per_hour": 3600.0}, adapter={"r": 8, "alpha": 32})
    junk = {"run.sh": b"rm -rf /", "weights.bin": b"pickle", "checkpoint-5/adapter_config.json": b"{}"}
    inside = {f"out/{name}": content for name, content in PEFT.items()}
    leave(amazon, spec, packed({**inside, **junk, "beside/metrics.jsonl": b'{"step": 5, "loss": 0.5}\n'}))
    made = bench.made(spec)
    (job,) = amazon.trainings.values()
    asked = job.hyper_parameters
    mapped = {
        "num_train_epochs": "3.0",
        "per_device_train_batch_size": "16",
        "lora_alpha": "32",
        "use_peft": "true",
    }
    assert mapped.items() <= asked.items() and asked["model_name_or_path"] == "/opt/base"
    assert job.enable_managed_spot_training and job.enable_network_isolation
    (train,) = amazon.below(job.input_data_config[0]["DataSource"]["S3DataSource"]["S3Uri"])
    assert json.loads(amazon.get(train).splitlines()[0])["messages"][0]["role"] == "user"
    assert UNSEEN.encode() not in amazon.all_bytes()
    assert set(made.manifest["files"]) == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((made.path / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == f"sha256:{bases.digest(base())}"
    assert {
        "adapter": "lora",
        "method": "sft",
        "splits": spec.inputs["splits"],
    }.items() <= made.content.items()
    assert made.attestation["provider"]["left_out"] == ["run.sh", "weights.bin"]
    assert made.attestation["cost_usd"] is not None and made.attestation["last"]["loss"] == 0.5
    assert (5, {"loss": 0.5}) in bench.figures and any("train:progress" in v for _, v in bench.figures)


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, to
    return info


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (packed({**PEFT, "../../escaped.json": b"{}"}), "may not hold.*escaped.json"),
        (packed({**PEFT, "/tmp/escaped.json": b"{}"}), "may not hold.*/tmp/escaped.json"),
        (packed(PEFT, link("link.json", "/etc/passwd")), "may not hold.*link.json"),
        (packed(PEFT, link("hard.json", "adapter_config.json", tarfile.LNKTYPE)), "may not hold.*hard.json"),
        (packed({"big.json": b"0" * (2**30 + 1)}), "may not hold.*1073741824 bytes"),
        (packed({"model.bin": b"x"}), "no adapter.*0 PEFT folders; there are model.bin"),
        (packed(PEFT)[:-40], "is no whole tar file"),
        (b"", "is no whole tar file"),
    ],
)
def test_a_result_that_is_no_adapter_is_refused(bench: Bench, result: bytes, why: str) -> None:
    order = Order(**{f.name: None for f in fields(Order)})  # type: ignore[arg-type]
    (bench.root / "model.tar.gz").write_bytes(result)
    with pytest.raises(FtaasError, match=why):
        Result(bench.root / "model.tar.gz", 2**30, bench.root / "draft").of_image(order)
    assert not list(bench.root.rglob("escaped*"))


@pytest.fixture
def slow_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs of moto's SageMaker that begin, and can be stopped (moto knows neither; AWS does)."""
    from moto.sagemaker import models, responses

    begin = models.FakeTrainingJob.__init__

    def __init__(self: Any, **asked: Any) -> None:
        begin(self, **asked)
        self.training_job_status, self.secondary_status = "InProgress", "Training"
        self.final_metric_data_list = []

    def stop_training_job(self: Any) -> Any:
        job = self.sagemaker_backend.training_jobs[self._get_param("TrainingJobName")]
        job.training_job_status = job.secondary_status = "Stopped"
        return responses.EmptyResult()

    monkeypatch.setattr(models.FakeTrainingJob, "__init__", __init__)
    monkeypatch.setattr(responses.SageMakerResponse, "stop_training_job", stop_training_job, raising=False)


def test_a_job_of_sagemaker_is_stopped_found_again_and_its_reason_told(
    bench: Bench, amazon: Amazon, slow_machines: None
) -> None:
    spec = bench.spec(amazon.machine())
    name = f"ftaas-demo-{spec.input_digest[:28]}-"

    def crash() -> None:
        wait_for(lambda: amazon.trainings.get(f"{name}1"))
        bench.crashes = True
        amazon.trainings[f"{name}1"].final_metric_data_list = [
            {"MetricName": "loss", "Value": 1.0, "Timestamp": amazon.trainings[f"{name}1"].creation_time}
        ]

    with Meanwhile(crash), pytest.raises(FtaasError, match="the tracker is gone"):
        bench.launch(spec)
    bench.crashes = False

    def fail() -> None:
        wait_for(lambda: bench.log.count("was asked for before"))
        job = amazon.trainings[f"{name}1"]
        job.failure_reason, job.training_job_status = "AlgorithmError: out of memory, exit code: 1", "Failed"

    with Meanwhile(fail), pytest.raises(FtaasError, match="failed: AlgorithmError: out of memory"):
        bench.launch(spec)
    assert list(amazon.trainings) == [f"{name}1"], "the crashed launcher's job was followed, not a second"
    with pytest.raises(Refused, match="the budget of 0.0 minutes is used up; it is being stopped"):
        bench.launch(spec.model_copy(update={"run": spec.run.model_copy(update={"max_minutes": 0.005})}))
    assert amazon.trainings[f"{name}2"].training_job_status == "Stopped"


def test_what_the_platforms_program_on_sagemaker_cannot_do_is_refused(bench: Bench, amazon: Amazon) -> None:
    machine = amazon.machine(hyperparameters={"epochs": 1})
    spec = bench.spec(machine, training={"distributed": {"processes": 2}}, method={"kind": "vision"})
    with pytest.raises(InputInvalid) as error:
        bench.launch(spec)
    where = ["training.distributed", "method", "provider"]
    assert [p.where for p in error.value.problems] == [f"recipes.remote.{part}" for part in where]
    assert not amazon.trainings and not amazon.below(f"s3://{BUCKET}/")


@pytest.mark.slow
def test_this_platforms_program_on_sagemaker_makes_the_adapter_that_is_made_here(
    bench: Bench, amazon: Amazon, slow_machines: None
) -> None:
    """A container is played by this machine: its channels, its program, its log and its result are real."""
    training = {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-3, "max_seq_tokens": 128}
    spec = bench.spec(amazon.machine(usd_per_hour=7.2), training=training)
    root = bench.root / "ml"

    def container() -> None:
        (job,) = wait_for(lambda: list(amazon.trainings.values()))
        for channel in job.input_data_config:
            for url in amazon.below(channel["DataSource"]["S3DataSource"]["S3Uri"]):
                target = root / "input" / "data" / channel["ChannelName"] / url.rpartition("/")[2]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(amazon.get(url))
        _, *program = job.algorithm_specification["ContainerEntrypoint"]
        environment = {**os.environ, "FTAAS_SAGEMAKER_ROOT": str(root)}
        ran = subprocess.run(
            [sys.executable, *program], env=environment, cwd=ROOT, capture_output=True, text=True
        )
        group, stream = "/aws/sagemaker/TrainingJobs", f"{job.training_job_name}/algo-1"
        amazon.logs.create_log_group(logGroupName=group)
        amazon.logs.create_log_stream(logGroupName=group, logStreamName=stream)
        now = int(time.time() * 1000)
        events = [{"timestamp": now, "message": line} for line in ran.stdout.splitlines() if line]
        amazon.logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)
        wait_for(lambda: bench.figures)
        if ran.returncode:
            job.failure_reason = (root / "output" / "failure").read_text("utf-8") + ran.stderr
            job.training_job_status = "Failed"
            return
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            for path in sorted((root / "model").iterdir()):
                archive.add(path, arcname=path.name)
        amazon.put(job.model_artifacts["S3ModelArtifacts"], out.getvalue())
        job.billable_time_in_seconds = 1800
        job.training_job_status = "Completed"

    with Meanwhile(container):
        made = bench.made(spec)
    assert sorted(p.name for p in (root / "input" / "data" / "records").iterdir()) == [
        "train.parquet",
        "validation.parquet",
    ]
    assert UNSEEN.encode() not in amazon.all_bytes()
    # Trained here, from the same recipe: the same bytes, so the same digest.
    inputs = TrainInputs.model_validate({k: v for k, v in spec.inputs.items() if k != "provider"})
    steps = plan.resolve_training(inputs.training, TRAINED)
    fitted = resolve.training(steps, inputs.adapter, machine.found())
    here = spec.model_copy(
        update={"inputs": inputs.model_copy(update={"training": fitted}).model_dump(mode="json")}
    )
    local = train.make(here, Store(bench.root / "store"), Silent())
    assert local is not None and made.digest == local.digest
    attested = made.attestation
    assert attested["cost_usd"] == pytest.approx(3.6) and attested["seconds"] == 1800
    assert attested["provider"]["container"]["libraries"]["torch"] and attested["grant"] == spec.run.grant
    assert {step for step, _ in bench.figures} >= {1, 2, 3, 4} and "training" in bench.log


def test_a_container_that_cannot_work_says_why(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from ftaas_pipelines.stages import sagemaker

    assert sagemaker.main(tmp_path) == 78
    assert "is not a stage spec" in (tmp_path / "output" / "failure").read_text("utf-8")
