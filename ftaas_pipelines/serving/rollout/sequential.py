"""Differences between two releases, with intervals that hold however often, and whenever, one looks.

A 95% interval of a textbook holds for one look at a size fixed before. Here the whole sequence of intervals
covers the truth with 95%, so that a rule may look every ten seconds and stop as soon as it sees something.

Method: the mixture sequential probability ratio test with a normal mixture (Robbins 1970), turned into
intervals: Johari, Koomen, Pekelis, Walsh, "Always Valid Inference: Continuous Monitoring of A/B Tests",
Operations Research 70(3), 2022, for an estimate that is normal with a variance that is itself estimated:
Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit theory and asymptotic confidence
sequences", Annals of Statistics 52(6), 2024. It rests on the normal law, so a few requests say nothing.

Requests of one unit (a caller, in an A/B test) depend on each other. Variances are of sums by unit
(cluster-robust, Liang and Zeger 1986); without units each request is one.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

LEVEL = 0.95
SHARE_SPREAD = 0.05
"""Standard deviation of the mixture over differences of shares: narrowest intervals near such effects."""
RATIO_SPREAD = 0.2
"""The same over log ratios of times and tokens."""
LEAST_UNITS = 20
"""Units of each side below which a cluster-robust variance is far too small."""
_NORMAL = NormalDist()
_LEAST_VARIANCE = 1e-12  # where all values are the same


@dataclass(frozen=True)
class Estimate:
    """One side: `value` in its own units; `at` and `se` on the scale on which sides are subtracted.

    That scale is the share itself, or the logarithm of a time. `design`: how many times the variance is what
    as many independent requests would have.
    """

    value: float
    at: float
    se: float
    requests: int
    units: int
    design: float = 1.0


@dataclass(frozen=True)
class Difference:
    """Of b against a: shares subtracted, or a ratio less 1 (0.2: a fifth more); `low` to `high` covers it."""

    effect: float
    low: float
    high: float


def share(ones: Any, units: Any = None) -> Estimate | None:
    """The share of true ones; None of none.

    Args:
        ones: bool[requests].
        units: a whole number for each request; None: each is its own.
    """
    n = len(ones)
    if n == 0:
        return None
    value = float(np.mean(ones))
    # One success and one failure more (Agresti and Caffo 2000): none of ten is not "surely never".
    guarded = (value * n + 1) / (n + 2)
    least = guarded * (1 - guarded) / n
    variance = max(least, _variance(np.asarray(ones, float) - value, units))
    return Estimate(value, value, math.sqrt(variance), n, _count(units, n), max(1.0, variance / least))


def mean(values: Any, units: Any = None) -> Estimate | None:
    """The mean of positive values, on the scale of logarithms; None of fewer than two."""
    n, value = len(values), float(np.mean(values)) if len(values) else 0.0
    if n < 2 or value <= 0:
        return None
    residuals = np.asarray(values, float) - value
    alone = _variance(residuals, None)
    variance = max(alone, _variance(residuals, units))
    se = math.sqrt(variance) / value
    return Estimate(value, math.log(value), se, n, _count(units, n), variance / alone if alone else 1.0)


def quantile(values: Any, p: float, units: Any = None) -> Estimate | None:
    """A quantile of positive values, on the scale of logarithms; None where too few lie beyond it.

    Its standard error is read off the quantiles at p plus and minus that of the share (Woodruff 1952).
    """
    n = len(values)
    if n * min(p, 1 - p) < 10:
        return None
    ordered = np.sort(np.asarray(values, float))
    value = float(np.quantile(ordered, p))
    below = np.asarray(values, float) <= value
    alone = p * (1 - p) / n
    variance = max(alone, _variance(below - float(np.mean(below)), units))
    spread = math.sqrt(variance)
    low, high = np.quantile(ordered, [max(0.0, p - 2 * spread), min(1.0, p + 2 * spread)])
    if value <= 0 or low <= 0:
        return None
    # Where the upper end is the largest value seen, the lower one says how wide it may be.
    wide = max(math.log(high / low) / 4, math.log(value / low) / 2, 1e-6)
    return Estimate(value, math.log(value), wide, n, _count(units, n), variance / alone)


def difference(a: Estimate, b: Estimate, ratio: bool, level: float = LEVEL) -> Difference:
    """How b differs from a, with an interval that holds at every look together."""
    between = b.at - a.at
    variance = max(a.se**2 + b.se**2, _LEAST_VARIANCE)
    half = _reach(variance, _spread(ratio), 1 - level) * math.sqrt(variance)
    ends = (between, between - half, between + half)
    if not ratio:
        return Difference(*ends)
    return Difference(*(math.expm1(min(end, 700.0)) for end in ends))


def needed(
    a: Estimate, b: Estimate, ratio: bool, effect: float, level: float = LEVEL, power: float = 0.8
) -> int:
    """Requests that b needs, at the present split, to show an effect of this size with this power.

    Counted for one look at the end; whoever looks before is often done earlier.

    Args:
        effect: a difference of shares, or a ratio less 1.
    """
    spread, split = _spread(ratio), a.requests / b.requests
    one = max(a.se**2 * a.requests / split + b.se**2 * b.requests, _LEAST_VARIANCE)
    wanted = math.log1p(effect) if ratio else effect
    reserve = _NORMAL.inv_cdf(power)

    def shows(n: float) -> bool:
        return (_reach(one / n, spread, 1 - level) + reserve) * math.sqrt(one / n) <= wanted

    low, high = 1.0, 1e12
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if shows(middle) else (middle, high)
    return math.ceil(high)


def _reach(variance: float, spread: float, alpha: float) -> float:
    """Half the interval in standard errors: where the mixture's likelihood ratio reaches 1/alpha."""
    whole = variance + spread**2
    return math.sqrt(whole / spread**2 * (math.log(whole / variance) - 2 * math.log(alpha)))


def _variance(residuals: Any, units: Any) -> float:
    """Of their mean: of independent ones, or of sums by unit."""
    n = len(residuals)
    if units is None:
        return float(np.sum(residuals**2)) / (n - 1) / n if n > 1 else 0.0
    sums = np.bincount(units, weights=residuals)
    sums = sums[np.bincount(units) > 0]
    count = len(sums)
    return float(np.sum(sums**2)) * count / (count - 1) / n**2 if count > 1 else 0.0


def _count(units: Any, n: int) -> int:
    return n if units is None else len(np.unique(units))


def _spread(ratio: bool) -> float:
    return RATIO_SPREAD if ratio else SHARE_SPREAD
