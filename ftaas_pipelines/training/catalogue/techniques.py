"""The techniques of `techniques.yaml`: what each is for, what it needs, what it costs, when to leave it."""

import difflib
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, TypeAdapter

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects.base_model import Family
from ftaas_pipelines.projects.recipe import Recipe
from ftaas_pipelines.projects.section import Section

RecordKind = Literal["conversation", "text_pair", "text", "preference", "labelled", "prompt"]
_FILE = Path(__file__).with_name("techniques.yaml")


class Paper(Section):
    """Where a technique comes from."""

    title: str
    authors: str
    year: int
    url: str = Field(pattern=r"^https://")


class Technique(Section):
    """One entry of the catalogue.

    Attributes:
        families: of bases that it works with; methods and options alone say it.
        records: kinds of records that a method learns from, the most usual first.
        memory_times: memory of weights, gradients and optimizer over that of SFT with LoRA in bf16; None
            where it depends on more than the technique.
        compute_times: work a record over that of SFT with LoRA, likewise.
        recipes: YAML of the `recipes` of a project that uses it.
    """

    name: str
    kind: Literal["method", "adapter", "option"]
    title: str
    purpose: str
    families: list[Family] = []
    records: list[RecordKind] = []
    needs_images: bool = False
    data: str = ""
    memory: str
    memory_times: float | None = None
    compute: str
    compute_times: float | None = None
    not_when: list[str] = Field(min_length=1)
    papers: list[Paper] = Field(min_length=1)
    recipes: str

    @property
    def example(self) -> list[Recipe]:
        """The recipes of its YAML: the technique, and what it builds on or what a project needs beside it."""
        return TypeAdapter(list[Recipe]).validate_python(yaml.safe_load(self.recipes))


@cache
def techniques() -> dict[str, Technique]:
    """All of them by name: methods, then adapters, then options."""
    entries = TypeAdapter(list[Technique]).validate_python(yaml.safe_load(_FILE.read_text("utf-8")))
    return {entry.name: entry for entry in entries}


def technique(name: str) -> Technique:
    """The technique of that name; `padding-free` and `padding_free` are one.

    Raises:
        InputInvalid: there is none; names the nearest.
    """
    known = techniques()
    wanted = name.strip().lower().replace("-", "_")
    wanted = {"lora_plus": "lora+", "sweeps": "sweep"}.get(wanted, wanted)
    if wanted in known:
        return known[wanted]
    close = difflib.get_close_matches(wanted, known, n=1)
    do = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
    raise InputInvalid("there is no technique of this name", "NAME", name, do)
