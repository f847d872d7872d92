"""What the schedules of a recipe will do, step by step, before training; and a figure of it.

No torch, and matplotlib only where a figure is made, without pyplot: nothing global is touched.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tpcli.analysis.canvas import BLUE, GREEN, GREY, ORANGE, sheet
from tpcli.analysis.schedules import (
    adaptive,
    corners,
    credited_stretch,
    focus,
    lr_at,
    lr_window,
    magnitudes_at,
    moving,
    scalar_at,
    tokens_credited,
    window,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from tpcli.names import AllocationName, SignalName
    from tpcli.recipe.schema import Recipe

FORMATS = (".png", ".svg")
PERCENTILES = 100
LR = "optim.lr"
SELECTS: frozenset[AllocationName] = frozenset(
    {"trajectory_percentile", "forking_tokens", "random_tokens"}
)
"""Allocations that leave tokens out; the others weigh or shape what is there."""
UNITS: dict[SignalName, str] = {"entropy": " nats", "accuracy": ""}
CONTEXT = "#EEF1F4"
STYLES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), ("#CC79A7", ":"))


@dataclass(frozen=True, slots=True)
class Course:
    """One number of the recipe over training.

    Attributes:
        key: dotted.
        allocations: those whose magnitude it is; none for any other number.
        low, high: its values at steps 1, 2, ..., the last. They differ only where the schedule
            follows a measurement: then they are the bounds that ``max_change`` sets.
        window: first and last step of the move; None where the value stands still.
        rise: steps of the learning rate's warm-up, which is on top of the move; else 0.
        corners: steps at which the value changes its ways.
        follows: "entropy, to hold 0.5 nats" of an adaptive schedule, else "".
    """

    key: str
    allocations: tuple[AllocationName, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    window: tuple[int, int] | None
    follows: str
    rise: int
    corners: tuple[int, ...]

    @property
    def moves(self) -> bool:
        """Whether the value is another one at some step."""
        return self.window is not None or self.rise > 1

    @property
    def name(self) -> str:
        """The key in a word."""
        if self.key == "credit.schedule":
            return "magnitude"
        return self.key.removesuffix(".magnitude").rpartition(".")[2]


def courses(recipe: Recipe) -> list[Course]:
    """The allocations' magnitudes, static ones too, and every other number that moves."""
    followed = recipe.credit.magnitudes()
    keys = dict.fromkeys([*followed.values(), *moving(recipe)])
    if lr_window(recipe) or recipe.optim.warmup_steps > 1:
        keys[LR] = None
    return [
        _course(recipe, key, tuple(name for name, its in followed.items() if its == key))
        for key in keys
    ]


def _course(recipe: Recipe, key: str, allocations: tuple[AllocationName, ...]) -> Course:
    ends = [_ends(recipe, key, step) for step in range(1, recipe.train.steps + 1)]
    rule = adaptive(recipe, key)
    follows = f"{rule.signal}, to hold {rule.target:g}{UNITS[rule.signal]}" if rule else ""
    low, high = (tuple(pick(pair) for pair in ends) for pick in (min, max))
    moves, turns = window(recipe, key), corners(recipe, key)
    rise = recipe.optim.warmup_steps if key == LR else 0
    if key == LR:
        moves = lr_window(recipe)
        turns = sorted({*turns, *(moves or ()), rise} - {0})
    return Course(key, allocations, low, high, moves, follows, rise, tuple(turns))


def _ends(recipe: Recipe, key: str, step: int) -> tuple[float, float]:
    """The values between which a number lies at ``step``, whatever is measured before it."""
    rule, moves = adaptive(recipe, key), window(recipe, key)
    furthest = 1.0
    if rule and moves:
        # The share leaves 1 after a step of the window, by max_change at most.
        taken = min(step, moves[1]) - max(moves[0], 1)
        furthest = max(1.0 - rule.max_change * max(taken, 0), 0.0)
    if key == LR:
        return lr_at(recipe, step, furthest), lr_at(recipe, step, 1.0)
    return scalar_at(recipe, key, step, furthest), scalar_at(recipe, key, step, 1.0)


def credited(recipe: Recipe) -> list[tuple[float, float]]:
    """Least and most share of a response's tokens that carry credit, at steps 1, 2, ..., the last.

    Of a response of [rollout].max_new_tokens. The two differ only where a magnitude follows a
    measurement.
    """
    found, length = [], recipe.rollout.max_new_tokens
    for step in range(1, recipe.train.steps + 1):
        keys = recipe.credit.magnitudes()
        ends = {name: _ends(recipe, key, step) for name, key in keys.items()}
        # Whatever selects, selects less at a larger magnitude.
        least, most = ({n: pick(pair) for n, pair in ends.items()} for pick in (max, min))
        share, larger = (tokens_credited(recipe, m, length) / length for m in (least, most))
        found.append((share, larger))
    return found


def gives(recipe: Recipe) -> bool:
    """Whether the only magnitude is the share of a worked solution that a response continues."""
    return recipe.credit.allocations == ("expert_prefix",)


def placed(recipe: Recipe) -> list[list[float]] | None:
    """For steps 1, 2, ..., the last: the share of each percentile's tokens that carry credit.

    None where every token does, and where it is not known ahead: forking_tokens waits for the
    policy's entropy (shuffled forgets it again), an adaptive magnitude for a measurement.
    """
    names = recipe.credit.allocations
    keys = recipe.credit.magnitudes()
    waits = "forking_tokens" in names and "shuffled" not in names
    unknown = any(adaptive(recipe, keys[name]) for name in names if name in SELECTS)
    if waits or unknown or SELECTS.isdisjoint(names):
        return None
    return [_placed(recipe, step) for step in range(1, recipe.train.steps + 1)]


def _placed(recipe: Recipe, step: int) -> list[float]:
    magnitudes = magnitudes_at(recipe, step)
    if "shuffled" in recipe.credit.allocations:
        length = recipe.rollout.max_new_tokens
        return [tokens_credited(recipe, magnitudes, length) / length] * PERCENTILES
    first, end, share = 0, PERCENTILES, 1.0
    for name in recipe.credit.allocations:
        if name == "trajectory_percentile":
            first, end = credited_stretch(PERCENTILES, magnitudes[name], focus(recipe))
        elif name == "random_tokens":
            share = max(1.0 - magnitudes[name], 1 / PERCENTILES)
    return [share if first <= place < end else 0.0 for place in range(PERCENTILES)]


# The figure


def draw(recipe: Recipe, path: Path, *, title: str) -> None:
    """Draw the schedules into ``path``, a .png or .svg, which appears whole or not at all.

    The same recipe gives the same bytes.
    """
    import matplotlib as mpl

    form = path.suffix.lower()
    assert form in FORMATS
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    # Without a salt an SVG's ids, and without this its date, differ each time.
    with mpl.rc_context({"svg.hashsalt": "tpcli"}):
        metadata = {"Date": None} if form == ".svg" else None
        figure(recipe, title=title).savefig(aside, format=form[1:], dpi=150, metadata=metadata)
    aside.replace(path)


def figure(recipe: Recipe, *, title: str) -> Figure:
    """Where credit goes, the magnitudes, and a panel for each other number that moves."""
    found = courses(recipe)
    magnitudes = [course for course in found if course.allocations]
    others = [course for course in found if not course.allocations]
    # Where only a solution is given, every token learns: no picture of that.
    panels: list[Callable[[Axes], None]] = [
        *([] if gives(recipe) else [lambda axis: _where(axis, recipe)]),
        lambda axis: _magnitudes(axis, magnitudes, recipe),
        *(lambda axis, course=course: _other(axis, course) for course in others),
    ]
    columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    rows = -(-len(panels) // columns)
    drawn = sheet(5.4 * columns, 0.6 + 3.6 * rows)
    drawn.suptitle(title, fontsize="large")
    axes = drawn.subplots(rows, columns, squeeze=False).flatten().tolist()
    for axis, panel in zip(axes, panels, strict=False):
        panel(axis)
        _tidy(axis, recipe.train.steps)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    return drawn


def _where(axis: Axes, recipe: Recipe) -> None:
    """The heat map percentile x step where it is known ahead, else the share alone."""
    grid, steps = placed(recipe), range(1, recipe.train.steps + 1)
    if grid is None:
        shares = credited(recipe)
        _span(axis, steps, [a for a, _ in shares], [b for _, b in shares], BLUE, "-", "credited")
        axis.set_title("Tokens that carry credit")
        axis.set_ylabel(f"share of a response of {recipe.rollout.max_new_tokens} tokens")
        axis.set_ylim(-0.02, 1.02)
        return
    from matplotlib.colors import LinearSegmentedColormap

    image = axis.imshow(
        list(zip(*grid, strict=True)),
        cmap=LinearSegmentedColormap.from_list("credit", [CONTEXT, BLUE]),
        vmin=0.0,
        vmax=1.0,
        extent=(0.5, len(grid) + 0.5, 0, 100),
        origin="lower",
        aspect="auto",
        interpolation="nearest",
    )
    axis.set_title("Which part of a response carries credit (blue)")
    axis.set_ylabel("trajectory percentile (0: first token)")
    axis.set_yticks([0, 25, 50, 75, 100])
    if any(0.0 < value < 1.0 for column in grid for value in column):
        axis.figure.colorbar(image, ax=axis, pad=0.02, label="share of tokens with credit")


def _magnitudes(axis: Axes, found: Sequence[Course], recipe: Recipe) -> None:
    steps, mixed = recipe.train.steps, "expert_prefix" in recipe.credit.allocations
    title = "Magnitude" if mixed else "Magnitude (0: every token alike)"
    axis.set_title("Share of the solution given" if gives(recipe) else title)
    axis.set_ylim(-0.02, 1.02)
    for course, (colour, style) in zip(found, STYLES * 2, strict=False):
        names = " + ".join(course.allocations)
        label = f"{names} (follows {course.follows})" if course.follows else names
        _span(axis, range(1, steps + 1), course.low, course.high, colour, style, label)
        _window(axis, course, steps, colour)
    if found:
        axis.legend(frameon=False, fontsize="small")
    else:
        axis.set_yticks([])
        axis.text(0.5, 0.5, "no magnitude", transform=axis.transAxes, ha="center", color=GREY)


def _other(axis: Axes, course: Course) -> None:
    axis.set_title(course.key)
    steps = range(1, len(course.low) + 1)
    label = f"follows {course.follows}" if course.follows else course.key
    _span(axis, steps, course.low, course.high, BLUE, "-", label)
    _window(axis, course, len(course.low), BLUE)
    if course.follows:
        axis.legend(frameon=False, fontsize="small")
    axis.margins(y=0.08)


def _span(
    axis: Axes,
    steps: Sequence[int],
    low: Sequence[float],
    high: Sequence[float],
    colour: str,
    style: str,
    label: str,
) -> None:
    """A line, or the band between the bounds of what follows a measurement."""
    if list(low) != list(high):
        fill = (colour, 0.18)
        axis.fill_between(steps, low, high, facecolor=fill, edgecolor=colour, lw=0.8, label=label)
        return
    few = len(steps) <= 30
    axis.plot(steps, low, style, color=colour, marker="o" if few else "", ms=3.5, label=label)


def _window(axis: Axes, course: Course, steps: int, colour: str) -> None:
    """Dotted lines where the move begins and ends, if training gets there."""
    for step in {*(course.window or ()), course.rise}:
        if 0 < step <= steps:
            axis.axvline(step, color=colour, lw=0.9, ls=(0, (1, 2)), zorder=0)


def _tidy(axis: Axes, steps: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel("step")
    axis.set_xlim(0.5, steps + 0.5)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not axis.images:
        axis.grid(alpha=0.3)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
