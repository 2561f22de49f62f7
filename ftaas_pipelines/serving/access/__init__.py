"""Who may ask an environment: API keys, tokens of an identity provider, the platform itself."""

import hmac
import time
from collections.abc import Callable

from ftaas_pipelines.governance.ledger import Ledger
from ftaas_pipelines.serving.access import keys, tokens
from ftaas_pipelines.serving.access.caller import Caller
from ftaas_pipelines.serving.access.keys import Key
from ftaas_pipelines.serving.access.tokens import Provider, invalid_key
from ftaas_pipelines.settings import Settings

_NOBODY = "0" * 64  # what an unknown key is compared with, so that it takes as long as a known one


class Access:
    """Tells who asks. `authenticate` touches neither disk nor network; `refresh` does.

    Args:
        required: whether a key or token must be given; without it, who gives none is `anonymous`.
        ledger: opens the ledger, where keys are issued and revoked.
    """

    def __init__(
        self,
        environment: str,
        required: bool,
        pepper: bytes,
        ledger: Callable[[], Ledger],
        provider: Provider | None = None,
        clock: Callable[[], float] = time.time,
    ):
        self._environment, self._required, self._pepper = environment, required, pepper
        self._ledger, self._provider, self._clock = ledger, provider, clock
        self._keys: dict[str, Key] = {}
        self._seq = 0

    @classmethod
    def of(cls, settings: Settings, environment: str, ledger: Callable[[], Ledger]) -> "Access":
        """As the settings say.

        Raises:
            InputInvalid: a setting is wrong, or the pepper cannot be read.
        """
        provider = Provider.of(settings) if settings.oidc_issuer else None
        pepper = keys.pepper(settings.home, settings.access_pepper)
        return cls(environment, settings.access_required, pepper, ledger, provider)

    def authenticate(self, authorization: str | None) -> Caller:
        """Who asks, by the Authorization header.

        Raises:
            RequestRefused: 401.
        """
        scheme, _, given = (authorization or "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else ""
        if given.startswith(f"{tokens.OPERATOR}."):
            return tokens.operator(self._pepper, self._environment, given, self._clock())
        if given.startswith(keys.PREFIX):
            return self._by_key(given)
        if self._provider and given.count(".") == 2:
            return self._provider.caller(given)
        if self._required:
            raise invalid_key()
        return Caller("anonymous")

    def _by_key(self, given: str) -> Caller:
        known = self._keys.get(keys.id_of(given) or "")
        right = hmac.compare_digest(
            keys.mac(self._pepper, given[:200]).encode(), (known.mac if known else _NOBODY).encode()
        )
        if not known or not right or known.state(self._clock()) != "valid":
            raise invalid_key()
        if self._environment not in known.environments:
            raise invalid_key()
        return known.caller

    def refresh(self) -> None:
        """Hear of keys issued and revoked since the last time, and of the provider's keys.

        Raises:
            FtaasError, OSError, ValueError: the ledger or the provider cannot be asked or understood; what
                was known still holds.
        """
        try:
            entries = self._ledger().entries(keys.KINDS, authentic=True, after=self._seq)
            keys.add(self._keys, entries)
            self._seq = max([self._seq, *(e.seq for e in entries)])
        finally:
            if self._provider:
                self._provider.refresh()
