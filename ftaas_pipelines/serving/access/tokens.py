"""Tokens instead of keys: those of an identity provider (OIDC), and the platform's own for a minute."""

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from ftaas_pipelines.serving.access.caller import ACTIONS, Action, Caller
from ftaas_pipelines.serving.openai_shapes import RequestRefused

# Asymmetric ones alone: with HS256 among them, the provider's public key would be a secret to sign with.
ALGORITHMS = [
    "RS256",
    "RS384",
    "RS512",
    "PS256",
    "PS384",
    "PS512",
    "ES256",
    "ES384",
    "ES512",
    "Ed25519",
    "EdDSA",
]
OPERATOR = "ftaas-operator"
OPERATOR_S = 60
_REREAD_S = 60.0  # an unknown key id makes us ask the provider again, no more often than this
_LEEWAY_S = 30


def invalid_key() -> RequestRefused:
    """401: what was given is no valid key or token. It says no more: that would help to guess."""
    said = "No valid API key or token was given: Authorization: Bearer ftaas_…"
    return RequestRefused(401, said, "invalid_api_key", None, {"WWW-Authenticate": "Bearer"})


def operator_token(pepper: bytes, environment: str, actor: str, now: float | None = None) -> str:
    """A token by which the platform itself asks an endpoint, for a minute."""
    ends = int((time.time() if now is None else now) + OPERATOR_S)
    return f"{OPERATOR}.{ends}.{_operator_mac(pepper, environment, actor, ends)}.{actor}"


def _operator_mac(pepper: bytes, environment: str, actor: str, ends: int) -> str:
    message = json.dumps([OPERATOR, environment, actor, ends]).encode()
    return hmac.new(pepper, message, hashlib.sha256).hexdigest()


def operator(pepper: bytes, environment: str, token: str, now: float) -> Caller:
    """The platform's own caller.

    Raises:
        RequestRefused: 401.
    """
    name, ends, given, actor = [*token.split(".", 3), "", "", ""][:4]
    until = int(ends) if ends.isdigit() and len(ends) < 12 else 0
    right = hmac.compare_digest(_operator_mac(pepper, environment, actor, until), given)
    if name != OPERATOR or not right or until < now:
        raise invalid_key()
    return Caller(f"operator:{actor}")


class Provider:
    """An OpenID provider whose tokens are taken.

    Args:
        jwks: its public keys: a file, or an https URL that is read by `refresh`.
        once: refuse a token (`jti`) that was used before.
    """

    def __init__(
        self,
        issuer: str,
        audience: str,
        jwks: str,
        once: bool = False,
        clock: Callable[[], float] = time.time,
    ):
        self._jwks, self._once, self._clock = jwks, once, clock
        self._keys: KeySet | None = None
        self._read_at = float("-inf")
        self._unknown = False
        self._seen: dict[str, float] = {}
        self._registry = jwt.JWTClaimsRegistry(
            now=lambda: int(clock()),
            leeway=_LEEWAY_S,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": audience},
            sub={"essential": True},
            exp={"essential": True},
        )

    def caller(self, token: str) -> Caller:
        """Who a token speaks for. No input or output: keys are read by `refresh`.

        Raises:
            RequestRefused: 401, whatever is wrong with it.
        """
        if self._keys is None:
            raise invalid_key()
        try:
            # The key is found by `kid` among the provider's own: `jku` and `jwk` of the header mean nothing.
            decoded = jwt.decode(token, self._keys, algorithms=ALGORITHMS)
            claims = decoded.claims
            self._registry.validate(claims)
            self._use(claims)
        except (JoseError, ValueError, KeyError, TypeError) as error:
            self._unknown |= "kid" in str(error).lower() or isinstance(error, ValueError)
            raise invalid_key() from None
        return Caller(f"jwt:{claims['sub']}", _names(claims.get("ftaas_projects")), _actions(claims))

    def _use(self, claims: dict[str, Any]) -> None:
        if not self._once:
            return
        now = self._clock()
        self._seen = {jti: ends for jti, ends in self._seen.items() if ends > now}
        jti = str(claims["jti"])
        if jti in self._seen:
            raise ValueError("used before")
        self._seen[jti] = float(claims["exp"]) + _LEEWAY_S

    def refresh(self) -> None:
        """Read the provider's keys when there are none, or when a token named one that is not among them.

        Raises:
            OSError: they cannot be had.
        """
        due = self._clock() - self._read_at >= _REREAD_S
        if not due or (self._keys is not None and not self._unknown):
            return
        self._read_at, self._unknown = self._clock(), False
        self._keys = KeySet.import_key_set(json.loads(self._text()))

    def _text(self) -> str:
        if "://" not in self._jwks:
            return Path(self._jwks).read_text("utf-8")
        import httpx

        try:
            answer = httpx.get(self._jwks, timeout=10, trust_env=False)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise OSError(f"the provider's keys cannot be read: {error}") from error
        return answer.text


def _names(given: Any) -> tuple[str, ...]:
    """Projects of a claim: a list; none where it is missing."""
    return tuple(str(name) for name in given) if isinstance(given, list) else ()  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _actions(claims: dict[str, Any]) -> frozenset[Action]:
    given = claims.get("ftaas_actions")
    return frozenset(ACTIONS) if given is None else frozenset(a for a in ACTIONS if a in given)
