"""Images that messages show: hashed, and their bytes kept beside the records.

An image in a file beside the data, or in the row itself (a data URI), is copied to `images/<sha256>` of the
dataset version, and its message names it so: equal images are one file, and neither their names nor where
the folder lies are part of a record. What a URL shows is not fetched: it counts as not checked.
"""

import base64
import binascii
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from ftaas_pipelines.data.rows.cells import RowFault

FOLDER = "images"
LIMIT = 32 * 2**20  # bytes of one image


def is_uri(ref: str) -> bool:
    """Whether it holds the image itself (RFC 2397)."""
    return ref[:5].lower() == "data:"


def of_uri(uri: str, number: int) -> bytes:
    """The bytes of a data URI in message `number`.

    Raises:
        RowFault: it is broken.
    """
    head, comma, data = uri.partition(",")
    try:
        if not comma:
            raise ValueError
        raw = unquote_to_bytes(data)
        return base64.b64decode(raw, validate=True) if head.lower().endswith(";base64") else raw
    except (ValueError, binascii.Error):
        what = f"an image of message {number} is a broken data URI"
        raise RowFault(what, f"{len(uri)} characters", "write data:image/png;base64,…") from None


class Images:
    """Copies the images of one data file while its rows are read.

    Args:
        beside: the folder of the data file; paths are relative to it and may not lead out of it.
        out: folder that gets the copies, each named by its sha256; made when the first one comes.
    """

    def __init__(self, beside: Path, out: Path):
        self._beside, self._out = os.path.realpath(beside), out

    def keep(self, messages: list[dict[str, Any]]) -> None:
        """Copy each image of a record and name it by its content. URLs stay as they are.

        Raises:
            RowFault: one is not there, is larger than 32 MiB, leads out of the folder, or is not what the
                row's own sha256 says.
        """
        for number, message in enumerate(messages, 1):
            for image in message.get("images", ()):
                if "://" not in image["ref"] or is_uri(image["ref"]):
                    image |= self._kept(image["ref"], image["sha256"], number)

    def _kept(self, ref: str, said: str | None, number: int) -> dict[str, str]:
        data = of_uri(ref, number) if is_uri(ref) else self._read(ref, number)
        if len(data) > LIMIT:
            what, limit = f"an image of message {number} is too large", LIMIT // 2**20
            raise RowFault(what, f"over {limit} MiB", "scale it down or delete the row")
        sha256 = hashlib.sha256(data).hexdigest()
        if said not in (None, sha256):
            do = "put the right file there, or mend its sha256"
            raise RowFault(f"an image of message {number} has another sha256 than the row says", do=do)
        copy = self._out / sha256
        if not copy.exists():
            self._out.mkdir(exist_ok=True)
            copy.write_bytes(data)
        return {"ref": f"{FOLDER}/{sha256}", "sha256": sha256}

    def _read(self, ref: str, number: int) -> bytes:
        """At most a byte more than the limit of a file below the folder."""
        got = f"a path of {len(ref)} characters"  # a path may name a person
        try:
            path = Path(os.path.realpath(os.path.join(self._beside, ref)))
            if not path.is_relative_to(self._beside):
                do = "put it beside the data file or below"
                raise RowFault(f"an image of message {number} lies outside the data file's folder", got, do)
            if path.is_file():
                with path.open("rb") as file:
                    return file.read(LIMIT + 1)
        except RowFault:
            raise
        except OSError as error:
            got += f", {error.strerror}"
        except ValueError:  # a NUL byte
            pass
        do = "put the file there, write its path relative to the data file, or delete the row"
        raise RowFault(f"an image of message {number} is not there", got, do)


def held(shards: Iterable[str]) -> dict[str, Path]:
    """The images that work shards copied, by sha256."""
    return {path.name: path for shard in shards for path in Path(shard, FOLDER).glob("*")}


def pass_on(messages: Any, copies: Mapping[str, Path], out: Path) -> Counter[str]:
    """Put the images that records show into a dataset version.

    Args:
        messages: column of the record table (Arrow): JSON, or null.
        copies: as `held` found them.
        out: folder of the artifact being written.

    Returns:
        How many times an image is shown: `stored` (its bytes are in the version), `not_checked` (a URL).
    """
    import pyarrow.compute

    pc: Any = pyarrow.compute  # its functions are made at run time
    counts = Counter[str]()
    showing = messages.filter(pc.fill_null(pc.match_substring(messages, '"images":['), False))
    for text in showing.to_pylist():
        for image in (i for m in json.loads(text) for i in m.get("images", ())):
            copy = copies.get(image["sha256"]) if image["ref"].startswith(f"{FOLDER}/") else None
            counts["not_checked" if copy is None else "stored"] += 1
            if copy is not None:
                _link(copy, out / image["ref"])
    return counts


def _link(copy: Path, place: Path) -> None:
    """Several workers may put the same image there: their bytes are equal."""
    if place.exists():
        return
    place.parent.mkdir(exist_ok=True)
    try:
        os.link(copy, place)
    except FileExistsError:
        pass
    except OSError:  # another disk, or one without links
        shutil.copyfile(copy, place)
