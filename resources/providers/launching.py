"""Launches a training at a provider: the sibling of `launcher.SubprocessLauncher.launch`.

The gate is asked again here, in the asset's body, as a stage program asks it: unsigned data never leaves.
What comes back is registered as an artifact of kind `adapter` with the evidence that `stages.train` writes.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ftaas_pipelines.data.sources import secrets
from ftaas_pipelines.errors import FtaasError, InputInvalid, Refused, SpecUnusable
from ftaas_pipelines.governance import gates
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.projects.adapter import Adapter
from ftaas_pipelines.projects.method import Method
from ftaas_pipelines.projects.provider import Bedrock, OpenAiTuning, Provider
from ftaas_pipelines.projects.recipe import Training
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Artifact, Draft, Store, canonical, digest_of
from resources.launch_contract import Context, Listener, StageResult
from resources.providers import following
from resources.providers.bedrock import BedrockJobs
from resources.providers.exporting import Export
from resources.providers.following import Pace
from resources.providers.heard import Heard
from resources.providers.job import Order, Outcome, Remote
from resources.providers.openai_tuning import OpenAiJobs
from resources.providers.sagemaker import SageMakerJobs

SENT = "data_sent"
"""Ledger entry of splits whose training and validation records went to a provider."""
_PROVIDER: TypeAdapter[Provider] = TypeAdapter(Provider)


class _Inputs(BaseModel):
    """What of a training's inputs a provider needs; the rest is left to those who know it."""

    model_config = ConfigDict(extra="ignore")

    splits: str
    base: str
    family: str
    method: Method
    adapter: Adapter
    training: Training


def launch(
    context: Context,
    spec: Spec,
    settings: Settings,
    *,
    lease: int,
    log: Path,
    messages: Path,
    listener: Listener | None = None,
) -> StageResult:
    """Have an adapter trained by the provider that the spec names, to its end.

    Args:
        lease: held by this process while it follows the job. settings: of no use here.
        log: where the provider's words go. messages: where reports go, as JSON lines.
        listener: told of figures as they come.

    Raises:
        Refused: without a valid grant, or the budget is used up.
        InputInvalid: a setting cannot be mapped, a secret is missing, or the provider refuses a value.
        FtaasError: the job failed, with the provider's reason, was stopped, or took too long.
    """
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as output, messages.open("w", encoding="utf-8") as sink:
        heard = Heard(context, output, sink, listener)
        try:
            artifact, reused = _make(spec, heard)
        except FtaasError as error:
            raise heard.error(error) from None
        except Exception as error:
            # Its text may repeat what was sent, so neither it nor its traceback goes on as it is.
            where = f"{spec.project}/{spec.asset}"
            raise heard.error(
                FtaasError(f"{type(error).__name__}: {error}", where, do=f"see {log}")
            ) from None
        heard.result(artifact.kind, artifact.digest, reused)
        return StageResult(artifact.digest, reused, time.monotonic() - started)


def _make(spec: Spec, heard: Heard) -> tuple[Artifact, bool]:
    ledger = _gate(spec)
    store = Store(spec.run.store)
    found = store.find(spec.input_digest)
    if found:
        heard.progress(1.0, "already made: adopted")
        return found, True
    provider, order = provider_of(spec), _order(spec, store)
    remote = remote_of(provider, order)
    heard.hidden = remote.secrets
    problems = remote.problems()
    if problems:
        raise InputInvalid(problems)
    with contextlib.closing(remote):
        return _train(remote, provider, order, store, ledger, heard), False


def _train(
    remote: Remote, provider: Provider, order: Order, store: Store, ledger: Ledger, heard: Heard
) -> Artifact:
    spec = order.spec
    heard.progress(0.01, f"exporting the signed splits for {remote.title}")
    export = remote.export(order.work / "export")
    limit = provider.timeout_minutes * 60
    pace = Pace(provider.poll_seconds, limit, order.minutes * 60 if order.minutes is not None else None)
    job = following.run(remote, export, order, heard, pace, lambda: _record(remote, ledger, spec, export))
    heard.progress(0.95, "bringing the result home")
    with store.create("adapter", spec.input_digest) as draft:
        outcome = remote.collect(job, draft.path)
        heard.figures(outcome.figures)
        _write(draft, order, provider, export, outcome, heard)
    store.clear_work(spec.input_digest)
    cost = f"{outcome.usd:.2f} USD" if outcome.usd is not None else "cost unknown"
    heard.progress(1.0, f"adapter made by {remote.title}: {cost} ({outcome.basis})")
    return draft.made


def _gate(spec: Spec) -> Ledger:
    """Hold the grant against the ledger, as `stages.program` does.

    Raises:
        Refused: there is none, it does not hold, or this is an experiment.
    """
    where = f"{spec.project}/{spec.asset}"
    if spec.run.experiment:
        do = "train through the gate with `ftaas run`, or take a recipe without a provider"
        raise Refused(
            "data leaves this platform only when it is signed; an experiment's is not", where, do=do
        )
    if spec.run.grant is None:
        raise Refused("the spec carries no grant", where, do="run it with `ftaas run`")
    ledger = Ledger(spec.run.ledger, spec.run.home, spec.run.policy, spec.run.ledger_head)
    gates.check(ledger, spec.run.grant, gate="train", project=spec.project, digest=spec.inputs["splits"])
    return ledger


def provider_of(spec: Spec) -> Provider:
    """The provider section of a spec: whole in `run`, where it is no part of the identity.

    Raises:
        SpecUnusable: there is none, or it does not go with the inputs.
    """
    do = "let `ftaas run` write the spec"
    try:
        provider = _PROVIDER.validate_python(spec.run.provider)
    except ValidationError as error:
        raise SpecUnusable("names no provider", "run.provider", error.errors()[0]["msg"], do) from None
    if spec.inputs.get("provider") != provider.identity:
        raise SpecUnusable("is not the provider that the inputs name", "run.provider", provider.kind, do)
    return provider


def _order(spec: Spec, store: Store) -> Order:
    try:
        inputs = _Inputs.model_validate(spec.inputs)
    except ValidationError as error:
        where = ".".join(["inputs", *map(str, error.errors()[0]["loc"])])
        raise SpecUnusable("are none of a training", where, error.errors()[0]["msg"]) from None
    splits = store.get(inputs.splits)
    if splits.kind != "splits":
        raise SpecUnusable("is not a splits artifact", "inputs.splits", splits.kind)
    broken = list(splits.problems())
    if broken:
        raise FtaasError(broken)
    return Order(
        spec=spec,
        splits=splits,
        method=inputs.method,
        adapter=inputs.adapter,
        training=inputs.training,
        base=inputs.base,
        base_path=spec.run.base_path,
        work=store.work(spec.input_digest),
        minutes=spec.run.max_minutes,
    )


def remote_of(provider: Provider, order: Order) -> Remote:
    """The provider that a section names, for one order."""
    if isinstance(provider, Bedrock):
        return BedrockJobs(provider, order)
    if isinstance(provider, OpenAiTuning):
        return OpenAiJobs(provider, order)
    return SageMakerJobs(provider, order)


def _record(remote: Remote, ledger: Ledger, spec: Spec, export: Export) -> None:
    """Put on record what is sent, and where, once."""
    splits: str = spec.inputs["splits"]
    body = {
        "provider": spec.inputs["provider"]["kind"],
        "to": remote.place(),
        "format": export.manifest["format"],
        "files": export.manifest["files"],
        "input": spec.input_digest,
        "grant": (spec.run.grant or {}).get("entry"),
    }
    known = ledger.entries(SENT, project=spec.project, subject=splits)
    if body not in [entry.body for entry in known]:
        ledger.append(SENT, splits, body, project=spec.project, actor=spec.run.actor)


def _write(
    draft: Draft, order: Order, provider: Provider, export: Export, outcome: Outcome, heard: Heard
) -> None:
    from ftaas_pipelines.training import curves

    spec, history = order.spec, heard.history
    facts: dict[str, Any] = _clean(outcome.facts, heard)
    content: dict[str, Any] = _clean(outcome.content, heard)
    steps = max((row["step"] for row in history), default=0) or None
    known = {"family": "causal", "steps": steps, "trainable_parameters": None}
    draft.content |= {
        **known,
        "method": order.method.kind,
        "splits": order.splits.digest,
        **content,
        "experiment": spec.run.experiment,
    }
    if content["adapter"] == "remote":
        remote = {**content, "base_model": provider.identity["base_model"], **facts}
        (draft.path / "remote.json").write_bytes(canonical(remote))
    beside = draft.path / "beside"
    beside.mkdir(exist_ok=True)
    (beside / "export.json").write_bytes(canonical(export.manifest))
    lines = "".join(json.dumps(row) + "\n" for row in history)
    (beside / "metrics.jsonl").write_text(lines, encoding="utf-8")
    if any("loss" in row or "eval_loss" in row for row in history):  # not every provider tells one
        curves.draw(history, beside / "loss.png")
    draft.attestation |= {
        "spec": {"stage": spec.stage, "project": spec.project, "asset": spec.asset, "inputs": spec.inputs},
        "actor": spec.run.actor,
        "grant": spec.run.grant,
        "seconds": round(outcome.seconds or 0.0, 3),
        "cost_usd": None if outcome.usd is None else round(outcome.usd, 6),
        "cost_basis": outcome.basis,
        "provider": {"kind": provider.kind, **facts},
        "exported": {"digest": digest_of(export.manifest), **export.manifest},
        "last": history[-1] if history else {},
    }


def _clean(facts: dict[str, Any], heard: Heard) -> dict[str, Any]:
    """Facts as JSON, without secrets that a provider repeated."""
    escaped = [json.dumps(value)[1:-1] for value in heard.hidden]
    return json.loads(secrets.hide(json.dumps(facts, default=str), *escaped))
