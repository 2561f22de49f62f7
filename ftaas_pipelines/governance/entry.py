"""One entry of the ledger: what it answers, and how it is hashed.

The hash of an entry is the sha256 of its canonical JSON (sorted keys, no white space, UTF-8) without hash
and signature; the signature is over the hash's hexadecimal. Anybody can recompute both:

    format 1    actor, at, body, kind, prev, project, seq, subject
    format 2    the same, format and policy
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from ftaas_pipelines.errors import FtaasError
from ftaas_pipelines.governance.signing import Verifier
from ftaas_pipelines.store import canonical

GENESIS = "0" * 64
FORMAT = 2
"""The format that new entries are written in; those of lower ones stay as they are."""

LOSS = "loss_accepted"
"""Kind of the entry that a restore writes when it ends before the exported head."""

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


class Row(NamedTuple):
    """One entry as the database holds it: `body` is JSON text."""

    seq: int
    at: str
    kind: str
    actor: str
    project: str
    subject: str
    body: str
    prev: str
    hash: str
    signature: str
    format: int
    policy: str

    def computed_hash(self) -> str:
        """What its hash must be.

        Raises:
            TypeError, ValueError: a field holds what this module never wrote.
        """
        rest: dict[str, Any] = {
            "kind": self.kind,
            "prev": self.prev,
            "project": self.project,
            "seq": self.seq,
            "subject": self.subject,
        }
        if self.format != 1 or self.policy:
            rest |= {"format": self.format, "policy": self.policy}
        # The body goes in as it stands, neither parsed nor spelt anew: every byte of it counts.
        before = _ENCODER.encode({"actor": self.actor, "at": self.at})[:-1]
        text = f'{before},"body":{self.body},{_ENCODER.encode(rest)[1:]}'
        return hashlib.sha256(text.encode()).hexdigest()

    def fault(self, expected: int, prev: str, key: Verifier | None) -> str | None:
        """Why it does not stand as entry number `expected` after `prev`; None when it does."""
        if self.seq != expected:
            return "an entry is missing" if self.seq > expected else "it is no entry of this chain"
        if self.prev != prev:
            return "it does not continue the entry before it"
        if not self.unchanged:
            return "its content was changed"
        if self.format > FORMAT:
            return f"format {self.format} is newer than this platform knows"
        if key is None:
            return "there is no key in FTAAS_HOME/keys to check its signature with"
        if not key.holds(self.hash.encode(), self.signature):
            return "its signature does not verify"
        return None

    @property
    def unchanged(self) -> bool:
        """Whether its hash is that of its content."""
        try:
            return self.computed_hash() == self.hash
        except (TypeError, ValueError):
            return False


@dataclass(frozen=True)
class Entry:
    """One line of the ledger: who did what, when, under which policy.

    Attributes:
        subject: the digest or name it speaks of.
        policy: version digest of the platform policy that held; empty in format 1 and where none did.
    """

    seq: int
    at: str
    kind: str
    actor: str
    project: str
    subject: str
    body: dict[str, Any]
    prev: str
    hash: str
    signature: str
    format: int = 1
    policy: str = ""

    @property
    def role(self) -> str:
        """In which role the actor acted; empty where none applies."""
        return str(self.body.get("role") or "")

    @property
    def environment(self) -> str:
        """For which environment; empty where none applies."""
        return str(self.body.get("environment") or "")

    @property
    def saw(self) -> str:
        """Digest of what was shown to the actor; empty where nothing was."""
        return str(self.body.get("saw") or "")

    @property
    def row(self) -> Row:
        """The entry as the database holds it."""
        values: dict[str, Any] = {**self.__dict__, "body": canonical(self.body).decode()}
        return Row(**values)

    def computed_hash(self) -> str:
        return self.row.computed_hash()

    @staticmethod
    def of(row: Row) -> "Entry":
        """The entry of a row.

        Raises:
            FtaasError: its body is not JSON.
        """
        try:
            return Entry(**{**row._asdict(), "body": json.loads(row.body)})
        except ValueError as error:
            raise FtaasError(
                "an entry is not JSON", f"ledger entry {row.seq}", do="restore a backup"
            ) from error


@dataclass(frozen=True)
class New:
    """An entry to be: what `append_many` takes."""

    kind: str
    subject: str
    body: dict[str, Any]
    project: str
    actor: str
