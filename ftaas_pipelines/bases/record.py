"""How a base was made, written beside it: ``made.json`` for programs, ``MADE.md`` for people."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import version
from pathlib import Path

from ftaas_pipelines.bases.optimisation import Progress

_LIBRARIES = {
    "causal": ("torch", "transformers", "tokenizers"),
    "t5": ("torch", "transformers", "tokenizers"),
    "vision": ("torch", "transformers", "tokenizers", "pillow", "numpy"),
}
MADE_FILES = {"made.json", "MADE.md"}
TEXT_LICENCE = "Python Software Foundation License Version 2 (docstrings and pydoc topics of CPython)"
LIMITS = {
    "causal": (
        "It learns a new table (a code, a label, a short fixed answer) from a small low-rank adapter. "
        "It has no general language ability: it cannot hold a conversation, reason, summarise or answer "
        "what it was not tuned on. Its start weights hold heads that read a code (a letter and digits), "
        "and its skills are templates shaped like the tasks of the example projects (find a code, expand "
        "it into JSON), on invented tables: good scores after tuning say that the platform works, not "
        "that a model of this size is useful elsewhere. It saw prompts of up to 160 tokens."
    ),
    "t5": (
        "It copies a short sentence and learns to make narrow, regular edits to it. It has no general "
        "language ability: on free text by learners of English (JFLEG) an earlier T5 of this size was far "
        "worse than leaving the text as it was. Its damage-and-repair examples are shaped like grammar "
        "correction. It saw sentences of up to 64 tokens. Names and rare words are spelt in pieces and "
        "are copied less surely than common ones."
    ),
    "vision": (
        "It names the colour and the shape (seven colours, eight plain shapes) of the only thing in a "
        "picture, counts up to three, and learns new names for such things from a small low-rank adapter. "
        "Asked about one of several things it often speaks of another, and where a thing is it says rightly "
        "in about half of the cases. It has seen no photograph, no drawing and no writing: every picture was "
        "made by `scenes.py`. Any picture is squeezed into 48 x 48 pixels, so small things vanish. It has no "
        "general language ability, and its vocabulary is the first half of the causal base's, so rare words "
        "are spelt in pieces."
    ),
}
_CIRCUITS = (
    "Random, but for heads that look back, copy and (causal) read codes, written in by\n"
    "`circuits.py`; training is free to change them."
)
STARTS = {
    "causal": _CIRCUITS,
    "t5": _CIRCUITS,
    "vision": (
        "The text part is `tiny-causal` with the first half of its vocabulary and one token more,\n"
        "for an image; the rest is random. The image encoder first learnt to name what each patch shows\n"
        "(`patch`), then all of it to answer questions about pictures (`picture`) and texts (`skill`)."
    ),
}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_record(
    folder: Path, kind: str, *, seed: int, parameters: int, progress: Progress, corpus_sha256: str
) -> None:
    """Write both files into the base's folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name not in MADE_FILES)
    made = {
        "program": f"python -m ftaas_pipelines.bases.make {kind}",
        "seed": seed,
        "steps": progress.steps,
        "cpu_seconds": progress.cpu_seconds,
        "parameters": parameters,
        "dtype": "bfloat16",
        "final_loss": progress.final_loss,
        "text": {"licence": TEXT_LICENCE, "sha256": corpus_sha256},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in _LIBRARIES[kind]},
        },
        "limits": LIMITS[kind],
        "files": {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in files},
    }
    (folder / "made.json").write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    (folder / "MADE.md").write_text(_page(kind, made), encoding="utf-8")


def _page(kind: str, made: dict) -> str:
    files = "\n".join(
        f"| `{name}` | {entry['bytes']:,} | `{entry['sha256']}` |" for name, entry in made["files"].items()
    )
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    return f"""# tiny-{kind}

Made from nothing by `{made["program"]}`: seed {made["seed"]}, {made["steps"]:,} steps,
{made["cpu_seconds"]:.0f} CPU seconds at one thread, {made["parameters"]:,} parameters, stored in bfloat16.
One machine, one seed and one thread give the same files; another processor may differ in the last bits.

**Text.** {TEXT_LICENCE}; sha256 of what was read: `{made["text"]["sha256"]}`. Beside it, sentences and
skills from templates in this package. No row of any example project was used
(`python -m ftaas_pipelines.bases.make check`).

**Start weights.** {STARTS[kind]}

**What it cannot do.** {made["limits"]}

**Versions.** {versions}.

| file | bytes | sha256 |
|---|---:|---|
{files}
"""
