"""Person names, by a token-classification model that the project names: no pattern can tell them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftaas_pipelines.data.privacy.findings import Detector, Span
from ftaas_pipelines.errors import InputInvalid

_PERSON = frozenset({"PER", "PERS", "PERSON", "NAME"})
_OVERLAP = 32  # tokens that two windows over a long text share


def recogniser(folder: Path) -> Detector:
    """The detector of person names that stands on the model in this folder.

    Raises:
        InputInvalid: no label of the model stands for a person.
    """
    from transformers import pipeline

    model: Any = pipeline("token-classification", model=str(folder), device="cpu")
    labels = sorted({str(label).rpartition("-")[2] for label in model.model.config.id2label.values()})
    if _PERSON.isdisjoint(label.upper() for label in labels):
        raise InputInvalid(
            "no label of the model stands for a person",
            "dataset.privacy.names_model",
            ", ".join(labels),
            "name a model with the labels B-PER and I-PER",
        )
    limit = model.model.config.max_position_embeddings
    model.tokenizer.model_max_length = min(model.tokenizer.model_max_length, limit)
    stride = min(_OVERLAP, limit // 4)

    def find(text: str) -> Iterator[Span]:
        # `first` gives a word the label of its first piece, so that no word is redacted in part; windows
        # over a long text overlap, so that no name is cut.
        for one in model(text, aggregation_strategy="first", stride=stride):
            if str(one["entity_group"]).upper() in _PERSON:
                yield Span("person_name", int(one["start"]), int(one["end"]))

    return Detector("person_names", "medium", r"\w", find, "person_name")
