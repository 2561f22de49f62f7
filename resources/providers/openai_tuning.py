"""OpenAI's fine-tuning API, and any that speaks it: files, a job, events and checkpoints, a model's name."""

import contextlib
from collections.abc import Container, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from ftaas_pipelines.data.sources import secrets
from ftaas_pipelines.data.versions import export as exports
from ftaas_pipelines.errors import FtaasError, InputInvalid, Problem
from ftaas_pipelines.projects.method import Dpo
from ftaas_pipelines.projects.provider import OpenAiTuning
from ftaas_pipelines.store import short
from resources.providers import exporting, mapping
from resources.providers.exporting import Export, Row
from resources.providers.job import News, Notes, Order, Outcome, State, Unreachable

_KEY = "ftaas_input"  # the metadata of a job that carries the input digest
_RETRIES = 4
_TIMEOUT_S = 120.0
_SUFFIX_CHARACTERS = 64
_SHOWN_CHARACTERS = 500
# OpenAI's names of figures, and ours.
_FIGURES = {
    "train_loss": "loss",
    "train_mean_token_accuracy": "mean_token_accuracy",
    "train_accuracy": "mean_token_accuracy",
    "valid_loss": "eval_batch_loss",
    "valid_mean_token_accuracy": "eval_batch_mean_token_accuracy",
    "full_valid_loss": "eval_loss",
    "full_valid_mean_token_accuracy": "eval_mean_token_accuracy",
}


class OpenAiJobs:
    """One order at an API that speaks OpenAI's.

    Raises:
        InputInvalid: the API key is missing.
    """

    title = "OpenAI's fine-tuning API"

    def __init__(self, provider: OpenAiTuning, order: Order):
        self._provider, self._order = provider, order
        self.secrets = [secrets.value(provider.api_key)]
        self._notes = Notes(order.work)
        self._uploaded: dict[str, str] = {}

    @cached_property
    def _client(self) -> Any:
        import openai

        provider, nothing = self._provider, openai.Omit()
        # Never what the environment happens to hold.
        whose: Any = {
            "OpenAI-Organization": provider.organization or nothing,
            "OpenAI-Project": provider.project or nothing,
        }
        return openai.OpenAI(
            base_url=provider.base_url,
            api_key=self.secrets[0],
            default_headers=whose,
            max_retries=_RETRIES,
            timeout=_TIMEOUT_S,
        )

    # -- what is asked -------------------------------------------------------------------------

    def problems(self) -> list[Problem]:
        rate = "it takes a multiplier of its own: set provider.hyperparameters.learning_rate_multiplier"
        hints = {"max_steps": "set epochs", "learning_rate": rate}
        return [
            *mapping.unmapped(
                self._order,
                self.title,
                training={"epochs", "batch_size", "gradient_accumulation", "seed"},
                method={"sft": (), "dpo": ("beta",)},
                hints=hints,
            ),
            *mapping.whole_epochs(self._order, self.title),
        ]

    def hyperparameters(self) -> dict[str, Any]:
        training, asked = self._order.training, mapping.asked(self._order.training)
        out: dict[str, Any] = {"n_epochs": int(training.epochs)}
        if {"batch_size", "gradient_accumulation"} & set(asked):
            out["batch_size"] = training.batch_size * training.gradient_accumulation
        if isinstance(self._order.method, Dpo) and mapping.asked(self._order.method):
            out["beta"] = self._order.method.beta
        return {**out, **self._provider.hyperparameters}

    def export(self, folder: Path) -> Export:
        wants = "preference" if self._order.method.kind == "dpo" else "conversation"

        def shape(row: Row) -> Row:
            return _line(row, wants)

        form = "openai-preference" if wants == "preference" else "openai-chat"
        return exporting.lines(self._order.splits, shape, form, folder)

    # -- the job -------------------------------------------------------------------------------

    def place(self) -> str:
        return self._provider.base_url

    def find(self) -> str | None:
        """The job that carries this input in its metadata, or that the launcher before wrote down.

        The list is asked too: a launcher may have been killed between asking for a job and noting it.
        """
        jobs = {job.id: job for job in (*self._noted(), *self._listed())}.values()
        alive = [job.id for job in jobs if job.status not in ("failed", "cancelled")]
        if not alive:
            return None
        self._notes.keep(job=alive[0])
        return alive[0]

    def _noted(self) -> list[Any]:
        import openai

        noted = self._notes.get("job")
        with self._explained("asking how the job is"):
            try:
                return [self._client.fine_tuning.jobs.retrieve(noted)] if noted else []
            except openai.NotFoundError:  # its account, or the server behind the address, is another now
                return []

    def _listed(self) -> list[Any]:
        """The jobs of this input, newest first."""
        import openai

        digest, jobs = self._order.spec.input_digest, self._client.fine_tuning.jobs
        with self._explained("listing jobs"):
            try:
                found = list(jobs.list(limit=100, metadata={_KEY: digest}))
            except openai.BadRequestError:
                found = list(jobs.list(limit=100))
        # Looked at again: a server that does not know the filter lists every job.
        return [job for job in found if (job.metadata or {}).get(_KEY) == digest]

    def upload(self, export: Export) -> None:
        known: dict[str, str] = self._notes.get("files") or {}
        for split, path in export.files.items():
            digest = export.sha256(split)
            if digest not in known:
                name = f"{self._order.name(1)}-{split}.jsonl"
                with self._explained("uploading"), path.open("rb") as lines:
                    sent = self._client.files.create(file=(name, lines), purpose="fine-tune")
                known[digest] = sent.id
                self._notes.keep(files=known)
            self._uploaded[split] = known[digest]

    def create(self) -> str:
        spec, method = self._order.spec, "dpo" if self._order.method.kind == "dpo" else "supervised"
        asked: dict[str, Any] = {
            "model": self._provider.base_model,
            "training_file": self._uploaded["train"],
            "method": {"type": method, method: {"hyperparameters": self.hyperparameters()}},
            "suffix": f"{spec.project}-{short(spec.input_digest)}"[-_SUFFIX_CHARACTERS:],
            "metadata": {
                _KEY: spec.input_digest,
                "ftaas_project": spec.project,
                "ftaas_splits": self._order.splits.digest,
            },
        }
        if "validation" in self._uploaded:
            asked["validation_file"] = self._uploaded["validation"]
        if "seed" in mapping.asked(self._order.training):
            asked["seed"] = self._order.training.seed
        with self._explained("asking for a job"):
            # Never tried again blindly: a call whose answer was lost may have made a job that costs.
            job = self._client.with_options(max_retries=0).fine_tuning.jobs.create(**asked)
        self._notes.keep(job=job.id)
        return job.id

    def _job(self, job: str) -> Any:
        with self._explained("asking how the job is"):
            return self._client.fine_tuning.jobs.retrieve(job)

    def state(self, job: str) -> State:
        found = self._job(job)
        if found.status == "succeeded":
            return State("done", found.status)
        if found.status == "failed":
            error = found.error
            parts = [error.code, error.message, error.param] if error else []
            return State("failed", ": ".join(part for part in parts if part) or found.status)
        if found.status == "cancelled":
            return State("stopped", found.status)
        return State("running" if found.status == "running" else "waiting", found.status)

    def news(self, job: str, seen: Container[str]) -> list[News]:
        import openai

        found: list[News] = []
        with self._explained("asking what is new"):
            try:
                # Newest first, page by page: as far back as what was told before.
                for event in self._client.fine_tuning.jobs.list_events(job, limit=100):
                    if event.id in seen:
                        break
                    found.append(_news(event))
            except openai.NotFoundError:  # some servers that speak the rest of this API have no events
                return [] if "no events" in seen else [News("no events", "it tells no events of its jobs")]
        return found[::-1]

    def stop(self, job: str) -> None:
        with self._explained("cancelling"):
            self._client.fine_tuning.jobs.cancel(job)

    # -- the result ----------------------------------------------------------------------------

    def collect(self, job: str, folder: Path) -> Outcome:
        found = self._job(job)
        if not found.fine_tuned_model:
            raise FtaasError("the job is done and names no model", self.title, job, "see its events")
        tokens, price = found.trained_tokens, self._provider.usd_per_million_tokens
        usd = tokens / 1e6 * price if tokens is not None and price is not None else None
        basis = f"{tokens} trained tokens" + (
            f" x {price:g} USD a million" if price is not None else "; no price given"
        )
        checkpoints = self._checkpoints(job)
        return Outcome(
            content={
                "adapter": "remote",
                "provider": "openai",
                "model": found.fine_tuned_model,
                "job": found.id,
                "base": found.model,
            },
            facts={
                "job": found.id,
                "base_url": self._provider.base_url,
                "organization": found.organization_id,
                "trained_tokens": tokens,
                "seed": found.seed,
                "hyperparameters": self._hyperparameters(found),
                "files": {"train": found.training_file, "validation": found.validation_file},
                "result_files": found.result_files,
                "checkpoints": checkpoints,
            },
            seconds=float(found.finished_at - found.created_at) if found.finished_at else None,
            usd=usd,
            basis=basis,
        )

    def _hyperparameters(self, found: Any) -> dict[str, Any]:
        """What the job says it ran with (`auto` worked out); else what was asked."""
        said = found.hyperparameters.to_dict() if found.hyperparameters else {}
        return {
            **self.hyperparameters(),
            **{name: value for name, value in said.items() if value is not None},
        }

    def _checkpoints(self, job: str) -> list[dict[str, Any]]:
        import openai

        with self._explained("asking for checkpoints"):
            try:
                listed = list(self._client.fine_tuning.jobs.checkpoints.list(job, limit=100))
            except openai.NotFoundError:
                return []
        rows = [
            {"step": c.step_number, "model": c.fine_tuned_model_checkpoint, **_ours(c.metrics.to_dict())}
            for c in listed
        ]
        return sorted(rows, key=lambda row: row["step"])

    def close(self) -> None:
        self._client.close()

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """The client's errors in the platform's form, with what the server said; the caller hides secrets."""
        import openai

        where = f"{doing}, {self._provider.base_url}"
        try:
            yield
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            do = f"mend {self._provider.api_key}"
            raise InputInvalid("does not accept the key", where, _said(error), do) from None
        except openai.RateLimitError as error:
            if error.code == "insufficient_quota":  # waiting does not fill an account
                raise InputInvalid("the account is empty", where, _said(error), "fill it") from None
            raise Unreachable("takes no more requests", where, _said(error), _retry_after(error)) from None
        except (openai.InternalServerError, openai.APITimeoutError, openai.APIConnectionError) as error:
            raise Unreachable(
                "fails or cannot be reached", where, _said(error), _retry_after(error)
            ) from None
        except (openai.BadRequestError, openai.NotFoundError, openai.UnprocessableEntityError) as error:
            raise InputInvalid("refuses this", where, _said(error), "mend the recipe") from None
        except openai.OpenAIError as error:
            raise FtaasError("does not answer as OpenAI's API does", where, _said(error)) from None


def _said(error: Any) -> str:
    """HTTP status and the server's own words, cut short."""
    status = getattr(error, "status_code", None)
    body = getattr(error, "body", None)
    message = body.get("message") if isinstance(body, dict) else None
    text = f"HTTP {status}: {message or error.message}" if status else f"{type(error).__name__}: {error}"
    return text[:_SHOWN_CHARACTERS]


def _retry_after(error: Any) -> float | None:
    try:
        return float(error.response.headers["retry-after"])
    except (AttributeError, KeyError, ValueError):
        return None


def _ours(figures: dict[str, Any]) -> dict[str, float]:
    return {ours: float(figures[name]) for name, ours in _FIGURES.items() if figures.get(name) is not None}


def _news(event: Any) -> News:
    data = event.data if isinstance(event.data, dict) else {}
    if event.type == "metrics" and "step" in data:
        step, total = int(data["step"]), data.get("total_steps")
        return News(event.id, step=step, values=_ours(data), share=step / total if total else None)
    return News(event.id, event.message if event.level == "info" else f"{event.level}: {event.message}")


def _line(row: Row, wants: str) -> Row:
    where = f"record {short(row['record_id'])}"
    if (row["kind"] == "preference") != (wants == "preference"):
        do = "take method dpo for preferences, sft for conversations"
        raise InputInvalid(f"the method learns from a {wants}", where, f"a {row['kind']}", do)
    for message in row["messages"]:
        for image in message.get("images") or []:
            if not str(image["ref"]).startswith(("https://", "http://", "data:")):
                do = "train it on this platform's machines"
                raise InputInvalid("shows an image that only this platform can read", where, do=do)
    return exports.openai(row)
