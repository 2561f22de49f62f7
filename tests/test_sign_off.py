"""What counts as a sign-off: answers of a labelling tool, gates, identities of the inbox, break-glass.

The forger's attempts against a real Label Studio are in `test_forging.py`; here each rule stands alone.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from conftest import OWNER
from hypothesis import strategies as st

from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli.main import main
from ftaas_pipelines.errors import InputInvalid, Refused
from ftaas_pipelines.governance import gates
from ftaas_pipelines.governance.gates import Requirement, standing
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.projects.policy import PlatformPolicy
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.projects.project import Project
from ftaas_pipelines.review import forms
from ftaas_pipelines.review.acceptance import Asked, Judged, accepted
from ftaas_pipelines.review.forms import problems_of
from ftaas_pipelines.review.identity import may_answer_as
from ftaas_pipelines.review.local_inbox import LocalInbox
from ftaas_pipelines.review.round_log import Desk
from ftaas_pipelines.review.rounds import Answer, Opened, Round, Task
from ftaas_pipelines.review.sign_offs import look_back, requests
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import Store

SAM, EVA, RITA, ALEX = (
    "sam.expert@example.com",
    "eva.english@example.com",
    "rita.responsible@example.com",
    "alex.approver@example.com",
)
DIGEST = "a" * 64
RELEASE = "b" * 64
PINS = {"7": SAM, "8": RITA, "9": "stranger@example.com"}
ASKED = Asked("sme", [SAM.upper()], 1, {"r1": "d" * 64})
WHOLE = {"decision": "approve", "checks": ["rows_reviewed"], "comment": "looked"}


# -- answers ---------------------------------------------------------------------------------------


def answer(number: int = 1, **changes: Any) -> Answer:
    at = f"2026-01-01T00:00:{number:02}Z"
    plain = Answer("r1", "d" * 64, str(number), "7", "7", False, WHOLE, at, at)
    return replace(plain, **changes)


def judge(*answers: Answer) -> Judged:
    return accepted(answers, ASKED, PINS, problems_of)


@pytest.mark.parametrize(
    ("forged", "reason"),
    [
        ({"by": "7", "last_by": "8"}, "account 8 wrote it in the name of account 7"),
        ({"by": "8", "last_by": "7"}, "account 7 wrote it in the name of account 8"),
        ({"last_by": None}, "imported"),
        ({"by": "1", "last_by": "1"}, "account 1 is not pinned"),  # unknown, a service's, a superuser's
        ({"by": "8", "last_by": "8"}, f"{RITA} was not asked"),
        ({"data_sha256": "e" * 64}, "shows something else"),
        ({"key": "r2"}, "never issued"),
        ({"result": {}}, "decision"),
        ({"result": {**WHOLE, "decision": "yes"}}, "decision"),
        ({"result": {**WHOLE, "decision": ["approve", "reject"]}}, "decision"),
        ({"result": {**WHOLE, "comment": " "}}, "comment"),
        ({"result": {**WHOLE, "checks": []}}, "checks"),
        ({"result": {**WHOLE, "decision": "approve_with_conditions", "conditions": [" "]}}, "conditions"),
    ],
)
def test_what_is_forged_or_not_whole_is_refused_with_its_reason(forged: Any, reason: str) -> None:
    judged = judge(answer(**forged))
    assert not judged.accepted
    assert reason in judged.refused[0].reason
    assert "looked" not in judged.refused[0].reason, "a reason never repeats what somebody wrote"


def test_an_answer_of_who_was_asked_counts_and_the_latest_word_wins() -> None:
    no = {**WHOLE, "decision": "reject"}
    judged = judge(answer(1), answer(3, result=no), answer(2))
    assert [(a.person, a.answer.annotation) for a in judged.accepted] == [(SAM, "3")]
    judged = judge(answer(1), answer(2, result={}))
    assert not judged.accepted, "a later answer that is not whole takes an earlier one back"
    judged = judge(answer(1), answer(2, skipped=True))
    assert not judged.accepted and judged.skipped == 1 and not judged.refused
    judged = judge(answer(1), answer(2, skipped=True, last_by="8"))
    assert judged.accepted, "nobody takes another's answer back by skipping in their name"


@hypothesis.given(
    st.lists(
        st.builds(
            answer,
            st.integers(1, 59),
            by=st.sampled_from(["7", "8", "9", "1", None]),
            last_by=st.sampled_from(["8", "9", "1", None]),  # everybody but sam
            skipped=st.booleans(),
            result=st.sampled_from([WHOLE, {}, {**WHOLE, "decision": "reject"}]),
        )
    )
)
def test_nothing_that_others_write_becomes_the_word_of_who_was_asked(answers: list[Answer]) -> None:
    assert not judge(*answers).accepted


# -- gates -----------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path)


@pytest.fixture
def codes(project_factory: Callable[..., Path]) -> Project:
    project_factory("codes", extra="data_sensitivity: internal\n")
    return load()[0]


def load() -> tuple[Project, PlatformPolicy]:
    own = configuration.load()
    return catalog.load_one(own.projects, own.policy, "codes").project, load_policy(own.policy)


def tier(**said: Any) -> PlatformPolicy:
    """The policy of this test's home, with more said of the low tier."""
    policy = load()[1]
    return policy.model_copy(
        update={"tiers": {**policy.tiers, "low": policy.tiers["low"].model_copy(update=said)}}
    )


def ask(ledger: Ledger, wanted: Requirement) -> dict[str, str]:
    requests.open_requests(ledger, wanted, asset="asset", summary={"counts": {"train": 1}}, actor="line")
    found = requests.reviews(ledger, project=wanted.project, only_open=False)
    return {r.role: r.id for r in found if r.terms == wanted.terms}


def say(ledger: Ledger, review: str, by: str, decision: str = "approve") -> None:
    requests.decide(ledger, review, decision=decision, comment="looked", by=by, conditions="c")


def signed(ledger: Ledger, wanted: Requirement) -> dict[str, str]:
    reviews = ask(ledger, wanted)
    for role, who in {"sme": SAM, "rai": RITA, "approver": ALEX}.items():
        if role in reviews:
            say(ledger, reviews[role], who)
    assert standing(ledger, wanted).satisfied
    return reviews


def why(ledger: Ledger, wanted: Requirement, at: datetime | None = None) -> str:
    found = standing(ledger, wanted, at)
    assert not found.satisfied
    return "; ".join(reason for _, reason in found.void)


def test_an_approval_expires_and_is_asked_again(ledger: Ledger, codes: Project) -> None:
    wanted = gates.training_requirement(tier(sign_off_days=30.0), codes, DIGEST)
    reviews = signed(ledger, wanted)
    assert standing(ledger, wanted, datetime.now(UTC) + timedelta(days=29)).satisfied
    assert "expired on " in why(ledger, wanted, datetime.now(UTC) + timedelta(days=31))
    at_once = replace(wanted, valid_days=1e-9)
    with pytest.raises(Refused, match=r"expired on .*`ftaas run codes` puts it before them"):
        gates.require(ledger, at_once, asset="adapter_lora", actor=OWNER)
    assert requests.unasked(ledger, at_once) == ["sme", "rai"]
    before = len(ledger.entries("review_requested"))
    assert ask(ledger, at_once) == reviews, "the same question keeps its id"
    assert len(ledger.entries("review_requested")) == before + 2
    assert requests.find(ledger, reviews["sme"]).times == 2
    assert requests.unasked(ledger, at_once) == []


def test_a_clock_that_jumps_signs_nothing(ledger: Ledger, codes: Project) -> None:
    wanted = gates.training_requirement(tier(sign_off_days=30.0), codes, DIGEST)
    signed(ledger, wanted)
    back = datetime.now(UTC) - timedelta(days=400)
    assert "dated in the future" in why(ledger, wanted, back)
    assert standing(ledger, wanted, datetime.now(UTC) - timedelta(minutes=1)).satisfied, "clocks differ a bit"
    assert "expired" in why(ledger, wanted, datetime.now(UTC) + timedelta(days=4000))


def test_a_withdrawn_approval_is_asked_again_and_its_author_may_sign_anew(
    ledger: Ledger, codes: Project
) -> None:
    wanted = gates.training_requirement(load()[1], codes, DIGEST)
    reviews = signed(ledger, wanted)
    decision = next(e for e in ledger.entries("decision") if e.actor == SAM)
    body = {
        "decision": decision.hash,
        "role": "sme",
        "environment": "",
        "terms": wanted.terms,
        "why": "edited",
    }
    ledger.append("decision_revoked", DIGEST, body, project="codes", actor="platform")
    assert why(ledger, wanted) == "was withdrawn: edited"
    assert not standing(ledger, wanted).requests, "nobody waits for an answer that is not asked for"
    ask(ledger, wanted)
    assert set(standing(ledger, wanted).requests) == {"sme"}
    say(ledger, reviews["sme"], SAM)
    assert standing(ledger, wanted).satisfied


def test_who_lost_the_role_by_policy_or_project_no_longer_counts(ledger: Ledger, codes: Project) -> None:
    policy = load()[1]
    wanted = gates.training_requirement(policy, codes, DIGEST)
    signed(ledger, wanted)
    people = codes.people.model_copy(update={"smes": [EVA]})
    by_project = gates.training_requirement(policy, codes.model_copy(update={"people": people}), DIGEST)
    assert "no longer holds the role" in why(ledger, by_project)
    assert requests.unasked(ledger, by_project) == ["sme"]
    roles = policy.roles.model_copy(update={"sme": [EVA]})
    by_policy = gates.training_requirement(policy.model_copy(update={"roles": roles}), codes, DIGEST)
    assert "no longer holds the role" in why(ledger, by_policy)


def test_a_refusal_outlives_its_authors_place_in_the_project_and_does_not_expire(
    ledger: Ledger, codes: Project
) -> None:
    policy = tier(sign_off_days=1.0)
    wanted = gates.training_requirement(policy, codes, DIGEST)
    reviews = signed(ledger, wanted)
    say(ledger, reviews["sme"], SAM, "reject")
    people = codes.people.model_copy(update={"smes": [EVA]})
    dropped = gates.training_requirement(policy, codes.model_copy(update={"people": people}), DIGEST)
    later = datetime.now(UTC) + timedelta(days=99)
    for at in (None, later):
        assert [e.actor for e in standing(ledger, dropped, at).refusals] == [SAM]


def test_two_people_decide_differently_and_the_no_stands(ledger: Ledger, codes: Project) -> None:
    people = codes.people.model_copy(update={"smes": [SAM, EVA]})
    wanted = gates.training_requirement(load()[1], codes.model_copy(update={"people": people}), DIGEST)
    reviews = signed(ledger, wanted)
    say(ledger, reviews["sme"], EVA, "reject")
    with pytest.raises(Refused, match=f"{EVA} said 'reject'"):
        gates.require(ledger, wanted, asset="adapter_lora", actor=OWNER)


def test_duties_are_separate(ledger: Ledger, codes: Project) -> None:
    policy = load()[1]
    wanted = gates.training_requirement(policy, codes, DIGEST)
    signed(ledger, wanted)
    with pytest.raises(Refused, match="started the training"):
        gates.require(ledger, wanted, asset="adapter_lora", actor=SAM)  # signed it: may not start it
    grant = gates.require(ledger, wanted, asset="adapter_lora", actor=OWNER).as_dict()
    gates.check(ledger, grant, gate="train", project="codes", digest=DIGEST)
    submitted = gates.training_requirement(policy, codes, DIGEST, submitted_by=[RITA])
    assert "owns the data or started" in why(ledger, submitted)
    trained = gates.deployment_requirement(policy, codes, RELEASE, "production", [ALEX])
    review = ask(ledger, trained)["approver"]
    with pytest.raises(Refused, match="may not sign"):
        say(ledger, review, ALEX)


def test_who_signed_in_two_roles_fills_the_gap_of_one(ledger: Ledger) -> None:
    people = {"sme": [SAM, EVA], "rai": [EVA, RITA]}
    wanted = Requirement("train", "p", DIGEST, "", {"sme": 1, "rai": 1}, people)
    reviews = ask(ledger, wanted)
    for role, by in (("sme", EVA), ("sme", SAM), ("rai", EVA)):
        say(ledger, reviews[role], by)
    found = standing(ledger, wanted)
    assert found.satisfied and {(e.actor, e.body["role"]) for e in found.decisions} == {
        (SAM, "sme"),
        (EVA, "rai"),
    }


def test_a_grant_of_an_older_version_still_loads(ledger: Ledger) -> None:
    wanted = Requirement("train", "p", DIGEST, "", {"sme": 1}, {"sme": [SAM]})
    signed(ledger, wanted)
    grant = gates.require(ledger, wanted, asset="a", actor="me")
    body = json.loads(json.dumps(ledger.entry(grant.entry).body))  # type: ignore[union-attr]
    known = ("gate", "project", "digest", "environment", "roles", "people", "excluded", "thresholds")
    body["requirement"] = {k: body["requirement"][k] for k in known}
    old = ledger.append("grant", DIGEST, body, project="p", actor="me")
    gates.check(ledger, {**grant.as_dict(), "entry": old.hash}, gate="train", project="p", digest=DIGEST)


def test_a_request_of_an_older_version_is_still_shown_and_answered(ledger: Ledger) -> None:
    wanted = Requirement("train", "p", DIGEST, "", {"sme": 1}, {"sme": [SAM]})
    review = ask(ledger, wanted)["sme"]
    body = ledger.entries("review_requested")[0].body
    older = {k: v for k, v in body.items() if k not in ("requirement", "saw", "policy")}
    ledger.append("review_requested", DIGEST, older, project="p", actor="line")
    assert requests.find(ledger, review).state == "open"
    say(ledger, review, SAM)
    assert requests.find(ledger, review).state == "decided" and standing(ledger, wanted).satisfied


OUTSIDERS = [OWNER, ALEX, "stranger@example.com", "admin@localhost", "", f"{SAM}.evil.org"]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["sme", "rai"]),
        st.sampled_from(OUTSIDERS),
        st.sampled_from(["approve", "approve_with_conditions", "changes", "reject", "revoke", "ask"]),
        st.booleans(),
    ),
    max_size=8,
)


@hypothesis.settings(
    max_examples=25, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(steps=STEPS)
def test_nobody_without_the_role_ever_opens_the_gate(
    ledger: Ledger, steps: list[tuple[str, str, str, bool]]
) -> None:
    subject = (
        gates.digest_of_steps(steps) if hasattr(gates, "digest_of_steps") else f"{abs(hash(str(steps))):064x}"
    )
    people = {"sme": [SAM], "rai": [RITA]}
    wanted = Requirement("train", "p", subject, "", {"sme": 1, "rai": 1}, people, [OWNER], separate=True)
    reviews = ask(ledger, wanted)
    for role, by, word, past_the_platform in steps:
        if word == "ask":
            ask(ledger, wanted)
        elif word == "revoke":
            for e in ledger.entries("decision", subject=subject):
                body = {**e.body, "decision": e.hash, "why": "x"}
                ledger.append("decision_revoked", subject, body, project="p", actor=by)
        elif past_the_platform:  # an entry that some broken code of ours would write
            body = {"role": role, "terms": wanted.terms, "environment": "", "decision": word, "review": "?"}
            ledger.append("decision", subject, body, project="p", actor=by)
        else:
            with pytest.raises(Refused):
                say(ledger, reviews[role], by, word)
        assert set(standing(ledger, wanted).missing) == {"sme", "rai"}


# -- identities of the inbox -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("email", "changes", "sensitivity", "wrong"),
    [
        ("me@acme.org", {}, "restricted", ""),
        ("ME@acme.org", {}, "restricted", ""),
        ("other@acme.org", {}, "internal", "may not answer as this person"),
        ("other@acme.org", {"may_sign_as": "a@b.org, *@acme.org"}, "restricted", ""),
        ("other@evil.org", {"may_sign_as": "*@acme.org"}, "internal", "may not answer as this person"),
        (SAM, {}, "public", ""),
        (SAM, {}, "internal", ""),
        (SAM, {}, "confidential", "an invented person"),
        (SAM, {"actor": SAM, "may_sign_as": "*"}, "restricted", "an invented person"),
        ("me@acme.org", {"profile": "production"}, "internal", "no local inbox"),
        (SAM, {"profile": "production"}, "public", "no local inbox"),
    ],
)
def test_the_inbox_takes_only_identities_that_this_user_may_act_for(
    codes: Project, email: str, changes: dict[str, str], sensitivity: Any, wrong: str
) -> None:
    own = replace(Settings(actor="me@acme.org"), **changes)  # type: ignore[arg-type]
    project = codes.model_copy(update={"data_sensitivity": sensitivity})
    if not wrong:
        may_answer_as(own, project, email)
        return
    with pytest.raises(Refused, match=wrong):
        may_answer_as(own, project, email)


def test_the_command_line_holds_to_it(
    codes: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = configuration.load()
    ledger = Ledger(own.ledger, own.home)
    project, policy = load()
    review = ask(ledger, gates.training_requirement(policy, project, DIGEST))["sme"]
    said = ("review", "decide", review, "--decision", "approve", "--comment", "looked", "--json")
    assert main([*said, "--as", "sam@acme.org"]) == 3
    assert "FTAAS_MAY_SIGN_AS" in capsys.readouterr().out
    assert main(said) == 3, "without --as it is the owner, who may not sign"
    assert "may not sign as SME" in capsys.readouterr().out
    monkeypatch.setenv("FTAAS_PROFILE", "production")
    assert main([*said, "--as", SAM]) == 3
    assert "answer in Label Studio" in capsys.readouterr().out
    assert not ledger.entries("decision")
    monkeypatch.delenv("FTAAS_PROFILE")
    assert main([*said, "--as", SAM]) == 0
    (decision,) = ledger.entries("decision")
    assert decision.body["policy"] == gates.policy_version(policy) and decision.body["via"] == "inbox"
    request = ledger.entries("review_requested")[0]
    assert decision.body["saw"] == request.body["saw"]
    capsys.readouterr()
    assert main(["review", "show", review, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["state"], shown["since"], shown["who"]) == ("decided", request.at, [SAM])


# -- break-glass -----------------------------------------------------------------------------------


def test_break_glass_takes_two_people_a_reason_and_a_third_who_looks_back(
    ledger: Ledger, codes: Project
) -> None:
    policy = load()[1]
    wanted = gates.deployment_requirement(policy, codes, RELEASE, "production", [])
    ask(ledger, wanted)

    def words(by: str, reason: str = "the line stands still") -> look_back.Word:
        return look_back.break_the_glass(ledger, wanted, policy, codes, by=by, reason=reason)

    for by, reason, error in (
        ("stranger@example.com", "x", "may not break the glass"),
        (OWNER, "x", "may not break the glass"),
    ):
        with pytest.raises(Refused, match=error):
            words(by, reason)
    with pytest.raises(InputInvalid, match="needs a reason"):
        words(ALEX, " ")
    assert not words(ALEX).complete and not standing(ledger, wanted).satisfied
    with pytest.raises(Refused, match="two different people"):
        words(ALEX.upper())
    word = words(RITA, "I saw it stand still")
    assert word.complete and word.until
    found = standing(ledger, wanted)
    assert found.satisfied and found.missing and found.said.startswith(f"BREAK-GLASS by {ALEX} and {RITA}")
    grant = gates.require(ledger, wanted, asset="deployment_production", actor=OWNER).as_dict()
    assert ledger.entry(grant["entry"]).body["break_glass"]["by"] == [ALEX, RITA]  # type: ignore[union-attr]

    # For exactly this release, this environment, these hours, and people whom the policy still allows.
    others = [
        replace(wanted, digest="c" * 64),
        replace(wanted, environment="staging"),
        replace(wanted, break_glass=[RITA]),
        replace(wanted, excluded=[RITA]),
        replace(wanted, thresholds={"exact_match": 1.0}),
    ]
    assert not any(standing(ledger, other).satisfied for other in others)
    now = datetime.now(UTC)
    assert standing(ledger, wanted, now + timedelta(hours=23.9)).satisfied
    assert not standing(ledger, wanted, now + timedelta(hours=24.1)).satisfied
    assert not standing(ledger, wanted, now - timedelta(hours=1)).satisfied, "a clock that was set back"

    # The two cannot close the look back, nor break the glass again before it is closed.
    for by in (ALEX, RITA):
        with pytest.raises(Refused, match="may not sign as break-glass look-back"):
            say(ledger, word.review, by)
    late = replace(wanted, thresholds={**wanted.thresholds, "exact_match": 0.5})
    with pytest.raises(Refused, match="nobody has looked back"):
        look_back.break_the_glass(ledger, late, policy, codes, by=ALEX, reason="again")
    assert requests.find(ledger, word.review).who == [SAM]
    say(ledger, word.review, SAM, "changes")
    assert requests.find(ledger, word.review).state == "decided"
    assert standing(ledger, wanted).missing == {"approver": 1}, "looking back approves nothing"


def test_break_glass_goes_over_no_refusal_and_needs_somebody_to_look_back(
    ledger: Ledger, codes: Project
) -> None:
    policy = load()[1]
    two = policy.model_copy(
        update={"break_glass": policy.break_glass.model_copy(update={"people": [ALEX, RITA]})}
    )
    wanted = gates.deployment_requirement(two, codes, RELEASE, "production", [])
    look_back.break_the_glass(ledger, wanted, two, codes, by=ALEX, reason="x")
    with pytest.raises(Refused, match="nobody would be left to look back"):
        look_back.break_the_glass(ledger, wanted, two, codes, by=RITA, reason="x")
    assert not standing(ledger, wanted).satisfied
    say(ledger, ask(ledger, wanted)["approver"], ALEX, "reject")
    with pytest.raises(Refused, match="'reject'"):
        look_back.break_the_glass(ledger, wanted, policy, codes, by=RITA, reason="x")


# -- rows in the inbox -----------------------------------------------------------------------------


def test_rows_are_seen_and_answered_on_the_command_line(
    codes: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    own = configuration.load()
    ledger, store = Ledger(own.ledger, own.home), Store(own.store_path)
    asked = Round("0123abcd" * 8, "codes", "rows", DIGEST, "codes rows", forms.form("rows"), "Look.", [SAM])
    tasks = [
        Task(f"{i:064x}", {"chat_html": "<b>user</b> &lt;X&gt;", "completion": f"check {i}"}) for i in (1, 2)
    ]
    inbox = LocalInbox(ledger, store, "codes", "line")
    Desk(ledger, store, inbox, "line").put_before(asked, tasks, asset="row_review_request")

    def ftaas(*arguments: str, code: int = 0) -> Any:
        assert main(["review", *arguments, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    (waiting,) = ftaas("list")["rounds"]
    assert (waiting["kind"], waiting["who"], waiting["id"]) == ("rows", SAM, asked.id)
    word = ("verdict", asked.id[:8], "2", "--as", SAM)
    assert "corrected" in str(ftaas(*word, "--word", "fix", "--reason", "off_topic", code=2))
    for by, wrong in (("x@y.org", "may not answer as"), (RITA, "not asked")):
        assert wrong in str(ftaas("verdict", asked.id, "2", "--word", "approve", "--as", by, code=3))
    said = ftaas(*word, "--word", "fix", "--reason", "off_topic", "--text", "check 7")
    assert said["record"] == tasks[1].key
    first, second = ftaas("rows", asked.id[:8])["rows"]
    assert (first["answered_by"], second["answered_by"]) == ([], [SAM])
    (given,) = inbox.answers(Opened(asked.id, inbox.server, asked.id, ""))
    assert given.result["corrected"] == ["check 7"]
    assert main(["review", "rows", asked.id]) == 0
    assert "user <X> | check 1" in capsys.readouterr().out
    assert ftaas("rows", "ffff", code=2)["problems"]
