"""The `prepare` stage on raw files, in this process: what the tests of the data plane stand on."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ftaas_pipelines.data.sources import files as fingerprints
from ftaas_pipelines.projects.dataset import Cleaning, Duplicates, Privacy, Quality, Splits
from ftaas_pipelines.stages import prepare
from ftaas_pipelines.stages.spec import Run, Spec
from ftaas_pipelines.store import Artifact, Store

Pair = tuple[str, str]
Sources = Mapping[str, Path | Sequence[Path]]
ROWS: list[Pair] = [(f"What does code {i:03d} mean?", f"Fault number {i:03d}.") for i in range(60)]


class Silent:
    def progress(self, done: float, message: str) -> None: ...

    def metrics(self, step: int, values: dict[str, float], trial: int | None = None) -> None: ...

    def trial(self, number: int, values: dict[str, Any], state: str, loss: float | None) -> None: ...

    def samples(self, step: int, rows: list[Any]) -> None: ...


def write(path: Path, rows: Iterable[Any]) -> Path:
    """A JSONL file of these rows; a pair is a prompt and its completion, bytes are a line as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line(row) + b"\n" for row in rows))
    return path


def line(row: Any) -> bytes:
    if isinstance(row, tuple):
        row = {"prompt": row[0], "completion": row[1]}
    return row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode()


def dataset_spec(
    store: Store,
    sources: Sources,
    declared: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    **more: Any,
) -> Spec:
    """The spec of a dataset.

    Args:
        declared: by source: the split it is declared to be, or fields of its `SourceInput`.
        run: fields of `Run`, such as data_workers.
        more: fields of `DatasetInputs`.
    """
    files = {name: [p] if isinstance(p, Path) else list(p) for name, p in sources.items()}
    said = {k: v if isinstance(v, dict) else {"split": v} for k, v in (declared or {}).items()}
    inputs: dict[str, Any] = {
        "sources": [
            {"name": name, "sha256": fingerprints.digest_all(paths), "split": None, **said.get(name, {})}
            for name, paths in files.items()
        ],
        "system": "",
        "group_by": None,
        "cleaning": Cleaning().model_dump(),
        "duplicates": Duplicates().model_dump(),
        "privacy": Privacy().model_dump(),
        "quality": Quality().model_dump(),
        **more,
    }
    return spec_of(store, "dataset", inputs, files=files, **(run or {}))


def spec_of(store: Store, asset: str, inputs: dict[str, Any], **run: Any) -> Spec:
    where = Run(home=store.root, store=store.root, ledger="sqlite://", actor="t@example.com", **run)
    return Spec(stage="prepare", project="p", asset=asset, inputs=inputs, run=where)


def make_dataset(store: Store, sources: Sources, *declared: Mapping[str, Any], **more: Any) -> Artifact:
    """The dataset version of these files; arguments as `dataset_spec`."""
    made = prepare.make(dataset_spec(store, sources, *declared, **more), store, Silent())
    accounted_for(made)
    return made


def make_splits(store: Store, dataset: Artifact, anchors: Artifact | None = None, **options: Any) -> Artifact:
    inputs = {
        "dataset": dataset.digest,
        "anchors": anchors.digest if anchors else None,
        "options": Splits(**options).model_dump(),
    }
    return prepare.make(spec_of(store, "splits", inputs), store, Silent())


def accounted_for(made: Artifact) -> None:
    """In = kept + each reason, by source, and every table says the same."""
    from ftaas_pipelines.data import tables

    content = made.content
    for counts in content["rows"].values():
        assert counts["in"] == sum(n for name, n in counts.items() if name != "in"), counts
    kept = tables.read(made.file("records"), ["record_id"])
    dropped = tables.read(made.file("dropped"), ["record_id", "reason"])
    origins = tables.read(made.file("beside/provenance"), ["record_id"])
    unread = content["dropped"].get("bad_row", 0)
    assert len(kept) == content["records"] == sum(c["kept"] for c in content["rows"].values())
    assert len(dropped) == sum(content["dropped"].values()) - unread
    assert len(origins) == sum(c["in"] for c in content["rows"].values()) - unread
    ids = {name: set(t["record_id"].to_pylist()) for name, t in (("all", origins), ("kept", kept))}
    assert ids["kept"] <= ids["all"] == ids["kept"] | set(dropped["record_id"].to_pylist())
    assert len(ids["kept"]) == len(kept)
