"""HTTP: one file, streamed to disk, or a REST API that answers page by page."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx

from ftaas_pipelines.data.sources import secrets
from ftaas_pipelines.data.sources.fetched import Fetched, write_rows
from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.projects import data_files
from ftaas_pipelines.projects.dataset import Http, Pages

T = TypeVar("T")
WAITS_S = (1.0, 4.0)  # before the second and the third try
_BLOCK = 2**20
_SUFFIX_OF = {
    "application/json": ".json",
    "application/jsonl": ".jsonl",
    "application/x-ndjson": ".jsonl",
    "application/x-jsonlines": ".jsonl",
    "application/vnd.apache.parquet": ".parquet",
    "application/vnd.apache.arrow.file": ".arrow",
    "text/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "text/plain": ".txt",
}


def fetch(http: Http, into: Path, before: Fetched | None) -> Fetched | None:
    """The file, or all pages as one JSONL file; None when nothing changed since `before`.

    A broken connection, 429 and 5xx are tried three times.

    Raises:
        InputInvalid: other bytes than the checksum says, a page that is not as declared, a 4xx answer.
        FtaasError: the server stalls, cannot be reached, or goes on failing.
    """
    if http.sha256 and before:
        return None  # its bytes are known to the last one
    with _client(http) as client:
        if http.pages:
            target = into / "rows.jsonl"
            count = write_rows(_rows(client, http, http.pages), target)
            if not count:
                raise InputInvalid("the API answered without a row", _shown(http.url), do="mend the query")
            return Fetched(files=[target], rows=count)
        return _patiently(lambda: _file(client, http, into, before), http)


def _client(http: Http) -> httpx.Client:
    """A client whose headers stay with the host they are meant for, whatever it redirects to."""
    headers = {name: secrets.value(secret) for name, secret in http.headers.items()}
    home = _origin(httpx.URL(http.url))

    def keep_at_home(request: httpx.Request) -> None:
        if _origin(request.url) != home:
            for name in headers:
                request.headers.pop(name, None)

    return httpx.Client(
        headers=headers,
        timeout=http.timeout_seconds,
        follow_redirects=True,
        event_hooks={"request": [keep_at_home]},
    )


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _shown(url: str) -> str:
    """A URL as errors name it: the query may hold a cursor or a key."""
    return str(httpx.URL(url).copy_with(query=None))


def _file(client: httpx.Client, http: Http, into: Path, before: Fetched | None) -> Fetched | None:
    known = json.loads(before.token) if before and before.token else {}
    asked = {"ETag": "If-None-Match", "Last-Modified": "If-Modified-Since"}
    headers = {asked[name]: value for name, value in known.items() if name in asked}
    packed = data_files.suffix(httpx.URL(http.url).path).endswith((".gz", ".zst", ".zstd"))
    if packed:
        headers["Accept-Encoding"] = "identity"
    with client.stream("GET", http.url, headers=headers) as response:
        if response.status_code == 304:
            return None
        response.raise_for_status()
        token = _token(response)
        if before and token and token == before.token:
            return None
        target = into / f"rows{_suffix(response, http)}"
        digest, size = hashlib.sha256(), 0
        # The name says it is packed: some servers then declare that packing as their own encoding.
        with target.open("wb") as out:
            for block in response.iter_raw(_BLOCK) if packed else response.iter_bytes(_BLOCK):
                out.write(block)
                digest.update(block)
                size += len(block)
    if http.sha256 and digest.hexdigest() != http.sha256:
        raise InputInvalid(
            f"serves other bytes than its sha256 {http.sha256} says",
            _shown(http.url),
            f"{digest.hexdigest()}, {size} bytes",
            "find out why it changed; then mend sha256",
        )
    return Fetched(files=[target], token=token)


def _token(response: httpx.Response) -> str:
    names = ("ETag", "Last-Modified", "Content-Length")
    found = {name: response.headers[name] for name in names if name in response.headers}
    return json.dumps(found) if found.keys() & {"ETag", "Last-Modified"} else ""


def _suffix(response: httpx.Response, http: Http) -> str:
    by_name = data_files.suffix(httpx.URL(http.url).path) or data_files.suffix(response.url.path)
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind == "text/html" and not by_name:
        raise InputInvalid(
            "serves a web page, no data",
            _shown(http.url),
            do="check the URL, and headers if it asks who you are",
        )
    return by_name or _SUFFIX_OF.get(kind, "")


def _rows(client: httpx.Client, http: Http, pages: Pages) -> Iterator[Any]:
    """The rows of all pages.

    Raises:
        InputInvalid: a cursor that repeats or leads to another host, too many pages, a page without rows.
    """
    first = url = httpx.URL(http.url)
    seen: set[str] = set()
    where = _shown(http.url)
    for _ in range(pages.max_pages):
        page = _page(client, http, url)
        rows = _at(page, pages.rows)
        if not isinstance(rows, list):
            got = f"keys {', '.join(sorted(page))}" if isinstance(page, dict) else type(page).__name__
            do = "name where the rows are in http.pages.rows ('' where the page is the list)"
            raise InputInvalid(f"a page has no list at '{pages.rows}'", where, got, do)
        yield from rows
        cursor = _at(page, pages.cursor) if isinstance(page, dict) else None
        if cursor in (None, "", False):
            return
        if not isinstance(cursor, str | int):
            do = "name where a page names the next one in http.pages.cursor"
            raise InputInvalid(f"'{pages.cursor}' is no cursor", where, type(cursor).__name__, do)
        if str(cursor) in seen:
            raise InputInvalid("the cursor repeats: the pages have no end", where, do="tell the API's owner")
        seen.add(str(cursor))
        whole = str(cursor).startswith(("http://", "https://"))
        url = httpx.URL(str(cursor)) if whole else first.copy_set_param(pages.parameter, cursor)
        if _origin(url) != _origin(first):
            raise InputInvalid("the next page is on another host", where, url.host, "tell the API's owner")
    raise InputInvalid(
        f"has more than {pages.max_pages} pages", where, do="raise http.pages.max_pages, or mend the query"
    )


def _page(client: httpx.Client, http: Http, url: httpx.URL) -> Any:
    response = _patiently(lambda: client.get(url).raise_for_status(), http)
    try:
        return response.json()
    except ValueError:
        got = response.headers.get("Content-Type", "")
        raise InputInvalid("a page is not JSON", _shown(http.url), got, "check the URL") from None


def _at(value: Any, keys: str) -> Any:
    """The value at keys joined by dots; None when there is none; the value itself for ''."""
    for key in filter(None, keys.split(".")):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _patiently(work: Callable[[], T], http: Http) -> T:
    """Do it, up to three times where trying again may help."""
    where = _shown(http.url)
    for wait in (*WAITS_S, None):
        try:
            return work()
        except httpx.TimeoutException:
            raise FtaasError(
                f"sent no byte for {http.timeout_seconds:g} s",
                where,
                do="ask for its health, or raise http.timeout_seconds",
            ) from None
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status < 500 and status != 429:
                do = "check http.headers" if status in (401, 403) else "check the URL"
                raise InputInvalid("the server refuses", where, f"HTTP {status}", do) from None
            if wait is None:
                raise FtaasError("the server fails", where, f"HTTP {status}", "try again later") from None
        except httpx.TransportError as error:
            if wait is None:
                do = "check the URL and the network"
                raise FtaasError("the connection breaks", where, type(error).__name__, do) from None
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise FtaasError("cannot be read", where, type(error).__name__, "check the URL") from None
        time.sleep(wait)
    raise AssertionError("the last try returns or raises")
