"""The model that is fine-tuned, and the one that teaches."""

from typing import Literal

from pydantic import Field

from ftaas_pipelines.projects.section import Section

Family = Literal["causal", "seq2seq", "vision"]


class BaseModelRef(Section):
    """A model by name: embedded in the platform, a folder, or on the Hugging Face Hub."""

    id: str = Field(description="embedded/NAME, a folder, or a Hugging Face Hub id")
    revision: str = Field(default="main", description="Hub branch, tag or commit")
    licence: str = ""
    family: Family | None = Field(default=None, description="read off the model")
