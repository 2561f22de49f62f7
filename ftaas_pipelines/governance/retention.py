"""What the store may forget: artifacts that nobody needs, and what is left of work that is done.

An artifact is needed when a ledger entry, a deployment, the head of a project's asset or a pin names
it, when it was made or asked for lately, or when a needed artifact was made of it. "Names" is read
generously: any 64 hexadecimal digits anywhere in the text count, so that a digest inside a path or a
comment keeps its artifact too.
"""

import contextlib
import json
import os
import re
import shutil
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.store import ATTESTATION, MANIFEST, Artifact, Store, canonical

_DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_HOUR = 3600


@dataclass(frozen=True)
class Collected:
    """What went, or would go.

    Attributes:
        drafts, work, objects: folders and files in `store/drafts`, `store/work`, `store/objects`.
        kept: artifacts that stay.
        bytes: freed on the disk; a file that another artifact shares frees nothing.
    """

    artifacts: list[Artifact] = field(default_factory=list[Artifact])
    drafts: list[Path] = field(default_factory=list[Path])
    work: list[Path] = field(default_factory=list[Path])
    objects: list[Path] = field(default_factory=list[Path])
    kept: int = 0
    bytes: int = 0


def collect(
    store: Store, ledger: Ledger, deployments: Iterable[Path], keep_days: float, dry_run: bool = False
) -> Collected:
    """Remove what nobody needs.

    Args:
        deployments: folders whose JSON files say what is deployed, or was and can be rolled back to.
        keep_days: what was made, asked for or written more lately than this stays.
        dry_run: only say what would go.
    """
    horizon = time.time() - keep_days * 24 * _HOUR
    everything = store.all()
    index = _index(store)
    young = {a.digest for a in everything if _last_used(a, index) >= horizon}
    needed = _closure(everything, young | named(store, ledger, deployments))
    artifacts = [a for a in everything if a.digest not in needed]
    drafts = store.gc(keep_days, True)
    finished = {path.stem for paths in index.values() for path in paths}
    work = sorted(path for path in (store.root / "work").glob("*") if path.name in finished)
    gone, freed = _freed(store, [*(a.path for a in artifacts), *drafts, *work], horizon)
    if not dry_run:
        artifacts = [a for a in artifacts if _remove(store, a, index[a.digest], horizon)]
        for path in [*drafts, *work]:
            shutil.rmtree(path, ignore_errors=True)
        _remove_objects(gone)
    return Collected(artifacts, drafts, work, gone, len(everything) - len(artifacts), freed)


def named(store: Store, ledger: Ledger, deployments: Iterable[Path]) -> set[str]:
    """Every digest that the ledger, a deployment, a head or a pin of the store names."""
    found: set[str] = set()
    for entry in ledger.entries():
        found.update(_DIGEST.findall(f"{entry.subject} {canonical(entry.body).decode()}"))
    for folder in [*deployments, store.root / "heads", store.root / "anchors"]:
        for path in sorted(folder.rglob("*.json")):
            found.update(_digests(path))
    return found


def _closure(everything: Iterable[Artifact], roots: set[str]) -> set[str]:
    """The roots and all that they were made of, by what manifests and attestations name."""
    made_of = {a.digest: a.path for a in everything}
    needed: set[str] = set()
    todo = sorted(roots & made_of.keys())
    while todo:
        digest = todo.pop()
        if digest in needed:
            continue
        needed.add(digest)
        for name in (MANIFEST, ATTESTATION):
            todo += _digests(made_of[digest] / name) & made_of.keys()
    return needed


def _digests(path: Path) -> set[str]:
    try:
        return set(_DIGEST.findall(path.read_text("utf-8")))
    except FileNotFoundError:
        return set()


def _index(store: Store) -> dict[str, list[Path]]:
    """The index entries of each artifact: what was asked for when it was made or adopted."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in (store.root / "index").glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            found[json.loads(path.read_text("utf-8"))["output"]].append(path)
    return found


def _last_used(artifact: Artifact, index: dict[str, list[Path]]) -> float:
    """When it was last made, adopted or asked for; the future when it is just being written."""
    times = [time.time() + _HOUR]
    with contextlib.suppress(FileNotFoundError):
        times = [p.stat().st_mtime for p in [artifact.path / MANIFEST, *index.get(artifact.digest, [])]]
    return max(times)


def _remove(store: Store, artifact: Artifact, index: list[Path], horizon: float) -> bool:
    """Take an artifact out of sight at once, then remove it; not when it was asked for meanwhile."""
    if _last_used(artifact, {artifact.digest: index}) >= horizon:
        return False
    aside = store.root / "drafts" / f"gone-{uuid.uuid4().hex}"
    aside.parent.mkdir(exist_ok=True)
    try:
        artifact.path.rename(aside)
    except FileNotFoundError:  # someone else collects too
        return False
    for path in index:
        path.unlink(missing_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    return True


def _freed(store: Store, folders: Iterable[Path], horizon: float) -> tuple[list[Path], int]:
    """The shared files that nothing links any more once these folders are gone, and all bytes freed."""
    going: Counter[tuple[int, int]] = Counter()
    stats: dict[tuple[int, int], os.stat_result] = {}
    for stat in _stats(folders):
        going[(stat.st_dev, stat.st_ino)] += 1
        stats[(stat.st_dev, stat.st_ino)] = stat
    objects: list[Path] = []
    for path in sorted((store.root / "objects").glob("*")):
        stat = path.lstat()
        key = (stat.st_dev, stat.st_ino)
        leftover = path.name.startswith(".") and stat.st_ctime < horizon  # of a process that was killed
        if leftover or stat.st_nlink - going[key] == 1:
            objects.append(path)
            going[key] += 1
            stats[key] = stat
    freed = sum(s.st_size for key, s in stats.items() if going[key] >= s.st_nlink)
    return objects, freed


def _stats(folders: Iterable[Path]) -> Iterator[os.stat_result]:
    for folder in folders:
        for path in folder.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                stat = path.lstat()
                if path.is_file():
                    yield stat


def _remove_objects(paths: Iterable[Path]) -> None:
    """Remove shared files; one that a new artifact has linked meanwhile stays."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            if path.name.startswith(".") or path.stat().st_nlink == 1:
                path.unlink()
