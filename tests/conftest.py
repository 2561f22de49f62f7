"""What every test stands on: a home of its own, no network, one thread, small projects, the real CLI."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before any library reads them; child processes inherit them.
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GX_ANALYTICS_ENABLED": "False",
        "BENTOML_DO_NOT_TRACK": "True",
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "NO_COLOR": "1",
    }
)

import hypothesis
import pytest
from label_studio import label_studio, label_studio_server  # noqa: F401  (fixtures of every test)

if "FTAAS_CI" in os.environ:  # the same examples each time: what CI says of a change is about the change
    hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
    hypothesis.settings.load_profile("same")

# Minutes each: they begin first, so that no worker is left with one of them at the end.
_LONGEST = ("test_real_data.py", "test_readme.py", "test_sweep.py", "test_online_methods.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, the longest before; within a file the order stays."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}

    def turn(item: pytest.Item) -> tuple[bool, int]:
        name = item.path.name
        return item.path not in slow, _LONGEST.index(name) if name in _LONGEST else len(_LONGEST)

    items.sort(key=turn)


ROOT = Path(__file__).parents[1]
OWNER = "owen.owner@example.com"
_LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything but loopback and UNIX sockets is an error that names the address."""
    connect = socket.socket.connect
    connect_ex = socket.socket.connect_ex

    def check(address: Any) -> None:
        if isinstance(address, tuple) and not str(address[0]).startswith(_LOOPBACK):
            raise AssertionError(f"a test reached for the network: {address}")

    def guarded(self: socket.socket, address: Any) -> None:
        check(address)
        return connect(self, address)

    def guarded_ex(self: socket.socket, address: Any) -> int:
        check(address)
        return connect_ex(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_ex)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FTAAS_HOME, projects, policy and free ports of this test alone; returns the home folder."""
    for name in [n for n in os.environ if n.startswith(("FTAAS_", "DAGSTER_HOME", "DAGSTER_PIPES"))]:
        monkeypatch.delenv(name)
    shutil.copytree(ROOT / "policy", tmp_path / "policy")
    (tmp_path / "projects").mkdir()
    chosen = {
        "FTAAS_HOME": tmp_path / "home",
        "FTAAS_PROJECTS": tmp_path / "projects",
        "FTAAS_POLICY": tmp_path / "policy" / "platform.yaml",
        "FTAAS_PRICES": tmp_path / "policy" / "prices.yaml",
        "FTAAS_ACTOR": OWNER,
    }
    names = ("PRODUCTION", "STAGING", "DAGSTER", "MLFLOW", "LABEL_STUDIO")
    for name, port in zip(names, free_ports(len(names)), strict=True):
        chosen[f"FTAAS_PORT_{name}"] = port
    for name, value in chosen.items():
        monkeypatch.setenv(name, str(value))
    return tmp_path / "home"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """An S3 server (moto) that speaks S3 on the wire; for the whole session."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


PROJECT = """\
name: {name}
title: {title}
task: qa
intended_use: Tests of the platform.
people:
  owners: [owen.owner@example.com]
  smes: [sam.expert@example.com]
  rai_reviewers: [rita.responsible@example.com]
  approvers: [alex.approver@example.com]
dataset:
  sources:
    - {{name: rows, path: data/rows.jsonl}}
base_model:
  id: embedded/tiny-causal
recipes:
  - name: lora
    training: {{max_steps: 4, batch_size: 4, learning_rate: 0.003, max_seq_tokens: 128}}
"""


def rows(count: int = 120) -> list[dict[str, str]]:
    """Alpaca rows about made-up codes, every one of its own."""
    parts = ("pump", "belt", "valve", "sensor", "motor")
    return [
        {
            "instruction": "Say what the code means.",
            "input": f"Line {i % 7} shows X{100 + i}.",
            "output": json.dumps({"part": parts[i % 5], "step": f"check {i % 11}"}),
        }
        for i in range(count)
    ]


@pytest.fixture
def project_factory(home: Path) -> Callable[..., Path]:
    """Writes `projects/NAME/project.yaml` and its data; returns the YAML's path.

    `text` replaces the whole YAML, `extra` is added at its end, `data` replaces the rows.
    """

    def write(
        name: str = "codes",
        *,
        folder: str = "",
        text: str | None = None,
        extra: str = "",
        data: Sequence[dict[str, Any]] | None = None,
    ) -> Path:
        path = Path(os.environ["FTAAS_PROJECTS"]) / (folder or name) / "project.yaml"
        (path.parent / "data").mkdir(parents=True)
        lines = (json.dumps(row) + "\n" for row in (rows() if data is None else data))
        (path.parent / "data" / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
        path.write_text((text or PROJECT.format(name=name, title=name)) + extra, encoding="utf-8")
        return path

    return write


@dataclass(frozen=True)
class Ran:
    """What a command line left behind."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """stdout as the one JSON document it must be."""
        return json.loads(self.stdout)


@pytest.fixture
def ftaas(home: Path) -> Callable[..., Ran]:
    """Runs `ftaas ARGS…` as a process of its own."""

    def run(*arguments: str, timeout_s: float = 300, **environment: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "ftaas_pipelines.cli.main", *arguments],
            capture_output=True,
            encoding="utf-8",
            timeout=timeout_s,
            cwd=ROOT,
            env={**os.environ, **environment},
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run
