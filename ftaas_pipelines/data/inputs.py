"""What `dataset` and `splits` are made from: exactly what their input digests are taken over."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from ftaas_pipelines.projects.project import Cleaning, Quality, Splits

DATASET_CONTRACT = 1
SPLITS_CONTRACT = 1


class Inputs(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceInput(Inputs):
    """One source by content. Where its file lies is not identity: that is in `Run.files`."""

    name: str
    sha256: str
    split: Literal["train", "validation", "test", "challenge"] | None
    licence: str = ""
    owner: str = ""
    vendor: str = ""
    purpose: str = ""


class Verdict(Inputs):
    """A reviewer's word on one record, as `prepare` applies it.

    `content_id` is the content the reviewer saw; the verdict holds while that is unchanged.
    `text` is the corrected answer of a `fix`.
    """

    record_id: str
    content_id: str
    word: Literal["approve", "fix", "reject"]
    text: str = ""
    entry: str


class DatasetInputs(Inputs):
    """Raw rows to a dataset version (artifact kind `dataset`)."""

    contract: int = DATASET_CONTRACT
    sources: list[SourceInput]
    format: str | None
    columns: dict[str, str]
    encoding: str
    system: str
    group_by: str | None
    cleaning: Cleaning
    quality: Quality
    verdicts: list[Verdict] = []


class SplitsInputs(Inputs):
    """A dataset version to its splits (artifact kind `splits`)."""

    contract: int = SPLITS_CONTRACT
    dataset: str
    options: Splits
