"""Profanity by better-profanity's word list, toxicity by a classification model where one is configured.

The list's own matcher undoes leetspeak character by character and is slow; whole words, case folded,
are enough here. Words that are as often harmless in manuals, medicine and law are left out.
"""

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ftaas_pipelines.data.privacy.findings import Detector, Severity, Span
from ftaas_pipelines.errors import InputInvalid

_ORDINARY = frozenset(
    """
    areole bondage boner breasts busty chink cipa coon cowgirl cowgirls crotch cum cums dick dink dogging dong
    doofus drunk dummy dyke dykes ejaculate ejaculated ejaculates ejaculating ejaculation enlargement erect
    erection erotic extasy facial fanny fart fat feck fisted fisting flange fondle foobar fook foreskin
    fubar gae gai ganja gay gays gey glans god gonad gonads gringo guido hebe hell hemp heroin herp herpes
    hitler hiv hoar hoer homo hooch hookah hooker hooter hump humped hymen inbred incest jerk jerked junkie
    junky kawk kill kinky klan kraut kum labia lech len leper lesbians loin loins lube lust lusting lusty
    mams masochist massa maxi menses menstruate menstruation meth molest muff murder nad nads naked napalm
    nappy nazi nazism negro nimrod ninny nipple nipples nob nude nudes omg opiate opium oral orally organ
    orgasm ovary ovum ovums paddy paki pantie panties panty pastie pasty pawn pcp pee penetrate penetration
    penial penile penis peyote phallic pimp pinko playboy pms pollock pot potty prick prig pron prostitute
    prude pubic pubis punky puss queer queers quim racy rape raped raper rapist raunch rectal rectum rectus
    reefer reich revue rum rump ruski sadism sadist sandbar scantily screw screwed screwing scrotum scrud
    scum seaman seamen seduce semen sex sexual shag slave sleaze slope smut snatch sniper snuff sodom souse
    soused spac sperm spic spick spik spiks steamy stiffy stoned strip stripclub stroke stupid suck sucked
    sucking tampon tard tawdry teabagging teat testes testical testicle testis throating thrust thug tinkle
    toke toots tramp transsexual trashy tush ugly undies unwed urinal urine uterus uzi vag vagina valium
    viagra virgin vixen vodka vomit voyeur vulgar vulva wad wang wazoo wedgie weed weenie weiner weirdo whiz
    willies willy womb woody wop xx xxx yury
    """.split()
) | {"auto erotic", "cow girl", "cow girls", "strip club", "three some", "she male", "foot job", "hand job"}
_STRONG = re.compile(
    r"f[uc]+k|phuk|phuck|cunt|twat|nigg|fag|kike|gook|wetback|retard|tranny|whore|slut|bitch|asshole|cock|rape|"
    r"shemale|cum(?:shot|ming)|dildo|porn|bukkake|gangbang|blowjob|wank|shit|spooge|jizz|heeb|polack|raghead"
)
_TOXIC_LABELS = re.compile(
    r"(?i)(?<!non)(?<!non[-_ ])(?<!not[-_ ])(?:toxic|hate|offens|abus|insult|obscen|threat)"
)
_PIECE = (
    1000  # characters a model sees at once, so that long texts are read to their end and places are known
)
_CERTAIN = 0.5


@cache
def words() -> tuple[str, ...]:
    """The list in use, sorted, longest first where one begins another."""
    text = files("better_profanity").joinpath("profanity_wordlist.txt").read_text("utf-8")
    listed = {word.strip().casefold() for word in text.splitlines()}
    whole = {word for word in listed if len(word) > 1 and word[0].isalnum() and word[-1].isalnum()}
    return tuple(sorted(whole - _ORDINARY, key=lambda word: (-len(word), word)))


def detectors() -> tuple[Detector, Detector]:
    """The word list, as what is strong (medium) and what is mild (low)."""
    strong = [word for word in words() if _STRONG.search(word)]
    mild = [word for word in words() if not _STRONG.search(word)]
    return _listed(strong, "medium"), _listed(mild, "low")


def _listed(chosen: list[str], severity: Severity) -> Detector:
    # Both engines read such escapes alike; RE2 finds the texts in one pass over all words.
    pattern = "|".join(re.escape(word) for word in chosen)
    exact = re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE)

    def find(text: str) -> Iterator[Span]:
        return (Span("profanity", *match.span()) for match in exact.finditer(text))

    return Detector("toxicity", severity, rf"(?i)\b(?:{pattern})\b", find)


def classifier(folder: Path) -> Detector:
    """A text-classification model: pieces of a text of which a label such as `toxic` is likelier than not.

    Raises:
        InputInvalid: no label of the model speaks of toxicity.
    """
    from transformers import pipeline

    model: Any = pipeline("text-classification", model=str(folder), device="cpu")
    labels = sorted(str(label) for label in model.model.config.id2label.values())
    if not any(_TOXIC_LABELS.search(label) for label in labels):
        raise InputInvalid(
            "no label of the model speaks of toxicity",
            "dataset.privacy.toxicity_model",
            ", ".join(labels),
            "name a model with a label such as toxic, or rename its labels in config.json",
        )
    limit = model.model.config.max_position_embeddings

    def find(text: str) -> Iterator[Span]:
        for start in range(0, len(text), _PIECE):
            piece = text[start : start + _PIECE]
            scores: list[Any] = model(piece, top_k=None, truncation=True, max_length=limit)
            if any(s["score"] >= _CERTAIN and _TOXIC_LABELS.search(s["label"]) for s in scores):
                yield Span("toxic", start, start + len(piece))

    return Detector("toxicity", "medium", r"\S", find)
