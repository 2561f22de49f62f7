"""How rows are packed into a file: container, compression and encoding; and the plain UTF-8 file behind it.

A container is CSV (or TSV), JSONL, JSON (one list), text, Parquet or Arrow. Text containers come out as
UTF-8 without a byte order mark, whatever the file was; nothing is ever held in memory as a whole.
"""

import codecs
import contextlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ftaas_pipelines.errors import InputInvalid

COLUMNAR = ("Parquet", "Arrow")
PIECE = 2**16  # bytes read at a time
FREE_BYTES = 64 * 2**20  # what any compressed file may become
RATIO = 200  # times its size that a compressed file may become above that: text stays far below
_SUFFIXES = {
    ".csv": "CSV",
    ".tsv": "CSV",
    ".jsonl": "JSONL",
    ".ndjson": "JSONL",
    ".json": "JSON",
    ".txt": "text",
    ".parquet": "Parquet",
    ".arrow": "Arrow",
    ".feather": "Arrow",
    ".ipc": "Arrow",
}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"\x50\x2a\x4d\x18": "zstd"}
_BINARY = {b"PAR1": "Parquet", b"ARROW1\0\0": "Arrow", b"\xff\xff\xff\xff": "Arrow"}
_ARCHIVES = {
    b"PK\x03\x04": "a zip archive",
    b"BZh91AY&SY": "compressed with bzip2",
    b"\xfd7zXZ\0": "compressed with xz",
    b"7z\xbc\xaf": "a 7z archive",
}


class Opened(NamedTuple):
    """A file as its rows are read from it.

    Attributes:
        stream: UTF-8 text without a byte order mark, or the bytes of Parquet or Arrow.
        head: how the stream begins; still to be read.
        compressed: it is not so on disk.
        recoded: it was not UTF-8.
        mark: bytes of the byte order mark that was left out.
    """

    stream: BinaryIO
    container: str
    head: bytes
    compressed: bool
    recoded: bool
    mark: int


class Plain(NamedTuple):
    """An uncompressed UTF-8 file, or Parquet or Arrow; rows begin at byte `start`."""

    path: Path
    container: str
    head: bytes
    start: int


def open_file(path: Path, shown: str) -> io.FileIO:
    """A data file, open for reading.

    Raises:
        InputInvalid: it is not there, is no file, or cannot be opened.
    """
    try:
        return io.FileIO(path)
    except FileNotFoundError:
        raise InputInvalid("the data file is not there", shown, do="put it there or mend the path") from None
    except OSError as error:
        raise InputInvalid("cannot be read", shown, error.strerror or "", "name a readable file") from None


def empty(shown: str) -> InputInvalid:
    return InputInvalid("the file is empty", f"{shown}:1", "nothing but white space", "put rows into it")


@contextlib.contextmanager
def opened(file: BinaryIO | io.RawIOBase, name: str, encoding: str, shown: str) -> Iterator[Opened]:
    """Look at a file's first bytes, and read on from there.

    Args:
        name: the file's name, for what its suffix says.
        shown: what errors call the file.

    Raises:
        InputInvalid: it is empty, an archive, or another container than its name says. While the stream is
            read: a byte is not of that encoding, or the compressed data is cut off, damaged, or unpacks to
            more than 200 times its size (above 64 MiB).
    """
    buffered = io.BufferedReader(file, PIECE)  # type: ignore[arg-type]
    head = buffered.peek()
    kind = next((kind for magic, kind in _COMPRESSED.items() if head.startswith(magic)), None)
    if kind:
        buffered = io.BufferedReader(_Decompressed(buffered, kind, shown), PIECE)
        head = buffered.peek()
    _refuse_archives(head, shown)
    if binary := next((c for magic, c in _BINARY.items() if head.startswith(magic)), None):
        yield Opened(buffered, _agreed(name, binary, b"", shown), head, kind is not None, False, 0)
        return
    text = _Utf8(buffered, encoding, shown)
    stream = io.BufferedReader(text, PIECE)
    if not (head := stream.peek()):
        raise empty(shown)
    yield Opened(
        stream, _agreed(name, _look(head), head, shown), head, kind is not None, not text.is_utf8, text.mark
    )


def plain(path: Path, spool: Path, encoding: str, sha256: str, shown: str) -> Plain:
    """The file itself where it is plain; else what is in it, unpacked once into `spool`.

    Every byte of a text file is looked at. A killed run finds the unpacked file whole or not at all.

    Raises:
        InputInvalid: as `opened`; or the file unpacks to more than half of the free disk.
    """
    with open_file(path, shown) as file, opened(file, path.name, encoding, shown) as source:
        container, head = source.container, source.head
        if not source.compressed and not source.recoded:
            if container not in COLUMNAR:
                while source.stream.read(PIECE):
                    pass
            return Plain(path, container, head, source.mark)
        target = spool / f"{sha256}-{codecs.lookup(encoding).name}"
        if not target.exists():
            _copy(source.stream, target, shown)
    return Plain(target, container, head, 0)


def _copy(stream: BinaryIO, target: Path, shown: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    room = shutil.disk_usage(target.parent).free // 2
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with open(descriptor, "wb") as out:
            while piece := stream.read(PIECE):
                out.write(piece)
                if out.tell() > room:
                    raise InputInvalid(
                        "the file unpacks to more than half of the free disk",
                        shown,
                        f"{2 * room >> 20} MiB are free at {target.parent}",
                        "free space, then run the same command again",
                    )
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


class _Decompressed(io.RawIOBase):
    """What a gzip or zstd file holds, by Arrow's reader: it alone tells a cut-off zstd stream."""

    def __init__(self, packed: BinaryIO, kind: str, shown: str):
        import pyarrow as pa

        size = packed.seek(0, os.SEEK_END)
        packed.seek(0)
        self._left = self._limit = max(FREE_BYTES, RATIO * size)
        self._stream, self._kind, self._shown = pa.CompressedInputStream(packed, kind), kind, shown

    def readable(self) -> bool:
        return True

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]
        try:
            piece: bytes = self._stream.read(len(into))
        except OSError as error:
            raise InputInvalid(
                f"the {self._kind} data is cut off or damaged",
                self._shown,
                str(error).splitlines()[0][:80],
                "fetch or compress it again",
            ) from None
        self._left -= len(piece)
        if self._left < 0:
            raise InputInvalid(
                "the compressed file unpacks to far more than rows do",
                self._shown,
                f"more than {self._limit >> 20} MiB",
                "if it is sound, unpack it yourself and name the unpacked file",
            )
        into[: len(piece)] = piece
        return len(piece)


class _Utf8(io.RawIOBase):
    """Text in any encoding as UTF-8 without a byte order mark; says where a byte is wrong."""

    def __init__(self, stream: BinaryIO, encoding: str, shown: str):
        self.is_utf8 = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
        self._decoder = codecs.getincrementaldecoder("utf-8" if self.is_utf8 else encoding)()
        self._stream, self._encoding, self._shown = stream, encoding, shown
        self._bytes, self._lines, self._held, self._ended = 0, 0, b"", False
        self.mark = 0

    def readable(self) -> bool:
        return True

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]
        while not self._held and not self._ended:
            raw = self._stream.read(PIECE)
            self._ended, first = not raw, not self._bytes
            self._held = self._recoded(raw)
            if first and self._held.startswith(codecs.BOM_UTF8):
                self._held, self.mark = self._held[3:], 3
        size = min(len(into), len(self._held))
        into[:size] = self._held[:size]
        self._held = self._held[size:]
        return size

    def _recoded(self, raw: bytes) -> bytes:
        try:
            text = self._decoder.decode(raw, self._ended)
        except UnicodeDecodeError as error:
            self._bytes += len(raw)
            offset = self._bytes - len(error.object) + error.start  # the decoder keeps half a character
            kept = len(error.object) - len(raw)
            line = (
                self._lines
                - error.object.count(b"\n", 0, kept)
                + error.object.count(b"\n", 0, error.start)
                + 1
            )
            utf16 = offset == 0 and error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
            raise InputInvalid(
                f"is not {self._encoding}",
                f"{self._shown}:{line}",
                f"byte 0x{error.object[error.start]:02x} at offset {offset}",
                f"save it as UTF-8, or set dataset.encoding (perhaps {'utf-16' if utf16 else 'cp1252'})",
            ) from None
        self._bytes += len(raw)
        self._lines += raw.count(b"\n")
        return raw if self.is_utf8 else text.encode()


def _refuse_archives(head: bytes, shown: str) -> None:
    found = next((what for magic, what in _ARCHIVES.items() if head.startswith(magic)), None)
    if found is None and head[257:262] == b"ustar":
        found = "a tar archive"
    if found:
        raise InputInvalid(
            f"is {found}",
            shown,
            do="unpack it and name its files (gzip and zstd of one file are read as they are)",
        )


def _look(head: bytes) -> str:
    return {b"[": "JSON", b"{": "JSONL"}.get(head.lstrip()[:1], "CSV")


def _agreed(name: str, look: str, head: bytes, shown: str) -> str:
    """The container, where the file's name and its first bytes agree on it."""
    named = _named(name) or look
    if named == "JSON" and look == "JSONL":
        return "JSONL" if _holds_lines(head) else "JSON"
    broken_first_line = named in ("JSONL", "JSON") and b"\n{" in head
    if named == look or (look == "CSV" and (broken_first_line or not head.strip())):
        return named
    if named == "text" and look not in COLUMNAR:
        return named  # prose may begin with a bracket
    raise InputInvalid(
        f"looks like {look} and not like {named} as its name says",
        f"{shown}:1",
        do="rename it, or save it as what its name says",
    )


def _named(name: str) -> str | None:
    bare = re.sub(r"\.(gz|zst|zstd)$", "", name.lower())
    return _SUFFIXES.get(Path(bare).suffix)


def _holds_lines(head: bytes) -> bool:
    """Whether a file that begins with an object has an object a line, and is not one object."""
    first, end, _ = head.lstrip().partition(b"\n")
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return not end  # the first line is longer than what was looked at
    return True
