"""Code in prose, and HTML out of it.

What counts as code is CommonMark's (https://spec.commonmark.org/0.31.2/), a little wider: fences at any
indentation, indented blocks after a blank line, and `inline code` within one line.

An HTML parser takes every `<` for markup, also in `x <y and z` or `List<int>`, and swallows text up to the
next `>`. Here a tag counts only with a name of HTML, in one case, and attributes that are attributes.
"""

import html
import re
from collections.abc import Callable
from html.entities import html5
from typing import Literal, NamedTuple

# https://html.spec.whatwg.org/multipage/indices.html, and the obsolete ones old pages are full of.
_BLOCK = frozenset(
    "address article aside blockquote body br caption center dd details dialog dir div dl dt fieldset"
    " figcaption figure footer form h1 h2 h3 h4 h5 h6 head header hgroup hr html legend li main menu nav ol"
    " optgroup option p pre search section summary table tbody tfoot thead title tr ul".split()
)
_CELL = frozenset(("td", "th"))
_OTHER = frozenset(
    "a abbr acronym area audio b base bdi bdo big button canvas cite code col colgroup data datalist del dfn"
    " em embed font i iframe img input ins kbd label link map mark meta meter noscript object output param"
    " picture progress q rp rt ruby s samp script select slot small source span strike strong style sub sup"
    " svg template textarea time tt u var video wbr".split()
)
_NAMES = "|".join(sorted(_BLOCK | _CELL | _OTHER))
_BOOLEAN = (
    "allowfullscreen|async|autofocus|autoplay|checked|compact|controls|default|defer|disabled|hidden|ismap"
    "|loop|multiple|muted|nomodule|noshade|novalidate|nowrap|open|readonly|required|reversed|selected"
)
_ATTRIBUTE = (
    rf"""(?:[a-z_:@][-\w:.@]*+\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s"'<>`]++)|(?:{_BOOLEAN})(?=[\s/>]))"""
)
_TOKEN = re.compile(
    rf"(?P<comment><!--)|(?P<doctype><!doctype\s[^<>]*+>)"
    rf"|<(?P<slash>/?)(?P<name>{_NAMES})(?:\s++{_ATTRIBUTE})*+\s*+/?>"
    r"|&(?P<entity>[a-z][a-z0-9]{1,31}|\#[0-9]{1,7}|\#x[0-9a-f]{1,6});",
    re.IGNORECASE,
)
_FENCE = re.compile(r"[ \t]*(`{3,}(?=[^`]*$)|~{3,})")
_INLINE = re.compile(r"(?<!`)(`{1,2})(?!`)[^`\n]+\1(?!`)")
_WHITE_SPACE = re.compile(r"\s+")


class Span(NamedTuple):
    """Where code stands in a text: text[start:end], its last line break included."""

    start: int
    end: int
    kind: Literal["fence", "indented", "inline"]


def code_spans(text: str) -> list[Span]:
    """The pieces of code in a text, in order, none overlapping. A fence never closed runs to the end."""
    if "`" not in text and "~~~" not in text and "\n    " not in text and "\n\t" not in text:
        return []
    spans: list[Span] = []
    fence, opened, after_blank, position = "", 0, False, 0
    for line in text.split("\n"):
        start, position = position, min(position + len(line) + 1, len(text))
        marker = _FENCE.match(line)
        if fence:
            if marker and marker[1].startswith(fence) and line.strip() == marker[1]:
                spans.append(Span(opened, position, "fence"))
                fence = ""
        elif marker:
            fence, opened = marker[1], start
        elif not line.strip():
            after_blank = True
            continue
        elif line.startswith(("    ", "\t")) and (after_blank or _goes_on(spans, start)):
            if spans and spans[-1].kind == "indented" and not text[spans[-1].end : start].strip():
                start = spans.pop().start  # blank lines within a block are part of it
            spans.append(Span(start, position, "indented"))
        else:
            spans += [Span(start + m.start(), start + m.end(), "inline") for m in _INLINE.finditer(line)]
        after_blank = False
    if fence:
        spans.append(Span(opened, len(text), "fence"))
    return spans


def _goes_on(spans: list[Span], start: int) -> bool:
    return bool(spans) and spans[-1].kind == "indented" and spans[-1].end == start


def prose(text: str) -> str:
    """The text without its code; where code stood there is a space or the line break it ended with."""
    out: list[str] = []
    position = 0
    for span in code_spans(text):
        out += [text[position : span.start], " " if span.kind == "inline" else "\n"]
        position = span.end
    return "".join(out) + text[position:]


def collapse(text: str, keep_code: bool) -> str:
    """White space as single spaces. Kept code stays as it is, and its blocks stay on their own lines."""
    spans = code_spans(text) if keep_code else []
    if not spans:
        return _WHITE_SPACE.sub(" ", text)
    out: list[str] = []
    position, after_block = 0, False
    for span in [*spans, None]:
        piece = _WHITE_SPACE.sub(" ", text[position : span.start if span else len(text)])
        if after_block:
            piece = piece.lstrip()
        if span and span.kind != "inline":
            piece = piece.rstrip()
            starts_line = not piece and (after_block or not out)
            piece += ("" if starts_line else "\n") + ("\n" if span.kind == "indented" else "")
        out.append(piece)
        if span:
            out.append(text[span.start : span.end])
            position, after_block = span.end, span.kind != "inline"
    return "".join(out)


def without_html(text: str, keep_code: bool) -> str:
    """The text that HTML shows: block tags are line breaks, scripts, styles and comments are gone.

    Entities are read, save where what they spell would itself be read as markup (`&lt;b>` stays): so doing
    it twice changes nothing more, and a text about HTML loses nothing. With `keep_code`, Markdown code is
    left alone, and `<pre>` and `<code>` become it.
    """
    if "<" not in text and "&" not in text:
        return text
    shown = _Markup(text, keep_code).decoded()
    return _Markup(shown, keep_code).escaped()


class _Markup:
    """The markup of one text, found from left to right outside its code."""

    def __init__(self, text: str, keep_code: bool):
        self.text, self.keep_code = text, keep_code
        self._last: dict[str, int] = {}

    def decoded(self) -> str:
        return self._replaced(self._decode)

    def escaped(self) -> str:
        """Each `<` and `&` that would be read as markup, written as an entity."""
        return self._replaced(lambda m: ("&lt;" if m[0][0] == "<" else "&amp;", m.start() + 1))

    def _replaced(self, treat: Callable[[re.Match[str]], tuple[str, int]]) -> str:
        """`treat` gives what stands for a token, and where reading goes on."""
        spans = iter(code_spans(self.text) if self.keep_code else [])
        span = next(spans, None)
        out: list[str] = []
        copied, search, tail = 0, 0, ""
        while token := _TOKEN.search(self.text, search):
            while span and span.end <= token.start():
                span = next(spans, None)
            if span and span.start <= token.start():
                search = span.end
                continue
            if not self._is_markup(token):
                search = token.start() + 1
                continue
            before, (after, end) = self.text[copied : token.start()], treat(token)
            tail = (tail + before)[-2:]
            if after == "\n" and tail == "\n\n":
                after = ""  # nested blocks end together: one empty line is enough
            out += [before, after]
            tail = (tail + after)[-2:]
            copied = search = end
        return "".join(out) + self.text[copied:]

    def _is_markup(self, token: re.Match[str]) -> bool:
        if entity := token["entity"]:
            return entity[0] == "#" or entity + ";" in html5
        if token["comment"]:
            return self._find("-->", token.end()) >= 0
        if token["doctype"]:
            return True
        name = token["name"]
        if not (name.islower() or name.isupper()):
            return False  # `List<Object>`, `<Button>`
        start = token.start()
        if len(name) == 1 and name.isupper() and start and self.text[start - 1].isalnum():
            return self._find(f"</{name}>", token.end()) >= 0  # else a type parameter: `List<A>`
        return True

    def _decode(self, token: re.Match[str]) -> tuple[str, int]:
        if token["entity"]:
            return html.unescape(token[0]), token.end()
        if token["comment"]:
            return "", self._find("-->", token.end()) + 3
        if token["doctype"]:
            return "", token.end()
        name = token["name"].lower()
        if not token["slash"] and name in ("script", "style", "pre", "code"):
            close = self._find(f"</{token['name']}>", token.end())
            end = close + len(name) + 3
            if close >= 0 and name in ("script", "style"):
                return "", end
            if close >= 0 and self.keep_code:
                inner = _Markup(self.text[token.end() : close], keep_code=False).decoded()
                if name == "pre":
                    return _fenced(inner), end
                if inner.strip() and "\n" not in inner and "`" not in inner:
                    return f"`{inner}`", end
        return "\n" if name in _BLOCK else " " if name in _CELL else "", token.end()

    def _find(self, closing: str, after: int) -> int:
        """Where `closing` next stands, or -1; what is nowhere ahead is searched for once."""
        if closing not in self._last:
            self._last[closing] = self.text.rfind(closing)
        return self.text.find(closing, after) if self._last[closing] >= after else -1


def _fenced(code: str) -> str:
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    code = code.strip("\n")
    return f"\n{fence}\n{code}\n{fence}\n"
