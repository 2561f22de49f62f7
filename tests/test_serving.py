"""Promises of serving, shown with real processes on free ports and a random adapter."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from ftaas_pipelines.errors import FtaasError, InputInvalid, Refused
from ftaas_pipelines.inference import bases
from ftaas_pipelines.serving import deployments, runtime
from ftaas_pipelines.serving.desired import Folder, ReleaseToServe
from ftaas_pipelines.serving.inputs import BentoInputs
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import Artifact, Store, canonical, digest_of

ENV = "staging"
QUESTION = [{"role": "user", "content": "What does fault E42 mean?"}]
BASE = bases.resolve("embedded/tiny-causal", "main", Path())
SEQ2SEQ = bases.resolve("embedded/tiny-t5", "main", Path())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def random_adapter(store: Store, base: Path, seed: int) -> Artifact:
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(bases.load_model(base), config)
    with store.create("adapter", digest_of(["adapter", str(base), seed])) as draft:
        model.save_pretrained(draft.path)
        (draft.path / "README.md").unlink(missing_ok=True)
        file = draft.path / "adapter_config.json"
        values = json.loads(file.read_text("utf-8"))
        values["base_model_name_or_path"] = f"sha256:{bases.digest(base)}"
        file.write_bytes(canonical(values))
        draft.content = {"base": bases.digest(base), "adapter": "lora", "seed": seed}
    return draft.made


def whole_model(store: Store, base: Path) -> Artifact:
    """What full fine-tuning leaves: a model folder of its own."""
    with store.create("adapter", digest_of(["full", str(base)])) as draft:
        shutil.copytree(base, draft.path, dirs_exist_ok=True)
        draft.content = {"base": bases.digest(base), "adapter": "full"}
    return draft.made


def build(root: Path, project: str, adapter: Artifact, base: Path, hash_seed: int = 0) -> Artifact:
    """Run the build stage as the program it is."""
    store = Store(root / "store")
    inputs = BentoInputs(
        project=project,
        runtime=runtime.digest(),
        adapter=adapter.digest,
        base=bases.digest(base),
        family=bases.family(base),
        max_new_tokens=24,
        threads=1,
    )
    run = {"home": str(root), "store": str(store.root), "ledger": "", "actor": "test"}
    spec = {"stage": "build", "project": project, "asset": "bento", "inputs": inputs.model_dump(), "run": run}
    file = root / f"{adapter.digest[:12]}-{project}.json"
    file.write_text(json.dumps(spec), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "ftaas_pipelines.stages.build", "--spec", file, "--out", root / "out.json"],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return store.get(json.loads((root / "out.json").read_text("utf-8"))["digest"])


@dataclass
class House:
    """A home with releases to serve, and the client that asks them."""

    settings: Settings
    releases: list[ReleaseToServe]
    beta: ReleaseToServe

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port_staging}"

    @property
    def folder(self) -> Folder:
        return Folder(self.settings.home, ENV)

    @cached_property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0, timeout=30)

    def processes(self) -> list[int]:
        """Every process that works for this home: the supervisor and its engines."""
        found: list[int] = []
        for process in psutil.process_iter():
            try:
                mine = process.environ().get("FTAAS_HOME") == str(self.settings.home)
                if mine and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process.pid)
            except psutil.Error:
                continue
        return found


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    home = tmp_path_factory.mktemp("home").resolve()
    settings = Settings(home=home, port_staging=free_port(), port_production=free_port())
    store = Store(settings.store_path)

    def release(project: str, base: Path, adapter: Artifact) -> ReleaseToServe:
        bento = build(home, project, adapter, base)
        name = digest_of([project, adapter.digest])
        return deployments.release_to_serve(settings, project, name, bento, str(base), 24)

    alphas = [release("alpha", BASE, random_adapter(store, BASE, 1))]
    for seed in (2, 3):  # later releases on the same runtime: their Bentos would differ by adapter alone
        adapter = random_adapter(store, BASE, seed)
        facts = {"adapter": adapter.digest, "adapter_path": str(adapter.path)}
        alphas.append(alphas[0].model_copy(update={"release": digest_of(["alpha", seed]), **facts}))
    beta = release("beta", SEQ2SEQ, whole_model(store, SEQ2SEQ))
    made = House(settings, alphas, beta)
    try:
        deployments.up(settings, ENV, made.releases[0])
        yield made
    finally:
        made.client.close()
        deployments.stop(settings, ENV)


def eventually(true: Callable[[], bool], within_s: float = 60.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)


def test_the_same_inputs_make_the_same_bento(house: House, tmp_path: Path) -> None:
    first = house.releases[0]
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

    release, client = house.releases[0], house.client
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

    found = deployments.response(house.settings, answer.id)
    assert found and (found["release"], found["adapter_digest"]) == (release.release, release.adapter)
    asked = deployments.ask(house.settings, ENV, "alpha", QUESTION[0]["content"])
    assert asked["answer"] == expected.text and asked["token_ids"] == expected.token_ids


def test_errors_and_pages(house: House) -> None:
    client = house.client
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="nobody", messages=QUESTION)
    assert unknown.value.code == "model_not_found" and "alpha" in str(unknown.value)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model="alpha", messages=QUESTION, temperature=9)
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(
            model="alpha", messages=QUESTION, extra_body={"tools": [{"type": "x"}]}
        )
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
    assert 'ftaas_requests_total{project="alpha"' in metrics and "ftaas_tokens_total" in metrics
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
    first, second, third = house.releases
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


def test_a_tampered_adapter_is_refused_and_the_old_release_stays(house: House) -> None:
    first, _, third = house.releases
    weights = Path(third.adapter_path) / "adapter_model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    try:
        with pytest.raises(FtaasError, match="a file was changed"):
            deployments.up(house.settings, ENV, third)
    finally:
        weights.write_bytes(sound)
    assert deployments.current(house.settings, ENV, "alpha") == first
    assert deployments.ask(house.settings, ENV, "alpha", "still there?")["release"] == first.release


def test_two_bases_share_an_environment_and_its_supervisor_may_die(house: House) -> None:
    settings = house.settings
    deployments.up(settings, ENV, house.beta)
    assert [m.id for m in house.client.models.list()] == ["alpha", "beta"]
    assert len(house.folder.state()["engines"]) == 2
    asked = {
        name: deployments.ask(settings, ENV, name, "who?")["adapter_digest"] for name in ("alpha", "beta")
    }
    assert asked == {"alpha": house.releases[0].adapter, "beta": house.beta.adapter}
    assert httpx.get(f"{house.url}/metrics").text.count("# TYPE ftaas_requests counter") == 1

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
    assert deployments.up(settings, ENV, house.beta).state == "running"
    deployments.halt(settings, ENV)
    assert deployments.current(settings, ENV, "beta") == house.beta
    assert deployments.stop(settings, ENV) == ["beta"]
    eventually(lambda: house.processes() == [], within_s=5)
    assert deployments.deployments(settings) == []


def test_a_port_in_use_makes_nothing(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = replace(house.settings, port_production=taken.getsockname()[1])
        with pytest.raises(InputInvalid, match="FTAAS_PORT_PRODUCTION"):
            deployments.up(settings, "production", house.releases[0])
    assert not Folder(settings.home, "production").path.exists()
