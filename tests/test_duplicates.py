"""Duplicates: exact, near, and across the line to held-out text; each against the plain way to find them."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import near_duplicates as benchmark
from ftaas_pipelines.data.likeness import minhash, near
from ftaas_pipelines.data.likeness.contamination import Contamination
from ftaas_pipelines.data.likeness.exact import components, exact

WORDS = st.lists(st.sampled_from("alpha beta gamma delta äther 温度".split()), max_size=12).map(" ".join)


@pytest.fixture(scope="module")
def rows() -> list[str]:
    """3,000 rows of every kind of text in the benchmark, mixed."""
    kinds = [row for rows in benchmark.make(600).values() for row in rows]
    random.Random(5).shuffle(kinds)
    return kinds


def test_near_duplicates_of_templated_text_are_found(rows: list[str], tmp_path: Path):
    figures = benchmark.compare(rows, 0.8, tmp_path)
    assert figures["true_pairs"] > 300
    assert figures["precision"] == 1 and figures["group_precision"] >= 0.99
    assert figures["recall"] >= 0.95 and figures["direct_recall"] >= 0.95


@pytest.mark.parametrize("threshold", [0.5, 0.65, 0.9, 1.0])
def test_every_threshold_that_a_project_may_set_finds_its_pairs(
    rows: list[str], tmp_path: Path, threshold: float
):
    # 1.0: other words in another order make the same 3-grams now and then, and that is all there is
    figures = benchmark.compare(
        [*rows, "a b c a b c a", "b c a b c a b", "c a b c a b c"], threshold, tmp_path
    )
    assert figures["precision"] == 1 and figures["recall"] >= 0.95 and figures["true_pairs"] >= 3


def test_order_and_cut_of_the_items_change_no_pair(tmp_path: Path):
    """Also where a bucket is so large that only some of its pairs are looked at."""
    rng = random.Random(2)
    rows = benchmark.templated(1500, rng, 1, 60, 2, 300) + benchmark.templated(1500, rng, 2, 40, 3, 20)
    rows = sorted(set(rows))

    def pairs(order: list[int], cuts: int) -> set[tuple[frozenset[str], float]]:
        texts = [rows[k] for k in order]
        edges = benchmark.found(texts, 0.8, tmp_path / str(cuts), cuts)
        assert (edges.i < edges.j).all()
        listed = list(zip(edges.i.tolist(), edges.j.tolist(), strict=True))
        assert listed == sorted(set(listed))
        return {
            (frozenset((texts[i], texts[j])), likeness)
            for (i, j), likeness in zip(listed, edges.jaccard.tolist(), strict=True)
        }

    straight = list(range(len(rows)))
    first = pairs(straight, 1)
    assert len(first) > 1000
    for cuts in (2, 7):
        assert pairs(rng.sample(straight, len(straight)), cuts) == first


def test_a_template_that_fills_one_bucket_stays_linear(tmp_path: Path):
    """20,000 rows that are all near-duplicates: 200 million pairs, of which a few a row are looked at."""
    rows = benchmark.templated(20_000, random.Random(1), 1, 60, 1, 1)
    rows = [f"{row} {number}" for number, row in enumerate(rows)]
    np.save(tmp_path / "signatures.npy", minhash.signatures(rows))
    asked: list[int] = []

    def text_of(items: np.ndarray) -> list[str]:
        asked.extend(items.tolist())
        return [rows[k] for k in items]

    edges = near.near_pairs([tmp_path / "signatures.npy"], text_of, 0.8, tmp_path / "spill")
    assert not components(len(rows), edges.i, edges.j).any(), "one group, told by its least member"
    assert edges.compared < 16 * len(rows)
    assert asked == sorted(set(asked)), "each text is fetched once, in order"
    assert not list((tmp_path / "spill").iterdir())


def test_nothing_and_one_text_have_no_pairs(tmp_path: Path):
    for rows in ([], ["alone"]):
        assert len(benchmark.found(rows, 0.8, tmp_path / str(len(rows)), cuts=1).i) == 0


@given(WORDS, WORDS)
@settings(max_examples=50, deadline=None)
def test_jaccard_is_that_of_the_sets_of_word_3_grams(a: str, b: str):
    def grams(text: str) -> set[str]:
        words = minhash.normal(text).split()
        return {" ".join(words[k : k + 3]) for k in range(len(words) - 2)} or {" ".join(words)}

    likeness = minhash.jaccard(*(minhash.shingles(minhash.normal(text)) for text in (a, b)))
    assert likeness == len(grams(a) & grams(b)) / len(grams(a) | grams(b))


def test_case_and_white_space_do_not_count_and_text_without_spaces_has_words(tmp_path: Path):
    one, two = minhash.signatures(["The  PUMP\tleaks\n oil", "the pump leaks oil"])
    assert (one == two).all()
    chinese = "请检查三号线的主轴承温度是否过高并在下一班之前更换润滑油然后向领班报告"
    edges = benchmark.found([chinese, "今天的天气很好我们去公园散步吧", chinese + "谢谢"], 0.8, tmp_path)
    assert list(zip(edges.i, edges.j, strict=True)) == [(0, 2)]


rows_of_keys = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 2), st.integers(0, 2), st.integers(0, 9)),
    max_size=30,
    unique=True,
)


@given(rows_of_keys)
@settings(max_examples=100, deadline=None)
def test_of_equals_the_least_precedence_source_and_row_stays(keys: list[tuple[int, ...]]):
    least = {c: min(k for k in keys if k[:2] == c) for c in {k[:2] for k in keys}}
    table = np.array(keys, np.int64).reshape(-1, 5)
    kept = exact(
        table[:, :2].astype(np.uint64),
        table[:, 2].astype(np.uint8),
        table[:, 3].astype(np.int32),
        table[:, 4],
    )
    assert kept.tolist() == [k == least[k[:2]] for k in keys]


def test_rows_that_stand_in_held_out_text_are_told(rows: list[str]):
    rng = random.Random(4)
    held, train = rows[:1000], rows[1000:] + [row.upper() for row in rows[:20]]
    held = [*held, "", "short"]
    train = [*train, "", "Short", "shorter"]
    known = Contamination(held, 0.8)
    found = known.standing(train)
    sets = [minhash.shingles(minhash.normal(text)) for text in held]
    true = 0
    for text, which, likeness in zip(train, found.which.tolist(), found.jaccard.tolist(), strict=True):
        own = minhash.shingles(minhash.normal(text))
        best = max(minhash.jaccard(own, other) for other in sets) if text else 0.0
        true += best >= 0.8
        if which >= 0:
            assert likeness == minhash.jaccard(own, sets[which]) and 0.8 <= likeness <= best
    assert true > 100 and (found.which >= 0).sum() >= 0.97 * true
    assert (found.jaccard[-23:-3] == 1).all() and found.which[-23:-3].tolist() == list(range(20))
    assert found.which[-3:].tolist() == [-1, held.index("short"), -1]
    order = rng.sample(range(len(train)), len(train))
    for cut in (1, 500):
        part = known.standing([train[k] for k in order[:cut]])
        assert (part.which == found.which[order[:cut]]).all()
    signed = minhash.signatures(train)
    assert (known.standing(train, signed).which == found.which).all()
    with pytest.raises(ValueError, match="threshold"):
        Contamination(held, 0.5).standing(train, signed)


def test_a_benchmark_prompt_inside_a_record_is_told_by_runs_of_thirteen_words():
    question = (
        "which of the four bearings on the main shaft has to be greased first after a stop of the line when "
        "the gearbox was opened and the oil has been changed by the night shift"
    )
    intro = "answer the following question with one letter and give no reason for the choice that you make"
    benchmarks = [question, "too short to tell", *(f"{intro} item {k}" for k in range(12))]
    known = Contamination(benchmarks, 0.8, benchmarks)
    records = [
        f"As they say in the exam: {question.upper()}? The left one.",
        question.replace("after a stop", "after the stop"),
        " ".join(question.split()[:15]) + " and so on, which is another question",
        "too short to tell",
        f"{intro} how hot is the oil",
    ]
    assert known.overlaps(records).tolist() == [0, 0, -1, -1, -1]
    assert Contamination([], 0.8).overlaps(records).tolist() == [-1] * 5
    assert Contamination([], 0.8).standing(records).which.tolist() == [-1] * 5
