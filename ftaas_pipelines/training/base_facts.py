"""What a base's folder says of itself, read without loading it: configuration, weights' headers, tokenizer.

Light: no torch. Shapes come from the safetensors headers, so a model of any size is read in a moment.
"""

import json
import struct
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from ftaas_pipelines.errors import InputInvalid

# Two-dimensional weights that are no linear layers, by the last part of their module's name.
_EMBEDDINGS = (
    "embed_tokens", "shared", "wte", "wpe", "embed_in", "word_embeddings", "token_embedding",
    "position_embedding", "position_embeddings", "embed_positions", "relative_attention_bias",
    "token_type_embeddings",
)  # fmt: skip
_VOCABULARY = ("embed_tokens", "shared", "wte", "embed_in", "word_embeddings", "token_embedding")
OUTPUTS = ("lm_head", "embed_out")
_MOST_HEADER_BYTES = 100_000_000  # what the safetensors format allows


@dataclass(frozen=True)
class BaseFacts:
    """A base model's folder, read piece by piece as it is asked.

    Everything raises InputInvalid where a file of the folder cannot be read as what it should be.
    """

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        return _json(self.folder / "config.json") or {}

    @cached_property
    def text_config(self) -> dict[str, Any]:
        """The configuration of the language model, which a vision-language model keeps inside."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each weight, by its name in the checkpoint."""
        found: dict[str, tuple[int, ...]] = {}
        for file in self._weight_files():
            found |= {name: tuple(e["shape"]) for name, e in _header(file).items() if name != "__metadata__"}
        return found

    def _weight_files(self) -> list[Path]:
        """The files that transformers would load; some repositories hold a second copy under other names."""
        index = _json(self.folder / "model.safetensors.index.json")
        if index:
            return [self.folder / name for name in sorted(set(index.get("weight_map", {}).values()))]
        single = self.folder / "model.safetensors"
        return [single] if single.is_file() else sorted(self.folder.glob("*.safetensors"))

    @cached_property
    def parameters(self) -> int:
        """Numbers in the checkpoint; tied weights count once where they are saved once."""
        return sum(prod(shape) for shape in self.shapes.values())

    @cached_property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Shape `[out, in]` of each linear layer but the output layer, by module name."""
        found: dict[str, tuple[int, int]] = {}
        for name, shape in self.shapes.items():
            module, _, kind = name.rpartition(".")
            if (
                kind == "weight"
                and len(shape) == 2
                and module.rpartition(".")[2] not in _EMBEDDINGS + OUTPUTS
            ):
                found[module] = (shape[0], shape[1])
        return found

    @cached_property
    def embeddings(self) -> list[str]:
        """Module names of embeddings, and of the output layer."""
        names = [name.removesuffix(".weight") for name in self.shapes if name.endswith(".weight")]
        return [name for name in names if name.rpartition(".")[2] in _EMBEDDINGS + OUTPUTS]

    @cached_property
    def rows(self) -> int | None:
        """How many tokens have an embedding; None where that cannot be told."""
        for name, shape in self.shapes.items():
            module = name.removesuffix(".weight")
            if module != name and len(shape) == 2 and module.rpartition(".")[2] in _VOCABULARY:
                return shape[0]
        return self.text_config.get("vocab_size")

    @cached_property
    def context(self) -> int | None:
        """Most tokens it can attend to; None where it names no limit (T5: relative positions)."""
        named = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length")
        config = self.text_config
        if config.get("model_type") in ("t5", "mt5", "longt5"):
            return None
        return next((int(config[name]) for name in named if config.get(name)), None)

    @cached_property
    def model_length(self) -> int | None:
        """Most tokens that the tokenizer hands on; None where it says nothing, or a meaningless number."""
        said = self._tokenizer_config.get("model_max_length")
        return int(said) if isinstance(said, int) and said < 10_000_000 else None

    # -- tokenizer -----------------------------------------------------------------------------

    @cached_property
    def _tokenizer_config(self) -> dict[str, Any]:
        return _json(self.folder / "tokenizer_config.json") or {}

    @cached_property
    def tokens(self) -> dict[str, int]:
        """Id of each token; empty where there is no `tokenizer.json` to read them from."""
        file = _json(self.folder / "tokenizer.json")
        if file is None:
            return {}
        vocabulary: Any = file.get("model", {}).get("vocab") or {}
        if isinstance(vocabulary, list):  # Unigram: [token, score] in order of the ids
            found = {entry[0]: i for i, entry in enumerate(vocabulary)}  # pyright: ignore[reportUnknownVariableType]
        else:
            found = dict(vocabulary)
        return found | {entry["content"]: entry["id"] for entry in file.get("added_tokens") or []}

    @cached_property
    def end_token(self) -> str | None:
        """The token that the tokenizer ends answers with."""
        return self.special_tokens.get("eos_token")

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """bos_token, eos_token, … as the tokenizer's files name them."""
        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        both = (_json(self.folder / "special_tokens_map.json") or {}) | self._tokenizer_config
        said = {name: both.get(name) for name in names}
        plain = {n: value.get("content") if isinstance(value, dict) else value for n, value in said.items()}
        return {name: value for name, value in plain.items() if isinstance(value, str)}

    @cached_property
    def ends(self) -> list[str]:
        """Every token that ends an answer: the tokenizer's, and those that generation stops at."""
        by_id = {number: token for token, number in self.tokens.items()}
        generation = _json(self.folder / "generation_config.json") or {}
        ids: list[Any] = []
        for config in (generation, self.config, self.text_config):
            said = config.get("eos_token_id")
            ids += said if isinstance(said, list) else [said]
        found = [self.end_token, *(by_id.get(i) for i in ids if isinstance(i, int))]
        return list(dict.fromkeys(token for token in found if token))

    @cached_property
    def chat_template(self) -> str | None:
        """The template of the tokenizer or processor; None where it has none of its own."""
        file = self.folder / "chat_template.jinja"
        if file.is_file():
            return file.read_text("utf-8")
        said: Any = self._tokenizer_config.get("chat_template")
        if isinstance(said, list):  # several, by name
            named: dict[str, str] = {entry["name"]: entry["template"] for entry in said}
            said = named.get("default") or next(iter(named.values()), None)
        return said or (_json(self.folder / "chat_template.json") or {}).get("chat_template")


def _json(file: Path) -> dict[str, Any] | None:
    """A JSON object; None where the file is not there.

    Raises:
        InputInvalid: it is there and holds something else.
    """
    if not file.is_file():
        return None
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputInvalid("is not JSON", str(file), type(error).__name__, "save the base again") from None
    if not isinstance(value, dict):
        raise InputInvalid("holds no JSON object", str(file), type(value).__name__, "save the base again")
    return value


def _header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file: a length of eight bytes, then JSON.

    Raises:
        InputInvalid: it is not there, or is cut short.
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _MOST_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes")
            header: dict[str, Any] = json.loads(stream.read(length))
    except (OSError, ValueError, struct.error) as error:
        raise InputInvalid(
            "is not a whole safetensors file", str(file), str(error), "save or fetch the base again"
        ) from None
    return header
