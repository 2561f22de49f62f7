"""What stands in a text where personal data stood: a label, a pseudonym, or a plausible stand-in.

All of it follows from the record_id and the value, so a value reads the same wherever its record repeats
it, and two records cannot be linked by it. Who knows both the record_id and a guess can still test the
guess: a pseudonym is personal data (GDPR, recital 26); `redact` where that matters.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Sequence

from stdnum import iban, luhn

from ftaas_pipelines.data.privacy.findings import Span
from ftaas_pipelines.data.privacy.identifiers import vin_check
from ftaas_pipelines.data.rows.cells import is_json
from ftaas_pipelines.projects.dataset import Entity, Treatment

_AREAS = ("202", "212", "303", "312", "404", "415", "503", "617", "713", "808")
_NAMES = ("Alex", "Charlie", "Eden", "Jamie", "Kim", "Lou", "Noa", "Robin", "Sam", "Toni")
_SURNAMES = ("Example", "Muster", "Sample", "Specimen")
_YEAR = re.compile(r"(?:1[89]|20)\d\d")
# Who was born before this year is over 89, and Safe Harbor lets not even the year stand (published 2026).
_YOUNG_ENOUGH = 1937


def _ip(n: int, value: str) -> str:
    # Documentation ranges: RFC 5737 and RFC 3849.
    if ":" in value:
        return f"2001:db8::{n % 65535 + 1:x}"
    return f"{('192.0.2', '198.51.100', '203.0.113')[n // 254 % 3]}.{n % 254 + 1}"


def _card(n: int, _: str) -> str:
    number = f"411111{n % 10**9:09d}"
    return number + luhn.calc_check_digit(number)


def _iban(n: int, _: str) -> str:
    account = f"TEST{n % 10**14:014d}"
    return f"GB{iban.calc_check_digits('GB00' + account)}{account}"


def _vin(n: int, _: str) -> str:
    vin = f"1TESTXAA0AA{n % 10**6:06d}"
    return vin[:8] + vin_check(vin) + vin[9:]


def _device(n: int, value: str) -> str:
    if not value[0].isdigit() or ":" in value or value.count("-") == 5:
        return f"00:00:5E:00:53:{n % 256:02X}"  # documentation range: RFC 7042
    number = f"001012{n % 10**8:08d}"  # the test body's type allocation code
    return number + luhn.calc_check_digit(number)


def _year(_: int, value: str) -> str:
    year = _YEAR.search(value)
    return year.group() if year and int(year.group()) >= _YOUNG_ENOUGH else "[DATE]"


_STAND_INS: dict[Entity, Callable[[int, str], str]] = {
    "email": lambda n, _: f"user{n % 10**6:06d}@example.com",
    "phone": lambda n, _: f"+1-{_AREAS[n // 100 % 10]}-555-01{n % 100:02d}",
    "credit_card": _card,
    "iban": _iban,
    "national_id": lambda n, _: f"000-{n // 10**4 % 99 + 1:02d}-{n % 10**4:04d}",  # area 000: never issued
    "ip_address": _ip,
    "medical_record_number": lambda n, _: f"TEST-{n % 10**7:07d}",
    "person_name": lambda n, _: f"{_NAMES[n % 10]} {_SURNAMES[n // 10 % 4]}",
    "secret": lambda n, _: f"example-secret-{n % 16**8:08x}",
    "url": lambda n, _: f"https://example.com/{n % 16**8:08x}",
    "date": _year,
    "address": lambda n, _: f"{n % 900 + 100} Example Street",
    "age_over_89": lambda n, _: "90+",
    "vehicle_id": _vin,
    "device_id": _device,
}
_LESS_EXACT: tuple[Entity, ...] = ("date", "age_over_89")  # here equal stand-ins are the point
_TRIES = 50


class StandIns:
    """What replaces the values of one record."""

    def __init__(self, record_id: str):
        self._key = hashlib.sha256(b"ftaas privacy\0" + record_id.encode()).digest()
        self._given: dict[tuple[Entity, str], str] = {}

    def of(self, entity: Entity, treatment: Treatment, value: str) -> str:
        """The replacement of a value; how it is spaced and cased does not count."""
        label = entity.upper()
        if treatment == "redact":
            return f"[{label}]"
        plain = "".join(c for c in value.casefold() if c.isalnum()) or value
        digest = hmac.new(self._key, f"{entity}\0{plain}".encode(), hashlib.sha256).hexdigest()
        if treatment == "hash":
            return f"[{label}:{digest[:8]}]"
        return self._plausible(entity, plain, value, int(digest, 16))

    def _plausible(self, entity: Entity, plain: str, value: str, number: int) -> str:
        if (entity, plain) not in self._given:
            others = {given for (other, _), given in self._given.items() if other == entity}
            make = _STAND_INS[entity]
            # Different values get different stand-ins, unless the range is used up.
            tries = (make(number + i, value) for i in range(1 if entity in _LESS_EXACT else _TRIES))
            self._given[entity, plain] = next(
                (made for made in tries if made not in others), make(number, value)
            )
        return self._given[entity, plain]


_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_VALUE_OF_KEY = re.compile(r'(\\*)"\s*:\s*$')
_IN_LIST = re.compile(r"[\[,]\s*$")
_VALUE_ENDS = re.compile(r"\s*(?:[,}\]]|\\n)")


def rewrite(text: str, places: Sequence[Span], replacements: Sequence[str]) -> str:
    """The text with each place replaced; JSON in it stays JSON.

    Args:
        text: any text.
        places: in order, none over another.
        replacements: free of quotes and backslashes; one for each place.
    """
    parts: list[str] = []
    end = 0
    for place, replacement in zip(places, replacements, strict=True):
        quote = _missing_quote(text, place)
        parts += [text[end : place.start], quote, replacement, quote]
        end = place.end
    return "".join([*parts, text[end:]])


def _missing_quote(text: str, place: Span) -> str:
    """The quote that a bare JSON number needs around what replaces it; empty where none is needed."""
    if not _NUMBER.fullmatch(text, place.start, place.end) or not _VALUE_ENDS.match(text, place.end):
        return ""
    before = text[max(0, place.start - 20) : place.start]
    if key := _VALUE_OF_KEY.search(before):
        return f'{key.group(1)}"'
    return '"' if _IN_LIST.search(before) and is_json(text) else ""
