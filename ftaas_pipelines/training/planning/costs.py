"""What a training's time costs, what may be spent on it, and what has been."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ftaas_pipelines.projects.prices import Terms

if TYPE_CHECKING:
    from ftaas_pipelines.training.planning.energy import Meter

# A stage that is run by hand: time is counted, and costs nothing.
UNPRICED = Terms(
    hardware="unpriced",
    region="",
    spot=False,
    gpus=0,
    cores=1,
    memory_gib=0.0,
    tflops=None,
    gb_per_s=0.0,
    usd_per_hour=0.0,
    watts=0.0,
    host_watts=0.0,
    pue=1.0,
    carbon_kg_per_kwh=0.0,
    prices=0,
)
# What each bound of a budget is measured in, by the budget's field.
UNITS = {"usd": "USD", "training_minutes": "minutes", "kwh": "kWh", "co2e_kg": "kg CO2e"}


@dataclass(frozen=True)
class Costs:
    """The terms of a machine, and a budget.

    Attributes:
        bounds: by the names of `Budget`'s fields: usd, training_minutes, kwh, co2e_kg.
    """

    terms: Terms = UNPRICED
    bounds: Mapping[str, float] = field(default_factory=dict[str, float])

    def minutes(self, workers: int, nodes: int) -> float | None:
        """Training time after which the first bound is reached; None for none."""
        found = [self.allowed_s(name, bound, workers, nodes) / 60 for name, bound in self.bounds.items()]
        return min(found, default=None)

    def allowed_s(self, name: str, bound: float, workers: int, nodes: int) -> float:
        """Seconds until a bound is reached; infinite where time costs nothing of it."""
        if name == "training_minutes":
            return bound * 60
        kwh = self.terms.kwh(1.0, workers) * nodes
        each = {"usd": self.terms.usd(1.0) * nodes, "kwh": kwh, "co2e_kg": self.terms.co2e_kg(kwh)}[name]
        return bound / each if each else float("inf")


class Spending:
    """What one training has spent so far, over all attempts, against its bounds.

    Attributes:
        broken: the bound that was reached first; None while none is.
    """

    def __init__(
        self,
        costs: Costs,
        workers: int = 1,
        nodes: int = 1,
        spent_s: float = 0.0,
        meter: "Meter | None" = None,
    ):
        self.costs = costs
        self.broken: str | None = None
        self._workers, self._nodes, self._spent_s, self._meter = workers, nodes, spent_s, meter
        self._began, self._worked = time.monotonic(), time.process_time()

    @property
    def seconds(self) -> float:
        return self._spent_s + time.monotonic() - self._began

    @property
    def kwh(self) -> float:
        """Measured in this attempt where there is a meter; else the table's power over time."""
        terms = self.costs.terms
        if self._meter is None:
            return terms.kwh(self.seconds, self._workers) * self._nodes
        return terms.kwh(self._spent_s, self._workers) * self._nodes + self._meter.kwh() * self._nodes

    @property
    def energy_source(self) -> str:
        return self._meter.source if self._meter else "power of the price table, over time"

    def close(self) -> None:
        """Nothing more is spent."""
        if self._meter:
            self._meter.stop()

    def reached(self) -> bool:
        """Whether a bound is reached by now; cheap enough for every step."""
        for name, bound in self.costs.bounds.items():
            if self.spent(name) > bound:
                self.broken = name
                return True
        return False

    def spent(self, name: str) -> float:
        """What was spent of one bound, in its unit."""
        terms, seconds = self.costs.terms, self.seconds
        if name == "training_minutes":
            return seconds / 60
        if name == "usd":
            return terms.usd(seconds) * self._nodes
        return self.kwh if name == "kwh" else terms.co2e_kg(self.kwh)

    def as_dict(self) -> dict[str, float | str]:
        """What it came to, beside the quote; `busy`: the share of this attempt that the process computed."""
        kwh, terms = self.kwh, self.costs.terms
        took, worked = time.monotonic() - self._began, time.process_time() - self._worked
        return {
            "seconds": round(self.seconds, 3),
            "usd": round(terms.usd(self.seconds) * self._nodes, 6),
            "kwh": float(f"{kwh:.6g}"),
            "co2e_kg": float(f"{terms.co2e_kg(kwh):.6g}"),
            "energy_source": self.energy_source,
            "busy": round(worked / max(1e-9, took), 3),
        }
