"""What people see and what an answer must hold: the forms in `forms/`, their task data, completeness.

The forms are Label Studio XML. Fields named `…_html` are HTML in which every value is escaped here, since
Label Studio passes an `<img>` on; all others are shown as plain text. `required` in a form holds in the
browser alone, so whoever takes an answer asks `problems_of`. No form comes with its verdict filled in.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ftaas_pipelines.review.rounds import Kind
from ftaas_pipelines.review.sign_off_page import render_sign_off

__all__ = [
    "REASONS",
    "chosen_is_first",
    "field",
    "form",
    "list_of",
    "preference_data",
    "problems_of",
    "render_sign_off",
    "row_data",
    "said_html",
]

WORDS = ("approve", "fix", "reject")
REASONS = ("factually_wrong", "off_policy", "unsafe", "pii", "bad_format", "off_topic")
PREFERENCES = ("a_clear", "a_slight", "tie", "b_slight", "b_clear", "both_bad")
DECISIONS = ("approve", "approve_with_conditions", "changes", "reject")
RISKS = ("low", "medium", "high")
CHECKS: dict[str, tuple[str, ...]] = {
    "sme": ("rows_reviewed", "answers_right", "difference_expected"),
    "rai": ("personal_data_ok", "toxicity_ok", "licence_ok", "consent_ok", "not_checked_accepted"),
}
_FILES: dict[Kind, str] = {
    "rows": "row_review",
    "adjudication": "adjudication",
    "preference": "preference",
    "sme": "dataset_sign_off_sme",
    "rai": "dataset_sign_off_rai",
    "approver": "model_approval",
    "break_glass": "break_glass",
}
Result = Mapping[str, str | list[str]]


def form(kind: Kind) -> str:
    """The labelling configuration (Label Studio XML) of a kind of round."""
    return (Path(__file__).parent / "forms" / f"{_FILES[kind]}.xml").read_text("utf-8")


# -- completeness --------------------------------------------------------------------------------


def field(result: Result, name: str) -> str:
    """A field that has one value, without white space at its ends; empty where it is not answered."""
    found = list_of(result, name)
    return "\n".join(found).strip()


def list_of(result: Result, name: str) -> list[str]:
    """A field's values; a single one counts as a list of one."""
    value = result.get(name, [])
    return [value] if isinstance(value, str) else list(value)


def problems_of(kind: Kind, result: Result, data: Mapping[str, Any] | None = None) -> list[str]:
    """What an answer lacks, in words for the person who gave it; empty: it is complete.

    Args:
        data: what the task showed; with it, a correction that corrects nothing is found too.
    """
    if kind in ("rows", "adjudication"):
        return _row_problems(result, data)
    if kind == "preference":
        return _one_of(result, "preference", PREFERENCES)
    return _decision_problems(kind, result)


def _row_problems(result: Result, data: Mapping[str, Any] | None) -> list[str]:
    found = _one_of(result, "verdict", WORDS)
    word = field(result, "verdict")
    if word == "fix":
        corrected = field(result, "corrected")
        if not corrected:
            found.append("the corrected text is missing")
        elif data is not None and corrected == str(data.get("completion", "")).strip():
            found.append("the corrected text is what stood there before")
    if word in ("fix", "reject"):
        found += _some_of(result, "reason", REASONS)
    return found


def _decision_problems(kind: Kind, result: Result) -> list[str]:
    found = _one_of(result, "decision", DECISIONS)
    decision = field(result, "decision")
    if decision.startswith("approve") and kind in CHECKS:
        found += _some_of(result, "checks", CHECKS[kind])
    if decision == "approve_with_conditions" and not field(result, "conditions"):
        found.append("the conditions are missing")
    if kind == "approver":
        found += _one_of(result, "risk", RISKS)
    if not field(result, "comment"):
        found.append("the comment is missing")
    return found


def _one_of(result: Result, name: str, known: Sequence[str]) -> list[str]:
    said = list_of(result, name)
    if not said:
        return [f"the {name} is missing"]
    return [] if len(said) == 1 and said[0] in known else [f"the {name} is not one of {', '.join(known)}"]


def _some_of(result: Result, name: str, known: Sequence[str]) -> list[str]:
    said = list_of(result, name)
    if not said:
        return [f"no {name} is given"]
    return [] if set(said) <= set(known) else [f"a {name} is not one of {', '.join(known)}"]


# -- rows ----------------------------------------------------------------------------------------


def row_data(row: Mapping[str, Any], meta: Mapping[str, str], sample: str) -> dict[str, Any]:
    """What the row form shows of one record.

    Args:
        row: as `data.versions.view` reads it.
        meta: what stands beside it: source, licence, findings, why it was chosen.
        sample: how the rows were chosen, and what that supports.
    """
    last = row["messages"][-1]
    after = _calls(last)
    if rejected := (row.get("extra") or {}).get("rejected"):
        after += _bubble("the answer to be avoided", rejected)
    return {
        **_identity(row),
        "chat_html": _chat(row) + after,
        "completion": last["content"],
        "meta": dict(meta),
        "sample": sample,
    }


def preference_data(
    row: Mapping[str, Any], meta: Mapping[str, str], sample: str, seed: str
) -> dict[str, Any]:
    """What the preference form shows of one preference pair; which answer is A says nothing."""
    chosen, calls = row["messages"][-1]["content"], _calls_text(row["messages"][-1])
    pair = [f"{chosen}\n{calls}" if calls else chosen, row["extra"]["rejected"]]
    if not chosen_is_first(seed, row["record_id"]):
        pair.reverse()
    return {
        **_identity(row),
        "chat_html": _chat(row),
        "answer_a": pair[0],
        "answer_b": pair[1],
        "meta": dict(meta),
        "sample": sample,
        "said_html": "",
        "may_swap": not calls,
    }


def chosen_is_first(seed: str, record_id: str) -> bool:
    """Whether the pair's chosen answer is shown as A: a coin that falls the same way each time.

    Args:
        seed: of the round, hexadecimal.
    """
    from ftaas_pipelines.data.splits.rules import share

    return share(int(seed, 16), f"order\0{record_id}") < 0.5


def said_html(answers: Iterable[Result]) -> str:
    """What reviewers said of one row, without their names, in an order that tells nothing of them."""
    cards = sorted("".join(_bubble(name, text) for name, text in _told(answer) if text) for answer in answers)
    return "".join(f'<div style="margin-bottom: 12px"><b>One reviewer</b>{card}</div>' for card in cards)


def _told(answer: Result) -> list[tuple[str, str]]:
    return [
        ("verdict", field(answer, "verdict") or field(answer, "preference")),
        ("corrected text", field(answer, "corrected") if field(answer, "verdict") == "fix" else ""),
        ("reasons", ", ".join(sorted(list_of(answer, "reason")))),
        ("note", field(answer, "comment") or field(answer, "why")),
    ]


def _identity(row: Mapping[str, Any]) -> dict[str, str]:
    return {"record_id": row["record_id"], "content_id": row["content_id"]}


def _chat(row: Mapping[str, Any]) -> str:
    turns = "".join(_bubble(m["role"], m["content"], _beside(m)) for m in row["messages"][:-1])
    return turns or "<i>plain text: nothing is asked</i>"


def _beside(message: Mapping[str, Any]) -> str:
    images = "".join(f"<div><i>image: {escape(i['ref'][:200])}</i></div>" for i in message.get("images", ()))
    return images + _calls(message)


def _calls(message: Mapping[str, Any]) -> str:
    text = _calls_text(message)
    return _bubble("tool calls (a correction leaves them as they are)", text) if text else ""


def _calls_text(message: Mapping[str, Any]) -> str:
    calls = (call["function"] for call in message.get("tool_calls", ()))
    return "\n".join(f"{call['name']}({call['arguments']})" for call in calls)


def _bubble(name: str, text: str, inside: str = "") -> str:
    """One turn; `inside` is HTML already."""
    body = f'<div style="white-space: pre-wrap">{escape(text)}</div>'
    return f'<div style="margin: 6px 0"><b>{escape(name)}</b>{body}{inside}</div>'
