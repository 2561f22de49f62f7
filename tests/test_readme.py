"""What the documentation says is so: commands run, names exist, examples are valid."""

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from typer.main import get_command

from ftaas_pipelines import settings
from ftaas_pipelines.cli.main import COMMANDS, frame
from ftaas_pipelines.projects import policy, yaml_lines
from ftaas_pipelines.projects.project import Project
from ftaas_pipelines.serving import deployments

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "k8s" / "README.md"]
BY_HAND = ("git clone", "make ")  # never end, or are what CI itself runs
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


def fences(page: Path, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)


def commands(page: Path) -> list[str]:
    """The lines of its `sh` blocks."""
    return [line for block in fences(page, "sh") for line in block.splitlines() if line.strip()]


def named_commands(page: Path) -> Iterator[str]:
    """Everything on a page that begins with `ftaas` and stands as code."""
    text = page.read_text("utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S)
    yield from (line for block in blocks for line in block.splitlines() if line.startswith("ftaas "))
    prose = re.sub(r"^```\w*\n.*?^```$", "", text, flags=re.M | re.S)
    yield from re.findall(r"`(?:\.venv/bin/)?(ftaas [^`]+)`", prose)


@functools.cache
def command(noun: str) -> Any:
    """A command of `ftaas`, with its verbs and options really there."""
    root: Any = get_command(frame(noun))
    return root.commands[noun]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_and_option_that_is_named_exists(page: Path) -> None:
    for line in named_commands(page):
        words = shlex.split(line.replace("…", ""), comments=True)[1:]
        if words[0].startswith("-"):
            continue
        assert words[0] in COMMANDS, line
        found, rest = command(words[0]), words[1:]
        verbs = getattr(found, "commands", None)
        if verbs is not None and rest:
            assert rest[0] in verbs, line
            found = verbs[rest[0]]
        known = {name for p in found.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
        assert {w.partition("=")[0] for w in rest if w.startswith("--")} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_and_path_that_is_named_exists(page: Path) -> None:
    text = page.read_text("utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [x for x in links if x and "://" not in x and not (page.parent / x).exists()]
    # A path in code: from the root, from the engine's folder (`governance/gates.py`), or from its parts.
    folders = (
        "assets|resources|sensors|projects|policy|tests|docs|benchmarks|dagster_home|k8s|ftaas_pipelines"
    )
    parts = [p.name for p in (ROOT / "ftaas_pipelines").iterdir() if p.is_dir() and p.name[0] != "_"]
    place = re.compile(rf"^(?:{'|'.join([folders, *parts])})/[\w./-]*$|^\w+\.py$")
    for name in re.findall(r"`([^`\s]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)):
        if place.match(name) and name != "inputs.py":
            roots = (ROOT, ROOT / "ftaas_pipelines")
            missing += [] if any((root / name).exists() for root in roots) else [name]
    assert not missing


def test_the_tree_is_the_repositorys() -> None:
    block = next(b for b in fences(README, "text") if b.startswith("README.md"))
    shown: set[str] = set()
    folder = ""
    for line in block.splitlines():
        name = line.split()[0]
        inner = line.startswith("  ")
        folder = folder if inner else name
        path = f"{folder}{name}" if inner else name
        shown.add(path)
        assert (ROOT / path).exists(), path
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout.splitlines()
    there = {name.partition("/")[0] + ("/" if "/" in name else "") for name in tracked}
    there |= {f"ftaas_pipelines/{n.split('/')[1]}" + ("/" if n.count("/") > 1 else "")
              for n in tracked if n.startswith("ftaas_pipelines/")}  # fmt: skip
    assert there - {"ftaas_pipelines/__init__.py"} <= shown


def test_the_settings_are_all_told_and_none_is_invented() -> None:
    known = {row["variable"]: row["value"] for row in settings.load({}).table({})}
    rows = re.findall(r"^\| `(FTAAS_\w+)` \| (.*?) \|", README.read_text("utf-8"), re.M)
    assert [name for name, _ in rows if name not in known] == []
    assert set(known) == {name for name, _ in rows}
    for name, told in rows:
        if known[name]:
            assert known[name] in told, name
    source = "".join(p.read_text("utf-8") for p in (ROOT / "ftaas_pipelines").rglob("*.py"))
    source += (ROOT / ".ci" / "run").read_text("utf-8")
    for page in PAGES:
        for name in re.findall(r"\bFTAAS_[A-Z_]+\b", page.read_text("utf-8")):
            assert name.rstrip("_") in known or name in source, f"{page.name}: {name}"


def test_the_example_projects_of_the_pages_are_valid(tmp_path: Path) -> None:
    rules = policy.load(ROOT / "policy" / "platform.yaml")
    blocks = [text for page in PAGES for text in fences(page, "yaml") if text.startswith("name:")]
    found = [text for text in blocks if "\npeople:" in text]  # the others show one recipe
    assert len(found) == 2
    assert len(fences(README, "yaml")[0].splitlines()) <= 25
    for text in found:
        file = tmp_path / "project.yaml"
        file.write_text(text, encoding="utf-8")
        project, lines = yaml_lines.parse(file, Project)
        assert policy.conflicts(rules, project, file, lines) == []


def test_every_key_of_project_yaml_is_in_its_reference() -> None:
    text = (ROOT / "docs" / "projects.md").read_text("utf-8")
    schema = Project.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    keys = {key for section in sections for key in section.get("properties", {})}
    assert sorted(key for key in keys if not re.search(rf"\b{key}\b", text)) == []


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for page in PAGES:
        text = page.read_text("utf-8")
        named = re.findall(r"`make (\w+)`", text) + re.findall(r"^make (\w+)$", text, re.M)
        assert set(named) <= targets, page.name


class Shell:
    """Runs the commands of the README one after another, as its reader would.

    What a reader fills in by hand (ID, DIGEST, RESPONSE_ID) is filled in from what was printed.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._answer = ""

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["bash", "-c", self._filled(line)],
            cwd=self._folder,
            env={**os.environ, "PATH": self._path},
            capture_output=True,
            encoding="utf-8",
            timeout=550,
            check=False,
        )
        answers = re.findall(r"chatcmpl-\w+", done.stdout)
        self._answer = answers[-1] if answers else self._answer
        return done

    def _filled(self, line: str) -> str:
        if line.startswith("ftaas review decide ID"):
            signer = shlex.split(line)[shlex.split(line).index("--as") + 1]
            reviews = json.loads(self.run("ftaas review list --json").stdout)["reviews"]
            return line.replace("ID", next(r["id"] for r in reviews if signer in r["who"]), 1)
        if "RESPONSE_ID" in line:
            return line.replace("RESPONSE_ID", self._answer)
        if re.search(r"\bDIGEST\b", line):
            assets = json.loads(self.run("ftaas status maintenance_assistant --json").stdout)["assets"]
            return line.replace("DIGEST", next(a["digest"] for a in assets if a["name"] == "splits"))
        return line


@pytest.mark.timeout(1500)  # the demo, and every other command
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_of_the_readme_runs(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(tmp_path / "projects")
    shutil.copytree(ROOT / "projects", tmp_path / "projects")
    # As for a reader: the folders are found where the commands are typed, and nobody said who acts.
    for name in ("FTAAS_PROJECTS", "FTAAS_POLICY", "FTAAS_ACTOR"):
        monkeypatch.delenv(name)
    shell, store, adapters = Shell(tmp_path), home / "store" / "artifacts", 0
    told = commands(README)
    assert "make demo" in told
    try:
        for i, line in enumerate(told):
            if line == "make demo":
                line = "ftaas demo"
            elif line.startswith(BY_HAND):
                continue  # its target is checked above
            expected = re.search(r"# exit (\d+)$", line)
            done = shell.run(line)
            said = f"$ {line}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            assert done.returncode == int(expected[1] if expected else 0), said
            assert "Traceback" not in done.stderr, said
            if i and told[i - 1].startswith("sed ") and adapters:
                assert len(list(store.glob("adapter/*"))) == adapters, "the old content trains nothing"
            adapters = len(list(store.glob("adapter/*")))
    finally:
        chosen = settings.load()
        for environment in settings.ENVIRONMENTS:
            deployments.stop(chosen, environment)
    shutil.rmtree(tmp_path / "projects" / "codes")
    kept = subprocess.run(
        ["diff", "-r", "-x", "__pycache__", str(ROOT / "projects"), str(tmp_path / "projects")],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert kept.stdout == "", "the README puts back what it changes"
