"""Places in a text that a rule speaks of: personal data, secrets, words. The value stays where it is."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ftaas_pipelines.data.privacy import contacts, credentials, identifiers
from ftaas_pipelines.data.privacy.findings import Detector
from ftaas_pipelines.projects.guard import GuardSide
from ftaas_pipelines.serving.guard import hints

_PERSONAL = (
    identifiers.CREDIT_CARD,
    identifiers.IBAN,
    identifiers.NATIONAL_ID,
    identifiers.MEDICAL_RECORD_NUMBER,
    contacts.EMAIL,
    contacts.PHONE,
)
_ACTING = ("redact", "refuse")
_STRICT = {"refuse": 0, "redact": 1, "flag": 2}
_BLANK = 32  # white space that detectors are shown of a longer run: some patterns take its square in time
_BLANKS = re.compile(rf"\s{{{_BLANK + 1},}}")


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
        secret, personal: whether secrets, personal data are redacted or refused.
        longest: characters of the longest word or phrase that is redacted or refused; 0: none is.
    """

    def __init__(self, rules: GuardSide):
        self._detectors: list[tuple[Detector, str, str]] = []
        if rules.secrets != "off":
            self._detectors.append((credentials.SECRET, "secrets", rules.secrets))
        if rules.personal_data != "off":
            self._detectors += [(detector, "personal_data", rules.personal_data) for detector in _PERSONAL]
        self._words = _one_of(rules.words) if rules.words and rules.on_words != "off" else None
        self._on_words = rules.on_words
        self.secret = rules.secrets in _ACTING
        self.personal = rules.personal_data in _ACTING
        acts = self._words is not None and rules.on_words in _ACTING
        self.longest = max(len(word) for word in rules.words) if acts else 0
        self.changes = acts or self.personal or self.secret

    def spots(self, text: str) -> list[Spot]:
        """The places, in order, none over another: of overlapping ones the stricter, then the longer."""
        return apart(self.all(text))

    def all(self, text: str, acting: bool = False) -> list[Spot]:
        """Every place, also over one another; `acting`: only those that are redacted or refused."""
        shown, removed = _shown(text)
        found = self._find(shown, acting)
        return [s._replace(start=_at(s.start, removed), end=_at(s.end, removed)) for s in found]

    def _find(self, text: str, acting: bool) -> Iterator[Spot]:
        hinted = hints.hinted(text) if self._detectors else set[str]()
        for detector, rule, action in self._detectors:
            if (acting and action not in _ACTING) or detector.name in hints.KNOWN - hinted:
                continue
            for span in detector.find(text):
                yield Spot(span.start, span.end, rule, span.kind, action)
        if self._words and not (acting and self._on_words not in _ACTING):
            for match in self._words.finditer(text):
                yield Spot(*match.span(), "words", "word", self._on_words)


def apart(found: Sequence[Spot]) -> list[Spot]:
    """Of places over one another the stricter, then the longer; in order."""
    kept: list[Spot] = []  # in order: a spot can only lie over its two neighbours
    for spot in sorted(found, key=lambda s: (_STRICT[s.action], s.start - s.end, s.start, s.kind)):
        at = bisect_right(kept, spot)
        before, after = kept[max(at - 1, 0) : at], kept[at : at + 1]
        if not any(spot.start < other.end and other.start < spot.end for other in (*before, *after)):
            kept.insert(at, spot)
    return kept


def _shown(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text with long runs of white space cut short, and from where on how many characters are missing."""
    pieces: list[str] = []
    removed: list[tuple[int, int]] = []
    at = missing = 0
    for run in _BLANKS.finditer(text):
        last = "\n" if "\n" in run[0] else run[0][-1]
        pieces += [text[at : run.start() + _BLANK - 1], last]
        at = run.end()
        missing += len(run[0]) - _BLANK
        removed.append((at - missing, missing))
    return "".join([*pieces, text[at:]]), removed


def _at(place: int, removed: Sequence[tuple[int, int]]) -> int:
    """Where a place of the shown text is in the text."""
    i = bisect_right(removed, place, key=lambda r: r[0]) - 1
    return place + removed[i][1] if i >= 0 else place


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
