"""A real Label Studio for the tests, one a session, and people who act in it as people do.

    def test_…(label_studio: Studio, home: Path):
        label_studio.attach(home)                          # settings and passwords of this test's home
        …
        sam = label_studio.user("sam.expert@example.com")
        sam.annotate(opened.place, key, {"decision": "approve", "comment": "looked"})

Without `.venv-label-studio` (`make label-studio`) these tests skip; where FTAAS_CI is set they fail.
"""

import os
import shutil
import sqlite3
import weakref
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest

from ftaas_pipelines.settings import Settings
from resources.label_studio import installation, people, private
from resources.label_studio.api import Api
from resources.label_studio.client import KEY
from resources.label_studio.server import Server

PEOPLE = (
    "sam.expert@example.com",
    "sara.expert@example.com",
    "rita.responsible@example.com",
    "alex.approver@example.com",
    "owen.owner@example.com",
)
Result = dict[str, str | list[str]]


@dataclass
class Person:
    """Somebody with a browser's session (CSRF and all). Places are project ids, as in `Opened.place`."""

    studio: "Studio"
    email: str
    password: str
    sessions: dict[str, httpx.Client] = field(default_factory=dict)

    @property
    def session(self) -> httpx.Client:
        url = self.studio.url
        if url not in self.sessions:
            session = httpx.Client(base_url=url, timeout=60, headers={"Referer": f"{url}/"})
            weakref.finalize(self, session.close)
            session.get("/user/login/")
            form = {"email": self.email, "password": self.password}
            form["csrfmiddlewaretoken"] = session.cookies["csrftoken"]
            assert session.post("/user/login/", data=form).status_code == 302, f"{self.email} cannot log in"
            session.headers["X-CSRFToken"] = session.cookies["csrftoken"]
            self.sessions[url] = session
        return self.sessions[url]

    def ask(self, method: str, path: str, **kwargs: Any) -> Any:
        answer = self.session.request(method, path, **kwargs)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text[:300]}"
        return answer.json() if answer.content else None

    @cached_property
    def id(self) -> str:
        return str(self.ask("GET", "/api/current-user/whoami")["id"])

    def annotate(self, place: str, key: str, result: Result, forged_as: "Person | None" = None) -> str:
        """Answer a task; returns the annotation's id. `forged_as` writes it in another's name."""
        body = {"result": self.studio.result(place, result)}
        if forged_as:
            body["completed_by"] = int(forged_as.id)
        return self._answer(place, key, body)

    def skip(self, place: str, key: str) -> str:
        body = {"result": [], "was_cancelled": True}
        return self._answer(place, key, body)

    def _answer(self, place: str, key: str, body: dict[str, Any]) -> str:
        task = self.studio.task(place, key)
        return str(self.ask("POST", f"/api/tasks/{task}/annotations/", json=body)["id"])

    def edit(self, place: str, annotation: str, result: Result, forged_as: "Person | None" = None) -> None:
        body = {"result": self.studio.result(place, result)}
        if forged_as:
            body["completed_by"] = int(forged_as.id)
        self.ask("PATCH", f"/api/annotations/{annotation}/", json=body)

    def delete(self, annotation: str) -> None:
        self.ask("DELETE", f"/api/annotations/{annotation}/")

    def import_answer(self, place: str, key: str, result: Result, forged_as: "Person") -> None:
        """A copy of the task, imported with an answer in it that another is said to have given."""
        data = self.studio.data(place, key)
        annotation = {"result": self.studio.result(place, result), "completed_by": int(forged_as.id)}
        self.ask("POST", f"/api/projects/{place}/import", json=[{"data": data, "annotations": [annotation]}])

    def change_task(self, place: str, key: str, **data: Any) -> None:
        """Show something else in a task."""
        changed = {**self.studio.data(place, key), **data}
        self.ask("PATCH", f"/api/tasks/{self.studio.task(place, key)}/", json={"data": changed})

    def change_form(self, place: str, change: Callable[[str], str]) -> None:
        form = self.ask("GET", f"/api/projects/{place}/")["label_config"]
        self.ask("PATCH", f"/api/projects/{place}/", json={"label_config": change(form)})

    def delete_task(self, place: str, key: str) -> None:
        self.ask("DELETE", f"/api/tasks/{self.studio.task(place, key)}/")

    def delete_project(self, place: str) -> None:
        self.ask("DELETE", f"/api/projects/{place}/")


class Studio:
    """The running server. `url` and `token` are the platform's; `home` is the server's own."""

    def __init__(self, home: Path):
        from conftest import free_ports  # conftest imports the fixtures from here

        (port,) = free_ports(1)
        self.home = home
        self.server = Server(Settings(home=home, port_label_studio=port))
        self._users: dict[str, Person] = {}

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def token(self) -> str:
        return self.server.token

    @property
    def variables(self) -> dict[str, str]:
        """FTAAS_LABEL_STUDIO_URL and _TOKEN, for the environment of a command line."""
        return self.server.variables

    def start(self) -> None:
        self.server.start(print)
        self.server.wait(print)

    def stop(self) -> None:
        self.server.stop()

    @cached_property
    def name(self) -> str:
        return Api(self.url, self.token).server

    def settings(self, home: Path, **more: Any) -> Settings:
        """Settings of a test whose reviews take place here; `home` is prepared as by `attach`."""
        self._keep_passwords(home)
        own = Settings(home=home, label_studio_url=self.url, label_studio_token=self.token, actor=PEOPLE[-1])
        return replace(own, **more)

    def attach(self, home: Path) -> dict[str, str]:
        """Make this the Label Studio of a test's home, by the environment; returns the variables."""
        self._keep_passwords(home)
        os.environ.update(self.variables)  # `home` of conftest unsets FTAAS_… before each test
        return self.variables

    def _keep_passwords(self, home: Path) -> None:
        # Each test has a home of its own, the accounts are the session's: each home knows them as its own.
        passwords = {email: _password(email) for email in (*PEOPLE, *self._users)}
        private.write(private.passwords_file(home), {self.name: passwords})

    def user(self, email: str) -> Person:
        """The person with this e-mail; their account is made where there is none."""
        if email not in self._users:
            self._users[email] = Person(self, email, _password(email))
            if email not in self.accounts():
                people.sign_up(Api(self.url, self.token), email, _password(email))
        return self._users[email]

    # -- as the platform's account, which can do everything -----------------------------------

    def ask(self, method: str, path: str, **kwargs: Any) -> Any:
        headers = {"Authorization": f"Token {self.token}"}
        answer = httpx.request(method, self.url + path, headers=headers, timeout=60, **kwargs)
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text[:300]}"
        return answer.json() if answer.content else None

    def accounts(self) -> dict[str, str]:
        return {u["email"]: str(u["id"]) for u in self.ask("GET", "/api/users/")}

    def delete_account(self, email: str) -> None:
        self.ask("DELETE", f"/api/users/{self.accounts()[email]}/")
        self._users.pop(email, None)

    def make_superuser(self, email: str) -> None:
        """What only somebody with the database can do."""
        with sqlite3.connect(self.home / "label_studio" / "data" / "label_studio.sqlite3", timeout=30) as db:
            db.execute("UPDATE htx_user SET is_superuser = 1 WHERE email = ?", (email,))

    def projects(self, title: str = "") -> list[dict[str, Any]]:
        return self.ask("GET", "/api/projects/", params={"title": title, "page_size": 100})["results"]

    def tasks(self, place: str) -> list[dict[str, Any]]:
        """Every task with its data and annotations."""
        return self.ask("GET", f"/api/projects/{place}/export", params={"download_all_tasks": "true"})

    def task(self, place: str, key: str) -> int:
        return next(t["id"] for t in self.tasks(place) if t["data"].get(KEY) == key)

    def data(self, place: str, key: str) -> dict[str, Any]:
        return next(t["data"] for t in self.tasks(place) if t["data"].get(KEY) == key)

    def result(self, place: str, result: Result) -> list[dict[str, Any]]:
        """What the form would send for these fields."""
        form = ET.fromstring(self.ask("GET", f"/api/projects/{place}/")["label_config"])
        tags = {tag.get("name"): tag for tag in form.iter() if tag.get("toName")}
        items: list[dict[str, Any]] = []
        for name, said in result.items():
            kind, holds = ("textarea", "text") if tags[name].tag == "TextArea" else ("choices", "choices")
            value = {holds: [said] if isinstance(said, str) else said}
            asked = {"from_name": name, "to_name": tags[name].get("toName")}
            items.append({**asked, "type": kind, "value": value})
        return items


def _password(email: str) -> str:
    return f"Tests-only-{email}"


@pytest.fixture(scope="session")
def label_studio_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    if not installation.is_installed():
        why = "Label Studio is not installed: `make label-studio`"
        if "FTAAS_CI" in os.environ:
            pytest.fail(why)
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("label-studio")
    studio = Studio(folder)
    try:
        studio.start()
        yield studio
    finally:
        studio.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def label_studio(label_studio_server: Studio) -> Studio:
    """The session's Label Studio, running: a test that stopped it has it started again."""
    if label_studio_server.server.child is None or label_studio_server.server.child.poll() is not None:
        label_studio_server.start()
    return label_studio_server
