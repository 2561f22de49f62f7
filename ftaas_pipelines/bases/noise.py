"""Small damage to a sentence, whose repair teaches the T5 base to copy and to edit.

The kinds of damage are general (endings, doubled or missing words, confusable words, letters,
capitals, punctuation); no rule is tied to one project's rows.
"""

from __future__ import annotations

import random
from collections.abc import Callable

Damage = Callable[[list[str], random.Random], list[str]]

CONFUSABLE = (
    "a an", "is are", "was were", "has have", "do does", "in on at", "many much", "their there", "its it's",
    "your you're", "then than", "this these", "that those", "he him", "she her", "they them", "I me",
    "some any", "less fewer", "to too", "of off", "who which", "where were", "good well", "for since",
)  # fmt: skip
_OTHERS = {
    word: [other for other in group.split() if other != word]
    for group in CONFUSABLE
    for word in group.split()
}
SMALL_WORDS = "a an the to is are was of in on at and it not have has been be will".split()
ENDINGS = (
    ("s", ""),
    ("es", ""),
    ("ed", ""),
    ("d", ""),
    ("ing", ""),
    ("ed", "s"),
    ("ing", "ed"),
    ("ies", "y"),
    ("ly", ""),
)


def _double(words: list[str], rng: random.Random) -> list[str]:
    place = rng.randrange(len(words) - 1)
    return [*words[: place + 1], words[place].lower(), *words[place + 1 :]]


def _drop(words: list[str], rng: random.Random) -> list[str]:
    small = [place for place, word in enumerate(words) if word.lower() in SMALL_WORDS]
    gone = rng.choice(small) if small else rng.randrange(len(words))
    return words[:gone] + words[gone + 1 :]


def _insert(words: list[str], rng: random.Random) -> list[str]:
    place = rng.randrange(1, len(words))
    return [*words[:place], rng.choice(SMALL_WORDS), *words[place:]]


def _swap(words: list[str], rng: random.Random) -> list[str]:
    place = rng.randrange(len(words) - 1)
    return [*words[:place], words[place + 1], words[place], *words[place + 2 :]]


def _confuse(words: list[str], rng: random.Random) -> list[str]:
    places = [place for place, word in enumerate(words) if word in _OTHERS]
    if not places:
        return _change_ending(words, rng)
    place = rng.choice(places)
    return [*words[:place], rng.choice(_OTHERS[words[place]]), *words[place + 1 :]]


def _change_ending(words: list[str], rng: random.Random) -> list[str]:
    place = rng.randrange(len(words))
    word, mark = words[place].rstrip(".?!"), words[place][len(words[place].rstrip(".?!")) :]
    if not word.isalpha() or len(word) < 3:
        return words
    ends = [(old, new) for pair in ENDINGS for old, new in (pair, pair[::-1]) if old and word.endswith(old)]
    old, new = rng.choice(ends) if ends and rng.random() < 0.7 else ("", rng.choice(["s", "ed", "ing"]))
    return [*words[:place], word[: len(word) - len(old)] + new + mark, *words[place + 1 :]]


def _misspell(words: list[str], rng: random.Random) -> list[str]:
    place = rng.randrange(len(words))
    word = words[place]
    if len(word) < 4:
        return words
    at = rng.randrange(1, len(word) - 1)
    broken = rng.choice(
        [
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        ]
    )
    return [*words[:place], broken, *words[place + 1 :]]


def _miscase(words: list[str], rng: random.Random) -> list[str]:
    place = 0 if rng.random() < 0.5 else rng.randrange(len(words))
    return [
        *words[:place],
        words[place].swapcase() if len(words[place]) == 1 else _flip_first(words[place]),
        *words[place + 1 :],
    ]


def _flip_first(word: str) -> str:
    return word[0].swapcase() + word[1:]


def _mispunctuate(words: list[str], rng: random.Random) -> list[str]:
    last = words[-1].rstrip(".?!")
    if rng.random() < 0.3:
        place = rng.randrange(len(words) - 1)
        return [*words[:place], words[place].rstrip(",") + ",", *words[place + 1 :]]
    return [
        *words[:-1],
        last + rng.choice(["", "", " .", "..", ",", "?" if words[-1].endswith(".") else "."]),
    ]


DAMAGES: tuple[tuple[Damage, int], ...] = (
    (_change_ending, 5), (_confuse, 5), (_drop, 2), (_insert, 1), (_double, 2), (_swap, 1), (_misspell, 2),
    (_miscase, 2), (_mispunctuate, 2),
)  # fmt: skip


def damage(text: str, rng: random.Random) -> str:
    """Return the text with one small damage, now and then two, and in one of ten cases none."""
    words = text.split(" ")
    kinds, weights = zip(*DAMAGES, strict=True)
    for kind in rng.choices(kinds, weights, k=rng.choices([0, 1, 2], [1, 6, 3])[0]):
        if len(words) > 2:
            words = kind(words, rng)
    return " ".join(words)
