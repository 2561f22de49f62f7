"""Start weights that can already copy: one head looks a token back, the next finds its twin.

Copying from the prompt ("induction", Olsson et al. 2022) is a circuit of two heads in two layers.
At a few CPU minutes from random weights it does not appear: 1,700 steps left every copying skill at
0.00. So the circuit is written into the start weights, as Trockman & Kolter (2023) do with milder
structure, and training is free to change every bit of it.

The residual stream holds three nearly orthogonal readings of a token: its embedding ``e``, ``G e``
("the token before me is e") and ``H e`` ("say e next"), with G and H random rotations.
"""

# ruff: noqa: TID253 (training code: only make.py and contamination.py load it, inside a function)

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import LlamaForCausalLM, T5ForConditionalGeneration

HEAD_SCALE = 0.05  # of the output head: large enough to be heard, small enough to be unlearnt
# Features of the causal embeddings with a fixed meaning; six more note DIGIT and CAPITAL of earlier tokens.
CONSTANT, DIGIT, CAPITAL = -1, -2, -3
FIXED = 9
GROUP = 2  # query heads to a key head
Rotations = dict[int, torch.Tensor]  # by distance
T5_BIAS = 8.0  # of a head that looks one or two tokens back


def _rotation(size: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size))[0]


def _rows(count: int, size: int) -> torch.Tensor:
    """Return ``count`` orthonormal rows ``[count, size]``, a projection."""
    return _rotation(size)[:count].contiguous()


def _free_rows(count: int, width: int) -> torch.Tensor:
    """Return a projection that reads none of the features with a fixed meaning."""
    rows = torch.zeros(count, width)
    rows[:, :-FIXED] = _rows(count, width - FIXED)
    return rows


def _free_rotation(width: int, distance: int = 0) -> torch.Tensor:
    """Return a rotation of the free features; at a distance, DIGIT and CAPITAL get places of their own."""
    rotation = torch.zeros(width, width)
    rotation[:-FIXED, :-FIXED] = _rotation(width - FIXED)
    if distance:
        rotation[_seen_back(DIGIT, distance), DIGIT] = 1.0
        rotation[_seen_back(CAPITAL, distance), CAPITAL] = 1.0
    return rotation


def _seen_back(feature: int, distance: int) -> int:
    """Return where a token notes that the token so far back has the feature."""
    return feature - 2 * distance


@torch.no_grad()
def wire_causal(model: LlamaForCausalLM, digits: list[int], capitals: list[int]) -> None:
    """Write look-back heads (layer 0), code-reading heads (layer 1) and induction heads (layer 2).

    Args:
        model: the untrained model, changed in place.
        digits: token ids of the ten digits, which get a feature in common.
        capitals: token ids of single capital letters, with and without a leading space, likewise.
    """
    parts: Any = model  # modules are untyped: an attribute is a Tensor or a Module to the checker
    embeddings = parts.model.embed_tokens.weight
    width, head = parts.config.hidden_size, parts.config.head_dim
    embeddings[:, -FIXED:] = 0.0
    # A constant feature, the same in all tokens: rotary attention needs one to look at a distance.
    embeddings[:, CONSTANT] = 3.0
    embeddings[digits, DIGIT] = 4.0
    embeddings[capitals, CAPITAL] = 4.0
    say = _free_rotation(width)
    parts.lm_head.weight.copy_(HEAD_SCALE * embeddings @ say.T)
    shown = torch.cat([_free_rows(head - 2, width), torch.eye(width)[[DIGIT, CAPITAL]]])
    back = {distance: _free_rotation(width, distance) for distance in (1, 2, 3)}

    layers = [layer.self_attn for layer in parts.model.layers]
    _wire_look_back(layers[0], parts.config.rope_parameters["rope_theta"], shown, back)
    _wire_codes(layers[1], shown, back)
    _wire_induction(layers[2], shown, back, say)


def _wire_look_back(attention: Any, theta: float, shown: torch.Tensor, back: Rotations) -> None:
    """Make heads 0, 1 and 2 note the tokens one, two and three back."""
    head, half = shown.shape[0], shown.shape[0] // 2
    strength = math.sqrt(7.0 * math.sqrt(head)) / 3.0
    attention.q_proj.weight[: 3 * head] = 0
    attention.k_proj.weight.zero_()
    for distance, rotation in back.items():
        query, keys = (distance - 1) * head, (distance - 1) // GROUP * head
        for pair in range(4):  # the fastest rotations tell neighbours apart; their sum peaks at the distance
            angle = distance * theta ** (-pair / half)
            attention.q_proj.weight[query + pair, CONSTANT] = strength * math.cos(angle)
            attention.q_proj.weight[query + pair + half, CONSTANT] = -strength * math.sin(angle)
            attention.k_proj.weight[keys + pair, CONSTANT] = strength
        attention.v_proj.weight[keys : keys + head] = shown
        attention.o_proj.weight[:, query : query + head] = rotation @ shown.T


def _wire_codes(attention: Any, shown: torch.Tensor, back: Rotations) -> None:
    """Make four heads find a code and note its first, second and third digit, and its letter.

    A code is a capital letter and digits after it. The features that make a token its n-th digit
    add up in the key; attention takes the place where all of them are present.
    """
    head, width = shown.shape
    half = head // 2
    attention.q_proj.weight.zero_()
    attention.k_proj.weight.zero_()
    digit, letter = (_free_rows(half, width) for _ in range(2))
    letter = letter @ shown.T @ shown  # what the look-back heads wrote
    attention.v_proj.weight[:head] = shown
    attention.v_proj.weight[head:] = torch.cat([digit, letter @ back[1].T])
    for number, place in enumerate((1, 2, 3, 1)):
        keys, query = number // GROUP * head, number * head
        row = half - 1 - number  # a slow rotation: the code may stand anywhere in the prompt
        key = attention.k_proj.weight[keys + row]
        key[DIGIT] = key[_seen_back(CAPITAL, place)] = 4.0
        for distance in range(1, place):
            key[_seen_back(DIGIT, distance)] = 4.0
        attention.q_proj.weight[query + row, CONSTANT] = 4.0
        start, read = ((0, shown), (0, shown), (0, digit), (half, letter))[number]
        attention.o_proj.weight[:, query : query + head] = 0
        columns = slice(query + start, query + start + len(read))
        attention.o_proj.weight[:, columns] = 2.0 * _free_rotation(width) @ read.T


def _wire_induction(attention: Any, shown: torch.Tensor, back: Rotations, say: torch.Tensor) -> None:
    """Make the first head of each group copy what came after the last two tokens, where they stood before."""
    head, width = shown.shape
    # Slow rotations only: content must match at any distance. They are the end of each half.
    slow = torch.arange(head // 2 - 10, head // 2)
    places = torch.cat([slow, slow + head // 2])
    for keys in range(0, attention.k_proj.weight.shape[0], head):
        spoken, query = _free_rows(head, width), keys * GROUP
        one, two = (_rows(len(slow), head) @ shown for _ in range(2))
        attention.q_proj.weight[query : query + head] = 0
        attention.k_proj.weight[keys : keys + head] = 0
        attention.q_proj.weight[query + places] = 4.0 * torch.cat([one, two @ back[1].T])
        attention.k_proj.weight[keys + places] = 4.0 * torch.cat([one @ back[1].T, two @ back[2].T])
        attention.v_proj.weight[keys : keys + head] = spoken
        attention.o_proj.weight[:, query : query + head] = 4.0 * say @ spoken.T


@torch.no_grad()
def wire_t5(model: T5ForConditionalGeneration) -> None:
    """Write look-back heads into both stacks, and a cross-attention that copies the next token.

    transformers ties T5's head to its embeddings, so "say e next" is ``e`` itself here; two decoder
    heads take half of the current token out of the stream, or it would be repeated.
    """
    parts: Any = model
    width, head = parts.config.d_model, parts.config.d_kv
    back, back_two, here = _rotation(width), _rotation(width), _rotation(width)
    shown, spoken = _rows(head, width), _rows(2 * head, width)

    def look(attention: Any, number: int, distance: int, read: torch.Tensor, write: torch.Tensor) -> None:
        # Buckets 0, 1 and 2 of the relative bias are "here", "one back" and "two back" in both stacks.
        part = slice(number * head, (number + 1) * head)
        attention.relative_attention_bias.weight[distance, number] = T5_BIAS
        attention.v.weight[part] = read
        attention.o.weight[:, part] = write

    encoder = parts.encoder.block[0].layer[0].SelfAttention
    look(encoder, 0, 1, shown, back @ shown.T)
    look(encoder, 1, 2, shown, back_two @ shown.T)
    decoder = parts.decoder.block[0].layer[0].SelfAttention
    look(decoder, 0, 1, shown, back_two @ shown.T)
    look(decoder, 1, 0, shown, here @ shown.T)
    for number, half in ((2, spoken[:head]), (3, spoken[head:])):
        look(decoder, number, 0, half, -half.T)

    cross = parts.decoder.block[0].layer[1].EncDecAttention
    for number, half in ((0, spoken[:head]), (1, spoken[head:])):
        part = slice(number * head, (number + 1) * head)
        one, two = _rows(head // 2, head) @ shown, _rows(head // 2, head) @ shown
        # The token just written must be one back, and the token before it two back.
        cross.q.weight[part] = 0.8 * torch.cat([one @ here.T, two @ back_two.T])
        cross.k.weight[part] = torch.cat([one @ back.T, two @ back_two.T])
        cross.v.weight[part] = half
        cross.o.weight[:, part] = 8.0 * half.T
