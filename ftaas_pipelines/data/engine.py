"""One function over many work shards: in this process, in several, or on Ray. The result is the same.

Daft carries the shards: its native runner spreads them over processes of this machine, its Ray runner
over a cluster. What a shard's function takes and gives is JSON, so nothing depends on where it ran.
The function writes its files into the work folder, which every worker must see.
"""

import importlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from ftaas_pipelines.errors import FtaasError, InputInvalid, Problem

Task = dict[str, Any]
Result = dict[str, Any]


@dataclass(frozen=True)
class Runner:
    """Where shards run.

    Attributes:
        kind: native (this machine) or ray.
        workers: processes on this machine; 1 runs every shard in this one.
        address: of the Ray cluster; empty starts one on this machine.
    """

    kind: Literal["native", "ray"] = "native"
    workers: int = 1
    address: str = ""


def run(
    function: str,
    tasks: Sequence[Task],
    runner: Runner,
    on_done: Callable[[int, Result], None] = lambda _, __: None,
) -> list[Result]:
    """Call `function` ("package.module:name") with every task.

    Args:
        on_done: told the task's number and its result, in the order in which they finish.

    Returns:
        The results in the order of the tasks.

    Raises:
        FtaasError: what the function raised, of the same kind; the first by task number that is known.
    """
    results: dict[int, Result] = {}

    def take(number: int, said: str) -> None:
        answer = json.loads(said)
        if "raised" in answer:
            kind = InputInvalid if answer["raised"] == InputInvalid.exit_code else FtaasError
            raise kind([Problem(**p) for p in answer["problems"]])
        results[number] = answer["result"]
        on_done(number, answer["result"])

    if runner.kind == "native" and (runner.workers == 1 or len(tasks) < 2):
        for number, task in enumerate(tasks):
            take(number, _call(function, json.dumps(task)))
    else:
        for number, said in _spread(function, tasks, runner):
            take(number, said)
    return [results[number] for number in range(len(tasks))]


def _spread(function: str, tasks: Sequence[Task], runner: Runner) -> Any:
    import daft

    _choose(runner)
    here = 0 if runner.kind == "ray" else os.getpid()

    def call(task: str) -> str:
        _end_with(here)
        return _call(function, task)

    worker: Any = daft.func(return_dtype=daft.DataType.string(), use_process=True)(call)
    frame: Any = daft.from_pydict(
        {"number": list(range(len(tasks))), "task": [json.dumps(task) for task in tasks]}
    )
    frame = frame.into_partitions(len(tasks)) if runner.kind == "ray" else frame.into_batches(1)
    rows = frame.select(frame["number"], worker(frame["task"]).alias("said")).iter_rows()
    for row in rows:
        yield cast(int, row["number"]), cast(str, row["said"])


_chosen: list[Runner] = []  # Daft takes one runner a process


def _choose(runner: Runner) -> None:
    import daft

    if _chosen:
        if _chosen[0] != runner:
            raise FtaasError(
                "another runner was chosen in this process",
                "data runner",
                f"{runner.kind} with {runner.workers} workers after {_chosen[0].kind}",
                "use a process of its own",
            )
        return
    if runner.kind == "ray":
        _connect(runner)
    else:
        daft.set_runner_native(num_threads=runner.workers)
    _chosen.append(runner)


def _connect(runner: Runner) -> None:
    import daft
    import ray

    if not ray.is_initialized():
        # A cluster of our own listens on this machine alone and leaves with this process.
        own: dict[str, Any] = {"num_cpus": runner.workers, "include_dashboard": False}
        where: dict[str, Any] = {"address": runner.address} if runner.address else own
        try:
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, TimeoutError) as error:
            raise InputInvalid(
                "the Ray cluster does not answer",
                "FTAAS_RAY_ADDRESS",
                runner.address or str(error).splitlines()[0],
                "start it, mend the address, or set FTAAS_DATA_RUNNER=native",
            ) from None
    daft.set_runner_ray(noop_if_initialized=True)


def _call(function: str, task: str) -> str:
    """The function's answer, or what it raised, as JSON."""
    module, _, name = function.partition(":")
    try:
        result = getattr(importlib.import_module(module), name)(json.loads(task))
    except FtaasError as error:
        problems = [p.as_dict() for p in error.problems]
        return json.dumps({"raised": error.exit_code, "problems": problems})
    return json.dumps({"result": result})


_watching = threading.Event()


def _end_with(parent: int) -> None:
    """End this worker process when the one that started it is gone (kill -9 leaves no orphan)."""
    if parent in (0, os.getpid()) or _watching.is_set():
        return
    _watching.set()

    def watch() -> None:
        while _is_alive(parent):
            time.sleep(0.5)
        os._exit(130)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
