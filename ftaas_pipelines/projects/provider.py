"""Whose machines train a recipe: this platform's (no `provider` section), or someone else's.

Secrets are named by their place (`env:VARIABLE`, `file:/path`). What a field decides about the result is
part of the adapter's input digest (`identity`); where and how the provider is reached, paid and waited for
is not, so that a new price or another time-out never trains again.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from ftaas_pipelines.projects.dataset import OpenUrl, Secret
from ftaas_pipelines.projects.section import Section

Hyperparameter = bool | int | float | str
_ROLE = r"^arn:aws[a-z-]*:iam::\d{12}:role/.+$"
_BUCKET = r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"
_FOLDER = r"^[A-Za-z0-9!_.*'()-]+(/[A-Za-z0-9!_.*'()-]+)*$"


class _Remote(Section):
    hyperparameters: dict[str, Hyperparameter] = Field(
        default={}, description="the provider's own, by its names; they win over what the recipe maps to"
    )
    poll_seconds: float = Field(default=30.0, gt=0, le=3600, description="between two looks at a quiet job")
    timeout_minutes: float = Field(default=1440.0, gt=0, description="a job that takes longer is stopped")

    _circumstance: ClassVar[frozenset[str]] = frozenset({"poll_seconds", "timeout_minutes"})

    @property
    def identity(self) -> dict[str, Any]:
        """The part of this section that decides what is made, for the input digest."""
        return self.model_dump(mode="json", exclude=set(self._circumstance))


class _Aws(_Remote):
    region: str = Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")
    role_arn: str = Field(
        pattern=_ROLE, description="the role that the job runs as; it reads and writes the bucket"
    )
    bucket: str = Field(pattern=_BUCKET)
    prefix: str = Field(default="ftaas", pattern=_FOLDER, description="folder in the bucket")
    access_key: Secret | None = Field(
        default=None, description="without it: boto3's own chain (profile, role)"
    )
    secret_key: Secret | None = None
    session_token: Secret | None = None
    kms_key: str = Field(default="", description="key that encrypts what is written; empty: the bucket's own")
    subnets: list[str] = []
    security_groups: list[str] = []
    endpoint_url: OpenUrl | None = Field(
        default=None, pattern=r"^https?://", description="of every AWS service: a private cloud, a test"
    )

    _circumstance: ClassVar[frozenset[str]] = _Remote._circumstance | {
        "role_arn",
        "bucket",
        "prefix",
        "access_key",
        "secret_key",
        "session_token",
        "kms_key",
        "subnets",
        "security_groups",
        "endpoint_url",
    }

    @model_validator(mode="after")
    def _whole(self) -> "_Aws":
        if (self.access_key is None) != (self.secret_key is None):
            raise ValueError("access_key and secret_key go together")
        if bool(self.subnets) != bool(self.security_groups):
            raise ValueError("subnets and security_groups go together")
        return self


class Bedrock(_Aws):
    """Amazon Bedrock model customization. The result stays there, under an ARN."""

    kind: Literal["bedrock"]
    base_model: str = Field(min_length=1, max_length=2048, description="e.g. amazon.nova-micro-v1:0:128k")
    format: Literal["auto", "conversation", "messages", "pair"] = Field(
        default="auto",
        description="of a line: bedrock-conversation-2024, Claude's messages, prompt and completion",
    )
    usd_per_1k_tokens: float | None = Field(default=None, ge=0, description="price of a trained token")

    _circumstance: ClassVar[frozenset[str]] = _Aws._circumstance | {"usd_per_1k_tokens"}


class SageMaker(_Aws):
    """A SageMaker training job. The adapter comes back and is like one made here."""

    kind: Literal["sagemaker"]
    image: str = Field(min_length=1, max_length=255, description="ECR address of the container image")
    program: Literal["ftaas", "image"] = Field(
        default="ftaas",
        description="ftaas: this platform's train stage, installed in the image; image: the image's own "
        "program, which is handed JSONL and the options of TRL's command line, and leaves a PEFT folder",
    )
    instance_type: str = Field(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9]+$")
    instance_count: int = Field(default=1, ge=1, le=64, description="more than one: program image only")
    volume_gib: int = Field(default=100, ge=1, le=16384)
    spot: bool = Field(default=False, description="spare machines, cheaper; goes on from its checkpoints")
    isolated: bool = Field(default=True, description="the container reaches no network, so no data leaves it")
    usd_per_hour: float | None = Field(default=None, ge=0, description="price of one instance")

    _circumstance: ClassVar[frozenset[str]] = _Aws._circumstance | {
        "region",
        "volume_gib",
        "spot",
        "isolated",
        "usd_per_hour",
    }

    @model_validator(mode="after")
    def _one_machine(self) -> "SageMaker":
        if self.program == "ftaas" and self.instance_count > 1:
            raise ValueError("program ftaas runs on one instance; take a larger one, or program: image")
        return self


class OpenAiTuning(_Remote):
    """Any API that speaks OpenAI's fine-tuning (files, jobs, events). The result stays there, by a name."""

    kind: Literal["openai"]
    base_model: str = Field(min_length=1, description="e.g. gpt-4.1-nano-2025-04-14")
    api_key: Secret
    base_url: OpenUrl = Field(default="https://api.openai.com/v1", pattern=r"^https?://")
    organization: str = Field(default="", description="whose bill, where the key belongs to several")
    project: str = ""
    usd_per_million_tokens: float | None = Field(default=None, ge=0, description="price of trained tokens")

    _circumstance: ClassVar[frozenset[str]] = _Remote._circumstance | {
        "api_key",
        "organization",
        "project",
        "usd_per_million_tokens",
    }


Provider = Annotated[Bedrock | SageMaker | OpenAiTuning, Field(discriminator="kind")]
