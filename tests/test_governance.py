"""The ledger shows every tampering; the gates count only decisions that may count."""

import sqlite3
from pathlib import Path

import pytest
import sqlalchemy as sa

from ftaas_pipelines.errors import InputInvalid, Refused
from ftaas_pipelines.governance import gates
from ftaas_pipelines.governance.gates import Requirement
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.review.sign_offs import requests

DIGEST = "a" * 64
PEOPLE = {"sme": ["sam@example.com", "both@example.com"], "rai": ["rita@example.com", "both@example.com"]}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path)


def requirement(digest: str = DIGEST, **changes: object) -> Requirement:
    values: dict[str, object] = {
        "gate": "train",
        "project": "p",
        "digest": digest,
        "environment": "",
        "roles": {"sme": 1, "rai": 1},
        "people": PEOPLE,
        "excluded": [],
    }
    return Requirement(**{**values, **changes})  # type: ignore[arg-type]


def ask(ledger: Ledger, wanted: Requirement) -> dict[str, str]:
    """Open the requests; returns role to review id."""
    requests.open_requests(ledger, wanted, asset="dataset_sign_off", summary={"n": 1}, actor="line")
    found = requests.reviews(ledger, project="p", only_open=False)
    return {r.role: r.id for r in found if r.digest == wanted.digest and r.terms == wanted.terms}


def say(ledger: Ledger, review: str, by: str, decision: str = "approve") -> None:
    requests.decide(ledger, review, decision=decision, comment="looked", by=by, conditions="c")


# -- the ledger ------------------------------------------------------------------------------------


def test_the_database_itself_refuses_changes_and_gaps(ledger: Ledger, tmp_path: Path) -> None:
    for _ in range(3):
        ledger.append("note", "s", {"x": 1}, project="p", actor="me")
    raw = sqlite3.connect(tmp_path / "ledger.db")
    for statement in (
        "UPDATE ledger SET body = '{}' WHERE seq = 2",
        "DELETE FROM ledger WHERE seq = 3",
        "INSERT OR REPLACE INTO ledger "
        "SELECT 2, at, kind, actor, project, subject, '{}', prev, hash, signature, format, policy "
        "FROM ledger WHERE seq = 2",
        "INSERT INTO ledger SELECT 9, at, kind, actor, project, subject, body, prev, hash, signature, "
        "format, policy FROM ledger WHERE seq = 3",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            raw.execute(statement)
        raw.rollback()
    assert ledger.verify().ok


@pytest.mark.parametrize(
    ("damage", "seq"),
    [
        ("UPDATE ledger SET body = '{\"x\":2}' WHERE seq = 2", 2),
        ("UPDATE ledger SET actor = 'other' WHERE seq = 1", 1),
        ("DELETE FROM ledger WHERE seq = 2", 2),
        ("DELETE FROM ledger WHERE seq = 3", 3),  # a cut tail shows against the head file
        ("UPDATE ledger SET signature = 'AAAA' WHERE seq = 3", 3),
    ],
)
def test_verify_names_the_first_bad_entry_even_past_the_triggers(
    ledger: Ledger, tmp_path: Path, damage: str, seq: int
) -> None:
    for _ in range(3):
        ledger.append("note", "s", {"x": 1}, project="p", actor="me")
    raw = sqlite3.connect(tmp_path / "ledger.db")
    for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        raw.execute(f"DROP TRIGGER {name}")
    raw.execute(damage)
    raw.commit()
    found = ledger.verify()
    assert not found.ok and found.first_bad is not None and found.first_bad["seq"] == seq


def test_an_entry_written_past_the_platform_never_counts(ledger: Ledger, tmp_path: Path) -> None:
    wanted = requirement()
    reviews = ask(ledger, wanted)
    say(ledger, reviews["rai"], "rita@example.com")
    genuine = ledger.entries("decision")[0]
    body = {**genuine.body, "role": "sme", "review": reviews["sme"]}
    from ftaas_pipelines.store import canonical, digest_of

    fields = {
        "seq": genuine.seq + 1,
        "at": genuine.at,
        "kind": "decision",
        "actor": "sam@example.com",
        "project": "p",
        "subject": DIGEST,
        "body": body,
        "prev": genuine.hash,
    }
    with sa.create_engine(ledger.url).begin() as connection:
        row = {**fields, "body": canonical(body).decode(), "hash": digest_of(fields), "signature": "AAAA"}
        names = ", ".join(row)
        connection.execute(sa.text(f"INSERT INTO ledger ({names}) VALUES (:{', :'.join(row)})"), row)
    assert gates.standing(ledger, wanted).missing == {"sme": 1}
    found = ledger.verify()
    assert found.first_bad == {"seq": genuine.seq + 1, "why": "its signature does not verify"}


def test_two_processes_append_one_chain(ledger: Ledger, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from ftaas_pipelines.governance.ledger import Ledger\n"
        "l = Ledger(sys.argv[1], Path(sys.argv[2]))\n"
        "for i in range(40): l.append('n', 's', {'i': i}, project='p', actor='me')"
    )
    command = [sys.executable, "-c", code, ledger.url, str(tmp_path)]
    for child in [subprocess.Popen(command) for _ in range(3)]:
        assert child.wait(60) == 0
    assert ledger.verify().ok and ledger.verify().entries == 120


# -- the gate --------------------------------------------------------------------------------------


def test_the_gate_opens_with_both_roles_and_names_who_is_missing_before(ledger: Ledger) -> None:
    wanted = requirement()
    reviews = ask(ledger, wanted)
    with pytest.raises(Refused) as refused:
        gates.require(ledger, wanted, asset="adapter_lora", actor="me")
    assert DIGEST[:12] in str(refused.value) and "SME" in str(refused.value)
    assert [w["role"] for w in refused.value.waiting] == ["sme", "rai"]
    say(ledger, reviews["sme"], "sam@example.com")
    with pytest.raises(Refused, match="Responsible AI"):
        gates.require(ledger, wanted, asset="adapter_lora", actor="me")
    say(ledger, reviews["rai"], "rita@example.com")
    grant = gates.require(ledger, wanted, asset="adapter_lora", actor="me").as_dict()
    gates.check(ledger, grant, gate="train", project="p", digest=DIGEST)


def test_nobody_signs_twice_or_without_the_role_or_their_own_data(ledger: Ledger) -> None:
    wanted = requirement(excluded=["sam@example.com"])
    reviews = ask(ledger, wanted)
    with pytest.raises(Refused, match="may not sign"):
        say(ledger, reviews["sme"], "sam@example.com")  # owns the data
    with pytest.raises(Refused, match="may not sign"):
        say(ledger, reviews["sme"], "stranger@example.com")
    say(ledger, reviews["sme"], "both@example.com")
    say(ledger, reviews["rai"], "both@example.com")
    assert gates.standing(ledger, wanted).missing == {"rai": 1}, "one person must not count in two roles"


def test_a_refusal_stops_and_a_later_word_of_the_same_person_replaces_it(ledger: Ledger) -> None:
    wanted = requirement()
    reviews = ask(ledger, wanted)
    say(ledger, reviews["sme"], "sam@example.com", "reject")
    say(ledger, reviews["rai"], "rita@example.com")
    with pytest.raises(Refused, match="'reject'"):
        gates.require(ledger, wanted, asset="a", actor="me")
    say(ledger, reviews["sme"], "sam@example.com", "approve_with_conditions")
    assert gates.standing(ledger, wanted).satisfied


def test_a_grant_is_bound_to_its_digest_and_dies_with_its_sign_off(ledger: Ledger) -> None:
    wanted = requirement()
    reviews = ask(ledger, wanted)
    say(ledger, reviews["sme"], "sam@example.com")
    say(ledger, reviews["rai"], "rita@example.com")
    grant = gates.require(ledger, wanted, asset="a", actor="me").as_dict()

    def check(grant: dict[str, str], digest: str = DIGEST, project: str = "p") -> None:
        gates.check(ledger, grant, gate="train", project=project, digest=digest)

    check(grant)
    for forged, digest, project in (
        ({**grant, "entry": "0" * 64}, DIGEST, "p"),  # invented
        ({**grant, "entry": ledger.entries("decision")[0].hash}, DIGEST, "p"),  # another entry
        (grant, "b" * 64, "p"),  # other bytes
        (grant, DIGEST, "q"),  # another project
    ):
        with pytest.raises(Refused):
            check(forged, digest, project)
    say(ledger, reviews["rai"], "rita@example.com", "reject")  # withdrawn after the grant
    with pytest.raises(Refused, match="'reject'"):
        check(grant)


def test_changed_thresholds_void_an_approval(ledger: Ledger) -> None:
    people = {"approver": ["sam@example.com"]}
    old = requirement(roles={"approver": 1}, people=people, gate="deploy", thresholds={"exact_match": 0.5})
    say(ledger, ask(ledger, old)["approver"], "sam@example.com")
    assert gates.standing(ledger, old).satisfied
    raised = requirement(roles={"approver": 1}, people=people, gate="deploy", thresholds={"exact_match": 0.6})
    assert not gates.standing(ledger, raised).satisfied


# -- reviews ---------------------------------------------------------------------------------------


def test_opening_twice_makes_one_and_a_newer_digest_supersedes(ledger: Ledger) -> None:
    first = ask(ledger, requirement())
    assert ask(ledger, requirement()) == first
    assert len(ledger.entries("review_requested")) == 2
    ask(ledger, requirement("b" * 64))
    open_ids = {r.id for r in requests.reviews(ledger)}
    assert not open_ids & set(first.values())
    with pytest.raises(Refused, match="superseded"):
        say(ledger, first["sme"], "sam@example.com")
    ask(ledger, requirement())  # the old content came back: it is asked again
    say(ledger, first["sme"], "sam@example.com")


@pytest.mark.parametrize(
    "wrong",
    [{"decision": "yes"}, {"comment": " "}, {"decision": "approve_with_conditions"}, {"risk": "huge"}],
)
def test_a_decision_must_be_whole(ledger: Ledger, wrong: dict[str, str]) -> None:
    review = ask(ledger, requirement())["sme"]
    said = {"decision": "approve", "comment": "looked", "by": "sam@example.com", **wrong}
    with pytest.raises(InputInvalid):
        requests.decide(ledger, review, **said)
    assert not ledger.entries("decision")
