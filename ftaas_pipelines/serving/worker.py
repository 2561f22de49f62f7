"""`python -m ftaas_pipelines.serving.worker BENTO --fd N`: the Bento's service, for the gateway alone.

It runs in the Bento's folder, so this very file is the Bento's own. What `bentoml serve` would start lies
behind it, but requests for answers go straight to the application: BentoML's layers measure, trace and time
what the gateway does already, for 1.5 ms a request, and keep a timer of each for ten minutes.
"""

import argparse
import socket
import sys

import uvicorn
from _bentoml_impl.loader import load
from bentoml._internal.log import configure_server_logging  # noqa: TID253 this is the engine
from starlette.types import ASGIApp, Receive, Scope, Send

STRAIGHT = "/v1/"
_BACKLOG = 2048  # connections that wait to be taken


class Front:
    """Requests for answers to the application, the others (probes, pages, start and stop) to BentoML."""

    def __init__(self, application: ASGIApp, bento: ASGIApp):
        self._application, self._bento = application, bento

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        straight = scope["type"] == "http" and scope["path"].startswith(STRAIGHT)
        await (self._application if straight else self._bento)(scope, receive, send)


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m ftaas_pipelines.serving.worker")
    parser.add_argument("bento", help="the Bento's folder")
    parser.add_argument("--fd", type=int, required=True, help="descriptor of the listening socket")
    options = parser.parse_args(argv)
    configure_server_logging()
    service = load(options.bento, standalone_load=True)
    from ftaas_pipelines.serving.service import answering

    config = uvicorn.Config(
        Front(answering, service.to_asgi(is_main=True)),
        backlog=_BACKLOG,
        log_config=None,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=10,
        server_header=False,
        date_header=False,
    )
    with socket.socket(fileno=options.fd) as listener:
        uvicorn.Server(config).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
