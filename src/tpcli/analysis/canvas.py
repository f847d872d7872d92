"""What all figures share: paper, colours, lines over steps, and files that are written whole.

Figures are built without pyplot, so nothing global (backend, style, open windows) is touched.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Metrics = Sequence[Mapping[str, Any]]

# Okabe and Ito's colours, told apart under all common colour blindness; line styles differ too.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#666666"
MISSING = "#DDDDDD"
DPI = 130
STAGES = (
    ("all", "all tokens", GREY, "-"),
    ("first", "first 10%", BLUE, "--"),
    ("middle", "45–55%", GREEN, "-."),
    ("last", "last 10%", ORANGE, ":"),
)


def sheet(width: float, height: float) -> Figure:
    """An empty figure of ``width`` x ``height`` inches that keeps its labels apart."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG, whole or not at all, also when two processes draw; returns ``path``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.image import imsave

    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    figure.set_dpi(DPI)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()  # once; savefig draws twice
    imsave(aside, canvas.buffer_rgba(), format="png", dpi=DPI)
    aside.replace(path)
    return path


def number(value: object) -> float | None:
    """A finite number of a metrics line; None for anything else."""
    if isinstance(value, (int, float)) and math.isfinite(value):
        return float(value)
    return None


def points(metrics: Metrics, key: str) -> tuple[list[int], list[float]]:
    """Steps and values where the metric is a number."""
    found = [(line["step"], v) for line in metrics if (v := number(line.get(key))) is not None]
    return [step for step, _ in found], [value for _, value in found]


def line(axis: Axes, metrics: Metrics, key: str, label: str, colour: str, style: str = "-") -> None:
    """A metric over steps; nothing where it was never measured."""
    steps, values = points(metrics, key)
    if steps:
        few = len(steps) <= 30
        marker, width = ("o", 1.5) if few else ("", 1.0)
        axis.plot(steps, values, style, color=colour, label=label, marker=marker, ms=3.5, lw=width)


def stages(axis: Axes, metrics: Metrics, what: str, title: str) -> None:
    """Entropy or KL over steps: the whole response and its stages, as in the paper's figures."""
    axis.set_title(title)
    for key, label, colour, style in STAGES:
        line(axis, metrics, f"{what}/{key}", label, colour, style)


def schedule(axis: Axes, metrics: Metrics) -> None:
    """The magnitude and the share of tokens that carry credit, over steps."""
    axis.set_title("Schedule and credit")
    line(axis, metrics, "schedule/magnitude", "magnitude", BLUE, "--")
    line(axis, metrics, "credit/share", "share of tokens with credit", ORANGE)
    axis.set_ylim(-0.02, 1.02)


def tidy(axis: Axes, last: int) -> None:
    """Finish an axis over steps 0 to ``last``."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("step")
    axis.set_xlim(-0.02 * max(last, 1), 1.02 * max(last, 1))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    bare(axis)


def bare(axis: Axes) -> None:
    """A light frame and a legend; an axis without lines says that nothing was measured."""
    axis.grid(alpha=0.3)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    if axis.lines:
        axis.legend(frameon=False, fontsize="small")
    else:
        axis.set_yticks([])
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=GREY)
