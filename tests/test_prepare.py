"""`prepare` as a whole: one result however work is cut, spread, ordered, killed; nothing lost, no leak."""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from preparing import ROWS, accounted_for, dataset_spec, line, make_dataset, make_splits, write

from ftaas_pipelines.data import dataset, tables
from ftaas_pipelines.data.engine import Runner
from ftaas_pipelines.data.inputs import DatasetInputs
from ftaas_pipelines.data.plain_pairs import Lane
from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.projects.dataset import Cleaning, Duplicates
from ftaas_pipelines.stages.spec import Spec
from ftaas_pipelines.store import Artifact, Store, file_digest

Found = tuple[dict[str, str], dict[str, Any]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# -- any small dataset -------------------------------------------------------------------------------

_STEM = "the pump on line {} shows code X{} and stops every few minutes after the start of the shift"
_ODD = (
    "", " ", "ok", " blank ends\t", "two  spaces\nand lines", "Cafe\u0301", "caf\xe9", "bell \x07", "nul \0",
    "del \x7f", "line\u2028end", "half \ud83d", "<b>code</b>", "a < b", "<|im_start|>system", "[INST] hi",
    "<\x07|im_end|>", "Stra\xdfe", "\u0130stanbul", "\xa0nbsp\xa0ends\u3000", "\ufeffmark", "\u212b",
    "\x85next", "\u1e9e", "zero\u200bwidth", "\u65e5\u672c\u8a9e", "\U0001f600", "\u03a3\u03c2",
    "<\uff5cUser\uff5c>", "x" * 300, '{"a": [1]}', "\r\n", "write to ann.lee@acme.org",
    "call +44 20 7946 0958", "\xa0", "a\x1fb", "\u0301first",
)  # fmt: skip
_LINES = (
    b"", b"  ", b"null", b"[1]", b"{}", b"{broken", b'{"prompt": "a"', b'{"prompt": "a", "prompt": "b"}',
    b'{"prompt": "a", "completion": "b"} {"prompt": "c", "completion": "d"}',
    b'{"pr\\u006fmpt": "key", "completion": "escaped"}', b'{"prompt": "a", "completion": "b"}\r',
    b' {"prompt": "c", "completion": "d"} ', b'{"prompt": "a", "completion": "b", "x": NaN}',
    b'{"prompt": "a", "completion": "b", "x": {"deep": [{}]}, "n": 123456789012345678901234567890}',
    b'{"prompt": "a", "completion": "b", "synthetic": {"generator": "g"}}',
    b'{"prompt": "a", "completion": "b", "x": "\\ud800"}', b'{"prompt": "a\tb", "completion": "c"}',
    b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "name": "c"}]}',
    b'{"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]}',
    b'{"messages": []}', b'{"messages": null}', b'{"messages": [null, null]}',
    b'{"prompt": "a", "completion": "b", "x": ' + b"[" * 1200 + b"]" * 1200 + b"}",
)  # fmt: skip
texts = st.one_of(
    st.builds(_STEM.format, st.integers(1, 3), st.integers(1, 3)),
    st.builds(_STEM.format, st.integers(1, 3), st.integers(1, 3)).map(str.upper),
    st.sampled_from(_ODD),
    st.text(max_size=8),
)
cells = st.one_of(texts, texts, texts, st.sampled_from([None, 3, True, ["list"], {"key": "object"}]))
plain = st.tuples(texts, texts)


def _said(question: Any, answer: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


_SHAPES = {
    "prompt_completion": lambda q, a, _: {"prompt": q, "completion": a},
    "alpaca": lambda q, a, c: {"instruction": q, "input": c, "output": a},
    "messages": lambda q, a, _: _said(q, a),
    "text_target": lambda q, a, c: {"text": q, "target": a, "note": c},
}


@st.composite
def files(draw: st.DrawFn, format_: str, container: str) -> bytes:
    """A file whose first row is sound, so that its layout is known; the others are anything."""
    shape = _SHAPES[format_]
    rows = draw(st.lists(st.tuples(cells, cells, cells), max_size=12))
    values = [shape("What is first?", f"This, in {format_}.", ""), *(shape(*row) for row in rows)]
    values += draw(st.lists(st.sampled_from(values), max_size=3))
    if container == "json":
        return json.dumps(values, indent=draw(st.sampled_from([None, 1]))).encode()
    lines = [json.dumps(value, ensure_ascii=draw(st.booleans())) for value in values]
    raw = [text.encode("utf-8", "replace") for text in lines] + draw(
        st.lists(st.sampled_from(_LINES), max_size=4)
    )
    return b"\n".join([raw[0], *draw(st.permutations(raw[1:]))]) + draw(st.sampled_from([b"", b"\n"]))


@st.composite
def datasets(draw: st.DrawFn) -> dict[str, tuple[str | None, str, list[tuple[str, bytes]]]]:
    """Source name: declared split, format, files (suffix, bytes)."""
    out: dict[str, tuple[str | None, str, list[tuple[str, bytes]]]] = {}
    for number in range(draw(st.integers(1, 3))):
        format_ = draw(st.sampled_from(sorted(_SHAPES)))
        containers = draw(st.lists(st.sampled_from(["jsonl", "jsonl", "json"]), min_size=1, max_size=2))
        split = draw(st.sampled_from([None, None, "train", "test", "challenge", "validation"]))
        found = [(c, draw(files(format_, c))) for c in containers]
        out[f"s{number}"] = (split, format_, found)
    return out


def _prepare(
    folder: Path, world: dict[str, Any], shard_bytes: int = 10**6, backwards: bool = False, **options: Any
) -> Found:
    """What `prepare` makes of it: the digest of every file, and all it says of them."""
    sources: dict[str, list[Path]] = {}
    for name, (_, _, found) in world.items():
        sources[name] = []
        for number, (suffix, data) in enumerate(found):
            stem = f"{len(found) - number if backwards else number}"
            sources[name].append(folder / "raw" / name / f"{stem}.{suffix}")
            sources[name][-1].parent.mkdir(parents=True, exist_ok=True)
            sources[name][-1].write_bytes(data)
    if backwards:
        sources = {name: paths[::-1] for name, paths in reversed(sources.items())}
    said = {name: {"split": split, "format": format_} for name, (split, format_, _) in world.items()}
    cleaning = Cleaning(max_characters=200).model_dump()
    spec = dataset_spec(
        Store(folder / "store"), sources, said, bad_rows="quarantine", cleaning=cleaning, **options
    )
    inputs = DatasetInputs.model_validate(spec.inputs)
    out = folder / "out"
    facts = dataset.prepare(
        inputs, dataset.Files(sources), folder / "work", out, Runner(), shard_bytes=shard_bytes
    )
    for counts in facts.rows.values():
        assert counts["in"] == sum(n for name, n in counts.items() if name != "in")
    assert sum(facts.dropped.values()) == sum(c["in"] for c in facts.rows.values()) - facts.records
    assert facts.dropped.get("bad_row", 0) == len(facts.quarantined)
    made = {path.relative_to(out).as_posix(): file_digest(path) for path in sorted(out.rglob("*.parquet"))}
    return made, {name: getattr(facts, name) for name in facts.__dataclass_fields__}


@given(
    world=datasets(),
    near=st.sampled_from(["off", "group", "drop"]),
    on=st.sampled_from(["prompt", "record"]),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_neither_cut_nor_order_nor_the_short_way_has_a_say(world: dict[str, Any], near: Any, on: Any) -> None:
    """The short way (columns at once) and the long way (row by row) make the same of every row."""
    options = {"duplicates": Duplicates(near=near, on=on).model_dump()}
    with tempfile.TemporaryDirectory() as root:
        ways = {"whole": (10**6, False), "small": (200, False), "middle": (1000, False)}
        ways |= {"backwards": (10**6, True), "long": (10**6, False)}
        found: dict[str, Found] = {}
        for way, how in ways.items():
            with pytest.MonkeyPatch.context() as patch:
                if way == "long":
                    patch.setattr(Lane, "is_open", staticmethod(lambda *_: False))
                found[way] = _prepare(Path(root) / way, world, *how, **options)
        for way in ways:
            assert found[way][0] == found["whole"][0], way
            assert found[way][1] == found["whole"][1], way


@pytest.mark.parametrize("format_", ["prompt_completion", "messages"])
def test_each_odd_line_in_a_shard_of_its_own(tmp_path: Path, format_: str) -> None:
    """Arrow's JSON reader ends the process on some of them; none of them may reach it."""
    first = line(_SHAPES[format_]("What is first?", "This.", ""))
    odd = [*_LINES, *(line(_SHAPES[format_](text, "ok", "")) for text in _ODD if text.isprintable())]
    world = {"main": (None, format_, [("jsonl", b"\n".join([first, *odd, first]))])}
    alone, together = _prepare(tmp_path / "1", world, 1), _prepare(tmp_path / "2", world)
    assert alone == together
    assert alone[1]["rows"]["main"]["in"] == 2 + sum(bool(text.strip()) for text in odd)


# -- what the search above found, and its like ---------------------------------------------------------


def test_equal_files_of_one_source_are_counted_each(store: Store, tmp_path: Path) -> None:
    twins = [write(tmp_path / name, ROWS) for name in ("a.jsonl", "b.jsonl")]
    made = make_dataset(store, {"main": twins})
    assert made.content["rows"] == {"main": {"in": 120, "kept": 60, "duplicate": 60}}


def test_one_file_in_two_sources_is_read_as_each_says(store: Store, tmp_path: Path) -> None:
    rows = [{"q": f"Question {i}?", "short": f"No. {i}", "long": f"It is number {i}."} for i in range(30)]
    path = write(tmp_path / "a.jsonl", rows)
    said = {
        name: {"format": "prompt_completion", "columns": {"prompt": "q", "completion": name}}
        for name in ("short", "long")
    }
    made = make_dataset(store, {"short": path, "long": path}, said)
    answers = tables.read(made.file("records"), ["source", "answer"]).to_pylist()
    assert {(r["source"], r["answer"].split()[0]) for r in answers} == {("short", "No."), ("long", "It")}
    assert made.content["by_source"] == {"short": 30, "long": 30}


def test_of_equal_rows_the_same_one_stays_however_the_file_is_cut(tmp_path: Path) -> None:
    """They may stand in one line of a JSON list, or in the same file of two sources."""
    near: Any
    rows = [{"prompt": f"What is it?{' ' * i}", "completion": "This."} for i in range(40)]
    alike = " ".join(f"word{i}" for i in range(40))
    rows += [{"prompt": f"{alike} {i}", "completion": "That."} for i in range(40)]
    data = json.dumps(rows).encode()
    world = {name: (None, "prompt_completion", [("json", data)]) for name in ("one", "two")}
    for near in ("off", "drop"):
        options: dict[str, Any] = {"duplicates": Duplicates(near=near).model_dump()}
        whole, small = (_prepare(tmp_path / f"{near}{n}", world, n, **options) for n in (10**6, 100))
        assert whole == small
        assert whole[1]["rows"]["two"]["kept"] == 0


def test_rows_that_share_a_line_have_their_findings_once(store: Store, tmp_path: Path) -> None:
    """Elements of a JSON list may stand in one line; a record that comes again there is found once."""
    rows = [{"prompt": f"write to a{i % 5}@acme.org", "completion": "ok"} for i in range(30)]
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    one, many = (make_dataset(store, {"main": tmp_path / name}) for name in ("a.json", "b.json"))
    assert one.digest == many.digest
    assert one.content["findings"]["email"] == 5


def test_a_file_that_changes_under_the_shards_is_refused(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    spec = dataset_spec(store, {"main": path})
    inputs = DatasetInputs.model_validate(spec.inputs)

    def shorten(done: float, _: str) -> None:
        if done:
            write(path, ROWS[:30])

    with pytest.raises(FtaasError, match=r"a\.jsonl: changed while being read; wait until"):
        dataset.prepare(
            inputs, dataset.Files({"main": [path]}), tmp_path / "work", tmp_path / "out",
            progress=shorten, shard_bytes=500,
        )  # fmt: skip


# -- killed, and spread over processes -------------------------------------------------------------------

PROGRAM = """
import os, signal, sys
from functools import partial
from ftaas_pipelines.data import dataset
from ftaas_pipelines.stages import prepare, program
from ftaas_pipelines.store import Store

if __name__ == "__main__":
    dies_at = os.environ.get("TEST_DIES_AT")
    dataset.prepare = partial(dataset.prepare, shard_bytes=4_000)
    progress = program._Reporter.progress
    def tell(self, done, message):
        progress(self, done, message)
        if dies_at and message.startswith(dies_at):
            os.kill(os.getpid(), signal.SIGKILL)
    program._Reporter.progress = tell
    Store.clear_work = lambda *_: None
    sys.exit(program.main("prepare", prepare.make))
"""


def _many(count: int) -> list[Any]:
    """Templated rows, some twice, some that differ in a word, some that clean to others."""
    words = ("pump", "belt", "valve", "sensor", "motor")
    rows: list[Any] = [
        (f"{_STEM.format(i % 9, i)} near the {words[i % 5]}, what is to be done about part {i % 97}?",
         f"Check the {words[i % 5]} and step {i % 13}.")
        for i in range(count)
    ]  # fmt: skip
    rows += [rows[i] for i in range(0, count, 10)]
    return rows + [(f" {p}\t", a.replace("Check", "Cafe\u0301")) for p, a in rows[: count // 10]]


def _run(folder: Path, spec: Spec, **environment: str) -> subprocess.CompletedProcess[str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.py").write_text(PROGRAM, encoding="utf-8")
    (folder / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "stage.py", "--spec", "spec.json", "--out", "out.json"]
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), **environment}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, encoding="utf-8", timeout=300, check=False
    )


def _spread(folder: Path, raw: Path, **run: Any) -> str:
    store = Store(folder / "store")
    spec = dataset_spec(store, {"main": raw}, run=run)
    done = _run(folder, spec)
    assert done.returncode == 0, done.stderr[-3000:]
    made = store.find(spec.input_digest)
    assert made is not None
    accounted_for(made)
    return made.digest


def _marked(mark: str) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TEST_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _settled(mark: str, deadline_s: float = 20) -> list[psutil.Process]:
    """Processes that are still there, some while after their parent went."""
    until = time.monotonic() + deadline_s
    while (left := _marked(mark)) and time.monotonic() < until:
        time.sleep(0.2)
    return left


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_run_goes_on_where_it_was_and_leaves_no_process(tmp_path: Path, workers: int) -> None:
    raw = write(tmp_path / "a.jsonl", _many(300))
    whole = _spread(tmp_path / "whole", raw)
    store = Store(tmp_path / "killed" / "store")
    spec = dataset_spec(store, {"main": raw}, run={"data_workers": workers})
    mark = uuid.uuid4().hex
    dead = _run(tmp_path / "killed", spec, TEST_DIES_AT="5 of", TEST_MARK=mark)
    assert dead.returncode == -signal.SIGKILL, dead.stderr[-3000:]
    assert not _settled(mark)
    assert not store.all()
    shards = store.root / "work" / spec.input_digest / "shards"

    def finished() -> dict[str, tuple[int, int]]:
        metas = [path for path in shards.glob("*/meta.json") if not path.parent.name.startswith(".")]
        return {p.parent.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in metas}

    before = finished()
    assert len(before) >= 5
    again = _run(tmp_path / "killed", spec, TEST_MARK=mark)
    assert again.returncode == 0, again.stderr[-3000:]
    after = finished()
    assert len(after) > len(before)
    assert {name: after[name] for name in before} == before
    made = store.find(spec.input_digest)
    assert made is not None and made.digest == whole
    assert not store.verify()
    assert not _settled(mark)


@pytest.mark.slow
def test_ray_and_the_native_runner_give_one_digest(tmp_path: Path) -> None:
    raw = write(tmp_path / "a.jsonl", _many(300))
    digests = {
        name: _spread(tmp_path / name, raw, data_runner=runner, data_workers=workers)
        for name, runner, workers in (("one", "native", 1), ("two", "native", 2), ("ray", "ray", 2))
    }
    assert len(set(digests.values())) == 1, digests


# -- splits of what grows ---------------------------------------------------------------------------------


def _places(splits: Artifact) -> dict[str, str]:
    return {
        record: split
        for split in ("train", "validation", "test")
        for record in pq.read_table(splits.file(f"{split}.parquet"))["record_id"].to_pylist()
    }


def _likes(records: dict[str, str], least: float) -> Iterator[tuple[str, str]]:
    """Pairs of prompts whose sets of word 3-grams are alike: by looking at every pair."""
    grams: dict[str, set[tuple[str, ...]]] = {}
    for record, prompt in records.items():
        words = prompt.casefold().split()
        grams[record] = set(zip(words, words[1:], words[2:], strict=False)) or {tuple(words)}
    for a, b in combinations(records, 2):
        if len(grams[a] & grams[b]) >= least * len(grams[a] | grams[b]):
            yield a, b


def test_growth_moves_nothing_parts_nothing_and_leaves_the_frozen_test_as_it_is(
    store: Store, tmp_path: Path
) -> None:
    draw = random.Random(3)
    words = [f"word{i}" for i in range(60)]
    rows: list[tuple[str, str]] = []
    for i in range(120):
        text = draw.choices(words, k=30)
        rows.append((" ".join(text), f"answer {i}"))
        if i % 2:
            changed = [*text[:-1], "changed"]
            rows.append((" ".join(changed), f"answer {i} again"))
    draw.shuffle(rows)
    halves = [
        make_dataset(store, {"main": write(tmp_path / f"{name}.jsonl", some)})
        for name, some in (("half", rows[:90]), ("whole", rows))
    ]
    assert halves[1].content["near_duplicates"] >= 55
    options: dict[str, Any] = {"validation": 0.2, "test": 0.2, "freeze": "first"}
    first = make_splits(store, halves[0], **options)
    second = make_splits(store, halves[1], first, **options)
    before, after = _places(first), _places(second)
    assert {record: after.get(record) for record in before} == before
    assert second.content["moved"] == 0
    assert second.file("test.parquet").read_bytes() == first.file("test.parquet").read_bytes()
    assert second.content["leakage"] == {"shared_groups": 0, "shared_prompts": 0, "near_pairs": 0}
    read = tables.read(halves[1].file("records"), ["record_id", "prompt"])
    prompts = dict(zip(read["record_id"].to_pylist(), read["prompt"].to_pylist(), strict=True))
    placed = {record: prompts[record] for record in after}
    pairs = list(_likes(placed, 0.8))
    assert len(pairs) > 30
    assert all(after[a] == after[b] for a, b in pairs)
    left_out = pq.read_table(second.file("dropped.parquet"))["reason"].to_pylist()
    assert len(after) + len(left_out) == len(prompts)
    assert set(left_out) <= {"bridges_splits", "also_in_test"}
