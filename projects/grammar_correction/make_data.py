#!/usr/bin/env python3
"""Make the example data of the grammar correction project.

    python make_data.py            write data/sentences.csv and data/test.csv
    python make_data.py --check    exit 1 unless data/ holds exactly what this program makes

Both files have the columns `text` (with the error) and `target` (corrected).  Sentences are
built from the small vocabulary below.  Only the standard library is used, and the same
files come out on every machine.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DATA = Path(__file__).resolve().parent / "data"

SEED = 2048
TRAIN_ROWS = 1600
TEST_ROWS = 200
TEST_SHARE = 0.15  # of the word combinations, kept for test
SECOND_ERROR_SHARE = 0.2  # of the rows of a grammar family
MAX_WORDS = 14
MAX_VOCABULARY = 400
MAX_JACCARD = 0.7  # of the word 3-grams of a test text and a train text

# How the rows are shared out among the families.
SHARES = {
    "agreement": 0.20,
    "article": 0.14,
    "past": 0.14,
    "plural": 0.12,
    "their_there": 0.10,
    "punctuation": 0.10,
    "double": 0.08,
    "correct": 0.12,
}


class DataError(Exception):
    """The sentences break a rule of this data set."""


@dataclass(frozen=True)
class Sentence:
    """A correct sentence, and how its family makes it wrong.

    `key` is the word combination.  Sentences which differ only in a time word, or only in
    he, she or they, share it: they go into train together or into test together.
    """

    family: str
    key: str
    target: str
    wrong: str


# ---------------------------------------------------------------- agreement

PEOPLE_ONE = ["The manager", "The engineer", "The driver", "The customer", "Our supplier"]
PEOPLE_MANY = ["The managers", "The engineers", "The drivers", "The customers", "Our suppliers"]
PEOPLE_STATES = [
    "in the office",
    "in the meeting room",
    "at the main gate",
    "ready for the meeting",
    "happy with the result",
    "busy with a new order",
    "late for the training",
]
MACHINES_ONE = ["The machine", "The pump", "The printer", "The new motor", "The truck"]
MACHINES_MANY = ["The machines", "The pumps", "The printers", "The new motors", "The trucks"]
MACHINE_STATES = [
    "out of order",
    "ready for use",
    "under repair",
    "too hot",
    "very noisy",
    "in the workshop",
]
PAPERS_ONE = ["The report", "The invoice", "The contract", "The test plan"]
PAPERS_MANY = ["The reports", "The invoices", "The contracts", "The test plans"]
PAPER_STATES = ["on the desk", "in the blue folder", "not complete", "ready to sign", "too long"]
PEOPLE_THINGS = [
    "a question about the contract",
    "a key to the store",
    "a copy of the report",
    "a meeting with the team",
    "a problem with the printer",
    "no time for a break",
]
MACHINE_THINGS = ["no power", "new filters", "new parts", "some damage", "many faults"]
NOW = ["", "now", "today", "this morning"]
THEN = ["yesterday", "last week", "on Monday", "on Friday"]

SUBJECTS_AND_STATES = [
    (PEOPLE_ONE, PEOPLE_MANY, PEOPLE_STATES, PEOPLE_THINGS),
    (MACHINES_ONE, MACHINES_MANY, MACHINE_STATES, MACHINE_THINGS),
    (PAPERS_ONE, PAPERS_MANY, PAPER_STATES, []),
]


def sentence(*parts: str) -> str:
    return " ".join(part for part in parts if part) + "."


def agreement() -> Iterator[Sentence]:
    for ones, manys, states, things in SUBJECTS_AND_STATES:
        for subjects, right, wrong in ((ones, 0, 1), (manys, 1, 0)):
            for subject in subjects:
                frames = [(("is", "are"), state, NOW) for state in states]
                frames += [(("was", "were"), state, THEN) for state in states]
                frames += [(("has", "have"), thing, NOW[:3]) for thing in things]
                for verbs, rest, times in frames:
                    for time in times:
                        yield Sentence(
                            "agreement",
                            f"{subject} {verbs[0]} {rest}",
                            sentence(subject, verbs[right], rest, time),
                            sentence(subject, verbs[wrong], rest, time),
                        )


# ---------------------------------------------------------------- a or an

SENDERS = ["She", "He", "The manager", "The customer", "Our supplier"]
ARTICLE_FRAMES = [
    (
        [f"{who} sent" for who in SENDERS] + [f"{who} asked for" for who in SENDERS],
        ["email", "invoice", "order form", "answer", "update", "offer", "old contract"]
        + ["report", "new contract", "user guide", "short note", "photo", "price list"],
        ["", "yesterday", "on Monday"],
    ),
    (
        ["We need", "Please order", "The new driver wants", "She has found"],
        ["air filter", "oil can", "extra chair", "empty box", "orange jacket", "adapter"]
        + ["uniform", "ladder", "spare key", "new drill", "safety guard", "long cable"],
        ["", "for the workshop", "for the night shift"],
    ),
    (
        ["We called", "They need", "The manager is looking for", "Our team has"],
        ["electrician", "engineer", "inspector", "assistant", "expert", "older driver"]
        + ["mechanic", "trainer", "plumber", "new manager", "guide", "welder"],
        [""],
    ),
    (
        ["The repair takes", "The meeting lasted", "The check takes", "We waited for"],
        ["hour", "hour and ten minutes", "full day", "whole morning"],
        [""],
    ),
]


def article_of(noun: str) -> str:
    """By sound, for the nouns above: an hour, a uniform, a user guide."""
    if noun.startswith(("hour", "uniform", "user")):
        return "an" if noun.startswith("hour") else "a"
    return "an" if noun[0] in "aeiou" else "a"


def article() -> Iterator[Sentence]:
    for starts, nouns, ends in ARTICLE_FRAMES:
        for start in starts:
            for noun in nouns:
                right = article_of(noun)
                wrong = "a" if right == "an" else "an"
                for end in ends:
                    yield Sentence(
                        "article",
                        f"{start} {noun}",
                        sentence(start, right, noun, end),
                        sentence(start, wrong, noun, end),
                    )


# ---------------------------------------------------------------- irregular past

DOERS = ["He", "She", "They", "The engineer", "The new driver", "Our supplier"]
PAST = [
    ("wrote", "writed", ["a short note", "the test plan", "the report"]),
    ("took", "taked", ["the pump to the workshop", "a photo of the leak"]),
    ("brought", "bringed", ["the tools to the workshop", "a copy of the contract"]),
    ("bought", "buyed", ["a ladder for the store", "two new drills"]),
    ("sent", "sended", ["the invoice to the customer", "an email to the team"]),
    ("went", "goed", ["to the main office", "to the training"]),
    ("broke", "breaked", ["the glass door", "the key to the store"]),
    ("found", "finded", ["the key under the desk", "the fault in the motor"]),
    ("made", "maked", ["a list of spare parts", "a plan for the repair"]),
    ("left", "leaved", ["the meeting early", "the keys on the desk"]),
    ("taught", "teached", ["the new team", "a safety class"]),
    ("drove", "drived", ["the truck to the store", "to the main gate"]),
    ("kept", "keeped", ["a copy of the invoice", "the tools in a blue box"]),
    ("told", "telled", ["the manager about the leak", "us about the new order"]),
    ("spoke", "speaked", ["to the customer", "about the new plan"]),
    ("lost", "losed", ["the key to the office", "the order form"]),
    ("paid", "payed", ["the invoice", "for the repair"]),
    ("chose", "choosed", ["a new printer", "the blue folder"]),
]


def past() -> Iterator[Sentence]:
    for doer in DOERS:
        for right, wrong, rests in PAST:
            for rest in rests:
                for time in THEN:
                    yield Sentence(
                        "past",
                        f"{doer} {right} {rest}",
                        sentence(doer, right, rest, time),
                        sentence(doer, wrong, rest, time),
                    )


# ---------------------------------------------------------------- plural after a number

NUMBERS = ["two", "three", "four", "five", "six", "ten", "twelve"]
COUNT_FRAMES = [
    (
        ["We ordered", "The supplier sent", "The driver brought", "The store has"],
        ["motor", "pump", "battery", "switch", "cable", "jacket", "ladder", "box"],
        ["", "for the workshop", "for the night shift"],
    ),
    (
        ["We ordered", "The manager wants", "They bought", "She found"],
        ["chair", "desk", "printer", "lamp", "folder"],
        ["", "for the office", "for the meeting room"],
    ),
    (
        ["The manager signed", "She checked", "They printed", "We need"],
        ["report", "invoice", "contract", "order form", "list", "copy", "page"],
        ["", "for the customer", "for the meeting"],
    ),
    (
        ["The repair takes", "The training lasted", "We waited", "The test took"],
        ["hour", "day", "week", "minute"],
        [""],
    ),
]


def plural_of(noun: str) -> str:
    if noun.endswith(("x", "ch", "sh", "s")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def plural() -> Iterator[Sentence]:
    for starts, nouns, ends in COUNT_FRAMES:
        for start in starts:
            for noun in nouns:
                for number in NUMBERS:
                    for end in ends:
                        yield Sentence(
                            "plural",
                            f"{start} {number} {noun}",
                            sentence(start, number, plural_of(noun), end),
                            sentence(start, number, noun, end),
                        )


# ---------------------------------------------------------------- their and there

GROUPS = ["The engineers", "The drivers", "The mechanics", "The welders", "The trainers"]
THEIR_PAST = [
    "forgot their keys",
    "signed their contracts",
    "finished their report",
    "cleaned their desks",
    "checked their list",
    "changed their plan",
    "asked their manager for a new key",
    "moved their boxes to the store",
]
THEIR_NOW = [
    "like their new office",
    "use their own tools",
    "know their machines well",
    "keep their tools in the store",
]
THERE_IS = [
    "a leak under the pump",
    "a problem with the order",
    "a message for the manager",
    "an empty box at the gate",
    "no paper in the printer",
    "no power in the workshop",
    "a new contract on the desk",
    "an inspector at the main gate",
]
THERE_ARE = [
    "two trucks at the main gate",
    "three chairs in the office",
    "six boxes on the desk",
    "four people in the meeting room",
    "no tools in the store",
    "many errors in the report",
    "five jackets in the blue box",
    "ten batteries on the desk",
]
THERE_PLACE = [
    "Please put the boxes over there",
    "Please leave the keys there",
    "The engineers are there every day",
    "The new printer is over there",
    "We keep the spare parts there",
    "She works there every Monday",
    "You can park the truck there",
    "The tools are over there",
]


def their_there() -> Iterator[Sentence]:
    for group in GROUPS:
        for rests, times in ((THEIR_PAST, THEN), (THEIR_NOW, [""])):
            for rest in rests:
                for time in times:
                    right = sentence(group, rest, time)
                    yield Sentence("their_there", f"{group} {rest}", right, right.replace("their", "there"))
    for verb, rests, times in (
        ("is", THERE_IS, NOW),
        ("was", THERE_IS, THEN),
        ("are", THERE_ARE, NOW),
        ("were", THERE_ARE, THEN),
    ):
        for rest in rests:
            for time in times:
                right = sentence("There", verb, rest, time)
                yield Sentence("their_there", f"There {verb} {rest}", right, right.replace("There", "Their"))
    for place in THERE_PLACE:
        right = f"{place}."
        yield Sentence("their_there", right, right, right.replace("there", "their"))


# ---------------------------------------------------------------- mistakes in any sentence


def no_stop(text: str) -> str:
    return text[:-1]


def no_capital(text: str) -> str:
    """Lose the first capital."""
    return text[0].lower() + text[1:]


def small_day(text: str) -> str:
    return text.replace("Monday", "monday").replace("Friday", "friday")


def punctuation_error(text: str, rng: random.Random) -> str:
    choices = [no_stop, no_capital, lambda t: no_stop(no_capital(t))]
    if small_day(text) != text:
        choices.append(small_day)
    return rng.choice(choices)(text)


def double_word(text: str, rng: random.Random) -> str:
    """Write one short word inside the sentence twice, as the hand does."""
    words = text[:-1].split()
    places = [i for i in range(1, len(words)) if words[i].islower() and len(words[i]) <= 6]
    at = rng.choice(places)
    return " ".join(words[: at + 1] + words[at:]) + "."


def spoil(item: Sentence, family: str, rng: random.Random) -> str:
    if family == "correct":
        return item.target
    if family == "punctuation":
        return punctuation_error(item.target, rng)
    if family == "double":
        return double_word(item.target, rng)
    if rng.random() < SECOND_ERROR_SHARE:
        return rng.choice([no_stop, no_capital])(item.wrong)
    return item.wrong


# ---------------------------------------------------------------- the two sets

PRONOUN = re.compile(r"^(He|She|They)\b")
GRAMMAR = {
    "agreement": agreement,
    "article": article,
    "past": past,
    "plural": plural,
    "their_there": their_there,
}

Rows = list[tuple[str, str]]


def pick(pools: dict[str, list[Sentence]], count: int, rng: random.Random) -> tuple[Rows, Counter]:
    """Draw `count` rows; each correct sentence is used once at most."""
    wanted = {family: round(share * count) for family, share in SHARES.items()}
    wanted["agreement"] += count - sum(wanted.values())
    rows: Rows = []
    for family, number in wanted.items():
        for turn in range(number):
            # The families that suit any sentence borrow from each grammar family in turn.
            source = family if family in GRAMMAR else list(GRAMMAR)[turn % len(GRAMMAR)]
            if not pools[source]:
                raise DataError(f"too few sentences in {source}")
            item = pools[source].pop()
            rows.append((spoil(item, family, rng), item.target))
    rng.shuffle(rows)
    return rows, Counter(wanted)


def make_rows() -> tuple[Rows, Rows, Counter]:
    rng = random.Random(SEED)
    train_pools: dict[str, list[Sentence]] = {}
    test_pools: dict[str, list[Sentence]] = {}
    for family, make in GRAMMAR.items():
        groups: dict[str, list[Sentence]] = {}
        for item in make():
            groups.setdefault(PRONOUN.sub("X", item.key), []).append(item)
        keys = rng.sample(list(groups), len(groups))
        cut = round(len(keys) * TEST_SHARE)
        for pools, part in ((test_pools, keys[:cut]), (train_pools, keys[cut:])):
            pools[family] = turns([rng.sample(groups[k], len(groups[k])) for k in part])
    test, _ = pick(test_pools, TEST_ROWS, rng)
    train, counts = pick(train_pools, TRAIN_ROWS, rng)
    return train, test, counts


def turns(groups: list[list[Sentence]]) -> list[Sentence]:
    """One sentence of every combination before the second of any; taken from the end."""
    dealt = []
    for turn in range(max(map(len, groups))):
        dealt += [group[turn] for group in groups if turn < len(group)]
    return dealt[::-1]


def verify(train: Rows, test: Rows, counts: Counter) -> list[str]:
    everything = train + test
    targets = [target for _, target in everything]
    if len(set(targets)) != len(targets):
        raise DataError("a corrected sentence occurs twice")
    if len({text for text, _ in everything}) != len(everything):
        raise DataError("a text occurs twice")
    for text, target in everything:
        if not (target[0].isupper() and target[-1] == "." and len(target.split()) <= MAX_WORDS):
            raise DataError(f"not a proper sentence: {target!r}")
        if len(text.split()) > MAX_WORDS:
            raise DataError(f"too long: {text!r}")
    words = {w for t in targets for w in re.findall(r"[a-z]+", t.lower())}
    if len(words) > MAX_VOCABULARY:
        raise DataError(f"{len(words)} words, more than {MAX_VOCABULARY}")
    unknown = words - {w for _, t in train for w in re.findall(r"[a-z]+", t.lower())}
    if unknown:
        raise DataError(f"words that only test has: {sorted(unknown)}")
    near = nearest(test, train)
    if near >= MAX_JACCARD:
        raise DataError(f"a test text is too near a train text: {near:.3f}")
    right = sum(text == target for text, target in everything)
    return [
        f"sentences.csv: {len(train)} rows, test.csv: {len(test)} rows",
        f"vocabulary of the corrected sentences: {len(words)} words",
        f"already correct: {right} of {len(everything)} rows",
        "families in sentences.csv: " + ", ".join(f"{k} {v}" for k, v in counts.items()),
        f"test texts nearest train text: word 3-gram Jaccard {near:.3f} at most",
    ]


def three_grams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z]+", text.lower())
    return set(zip(words, words[1:], words[2:], strict=False))


def nearest(rows: Rows, others: Rows) -> float:
    other_grams = [three_grams(text) for text, _ in others]
    best = 0.0
    for text, _ in rows:
        grams = three_grams(text)
        for seen in other_grams:
            if shared := len(grams & seen):
                best = max(best, shared / (len(grams) + len(seen) - shared))
    return best


def as_csv(rows: Rows) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["text", "target"])
    writer.writerows(rows)
    return out.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the grammar correction data.")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    arguments = parser.parse_args()

    try:
        train, test, counts = make_rows()
        lines = verify(train, test, counts)
    except DataError as problem:
        print(f"make_data: {problem}", file=sys.stderr)
        return 1

    stale = []
    DATA.mkdir(exist_ok=True)
    for name, rows in (("sentences.csv", train), ("test.csv", test)):
        path, content = DATA / name, as_csv(rows).encode("utf-8")
        if not arguments.check:
            path.write_bytes(content)
        elif not path.is_file() or path.read_bytes() != content:
            stale.append(name)
    print("\n".join(lines))
    if stale:
        print(f"make_data: differs from what is made here: {', '.join(stale)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
