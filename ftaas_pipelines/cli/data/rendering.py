"""Records token by token, with the loss mask: exactly what training makes of them.

Tokens and labels come from `inference.templates.example`, the function that training itself calls.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from ftaas_pipelines import settings as configuration
from ftaas_pipelines.errors import InputInvalid
from ftaas_pipelines.inference import bases, templates
from ftaas_pipelines.projects import catalog
from ftaas_pipelines.store import Artifact, short

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Token:
    """One token as people read it. `trained`: its label carries loss."""

    text: str
    id: int
    trained: bool
    special: bool


@dataclass(frozen=True)
class Rendered:
    """One record as the model is taught it.

    Attributes:
        tokens: causal: of the whole conversation; seq2seq: of the source, then of the answer.
        ids, labels: as training gets them (`templates.Example`).
        cut: tokens that `max_seq_tokens` cut off.
    """

    record_id: str
    kind: str
    tokens: list[Token]
    ids: list[int]
    labels: list[int]
    cut: int

    def as_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {**asdict(self), "tokens": [token.text for token in self.tokens]}


@dataclass(frozen=True)
class Reading:
    """How one recipe of one project reads records."""

    recipe: str
    base: str
    family: str
    max_seq_tokens: int
    tokenizer: "PreTrainedTokenizerBase"

    @property
    def facts(self) -> dict[str, Any]:
        names = ("recipe", "base", "family", "max_seq_tokens")
        return {name: getattr(self, name) for name in names}

    def render(self, row: dict[str, Any]) -> Rendered:
        """A row of `data.view`, as training would make it an example.

        Raises:
            InputInvalid: the chat template does not take it; training would refuse it too.
        """
        from jinja2 import TemplateError

        messages = row["messages"]
        try:
            made = templates.example(self.tokenizer, messages, self.family, self.max_seq_tokens)
            whole = templates.example(self.tokenizer, messages, self.family, sys.maxsize)
        except (ValueError, TemplateError) as error:
            raise InputInvalid(
                f"the chat template of {self.base} does not take a record of kind {row['kind']}",
                f"record {short(row['record_id'])}",
                f"{type(error).__name__}, {len(messages)} messages",
                "choose another base, or leave such records out",
            ) from error
        taught = [label != templates.IGNORED for label in made.labels]
        if self.family == "seq2seq":
            tokens = self._tokens(made.input_ids, [False] * len(made.input_ids))
            tokens += self._tokens(made.labels, taught)
            cut = len(whole.input_ids) - len(made.input_ids) + len(whole.labels) - len(made.labels)
        else:
            tokens = self._tokens(made.input_ids, taught)
            cut = len(whole.input_ids) - len(made.input_ids)
        return Rendered(row["record_id"], row["kind"], tokens, made.input_ids, made.labels, cut)

    def _tokens(self, ids: Sequence[int], taught: Sequence[bool]) -> list[Token]:
        """Each token with what it adds to the text; of a character in several tokens the last one does."""
        from tokenizers.decoders import DecodeStream

        stream, special = DecodeStream(skip_special_tokens=False), set(self.tokenizer.all_special_ids)
        backend: Any = getattr(self.tokenizer, "backend_tokenizer", None)
        tokens: list[Token] = []
        for token, trained in zip(ids, taught, strict=True):
            if backend is None:  # not one of the tokenizers library: its names for the tokens
                text = str(self.tokenizer.convert_ids_to_tokens(token))
            else:
                text = stream.step(backend, token) or ""
            tokens.append(Token(text, token, trained, token in special))
        return tokens


def reading(artifact: Artifact, recipe: str, project: str) -> Reading:
    """How this recipe reads rows: its project's base model, tokenizer and limits.

    Args:
        project: whose recipe; empty: of the project that the artifact was made for.

    Raises:
        InputInvalid: no such project or recipe, or the base model is not there.
    """
    settings = configuration.load()
    name = project or artifact.attestation.get("spec", {}).get("project", "")
    if not name:
        raise InputInvalid(
            "the artifact names no project", short(artifact.digest), do="say whose recipe with --project"
        )
    loaded = catalog.load_one(settings.projects, settings.policy, name)
    chosen = loaded.project.recipe(recipe)
    base = loaded.project.base_model
    folder = bases.resolve(base.id, base.revision, loaded.folder)
    return Reading(
        recipe, base.id, bases.family(folder), chosen.training.max_seq_tokens, bases.load_tokenizer(folder)
    )


def show(screen: Console, how: Reading, examples: Sequence[Rendered]) -> None:
    """Print records: trained tokens green (or «so» without colours), context dim, special tokens bold."""
    plain = screen.color_system is None
    legend = "«…»" if plain else "green"
    screen.print(f"recipe {how.recipe} on {how.base}; what is trained on: {legend}", style="bold")
    for example in examples:
        trained = sum(token.trained for token in example.tokens)
        said = f"{short(example.record_id)}  {example.kind}  {len(example.tokens)} tokens, {trained} trained"
        screen.print()
        screen.print(Text(said, style="bold"))
        screen.print(_painted(example, plain))
        if example.cut:
            cut = f"… {example.cut} tokens are cut off at max_seq_tokens={how.max_seq_tokens}"
            screen.print(Text(cut, style="bold red"))
        if not trained:
            refused = "no token of its answer is left: training refuses this record"
            screen.print(Text(refused, style="bold red"))


def _painted(example: Rendered, plain: bool) -> Text:
    text, before = Text(), False
    for token in [*example.tokens, None]:
        trained = token is not None and token.trained
        if plain and trained != before:
            text.append("«" if trained else "»")
        before = trained
        if token is not None:
            style = "green" if trained else "dim"
            text.append(token.text, f"bold {style}" if token.special else style)
    return text
