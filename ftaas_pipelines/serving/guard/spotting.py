"""Places in a text that a rule speaks of: personal data, secrets, words. The value stays where it is."""

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

from ftaas_pipelines.data.privacy import contacts, credentials, identifiers
from ftaas_pipelines.data.privacy.findings import Detector
from ftaas_pipelines.projects.guard import GuardSide

_PERSONAL = (
    identifiers.CREDIT_CARD,
    identifiers.IBAN,
    identifiers.NATIONAL_ID,
    identifiers.MEDICAL_RECORD_NUMBER,
    contacts.EMAIL,
    contacts.PHONE,
)
_SPREAD = 160  # characters that a place with spaces in it (a telephone, an IBAN, “ann [at] …”) may take up
_BOUNDARY = re.compile(r"\s|[^\x00-\x7f]")
_OPEN_KEY = re.compile(r"-{1,5}(?:BEGIN[^\n]{0,60})?$|-----BEGIN [^\n]{0,60}$")


class Spot(NamedTuple):
    """Characters `start` to `end` (exclusive), the rule that speaks of them, and what it does."""

    start: int
    end: int
    rule: str
    kind: str
    action: str

    def moved(self, by: int) -> "Spot":
        return self._replace(start=self.start + by, end=self.end + by)


class Spotter:
    """Finds the places that one side's rules speak of.

    Attributes:
        changes: whether any rule redacts or refuses a place: then a stream is held back.
    """

    def __init__(self, rules: GuardSide):
        self._detectors: list[tuple[Detector, re.Pattern[str], str, str]] = []
        if rules.secrets != "off":
            self._add(credentials.SECRET, "secrets", rules.secrets)
        if rules.personal_data != "off":
            for detector in _PERSONAL:
                self._add(detector, "personal_data", rules.personal_data)
        self._words = _one_of(rules.words) if rules.words and rules.on_words != "off" else None
        self._on_words = rules.on_words
        acting = ("redact", "refuse")
        self._spread = 0
        if rules.personal_data in acting:
            self._spread = _SPREAD
        if self._words and rules.on_words in acting:
            self._spread = max(self._spread, 2 * max(len(word) for word in rules.words))
        words = self._words is not None and rules.on_words in acting
        self.changes = words or rules.secrets in acting or rules.personal_data in acting

    def _add(self, detector: Detector, rule: str, action: str) -> None:
        self._detectors.append((detector, _gate(detector.gate), rule, action))

    def spots(self, text: str) -> list[Spot]:
        """The places, in order, none over another: of overlapping ones the stricter, then the longer."""
        found = list(self._all(text))
        strict = {"refuse": 0, "redact": 1, "flag": 2}
        kept: list[Spot] = []
        for spot in sorted(found, key=lambda s: (strict[s.action], s.start - s.end, s.start, s.kind)):
            if not any(spot.start < other.end and other.start < spot.end for other in kept):
                kept.append(spot)
        return sorted(kept)

    def _all(self, text: str) -> Iterator[Spot]:
        for detector, gate, rule, action in self._detectors:
            if gate.search(text):
                for span in detector.find(text):
                    yield Spot(span.start, span.end, rule, span.kind, action)
        if self._words:
            for match in self._words.finditer(text):
                yield Spot(*match.span(), "words", "word", self._on_words)

    def safe_until(self, text: str, gone: int) -> int:
        """How far no rule can see more, whatever comes behind: whole words, `_SPREAD` before the end."""
        end = len(text) - self._spread
        if open_key := _OPEN_KEY.search(text, max(gone, len(text) - 80)):
            end = min(end, open_key.start())
        while end > gone:
            if _BOUNDARY.match(text[end - 1]):
                return end
            end -= 1
        return gone


@cache
def _gate(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def _one_of(words: Sequence[str]) -> re.Pattern[str]:
    """Any of these words or phrases, whole, in any case, with any white space between."""
    phrases = (r"\s+".join(re.escape(part) for part in word.split()) for word in words)
    return re.compile(rf"(?<!\w)(?:{'|'.join(phrases)})(?!\w)", re.IGNORECASE)


def redacted(text: str, spots: Sequence[Spot]) -> str:
    """The text with [KIND] in each place that is to be redacted."""
    pieces: list[str] = []
    at = 0
    for spot in spots:
        if spot.action == "redact":
            pieces += [text[at : spot.start], f"[{spot.kind.upper()}]"]
            at = spot.end
    return "".join([*pieces, text[at:]])
