"""Artifacts: immutable folders named by what is in them.

    store/artifacts/<kind>/<output digest>/    manifest.json, the files, attestation.json
    store/objects/<sha256>                     files that artifacts share, each a hard link with theirs
    store/index/<input digest>.json            which output this input made; its time: when last asked
    store/heads/<project>/<asset>.json         what an asset last made, to explain staleness
    store/drafts/                              being written; never visible as an artifact
    store/work/<input digest>/                 resumable work of a stage (checkpoints)
    store/leases/                              who is making what right now

Files under `beside/` in an artifact (provenance, reports, pictures, curves) travel with it and are
not part of its identity, like the attestation.

The **output digest** is the sha256 of the manifest: kind, content facts and the sha256 of every
file. Times, hosts and versions go to `attestation.json`, which is not part of it. The **input
digest** is the sha256 of what a thing is made from and answers "was this already made?".
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ftaas_pipelines.errors import FtaasError, InputInvalid, Problem

MANIFEST = "manifest.json"
ATTESTATION = "attestation.json"
_BESIDE = {MANIFEST, ATTESTATION}
_SHARED_BYTES = 64 * 1024  # files from this size on, and every file of `records/`, are stored once
_NO_LINKS = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP}


def canonical(value: Any) -> bytes:
    """JSON bytes that are equal exactly when the values are: sorted keys, no white space, UTF-8."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_of(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of a value."""
    return hashlib.sha256(canonical(value)).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes, read in pieces."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def short(digest: str | None) -> str:
    """The first 12 characters of a digest: what people read."""
    return digest[:12] if digest else "-"


@dataclass(frozen=True)
class Artifact:
    """A finished, immutable folder in the store."""

    kind: str
    digest: str
    path: Path

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.path / MANIFEST).read_text("utf-8"))

    @property
    def content(self) -> dict[str, Any]:
        """The facts that are part of the identity (counts, digests of what it was made from)."""
        return self.manifest["content"]

    @cached_property
    def attestation(self) -> dict[str, Any]:
        """Times, host, cost, versions: what is true of the making, not of the thing."""
        return json.loads((self.path / ATTESTATION).read_text("utf-8"))

    def file(self, name: str) -> Path:
        return self.path / name

    def problems(self) -> Iterator[Problem]:
        """What is wrong with its bytes: files changed, missing or added since it was made."""
        where = f"{self.kind} {short(self.digest)}"
        do = "delete the folder and make it again with `ftaas run`"
        if digest_of(self.manifest) != self.digest:
            yield Problem("the manifest was changed", where, do=do)
        for name, entry in self.manifest["files"].items():
            path = self.path / name
            if not path.is_file():
                yield Problem("a file is missing", f"{where}/{name}", do=do)
            elif file_digest(path) != entry["sha256"]:
                yield Problem("a file was changed", f"{where}/{name}", do=do)
        for name in _files(self.path):
            if name not in self.manifest["files"]:
                yield Problem("a file was added", f"{where}/{name}", do=do)


@dataclass
class Draft:
    """An artifact being written; `content` becomes part of its identity, `attestation` does not."""

    path: Path
    content: dict[str, Any] = field(default_factory=dict)
    attestation: dict[str, Any] = field(default_factory=dict)
    artifact: Artifact | None = None

    @property
    def made(self) -> Artifact:
        """The committed artifact; only after the `with` block that wrote it."""
        assert self.artifact is not None, "the draft is not committed yet"
        return self.artifact


class Store:
    """Artifacts under one folder. Safe for many processes: drafts are renamed into place."""

    def __init__(self, root: Path):
        if "://" in str(root):
            raise InputInvalid(
                "a store on object storage is not supported yet", "FTAAS_STORE", str(root), "name a folder"
            )
        self.root = root.resolve()

    # -- reading -----------------------------------------------------------------------------

    def find(self, input_digest: str) -> Artifact | None:
        """What this input already made, or None. What is asked for stays young (see `retention`)."""
        index = self.root / "index" / f"{input_digest}.json"
        entry = _read_json(index)
        if entry is None:
            return None
        with contextlib.suppress(OSError):  # a store that can only be read is asked all the same
            os.utime(index)
        path = self.root / "artifacts" / entry["kind"] / entry["output"]
        return Artifact(entry["kind"], entry["output"], path) if path.is_dir() else None

    def get(self, digest: str) -> Artifact:
        """The artifact with this output digest; a unique beginning of at least 6 characters will do.

        Raises:
            InputInvalid: there is none, or several begin so.
        """
        exact = sorted((self.root / "artifacts").glob(f"*/{digest}")) if digest else []
        found = exact or (sorted((self.root / "artifacts").glob(f"*/{digest}*")) if len(digest) >= 6 else [])
        if len(found) != 1:
            what = "no artifact has this digest" if not found else "several artifacts begin so"
            raise InputInvalid(what, "store", digest, "see `ftaas status NAME` for digests")
        return Artifact(found[0].parent.name, found[0].name, found[0])

    def all(self, kind: str = "*") -> list[Artifact]:
        """Every artifact of a kind, newest last."""
        found: list[tuple[float, Path]] = []
        for path in (self.root / "artifacts").glob(f"{kind}/*"):
            with contextlib.suppress(FileNotFoundError):  # it went while we looked
                found.append(((path / MANIFEST).stat().st_mtime, path))
        return [Artifact(path.parent.name, path.name, path) for _, path in sorted(found)]

    def head(self, project: str, asset: str) -> dict[str, Any] | None:
        """What an asset last made: {"input", "inputs", "output", "at"}. For explanations only."""
        return _read_json(self.root / "heads" / project / f"{asset}.json")

    def read_json(self, name: str) -> dict[str, Any] | None:
        """One small JSON file below the root, as `write_json` left it; None when it is not there."""
        return _read_json(self.root / name)

    def verify(self) -> list[Problem]:
        """Check every byte of every artifact."""
        return [problem for artifact in self.all() for problem in artifact.problems()]

    # -- writing -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def create(self, kind: str, input_digest: str) -> Iterator[Draft]:
        """Write an artifact: fill `draft.path`, `content`, `attestation`; it appears whole or not at all.

        Raises:
            FtaasError: the disk is full, or the store cannot be written.
        """
        path = self.root / "drafts" / f"{kind}-{uuid.uuid4().hex}"
        try:
            path.mkdir(parents=True)
            draft = Draft(path)
            yield draft
            draft.artifact = self._commit(kind, input_digest, draft)
        except OSError as error:
            raise _disk_error(error, self.root) from error
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def _commit(self, kind: str, input_digest: str, draft: Draft) -> Artifact:
        files: dict[str, dict[str, Any]] = {
            name: {"sha256": file_digest(draft.path / name), "bytes": (draft.path / name).stat().st_size}
            for name in _files(draft.path)
        }
        manifest = {"kind": kind, "content": draft.content, "files": files}
        digest = digest_of(manifest)
        (draft.path / MANIFEST).write_bytes(canonical(manifest))
        attestation = {**draft.attestation, "made_at": now(), "input": input_digest}
        (draft.path / ATTESTATION).write_bytes(canonical(attestation))
        for name in [*files, MANIFEST, ATTESTATION]:
            _fsync(draft.path / name)
        for name, entry in files.items():
            if name.startswith("records/") or entry["bytes"] >= _SHARED_BYTES:
                self._share(draft.path / name, entry["sha256"])
        target = self.root / "artifacts" / kind / digest
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.path.rename(target)
        except OSError as error:
            # Someone made the very same bytes first: theirs stays, ours is dropped.
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        _fsync(target.parent)
        self.write_json(f"index/{input_digest}.json", {"kind": kind, "output": digest})
        return Artifact(kind, digest, target)

    def _share(self, path: Path, sha256: str) -> None:
        """Make the file one with the stored file of the same bytes; where links fail it stays its own.

        A stored file is read before it is trusted: bytes changed in place would go on into new versions.
        """
        stored = self.root / "objects" / sha256
        try:
            stored.parent.mkdir(parents=True, exist_ok=True)
            if not stored.is_file() or file_digest(stored) != sha256:
                _relink(path, stored)
            elif not stored.samefile(path):
                _relink(stored, path)
        except OSError as error:
            if error.errno not in _NO_LINKS and not isinstance(error, FileNotFoundError):
                raise

    def set_head(self, project: str, asset: str, input_digest: str, inputs: Any, output: str) -> None:
        """Remember what an asset last made, so that `status` can say what changed since."""
        head = {"input": input_digest, "inputs": inputs, "output": output, "at": now()}
        self.write_json(f"heads/{project}/{asset}.json", head)

    def write_json(self, name: str, value: Any) -> None:
        """Replace one small JSON file below the root, whole or not at all."""
        target = self.root / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
            temporary.write_bytes(canonical(value))
            _fsync(temporary)
            temporary.replace(target)
        except OSError as error:
            raise _disk_error(error, self.root) from error

    def work(self, input_digest: str) -> Path:
        """A folder for the resumable work of one input; removed with `clear_work` once it is made."""
        path = self.root / "work" / input_digest
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _disk_error(error, self.root) from error
        return path

    def clear_work(self, input_digest: str) -> None:
        shutil.rmtree(self.root / "work" / input_digest, ignore_errors=True)

    # -- leases ------------------------------------------------------------------------------

    def lease(
        self, name: str, wait_s: float = 3600, on_wait: Callable[[str], None] | None = None
    ) -> contextlib.AbstractContextManager[int]:
        """Hold the right to make `name`; others wait. See `hold`."""
        return hold(self.root / "leases" / f"{name}.lock", wait_s, on_wait)

    def gc(self, keep_days: float = 1.0, dry_run: bool = False) -> list[Path]:
        """Remove drafts that nobody writes any more. Returns those that went, or would."""
        horizon = time.time() - keep_days * 86400
        drafts: list[Path] = []
        for path in sorted((self.root / "drafts").glob("*")):
            with contextlib.suppress(FileNotFoundError):  # it was committed while we looked
                if path.stat().st_mtime < horizon:
                    drafts.append(path)
        for path in drafts if not dry_run else []:
            shutil.rmtree(path, ignore_errors=True)
        return drafts


@contextlib.contextmanager
def hold(path: Path, wait_s: float = 3600, on_wait: Callable[[str], None] | None = None) -> Iterator[int]:
    """Hold a lock file; others wait. Yields its file descriptor.

    The lock is the kernel's (`flock`), so it ends with the processes that hold it. A child that
    inherits the descriptor (`pass_fds`) keeps it: an orphan is waited for, never raced.

    Args:
        on_wait: told once who holds it, when there is somebody to wait for.

    Raises:
        FtaasError: someone else held it for longer than `wait_s`.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _disk_error(error, path) from error
    try:
        deadline, told = time.monotonic() + wait_s, False
        while not _try_lock(descriptor):
            if not told and on_wait:
                on_wait(os.pread(descriptor, 200, 0).decode(errors="replace").strip())
            told = True
            if time.monotonic() > deadline:
                raise FtaasError(
                    f"another process has been making this for {wait_s:.0f} s",
                    path.stem,
                    do="wait, `ftaas cancel` it, or raise FTAAS_LEASE_WAIT_S",
                )
            time.sleep(0.2)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} since {now()}".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def now() -> str:
    """UTC, ISO 8601, seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _files(folder: Path) -> list[str]:
    names = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(n for n in names if n not in _BESIDE and not n.startswith("beside/"))


def _relink(source: Path, target: Path) -> None:
    """Make `target` a hard link of `source`, in one step for whoever looks."""
    temporary = target.with_name(f".{target.name[:64]}.{uuid.uuid4().hex}")
    os.link(source, temporary)
    temporary.replace(target)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_error(error: OSError, root: Path) -> FtaasError:
    where = str(error.filename or root)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputInvalid("the disk is full", where, do="free space, then run the same command again")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return InputInvalid(
            "cannot be written", where, error.strerror or "", "make it writable or set FTAAS_HOME elsewhere"
        )
    return FtaasError(error.strerror or str(error), where, do="see the log of the run")
