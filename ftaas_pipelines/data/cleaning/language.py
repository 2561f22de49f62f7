"""Which language a text is in, by py3langid (its model of 140 languages comes with it: no network)."""

from functools import cache
from typing import TYPE_CHECKING

from ftaas_pipelines.data.cleaning.markup import prose
from ftaas_pipelines.errors import InputInvalid

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

LEAST_LETTERS = 20  # under that a guess is a coin toss
LEAST_PROBABILITY = 0.5  # normalised over all languages
MOST_CHARACTERS = 2_000  # more tells no more, and costs by the character


@cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True, min_confidence=LEAST_PROBABILITY)


def check(languages: list[str]) -> None:
    """Refuse codes that the model does not know.

    Raises:
        InputInvalid: a code is not one of the model's.
    """
    known = _identifier().labels
    if unknown := sorted(set(languages) - set(known)):
        raise InputInvalid(
            "a language cannot be told",
            "dataset.cleaning.languages",
            ", ".join(unknown),
            f"use ISO 639-1 codes of {', '.join(sorted(known))}",
        )


def language_of(text: str) -> str | None:
    """ISO 639-1 code of the prose of a text (code does not count); None where it cannot be told.

    That is: fewer than 20 letters among its first 2,000 characters, or no language has half of the
    probability.
    """
    told = prose(text)[:MOST_CHARACTERS]
    if sum(map(str.isalpha, told)) < LEAST_LETTERS:
        return None
    code, _ = _identifier().classify(told)
    return None if code == "und" else code
