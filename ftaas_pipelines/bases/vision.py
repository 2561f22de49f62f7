"""Train the vision base: eyes first, on what each patch shows; then together with the causal base.

The text part begins as the causal base with the first half of its vocabulary, so that it can already
copy and read codes. A tower trained through answers alone learns no shape in so few steps, and unlearns
those it knows: it is first told, patch by patch, what it looks at and where, and then left alone.
"""

# ruff: noqa: TID253 (training code: only make.py loads it, inside a function)
# The types of transformers are unions that no call can satisfy.
# pyright: reportArgumentType=false, reportCallIssue=false, reportPrivateUsage=false
# pyright: reportAttributeAccessIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import (
    GenerationConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from ftaas_pipelines.bases import causal, scenes, tokenizer
from ftaas_pipelines.bases.optimisation import IGNORED, Progress, optimise

SEED = 29
VOCABULARY_SIZE = 2048  # with the image token, which is the last
IMAGE = "<|image|>"
PATCH = 8
SIDE = scenes.SIZE // PATCH  # patches of a side
EYE_STEPS, STEPS = 1600, 1600
EYE_RATE, RATE = 2e-3, 2e-3
EYE_ROWS, ROWS, TURNS = 32, 16, 3
SERIES = ("picture", "picture", "picture", "skill")
TEXT_BASE = Path(__file__).parent / "tiny-causal"


def new_tokenizer() -> PreTrainedTokenizerFast:
    """The causal base's vocabulary without its later merges, and a token for each patch of an image."""
    told = json.loads((TEXT_BASE / "tokenizer.json").read_text("utf-8"))
    parts = told["model"]
    kept = VOCABULARY_SIZE - 1
    parts["vocab"] = {piece: id for piece, id in parts["vocab"].items() if id < kept}
    parts["merges"] = [pair for pair in parts["merges"] if "".join(pair) in parts["vocab"]]
    pieces = tokenizer.for_causal(Tokenizer.from_str(json.dumps(told)), causal.MAX_POSITIONS)
    pieces.add_special_tokens({"additional_special_tokens": [*tokenizer.ROLES, IMAGE]})
    pieces.chat_template = Path(__file__).with_name("vision_chat_template.jinja").read_text("utf-8")
    return pieces


def new_processor(pieces: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Tokenizer and image processor: any picture becomes 48 x 48, its values -1 to 1."""
    size = {"height": scenes.SIZE, "width": scenes.SIZE}
    return LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size=size),
        tokenizer=pieces,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        image_token=IMAGE,
        chat_template=pieces.chat_template,
    )


def new_model(pieces: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """A new tower of three layers before the causal base; about 1.6 M parameters."""
    text = LlamaForCausalLM.from_pretrained(TEXT_BASE, dtype=torch.float32, local_files_only=True)
    text.resize_token_embeddings(VOCABULARY_SIZE)
    text.config._name_or_path = ""  # where it lay is not part of the model
    tower = SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=scenes.SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    config = LlavaConfig(
        vision_config=tower,
        text_config=text.config,
        image_token_index=pieces.convert_tokens_to_ids(IMAGE),
        image_seq_length=SIDE**2,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.config.text_config.architectures = None
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=96,
        eos_token_id=pieces.eos_token_id,
        pad_token_id=pieces.pad_token_id,
    )
    return model


class Eyes(torch.nn.Module):
    """A tower with heads that name the shape, the colour, the row and the column of each patch."""

    def __init__(self, tower: torch.nn.Module):
        super().__init__()
        self.tower = tower
        self.heads = torch.nn.ModuleList(
            torch.nn.Linear(tower.config.hidden_size, 1 + count)  # type: ignore[union-attr]
            for count in (len(scenes.SHAPES), len(scenes.COLOURS), SIDE, SIDE)
        )

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        """The loss over `labels`, `[4, pictures, patches]`."""
        seen = self.tower(pixel_values, output_hidden_states=True).hidden_states[-1]
        losses = [
            cross_entropy(head(seen).transpose(1, 2), wanted)
            for head, wanted in zip(self.heads, labels, strict=True)
        ]
        return SimpleNamespace(loss=torch.stack(losses).sum())


def eye_batches(processor: LlavaProcessor, rng: random.Random) -> Iterator[dict]:
    """Yield pictures `[EYE_ROWS, 3, 48, 48]` with the labels of their patches.

    A tower that need not say where a patch lies forgets it, and no question of place could be answered.
    """
    places = torch.arange(SIDE * SIDE).expand(EYE_ROWS, -1)
    while True:
        found = [scenes.scene(rng) for _ in range(EYE_ROWS)]
        labels = [scenes.patch_labels(things, PATCH) for things in found]
        yield {
            "pixel_values": _pixels([scenes.draw(things, rng) for things in found], processor),
            "labels": torch.stack(
                [
                    *(torch.stack([torch.from_numpy(one[kind]) for one in labels]) for kind in (0, 1)),
                    places // SIDE,
                    places % SIDE,
                ]
            ),
        }


def _pixels(pictures: list, processor: LlavaProcessor) -> torch.Tensor:
    return processor.image_processor(pictures, return_tensors="pt")["pixel_values"]


def picture_batches(processor: LlavaProcessor, rng: random.Random) -> Iterator[dict]:
    """Yield right-padded conversations about pictures, with loss on every answer."""
    pieces = processor.tokenizer
    shown = IMAGE * SIDE**2
    pad = torch.nn.utils.rnn.pad_sequence
    while True:
        rows, pictures = [], []
        for _ in range(ROWS):
            things = scenes.scene(rng)
            pictures.append(scenes.draw(things, rng))
            rows.append(_encoded(scenes.conversation(things, rng, TURNS), pieces, shown))
        yield {
            "input_ids": pad([ids for ids, _ in rows], batch_first=True, padding_value=pieces.pad_token_id),
            "labels": pad([labels for _, labels in rows], batch_first=True, padding_value=IGNORED),
            "pixel_values": _pixels(pictures, processor),
        }


def _encoded(
    turns: list[scenes.Turn], pieces: PreTrainedTokenizerFast, shown: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels; the first question shows the picture."""
    ids: list[int] = []
    labels: list[int] = []
    for place, turn in enumerate(turns):
        said = (shown if place == 0 else "") + turn["content"]
        opening = f"<|{turn['role']}|>"
        new = pieces(f"{opening}{said}{tokenizer.END}", add_special_tokens=False)["input_ids"]
        ids += new
        labels += [IGNORED, *new[1:]] if turn["role"] == "assistant" else [IGNORED] * len(new)
    return torch.tensor(ids), torch.tensor(labels)


def train(steps: int = STEPS) -> tuple[LlavaForConditionalGeneration, LlavaProcessor, Progress]:
    """Train the base; one thread and one seed give the same weights every time."""
    pieces = new_tokenizer()
    processor = new_processor(pieces)
    torch.manual_seed(SEED)
    model = new_model(pieces)
    eye_steps = min(steps, EYE_STEPS)
    looked = zip(range(eye_steps), eye_batches(processor, random.Random(SEED)), strict=False)
    seen = optimise(
        Eyes(model.model.vision_tower),
        (batch for _, batch in looked),
        steps=eye_steps,
        learning_rate=EYE_RATE,
        series=("patch",),
    )
    model.model.vision_tower.requires_grad_(False)
    streams = {
        "picture": picture_batches(processor, random.Random(SEED + 1)),
        "skill": causal.skill_batches(pieces, random.Random(SEED + 2)),
    }
    batches = (next(streams[SERIES[step % len(SERIES)]]) for step in range(steps))
    told = optimise(model, batches, steps=steps, learning_rate=RATE, series=SERIES)
    progress = Progress(
        steps=seen.steps + told.steps,
        cpu_seconds=round(seen.cpu_seconds + told.cpu_seconds, 1),
        final_loss=seen.final_loss | told.final_loss,
    )
    return model, processor, progress
