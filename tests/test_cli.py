"""The frame of `ftaas`: exit codes, --json, the form of errors; and the nouns that do not run the line."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftaas_pipelines.cli import main as frame
from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.store import Artifact, Store, digest_of

Factory = Callable[..., Path]
Ftaas = Callable[..., Any]
HEAVY = (
    "torch transformers peft trl datasets pandas numpy mlflow great_expectations bentoml daft "
    "label_studio_sdk dagster pyarrow matplotlib"
).split()


LIGHT = {"httpx", "sqlalchemy"}  # only where a database or a server is really opened


def in_fresh_interpreter(code: str) -> Any:
    """What the code leaves in `result`, through JSON."""
    tail = "\nimport json\nprint(json.dumps(result))\n"
    done = subprocess.run(
        [sys.executable, "-c", code + tail], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("arguments", "without"),
    [
        (["--help"], LIGHT),
        *(([name, "--help"], LIGHT) for name in frame.COMMANDS),
        (["project", "list"], LIGHT),
        (["ledger", "show"], {"httpx"}),
        (["data", "list"], {"httpx"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_commands_start_without_what_they_do_not_need(
    home: Path, arguments: list[str], without: set[str]
) -> None:
    """Their seconds: `python -m benchmarks.commands`."""
    code = (
        "import sys\nfrom ftaas_pipelines.cli.main import main\n"
        f"code = main({arguments!r})\n"
        f"result = [code, sorted(set({[*HEAVY, *without]!r}) & set(sys.modules)), len(sys.modules)]"
    )
    code_, heavy, modules = in_fresh_interpreter(code)
    assert (code_, heavy) == (0, []) and modules < 750


def test_every_command_takes_json() -> None:
    code = """
from typer.main import get_command
from ftaas_pipelines.cli.main import COMMANDS, frame
def leaves(command, path):
    inner = getattr(command, "commands", None)
    if inner is None:
        return [(path, [o for p in command.params for o in p.opts])]
    return [leaf for name, one in inner.items() for leaf in leaves(one, f"{path} {name}")]
found = [leaf for name in COMMANDS for leaf in leaves(get_command(frame(name)).commands[name], name)]
result = [len(found), [path for path, options in found if "--json" not in options]]
"""
    count, without = in_fresh_interpreter(code)
    assert count > 25 and without == []


def test_usage_errors_exit_2_also_in_json(ftaas: Ftaas) -> None:
    done = ftaas("projet", "--json")
    assert (done.code, done.stderr) == (2, "")
    assert done.json["exit_code"] == 2 and "Did you mean 'project'" in done.json["problems"][0]["what"]
    done = ftaas("store", "gc", "--keep-days", "x", "--json")
    assert done.code == 2 and done.json["problems"][0]["where"] == "ftaas store gc"
    done = ftaas("data", "rows")
    assert (done.code, done.stdout) == (2, "") and done.stderr.startswith(
        "error ftaas data rows: Missing argument"
    )
    done = ftaas("doctor", "--json", FTAAS_THREADS="two")
    assert done.code == 2 and done.json["problems"][0]["where"] == "FTAAS_THREADS"
    assert ftaas("project").code == 0 and "validate" in ftaas("project").stdout


def test_something_unforeseen_is_one_line_and_a_log(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def burst(*_: Any) -> None:
        raise RuntimeError("boom [bold]not markup[/bold]\nsecond line")

    monkeypatch.setattr(Store, "gc", burst)
    assert frame.main(["store", "gc"]) == 1
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    assert "RuntimeError: boom [bold]not markup[/bold]" in shown.err
    (log,) = (home / "logs").iterdir()
    assert str(log) in shown.err and "Traceback" in log.read_text("utf-8")
    assert frame.main(["store", "gc", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["exit_code"] == 1

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "gc", stop)
    assert frame.main(["store", "gc"]) == 130


def test_control_c_ends_with_130(home: Path, tmp_path: Path) -> None:
    # A FIFO that nobody writes to: the command hangs in the read until it is interrupted.
    os.mkfifo(tmp_path / "rows.jsonl")
    words = [
        sys.executable,
        "-m",
        "ftaas_pipelines.cli.main",
        "project",
        "import",
        str(tmp_path / "rows.jsonl"),
    ]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        time.sleep(1.5)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


def test_doctor(ftaas: Ftaas, home: Path, project_factory: Factory) -> None:
    project_factory()
    done = ftaas("doctor", "--json", FTAAS_SMTP_URL="smtp://me:secret@host")
    assert done.code == 0 and "secret" not in done.stdout
    checks = {check["name"]: check for check in done.json["checks"]}
    assert checks["projects"]["state"] == "ok" and done.json["packages"]["dagster"]
    assert {row["variable"]: row["origin"] for row in done.json["settings"]}["FTAAS_HOME"] == "environment"
    assert not home.exists(), "looking makes nothing"
    project_factory("broken", text="nam: x\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(os.environ["FTAAS_PORT_STAGING"])))
        taken.listen()
        done = ftaas("doctor", "--json")
    checks = {check["name"]: check for check in done.json["checks"]}
    assert done.code == 1
    assert checks["port of the staging endpoint"]["state"] == "warn" and checks["projects"]["state"] == "fail"


def test_project_new_list_show_validate(ftaas: Ftaas, home: Path, tmp_path: Path) -> None:
    data = tmp_path / "my questions.csv"
    data.write_text("question,answer\n" + "".join(f"q{i},a{i}\n" for i in range(30)), "utf-8")
    done = ftaas("project", "new", "faq", "--from", str(data), "--json")
    assert done.code == 0, done.stdout
    assert done.json["guessed"] == {
        "format": "prompt_completion",
        "columns": {"prompt": "question", "completion": "answer"},
        "task": "qa",
        "records": 30,
    }
    assert done.json["rows"][0] == {"question": "q0", "answer": "a0"}
    folder = Path(os.environ["FTAAS_PROJECTS"]) / "faq"
    assert (folder / "data" / "my_questions.csv").read_bytes() == data.read_bytes()
    assert ftaas("project", "validate", "--json").json == {"ok": True, "projects": ["faq"]}
    assert ftaas("project", "show", "faq", "--json").json["project"]["people"]["owners"] == [
        os.environ["FTAAS_ACTOR"]
    ]
    assert "learning_rate: 0.003" in ftaas("project", "show", "faq").stdout

    again = ftaas("project", "new", "faq")
    assert again.code == 2 and "is there already" in again.stderr
    assert ftaas("project", "new", "Bad-Name").code == 2
    data.write_bytes(b"question,answer\nq,caf\xe9\n")
    assert ftaas("project", "new", "other", "--from", str(data)).code == 2
    assert ftaas("project", "new", "other", "--from", str(tmp_path / "absent.csv")).code == 2
    assert [p.name for p in folder.parent.iterdir()] == ["faq"], "nothing is half made"

    path = folder / "project.yaml"
    path.write_text(path.read_text("utf-8").replace("recipes:", "recipies:"), "utf-8")
    done = ftaas("project", "validate")
    assert (done.code, done.stdout) == (2, "") and "did you mean 'recipes'?" in done.stderr
    assert f"{path}:" in done.stderr
    (row,) = ftaas("project", "list", "--json").json["projects"]
    assert row["name"] == "faq" and row["problems"]


def test_schemas(ftaas: Ftaas) -> None:
    assert ftaas("project", "schema", "--json").json["title"] == "Project"
    assert ftaas("project", "schema", "--policy").json["title"] == "PlatformPolicy"


def test_ledger(ftaas: Ftaas, home: Path) -> None:
    ledger = Ledger(f"sqlite:///{home / 'ledger.db'}", home)
    for kind in ("grant", "decision"):
        ledger.append(kind, "d" * 64, {"role": "sme", "comment": "[x] fine"}, project="p", actor="a@b.org")
    assert [e["kind"] for e in ftaas("ledger", "show", "--kind", "decision", "--json").json["entries"]] == [
        "decision"
    ]
    assert "[x] fine" in ftaas("ledger", "show", "--project", "p").stdout
    assert ftaas("ledger", "show", "--as-of", "2001-01-01", "--json").json["entries"] == []
    assert ftaas("ledger", "show", "--as-of", "yesterday").code == 2
    lines = ftaas("ledger", "export").stdout.splitlines()
    assert [json.loads(text)["seq"] for text in lines] == [1, 2]
    assert ftaas("ledger", "export", "--json").json["head"] == ledger.head
    done = ftaas("ledger", "verify", "--json")
    assert done.code == 0
    assert done.json == {"ok": True, "entries": 2, "head": ledger.head, "first_bad": None}

    import sqlite3

    with sqlite3.connect(home / "ledger.db") as raw:
        raw.execute("DROP TRIGGER ledger_no_update")
        raw.execute("UPDATE ledger SET actor = 'm@b.org' WHERE seq = 1")
    done = ftaas("ledger", "verify", "--json")
    assert done.code == 1 and done.json["first_bad"] == {"seq": 1, "why": "its content was changed"}


def make(store: Store, kind: str, project: str, asset: str, content: dict[str, Any]) -> Artifact:
    with store.create(kind, digest_of([kind, content])) as draft:
        draft.content |= content
        draft.attestation |= {"spec": {"project": project, "asset": asset}, "seconds": 1.5}
        (draft.path / "file.txt").write_text("x", "utf-8")
    store.set_head(project, asset, digest_of([kind, content]), {}, draft.made.digest)
    return draft.made


def test_store_data_and_model(ftaas: Ftaas, home: Path) -> None:
    store = Store(home / "store")
    old = make(store, "dataset", "p", "dataset", {"records": 3})
    new = make(store, "dataset", "p", "dataset", {"records": 4})
    adapter = make(store, "adapter", "q", "adapter_lora", {"method": "sft", "steps": 2})
    listed = ftaas("data", "list", "p", "--json").json["data"]
    assert {row["digest"]: row["current"] for row in listed} == {old.digest: False, new.digest: True}
    assert ftaas("data", "list", "q", "--json").json["data"] == []
    assert [row["digest"] for row in ftaas("model", "list", "--json").json["models"]] == [adapter.digest]
    assert ftaas("data", "show", new.digest[:12], "--json").json["content"] == {"records": 4}
    assert adapter.digest in ftaas("model", "show", adapter.digest[:8]).stdout
    wrong = ftaas("data", "rows", adapter.digest)
    assert wrong.code == 2 and "is of kind adapter" in wrong.stderr
    assert ftaas("data", "show", "0" * 64).code == 2
    assert ftaas("model", "verify", adapter.digest, "--json").json["ok"] is True
    assert ftaas("store", "verify", "--json").json == {"ok": True, "artifacts": 3, "problems": []}
    adapter.file("file.txt").write_text("y", "utf-8")
    assert ftaas("model", "verify", adapter.digest).code == 1
    done = ftaas("store", "verify", "--json")
    assert done.code == 1 and done.json["problems"][0]["what"] == "a file was changed"
    (store.root / "drafts" / "left").mkdir(parents=True, exist_ok=True)
    assert ftaas("store", "gc", "--json").json["drafts"] == 0
    done = ftaas("store", "gc", "--keep-days", "0", "--json")
    assert done.json["drafts"] == 1 and [a["digest"] for a in done.json["artifacts"]] == [old.digest]


def test_bases_are_listed(ftaas: Ftaas) -> None:
    ids = [row["id"] for row in ftaas("model", "bases", "--json").json["bases"]]
    assert "embedded/tiny-causal" in ids
