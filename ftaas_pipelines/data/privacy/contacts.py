"""Ways to reach a person: e-mail, telephone, IP address, URL. Digits are ASCII."""

import re
from collections.abc import Iterator
from ipaddress import ip_address

import phonenumbers

from ftaas_pipelines.data.privacy.findings import Detector, Span
from ftaas_pipelines.data.privacy.patterns import CONTEXT, Pattern, finder


def _digits(text: str) -> int:
    return sum(c.isdigit() for c in text)


_DATE_LIKE = re.compile(r"\(?\d{1,4}[/.-]\d{1,2}[/.-]\d{1,4}(?![/.-]?\d)")


def _is_national(text: str) -> bool:
    return 9 <= _digits(text) <= 15 and not _DATE_LIKE.match(text)


def _is_local(text: str) -> bool:
    return 7 <= _digits(text) <= 15 and not _DATE_LIKE.match(text)


def _is_international(text: str) -> bool:
    if re.search(r"\.\d$", text):  # a number with one decimal
        return False
    try:
        return phonenumbers.is_possible_number(phonenumbers.parse(text, None))
    except phonenumbers.NumberParseException:
        return False


_CALLS = (
    r"(?i:\b(?:tel|tél|telefon|telephone|téléphone|teléfono|phone|call|mobile|mobil|móvil|cell|fax|whatsapp|"
    r"handy|portable|ring|sms|anrufen|anruf|llame|llámame|llamar|appelez|appeler|reach|dial)"
    r"(?:nummer|number)?\b)"
    r"(?i:[\s:.()#\"'/=-]{0,5}(?:me|us|him|her|them|at|on|is|number|no|nr|n°|the|under|unter|au|al|ist|est|es|"
    r"it|was|mich|uns|der|die|le|el|número|numéro|nummer|office|work|home)\b){0,4}[\s:.(#\"'=\\]{0,8}"
)
# Bare groups of digits are part numbers: a phone needs a sign of being one: a plus, a leading 0, an area
# code as North America writes it, or a word before it.
_PHONE = finder(
    Pattern(
        "phone",
        re.compile(
            r"(?<![\w.+-])(?<!\d )\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ ./()-]{0,2}\d){5,13}(?![\w-])",
            re.ASCII,
        ),
        _is_international,
        shortens=True,
    ),
    Pattern(
        "phone",
        re.compile(
            r"(?<![\w.+-])(?<!\d )(?:\(0\d{1,5}\)|0\d{1,5})[ /-]{1,2}\d(?:[ -]?\d){4,11}(?![\w-])"
            r"|(?<![\w.+-])0\d(?:\.\d{2}){4}(?![\w-]|\.\d)",
            re.ASCII,
        ),
        _is_national,
        numeric=True,
    ),
    Pattern(
        "phone",
        re.compile(
            r"(?<![\w.+-])(?<!\d )(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[.-]\d{4}(?![\w-])",
            re.ASCII,
        ),
        numeric=True,
    ),
    Pattern(
        "phone",
        re.compile(_CALLS + r"(?P<value>\(?\d(?:[ ./()-]{0,2}\d){6,14})(?![\w-])"),
        _is_local,
    ),
)

_VERSION = re.compile(
    r"(?:version|firmware|release|build|software|driver|rev|ver|section|chapter|clause|kapitel|abschnitt|\bv)"
    r"[\s.:=]{0,3}$",
    re.IGNORECASE,
)


def _is_ip(text: str) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    slice_of_code = ":" in text and sum(c != ":" for c in text) < 4  # [1::2]
    return not (address.is_loopback or address.is_unspecified or slice_of_code or text.startswith("255."))


_IPV4 = Pattern(
    "ipv4", re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)", re.ASCII), _is_ip, numeric=True
)
_IPV6 = Pattern(
    "ipv6",
    re.compile(r"(?<![\w:])(?=[a-fA-F:]*\d)[0-9a-fA-F]*:[0-9a-fA-F:]{2,36}(?:\.\d+){0,3}(?![\w:])", re.ASCII),
    _is_ip,
)


def _ips(text: str) -> Iterator[Span]:
    for span in _IPV4.find(text):
        if not _VERSION.search(text[max(0, span.start - CONTEXT) : span.start]):
            yield span
    yield from _IPV6.find(text)


_EMAIL = finder(
    Pattern("email", re.compile(r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.)+[^\W\d_]{2,24}(?![\w-])")),
    Pattern(
        "email",
        re.compile(
            r"(?i)(?<![\w.+-])[\w.+-]{1,64} ?[\[(] ?at ?[\])] ?[\w-]{1,63}"
            r"(?: ?(?:\.|[\[(] ?dot ?[\])]) ?[a-z][\w-]{1,62})+"
        ),
    ),
)
_USER_OF_URL = re.compile(r"://[^\s/@]*:$")


def _emails(text: str) -> Iterator[Span]:
    for span in _EMAIL(text):
        # What stands between the colon and the @ of ftp://ann:…@host is a password: see credentials.py.
        if not _USER_OF_URL.search(text[max(0, span.start - CONTEXT) : span.start]):
            yield span


EMAIL = Detector("email", "medium", r"@|[\[(] ?at ?[\])]", _emails, "email")
PHONE = Detector(
    "phone",
    "medium",
    r"\+\d|\b0\d{1,5}\)?[ /-]{1,2}\d|\b0\d\.\d\d\.|[2-9]\d\d(?:\) ?|[.-])[2-9]\d\d[.-]\d|(?:"
    + _CALLS
    + r")\(?\d",
    _PHONE,
    "phone",
)
IP_ADDRESS = Detector(
    "ip_address", "low", r"\d\.\d{1,3}\.\d{1,3}\.\d|:[0-9a-fA-F]{0,4}:[0-9a-fA-F:]", _ips, "ip_address"
)
URL = Detector(
    "url",
    "low",
    r"://|www\.",
    finder(
        Pattern(
            "url",
            re.compile(
                r"(?i)(?<!\w)(?:(?:https?|ftp)://|www\.)[^\s\"'<>\\\x00-\x1f)\]}]+[^\s\"'<>\\.,;:!?)\]}]"
            ),
        )
    ),
    "url",
)
