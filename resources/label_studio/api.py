"""Calls of Label Studio's own SDK, with its errors turned into ours.

The SDK's errors print the whole answer, session cookie included: none of them leaves this module. It
retries POST on 409, 429 and 5xx, which makes things twice: nothing is retried here, every caller comes again.
"""

import weakref
from collections.abc import Callable
from functools import cached_property
from typing import Any

import httpx

from ftaas_pipelines.errors import FtaasError, Problem
from ftaas_pipelines.store import digest_of, short

TIMEOUT_S = 30
BULK_TIMEOUT_S = 180
_SHOWN = 300


class LabelStudioError(FtaasError):
    """Label Studio did not do what it was asked. `status` is its HTTP status; None: it did not answer."""

    def __init__(self, problem: Problem, status: int | None = None):
        super().__init__([problem])
        self.status = status


class Api:
    """One server, seen with one token (a legacy token, or a personal access token)."""

    def __init__(self, url: str, token: str):
        self.url, self._token = url.rstrip("/"), token

    def call(
        self,
        doing: str,
        function: Callable[[Any, Any], Any],
        *,
        timeout_s: int = TIMEOUT_S,
        shows_data: bool = False,
    ) -> Any:
        """What `function(sdk, once)` returns; `once` are the SDK's request_options: asked once, not again.

        Args:
            doing: what is tried, for the message: "open the round".
            shows_data: the server's answer may quote rows: it is left out of the message.

        Raises:
            LabelStudioError: it did not work; says what to do.
        """
        from label_studio_sdk.core.api_error import ApiError

        try:
            return function(self.sdk, {"max_retries": 0, "timeout_in_seconds": timeout_s})
        except ApiError as error:
            status, detail = error.status_code or 0, "" if shows_data else _detail(error.body)
            failure = LabelStudioError(self._problem(doing, status, detail), status)
        except httpx.TimeoutException:
            do = "it is overloaded or hangs; this is tried again at the next tick or run"
            failure = LabelStudioError(
                Problem(f"Label Studio did not answer in time to {doing}", self.url, do=do)
            )
        except httpx.HTTPError as error:
            what = f"Label Studio cannot be reached to {doing}"
            do = "start it (`make dev`, or what FTAAS_LABEL_STUDIO_URL names), then run the same again"
            failure = LabelStudioError(Problem(what, self.url, type(error).__name__, do))
        except ValueError:  # JSON that is none, or another shape than the SDK knows
            do = "is FTAAS_LABEL_STUDIO_URL the address of a Label Studio, without a path behind it?"
            what = f"something else than Label Studio answered to {doing}"
            failure = LabelStudioError(Problem(what, self.url, do=do))
        # Raised out here, so that no traceback carries the SDK's error along.
        raise failure

    @cached_property
    def sdk(self) -> Any:
        """The SDK's client. Importing it takes seconds, so only who calls pays."""
        from label_studio_sdk import LabelStudio

        client = httpx.Client(timeout=TIMEOUT_S, follow_redirects=True)
        weakref.finalize(self, client.close)
        return LabelStudio(base_url=self.url, api_key=self._token, httpx_client=client)

    @cached_property
    def me(self) -> Any:
        """The account of the token."""
        return self.call("say who we are", lambda sdk, once: sdk.users.whoami(request_options=once))

    @cached_property
    def organisation(self) -> Any:
        """The one organisation of a community server."""
        number = self.me.active_organization
        return self.call(
            "show its organisation", lambda sdk, once: sdk.organizations.get(number, request_options=once)
        )

    @cached_property
    def server(self) -> str:
        """Names this installation: stays the same at another address, and differs after a reset."""
        made = {"organisation": self.organisation.id, "created_at": self.organisation.created_at.isoformat()}
        return f"label-studio-{short(digest_of(made))}"

    def _problem(self, doing: str, status: int, detail: str) -> Problem:
        got = f"status {status}" + (f": {detail}" if detail else "")
        if status in (401, 403):
            do = "set FTAAS_LABEL_STUDIO_TOKEN to a valid token of the platform's account (they expire)"
            return Problem(f"Label Studio refused the platform's token to {doing}", self.url, got, do)
        if status in (408, 409, 429):
            do = "nothing is lost: it is tried again at the next tick or run"
            return Problem(f"Label Studio is busy and did not {doing}", self.url, got, do)
        if status >= 500 or status == 0:
            do = "see its log (of `make dev`: logs/dev/label_studio.log); then run the same again"
            return Problem(f"Label Studio failed to {doing}", self.url, got, do)
        return Problem(f"Label Studio would not {doing}", self.url, got, "mend what it names, then run again")


def _detail(body: Any) -> str:
    if not isinstance(body, dict):
        return ""  # a page of HTML
    found = body.get("validation_errors") or body.get("detail") or ""
    return " ".join(str(found).split())[:_SHOWN]
