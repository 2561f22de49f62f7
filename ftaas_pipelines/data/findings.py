"""What detectors see on records: kind and place, never the value.

A detector is anything with a `name` and a `find`; later ones (person names, toxicity) join
`DETECTORS`. One that did not run is listed as "not checked", so that silence never reads as clean.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal, NamedTuple, Protocol

from ftaas_pipelines.data.records import Record

Severity = Literal["low", "medium", "high"]
NOT_CHECKED = ("person_names", "toxicity")


class Span(NamedTuple):
    """A place in a text: characters `start` to `end` (exclusive)."""

    kind: str
    start: int
    end: int


class Detector(Protocol):
    """Sees one kind of thing in a text."""

    @property
    def name(self) -> str: ...

    @property
    def severity(self) -> Severity: ...

    def find(self, text: str) -> Iterator[Span]: ...


@dataclass(frozen=True)
class Finding:
    """What one detector saw. `field` is prompt, answer or system: a column, or the first message."""

    record_id: str
    detector: str
    kind: str
    field: str
    start: int
    end: int
    severity: Severity


@dataclass(frozen=True)
class PatternDetector:
    """Regular expressions (kind to pattern), each match confirmed by `holds`."""

    name: str
    severity: Severity
    patterns: dict[str, re.Pattern[str]]
    holds: Callable[[str], bool] = bool

    def find(self, text: str) -> Iterator[Span]:
        for kind, pattern in self.patterns.items():
            for match in pattern.finditer(text):
                if self.holds(match.group()):
                    yield Span(kind, match.start(), match.end())


def luhn(text: str) -> bool:
    """Whether the digits of a text pass the Luhn check (ISO/IEC 7812-1, annex B)."""
    digits = [int(c) for c in reversed(text) if c.isdigit()]
    doubled = sum(sum(divmod(2 * d, 10)) for d in digits[1::2])
    return len(set(digits)) > 1 and (sum(digits[::2]) + doubled) % 10 == 0


def iban(text: str) -> bool:
    """Whether a text is an IBAN by its check digits (ISO 13616: mod 97 is 1)."""
    compact = text.replace(" ", "").upper()
    return (
        15 <= len(compact) <= 34
        and int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1
    )


def _is_phone(text: str) -> bool:
    return 9 <= sum(c.isdigit() for c in text) <= 15


def _is_ip(text: str) -> bool:
    try:
        return bool(ip_address(text))
    except ValueError:
        return False


_SECRETS = {
    "aws_access_key": re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"),
    "private_key": re.compile(r"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----"),
    "bearer_token": re.compile(r"\b[Bb]earer\s+[\w.~+/-]{20,}=*"),
    "service_token": re.compile(r"\b(?:sk-|ghp_|gho_|glpat-|hf_|xox[abp]-)[A-Za-z0-9_-]{20,}"),
}
# A phone needs a sign of being one (+, a leading 0 or an area code): bare digit groups are part numbers.
_PHONE = re.compile(
    r"(?<![\w.+-])(?<!\d )(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d[\d .-]{5,14}\d"
    r"|\(?0\d{1,4}\)?[ -]\d[\d -]{4,11}\d|\(\d{3}\) ?\d{3}-\d{4}|\d{3}-\d{3}-\d{4})(?![\w-])"
)
DETECTORS: tuple[Detector, ...] = (
    PatternDetector(
        "email", "medium", {"email": re.compile(r"\b[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[a-zA-Z]{2,24}\b")}
    ),
    PatternDetector("phone", "medium", {"phone": _PHONE}, _is_phone),
    PatternDetector(
        "ip_address",
        "low",
        {
            "ipv4": re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)"),
            "ipv6": re.compile(r"(?<![\w:])(?=[a-fA-F:]*\d)[0-9a-fA-F]*:[0-9a-fA-F:]{2,36}(?![\w:])"),
        },
        _is_ip,
    ),
    PatternDetector(
        "credit_card", "high", {"credit_card": re.compile(r"(?<![\w-])\d(?:[ -]?\d){12,18}(?![\w-])")}, luhn
    ),
    PatternDetector(
        "iban",
        "high",
        {"iban": re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")},
        iban,
    ),
    PatternDetector("secret", "high", _SECRETS),
)


def find(records: Sequence[Record], detectors: Sequence[Detector] = DETECTORS) -> list[Finding]:
    """Every finding on these records, sorted."""
    findings = [
        Finding(record.record_id, detector.name, span.kind, field, span.start, span.end, detector.severity)
        for record in records
        for field, text in _fields(record)
        for detector in detectors
        for span in detector.find(text)
    ]
    return sorted(findings, key=lambda f: (f.record_id, f.detector, f.field, f.start, f.end, f.kind))


def counts(findings: Sequence[Finding], detectors: Sequence[Detector] = DETECTORS) -> dict[str, int | str]:
    """Findings by detector; "not checked" for those that did not run."""
    ran: dict[str, int | str] = {d.name: sum(f.detector == d.name for f in findings) for d in detectors}
    return {**{name: "not checked" for name in NOT_CHECKED}, **ran}


def _fields(record: Record) -> Iterator[tuple[str, str]]:
    if record.turns is not record.messages:
        yield "system", record.messages[0]["content"]
    yield "prompt", record.prompt
    yield "answer", record.answer
