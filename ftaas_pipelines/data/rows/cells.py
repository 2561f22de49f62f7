"""What a cell of a raw row must hold: text, a list, a yes or no, something JSON can say.

Errors name the column and the kind of what stands there, never a text: it may be personal data.
"""

import datetime
import decimal
import json
from collections.abc import Mapping
from typing import Any, cast

import orjson

Cells = Mapping[str, Any]  # a raw row: column to value
_YES_NO = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


class RowFault(ValueError):
    """One row is not a record; carries what, got and do of the problem."""

    def __init__(self, what: str, got: str = "", do: str = "mend or delete the row"):
        super().__init__(what)
        self.what, self.got, self.do = what, got, do


def seen(value: Any) -> str:
    """A value as an error names it: a number as it is, of everything else the kind and the size."""
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, str):
        return f"text of {len(value)} characters"
    sized = cast(list[Any], value)
    kinds = {dict: "an object of {} keys", list: "a list of {}", bytes: "{} bytes"}
    kind = kinds.get(type(sized))
    return kind.format(len(sized)) if kind else type(sized).__name__


def text(cells: Cells, column: str, meaning: str) -> str:
    """The text of a cell that must have one; `meaning` is what the row lacks without it.

    Raises:
        RowFault: it is missing, empty, white space, or no text.
    """
    value = cells.get(column)
    if isinstance(value, str) and value and not value.isspace():
        return value
    if value is None or isinstance(value, str):
        state = "missing" if column not in cells else "empty"
        raise RowFault(f"the row has no {meaning}: '{column}' is {state}", do="write it or delete the row")
    raise RowFault(f"'{column}' is not text", seen(value), "write it in quotes")


def is_blank(value: Any) -> bool:
    """Whether a cell says nothing: missing, empty, or white space."""
    return value is None or (isinstance(value, str) and (not value or value.isspace()))


def parsed(value: Any) -> Any:
    """The value of JSON text that holds a list or an object, as CSV and Parquet carry them; else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def objects(value: Any, column: str, do: str) -> list[dict[str, Any]]:
    """A list of objects, or its JSON text; an empty or missing cell is an empty list.

    Raises:
        RowFault: it is something else.
    """
    if is_blank(value):
        return []
    found = parsed(value)
    if not isinstance(found, list) or not all(isinstance(i, dict) for i in cast(list[Any], found)):
        raise RowFault(f"'{column}' is not a list of objects", seen(value), do)
    return cast(list[dict[str, Any]], found)


def flag(cells: Cells, column: str) -> bool:
    """A yes or no: true or false, 1 or 0, yes or no, also as text.

    Raises:
        RowFault: it is neither.
    """
    value = cells.get(column)
    said = truth(value)
    if said is None:
        raise RowFault(f"'{column}' is not true or false", seen(value), "write true or false")
    return said


def truth(value: Any) -> bool | None:
    """The yes or no that a value says; None where it says neither."""
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and value in (0, 1):
        return bool(value)
    return _YES_NO.get(value.strip().casefold()) if isinstance(value, str) else None


def plain(value: Any, column: str) -> Any:
    """A value as JSON says it: dates in ISO form, decimals as text, NaN as null, the rest as it is.

    Raises:
        RowFault: JSON cannot hold it, such as bytes.
    """
    if value is None or isinstance(value, str):
        return value
    try:
        return orjson.loads(orjson.dumps(value, default=_iso))
    except TypeError:
        if isinstance(value, (bytes, bytearray)):
            do = "write the file beside the data and keep its path, or leave the column out of dataset.keep"
            raise RowFault(f"'{column}' holds bytes", seen(value), do) from None
        do = "keep numbers, text, dates and lists of them, or leave the column out of dataset.keep"
        raise RowFault(
            f"'{column}' cannot be kept: JSON does not hold it", type(value).__name__, do
        ) from None


def json_text(value: Any, column: str) -> str:
    """Canonical JSON (sorted keys, no white space) of a list or object.

    Raises:
        RowFault: JSON cannot hold it.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except TypeError:
        raise RowFault(f"{column} cannot be written as JSON", seen(value)) from None


def _iso(value: Any) -> str:
    """Pandas' Timestamp (nanoseconds of Arrow) is a datetime that orjson does not know."""
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    raise TypeError


def is_json(text: str) -> bool:
    """Whether a text is JSON as it stands."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
