"""Scores of one answer against its reference, and what makes an answer structured.

`exact_match`, `token_f1` and `rouge_l` lie in 0..1, `chrf` in 0..100. A score over records is the
mean of theirs: that is what the bootstrap resamples. For chrF this is the mean over sentences, not
sacrebleu's corpus figure, which pools the statistics first.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

METRICS = ("exact_match", "token_f1", "rouge_l", "chrf")
# ASCII alone would score "Überhitzung" as "berhitzung": words are words in any language.
_TOKEN = re.compile(r"\w+")


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is, or None."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def exact_match(answer: str, reference: str) -> float:
    """1.0 when equal: as JSON objects where the reference is one, else up to white space."""
    wanted = json_object(reference)
    if wanted is not None:
        # Through JSON text, as Python holds 1, 1.0 and true for equal; key order is no difference.
        given = json_object(answer)
        return float(given is not None and _canonical(given) == _canonical(wanted))
    return float(answer.split() == reference.split())


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall over words, as multisets (SQuAD; articles count here)."""
    given, wanted = _tokens(answer), _tokens(reference)
    if not given or not wanted:
        return float(given == wanted)
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted))


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words: the number that rouge_score gives, without stemming.

    Its own search is in plain Python: half a minute for texts of five thousand words.
    """
    from rapidfuzz.distance import LCSseq

    given, wanted = _tokens(answer), _tokens(reference)
    common = LCSseq.similarity(given, wanted)
    if not common:
        return 0.0
    precision, recall = common / len(given), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def chrf(answer: str, reference: str) -> float:
    """Sentence chrF2 of sacrebleu: character n-grams to 6, recall weighted twice, 0..100."""
    return float(_chrf().sentence_score(answer, [reference]).score)


def scorer(metric: str) -> Callable[[str, str], float]:
    """The score called so; KeyError where there is none."""
    return {"exact_match": exact_match, "token_f1": token_f1, "rouge_l": rouge_l, "chrf": chrf}[metric]


def _canonical(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)


def _tokens(text: str) -> list[str]:
    return _TOKEN.findall(text.lower())


@cache
def _chrf() -> Any:
    # The effective order counts only n-grams that a short answer can have, as sacrebleu does.
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(eps_smoothing=False)
