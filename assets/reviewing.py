"""The line's side of reviews: which labelling tool, questions carried out, answers brought in, read again.

The sensor `decisions` does this every few seconds where a daemon runs, `ftaas run` where none does. What
counts is decided in `ftaas_pipelines.review` and stands in the ledger.
"""

import contextlib
from collections.abc import Callable, Sequence

from assets.data_line import NotMade
from assets.line import Line
from ftaas_pipelines.errors import FtaasError, InputInvalid, Problem
from ftaas_pipelines.governance.requirement import Requirement
from ftaas_pipelines.review import round_log
from ftaas_pipelines.review.local_inbox import SERVER as INBOX
from ftaas_pipelines.review.local_inbox import LocalInbox
from ftaas_pipelines.review.round_log import Desk, RoundState
from ftaas_pipelines.review.rounds import Kind, Labelling
from ftaas_pipelines.review.rows.row_review import RowReview
from ftaas_pipelines.review.sign_offs import requests, sign_off_rounds
from ftaas_pipelines.store import digest_of
from resources import label_studio

ROWS: tuple[Kind, ...] = ("rows", "preference", "adjudication")
Marks = dict[str, str]
"""Round to what its tool said of it last: unchanged, its answers need not be read again."""


def tool(line: Line) -> Labelling | None:
    """Label Studio, where one is set or `make dev` runs one; None: the local inbox.

    Raises:
        InputInvalid: no Label Studio is set in the production profile, which has no inbox.
    """
    found = label_studio.connect(line.settings, line.ledger)
    if found is None and line.settings.profile == "production":
        raise InputInvalid(
            "the production profile has no local inbox, and no Label Studio is set",
            "FTAAS_LABEL_STUDIO_URL",
            do="set it and FTAAS_LABEL_STUDIO_TOKEN",
        )
    return found


def row_review(line: Line, labelling: Labelling | None) -> RowReview:
    """The row reviews of a project in a tool; None: in the local inbox."""
    inbox = LocalInbox(line.ledger, line.store, line.project.name, line.actor)
    return RowReview(Desk(line.ledger, line.store, labelling or inbox, line.actor), line.review_terms)


def put_before_people(line: Line, labelling: Labelling | None) -> None:
    """Carry open requests that the tool does not have yet out to it: also those asked before it was there.

    Raises:
        FtaasError: the tool is out of reach; or, once the others are out, what is wrong with some.
    """
    if labelling is None:
        return
    # Where a command talks to no Label Studio, its client is not loaded.
    from resources.label_studio.api import LabelStudioError

    rounds = round_log.states(line.ledger, line.project.name, sign_off_rounds.SIGN_OFFS)
    there = {r.about["request"] for r in rounds if (r.state, r.opened.server) == ("open", labelling.server)}
    problems: list[Problem] = []
    for review in requests.reviews(line.ledger, project=line.project.name):
        if review.request in there:
            continue
        try:
            sign_off_rounds.open_round(line.ledger, line.store, labelling, review, line.actor)
        except LabelStudioError:
            raise
        except FtaasError as error:  # the accounts of one role must not keep the others from being asked
            problems += error.problems
    if problems:
        raise FtaasError(problems)


def sync(
    line: Line, marks: Marks | None = None, sweep: bool = False, reachable: bool = True
) -> list[FtaasError]:
    """Carry questions out and bring answers in.

    Args:
        marks: brought up to date here; a round that still has its mark is passed over. None: all are read.
        sweep: read again also what was decided and closed, to find edits and deletions.
        reachable: False: Label Studio is known to be out of reach; only the inbox is looked at.

    Returns:
        What could not be done now, such as a tool out of reach. Nothing is lost: it is tried again.
    """
    try:
        labelling = tool(line)
    except FtaasError as error:
        return [error]
    known = None if sweep else marks
    steps: list[Callable[[], object]] = []
    if labelling is not None and reachable:
        where = (line.ledger, line.store, labelling, line.project, line.policy)
        steps.append(lambda: put_before_people(line, labelling))
        steps.append(lambda: sign_off_rounds.collect(*where, marks=known, actor=line.actor))
        if sweep:
            steps.append(lambda: _sweep_sign_offs(line, labelling))
        steps.append(lambda: _sync_rows(row_review(line, labelling), line, known, sweep))
    if labelling is None or (line.settings.profile == "local" and _in_inbox(line)):
        steps.append(lambda: _sync_rows(row_review(line, None), line, known, sweep))
    faults: dict[str, FtaasError] = {}
    for step in steps:  # each on its own: what is wrong with one must not keep the others back
        try:
            step()
        except FtaasError as error:
            faults.setdefault(str(error), error)
    return list(faults.values())


def glance(lines: Sequence[Line]) -> str:
    """A mark that stays the same while nothing happens in ledger and tool: one look for all projects.

    Raises:
        FtaasError: the tool is out of reach, so that this cannot be told.
    """
    if not lines:
        return ""
    ledger = lines[0].ledger
    labelling = tool(lines[0])
    if labelling is None:
        return digest_of([ledger.head])
    names = {line.project.name for line in lines}
    rounds = [r for r in round_log.states(ledger, None) if r.entry.project in names]
    mine = [r.opened for r in rounds if (r.state, r.opened.server) == ("open", labelling.server)]
    said = [[state.exists, state.mark] for state in labelling.states(mine)]
    return digest_of([ledger.head, labelling.server, said, sorted(labelling.people().items())])


def reread(line: Line, requirement: Requirement, asset: str) -> None:
    """Just before a gate: read again, where it was given, all that the gate will count.

    Raises:
        FtaasError: the tool is out of reach: nothing crosses on what cannot be read again.
    """
    labelling = tool(line)
    sign_off_rounds.reread(line.ledger, line.store, labelling, requirement, asset, line.actor)
    if line.review_terms.limit:
        _require_place(line, labelling, asset)
        row_review(line, labelling).reopened()


def _require_place(line: Line, labelling: Labelling | None, asset: str) -> None:
    """A row review that was held in another tool than the one at hand cannot be read again.

    Raises:
        FtaasError: so it is.
    """
    held = {r.opened.server for r in _row_rounds(line) if r.id == line.row_review.round}
    at_hand = labelling.server if labelling else INBOX
    if elsewhere := held - {at_hand, INBOX}:
        raise FtaasError(
            "its rows were reviewed in another labelling tool than the one at hand",
            f"{line.project.name}/{asset}",
            f"{at_hand}, not {', '.join(sorted(elsewhere))}",
            "start that Label Studio (`make dev`), or set FTAAS_LABEL_STUDIO_URL to it, then run again",
        )


def _sweep_sign_offs(line: Line, labelling: Labelling) -> None:
    """Read again what the current content and what serves rest on: also from rounds that are over."""
    for requirement, asset in _held(line):
        sign_off_rounds.reread(line.ledger, line.store, labelling, requirement, asset, line.actor)


def _held(line: Line) -> list[tuple[Requirement, str]]:
    held: list[tuple[Requirement, str]] = []
    environments = line.project.serving.environments
    with contextlib.suppress(NotMade):
        held.append((line.training_requirement(), "dataset_sign_off"))
        held += [(line.deployment_requirement(e), f"approval_{e}") for e in environments]
    for environment in environments:
        if serving := line.deployed(environment):
            release = line.store.get(serving.release)
            held += [(r, f"deployment_{environment}") for r in line.requirements_of(release, environment)]
    return list({requirement.terms: (requirement, asset) for requirement, asset in held}.values())


def _in_inbox(line: Line) -> bool:
    return any(r.opened.server == INBOX and r.state == "open" for r in _row_rounds(line))


def _row_rounds(line: Line) -> list[RoundState]:
    return round_log.states(line.ledger, line.project.name, ROWS)


def _sync_rows(review: RowReview, line: Line, marks: Marks | None, sweep: bool) -> None:
    labelling = review.desk.labelling
    if sweep:
        review.reopened()
    if marks is not None:
        for over in (r.id for r in _row_rounds(line) if r.state != "open"):
            marks.pop(over, None)
    mine = [r for r in _row_rounds(line) if (r.state, r.opened.server) == ("open", labelling.server)]
    states = labelling.states([r.opened for r in mine])
    now = {r.id: s.mark if s.exists else "gone" for r, s in zip(mine, states, strict=True)}
    if not mine or (marks is not None and all(marks.get(i) == mark for i, mark in now.items())):
        return
    if "gone" in now.values():
        review.open_anew()
    review.close_if_complete()
    if marks is not None:
        marks.update(now)
