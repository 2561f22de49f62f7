"""Promises of the row review: who is asked about what, what their answers become, and what undoes them."""

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_studio import Studio
from preparing import Pair, dataset_spec, make_dataset, write

from ftaas_pipelines.data import tables
from ftaas_pipelines.data.inputs import DatasetInputs
from ftaas_pipelines.data.versions import view
from ftaas_pipelines.errors import FtaasError, InputInvalid, Refused
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.projects.dataset import Duplicates
from ftaas_pipelines.projects.project import Batch
from ftaas_pipelines.review import forms, round_log
from ftaas_pipelines.review.acceptance import Accepted
from ftaas_pipelines.review.local_inbox import LocalInbox
from ftaas_pipelines.review.round_log import Desk
from ftaas_pipelines.review.rounds import Answer, Kind, Task
from ftaas_pipelines.review.rows import agreement, row_standing, sampling, verdicts
from ftaas_pipelines.review.rows.risk import risks
from ftaas_pipelines.review.rows.row_review import RowReview, rows_digest
from ftaas_pipelines.review.rows.row_standing import Progress, Terms
from ftaas_pipelines.store import Artifact, Store, file_digest
from resources.label_studio import connect

ANN, BEN, CAL, RITA = "ann@example.com", "ben@example.com", "cal@example.com", "rita@example.com"
ROWS: list[Pair] = [(f"What does code {i:03d} mean?", f"Fault number {i:03d}.") for i in range(16)]
APPROVE = {"verdict": "approve"}
REJECT = {"verdict": "reject", "reason": ["off_topic"]}


def fix(text: str) -> dict[str, Any]:
    return {"verdict": "fix", "corrected": text, "reason": "factually_wrong"}


class World:
    """A project "p" with its rows, its store and ledger, and the local inbox."""

    def __init__(self, folder: Path, rows: Sequence[Any] = ROWS, **terms: Any):
        self.folder = folder
        self.store = Store(folder / "store")
        self.ledger = Ledger(f"sqlite:///{folder / 'ledger.db'}", folder)
        self.inbox = LocalInbox(self.ledger, self.store, "p", "owner@example.com")
        self.desk = Desk(self.ledger, self.store, self.inbox, "owner@example.com")
        self.sources = {"main": folder / "main.jsonl"}
        self.say(rows)
        self.review = RowReview(self.desk, Terms("p", 1000, 1, [ANN], [RITA]))
        self.under(**terms)
        self.options: dict[str, Any] = {}

    def say(self, rows: Iterable[Any]) -> None:
        write(self.sources["main"], rows)

    def under(self, **terms: Any) -> None:
        self.review = replace(self.review, terms=replace(self.review.terms, **terms))

    def inputs(self) -> DatasetInputs:
        given = verdicts.verdicts_of(self.ledger, self.store, "p")
        more = {"verdicts": [v.model_dump() for v in given], **self.options}
        return DatasetInputs.model_validate(dataset_spec(self.store, self.sources, **more).inputs)

    def make(self) -> Artifact:
        given = [v.model_dump() for v in verdicts.verdicts_of(self.ledger, self.store, "p")]
        spec = dataset_spec(self.store, self.sources, verdicts=given, **self.options)
        made = self.store.find(spec.input_digest)
        return made or make_dataset(self.store, self.sources, verdicts=given, **self.options)

    def open(self, **more: Any) -> Progress:
        return self.review.open(self.make(), self.inputs(), **more)

    def tasks(self, round_id: str) -> list[Task]:
        return self.inbox.tasks(round_id)[1]

    def answer(self, round_id: str, by: str, special: dict[str, Any] | None = None) -> None:
        """Approve everything but what is special, by prompt."""
        ids = {row["prompt"]: row["record_id"] for row in view.rows(self.make(), limit=10_000)}
        said = {ids[prompt]: result for prompt, result in (special or {}).items()}
        for task in self.tasks(round_id):
            self.inbox.answer(round_id, task.key, said.get(task.key, APPROVE), by=by)

    def close(self) -> Progress:
        found = self.review.close_if_complete()
        assert found is not None
        return found

    def kinds(self) -> list[str]:
        return [e.kind for e in self.ledger.entries() if e.kind.startswith("round")]

    def texts(self, dataset: Artifact) -> dict[str, str]:
        return {row["prompt"]: row["answer"] for row in view.rows(dataset, limit=10_000)}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def many(count: int, start: int = 0) -> list[Pair]:
    return [(f"What does code {i:05d} mean?", f"Fault number {i:05d}.") for i in range(start, start + count)]


def drawn(tasks: Sequence[Task]) -> dict[str, list[str]]:
    """Keys of the tasks by how they were chosen."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        found.setdefault(task.data["drawn"], []).append(task.key)
    return found


# -- A to B ----------------------------------------------------------------------------------------


def test_verdicts_make_version_b_with_exactly_those_changes(world: World) -> None:
    before, source = world.make(), file_digest(world.sources["main"])
    assert world.review.progress(world.inputs()).state == "missing"
    opened = world.open()
    assert (opened.state, opened.tasks, opened.who) == ("open", 16, [ANN])
    assert not opened.done and opened.link == f"ftaas review rows {opened.round}"

    rows = world.inputs()
    world.answer(opened.round, ANN, {ROWS[3][0]: fix("The corrected answer."), ROWS[5][0]: REJECT})
    closed = world.close()
    assert closed.state == "closed" and closed.done
    assert {w: closed.counts[w] for w in ("approve", "fix", "reject")} == {
        "approve": 14,
        "fix": 1,
        "reject": 1,
    }

    after = world.make()
    expected = {p: a for p, a in ROWS if p != ROWS[5][0]} | {ROWS[3][0]: "The corrected answer."}
    assert world.texts(after) == expected
    assert after.content["verdicts"] == {"approve": 14, "fix": 1, "reject": 1, "stale_verdict": 0}
    assert after.digest != before.digest and file_digest(world.sources["main"]) == source
    assert rows_digest(world.inputs()) == rows_digest(rows), (
        "B is of the same rows: it needs no round of its own"
    )
    assert world.open().state == "closed" and world.kinds() == ["round_opened", "round_closed"]
    assert world.review.close_if_complete() is None

    entry = world.ledger.entries("round_closed")[0]
    kept = tables.pq.read_table(world.store.get(entry.body["verdicts"]).file("verdicts.parquet")).to_pylist()
    (corrected,) = [r for r in kept if r["word"] == "fix"]
    assert (corrected["by"], corrected["reasons"]) == (ANN, "factually_wrong") and corrected["at"]
    assert all(v.entry == entry.hash for v in verdicts.verdicts_of(world.ledger, world.store, "p"))
    said = " ".join(str(e.body) for e in world.ledger.entries())
    assert "The corrected answer" not in said and ROWS[3][1] not in said, "row texts stay out of the ledger"


def test_only_what_is_new_is_asked_next_and_the_old_verdicts_hold(world: World) -> None:
    first = world.open()
    world.answer(first.round, ANN, {ROWS[3][0]: fix("The corrected answer."), ROWS[5][0]: REJECT})
    world.close()
    world.under(limit=10)  # less than before: the round that was held stands
    assert world.open().state == "closed"

    world.say([*ROWS[:-2], ("Is this new?", "Yes."), ("And this?", "Too.")])
    opened = world.open()
    about = world.ledger.entries("round_opened")[-1].body["about"]
    assert (about["new"], about["changed"], about["gone"]) == (2, 0, 2)
    assert about["gone_because"] == {"not_in_source": 2}, "the row that people rejected themselves is no news"
    how = drawn(world.tasks(opened.round))
    shown = {t.key: t.data["completion"] for t in world.tasks(opened.round)}
    assert sorted(shown[k] for k in how["all"]) == ["Too.", "Yes."] and len(how["fresh"]) == 1
    world.answer(opened.round, ANN)
    world.close()
    made = world.make()
    assert world.texts(made)[ROWS[3][0]] == "The corrected answer." and ROWS[5][0] not in world.texts(made)

    world.options = {"cleaning": {**world.inputs().cleaning.model_dump(), "max_characters": 19}}
    world.say([*ROWS, ("Is this new?", "Yes.")])
    world.options = {}
    world.say(ROWS)
    assert world.open().state == "closed", "content that is put back finds its review"
    assert world.texts(world.make())[ROWS[3][0]] == "The corrected answer."


def test_a_batch_limits_how_often_people_are_asked(world: World) -> None:
    world.answer(world.open().round, ANN)
    world.close()
    world.under(batch=Batch(rows=3, days=30))
    world.say([*ROWS, ("Is this new?", "Yes."), ("And this?", "Too.")])
    waits = world.open()
    assert waits.state == "deferred" and waits.done and waits.says.startswith("2 rows that came")
    assert world.open() == waits == world.review.progress(world.inputs())
    assert world.kinds().count("round_deferred") == 1
    told = row_standing.evidence(world.ledger, world.review.terms, rows_digest(world.inputs()))
    assert told and "wait for the next round" in told["state"] and told["words"]["approve"] == 16
    assert world.open(at="2099-01-01T00:00:00Z").state == "open", "after so many days they are asked"
    world.say(ROWS[:6])
    assert world.open().state == "open", "ten rows that went are enough"
    assert world.kinds()[-1] == "round_superseded", (
        "a newer dataset's round takes the place of the older one's"
    )
    assert [s.state for s in row_standing.reviews(world.ledger, "p")].count("open") == 1


# -- the sample ------------------------------------------------------------------------------------


def test_a_sample_is_the_same_for_the_same_rows_risky_first_and_spread(tmp_path: Path) -> None:
    sane = [(q, ("pump", "belt", "valve")[i % 3]) for i, (q, _) in enumerate(many(600))]
    risky = [("Whom do I call?", "Write to ann.lee@acme.org."), ("What is it?", "pump " * 400)]
    world = World(tmp_path / "a", [*sane, *risky], limit=60)
    opened = world.open()
    tasks, about = world.tasks(opened.round), world.ledger.entries("round_opened")[0].body["about"]
    how = drawn(tasks)
    assert (about["asked"], about["risky"], about["random"], about["drawn_from"]) == (60, 2, 58, 600)
    assert [t.data["drawn"] for t in tasks[:2]] == ["risky", "risky"]
    assert "finding of" in tasks[0].data["meta"]["why you see it"]
    assert "longer than others" in tasks[1].data["meta"]["why you see it"]
    assert tasks[0].data["meta"]["findings"] == "email 1"
    assert "person_names" in tasks[0].data["meta"]["not checked"]
    answers = [t.data["completion"] for t in tasks if t.key in how["random"]]
    assert all(18 <= answers.count(label) <= 21 for label in ("pump", "belt", "valve")), "spread over labels"
    assert about["seed"] in tasks[0].data["sample"] and "at most 4.67%" in tasks[0].data["sample"]

    again = World(tmp_path / "b", [*reversed(risky), *reversed(sane)], limit=60)
    keys = [t.key for t in again.tasks(again.open().round)]
    assert again.make().digest == world.make().digest
    # Other source bytes are other inputs, hence another seed; the same inputs give the same sample.
    assert len(keys) == 60 and keys != [t.key for t in tasks]
    assert sampling.plan(world.make(), world.inputs(), _all_new(world), 60).tasks == tasks


def _all_new(world: World) -> Any:
    from ftaas_pipelines.review.rows import new_rows

    return new_rows.compare(world.make(), None, [])


def test_near_duplicates_of_the_test_split_are_risky(tmp_path: Path) -> None:
    words = (
        "the pump on line seven stops every few minutes after the start of the morning shift and shows code"
    )
    sources = {
        "main": write(tmp_path / "main.jsonl", [(f"{words} E1", "Reset it."), *many(50)]),
        "exam": write(tmp_path / "exam.jsonl", [(f"{words} E2", "Call us."), *many(5, start=90)]),
    }
    options = Duplicates(contamination="report").model_dump()
    made = make_dataset(Store(tmp_path / "store"), sources, {"exam": "test"}, duplicates=options)
    (pair,) = tables.pq.read_table(made.file("near.parquet")).to_pylist()
    (risky,) = risks(made, None).near_test
    assert risky in (pair["a"], pair["b"]) and view.by_id(made, [risky])[risky]["source"] == "main"


@pytest.mark.parametrize(
    ("population", "n", "bad", "expected"),
    [(60, 60, 0, 0.0), (60, 60, 3, 0.05), (10**6, 300, 0, 0.009936), (100, 30, 0, 0.08), (100, 30, 1, 0.13)],
)
def test_the_bound_is_the_exact_one(population: int, n: int, bad: int, expected: float) -> None:
    from scipy.stats import hypergeom

    found = sampling.bound(population, n, bad)
    assert found == pytest.approx(expected, abs=1e-3)
    worse = round(found * population)
    assert hypergeom.cdf(bad, population, worse, n) > 0.05 or worse == bad
    if worse < population - (n - bad):
        assert hypergeom.cdf(bad, population, worse + 1, n) <= 0.05


def test_nothing_is_claimed_when_nothing_was_drawn() -> None:
    assert sampling.bound(0, 0, 0) is None


# -- several people --------------------------------------------------------------------------------


def test_two_people_differ_and_a_third_decides_without_their_names(tmp_path: Path) -> None:
    world = World(tmp_path, ROWS[:10], per_task=2, smes=[ANN, BEN, CAL])
    opened = world.open()
    world.answer(opened.round, ANN, {ROWS[0][0]: REJECT, ROWS[1][0]: fix("One."), ROWS[2][0]: fix("Same.")})
    assert (p := world.close()).state == "open" and p.answered == 0 and p.who == [BEN, CAL]
    world.answer(opened.round, BEN, {ROWS[1][0]: fix("Two."), ROWS[2][0]: fix(" Same.\n")})
    torn = world.close()
    assert torn.state == "adjudicating" and torn.who == [CAL] and torn.tasks == 2 and not torn.done
    assert world.close() == torn, "asking twice makes one round"

    second = world.ledger.entries("round_opened")[-1].body
    assert second["kind"] == "adjudication" and second["about"]["of"] == opened.round
    shown = {t.data["completion"]: t.data["said_html"] for t in world.tasks(second["round"])}
    assert "reject" in shown[ROWS[0][1]] and "One." in shown[ROWS[1][1]] and "Two." in shown[ROWS[1][1]]
    assert not any(name in html for html in shown.values() for name in ("ann", "ben"))
    with pytest.raises(Refused):
        world.inbox.answer(second["round"], world.tasks(second["round"])[0].key, APPROVE, by=ANN)
    world.answer(second["round"], CAL, {ROWS[1][0]: fix("Three.")})
    assert world.close().state == "closed"
    expected = dict(ROWS[:10]) | {ROWS[1][0]: "Three.", ROWS[2][0]: "Same."}
    assert world.texts(world.make()) == expected

    body = world.ledger.entries("round_closed")[-1].body
    assert body["counts"] | {"adjudicated": 2, "disagreements": 2, "fix": 2, "reject": 0} == body["counts"]
    agreed = body["agreement"]
    # ann: 1 reject, 2 fix, 7 approve; ben: 2 fix, 8 approve. (.9 - .6) / (1 - .6)
    assert (agreed["same"], agreed["cohen_kappa"]) == (0.9, 0.75) and agreed["people"] == 2


def test_where_no_sme_is_left_the_rai_reviewer_decides_and_else_the_review_says_so(tmp_path: Path) -> None:
    world = World(tmp_path, ROWS[:10], per_task=2, smes=[ANN, BEN], rai=[])
    opened = world.open()
    world.answer(opened.round, ANN)
    world.answer(opened.round, BEN, {ROWS[0][0]: REJECT})
    stuck = world.close()
    assert stuck.state == "stuck" and "nobody is left to decide" in stuck.says
    world.under(rai=[BEN, RITA])
    torn = world.close()
    assert (torn.state, torn.who) == ("adjudicating", [RITA])
    world.answer(world.ledger.entries("round_opened")[-1].body["round"], RITA)
    assert world.close().state == "closed" and ROWS[0][0] in world.texts(world.make())
    with pytest.raises(Refused, match="2 people are asked"):
        World(tmp_path / "few", ROWS[:10], per_task=2).open()


ANSWERS = [APPROVE, REJECT, fix("One."), fix("Two.")]


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_whatever_the_order_of_answers_the_verdicts_are_the_same(data: st.DataObject) -> None:
    tasks = [
        Task(f"{i:064x}", {"record_id": f"{i:064x}", "content_id": "c", "completion": "x"}) for i in range(4)
    ]
    given_ = [
        Accepted(
            Answer(t.key, t.sha256, str(n), by, by, False, data.draw(st.sampled_from(ANSWERS)), "t", "t"), by
        )
        for n, (t, by) in enumerate(itertools.product(tasks, (ANN, BEN)))
    ]

    def settled(order: Sequence[Accepted]) -> Any:
        said = [
            verdicts.read("w", "rows", next(t for t in tasks if t.key == a.answer.key), a, "0") for a in order
        ]
        votes = {t.key: [s for s in said if s.answer.key == t.key] for t in tasks}
        found, disputed = verdicts.settle(tasks, votes, {})
        rows = [verdicts._row(j) for j in found]  # pyright: ignore[reportPrivateUsage]
        return (
            rows,
            disputed,
            verdicts.answers_digest(said),
            [forms.said_html(s.answer.result for s in v) for v in votes.values()],
        )

    shuffled = list(given_)
    random.Random(data.draw(st.integers(0, 10**6))).shuffle(shuffled)
    assert settled(given_) == settled(shuffled)


def _table(*columns: str) -> dict[str, dict[str, str]]:
    return {
        str(i): {f"r{j}": w for j, w in enumerate(row) if w != "."}
        for i, row in enumerate(zip(*columns, strict=True))
    }


def test_agreement_against_known_numbers() -> None:
    two = agreement.measure(_table("a" * 25 + "r" * 25, "a" * 20 + "r" * 5 + "a" * 10 + "r" * 15))
    assert (two.same, two.cohen_kappa) == (0.7, 0.4), "the example of Cohen's kappa everybody knows"
    # The example of Wikipedia ("Krippendorff's alpha"): three people, who did not all answer each.
    three = agreement.measure(_table(".....34121133.3", "1.213343.......", "..21344.21133.4"))
    assert three.krippendorff_alpha == pytest.approx(0.691, abs=5e-4)
    assert (three.cohen_kappa, three.fleiss_kappa, three.people) == (None, None, 3)
    same = agreement.measure(_table("aaaa", "aaaa"))
    assert (same.same, same.cohen_kappa, same.fleiss_kappa, same.krippendorff_alpha) == (
        1.0,
        None,
        None,
        None,
    )
    assert agreement.measure(_table("ar")).same is None, "one person agrees with nobody"


def test_fleiss_kappa_is_the_textbook_one() -> None:
    # Ten subjects, fourteen raters, five categories, as on Wikipedia ("Fleiss' kappa"): 0.210.
    counts = [
        *((0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1)),
        *((7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7)),
    ]
    rows = {
        str(i): {f"r{n}": w for n, w in enumerate("".join(c * k for c, k in zip("abcde", row, strict=True)))}
        for i, row in enumerate(counts)
    }
    assert agreement.measure(rows).fleiss_kappa == pytest.approx(0.210, abs=5e-4)


# -- what does not count, and what undoes ----------------------------------------------------------


def test_skips_and_duplicates_are_told_and_the_latest_counts(world: World) -> None:
    opened = world.open()
    world.answer(opened.round, ANN)
    first, second = (t.key for t in world.tasks(opened.round)[:2])
    world.inbox.answer(opened.round, first, {}, by=ANN, skip=True)
    waits = world.close()
    assert (waits.state, waits.answered) == ("open", 15), "a skipped task is not answered"
    assert waits.counts["skipped"] == 1
    world.inbox.answer(opened.round, first, APPROVE, by=ANN)
    world.inbox.answer(opened.round, second, REJECT, by=ANN)
    closed = world.close()
    assert closed.state == "closed" and closed.counts["reject"] == 1 and closed.counts["duplicates"] == 2


def test_answers_that_do_not_count_are_refused_with_their_reason_once(world: World) -> None:
    opened = world.open()
    task = world.tasks(opened.round)[0]
    with pytest.raises(InputInvalid, match="reason"):
        world.inbox.answer(opened.round, task.key, {"verdict": "reject"}, by=ANN)
    with pytest.raises(InputInvalid, match="what stood there before"):
        world.inbox.answer(opened.round, task.key, fix(task.data["completion"]), by=ANN)
    with pytest.raises(Refused):
        world.inbox.answer(opened.round, task.key, APPROVE, by="eve@example.com")
    forged = Forging(world.inbox, [Answer(task.key, task.sha256, "77", ANN, "9", False, APPROVE, "t", "t")])
    review = replace(world.review, desk=replace(world.desk, labelling=forged))
    for _ in range(2):
        assert (found := review.close_if_complete()) and found.answered == 0
    (refused,) = world.ledger.entries("answer_refused")
    assert "in the name of" in refused.body["reason"] and refused.body["annotation"] == "77"


class Forging(LocalInbox):
    """The inbox, with answers that somebody wrote past it; or gone, or out of reach."""

    def __init__(self, inbox: LocalInbox, more: Sequence[Answer] = (), gone: bool = False):
        self.__dict__.update(inbox.__dict__)
        self.more, self.gone = list(more), gone

    def answers(self, opened: Any) -> list[Answer]:
        return [*super().answers(opened), *self.more]

    def states(self, opened: Any) -> Any:
        return [replace(s, exists=not self.gone) for s in super().states(opened)]


def test_an_answer_changed_after_closing_opens_the_review_again(world: World) -> None:
    opened = world.open()
    world.answer(opened.round, ANN, {ROWS[5][0]: REJECT})
    world.close()
    signed = world.make()
    assert world.review.reopened() == []
    key = world.tasks(opened.round)[0].key

    world.inbox.withdraw(opened.round, key, by=ANN)
    (entry,) = world.review.reopened()
    assert entry.body["records"] == {key: "deleted"} and entry.body["why"] == {"deleted": 1}
    assert world.review.reopened() == [], "told once"
    assert verdicts.verdicts_of(world.ledger, world.store, "p") == [], "its verdicts do not hold meanwhile"
    waits = world.review.progress(world.inputs())
    assert waits.state == "open" and "opened again: 1 deleted" in waits.says and not waits.done
    assert world.close().answered == 15
    world.inbox.answer(opened.round, key, APPROVE, by=ANN)
    assert world.close().state == "closed" and world.make().digest == signed.digest

    world.inbox.answer(opened.round, key, REJECT, by=ANN)
    (entry,) = world.review.reopened()
    assert entry.body["why"] == {"answered again": 1}
    assert world.close().counts["reject"] == 2

    review = replace(world.review, desk=replace(world.desk, labelling=Forging(world.inbox, gone=True)))
    (entry,) = review.reopened()
    assert entry.body["why"] == {"the round is gone": 16} and len(entry.body["records"]) == 16
    gone = review.close_if_complete()
    assert gone and gone.state == "gone" and "materialise row_review_request" in gone.says


def test_a_review_opened_again_is_settled_before_later_ones_count(world: World) -> None:
    first = world.open()
    world.answer(first.round, ANN, {ROWS[5][0]: REJECT})
    world.close()
    world.say([*ROWS, ("Is this new?", "Yes.")])
    world.answer(world.open().round, ANN)
    assert world.close().state == "closed" and world.review.progress(world.inputs()).done
    key = world.tasks(first.round)[0].key
    world.inbox.withdraw(first.round, key, by=ANN)
    assert world.review.reopened()
    assert not world.review.progress(world.inputs()).done
    assert ROWS[5][0] in world.texts(world.make()), "what it rejected is back, so nobody may sign meanwhile"
    assert not world.open().done and world.kinds().count("round_superseded") == 0
    world.inbox.answer(first.round, key, APPROVE, by=ANN)
    assert world.close().state == "closed" and world.review.progress(world.inputs()).done
    assert ROWS[5][0] not in world.texts(world.make())


def test_bytes_changed_in_the_store_are_found(world: World) -> None:
    opened = world.open()
    world.answer(opened.round, ANN)
    world.close()
    path = world.store.get(world.ledger.entries("round_closed")[0].body["verdicts"]).file("verdicts.parquet")
    path.write_bytes(path.read_bytes().replace(b"PAR1", b"PAR2", 1))
    verdicts._verdicts.cache_clear()  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(FtaasError, match="was changed"):
        verdicts.verdicts_of(world.ledger, world.store, "p")


class Killed(Exception):
    pass


@pytest.mark.parametrize("step", range(8))
def test_killed_between_any_two_steps_the_same_comes_out(tmp_path: Path, step: int) -> None:
    """Each write to ledger, store or tool is a step; the process dies at one of them and starts again."""
    world = World(tmp_path, ROWS[:8], per_task=2, smes=[ANN, BEN, CAL])

    def surviving(act: Callable[[RowReview], Any], kill_at: int) -> Any:
        killing = Killing(world, kill_at)
        try:
            return act(RowReview(killing.desk, world.review.terms))
        except Killed:
            return act(world.review)

    dataset, inputs = world.make(), world.inputs()
    opened = surviving(lambda r: r.open(dataset, inputs), step)
    world.answer(opened.round, ANN)
    world.answer(opened.round, BEN, {ROWS[0][0]: REJECT})
    assert surviving(lambda r: r.close_if_complete(), step).state == "adjudicating"
    world.answer(world.ledger.entries("round_opened")[-1].body["round"], CAL, {ROWS[0][0]: REJECT})
    assert (
        surviving(lambda r: r.close_if_complete(), step) or world.review.progress(inputs)
    ).state == "closed"
    assert world.review.close_if_complete() is None and world.review.progress(inputs).done
    assert ROWS[0][0] not in world.texts(world.make()) and len(world.texts(world.make())) == 7
    assert sorted(world.kinds()) == ["round_closed"] * 2 + ["round_opened"] * 2
    assert len(world.store.all("round")) == 2 and len(world.store.all("verdicts")) == 1
    assert world.ledger.verify().ok


class Killing:
    """A desk whose nth write kills the process, before or after it is done."""

    def __init__(self, world: World, at: int):
        self.left, self.after = at // 2, at % 2
        ledger, store, inbox = (object.__new__(type(x)) for x in (world.ledger, world.store, world.inbox))
        for copy, one in ((ledger, world.ledger), (store, world.store), (inbox, world.inbox)):
            copy.__dict__.update(one.__dict__)
        ledger.append = self._dying(world.ledger.append)  # type: ignore[method-assign]
        store.write_json = self._dying(world.store.write_json)  # type: ignore[method-assign]
        inbox.open = self._dying(world.inbox.open)  # type: ignore[method-assign]
        inbox.close = self._dying(world.inbox.close)  # type: ignore[method-assign]
        self.desk = Desk(ledger, store, inbox, "owner@example.com")

    def _dying(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def dying(*args: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left == -1 and not self.after:
                raise Killed
            done = write(*args, **named)
            if self.left == -1:
                raise Killed
            return done

        return dying


# -- preferences -----------------------------------------------------------------------------------


def test_preference_pairs_are_ranked_blind(tmp_path: Path) -> None:
    pairs = [{"prompt": f"Ask {i}?", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(40)]
    world = World(tmp_path, pairs)
    opened = world.open()
    tasks = world.tasks(opened.round)
    assert world.ledger.entries("round_opened")[0].body["kind"] == "preference"
    first = {t.data["answer_a"].split()[0] for t in tasks}
    good_first = sum(t.data["answer_a"].startswith("good") for t in tasks)
    assert first == {"good", "bad"} and 8 < good_first < 32, "the position tells nothing"

    def prefers(task: Task, start: str) -> dict[str, str]:
        return {"preference": "a_clear" if task.data["answer_a"].startswith(start) else "b_slight"}

    said: list[Any] = [prefers(t, "good") for t in tasks]
    said[0], said[1], said[2] = prefers(tasks[0], "bad"), {"preference": "tie"}, {"preference": "both_bad"}
    for task, result in zip(tasks, said, strict=True):
        world.inbox.answer(opened.round, task.key, result, by=ANN)
    closed = world.close()
    assert closed.counts == {"approve": 37, "fix": 1, "reject": 2}
    (swap,) = [v for v in verdicts.verdicts_of(world.ledger, world.store, "p") if v.word == "fix"]
    row = view.by_id(world.make(), [swap.record_id])
    before = (
        tasks[0].data["answer_a"]
        if tasks[0].data["answer_a"].startswith("bad")
        else tasks[0].data["answer_b"]
    )
    assert swap.text == before and row[swap.record_id]["answer"] == before


# -- forms -----------------------------------------------------------------------------------------

NASTY = "<img src=x onerror=alert(1)>"


def test_what_people_see_is_escaped(tmp_path: Path) -> None:
    said = [{"role": "user", "content": NASTY}, {"role": "assistant", "content": f"Hi {NASTY}"}]
    turns = [*said, {"role": "user", "content": NASTY}, {"role": "assistant", "content": f"Bye {NASTY}"}]
    world = World(tmp_path, [{"messages": turns}])
    (task,) = world.tasks(world.open().round)
    assert "&lt;img" in task.data["chat_html"] and "<img" not in task.data["chat_html"]
    assert task.data["completion"] == f"Bye {NASTY}", "plain text is shown as it is, and corrected as it is"
    html = forms.said_html([fix(NASTY)])
    assert "&lt;img" in html and "<img" not in html
    summary = {
        "project": NASTY, "digest": "d", "environment": "production", "intended_use": NASTY,
        "sources": [{"name": NASTY, "licence": NASTY}], "findings": {NASTY: "not checked"},
        "scores": {"sets": {NASTY: {"systems": {NASTY: {"overall": {NASTY: {"value": 0.5}}}}}}},
        "staging": {NASTY: NASTY}, "row_review": {"state": NASTY}, "reason": NASTY,
    }  # fmt: skip
    for kind in ("sme", "rai", "approver", "break_glass"):
        data = forms.render_sign_off(kind, summary)
        pages = {k: v for k, v in data.items() if k.endswith("_html")}
        assert pages and not any("<img" in page for page in pages.values())
        assert "&lt;img" in "".join(pages.values())


COMPLETE: dict[Kind, dict[str, Any]] = {
    "rows": fix("new"),
    "adjudication": REJECT,
    "preference": {"preference": "a_clear"},
    "sme": {"decision": "approve", "checks": ["rows_reviewed"], "comment": "fine"},
    "rai": {
        "decision": "approve_with_conditions",
        "checks": ["licence_ok"],
        "conditions": "c",
        "comment": "x",
    },
    "approver": {"decision": "reject", "risk": "high", "comment": "no"},
    "break_glass": {"decision": "changes", "comment": "next time ask"},
}


@pytest.mark.parametrize("kind", COMPLETE)
def test_a_form_says_what_an_answer_lacks(kind: Kind) -> None:
    whole = COMPLETE[kind]
    assert forms.problems_of(kind, whole) == []
    for name in whole:
        assert forms.problems_of(kind, {k: v for k, v in whole.items() if k != name}), f"without {name}"
        assert forms.problems_of(kind, {**whole, name: " "}), f"with a blank {name}"
    coded = next(n for n in ("verdict", "preference", "decision") if n in whole)
    assert forms.problems_of(kind, {**whole, coded: "approve_limited"}), "a code that is none of ours"
    assert forms.problems_of(kind, {**whole, coded: ["approve", "reject"]}), "two decisions at once"
    assert forms.problems_of(kind, {})


@pytest.mark.parametrize("kind", COMPLETE)
def test_forms_show_what_is_rendered_and_ask_what_is_checked(kind: Kind, tmp_path: Path) -> None:
    import re
    from xml.etree import ElementTree

    tree = ElementTree.fromstring(forms.form(kind))
    wanted = {v[1:] for e in tree.iter() for v in e.attrib.values() if re.fullmatch(r"\$\w+", v)}
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    row = {"record_id": "0" * 64, "content_id": "c", "messages": turns, "extra": {"rejected": "b"}}
    if kind in ("rows", "adjudication"):
        data = {**forms.row_data(row, {}, "s"), **({"said_html": ""} if kind == "adjudication" else {})}
    elif kind == "preference":
        data = forms.preference_data(row, {}, "s", "0")
    else:
        data = forms.render_sign_off(kind, {})
    assert wanted <= set(data), "a task lacks what its form shows"
    choices = {c.attrib["name"]: {x.attrib["alias"] for x in c} for c in tree.iter("Choices")}
    codes = {
        "verdict": forms.WORDS,
        "reason": forms.REASONS,
        "preference": forms.PREFERENCES,
        "decision": forms.DECISIONS,
        "risk": forms.RISKS,
        "checks": forms.CHECKS.get(kind, ()),
    }
    assert all(aliases == set(codes[name]) for name, aliases in choices.items())
    assert not any(x.attrib.get("selected") for x in tree.iter("Choice")), "no verdict is filled in"


# -- the same, in Label Studio ---------------------------------------------------------------------

SAM, SARA = "sam.expert@example.com", "sara.expert@example.com"


def test_a_review_in_label_studio(tmp_path: Path, home: Path, label_studio: Studio) -> None:
    """Bulk out, two people, a forged answer, one who decides, an edit after closing, a deleted task."""
    world = World(tmp_path, ROWS[:6], per_task=2, smes=[SAM, SARA], rai=["rita.responsible@example.com"])
    tool = connect(label_studio.settings(home), world.ledger)
    assert tool is not None
    review = replace(world.review, desk=replace(world.desk, labelling=tool))
    opened = review.open(world.make(), world.inputs())
    state = round_log.states(world.ledger, "p")[0]
    kept, tasks = round_log.load(world.store, state.entry.body["artifact"])
    assert len(kept.title) <= 41 and label_studio.projects(kept.title), "it is found by its title"
    place, (sam, sara) = state.opened.place, (label_studio.user(SAM), label_studio.user(SARA))
    torn, fixed = tasks[0], tasks[1]
    corrected = {"verdict": "fix", "corrected": "The corrected answer.", "reason": ["factually_wrong"]}
    for person in (sam, sara):
        for task in tasks[1:]:
            person.annotate(place, task.key, corrected if task is fixed else {"verdict": "approve"})
    sam.annotate(place, torn.key, {"verdict": "approve"})
    sam.annotate(place, torn.key, {"verdict": "approve"}, forged_as=sara)
    waits = review.close_if_complete()
    assert waits and (waits.state, waits.answered) == ("open", 5) and waits.round == opened.round
    (refused,) = world.ledger.entries("answer_refused")
    assert "in the name of" in refused.body["reason"]

    said = sara.annotate(place, torn.key, {"verdict": "reject", "reason": ["unsafe"]})
    undecided = review.close_if_complete()
    assert undecided and (undecided.state, undecided.who) == (
        "adjudicating",
        ["rita.responsible@example.com"],
    )
    second = round_log.states(world.ledger, "p", ("adjudication",))[0]
    rita = label_studio.user("rita.responsible@example.com")
    rita.annotate(second.opened.place, torn.key, {"verdict": "reject", "reason": ["unsafe"]})
    closed = review.close_if_complete()
    assert closed and closed.state == "closed" and closed.counts["adjudicated"] == 1
    texts = world.texts(world.make())
    assert len(texts) == 5 and "The corrected answer." in texts.values()
    assert label_studio.projects(f"[closed] {kept.title}") and review.reopened() == []

    sara.edit(place, said, {"verdict": "approve"})
    sara.delete_task(place, fixed.key)
    (entry,) = review.reopened()
    assert entry.body["records"] == {torn.key: "edited", fixed.key: "deleted"}
    assert not label_studio.projects(f"[closed] {kept.title}"), "it is open to people again"
    for person in (sam, sara):
        person.annotate(place, fixed.key, corrected)
    again = review.close_if_complete()
    assert again and again.state == "closed" and "adjudicated" not in again.counts
    assert len(world.texts(world.make())) == 6


# -- verdicts on what a verdict made ---------------------------------------------------------------


def test_a_word_on_a_correction_never_undoes_it(world: World) -> None:
    """Of a corrected row: approve keeps the correction, fix goes on from it, reject ends it."""
    asked = [ROWS[i][0] for i in range(4)]
    world.answer(world.open().round, ANN, {q: fix(f"Corrected {q}") for q in asked})
    world.close()
    for said, expected in ((APPROVE, "Corrected"), (fix("Again."), "Again."), (REJECT, None)):
        made = world.make()
        row = next(r for r in view.rows(made, limit=100) if r["prompt"] == asked[0])
        given = {
            **{"record_id": row["record_id"], "content_id": row["content_id"]},
            **{"word": said["verdict"], "text": said.get("corrected", "")},
        }
        body = {k: v for k, v in given.items() if k != "record_id"}
        world.ledger.append("verdict", row["record_id"], body, project="p", actor=ANN)
        texts = world.texts(world.make())
        assert (texts.get(asked[0]) or "").startswith(expected or "") and (asked[0] in texts) == bool(
            expected
        )
        assert all(texts[q] == f"Corrected {q}" for q in asked[1:])


def test_swapped_preferences_change_places(tmp_path: Path) -> None:
    pairs = [{"prompt": f"Ask {i}?", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(9)]
    world = World(tmp_path, pairs)
    opened = world.open()
    tasks = world.tasks(opened.round)
    for task in tasks:
        wants = "bad" if task is tasks[0] else "good"
        said = "a_clear" if task.data["answer_a"].startswith(wants) else "b_clear"
        world.inbox.answer(opened.round, task.key, {"preference": said}, by=ANN)
    assert world.close().counts["fix"] == 1
    rows = {r["record_id"]: (r["answer"], r["extra"]["rejected"]) for r in view.rows(world.make(), limit=100)}
    swapped = rows.pop(tasks[0].key)
    assert swapped[0].startswith("bad") and swapped[1].startswith("good")
    assert all(a.startswith("good") and b.startswith("bad") for a, b in rows.values())
