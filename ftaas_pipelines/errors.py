"""Every error of the platform, in one form: where, what, got, do.

FtaasError                 exit 1   the work failed
├── InputInvalid           exit 2   a file, option or setting is wrong; carries every problem found
├── Refused                exit 3   a gate or policy says no, or an open review is awaited
├── SpecUnusable           exit 78  a stage spec that can never work; nothing should retry it
└── Interrupted            exit 130 SIGINT or SIGTERM; what can be resumed was saved
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, said so that the reader knows what to do next.

    Attributes:
        what: the fact, in words of the platform ("role is not known").
        where: file and line, option or setting it was found at.
        got: the offending value, never a secret.
        do: the next step that mends it.
    """

    what: str
    where: str = ""
    got: str = ""
    do: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        if self.got:
            text += f" (got {self.got})"
        return f"{text}; {self.do}" if self.do else text

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Refusal(Problem):
    """What a policy says no to; as input it is right."""


class FtaasError(Exception):
    """The work failed. Base of every error that the platform raises on purpose."""

    exit_code = 1

    def __init__(self, what: str | Sequence[Problem], where: str = "", got: str = "", do: str = ""):
        problems = [Problem(what, where, got, do)] if isinstance(what, str) else list(what)
        self.problems: list[Problem] = problems
        super().__init__("\n".join(str(p) for p in problems))

    def as_dict(self) -> dict[str, Any]:
        """The error as `--json` prints it."""
        return {
            "error": type(self).__name__,
            "exit_code": self.exit_code,
            "problems": [p.as_dict() for p in self.problems],
        }


class InputInvalid(FtaasError):
    """A file, option or setting is wrong; nothing was made."""

    exit_code = 2


class Refused(FtaasError):
    """A gate or policy says no, or waits for a person.

    Attributes:
        waiting: who is awaited, as `ftaas run --json` prints it; empty for a plain refusal.
    """

    exit_code = 3

    def __init__(
        self,
        what: str | Sequence[Problem],
        where: str = "",
        got: str = "",
        do: str = "",
        waiting: Sequence[dict[str, Any]] = (),
    ):
        super().__init__(what, where, got, do)
        self.waiting = list(waiting)

    def as_dict(self) -> dict[str, Any]:
        return {**super().as_dict(), "waiting": self.waiting}


class SpecUnusable(FtaasError):
    """A stage spec that can never work, however often it is tried."""

    exit_code = 78


class Interrupted(FtaasError):
    """SIGINT or SIGTERM arrived; what can be resumed was saved."""

    exit_code = 130


def raise_all(problems: Sequence[Problem]) -> None:
    """Raise what was found, if anything was.

    Raises:
        Refused: only a policy says no.
        InputInvalid: something is wrong; carries the refusals, too.
    """
    if problems:
        refused = all(isinstance(problem, Refusal) for problem in problems)
        raise Refused(problems) if refused else InputInvalid(problems)
