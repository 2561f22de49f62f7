"""`python -m benchmarks.label_studio`: seconds to put 10,000 rows before people, and what a tick costs.

Against a Label Studio of its own, in an empty home: a round of 10,000 rows of about 1 kB is opened (with its
two people's accounts), opened again, and 1,000 answers are read back. Then 50 rounds are open, and their
states are asked 20 times. Last, 50 projects have an open round each, and the sensor `decisions` looks at all
of them in quiet ticks: `glance_s` is what its look at Label Studio and ledger costs.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from assets import reviewing
from assets.line import Line
from ftaas_pipelines.governance.ledger import open_ledger
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.review.round_log import Desk
from ftaas_pipelines.review.rounds import Opened, Round, Task
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import Store
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
PROJECT = """name: {name}
title: {name}
task: qa
intended_use: A benchmark.
people:
  owners: [owen.owner@example.com]
  smes: [sam.expert@example.com]
  rai_reviewers: [rita.responsible@example.com]
  approvers: [alex.approver@example.com]
dataset: {{sources: [{{name: rows, path: rows.jsonl}}]}}
base_model: {{id: embedded/tiny-causal}}
recipes: [{{name: lora}}]
"""


def question(name: str, project: str = "bench") -> Round:
    return Round(f"r{name}", project, "rows", "d" * 64, f"{project} rows {name}", FORM, "Look.", WHO)


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


def quiet_ticks(tool: LabelStudio, settings: Settings) -> dict[str, float | int]:
    """What a look at 50 projects with an open round each costs, in seconds, while nothing happens."""
    names = [f"bench{i:02}" for i in range(ROUNDS)]
    desk = Desk(open_ledger(settings), Store(settings.store_path), tool, "bench")
    for name in names:
        folder = settings.projects / name
        folder.mkdir(parents=True)
        (folder / "project.yaml").write_text(PROJECT.format(name=name), "utf-8")
        (folder / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n', "utf-8")
        desk.put_before(question("open", name), rows(20), asset="row_review_request")
    found, _ = catalog.load_all(settings.projects, settings.policy)
    policy, seen = load_policy(settings.policy), set[str]()

    def tick() -> None:
        seen.add(reviewing.glance([Line(one, policy, settings) for one in found]))

    glances = [seconds(tick) for _ in range(TICKS)]
    assert len(seen) == 1, "nothing happened, and yet it looks otherwise"
    return {
        "projects": len(found),
        "glance_s": round(statistics.median(glances), 3),
        "glance_worst_s": round(max(glances), 3),
    }


def main() -> int:
    """Measure and print; 1 when a bound is broken."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.label_studio", description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000, help="rows of the large round")
    parser.add_argument("--port", type=int, default=18081, help="a free port for the server")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ftaas-label-studio-") as folder:
        settings = Settings(
            home=Path(folder), projects=Path(folder) / "projects", port_label_studio=chosen.port
        )
        server = Server(settings)
        try:
            server.start(lambda said: print(said, file=sys.stderr))
            server.wait(lambda said: print(said, file=sys.stderr))
            tool = connect(settings, open_ledger(settings))
            assert tool is not None
            found = figures(tool, chosen.rows) | quiet_ticks(tool, settings)
        finally:
            server.stop()
    print(json.dumps(found, indent=1))
    ticks = max(found["tick_median_s"], found["glance_s"])
    return int(found["import_s"] > IMPORT_BOUND_S or ticks > TICK_BOUND_S)


if __name__ == "__main__":
    raise SystemExit(main())
