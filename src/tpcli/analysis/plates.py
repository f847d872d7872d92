"""The panels of figures of arms: curves over training, and the paper's four, with their captions.

A line is the mean over an arm's seeds and its band the standard deviation of them, above and
below; a single run is a line without one. Every plate is None where nothing was measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpcli.analysis import bars, canvas
from tpcli.analysis.arms import AlignName, Arm, Trace
from tpcli.analysis.compare import Band, mean_course
from tpcli.analysis.heatmaps import read
from tpcli.analysis.looks import band, frame
from tpcli.analysis.words import by_words, frequent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

NEAR = 0.05
"""Share of training that a recorded step may lie away from the one asked for."""
WORDS = 12
"""Of a stage that are shown."""
AXES: dict[AlignName, str] = {
    "step": "step",
    "magnitude": "magnitude of the schedule, falling",
    "tokens": "tokens that have carried credit",
}
ALONG: dict[AlignName, str] = {
    "step": "",
    "magnitude": " The axis runs as training does, from a large magnitude to a small one; steps at "
    "one magnitude are averaged.",
    "tokens": " Runs are aligned by the tokens that have carried credit so far.",
}
STAGES = {key: label for key, label, *_ in canvas.STAGES} | {"all": "whole response"}
PANELS = ("first", "middle", "last", "all")
COUNTED = {
    "words": "A word stands between whitespaces, in lower case and without the punctuation around "
    "it, and counts where its first token stands.",
    "tokens": "The responses hold no whitespace, so that tokens are counted.",
}


@dataclass(frozen=True, slots=True)
class Plate:
    """What is drawn into a figure of its own, or into a part of a taller one.

    Attributes:
        caption: what one sees and how it was computed, in sentences.
        height: inches, without the legend.
        bars: it holds no lines, so the legend shows bars.
    """

    title: str
    caption: str
    height: float
    draw: Callable[[FigureBase], None]
    bars: bool = False


def curves(arms: Sequence[Arm], metrics: Sequence[str], align: AlignName) -> Plate | None:
    """Metrics over training, a panel each, without those that were never recorded."""
    bands = {metric: _bands(arms, metric, align) for metric in metrics}
    shown = [metric for metric in metrics if any(one.x for one in bands[metric])]
    if not shown:
        return None
    columns = 2 if len(shown) in (2, 4) else min(len(shown), 3)
    rows = -(-len(shown) // columns)

    def draw(figure: FigureBase) -> None:
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for axis, metric in zip(axes, shown, strict=False):
            _lines(axis, bands[metric], align)
            axis.set_title(metric)
        for axis in axes[len(shown) :]:
            axis.set_axis_off()

    caption = f"{', '.join(shown)}, over training. {_lines_mean(arms)}{ALONG[align]}"
    return Plate("Over training", caption, 3.2 * rows, draw)


def entropy(arms: Sequence[Arm], align: AlignName) -> Plate | None:
    """Entropy over training: a panel a stage of the trajectory, and the whole response."""
    bands = {key: _bands(arms, f"entropy/{key}", align) for key in PANELS}
    if not any(one.x for found in bands.values() for one in found):
        return None

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots(2, 2, sharex=True, sharey=True)
        for axis, (key, found) in zip(axes.flat, bands.items(), strict=True):
            _lines(axis, found, align)
            axis.set_title(STAGES[key])
            axis.label_outer()
        for axis in axes[:, 0]:
            axis.set_ylabel("nats a token")

    caption = (
        "Entropy of the policy's next token, over training: over the first 10% of each response, "
        f"from 45% to 55%, over the last 10%, and over all of it. {_lines_mean(arms)}{ALONG[align]}"
    )
    return Plate("Entropy by stage of the trajectory", caption, 6.0, draw)


def kl(arms: Sequence[Arm], at: Sequence[float]) -> Plate | None:
    """KL to the initial policy over trajectory percentile, a panel a share of training."""
    bands = [[kl_at(arm, share) for arm in arms] for share in at]
    if not any(one.x for found in bands for one in found):
        return None

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots(1, len(at), sharey=True, squeeze=False)[0]
        for axis, share, found in zip(axes, at, bands, strict=True):
            _lines(axis, found, None)
            axis.set_title(_at(share))
            axis.set_xlabel("trajectory percentile")
            axis.set_xlim(0, 100)
        axes[0].set_ylabel("nats a token")

    caption = (
        "How far the policy has moved from where it began, by place in the response (0: first "
        f"token), {' and '.join(_at(share) for share in at)}. Each run counts with the recorded "
        f"step nearest to that, unless it is more than {_percent(NEAR)} of training away. "
        f"{_lines_mean(arms)}"
    )
    return Plate("KL to the initial policy along the trajectory", caption, 3.6, draw)


def kl_at(arm: Arm, share: float) -> Band:
    """KL over trajectory percentile near a share of training: mean over seeds, and their sd.

    A bin counts the runs that have something in it. Empty without a run that recorded it there.
    """
    cuts = [row for run in arm.runs if (row := _cut(run, share)) is not None]
    bins = max(map(len, cuts), default=0)
    x, means, spreads = [], [], []
    for q in range(bins):
        values = [row[q] for row in cuts if q < len(row)]
        known = [value for value in values if value is not None]
        if known:
            x.append(100 * (q + 0.5) / bins)
            means.append(statistics.fmean(known))
            spreads.append(statistics.stdev(known) if len(known) > 1 else 0.0)
    pairs = list(zip(means, spreads, strict=True))
    return Band(x, means, [mean - sd for mean, sd in pairs], [mean + sd for mean, sd in pairs])


def _cut(run: Trace, share: float) -> Sequence[float | None] | None:
    found = read(run.metrics, at=(share,), steps=run.steps).kl
    near = max(NEAR, 0.5 / run.steps)
    if not found or abs(found[0].progress - share) > near + 1e-9:
        return None
    return found[0].values


def accuracy(arms: Sequence[Arm]) -> Plate | None:
    """Held-out accuracy over steps, sampled and greedy, and below it a bar a benchmark and arm."""
    kinds = {"sampled": "Held out, sampled", "greedy": "Held out, greedy"}
    bands = {kind: _bands(arms, f"eval/{kind}", "step") for kind in kinds}
    shown = [kind for kind in kinds if any(one.x for one in bands[kind])]
    benches = bars.scored(arms)
    if not shown and not benches:
        return None
    heights = [3.4] * bool(shown) + [3.0] * bool(benches)

    def draw(figure: FigureBase) -> None:
        grid = figure.add_gridspec(len(heights), max(len(shown), 1), height_ratios=heights)
        first: Axes | None = None
        for place, kind in enumerate(shown):
            axis = figure.add_subplot(grid[0, place], sharey=first)
            first = first or axis
            _lines(axis, bands[kind], "step")
            axis.set_title(kinds[kind])
            axis.set_ylabel("accuracy" if axis is first else "")
        if benches:
            bars.benchmarks(figure.add_subplot(grid[-1, :]), arms, benches)

    held = f"Accuracy on held-out questions over training. {_lines_mean(arms)}" if shown else ""
    caption = " ".join(filter(None, [held, _bars_mean(arms, benches)]))
    return Plate("Accuracy", caption, sum(heights), draw, bars=not shown)


def words(arms: Sequence[Arm], since: float) -> Plate | None:
    """Bars of the most frequent words early, midway and late in stored responses."""
    counted = bars.tallies(arms, since)
    if not any(one.responses for one in counted):
        return None
    unit = "words" if by_words(counted) else "tokens"
    stages = frequent(counted, top=WORDS)
    rows = max(len(one.words) for one in stages)

    def draw(figure: FigureBase) -> None:
        axes = figure.subplots(1, len(stages), squeeze=False)[0]
        for axis, one in zip(axes, stages, strict=True):
            bars.words(axis, one, unit, rows)

    height = 1.0 + rows * max(0.26, 0.1 * len(arms))
    when = f"in the last {_percent(1 - since)} of the steps" if since else "at any step"
    counts = ", ".join(f"{one.responses:,}" for one in counted)
    caption = (
        f"The most frequent {unit} of each stage, by the mean over the arms, in the responses "
        f"stored {when}: {counts} of them by arm, all its seeds together. {COUNTED[unit]}"
    )
    return Plate(f"Frequent {unit} by stage of the response", caption, height, draw, bars=True)


def _lines_mean(arms: Sequence[Arm]) -> str:
    """What a line and its band are, in a caption."""
    several = [len(arm.runs) > 1 for arm in arms]
    if not any(several):
        return "A line is one run."
    single = "" if all(several) else " An arm of one run has no band."
    return (
        "A line is the mean over an arm's seeds, its band one standard deviation of them above "
        f"and below.{single}"
    )


def _bars_mean(arms: Sequence[Arm], benches: Sequence[str]) -> str:
    """What the bars and their intervals are, in a caption."""
    counts = {sum(bench in run.scores for run in arm.runs) for arm in arms for bench in benches}
    kinds = [
        "t intervals over the seeds" if max(counts, default=0) > 1 else "",
        "over the questions where an arm has one seed" if 1 in counts else "",
    ]
    if not any(kinds):
        return ""
    which = " and ".join(filter(None, kinds))
    return f"Bars: the newest checkpoint that was evaluated, with 95% intervals, {which}."


def _at(share: float) -> str:
    return f"at {_percent(share)} of training"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%"


def _bands(arms: Sequence[Arm], metric: str, align: AlignName) -> list[Band]:
    return [mean_course(arm, metric, align) for arm in arms]


def _lines(axis: Axes, bands: Sequence[Band], align: AlignName | None) -> None:
    """A line an arm with its band; without ``align`` x is left to the caller."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    for i, one in enumerate(bands):
        band(axis, i, one)
    frame(axis)
    if align is None:
        return
    axis.set_xlabel(AXES[align])
    if align == "magnitude":
        axis.xaxis.set_inverted(True)  # training goes from left to right
    elif align == "tokens":
        axis.xaxis.set_major_formatter(EngFormatter(sep=" "))
    else:
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
