"""Energy that was really drawn, by codecarbon, where the machine has a meter: RAPL (processor), NVML (GPU).

Without one codecarbon guesses power from the processor's name; the price table has it from whoever keeps the
table. Then the table's is taken, and nothing runs beside the training.
"""

import contextlib
import logging
import threading
import time
from pathlib import Path
from typing import Any

_RAPL = Path("/sys/class/powercap")
_EVERY_S = 15.0  # between two measurements, and between two readings
# Asked for 1,000 g CO2e a kWh, codecarbon's kilograms are kilowatt-hours: the grid is the price table's.
_GRAMS = 1000


def found(device: str) -> str:
    """The meters of this machine, in words; empty where there is none."""
    meters = ["NVML"] if device == "cuda" else []
    with contextlib.suppress(OSError):
        if any(_readable(domain / "energy_uj") for domain in _RAPL.glob("intel-rapl:*")):
            meters.append("RAPL")
    return " and ".join(meters)


def _readable(file: Path) -> bool:
    try:
        return bool(file.read_text("ascii").strip())
    except OSError:
        return False


class Meter:
    """Reads the energy of this process while it trains. It starts in a thread: codecarbon takes its time."""

    def __init__(self, meters: str, pue: float):
        self.source = f"codecarbon: {meters}"
        self._pue = pue
        self._tracker: Any = None
        self._read = (float("-inf"), 0.0)  # when, kWh
        self._starting = threading.Thread(target=self._start, daemon=True, name="energy")
        self._starting.start()

    def _start(self) -> None:
        from codecarbon import OfflineEmissionsTracker

        logging.getLogger("codecarbon").disabled = True  # it warns of what we chose
        tracker = OfflineEmissionsTracker(
            country_iso_code="USA",
            tracking_mode="process",
            measure_power_secs=_EVERY_S,
            save_to_file=False,
            allow_multiple_runs=True,
            force_carbon_intensity_g_co2e_kwh=_GRAMS,
            pue=self._pue,
            log_level="critical",
        )
        tracker.start()
        self._tracker = tracker

    def kwh(self, *, now: bool = False) -> float:
        """Energy since the start, as of the last few seconds; `now` waits for a reading."""
        if now:
            self._starting.join(timeout=30)
        when, kwh = self._read
        if self._tracker is not None and (now or time.monotonic() - when > _EVERY_S):
            kwh = float(self._tracker.flush() or kwh)
            self._read = (time.monotonic(), kwh)
        return kwh

    def stop(self) -> None:
        self.kwh(now=True)
        if self._tracker is not None:
            self._tracker.stop()
            self._tracker = None
