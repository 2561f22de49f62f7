"""What a vision-language base sees: the images of messages, as tokens in their text and as pixels.

A message names its images by their sha256; their bytes lie in `images/` of the dataset version, or in
the message itself (a data URI). The base's own processor says how many tokens an image becomes and
what the network is given; which images those are depends on their order alone.
"""

import base64
import binascii
import hashlib
import io
from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.inference import templates
from ftaas_pipelines.inference.templates import Example, Message

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from transformers import PreTrainedTokenizerBase

Shown = dict[str, Any]  # {"ref", "sha256"}
FOLDER = "images"  # of a dataset version, see `data.rows.images`; the runtime carries no data module
_TOKEN_TYPES = {"mm_token_type_ids", "token_type_ids"}  # arguments: 1 where a token stands for an image
_OF_TEXT = {"input_ids", "attention_mask", *_TOKEN_TYPES}  # of the processor's text; the batch has its own
_UNLIMITED = 1 << 40  # tokens
_REMEMBERED = 100_000  # images whose tokens are kept in mind


def of(messages: Sequence[Message]) -> list[Shown]:
    """The images of a conversation, in their order."""
    return [image for message in messages for image in message.get("images", ())]


def inline(messages: Sequence[Message], dataset: Path | None) -> list[dict[str, Any]]:
    """Messages in OpenAI's shape, the bytes of their images inside: what an endpoint is asked.

    Args:
        dataset: folder of the dataset version that holds the images.
    """
    out: list[dict[str, Any]] = []
    for message in messages:
        parts: list[dict[str, Any]] = [{"type": "text", "text": message["content"]}]
        for image in message.get("images", ()):
            data = base64.b64encode(_read(image, dataset)).decode()
            url = f"data:application/octet-stream;base64,{data}"
            parts.insert(-1, {"type": "image_url", "image_url": {"url": url}})
        out.append({"role": message["role"], "content": parts if len(parts) > 1 else message["content"]})
    return out


def of_uri(uri: str) -> bytes:
    """The bytes of a data URI in base64 (RFC 2397).

    Raises:
        InputInvalid: it is none.
    """
    head, comma, data = uri.partition(",")
    try:
        if not comma or not head.startswith("data:") or not head.endswith(";base64"):
            raise ValueError
        return base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error):
        do = "write data:image/png;base64,…"
        raise InputInvalid(
            "an image is a broken data URI", "messages", f"{len(uri)} characters", do
        ) from None


def accepted(model: Any) -> frozenset[str]:
    """Names of the arguments that a network takes, below an adapter if it has one."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(signature(inner.forward).parameters)


class Viewer:
    """A base's processor, and where the images are.

    Args:
        processor: as `bases.load_processor` gives it.
        folder: holds `images/<sha256>`; None: images come inside their messages alone.
    """

    def __init__(self, processor: Any, folder: Path | None):
        self._processor, self._folder = processor, folder
        self._stands: dict[str, tuple[str, int]] = {}  # by sha256, see `_stand`

    @property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        return self._processor.tokenizer

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """What is shown before an answer, its images as so many tokens as they become.

        Raises:
            InputInvalid: an image cannot be had, or the text writes the token of an image itself.
        """
        shown = self._stand_for(messages)
        ids = templates.prompt_ids(self.tokenizer, messages, "vision", lambda text: self._put(text, shown))
        return self._checked(ids, shown)

    def example(self, messages: Sequence[Message], max_tokens: int | None = None) -> Example:
        """Tokens and labels of a conversation; see `templates.example`. An image is not cut in two.

        Raises:
            InputInvalid: as `prompt_ids`.
        """
        shown = self._stand_for(messages)
        whole = templates.example(
            self.tokenizer, messages, "vision", _UNLIMITED, lambda text: self._put(text, shown)
        )
        self._checked(whole.input_ids, shown)
        end, _ = self._whole(whole.input_ids[:max_tokens], of(messages))
        return Example(whole.input_ids[:end], whole.labels[:end])

    def within(self, ids: list[int], messages: Sequence[Message]) -> list[Shown]:
        """The images of a conversation that are wholly among these tokens: it may have been cut short."""
        shown = of(messages)
        return shown[: self._whole(ids, shown)[1]]

    def _whole(self, ids: list[int], shown: Sequence[Shown]) -> tuple[int, int]:
        """Up to where no image is cut in two, and how many images stand before that."""
        places = [place for place, token in enumerate(ids) if token == self._processor.image_token_id]
        left, kept = len(places), 0
        for image in shown:
            needed = self._stand(image)[1]
            if needed > left:
                break
            left, kept = left - needed, kept + 1
        return (places[-left] if left else len(ids)), kept

    def inputs(
        self, shown: Sequence[Shown], ids: "torch.Tensor", accepted: frozenset[str]
    ) -> "dict[str, torch.Tensor]":
        """What a network is given beside the tokens `[rows, n]` of a batch.

        Args:
            shown: the images in those tokens, row by row.
            accepted: names that the network's forward takes; some ask which tokens stand for an image.

        Raises:
            InputInvalid: an image cannot be had.
        """
        import torch

        given: dict[str, torch.Tensor] = {}
        if shown:
            made = self._processor(
                text=[self._processor.image_token] * len(shown),
                images=[[self._open(image)] for image in shown],
                padding=True,
                return_tensors="pt",
            )
            given = {name: made[name] for name in accepted - _OF_TEXT if name in made}
        for name in _TOKEN_TYPES & accepted:
            given[name] = torch.tensor(self._processor.create_mm_token_type_ids(ids.tolist()))
        return {name: value.to(ids.device) for name, value in given.items()}

    def _stand_for(self, messages: Sequence[Message]) -> list[tuple[str, int]]:
        """What stands for each image of a conversation."""
        mark = self._processor.image_token
        if any(mark in str(message["content"]) for message in messages):
            raise InputInvalid(
                "a message writes the token that stands for an image",
                "messages",
                mark,
                "show the image in the message's images, and take the token out of its text",
            )
        return [self._stand(image) for image in of(messages)]

    def _stand(self, image: Shown) -> tuple[str, int]:
        """The text that stands for an image, and how many of its tokens are places of its features."""
        key = str(image["sha256"])
        if key not in self._stands:
            made = self._processor(
                text=[self._processor.image_token],
                images=[[self._open(image)]],
                return_text_replacement_offsets=True,
            )
            [replaced] = made["text_replacement_offsets"][0]
            if len(self._stands) >= _REMEMBERED:
                self._stands.clear()
            count = list(made["input_ids"][0]).count(self._processor.image_token_id)
            self._stands[key] = replaced["replacement"], count
        return self._stands[key]

    def _put(self, text: str, shown: Sequence[tuple[str, int]]) -> str:
        """The text with each image's tokens in the place that the template gave it."""
        first, *others = text.split(self._processor.image_token)
        if len(others) > len(shown):
            raise self._misplaced(len(others), len(shown))
        return first + "".join(stands + piece for (stands, _), piece in zip(shown, others, strict=False))

    def _checked(self, ids: list[int], shown: Sequence[tuple[str, int]]) -> list[int]:
        found, wanted = ids.count(self._processor.image_token_id), sum(count for _, count in shown)
        if found != wanted:
            raise self._misplaced(found, wanted)
        return ids

    def _misplaced(self, found: int, wanted: int) -> InputInvalid:
        return InputInvalid(
            "the chat template does not show each image once",
            str(self.tokenizer.name_or_path),
            f"{found} of {wanted} places",
            "put the chat_template.jinja of this base into its folder",
        )

    def _open(self, image: Shown) -> "Image":
        from PIL import Image, ImageOps, UnidentifiedImageError

        data = _read(image, self._folder)
        try:
            with Image.open(io.BytesIO(data)) as picture:
                return ImageOps.exif_transpose(picture).convert("RGB")
        except (
            UnidentifiedImageError,
            OSError,
            ValueError,
            SyntaxError,
            Image.DecompressionBombError,
        ) as error:
            raise InputInvalid(
                "an image cannot be read",
                f"{FOLDER}/{image['sha256']}",
                f"{len(data)} bytes, {type(error).__name__}",
                "write it as PNG or JPEG, or leave the record out",
            ) from error


def _read(image: Shown, dataset: Path | None) -> bytes:
    """The bytes of an image; they are those of its name."""
    ref, sha256 = str(image["ref"]), image["sha256"]
    if ref.startswith("data:"):
        return of_uri(ref)
    if sha256 is None:
        raise InputInvalid(
            "an image was not fetched with the data: it is a URL",
            "messages",
            f"{len(ref)} characters",
            "write the image to a file beside the data, or into the row as a data URI",
        )
    where = f"{FOLDER}/{sha256}"
    if dataset is None:
        raise InputInvalid("the images of the dataset version are not at hand", where)
    try:
        data = (dataset / FOLDER / str(sha256)).read_bytes()
    except OSError as error:
        raise InputInvalid(
            "an image of the dataset version is not there",
            where,
            type(error).__name__,
            "make the dataset version again, or bring its artifact back whole",
        ) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputInvalid("an image's bytes are not those of its name", where, f"{len(data)} bytes")
    return data
