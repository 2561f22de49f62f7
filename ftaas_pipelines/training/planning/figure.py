"""One figure of a quote: what is expected, and the bounds it is promised to stay within."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """`low <= value <= high`."""

    low: float
    value: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            raise ValueError(f"bounds out of order: {self.low}, {self.value}, {self.high}")

    @classmethod
    def exact(cls, value: float) -> "Figure":
        return cls(value, value, value)

    @classmethod
    def within(cls, value: float, share: float) -> "Figure":
        """A value give or take a share of it."""
        return cls(value * (1 - share), value, value * (1 + share))

    def __mul__(self, other: "Figure | float") -> "Figure":
        """The product; all figures are positive, so bounds go with bounds."""
        by = other if isinstance(other, Figure) else Figure.exact(other)
        return Figure(self.low * by.low, self.value * by.value, self.high * by.high)

    def __add__(self, other: "Figure | float") -> "Figure":
        to = other if isinstance(other, Figure) else Figure.exact(other)
        return Figure(self.low + to.low, self.value + to.value, self.high + to.high)

    def at_least(self, floor: float) -> "Figure":
        return Figure(max(self.low, floor), max(self.value, floor), max(self.high, floor))

    def holds(self, actual: float) -> bool:
        return self.low <= actual <= self.high

    def as_dict(self) -> dict[str, float]:
        return {"low": _short(self.low), "value": _short(self.value), "high": _short(self.high)}


def _short(number: float) -> float:
    """Six significant digits: a quote knows no more."""
    return float(f"{number:.6g}")
