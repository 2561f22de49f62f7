"""A LLaMA-Factory or Axolotl YAML to the fields of a `project.yaml`. Nothing is dropped unsaid.

One key to one of ours: `foreign_keys`. Here is what takes more than one key, and the file that comes out.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects import yaml_lines
from ftaas_pipelines.projects.foreign_keys import AXOLOTL, LLAMA_FACTORY, OURS


@dataclass
class Imported:
    """What a foreign file became.

    Attributes:
        tool: LLaMA-Factory or Axolotl.
        fields: our dotted key to its value, such as `recipe.training.epochs`.
        taken: their key to ours.
        left_out: their key, its value and why it was not taken over.
        sources: data files as the file names them, each with its split.
        columns: our column name to the file's name.
    """

    tool: str
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    taken: dict[str, str] = field(default_factory=dict[str, str])
    left_out: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    sources: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])
    format: str | None = None
    columns: dict[str, str] = field(default_factory=dict[str, str])

    def leave(self, key: str, value: Any, why: str) -> None:
        self.left_out.append({"key": key, "value": json.dumps(value, default=str), "why": why})

    def set_format(self, name: str, where: str) -> None:
        """One project reads one format: a second one is said, not taken."""
        if self.format in (None, name):
            self.format = name
        else:
            self.leave(where, name, f"the data before it is {self.format}: convert it or leave it out")


def convert(path: Path) -> Imported:
    """Read a training file of LLaMA-Factory or Axolotl.

    Raises:
        InputInvalid: it is not YAML, of neither tool, or trains in a way that is not supported here.
    """
    value, lines = yaml_lines.read(path)
    if "model_name_or_path" in value:
        out, rules, special = Imported("LLaMA-Factory"), LLAMA_FACTORY, _llama_factory
    elif "base_model" in value:
        out, rules, special = Imported("Axolotl"), AXOLOTL, _axolotl
    else:
        raise InputInvalid(
            "is neither a LLaMA-Factory nor an Axolotl file",
            f"{path}:1",
            ", ".join(list(value)[:6]),
            "name a file that has model_name_or_path (LLaMA-Factory) or base_model (Axolotl)",
        )
    handled = special(out, value, path, lines)
    for key, given in value.items():
        if key in handled or given is None:  # an empty key sets nothing
            continue
        if key not in rules:
            out.leave(key, given, OURS.get(key, "there is no such setting here"))
            continue
        place, turn = rules[key]
        try:
            out.fields[place] = turn(given)
            out.taken[key] = place
        except (ValueError, TypeError) as error:
            out.leave(key, given, str(error))
    if out.fields["recipe.adapter.kind"] == "full":
        for key, place in list(out.taken.items()):
            if place.startswith("recipe.adapter.") and place != "recipe.adapter.kind":
                out.leave(key, value[key], "full fine-tuning has no adapter")
                del out.taken[key], out.fields[place]
    return out


def render(found: Imported, name: str, who: Mapping[str, list[str]], files: Sequence[str]) -> str:
    """The `project.yaml` of an imported file; what was left out stands in it as comments.

    Args:
        who: people by the keys of `people`.
        files: paths of the data files, in the order of `found.sources`.
    """
    sources = [
        {"name": "validation" if split else "rows", "path": path, **({"split": split} if split else {})}
        for path, (_, split) in zip(files, found.sources, strict=True)
    ]
    names = [source["name"] for source in sources]
    for i, source in enumerate(sources):
        if names.count(source["name"]) > 1:
            source["name"] += f"_{names[: i + 1].count(source['name'])}"
    document: dict[str, Any] = {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "task": "chat" if found.format == "messages" else "qa",
        "intended_use": "Say here who uses the answers, and for what.",
        "people": dict(who),
        "dataset": {
            **({"format": found.format} if found.format else {}),
            **({"columns": found.columns} if found.columns else {}),
            "sources": sources,
        },
        "base_model": {},
        "recipes": [{"name": "imported"}],
    }
    for place, given in found.fields.items():
        *path, last = place.split(".")
        section = document["recipes"][0] if path[0] == "recipe" else document.setdefault(path[0], {})
        for step in path[1:]:
            section = section.setdefault(step, {})
        section[last] = given
    left = "".join(f"#   {x['key']}: {x['value']}  ({x['why']})\n" for x in found.left_out)
    head = f"# Imported from {found.tool}.\n" + (f"# Not taken over:\n{left}" if left else "")
    return head + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)


# -- what takes more than one key ----------------------------------------------------------------


def _llama_factory(out: Imported, value: dict[str, Any], path: Path, lines: yaml_lines.Lines) -> set[str]:
    stage = value.get("stage", "sft")
    if stage != "sft":
        raise _unsupported("stage", stage, path, lines, "only sft is trained here")
    kind = value.get("finetuning_type", "lora")
    if kind not in ("lora", "full"):
        raise _unsupported("finetuning_type", kind, path, lines, "use lora or full")
    _adapter(out, kind, "finetuning_type")
    if kind == "lora":
        # LLaMA-Factory's own default, which is not ours.
        out.fields["recipe.adapter.alpha"] = 2 * int(value.get("lora_rank") or 8)
    out.taken["stage"] = "recipe.method"
    folder = Path(value.get("dataset_dir") or "data")
    if "dataset_dir" in value:
        out.taken["dataset_dir"] = "dataset.sources"
    for key, split in (("dataset", None), ("eval_dataset", "validation")):
        names = value.get(key) or []
        for name in [n.strip() for n in names.split(",")] if isinstance(names, str) else names:
            out.taken[key] = "dataset.sources"
            _registered(out, name, split, [path.parent / folder, folder])
    return {"stage", "finetuning_type", "dataset", "eval_dataset", "dataset_dir"}


def _registered(out: Imported, name: str, split: str | None, folders: list[Path]) -> None:
    """A data set by its name in LLaMA-Factory's `dataset_info.json`, or by its file."""
    registry = next((f / "dataset_info.json" for f in folders if (f / "dataset_info.json").is_file()), None)
    try:
        entry: Any = json.loads(registry.read_text("utf-8")).get(name) if registry else None
    except (ValueError, AttributeError) as error:
        raise InputInvalid("is not a JSON object", str(registry), str(error), "mend it") from None
    if registry is None or not isinstance(entry, dict):
        out.sources.append((name, split))
        return
    described = cast(dict[str, Any], entry)
    file = described.pop("file_name", None)
    out.sources.append((str(registry.parent / file) if file else name, split))
    columns: dict[str, str] = described.pop("columns", None) or {}
    formatting = described.pop("formatting", "alpaca")
    tags: dict[str, str] = described.pop("tags", None) or {}
    if formatting == "alpaca":
        out.set_format("alpaca", f"{name}.formatting")
        names = {"prompt": "instruction", "query": "input", "response": "output"}
    elif tags.get("role_tag") == "role" and tags.get("content_tag") == "content":
        out.set_format("messages", f"{name}.formatting")
        names = {"messages": "messages"}
    else:
        out.leave(f"{name}.formatting", formatting, "ShareGPT is not read: rewrite it as role and content")
        names = {}
    for theirs, column in columns.items():
        if theirs not in names:
            out.leave(f"{name}.columns.{theirs}", column, "there is no such column here")
        elif names[theirs] != column:
            out.columns[names[theirs]] = column
    for key, rest in described.items():
        out.leave(f"{name}.{key}", rest, "there is no such setting of a data set here")


def _axolotl(out: Imported, value: dict[str, Any], path: Path, lines: yaml_lines.Lines) -> set[str]:
    if value.get("rl"):
        raise _unsupported("rl", value["rl"], path, lines, "only supervised fine-tuning is trained here")
    kind = value.get("adapter") or "full"
    if kind not in ("lora", "qlora", "full"):
        raise _unsupported("adapter", kind, path, lines, "use lora, or leave it out for full fine-tuning")
    _adapter(out, "full" if kind == "full" else "lora", "adapter")
    if kind == "qlora":
        out.leave("adapter", kind, "taken over as lora: base models are not quantized for training")
    if value.get("lora_target_linear"):
        out.fields["recipe.adapter.target_modules"] = "all-linear"
        out.taken["lora_target_linear"] = "recipe.adapter.target_modules"
    for key, split in (("datasets", None), ("test_datasets", "validation")):
        for i, described in enumerate(value.get(key) or []):
            out.taken[key] = "dataset.sources"
            _described(out, dict(described), split, f"{key}.{i}", path.parent)
    return {"rl", "adapter", "datasets", "test_datasets"} | (
        {"lora_target_linear"} if value.get("lora_target_linear") else set()
    )


def _described(out: Imported, entry: dict[str, Any], split: str | None, where: str, folder: Path) -> None:
    """One item of Axolotl's `datasets`."""
    files = entry.pop("data_files", None) or entry.get("path", "")
    entry.pop("path", None)
    for file in [files] if isinstance(files, str) else files:
        beside = folder / file
        out.sources.append((str(beside if beside.is_file() else file), split))
    kind = entry.pop("type", None)
    known = {"alpaca": "alpaca", "chat_template": "messages"}
    if kind in known:
        out.set_format(known[kind], f"{where}.type")
    else:
        out.leave(f"{where}.type", kind, "the format is detected from the file instead")
    if kind == "chat_template":
        messages = entry.pop("field_messages", "conversations")
        if messages != "messages":
            out.columns["messages"] = messages
        for key, ours in (("message_field_role", "role"), ("message_field_content", "content")):
            given = entry.pop(key, ours)
            if given != ours:
                out.leave(f"{where}.{key}", given, f"messages must use '{ours}'")
    for key, rest in entry.items():
        out.leave(f"{where}.{key}", rest, "there is no such setting of a data set here")


def _adapter(out: Imported, kind: str, key: str) -> None:
    out.fields["recipe.adapter.kind"] = kind
    out.taken[key] = "recipe.adapter.kind"


def _unsupported(key: str, got: Any, path: Path, lines: yaml_lines.Lines, do: str) -> InputInvalid:
    return InputInvalid(
        f"'{key}' is not supported", f"{path}:{yaml_lines.line_of(lines, (key,))}", str(got), do
    )


def project_name(path: Path) -> str:
    """A project name made of a file's name."""
    name = re.sub(r"[^a-z0-9]+", "_", path.stem.lower()).strip("_")
    return (name if name[:1].isalpha() else f"project_{name}").rstrip("_")[:60]
