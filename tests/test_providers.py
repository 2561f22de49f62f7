"""Training at a provider: what is sent, that it is sent once, what comes back, and what never leaves.

OpenAI's API is `openai_tuning_server`, a stand-in that validates what it is asked with OpenAI's own types;
OpenAI's own client speaks to it. Amazon's side is in `test_amazon`.
"""

import json
import re
import signal
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml
from openai_tuning_server import STEPS, Fault, Tuning, serving
from preparing import Silent
from providing import KEY, ROOT, UNSEEN, Bench, base, platform, preferences, wait_for

from ftaas_pipelines.errors import FtaasError, InputInvalid, Refused
from ftaas_pipelines.inference import bases
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.projects.recipe import Recipe
from ftaas_pipelines.review.sign_offs import requests
from ftaas_pipelines.stages import build, evaluate
from resources.providers import launching

# -- OpenAI ----------------------------------------------------------------------------------------


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    with platform(tmp_path) as there:
        yield there


@pytest.fixture
def openai(monkeypatch: pytest.MonkeyPatch) -> Iterator[Tuning]:
    monkeypatch.setenv("TUNING_KEY", KEY)
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-somebody-else")
    with serving(KEY) as tuning:
        yield tuning


def at(tuning: Tuning, **more: Any) -> dict[str, Any]:
    section = {"kind": "openai", "base_model": "gpt-4.1-nano-2025-04-14", "api_key": "env:TUNING_KEY"}
    return {**section, "base_url": tuning.url, "poll_seconds": 0.02, **more}


def test_a_model_that_stays_at_openai_is_registered_with_all_evidence(bench: Bench, openai: Tuning) -> None:
    provider = at(openai, usd_per_million_tokens=25.0, hyperparameters={"learning_rate_multiplier": 0.5})
    spec = bench.spec(
        provider, training={"epochs": 2.0, "batch_size": 4, "gradient_accumulation": 2, "seed": 7}
    )
    made = bench.made(spec)
    splits, (asked,) = spec.inputs["splits"], openai.asked
    told = {"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 0.5}
    assert asked["method"] == {"type": "supervised", "supervised": {"hyperparameters": told}}
    assert asked["seed"] == 7 and asked["metadata"]["ftaas_input"] == spec.input_digest
    # What left the house: the training and validation split, as the manifest says, byte for byte.
    sent = [json.loads((made.path / "beside" / "export.json").read_text("utf-8"))]
    assert sent[0]["splits"] == splits and {f["split"] for f in sent[0]["files"].values()} == {
        "train",
        "validation",
    }
    digests = {asked[f"{f['split'].replace('train', 'training')}_file"]: f for f in sent[0]["files"].values()}
    for name, content in openai.files.items():
        assert sha256(content).hexdigest() == digests[name]["sha256"]
        assert len(content.splitlines()) == digests[name]["records"] and UNSEEN.encode() not in content
    (entry,) = bench.ledger.entries(launching.SENT, project="demo", subject=splits)
    assert entry.body["files"] == sent[0]["files"] and entry.body["to"] == openai.url
    # What came back.
    assert made.kind == "adapter" and not list(made.problems())
    expected = {
        "adapter": "remote",
        "provider": "openai",
        "job": "ftjob-0",
        "splits": splits,
        "method": "sft",
    }
    assert expected.items() <= made.content.items() and made.content["experiment"] is False
    assert made.content["base"] == "gpt-4.1-nano-2025-04-14" and made.content["steps"] == STEPS
    remote = json.loads((made.path / "remote.json").read_text("utf-8"))
    assert (
        remote["model"]
        == made.content["model"]
        == f"ft:gpt-4.1-nano-2025-04-14:stand-in:{asked['suffix']}:abc"
    )
    assert [c["step"] for c in remote["checkpoints"]] == [65, 130] and remote["trained_tokens"] == 250_000
    attested = made.attestation
    assert attested["cost_usd"] == pytest.approx(6.25) and attested["seconds"] == 600
    assert attested["grant"] == spec.run.grant and attested["actor"] == "owen@example.com"
    assert attested["spec"]["inputs"] == spec.inputs
    # What was told while it ran: every figure once, in order, although they fill more than one page.
    assert [step for step, _ in bench.figures] == list(range(1, STEPS + 1))
    assert bench.figures[64][1]["eval_loss"] == pytest.approx(2.2 / 65)
    rows = [json.loads(line) for line in (made.path / "beside" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == STEPS and rows[-1]["loss"] == pytest.approx(2.0 / STEPS)
    assert (made.path / "beside" / "loss.png").is_file() and "successfully completed" in bench.log
    shares = [m["done"] for m in bench.messages if m["type"] == "progress"]
    assert shares == sorted(shares) and bench.messages[-1]["digest"] == made.digest
    # The same again is found, not bought.
    again = bench.launch(spec)
    assert (again.digest, again.reused, len(openai.asked)) == (made.digest, True, 1)


def test_preferences_go_as_openai_wants_them(bench: Bench, openai: Tuning) -> None:
    spec = bench.spec(at(openai), rows=preferences, method={"kind": "dpo", "beta": 0.2})
    assert bench.made(spec).content["method"] == "dpo"
    assert openai.asked[0]["method"] == {
        "type": "dpo",
        "dpo": {"hyperparameters": {"n_epochs": 3, "beta": 0.2}},
    }
    line = json.loads(openai.files["file-0"].splitlines()[0])
    assert line["non_preferred_output"] == [{"role": "assistant", "content": "I do not know."}]
    with pytest.raises(InputInvalid, match="learns from a conversation.*take method dpo for preferences"):
        bench.launch(bench.spec(at(openai), rows=preferences))


def test_a_failed_job_is_told_in_the_providers_words_and_asked_for_anew(bench: Bench, openai: Tuning) -> None:
    openai.script = ["validating_files", "failed"]
    openai.error = {"message": "Line 7 of the file is not understood", "param": "training_file"}
    spec = bench.spec(at(openai))
    with pytest.raises(FtaasError, match="failed: invalid_training_file: Line 7 .*: training_file") as error:
        bench.launch(spec)
    assert error.value.exit_code == 1 and "ftjob-0" in str(error.value)
    assert bench.messages[-1]["type"] == "error" and not bench.store.all("adapter")
    openai.script = ["running", "succeeded"]
    assert bench.made(spec).content["job"] == "ftjob-1"
    assert len(openai.files) == 2, "the files were there already"


def test_faults_on_the_way_are_waited_out_and_never_paid_twice(bench: Bench, openai: Tuning) -> None:
    jobs = r"/v1/fine_tuning/jobs"
    openai.faults = [
        Fault("POST", "/v1/files", 500, 1),
        Fault("POST", jobs, 500, 1, late=True),  # it made the job; the answer was lost
        Fault("GET", rf"{jobs}/ftjob-0", 429, 2),
        Fault("GET", rf"{jobs}/ftjob-0/events", 503, 7),  # more than the client itself tries
    ]
    openai.filters = False  # nor does it know how to look for metadata
    made = bench.made(bench.spec(at(openai)))
    assert made.content["job"] == "ftjob-0" and len(openai.jobs) == 1
    assert not any(fault.times for fault in openai.faults)
    assert "cannot be reached" in bench.log and "HTTP 500: The server had a fault" in bench.log


def test_a_job_without_end_is_stopped_by_time_and_by_budget(bench: Bench, openai: Tuning) -> None:
    openai.script = ["running"]
    with pytest.raises(
        FtaasError, match=r"not done after 0\.0 minutes; it is being stopped.*timeout_minutes"
    ) as late:
        bench.launch(bench.spec(at(openai, timeout_minutes=0.01)))
    assert late.value.exit_code == 1 and openai.jobs["ftjob-0"]["status"] == "cancelled"
    with pytest.raises(Refused, match="the budget of 0.0 minutes is used up; it is being stopped"):
        bench.launch(bench.spec(at(openai), run={"max_minutes": 0.01}))
    assert openai.jobs["ftjob-1"]["status"] == "cancelled"
    openai.faults = [Fault("POST", r".*/cancel", 500, 99)]
    with pytest.raises(FtaasError, match="could NOT be stopped and may still cost money"):
        bench.launch(bench.spec(at(openai, timeout_minutes=0.01)))


def test_a_killed_launcher_finds_its_job_again(bench: Bench, openai: Tuning) -> None:
    openai.script = ["running"]
    spec = bench.spec(at(openai))
    child = bench.child(spec)
    wait_for(lambda: openai.jobs and ("GET", "/v1/fine_tuning/jobs/ftjob-0/events") in openai.calls)
    child.kill()
    child.wait()
    assert openai.jobs["ftjob-0"]["status"] == "running", "nobody was there to stop it"
    # As when it was killed between asking and writing that down, or goes on on another machine.
    (bench.store.work(spec.input_digest) / "provider.json").unlink()
    openai.script = ["running", "succeeded"]
    assert bench.made(spec).content["job"] == "ftjob-0" and len(openai.jobs) == 1
    assert "was asked for before" in bench.log and len(bench.figures) == STEPS


def test_a_server_without_metadata_is_followed_by_what_was_written_down(bench: Bench, openai: Tuning) -> None:
    spec = bench.spec(at(openai))
    bench.crashes = True
    with pytest.raises(FtaasError, match="RuntimeError: the tracker is gone"):
        bench.launch(spec)
    openai.jobs["ftjob-0"]["metadata"], bench.crashes = None, False
    assert bench.made(spec).content["job"] == "ftjob-0" and len(openai.jobs) == 1


def test_an_interrupted_launcher_stops_what_would_go_on_costing(bench: Bench, openai: Tuning) -> None:
    openai.script = ["running"]
    spec = bench.spec(at(openai))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts a background job without it

    def interrupt() -> None:
        wait_for(lambda: ("GET", "/v1/fine_tuning/jobs/ftjob-0/events") in openai.calls)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        bench.launch(spec)
    thread.join()
    assert openai.jobs["ftjob-0"]["status"] == "cancelled" and "interrupted: it is being stopped" in bench.log
    openai.script = ["running", "succeeded"]
    assert bench.made(spec).content["job"] == "ftjob-1"


def test_what_is_not_signed_never_leaves(bench: Bench, openai: Tuning) -> None:
    spec = bench.spec(at(openai))
    entry = spec.run.grant["entry"]  # type: ignore[index]
    for run, why in (
        ({"grant": None}, "carries no grant"),
        ({"grant": {"entry": "0" * 64}}, "not in the ledger"),
        ({"experiment": True}, "only when it is signed"),
    ):
        refused = spec.model_copy(update={"run": spec.run.model_copy(update=run)})
        with pytest.raises(Refused, match=why):
            bench.launch(refused)
    other = bench.spec(at(openai), rows=preferences, method="dpo")
    stolen = other.model_copy(update={"run": other.run.model_copy(update={"grant": {"entry": entry}})})
    with pytest.raises(Refused, match="the grant is not for"):
        bench.launch(stolen)
    rita = next(r for r in requests.reviews(bench.ledger, project="demo", only_open=False) if r.role == "rai")
    requests.decide(bench.ledger, rita.id, decision="reject", comment="no", by="rita@example.com")
    with pytest.raises(Refused):
        bench.launch(spec if rita.digest == spec.inputs["splits"] else other)
    assert openai.calls == [] and not bench.ledger.entries(launching.SENT, project="demo")


def test_settings_that_cannot_be_mapped_are_named_all_at_once(bench: Bench, openai: Tuning) -> None:
    training = {"max_steps": 10, "learning_rate": 1e-3, "gradient_checkpointing": True, "epochs": 1.5}
    spec = bench.spec(
        at(openai), training=training, adapter={"r": 32}, method={"kind": "sft", "packing": "bfd"}
    )
    with pytest.raises(InputInvalid) as error:
        bench.launch(spec)
    found = {p.where: p for p in error.value.problems}
    assert set(found) == {
        "recipes.remote.training.max_steps",
        "recipes.remote.training.learning_rate",
        "recipes.remote.training.gradient_checkpointing",
        "recipes.remote.training.epochs",
        "recipes.remote.adapter.r",
        "recipes.remote.method.packing",
    }
    assert "learning_rate_multiplier" in found["recipes.remote.training.learning_rate"].do
    with pytest.raises(InputInvalid, match="cannot do this method.*take sft or dpo"):
        bench.launch(bench.spec(at(openai), method="orpo", rows=preferences))
    assert openai.calls == []


def test_a_secret_that_is_missing_or_wrong(
    bench: Bench, openai: Tuning, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("TUNING_KEY")
    with pytest.raises(InputInvalid, match="env:TUNING_KEY: the secret is not set"):
        bench.launch(bench.spec(at(openai)))
    monkeypatch.setenv("TUNING_KEY", KEY)
    openai.key = "another"  # the server repeats the key that it does not know
    with pytest.raises(
        InputInvalid, match=r"does not accept the key .*\*\*\*\*.*mend env:TUNING_KEY"
    ) as error:
        bench.launch(bench.spec(at(openai)))
    assert KEY not in str(error.value) and KEY not in caplog.text and KEY not in json.dumps(bench.messages)
    with pytest.raises(ValueError, match="never the value"):
        Recipe.model_validate({"name": "r", "provider": at(openai, api_key=KEY)})


# -- afterwards ------------------------------------------------------------------------------------


def test_what_stayed_at_its_provider_is_neither_scored_nor_served(bench: Bench, openai: Tuning) -> None:
    made = bench.made(bench.spec(at(openai)))
    known = {"base": "b", "family": "causal", "threads": 1}
    scored = {"split": "validation", "splits": made.content["splits"], "task": "qa", "options": {}}
    served = {"project": "demo", "runtime": "r", "adapter": made.digest, "max_new_tokens": 8}
    spec = bench.spec(at(openai))
    for stage, inputs in (
        (evaluate, {**known, **scored, "base": bases.digest(base()), "adapters": {"remote": made.digest}}),
        (build, {**known, **served}),
    ):
        asked = spec.model_copy(update={"inputs": inputs})
        with pytest.raises(InputInvalid, match=r"stayed at its provider \(openai\).*ft:gpt-4.1-nano"):
            stage.make(asked, bench.store, Silent())


def test_a_project_needs_a_recipe_that_answers_here(project_factory: Callable[..., Path]) -> None:
    section = "    provider: {kind: openai, base_model: m, api_key: env:KEY}\n"
    path = project_factory("away", extra=section)
    with pytest.raises(InputInvalid, match="no recipe makes a model that answers here"):
        catalog.load_one(path.parents[1], path.parents[2] / "policy" / "platform.yaml", "away")
    both = project_factory("both", extra=section + "  - name: here\n")
    loaded = catalog.load_one(both.parents[1], both.parents[2] / "policy" / "platform.yaml", "both")
    away, here = loaded.project.recipes
    assert away.remote and not away.answers and here.answers
    chained = project_factory("chained", extra=section + "  - {name: here, init_from: lora}\n")
    with pytest.raises(InputInvalid, match="builds on lora, whose provider keeps the result"):
        catalog.load_one(chained.parents[1], chained.parents[2] / "policy" / "platform.yaml", "chained")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"init_from": "sft"}, "a provider cannot build on sft"),
        (
            {"sweep": {"search": {"adapter.r": {"choices": [1, 2]}}}},
            "a sweep runs on this platform",
        ),
    ],
)
def test_a_provider_stands_alone(openai: Tuning, change: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Recipe.model_validate({"name": "r", "provider": at(openai), **change})


def test_only_what_decides_the_result_makes_a_new_training(bench: Bench, openai: Tuning) -> None:
    first = bench.spec(at(openai))
    later = at(openai, poll_seconds=9.0, timeout_minutes=1.0, usd_per_million_tokens=1.0, api_key="file:/k")
    assert bench.spec(later).input_digest == first.input_digest
    assert bench.spec(at(openai, base_model="gpt-4.1-mini")).input_digest != first.input_digest


def test_the_recipes_in_the_guide_are_recipes() -> None:
    text = (ROOT / "docs" / "providers.md").read_text("utf-8")
    recipes = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    found = [Recipe.model_validate(recipe).provider for recipe in recipes]
    assert [p.kind for p in found if p] == ["openai", "bedrock", "sagemaker", "sagemaker"]
