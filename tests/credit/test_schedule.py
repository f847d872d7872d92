"""Curves against the reference figures, hand-derived values, and their bounds."""

import doctest
import itertools
import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tpcli.credit import schedule
from tpcli.credit.schedule import (
    CURVES,
    adapt,
    exponential,
    piecewise,
    progress,
    smooth,
    stairs,
    value,
)
from tpcli.names import CurveName

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "reference.json").read_text())
CLOSED: list[CurveName] = [c for c in get_args(CurveName) if c not in ("adaptive", "piecewise")]
MOVING: list[CurveName] = [c for c in CLOSED if c not in ("constant", "gamma")]
"""Curves that run from ``initial`` to ``final``, wherever both lie."""

values = st.floats(-10, 10)
shares = st.floats(0, 1)


@pytest.mark.parametrize("case", GOLDEN["curves"], ids=lambda c: f"{c['mode']}-{c['total_steps']}")
def test_curves_golden(case: dict[str, Any]) -> None:
    """Bit for bit: int(L * m) jumps where a product is whole, so the last bit counts."""
    total = case["total_steps"]
    got = [
        value(
            step,
            total,
            curve=case["mode"],
            initial=case["initial"],
            start=case["start_ratio"],
            end=case["end_ratio"],
            gamma=case["gamma"],
        )
        for step in range(1, total + 1)
    ]
    assert got == case["values"]


def test_every_curve_name_has_a_curve() -> None:
    assert set(CURVES) == set(get_args(CurveName))


def test_the_examples_in_the_docstrings_are_right() -> None:
    failed, tried = doctest.testmod(schedule)
    assert (failed, tried > 5) == (0, True)


# Values by hand


def test_cosine_by_hand() -> None:
    """0.5 * 0.99 at mid-window; a quarter in, (1 + cos 45°) / 2 of it is left."""
    assert value(8, 20, curve="cosine") == pytest.approx(0.495)
    assert value(4, 20, curve="cosine") == pytest.approx(0.99 * 0.8535533905932737)
    assert value(20, 20, curve="cosine") == 0


def test_exponential_by_hand() -> None:
    """(e^-2.5 - e^-5) / (1 - e^-5) = 0.0758581800 is left at mid-window, of .8 -> .2 by 0.6."""
    assert exponential(0.5) == pytest.approx(0.0758581800, abs=1e-10)
    got = value(8, 16, curve="exponential", initial=0.8, final=0.2, end=1.0)
    assert got == pytest.approx(0.2 + 0.6 * 0.0758581800, abs=1e-10)
    assert value(16, 16, curve="exponential", end=1.0) == 0
    got = value(4, 8, curve="exponential", initial=1.0, end=1.0, rate=2 * math.log(3))
    assert got == pytest.approx(0.25)  # (1/3 - 1/9) / (1 - 1/9)


def test_exponential_at_a_tiny_and_a_huge_rate() -> None:
    """rate -> 0 is the line; rate -> inf is a drop at once. Neither divides 0 by 0."""
    assert exponential(0.25, 1.0, 1e-18) == pytest.approx(0.75)
    assert [exponential(p, 1.0, 1e5) for p in (0.0, 0.1, 1.0)] == [1, 0, 0]


def test_stairs_by_hand() -> None:
    """Four drops over 8 steps: two steps on each level, the last level from step 8 on."""
    got = [value(t, 10, curve="stairs", initial=0.8, end=0.8) for t in range(11)]
    expected = [0.8, 0.8, 0.6, 0.6, 0.4, 0.4, 0.2, 0.2, 0.0, 0.0, 0.0]
    assert got == pytest.approx(expected, abs=1e-15)
    assert value(5, 10, curve="stairs", stairs=1, initial=0.8, end=1.0) == 0.8


def test_stairs_are_not_cut_down_by_rounding() -> None:
    """0.29 * 100 is 28.999999999999996 in floats; the 29th of 100 drops is taken there."""
    assert stairs(0.29, 1.0, 100) == 0.71


@given(total=st.integers(1, 2000), drops=st.integers(1, 300), data=st.data())
def test_stairs_take_the_exact_number_of_drops(total: int, drops: int, data: st.DataObject) -> None:
    """Against exact fractions: p = step / total."""
    step = data.draw(st.integers(0, total))
    taken = math.floor(Fraction(step * drops, total))
    assert stairs(step / total, 1.0, drops) == (drops - taken) / drops


@given(drops=st.integers(1, 60), per_level=st.integers(1, 5))
def test_stairs_have_one_level_more_than_drops(drops: int, per_level: int) -> None:
    total = drops * per_level
    levels = [
        value(t, total, curve="stairs", stairs=drops, start=0.0, end=1.0) for t in range(total + 1)
    ]
    assert len(set(levels)) == drops + 1
    assert levels[0] == 0.99
    assert levels[-1] == 0


def test_piecewise_by_hand() -> None:
    """Down to .2 in the first half, flat, then to 0; initial and final are not read."""
    points = [(0.0, 0.9), (0.5, 0.2), (0.75, 0.2), (1.0, 0.0)]
    got = [
        value(t, 8, curve="piecewise", points=points, end=1.0, initial=7.0, final=5.0)
        for t in range(9)
    ]
    expected = [0.9, 0.725, 0.55, 0.375, 0.2, 0.2, 0.2, 0.1, 0.0]
    assert got == pytest.approx(expected, abs=1e-15)


point_lists = st.builds(
    lambda inner, heights: list(zip([0.0, *sorted(inner), 1.0], heights, strict=False)),
    st.lists(st.floats(0.01, 0.99), max_size=6, unique=True),
    st.lists(values, min_size=8, max_size=8),
)


@given(points=point_lists, p=shares)
def test_piecewise_passes_through_its_points_and_between_them(
    points: list[tuple[float, float]], p: float
) -> None:
    assert [piecewise(q, points) for q, _ in points] == [height for _, height in points]
    left = max(point for point in points if point[0] <= p)
    right = min(point for point in points if point[0] >= p)
    low, high = sorted([left[1], right[1]])
    assert low - 1e-12 <= piecewise(p, points) <= high + 1e-12


@pytest.mark.parametrize(
    "points",
    [
        [],
        [(0.0, 1.0)],
        [(0.0, 1.0), (0.9, 0.0)],
        [(0.1, 1.0), (1.0, 0.0)],
        [(0.0, 1.0), (0.5, 0.5), (0.5, 0.4), (1.0, 0.0)],
        [(0.0, 1.0), (0.6, 0.5), (0.5, 0.4), (1.0, 0.0)],
    ],
)
def test_piecewise_refuses_points_that_do_not_rise_from_0_to_1(
    points: list[tuple[float, float]],
) -> None:
    with pytest.raises(ValueError, match="rises from 0 to 1"):
        value(1, 10, curve="piecewise", points=points)


def test_reverse_by_hand() -> None:
    """Step 4 of a 16-step window: p = 1/4. Linear 0.99 p; gamma (0.8 p) ** 2; wide open first."""
    assert value(4, 20, reverse=True) == 0.2475
    assert value(0, 20, reverse=True) == 0
    assert value(20, 20, reverse=True) == 0.99
    got = value(4, 20, curve="gamma", initial=0.8, reverse=True)
    assert got == pytest.approx(0.2**2)
    points = [(0.0, 0.9), (0.5, 0.2), (1.0, 0.0)]
    assert value(8, 16, curve="piecewise", points=points, end=1.0, reverse=True) == 0.2
    assert value(16, 16, curve="piecewise", points=points, end=1.0, reverse=True) == 0.9
    assert value(3, 20, curve="constant", initial=0.4, reverse=True) == 0.4


def test_constant_ignores_its_window() -> None:
    assert [value(t, 10, curve="constant", initial=0.8, end=0.0) for t in (1, 5, 10)] == [0.8] * 3


def test_window_stands_still_outside() -> None:
    """start .1, end .8 of 117 steps: S0 = 11, S1 = 93."""
    assert progress(11, 117, start=0.1, end=0.8) == 0
    assert progress(12, 117, start=0.1, end=0.8) == 1 / 82
    assert progress(93, 117, start=0.1, end=0.8) == 1
    assert progress(117, 117, start=0.1, end=0.8) == 1


def test_rises_when_final_is_above_initial() -> None:
    assert value(5, 10, initial=0.0, final=1.0, end=1.0) == 0.5


# Errors


@pytest.mark.parametrize("bad", [{"final": 0.1}, {"initial": 1.2}])
def test_gamma_refuses_what_it_is_not_defined_for(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="gamma"):
        value(1, 10, curve="gamma", **bad)


def test_empty_window_is_an_error() -> None:
    with pytest.raises(ValueError, match="no whole step"):
        value(1, 4, start=0.0, end=0.2)


def test_a_curve_refuses_a_parameter_out_of_range() -> None:
    with pytest.raises(ValueError, match="rate > 0, not 0"):
        value(1, 10, curve="exponential", rate=0.0)
    with pytest.raises(ValueError, match="at least one drop, not 0"):
        value(1, 10, curve="stairs", stairs=0)


# Properties of every curve


@given(
    curve=st.sampled_from(CLOSED),
    initial=shares,
    start=st.floats(0, 0.4),
    end=st.floats(0.6, 1),
    horizon=st.integers(10, 300),
    rate=st.floats(0.01, 30),
    drops=st.integers(1, 20),
    gamma=st.floats(0.2, 5),
)
def test_curves_fall_inside_their_bounds(
    curve: CurveName,
    initial: float,
    start: float,
    end: float,
    horizon: int,
    rate: float,
    drops: int,
    gamma: float,
) -> None:
    got = [
        value(
            t,
            horizon,
            curve=curve,
            initial=initial,
            start=start,
            end=end,
            rate=rate,
            stairs=drops,
            gamma=gamma,
        )
        for t in range(horizon + 1)
    ]
    assert all(a >= b - 1e-15 for a, b in itertools.pairwise(got))
    assert got[0] == pytest.approx(initial**gamma if curve == "gamma" else initial, abs=1e-15)
    assert min(got) >= 0
    first, last = int(horizon * start), int(horizon * end)
    assert set(got[:first]) <= {got[0]}
    assert set(got[last:]) == {got[-1]}
    assert got[-1] == (initial if curve == "constant" else 0)


@given(
    curve=st.sampled_from(MOVING),
    initial=values,
    final=values,
    horizon=st.integers(2, 200),
    reverse=st.booleans(),
)
def test_curves_run_from_end_to_end_up_or_down(
    curve: CurveName, initial: float, final: float, horizon: int, reverse: bool
) -> None:
    got = [
        value(t, horizon, curve=curve, initial=initial, final=final, end=1.0, reverse=reverse)
        for t in range(horizon + 1)
    ]
    begin, finish = (final, initial) if reverse else (initial, final)
    assert got[0] == pytest.approx(begin, abs=1e-12)
    assert got[-1] == pytest.approx(finish, abs=1e-12)
    sign = 1 if finish >= begin else -1
    assert all(sign * (b - a) >= -1e-12 for a, b in itertools.pairwise(got))
    assert min(initial, final) - 1e-12 <= min(got) <= max(got) <= max(initial, final) + 1e-12


@given(curve=st.sampled_from(CLOSED), initial=shares, total=st.integers(2, 200), data=st.data())
def test_reverse_is_the_mirror_image_in_time(
    curve: CurveName, initial: float, total: int, data: st.DataObject
) -> None:
    """Step S0 + t reversed is step S1 - t forwards; here the window is 1/10 to 9/10 of 10 T."""
    step = data.draw(st.integers(0, 8 * total))
    assume(curve != "stairs" or step % (2 * total))  # an edge belongs to the later of its steps
    there = value(
        total + step, 10 * total, curve=curve, initial=initial, start=0.1, end=0.9, reverse=True
    )
    back = value(9 * total - step, 10 * total, curve=curve, initial=initial, start=0.1, end=0.9)
    assert there == pytest.approx(back, abs=1e-9)


@given(rate=st.floats(0.1, 30), p=st.floats(0.01, 0.99))
def test_exponential_is_below_the_line_and_steeper_at_first(rate: float, p: float) -> None:
    assert exponential(p, 1.0, rate) < 1 - p
    half = p / 2
    assert 1 - exponential(half, 1.0, rate) > exponential(half, 1.0, rate) - exponential(
        p, 1.0, rate
    )
    assert exponential(p, 1.0, 2 * rate) <= exponential(p, 1.0, rate)


# The closed loop


def test_smooth_by_hand() -> None:
    """None takes the first measurement whole; then 0.9 * 2 + 0.1 * 1 = 1.9."""
    assert smooth(None, 2.0, decay=0.9) == 2.0
    assert smooth(2.0, 1.0, decay=0.9) == pytest.approx(1.9)
    assert smooth(2.0, 1.0, decay=0.0) == 1.0
    for decay in (1.0, -0.1):
        with pytest.raises(ValueError, match="decay"):
            smooth(None, 1.0, decay=decay)


def test_adapt_by_hand() -> None:
    """e = (.6 - .5) / .5 = .2; a gain of .1 makes it .02 a step, the default limit."""
    assert adapt(0.5, 0.6, target=0.5, max_change=1.0) == pytest.approx(0.48)
    assert adapt(0.5, 0.4, target=0.5, max_change=1.0) == pytest.approx(0.52)
    assert adapt(0.5, 0.4, target=0.5, gain=0.5, max_change=1.0) == pytest.approx(0.6)
    assert adapt(0.5, 0.0, target=0.5) == pytest.approx(0.52)
    assert adapt(0.5, 5.0, target=0.5) == pytest.approx(0.48)


@given(
    share=shares,
    smoothed=st.floats(0, 100),
    target=st.floats(0.01, 10),
    gain=st.floats(0.01, 10),
    max_change=st.floats(0.001, 2),
)
@example(share=0.3, smoothed=0.7, target=0.7, gain=0.1, max_change=0.02)
def test_adapt_is_bounded_and_moves_the_right_way(
    share: float, smoothed: float, target: float, gain: float, max_change: float
) -> None:
    """Above the target the share falls, below it rises, at it nothing moves."""
    moved = adapt(share, smoothed, target=target, gain=gain, max_change=max_change)
    assert 0 <= moved <= 1
    assert abs(moved - share) <= max_change + 1e-15
    if smoothed == target:
        assert moved == share
    elif smoothed > target:
        assert moved <= share
    else:
        assert moved >= share


def test_adapt_needs_fifty_steps_from_end_to_end() -> None:
    """1 / 0.02 of them, however far the signal is from its target."""
    share, steps = 1.0, 0
    while share > 1e-12:
        share, steps = adapt(share, 1e6, target=0.5), steps + 1
    assert steps == 50


@given(share=shares, target=st.floats(0.2, 0.8))
def test_the_loop_settles_where_the_signal_meets_its_target(share: float, target: float) -> None:
    """A stand-in for training: the wider the credited window, the lower the entropy."""
    average = None
    for _ in range(2000):
        average = smooth(average, share, decay=0.5)
        share = adapt(share, average, target=target)
    assert share == pytest.approx(target, abs=1e-6)


@pytest.mark.parametrize("bad", [{"target": 0.0}, {"gain": 0.0}, {"max_change": 0.0}])
def test_adapt_refuses_what_has_no_meaning(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="> 0"):
        adapt(1.0, 0.5, **{"target": 0.5, **bad})


def test_the_adaptive_value_is_a_share_of_the_way() -> None:
    """0.2 + 0.7 * 0.25, at any step."""
    got = {value(t, 10, curve="adaptive", initial=0.9, final=0.2, share=0.25) for t in range(11)}
    assert got == {0.2 + 0.25 * (0.9 - 0.2)}


@pytest.mark.parametrize(
    "bad", [{}, {"share": 1.1}, {"share": -0.1}, {"share": 0.5, "reverse": True}]
)
def test_adaptive_refuses_to_guess_its_share(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="adaptive"):
        value(1, 10, curve="adaptive", **bad)
