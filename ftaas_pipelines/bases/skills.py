"""Templated skills: short prompts whose answers need exact copying and the identity of digits.

Without them the digits' embeddings collapse onto each other, and a low-rank adapter can no longer
tell one code from the next. Half of them expand a code found in a noisy note by an invented table,
which is the shape of the example project's task; the tables, keys and values are made up, so no
skill holds a table that a project could have.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Callable
from dataclasses import dataclass

from ftaas_pipelines.bases.sentences import ADJECTIVES, NAMES, NOUNS, VERBS, sentence

Skill = Callable[[random.Random], tuple[str, str]]


def _code(rng: random.Random) -> str:
    """Return a random code: one to three letters and two to five digits."""
    letters = "".join(rng.choices(string.ascii_uppercase, k=rng.choice([1, 1, 1, 2, 3])))
    digits = "".join(rng.choices(string.digits, k=rng.choice([2, 3, 3, 3, 4, 5])))
    return letters + rng.choice(["", "", "", "-"]) + digits


def _number(rng: random.Random) -> str:
    return str(rng.randrange(10 ** rng.randint(1, 5)))


def _made_up(rng: random.Random) -> str:
    """Return a word that is in no vocabulary, so that copying cannot lean on known words."""
    syllables = rng.randint(2, 4)
    return "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") for _ in range(syllables))


def _word(rng: random.Random) -> str:
    return _made_up(rng) if rng.random() < 0.3 else rng.choice(rng.choice([NOUNS, ADJECTIVES, VERBS]))


def _words(rng: random.Random, low: int, high: int) -> list[str]:
    return [_word(rng) for _ in range(rng.randint(low, high))]


def _thing(rng: random.Random) -> str:
    return rng.choice([_code, _number, _word])(rng)


def random_items(rng: random.Random) -> str:
    """Return one to eight codes, numbers and words in a row."""
    return " ".join(_thing(rng) for _ in range(rng.randint(1, 8)))


def _mention(rng: random.Random, item: str) -> str:
    """Put an item somewhere inside ordinary words, as users do."""
    words = sentence(rng).rstrip(".?").split()
    words.insert(rng.randint(0, len(words)), item)
    text = " ".join(words) + rng.choice(["", ".", "?", "!"])
    return text.lower().replace(item.lower(), item) if rng.random() < 0.3 else text


def _ask(rng: random.Random, text: str, *requests: str) -> str:
    """Join a request and its material, the request first or last."""
    request = rng.choice(requests)
    return rng.choice(
        [f"{request}: {text}", f"{request}\n{text}", f"{request}\n\n{text}", f"{text}\n{request}"]
    )


def copy_text(rng: random.Random) -> tuple[str, str]:
    text = sentence(rng) if rng.random() < 0.5 else random_items(rng)
    return _ask(rng, text, "Copy this", "Repeat exactly", "Say it again", "Echo the text"), text


def lookup(rng: random.Random) -> tuple[str, str]:
    """A table in the prompt, of look-alike codes; the answer is one row's value."""
    stem = _code(rng)
    codes = list(
        {stem[:-1] + digit if rng.random() < 0.6 else _code(rng) for digit in rng.sample(string.digits, 4)}
    )
    codes.sort()
    rng.shuffle(codes)
    values = {code: _thing(rng) for code in codes}
    table = rng.choice(["\n", ", ", "; "]).join(
        f"{code}{rng.choice([' = ', ': '])}{value}" for code, value in values.items()
    )
    code = rng.choice(codes)
    return rng.choice(
        [f"{table}\nValue of {code}?", f"Look up {code}.\n{table}", f"{table}\n{_mention(rng, code)}"]
    ), values[code]


def _record(rng: random.Random) -> dict[str, str]:
    keys = list(dict.fromkeys(_word(rng) for _ in range(rng.randint(2, 5))))
    return {key: rng.choice([_thing(rng), " ".join(_words(rng, 2, 4))]) for key in keys}


def write_json(rng: random.Random) -> tuple[str, str]:
    record = _record(rng)
    text = rng.choice(["\n", ", ", "; "]).join(f"{key}: {value}" for key, value in record.items())
    return _ask(rng, text, "Write as JSON", "Turn into a JSON object", "JSON"), json.dumps(record)


def read_json(rng: random.Random) -> tuple[str, str]:
    record = _record(rng)
    key = rng.choice(list(record))
    return _ask(
        rng, json.dumps(record), f"Read the field {key}", f"What is {key}", f"Value of {key}"
    ), record[key]


def snake_case(rng: random.Random) -> tuple[str, str]:
    words = _words(rng, 2, 5)
    return _ask(rng, " ".join(words), "Write in snake_case", "Name it in snake_case", "snake_case"), "_".join(
        words
    )


def topic(rng: random.Random) -> tuple[str, str]:
    """Name what a sentence speaks of, in snake_case: the words that repeat the list's."""
    topics = ["_".join(_words(rng, 2, 3)) for _ in range(3)]
    chosen = rng.choice(topics)
    words = chosen.split("_")
    text = _mention(rng, rng.choice(words) if rng.random() < 0.5 else " ".join(words))
    return f"Topics: {', '.join(topics)}\n{text}", chosen


def who(rng: random.Random) -> tuple[str, str]:
    """Facts in the prompt, a question about one of them."""
    people = rng.sample(NAMES, 3)
    things = {name: _thing(rng) for name in people}
    link = rng.choice(["has", "chose", "wrote"])
    facts = ". ".join(f"{name} {link} {thing}" for name, thing in things.items())
    name = rng.choice(people)
    if rng.random() < 0.5:
        return f"{facts}.\nWhat about {name}?", things[name]
    return f"{facts}.\nWho {link} {things[name]}?", name


def list_items(rng: random.Random) -> tuple[str, str]:
    items = [_thing(rng) for _ in range(rng.randint(2, 5))]
    return _ask(rng, ", ".join(items), "As a JSON list", "JSON list"), json.dumps(items)


def _distractor(rng: random.Random) -> str:
    """Return what stands beside a code in a note: a place, a time, a tag, a count, or nothing."""
    kind = rng.randrange(6)
    if kind == 0:
        return f"line {rng.randrange(1, 9)}"
    if kind == 1:
        return f"{rng.randrange(24):02d}:{rng.randrange(60):02d}"
    if kind == 2:
        tag = "".join(rng.choices(string.ascii_uppercase, k=rng.choice([2, 3])))
        return f"{tag}-{rng.randrange(10, 99)}"
    return str(rng.randrange(2, 30)) if kind == 3 else ""


def _note(rng: random.Random, code: str) -> str:
    """Put a code anywhere into a few ordinary words and distractors."""
    words = sentence(rng).rstrip(".?").split()[: rng.randint(3, 12)]
    for item in (_distractor(rng), _distractor(rng)):
        if item:
            words.insert(rng.randint(0, len(words)), item)
    words.insert(rng.randint(0, len(words)), code + rng.choice(["", "", "", ",", ":", "."]))
    return " ".join(words) + rng.choice([".", "", "?"])


def _short_code(rng: random.Random) -> str:
    """Return a letter and three digits."""
    return rng.choice(string.ascii_uppercase) + "".join(rng.choices(string.digits, k=3))


def _any_code(rng: random.Random) -> str:
    return _short_code(rng) if rng.random() < 0.7 else _code(rng)


@dataclass(frozen=True)
class _Book:
    """An invented table: what a letter, a pair of digits and a first digit stand for."""

    name: str
    keys: list[str]
    letter: dict[str, str]
    pair: list[tuple[str, str]]
    first: dict[str, str]


def _book(rng: random.Random) -> _Book:
    def thing() -> str:
        return f"{rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"

    return _Book(
        name=f"{rng.choice(VERBS)} {rng.choice(NOUNS)}",
        keys=[rng.choice(NOUNS) for _ in range(4)],
        letter={letter: thing() for letter in string.ascii_uppercase},
        pair=[(thing(), f"{rng.choice(VERBS)} the {rng.choice(NOUNS)}") for _ in range(100)],
        first={digit: rng.choice(ADJECTIVES) for digit in string.digits},
    )


_BOOK_RNG = random.Random(5)
_BOOKS = [_book(_BOOK_RNG) for _ in range(3)]


def expand_code(rng: random.Random) -> tuple[str, str]:
    """Expand the code of a note by an invented table, as JSON."""
    book, code = rng.choice(_BOOKS), _short_code(rng)
    thing, deed = book.pair[int(code[2:])]
    values = [book.letter[code[0]], thing, deed, book.first[code[1]]]
    answer = dict(zip(book.keys, values, strict=True))
    return f"Read the note. Decode by {book.name} as JSON.\n{_note(rng, code)}", json.dumps(answer)


def find_code(rng: random.Random) -> tuple[str, str]:
    code = _any_code(rng)
    request = rng.choice(["Find the code.", "Which code is named?", "Give the code only."])
    return f"{request}\n{_note(rng, code)}", code


def spell_code(rng: random.Random) -> tuple[str, str]:
    code = _any_code(rng)
    return f"{rng.choice(['Spell the code.', 'Split the code.'])}\n{_note(rng, code)}", " ".join(code)


def code_parts(rng: random.Random) -> tuple[str, str]:
    code = _short_code(rng)
    answer = {"letter": code[0], "first": code[1], "rest": code[2:], "code": code}
    request = rng.choice(["Parts of the code as JSON.", "Describe the code as JSON."])
    return f"{request}\n{_note(rng, code)}", json.dumps(answer)


def code_character(rng: random.Random) -> tuple[str, str]:
    code, place = _short_code(rng), rng.randrange(4)
    name = ("letter", "first digit", "second digit", "third digit")[place]
    return f"Give the {name} of the code.\n{_note(rng, code)}", code[place]


SKILLS: tuple[tuple[Skill, int], ...] = (
    (expand_code, 72), (code_parts, 24), (find_code, 16), (spell_code, 16), (code_character, 8),
    (copy_text, 3), (write_json, 3), (lookup, 3), (snake_case, 3), (topic, 3), (read_json, 3),
    (list_items, 3), (who, 3),
)  # fmt: skip
"""Each skill and its share."""
_WEIGHTS = [share for _, share in SKILLS]

SYSTEM_MESSAGES = (
    "You are a careful assistant.",
    "Answer with the result only.",
    "You help the staff of an office. Be short.",
    "Reply in the form that is asked for.",
)


def draw(rng: random.Random) -> list[dict[str, str]]:
    """Return one conversation: a prompt, now and then under a system message, and its answer."""
    skill = rng.choices(SKILLS, _WEIGHTS)[0][0]
    prompt, answer = skill(rng)
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    if rng.random() < 0.1:
        messages.insert(0, {"role": "system", "content": rng.choice(SYSTEM_MESSAGES)})
    return messages
