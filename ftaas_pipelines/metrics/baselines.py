"""What needs no model: the answers any adapter has to beat before it is worth serving."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

_ROWS = 256  # prompts compared with all training prompts at once


@dataclass(frozen=True)
class Example:
    """A record as a baseline sees it."""

    prompt: str
    answer: str


Baseline = Callable[[Sequence[str]], list[str]]


def for_task(task: str, train: Sequence[Example]) -> dict[str, Baseline]:
    """The naive baselines of a task: name to a function from prompts to answers."""
    found: dict[str, Baseline] = {}
    if task == "correction":
        found["untouched_input"] = untouched_input
    if train and task == "classification":
        found["majority"] = partial(majority, train)
    if train:
        found["retrieval"] = partial(retrieval, train)
    return found


def untouched_input(prompts: Sequence[str]) -> list[str]:
    """Give back what was asked: right wherever there was nothing to correct."""
    return list(prompts)


def majority(train: Sequence[Example], prompts: Sequence[str]) -> list[str]:
    """The most frequent training answer, always; the alphabetically first of equals."""
    counts = Counter(e.answer for e in train)
    answer = min(counts, key=lambda a: (-counts[a], a))
    return [answer] * len(prompts)


def retrieval(train: Sequence[Example], prompts: Sequence[str]) -> list[str]:
    """The answer of the nearest training prompt: cosine of tf-idf over words and signs.

    Rare words (a fault code) weigh most. Of equally near prompts the first in `train` wins.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer: Any = TfidfVectorizer(token_pattern=r"\w+|[^\w\s]")
    known = vectorizer.fit_transform([e.prompt for e in train]).T.tocsr()
    asked = vectorizer.transform(list(prompts)).tocsr()
    answers: list[str] = []
    for start in range(0, len(prompts), _ROWS):
        near = (asked[start : start + _ROWS] @ known).toarray()
        # Rounded so that a difference in the last bit never decides between equals.
        answers += [train[i].answer for i in near.round(5).argmax(axis=1)]
    return answers
