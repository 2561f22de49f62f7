"""`python -m ftaas_pipelines.serving.supervisor --environment ENV`: one environment's supervisor.

It owns the public port and everything behind it: the gateway (`gateway.py`), through which requests come,
and the loop that keeps the engines running (`supervision.py`).
"""

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import cache

import aiohttp
import httpx
import uvicorn
import uvloop

from ftaas_pipelines import settings as all_settings
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.governance.ledger import Ledger, open_ledger
from ftaas_pipelines.serving import connections, gateway, logs, tls, traces, upstream, verified
from ftaas_pipelines.serving.access import Access
from ftaas_pipelines.serving.access.limits import Limits
from ftaas_pipelines.serving.desired import Folder, ReleaseToServe, Terms
from ftaas_pipelines.serving.guard import Guard
from ftaas_pipelines.serving.inference_log import InferenceLog
from ftaas_pipelines.serving.meter import Meter
from ftaas_pipelines.serving.request import Endpoint
from ftaas_pipelines.serving.rollout.watching import Watching
from ftaas_pipelines.serving.routing import Routes
from ftaas_pipelines.serving.supervision import Supervisor, say
from ftaas_pipelines.settings import Settings

_REFRESH_S = 1.0  # a revoked key is refused well within 5 s


def _verify(settings: Settings, folder: Folder) -> Callable[[ReleaseToServe], str | None]:
    ledger = _ledger(settings)
    return lambda release: verified.problem(ledger(), release, folder.environment)


def _ledger(settings: Settings) -> Callable[[], Ledger]:
    """The ledger, opened when it is first asked: the supervisor starts also while it cannot be reached."""
    return cache(lambda: open_ledger(settings))


def _endpoint(
    settings: Settings, folder: Folder, session: aiohttp.ClientSession, supervisor: Supervisor
) -> Endpoint:
    """What requests need on their way, from the settings and from what was deployed."""

    def terms(project: str) -> Terms:
        entry = supervisor.desired.projects.get(project)
        return entry.terms if entry else Terms()

    def keep_days() -> dict[str, int]:
        return {name: entry.terms.answers.keep_days for name, entry in supervisor.desired.projects.items()}

    guards: dict[str, Guard] = {}

    def guard(project: str) -> Guard:
        rules = terms(project).guard
        known = rules.model_dump_json()
        if known not in guards:
            guards[known] = Guard(rules)
        return guards[known]

    return Endpoint(
        folder.environment,
        Access.of(settings, folder.environment, _ledger(settings)),
        Limits.of(settings),
        Routes(supervisor),
        session,
        Meter(),
        InferenceLog(folder.answers, by_project=keep_days),
        guard,
        terms,
        traces.opened(folder.environment),
    )


async def _serve(
    settings: Settings, folder: Folder, listener: socket.socket, certificate: tls.Certificate | None
) -> None:
    async with httpx.AsyncClient(trust_env=False) as client, upstream.session() as session:
        url = tls.url(settings, folder.environment)
        supervisor = Supervisor(settings, folder, client, _verify(settings, folder), url)
        endpoint = _endpoint(settings, folder, session, supervisor)
        endpoint.log.start()
        config = uvicorn.Config(
            gateway.application(endpoint, supervisor),
            log_config=None,  # its lines go where ours go
            log_level="warning",
            timeout_graceful_shutdown=10,
            timeout_keep_alive=75,
            server_header=False,
            http=connections.bounded(connections.most_connections()),
            ws="none",
            proxy_headers=False,  # nothing here asks where a request came from
            ssl_context_factory=(lambda *_: certificate.context) if certificate else None,
        )
        await _heard(endpoint)  # before the first request
        beside = [_refresh(endpoint), Watching(settings, supervisor).run()]
        if certificate:
            beside.append(certificate.watch())
        watching = [asyncio.create_task(each) for each in beside]
        loop = asyncio.create_task(supervisor.run())
        server = uvicorn.Server(config)
        loop.add_done_callback(lambda _: setattr(server, "should_exit", True))
        # uvicorn raises the signals it caught once more when it is done; by then they mean nothing.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        try:
            await server.serve(sockets=[listener])
        finally:
            for task in (loop, *watching):
                task.cancel()
            ended, *_ = await asyncio.gather(loop, *watching, return_exceptions=True)
            await supervisor.close()
            await endpoint.limits.close()
            await asyncio.to_thread(endpoint.log.close)
            if endpoint.traces:
                await asyncio.to_thread(endpoint.traces.close)
        if not isinstance(ended, asyncio.CancelledError):
            raise ended if isinstance(ended, BaseException) else RuntimeError("the watch ended")


async def _refresh(endpoint: Endpoint) -> None:
    """Hear of new and revoked keys, for ever."""
    said = ""
    while True:
        said = await _heard(endpoint, said)
        await asyncio.sleep(_REFRESH_S)


async def _heard(endpoint: Endpoint, said: str = "") -> str:
    """Read the keys once. Returns what went wrong, if anything: what was known holds, and it is asked again.

    Args:
        said: what was told last; the same is not told every second.
    """
    try:
        await asyncio.to_thread(endpoint.access.refresh)
    except Exception as error:
        if (wrong := f"{type(error).__name__}: {error}") != said:
            say(f"keys cannot be read: {wrong}")
        return wrong
    return ""


def _detach() -> None:
    """Leave the caller: its own session, adopted by init, so that nobody is left a zombie to reap."""
    if os.fork():
        os._exit(0)
    os.setsid()


def main(argv: list[str] | None = None) -> int:
    """Supervise one environment until SIGTERM. Exit 0 also when another supervisor already does."""
    parser = argparse.ArgumentParser(prog="python -m ftaas_pipelines.serving.supervisor")
    parser.add_argument("--environment", required=True, choices=all_settings.ENVIRONMENTS)
    parser.add_argument("--detach", action="store_true", help="go to the background")
    options = parser.parse_args(argv)
    settings = all_settings.load()
    folder = Folder(settings.home, options.environment)
    if options.detach:
        _detach()
    held = folder.hold()
    if held is None:
        return 0
    logs.start(folder.log)
    for left in folder.engines.glob("*.json"):  # by a supervisor that was killed
        left.unlink()
    try:
        certificate = tls.Certificate(settings, say) if tls.wanted(settings) else None
    except InputInvalid as error:
        say(str(error))
        return error.exit_code
    try:
        listener = socket.create_server(("127.0.0.1", settings.port(options.environment)), backlog=512)
    except OSError as error:
        say(f"port {settings.port(options.environment)}: {error.strerror}")
        return 2
    # asyncio does this only for sockets that name their protocol; without it an answer's head and body
    # wait 40 ms for each other (Nagle against delayed acknowledgement). Accepted sockets inherit it.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    say(f"supervisor {os.getpid()} on port {settings.port(options.environment)}")
    with listener:
        uvloop.run(_serve(settings, folder, listener, certificate))
    return 0


if __name__ == "__main__":
    sys.exit(main())
