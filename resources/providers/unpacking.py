"""A result that comes back as a tar file, which somebody else's program packed: nothing in it is trusted."""

import shutil
import tarfile
from pathlib import Path, PurePosixPath

from ftaas_pipelines.errors import FtaasError

FILES = 10_000
# No pickles: opening one runs what is in it.
KEPT = (".json", ".jsonl", ".safetensors", ".txt", ".model", ".jinja", ".png", ".md")


def unpack(packed: Path, folder: Path, most_bytes: int) -> list[str]:
    """Write the files of a tar file to a folder.

    Args:
        most_bytes: that they may come to.

    Returns:
        The names of files that were left out for their kind.

    Raises:
        FtaasError: it is no tar file, holds links, devices or names that leave the folder, or too much.
    """
    left_out: list[str] = []
    room, count = most_bytes, 0
    try:
        with tarfile.open(packed, "r:*") as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                count, room = count + 1, room - max(member.size, 0)
                if count > FILES or room < 0:
                    raise _unsafe(packed, f"more than {FILES} files or {most_bytes} bytes")
                if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                    raise _unsafe(packed, member.name)
                if member.isdir():
                    continue
                if path.suffix not in KEPT:
                    left_out.append(member.name)
                    continue
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                source = archive.extractfile(member)
                assert source is not None  # isfile() said so
                with source, target.open("xb") as out:
                    shutil.copyfileobj(source, out)
    except (tarfile.TarError, EOFError, FileExistsError, NotADirectoryError) as error:
        raise FtaasError("is no whole tar file", packed.name, str(error), "see the job's log") from None
    return left_out


def _unsafe(packed: Path, got: str) -> FtaasError:
    return FtaasError("holds what a result may not hold", packed.name, got, "see what the job's image packs")
