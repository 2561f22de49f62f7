"""Phrases that try to overrule a model's instructions. A heuristic: it sees what is well known."""

import re
import unicodedata

_INVISIBLE = re.compile(r"[\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff\u00ad]")
# Made one, these become up to 18 characters each; what they say is none of the phrases.
_LIGATURES = dict.fromkeys(map(ord, "\ufdfa\ufdfb"), " ")
# Signs that sit on a letter: Unicode sorts a run of them in the square of its length.
_PILED = re.compile(r"([^\w\s\x00-\u02ff]{30})[^\w\s\x00-\u02ff]+")
_LOOKALIKES = str.maketrans("аеорсхуіѕԁո", "aeopcxyisdn")  # Cyrillic and Armenian letters that look Latin
_KINDS = (
    (
        "override",
        r"\b(?:ignore|disregard|forget|override|bypass)\b(?:\s+[\w']+){0,3}?\s+(?:previous|above|prior|earlier|all|"
        r"your)\b(?:\s+[\w']+){0,3}?\s+(?:instructions?|prompts?|rules?|guidelines?|directions?|programming)\b"
        r"|\b(?:ignoriere|vergiss|missachte)\b.{0,40}\b(?:anweisung|regel|vorgabe|instruktion)"
        r"|\b(?:ignore[sz]?|oublie[sz]?)\b.{0,40}\b(?:instructions?|consignes?|règles?)\b.{0,30}"
        r"\b(?:précédentes?|ci-dessus|antérieures?)\b"
        r"|\b(?:ignora|olvida)\b.{0,40}\b(?:instrucciones|reglas|indicaciones)\b",
    ),
    (
        "role",
        r"\byou are now\b.{0,60}\b(?:dan|jailbroken|unrestricted|developer mode|no longer bound)\b"
        r"|\b(?:act|respond|behave) as\b.{0,40}\b(?:unrestricted|unfiltered|jailbroken|dan)\b"
        r"|\bdeveloper mode\b.{0,30}\b(?:enabled?|on|activated)\b",
    ),
    (
        "prompt_leak",
        r"\b(?:reveal|show|print|repeat|output|tell me)\b.{0,40}\b(?:system|hidden|initial|original)\b.{0,20}"
        r"\b(?:prompt|instructions?|message)\b",
    ),
    (
        "template",
        r"<\|(?:im_start|im_end|system|user|assistant|end|eot_id|start_header_id|endoftext)\|>"
        r"|\[/?inst\]|<</?sys>>|^#{2,3} ?(?:system|assistant|instruction)s?:",
    ),
    (
        "encoded",
        r"\b(?:decode|execute|run|follow)\b.{0,40}\bbase64\b|\bbase64\b.{0,40}\b(?:decode|execute|follow)\b",
    ),
)
_PATTERNS = tuple((kind, re.compile(pattern, re.DOTALL | re.MULTILINE)) for kind, pattern in _KINDS)


def plain(text: str) -> str:
    """The text as it reads: invisible characters gone, look-alikes and widths made one, small letters."""
    text = _PILED.sub(r"\1", text.translate(_LIGATURES))
    text = _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    return text.casefold().translate(_LOOKALIKES)


def kinds(text: str) -> list[str]:
    """What a text tries; empty: nothing that is known here."""
    seen = plain(text)
    found = [kind for kind, pattern in _PATTERNS if pattern.search(seen)]
    if len(_INVISIBLE.findall(text)) >= 8:
        found.append("hidden")
    return found
