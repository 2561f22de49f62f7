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
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, OctKey, RSAKey
from serving_house import free_port

from ftaas_pipelines.cli.main import main
from ftaas_pipelines.errors import InputInvalid
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
    for key_ in [*wrong, elsewhere, "", "sk-other"]:
        refused(401, "invalid_api_key", lambda key_=key_: door.asks(key_))
    for header in (None, "", "Basic abc", key, f"bearer{key}", "Bearer ", f"Bearer {key[:-1]}\xe9"):
        refused(401, "invalid_api_key", lambda header=header: door.access.authenticate(header))
    assert door.access.authenticate(f"bearer  {key} ").id


def test_an_unknown_key_costs_what_a_known_one_does(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    _, key = door.key()
    known, unknown = key[:-1] + ("0" if key[-1] != "0" else "1"), keys.new_key()[1]
    worked: list[str] = []
    real_mac, real_compare = keys.mac, hmac.compare_digest
    monkeypatch.setattr(keys, "mac", lambda p, k: worked.append(f"mac {len(k)}") or real_mac(p, k))
    monkeypatch.setattr(
        hmac, "compare_digest", lambda a, b: worked.append(f"{len(a)} {len(b)}") or real_compare(a, b)
    )
    done: list[list[str]] = []
    for wrong in (known, unknown):
        refused(401, "invalid_api_key", lambda wrong=wrong: door.asks(wrong))
        done.append(worked.copy())
        worked.clear()
    assert done[0] == done[1] == ["mac 87", "64 64"]


def test_keys_end(door: Door) -> None:
    id, key = door.key(expires=door.clock.now + 60)
    door.asks(key)
    door.clock.now += 61
    refused(401, "invalid_api_key", lambda: door.asks(key))
    id, key = door.key()
    known = keys.find(door.ledger, "service", door.clock.now)
    assert known.id == id
    successor, new = keys.rotate(
        door.ledger, PEPPER, known, grace_s=3600, now=door.clock.now, actor="olga.owner@example.com"
    )
    door.access.refresh()
    assert door.asks(key).id == id and door.asks(new).id == successor
    assert door.asks(new).allowance == door.asks(key).allowance
    with pytest.raises(InputInvalid):  # which of the two?
        keys.find(door.ledger, "service", door.clock.now)
    door.clock.now += 3601
    refused(401, "invalid_api_key", lambda: door.asks(key))
    found = keys.find(door.ledger, "service", door.clock.now)
    assert found.id == successor
    keys.revoke(door.ledger, found, reason="leaked", actor="olga")
    door.asks(new)  # not heard of yet
    door.access.refresh()
    refused(401, "invalid_api_key", lambda: door.asks(new))
    restarted = Access("staging", True, PEPPER, lambda: door.ledger, clock=door.clock)
    restarted.refresh()
    for gone in (key, new):
        refused(401, "invalid_api_key", lambda gone=gone: restarted.authenticate(f"Bearer {gone}"))


def test_an_entry_that_this_platform_did_not_write_issues_no_key(door: Door, tmp_path: Path) -> None:
    other = Ledger(f"sqlite:///{tmp_path / 'other.db'}", tmp_path / "other")
    _, key = keys.issue(
        other, PEPPER, name="x", projects=["*"], environments=["staging"], actions=ACTIONS,
        allowance=Allowance(), expires=None, actor="mallory",
    )  # fmt: skip
    # It continues the chain (both begin empty), so the database takes it; its signature is another's.
    row = other.entries("key_issued")[0].row
    marks = ", ".join("?" * len(row))
    with sqlite3.connect(tmp_path / "ledger.db") as database:
        database.execute(f"INSERT INTO ledger ({', '.join(row._fields)}) VALUES ({marks})", tuple(row))
    assert [e.actor for e in door.ledger.entries("key_issued")] == ["mallory"]
    door.access.refresh()
    refused(401, "invalid_api_key", lambda: door.asks(key))


def test_without_a_key_only_where_that_is_allowed(door: Door) -> None:
    open_ = Access("staging", False, PEPPER, lambda: door.ledger)
    assert open_.authenticate(None).id == open_.authenticate("Bearer any").id == "anonymous"
    refused(401, "invalid_api_key", lambda: open_.authenticate("Bearer ftaas_key_00_11"))
    assert Settings().access_required is False
    for required in ({"profile": "production"}, {"access": "required"}, {"access": "requried"},
                     {"profile": "production", "access": "open"}):  # fmt: skip
        assert Settings(**required).access_required is True


def test_the_platform_asks_for_itself_for_a_minute(door: Door) -> None:
    token = tokens.operator_token(PEPPER, "staging", "anna@acme.org", door.clock.now)
    assert door.asks(token).id == "operator:anna@acme.org"
    for wrong in (
        token.replace("anna", "otto"),
        token.replace("ftaas-operator", "ftaas-operator2"),
        tokens.operator_token(PEPPER, "production", "anna@acme.org", door.clock.now),
        tokens.operator_token(b"other", "staging", "anna@acme.org", door.clock.now),
        "ftaas-operator...",
        token.replace(token.split(".")[1], "\xb2"),  # a digit to `isdigit`, and none to `int`
        token.replace(token.split(".")[2], "\xe9" * 64),
        f"ftaas-operator.{int(door.clock.now) + 9999}.{token.split('.')[2]}.anna@acme.org",
    ):
        refused(401, "invalid_api_key", lambda wrong=wrong: door.asks(wrong))
    named = tokens.operator_token(PEPPER, "staging", "zoë.müller", door.clock.now)
    assert named.isascii() and door.asks(named).id == "operator:zoë.müller"
    door.clock.now += 61
    refused(401, "invalid_api_key", lambda: door.asks(token))


def test_the_pepper_is_made_once_and_kept_to_its_owner(tmp_path: Path) -> None:
    first = keys.pepper(tmp_path)
    assert len(first) == 32 and keys.pepper(tmp_path) == first
    assert (tmp_path / "access_pepper").stat().st_mode & 0o777 == 0o600
    assert keys.pepper(tmp_path, "given by a vault") == b"given by a vault"
    (tmp_path / "access_pepper").write_bytes(b"")
    for home, given_ in ((tmp_path, ""), (tmp_path, "short")):
        with pytest.raises(InputInvalid):
            keys.pepper(home, given_)


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
    for projects in (None, "alpha", {"alpha": 1}, [], 7):  # only a list of names gives anything
        asked = claims(clock, ftaas_projects=projects)
        assert not door.caller(jwt.encode({"alg": "RS256", "kid": "one"}, asked, key)).may("answer", "alpha")
    for actions in ("answer", 7, ["all"]):
        asked = claims(clock, ftaas_actions=actions)
        assert not door.caller(jwt.encode({"alg": "RS256", "kid": "one"}, asked, key)).actions


def test_the_settings_make_a_provider_or_say_what_is_wrong(tmp_path: Path) -> None:
    right: dict[str, Any] = {
        "home": tmp_path,
        "oidc_issuer": "https://id.acme.org",
        "oidc_jwks": str(tmp_path / "jwks.json"),
        "oidc_allowance": "requests_per_minute=60, tokens_per_day=1000",
    }
    key = RSAKey.generate_key(2048, {"kid": "one"})
    (tmp_path / "jwks.json").write_text(json.dumps(KeySet([key]).as_dict(private=False)), encoding="utf-8")
    made = Provider.of(Settings(**right))
    made.refresh()
    clock = Clock(time.time())
    caller = made.caller(jwt.encode({"alg": "RS256", "kid": "one"}, claims(clock), key))
    assert caller.allowance == Allowance(requests_per_minute=60, tokens_per_day=1000)
    for wrong in ({"oidc_jwks": ""}, {"oidc_jwks": "http://id.acme.org/jwks"}, {"oidc_audience": ""},
                  {"oidc_allowance": "requests=1"}, {"oidc_allowance": "concurrent=-1"}):  # fmt: skip
        with pytest.raises(InputInvalid):
            Access.of(Settings(**{**right, **wrong}), "staging", lambda: Ledger("", tmp_path))


def test_forged_and_stale_tokens_are_refused(provider: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    door, key, clock, _ = provider

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("something was fetched for a caller")

    monkeypatch.setattr(httpx, "get", never)
    good = jwt.encode({"alg": "RS256", "kid": "one"}, claims(clock), key)
    head, middle, signature = good.split(".")

    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    stranger = RSAKey.generate_key(2048, {"kid": "one"})

    def by_hand(header: dict[str, Any]) -> str:
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.hashes import SHA256

        said = f"{part(header)}.{middle}"
        signed = stranger.private_key.sign(said.encode(), PKCS1v15(), SHA256())
        return f"{said}.{base64.urlsafe_b64encode(signed).rstrip(b'=').decode()}"

    endless = claims(clock)
    del endless["exp"]
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
        "a place of keys in the header": by_hand(
            {"alg": "RS256", "kid": "one", "jku": "https://mallory.org/jwks", "x5u": "https://mallory.org/x"}
        ),
        "unknown kid": jwt.encode({"alg": "RS256", "kid": "two"}, claims(clock), stranger),
        "audience": jwt.encode({"alg": "RS256", "kid": "one"}, claims(clock, aud="other"), key),
        "issuer": jwt.encode({"alg": "RS256", "kid": "one"}, claims(clock, iss="https://x"), key),
        "expired": jwt.encode({"alg": "RS256", "kid": "one"}, claims(clock, exp=int(clock.now) - 60), key),
        "not yet": jwt.encode({"alg": "RS256", "kid": "one"}, claims(clock, nbf=int(clock.now) + 600), key),
        "no end": jwt.encode({"alg": "RS256", "kid": "one"}, endless, key),
        "a subject that is none": jwt.encode({"alg": "RS256", "kid": "one"}, claims(clock, sub=["a"]), key),
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


def test_what_the_provider_takes_back_ends_and_what_it_adds_breaks_nothing(
    provider: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, key, clock, _ = provider
    new = ECKey.generate_key("P-256", {"kid": "two"})
    both = KeySet([key, new]).as_dict(private=False)
    strange = {"kty": "AKP", "kid": "later", "alg": "ML-DSA-44", "pub": "AA"}
    secret = OctKey.import_key("a secret of the provider, not for us", {"kid": "hs"}).as_dict(private=True)
    published: dict[str, Any] = {"keys": [strange, secret, *both["keys"]]}
    asked: list[float] = []

    def get(url: str, timeout: float, **_: Any) -> httpx.Response:
        asked.append(clock.now)
        request = httpx.Request("GET", url)
        if published:
            return httpx.Response(200, json=published, request=request)
        return httpx.Response(500, request=request)

    monkeypatch.setattr(httpx, "get", get)
    door = Provider("https://id.acme.org", "ftaas", "https://id.acme.org/jwks", clock=clock)
    token = jwt.encode({"alg": "RS256", "kid": "one"}, claims(clock, exp=int(clock.now) + 9999), key)
    with pytest.raises(RequestRefused):  # nothing is fetched on a request's way
        door.caller(token)
    assert not asked
    for _ in range(3):
        door.refresh()
    assert len(asked) == 1 and door.caller(token).id

    clock.now += 601
    kept, published = published, {}
    with pytest.raises(OSError):
        door.refresh()
    assert door.caller(token).id  # the provider is away: what was known holds
    clock.now += 601
    published = {"keys": [strange, secret]}
    with pytest.raises(ValueError, match="no key"):
        door.refresh()
    clock.now += 601
    published = {"keys": [k for k in kept["keys"] if k["kid"] != "one"]}
    door.refresh()
    with pytest.raises(RequestRefused):
        door.caller(token)


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


def refuses(work: Any) -> Any:
    """Await something that must be refused with 429; returns the refusal."""

    async def run() -> RequestRefused:
        with pytest.raises(RequestRefused) as caught:
            await work
        assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
        return caught.value

    return run()


def test_requests_and_those_at_once_are_limited() -> None:
    async def run() -> None:
        limits = Limits.of(Settings())
        two = Caller("a", allowance=Allowance(requests_per_minute=2))
        for left in ("1", "0"):
            admission = await limits.admit(two, 10)
            assert admission.headers["x-ratelimit-remaining-requests"] == left
        refusal = await refuses(limits.admit(two, 10))
        assert 1 <= int(refusal.headers["Retry-After"]) <= 61
        assert refusal.headers["x-ratelimit-remaining-requests"] == "0"
        await limits.admit(Caller("b", allowance=Allowance(requests_per_minute=2)), 10)

        one = Caller("d", allowance=Allowance(concurrent=1))
        held = await limits.admit(one, 1)
        await refuses(limits.admit(one, 1))
        held.release()
        held.release()
        for _ in range(3):
            await (await limits.admit(one, 1)).settle(1)  # releases, too
        for _ in range(50):
            (await limits.admit(Caller("e"), 10**9)).release()

    asyncio.run(run())


def test_a_refused_request_costs_nothing() -> None:
    async def run() -> None:
        limits = Limits.of(Settings())
        both = Caller("a", allowance=Allowance(requests_per_minute=2, tokens_per_minute=100, concurrent=1))
        for _ in range(5):
            refusal = await refuses(limits.admit(both, 101))  # waiting would not help
            assert "Retry-After" not in refusal.headers and refusal.headers["x-should-retry"] == "false"
        (await limits.admit(both, 60)).release()
        for _ in range(5):
            await refuses(limits.admit(both, 60))
        (await limits.admit(both, 40)).release()
        assert (await refuses(limits.admit(both, 1))).headers["x-ratelimit-remaining-requests"] == "0"

    asyncio.run(run())


def test_what_was_used_is_what_counts() -> None:
    async def run() -> None:
        limits = Limits.of(Settings())
        for id, used, left in (("less", 10, 90), ("more", 90, 10), ("unknown", 0, 40), ("far more", 500, 0)):
            caller = Caller(id, allowance=Allowance(tokens_per_day=100))
            await (await limits.admit(caller, 60)).settle(used)
            await refuses(limits.admit(caller, left + 1))
            if left:
                (await limits.admit(caller, left)).release()

    asyncio.run(run())


def test_those_at_once_are_counted_before_anything_is_awaited() -> None:
    async def run() -> None:
        limits = Limits.of(Settings())
        slow = limits._storage  # pyright: ignore[reportPrivateUsage]
        real = slow.get_moving_window

        async def slowly(*arguments: Any) -> Any:
            await asyncio.sleep(0)
            return await real(*arguments)

        with patch.object(slow, "get_moving_window", slowly):
            caller = Caller("a", allowance=Allowance(concurrent=3, requests_per_minute=100))
            asked = await asyncio.gather(
                *(limits.admit(caller, 1) for _ in range(20)), return_exceptions=True
            )
            assert sum(not isinstance(one, BaseException) for one in asked) == 3
            # Whoever leaves while being admitted leaves no place taken.
            other = Caller("b", allowance=Allowance(concurrent=1, requests_per_minute=100))
            for _ in range(3):
                leaving = asyncio.create_task(limits.admit(other, 1))
                await asyncio.sleep(0)
                leaving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await leaving
        (await limits.admit(other, 1)).release()

    asyncio.run(run())


_ALLOWANCES = st.sampled_from(
    [
        Allowance(requests_per_minute=3),
        Allowance(requests_per_day=4),
        Allowance(tokens_per_minute=50),
        Allowance(requests_per_minute=2, tokens_per_minute=40, tokens_per_day=70),
    ]
)
_ASKED = st.lists(
    st.tuples(st.floats(0, 50), st.integers(1, 40), st.floats(0.1, 1.0), st.sampled_from([0.0, 1.0, 59.0])),
    min_size=1,
    max_size=12,
)


@settings(max_examples=100, deadline=None)
@given(_ALLOWANCES, _ASKED)
def test_never_more_than_the_limit_and_the_wait_is_true(
    allowance: Allowance, asked: list[tuple[float, int, float, float]]
) -> None:
    clock = Clock(86_400.0 * 20_000 + 7)
    let_in: list[tuple[float, int]] = []

    async def run() -> None:
        limits = Limits.of(Settings())
        caller = Caller("a", allowance=allowance)

        async def admitted(cost: int, share: float, takes: float) -> RequestRefused | None:
            try:
                admission = await limits.admit(caller, cost)
            except RequestRefused as why:
                return why
            used = max(1, int(cost * share))
            let_in.append((clock.now, used))
            clock.now += takes  # the window may be over when it settles
            await admission.settle(used)
            return None

        for wait, *request in asked:
            clock.now += wait
            if refusal := await admitted(*request):
                told = int(refusal.headers["Retry-After"])
                clock.now += max(0.0, told - 1.01)
                if told > 1 and await admitted(*request) is None:
                    raise AssertionError("told to wait longer than was needed")
                clock.now += min(told, 1.01)
                assert await admitted(*request) is None, "told to wait less than was needed"

    frozen = SimpleNamespace(time=clock, monotonic=clock)
    with patch("time.time", clock), patch("ftaas_pipelines.serving.access.limits.time", frozen):
        asyncio.run(run())
    for per, span in (("minute", 60), ("day", 86_400)):
        for kind in ("requests", "tokens"):
            most = getattr(allowance, f"{kind}_per_{per}")
            counted: dict[int, int] = {}
            for at, used in let_in:
                window = int(at // span)
                counted[window] = counted.get(window, 0) + (used if kind == "tokens" else 1)
            assert most is None or all(count <= most for count in counted.values())
    if allowance.requests_per_minute:  # counted one by one: no minute, wherever it begins, has more
        for start, _ in let_in:
            within = sum(start <= at < start + 60 for at, _ in let_in)
            assert within <= allowance.requests_per_minute


@dataclasses.dataclass
class Redis:
    """A redis-server of the tests' own, on loopback; it keeps nothing on disk."""

    program: str
    folder: Path
    port: int = dataclasses.field(default_factory=free_port)
    process: Any = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [self.program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL)
        import redis

        with redis.Redis(port=self.port) as client:
            for _ in range(200):
                try:
                    client.ping()
                    return
                except redis.RedisError:
                    time.sleep(0.05)
        raise AssertionError("redis-server does not start")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait(10)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    program = shutil.which("redis-server")
    if program is None:
        assert "FTAAS_CI" not in os.environ, "CI installs redis-server"
        pytest.skip("redis-server is not installed")
    server = Redis(program, tmp_path_factory.mktemp("redis"))
    server.start()
    try:
        yield server
    finally:
        server.stop()


_SHARED = (
    Allowance(requests_per_minute=30),
    Allowance(requests_per_day=30),
    Allowance(tokens_per_minute=300, tokens_per_day=10_000),
)


def _ask_often(url: str, let_in: Any) -> None:
    async def run() -> None:
        limits = Limits.of(Settings(limits_url=url))
        for number, allowance in enumerate(_SHARED):
            caller = Caller(f"shared-{number}", allowance=allowance)
            for _ in range(40):
                try:
                    await limits.admit(caller, 10)
                except RequestRefused as why:
                    assert why.status == 429
                    continue
                with let_in.get_lock():
                    let_in[number] += 1
        await limits.close()

    asyncio.run(run())


def test_two_gateways_share_one_limit(redis: Redis) -> None:
    context = multiprocessing.get_context("spawn")
    let_in = context.Array("i", len(_SHARED))
    both = [context.Process(target=_ask_often, args=(redis.url, let_in)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert list(let_in) == [30, 30, 30]


def test_what_was_used_counts_for_all_gateways(redis: Redis) -> None:
    async def run() -> None:
        one, other = Limits.of(Settings(limits_url=redis.url)), Limits.of(Settings(limits_url=redis.url))
        for id, used, left in (("less", 10, 90), ("more", 90, 10), ("far more", 500, 0)):
            caller = Caller(id, allowance=Allowance(tokens_per_minute=100))
            await (await one.admit(caller, 60)).settle(used)
            await refuses(other.admit(caller, left + 1))
            if left:
                (await other.admit(caller, left)).release()
            assert 1 <= int((await refuses(one.admit(caller, 1))).headers["Retry-After"]) <= 120
        await one.close()
        await other.close()

    asyncio.run(run())


def test_limits_that_cannot_be_counted_let_nobody_in(redis: Redis) -> None:
    async def away(limits: Limits, id: str) -> float:
        begun = time.monotonic()
        caller = Caller(id, allowance=Allowance(requests_per_minute=5, concurrent=1))
        for _ in range(2):  # and the place among those at once is not lost
            with pytest.raises(RequestRefused) as caught:
                await limits.admit(caller, 1)
            assert (caught.value.status, caught.value.code) == (503, "limits_unavailable")
        (await limits.admit(Caller("unlimited"), 1)).release()
        return time.monotonic() - begun

    async def run() -> None:
        await away(Limits.of(Settings(limits_url=f"redis://127.0.0.1:{free_port()}")), "a")
        limits = Limits.of(Settings(limits_url=redis.url))
        caller = Caller("b", allowance=Allowance(requests_per_minute=5, tokens_per_day=100))
        before = await limits.admit(caller, 1)
        redis.process.send_signal(signal.SIGSTOP)  # it listens and does not answer
        try:
            assert await away(limits, "c") < 10
            await before.settle(50)  # the answer was given: nothing is raised
        finally:
            redis.process.send_signal(signal.SIGCONT)
        (await limits.admit(caller, 1)).release()
        redis.stop()
        await away(limits, "c")
        redis.start()
        (await limits.admit(caller, 1)).release()
        await limits.close()

    asyncio.run(run())


def test_only_the_url_of_a_redis_is_taken_and_never_shown() -> None:
    with pytest.raises(InputInvalid) as caught:
        Limits.of(Settings(limits_url="memcached://user:hunter2@host"))
    assert "hunter2" not in str(caught.value)


# -- the command line ------------------------------------------------------------------------------


def test_keys_by_command(home: Path, project_factory: Any, capsys: pytest.CaptureFixture[str],
                         monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def run(*words: str, code: int = 0, by: str = "owen.owner@example.com") -> Any:
        monkeypatch.setenv("FTAAS_ACTOR", by)
        assert main(["key", *words, "--json"]) == code, capsys.readouterr().out
        return json.loads(capsys.readouterr().out)

    project_factory("codes")
    made = run("new", "shop", "--project", "codes", "--env", "staging", "--action", "answer",
               "--requests-per-minute", "60", "--expires", "90d")  # fmt: skip
    assert made["key"].startswith(f"ftaas_{made['id']}_")
    shown = run("show", "shop")
    assert shown["environments"] == ["staging"] and shown["allowance"] == {"requests_per_minute": 60}
    assert 89 < (shown["expires"] - time.time()) / 86_400 < 91
    assert shown["issued_by"] == "owen.owner@example.com"

    # Who is no owner or approver of the project gets no key for it, however it is named.
    for by, project in (
        ("olga.owner@example.com", "codes"),
        ("owen.owner@example.com", "*"),
        ("olga.owner@example.com", "co[d]es"),
        ("mallory@elsewhere.org", "codes"),
        ("mallory@elsewhere.org", "to_come"),
    ):
        run("new", "x", "--project", project, code=3, by=by)
    run("rotate", "shop", code=3, by="olga.owner@example.com")
    run("revoke", "shop", code=3, by="mallory@elsewhere.org")
    run("new", "all", "--project", "*", "--expires", "never", by="alex.approver@example.com")
    run("new", "early", "--project", "to_come")

    rotated = run("rotate", "shop", "--grace", "0m", "--expires", "30d")
    assert 29 < (run("show", "shop")["expires"] - time.time()) / 86_400 < 31
    assert {k["id"]: k["state"] for k in run("list", "--all")["keys"]}[made["id"]] == "expired"
    run("revoke", "shop", "--reason", "leaked", by="olga.owner@example.com")
    states = {k["name"]: k["state"] for k in run("list")["keys"]}
    assert states == {"all": "valid", "early": "valid"}

    for words in (
        ("new", "x", "--project", "codes", "--env", "moon"),
        ("new", "x", "--project", "codes", "--action", "train"),
        ("new", "x", "--project", "codes", "--expires", "-1d"),
        ("rotate", "all", "--grace", "never"),
        ("rotate", rotated["id"]),
        ("show", "nobody"),
    ):
        run(*words, code=2, by="alex.approver@example.com")
    everything = b"".join(p.read_bytes() for p in home.rglob("*") if p.is_file())
    for secret in (made["key"], rotated["key"]):
        assert secret.rpartition("_")[2].encode() not in everything
