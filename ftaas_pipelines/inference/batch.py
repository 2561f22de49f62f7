"""Rows being answered together: each a prompt on its way, with its own adapter and its own sampling.

The loop is our own: as fast a step as transformers' `generate`, but rows join and leave between steps, and
a greedy row's tokens never depend on its neighbours, not even where two are all but equally likely.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol, cast

import torch  # noqa: TID253 imported by stage programs and the engine only
from torch import Tensor  # noqa: TID253

from ftaas_pipelines.inference import forward
from ftaas_pipelines.inference.forward import CausalSteps, Network
from ftaas_pipelines.inference.pictures import Shown
from ftaas_pipelines.inference.prefixes import Prefix, Prefixes

# Nats. In fp32 a row's scores move by some 1e-6 with who is beside it. Two tokens closer than this are
# weighed again as if the row were alone, so that an answer is the same in every company.
NEAR = 1e-4
_UNFINISHED_CHARACTER = "\N{REPLACEMENT CHARACTER}"


OnText = Callable[[str, int], None]


class Constraint(Protocol):
    """What an answer must look like, token by token (a JSON schema)."""

    def allow(self, logits: Tensor) -> Tensor:
        """The `[vocab]` logits with what may not come next at minus infinity."""
        ...

    def accept(self, token: int) -> None:
        """Go on behind a token, the end token included."""
        ...


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked. Temperature 0 is greedy and ignores `top_p` and `seed`.

    Attributes:
        top_logprobs: report each token's log probability, and those of so many likeliest; None: neither.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: Sequence[str] = ()
    top_logprobs: int | None = None


GREEDY = Sampling()


@dataclass(frozen=True)
class TokenScore:
    """A generated token's log probability (nats, at temperature 1), and those of the likeliest instead."""

    token: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        token_ids: what was generated, without the end token.
        finish_reason: `stop` for the end token or a stop string, `length` for the token limit.
        scores: one a token of `token_ids`; None where not asked for.
        reused: tokens of the prompt that had been read before.
    """

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    scores: list[TokenScore] | None = None
    reused: int = 0


def room(network: Network, prompt: list[int], max_new_tokens: int) -> int:
    """How many tokens an answer may have before the limit or the model's context ends."""
    if network.context_tokens is None:
        return max_new_tokens
    return min(max_new_tokens, network.context_tokens - len(prompt))


@dataclass(eq=False)
class Row:
    """One prompt on its way: its tokens so far, and when it is done.

    Attributes:
        room: most tokens of its answer.
        on_text: called with each piece of text as it is certain (streaming), and how many tokens there are.
        first_at: when its first token came, `time.monotonic()`.
        reused: tokens of the prompt that had been read before.
        mixed: whether it was ever computed together with others, so that last digits may differ.
    """

    network: Network
    adapter: str | None
    prompt: list[int]
    images: list[Shown]
    room: int
    sampling: Sampling = GREEDY
    on_text: OnText | None = None
    constraint: Constraint | None = None
    tokens: list[int] = field(default_factory=list[int])
    scores: list[TokenScore] = field(default_factory=list[TokenScore])
    finish_reason: Literal["stop", "length"] = "length"
    cancelled: bool = False
    first_at: float = 0.0
    reused: int = 0
    mixed: bool = False
    _cut: int | None = None  # where a stop string begins in the text
    _told: int = 0  # characters given to on_text

    @cached_property
    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.sampling.seed)

    @property
    def greedy(self) -> bool:
        """Whether its next token is the likeliest of all."""
        return self.sampling.temperature <= 0 and self.constraint is None

    @property
    def plain(self) -> bool:
        """Whether its next token is simply the likeliest, and nothing else is asked of it."""
        return self.greedy and self.sampling.top_logprobs is None

    def pick(self, logits: Tensor, likeliest: int) -> int:
        """The next token from its `[vocab]` logits: the likeliest, or one draw from the nucleus `top_p`."""
        logits = logits.float().cpu()
        allowed = self.constraint.allow(logits) if self.constraint else logits
        if self.greedy:
            token = likeliest
        elif self.sampling.temperature <= 0:
            token = int(allowed.argmax())
        else:
            chances, tokens = (allowed / self.sampling.temperature).softmax(-1).sort(descending=True)
            before = chances.cumsum(-1) - chances
            chances = chances.masked_fill(before >= self.sampling.top_p, 0.0)
            chances[0] = chances[0].clamp(min=1e-9)  # top_p 0 still leaves the best token
            token = int(tokens[torch.multinomial(chances, 1, generator=self._generator)])
        if self.constraint:
            self.constraint.accept(token)
        if self.sampling.top_logprobs is not None:
            self._score(token, logits.log_softmax(-1), self.sampling.top_logprobs)
        return token

    def _score(self, token: int, scores: Tensor, likeliest: int) -> None:
        values, tokens = scores.topk(likeliest)
        top = list(zip(tokens.tolist(), values.tolist(), strict=True))
        self.scores.append(TokenScore(token, float(scores[token]), top))

    def take(self, token: int) -> bool:
        """Add a token. Returns whether the answer goes on."""
        if not self.first_at:
            self.first_at = time.monotonic()
        if token in self.network.ends:
            self.finish_reason = "stop"
            return self._tell(last=True)
        self.tokens.append(token)
        if self.sampling.stop:
            text = self._text()
            places = [text.find(s) for s in self.sampling.stop if s in text]
            if places:
                self._cut, self.finish_reason = min(places), "stop"
                return self._tell(last=True)
        return self._tell(last=len(self.tokens) >= self.room)

    def _tell(self, last: bool) -> bool:
        if self.on_text:
            text = self._text()
            held = 0 if last else max((len(s) - 1 for s in self.sampling.stop), default=0)
            ready = text[: len(text) - held] if held else text
            if len(ready) > self._told and (last or not text.endswith(_UNFINISHED_CHARACTER)):
                self.on_text(ready[self._told :], len(self.tokens))
                self._told = len(ready)
        return not last

    def _text(self) -> str:
        text = cast(str, self.network.tokenizer.decode(self.tokens, skip_special_tokens=True))
        return text[: self._cut]

    def generation(self) -> Generation:
        scores = self.scores[: len(self.tokens)] if self.sampling.top_logprobs is not None else None
        return Generation(
            self._text(), self.tokens, self.finish_reason, len(self.prompt), scores, self.reused
        )


Working = Callable[[Sequence[str | None]], AbstractContextManager[None]]


class Batch:
    """Rows of one network, a token each a step.

    Args:
        working: holds the network with these adapters at work, one a row.
        prefixes: beginnings of prompts that have been read before.
    """

    def __init__(self, network: Network, working: Working, prefixes: Prefixes | None = None):
        self.network, self._working = network, working
        self._prefixes = prefixes if prefixes and network.family == "causal" else None
        self.rows: list[Row] = []
        self._steps: forward.Steps | None = None

    @property
    def joinable(self) -> bool:
        """Whether rows can be added to those that are on their way."""
        return self._steps is None or self._steps.joinable

    def join(self, rows: Sequence[Row]) -> None:
        """Read the prompts of more rows and pick their first tokens. Rows without room are done already.

        Those before must be none, or joinable.
        """
        new = [r for r in rows if r.room > 0]
        if not new:
            return
        known = [self._prefixes.find(r.adapter, r.prompt) if self._prefixes else None for r in new]
        read = [(r, p) for r, p in zip(new, known, strict=True) if p]
        if read:
            self._begin([r for r, _ in read], [p for _, p in read])
        if whole := [r for r, p in zip(new, known, strict=True) if not p]:
            self._begin(whole, [])

    def _begin(self, new: list[Row], known: list[Prefix]) -> None:
        """Read prompts, or what is left of them behind a beginning that is known."""
        images = [image for r in new for image in r.images]
        for row, prefix in zip(new, known, strict=False):
            row.reused = len(prefix.tokens)
        with self._working([r.adapter for r in new]), torch.inference_mode():
            steps = forward.begin(self.network, [r.prompt for r in new], images, known)
            going = self._advance(steps, new, first=True)
            if going and self._steps is not None:
                assert isinstance(self._steps, CausalSteps) and isinstance(steps, CausalSteps), "not joinable"
                self._steps.join(steps)
            elif going:
                self._steps = steps
        self.rows += going

    def _keep(self, steps: forward.Steps, rows: Sequence[Row]) -> None:
        """Keep the beginnings that these prompts share with earlier ones."""
        if self._prefixes is None or not isinstance(steps, CausalSteps) or not steps.joinable:
            return
        for i, row in enumerate(rows):
            if count := self._prefixes.worth(row.adapter, row.prompt):
                self._prefixes.keep(row.adapter, row.prompt[:count], steps.read(i, count))

    def step(self) -> None:
        """One more token for every row; those that are done, or cancelled, leave."""
        steps = self._steps
        assert steps is not None, "nobody has joined"
        with self._working([r.adapter for r in self.rows]), torch.inference_mode():
            self.rows = self._advance(steps, self.rows)
        if not self.rows:
            self._steps = None

    def _advance(self, steps: forward.Steps, rows: list[Row], first: bool = False) -> list[Row]:
        """Pick the next token of each row. Returns those that go on.

        Args:
            first: the prompts have just been read.
        """
        logits = steps.logits()
        if first:
            self._keep(steps, rows)
        for row in rows:
            row.mixed |= len(rows) > 1 or row.reused > 0
        picked = self._picked(logits, rows)
        going = _close_ranks(
            [row.take(token) and not row.cancelled for row, token in zip(rows, picked, strict=True)]
        )
        if going:
            steps.advance([picked[i] for i in going], going)
        return [rows[i] for i in going]

    def _picked(self, logits: Tensor, rows: Sequence[Row]) -> list[int]:
        values, tokens = logits.topk(2, -1)
        best: list[int] = tokens[:, 0].tolist()
        if logits.dtype == torch.float32:  # lower precision parts from itself long before its last digits
            near: list[bool] = (values[:, 0] - values[:, 1] < NEAR).tolist()
            for i, row in enumerate(rows):
                if near[i] and row.greedy:
                    best[i] = self._alone(row) if row.mixed else int(logits[i].argmax())
        return [
            b if r.plain else r.pick(logits[i], b) for i, (r, b) in enumerate(zip(rows, best, strict=True))
        ]

    def _alone(self, row: Row) -> int:
        """The next token of a greedy row as if nobody had ever been beside it: all of it is read again."""
        with self._working([row.adapter]):
            steps = forward.begin(self.network, [row.prompt], row.images)
            logits = steps.logits()
            for token in row.tokens:
                steps.advance([token], [0])
                logits = steps.logits()
        return int(logits[0].argmax())


def _close_ranks(goes_on: list[bool]) -> list[int]:
    """Who goes on, in a new order: the last take the places of those that leave, the others keep theirs."""
    going = [i for i, goes in enumerate(goes_on) if goes]
    behind = [i for i in going if i >= len(going)]
    return [i if goes_on[i] else behind.pop() for i in range(len(going))]
