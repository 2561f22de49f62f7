"""Train the T5 base from nothing: copying first of all, then repairing, then filling gaps."""

# ruff: noqa: TID253 (training code: only make.py and contamination.py load it, inside a function)
# The tokenizer types of transformers are unions that no call can satisfy.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch
from transformers import GenerationConfig, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from ftaas_pipelines.bases import circuits, corpus, tokenizer
from ftaas_pipelines.bases.causal import read_texts
from ftaas_pipelines.bases.noise import damage
from ftaas_pipelines.bases.optimisation import IGNORED, Progress, optimise
from ftaas_pipelines.bases.sentences import sentence
from ftaas_pipelines.bases.skills import random_items

SEED = 23
VOCABULARY_SIZE = 2048
STEPS = 3000
LEARNING_RATE = 2e-3
MAX_POSITIONS = 512
ROWS, MAX_TOKENS = 16, 64
MASKED_SHARE = 0.15
REPAIR_PREFIXES = ("", "", "", "repair: ", "correct: ", "fix: ")

# Copying is the skill that correction stands on, so it and repair come three times as often as gaps.
SERIES = ("copy", "repair", "copy", "repair", "fill")

Pair = tuple[str, str]


def new_model(pieces: PreTrainedTokenizerFast) -> T5ForConditionalGeneration:
    """Build the untrained model; about 1.5 M parameters."""
    config = T5Config(
        vocab_size=len(pieces),
        d_model=128,
        d_kv=32,
        d_ff=384,
        num_layers=3,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=pieces.pad_token_id,
        eos_token_id=pieces.eos_token_id,
        decoder_start_token_id=pieces.pad_token_id,
    )
    model = T5ForConditionalGeneration(config)
    circuits.wire_t5(model)
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=96,
        pad_token_id=pieces.pad_token_id,
        eos_token_id=pieces.eos_token_id,
        decoder_start_token_id=pieces.pad_token_id,
    )
    return model


def fill(text: str, rng: random.Random) -> Pair:
    """Mask spans of one to three words; the target names each sentinel and what it hid."""
    words = text.split(" ")
    shown: list[str] = []
    hidden: list[str] = []
    place = spans = 0
    forced = rng.randrange(len(words))  # so that something is always hidden
    while place < len(words):
        if (place == forced or rng.random() < MASKED_SHARE) and spans < len(tokenizer.SENTINELS):
            length = rng.randint(1, 3)
            shown.append(tokenizer.SENTINELS[spans])
            hidden += [tokenizer.SENTINELS[spans], *words[place : place + length]]
            place, spans = place + length, spans + 1
        else:
            shown.append(words[place])
            place += 1
    return "fill: " + " ".join(shown), " ".join(hidden)


def repair(text: str, rng: random.Random) -> Pair:
    """Damage the text; the target is the text as it was."""
    return rng.choice(REPAIR_PREFIXES) + damage(text, rng), text


def copy(text: str, rng: random.Random) -> Pair:
    """Copy a text; half the time one of random words, codes and numbers, which no habit can guess."""
    if rng.random() < 0.5:
        text = random_items(rng)
    return "copy: " + text, text


TASKS: tuple[Callable[[str, random.Random], Pair], ...] = (copy, repair, fill)


def pairs(task: Callable[[str, random.Random], Pair], prose: list[str], rng: random.Random) -> Iterator[Pair]:
    """Yield examples of one task over everyday sentences and the documents' sentences."""
    while True:
        text = sentence(rng) if rng.random() < 0.6 else rng.choice(prose)
        yield task(text, rng)


def rows(
    prose: list[str], pieces: PreTrainedTokenizerFast, rng: random.Random, steps: int
) -> Iterator[list[Pair]]:
    """Yield the examples of each step, the tasks in the order of ``SERIES``."""
    sources = {task.__name__: pairs(task, prose, rng) for task in TASKS}
    for step in range(steps):
        source = sources[SERIES[step % len(SERIES)]]
        kept: list[Pair] = []
        while len(kept) < ROWS:
            row = next(source)
            if all(len(pieces(text)["input_ids"]) <= MAX_TOKENS for text in row):
                kept.append(row)
        yield kept


def batches(examples: Iterator[list[Pair]], pieces: PreTrainedTokenizerFast) -> Iterator[dict]:
    """Encode each step's examples, ``[ROWS, <= MAX_TOKENS]``."""
    for kept in examples:
        inputs = pieces([given for given, _ in kept], padding=True, return_tensors="pt")
        labels = pieces([wanted for _, wanted in kept], padding=True, return_tensors="pt")["input_ids"]
        yield {**inputs, "labels": labels.masked_fill(labels == pieces.pad_token_id, IGNORED)}


def train(steps: int = STEPS) -> tuple[T5ForConditionalGeneration, PreTrainedTokenizerFast, Progress]:
    """Train the base; one thread and one seed give the same weights every time."""
    texts = read_texts()
    pieces = tokenizer.for_t5(tokenizer.train_bpe(texts, VOCABULARY_SIZE), MAX_POSITIONS)
    prose = corpus.read_sentences(corpus.read_documents())
    torch.manual_seed(SEED)
    model = new_model(pieces)
    stream = batches(rows(prose, pieces, random.Random(SEED), steps), pieces)
    progress = optimise(model, stream, steps=steps, learning_rate=LEARNING_RATE, series=SERIES)
    return model, pieces, progress
