"""Labels, or free answers, for texts that have none; each with the share of votes it got."""

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftaas_pipelines.data.raw import readers
from ftaas_pipelines.data.rows import records
from ftaas_pipelines.data.rows.records import Record
from ftaas_pipelines.data.synthesis import material, prompts, replies, work
from ftaas_pipelines.data.synthesis.endpoint import Endpoint, Reply
from ftaas_pipelines.data.synthesis.generate import Made
from ftaas_pipelines.data.synthesis.methods import price
from ftaas_pipelines.data.synthesis.work import Draft, Entry, Limits, Progress
from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.projects.catalog import Loaded


@dataclass(frozen=True)
class Unlabelled:
    """Texts to label, each once.

    Attributes:
        shown: the texts as the model may see them: personal data treated as the project says.
        dropped: rows that are not asked about: empty, duplicate, not_text, template_token, or dropped by
            the project's privacy policy.
    """

    texts: list[str]
    shown: list[str]
    dropped: dict[str, int]


def unlabelled(paths: Sequence[Path], encoding: str, column: str, loaded: Loaded) -> Unlabelled:
    """The texts of a column.

    Raises:
        InputInvalid: a file cannot be read, has no such column, or no row has a text.
    """
    values: list[Any] = []
    with tempfile.TemporaryDirectory() as spool:
        for path in paths:
            look = readers.look(path, encoding)
            if column not in look.columns:
                got = f"columns {', '.join(look.columns)}"
                raise InputInvalid(f"there is no column '{column}'", f"{path}:1", got, "mend --column")
            values += [row.value.get(column) for row in material.raw_rows(path, encoding, Path(spool))]
    texts, dropped = once(values)
    rows = [Record("", [{"role": "assistant", "content": text}], "", None, 0) for text in texts]
    for row in rows:
        row.record_id = records.identity(row.messages)
    reasons = material.treat(rows, loaded)
    dropped.update(reason for reason in reasons if reason)
    seen = [(t, row.answer) for t, row, reason in zip(texts, rows, reasons, strict=True) if not reason]
    if not seen:
        got = ", ".join(f"{n} {reason}" for reason, n in sorted(dropped.items()))
        raise InputInvalid("there is no text to label", str(paths[0]), got, "mend --column")
    return Unlabelled([text for text, _ in seen], [shown for _, shown in seen], dict(dropped))


def once(values: Iterable[Any]) -> tuple[list[str], Counter[str]]:
    """The texts among the values, each once, and what is left out by reason."""
    seen: set[str] = set()
    texts: list[str] = []
    dropped: Counter[str] = Counter()
    for value in values:
        text = value if isinstance(value, str) else "" if value is None else str(value)
        normal = " ".join(text.casefold().split())
        reason = replies.unfit(text) or ("duplicate" if normal in seen else "")
        if reason:
            dropped[reason] += 1
            continue
        seen.add(normal)
        texts.append(text)
    return texts, dropped


@dataclass(frozen=True)
class Labelling:
    """One attempt a text.

    Attributes:
        labels: one of these; empty where the instruction asks for a free answer.
        votes: how often each text is asked about; the answer most often given holds.
        least_agreement: share of the votes that an answer needs, 0 to 1.
    """

    endpoint: Endpoint
    data: Unlabelled
    labels: Sequence[str]
    instruction: str = ""
    votes: int = 1
    least_agreement: float = 0.0
    temperature: float = 0.0
    seed: int = 0

    def attempt(self, number: int, before: list[Entry]) -> Entry:
        entry = Entry(number)
        prompt = prompts.load("label")
        asked = prompt.render(text=self.data.shown[number], labels=self.labels, instruction=self.instruction)
        counts: Counter[str] = Counter()
        faults: Counter[str] = Counter()
        for vote in range(self.votes):
            said, fault = self._vote(asked, self.seed + number * self.votes + vote, entry)
            if fault:
                faults[fault] += 1
            else:
                counts[said] += 1
        if not counts:
            entry.dropped = {faults.most_common(1)[0][0]: 1}
            return entry
        entry.refusal = ""
        winner = min(counts, key=lambda said: (-counts[said], self._rank(said), said))
        agreement = counts[winner] / self.votes
        if agreement < self.least_agreement:
            entry.dropped = {"disagreement": 1}
            return entry
        mark = {"generator": self.endpoint.generator, "prompt": prompt.mark(), "cost_usd": 0.0}
        entry.rows = [
            {
                "prompt": self.data.texts[number],
                "completion": winner,
                "agreement": round(agreement, 4),
                "_synthetic": mark,
            }
        ]
        price(entry.rows, entry.usage)
        return entry

    def accept(self, entry: Entry) -> Entry:
        return entry

    def wanted(self, draft: Draft) -> int:
        return len(self.data.texts) - len(draft.entries)

    def _rank(self, said: str) -> int:
        """Of answers with equal votes the label that is named first holds."""
        return self.labels.index(said) if self.labels else 0

    def _vote(self, asked: str, seed: int, entry: Entry) -> tuple[str, str]:
        """What one vote says, or why it says nothing. A reply that is no label is asked for again, once."""
        messages = [{"role": "user", "content": asked}]
        reply = self._ask(messages, seed, entry)
        if reply.fault in ("refused_by_endpoint", "empty_reply"):
            return "", reply.fault
        if not self.labels:
            return reply.text, reply.fault or replies.unfit(reply.text)
        if said := replies.label(reply.text, self.labels):
            return said, ""
        again = prompts.load("label_again").render(labels=self.labels)
        messages += [{"role": "assistant", "content": reply.text}, {"role": "user", "content": again}]
        reply = self._ask(messages, seed, entry)
        said = replies.label(reply.text, self.labels)
        return (said, "") if said else ("", reply.detail and reply.fault or "not_labelled")

    def _ask(self, messages: list[dict[str, str]], seed: int, entry: Entry) -> Reply:
        reply = self.endpoint.ask(messages, self.temperature, seed)
        entry.usage.add(reply.usage)
        entry.refusal = reply.detail
        return reply


def label(labelling: Labelling, draft: Draft, limits: Limits, progress: Progress) -> Made:
    """Label the texts and write them. Raises like `work.carry_out`; what was made until then is kept.

    Raises:
        FtaasError: not one text could be labelled.
    """
    work.carry_out(labelling, draft, limits, progress)
    dropped = dict(sorted((Counter(labelling.data.dropped) + draft.dropped).items()))
    if not draft.count:
        got = ", ".join(f"{n} {reason}" for reason, n in dropped.items())
        do = "use a stronger model or fewer labels"
        raise FtaasError("not one text could be labelled", str(work.part_of(draft.out)), got, do)
    return Made(draft.finish(), draft.count, dropped, draft.usage)
