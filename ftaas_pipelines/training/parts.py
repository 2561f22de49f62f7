"""Which part of a network takes adapters: of a vision-language model, its language model alone by default."""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PART = "ftaas_part"  # attribute of a network: the name of that part


def only_within(model: "PreTrainedModel", part: Any) -> None:
    """Have adapters sit on linear layers of this module of the network alone."""
    setattr(model, _PART, next(name for name, module in model.named_modules() if module is part))


def targets(model: "PreTrainedModel", asked: str | list[str]) -> str | list[str]:
    """Where an adapter sits, in PEFT's words; a pattern of the recipe's own is taken as it stands.

    A pattern of whole names, unlike last names, is the same for whoever opens the adapter: the image
    encoder's layers often bear the same last names.
    """
    part = getattr(model, _PART, None)
    if part is None or (isinstance(asked, str) and asked != "all-linear"):
        return asked if isinstance(asked, str) else sorted(asked)
    if asked == "all-linear":
        asked = _linear(model, part)
    names = "|".join(re.escape(name) for name in sorted(asked))
    return rf"(.*\.)?{re.escape(part)}\.(.*\.)?({names})"


def _linear(model: "PreTrainedModel", part: str) -> list[str]:
    """Last names of the linear layers of a part."""
    import torch

    below = (module for module in model.named_modules() if module[0].startswith(f"{part}."))
    return sorted({name.rpartition(".")[2] for name, module in below if isinstance(module, torch.nn.Linear)})
