"""Where along the trajectory, and when: maps of percentile x step, and cuts through them.

A run's metrics hold, for every step, lists over Q equal bins of trajectory percentile; None stands
where nothing was counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from tpcli.analysis import canvas
from tpcli.analysis.canvas import BLUE, GREEN, MISSING, ORANGE, Metrics, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = list[float | None]

PROGRESS = (0.3, 0.8)
"""Where the paper cuts through training, as shares of all steps."""
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00")
STYLES = ("-", "--", "-.", ":")


@dataclass(frozen=True, slots=True)
class Quantity:
    """Something measured by trajectory percentile.

    Attributes:
        key: in metrics.jsonl.
        unit: of the values.
        colours: matplotlib's name of a colour map whose lightness only rises.
        top: the end of its scale, whatever lies beyond; None means the largest value.
    """

    key: str
    title: str
    unit: str
    colours: str
    top: float | None = None


QUANTITIES = (
    Quantity("entropy/percentile", "Entropy", "nats", "viridis"),
    Quantity("kl/percentile", "KL to the initial policy", "nats", "cividis"),
    Quantity("credit/percentile", "Tokens that carry credit", "share", "magma", 1.0),
    Quantity("mass/percentile", "Credit mass", "share of the step", "inferno", 0.25),
    Quantity("clip/percentile", "Tokens with a clipped gradient", "share", "plasma"),
)


@dataclass(frozen=True, slots=True)
class HeatMap:
    """One quantity over training.

    Attributes:
        rows: values by percentile bin, by step, of every step that has any.
    """

    quantity: Quantity
    rows: Mapping[int, Row]

    @property
    def steps(self) -> range:
        """From the first step that was measured to the last."""
        return range(min(self.rows), max(self.rows) + 1)

    @property
    def bins(self) -> int:
        """Percentile bins."""
        return max(map(len, self.rows.values()))

    @property
    def top(self) -> float:
        """The end of the scale, which begins at 0."""
        if self.quantity.top is not None:
            return self.quantity.top
        return self._largest or 1.0

    @property
    def empty(self) -> bool:
        """0 everywhere."""
        return self._largest == 0

    @property
    def beyond(self) -> bool:
        """Some values lie above the scale."""
        return self._largest > self.top

    @property
    def _largest(self) -> float:
        return max(v for row in self.rows.values() for v in row if v is not None)

    def columns(self) -> list[Row]:
        """Values by bin of every step, in order; a step that was not measured has none."""
        nothing: Row = [None] * self.bins
        return [self.rows.get(step, nothing) for step in self.steps]


@dataclass(frozen=True, slots=True)
class Profile:
    """A quantity along the trajectory at one step.

    Attributes:
        progress: that step's share of all steps.
    """

    step: int
    progress: float
    values: Row


@dataclass(frozen=True, slots=True)
class Trajectories:
    """All that a run's metrics say by trajectory percentile.

    Attributes:
        maps: those that were measured, in the order of ``QUANTITIES``.
        missing: keys of those that were not.
        kl: KL to the initial policy at chosen points of training.
        entropy: by stage of the trajectory, "all" for the whole response: values by step.
    """

    maps: list[HeatMap] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    kl: list[Profile] = field(default_factory=list)
    entropy: dict[str, dict[int, float]] = field(default_factory=dict)


def read(
    metrics: Metrics, *, at: Sequence[float] = PROGRESS, steps: int | None = None
) -> Trajectories:
    """What ``metrics`` hold by percentile.

    Args:
        at: points of training at which KL is cut, as shares of ``steps``; the nearest recorded
            step stands for each.
        steps: of the whole run; None means the last one recorded.
    """
    maps = [HeatMap(q, rows) for q in QUANTITIES if (rows := _rows(metrics, q.key))]
    found = {one.quantity.key for one in maps}
    kl = [one for one in maps if one.quantity.key == "kl/percentile"]
    entropy = {}
    for stage, *_ in canvas.STAGES:
        recorded, values = canvas.points(metrics, f"entropy/{stage}")
        if recorded:
            entropy[stage] = dict(zip(recorded, values, strict=True))
    return Trajectories(
        maps=maps,
        missing=[q.key for q in QUANTITIES if q.key not in found],
        kl=profiles(kl[0], at, steps) if kl else [],
        entropy=entropy,
    )


def profiles(one: HeatMap, at: Sequence[float], steps: int | None = None) -> list[Profile]:
    """Cuts through a map at shares of training; two that fall on one recorded step are one."""
    whole = steps or one.steps[-1]
    nearest = {min(one.rows, key=lambda s: (abs(s - share * whole), s)): None for share in at}
    return [Profile(step, step / whole, one.rows[step]) for step in sorted(nearest)]


def percentiles(
    metrics: Metrics, *, at: Sequence[float] = PROGRESS, steps: int | None = None
) -> Figure | None:
    """Every map that was measured, entropy by stage, and KL by percentile; None without a map."""
    found = read(metrics, at=at, steps=steps)
    if not found.maps:
        return None
    panels: list[Callable[[Axes], None]] = []
    for one in found.maps:
        panels.append(partial(_heat_map, one=one))
        if one.quantity.key == "entropy/percentile" and found.entropy:
            panels.append(partial(_entropy, metrics=metrics))
        if one.quantity.key == "kl/percentile":
            panels.append(partial(_kl, cuts=found.kl))
    rows = math.ceil(len(panels) / 2)
    figure = canvas.sheet(12.5, 0.4 + 2.9 * rows)
    axes = list(figure.subplots(rows, 2, squeeze=False).flat)
    for axis, panel in zip(axes, panels, strict=False):
        panel(axis)
    for axis in axes[len(panels) :]:
        canvas.schedule(axis, metrics)
        canvas.tidy(axis, max(line["step"] for line in metrics))
    return figure


def _rows(metrics: Metrics, key: str) -> dict[int, Row]:
    rows = {
        int(line["step"]): [number(v) for v in line[key]]
        for line in metrics
        if isinstance(line.get(key), list)
    }
    return {step: row for step, row in rows.items() if any(v is not None for v in row)}


def _heat_map(axis: Axes, one: HeatMap) -> None:
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    columns = one.columns()
    values = [[math.nan if v is None else v for v in bin_] for bin_ in zip(*columns, strict=True)]
    image = axis.imshow(
        values,
        cmap=colormaps[one.quantity.colours].with_extremes(bad=MISSING),
        vmin=0.0,
        vmax=one.top,
        extent=(one.steps[0] - 0.5, one.steps[-1] + 0.5, 0, 100),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
    )
    axis.set_title(one.quantity.title)
    axis.set_xlabel("step")
    axis.set_ylabel("trajectory percentile")
    axis.set_yticks([0, 25, 50, 75, 100])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    extend = "max" if one.beyond else "neither"
    axis.figure.colorbar(image, ax=axis, label=one.quantity.unit, pad=0.02, extend=extend)


def _entropy(axis: Axes, metrics: Metrics) -> None:
    canvas.stages(axis, metrics, "entropy", "Entropy by stage of the trajectory")
    axis.set_ylabel("nats a token")
    canvas.tidy(axis, max(line["step"] for line in metrics))


def _kl(axis: Axes, cuts: Sequence[Profile]) -> None:
    for i, cut in enumerate(cuts):
        bins = len(cut.values)
        known = [(100 * (q + 0.5) / bins, v) for q, v in enumerate(cut.values) if v is not None]
        axis.plot(
            [place for place, _ in known],
            [value for _, value in known],
            STYLES[i % len(STYLES)],
            color=COLOURS[i % len(COLOURS)],
            marker="o",
            ms=3.5,
            label=f"step {cut.step}, {100 * cut.progress:.0f}% of training",
        )
    axis.set_title("KL to the initial policy along the trajectory")
    axis.set_xlabel("trajectory percentile")
    axis.set_ylabel("nats a token")
    axis.set_xlim(0, 100)
    canvas.bare(axis)
