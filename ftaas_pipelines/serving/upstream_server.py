"""A server of somebody else's (vLLM, a hyperscaler's endpoint) that answers for releases.

It is asked what it has every few seconds. Where it takes adapters while it runs, those of our releases are
registered there under names of this environment's own, again when it has forgotten them in a restart. An
adapter's digest is checked before; what base the server runs, and what it does with an adapter, nobody can
check from here.
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import httpx

from ftaas_pipelines.projects.upstream import Upstream
from ftaas_pipelines.serving.desired import Folder, ReleaseToServe
from ftaas_pipelines.serving.engines import AnsweringEngine
from ftaas_pipelines.settings import Settings
from ftaas_pipelines.store import Artifact, short

WATCH_S = 5.0
_SOON_S = 0.5
_GIVEN_UP_AFTER = 3  # times in a row that it could not be reached
_REGISTER_WITHIN_S = 60.0
_OURS = frozenset({"return_token_ids", "max_completion_tokens"})  # what other servers need not know


class UpstreamServer(AnsweringEngine):
    """Releases that another server answers for.

    Raises:
        OSError: the environment variable of its key is not set.
    """

    ours = False

    def __init__(self, releases: Sequence[ReleaseToServe], environ: Mapping[str, str] = os.environ):
        super().__init__(releases)
        upstream = releases[0].upstream
        assert upstream is not None
        self._upstream: Upstream = upstream
        self.url, self.attempts = upstream.url, upstream.attempts
        self.timeout = aiohttp.ClientTimeout(total=upstream.timeout_s, sock_connect=5)
        if name := upstream.key_variable:
            if not environ.get(name):
                raise OSError(f"the environment variable {name} of the supervisor holds no key")
            self.headers = {"authorization": f"Bearer {environ[name]}"}
        self._environment, self._store = "", Path()
        self._registered: set[str] = set()
        self._failures = 0
        self._ended: int | None = None
        self._watching: asyncio.Task[None] | None = None
        self._telling = asyncio.Lock()

    @property
    def ended(self) -> int | None:
        return self._ended

    async def start(self, folder: Folder, settings: Settings, client: httpx.AsyncClient) -> None:
        """Begin to watch the server."""
        self._environment, self._store = folder.environment, settings.store_path.resolve()
        self._watching = asyncio.create_task(self._watch(client))

    async def tell(self, releases: Sequence[ReleaseToServe], client: httpx.AsyncClient) -> None:
        self.releases = {r.release: r for r in releases}
        await self._agree(client)

    async def end(self) -> None:
        """Forget what was registered, and stop watching."""
        self._ended = 0
        if self._watching:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    def name(self, release: ReleaseToServe) -> str:
        """What a release is called there: another name in every environment, and for other terms.

        Two of these may share a server; one must not take away what the other has registered.
        """
        terms = release.key.rpartition("-")[2][:6]
        return self._upstream.model or f"{self._environment}-{release.release[:32]}-{terms}"

    def asked(self, release: ReleaseToServe, body: dict[str, Any]) -> dict[str, Any]:
        """The body as any OpenAI-compatible server reads it: greedy unless asked otherwise, as evaluated."""
        wanted = body.get("max_completion_tokens") or body.get("max_tokens") or release.max_new_tokens
        body = {"temperature": 0.0, **{k: v for k, v in body.items() if k not in _OURS and v is not None}}
        return {**body, "model": self.name(release), "max_tokens": min(wanted, release.max_new_tokens)}

    async def _watch(self, client: httpx.AsyncClient) -> None:
        try:
            while True:
                try:
                    await self._agree(client)
                    self._failures = 0
                except httpx.HTTPError as error:
                    self._failures += 1
                    if self._failures >= _GIVEN_UP_AFTER:
                        self.loaded = set()
                        said = f"{self.url} cannot be asked ({type(error).__name__}: {error})"
                        self.problems = dict.fromkeys(self.releases, said)
                await asyncio.sleep(WATCH_S if self.loaded and not self._failures else _SOON_S)
        finally:
            for name in sorted(self._registered):
                await asyncio.shield(self._unregister(client, name))

    async def _agree(self, client: httpx.AsyncClient) -> None:
        """Make what the server has equal to `releases`, as far as it lets us."""
        async with self._telling:
            answer = await client.get(f"{self.url}/v1/models", headers=self.headers, timeout=5.0)
            answer.raise_for_status()
            try:
                there = {str(model["id"]) for model in answer.json()["data"]}
            except (ValueError, KeyError, TypeError) as error:
                raise httpx.DecodingError(f"/v1/models is not understood: {error}") from None
            loaded: set[str] = set()
            problems: dict[str, str] = {}
            for release in list(self.releases.values()):
                problem = await self._have(client, release, there)
                if problem is None:
                    loaded.add(release.release)
                else:
                    problems[release.release] = problem
            for name in self._registered - {self.name(r) for r in self.releases.values()}:
                await self._unregister(client, name)
            self.loaded, self.problems = loaded, problems

    async def _have(self, client: httpx.AsyncClient, release: ReleaseToServe, there: set[str]) -> str | None:
        """Have one release answered for there. Returns why it is not."""
        name = self.name(release)
        if name in there and (self._upstream.adapters == "fixed" or name in self._registered):
            return None
        if self._upstream.adapters == "fixed":
            return f"{self.url} has no model '{name}'; it has {', '.join(sorted(there)) or 'none'}"
        adapter = Artifact("adapter", release.adapter, Path(release.adapter_path))
        try:
            wrong = await asyncio.to_thread(lambda: [str(problem) for problem in adapter.problems()])
        except (OSError, ValueError, KeyError) as error:
            wrong = [f"adapter {short(release.adapter)} cannot be read: {type(error).__name__}: {error}"]
        if wrong:
            return "; ".join(wrong)
        if name in there:  # by a supervisor that was killed: nobody knows what it is
            await self._unregister(client, name)
        return await self._register(client, name, self._path_there(release))

    async def _register(self, client: httpx.AsyncClient, name: str, path: str) -> str | None:
        answer = await client.post(
            f"{self.url}/v1/load_lora_adapter",
            json={"lora_name": name, "lora_path": path},
            headers=self.headers,
            timeout=_REGISTER_WITHIN_S,
        )
        if answer.status_code == 200:
            self._registered.add(name)
            return None
        return f"{self.url} does not take the adapter ({answer.status_code}): {answer.text[:300]}"

    async def _unregister(self, client: httpx.AsyncClient, name: str) -> None:
        self._registered.discard(name)
        try:
            await client.post(
                f"{self.url}/v1/unload_lora_adapter",
                json={"lora_name": name},
                headers=self.headers,
                timeout=5.0,
            )
        except httpx.HTTPError:
            pass  # it is gone, and the adapter with it

    def _path_there(self, release: ReleaseToServe) -> str:
        """Where the server finds an adapter."""
        path = Path(release.adapter_path)
        if not self._upstream.adapters_path:
            return str(path)
        return str(Path(self._upstream.adapters_path) / path.relative_to(self._store))
