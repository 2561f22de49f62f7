"""What an answer must look like, token by token: JSON of a schema, or the call of a tool.

llguidance knows after every token which may come next; the others get no chance. What the model would have
said anyway stays as it is.
"""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch  # noqa: TID253 imported by stage programs and the engine only
from torch import Tensor  # noqa: TID253

from ftaas_pipelines.errors import InputInvalid

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Schema = dict[str, Any]
# As models write it, also over several lines; without a bound a small model writes blanks for ever.
_SPACES = {"whitespace_pattern": r"[ \n\t]{0,16}"}


class Grammars:
    """Makes constraints for the answers of one tokenizer.

    Args:
        vocab: scores that the model gives to a step, at least the tokenizer's tokens.
        ends: tokens that end an answer.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", vocab: int, ends: Iterable[int]):
        from llguidance import hf

        self._ends = sorted(ends)
        self._marks = sorted((str(t) for t in tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        self._tokens = hf.from_tokenizer(tokenizer, n_vocab=vocab, eos_token=self._ends)  # pyright: ignore[reportArgumentType]

    def json(self, schema: Schema, where: str) -> "Grammar":
        """JSON that a schema allows.

        Raises:
            InputInvalid: the schema is none, or asks for what cannot be held to.
        """
        from llguidance import LLMatcher

        if not isinstance(schema.get("x-guidance"), dict):
            schema = {**schema, "x-guidance": _SPACES}
        return self._checked(LLMatcher.grammar_from_json_schema(_text(schema, where)), where)

    def call(self, opening: str, closing: str, schemas: Sequence[Schema], where: str) -> "Grammar":
        """One call of a tool, in the marks that the model's template puts around it."""
        from llguidance import LLMatcher

        schema = {"anyOf": list(schemas), "x-guidance": _SPACES}
        rule = " ".join([*self._literal(opening), "call", *self._literal(closing)])
        lark = f"start: {rule}\ncall: %json {_text(schema, where)}"
        return self._checked(LLMatcher.grammar_from_lark(lark), where)

    def _literal(self, text: str) -> list[str]:
        """A text as a grammar names it: what is one token of the tokenizer's own is named as such."""
        found: list[str] = []
        while text:
            at, mark = min(((text.find(m), m) for m in self._marks if m in text), default=(len(text), ""))
            if at:
                found.append(json.dumps(text[:at]))
            if mark:
                found.append(mark if mark[0] + mark[-1] == "<>" else json.dumps(mark))
            text = text[at + len(mark) :]
        return found

    def _checked(self, grammar: str, where: str) -> "Grammar":
        from llguidance import LLMatcher

        wrong, said = LLMatcher.validate_grammar_with_warnings(grammar, self._tokens)
        if wrong:
            raise InputInvalid(said[0].splitlines()[0] if said else "cannot be held to", where)
        return Grammar(LLMatcher(self._tokens, grammar), self._ends)


def _text(schema: Schema, where: str) -> str:
    try:
        return json.dumps(schema)
    except RecursionError:
        raise InputInvalid("is nested too deeply", where) from None


class Grammar:
    """One answer's way through a grammar: a `Constraint`.

    Attributes:
        error: why it could not be followed to its end (too large); the answer ends there.
    """

    def __init__(self, matcher: Any, ends: Sequence[int]):
        self._matcher, self._ends = matcher, ends
        self.error = ""

    def copy(self) -> "Grammar":
        """The same grammar for another answer, which has not begun."""
        return Grammar(self._matcher.deep_copy(), self._ends)

    def allow(self, logits: Tensor) -> Tensor:
        """The `[vocab]` logits with what may not come next at minus infinity."""
        bits = b"" if self.error else self._matcher.compute_bitmask()
        self._note()
        may = np.zeros(len(logits), dtype=bool)
        if self.error:
            may[list(self._ends)] = True
        else:
            may = np.unpackbits(np.frombuffer(bits, np.uint8), count=len(logits), bitorder="little").astype(
                bool
            )
        return logits.masked_fill(~torch.from_numpy(may), float("-inf"))

    def accept(self, token: int) -> None:
        """Go on behind a token, the end token included."""
        if token not in self._ends and not self.error:
            self._matcher.consume_token(token)
            self._note()

    def _note(self) -> None:
        if not self.error and self._matcher.is_error():
            self.error = str(self._matcher.get_error()).splitlines()[0]
