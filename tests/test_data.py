"""Promises of the data plane: identity by content, bad input named, tests kept apart, nothing half-made."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ftaas_pipelines.data import findings, formats, readers, view
from ftaas_pipelines.data.records import Record, identity
from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.projects.project import Cleaning, Quality, Splits
from ftaas_pipelines.stages import prepare
from ftaas_pipelines.stages.spec import Run, Spec
from ftaas_pipelines.store import Artifact, Store, file_digest

Pair = tuple[str, str]
ROWS: list[Pair] = [(f"What does code {i:03d} mean?", f"Fault number {i:03d}.") for i in range(60)]
SHARED = Path(__file__).parents[2] / "shared" / "data"


class Silent:
    def progress(self, done: float, message: str) -> None: ...

    def metrics(self, step: int, values: dict[str, float]) -> None: ...


def jsonl(path: Path, rows: list[Pair]) -> Path:
    lines = [json.dumps({"prompt": p, "completion": c}, ensure_ascii=False) for p, c in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def spec_of(store: Store, asset: str, inputs: dict[str, Any], files: dict[str, Path]) -> Spec:
    run = Run(home=store.root, store=store.root, ledger="sqlite://", actor="t@example.com", files=files)
    return Spec(stage="prepare", project="p", asset=asset, inputs=inputs, run=run)


def dataset_spec(
    store: Store, files: dict[str, Path], declared: dict[str, str] | None = None, **more: Any
) -> Spec:
    declared = declared or {}
    inputs: dict[str, Any] = {
        "sources": [
            {
                "name": name,
                "sha256": file_digest(path) if path.exists() else "0" * 64,
                "split": declared.get(name),
            }
            for name, path in files.items()
        ],
        "format": None,
        "columns": {},
        "encoding": "utf-8",
        "system": "",
        "group_by": None,
        "cleaning": Cleaning().model_dump(),
        "quality": Quality().model_dump(),
        **more,
    }
    return spec_of(store, "dataset", inputs, files)


def make_dataset(
    store: Store, files: dict[str, Path], declared: dict[str, str] | None = None, **more: Any
) -> Artifact:
    return prepare.make(dataset_spec(store, files, declared, **more), store, Silent())


def make_splits(store: Store, dataset: Artifact, **options: Any) -> Artifact:
    inputs = {"dataset": dataset.digest, "options": Splits(**options).model_dump()}
    return prepare.make(spec_of(store, "splits", inputs, {}), store, Silent())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# -- identity ------------------------------------------------------------------------------------


def test_the_digest_is_of_the_content_alone(store: Store, tmp_path: Path) -> None:
    """Same rows in another order, another file, another hash seed: same digest. One byte: another."""
    first = make_dataset(store, {"main": jsonl(tmp_path / "a.jsonl", ROWS)})
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    (tmp_path / "z.csv").write_text(
        "prompt,completion\r\n" + "".join(f'"{p}",{c}\r\n' for p, c in shuffled), encoding="utf-8-sig"
    )
    assert make_dataset(store, {"main": tmp_path / "z.csv"}).digest == first.digest
    digests = {first.digest}
    for seed in ("1", "2"):
        other = Store(tmp_path / f"store{seed}")
        spec = tmp_path / f"spec{seed}.json"
        spec.write_text(
            dataset_spec(other, {"main": tmp_path / "a.jsonl"}).model_dump_json(), encoding="utf-8"
        )
        command = [
            sys.executable,
            "-m",
            "ftaas_pipelines.stages.prepare",
            "--spec",
            spec,
            "--out",
            f"{spec}.out",
        ]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True)
        digests.add(json.loads(Path(f"{spec}.out").read_text("utf-8"))["digest"])
    assert digests == {first.digest}
    changed = [(ROWS[0][0], ROWS[0][1].replace("Fault", "Fawlt")), *ROWS[1:]]
    assert make_dataset(store, {"main": jsonl(tmp_path / "b.jsonl", changed)}).digest != first.digest
    assert not store.verify()


def test_every_format_gives_the_same_records(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    alpaca = [{"instruction": p, "input": "", "output": c} for p, c in ROWS]
    (tmp_path / "alpaca.json").write_text(json.dumps(alpaca, indent=2), encoding="utf-8")
    chat = [
        {"messages": [{"role": "user", "content": p}, {"role": "assistant", "content": c}]} for p, c in ROWS
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(map(json.dumps, chat)), encoding="utf-8")
    pq.write_table(
        pa.table({"text": [p for p, _ in ROWS], "category": [c for _, c in ROWS]}), tmp_path / "t.parquet"
    )
    seen: set[str] = set()
    for name, expected in (
        ("alpaca.json", formats.Layout("alpaca", {})),
        ("chat.jsonl", formats.Layout("messages", {})),
        ("t.parquet", formats.Layout("text_target", {"target": "category"})),
    ):
        store = Store(tmp_path / name.partition(".")[0])
        assert formats.detect(tmp_path / name) == expected
        made = make_dataset(store, {"main": tmp_path / name})
        seen.add(file_digest(made.file("records/part-00.parquet")))
        assert view.rows(made, limit=1)[0]["kind"] == "text_pair"
    assert len(seen) == 1


# -- bad input: where, got, do ------------------------------------------------------------------------

GOOD = '{"prompt": "a", "completion": "b"}\n'
BAD: list[tuple[str, str, bytes, dict[str, Any], list[str]]] = [
    ("empty", "d.jsonl", b"", {}, ["d.jsonl:1: the file is empty", "put rows into it"]),
    ("header only", "d.csv", b"text,target\n", {}, ["d.csv:1: the file holds no rows"]),
    (
        "broken json",
        "d.jsonl",
        (GOOD + '{"prompt": "a",\n').encode(),
        {},
        ["d.jsonl:2: broken JSON", "mend or delete"],
    ),
    (
        "broken list",
        "d.json",
        b'[{"prompt": "a", "completion": "b"},\n{"prompt" 1}]',
        {},
        ["d.json:2: broken JSON"],
    ),
    (
        "not an object",
        "d.jsonl",
        (GOOD + "[1]\n").encode(),
        {},
        ["d.jsonl:2: the row is not an object (got [1])"],
    ),
    (
        "encoding",
        "d.csv",
        b"text,target\nok,ok\ncaf\xe9,coffee\n",
        {},
        ["d.csv:3: is not utf-8 (got byte 0xe9 at offset 21)", "cp1252"],
    ),
    (
        "no answer",
        "d.jsonl",
        (GOOD + '{"prompt": "q", "completion": " "}\n').encode(),
        {},
        ["d.jsonl:2: the row has no answer: 'completion' is empty"],
    ),
    (
        "short csv row",
        "d.csv",
        b'text,target\n"two\nlines",x\nlonely\n',
        {},
        ["d.csv:4: the row has no answer: 'target' is missing"],
    ),
    (
        "long csv row",
        "d.csv",
        b"text,target\na,b,c\n",
        {},
        ["d.csv:2: the row has more cells", "got 3 cells for 2 columns", "quote text"],
    ),
    ("open quote", "d.csv", b'text,target\na,"b\n', {}, ["d.csv:2: is not CSV"]),
    (
        "not text",
        "d.jsonl",
        b'{"prompt": "a", "completion": 3}\n',
        {},
        ["d.jsonl:1: 'completion' is not text (got 3)"],
    ),
    (
        "other format",
        "d.csv",
        b"text,category\na,b\n",
        {"format": "alpaca"},
        [
            "d.csv:1: alpaca needs the column instruction, output",
            "looks like text_target",
            "columns text, category",
            "dataset.columns: {target: category}",
        ],
    ),
    (
        "other file kind",
        "d.csv",
        GOOD.encode(),
        {},
        ["d.csv:1: looks like JSONL and not like CSV", "rename it"],
    ),
    (
        "no such column",
        "d.csv",
        b"text,label\na,b\n",
        {"format": "text_target", "columns": {"target": "kind"}},
        ["d.csv:1: text_target needs the column kind (got columns text, label)"],
    ),
    (
        "unknown columns",
        "d.csv",
        b"x,y\na,b\n",
        {},
        ["d.csv:1: the columns fit no known format (got x, y)", "dataset.format"],
    ),
    (
        "group column",
        "d.csv",
        b"text,target\na,b\n",
        {"group_by": "customer"},
        ["d.csv:1: there is no column 'customer'", "columns text, target"],
    ),
    (
        "role",
        "d.jsonl",
        b'{"messages": [{"role": "bot", "content": "x"}]}\n',
        {},
        ["d.jsonl:1: role 'bot' is not one of system, user, assistant, tool", "rename it"],
    ),
    (
        "last is user",
        "d.jsonl",
        b'{"messages": [{"role": "user", "content": "x"}]}\n',
        {},
        ["d.jsonl:1: the row has no answer: the last message"],
    ),
    (
        "half a character",
        "d.jsonl",
        b'{"prompt": "\\ud83d", "completion": "b"}\n',
        {},
        ["d.jsonl:1: the text holds half a surrogate pair (got U+D83D)"],
    ),
    ("torn parquet", "d.parquet", b"PAR1 and no more", {}, ["d.parquet:1: is not a whole Parquet file"]),
]


@pytest.mark.parametrize(("name", "data", "options", "said"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_one_clear_error(
    store: Store, tmp_path: Path, name: str, data: bytes, options: dict[str, Any], said: list[str]
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputInvalid) as caught:
        make_dataset(store, {"main": tmp_path / name}, **options)
    assert caught.value.exit_code == 2
    for words in said:
        assert words in str(caught.value)
    assert not store.all()


def test_all_problems_of_all_files_come_at_once_and_capped(store: Store, tmp_path: Path) -> None:
    (tmp_path / "many.jsonl").write_text('{"prompt": "a", "completion": null}\n' * 30, encoding="utf-8")
    with pytest.raises(InputInvalid) as caught:
        make_dataset(store, {"main": tmp_path / "many.jsonl", "gone": tmp_path / "gone.csv"})
    lines = str(caught.value).splitlines()
    assert "gone.csv: the data file is not there" in lines[0]
    assert "many.jsonl:19: " in lines[19]
    assert lines[20] == "and 11 more problems; mend these first"


def test_a_file_that_changed_since_it_was_fingerprinted_is_refused(store: Store, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    spec = dataset_spec(store, {"main": path})
    jsonl(path, ROWS[1:])
    with pytest.raises(FtaasError, match="changed while being read"):
        prepare.make(spec, store, Silent())


@pytest.mark.parametrize(
    ("expectation", "said"),
    [
        (
            {"type": "expect_column_values_to_not_be_nul"},
            "did you mean 'expect_column_values_to_not_be_null'?",
        ),
        ({"type": "expect_column_to_exist", "kwargs": {"column": "mood"}}, "no such column"),
        ({"type": "expect_column_values_to_be_unique", "kwargs": {"colum": "prompt"}}, "field required"),
        ({"type": "expect_column_to_exist", "kwargs": {}, "severity": "fatal"}, "use error or warn"),
    ],
)
def test_a_wrong_expectation_is_bad_input(
    store: Store, tmp_path: Path, expectation: dict[str, Any], said: str
) -> None:
    quality = Quality(expectations=[expectation]).model_dump()
    with pytest.raises(InputInvalid, match=r"dataset\.quality\.expectations\[0\]") as caught:
        make_dataset(store, {"main": jsonl(tmp_path / "a.jsonl", ROWS)}, quality=quality)
    assert said in str(caught.value)
    assert not store.all()


def test_too_few_records_for_the_splits(store: Store, tmp_path: Path) -> None:
    made = make_dataset(store, {"main": jsonl(tmp_path / "a.jsonl", ROWS[:5])})
    assert made.content["quality"] == {"passed": False, "failed": ["enough_records"]}
    with pytest.raises(InputInvalid) as caught:
        make_splits(store, made, test=0.0)
    assert "train needs at least 8 records, and has" in str(caught.value)
    assert "test needs at least 1 record, and has 0" in str(caught.value)
    assert "give a source split: test" in str(caught.value)


# -- what is done to records -----------------------------------------------------------------------


def test_cleaning_duplicates_and_leaks_are_counted(store: Store, tmp_path: Path) -> None:
    odd = [("  cafe\u0301 \x07", "coffee"), ("café", "coffee"), ("too long", "x" * 500), ROWS[0]]
    main = jsonl(tmp_path / "a.jsonl", ROWS + odd)
    test = jsonl(tmp_path / "t.jsonl", [(ROWS[5][0].upper(), "Another answer."), ROWS[6]])
    cleaning = Cleaning(max_characters=400).model_dump()
    made = make_dataset(store, {"main": main, "held": test}, {"held": "test"}, cleaning=cleaning)
    assert made.content["dropped"] == {"also_in_test": 2, "duplicate": 2, "too_long": 1}
    assert made.content["cleaned"] == {"control_characters": 1, "strip": 1, "unicode_nfc": 1}
    assert made.content["by_source"] == {"held": 2, "main": 59}
    shown = view.rows(made, limit=1000)
    assert [r["record_id"] for r in shown] == sorted(r["record_id"] for r in shown)
    assert [r["prompt"] for r in view.rows(made, split="test")].count(ROWS[6][0]) == 1


def test_verdicts_fix_reject_and_go_stale(store: Store, tmp_path: Path) -> None:
    files = {"main": jsonl(tmp_path / "a.jsonl", ROWS)}
    before = view.rows(make_dataset(store, files), limit=4)

    def verdict(row: dict[str, Any], word: str, text: str = "", content_id: str = "") -> dict[str, str]:
        seen = content_id or row["content_id"]
        return {"record_id": row["record_id"], "content_id": seen, "word": word, "text": text, "entry": "e"}

    verdicts = [
        verdict(before[0], "approve"),
        verdict(before[1], "fix", "The corrected answer."),
        verdict(before[2], "reject"),
        verdict(before[3], "reject", content_id="0" * 64),
    ]
    made = make_dataset(store, files, verdicts=verdicts)
    after = {r["record_id"]: r for r in view.rows(made, limit=100)}
    assert made.content["verdicts"] == {"approve": 1, "fix": 1, "reject": 1, "stale_verdict": 1}
    assert made.content["dropped"] == {"rejected": 1}
    assert after[before[0]["record_id"]] == before[0]
    fixed = after[before[1]["record_id"]]
    assert fixed["answer"] == fixed["messages"][-1]["content"] == "The corrected answer."
    assert fixed["content_id"] != before[1]["content_id"]
    assert before[2]["record_id"] not in after
    assert before[3]["record_id"] in after


def test_the_system_message_is_put_first_and_conversations_keep_theirs(store: Store, tmp_path: Path) -> None:
    turns = [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Bye"),
        ("assistant", "Ciao"),
    ]
    own = {"messages": [{"role": r, "content": c} for r, c in turns]}
    plain = {"messages": own["messages"][3:]}
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(map(json.dumps, [own, plain])), encoding="utf-8")
    made = make_dataset(store, {"main": path}, system="You are polite.")
    by_kind = {r["kind"]: r for r in view.rows(made)}
    assert by_kind["text_pair"]["messages"][0] == {"role": "system", "content": "You are polite."}
    assert by_kind["text_pair"]["prompt"] == "Bye"
    assert by_kind["conversation"]["messages"] == own["messages"]
    assert by_kind["conversation"]["prompt"] == "user: Hi\nassistant: Hello\nuser: Bye"


def test_quality_is_great_expectations_and_names_no_values(store: Store, tmp_path: Path) -> None:
    rows = [*ROWS, ("Where is Ada Lovelace?", "not a fault")]
    own = [
        {"type": "expect_column_values_to_match_regex", "kwargs": {"column": "answer", "regex": "^Fault"}},
        {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "answer"}, "severity": "warn"},
    ]
    quality = Quality(expectations=own, min_records=1000).model_dump()
    made = make_dataset(store, {"main": jsonl(tmp_path / "a.jsonl", rows)}, quality=quality)
    assert made.content["quality"]["failed"] == [
        "enough_records",
        "expect_column_values_to_match_regex(answer)",
    ]
    results = json.loads(made.file("beside/quality.json").read_text("utf-8"))
    bad = next(r for r in results if r["name"].startswith("expect_column_values_to_match_regex"))
    assert bad["observed"] == "1 of 61 records unexpected"
    lost = next(r for r in view.rows(made, limit=100) if "Lovelace" in r["prompt"])
    assert bad["detail"] == f"records {lost['record_id'][:12]}"
    page = made.file("beside/quality.html").read_text("utf-8")
    assert "2 failed" in page
    assert "<svg" in page
    assert "Lovelace" not in page
    assert "http" not in page


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("write to ann.lee@acme.org or +44 20 7946 0958", ["email", "phone"]),
        ("card 4111 1111 1111 1111, not 4111 1111 1111 1112", ["credit_card"]),
        ("pay DE89 3704 0044 0532 0130 00 but not DE88 3704 0044 0532 0130 00", ["iban"]),
        ("host 192.168.0.12 runs 1.2.3 and 999.1.1.1, fe80::1 at 02:35:10", ["ipv4", "ipv6"]),
        ("AKIAIOSFODNN7EXAMPLE and -----BEGIN RSA PRIVATE KEY-----", ["aws_access_key", "private_key"]),
        ("Authorization: Bearer abcdefghijklmnopqrstuvwxyz012345", ["bearer_token"]),
        ("H442 at 02:35 on line 3, part 100-200-300, on 2026-11-20, 24 000 000 units", []),
    ],
)
def test_detectors(text: str, kinds: list[str]) -> None:
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]
    found = findings.find([Record(identity(messages), messages, "s", None, 1)])
    assert [f.kind for f in found] == kinds
    assert all(f.field == "prompt" for f in found)
    assert findings.counts(found)["person_names"] == "not checked"


# -- splits -------------------------------------------------------------------------------------------


def test_splits_are_written_whole_and_sorted(store: Store, tmp_path: Path) -> None:
    files = {
        "main": jsonl(tmp_path / "a.jsonl", ROWS),
        "held": jsonl(tmp_path / "t.jsonl", [("unseen one", "1"), ("unseen two", "2")]),
        "hard": jsonl(tmp_path / "h.jsonl", [("hard one", "1")]),
    }
    dataset = make_dataset(store, files, {"held": "test", "hard": "challenge"})
    made = make_splits(store, dataset)
    counts = view.counts(made)
    assert counts["test"] == 2
    assert counts["challenge_hard"] == 1
    assert counts["train"] + counts["validation"] == 60
    assert made.content["leakage"] == {"shared_groups": 0, "shared_prompts": 0, "near_pairs": 0}
    for name, n in counts.items():
        ids = [r["record_id"] for r in view.rows(made, split=name, limit=1000)]
        assert len(ids) == n
        assert ids == sorted(ids)
    assert view.rows(made, split="challenge_hard")[0]["challenge"] == "hard"
    with pytest.raises(InputInvalid, match="known: train, validation, test, challenge_hard"):
        view.rows(made, split="dev")
    none = make_splits(store, dataset, validation=0.0)
    assert view.rows(none, split="validation") == []


# -- half-made, and real data ----------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from ftaas_pipelines.data import tables
from ftaas_pipelines.stages import prepare, program
write = tables.write
def write_and_die(path, rows, schema):
    write(path, rows, schema)
    if path.name == "dropped.parquet":
        os.kill(os.getpid(), signal.SIGKILL)
tables.write = write_and_die
sys.exit(program.main("prepare", prepare.make))
"""


def test_killed_in_the_middle_of_writing_leaves_no_artifact(store: Store, tmp_path: Path) -> None:
    spec = dataset_spec(store, {"main": jsonl(tmp_path / "a.jsonl", ROWS)})
    (tmp_path / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
    command = [
        sys.executable,
        "-c",
        KILLED,
        "--spec",
        str(tmp_path / "spec.json"),
        "--out",
        str(tmp_path / "o.json"),
    ]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert list((store.root / "drafts").iterdir())  # it did die while writing
    assert not store.all()
    assert store.find(spec.input_digest) is None
    made = prepare.make(spec, store, Silent())
    assert store.find(spec.input_digest) == made
    assert not store.verify()


@pytest.mark.skipif(not SHARED.is_dir(), reason="shared/data is absent")
def test_data_that_nobody_here_wrote(store: Store) -> None:
    folder = SHARED / "banking77"
    made = make_dataset(store, {"main": folder / "train.csv", "held": folder / "test.csv"}, {"held": "test"})
    assert made.content["format"] == "text_target"
    assert made.content["quality"]["passed"]
    assert made.content["records"] + sum(made.content["dropped"].values()) == 13_083
    assert view.counts(make_splits(store, made))["test"] == made.content["by_source"]["held"]
    with pytest.raises(InputInvalid, match="ShareGPT"):
        formats.detect(SHARED / "toolcalls" / "sharegpt_tools.json")
    assert len(readers.read(Path("a.json"), b'[{"a": 1}]').rows) == 1
