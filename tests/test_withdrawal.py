"""What serves is judged by the evidence of its own release; the policy of its tier says what follows.

Ledger, store, policy and the files of the deployment are the real ones. No model runs: what an engine
would load is not asked for here (`test_serving` does that).
"""

import logging
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from assets.line import Line, open_line
from assets.withdrawal import Judged, require_serving, review_serving
from ftaas_pipelines import settings
from ftaas_pipelines.errors import InputInvalid, Refused
from ftaas_pipelines.governance import gates
from ftaas_pipelines.governance.gates import Requirement
from ftaas_pipelines.review.sign_offs import requests
from ftaas_pipelines.serving import deployments, supervisor_process
from ftaas_pipelines.serving.desired import Folder, ReleaseToServe, Wanted
from ftaas_pipelines.store import Artifact, Store
from sensors.withdrawal import judge_all, withdrawal_sensor

ENV = "production"
Projects = Callable[..., Path]
LOG = logging.getLogger("test")


@pytest.fixture
def codes(project_factory: Projects) -> Iterator[Path]:
    yield project_factory("codes")
    supervisor_process.end(Folder(settings.load().home, ENV))


def policy(said: str) -> None:
    """What the policy of the low tier says beside its numbers of signers."""
    change(Path(os.environ["FTAAS_POLICY"]), "  low:\n", f"  low:\n    {said}\n")


def change(path: Path, before: str, after: str) -> None:
    text = path.read_text("utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), "utf-8")


def line(name: str = "codes") -> Line:
    return open_line(name, settings.load())


def sign(asked: Requirement, decision: str = "approve") -> None:
    now = line(asked.project)
    requests.open_requests(now.ledger, asked, asset="a", summary={}, actor="line")
    for review in requests.reviews(now.ledger, project=asked.project, only_open=False):
        if review.digest == asked.digest:
            requests.decide(now.ledger, review.id, decision=decision, comment="looked", by=review.who[0])


def training(release: Artifact, project: str = "codes") -> Requirement:
    now = line(project)
    return gates.training_requirement(now.policy, now.project, release.content["splits"])


def approval(release: Artifact, project: str = "codes") -> Requirement:
    now = line(project)
    return gates.deployment_requirement(now.policy, now.project, release.digest, ENV)


def serve(splits: str = "a" * 64, project: str = "codes") -> Artifact:
    """A release that every gate let through, written down as what should be served."""
    now = line(project)
    content = {"project": project, "splits": splits, "dataset": "", "adapter": splits}
    store = Store(now.settings.store_path)
    with store.create("release", splits) as draft:
        draft.content.update(content)
    release = draft.made
    now.ledger.append("release", release.digest, content, project=project, actor="line")
    sign(training(release, project))
    sign(approval(release, project))
    wanted = ReleaseToServe.model_validate(
        dict.fromkeys((n for n, f in ReleaseToServe.model_fields.items() if f.is_required()), "x")
        | {"project": project, "release": release.digest, "max_new_tokens": 8}
    )
    with Folder(now.settings.home, ENV).changing() as desired:
        desired.projects[project] = Wanted(release=wanted)
    body = {"environment": ENV, "url": "", "adapter": splits}
    now.ledger.append("deployment", release.digest, body, project=project, actor="line")
    return release


def judge(at: datetime | None = None, project: str = "codes") -> Judged | None:
    return review_serving(line(project), ENV, at)


def serving(project: str = "codes") -> bool:
    return line(project).deployed(ENV) is not None


def noted() -> list[str]:
    """The kinds of what was written about deployments, in order."""
    return [e.kind for e in line().ledger.entries(authentic=True) if e.kind.startswith("deployment_")]


def revoke(release: Artifact, role: str) -> None:
    """As the sensor does when an answer was edited or deleted after the sign-off."""
    ledger = line().ledger
    entry = [e for e in ledger.entries("decision") if e.body["role"] == role][-1]
    body = {"decision": entry.hash, "role": role, "environment": entry.body["environment"]}
    body |= {"terms": entry.body["terms"], "why": "the annotation was deleted"}
    ledger.append("decision_revoked", entry.subject, body, project="codes", actor="platform")


def test_what_holds_is_left_alone_whatever_newer_data_and_releases_there_are(codes: Path) -> None:
    first = serve()
    assert judge() == Judged("codes", ENV, first.digest, [])
    newer = training(serve("b" * 64))
    with Folder(settings.load().home, ENV).changing() as desired:  # rolled back to the first, and pinned
        first = next(
            r for r in Store(settings.load().store_path).all("release") if r.content["splits"][0] == "a"
        )
        old = desired.projects["codes"].release.model_copy(update={"release": first.digest})
        desired.projects["codes"] = Wanted(release=old, pinned=True)
    sign(newer, "reject")
    judged = judge()
    assert judged and (judged.release, judged.why) == (first.digest, [])
    (codes.parent / "data" / "rows.jsonl").write_text("", "utf-8")
    assert judge() == judged and noted() == [] and serving()

    sign(training(first), "reject")
    judged = judge()
    assert judged and "SME" in judged.why[0] and "said 'reject'" in judged.why[0], (
        "a pinned one is judged too"
    )


def test_stop_ends_it_at_once_and_says_why(codes: Path) -> None:
    policy("when_revoked: stop")
    release = serve()
    folder = Folder(settings.load().home, ENV)
    supervisor_process.start(settings.load(), folder)
    assert folder.supervisor()
    revoke(release, "approver")
    judged = judge()
    assert judged and judged.did == "stopped"
    assert "alex.approver@example.com was withdrawn: the annotation was deleted" in judged.why[0]
    assert not serving() and not folder.supervisor()
    flagged, stopped = line().ledger.entries(subject=release.digest)[-2:]
    assert (flagged.kind, stopped.kind) == ("deployment_flagged", "deployment_stopped")
    assert stopped.body["why"] == judged.why and stopped.body["environment"] == ENV
    assert stopped.body["policy"] == gates.policy_version(line().policy)
    assert judge() is None

    # Nobody starts it again, or goes back to it, until it is signed again.
    with pytest.raises(Refused, match="was withdrawn"):
        require_serving(line(), release.digest, ENV)
    sign(approval(release))
    require_serving(line(), release.digest, ENV)
    assert line().ledger.verify().ok


def test_flag_leaves_it_and_is_lifted_when_it_is_signed_again(codes: Path) -> None:
    release = serve()
    revoke(release, "rai")
    first = judge()
    assert first and first.did == "flagged" and "Responsible AI sign-off of splits" in first.why[0]
    again = judge()
    assert again and again.why == first.why and again.did == "", "once"
    require_serving(line(), release.digest, ENV)  # what serves may be started again after a reboot
    sign(training(release))
    lifted = judge()
    assert lifted and (lifted.why, lifted.did) == ([], "unflagged")
    assert judge() == Judged("codes", ENV, release.digest, [])
    assert noted() == ["deployment_flagged", "deployment_unflagged"] and serving()


def test_grace_counts_from_the_first_flag_and_then_stops(codes: Path) -> None:
    policy("when_revoked: grace\n    grace_days: 2")
    release = serve()
    now = datetime.now(UTC)
    revoke(release, "sme")
    first = judge(now)
    assert first and first.did == "flagged"
    assert abs(datetime.fromisoformat(first.ends) - now - timedelta(days=2)) < timedelta(seconds=5)
    revoke(release, "rai")  # another reason starts no grace of its own
    assert judge(now + timedelta(days=1.9)) and serving()
    require_serving(line(), release.digest, ENV, now + timedelta(days=1.9))
    with pytest.raises(Refused):
        require_serving(line(), release.digest, ENV, now + timedelta(days=2.1))
    last = judge(now + timedelta(days=2.1))
    assert last and last.did == "stopped" and not serving()
    assert noted() == ["deployment_flagged", "deployment_stopped"]


@pytest.mark.parametrize("how", ["lost role", "owner now", "threshold", "expired", "more signers"])
def test_evidence_is_lost_with_the_role_the_threshold_the_time_and_the_policy(codes: Path, how: str) -> None:
    policy("when_revoked: stop")
    serve()
    at = datetime.now(UTC)
    project, platform = codes, Path(os.environ["FTAAS_POLICY"])
    if how == "lost role":
        change(platform, 'approver: ["alex.approver', 'approver: ["other')
        with pytest.raises(InputInvalid):
            line()  # the project names somebody whom the policy does not allow: that saves nothing
    elif how == "owner now":
        change(platform, "rai: [", "rai: [other@example.com, ")
        change(project, "reviewers: [", "reviewers: [other@example.com, ")
        change(project, "owners: [", "owners: [rita.responsible@example.com, ")
    elif how == "threshold":
        change(project, "task: qa\n", "task: qa\nevaluation: {thresholds: {exact_match: 0.5}}\n")
    elif how == "expired":
        change(project, "task: qa\n", "task: qa\nreviews: {sign_off_days: 30}\n")
        assert judge(at + timedelta(days=29)) and serving()
        at += timedelta(days=31)
    else:
        change(platform, "    sme: 1\n", "    sme: 2\n")
        change(platform, "sme: [", "sme: [other@example.com, ")
        change(project, "smes: [", "smes: [other@example.com, ")
    (judged,) = judge_all(settings.load(), LOG, at)
    assert judged.did == "stopped" and not deployments.deployments(settings.load()), judged
    said = {
        "lost role": "no longer holds the role",
        "owner now": "owns the data",
        "threshold": "a threshold changed since",
        "expired": "expired on",
        "more signers": "1 SME sign-off of splits",
    }
    assert said[how] in "; ".join(judged.why)


def test_killed_between_the_ledger_and_the_stop_it_is_stopped_by_the_next_look(
    codes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy("when_revoked: stop")
    release = serve()
    revoke(release, "approver")
    with monkeypatch.context() as killed:
        killed.setattr(deployments, "stop", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            judge()
    assert serving()
    judged = judge()
    assert judged and judged.did == "stopped" and not serving()
    assert noted() == ["deployment_flagged", "deployment_stopped"], "said once"


def test_the_sensor_judges_every_project_and_shows_it_on_the_deployment(
    codes: Path, project_factory: Projects, caplog: pytest.LogCaptureFixture
) -> None:
    broken, _ = project_factory("broken"), project_factory("good")
    serve(project="broken")
    serve(project="good")
    release = serve()
    revoke(release, "sme")
    broken.write_text("name: broken\n", "utf-8")
    with dg.DagsterInstance.ephemeral() as instance:

        def tick(cursor: str | None) -> dg.SensorResult:
            with dg.build_sensor_context(instance, cursor) as context:
                found = withdrawal_sensor(context)
            assert isinstance(found, dg.SensorResult)
            return found

        first = tick(None)
        shown = {tuple(e.asset_key.path): e for e in first.asset_events or []}
        assert set(shown) == {("codes", "deployment_production"), ("good", "deployment_production")}
        red = shown[("codes", "deployment_production")]
        assert isinstance(red, dg.AssetCheckEvaluation) and not red.passed
        assert "was withdrawn" in str(red.description) and red.check_name == "still_valid"
        assert not tick(first.cursor).asset_events, "told once"
    with caplog.at_level(logging.WARNING):
        assert [j.project for j in judge_all(settings.load(), LOG)] == ["codes", "good"]
    assert "broken in production serves" in caplog.text

    with Folder(settings.load().home, ENV).changing() as desired:  # the release is gone from the store
        gone = desired.projects["codes"].release.model_copy(update={"release": "f" * 64})
        desired.projects["codes"] = Wanted(release=gone)
    assert [j.project for j in judge_all(settings.load(), LOG)] == ["good"]
    assert judge_all(settings.load(), LOG)[0].why == []
