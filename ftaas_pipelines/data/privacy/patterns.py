"""What most detectors are made of: a regular expression proposes, a library or a word of context confirms."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ftaas_pipelines.data.privacy.findings import Span

CONTEXT = 40  # characters before a match in which a word may say what it is
# What makes a row of digits something else, standing right before it.
_OTHER_NUMBER = re.compile(
    r"(?:\b(?:part|order|invoice|ref|reference|serial|s/n|sku|isbn|issn|ean|tracking|ticket|case|batch|lot|item|"
    r"model|article|version|firmware|release|build|asset|drawing|contract|artikel|bestell|rechnungs?|"
    r"teile?|serien|auftrags?|ticket|commande|facture|pièce|référence|série|pedido|factura|pieza|referencia|"
    r"serie|albarán)[-\s]?(?:numbers?|nummer|numéro|número|no|nr|num|n°|nº|id|code)?)"
    r"(?:\s(?:is|was|ist|est|es))?[\s.:#°º\"'(=-]{0,5}$",
    re.IGNORECASE,
)
_LETTER = re.compile(r"[^\W\d_]")


@dataclass(frozen=True)
class Pattern:
    """A regular expression that proposes places, and what confirms them.

    Attributes:
        regex: its group `value`, where it has one, is the place; else the whole match.
        holds: whether the value is what it seems.
        context: must be found in the characters before it.
        shortens: the last group of digits or letters may belong to the next words: when the whole does not
            hold, it is tried without.
        numeric: a word such as "part no." right before it makes it something else.
    """

    kind: str
    regex: re.Pattern[str]
    holds: Callable[[str], bool] = bool
    context: re.Pattern[str] | None = None
    shortens: bool = False
    numeric: bool = False

    def find(self, text: str) -> Iterator[Span]:
        group = "value" if "value" in self.regex.groupindex else 0
        for match in self.regex.finditer(text):
            start, end = match.span(group)
            before = text[max(0, start - CONTEXT) : start]
            # Rows of numbers may be long, and without a letter before it none of them is any word's.
            worded = _LETTER.search(before) is not None
            if self.context and not (worded and self.context.search(before)):
                continue
            if self.numeric and worded and _OTHER_NUMBER.search(before):
                continue
            while end > start:
                if self.holds(text[start:end]):
                    yield Span(self.kind, start, end)
                    break
                end = start + _last_break(text[start:end]) if self.shortens else start


def _last_break(value: str) -> int:
    """Where the last group of a value begins, white space before it left out; 0 when there is but one."""
    return len(value[: max(value.rfind(" "), value.rfind("-"), 0)].rstrip(" -"))


def finder(*patterns: Pattern) -> Callable[[str], Iterator[Span]]:
    """The `find` of a detector made of these patterns."""

    def find(text: str) -> Iterator[Span]:
        for pattern in patterns:
            yield from pattern.find(text)

    return find
