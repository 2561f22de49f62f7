"""Versions of data: shared buckets, diff, rendering, export, catalog, card, Croissant, and what gc leaves."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_training import materials

from ftaas_pipelines.data import tables
from ftaas_pipelines.data.versions import view
from ftaas_pipelines.data.versions.diff import compare
from ftaas_pipelines.data.versions.export import export
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.governance import retention
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.store import Artifact, Store, digest_of

Row = dict[str, Any]
SOURCE = {
    "name": "tickets",
    "sha256": "a" * 64,
    "split": None,
    "licence": "CC-BY-4.0",
    "owner": "Ann | Plant",
    "vendor": "Acme",
    "purpose": "support",
    "consent": "contract",
    "cost_usd": 12.5,
}


def row(prompt: str, answer: str, content: str = "", **more: Any) -> Row:
    """A row of the record table. `content`: what stands in the answer now, where cleaning changed it."""
    messages = more.pop("messages", None) or [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": content or answer},
    ]
    raw = [*messages[:-1], {**messages[-1], "content": answer}] if content else messages
    extra, synthetic = more.pop("extra", None), more.pop("synthetic", None)
    return {
        "record_id": digest_of({"messages": raw, "extra": extra}),
        "content_id": digest_of({"messages": messages, "extra": extra}),
        "kind": "text_pair",
        "prompt": prompt,
        "answer": messages[-1]["content"],
        "messages": json.dumps(messages, ensure_ascii=False),
        "extra": json.dumps(extra) if extra else None,
        "source": "tickets",
        "synthetic": json.dumps(synthetic) if synthetic else None,
        "group": digest_of(prompt),
        **more,
    }


def make_dataset(
    store: Store, rows: Sequence[Row], *, project: str = "codes", dropped: Sequence[Row] = (), **content: Any
) -> Artifact:
    """A dataset version in the layout of the platform, without its pipeline."""
    rows = sorted(rows, key=lambda r: r["record_id"])
    inputs = {"sources": [SOURCE], "privacy": {"profile": "gdpr", "entities": {"email": "hash"}}}
    with store.create("dataset", digest_of([inputs, rows, content])) as draft:
        for prefix in tables.prefixes(len(rows)):
            for name, some, schema in (
                ("records", rows, tables.RECORDS),
                ("dropped", dropped, tables.DROPPED),
            ):
                mine = [r for r in some if r["record_id"].startswith(prefix)]
                tables.write_rows(tables.bucket(draft.path / name, prefix), mine, schema)
        aside = [{"source": "tickets", "sha256": "a" * 64, "row": 17, "what": "the row is not an object"}]
        tables.write_rows(draft.path / "beside" / "quarantine.parquet", aside, tables.QUARANTINE)
        draft.content = {
            "records": len(rows),
            "by_source": {"tickets": len(rows)},
            "rows": {"tickets": {"in": len(rows) + 3, "kept": len(rows), "too_short": 2, "bad_row": 1}},
            "dropped": {"bad_row": 1, "too_short": 2},
            "cleaned": {"unicode_nfc": 4},
            "findings": {"email": 3, "person_names": "not checked"},
            "languages": {"en": len(rows)},
            "near_duplicates": 5,
            "quality": {"passed": True, "failed": []},
            **content,
        }
        spec = {"project": project, "asset": "dataset", "inputs": inputs}
        draft.attestation |= {"spec": spec, "actor": "ann@example.com"}
    return draft.made


def make_splits(store: Store, dataset: Artifact, rows: Sequence[Row], anchors: str | None = None) -> Artifact:
    parts = {"train": rows[:-2], "validation": rows[-2:-1], "test": rows[-1:]}
    with store.create("splits", digest_of([dataset.digest, anchors])) as draft:
        for name, some in parts.items():
            ordered = sorted(some, key=lambda r: r["record_id"])
            tables.write_rows(draft.path / f"{name}.parquet", ordered, tables.RECORDS)
        draft.content = {"dataset": dataset.digest, "counts": {n: len(p) for n, p in parts.items()}}
        inputs = {"dataset": dataset.digest, "anchors": anchors}
        draft.attestation |= {"spec": {"project": "codes", "asset": "splits", "inputs": inputs}}
    return draft.made


def many(count: int) -> list[Row]:
    return [row(f"What is code {i}?", f"Code {i} says check {i % 7}.") for i in range(count)]


@pytest.fixture
def store(home: Path) -> Store:
    return Store(home / "store")


# -- stored once ---------------------------------------------------------------------------------


def test_one_new_row_rewrites_one_bucket(store: Store) -> None:
    rows = many(4_200)
    new = row("What is new?", "This.")
    old, grown = make_dataset(store, rows), make_dataset(store, [*rows, new])
    assert len(old.manifest["files"]) == 32
    touched = f"{new['record_id'][0]}.parquet"
    for path in view.files(old):
        other = grown.file(f"records/{path.name}")
        assert path.samefile(other) == (path.name != touched)
    assert not store.verify() and len(list((store.root / "objects").iterdir())) == 17

    # Bytes that were changed in place are found in every version, and are never handed on.
    victim = view.files(old)[1]
    whole = victim.read_bytes()
    victim.write_bytes(whole[:-1] + b"!")
    assert len(store.verify()) == (2 if victim.name != touched else 1)
    shutil.rmtree(grown.path)
    again = make_dataset(store, [*rows, new])
    assert again.digest == grown.digest and not list(again.problems())


def test_without_links_files_stay_their_own(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refused)
    rows = many(3)
    old, grown = make_dataset(store, rows), make_dataset(store, rows, near_duplicates=6)
    assert not store.verify()
    assert not view.files(old)[0].samefile(view.files(grown)[0])
    assert view.files(old)[0].read_bytes() == view.files(grown)[0].read_bytes()


# -- rows and diff -------------------------------------------------------------------------------


def test_rows_are_found_in_buckets(store: Store) -> None:
    rows = [
        *many(4_200),
        row("hello", "hi", kind="conversation", source="chats", extra={"columns": {"v": [1]}}),
    ]
    made = make_dataset(store, rows)
    expected = sorted(r["record_id"] for r in rows)
    assert [r["record_id"] for r in view.rows(made, limit=300)] == expected[:300]
    assert [r["record_id"] for r in view.stream(made)] == expected
    (found,) = view.rows(made, source="chats")
    assert found["extra"] == {"columns": {"v": [1]}} and found["messages"][1]["content"] == "hi"
    assert view.rows(made, kind="conversation") == [found] == view.rows(made, record=found["record_id"][:9])
    assert (
        view.rows(made, kind="preference")
        == []
        == view.rows(made, record="f" * 64)
        == view.rows(made, record="zz")
    )
    assert [r["record_id"] for r in view.rows(made, record="a", limit=9_999)] == [
        i for i in expected if i.startswith("a")
    ]
    assert set(view.by_id(made, [expected[0], expected[-1], "0" * 64])) == {expected[0], expected[-1]}


def test_diff_says_what_came_went_and_changed(store: Store) -> None:
    rows = many(4_100)
    edited = row("WHAT is  code 7?", "Another answer.")
    corrected = row(rows[8]["prompt"], rows[8]["answer"], content="Corrected.")
    come = row("What came?", "This.")
    gone, rejected = rows[9], rows[10]
    kept = [r for i, r in enumerate(rows) if i not in (7, 8, 9, 10)]
    dropped = [{"record_id": rejected["record_id"], "source": "tickets", "reason": "rejected"}]
    old = make_dataset(store, rows)
    new = make_dataset(store, [*kept, edited, corrected, come], dropped=dropped)
    found = compare(old, new)
    assert found.counts == {"same": 4_096, "changed": 1, "edited": 1, "came": 1, "went": 2}
    assert found.went_because == {"not_in_source": 1, "rejected": 1}
    assert {(r["record_id"], r["because"]) for r in found.went} == {
        (gone["record_id"], "not_in_source"),
        (rejected["record_id"], "rejected"),
    }
    assert [r["prompt"] for r in found.came] == ["What came?"]
    assert found.changed[0]["after"]["answer"] == "Corrected."
    assert found.edited[0]["before"]["answer"] == rows[7]["answer"]
    assert found.edited[0]["after"]["answer"] == "Another answer."

    # Versions with other buckets: a hundred rows in one, thousands in sixteen.
    few = make_dataset(store, rows[:100])
    assert compare(few, old).counts == {"same": 100, "changed": 0, "edited": 0, "came": 4_000, "went": 0}
    assert compare(old, few, limit=3).counts["went"] == 4_000
    assert len(compare(old, few, limit=3).went) == 3
    assert compare(old, old).counts["same"] == 4_100


# -- export --------------------------------------------------------------------------------------

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"code": 7}'}}
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Look.", "images": [{"ref": "a.png", "sha256": None}]},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "ok", "tool_call_id": "c1"},
    {"role": "assistant", "content": "Fine."},
]


def lines(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_openai_and_bedrock_shapes(store: Store, tmp_path: Path) -> None:
    chat = row("", "Fine.", messages=CHAT, kind="conversation", extra={"tools": TOOLS})
    better = row("Why?", "Because.", kind="preference", extra={"rejected": "No idea."})
    made = make_dataset(store, [chat, better])
    assert export(made, "jsonl_openai", tmp_path / "openai").records == {"records": 2}
    by_shape = {"input" in line: line for line in lines(tmp_path / "openai" / "records.jsonl")}
    assert by_shape[False]["tools"] == TOOLS
    messages = by_shape[False]["messages"]
    assert messages[1]["content"][1] == {"type": "image_url", "image_url": {"url": "a.png"}}
    assert messages[2] == {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert messages[3] == {"role": "tool", "content": "ok", "tool_call_id": "c1"}
    assert by_shape[True] == {
        "input": {"messages": [{"role": "user", "content": "Why?"}]},
        "preferred_output": [{"role": "assistant", "content": "Because."}],
        "non_preferred_output": [{"role": "assistant", "content": "No idea."}],
    }
    with pytest.raises(InputInvalid, match="no shape in Amazon Bedrock"):
        export(made, "jsonl_bedrock", tmp_path / "bedrock")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name not in ("home", "policy", "projects")) == [
        "openai"
    ], "nothing half-written is left"

    pairs = many(5)
    splits = make_splits(store, make_dataset(store, pairs), pairs)
    export(splits, "jsonl_bedrock", tmp_path / "pairs")
    assert [len(lines(tmp_path / "pairs" / f"{n}.jsonl")) for n in ("train", "validation", "test")] == [
        3,
        1,
        1,
    ]
    assert set(lines(tmp_path / "pairs" / "test.jsonl")[0]) == {"prompt", "completion"}
    said = [{"role": "system", "content": "Be brief."}, *json.loads(pairs[0]["messages"])]
    export(make_dataset(store, [pairs[1], row("", "", messages=said)]), "jsonl_bedrock", tmp_path / "chats")
    written = lines(tmp_path / "chats" / "records.jsonl")
    assert {line["schemaVersion"] for line in written} == {"bedrock-conversation-2024"}
    assert [line["system"] for line in written if "system" in line] == [[{"text": "Be brief."}]]
    with pytest.raises(InputInvalid, match="is there already"):
        export(splits, "jsonl_openai", tmp_path / "pairs")


def test_parquet_and_hugging_face_exports(store: Store, tmp_path: Path) -> None:
    from datasets import DatasetDict, load_from_disk

    rows = [
        *many(4),
        row("", "Fine.", messages=CHAT, kind="conversation", extra={"tools": TOOLS}),
        row("Written?", "Yes.", synthetic={"generator": "g", "prompt": "p", "cost_usd": 0.1}),
    ]
    made = make_dataset(store, rows)
    splits = make_splits(store, made, rows)
    done = export(splits, "hf", tmp_path / "hf")
    loaded = load_from_disk(str(tmp_path / "hf"))
    assert isinstance(loaded, DatasetDict)
    assert {name: len(part) for name, part in loaded.items()} == done.records == splits.content["counts"]
    assert {r["record_id"] for part in loaded.values() for r in part} == {r["record_id"] for r in rows}
    chat = next(r for part in loaded.values() for r in part if r["kind"] == "conversation")
    assert json.loads(chat["tools"]) == TOOLS and chat["messages"][2]["tool_calls"] == [CALL]
    assert export(made, "hf", tmp_path / "one").records == {"records": 6}
    assert not any(".cache" in name for name in export(made, "hf", tmp_path / "two").files)

    copied = export(splits, "parquet", tmp_path / "parquet", "test")
    assert copied.files == ["test.parquet"] and copied.records == {"test": 1}
    copy = tmp_path / "parquet" / "test.parquet"
    assert copy.read_bytes() == splits.file("test.parquet").read_bytes()
    assert not copy.samefile(splits.file("test.parquet"))


# -- the command line ----------------------------------------------------------------------------


@pytest.fixture
def signed(
    store: Store, home: Path, project_factory: Callable[..., Path]
) -> tuple[list[Row], Artifact, Artifact]:
    """A dataset of the project `codes` and its splits, signed by one person."""
    project_factory(extra="not_for: Guessing | anything\n")
    rows = [*many(8), row("Written?", "Yes.", synthetic={"generator": "g", "prompt": "p", "cost_usd": 0.1})]
    made = make_dataset(store, rows)
    splits = make_splits(store, made, rows)
    body = {"role": "sme", "decision": "approve", "comment": "looks right"}
    Ledger(f"sqlite:///{home / 'ledger.db'}", home).append(
        "decision", splits.digest, body, project="codes", actor="sam.expert@example.com"
    )
    return rows, made, splits


def test_catalog_card_and_croissant(
    ftaas: Callable[..., Any], signed: tuple[list[Row], Artifact, Artifact], tmp_path: Path
) -> None:
    import mlcroissant

    rows, made, splits = signed
    listed = {line["kind"]: line for line in ftaas("data", "list", "codes", "--json").json["data"]}
    version = listed["dataset"]
    assert (version["records"], version["cost_usd"], version["licence"]) == (9, 12.5, ["CC-BY-4.0"])
    assert version["splits"][0]["sign_offs"][0]["by"] == "sam.expert@example.com"
    assert listed["splits"]["sign_offs"][0]["decision"] == "approve"
    told = ftaas("data", "list").stdout
    assert "Acme" in told and "12.5 USD" in told and "sme sam.expert@example.com: approve" in told

    shown = ftaas("data", "show", made.digest)
    assert "tickets:17" in shown.stdout and "person_names  not checked" in shown.stdout
    counts = next(text for text in shown.stdout.splitlines() if text.startswith("tickets  "))
    assert counts.split() == ["tickets", "12", "9", "1", "2"]
    assert ftaas("data", "show", made.digest, "--json").json["quarantine"][0]["row"] == 17

    text = ftaas("data", "card", splits.digest).stdout
    for said in (
        "# codes",
        "Guessing \\| anything",
        "owner: Ann \\| Plant",
        "licence: CC-BY-4.0",
        "consent: contract",
        "| tickets | 12 | 9 | 1 | 2 |",
        "1 of 9 records (11.1%)",
        "| person_names | not checked |",
        "profile gdpr; email: hash",
        "sme: sam.expert@example.com said approve",
        made.manifest["files"]["records/all.parquet"]["sha256"],
    ):
        assert said in text, said
    assert "{{" not in text and "\n\n\n\n" not in text

    assert ftaas("data", "export", made.digest, "--to", "parquet", "--out", str(tmp_path / "out")).code == 0
    assert (tmp_path / "out" / "README.md").read_text("utf-8") == text.rstrip("\n") + "\n"
    read = mlcroissant.Dataset(jsonld=tmp_path / "out" / "croissant.json")
    assert not read.metadata.ctx.issues.errors and not read.metadata.ctx.issues.warnings
    ids = [r["records/record_id"].decode() for r in read.records("records")]
    assert ids == sorted(r["record_id"] for r in rows)
    document = ftaas("data", "croissant", made.digest, "--json").json
    assert mlcroissant.Dataset(jsonld=document).metadata.license == ["CC-BY-4.0"]
    assert "person_names: not checked" in document["rai:personalSensitiveInformation"]


def test_export_needs_a_known_person_above_internal(
    ftaas: Callable[..., Any],
    signed: tuple[list[Row], Artifact, Artifact],
    home: Path,
    tmp_path: Path,
) -> None:
    _, made, _ = signed
    with (tmp_path / "projects" / "codes" / "project.yaml").open("a", encoding="utf-8") as yaml:
        yaml.write("data_sensitivity: restricted\nreviews: {sme: 1, rai: 1}\n")
    words = ("data", "export", made.digest, "--to", "jsonl_openai", "--out", str(tmp_path / "out"))
    refused = ftaas(*words, FTAAS_ACTOR="somebody")
    assert refused.code == 3 and "restricted data" in refused.stderr and not (tmp_path / "out").exists()
    done = ftaas(*words, "--json").json
    assert done["records"] == {"records": 9} and done["files"] == ["README.md", "records.jsonl"]
    (entry,) = Ledger(f"sqlite:///{home / 'ledger.db'}", home).entries("export")
    assert (entry.subject, entry.body["to"]) == (made.digest, "jsonl_openai")


def test_diff_and_filters_on_the_command_line(
    ftaas: Callable[..., Any], signed: tuple[list[Row], Artifact, Artifact], store: Store
) -> None:
    rows, made, splits = signed
    other = make_dataset(store, rows[1:])
    found = ftaas("data", "diff", splits.digest, other.digest, "--json").json
    assert found["counts"] == {"same": 8, "changed": 0, "edited": 0, "came": 0, "went": 1}
    assert "1 not_in_source" in ftaas("data", "diff", made.digest, other.digest).stdout
    one = rows[3]["record_id"]
    assert (
        ftaas("data", "rows", made.digest, "--record", one[:8], "--json").json["rows"][0]["record_id"] == one
    )
    assert "no such rows" in ftaas("data", "rows", made.digest, "--kind", "preference").stdout


@pytest.mark.parametrize("base", ["embedded/tiny-causal", "embedded/tiny-t5"])
def test_rows_rendered_as_training_reads_them(
    ftaas: Callable[..., Any], store: Store, project_factory: Callable[..., Path], base: str
) -> None:
    from ftaas_pipelines.inference import bases
    from ftaas_pipelines.training import data

    yaml = project_factory()
    yaml.write_text(
        yaml.read_text("utf-8").replace("embedded/tiny-causal", base).replace("tokens: 128", "tokens: 24"),
        encoding="utf-8",
    )
    rows = [row("Say é.", "It is é, fine."), row("Say more of it.", "word " * 40), *many(4)]
    splits = make_splits(store, make_dataset(store, rows), rows)
    shown = ftaas("data", "rows", splits.digest, "--rendered", "lora", "--json").json
    trained = data.load(materials(splits.path, bases.resolve(base, "main", Path()), 24)).train
    assert [(r["ids"], r["labels"]) for r in shown["rows"]] == [
        (e["input_ids"], e["labels"]) for e in trained
    ]
    cut = {r["record_id"]: r["cut"] for r in shown["rows"]}
    assert cut[rows[1]["record_id"]] > 0 and cut[rows[0]["record_id"]] == 0

    text = ftaas("data", "rows", splits.digest, "--rendered", "lora").stdout
    assert "tokens are cut off at max_seq_tokens=24" in text
    taught = next(part for part in text.split("«")[2:] if "fine" in part).partition("»")[0]
    assert taught.removesuffix("<|end|>").removesuffix("</s>") == "It is é, fine."
    unknown = ftaas("data", "rows", splits.digest, "--rendered", "none")
    assert unknown.code == 2 and "known: lora" in unknown.stderr


# -- gc ------------------------------------------------------------------------------------------


def age(path: Path, days: float) -> None:
    """Make everything below look as if it were written so many days ago."""
    for each in [path, *path.rglob("*")]:
        then = each.stat().st_mtime - days * 86_400
        os.utime(each, (then, then))


def simple(store: Store, kind: str, **content: Any) -> Artifact:
    with store.create(kind, digest_of([kind, content])) as draft:
        draft.content = content
        (draft.path / "weights.bin").write_bytes(digest_of(content).encode() * 2_000)
    return draft.made


def test_gc_takes_only_what_nobody_needs(store: Store, home: Path) -> None:
    ledger = Ledger(f"sqlite:///{home / 'ledger.db'}", home)
    rows = many(6)
    # behind a grant: dataset <- splits <- adapter
    granted = simple(store, "adapter", splits=make_splits(store, make_dataset(store, rows), rows).digest)
    ledger.append("grant", "x", {"deep": [{"er": granted.digest}]}, project="p", actor="a@b.org")
    # behind a deployment: named inside a path
    deployed = simple(store, "bento", adapter=simple(store, "adapter", n=2).digest)
    folder = home / "deployments" / "production"
    folder.mkdir(parents=True)
    (folder / "desired.json").write_text(json.dumps({"p": {"path": f"/s/{deployed.digest}/bento"}}), "utf-8")
    # behind a head, and behind a pin whose splits grew from others by their attestation alone
    head = simple(store, "evaluation", n=3)
    store.set_head("p", "evaluation", "i" * 64, {}, head.digest)
    first = make_splits(store, make_dataset(store, rows[:5]), rows[:5])
    second = make_splits(store, make_dataset(store, rows[:4]), rows[:4], anchors=first.digest)
    store.write_json(f"anchors/p/{'e' * 64}.json", {"anchors": second.digest})
    needed = {a.digest for a in store.all()}
    assert len(needed) == 10
    forgotten = simple(store, "adapter", n=5)
    asked = simple(store, "adapter", n=6)
    shared = make_dataset(store, rows, near_duplicates=9)  # its records are those of the granted dataset
    (store.root / "drafts" / "left").mkdir(parents=True)
    (store.work(digest_of(["adapter", {"n": 5}])) / "checkpoint").write_text("c", "utf-8")
    (store.work("f" * 64) / "checkpoint").write_text("c", "utf-8")
    age(store.root, days=30)
    young = simple(store, "adapter", n=7, of=shared.digest)
    assert store.find(digest_of(["adapter", {"n": 6}])), "asked for: young again"

    plan = retention.collect(store, ledger, [home / "deployments"], 7, dry_run=True)
    assert [a.digest for a in plan.artifacts] == [forgotten.digest] and len(store.all()) == 14
    young_gone = retention.collect(store, ledger, [home / "deployments"], 0, dry_run=True)
    assert {a.digest for a in young_gone.artifacts} == {a.digest for a in (forgotten, asked, shared, young)}

    done = retention.collect(store, ledger, [home / "deployments"], 7)
    assert (len(done.artifacts), len(done.drafts), len(done.work), len(done.objects)) == (1, 1, 1, 1)
    assert done.bytes == plan.bytes > 128_000 and done.kept == 13
    assert {a.digest for a in store.all()} == needed | {asked.digest, shared.digest, young.digest}
    assert store.find(digest_of(["adapter", {"n": 5}])) is None and not store.verify()
    assert (store.root / "work" / ("f" * 64)).is_dir(), "work that is not finished stays"

    last = retention.collect(store, ledger, [home / "deployments"], 0)
    assert {a.digest for a in store.all()} == needed and not store.verify()
    assert last.bytes < 3 * 140_000, "records shared with the granted dataset free nothing"
    assert not any(p.stat().st_nlink == 1 for p in (store.root / "objects").iterdir())


def test_gc_on_the_command_line(ftaas: Callable[..., Any], store: Store) -> None:
    made = simple(store, "adapter", n=1)
    assert ftaas("store", "gc", "--json").json["kept"] == 1
    planned = ftaas("store", "gc", "--keep-days", "0", "--dry-run", "--json").json
    assert planned["artifacts"] == [{"kind": "adapter", "digest": made.digest}] and planned["dry_run"]
    assert made.path.is_dir()
    assert "removed: 1 artifacts" in ftaas("store", "gc", "--keep-days", "0").stdout
    assert not made.path.is_dir() and not list((store.root / "objects").iterdir())
