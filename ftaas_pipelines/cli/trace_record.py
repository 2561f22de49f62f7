"""What the ledger says of one artifact: entries, who had signed, what was withdrawn."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ftaas_pipelines.governance.ledger import Entry, Ledger

_SAID = ("role", "environment", "decision", "comment", "conditions", "risk", "gate", "asset")
_ROUND = ("round", "reason", "why", "counts", "who", "verdicts", "saw", "policy")


@dataclass(frozen=True)
class Record:
    """Entries about one artifact, in order, each with whether this platform wrote it."""

    lines: list[tuple[Entry, bool]]

    def parted(self, until: str | None) -> "tuple[Record, Record]":
        """What stood there by a date (all, where none is given), and what came after."""
        then = [line for line in self.lines if until is None or line[0].at <= until + "~"]
        return Record(then), Record(self.lines[len(then) :])

    def signed(self) -> list[dict[str, Any]]:
        """The latest decision of each person, role and environment, and whether it was withdrawn."""
        latest: dict[tuple[str, str, str], Entry] = {}
        withdrawn: dict[str, dict[str, str]] = {}
        for entry, authentic in self.lines:
            if authentic and entry.kind == "decision":
                latest[(entry.role, entry.environment, entry.actor.lower())] = entry
            elif authentic and entry.kind == "decision_revoked":
                why = str(entry.body.get("why", ""))
                withdrawn[str(entry.body.get("decision"))] = {"at": entry.at, "why": why}
        return [
            {
                "role": e.role,
                "environment": e.environment,
                "by": e.actor,
                "decision": str(e.body.get("decision")),
                "at": e.at,
                "saw": e.saw,
                "policy": e.policy or str(e.body.get("policy") or ""),
                "withdrawn": withdrawn.get(e.hash),
            }
            for e in latest.values()
        ]

    def as_dicts(self) -> list[dict[str, Any]]:
        return [
            {
                "seq": e.seq,
                "at": e.at,
                "kind": e.kind,
                "by": e.actor,
                "authentic": authentic,
                **({"policy": e.policy} if e.policy else {}),
                **{k: e.body[k] for k in (*_SAID, *_ROUND) if e.body.get(k)},
            }
            for e, authentic in self.lines
        ]


def read(ledger: Ledger, digest: str, named: set[str]) -> Record:
    """The entries about a digest, and those of the review rounds whose verdicts it was made with.

    Args:
        named: the digests that the artifact's manifest and attestation name.
    """
    found = {e.seq: e for e in ledger.entries(subject=digest)}
    for closed in ledger.entries("round_closed"):
        if closed.body.get("verdicts") in named and closed.subject != digest:
            own = ledger.entries(subject=closed.subject)
            found |= {e.seq: e for e in own if e.body.get("round") == closed.body["round"]}
    return Record([(found[seq], ledger.is_authentic(found[seq])) for seq in sorted(found)])


def words(line: dict[str, Any]) -> str:
    """A line of the record as a person reads it."""
    kind, by = str(line["kind"]), line["by"]
    said = {name: line[name] for name in (*_SAID, "reason", "why") if line.get(name)}
    if kind == "decision":
        return _joined(f"{said.pop('role')} {by} said {said.pop('decision')}", said)
    if kind == "review_requested":
        return _joined(f"asked {said.pop('role')} {' or '.join(line.get('who', []))}", said)
    if kind == "decision_revoked":
        said.pop("decision", None)
        return _joined("sign-off withdrawn", said)
    if kind == "answer_refused":
        return _joined(f"an answer in round {line.get('round')} was refused", said)
    if kind.startswith("round_"):
        counts: dict[str, Any] = line.get("counts", {})
        state = kind.removeprefix("round_")
        return _joined(f"round {line.get('round')} {state}", {**said, **counts})
    return _joined(f"{kind} by {by}", said)


def _joined(start: str, said: dict[str, Any]) -> str:
    parts: Iterable[str] = (
        str(value) if name in ("comment", "reason", "why") else f"{name} {value}"
        for name, value in said.items()
    )
    text = ", ".join(parts)
    return f"{start}: {text}" if text else start
