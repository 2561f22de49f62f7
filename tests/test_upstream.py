"""A server of somebody else's behind the endpoint: vLLM's protocol, spoken by a stand-in."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from callers import eventually
from openai_server import KEY, OpenAIServer
from pydantic import ValidationError
from serving_house import CAUSAL, House, random_adapter

from ftaas_pipelines.projects.guard import GuardRules
from ftaas_pipelines.projects.upstream import Upstream
from ftaas_pipelines.serving import answers, asking, deployments, upstream_server
from ftaas_pipelines.serving.desired import ReleaseToServe, Terms

QUESTION: Any = [{"role": "user", "content": "Whom do I write to?"}]
GUARD = Terms(guard=GuardRules.model_validate({"output": {"personal_data": "redact"}}))


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as started:
        yield started


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, server: OpenAIServer) -> Iterator[House]:
    made = House.at(tmp_path_factory.mktemp("home"))
    made.add("alpha", CAUSAL, *(random_adapter(made.store, CAUSAL, seed) for seed in (1, 2)))
    environment = pytest.MonkeyPatch()
    environment.setenv("VLLM_KEY", KEY)
    try:
        deployments.up(made.settings, "staging", behind(made, server), terms=GUARD)
        yield made
    finally:
        made.close()
        environment.undo()


def behind(house: House, server: OpenAIServer, number: int = 0, **changes: Any) -> ReleaseToServe:
    values = {"url": server.url, "key_variable": "VLLM_KEY", "timeout_s": 5, **changes}
    return house.releases["alpha"][number].model_copy(
        update={"upstream": Upstream.model_validate(values), "max_new_tokens": 24}
    )


def ask(house: House, **more: Any) -> Any:
    return house.client.chat.completions.create(model="alpha", messages=QUESTION, **more)


def test_an_answer_of_another_server_is_governed_as_our_own(house: House, server: OpenAIServer) -> None:
    release = house.releases["alpha"][0]
    [(name, path)] = server.adapters.items()
    assert name.startswith(f"staging-{release.release[:32]}-") and Path(path) == Path(release.adapter_path)
    answer = ask(house)
    assert answer.choices[0].message.content == f"{name} says: write to [EMAIL]"
    assert (answer.model, answer.usage.total_tokens) == ("alpha", 12) and answer.id.startswith("chatcmpl-")
    assert answer.to_dict()["adapter_digest"] == release.adapter
    asked = server.asked[-1]
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == (name, 0.0, 24)  # as evaluated
    ask(house, max_tokens=999, temperature=0.5)
    assert (server.asked[-1]["max_tokens"], server.asked[-1]["temperature"]) == (24, 0.5)
    chunks = list(ask(house, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text.strip() == f"{name} says: write to [EMAIL]" and chunks[-1].usage.total_tokens == 12

    def row() -> Any:
        return answers.find(house.folder.answers, answer.id)

    eventually(lambda: row() is not None)
    assert row()["adapter_digest"] == release.adapter and row()["completion_tokens"] == 5
    assert row()["guard"][0]["kind"] == "email"


@pytest.mark.parametrize("failure", [503, 429, 0], ids=["busy", "limited", "closed"])
def test_what_was_not_taken_is_asked_again(house: House, server: OpenAIServer, failure: int) -> None:
    server.failing.extend([failure])
    asked = len(server.asked)
    assert ask(house).choices[0].finish_reason == "stop"
    assert len(server.asked) == asked + 2


def test_what_it_says_of_keys_and_models_is_not_for_callers(house: House, server: OpenAIServer) -> None:
    for status in (401, 404, 500):
        server.failing.extend([status, status])
        with pytest.raises(openai.InternalServerError) as refused:
            ask(house)
        assert refused.value.status_code == 502 and KEY not in str(refused.value)
        server.failing.clear()
    server.failing.append(400)
    with pytest.raises(openai.BadRequestError):
        ask(house)
    assert ask(house).choices  # a refusal is no failure for the breaker


def test_another_servers_code_is_no_label_of_ours(house: House, server: OpenAIServer) -> None:
    """It may be a number, or a sentence: metrics and logs name only codes."""
    for said in (400, "a sentence, with a secret in it", "a" * 41):
        server.failing.append(400)
        server.code = said
        with pytest.raises(openai.BadRequestError) as refused:
            ask(house)
        assert refused.value.code == "engine_failed"
    assert "sentence" not in house.http.get("/metrics").text


def test_ftaas_ask_and_smoke_do_without_tokens(house: House) -> None:
    found = asking.ask(house.settings, "staging", "alpha", "Whom do I write to?")
    assert found["token_ids"] is None and found["answer"].endswith("[EMAIL]")


def test_a_server_that_hangs_is_given_up_and_then_left_alone(house: House, server: OpenAIServer) -> None:
    release = behind(house, server, timeout_s=0.3)
    deployments.up(house.settings, "staging", release)
    server.slow_s = 3.0
    codes: list[str] = []
    try:
        for _ in range(7):
            with pytest.raises(openai.InternalServerError) as refused:
                ask(house)
            codes.append(str(refused.value.code))
    finally:
        server.slow_s = 0.0
    assert codes[:5] == ["engine_gone"] * 5 and codes[5:] == ["engine_resting"] * 2
    deployments.up(house.settings, "staging", behind(house, server))
    assert ask(house).choices


def test_a_restarted_server_is_told_its_adapters_again(house: House, server: OpenAIServer) -> None:
    server.stop()
    with pytest.raises(openai.InternalServerError):
        ask(house)
    eventually(lambda: house.http.get("/readyz").status_code == 503)
    server.start()
    eventually(lambda: bool(server.adapters))
    eventually(lambda: house.http.get("/readyz").status_code == 200)
    eventually(lambda: ask(house).choices[0].finish_reason == "stop")


def test_a_new_release_is_registered_beside_the_old_which_then_goes(
    house: House, server: OpenAIServer
) -> None:
    before = set(server.adapters)
    second = behind(house, server, 1)
    deployments.up(house.settings, "staging", second)
    assert second.release[:32] in ask(house).choices[0].message.content
    eventually(lambda: not before & set(server.adapters))
    deployments.rollback(house.settings, "staging", "alpha")
    assert house.releases["alpha"][0].release[:32] in ask(house).choices[0].message.content
    deployments.unpin(house.settings, "staging", "alpha")


def test_what_cannot_be_had_there_is_not_deployed(house: House, server: OpenAIServer) -> None:
    serving = ask(house).choices[0].message.content
    weights = Path(house.releases["alpha"][1].adapter_path) / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    for release, said in (
        (behind(house, server, adapters="fixed", model="gpt-9"), "has no model 'gpt-9'; it has base"),
        (behind(house, server, adapters_path="/nowhere"), "does not take the adapter (404)"),
        (behind(house, server, key_variable="NO_SUCH_KEY"), "NO_SUCH_KEY of the supervisor holds no key"),
        (behind(house, server, url="http://127.0.0.1:9"), "cannot be asked (ConnectError"),
        (behind(house, server, 1), "adapter_model.safetensors"),
    ):
        with pytest.raises(Exception, match=said.split("(")[0]):
            deployments.up(house.settings, "staging", release, wait_s=30)
        assert ask(house).choices[0].message.content == serving
    fixed = behind(house, server, adapters="fixed", model="base")
    deployments.up(house.settings, "staging", fixed)
    assert ask(house).choices[0].message.content.startswith("base says")
    eventually(lambda: not server.adapters)  # what was registered is not left behind


def test_the_key_stands_nowhere(house: House) -> None:
    for file in house.settings.home.rglob("*"):
        if file.is_file() and file.stat().st_size < 1 << 20:
            assert KEY.encode() not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"url": "vllm:8000"}, "http://host:port"),
        ({"url": "http://a/v1"}, "leave /v1 out"),
        ({"url": "http://u:p@a"}, "key_variable"),
        ({"url": "http://a", "adapters": "fixed"}, "'model' is named"),
        ({"url": "http://a", "model": "m"}, "'model' is named"),
        ({"url": "http://a", "attempts": 0}, "greater than or equal to 1"),
    ],
)
def test_a_wrong_section_says_what_to_write(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Upstream.model_validate(values)


def test_names_keep_environments_apart() -> None:
    """Two environments may share a server: one must not unload what the other serves."""
    release = ReleaseToServe.model_validate(
        {
            **dict.fromkeys(
                ("project", "bento", "bento_path", "adapter_path", "base", "base_path", "runtime", "family"),
                "x",
            ),
            "release": "a" * 64,
            "adapter": "b" * 64,
            "max_new_tokens": 8,
            "upstream": json.loads('{"url": "http://a"}'),
        }
    )
    names: set[str] = set()
    for environment in ("staging", "production"):
        engine = upstream_server.UpstreamServer([release], {})
        engine._environment = environment  # pyright: ignore[reportPrivateUsage]
        names.add(engine.name(release))
    assert len(names) == 2
