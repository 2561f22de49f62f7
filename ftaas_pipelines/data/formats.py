"""What the columns of a file mean: the formats, and how one is recognised. Light: the CLI imports it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ftaas_pipelines.data import readers
from ftaas_pipelines.errors import InputInvalid, Problem


@dataclass(frozen=True)
class Shape:
    """The columns of one format, in our names. The last required one holds the answer."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return self.required + self.optional


FORMATS: dict[str, Shape] = {
    "messages": Shape(("messages",)),
    "alpaca": Shape(("instruction", "output"), ("input",)),
    "prompt_completion": Shape(("prompt", "completion")),
    "text_target": Shape(("text", "target")),
}

# Names met in the wild, tried in this order once no format fits as it stands.
_KNOWN_AS: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
    ("prompt_completion", ("prompt", "question", "query"), ("completion", "answer", "response")),
    ("text_target", ("text", "sentence", "source", "utterance"), ("target", "label", "category", "intent")),
    ("prompt_completion", ("input",), ("output", "target")),
]


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


def detect(path: Path, encoding: str = "utf-8") -> Layout:
    """The format and columns of a file, by its column names.

    Raises:
        InputInvalid: it cannot be read, or its columns fit no format.
    """
    rows = readers.read(path, readers.load(path), encoding)
    if not rows.rows:
        readers.raise_all(rows.problems)
    return resolve(rows.columns, path, None, {})


def resolve(found: Sequence[str], path: Path, declared: str | None, columns: Mapping[str, str]) -> Layout:
    """The layout of a file with these columns, as declared or else as recognised.

    Raises:
        InputInvalid: the file is of another format than declared, or of none that is known.
    """
    where = f"{path}:1"
    if declared is None and columns:
        declared = next((f for f, shape in FORMATS.items() if set(columns) <= set(shape.columns)), None)
        if declared is None:
            raise InputInvalid("fits no format", "dataset.columns", _listed(columns), _formats_hint())
    if declared is None:
        layout = _guess(found)
        if layout is None:
            hint = _formats_hint()
            if "conversations" in found:
                hint = "ShareGPT is not read: write it as messages, a list of {role, content}"
            raise InputInvalid("the columns fit no known format", where, _listed(found), hint)
        return layout
    shape = FORMATS[declared]
    problems = [
        Problem(
            f"'{ours}' is not a column of {declared}", "dataset.columns", do=f"use {_listed(shape.columns)}"
        )
        for ours in columns
        if ours not in shape.columns
    ]
    layout = Layout(declared, {ours: theirs for ours, theirs in columns.items() if theirs != ours})
    wanted = [layout.name(ours) for ours in (*shape.required, *(c for c in columns if c in shape.optional))]
    if missing := [name for name in wanted if name not in found]:
        problems.append(_missing(missing, found, where, declared))
    if problems:
        raise InputInvalid(problems)
    return layout


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


def _guess(found: Sequence[str]) -> Layout | None:
    for name, shape in FORMATS.items():
        if set(shape.required) <= set(found):
            return Layout(name, {})
    for name, first, last in _KNOWN_AS:
        theirs = [next((n for n in names if n in found), None) for names in (first, last)]
        if None not in theirs:
            pairs = zip(FORMATS[name].required, theirs, strict=True)
            return Layout(name, {ours: other for ours, other in pairs if other and other != ours})
    return None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _formats_hint() -> str:
    known = "; ".join(f"{name}: {', '.join(shape.required)}" for name, shape in FORMATS.items())
    return f"set dataset.format and map dataset.columns ({known})"
