"""What rows mean: every format to the same record, and a clear fault for what is none."""

import base64
import datetime
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftaas_pipelines.data.raw import readers
from ftaas_pipelines.data.raw.readers import Row
from ftaas_pipelines.data.rows import formats, records, template_tokens
from ftaas_pipelines.data.rows.formats import FORMATS, Layout
from ftaas_pipelines.data.rows.records import Record, RowFault
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.store import digest_of

SHARED = Path(__file__).parents[2] / "shared" / "data"
WEATHER = {"name": "weather", "parameters": {"type": "object"}}


def layout_of(*rows: dict[str, Any], declared: str | None = None, **columns: str) -> Layout:
    found = list(dict.fromkeys(name for row in rows for name in row))
    sample = [Row(n, row) for n, row in enumerate(rows, 1)]
    return formats.resolve(found, Path("d.jsonl"), declared, columns, sample)


def record_of(row: dict[str, Any], layout: Layout | None = None, **more: Any) -> Record:
    options: dict[str, Any] = {"synthetic": False, "group_by": None, "keep": [], **more}
    return records.reader(layout or layout_of(row), "main", None, **options)(Row(7, row))


def fault_of(row: dict[str, Any], layout: Layout | None = None, **more: Any) -> RowFault:
    with pytest.raises(RowFault) as caught:
        record_of(row, layout, **more)
    return caught.value


def said(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def again(record: Record) -> Record:
    """The record as its own canonical JSON says it, read by format `messages`."""
    return record_of(json.loads(record.payload()), Layout("messages", {}))


# -- every shape of row ----------------------------------------------------------------------------

ASKED = [said("user", "2+2?"), said("assistant", "4")]
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"at":"Ulm"}'}}
TOLD = [
    said("user", "Rain?"),
    said("assistant", "", tool_calls=[CALL]),
    said("tool", "dry", tool_call_id="call_1"),
    said("assistant", "No."),
]
PAIR = ("preference", ASKED, {"rejected": "5"})
SHARE = [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]
TASK = {"data": {"text": "2+2?"}, "annotations": []}


def annotation(number: int, when: str, kind: str = "textarea", **more: Any) -> dict[str, Any]:
    value = {"text": ["4"]} if kind == "textarea" else {"choices": ["4"]}
    result = [{"type": kind, "from_name": "answer", "value": value}]
    return {"id": number, "updated_at": when, "was_cancelled": False, "result": result, **more}


ROWS: dict[str, tuple[dict[str, Any], tuple[str, list[Any], dict[str, Any]]]] = {
    "alpaca": ({"instruction": "2+2?", "input": "", "output": "4"}, ("alpaca", ASKED, {})),
    "question, answer": ({"question": "2+2?", "answer": "4"}, ("prompt_completion", ASKED, {})),
    "text, category": ({"text": "2+2?", "category": "4"}, ("text_target", ASKED, {})),
    "text": ({"text": "Once.", "url": "x"}, ("text", [said("assistant", "Once.")], {})),
    "messages as text": ({"messages": json.dumps(ASKED)}, ("messages", ASKED, {})),
    "developer, empty system": (
        {"messages": [said("developer", "Be brief."), *ASKED]},
        ("messages", [said("system", "Be brief."), *ASKED], {}),
    ),
    "empty system": ({"messages": [said("system", ""), *ASKED]}, ("messages", ASKED, {})),
    "tools": (
        {
            "messages": [
                said("user", "Rain?"),
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"function": {"name": "weather", "arguments": {"at": "Ulm"}}}],
                },
                said("tool", "dry"),
                said("assistant", "No."),
            ],
            "tools": json.dumps([WEATHER]),
        },
        ("messages", TOLD, {"tools": [{"type": "function", "function": WEATHER}]}),
    ),
    "legacy functions": (
        {
            "messages": [
                TOLD[0],
                {"role": "assistant", "content": None, "function_call": CALL["function"]},
                {"role": "function", "name": "weather", "content": "dry"},
                TOLD[3],
            ],
            "functions": [WEATHER],
        },
        (
            "messages",
            [*TOLD[:2], {**TOLD[2], "name": "weather"}, TOLD[3]],
            {"tools": [{"type": "function", "function": WEATHER}]},
        ),
    ),
    "sharegpt": ({"conversations": SHARE, "system": "", "tools": "[]"}, ("sharegpt", ASKED, {})),
    "sharegpt tools": (
        {
            "conversations": [
                {"from": "human", "value": "Rain?"},
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"at": "Ulm"}}'},
                {"from": "observation", "value": "dry"},
                {"from": "gpt", "value": "No."},
            ],
            "system": "Be brief.",
            "tools": json.dumps([WEATHER]),
        },
        (
            "sharegpt",
            [said("system", "Be brief."), *TOLD],
            {"tools": [{"type": "function", "function": WEATHER}]},
        ),
    ),
    "sharegpt with roles": ({"conversations": ASKED}, ("sharegpt", ASKED, {})),
    "pair of texts": ({"prompt": "2+2?", "chosen": "4", "rejected": "5"}, PAIR),
    "pair of lists": ({"chosen": ASKED, "rejected": [ASKED[0], said("assistant", "5")]}, PAIR),
    "pair after a list": (
        {"prompt": [ASKED[0]], "chosen": [ASKED[1]], "rejected": [said("assistant", "5")]},
        PAIR,
    ),
    "pair of turns": (
        {"conversations": SHARE[:1], "chosen": SHARE[1], "rejected": {"from": "gpt", "value": "5"}},
        PAIR,
    ),
    "pair with JSON answers": (
        {"prompt": "who?", "chosen": '[{"role": "cook"}]', "rejected": "[]"},
        ("preference", [said("user", "who?"), said("assistant", '[{"role": "cook"}]')], {"rejected": "[]"}),
    ),
    "kto": ({"prompt": "2+2?", "completion": "4", "label": "True"}, ("kto", ASKED, {"label": True})),
    "kto of lists": ({"messages": ASKED, "label": 0}, ("kto", ASKED, {"label": False})),
    "no kto": ({"messages": ASKED, "label": "sums"}, ("messages", ASKED, {})),
    "gsm8k": (
        {"question": "2+2?", "answer": "2+2=<<2+2=4>>4\n#### $1,004"},
        ("checkable", [ASKED[0], said("assistant", "2+2=<<2+2=4>>4\n#### $1,004")], {"expected": "1004"}),
    ),
    "solution, answer": (
        {"problem": "2+2?", "solution": "It is 4", "answer": 4},
        ("checkable", [ASKED[0], said("assistant", "It is 4")], {"expected": "4"}),
    ),
    "prompt, expected": ({"prompt": "2+2?", "expected": "4"}, ("checkable", ASKED, {"expected": "4"})),
    "label studio": (
        {
            **TASK,
            "annotations": [
                annotation(1, "2026-01-02T10:00:00Z"),
                annotation(2, "2026-01-03T10:00:00Z", was_cancelled=True),
                annotation(3, "2026-01-01T10:00:00Z", result=[]),
            ],
        },
        ("label_studio", ASKED, {}),
    ),
    "label studio choices": (
        {**TASK, "annotations": [annotation(1, "2026-01-02T10:00:00Z", "choices")]},
        ("label_studio", ASKED, {}),
    ),
}


@pytest.mark.parametrize(("row", "expected"), ROWS.values(), ids=ROWS)
def test_a_row_is_recognised_and_read(
    row: dict[str, Any], expected: tuple[str, list[Any], dict[str, Any]]
) -> None:
    layout = layout_of(row)
    record = record_of(row, layout)
    assert (layout.format, record.messages, record.extra) == expected
    assert record.record_id == record.content_id == again(record).record_id
    assert record_of(dict(reversed(row.items())), layout).record_id == record.record_id
    assert (record.line, record.source, record.synthetic) == (7, "main", None)


def test_kinds_prompts_and_answers() -> None:
    kinds = {name: record_of(row).kind for name, (row, _) in ROWS.items()}
    assert {kinds[n] for n in kinds if n.startswith("pair")} == {"preference"}
    assert (kinds["kto"], kinds["gsm8k"], kinds["text"]) == ("labelled", "prompt", "text")
    assert (kinds["alpaca"], kinds["tools"]) == ("text_pair", "conversation")
    told = record_of(ROWS["tools"][0])
    assert told.prompt == 'user: Rain?\nassistant: [{"arguments":{"at":"Ulm"},"name":"weather"}]\ntool: dry'
    calls = record_of({"messages": TOLD[:2]})
    assert calls.answer == '[{"arguments":{"at":"Ulm"},"name":"weather"}]'
    once, twice = record_of({"text": "Once."}), record_of({"text": "Twice."})
    assert once.prompt == "" and once.group != twice.group  # or all texts would be one group


def test_the_newest_annotation_and_the_named_control_give_the_answer() -> None:
    older, newer = annotation(1, "2026-01-02T10:00:00.5Z"), annotation(9, "2026-01-02T10:00:00Z")
    more = {"type": "choices", "from_name": "mood", "value": {"choices": ["calm", "glad"]}}
    older["result"] = [*older["result"], more]
    row = {"data": {"body": "Hi"}, "annotations": [newer, older]}
    mapped = layout_of(row, declared="label_studio", prompt="body", answer="mood")
    assert record_of(row, mapped).messages == [said("user", "Hi"), said("assistant", "calm, glad")]
    only_prompt = layout_of(row, prompt="body")
    assert only_prompt.format == "label_studio"
    assert record_of(row, only_prompt).answer == "4"


def test_images_are_kept_by_reference_and_hashed_where_they_can_be() -> None:
    picture = b"\x89PNG not really"
    uri = "data:image/png;base64," + base64.b64encode(picture).decode()
    parts = [
        {"type": "text", "text": "What is"},
        {"type": "image_url", "image_url": {"url": uri}},
        {"type": "image", "path": "a.png"},
        {"type": "text", "text": "this?"},
    ]
    record = record_of({"messages": [said("user", "x") | {"content": parts}, said("assistant", "A dot.")]})
    sha256 = hashlib.sha256(picture).hexdigest()
    images = [{"ref": uri, "sha256": sha256}, {"ref": "a.png", "sha256": None}]
    assert record.messages[0] == said("user", "What is\nthis?", images=images)
    assert record.prompt == f"What is\nthis?\n[image {sha256}]\n[image a.png]"
    assert again(record).record_id == record.record_id
    parts[1] = {"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}
    broken = {"messages": [{"role": "user", "content": parts}, said("assistant", "A dot.")]}
    assert fault_of(broken).what == "an image of message 1 is a broken data URI"


# -- what goes along -------------------------------------------------------------------------------


def test_kept_columns_go_along_as_json_has_them() -> None:
    day = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
    row = {"text": "hot", "target": "1", "series": [1.5, 2, None], "at": day, "raw": b"\x00"}
    record = record_of(row, keep=["series", "at"])
    assert record.extra == {"columns": {"series": [1.5, 2, None], "at": "2026-01-02T03:04:00+00:00"}}
    assert record.record_id != record_of(row).record_id
    assert again(record).record_id == record.record_id
    fault = fault_of(row, keep=["raw"])
    assert "'raw' holds bytes" in fault.what and "dataset.keep" in fault.do
    columns = [p.what for p in records.check_columns(list(row), "d.jsonl", "who", ["at", "gone"])]
    assert columns == ["there is no column 'who'", "there is no column 'gone'"]


def test_a_row_that_a_model_wrote_says_so() -> None:
    row: dict[str, Any] = {"text": "a", "target": "b"}
    unknown = {"generator": "unknown", "prompt": "", "cost_usd": 0.0}
    assert record_of(row, synthetic=True).synthetic == unknown
    origin = {"generator": "m1", "prompt": "evolve", "cost_usd": 0.001}
    for written in (origin, json.dumps(origin)):
        assert record_of({**row, "_synthetic": written}).synthetic == origin
    assert record_of({**row, "_synthetic": None}).synthetic is None
    assert "_synthetic" in fault_of({**row, "_synthetic": "yes"}).what
    assert record_of({**row, "_synthetic": origin}).record_id == record_of(row).record_id


def test_rows_group_by_a_column() -> None:
    row = {"text": "a", "target": "b", "who": 7}
    assert record_of(row, group_by="who").group == record_of({**row, "who": "7"}, group_by="who").group
    assert "no 'who'" in fault_of({**row, "who": ""}, group_by="who").what


# -- what is no record -----------------------------------------------------------------------------

SECRET = "Ann Smith"
BAD: list[tuple[str, dict[str, Any], str]] = [
    ("messages", {"messages": {"a": SECRET}}, "'messages' is not a list of messages"),
    ("messages", {"messages": [said("bot", SECRET)]}, "role 'bot' is not one of system, user"),
    ("messages", {"messages": [said("user", SECRET)]}, "the row has no answer: the last message is not"),
    ("messages", {"messages": [said("user", " "), ASKED[1]]}, "the row has no text: message 1 is empty"),
    (
        "messages",
        {"messages": [said("user", SECRET), said("assistant", None)]},
        "the row has no answer: message 2",
    ),
    (
        "messages",
        {"messages": [ASKED[0], said("system", SECRET), ASKED[1]]},
        "a system message does not come first",
    ),
    ("messages", {"messages": [said("system", SECRET), ASKED[1]]}, "no message is the user's"),
    (
        "messages",
        {"messages": [said("user", "x") | {"content": [{"type": "audio"}]}, ASKED[1]]},
        "neither text nor",
    ),
    (
        "messages",
        {
            "messages": [
                *TOLD[:1],
                said("assistant", "", tool_calls=[{"function": {"name": "f", "arguments": SECRET}}]),
            ]
        },
        "a tool call in message 2 are not JSON",
    ),
    ("messages", {"messages": ASKED, "tools": SECRET}, "'tools' is not a list of objects"),
    ("messages", {"messages": [said("user", "\ud83d"), ASKED[1]]}, "the text holds half a surrogate pair"),
    ("sharegpt", {"conversations": [{"from": "bot", "value": SECRET}]}, "'from' of message 1 is not one of"),
    (
        "sharegpt",
        {"conversations": [SHARE[0], {"from": "function_call", "value": SECRET}]},
        "function call of message 2 is not JSON",
    ),
    (
        "preference",
        {"prompt": "q", "chosen": SECRET, "rejected": f"{SECRET} "},
        "'chosen' and 'rejected' are the same",
    ),
    ("preference", {"chosen": SECRET, "rejected": "b"}, "the row has no question: 'prompt' is missing"),
    (
        "preference",
        {"chosen": ASKED, "rejected": [said("user", SECRET), ASKED[1]]},
        "differ before the last answer",
    ),
    (
        "preference",
        {"prompt": "q", "chosen": SECRET, "rejected": ""},
        "the row has no answer: 'rejected' is empty",
    ),
    ("kto", {"prompt": "q", "completion": "a", "label": SECRET}, "'label' is not true or false"),
    ("checkable", {"question": "q", "answer": "so ####"}, "nothing stands after '####'"),
    ("text", {"text": "\t\n"}, "the row has no text: 'text' is empty"),
    ("label_studio", {**TASK, "data": {"text": SECRET}}, "the task is not annotated"),
    ("label_studio", {**TASK, "data": SECRET}, "the task has no data"),
]


@pytest.mark.parametrize(("declared", "row", "what"), BAD, ids=[f"{b[0]}: {b[2]}" for b in BAD])
def test_what_is_no_record_is_a_fault_without_its_text(declared: str, row: dict[str, Any], what: str) -> None:
    fault = fault_of(row, Layout(declared, {}))
    assert what in fault.what
    assert fault.do
    assert SECRET not in f"{fault.what}{fault.got}{fault.do}"


@pytest.mark.parametrize("token", template_tokens.TOKENS)
def test_a_template_token_is_a_fault_that_names_it_and_its_place(token: str) -> None:
    fault = fault_of({"text": "a", "target": f"b{token}c"})
    assert (fault.what, fault.got) == ("the text holds a template token", f"{token} in message 2")
    pair = fault_of({"prompt": "a", "chosen": "b", "rejected": token})
    assert pair.got == f"{token} in 'rejected'"


@pytest.mark.parametrize("text", ["<s>old</s> new", "f <| x |> g", "a < b [1] INST", "List<int>", "<|>"])
def test_prose_and_code_hold_no_template_token(text: str) -> None:
    assert record_of({"text": text, "target": "b"}).prompt == text


# -- recognition -----------------------------------------------------------------------------------


def test_shared_names_are_told_apart_by_the_rows() -> None:
    marked, plain = {"question": "q", "answer": "a\n#### 3"}, {"question": "q", "answer": "a"}
    assert layout_of(marked, marked).format == "checkable"
    assert layout_of(marked, plain) == Layout(
        "prompt_completion", {"prompt": "question", "completion": "answer"}
    )
    judged = {"prompt": "q", "completion": "a", "label": True}
    assert layout_of(judged).format == "kto"
    assert layout_of(judged, {**judged, "label": "sums"}).format == "prompt_completion"


def test_declared_and_mapped_columns() -> None:
    turns = {"conversations": SHARE[:1], "chosen": SHARE[1], "rejected": {"from": "gpt", "value": "5"}}
    assert layout_of(turns, declared="preference") == Layout("preference", {"prompt": "conversations"})
    assert layout_of({"body": "b"}, text="body") == Layout("text", {"text": "body"})
    assert layout_of({"body": "b", "kind": "k"}, text="body", target="kind").format == "text_target"
    mapped = layout_of({"q": "", "a": "", "ok": 1}, prompt="q", completion="a", label="ok")
    assert mapped.format == "kto"
    with pytest.raises(InputInvalid, match="kto needs the column label"):
        layout_of({"prompt": "q", "completion": "a"}, declared="kto")
    with pytest.raises(InputInvalid, match="'target' is not a column of alpaca"):
        layout_of({"instruction": "q", "output": "a"}, declared="alpaca", target="output")


SHARED_DATA = [
    ("toolcalls/sharegpt_tools.json", {}, 300, {"conversation": 261, "text_pair": 39}),
    ("preferences/dpo_sharegpt.json", {}, 300, {"preference": 300}),
    ("gsm8k/train-2000.jsonl", {}, 2000, {"prompt": 2000}),
    ("gsm8k/test-300.jsonl", {}, 300, {"prompt": 300}),
    ("jfleg/dev.csv", {}, 754, {"text_pair": 754}),
    ("banking77/test.csv", {}, 3080, {"text_pair": 3080}),
    ("bias/crows_pairs.csv", {"text": "sent_more", "target": "sent_less"}, 1508, {"text_pair": 1508}),
    (
        "bias/crows_pairs.csv",
        {"prompt": "bias_type", "chosen": "sent_less", "rejected": "sent_more"},
        1508,
        {"preference": 1508},
    ),
]


@pytest.mark.parametrize(("name", "columns", "rows", "kinds"), SHARED_DATA)
def test_data_that_nobody_here_wrote_is_read_to_the_last_row(
    name: str, columns: dict[str, str], rows: int, kinds: dict[str, int]
) -> None:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"shared/data/{name} is not beside this checkout")
    found = readers.read(path, readers.load(path))
    layout = formats.resolve(found.columns, path, None, columns, found.rows[:200])
    if not columns:
        assert formats.detect(path) == layout
    read = records.reader(layout, "main", None, False, None, [])
    made = [read(row) for row in found.rows]
    assert len(made) == rows
    counted = {kind: sum(r.kind == kind for r in made) for kind in sorted({r.kind for r in made})}
    assert counted == kinds
    used = [layout.name(column) for column in FORMATS[layout.format].columns]
    distinct = {json.dumps([row.value.get(name) for name in used], sort_keys=True) for row in found.rows}
    assert len({r.record_id for r in made}) == len(distinct)


# -- promises for any text -------------------------------------------------------------------------

TEXT = st.text(min_size=1).filter(lambda t: not t.isspace() and not template_tokens.find(t.encode()))
JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from("role content from value tool_calls function name type text".split()),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=4), st.dictionaries(st.text(), st.text(), max_size=3))
def test_identity_is_the_stores_digest(texts: list[str], columns: dict[str, str]) -> None:
    messages = [said("user", text) for text in texts]
    assert records.identity(messages) == digest_of({"messages": messages})
    extra = {"columns": columns, "label": True}
    assert records.identity(messages, extra) == digest_of({"messages": messages, "extra": extra})


@settings(deadline=None)
@given(TEXT, TEXT, TEXT)
def test_canonical_out_and_in_again_is_the_same_record(question: str, answer: str, other: str) -> None:
    rows: Sequence[tuple[str, dict[str, Any]]] = (
        ("alpaca", {"instruction": question, "input": other, "output": answer}),
        ("text", {"text": answer}),
        ("checkable", {"question": question, "answer": f"{answer}\n#### {other}", "expected": other}),
        ("kto", {"prompt": question, "completion": answer, "label": False}),
        ("preference", {"prompt": question, "chosen": f"+{answer}", "rejected": f"-{other}"}),
        ("sharegpt", {"conversations": SHARE, "system": other, "tools": [{"name": question}]}),
    )
    for name, row in rows:
        record = record_of(row, Layout(name, {}))
        back = again(record)
        assert (back.record_id, back.messages, back.extra) == (
            record.record_id,
            record.messages,
            record.extra,
        )
        assert back.payload() == record.payload()
    pair = record_of(rows[0][1], Layout("alpaca", {}))
    assert (pair.prompt, pair.answer) == (f"{question}\n{other}", answer)


TURN: Any = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"]), "content": st.text(min_size=1) | JSON},
    optional={"tool_calls": JSON, "function_call": JSON, "images": JSON, "name": JSON, "tool_call_id": JSON},
)
TALK: Any = st.lists(TURN, max_size=3).map(lambda turns: [*turns, *ASKED])
CELL: Any = st.one_of(st.text(min_size=1), TALK, st.booleans(), TALK.map(json.dumps), JSON)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.lists(CELL, min_size=6, max_size=6), st.sets(st.integers(0, 3)))
def test_any_row_is_a_record_or_a_fault(name: str, cells: list[Any], options: set[int]) -> None:
    shape = FORMATS[name]
    row = dict(zip(shape.columns if 3 in options else shape.required, cells, strict=False))
    row["other"] = cells[-2]
    if 0 in options:
        row["_synthetic"] = cells[-1]
    keep = list(row) if 1 in options else []
    try:
        record = record_of(row, Layout(name, {}), keep=keep, group_by="other" if 2 in options else None)
    except RowFault as fault:
        assert fault.what and fault.do
        return
    assert record.messages[-1]["role"] == "assistant"
    assert all(isinstance(m["content"], str) for m in record.messages)
    assert again(record).record_id == record.record_id
    assert isinstance(record.prompt + record.answer + record.group, str)
