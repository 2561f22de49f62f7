"""Who asks, and what they may."""

from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatch
from typing import Literal, get_args

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.serving.openai_shapes import RequestRefused

Action = Literal["answer", "feedback", "models"]
ACTIONS: tuple[Action, ...] = get_args(Action)


@dataclass(frozen=True)
class Allowance:
    """How much a caller may ask. None: as much as they like."""

    requests_per_minute: int | None = None
    requests_per_day: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None
    concurrent: int | None = None

    @classmethod
    def parse(cls, text: str, where: str) -> "Allowance":
        """Of a setting such as `requests_per_minute=60,tokens_per_day=100000`; empty: no limit.

        Raises:
            InputInvalid: a limit is not known, or is not a whole number from 1 on.
        """
        pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
        known = {f.name for f in fields(cls)}
        for name, _, value in pairs:
            if name not in known or not value.isdecimal() or not int(value):
                do = f"write one of {', '.join(sorted(known))}, `=` and a number from 1 on"
                raise InputInvalid("is no limit", where, f"{name}={value}", do)
        return cls(**{name: int(value) for name, _, value in pairs})

    def as_dict(self) -> dict[str, int]:
        """Only what is limited."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Caller:
    """Who asks.

    Attributes:
        id: `key_…` (a key's public id), `jwt:<subject>`, `operator:<actor>` or `anonymous`.
        projects: names, or patterns such as `support_*`.
    """

    id: str
    projects: tuple[str, ...] = ("*",)
    actions: frozenset[Action] = frozenset(ACTIONS)
    allowance: Allowance = field(default_factory=Allowance)

    def may(self, action: Action, project: str) -> bool:
        return action in self.actions and any(fnmatch(project, pattern) for pattern in self.projects)

    def require(self, action: Action, project: str) -> None:
        """Raises RequestRefused: 403, it may not do this there."""
        if not self.may(action, project):
            said = f"This key may not ask for '{action}' of '{project[:100]}'"
            raise RequestRefused(403, said, "permission_denied")
