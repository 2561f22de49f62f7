"""Label Studio as the labelling tool of review rounds: a project a round, a task a question.

A round is found again by its title and by who made it: anyone there may make a project of that title.
What people were shown is compared with what was issued whenever answers are read: the tasks by the
digest that every answer carries, the form here.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from ftaas_pipelines.errors import FtaasError, InputInvalid, Problem
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.review.rounds import Answer, Kind, Opened, Round, State, Task
from ftaas_pipelines.store import digest_of, hold
from resources.label_studio import people
from resources.label_studio.api import BULK_TIMEOUT_S, Api, LabelStudioError

T = TypeVar("T")
KEY = "ftaas_key"
"""Column of a task that says which question it is; everything else in its data is what people see."""
CLOSED = "[closed] "
TITLE = 50 - len(CLOSED)
"""Characters of a title: Label Studio takes 50, and a closed round's has the mark before it."""
_AT_ONCE = 1000  # tasks a request: what a crash half-way can leave to be asked for again
_PAGE = 100  # projects a page, at most
_ROOM = 100  # answers after which a question is put before nobody any more
_SHARED: tuple[Kind, ...] = ("rows", "preference", "adjudication")
_COUNTS = "id,task_number,total_annotations_number,skipped_annotations_number,num_tasks_with_annotations"


class LabelStudio:
    """Implements `review.rounds.Labelling`.

    Args:
        home: FTAAS_HOME: the lock of opening, and the passwords of the accounts that we make.
        ledger: where accounts are pinned.
        database: SQLAlchemy URL of the server's database where we may look into it: the only place that
            says who is a superuser.
    """

    def __init__(self, url: str, token: str, *, home: Path, ledger: Ledger, database: str = ""):
        self.api = Api(url, token)
        self._home, self._ledger, self._database = home, ledger, database

    @property
    def url(self) -> str:
        return self.api.url

    @property
    def server(self) -> str:
        return self.api.server

    # -- rounds ------------------------------------------------------------------------------

    def open(self, asked: Round, tasks: Iterable[Task]) -> Opened:
        """Put a round before its people: accounts where they lack one, the project, the missing tasks.

        Raises:
            FtaasError: out of reach; a form it does not take; a form changed there since; or fewer
                people with an account of their own than must answer each task.
        """
        unfit = self.provision(asked.who)
        if len(set(asked.who)) - len(unfit) < asked.per_task:
            raise FtaasError(unfit)
        # One at a time: two who look for the title and find none would both make it.
        with hold(self._home / "label_studio" / "opening.lock"):
            place = self._project(asked)
            there = self._keys(place)
            missing = (t for t in tasks if t.key not in there)
            for some in _batches(missing, _AT_ONCE):
                self._import(place, some)
        return Opened(asked.id, self.server, str(place), f"{self.url}/projects/{place}/data")

    def close(self, opened: Opened) -> None:
        project = self._get(opened)
        if project is None or project.title.startswith(CLOSED):
            return
        self._rename(project.id, CLOSED + project.title[:TITLE])

    def states(self, opened: Sequence[Opened]) -> list[State]:
        for one in opened:
            self._ours(one)
        found: dict[str, State] = {}
        for some in _batches((o.place for o in opened), _PAGE):
            page = self.api.call(
                "count answers",
                lambda sdk, once, some=some: sdk.projects.list_counts(
                    ids=",".join(some),
                    page_size=len(some),
                    include=_COUNTS,
                    request_options=once,
                ),
            )
            for c in page.results:
                counts = (
                    c.task_number,
                    c.total_annotations_number,
                    c.skipped_annotations_number,
                    c.num_tasks_with_annotations,
                )
                answered = int(c.total_annotations_number or 0)
                found[str(c.id)] = State(True, answered, "/".join(str(n or 0) for n in counts))
        return [found.get(o.place, State(False, 0, "")) for o in opened]

    def answers(self, opened: Opened) -> list[Answer]:
        """Every annotation of a round, skipped ones too; a round that is gone has none.

        Raises:
            FtaasError: out of reach, or the form is not the one that was issued.
        """
        project = self._get(opened)
        if project is None:
            return []
        self._same_form(opened, str(project.label_config or ""))
        return [*_answers(self._export(int(opened.place), everything=False))]

    def people(self) -> dict[str, str]:
        """Account id to e-mail: pinned, still a member, still of that e-mail, nobody's master key."""
        return people.who_may_sign(self.api, self._ledger, self._database)

    def provision(self, emails: Iterable[str]) -> list[Problem]:
        """See that these people have an account each; what is wrong comes back, one problem a person."""
        return people.provision(self.api, self._ledger, emails, self._home)

    def adopt(self, email: str, *, why: str, actor: str) -> str:
        """Trust the account that has this e-mail now; see `people.adopt`."""
        return people.adopt(self.api, self._ledger, email, why=why, actor=actor)

    def people_table(self, asked: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
        """A row a person; see `people.people_table`."""
        return people.people_table(self.api, self._ledger, asked, self._database)

    def form(self, opened: Opened) -> str | None:
        """The form as it is there now; None when the round is gone."""
        project = self._get(opened)
        return None if project is None else str(project.label_config or "")

    # -- inside ------------------------------------------------------------------------------

    def _project(self, asked: Round) -> int:
        title, form = _title(asked), asked.form.strip()
        for project in self._of_title(title):
            if str(project.label_config).strip() != form:
                raise FtaasError(
                    "the form of this round was changed in Label Studio",
                    f"{self.url}/projects/{project.id}",
                    do="find out who did; delete that project there, and run the same again to ask anew",
                )
            if project.title != title:
                self._rename(project.id, title)
            return project.id
        made = self.api.call(
            "open the round",
            lambda sdk, once: sdk.projects.create(
                title=title,
                description=asked.title,
                label_config=form,
                expert_instruction=asked.instruction,
                show_instruction=bool(asked.instruction),
                maximum_annotations=_room(asked),
                show_collab_predictions=False,
                request_options=once,
            ),
        )
        return made.id

    def _of_title(self, title: str) -> Iterator[Any]:
        """Our projects of this title, open or closed, oldest first: only the first is ever used."""
        found = self.api.call(
            "look for the round",
            lambda sdk, once: list(sdk.projects.list(title=title, page_size=_PAGE, request_options=once)),
        )
        for project in sorted(found, key=lambda p: p.id):
            if project.title in (title, CLOSED + title) and project.created_by.id == self.api.me.id:
                yield project

    def _keys(self, place: int) -> set[str]:
        (state,) = self.states([Opened("", self.server, str(place), "")])
        if state.mark.startswith("0/"):
            return set()
        return {str(task["data"].get(KEY)) for task in self._export(place, everything=True)}

    def _import(self, place: int, tasks: Sequence[Task]) -> None:
        request: list[dict[str, Any]] = []
        for task in tasks:
            if KEY in task.data:
                raise InputInvalid("is our own name", f"task {task.key}", KEY, "rename that field")
            request.append({"data": {**task.data, KEY: task.key}})
        self.api.call(
            "take the tasks",
            lambda sdk, once: sdk.projects.import_tasks(
                place,
                request=request,
                return_task_ids=False,
                request_options=once,
            ),
            timeout_s=BULK_TIMEOUT_S,
            shows_data=True,
        )

    def _export(self, place: int, *, everything: bool) -> list[dict[str, Any]]:
        """Tasks with their annotations: all of them, or those that somebody answered or skipped."""
        return self.api.call(
            "hand over answers",
            lambda sdk, once: json.loads(
                b"".join(
                    sdk.projects.exports.download_sync(
                        place,
                        export_type="JSON",
                        download_all_tasks=everything,
                        request_options=once,
                    )
                )
            ),
            timeout_s=BULK_TIMEOUT_S,
            shows_data=True,
        )

    def _get(self, opened: Opened) -> Any:
        self._ours(opened)
        try:
            return self.api.call(
                "show the round",
                lambda sdk, once: sdk.projects.get(int(opened.place), request_options=once),
            )
        except LabelStudioError as error:
            if error.status == 404:
                return None
            raise

    def _rename(self, place: int, title: str) -> None:
        self.api.call(
            "rename the round",
            lambda sdk, once: sdk.projects.update(place, title=title, request_options=once),
        )

    def _ours(self, opened: Opened) -> None:
        if opened.server != self.server:
            raise FtaasError(
                "this round was opened in another Label Studio",
                opened.link,
                f"{opened.server}, not {self.server}",
                "set FTAAS_LABEL_STUDIO_URL to that one, or restore its database",
            )

    def _same_form(self, opened: Opened, form: str) -> None:
        # Label Studio cuts white space at the ends; the ledger has the digest of the whole file.
        now = {_sha256(text) for text in (form, f"{form}\n", form.strip(), f"{form.strip()}\n")}
        for entry in self._ledger.entries("round_opened", authentic=True):
            place = entry.body.get("opened", {})
            if (place.get("server"), place.get("place")) != (opened.server, opened.place):
                continue
            if entry.body.get("form", "") not in now:
                raise FtaasError(
                    "the form of this round was changed in Label Studio: people may not mean what they chose",
                    opened.link,
                    do="find out who did; delete that project there, and have the round opened again",
                )


def _room(asked: Round) -> int:
    """How many answers Label Studio takes to a task before it shows it to nobody any more.

    People share the rows of a review. Where nothing is shared there is room for more than is asked for: an
    answer that does not count, a forged one say, must not take the question away from whoever was asked.
    """
    shared = asked.kind in _SHARED and len(asked.who) > asked.per_task
    return asked.per_task if shared else _ROOM


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def _title(asked: Round) -> str:
    if len(asked.title) <= TITLE:
        return asked.title
    return f"{asked.title[: TITLE - len(asked.id) - 1].rstrip()} {asked.id}"


def _answers(tasks: Iterable[Mapping[str, Any]]) -> Iterator[Answer]:
    for task in tasks:
        shown = {name: value for name, value in task["data"].items() if name != KEY}
        for a in task["annotations"]:
            yield Answer(
                key=str(task["data"].get(KEY, "")),
                data_sha256=digest_of(shown),
                annotation=str(a["id"]),
                by=_id(a["completed_by"]),
                last_by=_id(a["updated_by"]),
                skipped=bool(a["was_cancelled"]),
                result=_result(a["result"]),
                created_at=a["created_at"],
                updated_at=a["updated_at"],
            )


def _id(user: Any) -> str | None:
    return None if user is None else str(user["id"] if isinstance(user, dict) else user)


def _result(items: Any) -> dict[str, str | list[str]]:
    """Field to its text, or to a list where it holds several. Other kinds of field are none of ours."""
    found: dict[str, list[str]] = {}
    for item in items if isinstance(items, list) else []:
        value = item.get("value", {}) if isinstance(item, dict) else {}
        said = value.get(_HOLDS.get(str(item.get("type")), ""), []) if isinstance(value, dict) else []
        texts = said if isinstance(said, list) else [said]
        found.setdefault(str(item.get("from_name")), []).extend(str(t) for t in texts)
    return {name: texts[0] if len(texts) == 1 else texts for name, texts in found.items() if texts}


_HOLDS = {"choices": "choices", "textarea": "text", "rating": "rating"}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
