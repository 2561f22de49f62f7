"""`ftaas review`: who is asked for what, and the local inbox to answer in."""

import re
from dataclasses import asdict
from html import unescape
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import output
from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.governance.ledger import Ledger, open_ledger
from ftaas_pipelines.governance.requirement import policy_version
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.projects.project import Project
from ftaas_pipelines.review import round_log
from ftaas_pipelines.review.identity import may_answer_as
from ftaas_pipelines.review.local_inbox import SERVER, LocalInbox
from ftaas_pipelines.review.rounds import Kind, Opened, Round, Task
from ftaas_pipelines.review.sign_offs import requests
from ftaas_pipelines.review.sign_offs.requests import Review
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import Store, short

app = typer.Typer(no_args_is_help=True)
Identifier = Annotated[
    str, typer.Argument(metavar="ID", help="Of the review, as `ftaas review list` shows it.")
]
_ROWS: dict[Kind, str] = {"rows": "row review", "adjudication": "adjudication", "preference": "ranking"}
As = Annotated[
    str, typer.Option("--as", help="The e-mail to answer as; your own (FTAAS_ACTOR), unless told.")
]


def _ledger(settings: Settings) -> Ledger:
    return open_ledger(settings, policy_version(load_policy(settings.policy)))


@app.command("list")
def list_(
    role: Annotated[str | None, typer.Option(help="sme, rai, approver or break_glass.")] = None,
    project: Annotated[str | None, typer.Option(help="Only this project.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Decided and superseded ones too.")] = False,
    as_json: output.Json = False,
) -> None:
    """The reviews that wait for somebody."""
    ledger = _ledger(configuration.load())
    found = requests.reviews(ledger, project=project, role=role, only_open=not everything)
    rounds = _row_rounds(ledger, project, everything) if role in (None, "sme") else []
    table = [[r.id, r.state, r.title, " or ".join(r.who), r.since, r.link] for r in found]
    table += [[r["id"][:12], *(r[k] for k in ("state", "title", "who", "since", "link"))] for r in rounds]

    def show(screen: Console) -> None:
        if table:
            screen.print(output.table(["id", "state", "what", "who may answer", "since", "where"], table))
        else:
            screen.print("nothing waits for a decision")

    output.emit(as_json, {"reviews": [_document(r) for r in found], "rounds": rounds}, show)


@app.command()
def show(identifier: Identifier, as_json: output.Json = False) -> None:
    """What a reviewer should see before deciding, who is asked since when, and where to answer."""
    settings = configuration.load()
    ledger = _ledger(settings)
    review = requests.find(ledger, identifier)
    progress = _progress(settings, ledger, review)

    def render(screen: Console) -> None:
        screen.print(Text(review.title, style="bold"))
        asked = f"{review.since}" + (f" (asked {review.times} times)" if review.times > 1 else "")
        pairs: list[tuple[str, Any]] = [
            ("state", review.state),
            ("digest", review.digest),
            ("who may decide", f"{' or '.join(review.who)} ({review.needed} needed)"),
            ("since", asked),
            ("where", review.link),
            ("answers there", progress),
        ]
        pairs += [(key, _brief(value)) for key, value in review.summary.items()]
        screen.print(output.facts((k, v) for k, v in pairs if v not in (None, "", {})))
        for d in review.decisions:
            withdrawn = " (withdrawn)" if d["revoked"] else ""
            screen.print(Text(f"{d['at']} {d['by']}: {d['decision']}: {d['comment']}{withdrawn}"))
        noun = "model show" if review.environment else "data rows"
        screen.print(Text(f"look closer: ftaas {noun} {short(review.digest)}", style="dim"))
        if settings.profile != "production":
            answer = f"ftaas review decide {review.id} --decision approve --comment … --as EMAIL"
            screen.print(Text(f"answer: {answer}", style="dim"))

    output.emit(as_json, {**_document(review), "answers": progress}, render)


@app.command()
def decide(
    identifier: Identifier,
    decision: Annotated[str, typer.Option(help="approve, approve_with_conditions, changes or reject.")],
    comment: Annotated[str, typer.Option(help="What was checked, and why this decision.")],
    by: As = "",
    conditions: Annotated[str, typer.Option(help="For approve_with_conditions.")] = "",
    risk: Annotated[str, typer.Option(help="low, medium or high.")] = "",
    as_json: output.Json = False,
) -> None:
    """Answer a review; the decision goes into the ledger. Not in the production profile."""
    settings = configuration.load()
    ledger = _ledger(settings)
    by = by or settings.who
    review = requests.find(ledger, identifier)
    may_answer_as(settings, _project(settings, review.project), by)
    entry = requests.decide(
        ledger,
        identifier,
        decision=decision,
        comment=comment,
        by=by,
        conditions=conditions,
        risk=risk,
        policy=policy_version(load_policy(settings.policy)),
    )
    document = {"review": identifier, "decision": decision, "by": by, "entry": entry.seq, "hash": entry.hash}
    output.emit(
        as_json,
        document,
        lambda screen: screen.print(
            f"{decision} by {by} on {short(entry.subject)}: ledger entry {entry.seq}"
        ),
    )


@app.command()
def rows(identifier: Identifier, as_json: output.Json = False) -> None:
    """The rows of a row review in the local inbox, each with its number and record."""
    settings = configuration.load()
    asked, tasks, answered = _inbox_round(settings, identifier)
    found: list[dict[str, Any]] = [
        {"number": i, "record": t.key, "answered_by": answered.get(t.key, []), "shows": t.data}
        for i, t in enumerate(tasks, start=1)
    ]

    def render(screen: Console) -> None:
        screen.print(Text(asked.title, style="bold"))
        cells = [
            [row["number"], row["record"][:12], " and ".join(row["answered_by"]), _plain(row["shows"])]
            for row in found
        ]
        screen.print(output.table(["no", "record", "answered by", "what it says"], cells))
        verdict = f"ftaas review verdict {identifier[:12]} RECORD --word approve|fix|reject --as EMAIL"
        screen.print(Text(f"answer each: {verdict}", style="dim"))

    document = {"round": asked.id, "title": asked.title, "who": asked.who, "rows": found}
    output.emit(as_json, document, render)


@app.command()
def verdict(
    identifier: Identifier,
    record: Annotated[str, typer.Argument(help="The record's id or its beginning, or its number.")],
    word: Annotated[str, typer.Option(help="approve, fix or reject; of a pair, which answer is better.")],
    text: Annotated[str, typer.Option(help="With fix: the whole corrected text.")] = "",
    reason: Annotated[list[str] | None, typer.Option(help="With fix and reject; may be repeated.")] = None,
    comment: Annotated[str, typer.Option(help="A note, if there is something to say.")] = "",
    by: As = "",
    as_json: output.Json = False,
) -> None:
    """Say one word on one row in the local inbox. Not in the production profile."""
    settings = configuration.load()
    by = by or settings.who
    asked, tasks, _ = _inbox_round(settings, identifier)
    may_answer_as(settings, _project(settings, asked.project), by)
    key = tasks[int(record) - 1].key if record.isdecimal() and 0 < int(record) <= len(tasks) else record
    field = "preference" if asked.kind == "preference" else "verdict"
    said: dict[str, str | list[str]] = {field: word, "corrected": text, "reason": reason or []}
    said |= {"comment": comment}
    result = {name: value for name, value in said.items() if value}
    entry = _inbox(settings, asked.project).answer(asked.id, key, result, by=by)
    document = {"round": asked.id, "record": entry.subject, "word": word, "by": by, "entry": entry.seq}
    text_ = f"{word} by {by} on record {short(entry.subject)}: ledger entry {entry.seq}"
    output.emit(as_json, document, lambda screen: screen.print(text_))


@app.command()
def people(
    adopt: Annotated[str, typer.Option(help="Pin the account that has this e-mail now.")] = "",
    why: Annotated[str, typer.Option(help="With --adopt: how you know that it is theirs.")] = "",
    as_json: output.Json = False,
) -> None:
    """Whose answers in Label Studio count: each person's account there, and what is wrong with it."""
    from resources import label_studio
    from resources.label_studio import people as accounts

    settings = configuration.load()
    ledger = _ledger(settings)
    tool = label_studio.connect(settings, ledger)
    if tool is None:
        raise InputInvalid(
            "reviews take place in the local inbox: there are no accounts",
            "FTAAS_LABEL_STUDIO_URL",
            do="start Label Studio with `make dev`, or name one",
        )
    if adopt:
        accounts.adopt(tool.api, ledger, adopt, why=why, actor=settings.who)
    asked: dict[str, list[str]] = {}
    loaded, _ = catalog.load_all(settings.projects, settings.policy)
    for project in (one.project for one in loaded):
        for role in ("sme", "rai", "approver"):
            for email in project.people.holding(role):
                asked.setdefault(email, []).append(f"{project.name}: {role}")
    rows = accounts.people_table(tool.api, ledger, asked, settings.label_studio_database)
    columns = ["email", "for", "account", "state"]
    cells = [[row[c] for c in columns] for row in rows]
    output.emit(as_json, {"people": rows}, lambda screen: screen.print(output.table(columns, cells)))


def _row_rounds(ledger: Ledger, project: str | None, everything: bool) -> list[dict[str, Any]]:
    """Row reviews, their adjudications and rankings, wherever they take place."""
    projects = {e.project for e in ledger.entries("round_opened", project=project)}
    rounds = [r for name in sorted(projects) for r in round_log.states(ledger, name, tuple(_ROWS))]
    return [
        {
            "id": r.id,
            "project": r.entry.project,
            "kind": r.kind,
            "state": r.state,
            "title": f"{_ROWS[r.kind]} of {r.entry.project} {short(r.entry.subject)}",
            "who": " and ".join(r.entry.body["who"]),
            "since": r.entry.at,
            "link": r.opened.link,
        }
        for r in rounds
        if everything or r.state == "open"
    ]


def _inbox(settings: Settings, project: str) -> LocalInbox:
    return LocalInbox(_ledger(settings), Store(settings.store_path), project, settings.who)


def _inbox_round(settings: Settings, identifier: str) -> tuple[Round, list[Task], dict[str, list[str]]]:
    """A round of the local inbox, its rows, and who has answered each.

    Raises:
        InputInvalid: no round, or several, begin so.
    """
    opened = _ledger(settings).entries("round_opened", authentic=True)
    ids = {e.body["round"]: e for e in opened if e.body["opened"]["server"] == SERVER}
    found = [e for i, e in ids.items() if identifier and i.startswith(identifier)]
    if len(found) != 1:
        raise InputInvalid(
            "names no one row review of the local inbox", "ID", identifier, "see `review list`"
        )
    inbox = _inbox(settings, found[0].project)
    asked, tasks = inbox.tasks(found[0].body["round"])
    answered: dict[str, list[str]] = {}
    for answer in inbox.answers(Opened(asked.id, **found[0].body["opened"])):
        if not answer.skipped and answer.by not in answered.setdefault(answer.key, []):
            answered[answer.key].append(str(answer.by))
    return asked, tasks, answered


def _plain(data: dict[str, Any]) -> str:
    """What a row's form shows, as one line of text."""
    shown = [str(data.get(name, "")) for name in ("chat_html", "completion", "answer_a", "answer_b")]
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", " | ".join(part for part in shown if part))).split())


def _project(settings: Settings, name: str) -> Project:
    return catalog.load_one(settings.projects, settings.policy, name).project


def _progress(settings: Settings, ledger: Ledger, review: Review) -> str:
    """How many answers its round in the labelling tool holds, or why that cannot be told."""
    if "://" not in review.link:
        return ""
    from ftaas_pipelines.review.sign_offs import sign_off_rounds
    from resources import label_studio

    try:
        tool = label_studio.connect(settings, ledger)
        if tool is None:
            return "not known: no Label Studio is set"
        count = sign_off_rounds.answered(ledger, tool, [review]).get(review.id, 0)
    except FtaasError as error:
        return f"not known: {error.problems[0].what}"
    return f"{count} answer{'s' if count != 1 else ''}"


def _document(review: Review) -> dict[str, Any]:
    return {**asdict(review), "title": review.title}


def _brief(value: Any) -> str:
    """Nested facts as one readable line."""
    if isinstance(value, dict):
        if "sets" in value:
            value = {
                name: {
                    k: round(v["overall"][value["primary"]]["value"], 3) for k, v in found["systems"].items()
                }
                for name, found in value["sets"].items()
            }
        return ", ".join(f"{k}: {_brief(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "; ".join(_brief(v) for v in value)
    return str(value)
