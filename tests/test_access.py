"""Promises of access: who is let in, and how much they may ask."""

import asyncio
import base64
import dataclasses
import hashlib
import hmac
import json
import multiprocessing
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey
from serving_house import free_port

from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.serving.access import Access, keys, tokens
from ftaas_pipelines.serving.access.caller import ACTIONS, Allowance, Caller
from ftaas_pipelines.serving.access.limits import Limits
from ftaas_pipelines.serving.access.tokens import Provider
from ftaas_pipelines.serving.openai_shapes import RequestRefused
from ftaas_pipelines.settings import Settings

PEPPER = b"p" * 32


@dataclasses.dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclasses.dataclass
class Door:
    """An environment's access over a real ledger."""

    ledger: Ledger
    clock: Clock
    access: Access

    def key(self, **changes: Any) -> tuple[str, str]:
        given: dict[str, Any] = {
            "name": "service",
            "projects": ["alpha", "beta_*"],
            "environments": ["staging"],
            "actions": ["answer"],
            "allowance": Allowance(requests_per_minute=3),
            "expires": None,
            "actor": "olga.owner@example.com",
            **changes,
        }
        made = keys.issue(self.ledger, PEPPER, **given)
        self.access.refresh()
        return made

    def asks(self, key: str) -> Caller:
        return self.access.authenticate(f"Bearer {key}")


@pytest.fixture
def door(tmp_path: Path) -> Door:
    ledger, clock = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path), Clock()
    return Door(ledger, clock, Access("staging", True, PEPPER, lambda: ledger, clock=clock))


def refused(status: int, code: str, ask: Callable[[], Any]) -> RequestRefused:
    with pytest.raises(RequestRefused) as caught:
        ask()
    assert (caught.value.status, caught.value.code) == (status, code)
    return caught.value


def test_a_key_lets_in_who_has_it_where_it_may(door: Door, tmp_path: Path) -> None:
    id, key = door.key()
    caller = door.asks(key)
    assert caller.id == id and caller.allowance.requests_per_minute == 3
    assert caller.may("answer", "alpha") and caller.may("answer", "beta_two")
    refused(403, "permission_denied", lambda: caller.require("answer", "gamma"))
    refused(403, "permission_denied", lambda: caller.require("feedback", "alpha"))
    # Nothing that is kept is the key.
    kept = (tmp_path / "ledger.db").read_bytes()
    assert key.encode() not in kept and key.rpartition("_")[2].encode() not in kept
    assert key not in repr(keys.all_keys(door.ledger))


def test_what_is_no_valid_key_is_refused(door: Door) -> None:
    _, key = door.key()
    _, elsewhere = door.key(environments=["production"])
    altered = [key[:i] + ("0" if key[i] != "0" else "1") + key[i + 1 :] for i in (7, 12, 30, len(key) - 1)]
    wrong = [*altered, key[:-1], key + "0", key.upper(), "ftaas_", "ftaas_key_x", "ftaas_" + "a" * 5000]
    for given in [*wrong, elsewhere, "", "sk-other"]:
        refused(401, "invalid_api_key", lambda given=given: door.asks(given))
    for header in (None, "", "Basic abc", key, f"bearer{key}"):
        refused(401, "invalid_api_key", lambda header=header: door.access.authenticate(header))
    assert door.access.authenticate(f"bearer  {key} ").id


def test_keys_end(door: Door) -> None:
    id, key = door.key(expires=door.clock.now + 60)
    door.asks(key)
    door.clock.now += 61
    refused(401, "invalid_api_key", lambda: door.asks(key))
    id, key = door.key()
    known = keys.find(door.ledger, id)
    successor, new = keys.rotate(
        door.ledger, PEPPER, known, grace_s=3600, now=door.clock.now, actor="olga.owner@example.com"
    )
    door.access.refresh()
    assert door.asks(key).id == id and door.asks(new).id == successor
    door.clock.now += 3601
    refused(401, "invalid_api_key", lambda: door.asks(key))
    keys.revoke(door.ledger, keys.find(door.ledger, successor), reason="leaked", actor="olga")
    door.asks(new)  # not heard of yet
    door.access.refresh()
    refused(401, "invalid_api_key", lambda: door.asks(new))


def test_an_entry_that_this_platform_did_not_write_issues_no_key(door: Door, tmp_path: Path) -> None:
    other = Ledger(f"sqlite:///{tmp_path / 'other.db'}", tmp_path / "other")
    _, key = keys.issue(
        other, PEPPER, name="x", projects=["*"], environments=["staging"], actions=ACTIONS,
        allowance=Allowance(), expires=None, actor="mallory",
    )  # fmt: skip
    entry = other.entries("key_issued")[0]
    strange = dataclasses.replace(entry, signature="00" * 64) if hasattr(entry, "signature") else entry
    assert not door.ledger.is_authentic(strange)
    door.access.refresh()
    refused(401, "invalid_api_key", lambda: door.asks(key))


def test_without_a_key_only_where_that_is_allowed(door: Door) -> None:
    open_ = Access("staging", False, PEPPER, lambda: door.ledger)
    assert open_.authenticate(None).id == open_.authenticate("Bearer any").id == "anonymous"
    refused(401, "invalid_api_key", lambda: open_.authenticate("Bearer ftaas_key_00_11"))
    assert Settings().access_required is False
    assert Settings(profile="production").access_required is True
    assert Settings(access="required").access_required is True


def test_the_platform_asks_for_itself_for_a_minute(door: Door) -> None:
    token = tokens.operator_token(PEPPER, "staging", "anna@acme.org", door.clock.now)
    assert door.asks(token).id == "operator:anna@acme.org"
    for wrong in (
        token.replace("anna", "otto"),
        token.replace("ftaas-operator", "ftaas-operator2"),
        tokens.operator_token(PEPPER, "production", "anna@acme.org", door.clock.now),
        tokens.operator_token(b"other", "staging", "anna@acme.org", door.clock.now),
        "ftaas-operator...",
        f"ftaas-operator.{int(door.clock.now) + 9999}.{token.split('.')[2]}.anna@acme.org",
    ):
        refused(401, "invalid_api_key", lambda wrong=wrong: door.asks(wrong))
    door.clock.now += 61
    refused(401, "invalid_api_key", lambda: door.asks(token))


def test_the_pepper_is_made_once_and_kept_to_its_owner(tmp_path: Path) -> None:
    first = keys.pepper(tmp_path)
    assert len(first) == 32 and keys.pepper(tmp_path) == first
    assert (tmp_path / "access_pepper").stat().st_mode & 0o777 == 0o600
    assert keys.pepper(tmp_path, "given") == b"given"


# -- tokens of an identity provider ----------------------------------------------------------------


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[tuple[Provider, RSAKey, Clock, Path]]:
    clock, key = Clock(), RSAKey.generate_key(2048, {"kid": "one"})
    file = tmp_path / "jwks.json"
    file.write_text(json.dumps(KeySet([key]).as_dict(private=False)), encoding="utf-8")
    made = Provider("https://id.acme.org", "ftaas", str(file), clock=clock)
    made.refresh()
    yield made, key, clock, file


def claims(clock: Clock, **changes: Any) -> dict[str, Any]:
    return {
        "iss": "https://id.acme.org",
        "aud": "ftaas",
        "sub": "service-7",
        "exp": int(clock.now) + 300,
        "ftaas_projects": ["alpha"],
        "ftaas_actions": ["answer"],
        **changes,
    }


def test_a_token_lets_in_for_what_it_claims(provider: Any) -> None:
    door, key, clock, _ = provider
    caller = door.caller(jwt.encode({"alg": "RS256", "kid": "one"}, claims(clock), key))
    assert caller.id == "jwt:service-7" and caller.projects == ("alpha",)
    assert caller.may("answer", "alpha") and not caller.may("feedback", "alpha")
    bare = claims(clock)
    del bare["ftaas_projects"]
    assert not door.caller(jwt.encode({"alg": "RS256", "kid": "one"}, bare, key)).may("answer", "alpha")


def test_forged_and_stale_tokens_are_refused(provider: Any) -> None:
    door, key, clock, _ = provider
    good = jwt.encode({"alg": "RS256", "kid": "one"}, claims(clock), key)
    head, middle, signature = good.split(".")

    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    stranger = RSAKey.generate_key(2048, {"kid": "one"})
    # Made by hand: the library itself refuses to sign with a public key as if it were a secret.
    unsigned = f"{part({'alg': 'HS256', 'kid': 'one'})}.{middle}"
    mac = hmac.new(key.as_pem(private=False), unsigned.encode(), hashlib.sha256).digest()
    wrong = {
        "none": f"{part({'alg': 'none', 'kid': 'one'})}.{middle}.",
        "none in capitals": f"{part({'alg': 'NONE'})}.{middle}.{signature}",
        "HS with the public key": f"{unsigned}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}",
        "tampered": f"{head}.{part(claims(clock, sub='admin'))}.{signature}",
        "another's key": jwt.encode({"alg": "RS256", "kid": "one"}, claims(clock), stranger),
        "a key in the header": jwt.encode(
            {"alg": "RS256", "jwk": stranger.as_dict(private=False)}, claims(clock), stranger
        ),
        "unknown kid": jwt.encode({"alg": "RS256", "kid": "two"}, claims(clock), stranger),
        "audience": jwt.encode({"alg": "RS256", "kid": "one"}, claims(clock, aud="other"), key),
        "issuer": jwt.encode({"alg": "RS256", "kid": "one"}, claims(clock, iss="https://x"), key),
        "expired": jwt.encode({"alg": "RS256", "kid": "one"}, claims(clock, exp=int(clock.now) - 60), key),
        "not yet": jwt.encode({"alg": "RS256", "kid": "one"}, claims(clock, nbf=int(clock.now) + 600), key),
        "no subject": jwt.encode({"alg": "RS256", "kid": "one"}, claims(clock, sub=None), key),
        "cut": good[:-10],
        "rubbish": "a.b.c",
    }
    for name, token in wrong.items():
        with pytest.raises(RequestRefused) as caught:
            door.caller(token)
        assert caught.value.status == 401, name
    assert door.caller(good).id == "jwt:service-7"


def test_a_new_key_of_the_provider_is_heard_of_but_not_at_every_unknown_name(provider: Any) -> None:
    door, key, clock, file = provider
    new = ECKey.generate_key("P-256", {"kid": "two"})
    token = jwt.encode({"alg": "ES256", "kid": "two"}, claims(clock, exp=int(clock.now) + 9999), new)
    file.write_text(json.dumps(KeySet([key, new]).as_dict(private=False)), encoding="utf-8")
    with pytest.raises(RequestRefused):
        door.caller(token)
    door.refresh()  # it was read less than a minute ago
    with pytest.raises(RequestRefused):
        door.caller(token)
    clock.now += 61
    door.refresh()
    assert door.caller(token).id == "jwt:service-7"


def test_where_asked_for_a_token_is_taken_once(provider: Any) -> None:
    _, key, clock, file = provider
    once = Provider("https://id.acme.org", "ftaas", str(file), once=True, clock=clock)
    once.refresh()
    token = jwt.encode({"alg": "RS256", "kid": "one"}, claims(clock, jti="1"), key)
    assert once.caller(token).id
    with pytest.raises(RequestRefused):
        once.caller(token)
    with pytest.raises(RequestRefused):  # without a name it cannot be told whether it was used
        once.caller(jwt.encode({"alg": "RS256", "kid": "one"}, claims(clock), key))


# -- limits ----------------------------------------------------------------------------------------


def test_requests_tokens_and_those_at_once_are_limited() -> None:
    async def run() -> None:
        limits = Limits.of(Settings())
        two = Caller("a", allowance=Allowance(requests_per_minute=2))
        for _ in range(2):
            admission = await limits.admit(two, 10)
        assert admission.headers["x-ratelimit-remaining-requests"] == "0"
        with pytest.raises(RequestRefused) as caught:
            await limits.admit(two, 10)
        assert caught.value.status == 429 and 1 <= int(caught.value.headers["Retry-After"]) <= 60
        await limits.admit(Caller("b", allowance=Allowance(requests_per_minute=2)), 10)

        tokens_ = Caller("c", allowance=Allowance(tokens_per_minute=100))
        first = await limits.admit(tokens_, 60)
        with pytest.raises(RequestRefused):
            await limits.admit(tokens_, 60)
        await first.settle(90)  # it took more than it held
        with pytest.raises(RequestRefused):
            await limits.admit(tokens_, 20)

        one = Caller("d", allowance=Allowance(concurrent=1))
        held = await limits.admit(one, 1)
        with pytest.raises(RequestRefused):
            await limits.admit(one, 1)
        held.release()
        held.release()
        (await limits.admit(one, 1)).release()
        for _ in range(50):
            (await limits.admit(Caller("e"), 10**9)).release()

    asyncio.run(run())


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        assert "FTAAS_CI" not in os.environ, "CI installs redis-server"
        pytest.skip("redis-server is not installed")
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    server = subprocess.Popen(command, cwd=tmp_path_factory.mktemp("redis"), stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


def _ask_often(url: str, count: int, let_in: Any) -> None:
    async def run() -> None:
        limits = Limits.of(Settings(limits_url=url))
        caller = Caller("shared", allowance=Allowance(requests_per_minute=30))
        for _ in range(count):
            try:
                await limits.admit(caller, 1)
            except RequestRefused:
                continue
            with let_in.get_lock():
                let_in.value += 1

    asyncio.run(run())


def test_two_gateways_share_one_limit(redis: str) -> None:
    context = multiprocessing.get_context("spawn")
    let_in = context.Value("i", 0)
    for _ in range(100):
        try:
            _ask_often(redis, 0, let_in)
            break
        except OSError:
            time.sleep(0.05)
    both = [context.Process(target=_ask_often, args=(redis, 40, let_in)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert let_in.value == 30


def test_limits_that_cannot_be_counted_let_nobody_in() -> None:
    async def run() -> None:
        limits = Limits.of(Settings(limits_url=f"redis://127.0.0.1:{free_port()}"))
        with pytest.raises(RequestRefused) as caught:
            await limits.admit(Caller("a", allowance=Allowance(requests_per_minute=5)), 1)
        assert (caught.value.status, caught.value.code) == (503, "limits_unavailable")
        (await limits.admit(Caller("unlimited"), 1)).release()

    asyncio.run(run())
