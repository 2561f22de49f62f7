"""Published quality heuristics, on answers. Each rule that a text breaks has a name.

gopher: Rae et al. 2021 (https://arxiv.org/abs/2112.11446), section A1.1 and table A1.
fineweb: Penedo et al. 2024 (https://arxiv.org/abs/2406.17557), section 3.6, its own three filters.

Both were made for web pages. Answers are short, so a rule is asked only where its share means something:
shares of words from 20 words on, of lines from 10, of repeated lines from 4; the most frequent n-gram from
50 words (the least that Gopher keeps) and where it stands five times, repeated 5- to 10-grams from 100.
Markers of lists and headings are no words; formulas and bare punctuation are no words without a letter.
Gopher's word count (50 to 100,000) and two English stop words are not asked: that is for `min_tokens` and
`languages`. Of the 2,000 GSM8K answers in ../shared/data, half arithmetic, gopher drops 4.7%, fineweb 0.05%.

Scripts that write no spaces, or a syllable or word to a character (Han, kana, Hangul, Thai, Khmer …), count
every such character as a word; the mean word length is asked of the other words only.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from ftaas_pipelines.data.cleaning.markup import prose
from ftaas_pipelines.data.rows.cells import is_json

LEAST_WORDS = 20
LEAST_LINES = 10
LEAST_REPEATED_LINES = 4
LEAST_WORDS_FOR_TOP_NGRAM = 50
LEAST_TIMES_FOR_TOP_NGRAM = 5
LEAST_WORDS_FOR_DUPLICATE_NGRAMS = 100
LONGEST_CODE_LINE = 300  # characters

WORD_LENGTH = (3.0, 10.0)  # mean, characters
MOST_SYMBOLS = 0.1  # "#" and ellipses, by word
LEAST_WITH_LETTERS = 0.8  # of the words
MOST_BULLETS = 0.9  # of the lines start with one
MOST_ELLIPSES = 0.3  # of the lines end with one
MOST_DUPLICATE_LINES = 0.3  # of the lines; of paragraphs alike
MOST_DUPLICATE_LINE_CHARACTERS = 0.2  # of the characters; of paragraphs alike
MOST_TOP_NGRAM = {2: 0.20, 3: 0.18, 4: 0.16}  # characters in the most frequent n-gram
MOST_DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}  # characters in any repeated

LEAST_PUNCTUATED_LINES = 0.12
MOST_REPEATED_CHARACTERS = 0.1  # FineWeb's is stricter than Gopher's
MOST_SHORT_LINES = 0.67
SHORT_LINE = 30  # characters; a dense one counts as two

# Thai, Lao, Tibetan, Myanmar, Hangul, Khmer, CJK and kana (with half-width forms and all extensions).
_DENSE = (
    "\u0e00-\u109f\u1100-\u11ff\u1780-\u17ff\u2e80-\ua4cf\uac00-\ud7ff"
    "\uf900-\ufaff\uff66-\uffdc\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"[{_DENSE}]|[^\s{_DENSE}]+")
_DENSE_CHARACTER = re.compile(rf"[{_DENSE}]")
_BULLETS = ("-", "*", "•", "‣", "◦", "▪", "–", "●", "·")
_ELLIPSES = ("…", "...")
_TERMINAL = tuple(".!?…。！？｡؟۔।॥።፧။៕;:\"'”’»」』)")  # a closing quote or bracket may follow the stop
_SYMBOL = re.compile(r"#|…|\.\.\.")
_LINE_MARKER = re.compile(
    r"^[ \t]*(?:[-*•‣◦▪–●·]|\d+[.)]|#{1,6})[ \t]+", re.MULTILINE
)  # of Markdown: no words
_OPERATOR = re.compile(r"[=+*/^<>|×÷−]|^-$")
_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")
# A line of code: it ends as statements and blocks end, starts with a keyword, or assigns or calls.
_CODE_LINE = re.compile(
    r".*[{}\[\];]$|.*\)(?:\s*->.*)?:$|.*\w\(.*\)[,;]?$|[\w.\[\]\"', ]+ [-+*/:]?= \S|@\w|//|</?\w+[^>]*>$"
    r"|(?:def|class|import|from|return|elif|for|while|try|except|with|func|fn|const|let|var|public|private"
    r"|#include|SELECT|INSERT|UPDATE|DELETE|CREATE|FROM|WHERE|JOIN)\b.*[\w)(,;:*'\"<>]$"
)


def judged(answer: str, keep_code: bool) -> str:
    """What of an answer the rules are asked of: nothing of JSON, and with `keep_code` no code either."""
    if answer.lstrip()[:1] in ("{", "[") and is_json(answer):
        return ""
    if not keep_code:
        return answer
    text = prose(answer)
    lines = _lines(text)
    code = sum(len(line) <= LONGEST_CODE_LINE and bool(_CODE_LINE.match(line)) for line in lines)
    return "" if code * 2 >= len(lines) and len(lines) > 1 else text


def gopher(text: str) -> str | None:
    """The first rule that a text breaks: word_length, symbols, letters, bullets, ellipses,
    duplicate_lines, duplicate_paragraphs or repeated_words; None for a good text.
    """  # noqa: D205
    unmarked = _LINE_MARKER.sub("", text)
    words = _WORD.findall(unmarked)
    if len(words) >= LEAST_WORDS and (rule := _word_fault(unmarked, words)):
        return rule
    lines = _lines(text)
    if len(lines) >= LEAST_LINES:
        if _share(lines, lambda line: line.startswith(_BULLETS)) > MOST_BULLETS:
            return "bullets"
        if _share(lines, lambda line: line.endswith(_ELLIPSES)) > MOST_ELLIPSES:
            return "ellipses"
    paragraphs = [part.strip() for part in _PARAGRAPH_BREAK.split(text) if part.strip()]
    for name, pieces in (("duplicate_lines", lines), ("duplicate_paragraphs", paragraphs)):
        if len(pieces) < LEAST_REPEATED_LINES:
            continue
        pieces_share, characters_share = _duplicates(pieces)
        if pieces_share > MOST_DUPLICATE_LINES or characters_share > MOST_DUPLICATE_LINE_CHARACTERS:
            return name
    return "repeated_words" if _repeats(words) else None


def fineweb(text: str) -> str | None:
    """The first rule that a text breaks: duplicate_lines, line_punctuation or short_lines; None if none."""
    lines = _lines(text)
    if len(lines) >= LEAST_REPEATED_LINES and _duplicates(lines)[1] > MOST_REPEATED_CHARACTERS:
        return "duplicate_lines"
    if len(lines) < LEAST_LINES:
        return None
    if _share(lines, lambda line: line.endswith(_TERMINAL)) < LEAST_PUNCTUATED_LINES:
        return "line_punctuation"
    short = _share(lines, lambda line: len(line) + len(_DENSE_CHARACTER.findall(line)) < SHORT_LINE)
    return "short_lines" if short > MOST_SHORT_LINES else None


RULES: dict[str, Callable[[str], str | None]] = {"gopher": gopher, "fineweb": fineweb}


def _word_fault(text: str, words: Sequence[str]) -> str | None:
    dense = [bool(_DENSE_CHARACTER.match(word)) for word in words]
    # Vowel signs of Thai or Khmer are marks, not letters: a dense character always counts as one.
    lettered = [d or any(map(str.isalpha, word)) for word, d in zip(words, dense, strict=True)]
    spaced = [len(word) for word, d, holds in zip(words, dense, lettered, strict=True) if holds and not d]
    if len(spaced) >= LEAST_WORDS and not WORD_LENGTH[0] <= sum(spaced) / len(spaced) <= WORD_LENGTH[1]:
        return "word_length"
    if len(_SYMBOL.findall(text)) / len(words) > MOST_SYMBOLS:
        return "symbols"
    numbers = _numbers(words, lettered)
    return "letters" if numbers > (1 - LEAST_WITH_LETTERS) * (numbers + sum(lettered)) else None


def _numbers(words: Sequence[str], lettered: Sequence[bool]) -> int:
    """Words without a letter that are neither bare punctuation nor part of a formula (`16 - 3 = 13`)."""
    formula = [
        False,
        *(not has and bool(_OPERATOR.search(w)) for w, has in zip(words, lettered, strict=True)),
        False,
    ]
    return sum(
        not has and any(map(str.isalnum, word)) and not any(formula[i : i + 3])
        for i, (word, has) in enumerate(zip(words, lettered, strict=True))
    )


def _repeats(words: Sequence[str]) -> bool:
    """Whether repeated word n-grams hold more of the characters than table A1 allows."""
    if len(words) < LEAST_WORDS_FOR_TOP_NGRAM:
        return False
    lengths = [len(word) for word in words]
    total = sum(lengths)
    for n, most in MOST_TOP_NGRAM.items():
        counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
        often = max(counts.values())
        longest = max(sum(map(len, ngram)) for ngram, times in counts.items() if times == often)
        if often >= LEAST_TIMES_FOR_TOP_NGRAM and longest * often > most * total:
            return True
    if len(words) < LEAST_WORDS_FOR_DUPLICATE_NGRAMS:
        return False
    return any(
        _repeated_characters(words, lengths, n) > most * total for n, most in MOST_DUPLICATE_NGRAMS.items()
    )


def _repeated_characters(words: Sequence[str], lengths: Sequence[int], n: int) -> int:
    """Characters of words that stand in an n-gram met before; none is counted twice."""
    seen: set[tuple[str, ...]] = set()
    characters, free = 0, 0  # words before `free` are counted
    for i, ngram in enumerate(zip(*(words[k:] for k in range(n)), strict=False)):
        if ngram in seen:
            characters += sum(lengths[max(i, free) : i + n])
            free = i + n
        seen.add(ngram)
    return characters


def _duplicates(pieces: Sequence[str]) -> tuple[float, float]:
    """Shares of pieces, and of characters, that were there before."""
    again = [piece for piece, times in Counter(pieces).items() for _ in range(times - 1)]
    return len(again) / len(pieces), sum(map(len, again)) / sum(map(len, pieces))


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def _share(pieces: Sequence[str], holds: Callable[[str], bool]) -> float:
    return sum(map(holds, pieces)) / len(pieces)
