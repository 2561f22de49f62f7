"""What `dataset` and `splits` are made from: exactly what their input digests are taken over."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from ftaas_pipelines.projects.dataset import Cleaning, Duplicates, Privacy, Quality, Splits

DATASET_CONTRACT = 2
SPLITS_CONTRACT = 2


class Inputs(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class SourceInput(Inputs):
    """One source by content. Where its files lie is not identity: that is in `Run.files`.

    `sha256` is the digest of its one file, or of the sorted digests of its files. Format, columns and
    encoding are those that hold for it: its own, else the dataset's.
    """

    name: str
    sha256: str
    split: Literal["train", "validation", "test", "challenge"] | None
    format: str | None = None
    columns: dict[str, str] = {}
    encoding: str = "utf-8"
    synthetic: bool = False
    licence: str = ""
    owner: str = ""
    vendor: str = ""
    purpose: str = ""
    consent: str = ""
    cost_usd: float = 0.0


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
    """Raw rows to a dataset version (artifact kind `dataset`).

    `benchmarks`: sha256 by file name; `models`: digests of the tokenizer and detector models in use.
    """

    contract: int = DATASET_CONTRACT
    sources: list[SourceInput]
    keep: list[str] = []
    bad_rows: Literal["refuse", "quarantine"] = "refuse"
    system: str
    group_by: str | None
    cleaning: Cleaning
    duplicates: Duplicates
    privacy: Privacy
    quality: Quality
    benchmarks: dict[str, str] = {}
    models: dict[str, str] = {}
    verdicts: list[Verdict] = []


class SplitsInputs(Inputs):
    """A dataset version to its splits (artifact kind `splits`).

    `anchors`: the splits this version grew from: what was placed there stays where it is.
    """

    contract: int = SPLITS_CONTRACT
    dataset: str
    anchors: str | None = None
    options: Splits
