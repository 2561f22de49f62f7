"""Base models: where one lies, what kind it is, which bytes it is.

An embedded base, a folder and a Hub id all become a folder here, and take one path from then on.
Light at import: assets and the CLI ask for digests without loading torch.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.store import digest_of, file_digest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

Family = Literal["causal", "seq2seq", "vision"]

EMBEDDED = "embedded/"
_EMBEDDED_FOLDER = Path(__file__).parent.parent / "bases"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# What a model is made of. Pickled weights (*.bin) run code when loaded: they are never read.
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
)
# How a vision-language base prepares images.
_PROCESSOR = ("processor_config.json", "preprocessor_config.json", "image_processor_config.json")
_MODEL = ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json")
_MATTERS = (*_MODEL, *_TOKENIZER, *_PROCESSOR)
_CARD = "README.md"  # fetched for the licence it states; no part of the digest
_digests: dict[tuple[str, int, int], str] = {}


def resolve(id: str, revision: str, project_folder: Path) -> Path:
    """The folder of a base model: embedded, a folder, or downloaded from the Hub (once, then cached).

    Args:
        id: `embedded/NAME`, a folder (absolute, or relative to the project folder), or a Hub id.
        revision: Hub branch, tag or commit; without meaning for the others.

    Raises:
        InputInvalid: it is not there, or there is no network.
    """
    if id.startswith(EMBEDDED):
        known = embedded()
        if id not in known:
            raise InputInvalid(
                "no base model of this name is embedded",
                "base_model.id",
                id,
                f"use {' or '.join(known) or 'a folder'}",
            )
        return _EMBEDDED_FOLDER / id.removeprefix(EMBEDDED)
    folder = (project_folder / Path(id).expanduser()).resolve()
    if folder.is_dir():
        return folder
    if id.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(id):
        raise InputInvalid(
            "the base model is not there",
            "base_model.id",
            id,
            "mend the folder's path, or use embedded/tiny-causal",
        )
    return _download(id, revision)


def at_hand(id: str, revision: str, project_folder: Path) -> Path | None:
    """The folder of a base model that lies on this machine; None where it would have to be fetched."""
    if id in embedded() or (project_folder / Path(id).expanduser()).is_dir():
        return resolve(id, revision, project_folder)
    if not _HUB_ID.fullmatch(id):
        return None
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(id, "config.json", revision=revision)
    return Path(file).parent if isinstance(file, str) else None


def embedded() -> list[str]:
    """The ids of the base models that come with the platform."""
    return sorted(EMBEDDED + p.parent.name for p in _EMBEDDED_FOLDER.glob("*/config.json"))


def _download(id: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(id, revision=revision, allow_patterns=[*_MATTERS, _CARD]))
    except (OSError, ValueError) as error:  # every error of the Hub client is one of these
        raise InputInvalid(
            "the base model is neither a folder nor in the Hub cache, and the Hub did not give it "
            f"({type(error).__name__})",
            "base_model.id",
            f"{id} at {revision}",
            "mend the id, download it beforehand where there is a network, name a folder, "
            "or use embedded/tiny-causal",
        ) from error


def family(path: Path) -> Family:
    """What a base is: `causal` (one stack, chats), `seq2seq` (encoder and decoder, such as T5), or `vision`.

    A vision-language base is a causal one that is shown images, too.

    Raises:
        InputInvalid: there is no readable `config.json`, or it is of none of these kinds.
    """
    file = path / "config.json"
    try:
        config: dict[str, Any] = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputInvalid(
            "is not a model folder: its config.json cannot be read",
            str(file),
            type(error).__name__,
            "name a folder that `save_pretrained` wrote",
        ) from None
    names: list[str] = config.get("architectures") or []
    if config.get("is_encoder_decoder"):
        return "seq2seq"
    if "vision_config" in config and any(n.endswith("ForConditionalGeneration") for n in names):
        return "vision"
    if any(n.endswith(("ForCausalLM", "LMHeadModel")) for n in names):
        return "causal"
    raise InputInvalid(
        "is neither a causal, an encoder-decoder nor a vision-language model",
        str(file),
        ", ".join(names) or "no architectures",
        "choose a base whose architecture ends in ForCausalLM, a T5, or a vision-language base such as LLaVA",
    )


def check(path: Path, wanted: Family | None, where: str = "base_model") -> Family:
    """The family of a base, once it is sure that it can be used.

    Args:
        wanted: the family the project asks for; None when it does not say.

    Raises:
        InputInvalid: it is of the other family, or has no safetensors weights.
    """
    found = family(path)
    if wanted and found != wanted:
        raise InputInvalid(
            f"the base model is {found}, but {wanted} is asked for",
            where,
            str(path),
            f"choose a {wanted} base or leave base_model.family out",
        )
    if not any(path.glob("*.safetensors")):
        raise InputInvalid(
            "the base model has no *.safetensors weights", where, str(path), "save it with safetensors"
        )
    return found


def digest(path: Path) -> str:
    """sha256 over what the base is made of: configuration, weights, tokenizer, chat template.

    Notes, licences and other files beside them do not count. Files are read again only when their
    size or time changed.

    Raises:
        InputInvalid: the folder holds no model.
    """
    family(path)
    return digest_of({file.name: _file_digest(file) for file in _files(path, _MATTERS)})


def files(path: Path) -> list[Path]:
    """The files of a base: those that its digest is over."""
    return _files(path, _MATTERS)


def tokenizer_files(path: Path) -> list[Path]:
    """The files of a base's tokenizer and chat template, and of its image processor."""
    return _files(path, (*_TOKENIZER, *_PROCESSOR))


def _files(path: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})


def _file_digest(file: Path) -> str:
    stat = file.stat()
    key = (str(file.resolve()), stat.st_size, stat.st_mtime_ns)
    if key not in _digests:
        _digests[key] = file_digest(file)
    return _digests[key]


def load_tokenizer(path: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a base, ready for training and serving: with a pad token and a chat template."""
    from transformers import AutoTokenizer

    from ftaas_pipelines.inference import templates

    kind = family(path)
    if kind == "vision":
        return load_processor(path).tokenizer
    return templates.complete(AutoTokenizer.from_pretrained(path, local_files_only=True), kind)


def load_processor(path: Path) -> "ProcessorMixin":
    """The processor of a vision-language base: its tokenizer, completed, and what prepares images.

    Images are prepared by Pillow and numpy wherever this runs: torchvision's resizing gives other pixels.

    Raises:
        InputInvalid: the base has no such processor, or no chat template.
    """
    from transformers import AutoProcessor

    from ftaas_pipelines.inference import templates

    try:
        processor: Any = AutoProcessor.from_pretrained(path, local_files_only=True, backend="pil")
        shown = processor.image_token
    except (OSError, ValueError, ImportError, AttributeError) as error:
        raise InputInvalid(
            f"the base's image processor cannot be used ({type(error).__name__}: {error})",
            str(path),
            do="choose a base whose processor places an image token and needs Pillow alone, such as LLaVA",
        ) from error
    tokenizer = processor.tokenizer
    tokenizer.chat_template = tokenizer.chat_template or processor.chat_template
    if not tokenizer.chat_template or shown is None:
        raise InputInvalid(
            "the base does not say how a conversation shows an image",
            str(path),
            "no chat template" if not tokenizer.chat_template else "no image token",
            "put its chat_template.jinja into the folder",
        )
    templates.complete(tokenizer, "vision")
    return processor


def load_model(
    path: Path, precision: Literal["fp32", "bf16"] = "fp32", *, kind: Any = None, **options: Any
) -> "PreTrainedModel":
    """The model of a base, in evaluation mode, on the CPU.

    Args:
        kind: the transformers auto class; None: the one of its family.
        options: more of what `from_pretrained` takes.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

    kinds = {
        "causal": AutoModelForCausalLM,
        "seq2seq": AutoModelForSeq2SeqLM,
        "vision": AutoModelForImageTextToText,
    }
    kind = kind or kinds[family(path)]
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    return kind.from_pretrained(path, dtype=dtype, local_files_only=True, use_safetensors=True, **options)
