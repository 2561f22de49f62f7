"""`python -m benchmarks.ledger`: what the ledger costs: single appends, 100,000 entries, verifying them.

Prints one JSON document. `--url postgresql://…` measures a PostgreSQL (an empty database of its own).
"""

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.governance.ledger import Ledger, New
from ftaas_pipelines.store import digest_of

BOUND_S = 10.0
ENTRIES = 100_000
SINGLE = 500
BATCH = 5_000


def entry(number: int) -> New:
    """A decision as people take them: the kind of entry that a ledger is full of."""
    subject = digest_of(number // 4)
    body = {
        "review": f"r{number:010d}",
        "role": ("sme", "rai", "approver")[number % 3],
        "environment": "production",
        "decision": "approve_with_conditions",
        "terms": digest_of({"of": subject}),
        "comment": "Checked the sample against the manual; two rows were corrected.",
        "conditions": "Look again after the next delivery.",
        "risk": "low",
        "saw": digest_of({"form": number}),
    }
    return New("decision", subject, body, f"project_{number % 50}", f"person{number % 40}@example.com")


def measure(folder: Path, url: str, count: int) -> dict[str, object]:
    """Seconds for appending, building and verifying; raises where the ledger does not hold."""
    ledger = Ledger(url or f"sqlite:///{folder / 'ledger.db'}", folder, digest_of("policy"))
    if ledger.entries(limit=1):
        raise FtaasError("the benchmark needs an empty ledger", do="name another database")
    begun = time.perf_counter()
    for number in range(SINGLE):
        one = entry(number)
        ledger.append(one.kind, one.subject, one.body, project=one.project, actor=one.actor)
    single_s = time.perf_counter() - begun
    begun = time.perf_counter()
    for start in range(SINGLE, count, BATCH):
        ledger.append_many([entry(n) for n in range(start, min(start + BATCH, count))])
    build_s = time.perf_counter() - begun
    begun, worked = time.perf_counter(), time.process_time()
    found = ledger.verify()
    verify_s, verify_cpu_s = time.perf_counter() - begun, time.process_time() - worked
    if not found.ok or found.entries != count:
        raise FtaasError("the ledger does not hold", got=str(found))
    begun = time.perf_counter()
    asked = ledger.entries(project="project_7", subject=digest_of(7 // 4), authentic=True)
    return {
        "database": ledger.url.partition(":")[0],
        "entries": count,
        "appends_per_s": round(SINGLE / single_s),
        "append_ms": round(1000 * single_s / SINGLE, 2),
        "build_s": round(build_s, 2),
        "bulk_per_s": round((count - SINGLE) / build_s),
        "verify_s": round(verify_s, 2),
        "verify_cpu_s": round(verify_cpu_s, 2),
        "ask_ms": round(1000 * (time.perf_counter() - begun), 2),
        "asked": len(asked),
        "bound_s": BOUND_S,
        "kept": verify_s <= BOUND_S or count > ENTRIES,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=ENTRIES)
    parser.add_argument("--url", default="", help="PostgreSQL; without it SQLite in a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.url, options.entries)
    print(json.dumps(found, indent=2))
    return 0 if found["kept"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
