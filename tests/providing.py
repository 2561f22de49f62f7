"""A platform with signed splits whose launcher trains at a provider: what the tests of providers stand on."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import dagster as dg

from ftaas_pipelines.data import made as rows_made
from ftaas_pipelines.data import tables
from ftaas_pipelines.data.rows.records import Record, identity
from ftaas_pipelines.governance import gates
from ftaas_pipelines.governance.gates import Requirement
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.inference import bases
from ftaas_pipelines.projects.recipe import Recipe
from ftaas_pipelines.review.sign_offs import requests
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Artifact, Store
from resources.launch_contract import StageResult
from resources.providers import launching

KEY = "sk-the-very-secret-key-of-this-test"
ROOT = Path(__file__).parent.parent
TRAINED, VALIDATED = 48, 12
UNSEEN = "this row belongs to the test split"


def base() -> Path:
    return bases.resolve("embedded/tiny-causal", "main", ROOT)


def said(question: str, answer: str, **extra: Any) -> dict[str, Any]:
    """A row of the record table, as `prepare` writes it."""
    messages: Any = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return rows_made.row(Record(identity(messages, extra), messages, "rows", None, 1, extra=extra))


def conversations(first: int, count: int) -> list[dict[str, Any]]:
    return [
        said(f"What does fault E{i % 7} of unit {i} mean?", f"Pump {i % 7} is hot.")
        for i in range(first, first + count)
    ]


def preferences(first: int, count: int) -> list[dict[str, Any]]:
    return [
        said(f"What is E{i}?", f"Fault {i}.", rejected="I do not know.") for i in range(first, first + count)
    ]


def splits_of(store: Store, make: Callable[[int, int], list[dict[str, Any]]]) -> Artifact:
    with store.create("splits", f"splits {make.__name__}") as draft:
        parts = {"train": make(0, TRAINED), "validation": make(1000, VALIDATED)}
        parts["test"] = [said(f"{UNSEEN} {i}", "No.") for i in range(6)]
        for name, rows in parts.items():
            tables.write_rows(draft.path / f"{name}.parquet", rows, tables.RECORDS)
        draft.content["counts"] = {name: len(rows) for name, rows in parts.items()}
    return draft.made


@dataclass
class Bench:
    """A platform with signed splits, and what its launcher reported."""

    root: Path
    context: dg.AssetExecutionContext
    figures: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    crashes: bool = False

    @property
    def store(self) -> Store:
        return Store(self.root / "store")

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(f"sqlite:///{self.root / 'ledger.db'}", self.root)

    def grant(self, splits: str) -> dict[str, Any]:
        people = {"sme": ["sam@example.com"], "rai": ["rita@example.com"]}
        wanted = Requirement("train", "demo", splits, "", {"sme": 1, "rai": 1}, people)
        requests.open_requests(self.ledger, wanted, asset="dataset_sign_off", summary={}, actor="line")
        for review in requests.reviews(self.ledger, project="demo", only_open=True):
            who = people[review.role][0]
            requests.decide(self.ledger, review.id, decision="approve", comment="looked", by=who)
        actor = "owen@example.com"
        return gates.require(self.ledger, wanted, asset="adapter_remote", actor=actor).as_dict()

    def spec(
        self,
        provider: dict[str, Any],
        rows: Callable[..., Any] = conversations,
        run: Any = None,
        **recipe: Any,
    ) -> Spec:
        asked = Recipe.model_validate({"name": "remote", "provider": provider, **recipe})
        assert asked.provider
        splits = splits_of(self.store, rows)
        return Spec.model_validate(
            {
                "stage": "train",
                "project": "demo",
                "asset": "adapter_remote",
                "inputs": {
                    "splits": splits.digest,
                    "base": bases.digest(base()),
                    "family": "causal",
                    "method": asked.method.model_dump(mode="json"),
                    "adapter": asked.adapter.model_dump(mode="json"),
                    "training": asked.training.model_dump(mode="json"),
                    "threads": 1,
                    "provider": asked.provider.identity,
                },
                "run": {
                    "home": str(self.root),
                    "store": str(self.root / "store"),
                    "ledger": self.ledger.url,
                    "actor": "owen@example.com",
                    "base_path": str(base()),
                    "grant": self.grant(splits.digest),
                    "provider": asked.provider.model_dump(mode="json"),
                    **(run or {}),
                },
            }
        )

    def launch(self, spec: Spec) -> StageResult:
        return launching.launch(
            self.context,
            spec,
            Settings(),
            lease=-1,
            log=self.root / "logs" / "log",
            messages=self.root / "logs" / "messages.jsonl",
            listener=self,
        )

    def metrics(self, step: int, values: dict[str, float], trial: int | None = None) -> None:
        if self.crashes:
            raise RuntimeError("the tracker is gone")
        self.figures.append((step, values))

    def trial(self, number: int, values: dict[str, Any], state: str, loss: float | None) -> None: ...

    def made(self, spec: Spec) -> Artifact:
        return self.store.get(self.launch(spec).digest)

    @property
    def messages(self) -> list[dict[str, Any]]:
        lines = (self.root / "logs" / "messages.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines]

    @property
    def log(self) -> str:
        return (self.root / "logs" / "log").read_text("utf-8")

    def child(self, spec: Spec) -> "subprocess.Popen[bytes]":
        """The launcher as a process of its own, which can be killed."""
        (self.root / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
        code = (
            "import sys, pathlib, dagster as dg\n"
            "from ftaas_pipelines.settings import Settings\n"
            "from ftaas_pipelines.stages import spec\n"
            "from resources.providers import launching\n"
            "root = pathlib.Path(sys.argv[1])\n"
            "launching.launch(dg.build_asset_context(), spec.read(root / 'spec.json'), Settings(), lease=-1,"
            " log=root / 'logs' / 'log', messages=root / 'logs' / 'messages.jsonl')\n"
        )
        with (self.root / "child.log").open("wb") as log:
            return subprocess.Popen(
                [sys.executable, "-c", code, str(self.root)], cwd=ROOT, stdout=log, stderr=log
            )


@contextmanager
def platform(root: Path) -> Iterator[Bench]:
    """A platform in a folder. At the end no file of it holds the secret."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield Bench(root, dg.build_asset_context(instance=instance))
    holding = [p for p in root.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]
    assert not holding, "the secret was written down"


def wait_for(what: Callable[[], Any], limit_s: float = 240) -> Any:
    ends = time.monotonic() + limit_s
    while not (found := what()):
        assert time.monotonic() < ends, "it did not happen"
        time.sleep(0.01)
    return found
