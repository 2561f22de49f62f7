"""Rows that a model writes. The model here is a stand-in: a real HTTP server with scripted answers."""

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Ran, free_ports, rows

from ftaas_pipelines.data.synthesis import replies

Ftaas = Callable[..., Ran]
KEY = "sk-not-to-be-seen-1234567890"
SECRET_MAIL = "erika.mustermann@kunde.example"


class StandIn:
    """An OpenAI-compatible endpoint. `script` is given the request's body and the number of calls before.

    It returns the answer's text, or (status, headers, body) of a refusal.
    """

    def __init__(self, script: Callable[[dict[str, Any], int], Any]):
        self.script, self.asked, self.keys = script, list[dict[str, Any]](), list[str]()
        self._lock = threading.Lock()
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with stand_in._lock:
                    number = len(stand_in.asked)
                    stand_in.asked.append(body)
                    stand_in.keys.append(self.headers.get("Authorization", ""))
                said = stand_in.script(body, number)
                status, headers, answer = said if isinstance(said, tuple) else (200, {}, chat(said))
                data = json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def chat(text: str | None, finish: str = "stop") -> dict[str, Any]:
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": "big",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
    }  # fmt: skip


@pytest.fixture
def endpoint() -> Iterator[Callable[..., StandIn]]:
    made: list[StandIn] = []

    def start(script: Callable[[dict[str, Any], int], Any]) -> StandIn:
        made.append(StandIn(script))
        return made[-1]

    yield start
    for one in made:
        one.stop()


@pytest.fixture
def project(project_factory: Callable[..., Path]) -> Path:
    """40 rows, one with an e-mail address that the policy redacts; and a test source."""
    data = rows(40)
    data[3]["input"] = f"Write to {SECRET_MAIL} about X999."
    path = project_factory("codes", data=data)
    (path.parent / "data" / "test.jsonl").write_text(
        json.dumps({"prompt": "Which valve opens at dawn in hall nine?", "completion": "V9"}) + "\n", "utf-8"
    )
    text = path.read_text("utf-8").replace(
        "    - {name: rows, path: data/rows.jsonl}\n",
        "    - {name: rows, path: data/rows.jsonl}\n    - {name: held, path: data/test.jsonl, split: test}\n"
        "  privacy: {profile: gdpr}\n",
    )
    path.write_text(text, "utf-8")
    return path


WORDS = (
    "amber brisk cedar delta ember fjord grove haven ivory jolly karma lemon mango noble ocean pearl".split()
)


def new_pair(number: int) -> dict[str, str]:
    a, b, c = (WORDS[(number // 16**k) % 16] for k in range(3))
    return {
        "prompt": f"What does the {a} {b} {c} lamp {number} tell?",
        "completion": f"It tells {b} {number}.",
    }


def pairs_by_call(body: dict[str, Any], number: int) -> str:
    """Two new pairs by the request's seed, so that an answer does not depend on when it is asked for."""
    first = body["seed"] * 2
    return "\n".join(json.dumps(new_pair(first + k)) for k in range(2))


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def generate(ftaas: Ftaas, url: str, out: Path, *more: str, **environment: str) -> Ran:
    return ftaas(
        "data", "generate", "codes", "--source", "rows", "--count", "6", "--endpoint", url, "--model", "big",
        "--out", str(out), "--parallel", "1", "--json", *more, **environment,
    )  # fmt: skip


PRICES = ("--usd-per-1k-prompt-tokens", "0.01", "--usd-per-1k-completion-tokens", "0.02")


def test_only_what_is_new_and_whole_becomes_a_row(
    ftaas: Ftaas, project: Path, endpoint: Callable[..., StandIn]
) -> None:
    real = rows(40)[0]
    seen_question = f"{real['instruction']}\n\n{real['input']}"
    long = "please describe in your own words how the night shift has to restart the conveyor after an alarm"

    def script(body: dict[str, Any], number: int) -> Any:
        if number == 0:
            said = [
                new_pair(0),
                {"prompt": f"  {seen_question.upper()} ", "completion": "as a real row"},
                {"prompt": "which valve opens at dawn  in hall nine?", "completion": "as a test row"},
                {"prompt": new_pair(0)["prompt"], "completion": "as the first"},
                {"question": "no pair"},
                {"prompt": "A token?", "completion": "<|im_start|>system"},
                {"prompt": " ", "completion": "…"},
                {"prompt": long, "completion": "Like this."},
            ]
            return "Here you are:\n```json\n" + json.dumps(said) + "\n```"
        if number == 1:
            near = {"prompt": long + " again", "completion": "Like that."}
            return json.dumps({"examples": [near, {**new_pair(1), "completion": {"part": "pump"}}]})
        if number == 2:
            return "I would rather not."
        if number == 3:
            return 200, {}, chat(json.dumps(new_pair(2)) + '\n{"prompt": "cut', "length")
        if number == 4:
            return 400, {}, {"error": {"message": "secret text", "code": "content_filter"}}
        return pairs_by_call(body, number)

    stand_in = endpoint(script)
    out = project.parent / "data" / "new.jsonl"
    done = generate(ftaas, stand_in.url, out, *PRICES, "--api-key", "env:BIG_KEY", BIG_KEY=KEY)
    assert done.code == 0, done.stderr
    made = jsonl(out)
    assert done.json["rows"] == len(made) == 6
    assert done.json["dropped"] == {
        "cut_off": 1, "duplicate": 3, "empty": 1, "near_duplicate": 1, "not_a_pair": 1,
        "refused_by_endpoint": 1, "template_token": 1, "unparsable": 1,
    }  # fmt: skip
    assert json.loads(made[2]["completion"]) == {"part": "pump"}
    assert set(made[0]) == {"prompt", "completion", "_synthetic"}
    # An attempt's cost is shared by its rows; what brought none is in the total alone.
    assert made[0]["_synthetic"]["cost_usd"] == pytest.approx(0.002 / 2)
    assert done.json["cost_usd"] == pytest.approx(0.002 * (done.json["calls"] - 1))
    assert made[0]["_synthetic"]["generator"] == f"big@{stand_in.url[7:-3]}"
    assert re.fullmatch(r"self_instruct sha256:[0-9a-f]{64}", made[0]["_synthetic"]["prompt"])
    # The key went where it should and nowhere else; a person's address went nowhere.
    assert set(stand_in.keys) == {f"Bearer {KEY}"}
    everything = done.stdout + done.stderr + out.read_text("utf-8")
    assert KEY not in everything and "secret text" not in everything
    assert SECRET_MAIL not in json.dumps(stand_in.asked)
    # The ledger knows that rows went to this endpoint.
    entry = ftaas("ledger", "show", "--kind", "export", "--json")
    assert f"big@{stand_in.url[7:-3]}" in entry.stdout

    # It becomes a source by the lines that were printed, and every row is marked.
    lines = "".join(f"    {line}\n" for line in done.json["source_yaml"].splitlines())
    text = project.read_text("utf-8")
    project.write_text(text.replace("  privacy:", lines + "  privacy:"), "utf-8")
    assert ftaas("project", "validate", "codes").code == 0, ftaas("project", "validate", "codes").stderr
    assert done.json["source_yaml"].startswith("- name: new\n  path: data/new.jsonl\n  synthetic: true\n")
    again = generate(ftaas, stand_in.url, out)
    assert again.code == 2 and "already there" in again.stdout


def test_killed_and_run_again_gives_the_same_file(
    ftaas: Ftaas, project: Path, endpoint: Callable[..., StandIn], tmp_path: Path
) -> None:
    stall = threading.Event()
    reached = threading.Event()

    def stalling(body: dict[str, Any], number: int) -> Any:
        if number >= 7 and not stall.is_set():
            reached.set()
            stall.wait(60)
        return pairs_by_call(body, number)

    stand_in = endpoint(stalling)
    common = ["--parallel", "3", "--count", "40"]
    out = tmp_path / "killed" / "new.jsonl"
    arguments = [
        "data", "generate", "codes", "--source", "rows", "--endpoint", stand_in.url, "--model", "big",
        "--out", str(out), *common, "--json",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "ftaas_pipelines.cli.main", *arguments],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert reached.wait(120)
    busy = ftaas(*arguments)
    assert busy.code == 1 and "another process" in busy.stdout
    process.send_signal(signal.SIGKILL)
    process.wait()
    stall.set()
    part = out.with_name("new.jsonl.part")
    kept = part.read_bytes()
    part.write_bytes(kept + b'{"attempt": 99, "ro')  # as a kill in the middle of a write leaves it
    assert not out.exists() and len(kept.splitlines()) >= 2

    other = ftaas(*arguments[:-1], "--seed", "5", "--json")
    assert other.code == 2 and "another job" in other.stdout
    resumed = ftaas(*arguments)
    assert resumed.code == 0, resumed.stderr
    assert not part.exists()
    straight = generate(ftaas, stand_in.url, tmp_path / "straight.jsonl", *common)
    assert straight.code == 0
    assert out.read_bytes() == (tmp_path / "straight.jsonl").read_bytes()
    assert len({row["prompt"] for row in jsonl(out)}) == 40


def test_a_budget_holds_and_what_was_made_is_kept(
    ftaas: Ftaas, project: Path, endpoint: Callable[..., StandIn], tmp_path: Path
) -> None:
    stand_in, out = endpoint(pairs_by_call), tmp_path / "new.jsonl"
    assert generate(ftaas, stand_in.url, out, "--max-cost-usd", "1").code == 2  # no prices
    cheap = generate(ftaas, stand_in.url, out, *PRICES, "--max-cost-usd", "0.0045")
    assert cheap.code == 3 and "budget" in cheap.stdout and not out.exists()
    assert len(stand_in.asked) == 2
    fewer = generate(ftaas, stand_in.url, out, *PRICES, "--max-cost-usd", "0.0045", "--count", "4")
    assert fewer.code == 0 and fewer.json["cost_usd"] == pytest.approx(0.004)
    assert len(jsonl(out)) == 4 and len(stand_in.asked) == 2


@pytest.mark.parametrize(
    ("status", "headers", "code", "says"),
    [
        (401, {}, 2, "does not accept the key"),
        (404, {}, 2, "no such model"),
        (429, {"Retry-After": "600"}, 1, "Retry-After 600"),
        (400, {}, 2, "refuses every request"),
    ],
)
def test_an_endpoint_that_says_no(
    status: int, headers: dict[str, str], code: int, says: str,
    ftaas: Ftaas, project: Path, endpoint: Callable[..., StandIn], tmp_path: Path,
) -> None:  # fmt: skip
    refusal = {"error": {"message": "do not repeat me", "code": "some_code"}}
    done = generate(ftaas, endpoint(lambda *_: (status, headers, refusal)).url, tmp_path / "new.jsonl")
    assert done.code == code and says in done.stdout, done.stdout
    assert "do not repeat me" not in done.stdout + done.stderr


def test_rate_limits_empty_answers_and_silence(
    ftaas: Ftaas, project: Path, endpoint: Callable[..., StandIn], tmp_path: Path
) -> None:
    def busy_at_first(body: dict[str, Any], number: int) -> Any:
        if number in (0, 1):
            return 429, {"Retry-After": "0.1"}, {"error": {"message": "slow down"}}
        return pairs_by_call(body, number) if number > 2 else None

    done = generate(ftaas, endpoint(busy_at_first).url, tmp_path / "a.jsonl")
    assert done.code == 0 and done.json["dropped"] == {"empty_reply": 1} and done.json["rows"] == 6

    same = generate(ftaas, endpoint(lambda *_: json.dumps(new_pair(1))).url, tmp_path / "b.jsonl")
    assert same.code == 1 and "brought no row" in same.stdout and "20 duplicate" in same.stdout

    [port] = free_ports(1)
    nobody = generate(ftaas, f"http://127.0.0.1:{port}/v1", tmp_path / "c.jsonl")
    assert nobody.code == 1 and "cannot be reached" in nobody.stdout
    with_key = generate(ftaas, f"http://u:{KEY}@127.0.0.1:{port}/v1", tmp_path / "d.jsonl")
    bare_key = generate(ftaas, f"http://127.0.0.1:{port}/v1", tmp_path / "d.jsonl", "--api-key", KEY)
    assert with_key.code == bare_key.code == 2
    assert KEY not in with_key.stdout + with_key.stderr + bare_key.stdout + bare_key.stderr


def test_held_out_rows_are_no_seeds(
    ftaas: Ftaas, project: Path, home: Path, endpoint: Callable[..., StandIn], tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from assets.line import open_line
    from ftaas_pipelines import settings as configuration
    from ftaas_pipelines.data.synthesis import material

    stand_in = endpoint(pairs_by_call)
    held = generate(ftaas, stand_in.url, tmp_path / "new.jsonl", "--source", "held")
    assert held.code == 2 and "leak" in held.stdout and not stand_in.asked
    # Of a source that is shared out, only what the newest splits have in train is shown.
    line = open_line("codes", configuration.load())
    train = next(r for r in material.real_rows(line.project.dataset, line.landings) if "X107" in r.prompt)
    with line.store.create("splits", "0" * 64) as draft:
        pq.write_table(pa.table({"record_id": [train.record_id]}), draft.path / "train.parquet")
    line.store.set_head("codes", "splits", "0" * 64, {}, draft.made.digest)
    done = generate(ftaas, stand_in.url, tmp_path / "new.jsonl")
    assert done.code == 0, done.stdout
    assert {code for body in stand_in.asked for code in re.findall(r"X\d+", json.dumps(body))} == {"X107"}


def test_evolve_and_documents(
    ftaas: Ftaas, project: Path, endpoint: Callable[..., StandIn], tmp_path: Path
) -> None:
    def evolving(body: dict[str, Any], number: int) -> Any:
        last = body["messages"][-1]["content"]
        if "Request:" not in last:
            return "Sorry, no." if "lamp 2 " in last else f"An answer to: {last}"
        return new_pair(body["seed"])["prompt"].replace("?", " ?") if number else "The new request: what?"

    stand_in = endpoint(evolving)
    done = generate(ftaas, stand_in.url, tmp_path / "e.jsonl", "--method", "evolve", *PRICES)
    assert done.code == 0, done.stdout
    made = jsonl(tmp_path / "e.jsonl")
    assert all(row["completion"] == f"An answer to: {row['prompt']}" for row in made)
    assert done.json["dropped"]["copied_prompt"] == 1
    assert made[0]["_synthetic"]["cost_usd"] == pytest.approx(0.004)  # the rewriting and the answer
    assert re.match(r"evolve\.\w+ sha256:", made[0]["_synthetic"]["prompt"])
    shots = next(b["messages"] for b in stand_in.asked if "Request:" not in b["messages"][-1]["content"])
    assert [m["role"] for m in shots] == ["user", "assistant", "user", "assistant", "user"]

    folder = tmp_path / "manuals"
    folder.mkdir()
    (folder / "a.md").write_text(f"# Lamps\n\nAsk {SECRET_MAIL}.\n\n" + "word " * 900, "utf-8")
    (folder / "b.txt").write_text("The red lamp means stop.", "utf-8")
    reader = endpoint(pairs_by_call)
    read = ftaas(
        "data", "generate", "codes", "--from", "documents", "--documents", str(folder), "--count", "6",
        "--endpoint", reader.url, "--model", "big", "--out", str(tmp_path / "d.jsonl"), "--json",
    )  # fmt: skip
    assert read.code == 0, read.stdout
    sent = json.dumps(reader.asked)
    assert "The red lamp means stop." in sent and SECRET_MAIL not in sent
    assert jsonl(tmp_path / "d.jsonl")[0]["_synthetic"]["prompt"].startswith("from_document sha256:")


def test_labels_are_checked_and_voted(
    ftaas: Ftaas, project: Path, endpoint: Callable[..., StandIn], tmp_path: Path
) -> None:
    texts = ["refund my order", "where is my parcel", "hello there", "Refund  my order", "", "odd one"]
    file = tmp_path / "unlabelled.csv"
    file.write_text("id,note\n" + "".join(f"{i},{t}\n" for i, t in enumerate(texts)), "utf-8")

    def voting(body: dict[str, Any], number: int) -> Any:
        asked = body["messages"][0]["content"]
        if "refund" in asked:
            return ["Money", " **money**.", "Label: delivery"][body["seed"] % 3]
        if "parcel" in asked:
            return "delivery" if len(body["messages"]) == 3 else "I think it is about delivery"
        return "not money" if "hello" in asked else None

    stand_in = endpoint(voting)
    out = tmp_path / "labelled.jsonl"
    done = ftaas(
        "data", "label", "codes", "--file", str(file), "--column", "note", "--labels", "money,delivery",
        "--votes", "3", "--endpoint", stand_in.url, "--model", "big", "--out", str(out), *PRICES, "--json",
    )  # fmt: skip
    assert done.code == 0, done.stdout
    got = [(row["prompt"], row["completion"], row["agreement"]) for row in jsonl(out)]
    assert got == [("refund my order", "money", 0.6667), ("where is my parcel", "delivery", 1.0)]
    assert done.json["dropped"] == {"duplicate": 1, "empty": 1, "empty_reply": 1, "not_labelled": 1}
    # Three votes; each vote on the parcel and on the greeting was asked for once more.
    assert done.json["calls"] == len(stand_in.asked) == 3 + 6 + 6 + 3
    assert sum(r["_synthetic"]["cost_usd"] for r in jsonl(out)) == pytest.approx(0.002 * 9)
    strict = ftaas(
        "data", "label", "codes", "--file", str(file), "--column", "note", "--labels", "money,delivery",
        "--votes", "3", "--min-agreement", "0.9", "--endpoint", stand_in.url, "--model", "big",
        "--out", str(tmp_path / "strict.jsonl"), "--json",
    )  # fmt: skip
    assert strict.json["rows"] == 1 and strict.json["dropped"]["disagreement"] == 1
    missing = ftaas(
        "data", "label", "codes", "--file", str(file), "--labels", "a,b", "--endpoint", stand_in.url,
        "--model", "big", "--out", str(tmp_path / "none.jsonl"), "--json",
    )  # fmt: skip
    assert missing.code == 2 and "columns id, note" in missing.stdout


def test_a_label_is_named_or_it_is_not() -> None:
    labels = ["spam", "not spam", "C++"]
    said = {"Spam.": "spam", "`not spam`": "not spam", "The answer is: Spam": "spam", "c++": "C++"}
    assert {text: replies.label(text, labels) for text in said} == said
    assert [replies.label(text, labels) for text in ("no spam", "spam or not", "", "spam, not spam")] == [
        None
    ] * 4


@pytest.mark.slow
def test_our_own_gateway_writes_rows(ftaas: Ftaas, project: Path, home: Path, tmp_path: Path) -> None:
    """The tiny model's words are nonsense: what counts is that the whole way runs, marked and counted."""
    from serving_house import CAUSAL, approve, build, random_adapter

    from ftaas_pipelines import settings as configuration
    from ftaas_pipelines.governance.ledger import open_ledger
    from ftaas_pipelines.serving import deployments
    from ftaas_pipelines.store import Store

    settings = configuration.load()
    home.mkdir(parents=True, exist_ok=True)
    bento = build(home.resolve(), "codes", random_adapter(Store(settings.store_path), CAUSAL, 1), CAUSAL)
    release = deployments.release_to_serve(settings, "codes", "0" * 64, bento, str(CAUSAL), 64)
    approve(open_ledger(settings), release)
    file = tmp_path / "notes.jsonl"
    file.write_text("".join(json.dumps({"text": f"note {w}"}) + "\n" for w in WORDS[:6]), "utf-8")
    try:
        deployments.up(settings, "staging", release)
        done = ftaas(
            "data", "label", "codes", "--file", str(file), "--instruction", "Repeat the text.",
            "--endpoint", f"http://127.0.0.1:{settings.port_staging}/v1", "--model", "codes",
            "--out", str(tmp_path / "out.jsonl"), *PRICES, "--json",
        )  # fmt: skip
        evolved = generate(
            ftaas, f"http://127.0.0.1:{settings.port_staging}/v1", tmp_path / "evolved.jsonl", *PRICES,
            "--method", "evolve", "--count", "1", "--model", "codes", "--temperature", "1",
        )  # fmt: skip
    finally:
        deployments.stop(settings, "staging")
    assert evolved.code == 0, evolved.stdout
    assert jsonl(tmp_path / "evolved.jsonl")[0]["_synthetic"]["generator"].startswith("codes@127.0.0.1:")
    assert done.code == 0, done.stdout
    assert done.json["rows"] + sum(done.json["dropped"].values()) == 6
    assert all(row["_synthetic"]["cost_usd"] > 0 for row in jsonl(tmp_path / "out.jsonl"))
    assert done.json["prompt_tokens"] > 0 and done.json["cost_usd"] > 0
