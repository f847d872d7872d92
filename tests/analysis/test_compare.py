"""Values by seed, paired differences and mean curves of arms, against scipy and by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from scipy import stats as scipy_stats

from tpcli.analysis.arms import AlignName, Arm, Score, Trace
from tpcli.analysis.compare import (
    FLIPS,
    Comparison,
    Row,
    Statistics,
    Versus,
    available,
    compare,
    mean_course,
    row_of,
    usual,
)
from tpcli.bench.stats import holm, paired
from tpcli.errors import UsageError

TESTS = Statistics(paired, holm)


def trace(
    seed: int,
    lines: Sequence[Mapping[str, Any]] = (),
    *,
    name: str = "a",
    settings: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
    status: str = "finished",
    scores: Mapping[str, Score] | None = None,
) -> Trace:
    return Trace(
        id=f"{name}{seed}",
        name=f"{name}-s{seed}",
        seed=seed,
        status=status,
        steps=10,
        folder=Path(),
        settings={"train.seed": seed, **(settings or {})},
        origin=origin or {},
        metrics=lines,
        scores=scores or {},
    )


def arm(label: str, values: Mapping[int, float], key: str = "reward/mean") -> Arm:
    """A run a seed that recorded one value, at step 1."""
    runs = [trace(s, [{"step": 1, key: value}], name=label) for s, value in values.items()]
    return Arm(label, tuple(runs))


def against(new: Mapping[int, float], old: Mapping[int, float]) -> Versus:
    row = row_of([arm("old", old), arm("new", new)], "reward", "end", TESTS)
    return row.versus[0]


def scored(label: str, value: float, *, settings: str = "k", step: int = 10) -> Arm:
    one = Score("aime24", step, settings, 8, value, 0.1, 0.0, 1.0)
    return Arm(label, (trace(0, [{"step": 1, "entropy/all": 0.5}], scores={"aime24": one}),))


def test_by_hand() -> None:
    """Differences .1, .2, .3: mean .2, sd .1, se .1 / sqrt(3) = .057735.

    t = 3.4641 with 2 degrees of freedom; F(t) = 1/2 + t / (2 sqrt(2 + t^2)) gives
    1/2 + 3.4641 / (2 * 3.7417) = .96291, so p = 2 * .03709 = .07418. The 97.5% point is 4.302653,
    so the interval is .2 -+ .248414. Of 8 sign flips two reach |.6|: p = .25.
    """
    one = against({0: 0.5, 1: 0.7, 2: 0.9}, {0: 0.4, 1: 0.5, 2: 0.6})
    assert one.difference == pytest.approx(0.2)
    assert one.p_t == pytest.approx(0.07418, abs=1e-5)
    assert (one.low, one.high) == pytest.approx((-0.048414, 0.448414), abs=1e-6)
    assert one.p == one.smallest_p == 0.25
    assert (one.up, one.marks, one.more, one.says) == (3, "▲▲▲", 3, "")


def test_against_scipy() -> None:
    old = {0: 0.31, 1: 0.29, 2: 0.4, 3: 0.35, 4: 0.28}
    new = {4: 0.33, 0: 0.36, 1: 0.28, 3: 0.41, 2: 0.47}
    test = scipy_stats.ttest_rel([new[s] for s in range(5)], [old[s] for s in range(5)])
    one = against(new, old)
    assert one.p_t == pytest.approx(test.pvalue)
    assert (one.low, one.high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert (one.marks, one.up, one.more) == ("▲▲▲▲▼", 4, 1)
    assert one.smallest_p == 0.0625


def test_six_seeds_can_reach_a_twentieth() -> None:
    one = against({s: 0.5 + 0.01 * s for s in range(6)}, dict.fromkeys(range(6), 0.4))
    assert (one.p, one.smallest_p, one.more) == (0.03125, 0.03125, 0)


def test_no_seed_in_common_says_nothing() -> None:
    one = against({0: 0.5, 1: 0.6}, {2: 0.4})
    assert one.left_out == (0, 1, 2)
    assert (one.difference, one.low, one.p_t, one.p, one.smallest_p) == (None,) * 5
    assert one.says.startswith("no seed in common")


def test_one_seed_is_a_difference_without_a_test() -> None:
    one = against({0: 0.5, 1: 0.6}, {1: 0.4})
    assert one.difference == pytest.approx(0.2)
    assert (one.low, one.high, one.p_t, one.p, one.smallest_p) == (None,) * 5
    assert (one.left_out, one.up) == ((0,), 1)
    assert one.says.startswith("one seed in common")


def test_two_seeds_have_an_interval_and_a_p_of_a_half_at_least() -> None:
    one = against({0: 0.5, 1: 0.7}, {0: 0.4, 1: 0.4})
    assert one.low is not None
    assert one.high is not None
    assert one.low < 0.2 < one.high
    assert (one.p, one.smallest_p, one.more) == (0.5, 0.5, 4)


def test_equal_differences_have_no_interval_and_rounding_is_no_difference() -> None:
    """.1 + .2 is not .3 in floats, and that is nothing that a seed has gained."""
    one = against({0: 0.1 + 0.2, 1: 0.5}, {0: 0.3, 1: 0.5})
    assert (one.difference, one.up, one.marks) == (0.0, 0, "··")
    assert one.low is None
    assert "equal" in one.says
    assert one.smallest_p == 0.5


def test_holm_is_over_the_arms_of_a_row() -> None:
    """Exact p of .25 and .5 become 2 * .25 and max(.5, .5); of one arm there is nothing to do."""
    base, up = arm("a", dict.fromkeys(range(3), 0.1)), arm("b", {0: 0.2, 1: 0.3, 2: 0.4})
    mixed = arm("c", {0: 0.2, 1: 0.3, 2: 0.05})
    row = row_of([base, up, mixed], "reward", "end", TESTS)
    assert [one.p for one in row.versus] == [0.25, 0.5]
    assert [one.p_holm for one in row.versus] == [0.5, 0.5]
    assert row_of([base, up], "reward", "end", TESTS).versus[0].p_holm is None


def test_cells_have_mean_and_spread_over_seeds() -> None:
    """.4, .5, .6: mean .5, sd .1 with n - 1."""
    row = row_of([arm("a", {0: 0.4, 1: 0.5, 2: 0.6}), arm("b", {0: 0.4})], "reward", "end", TESTS)
    assert row.cells[0].mean == pytest.approx(0.5)
    assert row.cells[0].sd == pytest.approx(0.1)
    assert row.cells[0].n == 3
    assert (row.cells[1].mean, row.cells[1].sd, row.cells[1].n) == (0.4, None, 1)


def found(comparison: Comparison, metric: str, when: str) -> Row | None:
    rows = [row for row in comparison.rows if (row.metric, row.when) == (metric, when)]
    return rows[0] if rows else None


def pair(lines: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]]) -> list[Arm]:
    return [Arm("a", (trace(0, lines),)), Arm("b", (trace(0, other, name="b"),))]


def test_moments() -> None:
    """The end is the last tenth, the best the largest, a step the last value until then."""
    lines = [{"step": s, "reward/mean": v, "entropy/all": v} for s, v in ((1, 0.2), (5, 0.9))]
    lines.append({"step": 10, "reward/mean": 0.6, "entropy/all": 0.6})
    arms = pair(lines, [*lines[:2], {"step": 6, "reward/mean": 0.1}])
    comparison = compare(arms, TESTS, metrics=("reward", "entropy"), step=7)
    end, best, middle = (found(comparison, "reward", w) for w in ("end", "best", "step 7"))
    assert end
    assert best
    assert middle
    assert [cell.mean for cell in end.cells] == [0.6, 0.1]
    assert [cell.mean for cell in best.cells] == [0.9, 0.9]
    # The other run ended before step 7: its last value is not its value there.
    assert [cell.mean for cell in middle.cells] == [0.9, None]
    assert found(comparison, "entropy", "best") is None
    with pytest.raises(UsageError, match="no run has reached it"):
        compare(arms, TESTS, step=11)


def test_usual_metrics_and_unknown_ones() -> None:
    lines = [{"step": 1, "reward/mean": 0.5, "entropy/all": 0.2, "eval/sampled": 0.3, "x": None}]
    arms = pair(lines, lines)
    assert usual(arms) == ("sampled", "reward", "entropy")
    assert usual(pair([{"step": 1, "reward/mean": 0.5}], [])) == ("reward",)
    assert "x" not in available(arms)
    assert "step" not in available(arms)
    with pytest.raises(UsageError, match="no run has a metric rewad") as caught:
        compare(arms, TESTS, metrics=("rewad",))
    assert "did you mean reward" in caught.value.hint
    assert compare(arms, TESTS, metrics=("entropy", "entropy")).metrics == ("entropy",)


def test_benchmarks_compare_only_where_they_were_asked_alike() -> None:
    alike = compare([scored("a", 0.3), scored("b", 0.4)], TESTS)
    assert alike.metrics == ("entropy", "aime24")
    row = found(alike, "aime24", "end")
    assert row
    assert row.versus[0].difference == pytest.approx(0.1)
    apart = compare([scored("a", 0.3), scored("b", 0.4, settings="other")], TESTS)
    assert apart.metrics == ("entropy",)
    assert apart.warnings[0].startswith("aime24 is left out")
    assert "aime24" not in usual([scored("a", 0.3), arm("b", {0: 0.1})])


def test_checkpoints_of_different_steps_are_told() -> None:
    warnings = compare([scored("a", 0.3), scored("b", 0.4, step=8)], TESTS).warnings
    told = "aime24: the checkpoints are of different steps: a at step 10, b at step 8"
    assert told in warnings


def ramp(seed: int, slope: float, places: Sequence[int], *, share: float = 1.0) -> Trace:
    lines = [
        {
            "step": step,
            "reward/mean": slope * step,
            "credit/tokens": 10 * share,
            "schedule/magnitude": max(0.0, 1 - step / 4),
        }
        for step in places
    ]
    return trace(seed, lines)


def test_a_mean_curve_interpolates_inside_the_common_range() -> None:
    """Slopes 1 and 3 over steps 0, 4, 8 and 2, 6, 10: at 2, 4, 6, 8 the mean is twice the step.

    The values there are s and 3s, whose sd is sqrt(2) s.
    """
    arm = Arm("a", (ramp(0, 1.0, (0, 4, 8)), ramp(1, 3.0, (2, 6, 10))))
    band = mean_course(arm, "reward", "step")
    assert band.x == [2, 4, 6, 8]
    assert band.mean == pytest.approx([4, 8, 12, 16])
    assert band.low == pytest.approx([(2 - math.sqrt(2)) * x for x in band.x])
    assert band.high == pytest.approx([(2 + math.sqrt(2)) * x for x in band.x])


def test_one_seed_is_a_line_and_many_points_are_thinned() -> None:
    band = mean_course(Arm("a", (ramp(0, 1.0, range(301)),)), "reward", "step", points=4)
    assert band.x == [0, 100, 200, 300]
    assert band.low == band.mean == band.high == [0, 100, 200, 300]


def test_a_magnitude_that_stands_still_is_one_place() -> None:
    """Magnitude is 1, .75, .5, .25, 0, 0, 0 at steps 0 to 6: at 0 the mean of 4, 5, 6."""
    band = mean_course(Arm("a", (ramp(0, 1.0, range(7)),)), "reward", "magnitude")
    assert band.x == [0, 0.25, 0.5, 0.75, 1]
    assert band.mean == [5, 3, 2, 1, 0]


def test_tokens_are_those_that_carried_credit() -> None:
    arm = Arm("a", (ramp(0, 1.0, range(1, 5)), ramp(1, 1.0, range(1, 5), share=0.5)))
    band = mean_course(arm, "reward", "tokens")
    assert band.x == [10, 15, 20]
    assert band.mean == pytest.approx([(1 + 2) / 2, (1.5 + 3) / 2, (2 + 4) / 2])


@pytest.mark.parametrize("align", ["step", "magnitude", "tokens"])
def test_without_values_or_a_common_range_the_band_is_empty(align: AlignName) -> None:
    assert mean_course(Arm("a", (trace(0),)), "reward", align).x == []
    apart = Arm("a", (ramp(0, 1.0, (0, 1)), ramp(1, 1.0, (5, 6))))
    assert mean_course(apart, "reward", "step").mean == []


@pytest.mark.parametrize("seeds", [13, 16, 17])
def test_the_smallest_p_is_one_that_the_test_can_return(seeds: int) -> None:
    """All differences positive: exact up to 16 pairs, then of 65,536 random flips."""
    tests = Statistics(partial(paired, resamples=FLIPS), holm)
    low = arm("low", dict.fromkeys(range(seeds), 0.1))
    high = arm("high", {seed: 0.2 + 0.01 * seed for seed in range(seeds)})
    (found,) = row_of([low, high], "reward", "end", tests).versus
    assert found.smallest_p == pytest.approx(2 / min(2**seeds, FLIPS + 1))
    assert found.p is not None
    assert found.smallest_p is not None
    assert found.p >= found.smallest_p * (1 - 1e-12)
    if 2**seeds <= FLIPS:
        assert found.p == pytest.approx(found.smallest_p)
