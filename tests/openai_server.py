"""A stand-in for vLLM, which cannot run here: its HTTP paths, and answers that say who answered.

It speaks OpenAI's API as vLLM 0.10 does (`/v1/models`, `/v1/load_lora_adapter`, `/v1/unload_lora_adapter`,
chat whole and streamed) and can be told to fail.
"""

import asyncio
import json
import threading
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any

from aiohttp import web

KEY = "upstream-key-of-the-test"


class OpenAIServer:
    """Runs in a thread.

    Attributes:
        adapters: name to path, as they were registered.
        asked: the bodies of questions.
        failing: statuses that the next questions get; 0 closes the connection without a word.
    """

    def __init__(self) -> None:
        self.adapters: dict[str, str] = {}
        self.asked: list[dict[str, Any]] = []
        self.failing: deque[int] = deque()
        self.models = ["base"]
        self.slow_s = 0.0
        self.code: Any = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "OpenAIServer":
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self) -> None:
        """Listen (again, at the same port)."""
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    def stop(self) -> None:
        """As a server that was killed: it forgets what was registered."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self.adapters.clear()

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        app.router.add_post("/v1/chat/completions", self._chat)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()
        self._runner = None

    def _known(self, request: web.Request) -> None:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            raise web.HTTPUnauthorized(text=json.dumps({"error": {"message": f"wrong key, not {KEY}"}}))

    async def _models(self, request: web.Request) -> web.Response:
        self._known(request)
        names = [*self.models, *self.adapters]
        return web.json_response({"object": "list", "data": [{"id": n, "object": "model"} for n in names]})

    async def _load(self, request: web.Request) -> web.Response:
        self._known(request)
        asked = await request.json()
        if not (Path(asked["lora_path"]) / "adapter_config.json").is_file():
            return web.json_response({"object": "error", "message": "no adapter", "code": 404}, status=404)
        self.adapters[asked["lora_name"]] = asked["lora_path"]
        return web.Response(text="Success")

    async def _unload(self, request: web.Request) -> web.Response:
        self._known(request)
        self.adapters.pop((await request.json())["lora_name"], None)
        return web.Response(text="Success")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self._known(request)
        body = await request.json()
        self.asked.append(body)
        if self.slow_s:
            await asyncio.sleep(self.slow_s)
        if self.failing and (status := self.failing.popleft()) != 200:
            if status == 0:
                assert request.transport is not None
                request.transport.close()
            return web.json_response({"error": {"message": "no", "code": self.code or status}}, status=status)
        if body["model"] not in [*self.models, *self.adapters]:
            return web.json_response({"error": {"message": "no such model", "code": 404}}, status=404)
        said = f"{body['model']} says: write to ann@acme.org"
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        common = {"id": "theirs", "created": 1, "model": body["model"]}
        if not body.get("stream"):
            message = {"role": "assistant", "content": said}
            choice = {"index": 0, "finish_reason": "stop", "logprobs": None, "message": message}
            return web.json_response(
                {**common, "object": "chat.completion", "choices": [choice], "usage": usage}
            )
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        pieces: list[Any] = [
            {"role": "assistant", "content": ""},
            *({"content": w + " "} for w in said.split()),
            {},
        ]
        for n, delta in enumerate(pieces):
            finish = "stop" if n == len(pieces) - 1 else None
            choice = {"index": 0, "finish_reason": finish, "logprobs": None, "delta": delta}
            await _event(response, {**common, "object": "chat.completion.chunk", "choices": [choice]})
        await _event(response, {**common, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response


async def _event(response: web.StreamResponse, body: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(body).encode() + b"\n\n")
