"""`python -m benchmarks.privacy`: recall and precision by kind, and CPU time per record, as one JSON.

The labelled texts are tests/data/personal_data.jsonl; a place counts as found only when kind, start and
end are all right. Detectors were developed on its first half: `held_out` is the other half.
"""

import argparse
import json
import time
from collections import Counter
from typing import Any

from benchmarks import ROOT
from ftaas_pipelines.data.privacy.screen import Screen
from ftaas_pipelines.data.rows.records import Record
from ftaas_pipelines.projects.dataset import Entity, Privacy

LABELLED = ROOT / "tests" / "data" / "personal_data.jsonl"
HALF = 250
BOUND_US = 15.0
# What detectors that always run are joined by here.
ON_REQUEST: tuple[Entity, ...] = ("url", "date", "address", "age_over_89")
PLAIN = (
    "The hydraulic pump on line 3 stops with fault H442 at 02:35. Check the seal of part 100-200-300, the "
    "filter and the pressure sensor, then restart the controller with firmware 4.12.7. If the fault comes "
    "back within 24 hours, replace the bearing, note the run time of 12 500 h in the log, and tell the shift "
    "lead. Do not open the valve while the unit is under pressure: wait until the gauge reads 0.5 bar."
)


def record(number: int, prompt: str, answer: str) -> Record:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return Record(f"{number:064x}", messages, "benchmark", None, number)


def labelled() -> list[dict[str, Any]]:
    return [json.loads(line) for line in LABELLED.read_text("utf-8").splitlines()]


def rates(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Recall, precision and number of labelled places, by kind."""
    screen = Screen(Privacy(entities=dict.fromkeys(ON_REQUEST, "keep"), toxicity="off"))
    records = [record(i, row["text"], "ok") for i, row in enumerate(rows)]
    found = {(int(f.record_id, 16), f.detector, f.start, f.end) for f in screen.screen(records)[0]}
    true = {(i, s["kind"], s["start"], s["end"]) for i, row in enumerate(rows) for s in row["spans"]}
    seen, real, right = (Counter(kind for _, kind, *_ in places) for places in (found, true, found & true))
    return {
        kind: {
            "recall": round(right[kind] / real[kind], 3) if real[kind] else 1.0,
            "precision": round(right[kind] / seen[kind], 3) if seen[kind] else 1.0,
            "places": real[kind],
        }
        for kind in sorted({*seen, *real})
    }


def microseconds(count: int) -> float:
    """CPU time per record of 400 ASCII characters without personal data, everything on but the models."""
    screen = Screen(Privacy(profile="hipaa_safe_harbor"))
    screen.screen([record(0, PLAIN[:200], PLAIN[200:400])])
    # Every text differs, so that nothing is seen twice.
    records = [record(i, f"{i % 997} {PLAIN[:196]}", PLAIN[200:400]) for i in range(count)]
    began = time.process_time()
    found, _ = screen.screen(records)
    spent = time.process_time() - began
    if found:
        raise SystemExit(f"the plain text has findings, so this measures something else: {found[0].kind}")
    return spent / count * 1e6


def main() -> int:
    """Measure and print; 1 when the bound on time is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.privacy", description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="records of the time measurement")
    rows = labelled()
    spent = microseconds(parser.parse_args().rows)
    figures = {
        "developed_on": rates(rows[:HALF]),
        "held_out": rates(rows[HALF:]),
        "cpu_us_per_record": round(spent, 2),
        "bound_us": BOUND_US,
    }
    print(json.dumps(figures, indent=1))
    return int(spent > BOUND_US)


if __name__ == "__main__":
    raise SystemExit(main())
