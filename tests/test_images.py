"""Images in messages: hashed, kept once, told by their bytes alone; what cannot be read is said."""

import base64
import gzip
import hashlib
import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from preparing import make_dataset, write

from ftaas_pipelines.data import tables
from ftaas_pipelines.data.rows import images
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects.dataset import Quality
from ftaas_pipelines.store import Artifact, Store

FEW = Quality(min_records=1, max_dropped_share=1).model_dump()
URL = "https://example.com/pump.png"


def png(shade: int) -> bytes:
    """A picture of one grey pixel."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes([0, shade]))) + chunk(b"IEND", b"")
    )


def asked(number: int, *shown: Any) -> dict[str, Any]:
    """A row that shows images, each by path, URL or data URI."""
    parts = [{"type": "image_url", "image_url": {"url": ref}} for ref in shown]
    question = {"role": "user", "content": [{"type": "text", "text": f"Which part {number} is it?"}, *parts]}
    return {"messages": [question, {"role": "assistant", "content": f"Part {number} of the pump."}]}


def data_uri(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def put(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """Three pictures (two of them alike) and the rows that show them."""
    (folder / "pictures").mkdir(parents=True)
    for name, shade in (("a", 1), ("b", 2), ("same", 1)):
        (folder / "pictures" / f"{name}.png").write_bytes(png(shade))
    a, b, same = (f"pictures/{name}.png" for name in ("a", "b", "same"))
    rows = rows or [asked(0, a), asked(1, b), asked(2, same), asked(3, a, b), asked(4, URL), asked(5)]
    return write(folder / "rows.jsonl", [*rows, asked(6, data_uri(png(1))), asked(7, data_uri(png(3)))])


def make(root: Path, file: Path, **more: Any) -> Artifact:
    return make_dataset(Store(root), {"main": file}, quality=FEW, **more)


def shown(made: Artifact) -> dict[str, list[dict[str, Any]]]:
    rows = tables.read(made.file("records"), ["answer", "messages"]).to_pylist()
    found = {r["answer"]: json.loads(r["messages"] or "[{}]")[0].get("images", []) for r in rows}
    return dict(sorted(found.items()))


def stored(made: Artifact) -> set[str]:
    return {path.name for path in made.file("images").glob("*")}


def test_images_are_kept_once_and_named_by_their_bytes(tmp_path: Path) -> None:
    made = make(tmp_path / "store", put(tmp_path / "here"))
    one, two, three = (hashlib.sha256(png(shade)).hexdigest() for shade in (1, 2, 3))
    refs = [[image["ref"].removeprefix("images/") for image in found] for found in shown(made).values()]
    assert refs == [[one], [two], [one], [one, two], [URL], [], [one], [three]]
    assert shown(made)["Part 4 of the pump."] == [{"ref": URL, "sha256": None}]
    assert made.content["images"] == {"stored": 7, "not_checked": 1}
    assert stored(made) == {one, two, three} and made.file(f"images/{two}").read_bytes() == png(2)
    assert not list(made.problems())
    assert str(tmp_path) not in json.dumps(shown(made)) + json.dumps(made.manifest)


def test_neither_the_folder_nor_a_files_name_nor_compression_makes_another_dataset(tmp_path: Path) -> None:
    file = put(tmp_path / "here")
    first = make(tmp_path / "a", file)
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert make(tmp_path / "b", tmp_path / "there" / "rows.jsonl").digest == first.digest
    packed = tmp_path / "there" / "rows.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "there" / "rows.jsonl").read_bytes()))
    assert make(tmp_path / "c", packed).digest == first.digest, "spooled: its images lie beside the raw file"
    renamed = (tmp_path / "there" / "rows.jsonl").read_text("utf-8").replace("same.png", "other.png")
    (tmp_path / "there" / "rows.jsonl").write_text(renamed, "utf-8")
    (tmp_path / "there" / "pictures" / "same.png").rename(tmp_path / "there" / "pictures" / "other.png")
    assert make(tmp_path / "d", tmp_path / "there" / "rows.jsonl").digest == first.digest


def test_other_bytes_under_the_same_name_are_another_record(tmp_path: Path) -> None:
    """Two sources of equal rows whose pictures differ: nothing is a duplicate."""
    row = [asked(0, "pictures/a.png")]
    files = [put(tmp_path / name, row) for name in ("left", "right")]
    (tmp_path / "right" / "pictures" / "a.png").write_bytes(png(9))
    made = make_dataset(Store(tmp_path / "s"), dict(zip("lr", files, strict=True)), quality=FEW)
    assert made.content["records"] == 4 and made.content["dropped"] == {"duplicate": 2}


def test_the_images_of_dropped_rows_are_not_kept(tmp_path: Path) -> None:
    long = asked(1, "pictures/b.png")
    long["messages"][1]["content"] *= 3
    file = put(tmp_path / "here", [asked(0, "pictures/a.png"), long])
    made = make(tmp_path / "s", file, cleaning={"max_characters": 24})
    assert made.content["dropped"] == {"too_long": 1}
    assert stored(made) == {hashlib.sha256(png(shade)).hexdigest() for shade in (1, 3)}


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("pictures/gone.png", "image of message 1 is not there"),
        ("pictures", "is not there"),
        ("pictures/a\0.png", "is not there"),
        ("a" * 5000, "is not there"),
        ("pictures/loop", "is not there"),
        ("../secret.png", "lies outside the data file's folder"),
        ("pictures/link.png", "lies outside the data file's folder"),
        ("/etc/hostname", "lies outside the data file's folder"),
        ("pictures/large.png", "is too large"),
        ({"url": "pictures/a.png", "sha256": "0" * 64}, "another sha256 than the row says"),
    ],
)
def test_an_image_that_cannot_be_had_is_a_fault_of_its_row(tmp_path: Path, ref: Any, said: str) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "Which?", "images": [ref]},
            {"role": "assistant", "content": "x"},
        ]
    }
    file = put(tmp_path / "here", [asked(0, "pictures/a.png"), row])
    (tmp_path / "secret.png").write_bytes(png(5))
    (tmp_path / "here" / "pictures" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "here" / "pictures" / "loop").symlink_to("loop")
    with (tmp_path / "here" / "pictures" / "large.png").open("wb") as large:
        large.truncate(images.LIMIT + 1)
    with pytest.raises(InputInvalid, match=f"rows.jsonl:2: .*{said}") as refused:
        make(tmp_path / "s", file)
    assert "png" not in str(refused.value), "a path may name a person"
    made = make(tmp_path / "s", file, bad_rows="quarantine")
    assert made.content["dropped"] == {"bad_row": 1} and made.content["records"] == 3
    assert hashlib.sha256(png(5)).hexdigest() not in stored(made)
