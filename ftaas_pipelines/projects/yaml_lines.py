"""YAML with the line of every value, so that an error can say `file:line`."""

import datetime
import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from ftaas_pipelines.errors import InputInvalid, Problem

Model = TypeVar("Model", bound=BaseModel)
Place = tuple[int | str, ...]
Lines = Mapping[Place, int]
SECRET_SHOWN = "secret_shown"  # the type of an error whose value is not repeated

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where PyYAML has it: eight times faster


class _Loader(_Base):
    """YAML 1.2 where PyYAML reads 1.1: `1e-4` is a number; `off`, `no` (Norwegian), `yes`, `on` are words."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:bool"]
        for first, found in _Base.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read(path: Path) -> tuple[dict[str, Any], Lines]:
    """Parse one YAML mapping. Returns the value and the line (from 1) of each place in it.

    Raises:
        InputInvalid: not there, not UTF-8, not YAML, a key twice, or not a mapping.
    """
    text = _text(path)
    lines: dict[Place, int] = {}
    problems: list[Problem] = []
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise InputInvalid("holds no settings", f"{path}:1", do="write `key: value` lines")
        value = _construct(loader, node, (), lines, problems, str(path))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputInvalid(
            f"is not YAML: {error.problem}", f"{path}:{line}", do="mend the indentation or quoting there"
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputInvalid(
            f"is not YAML: {error.reason}", f"{path}:{line}", f"character {error.character!r}", "remove it"
        ) from None
    except RecursionError:
        raise InputInvalid("an anchor holds itself", str(path), do="write the value out") from None
    if problems:
        raise InputInvalid(problems)
    return value, lines


def parse(path: Path, model: type[Model]) -> tuple[Model, Lines]:
    """Read and check one file; every error of it at once. Returns the model and the line of each place.

    Raises:
        InputInvalid: with one problem for each error, each naming `file:line`, in the order of the lines.
    """
    value, lines = read(path)
    try:
        return model.model_validate(value), lines
    except ValidationError as error:
        faults = [(_place(e, lines), e) for e in error.errors()]
        faults.sort(key=lambda fault: line_of(lines, fault[0]))
        problems = [_problem(path, lines, place, e, model) for place, e in faults]
        raise InputInvalid(list(dict.fromkeys(problems))) from None


def line_of(lines: Lines, place: Place) -> int:
    """The line of a place, or of the nearest thing around it."""
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place, 1)


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise InputInvalid("the file is not there", str(path), do="create it or name another") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes().count(b"\n", 0, error.start) + 1
        raise InputInvalid(
            "is not UTF-8", f"{path}:{line}", f"byte {error.start}", "save it as UTF-8"
        ) from None
    except OSError as error:
        raise InputInvalid(
            "cannot be read", str(path), error.strerror or "", "make it a readable file"
        ) from None


def _construct(
    loader: Any, node: yaml.Node, place: Place, lines: dict[Place, int], problems: list[Problem], path: str
) -> Any:
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            where = f"{path}:{key_node.start_mark.line + 1}"
            key = key_node.value
            if not isinstance(key, str):
                problems.append(Problem("a key must be a plain word", where, do="write `key: value`"))
                continue
            if key in out:
                problems.append(Problem(f"the key '{key}' stands twice", where, do="keep one"))
            lines[(*place, key)] = key_node.start_mark.line + 1
            out[key] = _construct(loader, value_node, (*place, key), lines, problems, path)
        return out
    if isinstance(node, yaml.SequenceNode):
        items = enumerate(node.value)
        return [_construct(loader, n, (*place, i), lines, problems, path) for i, n in items]
    try:
        return loader.construct_object(node, deep=True)  # a scalar, typed as YAML types it
    except ValueError as error:  # it looks like a date or a number and is none: 2024-13-45
        problems.append(
            Problem(f"is no value: {error}", f"{path}:{lines[place]}", node.value, "put it in quotes")
        )
        return None


def _place(error: Any, lines: Lines) -> Place:
    """Where in the file an error is: its `loc` without the steps that pydantic adds for unions and keys."""
    place: Place = ()
    for part in error["loc"]:
        if (*place, part) in lines:
            place = (*place, part)
    return (*place, error["loc"][-1]) if error["type"] == "missing" else place


def _problem(path: Path, lines: Lines, place: Place, error: Any, model: type[BaseModel]) -> Problem:
    where = f"{path}:{line_of(lines, place)}"
    key = ".".join(str(p) for p in place)
    if error["type"] == "extra_forbidden":
        return Problem(f"'{key}' is not a known key", where, do=_nearest(model, place))
    if error["type"] == "missing":
        return Problem(f"'{key}' is missing", where, do="add it")
    got = error.get("input")
    scalar = error["type"] != SECRET_SHOWN and isinstance(got, str | int | float | bool | datetime.date)
    shown = (repr(got) if isinstance(got, str) else str(got)) if scalar else ""
    message = error["msg"].removeprefix("Value error, ")
    do = (
        "put it in quotes"
        if error["type"] == "string_type" and scalar
        else "mend it; see `ftaas project schema`"
    )
    return Problem(f"'{key}': {message}" if key else message, where, shown, do)


def _nearest(model: type[BaseModel], place: Place) -> str:
    """A hint: the key of the same section that looks most like the unknown one."""
    schema = model.model_json_schema()
    sections = [schema]
    for part in place[:-1]:
        sections = [inner for section in sections for inner in _inside(schema, section, part)]
    names = sorted({name for section in sections for name in section.get("properties", {})})
    close = difflib.get_close_matches(str(place[-1]), names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"remove it, or use one of {', '.join(names)}"


def _inside(schema: dict[str, Any], section: dict[str, Any], part: int | str) -> Iterator[dict[str, Any]]:
    """The sections of a JSON schema that `part` of `section` may be, references and unions resolved."""
    inner = section.get("items") if isinstance(part, int) else section.get("properties", {}).get(part)
    waiting = [inner or section.get("additionalProperties") or {}]
    while waiting:
        one = waiting.pop()
        waiting += [*one.get("anyOf", []), *one.get("oneOf", [])]
        yield schema["$defs"][one["$ref"].rpartition("/")[2]] if "$ref" in one else one
