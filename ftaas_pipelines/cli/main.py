"""The frame of `ftaas`: which command lives where, and what becomes of an error.

A command's module is imported only when it is the one that was typed, so that `--help` and the light
nouns start at once. To add one: a line in `COMMANDS`, naming a `typer.Typer` (a noun with verbs of its
own) or a function (a verb).
"""

import gc
import importlib
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from typer.exceptions import TyperException
from typer.main import get_command

from ftaas_pipelines import settings
from ftaas_pipelines.cli import output
from ftaas_pipelines.errors import FtaasError, InputInvalid, Problem

COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("doctor:doctor", "What is installed, configured, reachable; what to do about the rest."),
    "demo": ("demo:demo", "The example project from raw rows to an answered question."),
    "dev": ("dev:dev", "The whole platform on this machine: Dagster UI, MLflow, gateway; Ctrl-C stops it."),
    "project": ("project:app", "Use cases: new, list, show, validate, schema, import."),
    "run": ("run:run", "Materialise what is out of date, with live progress."),
    "train": ("train:train", "An experiment: ungoverned, marked, never released."),
    "status": ("status:status", "Each asset of a project: state, digest, why."),
    "logs": ("status:logs", "The log of a project's newest run, or of one asset."),
    "cancel": ("run:cancel", "Stop what runs for a project; what can be resumed is saved."),
    "retry": ("run:retry", "Run again what failed."),
    "review": ("review:app", "The local inbox: list, show, decide."),
    "data": (
        "data:app",
        "Dataset versions: list, show, rows, diff, export, card, generate, label.",
    ),
    "recipe": ("recipe:app", "How an adapter is made: list techniques, explain one, advise on a project."),
    "model": ("model:app", "Adapters, Bentos and base models: list, show, verify, bases."),
    "ask": ("ask:ask", "Ask a deployment a question."),
    "answers": ("answers:app", "What was answered: list, show, export, erase, feedback."),
    "key": ("key:app", "API keys of the endpoints: new, list, show, rotate, revoke."),
    "trace": ("trace:trace", "Everything behind an answer or a digest, down to the rows."),
    "ledger": ("ledger:app", "The record of everything decided: show, verify, export, backup, restore."),
    "store": ("store:app", "Where artifacts live: verify, gc."),
    "deployment": (
        "deployment:app",
        "Running releases: list, up, promote, try, compare, end-trial, rollback, unpin, stop.",
    ),
}


def frame(word: str) -> typer.Typer:
    """The command line with every command named, and the one called `word` really there."""
    app = typer.Typer(
        name="ftaas",
        help="Governed fine-tuning: one YAML per use case, from raw rows to an answering endpoint.",
        epilog="Exit codes: 0 done, 1 failed, 2 invalid input, 3 refused or waiting, 130 interrupted.",
        add_completion=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )
    for name, (place, help_text) in COMMANDS.items():
        if name != word:
            app.command(name, help=help_text)(_elsewhere)
            continue
        module, _, attribute = place.partition(":")
        target: Any = getattr(importlib.import_module(f"ftaas_pipelines.cli.{module}"), attribute)
        if isinstance(target, typer.Typer):
            app.add_typer(target, name=name, help=help_text)
        else:
            app.command(name)(target)
    return app


def _elsewhere() -> None:
    """Stands for a command that was not typed; only its name and help are ever used."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code of interface.md."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    as_json = "--json" in words
    if len(words) == 1 and COMMANDS.get(words[0], ("", ""))[0].endswith(":app"):
        words.append("--help")  # a noun alone: show its verbs
    # Said outright, because a shell starts a background job with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        gc.disable()  # modules are here to stay; looking for garbage among them is a fifth of the start
        try:
            command = get_command(frame(words[0]))
        finally:
            gc.enable()
        result = command.main(args=words, prog_name="ftaas", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except FtaasError as error:
        return output.fail(as_json, error)
    except TyperException as error:  # what was typed does not fit
        return output.fail(as_json, _usage(error, words))
    except (KeyboardInterrupt, typer.Abort):
        output.say("interrupted")
        return 130
    except BrokenPipeError:  # `ftaas … | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return output.fail(as_json, _unforeseen(error, words))


def _usage(error: TyperException, words: Sequence[str]) -> InputInvalid:
    context: Any = getattr(error, "ctx", None)
    path = context.command_path if context else "ftaas"
    return InputInvalid([Problem(error.format_message().rstrip("."), path, do=f"see `{path} --help`")])


def _unforeseen(error: Exception, words: Sequence[str]) -> FtaasError:
    """The one line that is shown; the traceback goes to a file that the line names."""
    text = f"ftaas {' '.join(words)}\n\n" + "".join(traceback.format_exception(error))
    name = f"ftaas-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{os.getpid()}.log"
    summary = (str(error).splitlines() or [""])[0]
    what = f"something unforeseen happened: {type(error).__name__}: {summary}"
    return FtaasError(what, do=f"the whole of it is in {_keep(name, text)}")


def _keep(name: str, text: str) -> Path:
    try:
        folder = settings.load().home / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    except (OSError, FtaasError):  # a home that cannot be written must not hide what went wrong
        folder = Path(tempfile.gettempdir())
        (folder / name).write_text(text, encoding="utf-8")
    return (folder / name).resolve()


if __name__ == "__main__":
    sys.exit(main())
