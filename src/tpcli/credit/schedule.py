"""When credit moves: curves over training progress, and the one function that evaluates them.

A curve maps progress p in [0, 1] to what is left of ``way``: all of it at p = 0, nothing at p = 1.
``value`` turns step, horizon and window into progress, and what is left into a value. Plain Python
floats (double precision) throughout, in the reference's order of operations: ``int(L * m)`` jumps
where a product is whole, so even the last bit counts.
"""

import math
from collections.abc import Callable

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


def _logistic(p: float) -> float:
    return 1.0 / (1.0 + math.exp(8.0 * (p - 0.5)))


CURVES: dict[CurveName, Callable[[float, float], float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "gamma": gamma_curve,
}


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
) -> float:
    """The scheduled value at ``step``: final + curve(p, initial - final).

    The gamma curve is the paper's ``(initial * (1 - p)) ** gamma``: it needs final = 0 and starts
    at ``initial ** gamma``. A constant stays at ``initial`` and has no window.

    Example:
        >>> value(8, 20)  # S0 = 0, S1 = 16, p = 0.5
        0.495

    Raises:
        ValueError: an empty window; or gamma with final != 0 or initial outside [0, 1].

    Ref: https://arxiv.org/abs/2605.25381
    """
    if curve == "constant":
        return initial
    p = progress(step, horizon, start=start, end=end)
    if curve == "gamma":
        if final != 0 or not 0 <= initial <= 1:
            raise ValueError("the gamma curve needs final = 0 and initial in [0, 1]")
        return gamma_curve(p, initial, gamma)
    return final + CURVES[curve](p, initial - final)
