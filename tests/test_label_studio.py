"""Label Studio for real: rounds carried out and answers brought back, forging, faults, accounts."""

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import IO

import httpx
import postgres
import psutil
import pytest
from conftest import ROOT, free_ports
from label_studio import Person, Studio

from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.review.rounds import Answer, Opened, Round, Task
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import digest_of
from resources.label_studio import connect, installation, people, private, server
from resources.label_studio.client import TITLE, LabelStudio

SAM, SARA, RITA = "sam.expert@example.com", "sara.expert@example.com", "rita.responsible@example.com"
FORM = """<View>
  <Text name="completion" value="$completion"/>
  <HyperText name="chat" value="$chat_html"/>
  <Choices name="verdict" toName="completion" choice="single-radio" required="true">
    <Choice value="Approve as is" alias="approve"/><Choice value="Reject" alias="reject"/>
  </Choices>
  <Choices name="reason" toName="completion" choice="multiple">
    <Choice value="Unsafe" alias="unsafe"/><Choice value="Personal data" alias="pii"/>
  </Choices>
  <TextArea name="comment" toName="completion" maxSubmissions="1" editable="true"/>
</View>
"""
APPROVE: dict[str, str | list[str]] = {"verdict": "approve"}


def tasks(count: int = 3) -> list[Task]:
    """Texts that a tool might be tempted to resolve, unescape or translate."""
    texts = ["s3://bucket/key", "https://example.com/a.png {{x}}", "Grüße \u2028 \U0001f600 <b>&amp;</b>"]
    return [
        Task(f"key{i}", {"completion": f"{texts[i % 3]} {i}", "chat_html": f"<p>{i}</p>"})
        for i in range(count)
    ]


def asked(title: str = "", **more: object) -> Round:
    name = uuid.uuid4().hex[:8]
    told = {"who": [SAM, SARA], "instruction": "Look well.", "form": FORM, **more}
    return Round(f"r{name}", "codes", "rows", "d" * 64, title or f"codes rows {name}", **told)  # type: ignore[arg-type]


@pytest.fixture
def tool(label_studio: Studio, home: Path) -> LabelStudio:
    """The client, with a home and a ledger of this test alone."""
    return client(label_studio, home)


def client(studio: Studio, home: Path, **more: object) -> LabelStudio:
    settings = studio.settings(home, **more)
    found = connect(settings, Ledger(settings.ledger, settings.home))
    assert found
    return found


def only(found: list[Answer]) -> Answer:
    (answer,) = found
    return answer


# -- rounds --------------------------------------------------------------------------------------


def test_a_round_opened_twice_is_one_also_after_a_crash_half_way(
    tool: LabelStudio, label_studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    question, questions = asked(), tasks(30)
    monkeypatch.setattr("resources.label_studio.client._AT_ONCE", 10)
    take, taken = tool._import, []

    def dies(place: int, some: list[Task]) -> None:
        take(place, some)
        taken.append(some)
        if len(taken) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(tool, "_import", dies)
    with pytest.raises(KeyboardInterrupt):
        tool.open(question, questions)
    monkeypatch.setattr(tool, "_import", take)
    opened = tool.open(question, questions)
    assert tool.open(question, iter(questions)) == opened
    assert len(label_studio.projects(question.title)) == 1
    found = {t["data"]["ftaas_key"]: t["data"] for t in label_studio.tasks(opened.place)}
    assert len(label_studio.tasks(opened.place)) == len(found) == 30
    for task in questions:
        assert digest_of({k: v for k, v in found[task.key].items() if k != "ftaas_key"}) == task.sha256


def test_a_project_of_that_title_that_somebody_else_made_is_not_taken(
    tool: LabelStudio, label_studio: Studio
) -> None:
    question = asked()
    trap = {"title": question.title, "label_config": FORM.replace('alias="reject"', 'alias="approve"')}
    theirs = label_studio.user(SARA).ask("POST", "/api/projects/", json=trap)
    assert tool.open(question, tasks()).place != str(theirs["id"])


def test_answers_say_who_what_and_when(tool: LabelStudio, label_studio: Studio) -> None:
    opened = tool.open(asked(per_task=2), tasks())
    before = tool.states([opened])
    sam, sara = label_studio.user(SAM), label_studio.user(SARA)
    sam.annotate(opened.place, "key0", {"verdict": "reject", "reason": ["unsafe", "pii"], "comment": "Nö."})
    sara.annotate(opened.place, "key0", APPROVE)
    sara.skip(opened.place, "key1")
    found = {(a.key, a.by): a for a in tool.answers(opened)}
    assert set(found) == {("key0", sam.id), ("key0", sara.id), ("key1", sara.id)}
    said = found["key0", sam.id]
    assert said.result == {"verdict": "reject", "reason": ["unsafe", "pii"], "comment": "Nö."}
    assert said.last_by == sam.id and not said.skipped and said.data_sha256 == tasks()[0].sha256
    assert found["key1", sara.id].skipped
    assert said.updated_at.startswith("20") and said.updated_at.endswith("Z")
    (after,) = tool.states([opened])
    assert after.exists and after.answered == 2 and after.mark != before[0].mark
    sara.delete(found["key1", sara.id].annotation)
    assert tool.states([opened])[0].mark != after.mark


def test_a_closed_round_keeps_its_answers_and_opens_again(tool: LabelStudio, label_studio: Studio) -> None:
    question = asked("A title that says at length what is asked, of whom, and about which version")
    opened = tool.open(question, tasks())
    label_studio.user(SAM).annotate(opened.place, "key0", APPROVE)
    tool.close(opened)
    tool.close(opened)
    (project,) = label_studio.projects(question.id)
    assert project["title"].startswith("[closed] A title that says") and len(project["title"]) <= 50
    assert only(tool.answers(opened)).result == APPROVE
    assert tool.open(question, tasks()) == opened
    (project,) = label_studio.projects(question.id)
    assert len(project["title"]) <= TITLE and not project["title"].startswith("[closed]")


# -- forging: what stack.md lists, as the client shows it -----------------------------------------


def test_what_is_forged_shows(tool: LabelStudio, label_studio: Studio) -> None:
    opened = tool.open(asked(), tasks())
    sam, sara = label_studio.user(SAM), label_studio.user(SARA)
    place = opened.place
    sara.annotate(place, "key0", APPROVE, forged_as=sam)
    forged = only(tool.answers(opened))
    assert (forged.by, forged.last_by) == (sam.id, sara.id)
    honest = sam.annotate(place, "key1", {"verdict": "reject"})
    sara.edit(place, honest, APPROVE)
    edited = next(a for a in tool.answers(opened) if a.annotation == honest)
    assert (edited.by, edited.last_by, edited.result) == (sam.id, sara.id, APPROVE)
    sara.import_answer(place, "key2", APPROVE, forged_as=sam)
    imported = next(a for a in tool.answers(opened) if a.key == "key2")
    assert imported.last_by is None


def test_a_changed_task_has_another_digest(tool: LabelStudio, label_studio: Studio) -> None:
    opened, (first, second, third) = tool.open(asked(), tasks()), tasks()
    sam, sara = label_studio.user(SAM), label_studio.user(SARA)
    for task in (first, second, third):
        sam.annotate(opened.place, task.key, APPROVE)
    sara.change_task(opened.place, "key0", completion="something harmless")
    sara.change_task(opened.place, "key1", more="a field that was never issued")
    shown = {a.key: a.data_sha256 for a in tool.answers(opened)}
    assert shown["key0"] != first.sha256 and shown["key1"] != second.sha256 and shown["key2"] == third.sha256


def test_a_form_changed_after_the_round_was_opened_is_found_out(
    tool: LabelStudio, label_studio: Studio, home: Path
) -> None:
    question = asked()
    opened = tool.open(question, tasks())
    place = {"server": opened.server, "place": opened.place, "link": opened.link}
    body = {"round": question.id, "opened": place, "form": hashlib.sha256(FORM.encode()).hexdigest()}
    Ledger(Settings(home=home).ledger, home).append(
        "round_opened", "d" * 64, body, project="codes", actor="x"
    )
    label_studio.user(SAM).annotate(opened.place, "key0", APPROVE)
    assert only(tool.answers(opened)).result == APPROVE
    label_studio.user(SARA).change_form(opened.place, lambda f: f.replace('value="Reject"', 'value="Fine"'))
    with pytest.raises(FtaasError, match="form of this round was changed"):
        tool.answers(opened)
    with pytest.raises(FtaasError, match="form of this round was changed"):
        tool.open(question, tasks())


def test_two_answers_of_one_person_are_both_shown(tool: LabelStudio, label_studio: Studio) -> None:
    opened = tool.open(asked(), tasks())
    sam = label_studio.user(SAM)
    sam.annotate(opened.place, "key0", APPROVE)
    sam.annotate(opened.place, "key0", {"verdict": "reject"})
    found = tool.answers(opened)
    assert [a.by for a in found] == [sam.id, sam.id] and len({a.sha256 for a in found}) == 2


# -- what goes missing, and who is not there -----------------------------------------------------


def test_deleted_tasks_and_projects_have_no_answers(tool: LabelStudio, label_studio: Studio) -> None:
    opened, gone = tool.open(asked(), tasks()), tool.open(asked(), tasks())
    sam = label_studio.user(SAM)
    sam.annotate(opened.place, "key0", APPROVE)
    sam.annotate(opened.place, "key1", APPROVE)
    sam.delete_task(opened.place, "key0")
    sam.delete_project(gone.place)
    assert [a.key for a in tool.answers(opened)] == ["key1"]
    assert [s.exists for s in tool.states([gone, opened])] == [False, True]
    assert tool.answers(gone) == [] and tool.form(gone) is None
    tool.close(gone)


def test_accounts_are_made_once_and_pinned_by_number(
    tool: LabelStudio, label_studio: Studio, home: Path
) -> None:
    ledger = Ledger(Settings(home=home).ledger, home)
    new = f"nora.{uuid.uuid4().hex[:6]}@example.com"
    for _ in range(2):
        assert people.provision(tool.api, ledger, [new.upper(), SAM], home) == []
    kept = private.passwords_file(home)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    password = private.read(kept)[tool.server][new]
    nora = Person(label_studio, new, password)
    assert label_studio.accounts()[new] == nora.id
    pinned = ledger.entries("person_pinned", subject=new)
    assert [e.body for e in pinned] == [{"server": tool.server, "user": nora.id}]
    assert tool.people()[nora.id] == new
    assert password not in str([e.body for e in ledger.entries()])


def test_an_account_that_others_made_is_not_trusted_until_adopted(
    tool: LabelStudio, label_studio: Studio, home: Path
) -> None:
    ledger = Ledger(Settings(home=home).ledger, home)
    email = f"eve.{uuid.uuid4().hex[:6]}@example.com"
    theirs = label_studio.user(email)
    (problem,) = people.provision(tool.api, ledger, [email], home)
    assert "did not make" in problem.what and theirs.id not in tool.people()
    with pytest.raises(FtaasError, match="did not make"):
        tool.open(asked(who=[email]), tasks())
    with pytest.raises(InputInvalid, match="reason"):
        people.adopt(tool.api, ledger, email, why=" ", actor="olga")
    people.adopt(tool.api, ledger, email, why="she showed it to me", actor="olga")
    assert tool.people()[theirs.id] == email
    label_studio.delete_account(email)
    again = label_studio.user(email)
    assert again.id != theirs.id and not {again.id, theirs.id} & set(tool.people())
    (problem,) = people.provision(tool.api, ledger, [email], home)
    assert "another account" in problem.what and len(ledger.entries("person_pinned", subject=email)) == 1
    rows = {r["email"]: r for r in people.people_table(tool.api, ledger, {email: ["codes: sme"]})}
    assert rows[email]["state"].startswith("now another account") and rows[email]["for"] == "codes: sme"


def test_the_platform_and_superusers_never_sign(label_studio: Studio, home: Path) -> None:
    # Where the database may be looked into: it alone says who is a superuser.
    ledger = Ledger(Settings(home=home).ledger, home)
    database = server.sqlite_url(label_studio.home)
    label_studio.settings(home)
    tool = LabelStudio(label_studio.url, label_studio.token, home=home, ledger=ledger, database=database)
    email = f"root.{uuid.uuid4().hex[:6]}@example.com"
    assert people.provision(tool.api, ledger, [email], home) == []
    user = label_studio.accounts()[email]
    service = label_studio.accounts()[server.SERVICE]
    pin = {"server": tool.server, "user": service}
    ledger.append("person_pinned", server.SERVICE, pin, project="", actor="x")
    assert user in tool.people() and service not in tool.people()
    label_studio.make_superuser(email)
    assert user not in tool.people()


# -- faults --------------------------------------------------------------------------------------


def test_a_wrong_token_says_so_and_shows_no_secret(label_studio: Studio, home: Path) -> None:
    token = "deadbeef" * 5
    tool = client(label_studio, home, label_studio_token=token)
    with pytest.raises(FtaasError, match="FTAAS_LABEL_STUDIO_TOKEN") as refused:
        tool.open(asked(), tasks())
    assert token not in str(refused.value) and "cookie" not in str(refused.value).lower()
    assert refused.value.__context__ is None
    with pytest.raises(InputInvalid, match="token is missing"):
        client(label_studio, home, label_studio_token="")


def test_a_server_that_stops_and_starts_again_has_the_same_rounds(
    tool: LabelStudio, label_studio: Studio, home: Path
) -> None:
    opened = tool.open(asked(), tasks())
    label_studio.user(SAM).annotate(opened.place, "key0", APPROVE)
    label_studio.stop()
    for ask in (lambda: tool.answers(opened), lambda: tool.states([opened]), tool.people):
        with pytest.raises(FtaasError, match="cannot be reached"):
            ask()
    label_studio.start()
    again = client(label_studio, home)
    assert again.server == tool.server and only(again.answers(opened)).result == APPROVE


@pytest.mark.parametrize("status", [409, 429, 500, 503])
def test_what_creates_is_asked_once_whatever_the_server_says(status: int, home: Path) -> None:
    with says(status) as (url, asked_for):
        tool = LabelStudio(url, "t" * 40, home=home, ledger=Ledger(Settings(home=home).ledger, home))
        with pytest.raises(FtaasError, match=f"status {status}") as failed:
            tool.api.call("open", lambda sdk, once: sdk.projects.create(title="abc", request_options=once))
        assert asked_for == ["POST /api/projects/"]
        assert "sessionid" not in str(failed.value)


def test_row_text_stays_out_of_errors(tool: LabelStudio) -> None:
    with pytest.raises(FtaasError) as refused:
        tool.open(asked(), [Task("k", {"completion": "MY ROW TEXT"})])  # the form wants chat_html too
    assert "status 400" in str(refused.value) and "ROW TEXT" not in str(refused.value)


def test_a_round_of_another_server_is_not_mistaken_for_ours(tool: LabelStudio) -> None:
    theirs = Opened("r1", "label-studio-000000000000", "1", "http://elsewhere/projects/1/data")
    for ask in (tool.answers, tool.close, lambda o: tool.states([o])):
        with pytest.raises(FtaasError, match="another Label Studio"):
            ask(theirs)


# -- our own server ------------------------------------------------------------------------------


def test_without_a_server_reviews_stay_in_the_inbox(home: Path) -> None:
    settings = Settings(home=home)
    ledger = Ledger(settings.ledger, home)
    assert connect(settings, ledger) is None
    note = {"url": "http://127.0.0.1:9", "token": "t", "pid": os.getpid(), "started": 1.0}
    private.write(home / "label_studio" / "server.json", note)  # its process is gone, the number is another's
    assert connect(settings, ledger) is None


def test_our_server_is_ours_alone(label_studio: Studio) -> None:
    folder = label_studio.home / "label_studio"
    for name in ("secrets.json", "server.json"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    note = server.running(label_studio.home)
    assert note and note.url == label_studio.url
    listening = [c for c in psutil.Process(note.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert [c.laddr.ip for c in listening] == ["127.0.0.1"]
    elsewhere = [
        c for c in psutil.Process(note.pid).net_connections() if c.raddr and c.raddr.ip != "127.0.0.1"
    ]
    assert elsewhere == []

    form = {"email": "mallory@example.com", "password": "long enough 123"}
    with httpx.Client(base_url=label_studio.url, headers={"Referer": label_studio.url}) as stranger:
        stranger.get("/user/signup/")
        form["csrfmiddlewaretoken"] = stranger.cookies["csrftoken"]
        assert stranger.post("/user/signup/", data=form).status_code == 403


def test_a_busy_port_is_an_error_not_the_next_port(label_studio: Studio, tmp_path: Path) -> None:
    busy = int(label_studio.url.rpartition(":")[2])
    with pytest.raises(InputInvalid, match="FTAAS_PORT_LABEL_STUDIO"):
        server.Server(Settings(home=tmp_path, port_label_studio=busy)).start(print)


STARTER = """
import sys, time
from pathlib import Path
from ftaas_pipelines.settings import Settings
from resources.label_studio.server import Server
server = Server(Settings(home=Path(sys.argv[1]), port_label_studio=int(sys.argv[2])))
server.start(print)
print(server.child.pid, flush=True)
time.sleep(600)
"""


def test_it_ends_with_whoever_started_it(label_studio: Studio, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    command = [sys.executable, "-c", STARTER, str(tmp_path), str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8") as starter:
        assert starter.stdout
        child = psutil.Process(int(starter.stdout.readline()))
        starter.kill()
    deadline = time.monotonic() + 60  # it looks once it has loaded
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "left behind"
        time.sleep(0.2)


@pytest.mark.slow
def test_it_keeps_its_data_in_postgresql(tmp_path: Path) -> None:
    binaries = postgres.binaries()
    if binaries is None or not installation.is_installed():
        if "FTAAS_CI" in os.environ:
            pytest.fail("PostgreSQL or Label Studio is not installed")
        pytest.skip("PostgreSQL or Label Studio is not installed")
    (port,) = free_ports(1)
    with postgres.server(binaries) as url:
        settings = Settings(home=tmp_path, port_label_studio=port, label_studio_database=url)
        running = server.Server(settings)
        try:
            running.start(print)
            running.wait(print)
            tool = connect(settings, Ledger(settings.ledger, tmp_path))
            assert tool
            opened = tool.open(asked(), tasks(20))
            assert tool.states([opened])[0].exists and len(tool.people()) == 2
            assert not (tmp_path / "label_studio" / "data" / "label_studio.sqlite3").exists()
        finally:
            running.stop()
    assert server.running(tmp_path) is None


@pytest.mark.slow
def test_make_dev_runs_it_beside_the_rest_and_ends_it(
    label_studio: Studio, home: Path, project_factory: Callable[..., Path]
) -> None:
    project_factory("codes")
    command = [sys.executable, "-m", "ftaas_pipelines.cli.main", "dev", "--json"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8") as dev:
        try:
            assert dev.stdout
            document = json.JSONDecoder().raw_decode(until_whole(dev.stdout))[0]
            family = psutil.Process(dev.pid).children(recursive=True)
        finally:
            dev.send_signal(signal.SIGINT)
    assert (
        document["addresses"]["Label Studio"] == f"http://127.0.0.1:{os.environ['FTAAS_PORT_LABEL_STUDIO']}"
    )
    (passwords,) = private.read(Path(document["log_ins"])).values()
    assert set(passwords) == {SAM, RITA, "alex.approver@example.com"}
    assert len(Ledger(Settings(home=home).ledger, home).entries("person_pinned", authentic=True)) == 3
    assert not psutil.wait_procs(family, timeout=30)[1] and not (home / "label_studio/server.json").exists()


def until_whole(stream: IO[str]) -> str:
    text = ""
    for line in stream:
        text += line
        if line.startswith("}"):
            break
    return text


@contextmanager
def says(status: int) -> Iterator[tuple[str, list[str]]]:
    """A server that answers everything with one status and a session cookie; yields what it was asked."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            seen.append(f"{self.command} {self.path}")
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Set-Cookie", "sessionid=secret")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}", seen
    finally:
        httpd.shutdown()
        httpd.server_close()
