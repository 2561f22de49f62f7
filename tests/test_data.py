"""Promises of the dataset stage: identity by content, every row accounted for, verdicts, quality.

What a file, a format, a cleaning step, a detector or a split does by itself is in test_shards, test_formats,
test_cleaning, test_privacy and test_splits; how the work is cut, spread and killed in test_prepare.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preparing import ROWS, Silent, dataset_spec, make_dataset, make_splits, write

from ftaas_pipelines.data import tables
from ftaas_pipelines.data.rows import formats
from ftaas_pipelines.data.versions import view
from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.projects.dataset import Cleaning, Privacy, Quality
from ftaas_pipelines.stages import prepare
from ftaas_pipelines.store import Artifact, Store, file_digest

STAGE = (sys.executable, "-m", "ftaas_pipelines.stages.prepare")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# -- identity ------------------------------------------------------------------------------------


def test_the_digest_is_of_the_content_alone(store: Store, tmp_path: Path) -> None:
    """Same rows in another order, another file, several files, another hash seed: same digest."""
    first = make_dataset(store, {"main": write(tmp_path / "a.jsonl", ROWS)})
    shuffled = random.Random(1).sample(ROWS, len(ROWS))
    (tmp_path / "z.csv").write_text(
        "prompt,completion\r\n" + "".join(f'"{p}",{c}\r\n' for p, c in shuffled), encoding="utf-8-sig"
    )
    assert make_dataset(store, {"main": tmp_path / "z.csv"}).digest == first.digest
    parts = [write(tmp_path / "parts" / f"{i}.jsonl", shuffled[i::3]) for i in range(3)]
    for paths in (parts, parts[::-1]):
        assert make_dataset(store, {"main": paths}).digest == first.digest
    digests = {first.digest}
    for seed in ("1", "2"):
        other = Store(tmp_path / f"store{seed}")
        spec = tmp_path / f"spec{seed}.json"
        said = dataset_spec(other, {"main": tmp_path / "a.jsonl"}).model_dump_json()
        spec.write_text(said, encoding="utf-8")
        command = [*STAGE, "--spec", spec, "--out", f"{spec}.out"]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True)
        digests.add(json.loads(Path(f"{spec}.out").read_text("utf-8"))["digest"])
    assert digests == {first.digest}
    changed = [(ROWS[0][0], ROWS[0][1].replace("Fault", "Fawlt")), *ROWS[1:]]
    assert make_dataset(store, {"main": write(tmp_path / "b.jsonl", changed)}).digest != first.digest
    assert not store.verify()


def test_every_format_gives_the_same_records(tmp_path: Path) -> None:
    alpaca = [{"instruction": p, "input": "", "output": c} for p, c in ROWS]
    (tmp_path / "alpaca.json").write_text(json.dumps(alpaca, indent=2), encoding="utf-8")
    said = [[("user", p), ("assistant", c)] for p, c in ROWS]
    chat = [{"messages": [{"role": r, "content": c} for r, c in turns]} for turns in said]
    write(tmp_path / "chat.jsonl", chat)
    share = [{"conversations": [{"from": "human", "value": p}, {"from": "gpt", "value": c}]} for p, c in ROWS]
    write(tmp_path / "share.jsonl", share)
    table: Any = pa.table({"text": [p for p, _ in ROWS], "category": [c for _, c in ROWS]})
    pq.write_table(table, tmp_path / "t.parquet")
    seen: set[str] = set()
    for name, expected in (
        ("alpaca.json", formats.Layout("alpaca", {})),
        ("chat.jsonl", formats.Layout("messages", {})),
        ("share.jsonl", formats.Layout("sharegpt", {})),
        ("t.parquet", formats.Layout("text_target", {"target": "category"})),
    ):
        assert formats.detect(tmp_path / name) == expected
        made = make_dataset(Store(tmp_path / name.partition(".")[0]), {"main": tmp_path / name})
        seen.add(file_digest(made.file("records/all.parquet")))
        assert made.content["kinds"] == {"text_pair": 60}
        assert made.content["format"] == expected.format
    assert len(seen) == 1


def test_a_file_that_changed_since_it_was_fingerprinted_is_refused(store: Store, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ROWS)
    spec = dataset_spec(store, {"main": path})
    write(path, ROWS[1:])
    with pytest.raises(FtaasError, match="changed while being read"):
        prepare.make(spec, store, Silent())
    path.unlink()
    with pytest.raises(InputInvalid, match=r"a\.jsonl: the data file cannot be read"):
        prepare.make(spec, store, Silent())
    assert not store.all()


# -- what is done to records -----------------------------------------------------------------------


def test_one_row_is_followed_from_its_source_to_what_became_of_it(store: Store, tmp_path: Path) -> None:
    odd = [("  cafe\u0301 \x07", "coffee"), ("café", "coffee"), ("too long", "x" * 500), ROWS[0]]
    main = write(tmp_path / "a.jsonl", ROWS + odd)
    test = write(tmp_path / "t.jsonl", [(ROWS[5][0].upper(), "Another answer."), ROWS[6]])
    cleaning = Cleaning(max_characters=400).model_dump()
    made = make_dataset(store, {"main": main, "held": test}, {"held": "test"}, cleaning=cleaning)
    assert made.content["dropped"] == {"also_in_test": 2, "duplicate": 2, "too_long": 1}
    assert made.content["cleaned"] == {"control_characters": 1, "strip": 1, "unicode_nfc": 1}
    assert made.content["by_source"] == {"held": 2, "main": 59}
    shown = view.rows(made, limit=1000)
    assert [r["record_id"] for r in shown] == sorted(r["record_id"] for r in shown)
    assert [r["prompt"] for r in view.rows(made, split="test")].count(ROWS[6][0]) == 1
    origins = tables.read(made.file("beside/provenance")).to_pylist()
    gone = {r["record_id"]: r["reason"] for r in tables.read(made.file("dropped")).to_pylist()}
    by_row = {(o["source"], o["row"]): o["record_id"] for o in origins}
    assert gone[by_row["main", 63]] == "too_long"
    assert gone[by_row["main", 6]] == "also_in_test"
    assert gone[by_row["main", 62]] == "duplicate", "of equals the first row stays, as it came in"
    cafe = next(r for r in shown if r["prompt"] == "café")
    assert cafe["record_id"] == by_row["main", 61] and cafe["content_id"] == by_row["main", 62]
    assert {o["sha256"] for o in origins if o["source"] == "main"} == {file_digest(main)}


def test_verdicts_fix_reject_and_go_stale(store: Store, tmp_path: Path) -> None:
    files = {"main": write(tmp_path / "a.jsonl", [*ROWS, ("Who?", "Ask ann.lee@acme.org.")])}
    first = make_dataset(store, files)
    (named,) = tables.read(first.file("findings"))["record_id"].to_pylist()
    before = [r for r in view.rows(first, limit=5) if r["record_id"] != named]
    before[1] = view.by_id(first, [named])[named]

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
    assert made.content["rows"] == {"main": {"in": 61, "kept": 60, "rejected": 1}}
    assert after[before[0]["record_id"]] == before[0]
    fixed = after[before[1]["record_id"]]
    assert fixed["answer"] == fixed["messages"][-1]["content"] == "The corrected answer."
    assert fixed["content_id"] != before[1]["content_id"] and fixed["group"] == before[1]["group"]
    assert made.content["findings"]["email"] == 0, "what was found on the text as it was is gone"
    assert before[2]["record_id"] not in after
    assert before[3]["record_id"] in after


def test_the_system_message_is_put_first_and_conversations_keep_theirs(store: Store, tmp_path: Path) -> None:
    said = (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"))
    turns = [*said, ("assistant", "Ciao")]
    own = {"messages": [{"role": r, "content": c} for r, c in turns]}
    path = write(tmp_path / "c.jsonl", [own, {"messages": own["messages"][3:]}])
    by_kind = {r["kind"]: r for r in view.rows(make_dataset(store, {"main": path}, system="You are polite."))}
    assert by_kind["text_pair"]["messages"][0] == {"role": "system", "content": "You are polite."}
    assert by_kind["text_pair"]["prompt"] == "Bye"
    assert by_kind["conversation"]["messages"] == own["messages"]
    assert by_kind["conversation"]["prompt"] == "user: Hi\nassistant: Hello\nuser: Bye"


# -- findings and quality ---------------------------------------------------------------------------


def _bytes(made: Artifact) -> bytes:
    """All that stands in an artifact's tables and pages, unpacked."""
    out = b""
    for path in sorted(made.path.rglob("*")):
        if path.suffix == ".parquet":
            out += json.dumps(pq.read_table(path).to_pylist()).encode()
        elif path.is_file():
            out += path.read_bytes()
    return out


def test_a_value_that_was_redacted_stands_nowhere(store: Store, tmp_path: Path) -> None:
    rows = [*ROWS, ("Who is it?", "Ask ann.lee@acme.org, key AKIAIOSFODNN7EXAMPLE.")]
    files = {"main": write(tmp_path / "a.jsonl", rows)}
    made = make_dataset(store, files, privacy=Privacy(profile="gdpr").model_dump())
    found = tables.read(made.file("findings")).to_pylist()
    assert {f["detector"] for f in found} == {"email", "secret"}
    assert made.content["findings"]["email"] == 1
    assert made.content["findings"]["person_names"] == "not checked"
    for value in (b"ann.lee", b"AKIA"):
        assert value not in _bytes(made)
    kept = make_dataset(store, files)
    assert b"ann.lee" in _bytes(kept), "profile none finds and keeps"


def test_quality_is_great_expectations_and_names_no_values(store: Store, tmp_path: Path) -> None:
    rows = [*ROWS, ("Where is Ada Lovelace?", "not a fault")]
    own = [
        {"type": "expect_column_values_to_match_regex", "kwargs": {"column": "answer", "regex": "^Fault"}},
        {"type": "expect_column_values_to_be_unique", "kwargs": {"column": "answer"}, "severity": "warn"},
    ]
    quality = Quality(expectations=own, min_records=1000).model_dump()
    made = make_dataset(store, {"main": write(tmp_path / "a.jsonl", rows)}, quality=quality)
    assert not made.content["quality"]["passed"]
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
    ("expectation", "said"),
    [
        ({"type": "expect_column_values_to_not_be_nul"}, "'expect_column_values_to_not_be_null'?"),
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
        make_dataset(store, {"main": write(tmp_path / "a.jsonl", ROWS)}, quality=quality)
    assert said in str(caught.value)
    assert not store.all()


# -- splits -------------------------------------------------------------------------------------------


def test_splits_are_written_whole_and_sorted(store: Store, tmp_path: Path) -> None:
    files = {
        "main": write(tmp_path / "a.jsonl", ROWS),
        "held": write(tmp_path / "t.jsonl", [("unseen one", "1"), ("unseen two", "2")]),
        "hard": write(tmp_path / "h.jsonl", [("hard one", "1")]),
    }
    dataset = make_dataset(store, files, {"held": "test", "hard": "challenge"})
    made = make_splits(store, dataset)
    counts = view.counts(made)
    assert (counts["test"], counts["challenge_hard"]) == (2, 1)
    assert counts["train"] + counts["validation"] == 60
    assert made.content["leakage"] == {"shared_groups": 0, "shared_prompts": 0, "near_pairs": 0}
    for name, n in counts.items():
        ids = [r["record_id"] for r in view.rows(made, split=name, limit=1000)]
        assert len(ids) == n and ids == sorted(ids)
    assert view.rows(made, split="challenge_hard")[0]["challenge"] == "hard"
    with pytest.raises(InputInvalid, match="known: train, validation, test, challenge_hard"):
        view.rows(made, split="dev")
    assert view.rows(make_splits(store, dataset, validation=0.0), split="validation") == []


def test_too_few_records_for_the_splits(store: Store, tmp_path: Path) -> None:
    made = make_dataset(store, {"main": write(tmp_path / "a.jsonl", ROWS[:5])})
    assert made.content["quality"] == {"passed": False, "failed": ["enough_records"]}
    with pytest.raises(InputInvalid) as caught:
        make_splits(store, made, test=0.0)
    assert "train needs at least 8 records, and has" in str(caught.value)
    assert "test needs at least 1 record, and has 0" in str(caught.value)
    assert "give a source split: test" in str(caught.value)
