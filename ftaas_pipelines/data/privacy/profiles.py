"""Which entities are looked for, and what becomes of them, by profile.

- `off`: nothing is looked for; every detector says "not checked".
- `none`: what needs no reading between the lines is found and kept.
- `default`: what names or reaches a person, and every secret, is redacted. IP addresses, vehicles and
  devices are found and kept: in operating data they mostly name machines.
- `gdpr`: online identifiers too are personal data (recital 30), and a pseudonym still is (recital 26):
  so all is redacted, nothing hashed. A plain date is not personal; ask for `date` where births stand.
- `hipaa_safe_harbor`: the 18 identifiers of 45 CFR 164.514(b)(2)(i), see `SAFE_HARBOR`. Dates keep their
  year, ages above 89 become `90+`.
"""

from collections.abc import Iterable
from typing import NamedTuple

from ftaas_pipelines.projects.dataset import Entity, Privacy, Treatment

# Found in every profile; the rest (url, date, address, age_over_89) only where a treatment is named, for
# by itself none of it is personal.
ALWAYS: tuple[Entity, ...] = (
    "email", "phone", "ip_address", "credit_card", "iban", "national_id", "medical_record_number",
    "vehicle_id", "device_id", "secret", "person_name",
)  # fmt: skip

_REACHES_A_PERSON: tuple[Entity, ...] = (
    "email", "phone", "credit_card", "iban", "national_id", "medical_record_number", "person_name", "secret",
)  # fmt: skip
_IDENTIFIES: tuple[Entity, ...] = (*_REACHES_A_PERSON, "ip_address", "vehicle_id", "device_id", "address")


def _redact(entities: Iterable[Entity]) -> dict[Entity, Treatment]:
    return dict.fromkeys(entities, "redact")


PROFILES: dict[str, dict[Entity, Treatment]] = {
    "off": {},
    "none": {},
    "default": _redact(_REACHES_A_PERSON),
    "gdpr": _redact(_IDENTIFIES),
    "hipaa_safe_harbor": {
        **_redact(_IDENTIFIES),
        "url": "redact",
        "date": "replace",
        "age_over_89": "replace",
    },
}


class Identifier(NamedTuple):
    """One of Safe Harbor's identifiers: what finds it, and what of it no detector sees."""

    letter: str
    name: str
    entities: tuple[Entity, ...] = ()
    not_checked: str = ""


SAFE_HARBOR = (
    Identifier("A", "names", ("person_name",)),
    Identifier("B", "places smaller than a state", ("address",), "places_without_a_street"),
    Identifier("C", "dates but the year, ages over 89", ("date", "age_over_89")),
    Identifier("D", "telephone numbers", ("phone",)),
    Identifier("E", "fax numbers", ("phone",)),
    Identifier("F", "electronic mail addresses", ("email",)),
    Identifier("G", "social security numbers", ("national_id",)),
    Identifier("H", "medical record numbers", ("medical_record_number",)),
    Identifier("I", "health plan beneficiary numbers", ("medical_record_number",)),
    Identifier("J", "account numbers", ("iban", "credit_card"), "other_account_numbers"),
    Identifier("K", "certificate and licence numbers", (), "certificate_and_licence_numbers"),
    Identifier("L", "vehicle identifiers", ("vehicle_id",), "licence_plates"),
    Identifier("M", "device identifiers", ("device_id",), "device_serial_numbers"),
    Identifier("N", "URLs", ("url",)),
    Identifier("O", "IP addresses", ("ip_address",)),
    Identifier("P", "biometric identifiers", (), "biometric_identifiers"),
    Identifier("Q", "full-face photographs", (), "photographs"),
    Identifier("R", "any other unique identifier", (), "other_unique_identifiers"),
)


def treatments(options: Privacy) -> dict[Entity, Treatment]:
    """The treatment of each entity that is looked for: the project's own, else the profile's, else keep."""
    always = () if options.profile == "off" else ALWAYS
    kept: dict[Entity, Treatment] = dict.fromkeys(always, "keep")
    return {**kept, **PROFILES[options.profile], **options.entities}


def beyond_detectors(options: Privacy) -> tuple[str, ...]:
    """What the chosen profile asks for and no detector can see."""
    if options.profile != "hipaa_safe_harbor":
        return ()
    return tuple(identifier.not_checked for identifier in SAFE_HARBOR if identifier.not_checked)
