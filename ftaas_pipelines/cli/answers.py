"""`ftaas answers`: the inference log: what was asked and answered, and what was said of it."""

import json
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ftaas_pipelines import settings as configuration
from ftaas_pipelines.cli import output
from ftaas_pipelines.errors import FtaasError, InputInvalid, Refused
from ftaas_pipelines.governance.ledger import Ledger, open_ledger
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.serving import answers
from ftaas_pipelines.serving.desired import Folder
from ftaas_pipelines.settings import ENVIRONMENTS, Settings
from ftaas_pipelines.store import digest_of, file_digest, short

app = typer.Typer(no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The project's name.")]
Env = Annotated[str, typer.Option(help="staging or production; else both.")]
Since = Annotated[str, typer.Option(metavar="WHEN", help="From 30m, 24h or 7d ago, or a UTC date or time.")]
Until = Annotated[str, typer.Option(metavar="WHEN", help="Up to then, as --since.")]
Limit = Annotated[int, typer.Option(min=1, help="At most so many, the newest.")]
_SECONDS = {"m": 60, "h": 3600, "d": 86400}


@app.command("list")
def list_(
    name: Name, env: Env = "", since: Since = "", limit: Limit = 20, as_json: output.Json = False
) -> None:
    """The newest answers and refusals of a project, newest first; without texts."""
    rows = _newest(name, env, since, limit, "answered")
    cells = [
        (
            answers.said_at(r["at"]),
            r["id"],
            r["environment"],
            " ".join(w for w in (short(r["release"]), r["variant"]) if w),
            r["caller"],
            " ".join(w for w in (str(r["status"]), r["error"] or r["finish_reason"]) if w),
            f"{r['prompt_tokens']}+{r['completion_tokens']}",
            f"{r['total_ms']:.0f}",
        )
        for r in rows
    ]
    columns = ("at", "id", "env", "release", "caller", "status", "tokens", "ms")

    def render(screen: Console) -> None:
        screen.print(output.table(columns, cells) if cells else "no answer is on record")

    output.emit(as_json, {"answers": rows}, render)


@app.command()
def show(id: Annotated[str, typer.Argument(help="Of an answer.")], as_json: output.Json = False) -> None:
    """All that is on record of one answer, its texts too where they are kept."""
    row = answers.response(configuration.load().home, id)
    if row is None:
        raise InputInvalid("no answer with this id is on record", "answers", id, "mind the whole id")

    def render(screen: Console) -> None:
        said = dict(row) | {name: answers.said_at(row[name]) for name in ("at", "erased_at") if row[name]}
        for name in ("guard", "feedback"):
            said[name] = "\n".join(json.dumps(one, ensure_ascii=False) for one in row[name] or ())
        screen.print(output.facts((name, value) for name, value in said.items() if value not in ("", None)))

    output.emit(as_json, row, render)


@app.command()
def feedback(
    name: Name, env: Env = "", since: Since = "", limit: Limit = 20, as_json: output.Json = False
) -> None:
    """What callers said of a project's answers, newest first."""
    rows = _newest(name, env, since, limit, "feedback")
    cells = [
        (answers.said_at(r["at"]), r["id"], r["caller"], r["thumb"], r["correction"], r["comment"])
        for r in rows
    ]

    def render(screen: Console) -> None:
        columns = ("at", "answer", "caller", "thumb", "correction", "comment")
        screen.print(output.table(columns, cells) if cells else "nothing was said yet")

    output.emit(as_json, {"feedback": rows}, render)


@app.command()
def export(
    name: Name,
    to: Annotated[Path, typer.Option(metavar="FILE", help="FILE.parquet or FILE.jsonl; it must not exist.")],
    env: Env = "",
    since: Since = "",
    until: Until = "",
    as_json: output.Json = False,
) -> None:
    """Write a project's answers, texts included, to a file; the ledger remembers who took them."""
    settings = configuration.load()
    environments, first, last = _environments(env), moment("--since", since), moment("--until", until)
    if to.suffix not in (".parquet", ".jsonl"):
        raise InputInvalid("is no shape to write", "--to", str(to), "end it in .parquet or .jsonl")
    if to.exists():
        raise InputInvalid("is there already", "--to", str(to), "name a new file")
    _require_known_actor(settings, name)
    ledger = _ledger(settings)
    folders = [Folder(settings.home, e).answers for e in environments]
    with _whole(to) as made:
        count = _write(made, to.suffix, (t for f in folders for _, t in answers.tables(f, first, last, name)))
        digest = file_digest(made)
    body = {"to": to.suffix[1:], "of": "answers", "environments": environments, "records": count}
    ledger.append("export", digest, body, project=name, actor=settings.who)
    document = {"project": name, "file": str(to.resolve()), "sha256": digest, **body}
    output.emit(as_json, document, lambda screen: screen.print(f"{count} answers written to {to}"))


@app.command()
def erase(
    caller: Annotated[str, typer.Option(help="Of all that this caller asked: a key's id, jwt:NAME, …")] = "",
    id: Annotated[list[str] | None, typer.Option(help="Of this answer; may be repeated.")] = None,
    env: Env = "",
    as_json: output.Json = False,
) -> None:
    """Erase texts; the rows stay, and say since when. The ledger remembers it, without the caller's name."""
    settings = configuration.load()
    if bool(caller) == bool(id):
        raise InputInvalid("say whose texts", "answers erase", do="give --caller or --id")
    if "@" not in settings.who:
        raise _unknown_actor(settings, "erases texts", caller or str(id))
    from ftaas_pipelines.serving import answer_upkeep

    ledger = _ledger(settings)
    done: dict[str, dict[str, int]] = {}
    for environment in _environments(env):
        folder = Folder(settings.home, environment).answers
        try:
            done[environment] = asdict(answer_upkeep.erase(folder, caller=caller, ids=id or ()))
        except OSError as error:
            raise FtaasError(
                "not all could be erased", str(folder), error.strerror or "", "run it again; it goes on"
            ) from None
    subject = digest_of({"caller": caller} if caller else {"ids": sorted(id or ())})
    body = {"by": "caller" if caller else "ids", "environments": done}
    ledger.append("answers_erased", subject, body, project="", actor=settings.who)
    total = {kind: sum(one[kind] for one in done.values()) for kind in ("answers", "feedback", "waiting")}
    text = f"erased the texts of {total['answers']} answers and {total['feedback']} pieces of feedback"
    if total["waiting"]:
        text += f"; {total['waiting']} files are still being written: theirs go when they are done"
    output.emit(as_json, {"subject": subject, **body}, lambda screen: screen.print(text))


def _newest(name: str, env: str, since: str, limit: int, kind: Any) -> list[dict[str, Any]]:
    settings, first = configuration.load(), moment("--since", since)
    rows: list[dict[str, Any]] = []
    for environment in _environments(env):
        folder = Folder(settings.home, environment).answers
        found = answers.newest(folder, limit, name, first, kind=kind, texts=kind == "feedback")
        rows += [{**row, "environment": environment} for row in found]
    return sorted(rows, key=lambda row: -row["at"])[:limit]


def _environments(env: str) -> list[str]:
    if env and env not in ENVIRONMENTS:
        raise InputInvalid("there is no such environment", "--env", env, f"use {' or '.join(ENVIRONMENTS)}")
    return [env] if env else list(ENVIRONMENTS)


def moment(option: str, text: str) -> float | None:
    """UTC seconds of a time that was typed.

    Raises:
        InputInvalid: it is none.
    """
    if not text:
        return None
    if span := re.fullmatch(r"(\d{1,6})([mhd])", text):
        return time.time() - int(span[1]) * _SECONDS[span[2]]
    try:
        typed = datetime.fromisoformat(text)
    except ValueError:
        raise InputInvalid("is no time", option, text, "write 24h, 7d, 2026-05-01 or …T12:30:00Z") from None
    return (typed if typed.tzinfo else typed.replace(tzinfo=UTC)).timestamp()


def _require_known_actor(settings: Settings, name: str) -> None:
    """Texts are as sensitive as the project's data: above `internal` only a named person takes them out."""
    try:
        project = catalog.load_one(settings.projects, settings.policy, name).project
        sensitivity = project.data_sensitivity
    except FtaasError:  # the project is gone; its answers are not
        sensitivity = "unknown"
    if "@" not in settings.who and sensitivity not in ("public", "internal"):
        raise _unknown_actor(settings, f"takes out {sensitivity} data", name)


def _unknown_actor(settings: Settings, what: str, where: str) -> Refused:
    do = "set FTAAS_ACTOR to your e-mail, or map the OS user in FTAAS_ACTOR_MAP"
    return Refused(f"nobody knows who {what}", where, settings.who, do)


def _ledger(settings: Settings) -> Ledger:
    from ftaas_pipelines.governance.requirement import policy_version
    from ftaas_pipelines.projects.policy import load as load_policy

    return open_ledger(settings, policy_version(load_policy(settings.policy)))


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """Where to write a file that appears whole or not at all, for its owner's eyes.

    Raises:
        FtaasError: the folder cannot be written, or is full.
    """
    made = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        os.close(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        yield made
        made.replace(target)
    except OSError as error:
        raise FtaasError("cannot be written", str(target), error.strerror or "") from None
    finally:
        made.unlink(missing_ok=True)


def _write(path: Path, suffix: str, tables: Iterator[Any]) -> int:
    """Write tables one after the other; returns the rows."""
    import pyarrow.parquet as pq

    from ftaas_pipelines.serving.answer_tables import SCHEMAS

    count = 0
    if suffix == ".parquet":
        with pq.ParquetWriter(path, SCHEMAS["answered"], compression="zstd") as out:
            for content in tables:
                out.write_table(content)
                count += content.num_rows
        return count
    with path.open("w", encoding="utf-8") as out:
        for content in tables:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in content.to_pylist())
            count += content.num_rows
    return count
