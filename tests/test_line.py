"""The line, end to end, through the real CLI, Dagster, MLflow, BentoML and the local inbox.

The project is small and its model learns next to nothing, so the policy of these tests lets it through
without beating a baseline; the gates of people and digests are the real ones.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from assets.line import open_line
from ftaas_pipelines import settings
from ftaas_pipelines.store import Store

Run = Callable[..., Any]


@pytest.fixture
def easy_policy(home: Path) -> None:
    path = Path(os.environ["FTAAS_POLICY"])
    path.write_text(
        path.read_text("utf-8").replace("must_beat_naive: true", "must_beat_naive: false"), "utf-8"
    )


@pytest.fixture
def codes(easy_policy: None, project_factory: Callable[..., Path], ftaas: Run) -> Iterator[Path]:
    """A project named `codes`; whatever it deployed is stopped at the end."""
    yield project_factory("codes", extra="evaluation: {max_new_tokens: 8, max_records: 8}\n")
    ftaas("deployment", "stop", "codes")


def sign(ftaas: Run, decision: str = "approve") -> int:
    """Answer every open review as the first person who may. Returns how many."""
    found = ftaas("review", "list", "--json").json["reviews"]
    for review in found:
        said = ("--decision", decision, "--comment", "looked at it", "--as", review["who"][0])
        assert ftaas("review", "decide", review["id"], *said).code == 0
    return len(found)


def states(ftaas: Run, name: str = "codes") -> dict[str, dict[str, Any]]:
    done = ftaas("status", name, "--json")
    assert done.code == 0, done.stderr
    return {a["name"]: a for a in done.json["assets"]}


def through_every_gate(ftaas: Run) -> None:
    for _ in range(4):
        done = ftaas("run", "codes", "--json")
        if done.code == 0:
            return
        assert done.code == 3, done.stdout + done.stderr
        assert sign(ftaas)
    raise AssertionError(f"the line did not end: {done.stdout}")


def test_raw_rows_to_an_answering_endpoint_and_back_through_every_gate(codes: Path, ftaas: Run) -> None:
    # Up to the sign-off: green, and it says for whom it waits.
    first = ftaas("run", "codes", "--json")
    assert first.code == 3
    waiting = first.json["waiting"]
    assert {w["role"] for w in waiting} == {"sme", "rai"}
    assert all(set(w) >= {"asset", "role", "who", "since", "link"} for w in waiting)
    splits = states(ftaas)["splits"]["digest"]
    assert splits[:12] in first.stdout

    # A stage with a forged grant, or none, is refused; so is the adapter materialised alone.
    spec = open_line("codes", settings.load()).adapter_spec(
        open_line("codes", settings.load()).project.recipes[0]
    )
    forged = {"gate": "train", "project": "codes", "digest": splits, "environment": "", "entry": "f" * 64}
    for grant in (None, forged):
        spec.run.grant = grant
        assert stage("train", spec.model_dump_json(), codes.parent).returncode == 3
    alone = materialise_alone("codes", "adapter_lora")
    assert splits[:12] in alone and "SME" in alone

    # Signed: it trains, evaluates, builds, releases, deploys to staging, waits for production's approver.
    assert sign(ftaas) == 2
    second = ftaas("run", "codes", "--json")
    assert second.code == 3, second.stdout + second.stderr
    assert [w["asset"] for w in second.json["waiting"]] == ["approval_production"]
    assert states(ftaas)["deployment_staging"]["state"] == "fresh"
    assert sign(ftaas) == 1
    third = ftaas("run", "codes", "--json")
    assert third.code == 0, third.stdout + third.stderr
    before = states(ftaas)
    assert {a["state"] for a in before.values()} == {"fresh"}

    # It answers; the answer is traced to its rows and people.
    answer = ftaas("ask", "codes", "Say what X101 means.", "--json").json
    assert answer["adapter_digest"] == before["adapter_lora"]["digest"]
    trace = ftaas("trace", answer["response_id"], "--json").json
    assert [a["kind"] for a in trace["artifacts"]] == [
        "release",
        "bento",
        "evaluation",
        "adapter",
        "splits",
        "dataset",
    ]
    assert all(a["intact"] for a in trace["artifacts"])
    said = [e for a in trace["artifacts"] for e in a["ledger"] if e["kind"] == "decision"]
    assert {e["role"] for e in said} == {"sme", "rai", "approver"}
    assert registered("codes") == {"challenger", "champion"}

    # Again: nothing is made, registered or deployed twice.
    entries = ftaas("ledger", "verify", "--json").json
    assert entries["ok"]
    assert ftaas("run", "codes", "--json").code == 0
    assert ftaas("ledger", "verify", "--json").json["entries"] == entries["entries"]

    # One byte of one row: the digests after it change, status says why, training waits for the new digest.
    data = codes.parent / "data" / "rows.jsonl"
    original = data.read_bytes()
    data.write_bytes(original.replace(b"check 3", b"check 4", 1))
    changed = states(ftaas)
    assert changed["dataset"]["state"] == "stale" and "rows.sha256" in changed["dataset"]["reason"]
    assert changed["adapter_lora"]["state"] == "stale"
    refused = ftaas("run", "codes", "--json")
    assert refused.code == 3
    new = states(ftaas)
    assert new["splits"]["digest"] != splits and new["splits"]["digest"][:12] in refused.stdout
    assert "SME" in materialise_alone("codes", "adapter_lora")

    # The old content back: old digests, their sign-offs and adapters; nothing is trained.
    adapters = len(Store(settings.load().store_path).all("adapter"))
    data.write_bytes(original)
    assert ftaas("run", "codes", "--json").code == 0
    after = states(ftaas)
    assert {n: a["digest"] for n, a in after.items()} == {n: a["digest"] for n, a in before.items()}
    assert len(Store(settings.load().store_path).all("adapter")) == adapters
    assert ftaas("store", "verify").code == 0


def test_a_refusal_closes_the_gate_with_its_reason(codes: Path, ftaas: Run) -> None:
    assert ftaas("run", "codes").code == 3
    sign(ftaas, "reject")
    done = ftaas("run", "codes", "--json")
    assert done.code == 3
    assert "said 'reject': looked at it" in done.stdout
    assert not Store(settings.load().store_path).all("adapter")


def test_who_submitted_the_data_never_signs_it(
    codes: Path, ftaas: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FTAAS_ACTOR", "sam.expert@example.com")  # the project's only SME makes the dataset
    assert ftaas("run", "codes", "--until", "dataset_review_request").code == 0
    review = next(r for r in ftaas("review", "list", "--json").json["reviews"] if r["role"] == "sme")
    assert review["who"] == []
    said = ("--decision", "approve", "--comment", "looked", "--as", "sam.expert@example.com")
    assert ftaas("review", "decide", review["id"], *said).code == 3
    waiting = ftaas("run", "codes", "--json")
    assert waiting.code == 3 and waiting.json["waiting"][0]["who"] == []


def test_an_experiment_trains_on_unsigned_data_and_is_never_released(codes: Path, ftaas: Run) -> None:
    assert ftaas("run", "codes", "--until", "splits").code == 0
    done = ftaas("train", "codes", "--recipe", "lora", "--set", "training.learning_rate=1e-3", "--json")
    assert done.code == 0, done.stderr
    artifact = Store(settings.load().store_path).get(done.json["adapter"])
    assert artifact.content["experiment"] is True
    assert states(ftaas)["adapter_lora"]["state"] in ("missing", "waiting")
    sensitive = codes.read_text("utf-8") + "data_sensitivity: confidential\n"
    codes.write_text(sensitive, encoding="utf-8")
    refused = ftaas("train", "codes", "--recipe", "lora", "--json")
    assert refused.code == 3 and "confidential" in refused.stdout
    wrong = ftaas("train", "codes", "--recipe", "lora", "--set", "training.learning_rat=1", "--json")
    assert wrong.code == 2


def test_a_model_that_loses_to_the_naive_baseline_is_refused(
    project_factory: Callable[..., Path], ftaas: Run
) -> None:
    project_factory("codes", extra="evaluation: {max_new_tokens: 8, max_records: 8}\n")
    assert ftaas("run", "codes").code == 3
    sign(ftaas)
    done = ftaas("run", "codes", "--json")
    assert done.code == 3, done.stdout + done.stderr
    assert "does not beat" in done.stdout
    found = states(ftaas)
    assert found["evaluation"]["state"] == "fresh"
    assert found["bento"]["state"] == "refused" and not Store(settings.load().store_path).all("bento")


@pytest.mark.slow
def test_rollback_pins_and_unpin_lets_go(codes: Path, ftaas: Run) -> None:
    through_every_gate(ftaas)
    first = states(ftaas)["release"]["digest"]
    codes.write_text(
        codes.read_text("utf-8").replace("learning_rate: 0.003", "learning_rate: 0.004"), "utf-8"
    )
    through_every_gate(ftaas)
    second = states(ftaas)["release"]["digest"]
    assert second != first
    back = ftaas("deployment", "rollback", "codes", "--json")
    assert back.code == 0, back.stderr
    assert back.json["release"] == first and back.json["pinned"]
    assert states(ftaas)["deployment_production"]["state"] == "pinned"
    assert ftaas("run", "codes").code == 0, "automation leaves a pinned environment alone"
    assert ftaas("ask", "codes", "hello", "--json").json["release"] == first
    assert ftaas("deployment", "unpin", "codes").code == 0
    assert ftaas("run", "codes").code == 0
    assert ftaas("ask", "codes", "hello", "--json").json["release"] == second


def test_two_runs_at_once_make_one_thing(codes: Path, ftaas: Run) -> None:
    command = [sys.executable, "-m", "ftaas_pipelines.cli.main", "run", "codes", "--json"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
    outputs = [child.communicate(timeout=300) for child in both]
    assert [child.returncode for child in both] == [3, 3], outputs
    store = Store(settings.load().store_path)
    assert len(store.all("dataset")) == len(store.all("splits")) == 1
    assert len(ftaas("review", "list", "--json").json["reviews"]) == 2


# -- what these tests do that a person would ---------------------------------------------------------


def stage(name: str, spec: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    path = folder / "spec.json"
    path.write_text(spec, encoding="utf-8")
    return subprocess.run(
        [
            sys.executable,
            "-m",
            f"ftaas_pipelines.stages.{name}",
            "--spec",
            str(path),
            "--out",
            str(folder / "out.json"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def materialise_alone(project: str, asset: str) -> str:
    """The asset alone, as "Materialize" in the Dagster UI would; returns why it failed."""
    code = f"""
import json
from ftaas_pipelines import settings
from ftaas_pipelines.cli import dagster_run
config = settings.load()
instance = dagster_run.open_instance(config)
import dagster as dg
from ftaas_pipelines.definitions import build
job = build(config).resolve_implicit_global_asset_job_def()
result = job.execute_in_process(
    instance=instance, asset_selection=[dg.AssetKey(["{project}", "{asset}"])], raise_on_error=False
)
assert not result.success
events = [e for e in result.all_events if e.event_type_value == "ASSET_CHECK_EVALUATION"]
checks = [e.asset_check_evaluation_data for e in events]
assert [c.check_name for c in checks] == ["human_sign_off"] and not checks[0].passed
print(json.dumps(str(result.get_failed_step_keys()) + checks[0].description))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def registered(project: str) -> set[str]:
    """The aliases of the project's one model version."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=settings.load().mlflow, registry_uri=settings.load().mlflow)
    versions = client.search_model_versions(f"name = '{project}'")
    assert len(versions) == 1
    return set(client.get_model_version(project, versions[0].version).aliases)
