"""API keys: issued, rotated and revoked by entries of the ledger, which never hold a key.

A key is `ftaas_<id>_<secret of 256 bits>` and is shown once. The ledger keeps its HMAC under the
installation's pepper. A random secret of that length needs no slow hash, which would let anybody keep the
gateway busy (see docs/access.md).
"""

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.governance.ledger import Entry, Ledger, New
from ftaas_pipelines.serving.access.caller import Action, Allowance, Caller

PREFIX = "ftaas_"
ISSUED, ROTATED, REVOKED = "key_issued", "key_rotated", "key_revoked"
KINDS = (ISSUED, ROTATED, REVOKED)
_PEPPER = "access_pepper"
_LEAST_PEPPER = 16  # bytes


@dataclass(frozen=True)
class Key:
    """What is known of a key; not the key.

    Attributes:
        expires: UTC seconds since the epoch; None: never.
    """

    id: str
    name: str
    mac: str
    projects: tuple[str, ...]
    environments: tuple[str, ...]
    actions: tuple[Action, ...]
    allowance: Allowance
    expires: float | None
    issued_by: str
    issued_at: str
    revoked: bool = False

    @property
    def caller(self) -> Caller:
        return Caller(self.id, self.projects, frozenset(self.actions), self.allowance)

    def state(self, now: float) -> str:
        """`valid`, `revoked` or `expired`."""
        if self.revoked:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "valid"

    def as_dict(self, now: float) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "state": self.state(now),
            "projects": list(self.projects),
            "environments": list(self.environments),
            "actions": list(self.actions),
            "allowance": self.allowance.as_dict(),
            "expires": self.expires,
            "issued_by": self.issued_by,
            "issued_at": self.issued_at,
        }


def pepper(home: Path, given: str = "") -> bytes:
    """The secret that keys are hashed under: the setting's, or this home's own, made when first needed.

    Raises:
        InputInvalid: it is too short to be one, or cannot be read.
    """
    if given:
        return _long_enough(given.encode(), "FTAAS_ACCESS_PEPPER")
    file = home / _PEPPER
    try:
        if not file.exists():
            _make(file)
        return _long_enough(file.read_bytes(), str(file))
    except OSError as error:
        do = "run as the user the platform runs as, or set FTAAS_ACCESS_PEPPER"
        raise InputInvalid("cannot be read", str(file), error.strerror or "", do) from error


def _long_enough(secret: bytes, where: str) -> bytes:
    if len(secret) < _LEAST_PEPPER:
        do = f"put {_LEAST_PEPPER} random bytes there or more; keys issued under another pepper end"
        raise InputInvalid("is too short for a secret", where, f"{len(secret)} bytes", do)
    return secret


def _make(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{_PEPPER}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as out:
        out.write(secrets.token_bytes(32))
        out.flush()
        os.fsync(out.fileno())  # keys are issued under it at once
    try:
        os.link(temporary, file)  # whoever comes second takes the first one's
    except FileExistsError:
        pass
    finally:
        temporary.unlink()


def mac(pepper: bytes, key: str) -> str:
    """What is kept of a key, hex."""
    return hmac.new(pepper, key.encode(), hashlib.sha256).hexdigest()


def new_key() -> tuple[str, str]:
    """A fresh key: its public id, and the whole of it."""
    id = f"key_{secrets.token_hex(6)}"
    return id, f"{PREFIX}{id}_{secrets.token_hex(32)}"


def id_of(key: str) -> str | None:
    """The public id in a key; None where it has not the form of one."""
    parts = key.split("_")
    if len(parts) != 4 or parts[0] != "ftaas" or parts[1] != "key" or len(key) > 128:
        return None
    return f"key_{parts[2]}"


def subject(id: str) -> str:
    """What ledger entries about a key are about: 64 hex digits, as every subject."""
    return hashlib.sha256(id.encode()).hexdigest()


def issue(
    ledger: Ledger,
    pepper: bytes,
    *,
    name: str,
    projects: Sequence[str],
    environments: Sequence[str],
    actions: Sequence[Action],
    allowance: Allowance,
    expires: float | None,
    actor: str,
) -> tuple[str, str]:
    """Issue a key. Returns its id, and the key, which cannot be had again."""
    id, key = new_key()
    body = _body(
        id, mac(pepper, key), name=name, projects=projects, environments=environments, actions=actions,
        allowance=allowance, expires=expires,
    )  # fmt: skip
    ledger.append(ISSUED, subject(id), body, project="", actor=actor)
    return id, key


def _body(id: str, mac: str, *, allowance: Allowance, **said: Any) -> dict[str, Any]:
    """What the ledger says of a key that is issued."""
    return {"id": id, "mac": mac, "allowance": allowance.as_dict(), **said}


def rotate(
    ledger: Ledger,
    pepper: bytes,
    known: Key,
    *,
    grace_s: float,
    now: float,
    actor: str,
    expires: float | None = None,
) -> tuple[str, str]:
    """Issue a successor with the same rights; the old key lives on for `grace_s` seconds.

    Args:
        expires: of the successor, UTC seconds; None: as the old one's.
    """
    id, key = new_key()
    issued = _body(
        id, mac(pepper, key), name=known.name, projects=known.projects, environments=known.environments,
        actions=known.actions, allowance=known.allowance, expires=expires or known.expires,
    )  # fmt: skip
    ended = {"id": known.id, "successor": id, "expires": now + grace_s}
    # Both or none: a successor that nobody was shown would be valid for nobody's good.
    ledger.append_many(
        [New(ISSUED, subject(id), issued, "", actor), New(ROTATED, subject(known.id), ended, "", actor)]
    )
    return id, key


def revoke(ledger: Ledger, known: Key, *, reason: str, actor: str) -> None:
    """End a key: every gateway refuses it within seconds."""
    ledger.append(REVOKED, subject(known.id), {"id": known.id, "reason": reason}, project="", actor=actor)


def add(known: dict[str, Key], entries: Sequence[Entry]) -> None:
    """Take in what ledger entries say of keys, in order."""
    for entry in entries:
        body, id = entry.body, str(entry.body.get("id"))
        if entry.kind == ISSUED:
            known[id] = Key(
                id,
                str(body["name"]),
                str(body["mac"]),
                tuple(body["projects"]),
                tuple(body["environments"]),
                tuple(body["actions"]),
                Allowance(**body["allowance"]),
                body["expires"],
                entry.actor,
                entry.at,
            )
        elif id in known and entry.kind == ROTATED:
            before = known[id].expires
            ends = float(body["expires"])
            known[id] = replace(known[id], expires=ends if before is None else min(before, ends))
        elif id in known and entry.kind == REVOKED:
            known[id] = replace(known[id], revoked=True)


def all_keys(ledger: Ledger) -> dict[str, Key]:
    """Every key of the ledger by its id."""
    known: dict[str, Key] = {}
    add(known, ledger.entries(KINDS, authentic=True))
    return known


def find(ledger: Ledger, wanted: str, now: float | None = None) -> Key:
    """A key by its id, or by its name where only one valid key has it.

    Raises:
        InputInvalid: there is none, or several.
    """
    known = all_keys(ledger)
    if wanted in known:
        return known[wanted]
    now = time.time() if now is None else now
    named = [key for key in known.values() if key.name == wanted and key.state(now) == "valid"]
    if len(named) == 1:
        return named[0]
    what = "several valid keys have this name" if named else "there is no such key, or none that is valid"
    got = ", ".join(k.id for k in named) or wanted
    raise InputInvalid(what, "key", got, "name it by its id: `ftaas key list --all`")
