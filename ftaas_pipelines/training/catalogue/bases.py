"""Base models: those that come with the platform, read off their folders, and well-known open ones."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, TypeAdapter

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.inference import bases as base_models
from ftaas_pipelines.projects.base_model import Family
from ftaas_pipelines.projects.licences import normal
from ftaas_pipelines.projects.section import Section
from ftaas_pipelines.training.base_facts import BaseFacts

_FILE = Path(__file__).with_name("bases.yaml")
# The text that the embedded bases learnt from, as `made.json` names it, and its SPDX identifier.
_FREE = ("apache-2.0", "mit", "psf-2.0")
_NAMES = {"Python Software Foundation License Version 2": "PSF-2.0"}


class Base(Section):
    """One base model.

    Attributes:
        id: as `base_model.id` takes it.
        parameters: all its weights.
        context: tokens it reads; of T5, what it was trained on. None: nobody says.
        licence: SPDX identifier, or the name that the Hub gives it.
        config: keys of its config.json.
        commercial: its licence allows use in business.
        thinks: it reasons in text before it answers, and its template shows that.
    """

    id: str
    family: Family
    parameters: int = Field(gt=0)
    context: int | None = None
    licence: str
    licence_notes: str
    chat_template: bool
    config: dict[str, Any]
    good_for: str
    not_for: str
    commercial: bool = True
    thinks: bool = False

    @property
    def free(self) -> bool:
        """Whether its licence asks for nothing but that notices are kept."""
        return normal(self.licence) in _FREE

    @property
    def embedded(self) -> bool:
        return self.id.startswith(base_models.EMBEDDED)


@cache
def open_bases() -> tuple[Base, ...]:
    """The well-known ones of `bases.yaml`, small before large in each line of models."""
    return tuple(TypeAdapter(list[Base]).validate_python(yaml.safe_load(_FILE.read_text("utf-8"))))


def embedded_bases() -> tuple[Base, ...]:
    """Those that come with the platform."""
    return tuple(_embedded(id) for id in base_models.embedded())


def all_bases() -> tuple[Base, ...]:
    """Embedded and well-known ones."""
    return (*embedded_bases(), *open_bases())


def find(id: str) -> Base | None:
    """The base of that id, whatever its case; None where the catalogue does not know it."""
    wanted = id.lower()
    if id in base_models.embedded():
        return _embedded(id)
    return next((base for base in open_bases() if base.id.lower() == wanted), None)


def get(id: str) -> Base:
    """The base of that id.

    Raises:
        InputInvalid: the catalogue does not know it.
    """
    found = find(id)
    if found is None:
        raise InputInvalid("the catalogue knows no such base", "base model", id, "see `ftaas model bases`")
    return found


def folder(id: str) -> Path:
    """Where an embedded base lies."""
    return base_models.resolve(id, "main", Path())


@cache
def _embedded(id: str) -> Base:
    where = folder(id)
    facts = BaseFacts(where)
    made = _Made.read(where / "made.json")
    return Base(
        id=id,
        family=base_models.family(where),
        parameters=facts.parameters,
        context=facts.context or facts.model_length,
        licence=made.licence,
        licence_notes=made.licence_notes,
        chat_template=facts.chat_template is not None,
        config=facts.config,
        good_for="trying the platform on a CPU: it learns a narrow table in a minute",
        not_for=made.limits,
    )


@dataclass(frozen=True)
class _Made:
    """What `made.json` says of an embedded base: how it was made, on what text, and what it cannot do."""

    licence: str
    licence_notes: str
    limits: str

    @classmethod
    def read(cls, file: Path) -> "_Made":
        told: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
        text = told.get("text", {}).get("licence", "")
        named = next((spdx for name, spdx in _NAMES.items() if text.startswith(name)), text)
        notes = f"weights made by this project on text under {text}" if text else "made by this project"
        return cls(named, notes, told.get("limits", "") or "anything but trying the platform")
