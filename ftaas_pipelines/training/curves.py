"""A training as a small picture: its loss, what its method optimises, learning rate and gradient."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Figures of methods that are worth a panel, the first that is there: (training, validation, axis).
_OPTIMISED = (
    ("reward", "eval_reward", "reward (mean of sampled answers)"),
    ("reward_accuracy", "eval_reward_accuracy", "pairs ranked rightly (share)"),
    ("reward_margin", "eval_reward_margin", "good over bad answers (margin)"),
    ("accuracy", "eval_accuracy", "right labels (share)"),
    ("token_accuracy", "eval_token_accuracy", "right tokens (share)"),
)


def draw(history: Sequence[dict[str, Any]], file: Path) -> None:
    """Write the curves over optimizer steps as a PNG, 800 pixels wide, a panel of 300 for each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [("loss", "eval_loss", "loss")]
    keys = {key for row in history for key in row}
    panels += [panel for panel in _OPTIMISED if panel[0] in keys or panel[1] in keys][:1]
    figure = Figure(figsize=(8, 3 * (len(panels) + 1)), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels) + 1, 1, sharex=True, squeeze=False)[:, 0]
    for place, (training, validation, label) in zip(axes, panels, strict=False):
        _lines(place, history, training, validation, label)
    _pace(axes[-1], history)
    axes[-1].set_xlabel("optimizer step")
    figure.savefig(file, metadata={"Software": None})


def _lines(axes: Any, history: Sequence[dict[str, Any]], training: str, validation: str, label: str) -> None:
    for key, name, style in ((training, "training", "-"), (validation, "validation", "o-")):
        points = [(row["step"], row[key]) for row in history if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=name, linewidth=1.5, markersize=4)
    axes.set_ylabel(label)
    if label == "loss" and all(row.get(key, 0) >= 0 for row in history for key in (training, validation)):
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend()


def _pace(axes: Any, history: Sequence[dict[str, Any]]) -> None:
    """Learning rate on the left, gradient norm on the right."""
    other = axes.twinx()
    for place, key, colour in ((axes, "learning_rate", "tab:green"), (other, "grad_norm", "tab:gray")):
        points = [(row["step"], row[key]) for row in history if key in row]
        if points:
            place.plot(*zip(*points, strict=True), color=colour, linewidth=1.2)
        place.set_ylabel(key.replace("_", " "), color=colour)
    axes.grid(alpha=0.3)


def draw_trials(trials: Sequence[dict[str, Any]], file: Path) -> None:
    """Validation loss of each trial of a sweep over its steps as a PNG; the pruned ones are grey."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for trial in trials:
        points = sorted((int(step), loss) for step, loss in trial["losses"].items())
        if points:
            pruned = trial["state"] != "complete"
            style: dict[str, Any] = {"color": "0.7"} if pruned else {"label": f"trial {trial['number']}"}
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.2, **style)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("validation loss")
    axes.grid(alpha=0.3)
    if axes.has_data():
        axes.legend(fontsize="small", ncols=2)
    figure.savefig(file, metadata={"Software": None})
