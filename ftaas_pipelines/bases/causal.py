"""Train the causal base from nothing: four steps of skills to each of text."""

# ruff: noqa: TID253 (training code: only make.py and contamination.py load it, inside a function)
# The tokenizer types of transformers are unions that no call can satisfy.
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import random
import string
from collections.abc import Iterator

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ftaas_pipelines.bases import circuits, corpus, skills, tokenizer
from ftaas_pipelines.bases.optimisation import IGNORED, Progress, optimise
from ftaas_pipelines.bases.sentences import sentence

SEED = 17
VOCABULARY_SIZE = 4096
STEPS = 4000
LEARNING_RATE = 2e-3
MAX_POSITIONS = 1024
SERIES = ("text", "skill", "skill", "skill", "skill")
TEXT_ROWS, TEXT_TOKENS = 8, 96
SKILL_ROWS, SKILL_TOKENS = 24, 160


def read_texts() -> list[str]:
    """Return the pre-training text: documents, then a tenth as many everyday sentences."""
    rng = random.Random(SEED)
    everyday = [" ".join(sentence(rng) for _ in range(6)) for _ in range(700)]
    return corpus.read_documents() + everyday


def skill_texts() -> list[str]:
    """Return skills for the vocabulary alone, so that the marks of JSON are few tokens."""
    rng = random.Random(SEED + 3)
    return [turn["content"] for _ in range(3000) for turn in skills.draw(rng)]


def new_model(pieces: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Build the untrained model; at most 1.84 M parameters."""
    config = LlamaConfig(
        vocab_size=len(pieces),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=pieces.eos_token_id,
        pad_token_id=pieces.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    # Wide, untied embeddings keep the ten digits apart; tied or narrow ones collapse.
    torch.nn.init.normal_(model.model.embed_tokens.weight, std=1.0)
    letters = [mark + letter for mark in ("", "\u0120") for letter in string.ascii_uppercase]
    # A letter too rare to be a token with its space is spelt in two, and then has no single id.
    known = [letter for letter in letters if letter in pieces.get_vocab()]
    circuits.wire_causal(
        model,
        digits=pieces.convert_tokens_to_ids(list(string.digits)),
        capitals=pieces.convert_tokens_to_ids(known),
    )
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=128,
        eos_token_id=pieces.eos_token_id,
        pad_token_id=pieces.pad_token_id,
    )
    return model


def text_batches(texts: list[str], pieces: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[dict]:
    """Yield windows of the joined text, ``[TEXT_ROWS, TEXT_TOKENS]``, every token a target."""
    order = list(texts)
    rng.shuffle(order)
    encoded = pieces(order, add_special_tokens=False, verbose=False)["input_ids"]
    stream = torch.tensor([token for ids in encoded for token in (*ids, pieces.eos_token_id)])
    while True:
        starts = [rng.randrange(len(stream) - TEXT_TOKENS) for _ in range(TEXT_ROWS)]
        rows = torch.stack([stream[start : start + TEXT_TOKENS] for start in starts])
        yield {"input_ids": rows, "labels": rows}


def encode_answer(
    messages: list[dict[str, str]], pieces: PreTrainedTokenizerFast
) -> tuple[list[int], list[int]]:
    """Return token ids and labels of one conversation, with the loss on the last answer only."""
    prompt = pieces.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    whole = pieces.apply_chat_template(messages, tokenize=False)
    prompt_ids = pieces(prompt, add_special_tokens=False)["input_ids"]
    answer_ids = pieces(whole[len(prompt) :], add_special_tokens=False)["input_ids"]
    return prompt_ids + answer_ids, [IGNORED] * len(prompt_ids) + answer_ids


def skill_batches(pieces: PreTrainedTokenizerFast, rng: random.Random) -> Iterator[dict]:
    """Yield right-padded skills, ``[SKILL_ROWS, <= SKILL_TOKENS]``."""
    while True:
        rows = []
        while len(rows) < SKILL_ROWS:
            ids, labels = encode_answer(skills.draw(rng), pieces)
            if len(ids) <= SKILL_TOKENS:
                rows.append((torch.tensor(ids), torch.tensor(labels)))
        pad = torch.nn.utils.rnn.pad_sequence
        yield {
            "input_ids": pad([ids for ids, _ in rows], batch_first=True, padding_value=pieces.pad_token_id),
            "labels": pad([labels for _, labels in rows], batch_first=True, padding_value=IGNORED),
        }


def train(steps: int = STEPS) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, Progress]:
    """Train the base; one thread and one seed give the same weights every time."""
    texts = read_texts()
    pieces = tokenizer.for_causal(tokenizer.train_bpe(texts + skill_texts(), VOCABULARY_SIZE), MAX_POSITIONS)
    torch.manual_seed(SEED)
    model = new_model(pieces)
    streams = {
        "text": text_batches(texts, pieces, random.Random(SEED + 1)),
        "skill": skill_batches(pieces, random.Random(SEED + 2)),
    }
    batches = (next(streams[SERIES[step % len(SERIES)]]) for step in range(steps))
    progress = optimise(model, batches, steps=steps, learning_rate=LEARNING_RATE, series=SERIES)
    return model, pieces, progress
