"""A byte-level BPE tokenizer as GGUF describes one: vocabulary, merges, and how text is split before them."""

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.errors import InputInvalid

if TYPE_CHECKING:
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerBase

# gguf.TokenType
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GENERATION = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")


@dataclass(frozen=True)
class Vocabulary:
    """What the metadata `tokenizer.ggml.*` hold; lists are by token id."""

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    chat_template: str
    ids: dict[str, int]
    add_bos: bool
    add_eos: bool


def vocabulary(tokenizer: "PreTrainedTokenizerBase", size: int) -> Vocabulary:
    """Read a tokenizer.

    Args:
        size: rows of the model's embeddings; tokens that nobody names fill up to it.

    Raises:
        InputInvalid: it is no byte-level BPE, or splits text in a way that has no name in llama.cpp.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
    pre = _pre(backend)
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [_UNUSED] * size
    for token, i in backend["model"]["vocab"].items():
        tokens[i], types[i] = token, _NORMAL
    for added in backend["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    named = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    ids = {name: i for name, i in named.items() if isinstance(i, int)}
    framed = list(tokenizer("a")["input_ids"])
    template = tokenizer.chat_template
    return Vocabulary(
        pre=pre,
        tokens=tokens,
        types=types,
        merges=[m if isinstance(m, str) else " ".join(m) for m in backend["model"]["merges"]],
        chat_template=plain_template(template) if isinstance(template, str) else "",
        ids=ids,
        add_bos=framed[0] == ids.get("bos"),
        add_eos=framed[-1] == ids.get("eos"),
    )


def plain_template(template: str) -> str:
    """The template without `{% generation %}`, which only transformers knows; it renders the same text.

    The markers become `{% if true %}`, so that their dashes go on trimming white space.
    """
    return _GENERATION.sub(lambda m: f"{m[1]}{'endif' if m[2] else 'if true'}{m[3]}", template)


def splitters() -> "dict[str, PreTokenizer]":
    """How text is split before the merges, by the name that llama.cpp has for it (llama-vocab.cpp)."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    return {
        "gpt-2": ByteLevel(add_prefix_space=False),
        "smollm": Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]),
        "llama-bpe": Sequence(
            [Split(Regex(_LLAMA3), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
        ),
    }


def _pre(backend: dict[str, Any]) -> str:
    kind, normalizer, found = backend["model"]["type"], backend["normalizer"], backend["pre_tokenizer"]
    known = splitters()
    if kind == "BPE" and normalizer is None:
        for name, splitter in known.items():
            if _settings(found) == _settings(json.loads(splitter.__getstate__())):
                return name
    raise InputInvalid(
        "this tokenizer cannot be written as GGUF",
        "tokenizer.json",
        f"{kind}, normalizer {(normalizer or {}).get('type')}, split by {_settings(found)}",
        f"GGUF is written for byte-level BPE that splits text like {', '.join(known)}",
    )


def _settings(found: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A pre-tokenizer as the list of its steps, without what only moves offsets."""
    steps: list[dict[str, Any]] = (found or {}).get("pretokenizers", [found] if found else [])
    return [{k: v for k, v in step.items() if k != "trim_offsets"} for step in steps]
