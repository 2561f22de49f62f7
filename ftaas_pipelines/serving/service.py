"""The BentoML service: the application mounted on the releases of one base model."""

import json
import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import bentoml  # noqa: TID253 imported by `bentoml serve`, the engine and the build stage only
import psutil
from starlette.exceptions import HTTPException

from ftaas_pipelines.serving import runtime
from ftaas_pipelines.serving.app import application
from ftaas_pipelines.serving.engine import Engine
from ftaas_pipelines.serving.runtime import RuntimeState

_engine = Engine()
answering = application(_engine)


@bentoml.service(
    name="ftaas_runtime",
    workers=1,
    traffic={"timeout": 600},
    # The application's own /metrics answers; BentoML's needs a shared folder per process to be right.
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    # Byte code beside the source would change the artifact that this Bento is.
    envs=[{"name": "PYTHONDONTWRITEBYTECODE", "value": "1"}],
)
@bentoml.asgi_app(answering, path="/")
class Runtime:
    """Loads what FTAAS_RUNTIME_STATE names, or, standing alone, the adapter inside the Bento."""

    def __init__(self) -> None:
        # The model's thread holds the interpreter most of the time; requests should not wait 5 ms for it.
        sys.setswitchinterval(0.0005)
        _end_with_parent()
        _engine.took["imports"] = time.time() - psutil.Process().create_time()  # Python, BentoML, FastAPI
        _engine.load(_state())

    def __is_ready__(self) -> bool:
        # Told what to load, it may also be told to load nothing yet; standing alone, it must have its own.
        if _engine.problems or not _engine.releases:
            detail = {"loaded": sorted(_engine.releases), "problems": _engine.problems}
            raise HTTPException(503, json.dumps(detail))
        return True


def _state() -> RuntimeState:
    given = os.environ.get(runtime.STATE_VARIABLE)
    if given:
        return RuntimeState.read(Path(given))
    state = RuntimeState.read(runtime.PACKAGE.parent / runtime.STANDALONE_STATE)
    base_path = os.environ.get(runtime.BASE_VARIABLE, "")
    return replace(state, releases=[replace(release, base_path=base_path) for release in state.releases])


def _end_with_parent() -> None:
    """End at once when the supervisor is gone, however it went: an orphan would answer unseen."""
    parent = os.environ.get(runtime.PARENT_VARIABLE)
    if parent is None:
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
