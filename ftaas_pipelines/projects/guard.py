"""The contract of `guard`: what an endpoint refuses, redacts or flags, on the way in and on the way out."""

import re
from typing import Literal

from pydantic import Field, field_validator

from ftaas_pipelines.projects.section import Section

Action = Literal["off", "flag", "redact", "refuse"]
STRICTER: tuple[Action, ...] = ("off", "flag", "redact", "refuse")
Whole = Literal["off", "flag", "refuse"]


class GuardSide(Section):
    """One way through: what is looked for, and what is done about it. `redact` puts [KIND] in its place."""

    secrets: Action = Field(default="off", description="keys, tokens, passwords: the data plane's detectors")
    personal_data: Action = Field(default="off", description="what the data plane's detectors see")
    words: list[str] = Field(default=[], description="words and phrases that must not pass, in any case")
    on_words: Action = "refuse"
    max_characters: int | None = Field(default=None, ge=1, description="longer texts are refused")
    languages: list[str] = Field(default=[], description="ISO codes; a text surely in another is refused")

    @field_validator("words")
    @classmethod
    def _some_letter(cls, words: list[str]) -> list[str]:
        for word in words:
            if not re.search(r"\w", word) or len(word) > 200:
                raise ValueError(f"{word!r} is no word or phrase of at most 200 characters")
        return words


class InputSide(GuardSide):
    injection: Whole = Field(default="off", description="phrases that try to overrule the instructions")


class OutputSide(GuardSide):
    json_only: Whole = Field(default="off", description="an answer that is not JSON")


class GuardRules(Section):
    """Both ways. A project may only be stricter than the platform."""

    input: InputSide = InputSide()
    output: OutputSide = OutputSide()


def looser(own: GuardRules, least: GuardRules) -> list[tuple[str, str]]:
    """Where a project's rules are less strict than the platform's: side and rule."""
    found: list[tuple[str, str]] = []
    for side in ("input", "output"):
        mine, theirs = getattr(own, side), getattr(least, side)
        for name in type(theirs).model_fields:
            have, want = getattr(mine, name), getattr(theirs, name)
            if name not in mine.model_fields_set or (name == "on_words" and not theirs.words):
                continue  # what is done about words binds a project where the platform names some
            if isinstance(want, str) and STRICTER.index(have) < STRICTER.index(want):
                found.append((side, name))
            elif name == "max_characters" and want is not None and (have is None or have > want):
                found.append((side, name))
            elif name == "languages" and want and not (have and set(have) <= set(want)):
                found.append((side, name))
    return found


def together(own: GuardRules, least: GuardRules) -> GuardRules:
    """The stricter of both, rule by rule: words of both, languages that both allow."""
    sides: dict[str, dict[str, object]] = {}
    for side in ("input", "output"):
        mine, theirs = getattr(own, side), getattr(least, side)
        out: dict[str, object] = {}
        for name in type(theirs).model_fields:
            have, want = getattr(mine, name), getattr(theirs, name)
            if name == "on_words" and not theirs.words:
                out[name] = have
            elif isinstance(want, str):
                out[name] = max(have, want, key=STRICTER.index) if name in mine.model_fields_set else want
            elif name == "words":
                out[name] = list(dict.fromkeys([*want, *have]))
            elif name == "languages":
                # None in common: the platform's, as an empty list would let every language pass.
                out[name] = ([code for code in have if code in want] if want else have) or want
            else:
                out[name] = min((v for v in (have, want) if v is not None), default=None)
        sides[side] = out
    return GuardRules.model_validate(sides)
