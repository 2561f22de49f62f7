"""Raw files to rows: the same whatever the shards are, and a clear word for what cannot be read."""

import csv
import gzip
import io
import json
import pickle
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftaas_pipelines.data.raw import containers, json_list, pieces, readers, shards
from ftaas_pipelines.data.raw.readers import Row
from ftaas_pipelines.errors import InputInvalid, Problem
from ftaas_pipelines.store import file_digest

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WHOLE = 2**40
JSONL = b'{"a": 1}\n{"a": "\xc3\xa9"}\n'


def cut(path: Path, size: int = WHOLE, encoding: str = "utf-8") -> list[shards.Shard]:
    sha256 = file_digest(path) if path.is_file() else ""
    return shards.cut(path, path.parent / "spool", encoding, "main", sha256, path.name, size)


def read(path: Path, size: int = WHOLE, encoding: str = "utf-8") -> list[Row | Problem]:
    return [row for shard in cut(path, size, encoding) for row in shards.rows(shard)]


def put(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def values(found: list[Row | Problem]) -> list[Any]:
    return [row.value if isinstance(row, Row) else str(row) for row in found]


def refusal(path: Path, encoding: str = "utf-8", size: int = WHOLE) -> str:
    with pytest.raises(InputInvalid) as caught:
        read(path, size, encoding)
    return str(caught.value)


def check_size_is_nothing(path: Path, size: int) -> list[Row | Problem]:
    """The same rows and problems from one shard, from shards in any order, from any reads, from `look`."""
    whole, parts = read(path), cut(path, size)
    with mock.patch.object(json_list, "PIECE", 3):
        assert cut(path, size) == parts
        by_part = {shard.start: list(shards.rows(shard)) for shard in reversed(parts)}
    assert [row for start in sorted(by_part) for row in by_part[start]] == whole
    assert all(by_part.values()), "no shard is empty"
    looked = readers.look(path)
    assert looked.rows == [row for row in whole[: readers.LOOKED_AT] if isinstance(row, Row)]
    assert readers.read(path, path.read_bytes()).rows == [row for row in whole if isinstance(row, Row)]
    return whole


# -- the same rows whatever the shards are -------------------------------------------------------------

TEXT = st.text(st.sampled_from("ab\"'\\,;\t\n\r[]{}: é\u2028\U0001f600"), max_size=40) | st.text(max_size=20)
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.lists(st.dictionaries(TEXT, VALUE, max_size=4), min_size=1, max_size=30)
SIZES = st.integers(64, 2000)


def encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@FEW
@given(
    objects=OBJECTS.filter(encodable), size=SIZES, escaped=st.booleans(), end=st.sampled_from(["\n", "\r\n"])
)
def test_jsonl_and_json_give_what_was_written(
    tmp_path: Path, objects: list[dict[str, Any]], size: int, escaped: bool, end: str
) -> None:
    lines = [json.dumps(value, ensure_ascii=escaped) for value in objects]
    path = put(tmp_path, "a.jsonl", ("\ufeff" + (end * 2).join(lines)).encode())
    found = check_size_is_nothing(path, size)
    assert found == [Row(2 * i + 1, value) for i, value in enumerate(objects)]
    path = put(tmp_path, "a.json", f" [{end}{(',' + end).join(lines)}{end}] ".encode())
    found = check_size_is_nothing(path, size)
    assert found == [Row(i + 2, value) for i, value in enumerate(objects)]
    path = put(tmp_path, "b.json", json.dumps(objects, indent=1, ensure_ascii=escaped).encode())
    assert values(check_size_is_nothing(path, size)) == objects


@FEW
@given(
    cells=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=30),
    size=SIZES,
    end=st.sampled_from(["\n", "\r\n"]),
    sign=st.sampled_from(",;\t"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_csv_gives_what_was_written(
    tmp_path: Path, cells: list[tuple[str, str]], size: int, end: str, sign: str, quoting: Any
) -> None:
    lost = str.maketrans("", "", "\0" if quoting == csv.QUOTE_ALL else "\0\r")  # the writer leaves CR bare
    cells = [(a.translate(lost), b.translate(lost)) for a, b in cells]
    if not encodable(cells):
        return
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=sign, lineterminator=end, quoting=quoting)
    writer.writerows([("one", "two"), *cells])
    path = put(tmp_path, "a.csv", ("\ufeff" + out.getvalue()).encode())
    found = check_size_is_nothing(path, size)
    assert values(found) == [{"one": a, "two": b} for a, b in cells]
    ends = [(a + b).count("\n") + 1 for a, b in cells]
    assert [row.line for row in found if isinstance(row, Row)] == [
        2 + sum(ends[:i]) for i in range(len(ends))
    ]


@FEW
@given(
    data=st.lists(st.sampled_from([*'",;\n\r[]{}:\\ ', '{"a": 1}', '"x"', "\0", "é", "\n\n"]), max_size=60),
    name=st.sampled_from(["a.csv", "a.jsonl", "a.json", "a.txt"]),
    size=st.integers(1, 40),
)
def test_whatever_the_bytes_are_the_size_of_shards_is_nothing(
    tmp_path: Path, data: list[str], name: str, size: int
) -> None:
    start = {"a.csv": "a,b\n", "a.json": "[", "a.jsonl": '{"a": 1}\n'}.get(name, "")
    end = "]" if name == "a.json" else ""
    path = put(tmp_path, name, (start + "".join(data) + end).encode())
    try:
        cut(path)
    except InputInvalid:
        return
    check_size_is_nothing(path, size)


def test_text_is_a_row_a_document(tmp_path: Path) -> None:
    path = put(tmp_path, "a.txt", b"\n\n[one\n  two\r\n\r\n \nthree\n\n\n{four}")
    found = check_size_is_nothing(path, 1)
    assert found == [Row(3, {"text": "[one\n  two"}), Row(7, {"text": "three"}), Row(10, {"text": "{four}"})]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather", "b.arrow"])
def test_parquet_and_arrow_are_cut_by_groups_and_inside_large_ones(tmp_path: Path, name: str) -> None:
    table = pa.table({"text": [f"row {i} " + "x" * 100 for i in range(5000)], "n": range(5000)})
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(table, path, row_group_size=700)
    else:
        new = pa.ipc.new_stream if name == "b.arrow" else pa.ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=700)
    for size in (20_000, 100_000, 200_000, WHOLE):
        found = check_size_is_nothing(path, size)
        assert found == [Row(i, row) for i, row in enumerate(table.to_pylist(), 1)]
        assert (len(cut(path, size)) == 1) == (size == WHOLE)
    assert cut(path)[0].columns == ("text", "n")
    assert "is not a whole" in refusal(put(tmp_path, f"torn-{name}", path.read_bytes()[:20_000]))


def test_a_shard_is_plain_data(tmp_path: Path) -> None:
    shard = cut(put(tmp_path, "a.csv", b"a;b\n1;2\n"))[0]
    assert pickle.loads(pickle.dumps(shard)) == shard
    assert list(shards.rows(shards.Shard(**json.loads(json.dumps(asdict(shard)))))) == [
        Row(2, {"a": "1", "b": "2"})
    ]


# -- rows that cannot be read, one problem each ----------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.csv", b"a,b\n,2\n1,2,3\n1\n", [{"a": "", "b": "2"}, "a.csv:3: the row has more", {"a": "1"}]),
        ("a.csv", b'a,b\n1,"\0\n"\n3,4\n', ["a.csv:2: the row holds a NUL byte", {"a": "3", "b": "4"}]),
        ("a.csv", b'a\n"1\n2\n3\n', ["a.csv:2: is not CSV: unexpected end of data", {"a": "2"}, {"a": "3"}]),
        ("a.csv", b'a\n5" wide\n"5"" w"\n"5" w\n', [{"a": '5" wide'}, {"a": '5" w'}, "a.csv:4: is not CSV"]),
        ("a.csv", b"a\n1\r2\n3\n", ["a.csv:2: is not CSV: new-line character", {"a": "3"}]),
        ("a.jsonl", b'{"a": "\\u0000"}\n{"a": "\0"}\n', [{"a": "\0"}, "a.jsonl:2: broken JSON: Invalid"]),
        ("a.jsonl", b'{}\n["Ann"]\n"Ann"\n', [{}, "a list)", "a.jsonl:3: the row is not an object (got"]),
        ("a.jsonl", b'{"a": 1}\n{"a": "Ann\n', [{"a": 1}, "a.jsonl:2: broken JSON: Unterminated"]),
        ("a.jsonl", b'{"a": NaN}\n{"a": "\\ud800"}\n\xc2\xa0\n', ["nan", {"a": "\ud800"}, "a.jsonl:3: b"]),
        ("a.jsonl", b'{"a": %d}\n' % 10**25, [{"a": 10**25}]),
        ("a.json", b'[{"a": 1},\n{"a" Ann},\n{}]', [{"a": 1}, "a.json:2: broken JSON: Expecting ':'", {}]),
        ("a.json", b'[{"a": 1]}, {"a": "\\x"}, 3, {}]', ["a.json:1", "Invalid \\escape", "(got a num", {}]),
        ("a.json", b'[{"a": 1},\n,\n]', [{"a": 1}, "a.json:2: broken JSON: there is a comma and no row"]),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_read_is_a_problem_and_reading_goes_on(
    tmp_path: Path, name: str, data: bytes, said: list[Any]
) -> None:
    path = put(tmp_path, name, data)
    found = values(read(path) if b"NaN" in data else check_size_is_nothing(path, 1))  # NaN equals nothing
    assert len(found) == len(said)
    for got, expected in zip(found, said, strict=True):
        assert expected in str(got) if isinstance(expected, str) else got == expected
        assert "Ann" not in str(got)


def test_a_row_too_long_is_a_problem_in_every_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (pieces, json_list):
        monkeypatch.setattr(module, "LIMIT", 1000)
    big = "x" * 3000
    texts = {
        "a.jsonl": f'{{"a": 1}}\n{{"a": "{big}"}}\n{{"a": 3}}',
        "a.json": f'[{{"a": 1}},\n{{"a": "{big},]"}},\n{{"a": 3}}]',
        "a.csv": f'a\n{{"a": 1}}\n{big}\n3\n"{big}\n',
        "a.txt": f"one\n\n{big}\n{big}\n\nthree",
    }
    for name, data in texts.items():
        found = check_size_is_nothing(put(tmp_path, name, data.encode()), 100)
        assert [isinstance(row, Problem) for row in found[:3]] == [False, True, False], name
        assert "the row is longer than" in str(found[1])
        assert len(found) == (4 if name == "a.csv" else 3)


@pytest.mark.parametrize("name", ["one.jsonl", "one.json", "one.csv", "one.txt"])
def test_a_line_of_200_mb_is_passed_over_in_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    begin, end = {
        "one.jsonl": ('{"a": 1}\n{"a": "', '"}\n{"a": 3}\n'),
        "one.json": ('[{"a": 1},\n{"a": "', '"},\n{"a": 3}]'),
        "one.csv": ('a,b\n1,1\n2,"', '"\n3,3\n'),
        "one.txt": ("one\n\n", "\n\nthree"),
    }[name]
    with path.open("wb") as out:
        out.write(begin.encode())
        for _ in range(200):
            out.write(b"x" * 2**20)
        out.write(end.encode())
    program = f"""
from pathlib import Path
from ftaas_pipelines.data.raw import shards
path = Path({str(path)!r})
parts = shards.cut(path, path.parent, "utf-8", "main", "0" * 64, path.name)
found = [row for part in parts for row in shards.rows(part)]
print([getattr(row, "what", "row") for row in found])
# ru_maxrss would count the process that started this one; VmHWM is this program's alone.
print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024)
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100
    )
    said, peak_mib = run.stdout.splitlines()
    assert said == "['row', 'the row is longer than 64 MiB', 'row']"
    assert int(peak_mib) < 300
    path.unlink()


# -- compression and encodings -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.jsonl.zstd", "a.jsonl"])
def test_compressed_files_are_unpacked_once(tmp_path: Path, name: str) -> None:
    packed = gzip.compress(JSONL) + gzip.compress(JSONL)
    if "zst" in name:
        packed = zstandard.compress(JSONL) * 2
    path = put(tmp_path, name, packed)
    assert values(check_size_is_nothing(path, 1)) == [{"a": 1}, {"a": "é"}] * 2
    (unpacked,) = (tmp_path / "spool").iterdir()
    before = unpacked.stat().st_mtime_ns
    assert cut(path)[0].path == str(unpacked)
    assert unpacked.stat().st_mtime_ns == before
    for torn in (packed[:-1], packed[: len(packed) // 4], packed[:5]):
        kind = "zstd" if "zst" in name else "gzip"
        said = refusal(put(tmp_path / "spool", name, torn))
        assert said.startswith(f"{name}: the {kind} data is cut off or damaged (got Truncated")


def test_a_compressed_parquet_file_is_read_like_any_other(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1, 2]}), tmp_path / "a.parquet")
    path = put(tmp_path, "a.parquet.gz", gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert check_size_is_nothing(path, 1) == [Row(1, {"a": 1}), Row(2, {"a": 2})]


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_a_zip_bomb_is_refused_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"bomb.jsonl.{kind}"
    level = gzip.open(path, "wb", 1) if kind == "gz" else zstandard.open(path, "wb")
    with level as out:
        for _ in range(80):
            out.write(b" " * 2**20)
    assert "the compressed file unpacks to far more than rows do (got more than 6" in refusal(path)
    assert not list((tmp_path / "spool").iterdir())


def test_unpacking_leaves_half_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers.shutil, "disk_usage", lambda _: SimpleNamespace(free=20))
    assert "more than half of the free disk" in refusal(put(tmp_path, "a.jsonl.gz", gzip.compress(JSONL)))


def test_encodings(tmp_path: Path) -> None:
    text = 'a,b\n1,"é\n"\n2,x\n'
    expected = [Row(2, {"a": "1", "b": "é\n"}), Row(4, {"a": "2", "b": "x"})]
    for encoding in ("utf-16", "utf-16-le", "cp1252", "utf-8-sig"):
        path = put(tmp_path, f"{encoding}.csv", text.encode(encoding))
        assert read(path, 1, encoding) == expected
        assert readers.look(path, encoding).rows == expected
    said = refusal(tmp_path / "utf-16.csv")
    assert said.startswith("utf-16.csv:1: is not utf-8 (got byte 0xff at offset 0)")
    assert "set dataset.encoding (perhaps utf-16)" in said
    said = refusal(tmp_path / "cp1252.csv")
    assert (
        said.startswith("cp1252.csv:2: is not utf-8 (got byte 0xe9 at offset 7)") and "perhaps cp1252" in said
    )
    deep = put(tmp_path, "deep.jsonl", JSONL * 10_000 + b"\xff\n")
    assert f"deep.jsonl:20001: is not utf-8 (got byte 0xff at offset {10_000 * len(JSONL)})" in refusal(deep)
    assert len(readers.look(deep).rows) == readers.LOOKED_AT, "the beginning is sound"
    for encoding in ("utf-8", "utf-16", "shift-jis"):
        long = put(tmp_path, f"long-{encoding}.txt", ("x" + "語\n\n" * 60_000).encode(encoding))
        assert values(read(long, 50_000, encoding)) == [{"text": "x語"}] + [{"text": "語"}] * 59_999
    half = put(tmp_path, "half.csv", text.encode("utf-16")[:-1])
    assert "half.csv:4: is not utf-16" in refusal(half, "utf-16")
    gone = put(tmp_path, "gone.csv.gz", gzip.compress(text.encode("cp1252")))
    assert read(gone, 1, "cp1252") == expected


# -- whole files that are refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.csv", b"", "a.csv:1: the file is empty"),
        ("a.jsonl", b"\n \r\n\n", "a.jsonl:1: the file is empty"),
        ("a.csv", b"\n\n", "a.csv:1: the file is empty"),
        ("a.txt", b"\xef\xbb\xbf\n", "a.txt:1: the file is empty"),
        ("a.csv.gz", gzip.compress(b"", mtime=0), "a.csv.gz:1: the file is empty"),
        ("a.csv", b"a,b\n\n", "a.csv:1: the file holds no rows (got CSV without a row)"),
        ("a.json", b"[ ]", "a.json:1: the file holds no rows (got JSON without a row)"),
        ("a.csv", b"a,a\n1,2\n", "a.csv:1: the column 'a' stands twice"),
        ("a.csv", b'"a\n1,2\n', "a.csv:1: is not CSV: unexpected end of data"),
        ("a.json", b'[{"a": 1},\n{"a": "x},\n{"a": 3}]', "a.json:2: broken JSON: the list does not end"),
        ("a.json", b'[{"a": 1},\n{"a": 2}', "a.json:2: broken JSON: the list does not end"),
        ("a.json", b'[{"a": 1}]\n[', "a.json:1: broken JSON: there is more after the list's end"),
        ("a.json", b'{"rows": [\n{"a": 1}\n]}', "a.json:1: holds one object where a list"),
        ("a.csv", b'{"a": 1}\n', "a.csv:1: looks like JSONL and not like CSV"),
        ("a.jsonl", b'PK\x03\x04....', "a.jsonl: is a zip archive; unpack it"),
        ("a.tar.gz", gzip.compress(b"a".ljust(257, b"\0") + b"ustar\0", mtime=0), "a.tar.gz: is a tar arch"),
        ("a.parquet", b"PAR1 and no more", "a.parquet:1: is not a whole Parquet file"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_told_into_rows_is_refused(
    tmp_path: Path, name: str, data: bytes, said: str
) -> None:
    assert refusal(put(tmp_path, name, data)).startswith(said)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert "the data file is not there" in refusal(tmp_path / "a.csv")
    assert "cannot be read" in refusal(tmp_path)


def test_json_by_another_name(tmp_path: Path) -> None:
    assert values(read(put(tmp_path, "lines.json", JSONL))) == [{"a": 1}, {"a": "é"}]
    assert values(read(put(tmp_path, "rows", b'[{"a": 1}]'))) == [{"a": 1}]
    broken = put(tmp_path, "broken.jsonl", b'"a": 1}\n{"a": 2}\n')
    assert values(read(broken))[1] == {"a": 2}
