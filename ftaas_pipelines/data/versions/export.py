"""A dataset version or its splits, written in the shapes other tools read. It appears whole or not at all.

jsonl_openai    {"messages", "tools"} a line (OpenAI supervised fine-tuning); preferences as
                {"input", "preferred_output", "non_preferred_output"} (its DPO shape)
jsonl_bedrock   {"prompt", "completion"} a line where every record is one question and its answer,
                {"schemaVersion": "bedrock-conversation-2024", …} where some are conversations,
                {"input"} for plain text (Amazon Bedrock's customization jobs)
parquet         the records as they are; of a dataset version with its Croissant metadata
hf              a Hugging Face `Dataset` (of splits a `DatasetDict`), saved to disk

With a card given, it stands beside them as README.md.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ftaas_pipelines.data.versions import croissant, view
from ftaas_pipelines.data.versions.card import Card, render
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.store import Artifact, short

Target = Literal["jsonl_openai", "jsonl_bedrock", "parquet", "hf"]
TARGETS: tuple[Target, ...] = get_args(Target)
_Row = dict[str, Any]


@dataclass(frozen=True)
class Exported:
    """What was written: files (relative to the folder) and records by part (a split, or `records`)."""

    folder: Path
    files: list[str]
    records: dict[str, int]


def export(
    artifact: Artifact, target: Target, out: Path, split: str | None = None, card: Card | None = None
) -> Exported:
    """Write a dataset version, its splits, or one split, to a new folder.

    Args:
        artifact: a `dataset` or `splits`.
        out: the folder to make; it must not be there, or be empty.
        split: of splits, only this one.
        card: of the dataset version.

    Raises:
        InputInvalid: the folder is taken, there is no such split, or a record has no such shape.
    """
    if split and artifact.kind == "dataset":
        raise InputInvalid(
            "a dataset version has no splits", f"dataset {short(artifact.digest)}", split, "name its splits"
        )
    names: list[str | None] = [split] if split or artifact.kind == "dataset" else [*view.counts(artifact)]
    with _appearing(out) as folder:
        parts = {name or "records": name for name in names}
        if target == "hf":
            counts = _write_datasets(artifact, parts, folder)
        elif target == "parquet":
            counts = _copy(artifact, parts, folder)
        else:
            counts = _write_lines(artifact, parts, folder, target)
        if card:
            (folder / "README.md").write_text(render(card), encoding="utf-8")
            if target == "parquet" and artifact.kind == "dataset":
                document = json.dumps(croissant.metadata(card), indent=1, ensure_ascii=False)
                (folder / "croissant.json").write_text(document + "\n", encoding="utf-8")
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return Exported(out, files, counts)


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A folder to write to, which takes its name when all is written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputInvalid("is there already", str(out), do="name a folder that is new or empty")
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.replace(out)
    except OSError as error:
        raise InputInvalid(
            "cannot be written", str(out), error.strerror or "", "name another folder"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy(artifact: Artifact, parts: dict[str, str | None], folder: Path) -> dict[str, int]:
    """Copies, not links: whoever edits them must not edit the store."""
    import pyarrow.parquet as pq

    counts: dict[str, int] = {}
    for part, split in parts.items():
        paths = view.files(artifact, split)
        for path in paths:
            copy = folder / path.relative_to(artifact.path)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
        counts[part] = sum(pq.read_metadata(path).num_rows for path in paths)
    return counts


def _write_lines(
    artifact: Artifact, parts: dict[str, str | None], folder: Path, target: Target
) -> dict[str, int]:
    shape = openai if target == "jsonl_openai" else _bedrock_shape(artifact, parts)
    counts: dict[str, int] = {}
    for part, split in parts.items():
        counts[part] = 0
        with (folder / f"{part}.jsonl").open("w", encoding="utf-8") as lines:
            for row in view.stream(artifact, split):
                lines.write(json.dumps(shape(row), ensure_ascii=False) + "\n")
                counts[part] += 1
    return counts


# -- OpenAI --------------------------------------------------------------------------------------


def openai(row: _Row) -> _Row:
    """One record as OpenAI's fine-tuning reads it.

    Raises:
        InputInvalid: it is a labelled answer or plain text, which have no such shape.
    """
    extra = row.get("extra") or {}
    if row["kind"] in ("labelled", "text"):
        raise _shapeless(row, "OpenAI's fine-tuning", f"a record of kind {row['kind']}")
    messages = [_openai_message(message) for message in row["messages"]]
    tools = {"tools": extra["tools"]} if extra.get("tools") else {}
    if row["kind"] == "preference":
        return {
            "input": {"messages": messages[:-1], **tools},
            "preferred_output": messages[-1:],
            "non_preferred_output": [{"role": "assistant", "content": extra["rejected"]}],
        }
    return {"messages": messages, **tools}


def _openai_message(message: _Row) -> _Row:
    written = {k: v for k, v in message.items() if k in ("role", "name", "tool_calls", "tool_call_id") and v}
    content: Any = message["content"]
    if message.get("images"):
        pictures = [{"type": "image_url", "image_url": {"url": i["ref"]}} for i in message["images"]]
        content = [*([{"type": "text", "text": content}] if content else []), *pictures]
    elif not content and message.get("tool_calls"):
        content = None
    return {**written, "content": content}


# -- Amazon Bedrock ------------------------------------------------------------------------------


def _bedrock_shape(artifact: Artifact, parts: dict[str, str | None]) -> Callable[[_Row], _Row]:
    """The one shape that all of these records take: a training file holds one."""
    rows = (row for split in parts.values() for row in view.stream(artifact, split))
    shapes = {
        "text" if row["kind"] == "text" else "pair" if len(row["messages"]) == 2 else "conversation"
        for row in rows
    }
    if shapes == {"text"}:
        return lambda row: {"input": row["answer"]}
    if shapes == {"pair"}:
        return _bedrock_pair
    return bedrock_conversation


def _bedrock_pair(row: _Row) -> _Row:
    question, answer = bedrock_conversation(row)["messages"]
    return {"prompt": question["content"][0]["text"], "completion": answer["content"][0]["text"]}


def bedrock_conversation(row: _Row) -> _Row:
    """One record as `bedrock-conversation-2024`: a system text, then user and assistant in turn.

    Raises:
        InputInvalid: it has no such shape (preferences, labels, tools, images, other orders of roles).
    """
    what = f"a record of kind {row['kind']}" if row["kind"] in ("labelled", "preference", "text") else ""
    messages: list[_Row] = row["messages"]
    system = [{"text": m["content"]} for m in messages[:1] if m["role"] == "system"]
    turns = messages[len(system) :]
    if any(m.get("tool_calls") or m["role"] == "tool" for m in turns):
        what = "a record with tool calls"
    elif any(m.get("images") for m in turns):
        what = "a record with images"
    elif not what and [m["role"] for m in turns] != ["user", "assistant"] * (len(turns) // 2):
        what = "a record whose user and assistant do not take turns"
    if what:
        raise _shapeless(row, "Amazon Bedrock's customization", what)
    return {
        "schemaVersion": "bedrock-conversation-2024",
        **({"system": system} if system else {}),
        "messages": [{"role": m["role"], "content": [{"text": m["content"]}]} for m in turns],
    }


def _shapeless(row: _Row, whose: str, what: str) -> InputInvalid:
    return InputInvalid(
        f"{what} has no shape in {whose}",
        f"record {short(row['record_id'])}",
        do="export it with --to parquet or --to hf",
    )


# -- Hugging Face datasets -----------------------------------------------------------------------

_EXTRA = ("tools", "rejected", "label", "expected", "columns", "synthetic", "language")


def _write_datasets(artifact: Artifact, parts: dict[str, str | None], folder: Path) -> dict[str, int]:
    from datasets import Dataset, DatasetDict, disable_progress_bars

    disable_progress_bars()
    features = _features(artifact, parts)
    cache = folder / ".cache"
    made: dict[Any, Dataset] = {}
    for part, split in parts.items():
        rows = _HuggingFaceRows(artifact, split, tuple(features))
        made[part] = Dataset.from_generator(rows, features=features, cache_dir=str(cache))  # pyright: ignore[reportArgumentType]
    whole = made["records"] if artifact.kind == "dataset" else DatasetDict(made)
    whole.save_to_disk(str(folder))
    shutil.rmtree(cache)
    return {part: len(dataset) for part, dataset in made.items()}


@dataclass(frozen=True)
class _HuggingFaceRows:
    """Makes the rows of one part, with these columns; `datasets` calls it, and pickles it for its cache."""

    artifact: Artifact
    split: str | None
    columns: tuple[str, ...]

    def __call__(self) -> Iterator[_Row]:
        for row in view.stream(self.artifact, self.split):
            values = {**(row.get("extra") or {}), **row}
            yield {
                name: value if name == "messages" else _plain(value)
                for name, value in ((name, values.get(name)) for name in self.columns)
            }


def _plain(value: Any) -> Any:
    """Tools, kept columns and marks differ from row to row: JSON, as TRL reads `tools`."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def _features(artifact: Artifact, parts: dict[str, str | None]) -> Any:
    """The columns these records need: a message's and a record's rarer keys only where one has them."""
    from datasets import Features, Value

    keys: set[str] = set()
    columns: set[str] = set()
    for split in parts.values():
        for row in view.stream(artifact, split):
            keys.update(key for message in row["messages"] for key in message)
            columns.update(row.get("extra") or {}, (n for n in _EXTRA if row.get(n) is not None))
    text = Value("string")
    call = {"id": text, "type": text, "function": {"name": text, "arguments": text}}
    shapes: dict[str, Any] = {
        "name": text,
        "tool_call_id": text,
        "tool_calls": [call],
        "images": [{"ref": text, "sha256": text}],
    }
    message = {"role": text, "content": text, **{k: shape for k, shape in shapes.items() if k in keys}}
    extra = {name: Value("bool") if name == "label" else text for name in _EXTRA if name in columns}
    plain = {name: text for name in ("record_id", "kind", "source")}
    return Features({**plain, "messages": [message], **extra})
