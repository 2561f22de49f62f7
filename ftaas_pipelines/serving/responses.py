"""The response log: which release gave which answer. No texts, so it may be kept long."""

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Answered:
    """One answer, as `ftaas trace` finds it by its id.

    Attributes:
        at: UTC seconds since the epoch.
    """

    id: str
    project: str
    release: str
    adapter_digest: str
    base: str
    at: float
    prompt_tokens: int
    completion_tokens: int


def append(folder: Path, answered: Answered) -> None:
    """Add one line to the log of its day. Safe from many processes: one write of less than a page."""
    folder.mkdir(parents=True, exist_ok=True)
    day = time.strftime("%Y-%m-%d", time.gmtime(answered.at))
    line = (json.dumps(asdict(answered), sort_keys=True) + "\n").encode()
    descriptor = os.open(folder / f"{day}.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


def find(folder: Path, response_id: str) -> dict[str, Any] | None:
    """The log's line of an answer, newest days first; None where there is none."""
    needle = json.dumps(response_id)
    for path in sorted(folder.glob("*.jsonl"), reverse=True):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                if needle in line:
                    return json.loads(line)
    return None
