"""The prompts: Jinja files in `prompts/`, each with the paper it follows at its top."""

import hashlib
import json
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).with_name("prompts")


@dataclass(frozen=True)
class Prompt:
    """One prompt file.

    Attributes:
        name: the file's name without its ending.
        sha256: of its bytes.
    """

    name: str
    sha256: str
    template: Any

    def mark(self, variant: str = "") -> str:
        """What a row names as its prompt."""
        return f"{self.name}{'.' if variant else ''}{variant} sha256:{self.sha256}"

    def render(self, **values: Any) -> str:
        return self.template.render(**values).strip()


@cache
def load(name: str) -> Prompt:
    import jinja2

    data = (_FOLDER / f"{name}.j2").read_bytes()
    environment = jinja2.Environment(
        autoescape=False,  # plain text for a model, not HTML
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Jinja's own `tojson` is for HTML: it would show a model \u003c for "<".
    environment.filters["json"] = partial(json.dumps, ensure_ascii=False)
    return Prompt(name, hashlib.sha256(data).hexdigest(), environment.from_string(data.decode()))
