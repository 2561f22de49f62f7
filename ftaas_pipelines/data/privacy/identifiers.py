"""Identifiers that a check digit, a strict shape or a word of context proves: cards, accounts, ids."""

import re
from importlib import import_module
from typing import NamedTuple

from stdnum import iban, imei, luhn

from ftaas_pipelines.data.privacy.findings import Detector
from ftaas_pipelines.data.privacy.patterns import Pattern, finder

# ISO/IEC 7812 issuers and their lengths. Visa's old 13 digits are left out: they look like EAN barcodes.
_ISSUERS = re.compile(
    r"4\d{15}(?:\d{3})?|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[689]\d)\d{11}|6(?:011|5\d\d|4[4-9]\d)\d{12}|35\d{14}|62\d{14,17}|(?:50|5[6-9]|6[37])\d{14}"
)


def _plain(text: str) -> str:
    return re.sub(r"\D", "", text)


def _is_card(text: str) -> bool:
    number = _plain(text)
    return len(set(number)) > 1 and _ISSUERS.fullmatch(number) is not None and luhn.is_valid(number)


def _is_iban(text: str) -> bool:
    # The check digits and the country's length; its own inner checks differ from bank to bank.
    return iban.is_valid(text, check_country=False)


def _said(words: str) -> re.Pattern[str]:
    """One of these words in the characters before."""
    return re.compile(rf"(?i)(?<!\w)(?:{words})(?![^\W\d_])")


class National(NamedTuple):
    """A country's identifier: its shape, the stdnum module that checks it, and words that must say so."""

    kind: str
    shape: str
    module: str | None = None
    context: str | None = None

    @property
    def gate(self) -> str:
        return rf"\b(?i:{self.context})\b[^\n]{{0,40}}\d\d" if self.context else self.shape

    @property
    def pattern(self) -> Pattern:
        return Pattern(
            self.kind,
            re.compile(rf"(?<![\w.+-])(?:{self.shape})(?![\w-]|\.\d)", re.ASCII),
            import_module(f"stdnum.{self.module}").is_valid if self.module else bool,
            _said(self.context) if self.context else None,
            numeric=self.context is None,
        )


# A shape with a check that few other numbers pass stands alone; the others need a word before them.
_NATIONAL = (
    National("us_ssn", r"\d{3}-\d\d-\d{4}", "us.ssn"),
    National("us_ssn", r"\d{3}[- ]?\d\d[- ]?\d{4}", None, r"ssn|social[ -]security(?: number| no)?"),
    National("us_itin", r"9\d\d-?\d\d-?\d{4}", "us.itin", r"itin|tax(?:payer)? id"),
    National("gb_nhs", r"\d{3}[ -]?\d{3}[ -]?\d{4}", "gb.nhs", r"nhs"),
    National(
        "gb_nino",
        r"[A-Z]{2} ?\d\d ?\d\d ?\d\d ?[A-D]",
        None,
        r"ni(?:no)?|national insurance(?: number| no)?|n\.i\.",
    ),
    National("gb_nino", r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] \d\d \d\d \d\d [A-D]"),
    National(
        "de_idnr",
        r"\d{2} ?\d{3} ?\d{3} ?\d{3}",
        "de.idnr",
        r"steuer-?id(?:nr|entifikationsnummer)?|(?:steuer)?identifikationsnummer|idnr|tin|tax id",
    ),
    National("fr_nir", r"[12] ?\d\d ?(?:0[1-9]|1[0-2]|[2-9]\d) ?\d[\dAB] ?\d{3} ?\d{3} ?\d\d", "fr.nir"),
    National("es_dni", r"\d{8}-?[A-Z]", "es.dni"),
    National("es_nie", r"[XYZ]-?\d{7}-?[A-Z]", "es.nie"),
    National("it_codice_fiscale", r"[A-Z]{6}\d\d[A-EHLMPRST]\d\d[A-Z]\d{3}[A-Z]", "it.codicefiscale"),
    National("nl_bsn", r"\d{4}\.?\d{2}\.?\d{3}", "nl.bsn", r"bsn|burgerservicenummer|sofinummer"),
    National("be_nn", r"\d\d\.\d\d\.\d\d-\d{3}\.\d\d", "be.nn"),
    National("ch_ahv", r"756\.\d{4}\.\d{4}\.\d\d", "ch.ssn"),
    National("pl_pesel", r"\d{11}", "pl.pesel", r"pesel"),
    National("se_personnummer", r"(?:19|20)?\d{6}[-+]\d{4}", "se.personnummer"),
    National("dk_cpr", r"\d{6}-?\d{4}", "dk.cpr", r"cpr"),
    National("fi_hetu", r"\d{6}[-+A]\d{3}[0-9A-FHJ-NPR-Y]", "fi.hetu"),
    National("pt_nif", r"\d{9}", "pt.nif", r"nif|contribuinte"),
    National("ca_sin", r"\d{3}[ -]?\d{3}[ -]?\d{3}", "ca.sin", r"sin|social insurance(?: number| no)?"),
    National("au_tfn", r"\d{3} ?\d{3} ?\d{2,3}", "au.tfn", r"tfn|tax file(?: number| no)?"),
    National("in_aadhaar", r"[2-9]\d{3}[ -]?\d{4}[ -]?\d{4}", "in_.aadhaar", r"aadhaa?r|uidai|uid"),
    National("in_pan", r"[A-Z]{3}P[A-Z]\d{4}[A-Z]", "in_.pan"),
    National("br_cpf", r"\d{3}\.\d{3}\.\d{3}-\d\d", "br.cpf"),
    National("br_cpf", r"\d{11}", "br.cpf", r"cpf"),
    National(
        "passport",
        r"[A-Z]{0,2}\d{6,9}|[CFGHJKLMNPRTVWXYZ][0-9CFGHJKLMNPRTVWXYZ]{8}",
        None,
        r"(?:passport|reisepass|passeport|pasaporte)[\s-]?(?:number|nummer|no|nr|n°|nº)?",
    ),
)

_ID_OF = r"(?:\s?(?:number|no|nr|num|id|#|n°|nº|nummer))?[\s.:#°º\"'(=]{0,5}(?:is |was |ist |est |es )?"
_RECORDS = (
    r"(?:mrn|medical record|patient(?:en)?[ -]?(?:id|number|no\b|nr\b|nummer|akte)|hospital number|"
    r"dossier (?:médical|patient)|n° de dossier|historia clínica|nhc|krankenakte|fallnummer)"
)
_PLANS = (
    r"(?:member[ -]id|health plan|beneficiary|medicare|medicaid|subscriber id|versicherten(?:nummer|nr)|"
    r"krankenversicherungsnummer|insurance (?:id|number|no)|mutuelle|tarjeta sanitaria)"
)
_RECORD = re.compile(rf"(?i:\b{_RECORDS}{_ID_OF})(?P<value>(?:[A-Z]{{1,4}}[- ]?)?\d[\d-]{{3,12}}\d)(?![\w-])")
_PLAN = re.compile(rf"(?i:\b{_PLANS}{_ID_OF})(?P<value>[A-Z]{{0,4}}[- ]?\d[A-Z\d-]{{5,14}})(?![\w-])")

_VIN_VALUES = {
    c: v for v, row in enumerate(("", "AJ", "BKS", "CLT", "DMU", "ENV", "FW", "GPX", "HY", "RZ")) for c in row
}
_VIN_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)


def vin_check(text: str) -> str:
    """The ninth character that a vehicle identification number should have (49 CFR 565.15)."""
    values = (int(c) if c.isdigit() else _VIN_VALUES[c] for c in text)
    rest = sum(value * weight for value, weight in zip(values, _VIN_WEIGHTS, strict=True)) % 11
    return "X" if rest == 10 else str(rest)


def _is_vin(text: str) -> bool:
    letters = sum(c.isalpha() for c in text)
    return 2 <= letters <= 13 and text[8] == vin_check(text)


def _is_imei(text: str) -> bool:
    return imei.is_valid(text) and len(_plain(text)) == 15


CREDIT_CARD = Detector(
    "credit_card",
    "high",
    r"\d(?:[ -]?\d){13}",
    finder(
        Pattern(
            "credit_card",
            re.compile(r"(?<![\w.-])\d(?:[ -]?\d){13,18}(?:[ -]\d{1,4})?(?![\w-])", re.ASCII),
            _is_card,
            shortens=True,
            numeric=True,
        )
    ),
    "credit_card",
)
IBAN = Detector(
    "iban",
    "high",
    r"[A-Z]{2}\d{2} ?[A-Z0-9]{4}",
    finder(
        Pattern(
            "iban",
            re.compile(r"(?<![\w-])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)", re.ASCII),
            _is_iban,
            shortens=True,
        )
    ),
    "iban",
)
NATIONAL_ID = Detector(
    "national_id",
    "high",
    "|".join(national.gate for national in _NATIONAL),
    finder(*(national.pattern for national in _NATIONAL)),
    "national_id",
)
MEDICAL_RECORD_NUMBER = Detector(
    "medical_record_number",
    "high",
    rf"(?i)\b(?:{_RECORDS}|{_PLANS})",
    finder(Pattern("medical_record_number", _RECORD), Pattern("health_plan_number", _PLAN)),
    "medical_record_number",
)
VEHICLE_ID = Detector(
    "vehicle_id",
    "medium",
    r"[A-HJ-NPR-Z0-9]{17}",
    finder(
        Pattern("vin", re.compile(r"(?<![\w-])[A-HJ-NPR-Z0-9]{11}[A-HJ-NPR-Z0-9]\d{5}(?![\w-])"), _is_vin),
        Pattern(  # Europe fills the ninth place freely
            "vin",
            re.compile(r"(?<![\w-])[A-HJ-NPR-Z0-9]{17}(?![\w-])"),
            context=_said(r"vin|fin|chassis|fahrgestellnummer|fahrzeug-?ident\w*|châssis|bastidor"),
        ),
    ),
    "vehicle_id",
)
DEVICE_ID = Detector(
    "device_id",
    "low",
    r"(?i)[0-9a-f]{2}[:-][0-9a-f]{2}[:-][0-9a-f]{2}[:-]|\d{15}|\d\d-\d{6}-\d{6}-\d",
    finder(
        Pattern(
            "mac_address",
            re.compile(r"(?<![\w:-])[0-9A-Fa-f]{2}([:-])(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}(?![\w:-])"),
        ),
        Pattern("imei", re.compile(r"(?<![\w-])\d{15}(?![\w-])"), _is_imei, _said("imei")),
        Pattern("imei", re.compile(r"(?<![\w-])\d\d-\d{6}-\d{6}-\d(?![\w-])"), _is_imei),
    ),
    "device_id",
)
