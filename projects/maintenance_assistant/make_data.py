#!/usr/bin/env python3
"""Make the example data of the maintenance assistant.

    python make_data.py            write the files under data/
    python make_data.py --check    exit 1 unless data/ holds exactly what this program makes

The knowledge lies beside this file, to be read and mended by hand:

    fault_catalogue.json   units, causes, actions, symptoms, and which fault a unit can have
    wordings.json          how people write a report (train and test wordings)
    questions.json         short maintenance questions and their answers

Only the standard library is used, and the same files come out on every machine.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import re
import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA = HERE / "data"

SEED = 417
UNSEEN_CODES = 64  # codes kept out of train and test
UNSEEN_PER_UNIT = 4  # at most so many of them from one unit
MIN_PARTS_SEEN = 2  # each half of an unseen code is in train with so many partners
MIN_CAUSE_SEEN = 3  # ... and its cause stays in train with so many units
TRAIN_PER_CODE = 8  # different wordings of each code
TEST_ROWS_EXTRA = 48  # codes that are asked a second time in test
LOWER_CASE_EVERY = 8  # one report in so many is typed without capitals
MAX_WORDS = 25
MAX_JACCARD = 0.7

REPORT_INSTRUCTION = "Read the report. Answer with JSON: unit, cause, action, priority."
QUESTION_INSTRUCTION = "Answer in one sentence."
CODE_SHAPE = re.compile(r"\b[A-Z]{1,2}[0-9]{3}\b")

Row = dict[str, str]


class DataError(Exception):
    """The knowledge tables, or the rows made of them, break a rule of this data set."""


def load(name: str) -> dict:
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def require(condition: bool, message: str) -> None:
    if not condition:
        raise DataError(message)


# ---------------------------------------------------------------- the fault codes


class Fault:
    """One fault code with its answer.

    A code such as E411 reads: E the unit, 4 the priority, 11 the cause and its action.
    """

    def __init__(self, letter: str, number: str, priority: int, catalogue: dict):
        cause = catalogue["causes"][number]
        self.letter = letter
        self.cause_number = number
        self.digits = f"{priority}{number}"
        self.code = letter + self.digits
        self.symptoms: list[str] = cause["symptoms"]
        self.answer = {
            "unit": catalogue["units"][letter]["unit"],
            "cause": cause["cause"],
            "action": cause["action"],
            "priority": catalogue["priorities"][str(priority)],
        }

    @property
    def output(self) -> str:
        return json.dumps(self.answer)


def read_faults(catalogue: dict) -> list[Fault]:
    faults = [
        Fault(letter, number, priority, catalogue)
        for letter, unit in catalogue["units"].items()
        for number, priority in unit["faults"].items()
    ]
    for fault in faults:
        require(CODE_SHAPE.fullmatch(fault.code) is not None, f"odd code {fault.code}")
        for key, value in fault.answer.items():
            require(
                re.fullmatch(r"[a-z]+( [a-z]+){0,3}", value) is not None,
                f"{fault.code}: {key} is not one to four plain lower-case words: {value!r}",
            )
    require(len({f.code for f in faults}) == len(faults), "a code occurs twice")
    require(len({f.output for f in faults}) == len(faults), "two codes have one answer")
    return faults


def choose_unseen(faults: list[Fault], rng: random.Random) -> set[str]:
    """Pick the codes kept out of train.

    Every part of such a code stays known: the letter, the three digits and the cause
    all remain in train with other partners.  Only the combination is new.
    """
    digits_left = Counter(f.digits for f in faults)
    cause_left = Counter(f.cause_number for f in faults)
    per_unit: Counter[str] = Counter()
    unseen: set[str] = set()
    for fault in rng.sample(faults, len(faults)):
        if len(unseen) == UNSEEN_CODES:
            break
        if (
            per_unit[fault.letter] < UNSEEN_PER_UNIT
            and digits_left[fault.digits] > MIN_PARTS_SEEN
            and cause_left[fault.cause_number] > MIN_CAUSE_SEEN
        ):
            unseen.add(fault.code)
            per_unit[fault.letter] += 1
            digits_left[fault.digits] -= 1
            cause_left[fault.cause_number] -= 1
    require(len(unseen) == UNSEEN_CODES, "too few codes can be kept out of train")
    return unseen


# ---------------------------------------------------------------- the reports


class Deck:
    """Deals wordings evenly: each is used once before any is used again."""

    def __init__(self, cards: list[str], rng: random.Random):
        self.cards, self.rng = cards, rng
        self.pile: list[str] = []

    def deal(self, count: int) -> list[str]:
        """Return `count` different cards."""
        hand: list[str] = []
        kept_back: list[str] = []
        while len(hand) < count:
            if not self.pile:
                self.pile = self.rng.sample(self.cards, len(self.cards))
            card = self.pile.pop()
            (kept_back if card in hand else hand).append(card)
        self.pile.extend(kept_back)
        return hand


class ReportWriter:
    def __init__(self, wordings: dict, rng: random.Random):
        self.slots: dict[str, list[str]] = wordings["slots"]
        self.rng = rng
        self.decks = {part: Deck(wordings[part], rng) for part in ("train", "test")}
        for wording in wordings["train"] + wordings["test"]:
            require(wording.count("{code}") == 1, f"needs one {{code}}: {wording!r}")

    def write(self, fault: Fault, wording: str) -> str:
        values = {name: self.rng.choice(choices) for name, choices in self.slots.items()}
        values["symptom"] = self.rng.choice(fault.symptoms)
        # The code is put in last, so that no change of case can touch it.
        text = wording.replace("{code}", "\0").format(**values)
        if self.rng.randrange(LOWER_CASE_EVERY) == 0:
            text = text.lower()
        elif wording[-1] in ".?":
            text = text[0].upper() + text[1:]
        text = text.replace("\0", fault.code)
        require(len(text.split()) <= MAX_WORDS, f"too long: {text!r}")
        require(CODE_SHAPE.findall(text) == [fault.code], f"not one code: {text!r}")
        return text

    def rows(self, fault: Fault, part: str, count: int = 1) -> list[Row]:
        return [
            row(REPORT_INSTRUCTION, self.write(fault, wording), fault.output)
            for wording in self.decks[part].deal(count)
        ]


def row(instruction: str, text: str, output: str) -> Row:
    return {"instruction": instruction, "input": text, "output": output}


# ---------------------------------------------------------------- the questions


def question_rows(questions: dict, part: str) -> list[Row]:
    rows = []
    for kind in questions["kinds"].values():
        wordings = kind["train"] if part == "train" else [kind["test"]]
        for subject, answer in kind["facts"].items():
            require(answer[0].isupper() and answer[-1] == ".", f"not a sentence: {answer!r}")
            title = subject[0].upper() + subject[1:]
            rows += [
                row(QUESTION_INSTRUCTION, wording.format(s=subject, S=title), answer) for wording in wordings
            ]
    return rows


# ---------------------------------------------------------------- the three sets


def make_rows() -> tuple[dict[str, list[Row]], list[Fault], set[str]]:
    rng = random.Random(SEED)
    faults = read_faults(load("fault_catalogue.json"))
    questions = load("questions.json")
    writer = ReportWriter(load("wordings.json"), rng)
    unseen = choose_unseen(faults, rng)
    known = [f for f in faults if f.code not in unseen]

    train = [r for f in known for r in writer.rows(f, "train", TRAIN_PER_CODE)]
    train += question_rows(questions, "train")
    asked_twice = {f.code for f in rng.sample(known, TEST_ROWS_EXTRA)}
    test = [r for f in known for r in writer.rows(f, "test", 1 + (f.code in asked_twice))]
    test += question_rows(questions, "test")
    challenge = [r for f in faults if f.code in unseen for r in writer.rows(f, "test")]

    sets = {"train": train, "test": test, "unseen_combinations": challenge}
    for rows in sets.values():
        rng.shuffle(rows)
    return sets, faults, unseen


def prompt(r: Row) -> str:
    return f"{r['instruction']}\n{r['input']}"


def three_grams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", text.lower())
    return set(zip(words, words[1:], words[2:], strict=False)) or {tuple(words)}


def nearest(rows: list[Row], others: list[Row], text) -> tuple[float, str, str]:
    """The highest word 3-gram Jaccard of a row in `rows` with a row in `others`."""
    other_grams = [(three_grams(text(o)), o) for o in others]
    best = (0.0, "", "")
    for r in rows:
        grams = three_grams(text(r))
        for seen, other in other_grams:
            shared = len(grams & seen)
            if shared and (score := shared / (len(grams) + len(seen) - shared)) > best[0]:
                best = (score, text(r), text(other))
    return best


def verify(sets: dict[str, list[Row]]) -> list[str]:
    """Prove what the README promises; return the lines to print."""
    prompts = {name: [prompt(r) for r in rows] for name, rows in sets.items()}
    for name, texts in prompts.items():
        require(len(set(texts)) == len(texts), f"{name}: a prompt occurs twice")
    lines = [f"{name}: {len(rows)} rows" for name, rows in sets.items()]
    for name in ("test", "unseen_combinations"):
        for label, text in (("whole prompt", prompt), ("input alone", lambda r: r["input"])):
            score, mine, other = nearest(sets[name], sets["train"], text)
            require(score < MAX_JACCARD, f"{name} is too near train: {mine!r} / {other!r}")
            lines.append(f"{name}: nearest train row by {label}: Jaccard {score:.3f}")
    known = {r["output"] for r in sets["train"]}
    require(all(r["output"] in known for r in sets["test"]), "test asks what train never says")
    require(
        not any(r["output"] in known for r in sets["unseen_combinations"]),
        "an unseen combination is in train",
    )
    return lines


def as_jsonl(rows: list[Row]) -> str:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


def as_code_list(faults: list[Fault], unseen: set[str]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["code", "unit", "cause", "action", "priority", "set"])
    for f in faults:
        writer.writerow([f.code, *f.answer.values(), "unseen" if f.code in unseen else "train"])
    return out.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the maintenance assistant's data.")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    arguments = parser.parse_args()

    try:
        sets, faults, unseen = make_rows()
        lines = verify(sets)
    except DataError as problem:
        print(f"make_data: {problem}", file=sys.stderr)
        return 1

    files = {f"{name}.jsonl": as_jsonl(rows) for name, rows in sets.items()}
    files["fault_codes.csv"] = as_code_list(faults, unseen)
    stale = []
    DATA.mkdir(exist_ok=True)
    for name, content in files.items():
        path = DATA / name
        if not arguments.check:
            path.write_bytes(content.encode("utf-8"))
        elif not path.is_file() or path.read_bytes() != content.encode("utf-8"):
            stale.append(name)
    print("\n".join(lines))
    if stale:
        print(f"make_data: differs from what is made here: {', '.join(stale)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
