"""A recipe's schedules worked out ahead of training: values, windows, and how much learns when.

No torch: a dry run and a figure need no more than the recipe.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tpcli.credit import schedule
from tpcli.recipe.scalar import Schedule, moves

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tpcli.names import AllocationName, CurveName, FocusName
    from tpcli.recipe.schema import Recipe

FOCI: dict[FocusName, tuple[float, float]] = {
    "late": (1.0, 1.0),
    "early": (0.0, 0.0),
    "middle": (0.5, 0.5),
}
"""The stretches that the names of a focus stand for; tpcli.credit.allocation has the same."""


def scalar_at(recipe: Recipe, key: str, step: int, share: float = 1.0) -> float:
    """What a number or schedule of the recipe is at ``step``.

    Args:
        key: dotted, one of ``recipe.scalars()``.
        step: from 1; 0 stands for "before training".
        share: the state of an adaptive schedule, which nobody knows ahead; 1 is its start.
    """
    scalar = recipe.scalars()[key]
    if not isinstance(scalar, Schedule):
        return scalar
    return schedule.value(step, recipe.horizon, share=share, **scalar.course())


def window(recipe: Recipe, key: str) -> tuple[int, int] | None:
    """First and last step of a schedule's move; None where the value stands still."""
    scalar = recipe.scalars()[key]
    if not isinstance(scalar, Schedule) or not moves(scalar):
        return None
    return schedule.window(recipe.horizon, start=scalar.start, end=scalar.end)


def adaptive(recipe: Recipe, key: str) -> Schedule | None:
    """The schedule at ``key`` if it follows a measurement: its course is not known ahead."""
    scalar = recipe.scalars()[key]
    return scalar if isinstance(scalar, Schedule) and scalar.curve == "adaptive" else None


def lr_at(recipe: Recipe, step: int, share: float = 1.0) -> float:
    """The learning rate at ``step``: number or table, times the warm-up and [optim].schedule.

    As tpcli.optim.adamw.lr_at has it, which needs torch. 0 before training where it warms up.
    """
    optim, peak = recipe.optim, scalar_at(recipe, "optim.lr", step, share)
    rise = optim.warmup_steps
    if step <= rise:
        return peak * step / rise if rise else peak
    p = min((step - rise) / (recipe.horizon - rise), 1.0)
    return schedule.CURVES[optim.schedule](p, peak)


def lr_window(recipe: Recipe) -> tuple[int, int] | None:
    """First and last step of the learning rate's move, the warm-up apart."""
    if recipe.optim.schedule == "constant":
        return window(recipe, "optim.lr")
    return recipe.optim.warmup_steps, recipe.horizon


def corners(recipe: Recipe, key: str) -> list[int]:
    """Steps from 1 at which a schedule changes its ways: ends of the window, points, drops."""
    scalar, moves_in = recipe.scalars()[key], window(recipe, key)
    if not isinstance(scalar, Schedule) or not moves_in:
        return []
    found = set(moves_in)
    if scalar.curve == "piecewise":
        first, last = moves_in
        places = [1.0 - p if scalar.reverse else p for p, _ in scalar.points]
        # A point between two steps is past at the second.
        found |= {first + math.ceil(p * (last - first) - 1e-9) for p in places}
    if scalar.curve == "stairs":
        values = [scalar_at(recipe, key, step) for step in range(moves_in[1] + 2)]
        found |= {step for step in range(1, len(values)) if values[step] != values[step - 1]}
    return sorted(step for step in found if step >= 1)


def leading(recipe: Recipe) -> str | None:
    """The key of the first allocation's magnitude; None under uniform credit, which has none."""
    return next(iter(recipe.credit.magnitudes().values()), None)


def curve(recipe: Recipe, key: str) -> CurveName:
    """The shape of a scalar's move; a plain number is constant."""
    scalar = recipe.scalars()[key]
    return scalar.curve if isinstance(scalar, Schedule) else "constant"


def moving(recipe: Recipe) -> list[str]:
    """Keys, other than the magnitudes', of scalars that move with training."""
    keys = (key for key in recipe.scalars() if not key.startswith("credit."))
    return [key for key in keys if window(recipe, key)]


def magnitudes_at(recipe: Recipe, step: int, share: float = 1.0) -> dict[AllocationName, float]:
    """Each allocation's magnitude at ``step``."""
    keys = recipe.credit.magnitudes()
    return {name: scalar_at(recipe, key, step, share) for name, key in keys.items()}


def focus(recipe: Recipe) -> tuple[float, float]:
    """The stretch of the response that trajectory_percentile credits at magnitude 1."""
    written = recipe.credit.trajectory_percentile.focus
    return FOCI[written] if isinstance(written, str) else written


def credited_stretch(
    length: int, magnitude: float, focus: tuple[float, float] = (1.0, 1.0)
) -> tuple[int, int]:
    """Where trajectory_percentile's credit begins and ends in ``length`` tokens, as of a slice.

    Of L tokens the first int(L m a) and the last int(L m (1 - b)) are context, with focus (a, b);
    one token at least has credit.
    """
    first = min(int(length * (magnitude * focus[0])), length - 1)
    last = min(int(length * (magnitude * (1.0 - focus[1]))), length - first - 1)
    return first, length - last


def tokens_credited(recipe: Recipe, magnitudes: Mapping[AllocationName, float], length: int) -> int:
    """Tokens that learn of a response of ``length`` tokens, each allocation in its turn."""
    left = length
    for name in recipe.credit.allocations:
        if name in ("trajectory_percentile", "random_tokens"):
            first, end = credited_stretch(left, magnitudes[name], focus(recipe))
            left = end - first
        elif name == "forking_tokens":
            left = max(1, math.ceil(left * (1.0 - magnitudes[name])))
    return left
