"""The loss curve as a small picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def draw(history: Sequence[dict[str, Any]], file: Path) -> None:
    """Write training and validation loss over optimizer steps as a PNG of 800 x 400 pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for key, label, style in (("loss", "training", "-"), ("eval_loss", "validation", "o-")):
        points = [(row["step"], row[key]) for row in history if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.5, markersize=4)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (mean cross-entropy of answer tokens)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, metadata={"Software": None})
