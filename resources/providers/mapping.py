"""A recipe's settings in a provider's words. What has none is refused by name, before anything is sent.

A recipe does not say which of its values are defaults that nobody thought about. So a value that differs
from the default was asked for: it is mapped or refused. Values at their default are left to the provider,
except the epochs, which decide what it costs.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ftaas_pipelines.errors import Problem
from ftaas_pipelines.projects.section import Section
from resources.providers.job import Order


def asked(section: Section) -> dict[str, Any]:
    """The settings of a section that are not at their default."""
    fields = type(section).model_fields
    values = {name: getattr(section, name) for name in fields if name != "kind"}
    return {
        name: value
        for name, value in values.items()
        if value != fields[name].get_default(call_default_factory=True)
    }


def unmapped(
    order: Order,
    title: str,
    training: Collection[str],
    method: Mapping[str, Collection[str]],
    adapter: Collection[str] = (),
    hints: Mapping[str, str] | None = None,
) -> Iterator[Problem]:
    """The settings of a recipe that a provider cannot be told.

    Args:
        training: the settings of `training` that it can; adapter: those of a LoRA.
        method: the kinds of method that it can do, each with the settings that it can be told.
        hints: what to do instead, by setting.
    """
    kind = order.method.kind
    if kind not in method:
        do = f"take {' or '.join(method)}, or train it on this platform's machines"
        yield Problem(f"{title} cannot do this method", order.where("method"), kind, do)
    if order.adapter.kind == "full" and "full" not in adapter:
        do = "leave adapter out: it chooses the weights that it trains"
        yield Problem(f"{title} cannot be told to train every weight", order.where("adapter"), "full", do)
    told = (("training", order.training, training), ("method", order.method, method.get(kind, ())))
    for part, section, known in (*told, ("adapter", order.adapter, adapter)):
        for name, value in asked(section).items():
            if name not in known:
                default = type(section).model_fields[name].get_default(call_default_factory=True)
                do = (hints or {}).get(name) or f"leave it at its default ({_shown(default)})"
                yield Problem(f"{title} has no such setting", order.where(part, name), _shown(value), do)


def whole_epochs(order: Order, title: str) -> Iterator[Problem]:
    """Refuses parts of an epoch."""
    epochs = order.training.epochs
    if epochs != int(epochs):
        yield Problem(
            f"{title} takes whole epochs", order.where("training", "epochs"), f"{epochs:g}", "round it"
        )


def _shown(value: Any) -> str:
    return str(value.model_dump(mode="json")) if isinstance(value, Section) else str(value)
