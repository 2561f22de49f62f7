"""The Great Expectations suite of a dataset version: defaults plus the project's own expectations.

Runs in an ephemeral context (no files, no network). Importing Great Expectations costs seconds, so it
happens in here, and this module is imported by the dataset stage alone.
"""

import difflib
import os
from dataclasses import asdict, dataclass
from typing import Any

from ftaas_pipelines.errors import InputInvalid, Problem
from ftaas_pipelines.projects.project import Cleaning, Quality

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
    """What an expectation found. `detail` names records, never what stands in them."""

    name: str
    type: str
    success: bool
    severity: str
    observed: str
    detail: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def suite(quality: Quality, cleaning: Cleaning) -> list[Expectation]:
    """The expectations on the record table: ours, then the project's.

    Raises:
        InputInvalid: one of the project's is not {type, kwargs, severity}.
    """
    not_null, lengths = "expect_column_values_to_not_be_null", "expect_column_value_lengths_to_be_between"
    least = max(1, cleaning.min_characters)
    ours = [
        Expectation(
            "enough_records", "expect_table_row_count_to_be_between", {"min_value": quality.min_records}
        ),
        Expectation("prompt_is_there", not_null, {"column": "prompt"}),
        Expectation("answer_is_there", not_null, {"column": "answer"}),
        Expectation("record_id_is_unique", "expect_column_values_to_be_unique", {"column": "record_id"}),
        Expectation("prompt_length", lengths, {"column": "prompt", "min_value": least}),
        Expectation(
            "answer_length",
            lengths,
            {"column": "answer", "min_value": least, "max_value": cleaning.max_characters},
        ),
    ]
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


def run(table: Any, dropped_share: float, quality: Quality, cleaning: Cleaning) -> list[Result]:
    """Hold the record table (Arrow) and the share of dropped records (0 to 1) against the suite.

    Raises:
        InputInvalid: an expectation is unknown, or its arguments are wrong.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "False"
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    expectations = suite(quality, cleaning)
    built = _build(
        expectations, list(table.column_names), first_own=len(expectations) - len(quality.expectations)
    )
    share = Expectation(
        "few_dropped",
        "expect_column_max_to_be_between",
        {"column": "dropped_share", "max_value": quality.max_dropped_share},
    )
    context: Any = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    import pandas as pd

    on_records = _validate(context, "records", table.to_pandas(), built)
    facts = pd.DataFrame({"dropped_share": [round(dropped_share, 6)]})
    on_facts = _validate(context, "facts", facts, _build([share], ["dropped_share"], first_own=1))
    results = {**on_records, **on_facts}
    return [_result(e, results[i], table) for i, e in [*enumerate(expectations), ("few_dropped", share)]]


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
        key = "few_dropped" if e.name == "few_dropped" else i
        try:
            built.append(registry.get_expectation_impl(e.type)(**e.kwargs, meta={"key": key}))
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


def _validate(context: Any, name: str, frame: Any, built: list[Any]) -> dict[int | str, Any]:
    import great_expectations as gx

    asset = context.data_sources.add_pandas(name).add_dataframe_asset(name)
    batch = asset.add_batch_definition_whole_dataframe(name).get_batch({"dataframe": frame})
    outcome = batch.validate(gx.ExpectationSuite(name=name, expectations=built))
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
    detail = ", ".join(table["record_id"][i].as_py()[:12] for i in rows if isinstance(i, int))
    if not found:  # it could not be evaluated: GX reports the exception instead of a result
        observed, detail = "could not be evaluated", _exception(raw.exception_info)
    return Result(
        expectation.name,
        expectation.type,
        bool(raw.success),
        expectation.severity,
        observed,
        f"records {detail}" if rows else detail,
    )


def _exception(info: Any) -> str:
    entries = [info, *info.values()] if isinstance(info, dict) else []
    messages = [
        str(e["exception_message"]) for e in entries if isinstance(e, dict) and e.get("exception_message")
    ]
    return messages[0][:200] if messages else "no reason given"
