"""How far reviewers agree beyond chance, before anybody settles what they differ on.

Measured on the word of a verdict (approve, fix, reject), nominal:

Cohen's kappa         two people who both judged every row (Cohen 1960).
Fleiss' kappa         the same number of answers on each row, by whichever people (Fleiss 1971).
Krippendorff's alpha  any number of answers on each row (Krippendorff 2004); always given.

Each is None where chance alone explains everything: when all said the same word, or too few answered
twice. The share of pairs that agree stands beside it, so that None does not read as zero.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """Coefficients from -1 to 1 (1: they always agree; 0: as often as chance).

    Attributes:
        rows: rows that at least two people answered.
        people: how many people answered those.
        same: share of pairs of answers on one row that agree, 0 to 1; None when there is none.
    """

    rows: int
    people: int
    same: float | None
    cohen_kappa: float | None
    fleiss_kappa: float | None
    krippendorff_alpha: float | None

    def as_dict(self) -> dict[str, float | int | None]:
        return asdict(self)


def measure(answers: Mapping[str, Mapping[str, str]]) -> Agreement:
    """Agreement of people on rows.

    Args:
        answers: row to person to word; rows that one person answered say nothing and are left out.
    """
    rows = [by for _, by in sorted(answers.items()) if len(by) > 1]
    people = sorted({person for by in rows for person in by})
    words = sorted({word for by in rows for word in by.values()})
    if not rows:
        return Agreement(0, 0, None, None, None, None)
    said = [Counter(by.values()) for by in rows]
    counts = np.array([[one[word] for word in words] for one in said], np.float64)  # [rows, words]
    n = counts.sum(axis=1)
    pairs = float((n * (n - 1)).sum())
    same = float((counts * (counts - 1)).sum()) / pairs
    cohen = fleiss = alpha = None
    if len(words) > 1:
        alpha = _alpha(counts)
        if len(people) == 2:
            cohen = _cohen([by[people[0]] for by in rows], [by[people[1]] for by in rows])
        if len(set(n.tolist())) == 1:
            fleiss = _fleiss(counts, same)
    return Agreement(len(rows), len(people), round(same, 6), cohen, fleiss, alpha)


def _cohen(first: list[str], second: list[str]) -> float:
    from sklearn.metrics import cohen_kappa_score

    return round(float(cohen_kappa_score(first, second)), 6)


def _fleiss(counts: np.ndarray, same: float) -> float:
    """No library that we have computes it (`same` is its observed agreement)."""
    shares = counts.sum(axis=0) / counts.sum()
    chance = float((shares**2).sum())
    return round((same - chance) / (1 - chance), 6)


def _alpha(counts: np.ndarray) -> float:
    import krippendorff

    return round(float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal")), 6)
