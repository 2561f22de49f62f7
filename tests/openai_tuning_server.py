"""A stand-in for OpenAI's fine-tuning API on 127.0.0.1: files, jobs, events, checkpoints, cancel.

It follows OpenAI's published specification as their own Python client holds it: requests are validated
with the client's request types, answers are made of its response types. It trains nothing; what its jobs do
is told to it by a test (`script`, `faults`).
"""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from openai.types import FileObject
from openai.types.fine_tuning import (
    FineTuningJob,
    FineTuningJobEvent,
    JobCreateParams,
)
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from pydantic import TypeAdapter, ValidationError

_ASKED: TypeAdapter[Any] = TypeAdapter(JobCreateParams)
_LEAST_EXAMPLES = 10  # what OpenAI asks for
_LINES = {
    "supervised": {"messages", "tools", "parallel_tool_calls"},
    "dpo": {"input", "preferred_output", "non_preferred_output"},
}
STEPS = 130  # more events than one page holds


@dataclass
class Fault:
    """An answer that goes wrong: this status, so many times; `late` after the work was done all the same."""

    method: str
    path: str
    status: int
    times: int
    late: bool = False
    headers: dict[str, str] = field(default_factory=lambda: {"retry-after": "0.01"})


@dataclass
class Tuning:
    """What the server holds. `script` is the status a new job has at each look; the last one stays."""

    key: str
    url: str = ""
    script: list[str] = field(default_factory=lambda: ["validating_files", "queued", "running", "succeeded"])
    error: dict[str, Any] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)
    filters: bool = True  # whether it knows the metadata filter
    trained_tokens: int = 250_000

    # -- files ---------------------------------------------------------------------------------

    def upload(self, content_type: str, body: bytes) -> Any:
        parts = BytesParser(policy=HTTP).parsebytes(
            b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body
        )
        form = {part.get_param("name", header="content-disposition"): part for part in parts.iter_parts()}
        if form["purpose"].get_content().strip() != "fine-tune":
            raise Answer(400, "purpose must be fine-tune")
        content = form["file"].get_payload(decode=True)
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return FileObject(
            id=name, bytes=len(content), created_at=int(time.time()), filename=form["file"].get_filename(),
            object="file", purpose="fine-tune", status="processed",
        )  # fmt: skip

    # -- jobs ----------------------------------------------------------------------------------

    def create(self, body: dict[str, Any]) -> FineTuningJob:
        try:
            if _ASKED.validate_python(body) != body:  # what it does not know, it leaves out
                raise Answer(400, "Unknown parameter")
        except ValidationError as error:
            raise Answer(
                400, f"Invalid request: {error.errors()[0]['loc']} {error.errors()[0]['msg']}"
            ) from None
        kind = body["method"]["type"]
        for name in ("training_file", "validation_file"):
            if body.get(name) is not None:
                self._check(body[name], kind, _LEAST_EXAMPLES if name == "training_file" else 1)
        if len(body.get("suffix") or "") > 64 or len(body.get("metadata") or {}) > 16:
            raise Answer(400, "suffix or metadata is too long")
        self.asked.append(body)
        name = f"ftjob-{len(self.jobs)}"
        self.jobs[name] = {
            "id": name,
            "object": "fine_tuning.job",
            "created_at": int(time.time()),
            "model": body["model"],
            "organization_id": "org-stand-in",
            "result_files": [],
            "seed": body.get("seed") or 42,
            "status": self.script[0],
            "hyperparameters": {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.8},
            "training_file": body["training_file"],
            "validation_file": body.get("validation_file"),
            "method": body["method"],
            "metadata": body.get("metadata"),
            "_looks": 0,
            "_events": [],
            "_suffix": body.get("suffix") or "",
        }
        self._tell(name, "info", f"Created fine-tuning job: {name}")
        return self.job(name)

    def _check(self, file: str, kind: str, least: int) -> None:
        if file not in self.files:
            raise Answer(400, f"No such File object: {file}")
        lines = [json.loads(line) for line in self.files[file].decode().splitlines()]
        if len(lines) < least or any(not set(line) <= _LINES[kind] for line in lines):
            raise Answer(400, f"{file} does not hold {least} examples for {kind}")
        if kind == "supervised" and any(line["messages"][-1]["role"] != "assistant" for line in lines):
            raise Answer(400, "the last message must be from the assistant")

    def job(self, name: str, look: bool = False) -> FineTuningJob:
        job = self.jobs.get(name)
        if job is None:
            raise Answer(404, f"Could not find fine tune: {name}")
        if look and job["status"] not in ("succeeded", "failed", "cancelled"):
            job["_looks"] += 1
            job["status"] = self.script[min(job["_looks"], len(self.script) - 1)]
            self._advance(job)
        return FineTuningJob.model_validate({k: v for k, v in job.items() if not k.startswith("_")})

    def _advance(self, job: dict[str, Any]) -> None:
        if job["status"] == "running":
            done = sum(event.type == "metrics" for event in job["_events"])
            for step in range(done + 1, STEPS + 1):
                data: dict[str, Any] = {"step": step, "total_steps": STEPS, "train_loss": 2.0 / step}
                data["train_mean_token_accuracy"] = 1 - 0.5 / step
                if step % 65 == 0:
                    data["full_valid_loss"] = 2.2 / step
                self._tell(job["id"], "info", f"Step {step}/{STEPS}: training loss={2.0 / step:.2f}", data)
        elif job["status"] == "succeeded":
            job |= {
                "fine_tuned_model": f"ft:{job['model']}:stand-in:{job['_suffix']}:abc",
                "finished_at": job["created_at"] + 600,
                "trained_tokens": self.trained_tokens,
            }
            self._tell(job["id"], "info", "The job has successfully completed")
        elif job["status"] == "failed":
            job["error"] = {
                "code": "invalid_training_file",
                "message": "unknown",
                "param": None,
                **self.error,
            }
            self._tell(job["id"], "error", job["error"]["message"])

    def _tell(self, job: str, level: Any, message: str, data: Any = None) -> None:
        events = self.jobs[job]["_events"]
        kind = "metrics" if data else "message"
        events.append(
            FineTuningJobEvent(
                id=f"ftevent-{job}-{len(events)}",
                created_at=int(time.time()),
                level=level,
                message=message,
                object="fine_tuning.job.event",
                data=data,
                type=kind,
            )  # fmt: skip
        )

    def cancel(self, name: str) -> FineTuningJob:
        self.job(name)
        self.jobs[name]["status"] = "cancelled"
        self._tell(name, "info", "The job was cancelled")
        return self.job(name)

    def listed(self, query: dict[str, list[str]]) -> list[FineTuningJob]:
        wanted = {k[9:-1]: v[0] for k, v in query.items() if k.startswith("metadata[")}
        if wanted and not self.filters:
            raise Answer(400, "Unknown parameter: metadata")
        return [
            self.job(name)
            for name, job in reversed(self.jobs.items())
            if wanted.items() <= (job["metadata"] or {}).items()
        ]

    def checkpoints(self, name: str) -> list[FineTuningJobCheckpoint]:
        rows = [
            {
                "id": f"ftckpt-{step}",
                "object": "fine_tuning.job.checkpoint",
                "created_at": 1,
                "step_number": step,
                "fine_tuning_job_id": name,
                "fine_tuned_model_checkpoint": f"ft:checkpoint:{step}",
                "metrics": {"step": step, "full_valid_loss": 2.2 / step},
            }
            for step in (130, 65)
        ]
        return [FineTuningJobCheckpoint.model_validate(row) for row in rows]


class Answer(Exception):
    """An error as OpenAI words it."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        kind = "invalid_request_error" if status < 500 else "server_error"
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _page(rows: list[Any], query: dict[str, list[str]]) -> dict[str, Any]:
    """Cursor pages, as the specification has them: `after` an id, at most `limit` (default 20)."""
    ids = [row.id for row in rows]
    first = ids.index(query["after"][0]) + 1 if "after" in query else 0
    limit = min(int(query.get("limit", ["20"])[0]), 100)
    shown = rows[first : first + limit]
    return {
        "object": "list",
        "data": [row.to_dict() for row in shown],
        "has_more": first + limit < len(rows),
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    tuning: Tuning

    def _route(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> Any:
        tuning, jobs = self.tuning, r"/v1/fine_tuning/jobs"
        if self.headers.get("OpenAI-Organization") not in (None, "org-stand-in"):
            raise Answer(401, f"No such organization: {self.headers['OpenAI-Organization']}")
        if self.headers.get("Authorization") != f"Bearer {tuning.key}":
            got = self.headers.get("Authorization", "").removeprefix("Bearer ")
            raise Answer(401, f"Incorrect API key provided: {got}", "invalid_api_key")
        if (method, path) == ("POST", "/v1/files"):
            return tuning.upload(self.headers["Content-Type"], body)
        if path == jobs:
            return tuning.create(json.loads(body)) if method == "POST" else _page(tuning.listed(query), query)
        found = re.fullmatch(rf"{jobs}/([\w-]+)(/\w+)?", path)
        if not found:
            raise Answer(404, f"Unknown request URL: {method} {path}")
        name, rest = found[1], found[2]
        if (method, rest) == ("GET", None):
            return tuning.job(name, look=True)
        if (method, rest) == ("POST", "/cancel"):
            return tuning.cancel(name)
        if (method, rest) == ("GET", "/events"):
            return _page(tuning.jobs[name]["_events"][::-1], query)
        if (method, rest) == ("GET", "/checkpoints"):
            return _page(tuning.checkpoints(name), query)
        raise Answer(404, f"Unknown request URL: {method} {path}")

    def _serve(self, method: str) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.tuning.calls.append((method, url.path))
        fault = next(
            (
                f
                for f in self.tuning.faults
                if f.times and f.method == method and re.fullmatch(f.path, url.path)
            ),
            None,
        )
        status, headers, said = 200, {}, None
        if fault is None or fault.late:
            try:
                answer = self._route(method, url.path, parse_qs(url.query), body)
                said = answer if isinstance(answer, dict) else answer.to_dict()
            except Answer as error:
                status, said = error.status, error.body
        if fault:
            fault.times -= 1
            code = "rate_limit_exceeded" if fault.status == 429 else None
            status, headers = fault.status, fault.headers
            said = Answer(fault.status, "The server had a fault", code).body
        text = json.dumps(said).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(text)),
            **headers,
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def serving(key: str) -> Iterator[Tuning]:
    """The stand-in, on a free port of 127.0.0.1."""
    tuning = Tuning(key)
    handler = type("Handler", (_Handler,), {"tuning": tuning})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    tuning.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield tuning
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
