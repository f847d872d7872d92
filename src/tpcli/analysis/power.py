"""How many seeds a difference needs: the power of a paired t test. Pure."""

from __future__ import annotations

import math

ALPHA, POWER = 0.05, 0.8
MOST_SEEDS = 10_000


def power(seeds: int, difference: float, sd: float, *, alpha: float = ALPHA) -> float:
    """Probability that a two-sided paired t test over ``seeds`` pairs finds the difference.

    Under normal differences of mean d and standard deviation s the statistic is noncentral t with
    n - 1 degrees of freedom and noncentrality ``sqrt(n) * d / s``; its square, noncentral F.

    Args:
        seeds: n, at least 2.
        difference: d, other than 0.
        sd: s, of the paired differences; above 0.
        alpha: of the test.

    Raises:
        ValueError: an argument outside its range.
    """
    from scipy import stats

    if seeds < 2 or difference == 0 or sd <= 0:
        raise ValueError("power needs two seeds, a difference and a spread")
    critical = stats.t.ppf(1 - alpha / 2, seeds - 1)
    shift = math.sqrt(seeds) * difference / sd
    return float(stats.ncf.sf(critical**2, 1, seeds - 1, shift**2))


def seeds_needed(difference: float, sd: float, *, alpha: float = ALPHA) -> int | None:
    """The fewest seeds at which ``power`` reaches .8; None above 10,000.

    With 30 seeds and d = s / 2 the power is .75: ``seeds_needed(.5, 1.) == 34``, the textbook's
    figure for a medium effect.
    """
    low, high = 1, 2
    while power(high, difference, sd, alpha=alpha) < POWER:
        low, high = high, 2 * high
        if low > MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        enough = power(middle, difference, sd, alpha=alpha) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return high


def detectable(seeds: int, sd: float, *, alpha: float = ALPHA) -> float:
    """The difference that ``seeds`` pairs find with probability .8."""
    low, high = 0.0, sd
    while power(seeds, high, sd, alpha=alpha) < POWER:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        enough = power(seeds, middle, sd, alpha=alpha) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return high
