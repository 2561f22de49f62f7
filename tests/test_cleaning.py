"""Cleaning: the quick way is the plain way, code survives, and each reason to drop a record has its rule."""

import html
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftaas_pipelines.data.cleaning import boilerplate, heuristics
from ftaas_pipelines.data.cleaning.cleaner import Cleaner
from ftaas_pipelines.data.cleaning.markup import code_spans, collapse, without_html
from ftaas_pipelines.data.rows.records import Record
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects.dataset import Cleaning

TOKENIZER = Path(__file__).parents[1] / "ftaas_pipelines/bases/tiny-causal"
FOOTER = "Copyright 2026 Example Ltd. All rights reserved."


def pair(question: str, answer: str, **extra: object) -> Record:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Record("0" * 64, messages, "s", None, 1, extra=dict(extra))


def reason(answer: str, question: str = "What is it?", **options: object) -> str | None:
    return Cleaner(Cleaning.model_validate(options), TOKENIZER).clean([pair(question, answer)])[0]


# -- the quick way and the plain way -------------------------------------------------------------

_PIECES = st.sampled_from(
    ["\r\n", "\r", "\n", "\n\n", "    ", "\t", "\x00", "\x85", "e", "\u0301", "\u1100", "\u1161", "\u0958"]
    + ["`", "```", "\n```py\n"]
    + ["\n```\n", "~~~", "<b>", "</b>", "<", ">", "&lt;", "&amp;", "lt;", "b>", "<p>", "<pre>", "</pre>"]
    + ["<code>", "</code>", "<!--", "-->", "<script>", "</script>", "&#769;", "&#13;", "&nbsp;", "/", "x = 1"]
    + ['<a href="', '">', FOOTER, f"\n{FOOTER}\n", " ", "\u00a0"]
)  # fmt: skip
TEXTS = st.one_of(st.text(), st.lists(_PIECES, max_size=14).map("".join))
OPTIONS = st.builds(
    Cleaning,
    **{
        name: st.booleans()
        for name in ("unicode_nfc", "control_characters", "html", "boilerplate", "strip")
        + ("collapse_white_space", "keep_code")
    },
)
LINES = frozenset(boilerplate.lines([pair(FOOTER, "")]))


def plain(cleaner: Cleaner, text: str) -> tuple[str, set[str]]:
    """The definition: every step on every text, until none changes it."""
    changed: set[str] = set()
    while True:
        before = text
        for name, step in cleaner.steps.items():
            if (after := step(text)) != text:
                changed.add(name)
            text = after
        if text == before:
            return text, changed


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=6), OPTIONS)
def test_the_quick_way_is_the_plain_way_and_cleaning_twice_changes_nothing(
    texts: list[tuple[str, str]], options: Cleaning
) -> None:
    cleaner = Cleaner(options, boilerplate=LINES)
    records = [pair(question, answer, rejected=question) for question, answer in texts]
    cleaner.clean(records)

    counted: Counter[str] = Counter(dict.fromkeys(cleaner.steps, 0))
    for record, (question, answer) in zip(records, texts, strict=True):
        (asked, one), (answered, two) = plain(cleaner, question), plain(cleaner, answer)
        assert [m["content"] for m in record.messages] == [asked, answered]
        assert record.extra["rejected"] == asked
        counted.update(one | two)
    assert cleaner.changed == counted

    again = Cleaner(options, boilerplate=LINES)
    again.clean(records)
    assert set(again.changed.values()) <= {0}


@settings(max_examples=1500, deadline=None)
@given(TEXTS, st.booleans())
def test_html_is_out_after_one_pass(text: str, keep_code: bool) -> None:
    once = without_html(text, keep_code)
    assert without_html(once, keep_code) == once
    assert without_html(html.escape(text, quote=False), False).count("<b") <= text.count("<b")


def test_what_happens_to_a_record_does_not_depend_on_its_batch() -> None:
    texts = ["plain", " padded ", "cr\r\nlf", "e\u0301", "e\x00\u0301", "naïve", "a\x85b", "tab\tstays"] * 40
    one_by_one, together = [pair(t, t) for t in texts], [pair(t, t) for t in texts]
    single, whole = Cleaner(Cleaning()), Cleaner(Cleaning())
    for record in one_by_one:
        single.clean([record])
    whole.clean(together)
    assert one_by_one == together
    assert single.changed == whole.changed == {"unicode_nfc": 80, "control_characters": 120, "strip": 40}
    assert together[4].answer == "é" and unicodedata.is_normalized("NFC", together[3].answer)


def test_line_ends_give_one_content_and_shared_messages_are_not_written_to() -> None:
    records = [pair(f"one{end}two", "yes") for end in ("\n", "\r\n", "\r")]
    shared = {"role": "system", "content": " Be kind. "}
    for record in records:
        record.messages.insert(0, shared)
    cleaner = Cleaner(Cleaning())
    assert cleaner.clean(records) == [None] * 3
    assert len({record.content_id for record in records}) == 1
    assert cleaner.changed["strip"] == 3 and shared["content"] == " Be kind. "


# -- code and markup -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "a < b and c > d", "x <y and z> w", "if a<b and c>d", "List<int>", "Map<String, List<A>>",
        "Promise<Object>", "Ada <ada@example.org>", "see <https://example.org/a?b=1&copy=2>",
        "<T extends Foo>", "R&D, AT&T;", "<|im_start|>", "<!-- never closed", "a <- b", "<3",
        "std::vector<int> v;", "<Button onClick={go}>",
    ],
)  # fmt: skip
def test_what_only_looks_like_html_survives(text: str) -> None:
    assert without_html(text, keep_code=True) == text
    assert without_html(text, keep_code=False) == text


def test_html_becomes_the_text_it_shows() -> None:
    page = (
        "<!DOCTYPE html><style>p {}</style><SCRIPT>if (a < b) `x`</SCRIPT><div class='x'><p>Tom &amp;"
        " <b>Jerry</b> &lt;3 &#8364;5</p></div><!-- no --><ul><li>one<li>two</ul>"
        "a<br/>b <input disabled>&lt;b&gt;"
    )
    assert without_html(page, True).split("\n") == [
        "", "", "Tom & Jerry <3 €5", "", "one", "two", "a", "b &lt;b>",
    ]  # fmt: skip
    code = "<p>Use <code>&lt;div&gt;</code>:</p><pre class=x>if a &lt; <i>b</i>:\n    go()</pre>"
    assert without_html(code, True) == "\nUse `<div>`:\n\n```\nif a < b:\n    go()\n```\n"
    assert without_html("*" * 9 + "<<b>b>", True) == "*" * 9 + "&lt;b>"


MARKDOWN = (
    "Try   this:\n\n```html\n<b>a</b>   &amp;\n```\n\nor  `<i>  x</i>`, <b>or</b>\n\n"
    "    <p>  indented\n\n\tmore  </p>\n\n\nEnd  <i>x</i>"
)


def test_code_is_left_alone_and_collapsed_prose_keeps_its_blocks() -> None:
    assert [MARKDOWN[s.start : s.end] for s in code_spans(MARKDOWN)] == [
        "```html\n<b>a</b>   &amp;\n```\n", "`<i>  x</i>`", "    <p>  indented\n\n\tmore  </p>\n",
    ]  # fmt: skip
    shown = collapse(without_html(MARKDOWN, True), True)
    assert shown == (
        "Try this:\n```html\n<b>a</b>   &amp;\n```\nor `<i>  x</i>`, or\n\n"
        "    <p>  indented\n\n\tmore  </p>\nEnd x"
    )
    assert collapse(without_html(MARKDOWN, False), False) == (
        "Try this: ```html a & ``` or ` x`, or indented more End x"
    )
    assert code_spans("a\n```py\nnever closed")[0].kind == "fence"


def test_hostile_markup_comes_to_an_end() -> None:  # within the suite's timeout: no square of the length
    for piece in ("<!--", "<script>", "<pre>", "a<B>", '<a href="', "<a b=c ", "&", "`", "\n```", "<b "):
        once = without_html(piece * 50_000, True)
        assert without_html(once, True) == once


# -- boilerplate ---------------------------------------------------------------------------------


def test_lines_of_many_records_go_and_code_messages_and_rare_lines_stay() -> None:
    records = [pair(f"Question {i}, which is of some length?", f"Answer {i}\n{FOOTER}") for i in range(60)]
    records += [pair(f"Only the footer {i}?", FOOTER) for i in range(2)]
    records += [pair("In code?", f"See:\n```\n{FOOTER}\n```")]
    halves = boilerplate.lines(records[:10]) + boilerplate.lines(records[10:])
    assert halves == boilerplate.lines(records)
    found = boilerplate.common(halves, len(records))
    assert len(found) == 1 and not boilerplate.common(halves, 6_200)
    assert not boilerplate.common(boilerplate.lines(records[:49]), 49)

    cleaner = Cleaner(Cleaning(boilerplate=True), boilerplate=found)
    cleaner.clean(records)
    assert records[0].answer == "Answer 0" and cleaner.changed["boilerplate"] == 60
    assert records[60].answer == FOOTER and FOOTER in records[62].answer
    counting = boilerplate.before(Cleaning(boilerplate=True, languages=["en"], max_tokens=9, html=True))
    assert counting == Cleaning(html=True)


# -- reasons -------------------------------------------------------------------------------------


def test_lengths_in_characters_and_tokens() -> None:
    assert reason("  \x00 ") == "too_short"
    assert reason("x" * 20_001) == "too_long" and reason("x" * 20_000 + "\n") is None
    assert reason("word " * 50, min_tokens=1_000) == "too_few_tokens"
    assert reason("word " * 50, max_tokens=10) == "too_many_tokens"
    assert reason("word " * 50, min_tokens=10, max_tokens=1_000) is None
    call = pair("What is the weather?", "")
    call.messages[-1]["tool_calls"] = [{"id": "1"}]
    assert Cleaner(Cleaning()).clean([call, pair("a", "b", rejected=" ")]) == [None, "too_short"]
    with pytest.raises(InputInvalid, match="no tokenizer"):
        Cleaner(Cleaning(max_tokens=10))


def test_languages() -> None:
    options = Cleaning(languages=["en", "de"])
    german = pair("Wie setze ich mein Passwort zurück?", "Klicken Sie auf „Passwort vergessen“.")
    french = pair("Comment changer mon mot de passe ?", "Cliquez sur le lien dans votre profil.")
    code = pair("```python\nimprimer = lambda valeur: print(valeur, 'bonjour tout le monde')\n```", "Oui.")
    short = pair("¿Qué?", "Sí")
    records = [german, french, code, short]
    assert Cleaner(options).clean(records) == [None, "language", None, None]
    assert [r.language for r in records] == ["de", "fr", None, None]
    with pytest.raises(InputInvalid, match="klingon"):
        Cleaner(Cleaning(languages=["en", "klingon"]))


PROSE = (
    "The pump stopped because its inlet filter was blocked by sand. Clean the filter, check the seal for"
    " wear, and start the pump again while you watch the pressure gauge. If the pressure stays under two"
    " bar after a minute, close the outlet valve, call the maintenance team and write down the serial"
    " number that stands on the plate beside the motor."
)
WORDS = PROSE.split(" ")[:12]
GOOD = [
    "yes",
    "No.",
    "card_arrival",
    PROSE,
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May. She sold 48 + 24 = <<48+24=72>>72 clips , it is said .",
    '{"a": 1, "b": [1, 2, 3], "c": "#### #### #### #### #### #### ####"}',
    "- one\n- two\n- three\n- four",
    "你可以在设置页面重置密码。请点击忘记密码，然后按照邮件中的说明操作。如果没有收到邮件，请检查垃圾邮件文件夹。",
    "비밀번호를 재설정하려면 설정 페이지에서 비밀번호 찾기를 누른 다음 이메일의 안내를 따르세요."
    " 메일이 오지 않으면 스팸함을 확인하세요.",
    "คุณสามารถรีเซ็ตรหัสผ่านได้ที่หน้าการตั้งค่า จากนั้นทำตามคำแนะนำในอีเมลที่เราส่งให้คุณ",
    "आप सेटिंग पेज पर जाकर अपना पासवर्ड बदल सकते हैं और फिर ईमेल में दिए गए निर्देशों का पालन करें ताकि खाता खुल जाए।",
    "def f(x):\n    if x > 1 and x < 3:\n        return {x: [1, 2]}\n"
    "    y = x + 1 - 2 * 3 / 4 % 5\n    return y",
    "Use this:\n```sh\n# a\n# b\n# c\n# d\n# e\n# f\n# g\n```",
]


@pytest.mark.parametrize("answer", GOOD)
def test_good_answers_of_any_script_pass_both_rule_sets(answer: str) -> None:
    assert reason(answer, quality="gopher") is None
    assert reason(answer, quality="fineweb") is None


@pytest.mark.parametrize(
    ("rules", "rule", "answer"),
    [
        ("gopher", "word_length", "a b c d e f g h i j k l m n " * 2),
        ("gopher", "word_length", "pneumonoultramicroscopic " * 20),
        ("gopher", "symbols", PROSE + " # # # # # # # # # # # # # #"),
        ("gopher", "letters", "call 12345 67890 11121 31415 16171 and 81920 then again 2122 " * 2),
        ("gopher", "bullets", "\n".join(f"- the {w} part" for w in WORDS)),
        ("gopher", "ellipses", "\n".join(f"{w} and then more of all that was on that day..." for w in WORDS)),
        ("gopher", "duplicate_lines", "I do not know.\nI do not know.\nI do not know.\nAsk again."),
        ("gopher", "repeated_words", "thank you very much " * 15),
        ("gopher", "repeated_words", "我不知道你说什么，" * 10),
        ("gopher", "repeated_words", PROSE + " So: " + PROSE),
        ("fineweb", "duplicate_lines", f"{PROSE}\nGood day to you and yours.\n" + f"{FOOTER}\n" * 3),
        ("fineweb", "line_punctuation", "\n".join(f"{w} is a heading without a stop" for w in WORDS)),
        ("fineweb", "short_lines", "\n".join(f"{w} menu." for w in WORDS)),
    ],
)  # fmt: skip
def test_each_heuristic_names_what_it_throws_out(rules: str, rule: str, answer: str) -> None:
    assert heuristics.RULES[rules](answer) == rule
    assert reason(answer, quality=rules) == f"quality_{rule}"
    assert reason(answer) is None
