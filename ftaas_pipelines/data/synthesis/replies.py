"""What a model's reply says: pairs of question and answer, or one of some labels."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, cast

from ftaas_pipelines.data.rows import template_tokens
from ftaas_pipelines.data.synthesis.material import Pair

_DECODER = json.JSONDecoder()
_AROUND = " \t\n\r\"'`*.:!,"
_NAMED = re.compile(r"^(?:the\s+)?(?:label|answer|class|category)\s*(?:is|:)\s*", re.IGNORECASE)
_ANY_WORD = re.compile(r"\w")


def pairs(text: str, cut_off: bool) -> tuple[list[Pair], Counter[str]]:
    """The pairs in a reply: JSON objects with `prompt` and `completion`, whatever stands around them.

    Args:
        cut_off: whether the reply ran into the limit of tokens.

    Returns:
        The pairs, and what is none, by reason: unparsable (no JSON in the reply), not_a_pair, empty,
        template_token, cut_off.
    """
    out: list[Pair] = []
    dropped: Counter[str] = Counter(["cut_off"] if cut_off else ())
    seen = 0
    for value in _objects(text):
        seen += 1
        prompt, completion = _text(value.get("prompt")), _text(value.get("completion"))
        if prompt is None or completion is None:
            dropped["not_a_pair"] += 1
        elif reason := unfit(prompt, completion):
            dropped[reason] += 1
        else:
            out.append(Pair(prompt, completion))
    if not seen and not cut_off:
        dropped["unparsable"] += 1
    return out, dropped


def unfit(*texts: str) -> str:
    """Why texts can be no part of a row: `empty` or `template_token`; empty where they can."""
    if not all(_ANY_WORD.search(text) for text in texts):
        return "empty"
    try:
        data = "\n".join(texts).encode()
    except UnicodeEncodeError:  # half a surrogate pair, as JSON can escape it
        return "not_text"
    return "template_token" if template_tokens.find(data) else ""


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of a text, from left to right; of one that only holds a list of them, those."""
    at = text.find("{")
    while at >= 0:
        try:
            value, end = _DECODER.raw_decode(text, at)
        except (ValueError, RecursionError):
            at = text.find("{", at + 1)
            continue
        inner = [v for v in value.values() if isinstance(v, list)] if "prompt" not in value else []
        listed = [v for v in cast(list[Any], inner[0]) if isinstance(v, dict)] if len(inner) == 1 else []
        yield from cast(list[dict[str, Any]], listed or [value])
        at = text.find("{", end)


def _text(value: Any) -> str | None:
    """A text as it is, an object or a list as its JSON (a structured answer), nothing else."""
    if isinstance(value, str):
        return value.strip()
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list)) else None


def label(text: str, labels: Sequence[str]) -> str | None:
    """The label that a reply names; None where it names none.

    Case and punctuation around it do not count, nor "Label: " before it. A label inside of a sentence does
    not count: "not spam" is not spam.
    """
    plain = text.strip(_AROUND)
    said = {plain.casefold(), _NAMED.sub("", plain).strip(_AROUND).casefold()}
    return next((label for label in labels if label.strip(_AROUND).casefold() in said), None)
