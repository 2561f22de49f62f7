"""`python -m benchmarks.label_studio`: seconds to put 10,000 rows before people, and what a tick costs.

Against a Label Studio of its own, in an empty home: a round of 10,000 rows of about 1 kB is opened (with its
two people's accounts), opened again, and 1,000 answers are read back. Then 50 rounds are open, and their
states are asked 20 times.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ftaas_pipelines.governance.ledger import open_ledger
from ftaas_pipelines.review.rounds import Opened, Round, Task
from ftaas_pipelines.settings import Settings
from resources.label_studio import LabelStudio, connect
from resources.label_studio.client import KEY
from resources.label_studio.server import Server

IMPORT_BOUND_S = 60.0
TICK_BOUND_S = 0.3
ROUNDS = 50
TICKS = 20
ANSWERS = 1000
WHO = ["sam.expert@example.com", "sara.expert@example.com"]
FORM = """<View><HyperText name="chat" value="$chat_html"/><Text name="completion" value="$completion"/>
<Choices name="verdict" toName="completion" choice="single-radio">
<Choice value="Approve" alias="approve"/><Choice value="Reject" alias="reject"/></Choices></View>"""


def question(name: str) -> Round:
    return Round(f"r{name}", "bench", "rows", "d" * 64, f"bench rows {name}", FORM, "Look.", WHO)


def rows(count: int) -> list[Task]:
    said = "What the code means, and which part to look at first. " * 10
    return [
        Task(f"{i:064x}", {"chat_html": f"<p>{said} {i}</p>", "completion": f"{said} {i}"})
        for i in range(count)
    ]


def answer(tool: LabelStudio, place: str, tasks: list[Task]) -> None:
    """Answers as an import: they would count for nothing, but cost what others cost to read."""
    verdict = {"from_name": "verdict", "to_name": "completion", "type": "choices"}
    result = [{**verdict, "value": {"choices": ["approve"]}}]
    request = [{"data": {**t.data, KEY: t.key}, "annotations": [{"result": result}]} for t in tasks]
    into = int(place)
    tool.api.call(
        "import", lambda sdk, once: sdk.projects.import_tasks(into, request=request, request_options=once)
    )


def seconds(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


def figures(tool: LabelStudio, count: int) -> dict[str, float | int]:
    """What the operations cost, in seconds on the clock."""
    tasks = rows(count)
    tool.open(question("warm"), tasks[:1])
    opened: list[Opened] = []
    imported = seconds(lambda: opened.append(tool.open(question("large"), tasks)))
    again = seconds(lambda: tool.open(question("large"), tasks))
    answer(tool, opened[0].place, tasks[:ANSWERS])
    answers = seconds(lambda: tool.answers(opened[0]))
    opened += [tool.open(question(f"small{i}"), tasks[:20]) for i in range(ROUNDS - 1)]
    ticks = [seconds(lambda: tool.states(opened)) for _ in range(TICKS)]
    return {
        "rows": count,
        "import_s": round(imported, 2),
        "import_bound_s": IMPORT_BOUND_S,
        "open_again_s": round(again, 2),
        "answers": ANSWERS,
        "answers_s": round(answers, 3),
        "open_rounds": len(opened),
        "tick_median_s": round(statistics.median(ticks), 3),
        "tick_worst_s": round(max(ticks), 3),
        "tick_bound_s": TICK_BOUND_S,
    }


def main() -> int:
    """Measure and print; 1 when a bound is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.label_studio", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the large round")
    parser.add_argument("--port", type=int, default=18081, help="a free port for the server")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ftaas-label-studio-") as folder:
        settings = Settings(home=Path(folder), port_label_studio=chosen.port)
        server = Server(settings)
        try:
            server.start(lambda said: print(said, file=sys.stderr))
            server.wait(lambda said: print(said, file=sys.stderr))
            tool = connect(settings, open_ledger(settings))
            assert tool is not None
            found = figures(tool, chosen.rows)
        finally:
            server.stop()
    print(json.dumps(found, indent=1))
    return int(found["import_s"] > IMPORT_BOUND_S or found["tick_median_s"] > TICK_BOUND_S)


if __name__ == "__main__":
    raise SystemExit(main())
