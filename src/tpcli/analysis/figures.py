"""A run's figures, from its metrics alone: training.png and percentiles.png."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tpcli.analysis.canvas import (
    BLUE,
    GREY,
    ORANGE,
    Metrics,
    line,
    points,
    save,
    schedule,
    sheet,
    stages,
    tidy,
)
from tpcli.analysis.heatmaps import percentiles
from tpcli.registry.folder import FIGURES, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(run_dir: Path) -> list[Path]:
    """Draw what the run's metrics allow into its figures folder; the files written.

    No metrics, no files. A figure appears whole or not at all, also when two processes draw.
    """
    metrics = read_metrics(run_dir)
    makers: dict[str, Callable[[Metrics], Figure | None]] = {
        "training.png": training,
        "percentiles.png": percentiles,
    }
    figures = {name: make(metrics) for name, make in makers.items()}
    return [save(f, run_dir / FIGURES / name) for name, f in figures.items() if f is not None]


def training(metrics: Metrics) -> Figure | None:
    """Reward and held-out accuracy, entropy, KL, and the schedule, over steps."""
    if not metrics:
        return None
    figure = sheet(11, 7.5)
    axes = figure.subplots(2, 2)
    _reward(axes[0, 0], metrics)
    stages(axes[0, 1], metrics, "entropy", "Entropy (nats a token)")
    stages(axes[1, 0], metrics, "kl", "KL to the initial policy (nats a token)")
    schedule(axes[1, 1], metrics)
    last = max(line["step"] for line in metrics)
    for axis in axes.flat:
        tidy(axis, last)
    return figure


def _reward(axis: Axes, metrics: Metrics) -> None:
    axis.set_title("Reward and held-out accuracy")
    line(axis, metrics, "reward/mean", "mean reward", GREY)
    for name, colour, marker in (("sampled", BLUE, "s"), ("greedy", ORANGE, "^")):
        steps, values = points(metrics, f"eval/{name}")
        if steps:
            axis.plot(steps, values, color=colour, marker=marker, label=f"held out, {name}")
    axis.set_ylim(-0.02, 1.02)
