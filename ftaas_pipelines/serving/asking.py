"""Asking an endpoint on this machine as its operator: `ftaas ask`, and the checks of a deployment."""

import time
from typing import Any

import httpx

from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.serving import deployments, tls
from ftaas_pipelines.serving.access import keys, tokens
from ftaas_pipelines.serving.deployments import Deployment
from ftaas_pipelines.settings import Settings


def ask(
    settings: Settings,
    environment: str,
    project: str,
    question: str | list[dict[str, Any]],
    system: str | None = None,
    max_tokens: int | None = None,
) -> dict[str, Any]:
    """Ask one question, or go on with a conversation of messages in OpenAI's shape.

    The result is what `ftaas ask --json` prints, and `release` and `token_ids` (None from a server that tells
    none).

    Raises:
        InputInvalid: the project is not deployed there.
        FtaasError: it does not answer.
    """
    target = deployments.deployment(settings, environment, project)
    messages = [{"role": "system", "content": system}] if system else []
    asked = [{"role": "user", "content": question}] if isinstance(question, str) else question
    body: dict[str, Any] = {
        "model": project,
        "messages": [*messages, *asked],
        "return_token_ids": True,
    }
    if max_tokens:
        body["max_tokens"] = max_tokens
    started = time.monotonic()
    pepper = keys.pepper(settings.home, settings.access_pepper)
    token = tokens.operator_token(pepper, environment, settings.who)
    headers = {"authorization": f"Bearer {token}"}
    # The port is on this machine's loopback, whatever name its certificate is for; that name is checked.
    named = httpx.URL(target.url)
    url = named.copy_with(host="127.0.0.1", path="/v1/chat/completions")
    verify = tls.trusted(settings) if named.scheme == "https" else True
    try:
        with httpx.Client(timeout=600, trust_env=False, verify=verify) as client:
            answer = client.post(url, json=body, headers=headers, extensions={"sni_hostname": named.host})
        content = answer.json()
    except httpx.ConnectError as error:
        if "CERTIFICATE_VERIFY_FAILED" not in str(error):
            raise _silent(target, error) from None
        raise FtaasError(
            "its certificate is not trusted here",
            target.url,
            str(error).partition("failed: ")[2],
            "set FTAAS_TLS_CA to the PEM file of who vouches for it",
        ) from None
    except (httpx.HTTPError, ValueError) as error:
        raise _silent(target, error) from None
    if answer.status_code != 200:
        raise FtaasError(content["error"]["message"], target.url, str(answer.status_code), "see its log")
    choice = content["choices"][0]
    return {
        "answer": choice["message"]["content"],
        "response_id": content["id"],
        "model": content["model"],
        "adapter_digest": content["adapter_digest"],
        "usage": {k: content["usage"][k] for k in ("prompt_tokens", "completion_tokens")},
        "latency_ms": round((time.monotonic() - started) * 1000, 1),
        "release": content["release"],
        "token_ids": choice.get("token_ids"),
    }


def _silent(target: Deployment, error: Exception) -> FtaasError:
    return FtaasError(
        f"does not answer ({type(error).__name__})",
        target.url,
        target.reason or target.state,
        f"run `ftaas deployment up {target.project} --env {target.env}`",
    )
