"""Which licences a base model may stand under: of the platform policy, and of a project that is stricter."""

import re
from fnmatch import fnmatch
from typing import Literal

from pydantic import Field

from ftaas_pipelines.projects.section import Section


class Licences(Section):
    """Licences by name or pattern (`cc-by-nc*`); neither case nor spaces count. What is forbidden wins."""

    forbid: list[str] = []
    allow: list[str] = Field(default=[], description="when it names any, no other licence is allowed")
    unknown: Literal["accept", "refuse"] = Field(
        default="accept", description="a base whose licence nobody states"
    )

    def why_not(self, licence: str) -> str:
        """Why a base under this licence may not be used; empty when it may. An empty one is unknown."""
        name = normal(licence)
        if not name:
            return "says that a base of unknown licence is refused" if self.unknown == "refuse" else ""
        for pattern in self.forbid:
            if fnmatch(name, normal(pattern)):
                return f"forbids {pattern}"
        if self.allow and not any(fnmatch(name, normal(pattern)) for pattern in self.allow):
            return f"allows only {', '.join(self.allow)}"
        return ""


def normal(licence: str) -> str:
    """A licence's name as it is compared: `CC BY-NC 4.0` and `cc-by-nc-4.0` are one."""
    return re.sub(r"[\s_-]+", "-", licence.strip().lower())
