"""New rows for a project, each unlike every real row and every other new one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.data.synthesis import methods, work
from ftaas_pipelines.data.synthesis.endpoint import Usage
from ftaas_pipelines.data.synthesis.material import Pair
from ftaas_pipelines.data.synthesis.methods import Method
from ftaas_pipelines.data.synthesis.work import Draft, Entry, Limits, Progress

if TYPE_CHECKING:
    from ftaas_pipelines.data.synthesis.known import Known


@dataclass(frozen=True)
class Made:
    """A finished job.

    Attributes:
        rows: in the file.
        dropped: what the model wrote and the file does not hold, by reason.
        usage: of all calls, of those without a row too.
    """

    out: Path
    rows: int
    dropped: dict[str, int]
    usage: Usage

    def as_dict(self) -> dict[str, Any]:
        used = self.usage
        return {
            "file": str(self.out),
            "rows": self.rows,
            "dropped": self.dropped,
            "calls": used.calls,
            "prompt_tokens": used.prompt_tokens,
            "completion_tokens": used.completion_tokens,
            "calls_without_usage": used.unmetered,
            "cost_usd": round(used.cost_usd, 9),
        }


@dataclass
class Generation:
    """Attempts of one method until there are enough rows.

    Attributes:
        known: the project's rows; rows that are accepted join them.
        on: what near-duplicates are told by, prompt or record.
    """

    method: Method
    known: "Known"
    on: str
    count: int

    def attempt(self, number: int, before: list[Entry]) -> Entry:
        return self.method.attempt(number, before)

    def accept(self, entry: Entry) -> Entry:
        """Keep the rows that say something new."""
        kept: list[tuple[dict[str, Any], int]] = []
        reasons: list[str] = []
        for row, rounds in zip(entry.rows, entry.rounds, strict=True):
            prompt, text = self._texts(row)
            if reason := self.known.like(prompt, text):
                reasons.append(reason)
            else:
                self.known.add([prompt], [text])
                kept.append((row, rounds))
        entry.rows, entry.rounds = [row for row, _ in kept], [rounds for _, rounds in kept]
        entry.dropped = methods.counted(entry.dropped, reasons)
        methods.price(entry.rows, entry.usage)
        return entry

    def wanted(self, draft: Draft) -> int:
        missing = max(0, self.count - draft.count)
        return math.ceil(missing / self.method.asks_for)

    def remember(self, rows: Sequence[dict[str, Any]]) -> None:
        """Know the rows of an earlier, killed process."""
        texts = [self._texts(row) for row in rows]
        self.known.add([prompt for prompt, _ in texts], [text for _, text in texts])

    def _texts(self, row: dict[str, Any]) -> tuple[str, str]:
        from ftaas_pipelines.data.made import near_text

        record = Pair(row["prompt"], row["completion"]).record()
        return record.normal_prompt, near_text(record, self.on)


def generate(generation: Generation, draft: Draft, limits: Limits, progress: Progress) -> Made:
    """Make the rows and write them. Raises like `work.carry_out`; what was made until then is kept."""
    generation.remember(draft.rows)
    work.carry_out(generation, draft, limits, progress)
    out = draft.finish(generation.count)
    return Made(out, generation.count, dict(sorted(draft.dropped.items())), draft.usage)
