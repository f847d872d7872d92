"""Arms side by side: their values by seed, paired differences against the first, mean curves.

Pure. The tests of the pairs are handed in (``Statistics``), since ``bench``, which has them, and
``analysis`` do not know each other. What cannot be said, with too few seeds in common, is said in
words in ``Versus.says``, and its numbers are None.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Protocol

import numpy as np

from tpcli.analysis.arms import SHORT, AlignName, Arm, Trace, at_end, at_step, best, course, key_of
from tpcli.analysis.canvas import number
from tpcli.analysis.differences import Difference, differences, doubts, keys_of
from tpcli.errors import UsageError

RISING = ("reward/mean", "eval/sampled", "eval/greedy")
"""Metrics of which more is better, so that their best value means something."""
ALPHA = 0.05
FLIPS = 2**16
"""Ways to flip the signs of the pairs that are all tried; of more, so many are drawn at random."""
NOISE = 1e-12
"""Below this share of the values' size, a difference is the rounding of floats."""
END, BEST = "end", "best"


class Paired(Protocol):
    """What a test of pairs says; ``tpcli.bench.stats.Paired`` does."""

    @property
    def difference(self) -> float:
        """Mean of new - old."""

    @property
    def low(self) -> float | None:
        """Lower end of the 95% t interval."""

    @property
    def high(self) -> float | None:
        """Upper end of the 95% t interval."""

    @property
    def p_t(self) -> float | None:
        """Two-sided p of the paired t test."""

    @property
    def p_sign_flip(self) -> float:
        """Two-sided p of the exact sign-flip test."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """The functions that judge pairs: ``paired`` and ``holm`` of ``tpcli.bench.stats``."""

    paired: Callable[[Sequence[float], Sequence[float]], Paired]
    holm: Callable[[Sequence[float | None]], list[float | None]]


@dataclass(frozen=True, slots=True)
class Cell:
    """One arm's values of a metric.

    Attributes:
        values: by seed, of the runs that have one.
        mean, sd: over seeds; sd divides by n - 1. None where there is no value, or one for sd.
    """

    arm: str
    values: Mapping[int, float]
    mean: float | None
    sd: float | None

    @property
    def n(self) -> int:
        """Seeds with a value."""
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Versus:
    """An arm against the first one, pair by pair over the seeds that both have.

    Attributes:
        pairs: arm's value minus the first arm's, by seed.
        left_out: seeds that only one of the two has a value for.
        difference: mean of ``pairs``; None without any.
        low, high, p_t: 95% t interval and p of the paired t test; None below two pairs, and where
            all differences are equal.
        p: of the sign-flip test, exact up to 16 pairs; None below two pairs.
        p_holm: ``p`` corrected over the arms of this row, where more than one is compared.
        smallest_p: the smallest ``p`` that so many pairs can reach, 2 / 2^n up to 16 of them; None
            below two.
        more: further seeds with which .05 could be reached.
        says: what cannot be said of the pairs, in words; "" where all can.
    """

    arm: str
    pairs: Mapping[int, float]
    left_out: tuple[int, ...]
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p_t: float | None = None
    p: float | None = None
    p_holm: float | None = None
    smallest_p: float | None = None
    more: int = 0
    says: str = ""

    @property
    def up(self) -> int:
        """Seeds whose value rose."""
        return sum(value > 0 for value in self.pairs.values())

    @property
    def marks(self) -> str:
        """A mark a seed: ▲ rose, ▼ fell, · equal; rises first."""
        signs = [(value > 0) - (value < 0) for value in self.pairs.values()]
        return "".join("·▲▼"[sign] for sign in sorted(signs, reverse=True))


@dataclass(frozen=True, slots=True)
class Row:
    """One metric at one moment, for every arm.

    Attributes:
        metric: as asked for; ``key`` is its key in metrics.jsonl, or the benchmark.
        when: "end", "best" (the largest of many noisy values: optimistic) or "step N".
        cells: one an arm.
        versus: one an arm but the first.
    """

    metric: str
    key: str
    when: str
    cells: tuple[Cell, ...]
    versus: tuple[Versus, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that is to be said of two arms or more; the first is what the others stand against.

    Attributes:
        metrics: as asked for, in order; those that do not compare are left out.
        recipe, origin: what differs of the recipe (the seed left out) and of where runs come from.
        equal: keys of the recipe that do not differ.
        warnings: what makes the comparison less than fair, in sentences.
    """

    arms: tuple[Arm, ...]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    recipe: tuple[Difference, ...]
    equal: int
    origin: tuple[Difference, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Band:
    """A mean curve over seeds and its spread, mean - sd to mean + sd; a line for one seed."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def compare(
    arms: Sequence[Arm],
    tests: Statistics,
    *,
    metrics: Sequence[str] = (),
    step: int | None = None,
    notes: Sequence[str] = (),
) -> Comparison:
    """Put arms side by side.

    Args:
        arms: at least two; each has a run, and at most one a seed.
        metrics: keys, short names or benchmarks; none: the usual ones (``usual``).
        step: a moment to look at besides the end.
        notes: warnings that the caller has already.

    Raises:
        UsageError: a metric that no run has, or a step that no run has reached.
    """
    known = available(arms)
    asked = tuple(dict.fromkeys(metrics)) or usual(arms)
    for metric in asked:
        check_known(known, metric)
    last = max((last_step(run) for arm in arms for run in arm.runs), default=0)
    if step is not None and step > last:
        raise UsageError(f"--at {step}: no run has reached it", hint=f"the last step is {last}")
    kept = tuple(metric for metric in asked if incomparable(arms, metric) is None)
    moments = [END, BEST, *([] if step is None else [f"step {step}"])]
    rows = [row_of(arms, metric, when, tests) for metric in kept for when in moments]
    recipe = differences(arms, "settings")
    benches = [found for metric in asked if (found := incomparable(arms, metric))]
    return Comparison(
        arms=tuple(arms),
        metrics=kept,
        rows=tuple(row for row in rows if any(cell.n for cell in row.cells)),
        recipe=recipe,
        equal=len(keys_of(arms, "settings")) - len(recipe),
        origin=differences(arms, "origin"),
        warnings=(*notes, *benches, *doubts(arms, kept)),
    )


def usual(arms: Sequence[Arm]) -> tuple[str, ...]:
    """Held-out accuracy where it was measured, reward, entropy, and the benchmarks all share."""
    known = available(arms)
    shared = [
        bench
        for bench in dict.fromkeys(b for arm in arms for run in arm.runs for b in run.scores)
        if all(any(bench in run.scores for run in arm.runs) for arm in arms)
    ]
    wanted = ("sampled", "reward", "entropy")
    return tuple([name for name in wanted if name in known] + shared)


def available(arms: Sequence[Arm]) -> list[str]:
    """Every metric that some run has a number for: benchmarks, short names, keys."""
    runs = [run for arm in arms for run in arm.runs]
    benches = dict.fromkeys(bench for run in runs for bench in run.scores)
    keys = {
        key
        for run in runs
        for line in run.metrics
        for key, value in line.items()
        if number(value) is not None and key not in ("step", "time")
    }
    return [*benches, *(name for name, key in SHORT.items() if key in keys), *sorted(keys)]


def check_known(known: Sequence[str], metric: str) -> None:
    """UsageError, with the nearest names, for a metric that is not ``known``."""
    if metric in known:
        return
    near = difflib.get_close_matches(metric, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"for instance {', '.join(known[:8])}"
    raise UsageError(f"no run has a metric {metric or '(empty)'}", hint=hint if known else "")


def incomparable(arms: Sequence[Arm], metric: str) -> str | None:
    """Why scores on a benchmark do not compare: asked or sampled in different ways."""
    scores = [run.scores[metric] for arm in arms for run in arm.runs if metric in run.scores]
    if len({score.settings for score in scores}) <= 1:
        return None
    return f"{metric} is left out: the runs were asked or sampled in different ways"


def last_step(run: Trace) -> int:
    """The last step with metrics; 0 before the first."""
    return int(run.metrics[-1]["step"]) if run.metrics else 0


def row_of(arms: Sequence[Arm], metric: str, when: str, tests: Statistics) -> Row:
    """One metric at one moment: "end", "best" or "step N"; without a value, cells are empty."""
    cells = tuple(_cell(arm, metric, when) for arm in arms)
    against = [_versus(cell, cells[0], tests) for cell in cells[1:]]
    if len(against) > 1:
        corrected = tests.holm([one.p for one in against])
        against = [
            replace(one, p_holm=p_holm) for one, p_holm in zip(against, corrected, strict=True)
        ]
    return Row(metric, key_of(metric), when, cells, tuple(against))


def _cell(arm: Arm, metric: str, when: str) -> Cell:
    found = {run.seed: _value(run, metric, when) for run in arm.runs}
    values = {seed: value for seed, value in sorted(found.items()) if value is not None}
    mean = fmean(values.values()) if values else None
    sd = stdev(values.values()) if len(values) > 1 else None
    return Cell(arm.label, values, mean, sd)


def _value(run: Trace, metric: str, when: str) -> float | None:
    if when == END:
        return at_end(run, metric)
    if when == BEST:
        found = best(run, metric) if key_of(metric) in RISING else None
        return None if found is None else found[0]
    step = int(when.removeprefix("step "))
    return at_step(run, metric, step) if last_step(run) >= step else None


def _versus(cell: Cell, base: Cell, tests: Statistics) -> Versus:
    seeds = [seed for seed in cell.values if seed in base.values]
    size = max((abs(c.values[seed]) for c in (cell, base) for seed in seeds), default=0.0)
    pairs = {seed: _clean(cell.values[seed] - base.values[seed], size) for seed in seeds}
    left_out = tuple(sorted({*cell.values} ^ {*base.values}))
    bare = Versus(cell.arm, pairs, left_out)
    if not pairs:
        return replace(bare, says="no seed in common: no paired difference")
    if len(pairs) == 1:
        says = "one seed in common: a difference, but no interval and no test"
        return replace(bare, difference=pairs[seeds[0]], says=says)
    found = tests.paired([cell.values[s] for s in seeds], [base.values[s] for s in seeds])
    smallest = 2 / min(2 ** len(pairs), FLIPS + 1)
    return replace(
        bare,
        difference=_clean(found.difference, size),
        low=found.low,
        high=found.high,
        p_t=found.p_t,
        p=found.p_sign_flip,
        smallest_p=smallest,
        more=max(0, _seeds_for(ALPHA) - len(pairs)),
        says="all differences are equal: no interval and no t test" if found.low is None else "",
    )


def _clean(difference: float, size: float) -> float:
    """0 for what is only the rounding of floats of ``size``."""
    return 0.0 if abs(difference) <= NOISE * size else difference


def _seeds_for(alpha: float) -> int:
    """The fewest seeds whose sign-flip test can reach ``alpha``: six for .05 (2 / 2^6 = .031)."""
    return math.ceil(math.log2(2 / alpha))


def mean_course(arm: Arm, metric: str, align: AlignName, points: int = 200) -> Band:
    """The mean curve of an arm over its seeds, and its spread.

    Seeds are interpolated linearly onto one grid, inside the range that all of them cover: their
    own places together where these are few, else ``points`` equal distances. Values of one seed at
    the same place (a magnitude that stands still) are averaged first. A run without the metric is
    left out; without any, or without a common range, the band is empty. x increases.
    """
    curves = [curve for run in arm.runs if (curve := _curve(run, metric, align))[0]]
    if not curves:
        return Band([], [], [], [])
    low, high = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if low > high:
        return Band([], [], [], [])
    places = sorted({place for x, _ in curves for place in x if low <= place <= high})
    grid = np.array(places) if len(places) <= points else np.linspace(low, high, points)
    value_SP = np.array([np.interp(grid, x, y) for x, y in curves])
    mean = value_SP.mean(0)
    sd = value_SP.std(0, ddof=1) if len(curves) > 1 else np.zeros_like(mean)
    return Band(grid.tolist(), mean.tolist(), (mean - sd).tolist(), (mean + sd).tolist())


def _curve(run: Trace, metric: str, align: AlignName) -> tuple[list[float], list[float]]:
    """The run's curve with x increasing, each place once."""
    at: dict[float, list[float]] = {}
    for x, y in zip(*course(run, metric, align), strict=True):
        at.setdefault(x, []).append(y)
    places = sorted(at)
    return places, [fmean(at[place]) for place in places]
