"""A LLaMA-Factory or Axolotl YAML to the fields of a `project.yaml`. Nothing is dropped unsaid.

One key to one of ours: `foreign_keys`; a data set: `foreign_data`. Here is what takes more
than one key, and the file that comes out.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.projects import foreign_data, yaml_lines
from ftaas_pipelines.projects.foreign_data import Data
from ftaas_pipelines.projects.foreign_keys import AXOLOTL, LLAMA_FACTORY, OURS


@dataclass
class Imported:
    """What a foreign file became.

    Attributes:
        tool: LLaMA-Factory or Axolotl.
        fields: our dotted key to its value, such as `recipe.training.epochs`.
        taken: their key to ours.
        left_out: their key, its value and why it was not taken over.
    """

    tool: str
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    taken: dict[str, str] = field(default_factory=dict[str, str])
    left_out: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    sources: list[Data] = field(default_factory=list[Data])

    def leave(self, key: str, value: Any, why: str) -> None:
        self.left_out.append({"key": key, "value": json.dumps(value, default=str), "why": why})


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


def render(found: Imported, name: str, who: Mapping[str, list[str]], files: Mapping[str, str]) -> str:
    """The `project.yaml` of an imported file; what was left out stands in it as comments.

    Args:
        who: people by the keys of `people`.
        files: a data file as the foreign file names it, to its path in the project.
    """
    sources: list[dict[str, Any]] = []
    for data in found.sources:
        place = {"path": files[data.file]} if data.file else data.place
        rest = {"split": data.split, "format": data.format, "columns": data.columns}
        label = "validation" if data.split else "rows"
        sources.append({"name": label, **place, **{key: given for key, given in rest.items() if given}})
    names = [source["name"] for source in sources]
    for i, source in enumerate(sources):
        if names.count(source["name"]) > 1:
            source["name"] += f"_{names[: i + 1].count(source['name'])}"
    chats = any(data.format in ("messages", "sharegpt") for data in found.sources)
    document: dict[str, Any] = {
        "name": name,
        "title": name.replace("_", " ").capitalize(),
        "task": "chat" if chats else "qa",
        "intended_use": "Say here who uses the answers, and for what.",
        "people": dict(who),
        "dataset": {"sources": sources},
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
    if stage not in ("sft", "pt"):
        raise _unsupported("stage", stage, path, lines, "only sft and pt are trained here")
    kind = value.get("finetuning_type", "lora")
    if kind not in ("lora", "full"):
        raise _unsupported("finetuning_type", kind, path, lines, "use lora or full")
    _adapter(out, kind, "finetuning_type")
    if kind == "lora":
        # LLaMA-Factory's own default, which is not ours.
        out.fields["recipe.adapter.alpha"] = 2 * int(value.get("lora_rank") or 8)
    out.taken["stage"] = "recipe.method" if stage == "sft" else "dataset.sources.format"
    folder = Path(value.get("dataset_dir") or "data")
    if "dataset_dir" in value:
        out.taken["dataset_dir"] = "dataset.sources"
    for key, split in (("dataset", None), ("eval_dataset", "validation")):
        names = value.get(key) or []
        for name in [n.strip() for n in names.split(",")] if isinstance(names, str) else names:
            out.taken[key] = "dataset.sources"
            out.sources.append(
                foreign_data.registered(name, split, stage, [path.parent / folder, folder], out.leave)
            )
    return {"stage", "finetuning_type", "dataset", "eval_dataset", "dataset_dir"}


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
            out.sources += foreign_data.described(described, split, f"{key}.{i}", path.parent, out.leave)
    return {"rl", "adapter", "datasets", "test_datasets"} | (
        {"lora_target_linear"} if value.get("lora_target_linear") else set()
    )


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
