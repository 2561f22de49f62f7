"""What clients see when the engine, the gateway or the disk goes away under load.

Every request ends. It ends with the right answer, with an error that says when to come again, or, where the
gateway itself was killed, with a broken connection: never with another's answer, or half of one as a whole.
"""

import contextlib
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from callers import eventually
from serving_house import CAUSAL, House, random_adapter

from ftaas_pipelines.serving import answers, deployments

pytestmark = pytest.mark.slow

PATH = "/v1/chat/completions"
QUESTIONS = [f"Line {i} shows E{400 + 7 * i}. What now?" for i in range(6)]
BROKEN = "broken"  # a connection that ended; everything else is a status


def asked(question: str, **more: Any) -> dict[str, Any]:
    return {"model": "alpha", "messages": [{"role": "user", "content": question}], **more}


@dataclass(frozen=True)
class Ended:
    """How one request ended. `at`: when, monotonic seconds."""

    at: float
    status: int | str
    id: str = ""


@dataclass
class Load:
    """Clients that ask without pause; what they got is held against the right answers."""

    url: str
    right: dict[str, str]
    ended: list[Ended] = field(default_factory=list[Ended])
    wrong: list[str] = field(default_factory=list[str])
    over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def on(self, patient: bool = True) -> Iterator["Load"]:
        works = [self._whole, self._whole, self._stream, self._stream]
        works += [self._patient] if patient else []
        threads = [threading.Thread(target=self._go_on, args=(work, i)) for i, work in enumerate(works)]
        for each in threads:
            each.start()
        try:
            yield self
        finally:
            self.over.set()
            for each in threads:
                each.join(90)
            assert not any(each.is_alive() for each in threads), "a request hangs"

    def answered_since(self, at: float) -> int:
        return sum(1 for e in self.ended if e.status == 200 and e.at > at)

    def statuses(self, since: float = 0.0) -> set[int | str]:
        return {e.status for e in self.ended if e.at > since}

    def _go_on(self, work: Callable[[httpx.Client, str], Ended], number: int) -> None:
        with httpx.Client(base_url=self.url, timeout=60, trust_env=False) as client:
            while not self.over.is_set():
                question = QUESTIONS[number % len(QUESTIONS)]
                number += 1
                try:
                    self.ended.append(work(client, question))
                except (httpx.TransportError, openai.APIConnectionError):
                    self.ended.append(Ended(time.monotonic(), BROKEN))
                except Exception as error:
                    self.wrong.append(f"{type(error).__name__}: {error}")
                if self.ended and self.ended[-1].status != 200:
                    time.sleep(0.05)

    def _whole(self, client: httpx.Client, question: str) -> Ended:
        answer = client.post(PATH, json=asked(question))
        if answer.status_code != 200:
            return self._refused(answer.status_code, answer.json(), answer.headers.get("retry-after"))
        body = answer.json()
        return self._answered(body["id"], question, body["choices"][0]["message"]["content"])

    def _stream(self, client: httpx.Client, question: str) -> Ended:
        said, id, done, finish = "", "", False, None
        with client.stream("POST", PATH, json=asked(question, stream=True)) as answer:
            if answer.status_code != 200:
                answer.read()
                return self._refused(answer.status_code, answer.json(), answer.headers.get("retry-after"))
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    chunk = json.loads(line[6:])
                    if "error" in chunk:  # the head was sent before: the error comes as an event
                        return self._refused(503, chunk, "in the middle")
                    id = chunk["id"]
                    for choice in chunk["choices"]:
                        said += choice["delta"].get("content") or ""
                        finish = choice["finish_reason"] or finish
        if not (done and finish):
            self.wrong.append(f"half of an answer, called whole: {said!r}")
        return self._answered(id, question, said)

    def _patient(self, _: httpx.Client, question: str) -> Ended:
        """OpenAI's client, which tries again by itself."""
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=60, timeout=60) as client:
            answer = client.chat.completions.create(**asked(question))
        return self._answered(answer.id, question, answer.choices[0].message.content or "")

    def _answered(self, id: str, question: str, said: str) -> Ended:
        if said != self.right[question]:
            self.wrong.append(f"another's answer: {said!r} to {question!r}")
        return Ended(time.monotonic(), 200, id)

    def _refused(self, status: int, body: Any, retry: str | None) -> Ended:
        error = body["error"]
        if status not in (502, 503) or not retry or not error["message"] or not error["code"]:
            self.wrong.append(f"{status} {retry} {body}")
        return Ended(time.monotonic(), status)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House.at(tmp_path_factory.mktemp("home"))
    made.add("alpha", CAUSAL, random_adapter(made.store, CAUSAL, 1))
    try:
        made.up(made.releases["alpha"][0])
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def right(house: House) -> dict[str, str]:
    """What each question gets when nothing is wrong."""
    said = {
        q: house.http.post(PATH, json=asked(q)).json()["choices"][0]["message"]["content"] for q in QUESTIONS
    }
    assert len(set(said.values())) > 3, "answers that cannot be told apart prove nothing"
    return said


def missing(folder: Path, ended: list[Ended], before: float = float("inf")) -> list[str]:
    """Answers that were given and are not on record."""
    given = [e.id for e in ended if e.status == 200 and e.at < before]
    assert given
    return [id for id in given if answers.find(folder, id) is None]


def test_the_engine_is_killed(house: House, right: dict[str, str]) -> None:
    with Load(house.url, right).on() as load:
        eventually(lambda: load.answered_since(0) > 20)
        killed = time.monotonic()
        os.kill(house.folder.state()["engine_pid"], signal.SIGKILL)
        eventually(lambda: 503 in load.statuses())
        away = eventually(lambda: load.answered_since(killed + 1.0) > 20)
    print(f"\nanswers again {away + 1:.1f} s after the kill")
    assert load.wrong == [] and load.statuses() == {200, 503}
    eventually(lambda: missing(house.folder.answers, load.ended) == [], within_s=10)


def test_the_gateway_is_killed(house: House, right: dict[str, str]) -> None:
    with Load(house.url, right).on() as load:
        eventually(lambda: load.answered_since(0) > 20)
        time.sleep(1.0)
        supervisor = house.folder.supervisor()
        assert supervisor is not None
        killed = time.monotonic()
        os.kill(supervisor, signal.SIGKILL)
        eventually(lambda: BROKEN in load.statuses())
        eventually(lambda: house.processes() == [])
        assert deployments.start(house.settings, house.environment)
        eventually(lambda: load.answered_since(killed + 1.0) > 20)
    assert load.wrong == [] and load.statuses() <= {200, 503, BROKEN}
    assert load.statuses(since=load.ended[-1].at - 0.2) == {200}
    # What was written down outlived it: all but what was answered in its last moment.
    assert missing(house.folder.answers, load.ended, before=killed - 0.5) == []


def test_the_disk_is_full(house: House, right: dict[str, str]) -> None:
    """No file of the gateway's can grow: not the log, not its state. Then an engine is killed, too."""
    supervisor = house.folder.supervisor()
    assert supervisor is not None
    before = resource.prlimit(supervisor, resource.RLIMIT_FSIZE)

    def disk(full: bool) -> None:
        resource.prlimit(supervisor, resource.RLIMIT_FSIZE, (0, before[1]) if full else before)

    def says(line: str) -> bool:
        return line in house.http.get("/metrics").text

    with Load(house.url, right).on() as load:
        eventually(lambda: load.answered_since(0) > 10)
        full = time.monotonic()
        disk(full=True)
        try:
            eventually(lambda: says("ftaas_inference_log_failing 1.0"), within_s=15)
            eventually(lambda: load.answered_since(full + 1.0) > 20)
            assert load.statuses(since=full) == {200}, "answers went on"
            killed = time.monotonic()
            os.kill(house.folder.state()["engine_pid"], signal.SIGKILL)
            eventually(lambda: 503 in load.statuses())
            time.sleep(2.0)
            assert house.folder.supervisor() == supervisor, "the gateway lives on"
        finally:
            disk(full=False)
        eventually(lambda: load.answered_since(killed + 2.0) > 20)
        eventually(lambda: says("ftaas_inference_log_failing 0.0"), within_s=15)
        assert says("ftaas_unlogged 0.0")
    assert load.wrong == [] and load.statuses() == {200, 503}
    eventually(lambda: missing(house.folder.answers, load.ended) == [], within_s=10)


def test_a_normal_stop_under_load_loses_nothing(house: House, right: dict[str, str]) -> None:
    with Load(house.url, right).on(patient=False) as load:
        eventually(lambda: load.answered_since(0) > 20)
        deployments.halt(house.settings, house.environment)
        load.over.set()
    assert load.wrong == [] and load.statuses() <= {200, 503, BROKEN}
    assert missing(house.folder.answers, load.ended) == []
