"""What happens to every text, as `dataset.cleaning` asks; each option counts the records it changed."""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable

from ftaas_pipelines.data.records import Record
from ftaas_pipelines.projects.project import Cleaning

# Cc without tab and newline; carriage returns go, so that CRLF and LF files give one content.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_WHITE_SPACE = re.compile(r"\s+")


def steps(options: Cleaning) -> list[tuple[str, Callable[[str], str]]]:
    """The text functions that are switched on, in the order they run."""
    every: list[tuple[str, Callable[[str], str]]] = [
        ("unicode_nfc", lambda text: unicodedata.normalize("NFC", text)),
        ("control_characters", lambda text: _CONTROL.sub("", text)),
        ("collapse_white_space", lambda text: _WHITE_SPACE.sub(" ", text)),
        ("strip", str.strip),
    ]
    return [(name, step) for name, step in every if getattr(options, name)]


def clean(records: list[Record], options: Cleaning) -> dict[str, int]:
    """Clean every message in place. Returns how many records each option that is on changed."""
    changed: Counter[str] = Counter({name: 0 for name, _ in steps(options)})
    for name, step in steps(options):
        for record in records:
            after = [{**message, "content": step(message["content"])} for message in record.messages]
            if after != record.messages:
                changed[name] += 1
                record.messages = after
    return dict(changed)


def length_fault(record: Record, options: Cleaning) -> str | None:
    """`too_short` or `too_long` where a message's characters are outside the limits."""
    lengths = [len(message["content"]) for message in record.messages]
    if min(lengths) < options.min_characters:
        return "too_short"
    return "too_long" if max(lengths) > options.max_characters else None
