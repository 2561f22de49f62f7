"""Byte-level BPE vocabularies, dressed for each of the two bases.

Digits are single tokens, so that every code has its own spelling, and roles are single special
tokens, so that a prompt spends none of its few positions on markup.
"""

# ruff: noqa: TID253 (training code: only make.py and contamination.py load it, inside a function)

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD = "<|pad|>"
END = "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(16))
# Rare merges would be embeddings that are never trained; a rare word is spelt in pieces instead.
MIN_FREQUENCY = 20


def train_bpe(texts: list[str], size: int) -> Tokenizer:
    """Train a vocabulary of at most ``size``: pad, end, roles, bytes, then merges."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    # Untrimmed offsets: TRL finds the assistant's tokens by character position, spaces included.
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=[PAD, END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    return bpe


def for_causal(bpe: Tokenizer, max_tokens: int) -> PreTrainedTokenizerFast:
    """Wrap the vocabulary for chat: left padding (generation), and the chat template."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        model_max_length=max_tokens,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
    return tokenizer


def for_t5(bpe: Tokenizer, max_tokens: int) -> PreTrainedTokenizerFast:
    """Wrap the vocabulary for T5: sentinels for masked spans, and the end token after each text."""
    bpe = Tokenizer.from_str(bpe.to_str())
    bpe.add_special_tokens(list(SENTINELS))
    bpe.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"$A {END}",
                pair=f"$A {END} $B {END}",
                special_tokens=[(END, bpe.token_to_id(END))],
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(SENTINELS),
        model_max_length=max_tokens,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )
