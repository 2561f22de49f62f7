"""Which recipe's adapter becomes the candidate. Light: the asset asks it too."""

from collections.abc import Mapping, Sequence
from typing import Any


def candidate(scores: Mapping[str, Any], recipes: Sequence[str]) -> tuple[str, str]:
    """The recipe that answers validation best, and why in words.

    The highest primary metric wins, as printed (six digits); of equals the one with the lower
    validation loss; of those still equal, the one that the project names first.

    Args:
        scores: a comparison's `scores.json`.
        recipes: the project's recipes, in its order.
    """
    systems = scores["sets"]["validation"]["systems"]

    def value(recipe: str, metric: str) -> float:
        return systems[recipe]["overall"][metric]["value"]

    primary = scores["primary"]
    chosen = min(recipes, key=lambda r: (-value(r, primary), value(r, "loss")))
    equals = [r for r in recipes if value(r, primary) == value(chosen, primary)]
    why = f"{primary} {value(chosen, primary):.3f} on validation"
    if len(equals) == 1:
        return chosen, f"{why}, the highest of {len(recipes)} recipes"
    if len([r for r in equals if value(r, "loss") == value(chosen, "loss")]) == 1:
        return (
            chosen,
            f"{why}, as {len(equals) - 1} other(s), with the lowest loss {value(chosen, 'loss'):.3f}",
        )
    return chosen, f"{why}, equal in loss too; named first in the project"
