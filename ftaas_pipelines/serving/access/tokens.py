"""Tokens instead of keys: those of an identity provider (OIDC), and the platform's own for a minute."""

import hashlib
import hmac
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from joserfc import jwk, jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.serving.access.caller import ACTIONS, Action, Allowance, Caller
from ftaas_pipelines.serving.openai_shapes import RequestRefused
from ftaas_pipelines.settings import Settings

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
_KEPT_S = 600.0  # and after this in any case: a key that the provider took back must go here, too
_PROVIDER_WITHIN_S = 1.5  # refresh() also hears of revoked keys: it must not wait long
_LEEWAY_S = 30
_NO_LIMIT = Allowance()


def invalid_key() -> RequestRefused:
    """401: what was given is no valid key or token. It says no more: that would help to guess."""
    said = "No valid API key or token was given: Authorization: Bearer ftaas_…"
    return RequestRefused(401, said, "invalid_api_key", None, {"WWW-Authenticate": "Bearer"})


def operator_token(pepper: bytes, environment: str, actor: str, now: float | None = None) -> str:
    """A token by which the platform itself asks an endpoint, for a minute."""
    ends = int((time.time() if now is None else now) + OPERATOR_S)
    return f"{OPERATOR}.{ends}.{_operator_mac(pepper, environment, actor, ends)}.{quote(actor)}"


def _operator_mac(pepper: bytes, environment: str, actor: str, ends: int) -> str:
    message = json.dumps([OPERATOR, environment, actor, ends]).encode()
    return hmac.new(pepper, message, hashlib.sha256).hexdigest()


def operator(pepper: bytes, environment: str, token: str, now: float) -> Caller:
    """The platform's own caller.

    Raises:
        RequestRefused: 401.
    """
    name, ends, given, quoted = [*token.split(".", 3), "", "", ""][:4]
    actor = unquote(quoted)
    until = int(ends) if ends.isdecimal() and len(ends) < 12 else 0
    right = hmac.compare_digest(
        _operator_mac(pepper, environment, actor, until).encode(), given.encode(errors="replace")
    )
    if name != OPERATOR or not right or not now <= until <= now + OPERATOR_S + _LEEWAY_S:
        raise invalid_key()
    return Caller(f"operator:{actor}")


class Provider:
    """An OpenID provider whose tokens are taken.

    Args:
        jwks: its public keys: a file, or an https URL that is read by `refresh`.
        once: refuse a token (`jti`) that was used before.
        allowance: of each subject.

    Raises:
        InputInvalid: no place of keys is told, or one that could be tampered with on the way.
    """

    def __init__(
        self,
        issuer: str,
        audience: str,
        jwks: str,
        once: bool = False,
        allowance: Allowance = _NO_LIMIT,
        clock: Callable[[], float] = time.time,
    ):
        if not jwks or ("://" in jwks and not jwks.startswith("https://")):
            do = "name a file, or an https URL"
            raise InputInvalid("is no place of an issuer's keys", "FTAAS_OIDC_JWKS", jwks, do)
        if not issuer or not audience:
            raise InputInvalid("is empty", "FTAAS_OIDC_ISSUER or FTAAS_OIDC_AUDIENCE", do="set both")
        self._jwks, self._once, self._clock, self._allowance = jwks, once, clock, allowance
        self._keys: KeySet | None = None
        self._read_at = float("-inf")
        self._unknown = False
        self._seen: dict[str, float] = {}
        self._sweep_at = 0.0
        self._registry = jwt.JWTClaimsRegistry(
            now=lambda: int(clock()),
            leeway=_LEEWAY_S,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": audience},
            sub={"essential": True},
            exp={"essential": True},
        )

    @classmethod
    def of(cls, settings: Settings) -> "Provider":
        """As the settings say. Raises InputInvalid, as above."""
        return cls(
            settings.oidc_issuer,
            settings.oidc_audience,
            settings.oidc_jwks,
            bool(settings.oidc_once),
            Allowance.parse(settings.oidc_allowance, "FTAAS_OIDC_ALLOWANCE"),
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
            claims = jwt.decode(token, self._keys, algorithms=ALGORITHMS).claims
            self._registry.validate(claims)
        except InvalidKeyIdError:
            self._unknown = True
            raise invalid_key() from None
        except (JoseError, ValueError, KeyError, TypeError, AttributeError):
            raise invalid_key() from None
        if self._once and not self._first_use(claims):
            raise invalid_key()
        projects, actions = _names(claims.get("ftaas_projects")), _actions(claims)
        return Caller(f"jwt:{claims['sub']}", projects, actions, self._allowance)

    def _first_use(self, claims: dict[str, Any]) -> bool:
        """Whether this gateway sees a token for the first time; one without a name cannot be told apart."""
        jti, now = claims.get("jti"), self._clock()
        if not jti or self._seen.get(jti, 0.0) > now:
            return False
        if now >= self._sweep_at:  # not at each request: there may be many
            self._seen = {seen: ends for seen, ends in self._seen.items() if ends > now}
            self._sweep_at = now + _REREAD_S
        self._seen[jti] = float(claims["exp"]) + _LEEWAY_S + 1
        return True

    def refresh(self) -> None:
        """Read the provider's keys: at first, when a token named an unknown one, and every ten minutes.

        Raises:
            OSError: they cannot be had.
            ValueError: they are no JWK set with a key that verifies.
        """
        wanted = self._keys is None or self._unknown
        if self._clock() - self._read_at < (_REREAD_S if wanted else _KEPT_S):
            return
        self._read_at, self._unknown = self._clock(), False
        self._keys = _usable(json.loads(self._text()))

    def _text(self) -> str:
        if "://" not in self._jwks:
            return Path(self._jwks).read_text("utf-8")
        import httpx

        try:
            answer = httpx.get(self._jwks, timeout=_PROVIDER_WITHIN_S, trust_env=False)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise OSError(f"the provider's keys cannot be read: {error}") from error
        return answer.text


def _usable(jwks: Any) -> KeySet:
    """The keys of a set that may verify: a kind that is not known here does not take the others along.

    Raises:
        ValueError: there is none.
    """
    found: list[Any] = []
    listed: list[Any] = jwks.get("keys") or [] if isinstance(jwks, dict) else []  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    for one in listed:
        try:
            key = jwk.import_key(one)
        except (JoseError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if key.key_type != "oct":  # a secret, and none of ours
            found.append(key)
    if not found:
        raise ValueError("the provider's JWK set has no key that verifies tokens")
    return KeySet(found)


def _names(given: Any) -> tuple[str, ...]:
    """What a claim lists; nothing where it is missing or no list."""
    return tuple(str(name) for name in given) if isinstance(given, list) else ()  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _actions(claims: dict[str, Any]) -> frozenset[Action]:
    given = claims.get("ftaas_actions")
    return frozenset(ACTIONS) if given is None else frozenset(a for a in ACTIONS if a in _names(given))
