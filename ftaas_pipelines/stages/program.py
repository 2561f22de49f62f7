"""What every stage program shares: the command line, reports, signals, exit codes, the parent watch.

Under Dagster Pipes (the launcher sets `DAGSTER_PIPES_CONTEXT`) reports are Pipes messages; by hand
they are lines of `metrics.jsonl` beside `--out` and on stderr.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from ftaas_pipelines.errors import FtaasError, Interrupted, Refused
from ftaas_pipelines.governance import gates
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.stages import spec as specs
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Artifact, Store
from ftaas_pipelines.training import ranks

NEEDS_GRANT = ("train",)


class Report(Protocol):
    """How a stage speaks while it works."""

    def progress(self, done: float, message: str) -> None:
        """`done` is the share of the work, 0 to 1."""
        ...

    def metrics(self, step: int, values: dict[str, float], trial: int | None = None) -> None:
        """Numbers at one optimizer step (or 0), of one trial where there are several."""
        ...

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """What the model answers at one step: prompt, reference, answer of each."""
        ...

    def trial(self, number: int, values: dict[str, Any], state: str, loss: float | None) -> None:
        """A trial of a sweep: its settings; `state` is running, complete, pruned or failed."""
        ...


class _Reporter:
    """Writes reports as JSON lines to a sink (Pipes, a file, stderr)."""

    def __init__(self, sinks: list[Callable[[dict[str, Any]], None]]):
        self._sinks = sinks

    def send(self, message: dict[str, Any]) -> None:
        for sink in self._sinks:
            sink({**message, "at": time.time()})

    def progress(self, done: float, message: str) -> None:
        self.send({"type": "progress", "done": round(done, 4), "message": message})

    def metrics(self, step: int, values: dict[str, float], trial: int | None = None) -> None:
        of_trial = {} if trial is None else {"trial": trial}
        self.send({"type": "metrics", "step": step, "values": values, **of_trial})

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        self.send({"type": "samples", "step": step, "rows": rows})

    def trial(self, number: int, values: dict[str, Any], state: str, loss: float | None) -> None:
        self.send({"type": "trial", "number": number, "values": values, "state": state, "loss": loss})


StageMain = Callable[[Spec, Store, Report], Artifact | None]
"""Makes the artifact; None in the ranks of a training that do not write it."""


def main(stage: str, make: StageMain, argv: list[str] | None = None) -> int:
    """Run one stage: read the spec, check the grant, make the artifact or adopt it, report.

    Returns:
        The exit code of `ftaas_pipelines.errors`.
    """
    parser = argparse.ArgumentParser(prog=f"python -m ftaas_pipelines.stages.{stage}")
    parser.add_argument("--spec", type=Path, required=True, help="the spec (JSON)")
    parser.add_argument("--out", type=Path, help="where to write the result (JSON)")
    parser.add_argument(
        "--ungoverned", action="store_true", help="run without a grant; what is made is never released"
    )
    parser.add_argument(
        "--replay", action="store_true", help="make it again, to compare: the grant it had then is enough"
    )
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    end_with_parent()
    with _reporter(options.out) as report:
        try:
            spec = specs.read(options.spec)
            artifact, reused = _make(stage, spec, make, report, options)
        except FtaasError as error:
            report.send({"type": "error", **error.as_dict()})
            _write(options.out if ranks.first() else None, error.as_dict())
            print(error, file=sys.stderr)
            return error.exit_code
        except Exception as error:
            traceback.print_exc()
            wrapped = FtaasError(f"{type(error).__name__}: {error}", f"stage {stage}", do="see its log")
            report.send({"type": "error", **wrapped.as_dict()})
            _write(options.out if ranks.first() else None, wrapped.as_dict())
            return 1
        if artifact is None:
            return 0
        result = {"kind": artifact.kind, "digest": artifact.digest, "reused": reused}
        report.send({"type": "result", **result})
        _write(options.out, result)
    return 0


def _make(
    stage: str, spec: Spec, make: StageMain, report: "_Reporter", options: argparse.Namespace
) -> tuple[Artifact | None, bool]:
    if spec.stage != stage:
        raise specs.SpecUnusable(
            "the spec is for another stage", "stage", spec.stage, f"run stages.{spec.stage}"
        )
    if stage in NEEDS_GRANT and not spec.run.experiment and not options.ungoverned:
        if spec.run.grant is None:
            raise Refused(
                "the spec carries no grant", spec.asset, do="run it with `ftaas run`, or add --ungoverned"
            )
        ledger = Ledger(spec.run.ledger, spec.run.home, spec.run.policy, spec.run.ledger_head)
        hold = gates.check_given if options.replay else gates.check
        hold(ledger, spec.run.grant, gate="train", project=spec.project, digest=spec.inputs["splits"])
    if options.ungoverned and stage in NEEDS_GRANT:
        spec.run.experiment = True
    store = Store(spec.run.store)
    found = store.find(spec.input_digest)
    if found:
        report.progress(1.0, "already made: adopted")
        return found, True
    return make(spec, store, report), False


@contextlib.contextmanager
def _reporter(out: Path | None) -> Iterator[_Reporter]:
    if not ranks.first():
        yield _Reporter([])
        return
    if "DAGSTER_PIPES_CONTEXT" in os.environ:
        from dagster_pipes import open_dagster_pipes

        with open_dagster_pipes() as pipes:
            yield _Reporter([pipes.report_custom_message])
        return
    path = (out.parent if out else Path()) / "metrics.jsonl"
    with path.open("a", encoding="utf-8") as lines:

        def to_file(message: dict[str, Any]) -> None:
            lines.write(json.dumps(message) + "\n")
            lines.flush()

        def to_terminal(message: dict[str, Any]) -> None:
            if message["type"] == "progress":
                print(f"{message['done']:6.1%}  {message['message']}", file=sys.stderr)

        yield _Reporter([to_file, to_terminal])


def _write(out: Path | None, result: dict[str, Any]) -> None:
    if out:
        out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def _interrupt(number: int, _: Any) -> None:
    raise Interrupted(f"stopped by {signal.Signals(number).name}", do="run the same command to go on")


def end_with_parent() -> None:
    """End this process when the one that launched it is gone (kill -9 of `ftaas run` or the daemon).

    The launcher names itself in FTAAS_LAUNCHER_PID; a thread of the child looks. The kernel's own
    PDEATHSIG follows the launching *thread*, which may end long before the process does.
    """
    launcher = os.environ.get("FTAAS_LAUNCHER_PID")
    if launcher is None:
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)  # long enough to save, short enough never to train on
        os._exit(130)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
