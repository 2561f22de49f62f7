"""Each kind of bad input, through the real command line: one clear error, exit 2, nothing half-made."""

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import rows

from ftaas_pipelines import settings
from ftaas_pipelines.store import Store

Run = Callable[..., Any]
Write = Callable[..., Path]
GOOD = b"".join(json.dumps(row).encode() + b"\n" for row in rows())
NO_ANSWER = json.dumps({"instruction": "Say", "input": "X", "output": ""}).encode() + b"\n"


def one_problem(done: Any, *said: str) -> None:
    """Exit 2, problems in the house form that name what is expected, and no artifact."""
    assert done.code == 2, done.stdout + done.stderr
    text = json.dumps(done.json["problems"], ensure_ascii=False)
    assert all(word in text for word in said), text
    assert all(p["what"] for p in done.json["problems"])
    assert not list((settings.load().store_path / "artifacts").glob("*/*"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", ["rows.jsonl", "empty"]),
        (GOOD + b'{"instruction": "x", \n', ["rows.jsonl:121", "JSON"]),
        (GOOD + '{"instruction": "für", "input": "", "output": "y"}\n'.encode("latin-1"), ["rows.jsonl:121"]),
        (GOOD + NO_ANSWER, ["rows.jsonl:121"]),
        (b"text,target\na,b\n", ["rows.jsonl:1"]),
        (b"".join(GOOD.splitlines(keepends=True)[:3]), ["3"]),
    ],
    ids=["empty", "broken JSON", "wrong encoding", "no answer", "another format", "too few rows"],
)
def test_bad_data(project_factory: Write, ftaas: Run, data: bytes, said: list[str]) -> None:
    path = project_factory("codes")
    (path.parent / "data" / "rows.jsonl").write_bytes(data)
    done = ftaas("run", "codes", "--until", "splits", "--json")
    assert done.code == 2, done.stdout + done.stderr
    text = json.dumps(done.json["problems"], ensure_ascii=False)
    assert all(word in text for word in said), text
    assert not list((settings.load().store_path / "artifacts").glob("splits/*"))
    assert not list((settings.load().store_path / "drafts").glob("*"))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("task: qa", "taks: qa", ["project.yaml:3", "taks", "did you mean 'task'"]),
        ("task: qa", "task: qa\nreviews: {sme: 0}", ["loosens the platform policy"]),
        ("task: qa", "task: qa\nevaluation: {thresholds: {exact_match: 1.5}}", ["between 0 and 1"]),
        ("data/rows.jsonl", "data/other.jsonl", ["not there", "data/other.jsonl"]),
        ("sam.expert@example.com", "mallory@elsewhere.org", ["mallory@elsewhere.org", "sme"]),
    ],
    ids=["misspelt key", "loosens the policy", "threshold out of range", "missing data", "unknown person"],
)
def test_bad_project(project_factory: Write, ftaas: Run, before: str, after: str, said: list[str]) -> None:
    path = project_factory("codes")
    path.write_text(path.read_text("utf-8").replace(before, after, 1), "utf-8")
    one_problem(ftaas("run", "codes", "--json"), *said)


def test_two_projects_of_one_name(project_factory: Write, ftaas: Run) -> None:
    project_factory("codes")
    project_factory("codes", folder="copy")
    one_problem(ftaas("run", "codes", "--json"), "2 projects are named 'codes'")


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("id: ./nowhere", ["nowhere"]),
        ("id: embedded/huge", ["embedded/huge"]),
        ("id: some-org/some-model", ["some-org/some-model"]),
        ("id: embedded/tiny-causal\n  family: seq2seq", ["seq2seq"]),
    ],
    ids=["no such folder", "no such embedded base", "no network", "causal where T5 was asked"],
)
def test_bad_base_model(project_factory: Write, ftaas: Run, base: str, said: list[str]) -> None:
    path = project_factory("codes")
    path.write_text(path.read_text("utf-8").replace("id: embedded/tiny-causal", base), "utf-8")
    # No offline switch: where there is no network, that is what it has to find out by itself.
    one_problem(ftaas("run", "codes", "--json", HF_HUB_OFFLINE="0", TRANSFORMERS_OFFLINE="0"), *said)


def test_a_port_in_use(home: Path, ftaas: Run) -> None:
    with socket.create_server(("127.0.0.1", settings.load().port_dagster)):
        one_problem(ftaas("dev", "--json"), "FTAAS_PORT_DAGSTER", "in use")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs with options; a test that cannot have one is skipped, by name."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        disk = tmp_path / f"disk{len(mounted)}"
        disk.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)]
        if os.geteuid() != 0 or subprocess.run(command, check=False).returncode:
            pytest.skip("this machine cannot mount a small disk")
        mounted.append(disk)
        return disk

    yield mount
    for disk in mounted:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(project_factory: Write, ftaas: Run, small_disk: Callable[[str], Path]) -> None:
    project_factory("codes")
    disk = small_disk("size=64k")
    done = ftaas("run", "codes", "--until", "dataset", "--json", FTAAS_STORE=str(disk / "store"))
    assert done.code == 2, done.stdout + done.stderr
    assert "disk is full" in done.stdout
    assert not Store(disk / "store").verify(), "what is visible is whole"
    assert not list((disk / "store").glob("drafts/*"))


def test_a_read_only_home(project_factory: Write, ftaas: Run, small_disk: Callable[[str], Path]) -> None:
    project_factory("codes")
    disk = small_disk("ro")
    done = ftaas("run", "codes", "--json", FTAAS_HOME=str(disk / "home"))
    assert done.code == 2, done.stdout + done.stderr
    assert "writable" in done.stdout
