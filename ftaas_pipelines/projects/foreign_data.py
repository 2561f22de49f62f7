"""A data set that a LLaMA-Factory or Axolotl file names, as one of our sources.

The keys are those of LLaMA-Factory's `data/README.md` and of Axolotl's `docs/dataset-formats`.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ftaas_pipelines.errors import InputInvalid

Leave = Callable[[str, Any, str], None]  # says which key and value are not taken over, and why

# Columns of a data set in LLaMA-Factory's `dataset_info.json`, by our format: theirs to ours.
_JUDGED = {"prompt": "prompt", "query": "input", "system": "system", "tools": "tools"}
_COLUMNS: dict[str, dict[str, str]] = {
    "alpaca": {"prompt": "instruction", "query": "input", "response": "output"},
    "messages": {"messages": "messages", "tools": "tools"},
    "sharegpt": {"messages": "conversations", "system": "system", "tools": "tools"},
    "preference": {**_JUDGED, "messages": "prompt", "chosen": "chosen", "rejected": "rejected"},
    "kto": {**_JUDGED, "messages": "completion", "response": "completion", "kto_tag": "label"},
    "text": {"prompt": "text"},
}
# What its `tags` may say of turns that are read as they stand, by the format the turns are written in.
_TURNS: dict[str, dict[str, tuple[str, ...]]] = {
    "messages": {
        "role_tag": ("role",),
        "content_tag": ("content",),
        "user_tag": ("user",),
        "assistant_tag": ("assistant",),
        "observation_tag": ("tool", "function"),
        "system_tag": ("system", "developer"),
    },
    "sharegpt": {
        "role_tag": ("from",),
        "content_tag": ("value",),
        "user_tag": ("human", "user"),
        "assistant_tag": ("gpt", "assistant"),
        "observation_tag": ("observation", "function_response", "tool"),
        "function_tag": ("function_call", "tool_call"),
        "system_tag": ("system",),
    },
}
# Axolotl's `type` of a data set, by our format.
_TYPES = {"alpaca": "alpaca", "chat_template": "messages", "sharegpt": "sharegpt", "completion": "text"}
_DATA_FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt")


@dataclass(frozen=True)
class Data:
    """One data set of a foreign file.

    Attributes:
        place: `{"path": file}` as the file names it, or `{"huggingface": {"id", …}}`.
        split: the split that it is; None where it is shared out.
        format: one of ours; None where it is to be detected.
        columns: our column name to the file's name, where they differ.
    """

    place: dict[str, Any]
    split: str | None
    format: str | None = None
    columns: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def file(self) -> str | None:
        return self.place.get("path")


def registered(name: str, split: str | None, stage: str, folders: list[Path], leave: Leave) -> Data:
    """A data set by its name in LLaMA-Factory's `dataset_info.json`, or by its file.

    Args:
        stage: sft, or pt: then its texts are learnt as they stand.
        folders: where the registry may lie.

    Raises:
        InputInvalid: the registry is no JSON object.
    """
    registry = next((f / "dataset_info.json" for f in folders if (f / "dataset_info.json").is_file()), None)
    try:
        entry: Any = json.loads(registry.read_text("utf-8")).get(name) if registry else None
    except (ValueError, AttributeError) as error:
        raise InputInvalid("is not a JSON object", str(registry), str(error), "mend it") from None
    if registry is None or not isinstance(entry, dict):
        return Data({"path": name}, split, "text" if stage == "pt" else None)
    described = cast(dict[str, Any], entry)
    form, columns = _meaning(described, stage, name, leave)
    if "hf_hub_url" in described:  # goes before a file, as it does there
        place = _hub(described, {"hf_hub_url": "id", "subset": "config", "split": "split"})
    else:
        file = described.pop("file_name", None)
        place = {"path": str(registry.parent / file) if file else name}
    _leave_rest(described, name, leave)
    return Data(place, split, form, columns)


def _meaning(described: dict[str, Any], stage: str, name: str, leave: Leave) -> tuple[str, dict[str, str]]:
    """Format and columns of a registered data set; takes their keys out of its description."""
    formatting = described.pop("formatting", "alpaca")
    columns: dict[str, str] = described.pop("columns", None) or {}
    tags: dict[str, str] = described.pop("tags", None) or {}
    ranking = described.pop("ranking", False)
    turns = "messages" if formatting == "openai" or tags.get("role_tag") == "role" else "sharegpt"
    form = "alpaca" if formatting == "alpaca" else turns
    form = "text" if stage == "pt" else "preference" if ranking else "kto" if "kto_tag" in columns else form
    if formatting != "alpaca":
        columns = columns or {"messages": "conversations"}
        for tag, given in tags.items():
            if given not in (known := _TURNS[turns].get(tag, ())):
                leave(f"{name}.tags.{tag}", given, f"read are {' or '.join(known) or 'no such turns'}")
    names, mapped = _COLUMNS[form], dict[str, str]()
    for theirs, column in columns.items():
        if theirs not in names:
            leave(f"{name}.columns.{theirs}", column, f"format {form} has no such column")
        elif names[theirs] != column:
            mapped[names[theirs]] = column
    return form, mapped


def described(entry: dict[str, Any], split: str | None, where: str, folder: Path, leave: Leave) -> list[Data]:
    """The data of one item of Axolotl's `datasets`.

    Args:
        where: the item, as what is left out names it.
        folder: that of the foreign file.
    """
    entry, columns = dict(entry), dict[str, str]()
    kind = entry.pop("type", None)
    form = _TYPES.get(kind) if isinstance(kind, str) else None
    if form is None:
        leave(f"{where}.type", kind, "the format is detected from the file instead")
    if kind == "chat_template":
        form = _turns(entry, where, leave)
    if form in ("messages", "sharegpt") and "field_messages" in entry:
        columns[_COLUMNS[form]["messages"]] = entry.pop("field_messages")
    if form == "text" and "field" in entry:
        columns["text"] = entry.pop("field")
    columns = {ours: theirs for ours, theirs in columns.items() if ours != theirs}
    places = _places(entry, folder)
    _leave_rest(entry, where, leave)
    return [Data(place, split, form, columns) for place in places]


def _turns(entry: dict[str, Any], where: str, leave: Leave) -> str:
    """How the turns of a `chat_template` data set are written; takes the keys that say so."""
    named: dict[str, str] = {**(entry.pop("message_property_mappings", None) or {})}
    for key in ("role", "content"):  # what it was called before Axolotl 0.7
        if old := entry.pop(f"message_field_{key}", None):
            named[key] = old
    form = "sharegpt" if named.get("role") == "from" else "messages"
    for key, given in named.items():
        if given not in _TURNS[form].get(f"{key}_tag", (key,)):
            leave(f"{where}.{key}", given, f"turns of {form} do not call it so")
    return form


def _places(entry: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Where a data set of Axolotl lies: files, or the Hub where its path looks like an id and is not here."""
    files, path = entry.pop("data_files", None), str(entry.get("path", ""))
    is_id = re.fullmatch(r"[\w-]+/[\w.-]+", path) and Path(path).suffix not in _DATA_FILES
    if is_id and not files and not (folder / path).exists():
        return [_hub(entry, {"path": "id", "name": "config", "split": "split", "revision": "revision"})]
    entry.pop("path", None)
    names: list[str] = [files] if isinstance(files, str) else files or [path]
    return [{"path": str(folder / name if (folder / name).is_file() else name)} for name in names]


def _hub(entry: dict[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """A data set of the Hugging Face Hub; takes their keys out of the entry."""
    given = {ours: entry.pop(theirs, None) for theirs, ours in keys.items()}
    return {"huggingface": {name: value for name, value in given.items() if value}}


def _leave_rest(entry: Mapping[str, Any], where: str, leave: Leave) -> None:
    for key, rest in entry.items():
        leave(f"{where}.{key}", rest, "there is no such setting of a data set here")
