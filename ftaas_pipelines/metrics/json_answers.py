"""Whether an answer is JSON that fits a schema (JSON Schema 2020-12), however an answer may look.

What JSON does not know (NaN), what is nested deeper than `DEEPEST`, and numbers beyond a float fit
nothing. Schemas fetch nothing from elsewhere.
"""

import json
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, cast

import regex

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.metrics import timed_patterns

DEEPEST = 40  # levels; fixed, as Python's own limit depends on who calls


def checker(schema: dict[str, Any]) -> Callable[[str], bool]:
    """The function that says whether a text is JSON that fits.

    It raises:
        InputInvalid: the schema refers to what is not in it, or to itself without end, or has a bad pattern.
        TooSlow: one of its patterns takes too long.
    """
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    validator = _validator()(schema, registry=Registry())

    def fits(text: str) -> bool:
        try:
            value = json.loads(text, parse_constant=_not_json, parse_float=_finite)
        except (ValueError, RecursionError):
            return False
        if _depth(value) > DEEPEST:
            return False
        try:
            return bool(validator.is_valid(value))
        except ArithmeticError:  # a whole number beyond a float, divided by one
            return False
        except Unresolvable as error:
            raise _unusable("refers to what is not in it", str(error)) from error
        except RecursionError as error:
            raise _unusable("refers to itself without end", "RecursionError") from error
        except regex.error as error:
            raise _unusable("holds a pattern that is none", str(error)) from error

    return fits


def _unusable(what: str, got: str) -> InputInvalid:
    return InputInvalid(f"the JSON schema {what}", "json_schema", got[:200], "mend the schema")


def _not_json(name: str) -> Any:
    raise ValueError(name)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(digits)
    return value


def _depth(value: Any) -> int:
    """How deep lists and objects are nested; counted up to one more than `DEEPEST`."""
    level, depth = [value], 0
    while depth <= DEEPEST:
        nested = [v for v in level if isinstance(v, list | dict) and v]
        if not nested:
            break
        level = [child for v in nested for child in (v.values() if isinstance(v, dict) else v)]
        depth += 1
    return depth


@cache
def _validator() -> Any:
    """Draft 2020-12 with patterns that may not take for ever."""
    import jsonschema
    from jsonschema.validators import extend

    ours = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    }
    return extend(jsonschema.Draft202012Validator, ours)


def _error(message: str) -> Any:
    from jsonschema import ValidationError

    return ValidationError(message)


def _pattern(_: Any, pattern: str, instance: Any, __: Any) -> Iterator[Any]:
    if isinstance(instance, str) and not timed_patterns.found(pattern, instance):
        yield _error("pattern")


def _pattern_properties(validator: Any, patterns: Any, instance: Any, _: Any) -> Iterator[Any]:
    if not isinstance(instance, dict):
        return
    for pattern, wanted in patterns.items():
        for name, value in cast(dict[str, Any], instance).items():
            if timed_patterns.found(pattern, name):
                yield from validator.descend(value, wanted, path=name, schema_path=pattern)


def _additional_properties(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[Any]:
    if not isinstance(instance, dict):
        return
    named, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    for name, value in cast(dict[str, Any], instance).items():
        if name not in named and not any(timed_patterns.found(pattern, name) for pattern in patterns):
            yield from validator.descend(value, wanted, path=name)
