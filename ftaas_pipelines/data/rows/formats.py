"""What the columns of a file mean: the formats, and how one is recognised. Light: the CLI imports it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftaas_pipelines.data.raw import readers
from ftaas_pipelines.data.raw.readers import Row
from ftaas_pipelines.data.rows.cells import truth
from ftaas_pipelines.errors import InputInvalid, Problem

CHECKED = "####"  # what GSM8K puts before the answer that is checked


@dataclass(frozen=True)
class Shape:
    """The columns of one format, in our names. The last required one holds the answer.

    Attributes:
        inside: names that map into a column (a field of `data`), not to one.
    """

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return self.required + self.optional + self.inside


FORMATS: dict[str, Shape] = {
    "messages": Shape(("messages",), ("tools", "extra")),
    "alpaca": Shape(("instruction", "output"), ("input",)),
    "prompt_completion": Shape(("prompt", "completion")),
    "text_target": Shape(("text", "target")),
    "sharegpt": Shape(("conversations",), ("system", "tools")),
    "preference": Shape(("rejected", "chosen"), ("prompt", "input", "system", "tools")),
    "kto": Shape(("label", "completion"), ("prompt", "input", "system", "tools")),
    "checkable": Shape(("question", "answer"), ("expected",)),
    "text": Shape(("text",)),
    "label_studio": Shape(("data", "annotations"), inside=("prompt", "answer")),
}


@dataclass(frozen=True)
class Layout:
    """A format with the file's own column names.

    Attributes:
        format: one of `FORMATS`.
        columns: our name to the file's name, only where they differ; as `dataset.columns` takes it.
    """

    format: str
    columns: Mapping[str, str]

    def name(self, ours: str) -> str:
        """The file's name of one of our columns."""
        return self.columns.get(ours, ours)


@dataclass(frozen=True)
class _Sign:
    """What a format is told by.

    Attributes:
        names: our column to the names it is met under, the likeliest first; with a `?` it may be absent.
        look: what the first rows must look like, where other formats have the same columns.
    """

    format: str
    names: Mapping[str, tuple[str, ...]]
    look: Callable[[Layout, Sequence[Row]], bool] | None = None


def _labels_are_flags(layout: Layout, rows: Sequence[Row]) -> bool:
    return bool(rows) and all(truth(row.value.get(layout.name("label"))) is not None for row in rows)


def _answers_are_checked(layout: Layout, rows: Sequence[Row]) -> bool:
    answers = [row.value.get(layout.name("answer")) for row in rows]
    return bool(rows) and all(isinstance(a, str) and f"{CHECKED} " in a for a in answers)


_PROMPT = ("prompt", "question", "query", "instruction", "problem")
_SIGNS = (  # tried in this order
    _Sign("label_studio", {"data": ("data",), "annotations": ("annotations",)}),
    _Sign(
        "preference",
        {
            "rejected": ("rejected",),
            "chosen": ("chosen",),
            "prompt?": (*_PROMPT, "conversations", "messages"),
        },
    ),
    _Sign(
        "kto",
        {
            "label": ("label", "kto_tag"),
            "completion": ("completion", "response", "messages", "conversations"),
            "prompt?": _PROMPT,
        },
        _labels_are_flags,
    ),
    _Sign("messages", {"messages": ("messages",), "tools?": ("tools", "functions")}),
    _Sign("sharegpt", {"conversations": ("conversations", "conversation")}),
    _Sign("alpaca", {"instruction": ("instruction",), "output": ("output",)}),
    _Sign("checkable", {"question": _PROMPT, "answer": ("solution",), "expected?": ("expected", "answer")}),
    _Sign(
        "checkable",
        {"question": _PROMPT, "answer": ("completion", "answer", "expected"), "expected": ("expected",)},
    ),
    _Sign(
        "checkable",
        {"question": _PROMPT, "answer": ("completion", "answer", "response")},
        _answers_are_checked,
    ),
    _Sign("prompt_completion", {"prompt": ("prompt",), "completion": ("completion",)}),
    _Sign("text_target", {"text": ("text",), "target": ("target",)}),
    _Sign(
        "prompt_completion",
        {"prompt": ("prompt", "question", "query"), "completion": ("completion", "answer", "response")},
    ),
    _Sign(
        "text_target",
        {
            "text": ("text", "sentence", "source", "utterance"),
            "target": ("target", "label", "category", "intent"),
        },
    ),
    _Sign("prompt_completion", {"prompt": ("input",), "completion": ("output", "target")}),
    _Sign("text", {"text": ("text",)}),
)


def detect(path: Path, encoding: str = "utf-8") -> Layout:
    """The format and columns of a file, by its column names and first rows.

    Raises:
        InputInvalid: it cannot be read, or its columns fit no format.
    """
    rows = readers.look(path, encoding)
    if not rows.rows:
        readers.raise_all(rows.problems)
    return resolve(rows.columns, path, None, {}, rows.rows)


def resolve(
    found: Sequence[str],
    path: Path,
    declared: str | None,
    columns: Mapping[str, str],
    rows: Sequence[Row] = (),
) -> Layout:
    """The layout of a file with these columns, as declared or else as recognised.

    Args:
        found: the file's column names.
        path: what errors call the file.
        declared: its format, where the project says so.
        columns: our name to the file's name, where the project says so; the rest is recognised.
        rows: its first rows, to tell formats apart that share their column names.

    Raises:
        InputInvalid: the file is of another format than declared, or of none that is known.
    """
    where = f"{path}:1"
    if declared is None and columns:
        declared = _mapped(columns, found)
        if declared is None:
            raise InputInvalid("fits no format", "dataset.columns", _listed(columns), _formats_hint())
    if declared is None:
        layout = _guess(found, rows)
        if layout is None:
            raise InputInvalid("the columns fit no known format", where, _listed(found), _formats_hint())
        return layout
    shape = FORMATS[declared]
    problems = [
        Problem(
            f"'{ours}' is not a column of {declared}", "dataset.columns", do=f"use {_listed(shape.columns)}"
        )
        for ours in columns
        if ours not in shape.columns
    ]
    known = _fit(declared, columns, found)
    layout = Layout(declared, {ours: name for ours, name in {**known, **columns}.items() if name != ours})
    wanted = [layout.name(ours) for ours in (*shape.required, *(c for c in columns if c in shape.optional))]
    if missing := [name for name in wanted if name not in found]:
        problems.append(_missing(missing, found, where, declared))
    if problems:
        raise InputInvalid(problems)
    return layout


def _mapped(columns: Mapping[str, str], found: Sequence[str]) -> str | None:
    """The format whose columns a mapping names: the first that the file fits, or else the first."""
    can_be = [name for name, shape in FORMATS.items() if set(columns) <= set(shape.columns)]
    return next((name for name in can_be if _fit(name, columns, found)), can_be[0] if can_be else None)


def _fit(name: str, columns: Mapping[str, str], found: Sequence[str]) -> dict[str, str]:
    """Our columns to the file's, by the first sign of a format that fits with this mapping; else nothing."""
    return next((fit for s in _SIGNS if s.format == name and (fit := _fits(s, columns, found))), {})


def _fits(sign: _Sign, columns: Mapping[str, str], found: Sequence[str]) -> dict[str, str]:
    fit: dict[str, str] = {}
    for key, names in sign.names.items():
        ours = key.rstrip("?")
        names = (columns[ours],) if ours in columns and ours not in FORMATS[sign.format].inside else names
        theirs = next((name for name in names if name in found), None)
        if theirs is not None:
            fit[ours] = theirs
        elif ours == key:
            return {}
    return fit


def _missing(missing: Sequence[str], found: Sequence[str], where: str, declared: str) -> Problem:
    looks = _guess(found)
    what, do = f"{declared} needs the column {_listed(missing)}", "add it, or map it in dataset.columns"
    if looks and looks.format != declared:
        what += f"; the file looks like {looks.format}"
        mapped = "".join(f", {ours}: {theirs}" for ours, theirs in looks.columns.items())
        do = f"set dataset.format: {looks.format}"
        do += (
            f" and dataset.columns: {{{mapped[2:]}}}" if mapped else ", or map the columns in dataset.columns"
        )
    return Problem(what, where, f"columns {_listed(found)}", do)


def _guess(found: Sequence[str], rows: Sequence[Row] = ()) -> Layout | None:
    for sign in _SIGNS:
        if fit := _fits(sign, {}, found):
            layout = Layout(sign.format, {ours: name for ours, name in fit.items() if name != ours})
            if sign.look is None or sign.look(layout, rows):
                return layout
    return None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _formats_hint() -> str:
    known = "; ".join(f"{name}: {', '.join(shape.required)}" for name, shape in FORMATS.items())
    return f"set dataset.format and map dataset.columns ({known})"
