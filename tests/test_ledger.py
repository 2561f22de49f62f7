"""The ledger: nothing in it is changed, removed, reordered or cut unseen; nothing written to it is lost."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import postgres
import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from ftaas_pipelines.errors import FtaasError, InputInvalid, Refused
from ftaas_pipelines.governance import ledger as ledger_module
from ftaas_pipelines.governance import ledger_backup, ledger_schema, signing
from ftaas_pipelines.governance.entry import GENESIS
from ftaas_pipelines.governance.heads import Heads
from ftaas_pipelines.governance.ledger import Ledger, New
from ftaas_pipelines.store import Store, canonical, digest_of

POLICY = digest_of("policy")
COUNT = 12
Reopen = Callable[..., Ledger]


def new(number: int, **body: Any) -> New:
    return New("note", digest_of(number), {"n": number, "said": 'grün \\ "x"', **body}, "p", "me@example.com")


def fill(ledger: Ledger, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        one = new(number)
        ledger.append(one.kind, one.subject, one.body, project=one.project, actor=one.actor)


# -- two databases, one class ----------------------------------------------------------------------


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    binaries = postgres.binaries()
    if binaries is None:
        assert not os.environ.get("FTAAS_CI"), "CI must have postgresql"
        pytest.skip("postgresql is not installed")
    with postgres.server(binaries) as url:
        yield url


@pytest.fixture
def postgres_url(server: str) -> str:
    """A database of this test alone."""
    name = f"ledger_{time.monotonic_ns()}"
    with sa.create_engine(server, isolation_level="AUTOCOMMIT").connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    # As people write it: without a driver.
    return server.replace("+psycopg2", "").rpartition("/")[0] + f"/{name}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def ledger(url: str, tmp_path: Path) -> Ledger:
    return Ledger(url, tmp_path, POLICY)


def execute(url: str, *statements: str) -> None:
    """SQL past the platform."""
    engine = ledger_schema.connect(url)
    with engine.execution_options(writes=True).begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


def drop_guards(url: str) -> None:
    if url.startswith("sqlite"):
        execute(url, *(f"DROP TRIGGER {n}" for n in ("ledger_no_update", "ledger_no_delete", "ledger_chain")))
    else:
        execute(url, "ALTER TABLE ledger DISABLE TRIGGER USER")


def test_an_entry_answers_who_what_when_in_which_role_and_under_which_policy(ledger: Ledger) -> None:
    body = {"role": "sme", "environment": "staging", "decision": "approve", "saw": "f" * 64}
    made = ledger.append("decision", "d" * 64, body, project="p", actor="sam@example.com")
    many = ledger.append_many([new(1), new(2)])
    (read,) = ledger.entries("decision", authentic=True)
    assert read == made and (read.role, read.environment, read.saw) == ("sme", "staging", "f" * 64)
    assert (read.policy, read.format, read.prev) == (POLICY, 2, GENESIS)
    assert ledger.entries(("note", "x"), limit=1) == many[-1:] and ledger.entry(made.hash) == made
    assert ledger.entries(as_of="2001-01-01") == [] and len(ledger.entries(as_of=read.at[:10])) == 3
    found = ledger.verify()
    assert (found.ok, found.entries, found.head, found.warnings) == (True, 3, many[-1].hash, [])
    assert ledger.verify(as_of="2001-01-01").entries == 0 and ledger.verify(as_of=read.at[:4]).entries == 3


def test_the_database_itself_refuses_to_change_remove_replace_empty_or_skip(ledger: Ledger) -> None:
    fill(ledger, 3)
    columns = "at, kind, actor, project, subject, body, prev, hash, signature, format, policy"
    lite = ledger.url.startswith("sqlite")
    replacing = "INSERT OR REPLACE INTO" if lite else "INSERT INTO"
    statements = [
        "UPDATE ledger SET body = '{}' WHERE seq = 2",
        "DELETE FROM ledger WHERE seq = 3",
        "DELETE FROM ledger",
        f"{replacing} ledger (seq, {columns}) SELECT 2, {columns} FROM ledger WHERE seq = 2"
        + ("" if lite else " ON CONFLICT (seq) DO UPDATE SET body = '{}'"),
        f"INSERT INTO ledger (seq, {columns}) SELECT 9, {columns} FROM ledger WHERE seq = 3",
        f"INSERT INTO ledger (seq, {columns}) SELECT 4, {columns} FROM ledger WHERE seq = 3",
    ]
    if not lite:
        statements += ["TRUNCATE ledger", "SET session_replication_role = replica; DELETE FROM ledger"]
    for statement in statements:
        with pytest.raises(exc.IntegrityError):
            execute(ledger.url, statement)
    assert ledger.verify().ok
    drop_guards(ledger.url)
    assert "no longer refuses" in ledger.verify().warnings[0]


def test_a_role_of_postgresql_that_may_append_and_nothing_else(postgres_url: str, tmp_path: Path) -> None:
    owner = Ledger(postgres_url, tmp_path)
    fill(owner, 2)
    execute(postgres_url, "DROP ROLE IF EXISTS ftaas", "CREATE ROLE ftaas LOGIN PASSWORD 'w'")
    execute(postgres_url, *ledger_schema.grants("ftaas"))
    as_role = sa.make_url(postgres_url).set(username="ftaas", password="w").render_as_string(False)
    fill(Ledger(as_role, tmp_path), 2, start=2)
    columns = "at, kind, actor, project, subject, body, prev, hash, signature"
    for statement in (
        "UPDATE ledger SET body = '{}'",
        "DELETE FROM ledger",
        "TRUNCATE ledger",
        "ALTER TABLE ledger DISABLE TRIGGER ALL",
        "DROP TRIGGER ledger_chain ON ledger",
        "DROP TABLE ledger",
        "SET session_replication_role = replica",
        "INSERT INTO ledger_format VALUES (9)",
        "CREATE OR REPLACE FUNCTION public.ledger_refuse() RETURNS trigger LANGUAGE sql AS 'SELECT NULL'",
        # A table of its own that the trigger might take for the ledger.
        "CREATE TEMP TABLE ledger AS SELECT 8 AS seq, 'x' AS hash; "
        f"INSERT INTO public.ledger (seq, {columns}) VALUES (9, '', '', '', '', '', '{{}}', 'x', '', '')",
    ):
        with pytest.raises(exc.DBAPIError):
            execute(as_role, statement)
    found = owner.verify()
    assert found.ok and found.entries == 4 and not found.warnings


# -- tampering -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of a ledger of COUNT entries, its database one file."""
    home = tmp_path_factory.mktemp("written")
    fill(Ledger(f"sqlite:///{home / 'ledger.db'}", home, POLICY), COUNT)
    with sqlite3.connect(home / "ledger.db") as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return home


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Callable[[], tuple[sqlite3.Connection, Ledger]]:
    def copy() -> tuple[sqlite3.Connection, Ledger]:
        home = tmp_path / "home"
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(written, home)
        raw = sqlite3.connect(home / "ledger.db")
        for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            raw.execute(f"DROP TRIGGER {name}")
        return raw, Ledger(f"sqlite:///{home / 'ledger.db'}", home)

    return copy


COLUMNS = ("at", "kind", "actor", "project", "subject", "body", "prev", "hash", "signature", "policy")


@hypothesis.settings(
    max_examples=120, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(data=st.data())
def test_verify_names_the_first_entry_that_was_changed_removed_swapped_or_cut(
    copied: Callable[[], tuple[sqlite3.Connection, Ledger]], data: st.DataObject
) -> None:
    raw, ledger = copied()
    how = data.draw(
        st.sampled_from(("byte", "blank", "format", "renumber", "remove", "swap", "cut", "forge"))
    )
    seq = data.draw(st.integers(1, COUNT))
    expected = seq
    if how == "byte":
        column = data.draw(st.sampled_from(COLUMNS))
        (value,) = raw.execute(f"SELECT {column} FROM ledger WHERE seq = ?", (seq,)).fetchone()
        stored = bytearray(value.encode())
        place = data.draw(st.integers(0, len(stored) - 1))
        stored[place] = data.draw(st.integers(0, 255).filter(lambda b: b != stored[place]))
        query = f"UPDATE ledger SET {column} = CAST(? AS TEXT) WHERE seq = ?"
        raw.execute(query, (bytes(stored), seq))
    elif how == "blank":
        column = data.draw(st.sampled_from(COLUMNS))
        raw.execute(
            f"UPDATE ledger SET {column} = ? WHERE seq = ?", (data.draw(st.sampled_from(["", b"x", 7])), seq)
        )
    elif how == "format":
        raw.execute(
            "UPDATE ledger SET format = ? WHERE seq = ?", (data.draw(st.sampled_from([0, 1, 3, "x"])), seq)
        )
    elif how == "renumber":
        raw.execute("UPDATE ledger SET seq = ? WHERE seq = ?", (data.draw(st.integers(COUNT + 1, 99)), seq))
    elif how == "remove":
        raw.execute("DELETE FROM ledger WHERE seq = ?", (seq,))
    elif how == "swap":
        other = data.draw(st.integers(1, COUNT).filter(lambda n: n != seq))
        expected = min(seq, other)
        raw.execute("UPDATE ledger SET seq = 0 WHERE seq = ?", (seq,))
        raw.execute("UPDATE ledger SET seq = ? WHERE seq = ?", (seq, other))
        raw.execute("UPDATE ledger SET seq = ? WHERE seq = 0", (other,))
    elif how == "cut":
        raw.execute("DELETE FROM ledger WHERE seq >= ?", (seq,))
    else:  # an entry of one's own, chained well, signed with another key
        expected = COUNT + 1
        last = ledger.entries(limit=1)[0]
        forged = last.row._replace(seq=expected, prev=last.hash)
        hash_ = forged.computed_hash()
        forged = forged._replace(hash=hash_, signature=signing.sign(ledger.home / "other", hash_.encode()))
        raw.execute(
            f"INSERT INTO ledger ({', '.join(forged._fields)}) VALUES ({', '.join('?' * 12)})", forged
        )
    raw.commit()
    raw.close()
    found = ledger.verify()
    assert not found.ok and found.first_bad is not None, how
    assert found.first_bad["seq"] == expected, (how, found)


@hypothesis.settings(
    max_examples=80, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(data=st.data())
def test_a_changed_byte_of_the_file_is_found_or_changed_nothing(
    written: Path, tmp_path: Path, data: st.DataObject
) -> None:
    home = tmp_path / "home"
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(written, home)
    stored = bytearray((home / "ledger.db").read_bytes())
    stored[data.draw(st.integers(0, 10**6)) % len(stored)] ^= data.draw(st.integers(1, 255))
    (home / "ledger.db").write_bytes(stored)
    whole = list(Ledger(f"sqlite:///{written / 'ledger.db'}", written).rows())
    try:
        ledger = Ledger(f"sqlite:///{home / 'ledger.db'}", home)
        found = ledger.verify()
    except InputInvalid:  # no database at all any more
        return
    if found.ok:
        assert list(ledger.rows()) == whole
        for kind in ("note", "other"):  # what an index answers too
            assert len(ledger.entries(kind)) == (COUNT if kind == "note" else 0)


@pytest.mark.parametrize(
    ("damage", "seq"),
    [
        ("UPDATE ledger SET body = replace(body, 'x', 'y') WHERE seq = 2", 2),
        ("UPDATE ledger SET policy = '' WHERE seq = 3", 3),
        ("UPDATE ledger SET body = body || ' ' WHERE seq = 4", 4),
        ("DELETE FROM ledger WHERE seq = 2", 2),
        ("DELETE FROM ledger WHERE seq > 3", 4),
        ("TRUNCATE ledger", 1),
    ],
)
def test_tampering_in_postgresql_is_found(postgres_url: str, tmp_path: Path, damage: str, seq: int) -> None:
    ledger = Ledger(postgres_url, tmp_path, POLICY)
    fill(ledger, 5)
    drop_guards(postgres_url)
    execute(postgres_url, damage)
    found = ledger.verify()
    assert not found.ok and found.first_bad is not None and found.first_bad["seq"] == seq


# -- many writers, clocks, crashes -----------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
from ftaas_pipelines.governance.ledger import Ledger, New
url, home, name = sys.argv[1:]
ledger = Ledger(url, Path(home))
for i in range(20):
    if i % 5:
        ledger.append("note", "s", {"who": name, "i": i}, project="p", actor="me")
    else:
        one = New("note", "s", {"who": name, "i": i}, "p", "me")
        ledger.append_many([one, New("note", "s", {}, "p", "me")])
"""


def test_many_processes_and_threads_write_one_chain_and_lose_nothing(url: str, tmp_path: Path) -> None:
    # The first opening too: the tables are made once.
    children = [
        subprocess.Popen([sys.executable, "-c", WRITER, url, str(tmp_path), str(n)]) for n in range(3)
    ]
    ledger = Ledger(url, tmp_path)
    threads = [threading.Thread(target=fill, args=(ledger, 15)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [child.wait(120) for child in children] == [0, 0, 0]
    found = ledger.verify()
    assert found.ok and not found.warnings, found
    assert found.entries == 3 * 24 + 4 * 15
    said = [(e.body["who"], e.body["i"]) for e in ledger.entries() if "who" in e.body]
    assert sorted(said) == sorted((str(n), i) for n in range(3) for i in range(20))


def test_a_clock_that_jumps_back_does_not_put_the_record_back(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for moment in ("2030-01-01T00:00:00Z", "2020-01-01T00:00:00Z", "2031-01-01T00:00:00Z"):
        monkeypatch.setattr(ledger_module, "now", lambda moment=moment: moment)
        fill(ledger, 1)
    assert [e.at[:4] for e in ledger.entries()] == ["2030", "2030", "2031"]
    assert len(ledger.entries(as_of="2030-06-01")) == 2


def test_killed_between_commit_and_head_nothing_is_lost_and_the_next_catches_up(
    ledger: Ledger, tmp_path: Path
) -> None:
    fill(ledger, 2)
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "from ftaas_pipelines.governance.heads import Heads\n"
        "from ftaas_pipelines.governance.ledger import Ledger\n"
        "Heads.write = lambda self, head: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Ledger(sys.argv[1], Path(sys.argv[2])).append('note', 's', {}, project='p', actor='me')"
    )
    done = subprocess.run([sys.executable, "-c", code, ledger.url, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    found = ledger.verify()
    assert found.ok and found.entries == 3 and "1 entries behind" in found.warnings[0]
    fill(Ledger(ledger.url, tmp_path), 1)
    assert ledger.verify().ok and not ledger.verify().warnings


def test_another_installations_key_never_writes_on(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger, 1)
    with pytest.raises(FtaasError, match="another key"):
        fill(Ledger(ledger.url, tmp_path / "elsewhere"), 1)
    # An auditor holds the public key alone: verifies, and cannot write.
    auditor = tmp_path / "auditor"
    (auditor / "keys").mkdir(parents=True)
    shutil.copy(tmp_path / "keys" / "platform.pub", auditor / "keys")
    shutil.copytree(tmp_path / "ledger_heads", auditor / "ledger_heads")
    assert Ledger(ledger.url, auditor).verify().ok
    with pytest.raises(FtaasError, match="signing key is missing"):
        fill(Ledger(ledger.url, auditor), 1)
    assert len(ledger.entries()) == 1


# -- formats ---------------------------------------------------------------------------------------

OLD_DDL = """
CREATE TABLE ledger (seq INTEGER NOT NULL, at TEXT NOT NULL, kind TEXT NOT NULL, actor TEXT NOT NULL,
  project TEXT NOT NULL, subject TEXT NOT NULL, body TEXT NOT NULL, prev TEXT NOT NULL, hash TEXT NOT NULL,
  signature TEXT NOT NULL, PRIMARY KEY (seq));
CREATE INDEX ix_ledger_kind ON ledger (kind);
CREATE INDEX ix_ledger_project ON ledger (project);
CREATE INDEX ix_ledger_subject ON ledger (subject);
CREATE TRIGGER ledger_no_update BEFORE UPDATE ON ledger
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER ledger_no_delete BEFORE DELETE ON ledger
BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END;
CREATE TRIGGER ledger_chain BEFORE INSERT ON ledger
WHEN NEW.seq <> (SELECT COALESCE(MAX(seq), 0) + 1 FROM ledger) OR NEW.prev <>
COALESCE((SELECT hash FROM ledger ORDER BY seq DESC LIMIT 1), '%s')
BEGIN SELECT RAISE(ABORT, 'the entry does not continue the chain'); END;
"""


def old_ledger(home: Path, count: int = 4) -> str:
    """A database and head file as the first version of the platform wrote them; returns its URL."""
    raw = sqlite3.connect(home / "ledger.db")
    raw.executescript(OLD_DDL % GENESIS)
    prev = GENESIS
    for seq in range(1, count + 1):
        fields = {
            "seq": seq, "at": "2026-01-01T00:00:00Z", "kind": "note", "actor": "me", "project": "p",
            "subject": "s", "body": {"é": 1.5, "b": [seq]}, "prev": prev,
        }  # fmt: skip
        prev = digest_of(fields)
        values = {
            **fields, "body": canonical(fields["body"]).decode(), "hash": prev,
            "signature": signing.sign(home, prev.encode()),
        }  # fmt: skip
        raw.execute(f"INSERT INTO ledger VALUES (:{', :'.join(values)})", values)
    raw.commit()
    raw.close()
    (home / "ledger.head").write_bytes(canonical({"seq": count, "hash": prev}))
    return f"sqlite:///{home / 'ledger.db'}"


def test_a_ledger_of_the_first_format_goes_on_in_place(tmp_path: Path) -> None:
    url = old_ledger(tmp_path)
    children = [
        subprocess.Popen([sys.executable, "-c", WRITER, url, str(tmp_path), str(n)]) for n in range(2)
    ]
    assert [child.wait(120) for child in children] == [0, 0]
    ledger = Ledger(url, tmp_path, POLICY)
    fill(ledger, 1)
    found = ledger.verify()
    assert found.ok and found.entries == 4 + 2 * 24 + 1 and not found.warnings, found
    entries = ledger.entries(authentic=True)
    assert [e.format for e in entries[:5]] == [1, 1, 1, 1, 2] and entries[0].policy == ""
    assert not (tmp_path / "ledger.head").exists()
    # A policy written into an old entry, which its hash does not cover.
    drop_guards(url)
    execute(url, f"UPDATE ledger SET policy = '{POLICY}' WHERE seq = 2")
    assert ledger.verify().first_bad == {"seq": 2, "why": "its content was changed"}


def test_moving_to_the_new_format_is_whole_or_nothing_and_hides_no_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = old_ledger(tmp_path)
    with sqlite3.connect(tmp_path / "ledger.db") as raw:
        raw.execute("DROP TRIGGER ledger_no_delete")
        raw.execute("DELETE FROM ledger WHERE seq = 4")
    raw.close()
    with monkeypatch.context() as patch:
        patch.setattr(ledger_schema.ENTRIES.metadata, "create_all", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            Ledger(url, tmp_path)
    raw = sqlite3.connect(tmp_path / "ledger.db")
    assert len(raw.execute("SELECT * FROM ledger").fetchone()) == 10
    raw.close()
    ledger = Ledger(url, tmp_path)
    found = ledger.verify()
    assert found.first_bad is not None and found.first_bad["seq"] == 4 and "cut" in found.first_bad["why"]
    with pytest.raises(FtaasError, match="does not continue"):
        fill(ledger, 1)


def test_a_database_of_a_later_format_is_refused_and_left_alone(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger, 1)
    execute(ledger.url, "INSERT INTO ledger_format VALUES (3)")
    with pytest.raises(InputInvalid, match="format 3.*up to 2; upgrade"):
        Ledger(ledger.url, tmp_path)


# -- the head elsewhere ----------------------------------------------------------------------------


@pytest.fixture
def reopen(tmp_path: Path) -> Reopen:
    """The SQLite ledger of this test, opened again, with a place for its heads."""

    def again(heads: str = str(tmp_path / "elsewhere"), home: str = "home") -> Ledger:
        (tmp_path / home).mkdir(exist_ok=True)
        return Ledger(f"sqlite:///{tmp_path / home / 'ledger.db'}", tmp_path / home, POLICY, heads)

    return again


def set_back(tmp_path: Path) -> None:
    """What an attacker does who can write all of FTAAS_HOME: puts the copy of before in its place."""
    shutil.rmtree(tmp_path / "home")
    shutil.copytree(tmp_path / "copy", tmp_path / "home")


def test_a_ledger_set_back_with_its_home_is_found_by_the_head_elsewhere(
    reopen: Reopen, tmp_path: Path
) -> None:
    fill(reopen(), 5)
    shutil.copytree(tmp_path / "home", tmp_path / "copy")
    fill(reopen(), 3, start=5)
    set_back(tmp_path)
    assert reopen(heads="").verify().ok, "nothing in home can know"
    found = reopen().verify()
    assert found.first_bad is not None and found.first_bad["seq"] == 6
    assert "up to 8" in found.first_bad["why"] and "elsewhere" in found.first_bad["why"]
    with pytest.raises(FtaasError, match="does not continue entry 8"):
        fill(reopen(), 1)
    # Written on past the cut, where nobody looked elsewhere: the first that differs is named.
    fill(reopen(heads=""), 20, start=100)
    reopen().export_head()
    assert (found := reopen().verify()).first_bad is not None and found.first_bad["seq"] == 6


def test_a_planted_or_removed_head_is_found(reopen: Reopen, tmp_path: Path) -> None:
    fill(reopen(), 3)
    head = max((tmp_path / "elsewhere").rglob("*.json"))
    planted = head.with_name(f"{9:012d}-{'a' * 16}.json")
    planted.write_text(
        json.dumps({**json.loads(head.read_text("utf-8")), "seq": 9, "hash": "a" * 64}), "utf-8"
    )
    found = reopen().verify()
    assert found.first_bad is not None and "did not sign" in found.first_bad["why"]
    planted.unlink()
    assert reopen().verify().ok
    shutil.rmtree(tmp_path / "elsewhere")
    found = reopen().verify()
    assert found.first_bad is not None and "holds no head" in found.first_bad["why"]
    reopen().export_head()
    assert reopen().verify().ok


def test_a_place_out_of_reach_loses_nothing_and_is_told(
    reopen: Reopen, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(reopen(), 2)
    (tmp_path / "elsewhere").rename(tmp_path / "away")
    (tmp_path / "elsewhere").write_text("a mount that is gone", encoding="utf-8")
    fill(reopen(), 2, start=2)
    assert "the head of entry 4 could not be kept in" in caplog.text
    found = reopen().verify()
    assert found.entries == 4 and found.first_bad is not None and "out of reach" in found.first_bad["why"]
    (tmp_path / "elsewhere").unlink()
    (tmp_path / "away").rename(tmp_path / "elsewhere")
    assert "2 entries behind" in reopen().verify().warnings[0]
    fill(reopen(), 1, start=4)
    assert reopen().verify().ok and not reopen().verify().warnings


def test_a_folder_keeps_the_newest_heads_only(reopen: Reopen, tmp_path: Path) -> None:
    ledger = reopen()
    for start in range(0, 5000, 500):
        ledger.append_many([new(n) for n in range(start, start + 500)])
    kept = [mark.seq for mark in Heads(tmp_path / "elsewhere").marks()]
    assert kept[0] == 5000 and kept[-1] >= 4000 and ledger.verify().ok


def test_heads_under_object_lock_outlive_an_attacker_with_the_key_of_the_bucket(
    s3_url: str,
    reopen: Reopen,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import boto3
    from botocore.exceptions import ClientError

    access = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "ENDPOINT_URL": s3_url}
    for name, value in {**access, "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3: Any = boto3.client("s3")
    s3.create_bucket(Bucket="heads", ObjectLockEnabledForBucket=True)
    retention = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 3650}}
    s3.put_object_lock_configuration(
        Bucket="heads", ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": retention}
    )
    place = "s3://heads/acme"
    fill(reopen(place), 4)
    shutil.copytree(tmp_path / "home", tmp_path / "copy")
    fill(reopen(place), 3, start=4)
    assert reopen(place).verify().ok
    # What was locked cannot be removed, only covered: by delete markers and newer versions.
    for version in s3.list_object_versions(Bucket="heads")["Versions"]:
        with pytest.raises(ClientError):
            s3.delete_object(Bucket="heads", Key=version["Key"], VersionId=version["VersionId"])
        s3.put_object(Bucket="heads", Key=version["Key"], Body=b"{}")
        s3.delete_object(Bucket="heads", Key=version["Key"])
    assert "Contents" not in s3.list_objects_v2(Bucket="heads")
    assert reopen(place).verify().ok
    set_back(tmp_path)
    found = reopen(place).verify()
    assert found.first_bad is not None and found.first_bad["seq"] == 5 and "cut" in found.first_bad["why"]
    # A bucket out of reach holds nobody up.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    begun = time.monotonic()
    fill(reopen(place), 1)
    assert time.monotonic() - begun < 20 and "could not be kept in s3://heads/acme" in caplog.text


# -- backup and restore ----------------------------------------------------------------------------


def test_a_backup_brings_everything_back_into_the_other_database(
    ledger: Ledger, tmp_path: Path, postgres_url: str
) -> None:
    fill(ledger, 3)
    ledger_backup.write(ledger, tmp_path / "old.zst")
    fill(ledger, 4, start=3)
    made = ledger_backup.write(ledger, tmp_path / "new.zst")
    assert (made.entries, made.head) == (7, ledger.head)
    with pytest.raises(InputInvalid, match="is there already"):
        ledger_backup.write(ledger, tmp_path / "new.zst")
    with pytest.raises(Refused, match="nothing to restore"):
        ledger_backup.restore(ledger, tmp_path / "old.zst", by="op")
    before = ledger.entries()
    lite = ledger.url.startswith("sqlite")
    fresh = Ledger(postgres_url if lite else f"sqlite:///{tmp_path / 'other.db'}", tmp_path)
    with pytest.raises(Refused, match="ends at entry 3, the ledger once reached 7"):
        ledger_backup.restore(fresh, tmp_path / "old.zst", by="op")
    with pytest.raises(FtaasError, match="does not continue entry 7"):
        fill(fresh, 1)  # nor does anybody begin anew unseen
    assert fresh.entries() == []
    entry = ledger_backup.restore(fresh, tmp_path / "new.zst", by="op")
    assert fresh.entries()[:-1] == before and (entry.kind, entry.seq) == ("ledger_restored", 8)
    assert fresh.verify().ok and not fresh.verify().warnings
    fill(fresh, 1)
    assert fresh.verify().ok


def test_a_restore_that_loses_entries_needs_a_reason_and_says_so_for_good(
    reopen: Reopen, tmp_path: Path
) -> None:
    fill(reopen(), 4)
    backup = tmp_path / "backup.zst"
    ledger_backup.write(reopen(), backup)
    fill(reopen(), 6, start=4)
    (tmp_path / "home" / "ledger.db").rename(tmp_path / "damaged.db")
    with pytest.raises(Refused, match="once reached 10"):
        ledger_backup.restore(reopen(), backup, by="op@example.com")
    entry = ledger_backup.restore(reopen(), backup, by="op@example.com", accept_loss="disk died at noon")
    assert (entry.kind, entry.seq, entry.actor) == ("loss_accepted", 5, "op@example.com")
    assert entry.body["reason"] == "disk died at noon" and entry.body["lost"] == {"1": 10}
    found = reopen().verify()
    assert found.ok and found.entries == 5 and not found.warnings, found
    # Entries 6 to 9 were lost once; losing them a second time is found all the same.
    fill(reopen(), 2, start=100)
    shutil.copytree(tmp_path / "home", tmp_path / "copy")
    fill(reopen(), 2, start=102)
    assert reopen().verify().ok
    set_back(tmp_path)
    found = reopen().verify()
    assert found.first_bad is not None and found.first_bad["seq"] == 8
    # And again, from the same old backup: a third era.
    (tmp_path / "home" / "ledger.db").unlink()
    ledger_backup.restore(reopen(), backup, by="op@example.com", accept_loss="again")
    fill(reopen(), 3, start=200)
    found = reopen().verify()
    assert found.ok and found.entries == 8 and not found.warnings, found


@hypothesis.settings(
    max_examples=40, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(data=st.data())
def test_a_backup_with_one_byte_changed_or_cut_is_refused_and_changes_nothing(
    written: Path, tmp_path: Path, data: st.DataObject
) -> None:
    import zstandard

    source = Ledger(f"sqlite:///{written / 'ledger.db'}", written)
    backup, home = tmp_path / "backup.zst", tmp_path / "home"
    backup.unlink(missing_ok=True)
    ledger_backup.write(source, backup)
    plain = bytearray(zstandard.ZstdDecompressor().stream_reader(backup.read_bytes()).read())
    how = data.draw(st.sampled_from(("plain", "packed", "cut", "line")))
    at, bits = data.draw(st.integers(0, 10**6)), data.draw(st.integers(1, 255))
    if how == "packed":
        stored = bytearray(backup.read_bytes())
        stored[at % len(stored)] ^= bits
        backup.write_bytes(stored)
    else:
        if how == "plain":
            plain[at % len(plain)] ^= bits
        elif how == "cut":
            del plain[at % (len(plain) - 1) :]
        else:
            lines = plain.splitlines(keepends=True)
            del lines[at % len(lines)]
            plain = bytearray(b"".join(lines))
        backup.write_bytes(zstandard.ZstdCompressor().compress(bytes(plain)))
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    shutil.copytree(written / "keys", home / "keys")
    ledger = Ledger(f"sqlite:///{home / 'ledger.db'}", home)
    try:
        ledger_backup.restore(ledger, backup, by="op")
    except (InputInvalid, Refused):
        assert ledger.entries() == []
    else:  # a bit of the packing that means nothing, or of the header's public key
        assert ledger.entries()[:-1] == source.entries()


def test_what_does_not_hold_is_not_backed_up(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger, 3)
    drop_guards(ledger.url)
    execute(ledger.url, "UPDATE ledger SET actor = 'other' WHERE seq = 2")
    with pytest.raises(FtaasError, match="does not hold"):
        ledger_backup.write(ledger, tmp_path / "b.zst")
    assert not [p for p in tmp_path.iterdir() if "b.zst" in p.name]


# -- the command line ------------------------------------------------------------------------------


def test_from_the_command_line(ftaas: Callable[..., Any], home: Path, tmp_path: Path) -> None:
    elsewhere = str(tmp_path / "elsewhere")
    ledger = Ledger(f"sqlite:///{home / 'ledger.db'}", home, POLICY, elsewhere)
    fill(ledger, 3)
    with_heads = {"FTAAS_LEDGER_HEAD": elsewhere}
    assert [e["seq"] for e in ftaas("ledger", "show", "--limit", "2", "--json").json["entries"]] == [2, 3]
    assert ftaas("ledger", "head", "--json", **with_heads).json["hash"] == ledger.head
    then = ftaas("ledger", "verify", "--as-of", "2001-01-01", "--json", **with_heads)
    assert then.code == 0 and then.json == {"ok": True, "entries": 0, "head": GENESIS, "first_bad": None}
    backup = str(tmp_path / "backup.zst")
    assert ftaas("ledger", "backup", "--to", backup, "--json").json["entries"] == 3
    fill(ledger, 1, start=3)
    (home / "ledger.db").unlink()
    for extra in ("-wal", "-shm"):
        (home / f"ledger.db{extra}").unlink(missing_ok=True)
    cut = ftaas("ledger", "verify", "--json", **with_heads)
    assert cut.code == 1 and cut.json["first_bad"]["seq"] == 1
    assert ftaas("ledger", "restore", backup, **with_heads).code == 3
    done = ftaas("ledger", "restore", backup, "--accept-loss", "the disk died", "--json", **with_heads)
    assert done.code == 0 and done.json["entry"]["actor"] == "owen.owner@example.com"
    assert ftaas("ledger", "verify", **with_heads).code == 0
    assert "GRANT SELECT, INSERT ON ledger" in ftaas("ledger", "grants", "we ird").stdout


def test_trace_shows_who_had_signed_then_and_what_was_withdrawn_since(
    ftaas: Callable[..., Any], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(home / "store").create("splits", "a" * 64) as draft:
        draft.content = {"counts": {"train": 1}}
    digest = draft.made.digest
    ledger = Ledger(f"sqlite:///{home / 'ledger.db'}", home, POLICY)

    def say(day: str, kind: str, actor: str, **body: Any) -> str:
        monkeypatch.setattr(ledger_module, "now", lambda: f"2030-05-{day}T10:00:00Z")
        return ledger.append(kind, digest, body, project="p", actor=actor).hash

    say("01", "review_requested", "line", role="sme", who=["sam@example.com"])
    said = {"role": "sme", "decision": "approve", "comment": "looked"}
    decision = say("02", "decision", "sam@example.com", **said)
    say("03", "answer_refused", "line", round="w1", reason="forged: not the pinned user")
    say("04", "decision_revoked", "line", decision=decision, role="sme", why="the answer was edited")
    (then,) = ftaas("trace", digest[:10], "--as-of", "2030-05-02", "--json").json["artifacts"]
    assert [e["kind"] for e in then["ledger"]] == ["review_requested", "decision"]
    assert then["signed"][0]["withdrawn"] is None and then["signed"][0]["policy"] == POLICY
    assert then["signed_now"][0]["withdrawn"]["why"] == "the answer was edited"
    assert [e["kind"] for e in then["since"]] == ["answer_refused", "decision_revoked"]
    (today,) = ftaas("trace", digest, "--json").json["artifacts"]
    assert len(today["ledger"]) == 4 and today["signed"] == then["signed_now"]
    text = ftaas("trace", digest, "--as-of", "2030-05-02").stdout
    for words in ("signed on 2030-05-02: sme sam@example.com: approve", "withdrawn at 2030-05-04", "forged"):
        assert words in text
    assert ftaas("trace", "0" * 8).code == 2
