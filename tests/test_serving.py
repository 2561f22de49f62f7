"""Promises of serving, shown with real processes on free ports and random adapters."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from callers import eventually
from serving_house import CAUSAL as BASE
from serving_house import SEQ2SEQ, House, build, random_adapter, whole_model

from ftaas_pipelines.errors import FtaasError, InputInvalid, Refused
from ftaas_pipelines.serving import answers, asking, deployments
from ftaas_pipelines.serving.desired import Folder, Trial
from ftaas_pipelines.serving.routing import bucket
from ftaas_pipelines.serving.smoke import Question
from ftaas_pipelines.store import Store

ENV = "staging"
QUESTION = [{"role": "user", "content": "What does fault E42 mean?"}]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    made = House.at(tmp_path_factory.mktemp("home"))
    made.add("alpha", BASE, *(random_adapter(made.store, BASE, seed) for seed in (1, 2, 3)))
    made.add("beta", SEQ2SEQ, whole_model(made.store, SEQ2SEQ))
    try:
        made.up(made.releases["alpha"][0])
        yield made
    finally:
        made.close()


def test_the_same_inputs_make_the_same_bento(house: House, tmp_path: Path) -> None:
    first = house.releases["alpha"][0]
    store = Store(house.settings.store_path)
    adapter = store.get(first.adapter)
    shutil.copytree(adapter.path, tmp_path / "store" / "artifacts" / "adapter" / adapter.digest)
    again = build(tmp_path, "alpha", adapter, BASE, hash_seed=7)
    assert again.digest == first.bento
    assert list(again.problems()) == []
    # Serving it wrote nothing into it.
    assert list(store.get(first.bento).problems()) == []


def test_openai_client_gets_what_the_model_says(house: House) -> None:
    from ftaas_pipelines.inference.decoding import Model

    release, client = house.releases["alpha"][0], house.client
    expected = Model(BASE, {"alpha": Path(release.adapter_path)}, threads=1).generate(
        [QUESTION], "alpha", max_new_tokens=24
    )[0]
    assert [m.id for m in client.models.list()] == ["alpha"]
    answer = client.chat.completions.create(
        model="alpha", messages=QUESTION, extra_body={"return_token_ids": True}
    )
    choice, usage = answer.choices[0], answer.usage
    assert choice.message.content == expected.text
    assert choice.model_extra and choice.model_extra["token_ids"] == expected.token_ids
    assert choice.finish_reason == expected.finish_reason
    assert usage and usage.prompt_tokens == expected.prompt_tokens
    assert usage.completion_tokens == len(expected.token_ids)
    assert answer.model_extra and answer.model_extra["adapter_digest"] == release.adapter
    assert answer.model_extra["release"] == release.release

    options = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(model="alpha", messages=QUESTION, stream=True, stream_options=options)
    )
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected.text
    assert chunks[-2].choices[0].finish_reason == expected.finish_reason
    assert chunks[-1].usage and chunks[-1].usage.completion_tokens == len(expected.token_ids)

    text = client.completions.create(model="alpha", prompt=QUESTION[0]["content"])
    assert text.choices[0].text == expected.text
    cut = client.chat.completions.create(model="alpha", messages=QUESTION, max_tokens=1)
    assert cut.usage and (cut.usage.completion_tokens, cut.choices[0].finish_reason) == (1, "length")
    draws = [
        client.chat.completions.create(model="alpha", messages=QUESTION, temperature=1.5, seed=seed)
        for seed in (5, 5, 6)
    ]
    texts = [d.choices[0].message.content for d in draws]
    assert texts[0] == texts[1] != texts[2]

    found = answers.response(house.settings.home, answer.id)
    assert found and (found["release"], found["adapter_digest"]) == (release.release, release.adapter)
    asked = asking.ask(house.settings, ENV, "alpha", QUESTION[0]["content"])
    assert asked["answer"] == expected.text and asked["token_ids"] == expected.token_ids


def test_openais_client_makes_every_call(house: House) -> None:
    """Those of structured answers, tools and streamed log probabilities are in `test_structured.py`."""
    client, prompt = house.client, QUESTION[0]["content"]
    assert client.models.retrieve("alpha").id == "alpha"
    whole = client.completions.create(model="alpha", prompt=prompt, logprobs=2)
    text, scores = whole.choices[0].text, whole.choices[0].logprobs
    assert scores and scores.tokens and scores.token_logprobs and scores.top_logprobs
    assert "".join(scores.tokens).startswith(text) and max(scores.token_logprobs) <= 0
    assert all(len(likeliest) == 2 for likeliest in scores.top_logprobs)
    pieces = client.completions.create(model="alpha", prompt=prompt, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == text

    stop = text[1:3]
    wanted = text[: text.index(stop)]
    for cut in (stop, ["never said", stop]):
        answer = client.chat.completions.create(model="alpha", messages=QUESTION, stop=cut).choices[0]
        assert (answer.message.content, answer.finish_reason) == (wanted, "stop")
        assert client.completions.create(model="alpha", prompt=prompt, stop=cut).choices[0].text == wanted
    likeliest = client.chat.completions.create(
        model="alpha", messages=QUESTION, temperature=1.5, top_p=1e-6, seed=1
    )
    assert likeliest.choices[0].message.content == text
    several = client.chat.completions.create(
        model="alpha", messages=QUESTION, temperature=1.5, seed=5, n=3, max_tokens=8
    )
    assert [choice.index for choice in several.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in several.choices}) == 3
    assert several.usage and several.usage.completion_tokens <= 24
    scored = client.chat.completions.create(model="alpha", messages=QUESTION, logprobs=True).choices[0]
    assert scored.logprobs and "".join(s.token for s in scored.logprobs.content or []).startswith(text)

    told = {"response_id": several.id, "thumb": "up", "comment": "as it should be"}
    deadline = time.monotonic() + 10
    while True:  # an answer is on record soon after it was given
        try:
            said: Any = client.post("/feedback", cast_to=object, body=told)
            break
        except openai.NotFoundError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert said["response_id"] == several.id


@pytest.mark.parametrize(
    "extra",
    [
        {"frequency_penalty": 0.5},
        {"presence_penalty": -1},
        {"logit_bias": {"1": 5}},
        {"best_of": 4},
        {"top_k": 3},
        {"repetition_penalty": 1.2},
        {"modalities": ["text", "audio"]},
        {"function_call": "auto"},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_what_is_not_done_is_refused_and_what_would_do_nothing_is_let_pass(
    house: House, extra: dict[str, Any]
) -> None:
    asked: dict[str, Any] = {"model": "alpha", "messages": QUESTION, "max_tokens": 1}
    with pytest.raises(openai.BadRequestError, match=f"'{next(iter(extra))}' is not supported"):
        house.client.chat.completions.create(**asked, extra_body=extra)
    nothing = {"frequency_penalty": 0, "presence_penalty": 0.0, "best_of": 1, "top_k": -1}
    nothing |= {"repetition_penalty": 1.0, "modalities": ["text"], "logit_bias": None}
    assert house.client.chat.completions.create(**asked, extra_body=nothing).id


def test_errors_and_pages(house: House) -> None:
    client = house.client
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=QUESTION)
    assert unknown.value.code == "model_not_found" and "alpha" in str(unknown.value)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="alpha", messages=QUESTION, temperature=9)
    with pytest.raises(openai.BadRequestError) as long:
        client.chat.completions.create(model="alpha", messages=[{"role": "user", "content": "long " * 3000}])
    assert long.value.code == "context_length_exceeded"
    for body in ('{"model": "alpha"', "{}", '{"model": "alpha", "messages": []}'):
        got = httpx.post(f"{house.url}/v1/chat/completions", content=body)
        assert got.status_code == 400 and got.json()["error"]["type"] == "invalid_request_error"
    assert httpx.get(f"{house.url}/v1/nowhere").json()["error"]["code"] == "not_found"
    assert httpx.get(f"{house.url}/nowhere").status_code == 404
    assert httpx.get(f"{house.url}/livez").status_code == httpx.get(f"{house.url}/readyz").status_code == 200
    metrics = httpx.get(f"{house.url}/metrics").text
    assert 'ftaas_requests_total{code="",project="alpha"' in metrics and "ftaas_tokens_total" in metrics
    assert 'ftaas_engine_requests_total{project="alpha"' in metrics
    docs = httpx.get(f"{house.url}/docs").text
    assert "https://" not in docs
    assert httpx.get(f"{house.url}/swagger/swagger-ui-bundle.js").status_code == 200
    assert "/v1/chat/completions" in httpx.get(f"{house.url}/openapi.json").json()["paths"]


def test_a_killed_engine_comes_back(house: House) -> None:
    killed = house.folder.state()["engine_pid"]
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: house.folder.state()["engine_pid"] not in (None, killed))
    assert house.client.chat.completions.create(model="alpha", messages=QUESTION).id


def test_switching_and_rolling_back_loses_no_request(house: House) -> None:
    seen: set[str] = set()
    failed: list[str] = []
    over = threading.Event()

    def ask() -> None:
        client = house.client
        while not over.is_set():
            try:
                answer = client.chat.completions.create(model="alpha", messages=QUESTION)
                seen.add((answer.model_extra or {})["release"])
            except openai.OpenAIError as error:
                failed.append(repr(error))
            time.sleep(0.1)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    first, second, third = house.releases["alpha"]
    try:
        assert deployments.up(house.settings, ENV, second).state == "running"
        before = house.folder.desired()
        assert deployments.rollback(house.settings, ENV, "alpha").pinned
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert failed == []
    assert seen == {first.release, second.release}
    assert before.projects["alpha"].history == [first]
    with pytest.raises(Refused, match="pinned"):
        deployments.up(house.settings, ENV, third)
    deployments.unpin(house.settings, ENV, "alpha")


def test_another_release_is_tried_beside_the_one_that_serves(house: House) -> None:
    """Callers of an A/B test stay where they fell; a shadow is answered for the log alone."""
    first, _, third = house.releases["alpha"]
    house.up(first)

    def ask(user: str) -> dict[str, Any]:
        answer = house.client.chat.completions.create(model="alpha", messages=QUESTION, user=user)
        return {"id": answer.id, **(answer.model_extra or {})}

    users = [f"user {i}" for i in range(40)]
    deployments.try_beside(house.settings, ENV, Trial(release=third, kind="ab", percent=50))
    fell = {user: ask(user)["release"] for user in users}
    assert set(fell.values()) == {first.release, third.release}
    assert {user: ask(user)["release"] for user in users} == fell
    share = {user: bucket("alpha", third.release, user) for user in users}
    assert all((share[user] < 0.5) == (fell[user] == third.release) for user in users)
    with pytest.raises(Refused, match="serves already"):
        deployments.try_beside(house.settings, ENV, Trial(release=first, kind="ab", percent=50))

    deployments.try_beside(house.settings, ENV, Trial(release=third, kind="canary", percent=100))
    assert ask("anybody")["release"] == third.release

    deployments.try_beside(house.settings, ENV, Trial(release=third, kind="shadow", percent=100))
    given = ask("anybody")
    assert given["release"] == first.release

    def shadowed() -> bool:
        rows = answers.newest(house.folder.answers, 5)
        return any(r["shadow_of"] == given["id"] and r["release"] == third.release for r in rows)

    eventually(shadowed)
    stranger = third.model_copy(update={"release": "cd" * 32})
    with pytest.raises(FtaasError, match="is not in the ledger"):
        deployments.try_beside(house.settings, ENV, Trial(release=stranger, kind="canary", percent=1))
    assert deployments.trial(house.settings, ENV, "alpha") is None
    assert ask("anybody")["release"] == first.release


def test_a_release_answers_nobody_before_its_smoke_questions_went_well(house: House) -> None:
    """Another token in one answer: the old release goes on, and the reason names the question."""
    from ftaas_pipelines.inference.decoding import Model

    first, second, _ = house.releases["alpha"]
    house.up(first)
    model = Model(BASE, {"second": Path(second.adapter_path)})
    prompts = [[{"role": "user", "content": f"What does E4{n} mean?"}] for n in range(4)]
    said = [a.token_ids for a in model.generate(prompts, "second", max_new_tokens=12)]
    good = [Question(messages=p, max_tokens=12, token_ids=t) for p, t in zip(prompts, said, strict=True)]
    bad = [*good[:3], good[3].model_copy(update={"token_ids": [5, *said[3][1:]]})]
    seen: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            answer = house.http.post("/v1/chat/completions", json={"model": "alpha", "messages": QUESTION})
            seen.add(answer.json()["release"])

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        with pytest.raises(FtaasError, match="1 of 4 smoke questions failed; question 4: other tokens"):
            deployments.up(house.settings, ENV, second, questions=bad)
    finally:
        over.set()
        watching.join()
    assert seen == {first.release} and deployments.current(house.settings, ENV, "alpha") == first
    with pytest.raises(FtaasError, match="question 4"):
        trial = Trial(release=second, kind="canary", percent=50)
        deployments.try_beside(house.settings, ENV, trial, questions=bad)
    assert deployments.up(house.settings, ENV, second, questions=good).state == "running"
    house.up(first)


def test_a_tampered_adapter_is_refused_and_the_old_release_stays(house: House) -> None:
    first, _, third = house.releases["alpha"]
    weights = Path(third.adapter_path) / "adapter_model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    try:
        with pytest.raises(FtaasError, match="a file was changed"):
            deployments.up(house.settings, ENV, third)
    finally:
        weights.write_bytes(sound)
    assert deployments.current(house.settings, ENV, "alpha") == first
    assert asking.ask(house.settings, ENV, "alpha", "still there?")["release"] == first.release


def test_two_bases_share_an_environment_and_its_supervisor_may_die(house: House) -> None:
    settings = house.settings
    deployments.up(settings, ENV, house.releases["beta"][0])
    assert [m.id for m in house.client.models.list()] == ["alpha", "beta"]
    assert len(house.folder.state()["engines"]) == 2
    asked = {name: asking.ask(settings, ENV, name, "who?")["adapter_digest"] for name in ("alpha", "beta")}
    assert asked == {"alpha": house.releases["alpha"][0].adapter, "beta": house.releases["beta"][0].adapter}
    assert httpx.get(f"{house.url}/metrics").text.count("# TYPE ftaas_engine_requests_total counter") == 1

    assert deployments.stop(settings, ENV, "alpha") == ["alpha"]
    eventually(lambda: [e["projects"] for e in house.folder.state()["engines"]] == [["beta"]])
    with pytest.raises(openai.NotFoundError):
        house.client.chat.completions.create(model="alpha", messages=QUESTION)

    supervisor = house.folder.supervisor()
    assert supervisor is not None
    os.kill(supervisor, signal.SIGKILL)
    eventually(lambda: house.processes() == [])
    assert [d.state for d in deployments.deployments(settings)] == ["stopped"]
    assert deployments.start(settings, ENV) and not deployments.start(settings, ENV)
    assert deployments.up(settings, ENV, house.releases["beta"][0]).state == "running"
    deployments.halt(settings, ENV)
    eventually(lambda: house.processes() == [])
    environ = {
        **os.environ,
        "FTAAS_HOME": str(settings.home),
        "FTAAS_PORT_STAGING": str(settings.port_staging),
        "FTAAS_PORT_PRODUCTION": str(settings.port_production),
    }
    command = [sys.executable, "-m", "ftaas_pipelines.cli.main", "deployment", "up", "--json"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout)["deployments"]
    assert (found["project"], found["env"], found["state"]) == ("beta", ENV, "running")
    assert asking.ask(settings, ENV, "beta", "who?")["release"] == house.releases["beta"][0].release
    assert deployments.current(settings, ENV, "beta") == house.releases["beta"][0]
    assert deployments.stop(settings, ENV) == ["beta"]
    eventually(lambda: house.processes() == [], within_s=5)
    assert deployments.deployments(settings) == []


def test_a_port_in_use_makes_nothing(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = replace(house.settings, port_production=taken.getsockname()[1])
        with pytest.raises(InputInvalid, match="FTAAS_PORT_PRODUCTION"):
            deployments.up(settings, "production", house.releases["alpha"][0])
    assert not Folder(settings.home, "production").path.exists()
