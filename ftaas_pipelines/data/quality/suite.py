"""The Great Expectations suite of a dataset version: defaults for its kinds plus the project's own.

Runs piece by piece (a piece is some buckets, about 100,000 records), so memory stays bounded. An
expectation on values adds up over the pieces; one on a whole column (a mean, a set) must hold on each.
Runs in an ephemeral context (no files, no network). Importing Great Expectations costs seconds, so it
happens in here, and this module is imported by the dataset stage alone.
"""

import difflib
import gc
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ftaas_pipelines.errors import InputInvalid, Problem
from ftaas_pipelines.projects.dataset import Cleaning, Quality

PIECE_ROWS = 100_000
_SHOWN_RECORDS = 3


@dataclass(frozen=True)
class Expectation:
    """One thing the records must be. `severity` error fails the dataset's quality, warn only shows."""

    name: str
    type: str
    kwargs: dict[str, Any]
    severity: str = "error"


@dataclass(frozen=True)
class Result:
    """What an expectation found. `detail` names records, never what stands in them.

    `unexpected` of `elements` values broke it, where it is one on values.
    """

    name: str
    type: str
    success: bool
    severity: str
    observed: str
    detail: str
    unexpected: int | None = None
    elements: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k not in ("unexpected", "elements")}


def suite(quality: Quality, cleaning: Cleaning, kinds: Collection[str]) -> list[Expectation]:
    """The expectations on the record table: ours for these kinds of records, then the project's.

    Raises:
        InputInvalid: one of the project's is not {type, kwargs, severity}.
    """
    ours = _defaults(cleaning, kinds)
    problems: list[Problem] = []
    for i, raw in enumerate(quality.expectations):
        where = f"dataset.quality.expectations[{i}]"
        if unknown := sorted(set(raw) - {"type", "kwargs", "severity"}):
            problems.append(
                Problem(f"'{unknown[0]}' is not a known key", where, do="use type, kwargs, severity")
            )
        severity, kwargs = raw.get("severity", "error"), raw.get("kwargs", {})
        if severity not in ("error", "warn"):
            problems.append(Problem("severity is not known", where, repr(severity), "use error or warn"))
        if not isinstance(raw.get("type"), str) or not isinstance(kwargs, dict):
            problems.append(Problem("is not an expectation", where, do="write type: expect_…, kwargs: {…}"))
            continue
        name = raw["type"] + (f"({kwargs['column']})" if "column" in kwargs else "")
        ours.append(Expectation(name, raw["type"], kwargs, severity))
    if problems:
        raise InputInvalid(problems)
    return ours


def _defaults(cleaning: Cleaning, kinds: Collection[str]) -> list[Expectation]:
    not_null, lengths = "expect_column_values_to_not_be_null", "expect_column_value_lengths_to_be_between"
    matches, distinct = (
        "expect_column_values_to_match_regex",
        "expect_column_unique_value_count_to_be_between",
    )
    least = max(1, cleaning.min_characters)
    most = {"max_value": cleaning.max_characters}
    found = [
        Expectation("answer_is_there", not_null, {"column": "answer"}),
        Expectation("record_id_is_unique", "expect_column_values_to_be_unique", {"column": "record_id"}),
        Expectation("answers_differ", distinct, {"column": "answer", "min_value": 2}),  # else: one label only
    ]
    if "text" not in kinds:
        found += [
            Expectation("prompt_is_there", not_null, {"column": "prompt"}),
            Expectation("prompt_length", lengths, {"column": "prompt", "min_value": least}),
        ]
    if not set(kinds) & {"conversation"}:  # an answer may be a call alone
        found.append(Expectation("answer_length", lengths, {"column": "answer", "min_value": least, **most}))
    for kind, name, key in (
        ("preference", "rejected_is_there", "rejected"),
        ("labelled", "label_is_there", "label"),
        ("prompt", "expected_is_there", "expected"),
    ):
        if set(kinds) == {kind}:
            found.append(Expectation(name, not_null, {"column": "extra"}))
            found.append(Expectation(f"{name}_in_extra", matches, {"column": "extra", "regex": f'"{key}":'}))
    if set(kinds) == {"labelled"}:
        found.append(Expectation("labels_differ", distinct, {"column": "extra", "min_value": 2}))
    return found


def run(
    tables: Iterable[Any],
    facts: dict[str, float],
    quality: Quality,
    cleaning: Cleaning,
    kinds: Collection[str],
) -> list[Result]:
    """Hold the record table and the facts about it against the suite.

    Args:
        tables: the record table's buckets (Arrow), in order.
        facts: `records` and `dropped_share` (0 to 1).

    Raises:
        InputInvalid: an expectation is unknown, or its arguments are wrong.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "False"
    import great_expectations as gx
    import pandas as pd
    from great_expectations.data_context.types.base import ProgressBarsConfig

    expectations = suite(quality, cleaning, kinds)
    first_own = len(expectations) - len(quality.expectations)
    limits = {"few_dropped": {"max_value": quality.max_dropped_share}}
    limits["enough_records"] = {"min_value": quality.min_records}
    of_facts = [
        Expectation(name, "expect_column_max_to_be_between", {"column": column, **limits[name]})
        for name, column in (("enough_records", "records"), ("few_dropped", "dropped_share"))
    ]
    context: Any = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    found: list[list[Result]] = []
    for piece in _pieces(tables):
        built = _build(expectations, list(piece.column_names), first_own)
        asked = {"record_id", *(e.kwargs["column"] for e in expectations if "column" in e.kwargs)}
        named = asked if all("column" in e.kwargs for e in expectations) else set(piece.column_names)
        frame = piece.select([c for c in piece.column_names if c in named]).to_pandas()
        results = _validate(context, f"records {len(found)}", frame, built)
        found.append([_result(e, results[i], piece) for i, e in enumerate(expectations)])
    frame = pd.DataFrame({name: [round(value, 6)] for name, value in facts.items()})
    results = _validate(context, "facts", frame, _build(of_facts, list(facts), first_own=len(of_facts)))
    whole = [_result(e, results[i], None) for i, e in enumerate(of_facts)]
    return [*whole, *(_together([piece[i] for piece in found]) for i in range(len(expectations)))]


def _pieces(tables: Iterable[Any]) -> Iterable[Any]:
    """Buckets put together until they hold `PIECE_ROWS`; at least one piece, if an empty one."""
    import pyarrow as pa

    held: list[Any] = []
    for table in tables:
        held.append(table)
        if sum(len(t) for t in held) >= PIECE_ROWS:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _together(pieces: Sequence[Result]) -> Result:
    """One result for all pieces of the table."""
    if len(pieces) == 1:
        return pieces[0]
    first, bad = pieces[0], [p for p in pieces if not p.success]
    if all(p.unexpected is not None for p in pieces):
        unexpected, elements = (sum(getattr(p, n) or 0 for p in pieces) for n in ("unexpected", "elements"))
        observed = f"{unexpected} of {elements} records unexpected"
    else:
        observed = f"{len(bad)} of {len(pieces)} pieces unexpected: " + (bad or pieces)[0].observed
    detail = next((p.detail for p in bad if p.detail), "")
    return replace(first, success=not bad, observed=observed, detail=detail)


def failed(results: list[Result]) -> list[str]:
    """Names of the expectations of severity `error` that failed."""
    return [r.name for r in results if not r.success and r.severity == "error"]


def _build(expectations: list[Expectation], columns: list[str], first_own: int) -> list[Any]:
    """Great Expectations' objects. Those from `first_own` on are the project's, and may be wrong."""
    from great_expectations.exceptions import ExpectationNotFoundError
    from great_expectations.expectations import registry

    built: list[Any] = []
    problems: list[Problem] = []
    for i, e in enumerate(expectations):
        where = f"dataset.quality.expectations[{i - first_own}]"
        column = e.kwargs.get("column", columns[0])
        if column not in columns:
            problems.append(
                Problem("there is no such column", where, repr(column), f"use {', '.join(columns)}")
            )
            continue
        try:
            built.append(registry.get_expectation_impl(e.type)(**e.kwargs, meta={"key": i}))
        except ExpectationNotFoundError:
            known = registry.list_registered_expectation_implementations()
            close = difflib.get_close_matches(e.type, sorted(known), n=1)
            do = f"did you mean '{close[0]}'?" if close else "see greatexpectations.io/expectations"
            problems.append(Problem("Great Expectations knows no such expectation", where, e.type, do))
        except (ValueError, TypeError) as error:  # pydantic's ValidationError is a ValueError
            reason = " ".join(str(error).splitlines()[1:]).strip() or str(error)
            problems.append(Problem(f"{e.type}: {reason}", where, f"kwargs {e.kwargs}", "mend its kwargs"))
    if problems:
        raise InputInvalid(problems)
    return built


def _validate(context: Any, name: str, frame: Any, built: list[Any]) -> dict[int, Any]:
    import great_expectations as gx

    asset = context.data_sources.add_pandas(name).add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe(name).get_batch({"dataframe": frame})
    outcome = batch.validate(gx.ExpectationSuite(name=name, expectations=built))
    # The context would hold the frame as long as it lives, and its own circles until they are collected:
    # 3 GB at 10 million rows.
    context.data_sources.delete(name)
    gc.collect()
    return {r.expectation_config.meta["key"]: r for r in outcome.results}  # in an order of its own


def _result(expectation: Expectation, raw: Any, table: Any) -> Result:
    found: dict[str, Any] = raw.result or {}
    if "observed_value" in found:
        observed = str(found["observed_value"])
    else:
        observed = (
            f"{found.get('unexpected_count', '?')} of {found.get('element_count', '?')} records unexpected"
        )
    rows = list(found.get("partial_unexpected_index_list") or [])[:_SHOWN_RECORDS]
    ids = (
        [table["record_id"][i].as_py()[:12] for i in rows if isinstance(i, int)] if table is not None else []
    )
    detail = ", ".join(ids)
    if not found:  # it could not be evaluated: GX reports the exception instead of a result
        observed, detail = "could not be evaluated", _exception(raw.exception_info)
    return Result(
        expectation.name,
        expectation.type,
        bool(raw.success),
        expectation.severity,
        observed,
        f"records {detail}" if ids else detail,
        found.get("unexpected_count"),
        found.get("element_count"),
    )


def _exception(info: Any) -> str:
    entries = [info, *info.values()] if isinstance(info, dict) else []
    messages = [
        str(e["exception_message"]) for e in entries if isinstance(e, dict) and e.get("exception_message")
    ]
    return messages[0][:200] if messages else "no reason given"
