"""The `dataset` part of `project.yaml`: where rows come from, and what happens to them."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ftaas_pipelines.projects.section import Section
from ftaas_pipelines.projects.yaml_lines import SECRET_SHOWN

Format = Literal[
    "alpaca", "prompt_completion", "text_target", "messages", "sharegpt", "preference", "kto", "checkable",
    "text", "label_studio",
]  # fmt: skip

_SECRET = r"^(env:[A-Z][A-Z0-9_]*|file:/.+)$"
_PASSWORD = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_KEY = re.compile(
    r"[?&]([^=&#]*(secret|passw|signature|api[_-]?key)[^=&#]*|[^=&#]*token|sig)=[^&#]", re.IGNORECASE
)


def _holds_no_secret(url: str) -> str:
    if _PASSWORD.search(url) or _KEY.search(url):
        do = "name env:VARIABLE or file:/path in headers or storage"
        raise PydanticCustomError(SECRET_SHOWN, f"a secret may not stand in a URL; {do}")
    return url


def _names_a_place(secret: str) -> str:
    if not re.match(_SECRET, secret):
        raise PydanticCustomError(SECRET_SHOWN, "must name env:VARIABLE or file:/path, never the value")
    return secret


def _encoding_known(encoding: str) -> str:
    try:
        "".encode(encoding)
    except LookupError:
        raise ValueError(f"no such encoding: {encoding}") from None
    return encoding


Encoding = Annotated[str, AfterValidator(_encoding_known)]
OpenUrl = Annotated[str, AfterValidator(_holds_no_secret)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
Secret = Annotated[
    str,
    AfterValidator(_names_a_place),
    Field(json_schema_extra={"pattern": _SECRET}, description="env:VARIABLE or file:/path; never the value"),
]


class Pages(Section):
    """A REST API that answers page by page."""

    rows: str = Field(default="data", description="where a page keeps its rows: keys joined by dots")
    cursor: str = Field(
        default="next", description="where a page names the next one; absent or null: the last"
    )
    parameter: str = Field(default="cursor", description="query parameter that carries the cursor")
    max_pages: int = Field(default=100_000, ge=1)


class Http(Section):
    """One file, or a paged REST API, over HTTP."""

    url: OpenUrl = Field(pattern=r"^https?://")
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$", description="of the file's bytes")
    pages: Pages | None = None
    headers: dict[str, Secret] = Field(default={}, description="header: where its value is kept")
    timeout_seconds: float = Field(default=30, gt=0, description="without a byte")

    @model_validator(mode="after")
    def _pages_have_no_checksum(self) -> "Http":
        if self.pages and self.sha256:
            raise ValueError("sha256 is for one file; a paged API has none")
        return self


class Sql(Section):
    """A query's result."""

    url: Secret = Field(description="where the SQLAlchemy URL is kept")
    query: str = Field(description="with :watermark in it where a watermark column is named")
    watermark: str | None = Field(
        default=None, description="column that only grows: only rows above the last seen are fetched"
    )


class HuggingFace(Section):
    """A dataset of the Hugging Face Hub, or one saved to disk (`save_to_disk`)."""

    id: str = Field(description="Hub id, or a folder relative to the project folder")
    revision: str = "main"
    config: str | None = None
    split: str = "train"


class Source(Section):
    """Where rows come from, and what goes with every one of them."""

    name: Name
    path: OpenUrl | None = Field(
        default=None,
        description="a file, glob or folder, relative to the project folder, or an fsspec URL (s3://, hdfs://)",
    )
    http: Http | None = None
    sql: Sql | None = None
    huggingface: HuggingFace | None = None
    storage: dict[str, Secret] = Field(
        default={}, description="fsspec options of a URL in `path`: where each value is kept"
    )
    split: Literal["train", "validation", "test", "challenge"] | None = Field(
        default=None,
        description="set when the source already is a split; a challenge is scored separately",
    )
    format: Format | None = Field(default=None, description="of this source, where it differs")
    columns: dict[str, str] = Field(default={}, description="of this source: our name: the file's name")
    encoding: Encoding | None = Field(default=None, description="of this source, where it differs")
    synthetic: bool = Field(default=False, description="made by a model; its rows are marked")
    licence: str = ""
    owner: str = ""
    vendor: str = ""
    purpose: str = ""
    consent: str = Field(default="", description="legal basis or consent under which the rows are used")
    cost_usd: float = Field(default=0.0, ge=0, description="what the source cost")

    @model_validator(mode="after")
    def _one_place(self) -> "Source":
        places = [n for n in ("path", "http", "sql", "huggingface") if getattr(self, n) is not None]
        if len(places) != 1:
            got = " and ".join(places) or "none"
            raise ValueError(f"a source has one of path, http, sql, huggingface; got {got}")
        if self.storage and "://" not in (self.path or ""):
            raise ValueError("storage is for a URL in path, such as s3://bucket/rows.jsonl")
        if (self.path or "").startswith(("http://", "https://")):
            raise ValueError("a web address goes under http: {url: …}")
        return self

    @property
    def in_place(self) -> bool:
        """Whether its rows are read where they lie; what is not is landed as files first."""
        return self.path is not None and "://" not in self.path

    @property
    def place(self) -> str:
        """The place as people name it; no secret is part of it."""
        if self.http:
            return self.http.url
        if self.sql:
            return f"sql {self.sql.url}"
        return self.huggingface.id if self.huggingface else self.path or ""


class Cleaning(Section):
    """What happens to every text. Off means untouched."""

    unicode_nfc: bool = True
    control_characters: bool = Field(default=True, description="remove them (tab and newline stay)")
    html: bool = Field(default=False, description="tags out, entities read; destroys code")
    boilerplate: bool = Field(
        default=False, description="lines that stand in over 1% of the records and in 50 of them go"
    )
    strip: bool = Field(default=True, description="white space at both ends")
    collapse_white_space: bool = Field(default=False, description="destroys code: off by default")
    min_characters: int = Field(default=1, ge=0, description="of every message")
    max_characters: int = Field(default=20_000, ge=1, description="of every message")
    min_tokens: int | None = Field(default=None, ge=0, description="of a record, by the base's tokenizer")
    max_tokens: int | None = Field(default=None, ge=1, description="of a record, by the base's tokenizer")
    languages: list[str] = Field(default=[], description="ISO 639-1 codes that stay; empty: not looked at")
    quality: Literal["off", "gopher", "fineweb"] = Field(
        default="off", description="published heuristics on answers: repetition, symbols, word lengths"
    )
    keep_code: bool = Field(
        default=True,
        description="fenced and indented code is left alone by html and white space, and by quality",
    )

    @model_validator(mode="after")
    def _some_length_fits(self) -> "Cleaning":
        if self.min_characters > self.max_characters:
            raise ValueError("min_characters is above max_characters: no text would stay")
        return self


class Duplicates(Section):
    """Rows that say the same. Exact duplicates always go: of equals the least (source digest, row) stays."""

    on: Literal["prompt", "record"] = Field(default="prompt", description="what near-duplicates are told by")
    near: Literal["off", "group", "drop"] = Field(
        default="group",
        description="group: they stay, and stay together in the splits; drop: one of them stays",
    )
    threshold: float = Field(default=0.8, ge=0.5, le=1, description="Jaccard similarity of word 3-grams")
    benchmarks: list[str] = Field(
        default=[], description="files whose prompts must not be trained on, relative to the project folder"
    )
    contamination: Literal["drop", "report"] = Field(
        default="drop",
        description="what happens to training rows that stand in the test split or a benchmark",
    )


Entity = Literal[
    "email", "phone", "credit_card", "iban", "national_id", "ip_address", "medical_record_number",
    "person_name", "secret", "url", "date", "address", "age_over_89", "vehicle_id", "device_id",
]  # fmt: skip
Treatment = Literal["keep", "redact", "hash", "replace", "drop"]


class Privacy(Section):
    """What happens to personal data and secrets. A profile names treatments; `entities` goes before it."""

    profile: Literal["off", "none", "default", "gdpr", "hipaa_safe_harbor"] = Field(
        default="none",
        description="off: nothing is looked for; none: found and kept; every other also redacts secrets",
    )
    entities: dict[Entity, Treatment] = Field(default={}, description="entity: treatment")
    names_model: str | None = Field(
        default=None, description="folder of a token-classification model that finds person names"
    )
    toxicity: Literal["off", "report", "drop"] = Field(
        default="report", description="the word list, and the model where one is named"
    )
    toxicity_model: str | None = Field(default=None, description="folder of a text-classification model")


class Splits(Section):
    """How records without a split of their own are shared out, by hash of their group."""

    validation: float = Field(default=0.1, ge=0, lt=0.5, description="share of the records")
    test: float = Field(default=0.1, ge=0, lt=0.5, description="share; ignored when a source is the test")
    group_by: str | None = Field(default=None, description="column whose equal values stay together")
    stratify_by: Literal["answer", "source"] | None = Field(
        default=None, description="each value is shared out alike, as far as groups allow"
    )
    freeze: Name | None = Field(
        default=None, description="names the test split; new data never changes it until the name changes"
    )
    max_synthetic: float = Field(default=1.0, ge=0, le=1, description="share of train; the rest is left out")
    synthetic_in_test: bool = False
    seed: int = 0


class Quality(Section):
    """The Great Expectations suite: a default per format plus `expectations`."""

    min_records: int = Field(default=20, ge=1)
    max_dropped_share: float = Field(default=0.2, ge=0, le=1, description="of records cleaning drops")
    expectations: list[dict[str, Any]] = Field(
        default=[], description="Great Expectations: {type, kwargs, severity: error|warn}"
    )


class Dataset(Section):
    sources: list[Source] = Field(min_length=1)
    format: Format | None = Field(default=None, description="detected when left out")
    columns: dict[str, str] = Field(default={}, description="our name: the file's name")
    keep: list[str] = Field(default=[], description="columns that go along as they are (sensor series, ids)")
    encoding: Encoding = "utf-8"
    bad_rows: Literal["refuse", "quarantine"] = Field(
        default="refuse", description="a row that cannot be read: refuse the dataset, or set the row aside"
    )
    cleaning: Cleaning = Cleaning()
    duplicates: Duplicates = Duplicates()
    privacy: Privacy = Privacy()
    splits: Splits = Splits()
    quality: Quality = Quality()
    system: str = Field(default="", description="system message put before every prompt")

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, sources: list[Source]) -> list[Source]:
        names = [s.name for s in sources]
        doubles = sorted({n for n in names if names.count(n) > 1})
        if doubles:
            raise ValueError(f"two sources are named {', '.join(doubles)}")
        if any(s.split == "challenge" and s.name == "test" for s in sources):
            raise ValueError(
                "a challenge may not be named 'test': its score stands beside that of the test split"
            )
        return sources
