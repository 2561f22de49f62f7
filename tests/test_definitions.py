"""The code location: the line that architecture.md draws, loaded light, whatever else is broken."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

HEAVY = (
    "bentoml",
    "daft",
    "datasets",
    "great_expectations",
    "label_studio_sdk",
    "mlflow",
    "pandas",
    "peft",
    "torch",
    "transformers",
    "trl",
)

# Every asset between the sources and the recipes, with its checks.
DATA = {
    "dataset": ["quality"],
    "row_review_request": [],
    "splits": ["balance", "leakage", "size"],
    "dataset_review_request": [],
    "dataset_sign_off": ["still_valid"],
}
ADAPTER = ["human_sign_off", "learning"]
PROOF = {
    "candidate": [],
    "evaluation": ["beats_naive", "not_worse_than_champion", "thresholds"],
    "bento": [],
    "release": [],
}


def served(environment: str) -> dict[str, list[str]]:
    return {
        f"approval_request_{environment}": [],
        f"approval_{environment}": ["still_valid"],
        f"deployment_{environment}": ["human_sign_off", "served_equals_evaluated", "smoke", "still_valid"],
    }


LINES: dict[str, dict[str, list[str]]] = {
    "grammar_correction": {
        "source_sentences": [],
        "source_unseen_sentences": [],
        **DATA,
        "adapter_full": ADAPTER,
        "adapter_lora": ADAPTER,
        **PROOF,
        **served("staging"),
    },
    "maintenance_assistant": {
        "source_reports": [],
        "source_unseen_wordings": [],
        "source_unseen_combinations": [],
        **DATA,
        "adapter_lora": ADAPTER,
        **PROOF,
        **served("staging"),
        **served("production"),
    },
}

LOOK = f"""
import json, sys
from ftaas_pipelines import settings
from ftaas_pipelines.definitions import build
defs = build(settings.load())
heavy = sorted(set(sys.modules) & set({HEAVY!r}))
graph = defs.resolve_asset_graph()
checks = {{}}
for check in graph.asset_check_keys:
    checks.setdefault(check.asset_key, []).append(check.name)
assets = {{
    "/".join(key.path): {{
        "group": graph.get(key).group_name,
        "kinds": sorted(graph.get(key).kinds or []),
        "description": graph.get(key).description or "",
        "checks": sorted(checks.get(key, [])),
    }}
    for key in graph.get_all_asset_keys()
}}
repository = defs.get_repository_def()
print(json.dumps({{
    "heavy": heavy,
    "assets": assets,
    "sensors": sorted(s.name for s in repository.sensor_defs),
    "schedules": [s.name for s in repository.schedule_defs],
    "jobs": [j for j in repository.job_names if not j.startswith("__")],
}}))
"""


def load(projects: Path) -> tuple[dict[str, Any], str]:
    """The code location as a fresh interpreter sees it, and what it said on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        env={**os.environ, "FTAAS_PROJECTS": str(projects)},
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


@pytest.fixture
def examples(home: Path) -> dict[str, Any]:
    return load(ROOT / "projects")[0]


def test_the_examples_are_the_line_of_the_architecture_and_load_nothing_heavy(
    examples: dict[str, Any],
) -> None:
    assert examples["heavy"] == []
    expected = {f"{p}/{name}": checks for p, line in LINES.items() for name, checks in line.items()}
    assert {name: found["checks"] for name, found in examples["assets"].items()} == expected
    for name, found in examples["assets"].items():
        assert found["group"] == name.partition("/")[0]
        assert found["kinds"] and found["description"], name
    assert examples["sensors"] == [
        "alerts",
        "automation",
        "champions",
        "decisions",
        "notices",
        "sources",
        "withdrawal",
    ]
    assert examples["schedules"] == examples["jobs"] == [], "no job and no schedule a project"


def test_a_broken_project_is_left_out_with_a_warning_and_takes_nobody_down(
    project_factory: Callable[..., Path],
) -> None:
    project_factory("codes", extra="retraining: {cron: '0 2 * * *'}\n")
    wrong = project_factory("wrong", extra="budgett: {}\n")
    gone = project_factory("gone")
    (gone.parent / "data" / "rows.jsonl").unlink()
    found, said = load(wrong.parents[1])
    assert {name.partition("/")[0] for name in found["assets"]} == {"codes"}
    assert found["schedules"] == ["retrain_on_schedule"] and found["jobs"] == ["retrain"]
    assert "left out" in said and "budgett" in said and str(gone) in said


def test_no_project_at_all_still_loads(home: Path) -> None:
    found, _ = load(Path(os.environ["FTAAS_PROJECTS"]))
    assert found["assets"] == {} and len(found["sensors"]) == 7
