"""The contract of `policy/prices.yaml`: what machines cost, draw and emit; what a budget's comes to."""

import datetime
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, model_validator

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects import yaml_lines
from ftaas_pipelines.projects.project import Budget
from ftaas_pipelines.projects.section import Section

THIS_MACHINE = "this machine"
Row = TypeVar("Row")


class Region(Section):
    carbon_kg_per_kwh: float = Field(ge=0, description="CO2 equivalents of the grid, kg per kWh")
    pue: float = Field(default=1.0, ge=1, description="power usage effectiveness of the data centre")


class Rate(Section):
    usd_per_hour: float = Field(ge=0, description="of the whole machine")
    spot_usd_per_hour: float | None = Field(default=None, ge=0)


class Hardware(Section):
    """One kind of machine. With GPUs, `memory_gib`, `bf16_tflops` and `watts` are those of each GPU."""

    gpus: int = Field(default=0, ge=0)
    cores: int = Field(default=0, ge=0, description="that compute, of a machine without GPUs")
    device: str = Field(default="", description="a part of the name that the driver gives the GPU")
    memory_gib: float = Field(gt=0)
    bf16_tflops: float | None = Field(default=None, gt=0, description="peak, dense")
    efficiency: float = Field(
        default=0.35, gt=0, le=1, description="share of the peak that a training reaches"
    )
    gb_per_s: float = Field(default=500.0, gt=0, description="memory bandwidth of each GPU")
    watts: float = Field(ge=0, description="of each GPU under load, or of each core that computes")
    host_watts: float = Field(default=0.0, ge=0, description="of everything else in the machine")
    regions: dict[str, Rate] = Field(min_length=1)

    @model_validator(mode="after")
    def _is_whole(self) -> "Hardware":
        if self.gpus and self.bf16_tflops is None:
            raise ValueError("has GPUs, but says no bf16_tflops")
        if not self.gpus and not self.cores:
            raise ValueError("has neither gpus nor cores")
        return self


class ThisMachine(Section):
    """The machine at hand, where a budget names none."""

    region: str
    usd_per_hour: float = Field(default=0.0, ge=0)
    watts: float = Field(ge=0, description="of each core that computes")
    host_watts: float = Field(default=0.0, ge=0, description="of everything else in it")
    gpu_watts: float = Field(default=300.0, ge=0, description="of a GPU that the table does not know")
    gpu_bf16_tflops: float = Field(default=80.0, gt=0, description="of a GPU that the table does not know")
    efficiency: float = Field(
        default=0.35, gt=0, le=1, description="share of that peak that a training reaches"
    )
    gpu_gb_per_s: float = Field(default=500.0, gt=0, description="of a GPU that the table does not know")


class Prices(Section):
    """One `prices.yaml`."""

    version: int = Field(ge=1)
    date: datetime.date
    note: str = ""
    sources: list[str] = []
    regions: dict[str, Region] = Field(min_length=1)
    hardware: dict[str, Hardware] = {}
    this_machine: ThisMachine

    @model_validator(mode="after")
    def _regions_are_known(self) -> "Prices":
        for name, hardware in self.hardware.items():
            if unknown := [r for r in hardware.regions if r not in self.regions]:
                raise ValueError(f"hardware.{name} names the region {unknown[0]}, which regions does not")
        if self.this_machine.region not in self.regions:
            raise ValueError(
                f"this_machine names the region {self.this_machine.region}, which regions does not"
            )
        return self


@dataclass(frozen=True)
class Terms:
    """What an hour of training takes, on one machine in one region. Plain numbers: it goes into a spec.

    Attributes:
        gpus: that a training there can use; 0: it computes on `cores` cores.
        memory_gib: of each GPU; of the host where there is none.
        tflops: bf16 rate of each GPU that a training reaches; None: CPU.
        gb_per_s: memory bandwidth of each GPU.
        watts: of each GPU or core at work; `host_watts` is everything else in the machine.
        prices: version of the table.
    """

    hardware: str
    region: str
    spot: bool
    gpus: int
    cores: int
    memory_gib: float
    tflops: float | None
    gb_per_s: float
    usd_per_hour: float
    watts: float
    host_watts: float
    pue: float
    carbon_kg_per_kwh: float
    prices: int

    def usd(self, seconds: float) -> float:
        return seconds / 3600 * self.usd_per_hour

    def kwh(self, seconds: float, workers: int = 1) -> float:
        """Energy drawn from the grid: the whole machine, and the data centre's share.

        Args:
            workers: GPUs, or cores, that compute.
        """
        return seconds / 3.6e6 * (self.watts * workers + self.host_watts) * self.pue

    def co2e_kg(self, kwh: float) -> float:
        return kwh * self.carbon_kg_per_kwh

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def load(path: Path) -> Prices:
    """Read the price table. Raises InputInvalid with every error in it."""
    return yaml_lines.parse(path, Prices)[0]


def terms(prices: Prices, budget: Budget, cores: int, memory_gib: float, gpus: "Gpus | None" = None) -> Terms:
    """What an hour takes on the machine that a budget names; on the one at hand where it names none.

    Args:
        cores, memory_gib, gpus: the machine at hand.

    Raises:
        InputInvalid: the table does not know the machine, or not in that region.
    """
    if not budget.hardware:
        return _this_machine(prices, budget, cores, memory_gib, gpus)
    hardware = _known(
        prices.hardware, budget.hardware, "budget.hardware", "no such machine is in the price table"
    )
    region = budget.region or next(iter(hardware.regions))
    where = f"{budget.hardware} has no price in this region"
    rate = _known(hardware.regions, region, "budget.region", where)
    price = rate.usd_per_hour
    if budget.spot and rate.spot_usd_per_hour is not None:
        price = rate.spot_usd_per_hour
    grid = prices.regions[region]
    return Terms(
        hardware=budget.hardware,
        region=region,
        spot=budget.spot and rate.spot_usd_per_hour is not None,
        gpus=hardware.gpus,
        cores=hardware.cores,
        memory_gib=hardware.memory_gib,
        tflops=_reached(hardware),
        gb_per_s=hardware.gb_per_s,
        usd_per_hour=budget.usd_per_hour or price,
        watts=hardware.watts,
        host_watts=hardware.host_watts,
        pue=grid.pue,
        carbon_kg_per_kwh=grid.carbon_kg_per_kwh,
        prices=prices.version,
    )


@dataclass(frozen=True)
class Gpus:
    """The GPUs of the machine at hand: how many, what the driver calls them, memory of each."""

    count: int
    name: str
    memory_gib: float


def _this_machine(prices: Prices, budget: Budget, cores: int, memory_gib: float, gpus: Gpus | None) -> Terms:
    own = prices.this_machine
    region = budget.region or own.region
    grid = _known(prices.regions, region, "budget.region", "no such region is in the price table")
    card = _card(prices, gpus)
    return Terms(
        hardware=THIS_MACHINE,
        region=region,
        spot=False,
        gpus=gpus.count if gpus else 0,
        cores=cores,
        memory_gib=gpus.memory_gib if gpus else memory_gib,
        tflops=(_reached(card) if card else own.gpu_bf16_tflops * own.efficiency) if gpus else None,
        gb_per_s=card.gb_per_s if card else own.gpu_gb_per_s,
        usd_per_hour=budget.usd_per_hour or own.usd_per_hour,
        watts=(card.watts if card else own.gpu_watts) if gpus else own.watts,
        host_watts=own.host_watts,
        pue=grid.pue,
        carbon_kg_per_kwh=grid.carbon_kg_per_kwh,
        prices=prices.version,
    )


def _card(prices: Prices, gpus: Gpus | None) -> Hardware | None:
    """The row of the table whose GPU the driver names, nearest in memory."""
    if gpus is None:
        return None
    words = gpus.name.replace("-", " ").split()
    fits = [h for h in prices.hardware.values() if h.device and h.device in words]
    return min(fits, key=lambda h: abs(h.memory_gib - gpus.memory_gib), default=None)


def _reached(hardware: Hardware) -> float | None:
    return hardware.bf16_tflops * hardware.efficiency if hardware.bf16_tflops else None


def _known(table: Mapping[str, Row], name: str, where: str, what: str) -> Row:
    if name not in table:
        raise InputInvalid(what, where, name, f"use one of {', '.join(table)}, or add it to the price table")
    return table[name]
