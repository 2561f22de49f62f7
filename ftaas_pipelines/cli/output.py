"""What the command line prints: for people on a terminal, or one JSON document with `--json`.

stdout holds the answer, stderr everything else (progress, errors, hints).
"""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ftaas_pipelines.errors import FtaasError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else.")]
"""The option that every command has: `as_json: Json = False`."""

_WIDTH_IN_A_PIPE = 240  # so that a digest or a path is never cut where nobody can widen the window


def console(stderr: bool = False) -> Console:
    """A console that prints text as it is: no markup, no colouring of numbers, no cut lines in a pipe."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _WIDTH_IN_A_PIPE
    return Console(file=stream, width=width, markup=False, highlight=False, soft_wrap=True)


def emit(as_json: bool, document: Any, render: Callable[[Console], None]) -> None:
    """Print an answer: the document as JSON, or what `render` writes for people."""
    if as_json:
        sys.stdout.write(
            json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"
        )
        sys.stdout.flush()
    else:
        render(console())


def say(text: str, style: str = "dim") -> None:
    """One line for the person watching, on stderr; `--json` leaves it there."""
    console(stderr=True).print(Text(text, style=style))


def fail(as_json: bool, error: FtaasError) -> int:
    """Print an error in the house form; returns its exit code."""
    if as_json:
        emit(True, error.as_dict(), lambda _: None)
        return error.exit_code
    screen = console(stderr=True)
    word = Text("refused" if error.exit_code == 3 else "error", style="bold red")
    if len(error.problems) == 1:
        screen.print(Text.assemble(word, " ", str(error.problems[0])))
    else:
        screen.print(Text.assemble(word, f" {len(error.problems)} problems"))
        for problem in error.problems:
            screen.print(f"  {problem}")
    return error.exit_code


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> Table:
    """A table in the house style: plain rules, long cells folded, never cut."""
    out = Table(title=title, box=None, pad_edge=False, header_style="bold", title_justify="left")
    for name in columns:
        out.add_column(name, overflow="fold")
    for row in rows:
        out.add_row(
            *(cell if isinstance(cell, Text) else Text("" if cell is None else str(cell)) for cell in row)
        )
    return out


def facts(pairs: Iterable[tuple[str, Any]]) -> Table:
    """`name  value` lines."""
    out = Table(box=None, pad_edge=False, show_header=False)
    out.add_column(style="bold", no_wrap=True)
    out.add_column(overflow="fold")
    for name, value in pairs:
        out.add_row(Text(name), Text("" if value is None else str(value)))
    return out
