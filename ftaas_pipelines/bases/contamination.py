"""Does any test prompt of the example projects occur in what the bases were trained on?

A run of eight words of a prompt (the whole prompt where it is shorter) must not occur in the
pre-training text, the skills, or the T5 examples. All of these are made again here, row by row,
from the same seeds.
"""

from __future__ import annotations

import csv
import itertools
import json
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WINDOW_WORDS = 8
TEST_FILES = ("test*.jsonl", "test*.csv", "unseen_combinations.jsonl")
# What a model is asked to produce; everything else in a row is its prompt.
ANSWER_FIELDS = {"output", "target", "answer", "category", "label", "chosen", "rejected", "completion"}

Words = tuple[str, ...]


@dataclass(frozen=True)
class Hit:
    """A run of words of a test prompt that also stands in the training text."""

    source: str
    words: str
    found_in: str


def split_words(text: str) -> list[str]:
    """Return the words in lower case; punctuation does not hide a match."""
    return re.findall(r"\w+", text.lower())


def prompts(path: Path) -> Iterator[str]:
    """Yield the prompt of each row of a test file: its text fields but the answer, joined."""
    with path.open(encoding="utf-8", newline="") as lines:
        table = (
            csv.DictReader(lines)
            if path.suffix == ".csv"
            else (json.loads(line) for line in lines if line.strip())
        )
        row: dict[str, Any]
        for row in table:
            if "messages" in row:
                yield " ".join(turn["content"] for turn in row["messages"] if turn["role"] == "user")
            else:
                yield " ".join(
                    value for key, value in row.items() if key not in ANSWER_FIELDS and isinstance(value, str)
                )


def needles(projects: Path) -> dict[Words, str]:
    """Return each run of words to look for, and the file it came from."""
    found: dict[Words, str] = {}
    for pattern in TEST_FILES:
        for path in sorted(projects.glob(f"*/data/{pattern}")):
            for prompt in prompts(path):
                words = split_words(prompt)
                size = min(WINDOW_WORDS, len(words))
                for start in range(len(words) - size + 1 if size else 0):
                    found.setdefault(tuple(words[start : start + size]), str(path))
    return found


def training_texts() -> Iterator[tuple[str, str]]:
    """Yield ``(where, text)`` for everything the bases saw.

    What the vision base is asked about pictures is a handful of sentences about shapes; they are left out.
    """
    from ftaas_pipelines.bases import causal, corpus, skills, t5, tokenizer, vision

    texts = causal.read_texts()
    yield from (("text", text) for text in texts)
    # A row too long for a batch is drawn again: twice the number of rows covers all that were used.
    for base, steps in ((causal, causal.STEPS), (vision, vision.STEPS // 2)):
        rng = random.Random(base.SEED + 2)
        for _ in range(steps * causal.SKILL_ROWS):
            yield from (("skills", turn["content"]) for turn in skills.draw(rng))
    pieces = tokenizer.for_t5(tokenizer.train_bpe(texts, t5.VOCABULARY_SIZE), t5.MAX_POSITIONS)
    prose = corpus.read_sentences(corpus.read_documents())
    for kept in t5.rows(prose, pieces, random.Random(t5.SEED), t5.STEPS):
        yield from (("t5", text) for text in itertools.chain.from_iterable(kept))


def check(projects: Path) -> tuple[dict[str, int], list[Hit]]:
    """Return figures (runs looked for, texts and words read) and every hit."""
    wanted = needles(projects)
    sizes = sorted({len(words) for words in wanted})
    figures = Counter(test_runs=len(wanted))
    hits: dict[Words, Hit] = {}
    for where, text in training_texts():
        words = split_words(text)
        figures[f"{where}_texts"] += 1
        figures[f"{where}_words"] += len(words)
        for size in sizes:
            for start in range(len(words) - size + 1):
                run = tuple(words[start : start + size])
                if run in wanted:
                    hits.setdefault(run, Hit(wanted[run], " ".join(run), where))
    return dict(figures), list(hits.values())
