"""What differs between two versions of a dataset: rows that came, went or changed.

Both versions are sorted by `record_id` in buckets, so they are compared bucket by bucket, and a bucket
that both share (the same bytes) is not read at all. Words:

same            the same record_id and content_id.
changed         the same row came in (record_id), but its text now is another (content_id): it was
                cleaned otherwise, or a reviewer corrected it.
edited          a row went and another came that asks the same (normalised prompt): what is answered, or
                how it is written, was edited at the source. Equal prompts pair up in order of record_id.
came, went      every other row of one version alone. A row that went was dropped from the newer
                version for a reason, or its source no longer has it (`not_in_source`).

So: same + changed + edited + went = records of A; same + changed + edited + came = of B.
"""

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from ftaas_pipelines.data.versions import view
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.store import Artifact, short

_Keyed = tuple[str, bytes]  # record_id, and 16 bytes of the sha256 of its normalised prompt (b"": none)


@dataclass
class Diff:
    """Counts of everything, and the first `limit` rows of each kind by `record_id`.

    Attributes:
        went_because: rows that went, by the reason for which the newer version dropped them.
        came, went: record_id, source, prompt, answer.
        changed: record_id, source, before and after ({prompt, answer}).
        edited: before and after ({record_id, source, prompt, answer}).
    """

    before: str
    after: str
    counts: dict[str, int]
    went_because: dict[str, int]
    came: list[dict[str, Any]]
    went: list[dict[str, Any]]
    changed: list[dict[str, Any]]
    edited: list[dict[str, Any]]


@dataclass
class _Found:
    same: int = 0
    changed: list[str] = field(default_factory=list[str])
    came: list[_Keyed] = field(default_factory=list[_Keyed])
    went: list[_Keyed] = field(default_factory=list[_Keyed])
    reasons: dict[str, str] = field(default_factory=dict[str, str])


def compare(before: Artifact, after: Artifact, limit: int = 20) -> Diff:
    """Compare two dataset versions. Memory grows with what differs, not with what is there.

    Raises:
        InputInvalid: one of them is not a dataset version.
    """
    for artifact in (before, after):
        if artifact.kind != "dataset":
            raise InputInvalid(
                "is not a dataset version",
                f"{artifact.kind} {short(artifact.digest)}",
                do="name the digests of two datasets",
            )
    found = _Found()
    for prefix in _prefixes(before, after):
        _compare_bucket(before, after, prefix, found)
    pairs = _pair(found)
    paired_went, paired_came = {a for a, _ in pairs}, {b for _, b in pairs}
    went = [i for i, _ in found.went if i not in paired_went]
    came = [i for i, _ in found.came if i not in paired_came]
    because = Counter(found.reasons.get(i, "not_in_source") for i in went)
    counts = {
        "same": found.same,
        "changed": len(found.changed),
        "edited": len(pairs),
        "came": len(came),
        "went": len(went),
    }
    shown = pairs[:limit]
    old = view.by_id(before, [*went[:limit], *found.changed[:limit], *(a for a, _ in shown)])
    new = view.by_id(after, [*came[:limit], *found.changed[:limit], *(b for _, b in shown)])
    return Diff(
        before.digest,
        after.digest,
        counts,
        dict(sorted(because.items())),
        came=[_row(new[i]) for i in came[:limit]],
        went=[{**_row(old[i]), "because": found.reasons.get(i, "not_in_source")} for i in went[:limit]],
        changed=[
            {"record_id": i, "source": new[i]["source"], "before": _text(old[i]), "after": _text(new[i])}
            for i in found.changed[:limit]
        ],
        edited=[{"before": _row(old[a]), "after": _row(new[b])} for a, b in shown],
    )


def _prefixes(before: Artifact, after: Artifact) -> list[str]:
    """The finer of the two versions' buckets: each lies inside one bucket of the other."""
    finer = max((before, after), key=lambda artifact: len(view.files(artifact)))
    return ["" if path.stem == "all" else path.stem for path in view.files(finer)]


def _compare_bucket(before: Artifact, after: Artifact, prefix: str, found: _Found) -> None:
    import pyarrow.parquet as pq

    name = f"records/{prefix or 'all'}.parquet"
    old_file, new_file = (a.manifest["files"].get(name) for a in (before, after))
    if old_file and old_file == new_file:
        found.same += pq.read_metadata(after.file(name)).num_rows
        return
    old, new = _contents(before, prefix), _contents(after, prefix)
    for record_id in sorted(old.keys() & new.keys()):
        if old[record_id] == new[record_id]:
            found.same += 1
        else:
            found.changed.append(record_id)
    went, came = old.keys() - new.keys(), new.keys() - old.keys()
    found.went += _keyed(before, prefix, went)
    found.came += _keyed(after, prefix, came)
    if went:
        found.reasons |= _reasons(after, prefix, went)


def _contents(artifact: Artifact, prefix: str) -> dict[str, str]:
    """record_id to content_id, of the records whose id begins so."""
    rows: dict[str, list[str]] = view.columns(artifact, ["record_id", "content_id"], prefix).to_pydict()
    return dict(zip(rows["record_id"], rows["content_id"], strict=True))


def _keyed(artifact: Artifact, prefix: str, ids: set[str]) -> list[_Keyed]:
    if not ids:
        return []
    rows: dict[str, list[str]] = view.columns(artifact, ["record_id", "prompt"], prefix).to_pydict()
    return [(i, _prompt_key(p)) for i, p in zip(rows["record_id"], rows["prompt"], strict=True) if i in ids]


def _prompt_key(prompt: str) -> bytes:
    normal = " ".join(prompt.casefold().split())
    return hashlib.sha256(normal.encode()).digest()[:16] if normal else b""


def _reasons(artifact: Artifact, prefix: str, ids: set[str]) -> dict[str, str]:
    """Why this version dropped these rows; of several copies' reasons the first by name."""
    rows = view.columns(artifact, ["record_id", "reason"], prefix, table="dropped").to_pylist()
    known = sorted(((r["record_id"], r["reason"]) for r in rows if r["record_id"] in ids), reverse=True)
    return dict(known)


def _pair(found: _Found) -> list[tuple[str, str]]:
    """Rows that went and came with the same prompt, as (record_id that went, record_id that came)."""
    waiting: dict[bytes, list[str]] = defaultdict(list)
    for record_id, key in found.came:
        if key:
            waiting[key].append(record_id)
    for ids in waiting.values():
        ids.reverse()  # taken from the end, so in order of record_id
    return [(record_id, waiting[key].pop()) for record_id, key in found.went if waiting.get(key)]


def _row(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("record_id", "source", "prompt", "answer")}


def _text(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("prompt", "answer")}
