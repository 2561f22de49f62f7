"""What tells a person by when and where: dates, ages over 89, postal addresses (en, de, fr, es)."""

import re

from ftaas_pipelines.data.privacy.findings import Detector
from ftaas_pipelines.data.privacy.patterns import Pattern, finder

_MONTHS = (
    r"(?:jan(?:uary|uar|vier)?|feb(?:ruary|ruar)?|février|mar(?:ch|s|zo)?|märz|apr(?:il)?|avril|abril|may|mai|"
    r"mayo|june?|juni|juin|junio|july?|juli|juillet|julio|aug(?:ust)?|août|agosto|sept?(?:ember|embre)?|"
    r"septiembre|o[ck]t(?:ober|obre|ubre)?|nov(?:ember|embre|iembre)?|de[cz](?:ember)?|décembre|diciembre|"
    r"enero|febrero)"
)


def _is_date(text: str) -> bool:
    numbers = [int(n) for n in re.findall(r"\d+", text)]
    if len(numbers) < 3:  # the month is a word
        return any(1 <= n <= 31 for n in numbers)
    if numbers[0] > 31:
        numbers.reverse()
    return 1 <= min(numbers[:2]) <= 12 and 1 <= max(numbers[:2]) <= 31


_DATES = finder(
    Pattern(
        "date",
        re.compile(
            r"(?<![\w./-])(?:(?:1[89]|20)\d\d([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2(?:1[89]|20)\d\d"
            r"|\d{1,2}(/)\d{1,2}/\d\d)(?![\w/-]|\.\d)",
            re.ASCII,
        ),
        _is_date,
        numeric=True,
    ),
    Pattern("date", re.compile(r"(?<![\w./-])(?:1[89]|20)\d\d-\d\d-\d\d(?=T\d\d:)", re.ASCII), _is_date),
    Pattern(
        "date",
        re.compile(
            rf"(?i)(?<![\w.-])(?:\d{{1,2}}(?:st|nd|rd|th|er|\.)?\s(?:de\s|of\s)?{_MONTHS}\.?,?\s(?:del?\s)?"
            rf"(?:1[89]|20)\d\d|{_MONTHS}\.?\s\d{{1,2}}(?:st|nd|rd|th)?,?\s(?:1[89]|20)\d\d)(?!\w)"
        ),
        _is_date,
    ),
)


def _over_89(text: str) -> bool:
    return 90 <= int(text) <= 125


_AGES = finder(
    Pattern(
        "age_over_89",
        re.compile(r"(?i)\b(?:aged?|alter|edad|âgée? de)[\s:=\"']{1,4}(?P<value>\d{2,3})(?![\w.-])"),
        _over_89,
    ),
    Pattern(
        "age_over_89",
        re.compile(
            r"(?i)(?<![\w.])(?<!âgé de )(?<!âgée de )(?P<value>\d{2,3})(?:[ -]years?[ -](?:old|of age)"
            r"|[ -]?y/o|[ -]jährige?[rnms]?\b| jahre alt| años de edad)"
        ),
        _over_89,
    ),
)

_CITY = r"(?:,?\s+\d{5}\s+[^\W\d_][\w'-]+(?:[ -][A-ZÄÖÜÉ][\w'-]+)*)"
_CAPITAL = r"[A-ZÄÖÜÁÉÍÓÚÑÈÀÇ][\w'’-]*"
_EN = (
    r"(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Boulevard|Blvd|Court|Ct|Way|Place|Pl|Terrace|Square|Sq|"
    r"Close|Crescent|Parkway|Pkwy|Highway|Hwy)\b"
)
_FR = r"(?:rue|avenue|av\.|boulevard|bd|place|chemin|allée|impasse|quai|route) "
_ES = r"(?:[Cc]alle|C/|[Aa]venida|Avda\.|[Pp]laza|[Pp]aseo)"
_STREETS = rf" {_EN}|(?:[sS]tra(?:ß|ss)e|[sS]tr\.|[aA]llee|weg|platz|gasse|ring|damm|ufer)\s\d|\b{_FR}|{_ES}"
_ADDRESS = finder(
    Pattern(  # 221B Baker Street, London NW1 6XE; 742 Evergreen Terrace, Springfield, IL 62704
        "address",
        re.compile(
            rf"(?<![\w.-])\d{{1,5}}[A-Za-z]?,? (?:{_CAPITAL}\.? ){{1,4}}{_EN}"
            r"(?:[.,]{0,2} (?:Apt|Suite|Unit|Flat)\.? ?#?\w+)?"
            rf"(?:[.,]{{0,2}} {_CAPITAL}(?: {_CAPITAL}){{0,2}},? (?:[A-Z]{{2}} \d{{5}}(?:-\d{{4}})?|"
            r"[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2})\b)?"
        ),
    ),
    Pattern(  # Musterstraße 12, 12345 Musterstadt; the short endings are machine words too (Arbeitsplatz 12)
        "address",
        re.compile(
            rf"(?<!\w){_CAPITAL}(?:(?:straße|strasse|str\.|allee)|[ -](?:Straße|Allee|Str\.))"
            rf"\s\d{{1,4}}(?: ?[a-z])?\b{_CITY}?"
            rf"|(?<!\w){_CAPITAL}(?:weg|platz|gasse|ring|damm|ufer)\s\d{{1,4}}(?: ?[a-z])?\b{_CITY}"
        ),
    ),
    Pattern(  # 12 bis, rue de la Paix, 75002 Paris
        "address",
        re.compile(
            rf"(?<![\w.-])\d{{1,4}}(?: ?(?:bis|ter))?,? {_FR}"
            rf"(?:de la |de l['’]|de |du |des |d['’]|la |le |les )?{_CAPITAL}(?:[ -]{_CAPITAL})*{_CITY}?"
        ),
    ),
    Pattern(  # Calle Mayor 5, 28013 Madrid
        "address",
        re.compile(
            rf"(?<!\w){_ES} ?(?:de la |de los |del |de |la |los )?{_CAPITAL}(?: {_CAPITAL})*,? "
            rf"\d{{1,4}}\b{_CITY}?"
        ),
    ),
)

DATE = Detector(
    "date",
    "low",
    r"\d[/.-]\d{1,2}[/.-]\d\d|(?:1[89]|20)\d\d[/.-]\d|[\pL.,]\s(?:1[89]|20)\d\d",
    _DATES,
    "date",
    recurs=False,
)
AGE_OVER_89 = Detector(
    "age_over_89",
    "medium",
    r"(?i)(?:9\d|1[012]\d)[ -]?(?:y|j|años)|(?:\baged?|alter|edad|âgée? de)[\s:=\"']{1,4}(?:9|1)\d",
    _AGES,
    "age_over_89",
    recurs=False,
)
ADDRESS = Detector("address", "medium", _STREETS, _ADDRESS, "address")
