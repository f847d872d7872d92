"""Figures of arms: curves over training and the paper's four, alone or one below the other.

Each is None where nothing was measured. ``tpcli.analysis.plates`` says what they show.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tpcli.analysis import canvas, plates
from tpcli.analysis.arms import AlignName, Arm
from tpcli.analysis.heatmaps import PROGRESS
from tpcli.analysis.looks import legend, legend_height
from tpcli.analysis.plates import Plate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 11.0
"""Inches, of every figure."""
SINCE = 0.8
"""Share of the recorded steps after which stored responses are counted."""
HEAD = 0.4
"""Inches of a plate's title."""


def curves(arms: Sequence[Arm], metrics: Sequence[str], align: AlignName = "step") -> Figure | None:
    """Metrics over training, a panel each; those that were never recorded are left out."""
    return _alone(plates.curves(arms, metrics, align), arms)


def entropy_by_stage(arms: Sequence[Arm], align: AlignName = "step") -> Figure | None:
    """Entropy over training: first 10%, 45-55%, last 10%, and the whole response."""
    return _alone(plates.entropy(arms, align), arms)


def kl_along(arms: Sequence[Arm], at: Sequence[float] = PROGRESS) -> Figure | None:
    """KL to the initial policy over trajectory percentile, a panel a point of training.

    Args:
        at: shares of all steps. The nearest recorded step stands for each; a run that has none
            within 5% of training, for instance because it is under way, is left out there.
    """
    return _alone(plates.kl(arms, at), arms)


def accuracy(arms: Sequence[Arm]) -> Figure | None:
    """Held-out accuracy over training, and a bar per benchmark and arm where there are scores."""
    return _alone(plates.accuracy(arms), arms)


def frequent_tokens(arms: Sequence[Arm], since: float = SINCE) -> Figure | None:
    """The words that are most frequent early, midway and late in the stored responses.

    Args:
        since: share of the recorded steps after which responses count; 0 means all of them.
    """
    return _alone(plates.words(arms, since), arms)


def composite(
    arms: Sequence[Arm], *, metrics: Sequence[str], align: AlignName = "step"
) -> Figure | None:
    """The curves and the paper's figures below each other, with one legend."""
    shown = plates_of(arms, metrics, align, words=False)
    if not shown:
        return None
    heights = [plate.height + HEAD for plate in shown]
    figure = canvas.sheet(WIDTH, sum(heights) + legend_height(arms, WIDTH))
    parts = figure.subfigures(len(shown), 1, height_ratios=heights, squeeze=False)
    for part, plate in zip(parts.flat, shown, strict=True):
        plate.draw(part)
        part.suptitle(plate.title, fontsize="large", fontweight="bold")
    legend(figure, arms, WIDTH, above=True)
    return figure


def plates_of(
    arms: Sequence[Arm], metrics: Sequence[str], align: AlignName, *, words: bool = True
) -> list[Plate]:
    """All that can be drawn of these arms; without ``words`` their responses are not read."""
    made = (
        plates.curves(arms, metrics, align),
        plates.accuracy(arms),
        plates.entropy(arms, align),
        plates.kl(arms, PROGRESS),
        plates.words(arms, SINCE) if words else None,
    )
    return [plate for plate in made if plate is not None]


def alone(plate: Plate, arms: Sequence[Arm]) -> Figure:
    """A plate as a figure with its legend; the title is the caller's to say."""
    figure = canvas.sheet(WIDTH, plate.height + legend_height(arms, WIDTH))
    plate.draw(figure)
    legend(figure, arms, WIDTH, bars=plate.bars)
    return figure


def _alone(plate: Plate | None, arms: Sequence[Arm]) -> Figure | None:
    return None if plate is None else alone(plate, arms)
