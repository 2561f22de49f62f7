"""`ftaas run NAME --plan`: what would be made, and what each training of it would take."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from assets.line import Line
from assets.states import AssetState
from ftaas_pipelines.cli import output

if TYPE_CHECKING:
    from ftaas_pipelines.training.planning.quote import Quote

_COLUMNS = (
    ("steps", "steps", ""),
    ("supervised_tokens", "supervised tokens", ""),
    ("memory_gib", "memory", "GiB"),
    ("seconds", "duration", ""),
    ("usd", "cost", "USD"),
    ("kwh", "energy", "kWh"),
    ("co2e_kg", "CO2e", "kg"),
)


def show(line: Line, due: list[AssetState], states: list[AssetState], as_json: bool) -> None:
    """Print the plan of a line.

    Args:
        due: what a run would make now.
        states: all assets up to where the run would end; the adapters among them are quoted.

    Raises:
        Refused: a training would break the project's budget, even at the low end of its quote.
        InputInvalid: the base, the price table or the data is wrong.
    """
    wanted = [s.name for s in states if s.name.startswith("adapter_") and s.state != "fresh"]
    quotes: Mapping[str, Quote] = {}
    if wanted:
        from assets import quoting  # its tokenizers are heavy

        quotes = quoting.Quoting(line).quotes(wanted)
        if not as_json:
            _print(output.console(), line.project.name, due, quotes)
        quoting.check(quotes, line.bounds())
    elif not as_json:
        _print(output.console(), line.project.name, due, quotes)
    if as_json:
        document: dict[str, Any] = {
            "project": line.project.name,
            "would_make": [s.as_dict() for s in due],
            "quotes": {name: one.as_dict() for name, one in quotes.items()},
        }
        output.emit(True, document, lambda _: None)


def _print(screen: Console, name: str, due: list[AssetState], quotes: "Mapping[str, Quote]") -> None:
    if due:
        rows = [[s.name, s.state, s.reason] for s in due]
        screen.print(output.table(["would make", "state", "why"], rows, title=name))
    else:
        screen.print(f"{name}: nothing to make")
    if not quotes:
        return
    shown = [c for c in _COLUMNS if any(one.known(c[0]) for one in quotes.values())]
    rows = [
        [asset, one.basis, *(_cell(one, f, unit) for f, _, unit in shown)] for asset, one in quotes.items()
    ]
    screen.print()
    screen.print(output.table(["would take", "basis", *(word for _, word, _ in shown)], rows))
    for asset, one in quotes.items():
        where = f"{one.terms.hardware}{f' in {one.terms.region}' if one.terms.region else ''}"
        screen.print("  ".join([f"{asset}: on {where}", *one.notes]))


def _cell(one: "Quote", name: str, unit: str) -> str:
    if name not in one.figures:
        return ""
    figure = one[name]
    write = _duration if name == "seconds" else _number
    ends = "" if figure.low == figure.high else f" ({write(figure.low)} to {write(figure.high)})"
    return f"{write(figure.value)}{f' {unit}' if unit else ''}{ends}"


def _number(value: float) -> str:
    """Three digits that count: 1,234,567 as 1,230,000."""
    rounded = float(f"{value:.3g}")
    return f"{rounded:,.0f}" if rounded >= 100 else f"{rounded:g}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s"
    if seconds < 6000:
        return f"{seconds / 60:.2g} min"
    return f"{seconds / 3600:.3g} h"
