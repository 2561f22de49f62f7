"""Tokens made to deceive, beside those of `test_access.py`; and that the time of a check tells nothing."""

import base64
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwe, jwt
from joserfc.jwk import ECKey, KeySet, OKPKey, RSAKey

from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.serving.access import Access, keys
from ftaas_pipelines.serving.access.caller import ACTIONS, Allowance
from ftaas_pipelines.serving.access.tokens import Provider
from ftaas_pipelines.serving.openai_shapes import RequestRefused

NOW = 1_000_000


@dataclass
class Issuer:
    provider: Provider
    rsa: RSAKey
    ec: ECKey
    ed: OKPKey

    def claims(self, **changes: Any) -> dict[str, Any]:
        right = {"iss": "https://id.acme.org", "aud": "ftaas", "sub": "s", "exp": NOW + 300}
        return {**right, "ftaas_projects": ["alpha"], **changes}

    def token(self, **changes: Any) -> str:
        return jwt.encode({"alg": "RS256", "kid": "rsa"}, self.claims(**changes), self.rsa)


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    rsa = RSAKey.generate_key(2048, {"kid": "rsa"})
    ec, ed = ECKey.generate_key("P-256", {"kid": "ec"}), OKPKey.generate_key("Ed25519", {"kid": "ed"})
    file = tmp_path_factory.mktemp("jwks") / "jwks.json"
    file.write_text(json.dumps(KeySet([rsa, ec, ed]).as_dict(private=False)), encoding="utf-8")
    provider = Provider("https://id.acme.org", "ftaas", str(file), clock=lambda: float(NOW))
    provider.refresh()
    return Issuer(provider, rsa, ec, ed)


def part(value: Any) -> str:
    return (
        base64.urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode())
        .rstrip(b"=")
        .decode()
    )


def refused(provider: Provider, token: str) -> bool:
    """401; whatever else is raised fails the test."""
    try:
        provider.caller(token)
    except RequestRefused as why:
        assert why.status == 401
        return True
    return False


def test_every_kind_of_key_lets_in_by_its_own_algorithm_alone(issuer: Issuer) -> None:
    for key, algorithm in ((issuer.rsa, "RS256"), (issuer.ec, "ES256"), (issuer.ed, "Ed25519")):
        token = jwt.encode({"alg": algorithm, "kid": key.kid}, issuer.claims(), key, algorithms=[algorithm])
        assert issuer.provider.caller(token).id == "jwt:s"
        _, claims, signature = token.split(".")
        for other in (
            "RS256",
            "PS256",
            "ES256",
            "ES384",
            "EdDSA",
            "Ed25519",
            "HS256",
            "none",
            "",
            None,
            5,
            [algorithm],
        ):
            if other not in (algorithm, "EdDSA"):
                assert refused(
                    issuer.provider, f"{part({'alg': other, 'kid': key.kid})}.{claims}.{signature}"
                ), other


def test_signatures_that_sign_nothing(issuer: Issuer) -> None:
    head, claims, signature = issuer.token().split(".")
    empty = {  # CVE-2022-21449: r and s of zero verify everything where nobody looks
        "ES256": (b"\x00" * 64, b"", b"\x00", b"\xff" * 64),
        "RS256": (b"\x00" * 256, b"", b"\x00" * 255 + b"\x01"),
        "Ed25519": (b"\x00" * 64, b"\x01" + b"\x00" * 63),
    }
    for algorithm, signatures in empty.items():
        kid = {"ES256": "ec", "RS256": "rsa", "Ed25519": "ed"}[algorithm]
        for forged in signatures:
            assert refused(issuer.provider, f"{part({'alg': algorithm, 'kid': kid})}.{claims}.{part(forged)}")
    broken = (
        *(
            f"{head}.{claims}.",
            f"{head}..{signature}",
            f".{claims}.{signature}",
            "..",
            "\x00.\x00.\x00",
            "é.é.é",
        ),
        *(f"{head}.{claims}.{signature}A", f"{head}.{claims}.{signature[:-2]}", "a.b." + "c" * 60_000),
    )
    for token in broken:
        assert refused(issuer.provider, token), token[:40]


def test_headers_that_ask_for_something_else(issuer: Issuer) -> None:
    def with_header(**changes: Any) -> str:
        return jwt.encode({"alg": "RS256", "kid": "rsa", **changes}, issuer.claims(), issuer.rsa)

    _, claims, signature = issuer.token().split(".")
    for header in (
        {"crit": ["exp"], "exp": 1},
        {"b64": False, "crit": ["b64"]},
        {"crit": []},
        {"crit": "b64"},
    ):
        assert refused(
            issuer.provider, f"{part({'alg': 'RS256', 'kid': 'rsa', **header})}.{claims}.{signature}"
        )
    for kid in ("../../rsa", "rsa\x00", "' OR 1=1", "", None, 7, ["rsa"], {"a": 1}, "x" * 10_000):
        assert refused(issuer.provider, f"{part({'alg': 'RS256', 'kid': kid})}.{claims}.{signature}"), kid
    assert not refused(issuer.provider, with_header(typ="JWT"))
    sealed = jwe.encrypt_compact({"alg": "RSA-OAEP", "enc": "A256GCM", "kid": "rsa"}, b"{}", issuer.rsa)
    assert refused(issuer.provider, sealed)
    nested = jwt.encode({"alg": "RS256", "kid": "rsa", "cty": "JWT"}, {"a": issuer.token()}, issuer.rsa)
    assert refused(issuer.provider, nested)


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["other"]},
        {"aud": "FTAAS"},
        {"aud": {"ftaas": 1}},
        {"aud": ""},
        {"aud": None},
        {"iss": ["https://id.acme.org"]},
        {"iss": "https://id.acme.org/"},
        {"iss": "https://id.acme.org.mallory.org"},
        {"exp": "never"},
        {"exp": None},
        {"exp": True},
        {"exp": -1},
        {"nbf": NOW + 60},
        {"iat": NOW + 600},
        {"sub": ""},
        {"sub": {"a": 1}},
    ],
    ids=str,
)
def test_claims_that_are_not_quite_right(issuer: Issuer, changes: dict[str, Any]) -> None:
    assert refused(issuer.provider, issuer.token(**changes))


def test_claims_that_are_no_object_or_say_a_thing_twice(issuer: Issuer) -> None:
    """What is signed is what counts; of two claims of a name, one reader decides."""
    from joserfc import jws

    def signed(content: bytes) -> str:
        return jws.serialize_compact({"alg": "RS256", "kid": "rsa"}, content, issuer.rsa)

    for content in (b"[]", b"null", b"7", b'"s"', b"", b"{", b"\xff", b"[" * 100_000):
        assert refused(issuer.provider, signed(content)), content[:20]
    twice = json.dumps(issuer.claims(aud="other"))[:-1] + ', "aud": "ftaas"}'
    assert not refused(issuer.provider, signed(twice.encode()))
    assert refused(issuer.provider, signed((json.dumps(issuer.claims())[:-1] + ', "aud": "other"}').encode()))


def test_a_check_takes_no_longer_for_a_key_that_is_nearly_right(tmp_path: Path) -> None:
    """Medians of many checks in turn: an unknown id, a known one with the wrong secret from the first or only
    in the last letter. What they could tell would be thousands of bytes' worth of a network's noise."""
    ledger, pepper = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", tmp_path), b"p" * 32
    _, key = keys.issue(
        ledger, pepper, name="x", projects=["*"], environments=["staging"], actions=ACTIONS,
        allowance=Allowance(), expires=None, actor="olga",
    )  # fmt: skip
    access = Access("staging", True, pepper, lambda: ledger)
    access.refresh()
    start = key[: -len(key.rpartition("_")[2])]
    flip: Callable[[str], str] = lambda c: "0" if c != "0" else "1"  # noqa: E731
    wrong = {
        "unknown": keys.new_key()[1],
        "wrong at once": start + flip(key[len(start)]) + key[len(start) + 1 :],
        "wrong at last": key[:-1] + flip(key[-1]),
    }
    took: dict[str, list[float]] = {name: [] for name in wrong}
    names = list(wrong)
    for _ in range(3000):
        random.shuffle(names)
        for name in names:
            began = time.perf_counter()
            try:
                access.authenticate(f"Bearer {wrong[name]}")
            except RequestRefused:
                took[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in took.items()}
    assert len(took["unknown"]) == 3000 and max(medians.values()) < 1.25 * min(medians.values()), medians
