"""Sources: what a place holds becomes files here, whole or not at all, and no secret is ever shown."""

import gzip
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import dagster as dg
import postgres
import pytest
import sqlalchemy
import zstandard
from pydantic import ValidationError

from assets.line import open_line
from ftaas_pipelines import settings
from ftaas_pipelines.data.sources import fetched, files, http, landing, secrets
from ftaas_pipelines.data.sources.landing import Landing
from ftaas_pipelines.definitions import build
from ftaas_pipelines.errors import FtaasError, InputInvalid
from ftaas_pipelines.projects import catalog, data_files
from ftaas_pipelines.projects.dataset import Source
from ftaas_pipelines.projects.policy import load as load_policy
from ftaas_pipelines.store import digest_of, file_digest
from sensors import sources as sensor

ROWS = [{"prompt": f"What does code {i} mean?", "completion": f"Fault {i}."} for i in range(40)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
Land = Callable[..., Landing]


@pytest.fixture
def land(tmp_path: Path) -> Land:
    """Lands a source declared by keywords; the project's folder is `tmp_path/project`."""
    (tmp_path / "project").mkdir()

    def do(**declared: Any) -> Landing:
        return landing.land(Source(name="rows", **declared), tmp_path / "project", tmp_path / "landing")

    return do


@pytest.fixture
def landings(tmp_path: Path) -> Callable[[], list[Path]]:
    """Everything on the shelf of the source that is a folder: landings, and drafts if any were left."""
    return lambda: sorted(p for p in (tmp_path / "landing" / "rows").iterdir() if p.is_dir())


def content(found: Landing) -> list[Any]:
    return [json.loads(line) for path in found.files for line in path.read_bytes().splitlines()]


# -- files in place -----------------------------------------------------------------------------------


def test_files_globs_and_folders_are_read_in_place(tmp_path: Path, land: Land) -> None:
    data = tmp_path / "project" / "data"
    (data / "deep" / "er").mkdir(parents=True)
    kept = {
        "a.jsonl": JSONL,
        "b.csv.gz": gzip.compress(b"prompt,completion\n1,2\n"),
        "deep/c.jsonl.zst": zstandard.compress(JSONL),
        "deep/er/D.JSONL": JSONL[:60],
    }
    left = (
        "README.md",
        ".hidden.jsonl",
        "a.jsonl.part",
        "a.jsonl~",
        "~a.jsonl",
        "a.jsonl.crdownload",
        "x.tmp",
    )
    for name, whole in {**kept, **dict.fromkeys(left, b"no data")}.items():
        (data / name).write_bytes(whole)
    found = land(path="data/")
    assert found.files == sorted(data / name for name in kept), "only data, at every depth"
    assert found.sha256 == digest_of(sorted(hashlib.sha256(whole).hexdigest() for whole in kept.values()))
    assert not (tmp_path / "landing").exists(), "nothing is copied"

    assert [p.name for p in land(path="data/**/*.jsonl").files] == ["a.jsonl"]
    assert [p.name for p in land(path="data/**/*.[jJ]*").files] == ["a.jsonl", "c.jsonl.zst", "D.JSONL"]
    assert [p.name for p in land(path="data/*/*").files] == ["c.jsonl.zst"]
    one = land(path="data/a.jsonl")
    assert (one.files, one.sha256) == ([data / "a.jsonl"], file_digest(data / "a.jsonl"))
    (data / "a.jsonl").rename(data / "renamed.jsonl")
    assert land(path="data").sha256 == found.sha256, "a name is not content"
    for nothing in ("data/*.parquet", "data/gone.jsonl", "data/deep/README*", "elsewhere/"):
        with pytest.raises(InputInvalid):
            land(path=nothing)


def test_a_link_that_leads_out_is_named_and_one_that_stays_is_followed_once(
    tmp_path: Path, land: Land
) -> None:
    data = tmp_path / "project" / "data"
    (data / "deep").mkdir(parents=True)
    (data / "a.jsonl").write_bytes(JSONL)
    (data / "deep" / "same.jsonl").symlink_to(data / "a.jsonl")
    (data / "deep" / "loop").symlink_to(data)
    assert land(path="data").files == [data / "a.jsonl"]

    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.jsonl").write_bytes(JSONL)
    for link, target in (("out", tmp_path / "outside"), ("out.jsonl", tmp_path / "outside" / "secret.jsonl")):
        (data / link).symlink_to(target)
        for path in ("data", "data/**/*", f"data/{link}"):
            with pytest.raises(InputInvalid) as error:
                land(path=path)
            assert "leads out" in str(error.value) and str(data / link) in str(error.value)
        (data / link).unlink()
    (data / "gone.jsonl").symlink_to(data / "nothing.jsonl")
    with pytest.raises(InputInvalid, match="link to nothing"):
        land(path="data")
    assert land(path=str(tmp_path / "outside")).files == [tmp_path / "outside" / "secret.jsonl"]


def test_a_file_that_is_being_written_is_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(JSONL)

    def digest_while_written(read: Path) -> str:
        with read.open("ab") as out:
            out.write(b"{}\n")
        return file_digest(read)

    monkeypatch.setattr(files, "file_digest", digest_while_written)
    with pytest.raises(FtaasError, match="changed while being read"):
        files.digest(path)


# -- secrets ------------------------------------------------------------------------------------------


def test_a_secret_is_named_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("from a file\n", encoding="utf-8")
    monkeypatch.setenv("DATA_KEY", "from the environment")
    assert secrets.value("env:DATA_KEY") == "from the environment"
    assert secrets.value(f"file:{tmp_path}/key") == "from a file"
    for missing in ("env:NO_SUCH_VARIABLE", f"file:{tmp_path}/none"):
        with pytest.raises(InputInvalid, match=missing):
            secrets.value(missing)


@pytest.mark.parametrize(
    "declared",
    [
        {"path": "s3://user:hunter2@bucket/rows.jsonl"},
        {"http": {"url": "https://user:hunter2@host/rows.jsonl"}},
        {"http": {"url": "https://host/rows.jsonl?x=1&X-Amz-Signature=hunter2"}},
        {"http": {"url": "https://host/rows.jsonl", "headers": {"Authorization": "hunter2"}}},
        {"sql": {"url": "postgresql://user:hunter2@host/db", "query": "SELECT 1"}},
    ],
)
def test_a_secret_in_the_yaml_is_refused_without_being_repeated(
    declared: dict[str, Any], project_factory: Callable[..., Path]
) -> None:
    with pytest.raises(ValidationError):
        Source(name="rows", **declared)
    path = project_factory()
    source = json.dumps({"name": "rows", **declared})
    text = path.read_text("utf-8").replace("{name: rows, path: data/rows.jsonl}", source)
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputInvalid) as error:
        catalog.read(path, load_policy(Path(os.environ["FTAAS_POLICY"])))
    assert "env:VARIABLE or file:/path" in str(error.value) and "hunter2" not in str(error.value)


# -- HTTP ---------------------------------------------------------------------------------------------


@dataclass
class Web:
    """A real HTTP server; a test puts answers into `answers`, by path."""

    url: str
    answers: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def serve(self, path: str, body: bytes, *failures: int, **headers: str) -> None:
        """Serve a body by ETag; the first answers are these status codes (0: the connection is cut)."""
        left = list(failures)
        tag = f'"{hashlib.sha256(body).hexdigest()}"'

        def answer(request: BaseHTTPRequestHandler) -> None:
            status = left.pop(0) if left else 200
            if status == 200 and request.headers.get("If-None-Match") == tag:
                status = 304
            if status == 0:
                request.send_response(200)
                request.send_header("Content-Length", str(len(body)))
                request.end_headers()
                request.wfile.write(body[: len(body) // 2])
                request.close_connection = True
                return
            request.send_response(status)
            request.send_header("ETag", tag)
            for name, value in headers.items():
                request.send_header(name.replace("_", "-"), value)
            request.send_header("Content-Length", str(len(body) if status == 200 else 0))
            request.end_headers()
            if status == 200:
                request.wfile.write(body)

        self.answers[path] = answer


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found.asked.append((self.path, dict(self.headers)))
            found.answers[urlparse(self.path).path](self)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = Web(f"http://127.0.0.1:{server.server_address[1]}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(http, "WAITS_S", (0.0, 0.0))
    yield found
    server.shutdown()
    server.server_close()


def test_one_file_over_http_is_landed_once_and_again_when_it_changed(
    web: Web, land: Land, landings: Callable[[], list[Path]]
) -> None:
    web.serve("/data/rows.jsonl", JSONL)
    declared = {"http": {"url": f"{web.url}/data/rows.jsonl"}}
    first = land(**declared)
    assert first.files[0].name == "rows.jsonl" and first.files[0].read_bytes() == JSONL
    assert first.sha256 == hashlib.sha256(JSONL).hexdigest()
    assert land(**declared).files == first.files
    assert "If-None-Match" in web.asked[-1][1], "the second look asks whether it changed"
    seen = {first.sha256}
    for more in (b"{}\n", b"{}\n{}\n"):
        web.serve("/data/rows.jsonl", JSONL + more)
        seen.add(land(**declared).sha256)
    assert len(seen) == 3 and len(landings()) == 2, "the last two stay"
    web.serve("/data/rows.jsonl", JSONL)
    assert land(**declared).sha256 == first.sha256
    assert land(http={"url": f"{web.url}/data/rows.jsonl", "timeout_seconds": 5}).looked_at > first.looked_at


def test_http_answers_that_are_packed_and_names_by_content_type(web: Web, land: Land) -> None:
    web.serve("/export", gzip.compress(JSONL), Content_Encoding="gzip", Content_Type="application/x-ndjson")
    found = land(http={"url": f"{web.url}/export"})
    assert found.files[0].name == "rows.jsonl" and found.files[0].read_bytes() == JSONL
    packed = gzip.compress(JSONL)
    web.serve("/rows.jsonl.gz", packed, Content_Encoding="gzip")
    checked = {"url": f"{web.url}/rows.jsonl.gz", "sha256": hashlib.sha256(packed).hexdigest()}
    found = land(http=checked)
    assert found.files[0].name == "rows.jsonl.gz" and found.files[0].read_bytes() == packed
    asked = len(web.asked)
    assert land(http=checked).sha256 == checked["sha256"] and len(web.asked) == asked, "known by its checksum"
    web.serve("/login", b"<html>who are you?</html>", Content_Type="text/html; charset=utf-8")
    with pytest.raises(InputInvalid, match="web page"):
        land(http={"url": f"{web.url}/login"})


def test_other_bytes_than_the_checksum_are_refused_with_both(
    web: Web, land: Land, landings: Callable[[], list[Path]]
) -> None:
    web.serve("/rows.jsonl", JSONL)
    with pytest.raises(InputInvalid) as error:
        land(http={"url": f"{web.url}/rows.jsonl", "sha256": "0" * 64})
    assert "0" * 64 in str(error.value) and hashlib.sha256(JSONL).hexdigest() in str(error.value)
    assert landings() == []


def test_a_server_that_fails_is_tried_three_times(
    web: Web, land: Land, landings: Callable[[], list[Path]]
) -> None:
    web.serve("/rows.jsonl", JSONL, 503, 0)
    assert land(http={"url": f"{web.url}/rows.jsonl"}).files[0].read_bytes() == JSONL
    web.serve("/other.jsonl", JSONL, 500, 0, 502)
    with pytest.raises(FtaasError, match="HTTP 502"):
        land(http={"url": f"{web.url}/other.jsonl"})
    web.serve("/half.jsonl", JSONL, 0, 0, 0)
    with pytest.raises(FtaasError, match="the connection breaks"):
        land(http={"url": f"{web.url}/half.jsonl"})
    web.serve("/none.jsonl", JSONL, 404)
    with pytest.raises(InputInvalid, match="HTTP 404"):
        land(http={"url": f"{web.url}/none.jsonl"})
    assert len(landings()) == 1, "what broke off left nothing"


def test_a_server_that_stalls_is_named_with_the_seconds(
    web: Web, land: Land, landings: Callable[[], list[Path]]
) -> None:
    let_go = threading.Event()

    def stall(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        request.wfile.write(JSONL[:10])
        let_go.wait(60)
        request.close_connection = True

    web.answers["/rows.jsonl"] = stall
    with pytest.raises(FtaasError) as error:
        land(http={"url": f"{web.url}/rows.jsonl", "timeout_seconds": 0.3})
    let_go.set()
    assert "0.3 s" in str(error.value) and f"{web.url}/rows.jsonl" in str(error.value)
    assert landings() == []


def test_a_header_goes_to_its_own_host_alone(web: Web, land: Land, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_KEY", "hunter2")
    web.serve("/rows.jsonl", JSONL)
    elsewhere = f"{web.url.replace('127.0.0.1', 'localhost')}/rows.jsonl"
    web.serve("/moved.jsonl", b"", 302, Location=elsewhere)
    found = land(http={"url": f"{web.url}/moved.jsonl", "headers": {"X-Api-Key": "env:DATA_KEY"}})
    assert found.files[0].read_bytes() == JSONL
    assert [headers.get("X-Api-Key") for _, headers in web.asked] == ["hunter2", None]


def paged(web: Web, pages: dict[str, Any]) -> None:
    """A paged API: cursor to the page it brings; '' is the first."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        cursor = parse_qs(urlparse(request.path).query).get("cursor", [""])[0]
        body = json.dumps(pages[cursor]).encode()
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    web.answers["/api"] = answer


def test_a_paged_api_is_followed_to_its_end(web: Web, land: Land) -> None:
    paged(
        web,
        {
            "": {"result": {"rows": ROWS[:20], "next": "two"}},
            "two": {"result": {"rows": ROWS[20:30], "next": f"{web.url}/api?cursor=3"}},
            "3": {"result": {"rows": ROWS[30:], "next": None}},
        },
    )
    pages = {"rows": "result.rows", "cursor": "result.next"}
    found = land(http={"url": f"{web.url}/api?x=1", "pages": pages})
    assert sorted(content(found), key=lambda r: ROWS.index(r)) == ROWS and found.rows == len(ROWS)
    assert [path for path, _ in web.asked] == ["/api?x=1", "/api?x=1&cursor=two", "/api?cursor=3"]

    paged(web, {"": {"result": {"rows": ROWS[::-1], "next": None}}})
    assert land(http={"url": f"{web.url}/api?x=1", "pages": pages}).sha256 == found.sha256, (
        "order is no content"
    )


@pytest.mark.parametrize(
    ("pages", "what"),
    [
        ({"": {"data": ROWS, "next": "a"}, "a": {"data": ROWS, "next": "a"}}, "the cursor repeats"),
        (
            {"": {"data": ROWS, "next": 1}, "1": {"data": ROWS, "next": 2}, "2": {"data": ROWS, "next": 3}},
            "more than 2",
        ),
        ({"": {"data": ROWS, "next": "http://127.0.0.2/api"}}, "another host"),
        ({"": {"rows": ROWS}}, "no list at 'data'"),
        ({"": {"data": []}}, "without a row"),
    ],
)
def test_pages_that_are_not_as_declared(web: Web, land: Land, pages: dict[str, Any], what: str) -> None:
    paged(web, pages)
    with pytest.raises(InputInvalid, match=what):
        land(http={"url": f"{web.url}/api", "pages": {"max_pages": 2}})


def test_rows_are_sorted_whatever_fits_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"n": n, "text": "ü" * (n % 7)} for n in range(500)]
    whole, runs = tmp_path / "whole", tmp_path / "runs"
    assert fetched.write_rows(rows, whole) == 500
    monkeypatch.setattr(fetched, "_RUN_BYTES", 1000)
    assert fetched.write_rows(random.Random(1).sample(rows, 500), runs) == 500
    assert runs.read_bytes() == whole.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["runs", "whole"]


# -- SQL ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    binaries = postgres.binaries()
    if binaries is None:
        assert not os.environ.get("FTAAS_CI"), "CI must have postgresql"
        pytest.skip("postgresql is not installed")
    with postgres.server(binaries) as url:
        yield url


@pytest.fixture(params=["postgresql", "sqlite"])
def database(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[sqlalchemy.Engine]:
    """A table `answers` of 3 rows; its URL is in $DATABASE."""
    sqlite = f"sqlite:///{tmp_path / 'rows.db'}"
    url = sqlite if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    monkeypatch.setenv("DATABASE", url)
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE answers (id INTEGER, prompt TEXT, cost NUMERIC(10,2), at TIMESTAMP)"
        )
    insert(engine, 1, 2, 3)
    yield engine
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE answers")
    engine.dispose()


def insert(engine: sqlalchemy.Engine, *ids: int) -> None:
    statement = sqlalchemy.text("INSERT INTO answers VALUES (:id, :prompt, 19.90, :at)")
    with engine.begin() as connection:
        for id in ids:
            at = f"2026-01-{id:02d} 10:00:00"
            connection.execute(statement, {"id": id, "prompt": f"Größe {id}?", "at": at})


def test_a_query_is_landed_and_the_order_of_its_rows_is_no_content(
    database: sqlalchemy.Engine, land: Land
) -> None:
    query = "SELECT id, prompt, cost, at FROM answers WHERE id % 1 = 0"
    first = land(sql={"url": "env:DATABASE", "query": query})
    assert (first.rows, first.place) == (3, "sql env:DATABASE")
    assert [row["prompt"] for row in content(first)] == ["Größe 1?", "Größe 2?", "Größe 3?"]
    if database.dialect.name == "postgresql":
        assert content(first)[0] == {
            "id": 1,
            "prompt": "Größe 1?",
            "cost": "19.90",
            "at": "2026-01-01T10:00:00",
        }
    with database.begin() as connection:
        connection.exec_driver_sql("DELETE FROM answers WHERE id = 1")
    assert land(sql={"url": "env:DATABASE", "query": query}).rows == 2
    insert(database, 1)
    assert land(sql={"url": "env:DATABASE", "query": query}).sha256 == first.sha256


@pytest.mark.parametrize("column", ["id", "at"])
def test_above_a_watermark_only_new_rows_are_fetched(
    database: sqlalchemy.Engine, land: Land, column: str
) -> None:
    query = f"SELECT id, prompt, at FROM answers WHERE :watermark IS NULL OR {column} > :watermark"
    sql = {"url": "env:DATABASE", "query": query, "watermark": column}
    first = land(sql=sql)
    assert land(sql=sql).files == first.files, "no new row, no new landing"
    insert(database, 4, 5)
    second = land(sql=sql)
    assert [row["id"] for row in content(second)] == [1, 2, 3, 4, 5] and second.rows == 5
    with database.begin() as connection:
        connection.exec_driver_sql("DELETE FROM answers WHERE id < 5")
    insert(database, 6)
    assert [row["id"] for row in content(land(sql=sql))] == [1, 2, 3, 4, 5, 6], (
        "the old ones were not asked for"
    )


def test_a_query_that_returns_nothing_is_wrong_or_dies_leaves_nothing(
    database: sqlalchemy.Engine, land: Land, landings: Callable[[], list[Path]]
) -> None:
    half_way = "SELECT n, 1 / (4000 - n) AS x FROM generate_series(1, 5000) AS n"
    if database.dialect.name == "sqlite":  # division by zero is NULL there; a number too large is an error
        half_way = (
            "WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 5000) "
            "SELECT n, CASE WHEN n = 4000 THEN abs(-9223372036854775808) ELSE n END AS x FROM s"
        )
    for query, what in (
        ("SELECT * FROM answers WHERE id > 100", "no row"),
        ("SELECT * FROM questions", "questions"),
        ("SELECT id, prompt AS id FROM answers", "two columns have one name"),
        (half_way, "DivisionByZero|overflow"),
    ):
        with pytest.raises(FtaasError, match=what) as error:
            land(sql={"url": "env:DATABASE", "query": query})
        assert postgres.PASSWORD not in str(error.value)
    assert landings() == []


def test_a_database_out_of_reach_never_shows_its_password(
    postgres_url: str, land: Land, monkeypatch: pytest.MonkeyPatch
) -> None:
    for url in (
        postgres_url.replace("reader", "nobody"),
        postgres_url.rpartition(":")[0] + ":1/postgres",
        postgres_url.replace("postgresql+psycopg2", "nosuchdb"),
        "postgresql//hunter2",
    ):
        monkeypatch.setenv("DATABASE", url)
        with pytest.raises(FtaasError) as error:
            land(sql={"url": "env:DATABASE", "query": "SELECT 1 AS a"})
        said = str(error.value) + repr(error.value.__cause__)
        assert "env:DATABASE" in said
        assert not any(secret in said for secret in (postgres.PASSWORD, "p%40ss", "hunter2"))


# -- object stores ------------------------------------------------------------------------------------


@pytest.fixture
def bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A file system with an empty bucket `data`, and the secrets of it in the environment."""
    import s3fs

    for name, value in (("S3_KEY", "key"), ("S3_SECRET", "hunter2"), ("S3_URL", s3_url)):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    system = s3fs.S3FileSystem(key="key", secret="hunter2", endpoint_url=s3_url, skip_instance_cache=True)
    if system.exists("data"):
        system.rm("data", recursive=True)
    system.mkdir("data")
    return system


STORAGE = {"key": "env:S3_KEY", "secret": "env:S3_SECRET", "endpoint_url": "env:S3_URL"}


def test_files_of_an_object_store_are_landed_by_name_glob_and_folder(
    bucket: Any, land: Land, landings: Callable[[], list[Path]]
) -> None:
    stored = {
        "x/rows.jsonl": JSONL,
        "x/deep/more.csv.gz": gzip.compress(b"a,b\n1,2\n"),
        "x/;$(up)%2F.. .jsonl": b"{}\n",
    }
    for name, body in {**stored, "x/README.md": b"no", "x/.tmp/half.jsonl": b"no"}.items():
        bucket.pipe_file(f"data/{name}", body)
    one = land(path="s3://data/x/rows.jsonl", storage=STORAGE)
    assert one.sha256 == hashlib.sha256(JSONL).hexdigest() and one.files[0].read_bytes() == JSONL
    shelf = landings()[0].parent
    every = land(path="s3://data/x", storage=STORAGE)
    assert sorted(path.read_bytes() for path in every.files) == sorted(stored.values())
    assert all(path.parent.parent == shelf for path in every.files), "a key cannot lead out of the landing"
    assert land(path="s3://data/**/*.gz", storage=STORAGE).files[0].name.endswith("more.csv.gz")

    again = land(path="s3://data/x", storage=STORAGE)
    assert again.files == every.files and again.token == every.token != ""
    bucket.pipe_file("data/x/rows.jsonl", JSONL[:50])
    assert land(path="s3://data/x", storage=STORAGE).sha256 != every.sha256


def test_an_object_store_that_fails_never_shows_its_secret(
    bucket: Any, land: Land, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputInvalid, match="not there"):
        land(path="s3://data/none.jsonl", storage=STORAGE)
    with pytest.raises(InputInvalid, match="no data file"):
        land(path="s3://data/*.jsonl", storage=STORAGE)
    with pytest.raises(InputInvalid, match="not known"):
        land(path="nosuch://data/rows.jsonl")
    monkeypatch.setenv("S3_URL", "http://127.0.0.1:1/hunter2")
    with pytest.raises(FtaasError) as error:
        land(path="s3://data/rows.jsonl", storage=STORAGE)
    assert "s3://data/rows.jsonl" in str(error.value) and "hunter2" not in str(error.value)


# -- Hugging Face -------------------------------------------------------------------------------------


def test_datasets_of_hugging_face_saved_to_disk_or_as_files(tmp_path: Path, land: Land) -> None:
    import pyarrow.parquet as pq
    from datasets import Dataset, DatasetDict

    saved = tmp_path / "project" / "saved"
    rows = Dataset.from_list(ROWS)
    DatasetDict({"train": rows, "test": rows.select(range(5))}).save_to_disk(str(saved))
    found = land(huggingface={"id": "saved"})
    assert pq.read_table(found.files[0]).to_pylist() == ROWS and found.rows == 40
    assert land(huggingface={"id": "saved"}).token == found.token
    assert land(huggingface={"id": "saved", "split": "test"}).rows == 5
    with pytest.raises(InputInvalid, match="train, test"):
        land(huggingface={"id": "saved", "split": "dev"})
    files_of_rows = tmp_path / "project" / "files"
    files_of_rows.mkdir()
    (files_of_rows / "train.jsonl").write_bytes(JSONL)
    assert pq.read_table(land(huggingface={"id": "files"}).files[0]).to_pylist() == ROWS
    with pytest.raises(FtaasError, match="huggingface acme/rows@main"):
        land(huggingface={"id": "acme/rows"})  # offline


# -- whole or not at all ------------------------------------------------------------------------------

_LAND = """
import sys
from pathlib import Path
from ftaas_pipelines.data.sources import landing
from ftaas_pipelines.projects.dataset import Source
here = Path(sys.argv[1])
landing.land(Source(name="rows", http={"url": sys.argv[2]}), here / "project", here / "landing")
"""


def test_a_landing_that_is_killed_is_never_seen_and_the_next_starts_cleanly(
    web: Web, land: Land, landings: Callable[[], list[Path]], tmp_path: Path
) -> None:
    url = f"{web.url}/rows.jsonl"
    let_go = threading.Event()

    def half(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(len(JSONL)))
        request.end_headers()
        request.wfile.write(JSONL[:100])
        let_go.wait(60)
        request.close_connection = True

    web.answers["/rows.jsonl"] = half
    child = subprocess.Popen([sys.executable, "-c", _LAND, str(tmp_path), url])
    shelf = tmp_path / "landing" / "rows"
    while not any(shelf.glob(".*/rows.jsonl")):
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    let_go.set()
    source = Source(name="rows", http={"url": url})  # pyright: ignore[reportArgumentType]
    assert [p.name[0] for p in landings()] == ["."], "the killed one left its draft"
    assert landing.landed(source, tmp_path / "project", tmp_path / "landing") is None
    web.serve("/rows.jsonl", JSONL)
    found = land(http={"url": url})
    assert found.files[0].read_bytes() == JSONL and landings() == [found.files[0].parent]
    assert landing.landed(source, tmp_path / "project", tmp_path / "landing") == found

    found.files[0].write_bytes(JSONL[:-1] + b"!")  # by somebody's hand
    assert landing.landed(source, tmp_path / "project", tmp_path / "landing") is None
    assert land(http={"url": url}).files[0].read_bytes() == JSONL


# -- the line and the sensor --------------------------------------------------------------------------


@pytest.fixture
def remote_project(web: Web, project_factory: Callable[..., Path]) -> Callable[[], Any]:
    """A project with one source over HTTP beside its file; returns how to open its line."""
    web.serve("/more.jsonl", JSONL)
    path = project_factory("codes")
    local = "{name: rows, path: data/rows.jsonl}"
    facts = "owner: anna, cost_usd: 12.5, encoding: latin-1"
    remote = f"{{name: web, http: {{url: '{web.url}/more.jsonl'}}, {facts}}}"
    text = path.read_text("utf-8").replace(f"- {local}", f"- {local}\n    - {remote}")
    path.write_text(text, encoding="utf-8")
    return lambda: open_line("codes", settings.load())


def test_the_line_lands_once_and_then_asks_nobody_until_it_looks(
    web: Web, remote_project: Callable[[], Any]
) -> None:
    line = remote_project()
    spec = line.dataset_spec()
    assert len(web.asked) == 1
    (_, source) = spec.inputs["sources"]
    assert source["sha256"] == hashlib.sha256(JSONL).hexdigest()
    assert (source["owner"], source["cost_usd"], source["encoding"]) == ("anna", 12.5, "latin-1")
    assert [path.read_bytes() for path in spec.run.files["web"]] == [JSONL]
    web.serve("/more.jsonl", JSONL * 2)
    assert remote_project().dataset_spec().input_digest == spec.input_digest and len(web.asked) == 1
    line.look()
    assert line.dataset_spec().input_digest != spec.input_digest
    assert remote_project().source_digests == line.source_digests
    asked = len(web.asked)
    line.look(younger_than_s=60)
    assert len(web.asked) == asked


@pytest.mark.filterwarnings("ignore::dagster.BetaWarning", "ignore::dagster.PreviewWarning")
def test_the_sensor_lands_and_one_source_that_fails_silences_nobody(
    web: Web, remote_project: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensor, "REMOTE_EVERY_S", 0.0)
    repository = build(settings.load()).get_repository_def()
    definition = repository.get_sensor_def("sources")
    cursor: str | None = None

    def look() -> dict[str, str]:
        nonlocal cursor
        with dg.DagsterInstance.ephemeral() as instance:
            context = dg.build_sensor_context(instance, cursor, repository_def=repository)
            tick = definition.evaluate_tick(context)
        cursor = tick.cursor
        return {e.asset_key.path[1]: e.tags["dagster/data_version"] for e in tick.asset_events}

    web.answers["/more.jsonl"] = lambda request: request.send_error(500)
    assert look() == {}
    assert set(look()) == {"source_rows"}
    web.serve("/more.jsonl", JSONL)
    assert look() == {}
    assert look() == {"source_web": hashlib.sha256(JSONL).hexdigest()}
    assert remote_project().landings["web"].files[0].read_bytes() == JSONL


def test_the_catalogue_says_what_is_wrong_with_a_path_at_its_line(
    project_factory: Callable[..., Path],
) -> None:
    path = project_factory()
    text = path.read_text("utf-8")
    policy = load_policy(Path(os.environ["FTAAS_POLICY"]))
    path.write_text(text.replace("data/rows.jsonl", "data/"), encoding="utf-8")
    assert catalog.read(path, policy)
    (path.parent / "data" / "out.jsonl").symlink_to("/etc/hostname")
    with pytest.raises(InputInvalid, match=r"project.yaml:\d+: is a symbolic link that leads out"):
        catalog.read(path, policy)
    path.write_text(text.replace("data/rows.jsonl", "data/*.parquet"), encoding="utf-8")
    with pytest.raises(InputInvalid, match=r"project.yaml:\d+: no data file is there"):
        catalog.read(path, policy)
    assert data_files.NO_DATA == catalog.NO_DATA


def test_loading_the_code_location_loads_no_client() -> None:
    ours = [f"ftaas_pipelines.data.sources.{name}" for name in ("http", "sql", "storage", "huggingface")]
    code = (
        "import sys, assets.line, assets.source, sensors.sources\n"
        f"print([name for name in {[*ours, 'psycopg2', 's3fs', 'datasets']} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"
