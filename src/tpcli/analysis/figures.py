"""A run's figures, from its metrics alone: training.png and percentiles.png.

Figures are built without pyplot, so nothing global (backend, style, open windows) is touched.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcli.registry.folder import FIGURES, read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Metrics = Sequence[Mapping[str, Any]]

# Okabe and Ito's colours, told apart under all common colour blindness; line styles differ too.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
HEAT_MAPS = (
    ("entropy/percentile", "Entropy", "nats", "viridis"),
    ("kl/percentile", "KL to the initial policy", "nats", "cividis"),
    ("credit/percentile", "Tokens that carry credit", "share", "magma"),
)


def draw(run_dir: Path) -> list[Path]:
    """Draw what the run's metrics allow into its figures folder; the files written.

    No metrics, no files. A figure appears whole or not at all, also when two processes draw.
    """
    metrics = read_metrics(run_dir)
    makers: dict[str, Callable[[Metrics], Figure | None]] = {
        "training.png": training,
        "percentiles.png": percentiles,
    }
    written = []
    for name, make in makers.items():
        figure = make(metrics)
        if figure is not None:
            path = run_dir / FIGURES / name
            path.parent.mkdir(exist_ok=True)
            aside = path.with_name(f".{name}.{os.getpid()}")
            figure.savefig(aside, format="png", dpi=130)
            aside.replace(path)
            written.append(path)
    return written


def training(metrics: Metrics) -> Figure | None:
    """Reward and held-out accuracy, entropy, KL, and the schedule, over steps."""
    if not metrics:
        return None
    figure = _figure(11, 7.5)
    axes = figure.subplots(2, 2)
    _reward(axes[0, 0], metrics)
    _stages(axes[0, 1], metrics, "entropy", "Entropy (nats a token)")
    _stages(axes[1, 0], metrics, "kl", "KL to the initial policy (nats a token)")
    _schedule(axes[1, 1], metrics)
    last = max(line["step"] for line in metrics)
    for axis in axes.flat:
        _tidy(axis, last)
    return figure


def percentiles(metrics: Metrics) -> Figure | None:
    """Entropy, KL and credit as heat maps: trajectory percentile over steps."""
    maps = [(spec, grid) for spec in HEAT_MAPS if (grid := _grid(metrics, spec[0]))]
    if not maps:
        return None
    figure = _figure(9, 0.6 + 2.9 * len(maps))
    column = figure.subplots(len(maps), 1, squeeze=False)[:, 0]
    for axis, ((_, title, unit, colours), grid) in zip(column, maps, strict=True):
        _heat_map(axis, grid, title, unit, colours)
    column[-1].set_xlabel("step")
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))


def _points(metrics: Metrics, key: str) -> tuple[list[int], list[float]]:
    """Steps and values where the metric is a number."""
    found = [(line["step"], v) for line in metrics if (v := _number(line.get(key))) is not None]
    return [step for step, _ in found], [value for _, value in found]


def _number(value: object) -> float | None:
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return None


def _line(
    axis: Axes, metrics: Metrics, key: str, label: str, colour: str, style: str = "-"
) -> None:
    steps, values = _points(metrics, key)
    if steps:
        few = len(steps) <= 30
        marker, width = ("o", 1.5) if few else ("", 1.0)
        axis.plot(steps, values, style, color=colour, label=label, marker=marker, ms=3.5, lw=width)


def _reward(axis: Axes, metrics: Metrics) -> None:
    axis.set_title("Reward and held-out accuracy")
    _line(axis, metrics, "reward/mean", "mean reward", GREY)
    for name, colour, marker in (("sampled", BLUE, "s"), ("greedy", ORANGE, "^")):
        steps, values = _points(metrics, f"eval/{name}")
        if steps:
            axis.plot(steps, values, color=colour, marker=marker, label=f"held out, {name}")
    axis.set_ylim(-0.02, 1.02)


def _stages(axis: Axes, metrics: Metrics, what: str, title: str) -> None:
    axis.set_title(title)
    for key, label, colour, style in (
        ("all", "all tokens", GREY, "-"),
        ("first", "first 10%", BLUE, "--"),
        ("middle", "45–55%", GREEN, "-."),
        ("last", "last 10%", ORANGE, ":"),
    ):
        _line(axis, metrics, f"{what}/{key}", label, colour, style)


def _schedule(axis: Axes, metrics: Metrics) -> None:
    axis.set_title("Schedule and credit")
    _line(axis, metrics, "schedule/magnitude", "magnitude", BLUE, "--")
    _line(axis, metrics, "credit/share", "share of tokens with credit", ORANGE)
    axis.set_ylim(-0.02, 1.02)


def _tidy(axis: Axes, last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("step")
    axis.set_xlim(-0.02 * max(last, 1), 1.02 * max(last, 1))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    if axis.lines:
        axis.legend(frameon=False, fontsize="small")
    else:
        axis.set_yticks([])
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=GREY)


def _grid(metrics: Metrics, key: str) -> dict[int, list[float | None]]:
    """Values by percentile bin of every step that has any."""
    rows = {
        int(line["step"]): [_number(v) for v in line[key]]
        for line in metrics
        if isinstance(line.get(key), list)
    }
    return {step: row for step, row in rows.items() if any(v is not None for v in row)}


def _heat_map(
    axis: Axes, grid: Mapping[int, list[float | None]], title: str, unit: str, colours: str
) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    first, last = min(grid), max(grid)
    bins = max(len(row) for row in grid.values())
    missing: list[float | None] = [None] * bins
    rows = [grid.get(step, missing) for step in range(first, last + 1)]
    values = [[math.nan if v is None else v for v in bin_] for bin_ in zip(*rows, strict=True)]
    image = axis.imshow(
        values,
        cmap=colormaps[colours].with_extremes(bad="#DDDDDD"),
        vmin=0.0,
        vmax=1.0 if unit == "share" else None,
        extent=(first - 0.5, last + 0.5, 0, 100),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
    )
    axis.set_title(title)
    axis.set_ylabel("trajectory percentile")
    axis.set_yticks([0, 25, 50, 75, 100])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.figure.colorbar(image, ax=axis, label=unit, pad=0.02)
