"""Curves and heat maps as characters, drawn by hand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tpcli.cli.chart import DOTS, curve, heat, ticks


def dots(line: str) -> list[tuple[int, int]]:
    """Column and row, from the top, of every dot of a line of braille."""
    cells = [ord(char) - 0x2800 if char != " " else 0 for char in line]
    return [
        (2 * i + column, row)
        for i, cell in enumerate(cells)
        for column in (0, 1)
        for row in range(4)
        if cell & DOTS[column][row]
    ]


def test_a_fall_is_a_diagonal() -> None:
    """Four dots across, four down: each a level lower than the last, and reaching up to it."""
    plot, axis, labels = curve([3, 2, 1, 0], [3, 2, 1, 0], width=2, height=1, bottom=0, top=3)
    assert plot.startswith("     0 ┤")
    line = plot.removeprefix("     0 ┤")
    assert dots(line) == [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3)]
    assert axis == "       └┬┬"
    assert labels.split() == ["14"]


def test_a_constant_is_a_level_line() -> None:
    """At .6 of levels 0 to 7: the fourth, the lowest row of the upper line."""
    top, bottom, *_ = curve([0.6], [0.6], width=3, height=2, bottom=0, top=1)
    assert bottom == "     0 ┤   "
    assert dots(top.removeprefix("  1.00 ┤")) == [(i, 3) for i in range(6)]


def test_a_band_has_both_edges() -> None:
    lines = curve([0, 0], [1, 1], width=4, height=2, bottom=0, top=1)
    upper, lower = (dots(line.partition("┤")[2]) for line in lines[:2])
    assert {(i, 0) for i in range(8)} <= set(upper)
    assert {(i, 3) for i in range(8)} <= set(lower)
    assert len(upper) + len(lower) < 8 * 8  # not filled


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=30),
    width=st.integers(1, 40),
    height=st.integers(1, 8),
)
def test_every_column_of_a_curve_has_a_dot(values: list[float], width: int, height: int) -> None:
    lines = curve(values, values, width=width, height=height, bottom=0, top=1)
    plots = [line[8:] for line in lines[:height]]
    assert all(len(plot) == width for plot in plots)
    assert {column for plot in plots for column, _ in dots(plot)} == set(range(2 * width))


def test_a_heat_map_has_its_first_place_at_the_bottom() -> None:
    lines = heat([[0.0, 1.0], [1.0, 1.0]], width=4, height=2)
    assert lines[:2] == ["  100% ┤████", "    0% ┤  ██"]


def test_a_cell_that_holds_several_is_their_mean() -> None:
    """Half of a cell of four: between blank and full."""
    assert heat([[0.0, 1.0], [0.0, 1.0]], width=1, height=1)[0] == "    0% ┤▒"


def test_almost_none_and_almost_all_can_be_told_from_none_and_all() -> None:
    column = [[0.0], [0.01], [0.99], [1.0]]
    assert heat(column, width=4, height=1)[0] == "    0% ┤ ░▓█"


def test_ticks_are_whole_strides_apart() -> None:
    assert list(ticks(10, 72).values()) == list(range(1, 11))
    assert list(ticks(20, 72).values()) == [1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20]
    # 140 would stand in 147's way.
    assert list(ticks(147, 72).values()) == [1, 20, 40, 60, 80, 100, 120, 147]
    assert list(ticks(2000, 72).values()) == [1, 500, 1000, 1500, 2000]


@given(steps=st.integers(1, 5000), width=st.integers(2, 120))
def test_ticks_rise_from_the_first_step_to_the_last(steps: int, width: int) -> None:
    found = ticks(steps, width)
    steps_shown = list(found.values())
    assert (steps_shown[0], steps_shown[-1]) == (1, steps)
    assert list(found) == sorted(found)
    assert all(0 <= place < width for place in found)
