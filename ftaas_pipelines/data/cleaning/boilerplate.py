"""Lines that many records share: headers, footers, disclaimers. Counted first, removed when cleaning.

Count on records cleaned as `before` says, or the lines will not be the ones that are met later. System
messages are meant to repeat and code repeats its braces and imports: neither is touched.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any

from ftaas_pipelines.data.cleaning.markup import code_spans
from ftaas_pipelines.data.rows.records import Record
from ftaas_pipelines.projects.dataset import Cleaning

LEAST_CHARACTERS = 20  # shorter lines ("Thank you!") are language, not boilerplate
LEAST_RECORDS = 50
LEAST_SHARE_PERCENT = 1


def before(options: Cleaning) -> Cleaning:
    """How records are cleaned before their lines are counted: the other steps, and no reason to drop one."""
    off: dict[str, Any] = {"min_tokens": None, "max_tokens": None, "languages": [], "quality": "off"}
    return options.model_copy(update={**off, "boilerplate": False})


def lines(records: Iterable[Record]) -> Counter[bytes]:
    """In how many records each long line stands: {8-byte blake2b of the stripped line: records}.

    Counters of several shards add up, in any order, to that of all of them.
    """
    counts: Counter[bytes] = Counter()
    for record in records:
        texts = [m["content"] for m in record.messages if m["role"] != "system"]
        if "rejected" in record.extra:
            texts.append(record.extra["rejected"])
        counts.update({key for text in texts for _, key in _keyed(text) if key})
    return counts


def common(counts: Counter[bytes], records: int) -> frozenset[bytes]:
    """The lines that stand in more than 1% of so many records, and in at least 50."""
    return frozenset(
        key for key, n in counts.items() if n >= LEAST_RECORDS and n * 100 > records * LEAST_SHARE_PERCENT
    )


def without(text: str, boilerplate: frozenset[bytes]) -> str:
    """The text without those lines; as it is where nothing else would be left of it."""
    every = list(_keyed(text))
    kept = [line for line, key in every if key is None or key not in boilerplate]
    if len(kept) == len(every):
        return text
    after = "\n".join(kept)
    return after if after.strip() else text


def _keyed(text: str) -> Iterator[tuple[str, bytes | None]]:
    """Each line with its key; None for lines that are short or (in part) code."""
    spans = iter(code_spans(text))
    span = next(spans, None)
    start = 0
    for line in text.split("\n"):
        end = start + len(line)
        while span and span.end <= start:
            span = next(spans, None)
        stripped = line.strip()
        if len(stripped) < LEAST_CHARACTERS or (span and span.start <= end):
            yield line, None
        else:
            yield line, blake2b(stripped.encode(errors="surrogatepass"), digest_size=8).digest()
        start = end + 1
