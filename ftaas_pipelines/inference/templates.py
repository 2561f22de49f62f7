"""Messages to model text and tokens: the one place, for training, evaluation and serving alike.

A **causal** base reads a conversation through the chat template of its tokenizer. One that has none
gets `FALLBACK`. A **vision** base reads it likewise, its images in front of the text of their message. A
**seq2seq** base reads plain text and is taught the answer alone. A plain text (one message, the
assistant's) has no template around it, and a seq2seq base learns none.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from ftaas_pipelines.errors import InputInvalid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]  # role, content; images where it shows some
Show = Callable[[str], str]  # rendered text to the same text with the tokens of its images
IGNORED = -100  # a label that the loss skips, as in torch.nn.CrossEntropyLoss

# For causal tokenizers without a template: each turn under a heading, each answer closed by the end
# token. The generation markers let other tools (TRL's assistant_only_loss) find the answers too.
FALLBACK = """\
{%- if bos_token is defined and bos_token -%}{{- bos_token -}}{%- endif -%}
{%- for message in messages -%}
  {%- if message['role'] == 'assistant' -%}
    {{- '### Assistant:\\n' -}}
    {%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
    {{- '\\n' -}}
  {%- else -%}
    {{- '### ' + message['role'] | capitalize + ':\\n' + message['content'] + '\\n\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### Assistant:\\n' -}}{%- endif -%}
"""


@dataclass(frozen=True)
class Example:
    """One record as the model is taught it.

    Attributes:
        input_ids: causal: the whole conversation; seq2seq: the source.
        labels: causal: as long as `input_ids`, `IGNORED` outside the answers; seq2seq: the answer.
    """

    input_ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        """How many tokens carry loss."""
        return sum(label != IGNORED for label in self.labels)


def complete(tokenizer: "PreTrainedTokenizerBase", family: str) -> "PreTrainedTokenizerBase":
    """Give a tokenizer what it lacks: a pad token (its end token) and, if causal, a chat template.

    Raises:
        InputInvalid: it has no end token, so no answer would ever stop.
    """
    if tokenizer.eos_token_id is None:
        raise InputInvalid(
            "the tokenizer has no end token, so no answer would ever stop",
            f"{tokenizer.name_or_path}/tokenizer_config.json",
            do="set eos_token there",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if family == "causal" and not tokenizer.chat_template:
        tokenizer.chat_template = FALLBACK
    return tokenizer


def prompt_text(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> str:
    """What a causal model is shown before it answers: the template up to its generation prompt."""
    return _render(tokenizer, messages, ask=True)


def source_text(messages: Sequence[Message]) -> str:
    """What a seq2seq model is shown: the texts of all messages (system first), a line each."""
    return "\n".join(m["content"] for m in messages if m["content"])


def prompt_ids(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    family: str,
    show: Show = str,
    tools: Sequence[dict[str, Any]] = (),
) -> list[int]:
    """The tokens a model of this family is shown before it answers.

    What reads like one of the tokenizer's own tokens (`<|assistant|>`) in a message is text, never a role.

    Args:
        show: vision: puts the tokens of its images into the text; as it is, one token stands for each.
        tools: those that may be called; the template shows them.

    Raises:
        InputInvalid: the tools, or calls in the messages, read like tokens of the tokenizer's own.
    """
    own = _own_tokens(tokenizer)
    _check_calls(messages, tools, own)
    texts_of = [str(m.get("content") or "") for m in messages]
    forged = [text for text in texts_of if any(token in text for token in own)]
    if family == "seq2seq":
        return _ids(tokenizer, source_text(messages), special=True, plain=bool(forged))
    stand_ins = {text: f"\ue000{i}\ue001" for i, text in enumerate(dict.fromkeys(forged))}
    messages = [
        {**m, "content": stand_ins.get(t, m.get("content"))} for m, t in zip(messages, texts_of, strict=True)
    ]
    if family == "vision":
        messages = in_parts(messages)
    text = show(_render(tokenizer, messages, ask=True, tools=tools))
    if not forged:
        return _ids(tokenizer, text)
    texts = list(stand_ins)
    pieces = re.split("\ue000(\\d+)\ue001", text)  # template, number of a text, template, …
    return [
        token
        for i, piece in enumerate(pieces)
        for token in (_ids(tokenizer, texts[int(piece)], plain=True) if i % 2 else _ids(tokenizer, piece))
    ]


def _check_calls(messages: Sequence[Message], tools: Sequence[dict[str, Any]], own: Sequence[str]) -> None:
    for name, shown in (
        ("tools", tools),
        ("messages", [m["tool_calls"] for m in messages if "tool_calls" in m]),
    ):
        if shown and (found := next((t for t in own if t in _plain_json(shown)), None)):
            raise InputInvalid(
                "a tool reads like a token of the model's own", name, found, "write it otherwise"
            )


def _plain_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _own_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """The texts that a tokenizer reads as a token of its own: roles, ends, masks."""
    added: dict[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    return sorted(
        {*tokenizer.all_special_tokens, *(str(t) for t in added.values() if getattr(t, "special", False))}
    )


def in_parts(messages: Sequence[Message]) -> list[Message]:
    """The messages as templates of vision-language bases read them: images, then text, as parts."""
    return [
        {
            **{key: value for key, value in message.items() if key != "images"},
            "content": [
                *({"type": "image"} for _ in message.get("images", ())),
                *([{"type": "text", "text": message["content"]}] if message["content"] else []),
            ],
        }
        for message in messages
    ]


def example(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    family: str,
    max_tokens: int,
    show: Show = str,
) -> Example:
    """Tokens and labels of one conversation that ends with an answer, cut at `max_tokens`.

    Loss is on the answers and their end tokens alone; of a plain text, on all of it. A causal
    conversation is taught on every answer in it, found as what the template adds behind its own
    generation prompt, so no markers in the template are needed. Where a template rewrites earlier
    turns (dropping their reasoning, say), only the last answer is taught, behind exactly what is shown
    when serving.

    Args:
        max_tokens: causal and vision: of the whole; seq2seq: of source and of answer each.
        show: see `prompt_ids`.

    Raises:
        InputInvalid: a plain text, and the base is seq2seq.
    """
    if len(messages) == 1:
        return _text(tokenizer, messages[0]["content"], family, max_tokens)
    if family == "seq2seq":
        answer = list(tokenizer(text_target=messages[-1]["content"], verbose=False)["input_ids"])
        return Example(prompt_ids(tokenizer, messages[:-1], family)[:max_tokens], answer[:max_tokens])
    input_ids: list[int] = []
    labels: list[int] = []
    text = ""
    end = tokenizer.eos_token_id
    assert isinstance(end, int), "complete() first"
    answer = str(messages[-1]["content"])
    if family == "vision":
        messages = in_parts(messages)
    for piece, taught in _pieces(tokenizer, messages, answer, show):
        text += piece
        joint = _ids(tokenizer, text)
        if joint[: len(input_ids)] != input_ids:  # a token would span the border: keep the border
            joint = input_ids + _ids(tokenizer, piece)
        new = joint[len(input_ids) :]
        labels += _until_end(new, end) if taught else [IGNORED] * len(new)
        input_ids = joint
    if end not in labels:  # the template closes no answer: the end token does
        input_ids, labels = [*input_ids, end], [*labels, end]
    return Example(input_ids[:max_tokens], labels[:max_tokens])


def _text(tokenizer: "PreTrainedTokenizerBase", text: str, family: str, max_tokens: int) -> Example:
    """A text to continue from its first token to its end, with the tokenizer's begin token if it has one."""
    if family == "seq2seq":
        raise InputInvalid(
            "a seq2seq base cannot learn plain text: it answers, it does not continue",
            "base_model",
            "a record of kind text",
            "choose a causal base, or leave the sources of format text out",
        )
    ids, end = _ids(tokenizer, text, special=True), cast(int, tokenizer.eos_token_id)
    if ids[-1:] != [end]:  # some tokenizers write it themselves
        ids.append(end)
    return Example(ids[:max_tokens], ids[:max_tokens])


def _pieces(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], answer: str, show: Show
) -> list[tuple[str, bool]]:
    """The conversation as (text, whether it is an answer), in order; `answer` is the last one's text."""
    turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    spans = [
        (
            show(_render(tokenizer, messages[:i], ask=True)),
            show(_render(tokenizer, messages[: i + 1])),
        )
        for i in turns
    ]
    texts = [text for span in spans for text in span]
    if not all(b.startswith(a) for a, b in zip(texts, texts[1:], strict=False)):
        prompt, whole = spans[-1]
        if not whole.startswith(prompt):
            whole = prompt + answer + str(tokenizer.eos_token)
        texts = [prompt, whole]
    starts = [0, *(len(t) for t in texts)]
    return [(text[start:], i % 2 == 1) for i, (start, text) in enumerate(zip(starts, texts, strict=False))]


def _until_end(ids: list[int], end: int) -> list[int]:
    """Labels of one answer: what a template puts behind the last end token is not taught."""
    if end not in ids:
        return ids
    last = len(ids) - ids[::-1].index(end)
    return ids[:last] + [IGNORED] * (len(ids) - last)


def _render(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    ask: bool = False,
    tools: Sequence[dict[str, Any]] = (),
) -> str:
    text = tokenizer.apply_chat_template(
        list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=ask
    )
    assert isinstance(text, str)
    return text


def _ids(
    tokenizer: "PreTrainedTokenizerBase", text: str, special: bool = False, plain: bool = False
) -> list[int]:
    """Tokens of a text; that it is too long is not for the tokenizer to say (`verbose`).

    Args:
        special: the tokenizer puts its own begin and end to it; a rendered template has them already.
        plain: what reads like one of its own tokens is text.
    """
    options: dict[str, Any] = {"split_special_tokens": True} if plain else {}
    return list(tokenizer(text, add_special_tokens=special, verbose=False, **options)["input_ids"])
