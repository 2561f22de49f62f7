"""What the runtime is: the very source files that run in an engine process, and what it is told to load.

Light: assets ask for the digest, the supervisor writes the state, the engine reads it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ftaas_pipelines.store import file_digest

STATE_VARIABLE = "FTAAS_RUNTIME_STATE"
BASE_VARIABLE = "FTAAS_BASE_PATH"
PARENT_VARIABLE = "FTAAS_LAUNCHER_PID"
TOKEN_VARIABLE = "FTAAS_ENGINE_TOKEN"
TOKEN_HEADER = "x-ftaas-engine"
STANDALONE_STATE = "runtime_state.json"
PACKAGE = Path(__file__).parent.parent
_MODULES = (
    "__init__.py",
    "errors.py",
    "store.py",
    "inference/*.py",
    "serving/__init__.py",
    "serving/answering.py",
    "serving/app.py",
    "serving/engine.py",
    "serving/incoming.py",
    "serving/openai_answers.py",
    "serving/openai_shapes.py",
    "serving/runtime.py",
    "serving/service.py",
    "serving/straight.py",
    "serving/worker.py",
)


@dataclass(frozen=True)
class ServedRelease:
    """One release as an engine loads it: digests to check, folders to read.

    `base_path` is empty in a Bento that stands alone: there FTAAS_BASE_PATH names the folder.
    """

    project: str
    release: str
    adapter: str
    adapter_path: str
    base: str
    base_path: str
    family: str
    max_new_tokens: int

    @property
    def name(self) -> str:
        """What an engine knows it by: a project may have several releases there at once."""
        return self.release or self.project


@dataclass(frozen=True)
class RuntimeState:
    """Everything an engine process is told; it reads no setting, store index or project file.

    Attributes:
        runtime: the digest its own source must have.
        threads: CPU threads of torch.
        adapter_mib: memory for adapters, MiB; the least recently asked leave beyond it. 0: no limit.
        merge: where there is one release, and it is a plain LoRA, work it into the base: nothing else can be
            loaded then.
    """

    environment: str
    runtime: str
    releases: list[ServedRelease] = field(default_factory=list)
    threads: int = 1
    adapter_mib: int = 0
    merge: bool = False

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def read(cls, path: Path) -> "RuntimeState":
        """The state in a file; a relative adapter path starts at the file's folder."""
        return cls.of(path.read_text("utf-8"), path.parent)

    @classmethod
    def of(cls, text: str, folder: Path) -> "RuntimeState":
        """The state in a JSON text; a relative adapter path starts at `folder`."""
        values: dict[str, Any] = json.loads(text)
        rows: list[dict[str, Any]] = values.pop("releases")
        for row in rows:
            row["adapter_path"] = str(folder / row["adapter_path"])
        return cls(releases=[ServedRelease(**row) for row in rows], **values)


def files() -> list[str]:
    """The source files of the runtime, relative to the package, sorted: what a Bento carries."""
    return sorted({p.relative_to(PACKAGE).as_posix() for m in _MODULES for p in PACKAGE.glob(m)})


def digest() -> str:
    """sha256 over the names and bytes of the runtime's source. Inside a Bento: of the Bento's."""
    whole = hashlib.sha256()
    for name in files():
        whole.update(f"{name}\0{file_digest(PACKAGE / name)}\n".encode())
    return whole.hexdigest()
