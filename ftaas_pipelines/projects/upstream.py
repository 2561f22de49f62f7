"""`serving.upstream`: an OpenAI-compatible server that answers in place of our own engine."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from ftaas_pipelines.projects.section import Section


class Upstream(Section):
    """Where another server is asked, and how it learns of adapters."""

    url: str = Field(description="its root, without /v1: http://vllm.internal:8000")
    adapters: Literal["vllm", "fixed"] = Field(
        default="vllm",
        description="vllm: adapters are registered there while it runs; fixed: it has one model already",
    )
    model: str = Field(default="", description="fixed: what the model is called there")
    key_variable: str = Field(
        default="", description="environment variable of the supervisor that holds its API key"
    )
    adapters_path: str = Field(
        default="", description="vllm: where the store's folder lies on that machine; empty: at the same path"
    )
    timeout_s: float = Field(default=120.0, gt=0, le=600, description="longest that an answer may take")
    attempts: int = Field(
        default=2, ge=1, le=5, description="how often it is asked where it refused the connection or was busy"
    )

    @field_validator("url")
    @classmethod
    def _a_root(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("write http://host:port or https://host")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("no name, password, query or fragment: the key comes from key_variable")
        if parts.path.rstrip("/").endswith("/v1"):
            raise ValueError("leave /v1 out")
        return url.rstrip("/")

    @model_validator(mode="after")
    def _model_named(self) -> "Upstream":
        if (self.adapters == "fixed") != bool(self.model):
            raise ValueError("'model' is named where adapters are fixed, and only there")
        return self
