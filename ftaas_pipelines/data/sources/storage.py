"""Object stores and other file systems behind a URL: s3://, hdfs:// and what else fsspec knows."""

import errno
import glob
import re
from pathlib import Path
from typing import Any

from ftaas_pipelines.data.sources import secrets
from ftaas_pipelines.data.sources.fetched import Fetched
from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.projects import data_files
from ftaas_pipelines.projects.dataset import Source
from ftaas_pipelines.store import digest_of

# What file systems call the facts that change with the bytes (S3, GCS, Azure, HDFS, SFTP, local).
_VERSION = (
    "ETag", "etag", "md5Hash", "content_settings", "VersionId", "LastModified", "last_modified", "mtime",
    "updated",
)  # fmt: skip


def fetch(source: Source, into: Path, before: Fetched | None) -> Fetched | None:
    """The files that a URL, glob or folder names; None when none of them changed since `before`.

    Raises:
        InputInvalid: there is none, or the kind of URL is not known here.
        FtaasError: the place cannot be read, or a file changed while being read.
    """
    url = source.path or ""
    options = {name: secrets.value(secret) for name, secret in source.storage.items()}
    try:
        system, path = _open(url, options)
        found = _found(system, path, url)
        token = _token(found)
        if before and token and token == before.token:
            return None
        files = [
            _download(system, name, info, into, number)
            for number, (name, info) in enumerate(found.items(), 1)
        ]
    except FtaasError:
        raise
    except FileNotFoundError:
        raise InputInvalid(data_files.NO_DATA, url, do="put it there or mend the path") from None
    except Exception as error:  # each file system has errors of its own kind
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        said = secrets.hide(str(error).partition("\n")[0], *options.values())
        got = f"{type(error).__name__}: {said}"
        raise FtaasError(
            "cannot be read", url, got, "check the path, dataset.sources[].storage and the network"
        ) from None
    return Fetched(files=files, token=token)


def _open(url: str, options: dict[str, str]) -> tuple[Any, str]:
    import fsspec.core

    try:
        # A cached instance would answer from its listing of the last look.
        return fsspec.core.url_to_fs(url, skip_instance_cache=True, **options)
    except (ValueError, ImportError) as error:
        do = "use s3://, hdfs:// or another fsspec URL whose library is installed"
        raise InputInvalid("this kind of URL is not known here", url, type(error).__name__, do) from None


def _found(system: Any, path: str, url: str) -> dict[str, dict[str, Any]]:
    """The files by name, sorted, each with what the file system knows of it."""
    base = re.split(r"[*?\[]", path, maxsplit=1)[0]
    if glob.has_magic(path):
        listed = system.glob(path, detail=True)
        base = base.rpartition("/")[0]
    elif system.isdir(path):
        listed = system.find(path, detail=True)
    else:
        return {path: system.info(path)}
    kept = {
        name: info
        for name, info in sorted(listed.items())
        if info.get("type") == "file" and _is_data(name.removeprefix(base).strip("/").split("/"))
    }
    if not kept:
        raise InputInvalid("no data file is there", url, do="put it there or mend the path")
    return kept


def _is_data(parts: list[str]) -> bool:
    return data_files.is_data(parts[-1]) and not any(part.startswith((".", "~")) for part in parts)


def _token(found: dict[str, dict[str, Any]]) -> str:
    facts = {
        name: {key: str(info[key]) for key in (*_VERSION, "size") if info.get(key) is not None}
        for name, info in found.items()
    }
    told = all(known.keys() - {"size"} for known in facts.values())
    return digest_of(facts) if told else ""


def _download(system: Any, name: str, info: dict[str, Any], into: Path, number: int) -> Path:
    """One file, streamed. Its name is made safe: an object's key may hold anything, `..` too."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", name.rpartition("/")[2])[-100:]
    target = into / f"{number:05d}-{safe}"
    system.get_file(name, str(target))
    if info.get("size") not in (None, target.stat().st_size):
        got = f"{target.stat().st_size} bytes, not {info['size']}"
        raise FtaasError("the file changed while being read", name, got, "run the same command again")
    return target
