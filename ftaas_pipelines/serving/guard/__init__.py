"""What may pass, on the way in and on the way out, by the policy's rules.

Personal data and secrets are seen by the data plane's own detectors. What is noticed is counted and told by
rule and kind, never by value. `docs/guard.md` says what is looked for, and what is not.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ftaas_pipelines.data.cleaning.language import language_of
from ftaas_pipelines.projects.guard import GuardRules, GuardSide, InputSide, OutputSide
from ftaas_pipelines.serving.guard import holding, injection, spotting
from ftaas_pipelines.serving.guard.spotting import Spot
from ftaas_pipelines.serving.openai_shapes import RequestRefused

__all__ = ["Guard", "GuardStream", "InputRefused", "Noticed", "OutputRefused"]

Where = Literal["input", "output"]
_NO_PROSE = ("call", "tools")  # JSON, and names beside texts: in no language


@dataclass(frozen=True)
class Noticed:
    """What a rule saw, never the value.

    Attributes:
        kind: what of the rule's things: `email`, `jwt`, a language, …
    """

    rule: str
    kind: str
    action: str
    count: int
    where: Where


class OutputRefused(Exception):
    """An answer that must not leave; the caller gets `content_filter`."""

    def __init__(self, noticed: list[Noticed]):
        super().__init__(", ".join(sorted({n.rule for n in noticed})))
        self.noticed = noticed


class Guard:
    """The rules of one project, ready to use; safe for many requests at once."""

    def __init__(self, rules: GuardRules):
        self.rules = rules
        self._input = spotting.Spotter(rules.input)
        self._output = spotting.Spotter(rules.output)

    def check_input(self, messages: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Noticed]]:
        """The messages as they may go on, redacted copies where a rule says so.

        Raises:
            RequestRefused: 400, `guard_input`; says which rule.
        """
        texts = [str(message.get("content") or "") for message in messages]
        # Of all messages together, and nobody looks through a longer prompt: the gateway waits meanwhile.
        if too_long := _too_long(self.rules.input, sum(map(len, texts)), "input"):
            raise _refusing([too_long])
        passed: list[dict[str, Any]] = []
        noticed: list[Noticed] = []
        for message, text in zip(messages, texts, strict=True):
            spots = self._input.spots(text)
            noticed += _counted(spots, "input")
            noticed += _whole_input(self.rules.input, text, message["role"] not in _NO_PROSE)
            new = spotting.redacted(text, spots)
            passed.append(message if new == text else {**message, "content": new})
        if any(n.action == "refuse" for n in noticed):
            raise _refusing(noticed)
        return passed, noticed

    def check_output(self, text: str) -> tuple[str, list[Noticed]]:
        """An answer as it may leave.

        Raises:
            OutputRefused: it must not.
        """
        if too_long := _too_long(self.rules.output, len(text), "output"):
            raise OutputRefused([too_long])
        spots = self._output.spots(text)
        noticed = [*_counted(spots, "output"), *_whole_output(self.rules.output, text)]
        if any(n.action == "refuse" for n in noticed):
            raise OutputRefused(noticed)
        return spotting.redacted(text, spots), noticed

    def redacted(self, text: str) -> str:
        """A text that is kept beside an answer (feedback): redacted as an answer would be, never refused."""
        return spotting.redacted(text, self._output.spots(text))

    def stream(self) -> "GuardStream":
        """Guards one answer that leaves piece by piece."""
        return GuardStream(self.rules.output, self._output)


class InputRefused(RequestRefused):
    """A prompt that a rule refuses."""

    def __init__(self, said: str, noticed: list[Noticed]):
        super().__init__(400, said, "guard_input", "messages")
        self.noticed = noticed


class GuardStream:
    """Lets go of an answer as far as no rule can change it any more.

    What left, in one piece, is what `check_output` makes of the whole; where it refuses the whole, nothing
    from the refused place on has left.

    Attributes:
        noticed: what was seen in what has left; after `end`, what `check_output` notices in the whole.
    """

    def __init__(self, rules: OutputSide, spotter: spotting.Spotter):
        self._rules, self._spotter = rules, spotter
        self._text = ""
        self._gone = 0  # characters of the text that have left, redacted or not
        self.noticed: list[Noticed] = []

    @property
    def holds(self) -> bool:
        """Whether text may have to wait here before it leaves."""
        return self._spotter.changes or _judges_the_whole(self._rules)

    @property
    def empty(self) -> bool:
        """Whether no text has come."""
        return not self._text

    def feed(self, text: str) -> str:
        """Take a piece of the answer; returns what may leave now.

        Raises:
            OutputRefused: a rule refuses what has come.
        """
        self._text += text
        if too_long := _too_long(self._rules, len(self._text), "output"):
            raise OutputRefused([too_long])
        if _judges_the_whole(self._rules):
            return ""
        if not self._spotter.changes:
            return self._let_go(len(self._text), [])
        until = holding.candidate(self._spotter, self._text, self._gone)
        if until <= self._gone:
            return ""
        seen = self._seen()
        until = holding.settled(self._spotter, self._text, self._gone, until, seen)
        return self._let_go(until, [s for s in seen if s.end <= until])

    def end(self) -> str:
        """The rest of the answer.

        Raises:
            OutputRefused: a rule refuses it.
        """
        noticed = _counted(self._spotter.spots(self._text), "output")
        noticed += _whole_output(self._rules, self._text)
        if any(n.action == "refuse" for n in noticed):
            self.noticed = []  # they are told by what is raised
            raise OutputRefused(noticed)
        rest = self._let_go(len(self._text), self._seen() if self._spotter.changes else [])
        self.noticed = noticed
        return rest

    def _seen(self) -> list[Spot]:
        """The places that change what has not left yet; of one that began before (none should), its rest."""
        start = holding.window(self._text, self._gone)
        found = (spot.moved(start) for spot in self._spotter.all(self._text[start:], acting=True))
        return [s._replace(start=max(s.start, self._gone)) for s in found if s.end > self._gone]

    def _let_go(self, until: int, seen: Sequence[Spot]) -> str:
        spots = spotting.apart(seen)
        if refusing := [spot for spot in spots if spot.action == "refuse"]:
            raise OutputRefused(_counted(refusing, "output"))
        start, self._gone = self._gone, until
        self.noticed += _counted(spots, "output")
        return spotting.redacted(self._text[start:until], [s.moved(-start) for s in spots])


def _refusing(noticed: list[Noticed]) -> InputRefused:
    rules = sorted({n.rule for n in noticed if n.action == "refuse"})
    return InputRefused(f"The guard refuses this prompt: {', '.join(rules)}", noticed)


def _too_long(rules: GuardSide, characters: int, where: Where) -> Noticed | None:
    if rules.max_characters is not None and characters > rules.max_characters:
        return Noticed("max_characters", "length", "refuse", 1, where)
    return None


def _counted(spots: Sequence[Spot], where: Where) -> list[Noticed]:
    seen = Counter((s.rule, s.kind, s.action) for s in spots)
    return [Noticed(rule, kind, action, count, where) for (rule, kind, action), count in sorted(seen.items())]


def _whole_input(rules: InputSide, text: str, prose: bool) -> list[Noticed]:
    found = _whole(rules, text, "input") if prose else []
    if rules.injection != "off" and (kinds := injection.kinds(text)):
        found += [Noticed("injection", kind, rules.injection, 1, "input") for kind in kinds]
    return found


def _whole_output(rules: OutputSide, text: str) -> list[Noticed]:
    found = _whole(rules, text, "output")
    if rules.json_only != "off" and not _is_json(text):
        found.append(Noticed("json_only", "not JSON", rules.json_only, 1, "output"))
    return found


def _whole(rules: GuardSide, text: str, where: Where) -> list[Noticed]:
    found: list[Noticed] = []
    if rules.languages and (code := language_of(text)) and code not in rules.languages:
        found.append(Noticed("languages", code, "refuse", 1, where))
    return found


def _judges_the_whole(rules: OutputSide) -> bool:
    """Whether a rule may refuse an answer that only its end tells."""
    return rules.json_only == "refuse" or bool(rules.languages)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
