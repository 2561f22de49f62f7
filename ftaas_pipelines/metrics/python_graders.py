"""Graders that are a Python function of the project's own: `rewards.py:score`, a file beside project.yaml.

Its code runs where answers are graded (a stage program), never when projects are read. A file stands
alone: it may import what is installed, not the files beside it, so that its digest says all of it.
"""

import importlib.util
import math
import numbers
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ftaas_pipelines.errors import InputInvalid


class Fault(Exception):
    """A grader cannot grade one answer.

    Attributes:
        place: of the answer in its batch, from 0.
        what, got, do: as in `errors.Problem`.
    """

    def __init__(self, place: int, what: str, got: str, do: str):
        super().__init__(what)
        self.place, self.what, self.got, self.do = place, what, got, do


def load(
    entry: str, folder: Path | None
) -> Callable[[Sequence[str], Sequence[str], Sequence[str]], list[float]]:
    """The function of an entry point, checked at every call.

    Raises:
        InputInvalid: file or function are not there, or the file cannot be run.
        Fault: (when called) it raised, or gave something else than a finite number for each answer.
    """
    name, _, function_name = entry.rpartition(":")
    if folder is None:
        raise InputInvalid("a Python grader has no folder to be read from", entry)
    path = _path(name, folder)
    spec = importlib.util.spec_from_file_location(f"ftaas_rewards_{path.stem}", path)
    assert spec and spec.loader, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputInvalid(
            "the file of a Python grader cannot be run",
            f"{name}:{_line(error, path)}",
            _said(error),
            "run it by itself to see the whole error",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputInvalid(
            "there is no such function",
            name,
            function_name,
            f"define {function_name}(prompts, answers, expected)",
        )

    def score(prompts: Sequence[str], answers: Sequence[str], expected: Sequence[str]) -> list[float]:
        return _checked(_called(function, path, prompts, answers, expected), len(answers))

    return score


def _path(name: str, folder: Path) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise InputInvalid(
            "a Python grader lies outside the project's folder", name, do="put it beside project.yaml"
        )
    if not path.is_file():
        raise InputInvalid(
            "the file of a Python grader is not there",
            name,
            do="put it beside project.yaml, or mend the name",
        )
    return path


def _called(
    function: Callable[..., Any],
    path: Path,
    prompts: Sequence[str],
    answers: Sequence[str],
    expected: Sequence[str],
) -> Any:
    try:
        return function(list(prompts), list(answers), list(expected))
    except (Exception, SystemExit) as error:
        place = _culprit(function, prompts, answers, expected)
        do = "let it return a number for any text; 0 for what it cannot read"
        raise Fault(place, f"failed at line {_line(error, path)}", _said(error), do) from error


def _culprit(
    function: Callable[..., Any], prompts: Sequence[str], answers: Sequence[str], expected: Sequence[str]
) -> int:
    """Which answer of a batch the function fails on: the first that it fails on alone."""
    for place, one in enumerate(zip(prompts, answers, expected, strict=True)):
        try:
            function(*([value] for value in one))
        except (Exception, SystemExit):
            return place
    return 0


def _checked(values: Any, count: int) -> list[float]:
    do = "return a list with one number for each answer"
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | dict):
        raise Fault(0, "returned no list", type(values).__name__, do)
    scores = list(values)
    if len(scores) != count:
        raise Fault(0, f"returned {len(scores)} scores for {count} answers", "", do)
    for place, score in enumerate(scores):
        if not isinstance(score, numbers.Real):
            raise Fault(place, "returned something that is no number", f"{score!r:.80}", do)
        if not math.isfinite(score):
            raise Fault(place, "returned something that is no finite number", f"{score}", do)
    return [float(score) for score in scores]


def _line(error: BaseException, path: Path) -> str:
    """The line of the file that an error passed through last."""
    if isinstance(error, SyntaxError) and error.lineno:
        return str(error.lineno)
    line, trace = "?", error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = str(trace.tb_lineno)
        trace = trace.tb_next
    return line


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200]
