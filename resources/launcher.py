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
from pathlib import Path
from typing import Any, TextIO

import dagster as dg

from ftaas_pipelines import errors
from ftaas_pipelines.errors import FtaasError, Problem
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.stages.spec import Spec, program
from resources.launch_contract import Context, Listener, StageResult

POLL_S = 0.25
LOG_EVERY_S = 10.0  # between two lines of progress in the Dagster run's log
GRACE_S = 20.0
_BY_EXIT_CODE = {2: errors.InputInvalid, 3: errors.Refused, 78: errors.SpecUnusable, 130: errors.Interrupted}


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
        listener: Listener | None = None,
    ) -> StageResult:
        """Run the stage of a spec to its end.

        Args:
            lease: file descriptor of the lease; the child holds it too, so that a child that outlives
                its launcher is waited for, never raced.
            log: where the child's output goes. messages: where its reports go, as JSON lines.
            listener: told of figures and trials as they come.

        Raises:
            FtaasError: what the stage reported, with its exit code's class.
        """
        if spec.run.provider:
            from resources.providers import launching  # their clients are heavy, and few projects have one

            return launching.launch(
                context, spec, settings, lease=lease, log=log, messages=messages, listener=listener
            )
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
                [sys.executable, "-m", *program(spec), "--spec", str(path)],
                env={**_environment(settings), **session.get_bootstrap_env_vars()},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                pass_fds=(lease,),
                # Its own group: Ctrl-C reaches this process, which then stops the child in order.
                start_new_session=True,
            )
            reports = _Reports(context, session, sink, listener)
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

    def __init__(self, context: Context, session: Any, sink: TextIO, listener: Listener | None):
        self._context, self._session, self._sink, self._listener = context, session, sink, listener
        self._logged = 0.0
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
            self._pass_on(message)
        self._seen = len(found)

    def _pass_on(self, message: dict[str, Any]) -> None:
        """To the tracker all of it, to the run's log what a person wants to read there."""
        kind, listener = message["type"], self._listener
        if kind == "metrics" and listener:
            listener.metrics(message["step"], message["values"], message.get("trial"))
        elif kind == "trial":
            if listener:
                listener.trial(message["number"], message["values"], message["state"], message["loss"])
            said = "" if message["loss"] is None else f", validation loss {message['loss']:.4f}"
            self._context.log.info(f"trial {message['number']} {message['state']}: {message['values']}{said}")
        elif kind == "progress" and time.monotonic() - self._logged >= LOG_EVERY_S:
            self._logged = time.monotonic()
            self._context.log.info(message["message"])
        elif kind == "samples":
            for row in message["rows"]:
                self._context.log.info(f"step {message['step']}: {row['prompt']!r} -> {row['answer']!r}")

    def result(self, code: int, spec: Spec, log: Path, seconds: float) -> StageResult:
        if code == 0 and "result" in self._last:
            result = self._last["result"]
            return StageResult(result["digest"], result["reused"], seconds)
        where = f"{spec.project}/{spec.asset}"
        error = self._last.get("error")
        if error:
            problems = [Problem(**p) for p in error["problems"]]
            # torchrun ends with a code of its own: the report says which it was.
            raise _BY_EXIT_CODE.get(int(error.get("exit_code", code)), FtaasError)(problems)
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
