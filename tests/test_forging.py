"""A sign-off cannot be faked in a real Label Studio: each attempt is refused, with its reason on record."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from label_studio import Person, Studio

from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli.main import main
from ftaas_pipelines.errors import FtaasError, Refused
from ftaas_pipelines.governance import gates
from ftaas_pipelines.governance.gates import Requirement, standing
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.review.rounds import Opened
from ftaas_pipelines.review.sign_offs import requests, sign_off_rounds
from ftaas_pipelines.review.sign_offs.sign_off_answers import Collected
from ftaas_pipelines.store import Store, digest_of
from resources.label_studio import connect
from resources.label_studio.client import LabelStudio

SAM, RITA, ALEX = "sam.expert@example.com", "rita.responsible@example.com", "alex.approver@example.com"
YES: dict[str, str | list[str]] = {
    "decision": "approve",
    "checks": ["rows_reviewed", "answers_right", "difference_expected"],
    "comment": "looked at all of it",
}


@dataclass
class Desk:
    """One project whose SME is asked in Label Studio; RITA has signed already, in the inbox."""

    studio: Studio
    tool: LabelStudio
    ledger: Ledger
    store: Store
    wanted: Requirement
    opened: Opened
    review: str

    @property
    def place(self) -> str:
        return self.opened.place

    def user(self, email: str) -> Person:
        return self.studio.user(email)

    def collect(self) -> Collected:
        own = configuration.load()
        project = catalog.load_one(own.projects, own.policy, "codes").project
        policy = load_policy(own.policy)
        return sign_off_rounds.collect(self.ledger, self.store, self.tool, project, policy)

    def reread(self) -> Collected:
        return sign_off_rounds.reread(self.ledger, self.store, self.tool, self.wanted, "adapter_lora")

    def refusals(self) -> list[str]:
        return [e.body["reason"] for e in self.ledger.entries("answer_refused")]

    def sign(self) -> str:
        annotation = self.user(SAM).annotate(self.place, self.review, YES)
        assert [e.actor for e in self.collect().decisions] == [SAM]
        assert standing(self.ledger, self.wanted).satisfied
        return annotation

    def revoked(self) -> str:
        """Why the sign-off does not hold any more."""
        assert standing(self.ledger, self.wanted).missing == {"sme": 1}
        return self.ledger.entries("decision_revoked")[-1].body["why"]


@pytest.fixture
def desk(
    label_studio: Studio, project_factory: Callable[..., Path], home: Path, request: pytest.FixtureRequest
) -> Iterator[Desk]:
    project_factory("codes")
    label_studio.attach(home)
    own = configuration.load()
    ledger, store = Ledger(own.ledger, own.home), Store(own.store_path)
    tool = connect(own, ledger)
    assert tool
    project = catalog.load_one(own.projects, own.policy, "codes").project
    # A digest of its own: the server and its rounds outlive the test.
    digest = digest_of([request.node.name, str(home)])
    wanted = gates.training_requirement(load_policy(own.policy), project, digest)
    requests.open_requests(ledger, wanted, asset="dataset_sign_off", summary={}, actor="line")
    reviews = {r.role: r for r in requests.reviews(ledger)}
    requests.decide(ledger, reviews["rai"].id, decision="approve", comment="looked", by=RITA)
    opened = sign_off_rounds.open_round(ledger, store, tool, reviews["sme"])
    yield Desk(label_studio, tool, ledger, store, wanted, opened, reviews["sme"].id)
    assert ledger.verify().ok


def test_the_word_of_who_was_asked_becomes_a_decision_with_its_evidence(
    desk: Desk, capsys: pytest.CaptureFixture[str]
) -> None:
    review = requests.find(desk.ledger, desk.review)
    assert sign_off_rounds.open_round(desk.ledger, desk.store, desk.tool, review) == desk.opened
    assert (
        review.link == desk.opened.link
        and "codes SME" in desk.studio.ask("GET", f"/api/projects/{desk.place}/")["title"]
    )
    assert gates.awaited(desk.ledger, desk.wanted, "dataset_sign_off")[0]["link"] == desk.opened.link
    annotation = desk.sign()
    decision = desk.ledger.entries("decision")[-1]
    assert decision.body["evidence"]["annotation"] == annotation
    assert decision.body["via"] == "label_studio"
    assert decision.body["saw"] == desk.ledger.entries("review_requested")[0].body["saw"]
    assert not desk.collect().decisions, "once"
    assert not desk.reread().revoked
    gates.require(desk.ledger, desk.wanted, asset="adapter_lora", actor="owen.owner@example.com")
    capsys.readouterr()
    assert main(["review", "show", desk.review, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["state"], shown["answers"], shown["link"]) == ("decided", "1 answer", desk.opened.link)
    assert main(["review", "people", "--json"]) == 0
    accounts = {row["email"]: row["state"] for row in json.loads(capsys.readouterr().out)["people"]}
    assert accounts[SAM] == "ready" and accounts[ALEX] != "ready"


def test_nobody_signs_for_another_or_without_the_role(desk: Desk) -> None:
    alex, sam = desk.user(ALEX), desk.user(SAM)
    alex.annotate(desk.place, desk.review, YES, forged_as=sam)
    alex.annotate(desk.place, desk.review, YES)
    alex.import_answer(desk.place, desk.review, YES, forged_as=sam)
    form = {"result": desk.studio.result(desk.place, YES), "completed_by": int(sam.id)}
    task = desk.studio.task(desk.place, desk.review)
    desk.studio.ask("POST", f"/api/tasks/{task}/annotations/", json=form)  # the platform's own account
    found = desk.collect()
    assert not found.decisions and standing(desk.ledger, desk.wanted).missing == {"sme": 1}
    said = "\n".join(desk.refusals())
    assert f"account {alex.id} wrote it in the name of account {sam.id}" in said
    assert "imported" in said
    assert f"{ALEX} was not asked" in said or f"account {alex.id} is not pinned" in said
    before = len(desk.refusals())
    desk.collect()
    assert len(desk.refusals()) == before, "each is told once"
    with pytest.raises(Refused):
        gates.require(desk.ledger, desk.wanted, asset="adapter_lora", actor="me")


def test_an_answer_that_the_form_would_not_have_let_pass_is_refused(desk: Desk) -> None:
    desk.user(SAM).annotate(desk.place, desk.review, {"decision": "approve_with_conditions"})
    assert not desk.collect().decisions
    assert "conditions" in desk.refusals()[0] and "comment" in desk.refusals()[0]


def test_a_task_that_shows_something_else_signs_nothing(desk: Desk) -> None:
    desk.user(ALEX).change_task(desk.place, desk.review, summary_html="<p>all is well</p>")
    desk.user(SAM).annotate(desk.place, desk.review, YES)
    assert not desk.collect().decisions
    assert "shows something else" in desk.refusals()[0]


def test_a_task_changed_after_the_sign_off_withdraws_it_at_the_gate(desk: Desk) -> None:
    desk.sign()
    desk.user(ALEX).change_task(desk.place, desk.review, summary_html="<p>all is well</p>")
    assert desk.reread().revoked
    assert "shows something else" in desk.revoked()


@pytest.mark.parametrize("what", ["annotation", "task", "project", "edited", "account"])
def test_what_is_deleted_or_edited_after_the_sign_off_withdraws_it(desk: Desk, what: str) -> None:
    annotation = desk.sign()
    alex = desk.user(ALEX)
    if what == "annotation":
        alex.delete(annotation)
    elif what == "task":
        alex.delete_task(desk.place, desk.review)
    elif what == "project":
        alex.delete_project(desk.place)
    elif what == "edited":
        alex.edit(desk.place, annotation, {**YES, "comment": "and more"})
    else:
        desk.studio.delete_account(SAM)
    desk.reread()
    expected = {
        "annotation": "its answer is gone",
        "task": "its answer is gone",
        "project": "its round is gone",
        "edited": "in the name of",
        "account": "",
    }
    assert expected[what] in desk.revoked()
    # People are asked again, in a round of its own; what was said before does not come back.
    assert requests.unasked(desk.ledger, desk.wanted) == ["sme"]


def test_a_refusal_is_not_cleared_away_by_others_but_its_author_may_think_again(desk: Desk) -> None:
    sam = desk.user(SAM)
    annotation = sam.annotate(desk.place, desk.review, {**YES, "decision": "reject"})
    desk.collect()
    desk.user(ALEX).edit(desk.place, annotation, YES)
    assert not desk.collect().decisions
    assert [e.actor for e in standing(desk.ledger, desk.wanted).refusals] == [SAM]
    sam.edit(desk.place, annotation, YES)
    assert [e.body["decision"] for e in desk.collect().decisions] == ["approve"]
    assert standing(desk.ledger, desk.wanted).satisfied


def test_a_skip_and_a_second_answer_of_one_person_count_as_their_last_word(desk: Desk) -> None:
    sam = desk.user(SAM)
    sam.skip(desk.place, desk.review)
    assert not desk.collect().decisions and not desk.refusals()
    sam.annotate(desk.place, desk.review, YES)
    sam.annotate(desk.place, desk.review, {**YES, "decision": "changes"})
    desk.collect()
    assert standing(desk.ledger, desk.wanted).refusals


def test_the_gate_stays_shut_while_label_studio_is_down_or_its_token_wrong(desk: Desk) -> None:
    desk.sign()
    wrong = LabelStudio(desk.studio.url, "0" * 40, home=configuration.load().home, ledger=desk.ledger)
    with pytest.raises(FtaasError, match="codes/adapter_lora.*FTAAS_LABEL_STUDIO_TOKEN.*gate stays shut"):
        sign_off_rounds.reread(desk.ledger, desk.store, wrong, desk.wanted, "adapter_lora")
    with pytest.raises(FtaasError, match="another labelling tool"):
        sign_off_rounds.reread(desk.ledger, desk.store, None, desk.wanted, "adapter_lora")
    desk.studio.stop()
    try:
        down = connect(configuration.load(), desk.ledger)
        with pytest.raises(FtaasError, match="codes/adapter_lora.*nothing is lost"):
            sign_off_rounds.reread(desk.ledger, desk.store, down, desk.wanted, "adapter_lora")
    finally:
        desk.studio.start()
    assert standing(desk.ledger, desk.wanted).satisfied, "a server that is down withdraws nothing"


def test_a_round_that_is_deleted_before_anybody_answered_is_opened_anew(desk: Desk) -> None:
    desk.user(ALEX).delete_project(desk.place)
    desk.collect()
    link = requests.find(desk.ledger, desk.review).link
    assert link != desk.opened.link
    place = link.split("/")[-2]
    desk.user(SAM).annotate(place, desk.review, YES)
    assert [e.actor for e in desk.collect().decisions] == [SAM]
    assert not desk.reread().revoked and standing(desk.ledger, desk.wanted).satisfied


def test_a_superseded_round_is_closed_in_the_tool_and_takes_no_answer(desk: Desk) -> None:
    newer = gates.Requirement(**{**desk.wanted.__dict__, "digest": digest_of(["newer", desk.wanted.digest])})
    requests.open_requests(desk.ledger, newer, asset="dataset_sign_off", summary={}, actor="line")
    desk.user(SAM).annotate(desk.place, desk.review, YES)
    assert not desk.collect().decisions
    assert desk.studio.ask("GET", f"/api/projects/{desk.place}/")["title"].startswith("[closed]")
