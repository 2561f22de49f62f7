"""Splits: nothing that belongs together parts, and what was placed stays where it is."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.line import open_line
from assets.making import pin_anchors
from ftaas_pipelines import settings as platform_settings
from ftaas_pipelines.data import tables
from ftaas_pipelines.data.splits import placement, splitting
from ftaas_pipelines.data.splits.placement import CHALLENGE, NONE, TEST, Before, Keys, Placement
from ftaas_pipelines.data.splits.rules import SPLITS, grow_from, share
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects.dataset import Splits
from ftaas_pipelines.store import Artifact, Store, digest_of


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def row(number: int, **over: Any) -> dict[str, Any]:
    """A record; `group` is a name, hashed here."""
    prompt = over.pop("prompt", f"question {number}")
    group = sha(over.pop("group", prompt))
    record_id = sha(f"record {number}")
    answer = f"answer {number % 5}"
    values: dict[str, Any] = {"kind": "text_pair", "prompt": prompt, "answer": answer, "source": "main"}
    return {"record_id": record_id, "content_id": record_id, "messages": "[]", "group": group} | values | over


def make_dataset(
    store: Store, rows: Iterable[dict[str, Any]], near: Sequence[tuple[str, str]] = (), digits: int = 0
) -> Artifact:
    """A dataset version; `digits` of the record_id name its buckets."""
    rows = sorted(rows, key=lambda r: r["record_id"])
    with store.create("dataset", digest_of([rows, near, digits])) as draft:
        for prefix in [f"{i:0{digits}x}" for i in range(16**digits)] if digits else [""]:
            held = [r for r in rows if r["record_id"].startswith(prefix)]
            tables.write_rows(tables.bucket(draft.path / "records", prefix), held, tables.RECORDS)
        pairs = [{"a": min(p), "b": max(p), "jaccard": 0.9} for p in near]
        tables.write_rows(draft.path / "near.parquet", pairs, tables.NEAR)
        draft.content = {"records": len(rows), "digits": digits}
    return draft.made


def split(store: Store, dataset: Artifact, anchors: Artifact | None = None, **options: Any) -> Artifact:
    inputs = [dataset.digest, anchors.digest if anchors else None, options]
    with store.create("splits", digest_of(inputs)) as draft:
        draft.content = splitting.write(dataset, anchors, Splits(**options), draft.path)
    return draft.made


def placed(made: Artifact) -> dict[str, str]:
    """record_id: split."""
    return {
        record_id: name
        for name in SPLITS
        for record_id in pq.read_table(made.file(f"{name}.parquet"))["record_id"].to_pylist()
    }


def left_out(made: Artifact) -> dict[str, str]:
    """record_id: reason."""
    table = pq.read_table(made.file("dropped.parquet"))
    return dict(zip(table["record_id"].to_pylist(), table["reason"].to_pylist(), strict=True))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# -- any small world ----------------------------------------------------------------------------------


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Keys, int, Splits]:
    """Records in groups with near-duplicates; the first so many are the earlier version."""
    n = draw(st.integers(4, 30))
    groups = draw(st.lists(st.integers(0, n // 2), min_size=n, max_size=n))
    pairs = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda p: p[0] != p[1])
    edges = draw(st.lists(pairs, max_size=n))
    declared = draw(st.lists(st.sampled_from([NONE] * 6 + [0, 1, TEST, CHALLENGE]), min_size=n, max_size=n))
    made = draw(st.lists(st.sampled_from([False, False, False, True]), min_size=n, max_size=n))
    options = Splits(
        validation=0.3,
        test=0.3,
        group_by=draw(st.sampled_from([None, "customer"])),
        stratify_by=draw(st.sampled_from([None, "answer"])),
        synthetic_in_test=draw(st.booleans()),
        freeze=draw(st.sampled_from([None, "first"])),
    )
    keys = Keys(
        record_ids=np.array([bytes.fromhex(sha(str(i))) for i in range(n)], "S32"),
        group_keys=np.array(sorted(bytes.fromhex(sha(f"group {i}")) for i in range(n // 2 + 1)), "S32"),
        groups=np.array(groups),
        declared=np.array(declared, np.int8),
        synthetic=np.array(made),
        edges=np.array(edges, np.int64).reshape(-1, 2),
        strata=np.array([i % 3 for i in groups], np.uint64) if options.stratify_by else None,
    )
    return keys, draw(st.integers(1, n)), options


def first_of(keys: Keys, n: int) -> Keys:
    edges = keys.edges[(keys.edges < n).all(axis=1)]
    strata = None if keys.strata is None else keys.strata[:n]
    rows = (keys.groups[:n], keys.declared[:n], keys.synthetic[:n])
    return Keys(keys.record_ids[:n], keys.group_keys, *rows, edges, strata)


def nothing_before(keys: Keys, n: int) -> Before:
    return Before(np.full(len(keys.group_keys), NONE, np.int8), np.full(n, NONE, np.int8))


def before(keys: Keys, places: Placement, frozen: bool) -> Before:
    records = np.full(len(keys.groups), NONE, np.int8)
    records[: len(places.records)] = places.records
    records[records == CHALLENGE] = NONE
    return Before(places.groups, records, frozen)


def crossing(keys: Keys, places: Placement) -> list[Any]:
    """Groups and near-duplicates that stand in two splits."""
    split = np.where(places.records == CHALLENGE, NONE, places.records)
    seen = {(int(g), int(s)) for g, s in zip(keys.groups, split, strict=True) if s != NONE}
    groups = [g for g, n in Counter(g for g, _ in seen).items() if n > 1]
    ends = split[keys.edges]
    return groups + keys.edges[(ends != NONE).all(axis=1) & (ends[:, 0] != ends[:, 1])].tolist()


@settings(max_examples=400, deadline=None)
@given(worlds())
def test_nothing_parts_and_growth_moves_nothing(world: tuple[Keys, int, Splits]) -> None:
    keys, n, options = world
    earlier = first_of(keys, n)
    first = placement.place(earlier, options, nothing_before(keys, n))
    assert not crossing(earlier, first)
    frozen = options.freeze is not None
    grown = placement.place(keys, options, before(keys, first, frozen))
    assert not crossing(keys, grown)
    stood = first.records != NONE
    assert (grown.records[:n][stood] == first.records[stood]).all()
    if frozen:
        assert not (grown.records[n:] == TEST).any()
    if not options.synthetic_in_test:
        assert not (grown.records[keys.synthetic] == TEST).any()
    assert ((grown.records == NONE) == (grown.reasons != NONE)).all()
    # The same version again moves nothing. It may take in a record that was left out for the sake of one
    # that was left out after it: rare, and no promise is broken by it.
    again = placement.place(keys, options, before(keys, grown, frozen))
    assert not crossing(keys, again)
    stood = grown.records != NONE
    assert (again.records[stood] == grown.records[stood]).all()


@settings(max_examples=100, deadline=None)
@given(worlds(), st.randoms(use_true_random=False))
def test_the_order_of_near_duplicates_has_no_say(world: tuple[Keys, int, Splits], random: Any) -> None:
    keys, n, options = world
    edges = [pair[::-1] if random.random() < 0.5 else pair for pair in keys.edges.tolist()]
    random.shuffle(edges)
    turned = Keys(**{**vars(keys), "edges": np.array(edges, np.int64).reshape(-1, 2)})
    start = nothing_before(keys, len(keys.groups))
    one, other = placement.place(keys, options, start), placement.place(turned, options, start)
    assert (one.records == other.records).all() and (one.reasons == other.reasons).all()


# -- through the files ----------------------------------------------------------------------------------


def test_the_same_bytes_from_one_bucket_and_from_many(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "GROUP_ROWS", 100)
    rows = [row(i, group=f"g{i // 2}") for i in range(1500)] + [
        row(2000 + i, source="hard", declared_split="challenge", challenge="hard") for i in range(30)
    ]
    near = [(rows[i]["record_id"], rows[i + 7]["record_id"]) for i in range(0, 600, 9)]
    made = [split(store, make_dataset(store, rows, near, digits), group_by="g") for digits in (0, 1, 2)]
    files = [m.manifest["files"] for m in made]
    assert files[0] == files[1] == files[2]
    content = made[0].content
    assert content["counts"]["challenge_hard"] == 30
    assert sum(content["counts"].values()) == 1530
    assert set(content["leakage"].values()) == {0} and not content["quarantined"]
    assert content["declared"] == {"main": None, "hard": "challenge"}
    assert content["labels"]["train"].keys() == {f"answer {i}" for i in range(5)}
    for name in SPLITS:
        ids = pq.read_table(made[0].file(f"{name}.parquet"))["record_id"].to_pylist()
        assert ids == sorted(ids) and len(ids) == content["counts"][name]
    anchors = pq.read_table(made[0].file("anchors.parquet"))["group"].to_pylist()
    assert anchors == sorted(anchors) and len(anchors) == 750


def test_growth_and_a_group_that_comes_back(store: Store) -> None:
    rows = [row(i) for i in range(400)]
    first = split(store, make_dataset(store, rows))
    for name, part in (("validation", 0.1), ("test", 0.1)):
        assert abs(first.content["counts"][name] / 400 - part) < 0.05
    # A record in test goes, and with it its group; double the rest; then it comes back with another answer.
    lost = next(r for r in rows if placed(first)[r["record_id"]] == "test")
    rest = [r for r in rows if r is not lost]
    second = split(store, make_dataset(store, [*rest, *(row(i) for i in range(400, 800))]), first)
    back = row(9999, prompt=lost["prompt"])
    third = split(store, make_dataset(store, [*rest, back]), second)
    was, now = placed(first), placed(second)
    assert all(now[r["record_id"]] == was[r["record_id"]] for r in rest)
    assert placed(third)[back["record_id"]] == "test"
    assert second.content["anchors"] == first.digest and second.content["moved"] == 0


def test_a_record_that_would_join_two_splits_is_left_out_alone(store: Store) -> None:
    rows = [row(i) for i in range(200)]
    first = split(store, make_dataset(store, rows))
    one_of = {name: next(i for i, s in placed(first).items() if s == name) for name in SPLITS}
    bridge, follower, late = row(1000), row(1001), row(1002, source="held", declared_split="test")
    near = [
        (bridge["record_id"], one_of["train"]),
        (bridge["record_id"], one_of["test"]),
        (follower["record_id"], one_of["test"]),
        (late["record_id"], one_of["train"]),
    ]
    made = split(store, make_dataset(store, [*rows, bridge, follower, late], near), first)
    assert left_out(made) == {r["record_id"]: "bridges_splits" for r in (bridge, late)}
    assert made.content["quarantined"] == {"bridges_splits": 2}
    assert placed(made)[follower["record_id"]] == "test"
    assert set(made.content["leakage"].values()) == {0}
    assert sum(made.content["counts"].values()) + 2 == 203


def test_a_declared_split_holds_for_its_whole_group(store: Store) -> None:
    declared = {4: "test", 30: "train", 60: "train"}
    rows = [row(i, group=f"g{i // 3}", declared_split=declared.get(i)) for i in range(300)]
    made = split(store, make_dataset(store, rows), test=0.4, group_by="g")
    where = placed(made)
    assert {i for i in range(300) if where[rows[i]["record_id"]] == "test"} == {
        3,
        4,
        5,
    }
    assert {where[rows[i]["record_id"]] for i in (30, 31, 32, 60, 61, 62)} == {"train"}


def test_a_frozen_test_split_is_the_same_file_whatever_comes(store: Store) -> None:
    rows = [row(i) for i in range(300)]
    first = split(store, make_dataset(store, rows), freeze="spring")
    frozen = [i for i, s in placed(first).items() if s == "test"]
    assert first.content["frozen"] == {"name": "spring", "records": len(frozen)}
    in_test = next(r for r in rows if r["record_id"] == frozen[0])
    same_group, near, held = (
        row(1000, prompt=in_test["prompt"]),
        row(1001),
        row(1002, declared_split="test"),
    )
    more = [*rows, *(row(i) for i in range(300, 900)), same_group, near, held]
    dataset = make_dataset(store, more, [(near["record_id"], frozen[1])])
    grown = split(store, dataset, first, freeze="spring")
    assert grown.file("test.parquet").read_bytes() == first.file("test.parquet").read_bytes()
    assert left_out(grown) == {
        same_group["record_id"]: "also_in_test",
        near["record_id"]: "also_in_test",
        held["record_id"]: "test_is_frozen",
    }
    assert grown.content["counts"]["train"] + grown.content["counts"]["validation"] == 900 - len(frozen)
    # Under another name the old test records stay, and new ones come.
    renamed = split(store, dataset, first, freeze="summer")
    assert renamed.content["counts"]["test"] > len(frozen)
    assert all(placed(renamed)[i] == "test" for i in frozen)


def test_a_correction_or_erasure_in_the_frozen_test_split_needs_a_new_name(store: Store) -> None:
    rows = [row(i) for i in range(300)]
    first = split(store, make_dataset(store, rows), freeze="spring")
    frozen = [i for i, s in placed(first).items() if s == "test"]
    changed = [
        {**r, "content_id": sha("corrected")} if r["record_id"] == frozen[1] else r
        for r in rows
        if r["record_id"] != frozen[0]
    ]
    dataset = make_dataset(store, changed)
    with pytest.raises(InputInvalid, match="'spring' changed.*1 of its .* gone, 1 changed.*new name"):
        split(store, dataset, first, freeze="spring")
    assert frozen[0][:12] in _error(store, dataset, first) and "question" not in _error(store, dataset, first)
    made = split(store, dataset, first, freeze="summer")
    assert placed(made)[frozen[1]] == "test" and made.content["frozen"]["name"] == "summer"


def _error(store: Store, dataset: Artifact, anchors: Artifact) -> str:
    with pytest.raises(InputInvalid) as caught:
        split(store, dataset, anchors, freeze="spring")
    return str(caught.value)


def test_strata_are_shared_out_alike_and_rare_ones_go_to_train(store: Store) -> None:
    labels = [f"label {i}" for i in range(20)]
    rows = [row(i, answer=labels[i % 20]) for i in range(800)]
    rare = [row(5000 + i, answer=f"rare {i // 2}") for i in range(20)]
    first = split(store, make_dataset(store, [*rows, *rare]), stratify_by="answer")
    per_label = first.content["labels"]
    assert all(set(labels) <= set(per_label[name]) for name in SPLITS)
    assert all(per_label[name][label] == 4 for name in ("validation", "test") for label in labels)
    assert all(placed(first)[r["record_id"]] == "train" for r in rare)
    more = [row(i, answer=labels[i % 20]) for i in range(800, 1600)]
    second = split(store, make_dataset(store, [*rows, *rare, *more]), first, stratify_by="answer")
    was, now = placed(first), placed(second)
    assert all(now[i] == s for i, s in was.items())
    assert all(second.content["labels"]["test"][label] == 8 for label in labels)


def test_synthetic_records_stay_out_of_test_and_within_their_share(store: Store) -> None:
    real = [row(i) for i in range(300)]
    first = placed(split(store, make_dataset(store, real)))
    made = [row(1000 + i, synthetic=json.dumps({"generator": "g"})) for i in range(300)]
    near = [(made[i]["record_id"], real[i]["record_id"]) for i in range(0, 300, 2)]
    dataset = make_dataset(store, [*real, *made], near)
    done = split(store, dataset, max_synthetic=0.25)
    where, gone = placed(done), left_out(done)
    synthetic = {r["record_id"] for r in made}
    kept = synthetic & where.keys()
    assert {where[i] for i in kept} == {"train"}
    assert len(kept) == done.content["counts"]["train"] // 4
    assert gone.keys() == synthetic - kept and set(gone.values()) == {"too_synthetic"}
    # A real record near a synthetic one is in train with it; the others are where they would be anyway.
    assert {where[real[i]["record_id"]] for i in range(0, 300, 2)} == {"train"}
    assert all(where[real[i]["record_id"]] == first[real[i]["record_id"]] for i in range(1, 300, 2))
    allowed = split(store, dataset, synthetic_in_test=True)
    assert {placed(allowed)[i] for i in synthetic} == set(SPLITS)


def test_too_few_records_are_said_for_each_split(store: Store) -> None:
    alike = [row(i, prompt="the one question") for i in range(50)]
    with pytest.raises(InputInvalid) as caught:
        split(store, make_dataset(store, alike), group_by=None)
    assert len(str(caught.value).splitlines()) == 2
    assert not list((store.root / "artifacts").glob("splits/*"))


# -- what splits grow from ------------------------------------------------------------------------------


def test_earlier_splits_hold_while_nothing_that_places_records_was_changed_by_hand() -> None:
    content = {"options": Splits(seed=1, freeze="a").model_dump(mode="json"), "declared": {"rows": None}}
    declared: dict[str, str | None] = {"rows": None, "new": "test"}
    assert grow_from(content, Splits(seed=1, max_synthetic=0.5), declared)
    assert not grow_from(content, Splits(seed=2), declared)
    assert grow_from(content, Splits(seed=2, freeze="a"), declared)  # the frozen test goes before
    assert not grow_from(content, Splits(seed=1), {"rows": "test"})


def test_old_content_put_back_finds_its_old_splits(project_factory: Any) -> None:
    project_factory()
    line = open_line("codes", platform_settings.load())
    store, made = line.store, []
    datasets = [make_dataset(store, [row(i) for i in range(n)]) for n in (200, 300)]

    def splits_of(dataset: Artifact) -> Artifact:
        line.__dict__["dataset"] = dataset
        spec = line.splits_spec()
        assert line.splits_spec().input_digest == spec.input_digest
        found = store.find(spec.input_digest)
        if found is None:
            with store.create("splits", spec.input_digest) as draft:
                anchors = spec.inputs["anchors"]
                earlier = store.get(anchors) if anchors else None
                draft.content = splitting.write(dataset, earlier, Splits(), draft.path)
            found = draft.made
            made.append(found.digest)
        pin_anchors(line, spec)
        store.set_head("codes", "splits", spec.input_digest, spec.inputs, found.digest)
        return found

    first, second = (splits_of(d) for d in datasets)
    assert first.content["anchors"] is None and second.content["anchors"] == first.digest
    assert splits_of(datasets[0]) == first and splits_of(datasets[1]) == second
    assert made == [first.digest, second.digest]


def test_a_share_is_a_keys_own_for_ever() -> None:
    assert share(0, "a" * 64) == pytest.approx(0.1065922, abs=1e-6)
    shares = [share(0, sha(str(i))) for i in range(2000)]
    assert all(0 <= s < 1 for s in shares) and abs(sum(shares) / 2000 - 0.5) < 0.03
