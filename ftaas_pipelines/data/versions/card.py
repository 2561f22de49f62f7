"""The card of a dataset version: one page of Markdown that says what it is, and what is not known of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftaas_pipelines.data.versions import catalog
from ftaas_pipelines.data.versions.catalog import Version
from ftaas_pipelines.projects.project import Project
from ftaas_pipelines.store import Artifact, short

_NOT_SAID = "not said"


@dataclass(frozen=True)
class Card:
    """Everything the card says, gathered once; Croissant is made of the same.

    Attributes:
        project: its `project.yaml` as it is now; None where the project is gone.
        inputs: what the version was made from, as in its attestation.
        synthetic: records that a model wrote.
    """

    artifact: Artifact
    version: Version
    project: Project | None
    inputs: dict[str, Any]
    synthetic: int

    @property
    def title(self) -> str:
        return self.project.title if self.project else self.version.project or "A dataset"

    @property
    def intended_use(self) -> str:
        return self.project.intended_use if self.project else _NOT_SAID

    @property
    def not_for(self) -> str:
        return (self.project.not_for if self.project else "") or _NOT_SAID

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """The record files: name to sha256 and bytes."""
        return {n: e for n, e in self.artifact.manifest["files"].items() if n.startswith("records/")}

    @property
    def privacy(self) -> str:
        """What was done about personal data, in words."""
        options = self.inputs.get("privacy")
        if not options:
            return "not known to be treated"
        profile = options.get("profile", "none")
        named = ", ".join(f"{entity}: {what}" for entity, what in options.get("entities", {}).items())
        done = "found and kept" if profile == "none" else f"treated by the profile {profile}"
        return done + (f"; {named}" if named else "")

    def source_facts(self, source: dict[str, Any]) -> list[tuple[str, str]]:
        """What is said of one source, with "not said" where nothing is."""
        names = ("owner", "vendor", "licence", "purpose", "consent")
        facts = [(name, str(source.get(name) or _NOT_SAID)) for name in names]
        facts.append(("cost", f"{source.get('cost_usd') or 0:g} USD"))
        facts.append(("split", source.get("split") or "shared out"))
        return facts


def gather(artifact: Artifact, project: Project | None, version: Version) -> Card:
    """What the card of a dataset version is made of."""
    inputs = artifact.attestation.get("spec", {}).get("inputs", {})
    return Card(artifact, version, project, inputs, catalog.synthetic(artifact))


def render(card: Card) -> str:
    """The card as Markdown."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # Markdown, not HTML; every value goes through `cell`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"cell": _cell, "short": short, "megabytes": _megabytes}
    return environment.get_template("card.md.j2").render(
        card=card, content=card.artifact.content, version=card.version, reasons=reasons(card.version.sources)
    )


def reasons(sources: Sequence[dict[str, Any]]) -> list[str]:
    """Why rows of these sources were dropped, each reason once."""
    return sorted({name for s in sources for name in s["rows"]} - {"in", "kept"})


def _cell(value: Any) -> str:
    """A value that cannot break out of its place: one line, no table bars, no tags."""
    text = " ".join(str(value).split())
    for plain, escaped in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "\\`"), ("[", "\\[")):
        text = text.replace(plain, escaped)
    return text


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"
