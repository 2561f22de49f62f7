"""The inference log: what was put is there, once, through kills, full disks, erasures and its own upkeep."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from ftaas_pipelines.cli import main as frame
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.projects.answers import AnswerPolicy
from ftaas_pipelines.serving import answer_tables, answer_upkeep, answers
from ftaas_pipelines.serving.answer_files import AnswerFolder, day_of
from ftaas_pipelines.serving.desired import Folder
from ftaas_pipelines.serving.inference_log import Answered, Feedback, InferenceLog
from ftaas_pipelines.store import Store

DAY = 86400.0
SEEN = {"rule": "personal_data", "kind": "email", "action": "redact", "count": 2, "where": "output"}


def answered(number: int = 0, **facts: Any) -> Answered:
    """A row whose id says its number."""
    given: dict[str, Any] = {
        "id": f"chatcmpl-{uuid.uuid5(uuid.NAMESPACE_OID, str(number)).hex}",
        "at": time.time(),
        "environment": "staging",
        "project": "codes",
        "release": "r" * 64,
        "adapter_digest": "a" * 64,
        "base": "b" * 64,
        "variant": "canary",
        "caller": "key_1",
        "kind": "chat",
        "status": 200,
        "error": "",
        "finish_reason": "stop",
        "prompt_tokens": 12,
        "completion_tokens": 5,
        "cost_usd": 0.25,
        "total_ms": 81.5,
        "queue_ms": 0.5,
        "first_token_ms": 20.0,
        "guard": [SEEN],
        "shadow_of": "",
        "prompt": '[{"role":"user","content":"What is X1?"}]',
        "answer": f"answer {number}",
    }
    return Answered(**{**given, **facts})


def fill(folder: Path, *rows: Answered | Feedback, seal: int = 5_000) -> None:
    """Put rows and close: they are in spools that nobody holds, of at most so many rows each."""
    for first in range(0, len(rows), seal):
        log = InferenceLog(folder / "alone")  # so that its upkeep finds nothing to do
        log.start()
        assert all(log.put(row) for row in rows[first : first + seal])
        log.close()
        (made,) = (folder / "alone" / "spool").iterdir()
        (folder / "spool").mkdir(exist_ok=True)
        made.rename(folder / "spool" / made.name)
    shutil.rmtree(folder / "alone")


def ids(folder: Path, **which: Any) -> Counter[str]:
    return Counter(row["id"] for row in answers.scan(folder, columns=["id"], **which))


def once(rows: list[Answered]) -> Counter[str]:
    return Counter(row.id for row in rows)


def eventually(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def child(code: str, *arguments: object) -> "subprocess.Popen[str]":
    """A process that can make rows; its code is run with this file imported as `t`."""
    head = f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    words = [sys.executable, "-c", head + textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, encoding="utf-8")


WRITER = """
import itertools, time
from pathlib import Path
from ftaas_pipelines.serving.inference_log import Answered, InferenceLog
log = InferenceLog(Path(sys.argv[1]), seal_rows=int(sys.argv[3]))
log.start()
blank = dict.fromkeys(Answered.__dataclass_fields__, "") | dict.fromkeys(
    "status prompt_tokens completion_tokens cost_usd total_ms queue_ms first_token_ms".split(), 0)
for number in range(int(sys.argv[4])) if len(sys.argv) > 4 else itertools.count():
    facts = {"id": f"{sys.argv[2]}-{number:06d}", "at": time.time(), "guard": [], "caller": sys.argv[2]}
    assert log.put(Answered(**{**blank, **facts, "prompt": "asked", "answer": "x" * 200}))
    print(number, time.time(), flush=True)
    if number % 10 == 0:
        time.sleep(0.005)
log.close()
assert "pyarrow" not in sys.modules and log.dropped == 0
"""


def test_a_row_comes_back_as_it_was(tmp_path: Path) -> None:
    """From the spool and from Parquet: the same; what JSON or UTF-8 cannot say does no harm."""
    plain = answered(1)
    odd = answered(
        2, prompt=None, answer="tab\t, newline\n, ü, 🙂, half \ud83d", total_ms=float("nan"), guard=[]
    )
    refused = answered(3, status=429, error="rate_limit_exceeded", finish_reason="", project="", release="")
    said = [
        Feedback(plain.id, plain.at + n, "key_1", thumb, "", "well") for n, thumb in enumerate(["up", "down"])
    ]
    log = InferenceLog(tmp_path)
    log.start()
    assert all(log.put(row) for row in (plain, odd, refused, *said))
    eventually(lambda: log.waiting == 0, 2)
    answer_upkeep.tidy(tmp_path)  # it leaves alone what is being written
    late = answered(4)
    assert log.put(late)
    log.close()
    assert (log.waiting, log.dropped, log.put(plain)) == (0, 0, False)

    def check() -> None:
        assert answers.find(tmp_path, plain.id) == {**asdict(plain), "erased_at": None}
        assert answers.find(tmp_path, refused.id) == {**asdict(refused), "erased_at": None}
        found = answers.find(tmp_path, odd.id)
        assert found and found["answer"] == "tab\t, newline\n, ü, 🙂, half ?" and found["total_ms"] is None
        assert [f["thumb"] for f in answers.feedback_of(tmp_path, plain.id)] == ["up", "down"]
        assert answers.find(tmp_path, "chatcmpl-" + "0" * 32) is None
        assert ids(tmp_path) == once([plain, odd, refused, late])
        assert ids(tmp_path, project="codes") == once([plain, odd, late])
        assert ids(tmp_path, since=plain.at, until=odd.at) == once([plain])

    check()
    answer_upkeep.tidy(tmp_path)
    assert not AnswerFolder(tmp_path).spools() and len(list(tmp_path.glob("answered/day=*/*.parquet"))) == 1
    check()
    newest = answers.newest(tmp_path, 2)
    assert [row["id"] for row in newest] == [late.id, refused.id] and "answer" not in newest[0]
    private = [p for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_mode & 0o077]
    assert not private, "texts are for their owner's eyes"


def test_kill_9_loses_next_to_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    """What was put 0.2 s before is there: from the spools, and when the next start made Parquet of them."""
    with child(WRITER, tmp_path, "w", 150) as writer:
        assert writer.stdout
        put: dict[int, float] = {}
        while len(put) < 900:
            number, at = writer.stdout.readline().split()
            put[int(number)] = float(at)
        writer.kill()
        dead = time.time()
    needed = {f"w-{n:06d}" for n, at in put.items() if at < dead - 0.2}
    found = ids(tmp_path)
    assert len(needed) > 300 and needed <= set(found) and set(found.values()) == {1}
    log = InferenceLog(tmp_path)
    log.start()
    eventually(lambda: not AnswerFolder(tmp_path).spools())
    log.close()
    assert ids(tmp_path) == found


def test_two_processes_write_side_by_side(tmp_path: Path) -> None:
    """A reader sees each row once, and never loses sight of one, while files come and go."""
    writers = [child(WRITER, tmp_path, name, 60, 1500) for name in "ab"]
    before: Counter[str] = Counter()
    while any(writer.poll() is None for writer in writers):
        now = ids(tmp_path)
        assert set(now.values()) <= {1} and set(before) <= set(now)
        before = now
        time.sleep(0.05)
    for writer in writers:
        with writer:
            assert writer.wait() == 0
    answer_upkeep.tidy(tmp_path)
    assert ids(tmp_path) == Counter(f"{name}-{n:06d}" for name in "ab" for n in range(1500))
    assert len(list(tmp_path.glob("answered/*/*"))) < 16


def test_killed_in_the_middle_of_upkeep(tmp_path: Path) -> None:
    """At each step at which files come or go: readers see every row once; the next upkeep goes on."""
    rows = [answered(n, at=time.time() - 3 * DAY, caller=f"key_{n % 2}") for n in range(30)]
    fill(tmp_path / "begun", *rows, seal=15)
    code = """
        import os, shutil, signal
        from pathlib import Path
        from ftaas_pipelines.serving import answer_upkeep
        import pandas  # by pyarrow, once, and not by each child
        begun, home = Path(sys.argv[1]), Path(sys.argv[2])
        for last in range(1000):
            shutil.copytree(begun, home / str(last))
            process = os.fork()
            if not process:
                steps = iter(range(1000))
                for name in ("replace", "unlink", "rmdir"):
                    def step(self, *a, real=getattr(Path, name), **k):
                        if next(steps) == last:
                            os.kill(os.getpid(), signal.SIGKILL)
                        return real(self, *a, **k)
                    setattr(Path, name, step)
                answer_upkeep.tidy(home / str(last))
                answer_upkeep.erase(home / str(last), caller="key_1")
                os._exit(0)
            if os.waitpid(process, 0)[1] == 0:
                break
        print(last)
    """
    with child(code, tmp_path / "begun", tmp_path / "cut") as run:
        steps = int(run.communicate()[0])
    assert steps > 20
    for step in range(steps):
        folder = tmp_path / "cut" / str(step)
        assert ids(folder) == once(rows), step
        answer_upkeep.tidy(folder)
        assert ids(folder) == once(rows) and not list((folder / "making").iterdir()), step
        assert answer_upkeep.erase(folder, caller="key_1").waiting == 0
        texts = {row["caller"] for row in answers.scan(folder) if row["answer"]}
        assert texts == {"key_0"}, step


def test_a_full_disk_costs_no_row_while_there_is_room_to_wait(tmp_path: Path) -> None:
    full = threading.Event()

    def write(descriptor: int, data: memoryview) -> int:
        if not full.is_set():
            return os.write(descriptor, data)
        if len(data) > 1000:
            return os.write(descriptor, data[:1000])  # as disks do: a part of it, and then the error
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = InferenceLog(tmp_path, room=200, write=write)
    log.start()
    rows = [answered(n) for n in range(150)]
    assert all(log.put(row) for row in rows[:50])
    eventually(lambda: log.waiting == 0)
    full.set()
    assert all(log.put(row) for row in rows[50:100])
    eventually(lambda: "No space" in log.failing)
    assert ids(tmp_path) == once(rows[:50])
    assert all(log.put(row) for row in rows[100:])
    more = [log.put(answered(n)) for n in range(1000, 1150)]
    assert more == [True] * 100 + [False] * 50 and log.dropped == 50
    full.clear()
    eventually(lambda: log.waiting == 0 and log.failing == "")
    log.close()
    assert ids(tmp_path) == once([*rows, *(answered(n) for n in range(1000, 1100))])


def test_a_disk_that_is_full_for_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows stay in their spools; with room again they become Parquet."""
    rows = [answered(n) for n in range(20)]
    fill(tmp_path, *rows, seal=10)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(pq, "write_table", full)
        with pytest.raises(OSError, match="No space"):
            answer_upkeep.tidy(tmp_path)
        assert ids(tmp_path) == once(rows) and len(AnswerFolder(tmp_path).spools()) == 2
    answer_upkeep.tidy(tmp_path)
    assert ids(tmp_path) == once(rows) and not AnswerFolder(tmp_path).spools()


def test_torn_and_foreign_lines_cost_no_other_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [answered(n) for n in range(4)]
    fill(tmp_path, *rows)
    (spool,) = AnswerFolder(tmp_path).spools()
    lines = spool.read_bytes().splitlines(keepends=True)
    wrong = json.dumps({"answered": {**asdict(rows[0]), "id": "wrong", "status": "many"}}).encode() + b"\n"
    foreign = [b"\0\0\0\n", b"[1]\n", b'{"answered": 3}\n', b'{"other": {"id": "x"}}\n', wrong]
    spool.write_bytes(b"".join([lines[0], *foreign, *lines[1:3], lines[3][: len(lines[3]) // 2]]))
    (tmp_path / "making").mkdir()
    (tmp_path / "making" / "half.parquet").write_bytes(b"PAR1 half of a file")
    assert ids(tmp_path) == once(rows[:3])
    answer_upkeep.tidy(tmp_path)
    assert ids(tmp_path) == once(rows[:3]) and not list((tmp_path / "making").iterdir())
    assert "6 lines" in caplog.text and "X1" not in caplog.text


def test_put_never_waits(tmp_path: Path) -> None:
    """Not for a disk that hangs; and what waits is bounded, in rows and in characters."""
    hangs = threading.Event()

    def write(descriptor: int, data: memoryview) -> int:
        hangs.wait()
        return os.write(descriptor, data)

    log = InferenceLog(tmp_path, room=1000, room_characters=10_000, write=write)
    log.start()
    took = []
    for n in range(1500):
        begun = time.perf_counter()
        log.put(answered(n, prompt=None, answer=None))
        took.append(time.perf_counter() - begun)
    assert log.dropped == 500 and sorted(took)[-15] < 0.001
    hangs.set()
    eventually(lambda: log.waiting == 0)
    assert not log.put(answered(2000, answer="x" * 10_001)) and log.put(answered(2001, answer="x" * 9_000))
    log.close()
    assert sum(ids(tmp_path).values()) == 1001


def test_erasing_while_the_log_is_written(tmp_path: Path) -> None:
    """All that came before loses its texts, wherever it is: queue, spool, Parquet. Nothing else does."""
    earlier = [answered(n, caller=f"key_{n % 2}") for n in range(-300, 0)]
    fill(tmp_path, *earlier)
    answer_upkeep.tidy(tmp_path)
    log = InferenceLog(tmp_path)
    log.start()
    over = threading.Event()

    def ask() -> None:
        number = 0
        while not over.is_set():
            row = answered(number, caller=f"key_{number % 2}")
            assert log.put(row)
            if number % 10 == 1:
                log.put(Feedback(row.id, row.at, "key_9", "down", f"rather {row.answer}", "", "codes"))
            number += 1
            time.sleep(0.001)

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: len(ids(tmp_path)) > 500)
    begun = time.time()
    done = answer_upkeep.erase(tmp_path, caller="key_1")
    assert done.waiting == 0 and done.answers > 100 and done.feedback > 10
    eventually(lambda: time.time() > begun + done.waiting + 1)
    over.set()
    asking.join()
    log.close()
    assert log.dropped == 0

    def check() -> None:
        rows = list(answers.scan(tmp_path))
        assert set(Counter(row["id"] for row in rows).values()) == {1}
        mine = {row["id"] for row in rows if row["caller"] == "key_1" and row["at"] < begun}
        for row in rows:
            if row["id"] in mine:
                assert row["prompt"] is row["answer"] is None and row["erased_at"] > row["at"]
            elif row["caller"] == "key_0":
                assert row["answer"] and row["erased_at"] is None
        assert any(row["answer"] for row in rows if row["caller"] == "key_1"), "what came after stays"
        said = [f for f in answers.scan(tmp_path, kind="feedback") if f["at"] < begun]
        assert len(said) > 10 and all(bool(f["correction"]) == (f["id"] not in mine) for f in said)

    answer_upkeep.tidy(tmp_path)
    check()


def test_erasing_by_id_and_what_a_hung_process_holds(tmp_path: Path) -> None:
    """Readers see nothing of it from then on, and neither does Parquet once the process is gone."""
    rows = [answered(n) for n in range(3)]
    fill(tmp_path, *rows)
    assert answer_upkeep.erase(tmp_path, ids=[rows[1].id]) == answer_upkeep.Erased(1, 0, 0)
    assert [bool((answers.find(tmp_path, row.id) or {})["answer"]) for row in rows] == [True, False, True]
    assert answer_upkeep.erase(tmp_path, ids=[rows[1].id]) == answer_upkeep.Erased(0, 0, 0)
    with child(WRITER, tmp_path, "h", 100_000) as hung:
        try:
            eventually(lambda: len(ids(tmp_path)) > 10)
            hung.send_signal(signal.SIGSTOP)
            assert answer_upkeep.erase(tmp_path, caller="h", wait_s=0.1).waiting == 1
            assert all(row["answer"] is None for row in answers.scan(tmp_path) if row["caller"] == "h")
        finally:
            hung.kill()
    answer_upkeep.tidy(tmp_path)
    assert not AnswerFolder(tmp_path).spools()
    assert all(row["answer"] is None for row in answers.scan(tmp_path) if row["caller"] == "h")
    # What was said before the erasure of whom it quotes, and is written down after it, says nothing either.
    assert answer_upkeep.erase(tmp_path, caller="key_1").answers == 2
    late = [
        Feedback(row.id, row.at + n * 3600, "key_2", "up", "quotes", "") for n, row in enumerate(rows[:2])
    ]
    fill(tmp_path, *late)
    answer_upkeep.tidy(tmp_path)
    assert [answers.feedback_of(tmp_path, f.id)[0]["correction"] for f in late] == [None, "quotes"]
    assert answer_upkeep.erase(tmp_path / "nowhere", caller="h") == answer_upkeep.Erased(0, 0, 0)


def test_days_end(tmp_path: Path) -> None:
    """Rows go with their day, each project's by its own days; feedback likewise."""
    noon = 1_800_000_000.0 // DAY * DAY + DAY / 2
    rows = [answered(n, at=noon - n * DAY, project="ab"[n % 2]) for n in range(12)]
    said = [Feedback(row.id, row.at, "key_1", "up", "", "", row.project) for row in rows]
    fill(tmp_path, *rows, *said)
    answer_upkeep.tidy(tmp_path, 8, {"b": 3}, lambda: day_of(noon))
    kept = [row for n, row in enumerate(rows) if n <= (3 if n % 2 else 8)]
    assert ids(tmp_path) == once(kept)
    assert Counter(f["id"] for f in answers.scan(tmp_path, kind="feedback")) == once(kept)
    answer_upkeep.tidy(tmp_path, 8, {"b": 3}, lambda: day_of(noon + DAY))
    assert ids(tmp_path) == once([row for n, row in enumerate(rows) if n <= (2 if n % 2 else 7)])
    assert len(list(tmp_path.glob("answered/*"))) == 5, "no empty day is left"


def test_a_day_has_few_files(tmp_path: Path) -> None:
    """Else an id would be looked for in thousands. The same row twice becomes one."""
    rows = [answered(n, at=time.time() - (n % 2) * DAY) for n in range(80)]
    fill(tmp_path, *rows, *rows[:10], seal=2)
    answer_upkeep.tidy(tmp_path)
    files = {day: len(paths) for day, paths in AnswerFolder(tmp_path).days("answered")}
    assert max(files.values()) < 16 and files[day_of(time.time() - DAY)] == 1
    assert ids(tmp_path) == once(rows)
    old = next(tmp_path.glob("answered/*/*.parquet"))
    table = pq.read_table(old, partitioning=None).drop_columns(["erased_at", "shadow_of"])
    pq.write_table(table, old)  # as an earlier version wrote it
    assert ids(tmp_path) == once(rows) and {row["erased_at"] for row in answers.scan(tmp_path)} == {None}


@pytest.mark.slow
def test_one_answer_of_a_million(tmp_path: Path) -> None:
    """Found by its id well below a second, and so is that one is not there."""
    files, now = AnswerFolder(tmp_path), time.time()
    for day in range(20):
        count = 50_000
        numbers = sorted(uuid.uuid4().hex for _ in range(count))
        at = now - day * DAY
        one = asdict(answered(0, at=at)) | {"erased_at": None}
        schema = answer_tables.SCHEMAS["answered"]
        columns = {
            name: pa.array([f"chatcmpl-{n}" for n in numbers])
            if name == "id"
            else pa.repeat(pa.scalar(one[name], schema.field(name).type), count)
            for name in schema.names
        }
        path = files.path / "answered" / f"day={day_of(at)}" / "made.parquet"
        path.parent.mkdir(parents=True)
        answer_tables.write(pa.table(columns, schema=schema), path)
        if day == 19:
            known = f"chatcmpl-{numbers[count // 2]}"
    took: list[float] = []
    for id, there in [(known, True), ("chatcmpl-" + "8" * 32, False)] * 3:
        begun = time.perf_counter()
        assert (answers.find(tmp_path, id) is not None) is there
        took.append(time.perf_counter() - begun)
    assert sorted(took)[2] < 0.3, took
    begun = time.perf_counter()
    assert len(answers.newest(tmp_path, 20)) == 20 and time.perf_counter() - begun < 2


def test_answers_on_the_command_line(
    home: Path, tmp_path: Path, project_factory: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """List and trace show no text; show and export do; export and erase are in the ledger, without a name."""
    project_factory()
    store = Store(home / "store")
    with store.create("release", "1" * 64) as draft:
        draft.content = {"of": "codes"}
    release = draft.made.digest
    rows = [answered(n, release=release, caller="jwt:eve@example.com") for n in range(3)]
    refused = answered(
        9, release="", project="", status=404, error="model_not_found", prompt=None, answer=None
    )
    said = Feedback(rows[0].id, time.time(), "key_2", "down", "rather 4711", "not right", "codes")
    fill(Folder(home, "staging").answers, *rows, refused, said)

    def ran(*words: str, code: int = 0) -> Any:
        assert frame.main([*words, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    listed = ran("answers", "list", "codes", "--env", "staging", "--since", "1h", "--limit", "2")["answers"]
    assert [row["id"] for row in listed] == [rows[2].id, rows[1].id] and "answer" not in listed[0]
    assert ran("answers", "list", "codes", "--since", "2999-01-01")["answers"] == []
    shown = ran("answers", "show", rows[0].id)
    assert shown["answer"] == "answer 0" and shown["feedback"][0]["correction"] == "rather 4711"
    assert ran("answers", "feedback", "codes")["feedback"][0]["comment"] == "not right"

    traced = ran("trace", rows[0].id)
    assert [a["digest"] for a in traced["artifacts"]] == [release]
    known = traced["answer"]
    assert (known["caller"], known["guard"], known["texts"]) == ("jwt:eve@example.com", [SEEN], "kept")
    assert known["feedback"][0]["thumb"] == "down" and "answer" not in known and known["total_ms"] == 81.5
    frame.main(["trace", rows[0].id])
    text = capsys.readouterr().out
    for words in ("asked by jwt:eve@", "personal_data email: redact", "down; rather 4711", "queue", release):
        assert words in text
    assert "answer 0" not in text
    assert ran("trace", refused.id)["artifacts"] == []

    for suffix in ("jsonl", "parquet"):
        out = tmp_path / f"out.{suffix}"
        assert ran("answers", "export", "codes", "--to", str(out))["records"] == 3
        assert ran("answers", "export", "codes", "--to", str(out), code=2)["problems"]
    lines = (tmp_path / "out.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(line)["answer"] for line in lines} == {row.answer for row in rows}
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 3

    done = ran("answers", "erase", "--caller", "jwt:eve@example.com")
    assert done["environments"]["staging"] == {"answers": 3, "feedback": 1, "waiting": 0}
    assert ran("answers", "show", rows[0].id)["answer"] is None
    assert ran("trace", rows[0].id)["answer"]["texts"] == "erased"
    frame.main(["answers", "show", rows[0].id])
    frame.main(["trace", rows[0].id])
    assert "4711" not in capsys.readouterr().out
    entries = Ledger(f"sqlite:///{home / 'ledger.db'}", home).entries()
    assert [e.kind for e in entries] == ["export", "export", "answers_erased"]
    assert "eve" not in json.dumps([e.body for e in entries]) + entries[-1].subject

    assert ran("answers", "erase", code=2) and ran("answers", "list", "codes", "--env", "x", code=2)
    assert ran("answers", "export", "codes", "--to", "x.csv", code=2)
    assert ran("answers", "list", "codes", "--since", "soon", code=2)
    assert ran("answers", "show", "chatcmpl-x", code=2)


def test_only_somebody_known_takes_texts_out_or_erases_them(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FTAAS_ACTOR", "somebody")
    for words in (
        ["export", "gone", "--to", str(tmp_path / "x.jsonl")],
        ["erase", "--id", "chatcmpl-1"],
    ):
        assert frame.main(["answers", *words]) == 3 and "FTAAS_ACTOR" in capsys.readouterr().err
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize("wrong", ['{"keep_days": 0}', '{"texts": "all"}', '{"usd_per_1k_tokens": -1}'])
def test_a_wrong_policy_is_refused(wrong: str) -> None:
    assert AnswerPolicy() == AnswerPolicy(keep_days=90, texts="none", usd_per_1k_tokens=0)
    with pytest.raises(ValidationError):
        AnswerPolicy.model_validate_json(wrong)


def test_looking_up_an_answer_loads_no_pandas(tmp_path: Path) -> None:
    """The gateway does it for feedback; pyarrow loads pandas where it is asked to compare with a value."""
    fill(tmp_path, answered(1))
    answer_upkeep.tidy(tmp_path)
    code = """
        from pathlib import Path
        from ftaas_pipelines.serving import answers
        print(answers.find(Path(sys.argv[1]), sys.argv[2])["answer"], "pandas" in sys.modules)
    """
    with child(code, tmp_path, answered(1).id) as run:
        assert run.communicate()[0] == "answer 1 False\n"


def test_answers_past_their_days_go_where_no_endpoint_runs(home: Path) -> None:
    folder = home / "deployments" / "staging" / "answers"
    log = InferenceLog(folder)
    log.start()
    old, new = answered(1, at=time.time() - 91 * 86_400), answered(2)
    assert log.put(old) and log.put(new)
    log.close()
    assert {row["id"] for row in answers.scan(folder)} == {old.id, new.id}
    assert frame.main(["store", "gc", "--dry-run", "--json"]) == 0
    assert {row["id"] for row in answers.scan(folder)} == {old.id, new.id}
    assert frame.main(["store", "gc", "--json"]) == 0
    assert {row["id"] for row in answers.scan(folder)} == {new.id}
