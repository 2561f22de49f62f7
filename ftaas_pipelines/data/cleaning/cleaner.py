"""What happens to every text, as `dataset.cleaning` asks: its steps, and the reasons to drop a record.

A text is clean when no step changes it any more; the steps run until that is so (removing a control
character can bring two characters together that NFC makes one). Most texts are clean as they come, and
whole batches of them are known to be so from one look at all of them joined.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ftaas_pipelines.data.cleaning import boilerplate as repeated
from ftaas_pipelines.data.cleaning import heuristics, language, markup
from ftaas_pipelines.data.rows.records import Record
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects.dataset import Cleaning

Step = Callable[[str], str]
_BATCH = 128  # records: their joined texts stay in the processor's cache
_PASSES = 10  # of the steps over one text; two are enough for all but texts made to need more
# Cc without tab and newline.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ASCII_CONTROL = [chr(code) for code in (*range(9), *range(11, 32), 127)]
_PARTS = 16  # into which a batch of texts is cut that cannot be settled whole


def without_control_characters(text: str) -> str:
    """Line ends as newlines, so that CRLF, CR and LF files give one content; other controls removed."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _CONTROL.sub("", text)


class Cleaner:
    """Cleans records in place and says which to drop. What it does to one never depends on the others.

    Args:
        options: what the project asks for.
        tokenizer: folder of the base's tokenizer; needed where a limit in tokens is set.
        boilerplate: the lines to remove (`boilerplate.common`), where the project asks for that.

    Attributes:
        changed: how many records each step that is on has changed so far.

    Raises:
        InputInvalid: a limit in tokens without a tokenizer file, or a language that cannot be told.
    """

    def __init__(
        self, options: Cleaning, tokenizer: Path | None = None, boilerplate: frozenset[bytes] = frozenset()
    ):
        self.options = options
        self.steps: dict[str, Step] = {
            name: step for name, step in _steps(options, boilerplate).items() if getattr(options, name)
        }
        self.changed: Counter[str] = Counter(dict.fromkeys(self.steps, 0))
        self._tokenizer = _tokenizer(options, tokenizer)
        if options.languages:
            language.check(options.languages)

    def clean(self, records: list[Record]) -> list[str | None]:
        """Clean every message (and `extra.rejected`) in place.

        Returns:
            for each record the reason to drop it, or None: too_short, too_long, too_few_tokens,
            too_many_tokens, language or quality_<rule>, whichever comes first.
        """
        reasons: list[str | None] = []
        for start in range(0, len(records), _BATCH):
            reasons += self._clean_batch(records[start : start + _BATCH])
        return reasons

    def cleaned(self, text: str) -> tuple[str, set[str]]:
        """A text after all steps, and the names of the steps that changed it."""
        changed: set[str] = set()
        for _ in range(_PASSES):
            before = text
            for name, step in self.steps.items():
                after = step(text)
                if after != text:
                    changed.add(name)
                    text = after
            if text == before or self.is_settled(text):
                break
        return text, changed

    def _clean_batch(self, records: list[Record]) -> list[str | None]:
        texts: list[str] = [message["content"] for record in records for message in record.messages]
        with_rejected = [record for record in records if "rejected" in record.extra]
        texts += [record.extra["rejected"] for record in with_rejected]
        if changed := self._clean_texts(texts):
            self._write(texts, changed, records, with_rejected)
        lengths = list(map(len, texts))
        reasons: list[str | None] = [None] * len(records)
        low, high = self.options.min_characters, self.options.max_characters
        if lengths and (min(lengths) < low or max(lengths) > high):
            reasons = [_length_fault(record, low, high) for record in records]
        for judge in (self._token_faults, self._language_faults, self._quality_faults):
            left = [i for i, reason in enumerate(reasons) if reason is None]
            for i, reason in zip(left, judge([records[i] for i in left]), strict=False):
                reasons[i] = reason
        return reasons

    def _clean_texts(self, texts: list[str]) -> dict[int, set[str]]:
        """Clean the texts in the list. Returns, for the indexes that changed, the steps that did it."""
        changed: dict[int, set[str]] = {}
        for i in self._unsettled(texts, 0):
            texts[i], steps = self.cleaned(texts[i])
            if steps:
                changed[i] = steps
        if self.options.strip:
            stripped = list(map(str.strip, texts))
            if stripped != texts:  # what is settled stays so at any length: nothing else need run again
                for i, text in enumerate(stripped):
                    if len(text) != len(texts[i]):
                        texts[i] = text
                        changed[i] = {"strip"}
        return changed

    def _write(
        self, texts: list[str], changed: dict[int, set[str]], records: list[Record], rejected: list[Record]
    ) -> None:
        """Put the changed texts into their records, and count each record once a step."""
        places: list[tuple[Record, int]] = [
            (record, i) for record in records for i in range(len(record.messages))
        ]
        by_record: dict[int, set[str]] = defaultdict(set)
        for index, steps in changed.items():
            if index < len(places):
                record, i = places[index]
                # A new dict: records may share a message.
                record.messages[i] = {**record.messages[i], "content": texts[index]}
            else:
                record = rejected[index - len(places)]
                record.extra = {**record.extra, "rejected": texts[index]}
            by_record[id(record)] |= steps
        for steps in by_record.values():
            self.changed.update(steps)

    def _unsettled(self, texts: list[str], first: int) -> list[int]:
        """Indexes, from `first`, of the texts that a step besides strip may change; found part by part."""
        if not texts or self.is_settled("\n".join(texts)):
            return []
        if len(texts) <= _PARTS:
            return [first + i for i, text in enumerate(texts) if not self.is_settled(text)]
        size = -(-len(texts) // _PARTS)
        starts = range(0, len(texts), size)
        return [i for start in starts for i in self._unsettled(texts[start : start + size], first + start)]

    def is_settled(self, text: str) -> bool:
        """Whether no step besides strip can change a text; newlines may join many texts into one."""
        if self.options.boilerplate or self.options.collapse_white_space:
            return False
        if self.options.html and ("<" in text or "&" in text):
            return False
        if not text.isascii():
            if self.options.unicode_nfc and not unicodedata.is_normalized("NFC", text):
                return False
            return not (self.options.control_characters and _CONTROL.search(text))
        if self.options.control_characters:
            for character in _ASCII_CONTROL:  # 32 times memchr: a tenth of the time of one regex
                if character in text:
                    return False
        return True

    def _token_faults(self, records: list[Record]) -> list[str | None]:
        if self._tokenizer is None or not records:
            return []
        low, high = self.options.min_tokens or 0, self.options.max_tokens
        texts = ["\n".join(m["content"] for m in record.messages) for record in records]
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        counts = [len(one.ids) for one in encoded]
        return [
            "too_few_tokens" if n < low else "too_many_tokens" if high is not None and n > high else None
            for n in counts
        ]

    def _language_faults(self, records: list[Record]) -> list[str | None]:
        if not self.options.languages:
            return []
        for record in records:
            said = [m["content"] for m in record.turns if m["role"] != "tool"]
            record.language = language.language_of("\n\n".join(said))
        stay = (None, *self.options.languages)
        return [None if record.language in stay else "language" for record in records]

    def _quality_faults(self, records: list[Record]) -> list[str | None]:
        if self.options.quality == "off":
            return []
        fault = heuristics.RULES[self.options.quality]
        answers = [record.messages[-1]["content"] for record in records]
        faults = [fault(heuristics.judged(answer, self.options.keep_code)) for answer in answers]
        return [None if rule is None else f"quality_{rule}" for rule in faults]


def _steps(options: Cleaning, boilerplate: frozenset[bytes]) -> dict[str, Step]:
    """Every step, in the order they run."""
    return {
        "unicode_nfc": partial(unicodedata.normalize, "NFC"),
        "control_characters": without_control_characters,
        "html": partial(markup.without_html, keep_code=options.keep_code),
        "boilerplate": partial(repeated.without, boilerplate=boilerplate),
        "strip": str.strip,
        "collapse_white_space": partial(markup.collapse, keep_code=options.keep_code),
    }


def _length_fault(record: Record, low: int, high: int) -> str | None:
    """`too_short` or `too_long` where a text is outside the limits. A tool call needs no words."""
    lengths = [(len(m["content"]), not m.get("tool_calls")) for m in record.messages]
    if "rejected" in record.extra:
        lengths.append((len(record.extra["rejected"]), True))
    if any(length < low for length, needs_words in lengths if needs_words):
        return "too_short"
    return "too_long" if any(length > high for length, _ in lengths) else None


def _tokenizer(options: Cleaning, folder: Path | None) -> Any:
    """The tokenizer where a limit in tokens asks for it, else None."""
    if options.min_tokens is None and options.max_tokens is None:
        return None
    file = folder / "tokenizer.json" if folder else None
    if file is None or not file.is_file():
        raise InputInvalid(
            "tokens cannot be counted: there is no tokenizer file",
            "dataset.cleaning",
            str(file or "no tokenizer"),
            "name a base with a tokenizer.json, or leave out min_tokens and max_tokens",
        )
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()  # a tokenizer file may carry both, and then every count would be the limit
    tokenizer.no_padding()
    return tokenizer
