"""Target modules of an adapter that a base does not have, or that take none.

PEFT skips a name that is not there in silence, as long as another one fits.
"""

import re
from collections.abc import Iterator

from ftaas_pipelines.errors import Problem
from ftaas_pipelines.training.base_facts import OUTPUTS, BaseFacts

_SHOWN = 12  # names that an error lists
# Where a checkpoint's modules may stand once they are loaded.
_PREFIXES = ("", "model.", "transformer.", "language_model.", "model.language_model.", "base_model.")


def problems(targets: str | list[str], facts: BaseFacts, family: str, where: str) -> list[Problem]:
    """One problem for each target that fits nothing, or fits what takes no adapter; says which there are."""
    if targets == "all-linear" or not facts.linears:
        return []
    there = sorted({name.rpartition(".")[2] for name in facts.linears})
    if isinstance(targets, str):
        return list(_pattern(targets, facts, family, where, there))
    return list(_names(targets, facts, where, there))


def _names(targets: list[str], facts: BaseFacts, where: str, there: list[str]) -> Iterator[Problem]:
    instead = f"use all-linear, or some of {_listed(there)}"
    for target in targets:
        if any(_ends_with(name, target) for name in facts.linears):
            continue
        if _is_output(target) or any(_ends_with(name, target) for name in facts.embeddings):
            yield _no_linear(target, where, instead)
        else:
            yield Problem(f"the base has no module '{target}'", where, ", ".join(targets), instead)


def _pattern(pattern: str, facts: BaseFacts, family: str, where: str, there: list[str]) -> Iterator[Problem]:
    """A text is a regular expression that must fit the whole name of a module, as PEFT reads it."""
    instead = f"write a list such as [{', '.join(there[:2])}], or all-linear; the base has {_listed(there)}"
    try:
        fits = re.compile(pattern).fullmatch
    except re.error as error:
        yield Problem(f"is not a regular expression: {error}", where, pattern, instead)
        return
    outputs = [name for name in (*facts.embeddings, *OUTPUTS) if any(fits(p + name) for p in _PREFIXES)]
    if outputs:
        yield _no_linear(outputs[0].rpartition(".")[2], where, instead)
        return
    # A vision-language model renames its modules while it loads: there, a part that fits will do.
    fits = re.compile(pattern).search if family == "vision" else fits
    if not any(fits(prefix + name) for name in facts.linears for prefix in _PREFIXES):
        what = "a text is a pattern for whole module names, and this one fits none of the base's"
        yield Problem(what, where, pattern, instead)


def _no_linear(target: str, where: str, instead: str) -> Problem:
    if _is_output(target):
        return Problem("the output layer takes no adapter", where, target, instead)
    return Problem(
        f"'{target}' is an embedding, not a linear layer",
        where,
        target,
        f"set embeddings: true, or {instead}",
    )


def _is_output(target: str) -> bool:
    return target.rpartition(".")[2] in OUTPUTS


def _ends_with(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
