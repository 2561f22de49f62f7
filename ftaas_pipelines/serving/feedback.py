"""What callers say of answers: a thumb, a correction, a comment, by the answer's id."""

import asyncio
import time
from typing import Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import Request
from starlette.responses import Response

from ftaas_pipelines.serving import answers
from ftaas_pipelines.serving.incoming import body_of
from ftaas_pipelines.serving.inference_log import Feedback
from ftaas_pipelines.serving.openai_shapes import RequestRefused, invalid
from ftaas_pipelines.serving.request import Endpoint


class Given(BaseModel):
    """The body of `POST /v1/feedback`."""

    model_config = ConfigDict(extra="forbid")

    response_id: str = Field(pattern=r"^(chatcmpl|cmpl)-[0-9a-f]{32}$")
    thumb: Literal["up", "down"] | None = None
    correction: str = Field(default="", max_length=20_000, description="what the answer should have been")
    comment: str = Field(default="", max_length=4_000)

    @model_validator(mode="after")
    def _says_something(self) -> "Given":
        if not (self.thumb or self.correction or self.comment):
            raise ValueError("say something: thumb, correction or comment")
        return self


async def take(endpoint: Endpoint, http: Request) -> Response:
    """Keep what a caller says of an answer to a project that it may speak of.

    Raises:
        RequestRefused: 401; 400, the body is wrong; 404, no such answer; 403.
    """
    caller = endpoint.access.authenticate(http.headers.get("authorization"))
    (await endpoint.limits.admit(caller, 0)).release()
    try:
        given = Given.model_validate_json(await body_of(http))
    except ValidationError as error:
        raise invalid(error.errors(include_url=False)) from None
    found = await asyncio.to_thread(answers.find, endpoint.log.folder, given.response_id)
    if found is None:
        raise RequestRefused(404, "No answer of this id is on record", "not_found", "response_id")
    caller.require("feedback", str(found["project"]))
    guard = endpoint.guards(str(found["project"]))
    said = [guard.redacted(text) for text in (given.correction, given.comment)]
    project = str(found["project"])
    row = Feedback(given.response_id, time.time(), caller.id, given.thumb or "", *said, project=project)
    if not endpoint.log.put(row):
        raise RequestRefused(503, "The log has no room now", "log_full", None, {"Retry-After": "5"})
    return Response(orjson.dumps({"object": "feedback", "response_id": given.response_id}), 200,
                    {"content-type": "application/json"})  # fmt: skip
