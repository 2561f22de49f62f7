"""What the rows of a work shard became: columns, keys and signatures, in the files of the shard's folder."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from ftaas_pipelines.data import tables
from ftaas_pipelines.data.plain_pairs import Pairs
from ftaas_pipelines.data.rows.messages import Message
from ftaas_pipelines.data.rows.records import Record
from ftaas_pipelines.projects.dataset import Duplicates

CONSTANT = ("source", "declared_split", "challenge")  # of a shard: not written with every row of it
WORK: Any = pa.schema([f for f in tables.RECORDS if f.name not in CONSTANT]).append(
    pa.field("line", pa.int64())
)


class Made:
    """What a shard's rows became, piece by piece: columns, keys and near-duplicate signatures."""

    def __init__(self, near: bool, duplicates: Duplicates):
        self._near, self._on, self._threshold = near, duplicates.on, duplicates.threshold
        self._tables: list[Any] = []
        self._keys: list[Keys] = []
        self._bands: list[Any] = []
        self.dropped: list[dict[str, Any]] = []
        self.findings: list[dict[str, Any]] = []

    @property
    def rows(self) -> int:
        return sum(len(table) for table in self._tables)

    def add_records(self, kept: list[Record]) -> None:
        """Records that went the long way."""
        rows = [row(record) for record in kept]
        columns = [pa.array([r[f.name] for r in rows], f.type) for f in WORK if f.name != "line"]
        self._tables.append(pa.table([*columns, pa.array([r.line for r in kept], pa.int64())], schema=WORK))
        self._keys.append(Keys.of(kept, rows, self._on))
        if self._near:
            self._sign([near_text(r, self._on) for r in kept])

    def add_pairs(self, pairs: Pairs) -> None:
        """Plain pairs, which are columns already."""
        n = len(pairs.line)
        identity, nothing = _hex(pairs.record_id), pa.nulls(n, pa.string())
        columns = {
            "record_id": identity,
            "content_id": identity,
            "kind": pa.repeat("text_pair", n),
            "prompt": pairs.prompt,
            "answer": pairs.answer,
            "group": _hex(pairs.group),
            "line": pa.array(pairs.line, pa.int64()),
        }
        self._tables.append(pa.table([columns.get(f.name, nothing) for f in WORK], schema=WORK))
        texts = None
        if self._on == "record":
            texts = [
                f"{normal.decode()} {' '.join(answer.casefold().split())}".strip()
                for normal, answer in zip(pairs.normal, pairs.answer.to_pylist(), strict=True)
            ]
        ids, group = (_first_bits(packed) for packed in (pairs.record_id, pairs.group))
        item = group if texts is None else _bits(prompt_key(text) for text in texts)
        first = np.frombuffer(pairs.record_id, np.uint8)[::32]
        self._keys.append(Keys(first, ids, group, group, item, np.asarray(pairs.line, np.int64)))
        if self._near:
            self._sign([text.decode() for text in pairs.normal] if texts is None else texts)

    def _sign(self, texts: list[str]) -> None:
        from ftaas_pipelines.data.likeness.minhash import signatures

        self._bands.append(signatures(texts, self._threshold))

    def write(self, draft: Path, fine: bool) -> None:
        """Write rows, keys and bands, sorted into the record_id's first bytes."""
        table = pa.concat_tables([WORK.empty_table(), *self._tables]).combine_chunks()
        self._tables = [table]
        keys = Keys.join(self._keys)
        order = np.argsort(keys.first, kind="stable")
        keys = keys.take(order)
        keys.save(draft / "keys.npz")
        cuts = np.searchsorted(keys.first, np.arange(257)).tolist() if fine else [0, len(table)]
        pieces = (table.take(pa.array(order[a:b])) for a, b in zip(cuts[:-1], cuts[1:], strict=True))
        write_ipc(draft / "rows.arrow", pieces, WORK)
        if self._near:
            bands = np.concatenate(self._bands) if self._bands else _none()
            np.save(draft / "bands.npy", np.asfortranarray(bands[order]))


@dataclass(frozen=True)
class Keys:
    """Columns of numbers, one row a record.

    Attributes:
        first: first byte of the record_id, uint8.
        content, prompt, group, item: (n, 2) uint64: the first 128 bits of content_id, of the normalised
            prompt's sha256, of the group's, and of what near-duplicates are told by.
        line: int64.
    """

    first: Any
    content: Any
    prompt: Any
    group: Any
    item: Any
    line: Any

    @classmethod
    def of(cls, batch: list[Record], rows: list[dict[str, Any]], on: str) -> "Keys":
        prompts = [
            row["group"] if record.group_value is None else prompt_key(record.normal_prompt)
            for record, row in zip(batch, rows, strict=True)
        ]
        return cls(
            np.frombuffer(b"".join(bytes.fromhex(row["record_id"][:2]) for row in rows), np.uint8),
            _bits(row["content_id"] for row in rows),
            _bits(prompts),
            _bits(row["group"] for row in rows),
            _bits(prompts if on == "prompt" else (prompt_key(near_text(r, on)) for r in batch)),
            np.fromiter((r.line for r in batch), np.int64, len(batch)),
        )

    @classmethod
    def join(cls, parts: list["Keys"]) -> "Keys":
        parts = parts or [cls.of([], [], "prompt")]
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in cls.__dataclass_fields__))

    def take(self, order: Any) -> "Keys":
        return Keys(*(getattr(self, name)[order] for name in self.__dataclass_fields__))

    def save(self, path: Path) -> None:
        np.savez(path, **{name: getattr(self, name) for name in self.__dataclass_fields__})

    @classmethod
    def load(cls, path: Path) -> "Keys":
        with np.load(path) as found:
            return cls(*(found[name] for name in cls.__dataclass_fields__))


def is_plain(messages: list[Message]) -> bool:
    """Whether prompt and answer say all of it: then the `messages` column is null."""
    return (
        len(messages) == 2 and messages[0]["role"] == "user" and len(messages[0]) == len(messages[1]) == 2
    ) or (len(messages) == 1 and len(messages[0]) == 2)


def near_text(record: Record, on: str) -> str:
    """What near-duplicates are told by: the prompt, or all that is said."""
    if on == "prompt" or not record.prompt:
        return record.normal_prompt
    return " ".join(f"{record.normal_prompt} {record.answer}".casefold().split())


def _bits(digests: Iterable[str]) -> Any:
    packed = b"".join(bytes.fromhex(digest[:32]) for digest in digests)
    return np.frombuffer(packed, ">u8").astype(np.uint64).reshape(-1, 2)


def _first_bits(packed: bytes) -> Any:
    """The first 128 bits of sha256s that stand one after the other."""
    return np.frombuffer(packed, ">u8").astype(np.uint64).reshape(-1, 4)[:, :2]


def _hex(packed: bytes) -> Any:
    """sha256s that stand one after the other as an Arrow array of hex."""
    ends = np.arange(0, 2 * len(packed) + 1, 64, dtype=np.int32)
    text = packed.hex().encode()
    return pa.StringArray.from_buffers(len(ends) - 1, pa.py_buffer(ends), pa.py_buffer(text))


def _none() -> Any:
    from ftaas_pipelines.data.likeness.minhash import signatures

    return signatures([])


def prompt_key(normal_prompt: str) -> str:
    """sha256 (hex) of a normalised prompt: the group of a record that has no group value."""
    return hashlib.sha256(f"prompt\0{normal_prompt}".encode()).hexdigest()


def row(record: Record) -> dict[str, Any]:
    """A record as a row of the record table."""
    return {
        "record_id": record.record_id,
        "content_id": record.content_id,
        "kind": record.kind,
        "prompt": record.prompt,
        "answer": record.answer,
        "messages": None if is_plain(record.messages) else orjson.dumps(record.messages).decode(),
        "extra": orjson.dumps(record.extra, option=orjson.OPT_SORT_KEYS).decode() if record.extra else None,
        "source": record.source,
        "declared_split": record.declared_split,
        "challenge": record.source if record.declared_split == "challenge" else None,
        "group": record.group,
        "synthetic": orjson.dumps(record.synthetic).decode() if record.synthetic else None,
        "language": record.language,
    }


def write_ipc(path: Path, pieces: Iterable[Any], schema: Any) -> None:
    with pa.ipc.new_file(path, schema) as out:
        for piece in pieces:
            # One batch a piece, also an empty one: batch numbers are bucket numbers.
            whole = piece.combine_chunks().to_batches()
            out.write_batch(whole[0] if whole else pa.RecordBatch.from_pylist([], schema=schema))
