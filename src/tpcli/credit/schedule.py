"""When credit moves: curves over training progress, and the one function that evaluates them.

A curve maps progress p in [0, 1] to what is left of ``way``: all of it at p = 0, nothing at p = 1.
``value`` turns step, horizon and window into progress, and what is left into a value. Plain Python
floats (double precision) throughout, in the reference's order of operations: ``int(L * m)`` jumps
where a product is whole, so even the last bit counts.

The adaptive curve has no formula in p. It is a loop: each step's measurement goes through
``smooth`` and ``adapt``, and what they move, a share of the way, is state that a run has to keep.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from tpcli.names import CurveName


def constant(p: float, way: float = 1.0) -> float:
    """No move at all: the static form of an allocation."""
    return way


def linear(p: float, way: float = 1.0) -> float:
    """Even fall, slope -way."""
    return way * (1.0 - p)


def cosine(p: float, way: float = 1.0) -> float:
    """Half-cosine fall: flat at both ends, steepest (slope -way * pi / 2) at p = 0.5."""
    return way * 0.5 * (1.0 + math.cos(math.pi * p))


def sigmoid(p: float, way: float = 1.0) -> float:
    """Logistic fall s(p) = 1 / (1 + exp(8 (p - 0.5))), rescaled to run from way to 0."""
    low, high = _logistic(1.0), _logistic(0.0)
    return way * (_logistic(p) - low) / (high - low)


def gamma_curve(p: float, way: float = 1.0, exponent: float = 2.0) -> float:
    """(way (1 - p)) ** exponent: the paper's gamma curve, which starts at way ** exponent."""
    return float((way * (1.0 - p)) ** exponent)


def exponential(p: float, way: float = 1.0, rate: float = 5.0) -> float:
    """way (exp(-rate p) - exp(-rate)) / (1 - exp(-rate)): fast at first, ends at exactly 0.

    Raises:
        ValueError: rate <= 0.

    Example:
        >>> round(exponential(0.5), 4)  # 1 / (1 + exp(2.5))
        0.0759
    """
    if rate <= 0:
        raise ValueError(f"the exponential curve needs rate > 0, not {rate:g}")
    # expm1: a small rate is the line 1 - p, where the plain difference is 0 / 0.
    return way * (math.exp(-rate * p) * math.expm1(rate * (p - 1.0)) / math.expm1(-rate))


def stairs(p: float, way: float = 1.0, drops: int = 4) -> float:
    """way (1 - floor(p n) / n): n equal drops, at p = 1/n, 2/n, ..., 1; n + 1 levels.

    Raises:
        ValueError: drops < 1.

    Example:
        >>> [stairs(p) for p in (0.0, 0.24, 0.25, 0.99, 1.0)]
        [1.0, 1.0, 0.75, 0.25, 0.0]
    """
    if drops < 1:
        raise ValueError(f"stairs need at least one drop, not {drops}")
    # p comes from a division: 0.29 * 100 is 28.999999999999996, and means 29.
    taken = math.floor(p * drops + 1e-9)
    return way * ((drops - taken) / drops)


def piecewise(p: float, points: Sequence[tuple[float, float]]) -> float:
    """Straight lines through ``points``: (progress, value) pairs, values as they are.

    Raises:
        ValueError: fewer than two points, or progress that does not rise from 0 to 1.

    Example:
        >>> piecewise(0.75, [(0.0, 1.0), (0.5, 0.2), (1.0, 0.0)])
        0.1
    """
    rising = all(a < b for (a, _), (b, _) in pairwise(points))
    if len(points) < 2 or points[0][0] != 0 or points[-1][0] != 1 or not rising:
        raise ValueError("points need a progress that rises from 0 to 1, two points at least")
    for (p0, value0), (p1, value1) in pairwise(points):
        if p < p1:
            return value0 + (value1 - value0) * ((p - p0) / (p1 - p0))
    return points[-1][1]


def adaptive(share: float, way: float = 1.0) -> float:
    """way * share, for the share in [0, 1] that ``adapt`` moves; it stands in for progress."""
    return way * share


def _logistic(p: float) -> float:
    return 1.0 / (1.0 + math.exp(8.0 * (p - 0.5)))


CURVES: dict[CurveName, Callable[..., float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "gamma": gamma_curve,
    "exponential": exponential,
    "stairs": stairs,
    "piecewise": piecewise,
    "adaptive": adaptive,
}


def smooth(previous: float | None, measured: float, *, decay: float) -> float:
    """Exponential moving average: decay * previous + (1 - decay) * measured.

    Args:
        previous: the last average; None before the first measurement, which is then taken whole.
        decay: in [0, 1); 0 forgets at once, 0.9 remembers about 10 steps.

    Raises:
        ValueError: decay outside [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay ({decay:g}) must lie in [0, 1)")
    return measured if previous is None else decay * previous + (1.0 - decay) * measured


def adapt(
    share: float,
    smoothed: float,
    *,
    target: float,
    gain: float = 0.1,
    max_change: float = 0.02,
) -> float:
    """One step of the closed loop: share - clip(gain * e, -max_change, max_change), in [0, 1].

    e = (smoothed - target) / target is the relative error. Above its target the signal can afford
    the move: the share falls and the value goes towards ``final`` (a credited window opens). Below
    it the share rises again, towards ``initial``; at the target it stands still.

    A step moves the share by ``max_change`` at most, so from one end to the other it takes at least
    1 / max_change steps, whatever is measured: 50 by default. With the default gain that speed is
    reached at an error of 20% of the target.

    Args:
        share: in [0, 1]; 1 before the first step.
        smoothed: the measured entropy (nats) or accuracy, averaged by ``smooth``.
        target: what it is held against, in the same unit; > 0, for the error is relative to it.

    Raises:
        ValueError: target, gain or max_change <= 0.

    Example:
        >>> adapt(1.0, 0.55, target=0.5, max_change=0.25)  # 10% above: 1 - 0.1 * 0.1
        0.99
        >>> adapt(0.5, 5.0, target=0.5, max_change=0.25)  # far above: as fast as allowed
        0.25
    """
    if min(target, gain, max_change) <= 0:
        raise ValueError("adapt needs target > 0, gain > 0 and max_change > 0")
    change = gain * (smoothed - target) / target
    return min(max(share - min(max(change, -max_change), max_change), 0.0), 1.0)


def window(horizon: int, *, start: float, end: float) -> tuple[int, int]:
    """First and last step of the move: (int(horizon * start), int(horizon * end))."""
    return int(horizon * start), int(horizon * end)


def progress(step: int, horizon: int, *, start: float, end: float) -> float:
    """Progress p = clip((step - S0) / (S1 - S0), 0, 1) through the window [S0, S1].

    Args:
        step: from 1; 0 stands for "before training".
        horizon: T, the total number of steps; S0 = int(T * start), S1 = int(T * end).

    Raises:
        ValueError: the window holds no whole step (S1 <= S0).

    Ref: https://arxiv.org/abs/2605.25381
    """
    first, last = window(horizon, start=start, end=end)
    if last <= first:
        raise ValueError(f"the window {start:g} to {end:g} of {horizon} steps holds no whole step")
    return min(max((step - first) / (last - first), 0.0), 1.0)


def value(
    step: int,
    horizon: int,
    *,
    curve: CurveName = "linear",
    initial: float = 0.99,
    final: float = 0.0,
    start: float = 0.0,
    end: float = 0.8,
    gamma: float = 2.0,
    rate: float = 5.0,
    stairs: int = 4,
    points: Sequence[tuple[float, float]] = (),
    reverse: bool = False,
    share: float | None = None,
) -> float:
    """The scheduled value at ``step``: final + curve(p, initial - final).

    The gamma curve is the paper's ``(initial * (1 - p)) ** gamma``: it needs final = 0 and starts
    at ``initial ** gamma``. A piecewise curve has its values in ``points`` and reads neither
    ``initial`` nor ``final``. A constant stays at ``initial`` and has no window. Nor has adaptive
    here: who moves its share keeps it still outside the window.

    Args:
        gamma: exponent of the gamma curve.
        rate: of the exponential curve.
        stairs: number of drops of the stairs curve.
        points: (progress, value) of the piecewise curve.
        reverse: run the curve backwards in time, curve(1 - p): from ``final`` to ``initial``. A
            reversed linear magnitude .99 -> 0 credits every token at first and narrows to .99.
        share: state of the adaptive curve, in [0, 1] (see ``adapt``).

    Example:
        >>> value(8, 20)  # S0 = 0, S1 = 16, p = 0.5
        0.495
        >>> value(4, 20, reverse=True)  # 0.99 * 0.25
        0.2475

    Raises:
        ValueError: an empty window; gamma with final != 0 or initial outside [0, 1]; adaptive
            without a share or in reverse; or a curve's own parameter out of its range.

    Ref: https://arxiv.org/abs/2605.25381
    """
    if curve == "constant":
        return initial
    if curve == "adaptive":
        if share is None or not 0 <= share <= 1 or reverse:
            raise ValueError("the adaptive curve needs its share, in [0, 1], and has no reverse")
        return final + adaptive(share, initial - final)
    p = progress(step, horizon, start=start, end=end)
    if reverse:
        p = 1.0 - p
    if curve == "piecewise":
        return piecewise(p, points)
    if curve == "gamma":
        if final != 0 or not 0 <= initial <= 1:
            raise ValueError("the gamma curve needs final = 0 and initial in [0, 1]")
        return gamma_curve(p, initial, gamma)
    own = {"exponential": (rate,), "stairs": (stairs,)}.get(curve, ())
    return final + CURVES[curve](p, initial - final, *own)
