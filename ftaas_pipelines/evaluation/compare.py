"""Records' scores to `scores.json`: means with intervals, and who wins over whom."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ftaas_pipelines.evaluation.run import BASE, Results, SetResult
from ftaas_pipelines.metrics.bootstrap import Interval, intervals

CANDIDATE, CHAMPION = "candidate", "champion"
SLICES = ("structured", "text")


def scores(results: Results, primary: str) -> dict[str, Any]:
    """What `scores.json` holds.

    `wins` is about the first set alone, by the primary metric; a challenge never decides. In each
    win `value`, `low` and `high` are the paired difference candidate minus other, and `verdict`
    says whether its interval leaves zero out. `naive.beaten` is strict: a tie is not beaten.
    """
    first = results.sets[0]
    return {
        "primary": primary,
        "sets": {one.name: _set(one, results.naive, primary) for one in results.sets},
        "wins": {
            "naive": _naive_win(first, results.naive, primary),
            BASE: _win(first, BASE, primary),
            CHAMPION: _win(first, CHAMPION, primary),
        },
    }


def _set(one: SetResult, naive: Sequence[str], primary: str) -> dict[str, Any]:
    rows = {"overall": np.ones(len(one.records), dtype=bool)}
    rows |= {name: np.array([r.slice == name for r in one.records]) for name in SLICES}
    systems: dict[str, dict[str, Any]] = {label: {} for label in one.scores}
    for name, mask in rows.items():
        if not mask.any():
            continue
        if name != "overall" and mask.all():
            found = {label: parts["overall"] for label, parts in systems.items()}
        else:
            found = _table(one, mask)
        for label, metrics in found.items():
            systems[label][name] = metrics
    return {
        "n": len(one.records),
        "slices": {name: int(rows[name].sum()) for name in SLICES if rows[name].any()},
        "systems": systems,
        "best_baseline": _best(one, naive, primary, systems),
    }


def _table(one: SetResult, mask: NDArray[np.bool_]) -> dict[str, dict[str, dict[str, float]]]:
    """System to metric to interval, over the rows of a mask, all from the same resamples."""
    columns = [(label, metric) for label, metrics in one.scores.items() for metric in metrics]
    matrix = np.stack([one.scores[label][metric][mask] for label, metric in columns], axis=1)
    table: dict[str, dict[str, dict[str, float]]] = {}
    for (label, metric), interval in zip(columns, intervals(matrix), strict=True):
        table.setdefault(label, {})[metric] = interval.as_dict()
    return table


def _best(
    one: SetResult, naive: Sequence[str], primary: str, systems: dict[str, dict[str, Any]]
) -> dict[str, Any] | None:
    if not naive:
        return None
    name = _best_name(one, naive, primary)
    return {"name": name, **systems[name]["overall"][primary]}


def _best_name(one: SetResult, naive: Sequence[str], primary: str) -> str:
    return min(naive, key=lambda label: (-float(one.scores[label][primary].mean()), label))


def _difference(one: SetResult, other: str, primary: str) -> Interval:
    column = one.scores[CANDIDATE][primary] - one.scores[other][primary]
    return intervals(column[:, None])[0]


def _win(one: SetResult, other: str, primary: str) -> dict[str, Any] | None:
    if CANDIDATE not in one.scores or other not in one.scores:
        return None
    difference = _difference(one, other, primary)
    verdict = "better" if difference.low > 0 else "worse" if difference.high < 0 else "no clear difference"
    return {
        **difference.as_dict(),
        "candidate": round(float(one.scores[CANDIDATE][primary].mean()), 6),
        "other": round(float(one.scores[other][primary].mean()), 6),
        "verdict": verdict,
    }


def _naive_win(one: SetResult, naive: Sequence[str], primary: str) -> dict[str, Any] | None:
    if not naive:
        return None
    name = _best_name(one, naive, primary)
    win = _win(one, name, primary)
    return win and {"baseline": name, "beaten": win["candidate"] > win["other"], **win}
