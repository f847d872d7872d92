"""Curves against the reference figures, hand-derived values, and their bounds."""

import itertools
import json
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpcli.credit.schedule import CURVES, progress, value
from tpcli.names import CurveName

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "reference.json").read_text())


@pytest.mark.parametrize("case", GOLDEN["curves"], ids=lambda c: f"{c['mode']}-{c['total_steps']}")
def test_curves_golden(case: dict) -> None:  # type: ignore[type-arg]
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


def test_cosine_by_hand() -> None:
    """0.5 * 0.99 at mid-window; a quarter in, (1 + cos 45°) / 2 of it is left."""
    assert value(8, 20, curve="cosine") == pytest.approx(0.495)
    assert value(4, 20, curve="cosine") == pytest.approx(0.99 * 0.8535533905932737)
    assert value(20, 20, curve="cosine") == 0


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


@pytest.mark.parametrize("bad", [{"final": 0.1}, {"initial": 1.2}])
def test_gamma_refuses_what_it_is_not_defined_for(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="gamma"):
        value(1, 10, curve="gamma", **bad)


def test_empty_window_is_an_error() -> None:
    with pytest.raises(ValueError, match="no whole step"):
        value(1, 4, start=0.0, end=0.2)


@given(
    curve=st.sampled_from(get_args(CurveName)),
    initial=st.floats(0, 1),
    start=st.floats(0, 0.4),
    end=st.floats(0.6, 1),
    horizon=st.integers(10, 500),
)
def test_curves_fall_inside_their_bounds(
    curve: CurveName, initial: float, start: float, end: float, horizon: int
) -> None:
    values = [
        value(t, horizon, curve=curve, initial=initial, start=start, end=end)
        for t in range(horizon + 1)
    ]
    assert all(a >= b for a, b in itertools.pairwise(values))
    assert max(values) <= initial + 1e-15  # the last bit, as in the reference
    assert min(values) >= 0
    if curve != "constant":
        assert values[-1] == pytest.approx(0, abs=1e-12)
