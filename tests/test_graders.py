"""Graders: the score each gives, on plain answers and on answers made to break it."""

import json
import random
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from preparing import make_dataset
from pydantic import TypeAdapter, ValidationError

from ftaas_pipelines.data import tables
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.metrics import text
from ftaas_pipelines.metrics.graders import Graded, Panel, grade, names, number
from ftaas_pipelines.projects.reward import Grader
from ftaas_pipelines.store import Store

GSM8K = Path(__file__).parents[2] / "shared" / "data" / "gsm8k"
CATASTROPHE = "(a|aa)+$"  # exponential, whichever library searches


def grader(kind: str, **options: Any) -> Grader:
    return TypeAdapter(Grader).validate_python({"kind": kind, **options})


def score(answer: str, expected: str, kind: str, **options: Any) -> float:
    return grade([grader(kind, **options)], ["?"], [answer], [expected])[0].total


@pytest.mark.parametrize(
    ("said", "plain", "marked"),
    [
        ("She makes $18.", "18", None),
        ("It is 1,234,567.50 in all", "1234567.50", None),
        ("16 - 3 - 4 = 9\n#### 9", "9", "9"),
        ("#### 18 dollars, not 20", "20", "18"),
        ("#### 1 no\n#### -$1,000", "-1000", "-1000"),
        ("16-3", "3", None),
        ("it is -3", "-3", None),
        ("$-3", "-3", None),
        ("3,5", "5", None),
        ("12,3456", "3456", None),
        ("a \u221212.5% fall", "-12.5", None),
        (".5", "0.5", None),
        ("2e3", "2000", None),
        ("no number", None, None),
        ("####", None, None),
    ],
)
def test_a_number_is_found_as_people_write_it(said: str, plain: str | None, marked: str | None) -> None:
    assert number(said) == (plain and Decimal(plain))
    assert number(said, "####") == (marked and Decimal(marked))


def test_numbers_are_compared_exactly() -> None:
    big = 12345678901234567890123456789012345678901
    assert score(str(big), str(big), "numeric") == 1
    assert score(str(big + 1), str(big), "numeric") == 0
    assert score("0.333", "0.3333", "numeric") == 0
    assert score("0.333", "0.3333", "numeric", tolerance=0.001) == 1
    with pytest.raises(InputInvalid, match=r"record r2: grader numeric finds no number .*'none'"):
        grade([grader("numeric")], ["?", "?"], ["1", "1"], ["1", "none"], records=["r1", "r2"])


@pytest.mark.parametrize(
    ("kind", "options", "answer", "expected", "wanted"),
    [
        ("exact_match", {}, " Yes\n", "Yes", 1),
        ("exact_match", {}, "yes", "Yes", 0),
        ("exact_match", {"ignore_case": True}, "STRASSE", "stra\u00dfe", 1),
        ("exact_match", {}, "Y es", "Yes", 0),
        ("regex", {"pattern": r"^\{.*\}$"}, "{a\nb}", "", 1),
        ("regex", {"pattern": r"^\d+$"}, "7 or so", "", 0),
        ("similarity", {"measure": "ratio"}, "abcd", "abcf", 0.75),
        ("similarity", {"measure": "token_f1"}, "a b", "b c", 0.5),
        ("similarity", {"measure": "rouge_l"}, "a x b", "a b c", 2 / 3),
        ("similarity", {"measure": "chrf"}, "pump is hot", "pump is hot", 1),
        ("similarity", {"measure": "chrf"}, "", "pump is hot", 0),
    ],
)
def test_each_grader_gives_its_score(
    kind: str, options: dict[str, Any], answer: str, expected: str, wanted: float
) -> None:
    assert score(answer, expected, kind, **options) == pytest.approx(wanted)


def test_a_reward_is_the_weighted_sum_of_its_graders() -> None:
    graders = [
        grader("exact_match", weight=2),
        grader("regex", pattern="a", weight=-0.5),
        grader("regex", pattern="b"),
    ]
    found = grade(graders, ["?", "?"], ["a", "ab"], ["a", "b"])
    assert found == [
        Graded(1.5, {"exact_match": 1.0, "regex": 1.0, "regex_2": 0.0}),
        Graded(0.5, {"exact_match": 0.0, "regex": 1.0, "regex_2": 1.0}),
    ]
    assert grade([], ["?"], ["a"], ["a"]) == [Graded(0, {})]


# -- JSON ------------------------------------------------------------------------------------------

PART = {
    "type": "object",
    "properties": {"part": {"enum": ["pump", "belt"]}, "n": {"type": "integer", "minimum": 1}},
    "required": ["part"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("schema", "answer", "fits"),
    [
        (PART, ' {"part": "pump", "n": 2} ', True),
        (PART, '{"part": "pump", "n": 0}', False),
        (PART, '{"part": "pump", "m": 1}', False),
        (PART, '{"part": "pump"', False),
        (PART, "```json\n{}\n```", False),
        ({"type": "number"}, "NaN", False),
        ({"type": "number"}, "1e999", False),
        ({"type": "number", "multipleOf": 0.1}, "1" + "0" * 400, False),
        ({}, "9" * 5000, False),
        ({}, "[" * 100_000 + "]" * 100_000, False),
        ({"type": "array", "items": {"$ref": "#"}}, "[" * 41 + "]" * 41, True),
        ({"type": "array", "items": {"$ref": "#"}}, "[" * 42 + "]" * 42, False),
        (
            {"patternProperties": {"^a": {"type": "string"}}, "additionalProperties": False},
            '{"a1": "x"}',
            True,
        ),
        (
            {"patternProperties": {"^a": {"type": "string"}}, "additionalProperties": False},
            '{"a1": 1}',
            False,
        ),
        (
            {"patternProperties": {"^a": {"type": "string"}}, "additionalProperties": False},
            '{"b": "x"}',
            False,
        ),
        ({"properties": {"a": {"pattern": "^x"}}}, '{"a": "xy"}', True),
        ({"properties": {"a": {"pattern": "^x"}}}, '{"a": "yx"}', False),
    ],
)
def test_json_fits_its_schema_or_not(schema: dict[str, Any], answer: str, fits: bool) -> None:
    assert score(answer, "", "json_schema", json_schema=schema) == fits


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"$ref": "#"}, "refers to itself without end"),
        ({"$ref": "https://example.com/schema.json"}, "refers to what is not in it.*example.com"),
    ],
)
def test_a_schema_that_can_fit_nothing_is_an_error_and_nothing_is_fetched(
    schema: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputInvalid, match=said):
        score("1", "", "json_schema", json_schema=schema)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "regex", "pattern": "("}, "is not a regular expression"),
        ({"kind": "json_schema", "json_schema": {"type": "nonsense"}}, "is no JSON schema: 'nonsense'.*type"),
        (
            {"kind": "json_schema", "json_schema": {"patternProperties": {}, "unevaluatedProperties": False}},
            "use additionalProperties",
        ),
        ({"kind": "exact_match", "weight": float("nan")}, "finite"),
        ({"kind": "python", "entry": "rewards"}, "pattern"),
    ],
)
def test_a_wrong_grader_is_refused_where_it_is_written(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TypeAdapter(Grader).validate_python(options)


# -- answers made to break a grader ----------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "regex", "pattern": CATASTROPHE},
        {"kind": "json_schema", "json_schema": {"pattern": CATASTROPHE}},
        {"kind": "json_schema", "json_schema": {"patternProperties": {CATASTROPHE: {}}}},
    ],
)
def test_a_pattern_that_never_ends_is_stopped_and_named(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ftaas_pipelines.metrics.timed_patterns.LIMIT_S", 0.2)
    hostile = "a" * 60 + "!"
    text = {CATASTROPHE: hostile}.get(str(options.get("pattern")), json.dumps(hostile))
    if "patternProperties" in str(options):
        text = json.dumps({hostile: 1})
    began = time.monotonic()
    with pytest.raises(InputInvalid, match=r"record r1: grader \w+ gave up on its pattern after 0.2 s"):
        Panel([grader(**options)]).grade(["?"], [text], [""], records=["r1"])
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "exact_match"},
        {"kind": "numeric"},
        {"kind": "regex", "pattern": r"\bpump\b.*\d+$"},
        {"kind": "json_schema", "json_schema": PART},
        *({"kind": "similarity", "measure": m} for m in ("ratio", "token_f1", "rouge_l", "chrf")),
    ],
    ids=lambda options: options.get("measure", options["kind"]),
)
def test_a_huge_answer_costs_little(options: dict[str, Any]) -> None:
    began = time.process_time()
    for huge in ("a 1,2 " * 100_000, "9" * 500_000, "\x00\ud800" * 1000):
        assert 0 <= grade([grader(**options)], ["?"], [huge], ["a 1 b 3 " * 20_000])[0].total < 1
    assert time.process_time() - began < 8


def test_rouge_l_is_the_number_that_rouge_score_gives() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    draw = random.Random(1)
    scorer = RougeScorer(["rougeL"])
    for _ in range(300):
        a, b = (" ".join(draw.choices("abcdef", k=draw.randrange(12))) for _ in range(2))
        assert text.rouge_l(a, b) == scorer.score(b, a)["rougeL"].fmeasure


# -- Python functions ------------------------------------------------------------------------------


def python(folder: Path, body: str, entry: str = "rewards.py:score") -> Panel:
    (folder / "rewards.py").write_text(body, encoding="utf-8")
    return Panel([grader("python", entry=entry)], folder)


def test_a_python_function_grades_a_batch(tmp_path: Path) -> None:
    panel = python(
        tmp_path,
        "import numpy\n"
        "def score(prompts, answers, expected):\n"
        "    rows = zip(prompts, answers, expected)\n"
        "    return numpy.array([len(p) + 10 * len(a) - len(e) for p, a, e in rows])\n",
    )
    found = panel.grade(["a", "bb"], ["ccc", ""], ["d", ""])
    assert [g.parts for g in found] == [{"score": 30.0}, {"score": 2.0}]
    assert all(type(g.total) is float for g in found)
    assert names([grader("python", entry="rewards.py:score"), grader("exact_match")]) == [
        "score",
        "exact_match",
    ]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (
            "[1 / (2 - len(a)) for a in answers]",
            r"record r2: grader score failed at line 2 \(got ZeroDivisionError",
        ),
        ("exit(3)", r"record r1: grader score failed at line 2 \(got SystemExit: 3"),
        ("[1.0]", r"grader score returned 1 scores for 2 answers"),
        ("1.0", r"grader score returned no list \(got float\)"),
        ("[0.5, float('nan')]", r"record r2: grader score returned something that is no finite number"),
        ("[0.5, None]", r"record r2: grader score returned something that is no number \(got None\)"),
        ("['1', 1]", r"record r1: grader score returned something that is no number"),
    ],
)
def test_a_python_function_that_misbehaves_is_one_clear_error(
    tmp_path: Path, returned: str, said: str
) -> None:
    panel = python(tmp_path, f"def score(prompts, answers, expected):\n    return {returned}\n")
    with pytest.raises(InputInvalid, match=said):
        panel.grade(["?", "?"], ["a", "ab"], ["", ""], records=["r1", "r2"])


@pytest.mark.parametrize(
    ("body", "entry", "said"),
    [
        ("score = 1 / 0", "rewards.py:score", r"rewards.py:1: .*cannot be run \(got ZeroDivisionError"),
        ("def score(:", "rewards.py:score", r"rewards.py:1: .*SyntaxError"),
        ("x = 1", "rewards.py:score", "there is no such function .got score."),
        ("x = 1", "rewards.py:x", "there is no such function"),
        ("x = 1", "other.py:score", "is not there"),
        ("x = 1", "../rewards.py:score", "outside the project's folder"),
    ],
)
def test_a_python_grader_that_cannot_be_loaded_says_why(
    tmp_path: Path, body: str, entry: str, said: str
) -> None:
    with pytest.raises(InputInvalid, match=said):
        python(tmp_path, body, entry)


def test_grading_is_light_to_import_and_declaring_runs_no_code(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("raise SystemExit('run')\n", encoding="utf-8")
    code = (
        "import sys\n"
        "from pydantic import TypeAdapter\n"
        "from ftaas_pipelines.metrics import graders\n"
        "from ftaas_pipelines.projects.reward import Grader\n"
        "TypeAdapter(Grader).validate_python({'kind': 'python', 'entry': 'rewards.py:score'})\n"
        "heavy = {'torch', 'transformers', 'pandas', 'jsonschema', 'sacrebleu', 'rapidfuzz'}\n"
        "assert not heavy & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr


# -- real data -------------------------------------------------------------------------------------


@pytest.mark.skipif(not GSM8K.is_dir(), reason="../shared/data/gsm8k is not here")
def test_every_gold_solution_of_gsm8k_grades_one(tmp_path: Path) -> None:
    """As the data plane reads it, with and without the mark; another solution hardly ever does."""
    files = [GSM8K / "train-2000.jsonl", GSM8K / "test-300.jsonl"]
    dataset = make_dataset(Store(tmp_path), {"gsm8k": files})
    rows = tables.read(dataset.file("records"), ["record_id", "prompt", "answer", "extra"]).to_pylist()
    expected = [json.loads(row["extra"])["expected"] for row in rows]
    prompts, answers = [row["prompt"] for row in rows], [row["answer"] for row in rows]
    assert len(rows) > 2200
    graders = [grader("numeric", after="####"), grader("numeric"), grader("exact_match")]
    found = grade(graders, prompts, answers, expected, records=[row["record_id"] for row in rows])
    assert all(g.parts["numeric"] == g.parts["numeric_2"] == 1 for g in found)
    assert not any(g.parts["exact_match"] for g in found), "the whole solution is more than its number"
    shifted = grade(graders[:1], prompts, answers[1:] + answers[:1], expected)
    assert sum(g.total for g in shifted) / len(shifted) < 0.05
