"""Launches a stage program as a child process under Dagster Pipes, and never leaves an orphan.

Kubernetes siblings will launch the same program from the same spec; nothing else changes with them.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import dagster as dg

from ftaas_pipelines import errors
from ftaas_pipelines.errors import FtaasError, Problem
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.stages.spec import Spec

Context = dg.AssetExecutionContext | dg.OpExecutionContext
OnMetrics = Callable[[int, dict[str, float]], None]
POLL_S = 0.25
GRACE_S = 20.0
_BY_EXIT_CODE = {2: errors.InputInvalid, 3: errors.Refused, 78: errors.SpecUnusable, 130: errors.Interrupted}


@dataclass(frozen=True)
class StageResult:
    """What a stage reported: the digest it made, and whether it was there already."""

    digest: str
    reused: bool
    seconds: float


class SubprocessLauncher(dg.ConfigurableResource[Any]):
    """The launcher of the local profile."""

    def launch(
        self,
        context: Context,
        spec: Spec,
        settings: Settings,
        *,
        lease: int,
        log: Path,
        messages: Path,
        on_metrics: OnMetrics | None = None,
    ) -> StageResult:
        """Run the stage of a spec to its end.

        Args:
            lease: file descriptor of the lease; the child holds it too, so that a child that outlives
                its launcher is waited for, never raced.
            log: where the child's output goes. messages: where its reports go, as JSON lines.
            on_metrics: called with each metrics report while the stage runs.

        Raises:
            FtaasError: what the stage reported, with its exit code's class.
        """
        started = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(prefix="ftaas-") as folder,
            log.open("w", encoding="utf-8") as output,
            messages.open("w", encoding="utf-8") as sink,
            dg.open_pipes_session(
                context=context.op_execution_context
                if isinstance(context, dg.AssetExecutionContext)
                else context,
                context_injector=dg.PipesEnvContextInjector(),
                message_reader=dg.PipesTempFileMessageReader(),
            ) as session,
        ):
            path = Path(folder) / "spec.json"
            path.write_text(spec.model_dump_json(), encoding="utf-8")
            child = subprocess.Popen(
                [sys.executable, "-m", f"ftaas_pipelines.stages.{spec.stage}", "--spec", str(path)],
                env={**_environment(settings), **session.get_bootstrap_env_vars()},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                pass_fds=(lease,),
                # Its own group: Ctrl-C reaches this process, which then stops the child in order.
                start_new_session=True,
            )
            reports = _Reports(session, sink, on_metrics)
            try:
                while child.poll() is None:
                    reports.forward()
                    time.sleep(POLL_S)
            finally:
                _stop(child)
        reports.forward()
        return reports.result(child.returncode, spec, log, time.monotonic() - started)


class _Reports:
    """Takes the child's reports as they come."""

    def __init__(self, session: Any, sink: TextIO, on_metrics: OnMetrics | None):
        self._session, self._sink, self._on_metrics = session, sink, on_metrics
        self._lines: list[str] = []
        self._seen = 0
        self._last: dict[str, dict[str, Any]] = {}

    def forward(self) -> None:
        found = self._session.get_custom_messages()
        for message in found[self._seen :]:
            self._last[message["type"]] = message
            if not self._sink.closed:
                self._sink.write(json.dumps(message) + "\n")
                self._sink.flush()
            if message["type"] == "metrics" and self._on_metrics:
                self._on_metrics(message["step"], message["values"])
        self._seen = len(found)

    def result(self, code: int, spec: Spec, log: Path, seconds: float) -> StageResult:
        if code == 0 and "result" in self._last:
            result = self._last["result"]
            return StageResult(result["digest"], result["reused"], seconds)
        where = f"{spec.project}/{spec.asset}"
        error = self._last.get("error")
        if error:
            problems = [Problem(**p) for p in error["problems"]]
            raise _BY_EXIT_CODE.get(code, FtaasError)(problems)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        do = f"see {log}; run the same command to go on from the newest checkpoint"
        raise FtaasError(f"the {spec.stage} stage was ended from outside", where, how, do)


def _environment(settings: Settings) -> dict[str, str]:
    threads = str(settings.threads)
    return {
        **os.environ,
        **settings.environ(),
        "FTAAS_LAUNCHER_PID": str(os.getpid()),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GX_ANALYTICS_ENABLED": "False",
        "PYTHONUNBUFFERED": "1",
    }


def _stop(child: "subprocess.Popen[bytes]") -> None:
    """End a child that still runs: first as a person would (it saves), then for good."""
    if child.poll() is not None:
        return
    child.send_signal(signal.SIGINT)
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
