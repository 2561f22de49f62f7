"""A home with releases to serve: random adapters in a real store, approved in a real ledger."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil

from ftaas_pipelines.governance import signing
from ftaas_pipelines.governance.gates import Requirement
from ftaas_pipelines.governance.ledger import Ledger, open_ledger
from ftaas_pipelines.inference import bases
from ftaas_pipelines.serving import deployments, runtime
from ftaas_pipelines.serving.desired import Folder, ReleaseToServe
from ftaas_pipelines.serving.inputs import BentoInputs
from ftaas_pipelines.settings import ENVIRONMENTS, Settings
from ftaas_pipelines.store import Artifact, Store, canonical, digest_of

CAUSAL = bases.resolve("embedded/tiny-causal", "main", Path())
SEQ2SEQ = bases.resolve("embedded/tiny-t5", "main", Path())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def random_adapter(store: Store, base: Path, seed: int, rank: int = 4) -> Artifact:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(bases.load_model(base), config)
    with store.create("adapter", digest_of(["adapter", bases.digest(base), seed, rank])) as draft:
        model.save_pretrained(draft.path)
        (draft.path / "README.md").unlink(missing_ok=True)
        file = draft.path / "adapter_config.json"
        values = json.loads(file.read_text("utf-8"))
        values["base_model_name_or_path"] = f"sha256:{bases.digest(base)}"
        file.write_bytes(canonical(values))
        draft.content = {"base": bases.digest(base), "adapter": "lora", "seed": seed}
    return draft.made


def whole_model(store: Store, base: Path) -> Artifact:
    """What full fine-tuning leaves: a model folder of its own."""
    with store.create("adapter", digest_of(["full", str(base)])) as draft:
        shutil.copytree(base, draft.path, dirs_exist_ok=True)
        draft.content = {"base": bases.digest(base), "adapter": "full"}
    return draft.made


def build(root: Path, project: str, adapter: Artifact, base: Path, hash_seed: int = 0) -> Artifact:
    """Run the build stage as the program it is."""
    store = Store(root / "store")
    inputs = BentoInputs(
        project=project,
        runtime=runtime.digest(),
        adapter=adapter.digest,
        base=bases.digest(base),
        family=bases.family(base),
        max_new_tokens=24,
        threads=1,
    )
    run = {"home": str(root), "store": str(store.root), "ledger": "", "actor": "test"}
    spec = {"stage": "build", "project": project, "asset": "bento", "inputs": inputs.model_dump(), "run": run}
    file = root / f"{adapter.digest[:12]}-{project}.json"
    file.write_text(json.dumps(spec), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "ftaas_pipelines.stages.build", "--spec", file, "--out", root / "out.json"],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return store.get(json.loads((root / "out.json").read_text("utf-8"))["digest"])


def approve(ledger: Ledger, release: ReleaseToServe, environments: Sequence[str] = ENVIRONMENTS) -> None:
    """The entries that a release and its leave to be deployed write; by policy nobody is asked."""
    body = {name: getattr(release, name) for name in ("bento", "adapter", "base", "runtime")}
    body["signature"] = signing.sign(ledger.home, release.release.encode())
    ledger.append("release", release.release, body, project=release.project, actor="test")
    for environment in environments:
        asked = Requirement("deploy", release.project, release.release, environment, {"approver": 0}, {})
        grant = {
            "gate": "deploy",
            "environment": environment,
            "asset": f"deployment_{environment}",
            "requirement": asdict(asked),
        }
        ledger.append("grant", release.release, grant, project=release.project, actor="test")


@dataclass
class House:
    """A home, its settings, and clients that ask what is deployed in it."""

    settings: Settings
    environment: str = "staging"
    releases: dict[str, list[ReleaseToServe]] = field(default_factory=dict[str, list[ReleaseToServe]])

    @classmethod
    def at(cls, home: Path, **options: Any) -> "House":
        ports = {"port_staging": free_port(), "port_production": free_port()}
        return cls(Settings(**{"home": home.resolve(), **ports, **options}))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port(self.environment)}"

    @property
    def folder(self) -> Folder:
        return Folder(self.settings.home, self.environment)

    @cached_property
    def store(self) -> Store:
        return Store(self.settings.store_path)

    @cached_property
    def ledger(self) -> Ledger:
        return open_ledger(self.settings)

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0, timeout=60)

    @cached_property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False)

    def add(self, project: str, base: Path, *adapters: Artifact) -> list[ReleaseToServe]:
        """Approved releases of a project, one an adapter; they share the Bento of the first."""
        bento = build(self.settings.home, project, adapters[0], base)
        name = digest_of([project, adapters[0].digest])
        first = deployments.release_to_serve(self.settings, project, name, bento, str(base), 24)
        made = [first]
        for adapter in adapters[1:]:
            facts = {"adapter": adapter.digest, "adapter_path": str(adapter.path)}
            made.append(first.model_copy(update={"release": digest_of([project, adapter.digest]), **facts}))
        for release in made:
            approve(self.ledger, release)
        self.releases[project] = made
        return made

    def up(self, release: ReleaseToServe) -> None:
        deployments.up(self.settings, self.environment, release)

    def processes(self) -> list[int]:
        """Every process that works for this home: the supervisor and its engines."""
        found: list[int] = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("FTAAS_HOME") == str(self.settings.home)
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found

    def close(self) -> None:
        self.client.close()
        self.http.close()
        for environment in ENVIRONMENTS:
            deployments.stop(self.settings, environment)
