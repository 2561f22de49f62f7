"""How new rows are asked for: self-instruct, from documents, or evolved. One attempt each.

What an attempt asks depends on the job's seed, its number and the rows of earlier waves, on nothing else.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ftaas_pipelines.data.synthesis import prompts, replies
from ftaas_pipelines.data.synthesis.endpoint import Endpoint, Messages, Usage
from ftaas_pipelines.data.synthesis.material import Pair
from ftaas_pipelines.data.synthesis.work import Entry

_PAIRS = 5  # asked for at a time
_SEEDS_SHOWN, _MADE_SHOWN = 6, 2  # Self-Instruct: 6 of people, 2 of the model
_ROUNDS = 4  # Evol-Instruct: so often is a row evolved
_OPERATORS = ("constrain", "deepen", "concretise", "reason", "broaden")
_SHOTS = 2
_COPIED = re.compile(
    r"(given|original|new|rewritten|created) (prompt|request)\b|^\W*request\W*:", re.IGNORECASE
)
_SORRY_WORDS = 80  # Evol-Instruct: a shorter answer with "sorry" is a refusal


@dataclass(frozen=True)
class Asking:
    """What every method needs.

    Attributes:
        purpose: the project's intended use, told to the model.
        system: the project's system message.
    """

    endpoint: Endpoint
    temperature: float
    seed: int
    purpose: str = ""
    system: str = ""

    def dice(self, number: int) -> random.Random:
        return random.Random(f"{self.seed}/{number}")

    def ask(self, messages: Messages, number: int, step: int = 0) -> Any:
        return self.endpoint.ask(messages, self.temperature, self.seed + 10 * number + step)


class Method(Protocol):
    """One way to ask.

    Attributes:
        asks_for: rows that one attempt can bring.
    """

    asks_for: ClassVar[int]

    def attempt(self, number: int, before: list[Entry]) -> Entry: ...


@dataclass(frozen=True)
class SelfInstruct:
    """New pairs in the manner of eight that are shown, two of them new ones of before."""

    asking: Asking
    seeds: Sequence[Pair]
    asks_for: ClassVar[int] = _PAIRS

    def attempt(self, number: int, before: list[Entry]) -> Entry:
        dice = self.asking.dice(number)
        made = [_pair(row) for entry in before for row in entry.rows]
        shown = dice.sample(self.seeds, min(_SEEDS_SHOWN, len(self.seeds)))
        shown += dice.sample(made, min(_MADE_SHOWN, len(made)))
        dice.shuffle(shown)
        prompt = prompts.load("self_instruct")
        text = prompt.render(examples=shown, wanted=_PAIRS, purpose=self.asking.purpose)
        return _pairs(self.asking, number, text, prompt.mark())


@dataclass(frozen=True)
class FromDocuments:
    """Questions that a passage answers. Each passage is asked about once before one is asked about again."""

    asking: Asking
    passages: Sequence[str]
    asks_for: ClassVar[int] = _PAIRS

    def attempt(self, number: int, before: list[Entry]) -> Entry:
        turn, place = divmod(number, len(self.passages))
        order = list(range(len(self.passages)))
        random.Random(f"{self.asking.seed}/passages/{turn}").shuffle(order)
        prompt = prompts.load("from_document")
        passage = self.passages[order[place]]
        text = prompt.render(passage=passage, wanted=_PAIRS, purpose=self.asking.purpose)
        return _pairs(self.asking, number, text, prompt.mark())


@dataclass(frozen=True)
class Evolve:
    """A more demanding or a rarer version of a row, answered after two seeds as examples."""

    asking: Asking
    seeds: Sequence[Pair]
    asks_for: ClassVar[int] = 1

    def attempt(self, number: int, before: list[Entry]) -> Entry:
        dice = self.asking.dice(number)
        parents = [(seed, 0) for seed in self.seeds]
        parents += [
            (_pair(row), round_)
            for entry in before
            for row, round_ in zip(entry.rows, entry.rounds, strict=True)
            if round_ < _ROUNDS
        ]
        (parent, round_), operator = dice.choice(parents), dice.choice(_OPERATORS)
        prompt = prompts.load("evolve")
        asked = prompt.render(prompt=parent.prompt, operator=operator)
        reply = self.asking.ask([{"role": "user", "content": asked}], number)
        entry = Entry(number, usage=reply.usage, refusal=reply.detail)
        if (
            fault := reply.fault
            or replies.unfit(reply.text)
            or _COPIED.search(reply.text)
            and "copied_prompt"
        ):
            entry.dropped[fault] = 1
            return entry
        answer = self.asking.ask(self._shots(dice, parent, reply.text), number, 1)
        entry.usage.add(answer.usage)
        entry.refusal = answer.detail
        if fault := answer.fault or replies.unfit(answer.text) or _sorry(answer.text):
            entry.dropped[fault] = 1
            return entry
        entry.rows = [_row(Pair(reply.text, answer.text), self.asking.endpoint, prompt.mark(operator))]
        entry.rounds = [round_ + 1]
        return entry

    def _shots(self, dice: random.Random, parent: Pair, question: str) -> Messages:
        """The question after examples of how the project answers."""
        others = [seed for seed in self.seeds if seed is not parent]
        messages = [{"role": "system", "content": self.asking.system}] if self.asking.system else []
        for shot in dice.sample(others, min(_SHOTS, len(others))):
            messages += [
                {"role": "user", "content": shot.prompt},
                {"role": "assistant", "content": shot.completion},
            ]
        return [*messages, {"role": "user", "content": question}]


def _pairs(asking: Asking, number: int, text: str, mark: str) -> Entry:
    """An attempt that is one call and brings several pairs."""
    reply = asking.ask([{"role": "user", "content": text}], number)
    if reply.fault not in ("", "cut_off"):
        return Entry(number, dropped={reply.fault: 1}, usage=reply.usage, refusal=reply.detail)
    found, dropped = replies.pairs(reply.text, reply.fault == "cut_off")
    rows = [_row(pair, asking.endpoint, mark) for pair in found]
    return Entry(number, rows, dict(dropped), reply.usage, rounds=[1] * len(rows))


def _row(pair: Pair, endpoint: Endpoint, mark: str) -> dict[str, Any]:
    return {
        "prompt": pair.prompt,
        "completion": pair.completion,
        "_synthetic": {"generator": endpoint.generator, "prompt": mark, "cost_usd": 0.0},
    }


def _pair(row: dict[str, Any]) -> Pair:
    return Pair(row["prompt"], row["completion"])


def _sorry(answer: str) -> str:
    words = answer.casefold().split()
    return "refusal" if len(words) < _SORRY_WORDS and any("sorry" in word for word in words) else ""


def price(rows: Sequence[dict[str, Any]], usage: Usage) -> None:
    """Share what an attempt cost among the rows that came of it."""
    for row in rows:
        row["_synthetic"]["cost_usd"] = round(usage.cost_usd / len(rows), 9)


def counted(dropped: dict[str, int], reasons: Sequence[str]) -> dict[str, int]:
    """Reasons added up."""
    return dict(sorted((Counter(dropped) + Counter(reasons)).items()))
