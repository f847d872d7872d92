"""Curves and heat maps as lines of characters, with axes. Plain strings: colour is the caller's."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import count
from typing import TypeVar

from tpcli.cli.glyphs import SHADES, number, percent, whole

T = TypeVar("T")

LABEL = 6
"""Characters left of the axis."""
# Dots of a braille cell, by column and by row from the top.
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
BRAILLE = 0x2800


def curve(
    low: Sequence[float],
    high: Sequence[float],
    *,
    width: int,
    height: int,
    bottom: float,
    top: float,
) -> list[str]:
    """The curve of a value a step, or the band from ``low`` to ``high``, with its axes.

    Args:
        low, high: a value a step, from step 1; a line where they are the same.
        width, height: characters and lines of the plot, axes and labels apart.
        bottom, top: values at the lower and the upper edge.

    Returns:
        ``height`` lines of braille (two dots by four a character), then the axis of steps.
    """
    span = (top - bottom) or 1.0
    rows, columns = 4 * height, 2 * width
    cells = [[0] * width for _ in range(height)]

    def level(values: Sequence[float], column: int) -> int:
        share = (_between(values, column / max(columns - 1, 1)) - bottom) / span
        return round(min(max(share, 0.0), 1.0) * (rows - 1))

    before: tuple[int, int] | None = None
    for column in range(columns):
        least, most = level(low, column), level(high, column)
        # Up or down to the last column: a steep curve has no gaps.
        reach = (least, most) if before is None else (min(least, before[1]), max(most, before[0]))
        before = least, most
        # Inside a band a few dots, so that its edges can be seen.
        edges = {*range(reach[0], least + 1), *range(most, reach[1] + 1), least, most}
        for dot in range(reach[0], reach[1] + 1):
            if dot in edges or least == most or (column % 4 == 0 and dot % 4 == 0):
                line, row = divmod(rows - 1 - dot, 4)
                cells[line][column // 2] |= DOTS[column % 2][row]
    plot = ["".join(chr(BRAILLE + cell) if cell else " " for cell in line) for line in cells]
    labels = {0: number(top), height - 1: number(bottom)}
    return _framed(plot, labels, len(low))


def overlay(
    series: Sequence[tuple[Sequence[float], Sequence[float]]],
    *,
    width: int,
    height: int,
    flip: bool = False,
) -> tuple[list[str], list[list[int | None]]]:
    """Several curves y over x in one plot, each over its own stretch of x, with the axes.

    Args:
        series: pairs of x, increasing, and y; one point at least in all.
        width, height: characters and lines of the plot, axes and labels apart.
        flip: the largest x is on the left.

    Returns:
        ``height`` lines of braille, the axis and its ends, ``LABEL + 2`` characters left of the
        plot; and for each cell of the plot the curve drawn last there, None where there is none.
    """
    known = [(x, y) for x, y in series if x]
    least, most = min(x[0] for x, _ in known), max(x[-1] for x, _ in known)
    bottom, top = min(min(y) for _, y in known), max(max(y) for _, y in known)
    span = (most - least) or 1.0
    cells = [[0] * width for _ in range(height)]
    owners: list[list[int | None]] = [[None] * width for _ in range(height)]
    for which, (x, y) in enumerate(series):
        if not x:
            continue
        before: int | None = None
        first, last = (round((end - least) / span * (2 * width - 1)) for end in (x[0], x[-1]))
        for step in range(first, last + 1):
            column = 2 * width - 1 - step if flip else step
            place = min(max(least + span * step / (2 * width - 1), x[0]), x[-1])
            level = round((_at(x, y, place) - bottom) / ((top - bottom) or 1.0) * (4 * height - 1))
            for dot in _steep(before, level):
                line, row = divmod(4 * height - 1 - dot, 4)
                cells[line][column // 2] |= DOTS[column % 2][row]
                owners[line][column // 2] = which
            before = level
    left, right = (most, least) if flip else (least, most)
    labels = {0: number(top), height - 1: number(bottom)}
    plot = ["".join(chr(BRAILLE + cell) if cell else " " for cell in line) for line in cells]
    axis = f"{'':>{LABEL}} └{'─' * width}"
    below = f"{'':>{LABEL + 2}}{_end(left)}{_end(right):>{width - len(_end(left))}}"
    return [*_labelled(plot, labels), axis, below], owners


def _end(value: float) -> str:
    return whole(value) if value == int(value) else number(value)


def _steep(before: int | None, level: int) -> range:
    """The dots from the last column's level to this one's, so that a steep curve has no gaps."""
    if before is None or abs(level - before) <= 1:
        return range(level, level + 1)
    return range(before + 1, level + 1) if level > before else range(level, before)


def _at(x: Sequence[float], y: Sequence[float], place: float) -> float:
    """y at a place between the first and the last x, on a straight line between neighbours."""
    after = bisect_left(x, place)
    if after == 0:
        return y[0]
    share = (place - x[after - 1]) / (x[after] - x[after - 1])
    return y[after - 1] + (y[after] - y[after - 1]) * share


def heat(grid: Sequence[Sequence[float]], *, width: int, height: int) -> list[str]:
    """Shares in [0, 1] by step and by place, as shading: the first place is the lowest line."""
    lines = []
    for line in reversed(range(height)):
        cells = []
        for column in range(width):
            known = [
                value for step in _cut(grid, column, width) for value in _cut(step, line, height)
            ]
            share = sum(known) / len(known)
            # Only what is wholly with or without credit looks so.
            cells.append(SHADES[0 if share == 0 else 4 if share == 1 else 1 + int(share * 3)])
        lines.append("".join(cells))
    return _framed(lines, {0: percent(1.0), height - 1: percent(0.0)}, len(grid))


def _cut(values: Sequence[T], part: int, parts: int) -> Sequence[T]:
    """One of ``parts`` equal parts, of one value at least."""
    first = part * len(values) // parts
    return values[first : max((part + 1) * len(values) // parts, first + 1)]


def _between(values: Sequence[float], share: float) -> float:
    """The value at a share of the way, on a straight line between neighbours."""
    place = share * (len(values) - 1)
    first = min(int(place), max(len(values) - 2, 0))
    if len(values) == 1:
        return values[0]
    return values[first] + (values[first + 1] - values[first]) * (place - first)


def _framed(plot: Sequence[str], labels: dict[int, str], steps: int) -> list[str]:
    """The plot with its labels on the left and the steps, from 1, below."""
    width = len(plot[0])
    lines = _labelled(plot, labels)
    places = ticks(steps, width)
    axis = "".join("┬" if i in places else "─" for i in range(width))
    below = [" "] * (width + LABEL + 8)
    for place, step in places.items():
        text = str(step)
        begin = max(place + LABEL + 2 - len(text) // 2, 0)
        below[begin : begin + len(text)] = text
    return [*lines, f"{'':>{LABEL}} └{axis}", "".join(below).rstrip()]


def _labelled(plot: Sequence[str], labels: dict[int, str]) -> list[str]:
    return [
        f"{labels.get(i, ''):>{LABEL}} {'┤' if i in labels else '│'}{line}"
        for i, line in enumerate(plot)
    ]


def ticks(steps: int, width: int) -> dict[int, int]:
    """Character and step of the axis' ticks: the first, the last, and the multiples of a stride.

    The stride is 1, 2 or 5 times a power of ten, the smallest whose labels have room. A multiple
    less than half a stride from an end gives way to it.
    """
    if min(steps, width) == 1:
        return {0: 1}
    apart = (width - 1) / (steps - 1)
    room = max(2 * (len(str(steps)) + 1), 6)
    strides = (lead * 10**power for power in count() for lead in (1, 2, 5))
    stride = next(size for size in strides if size * apart >= room)
    between = range(stride, steps, stride)
    chosen = [step for step in between if 2 * min(step - 1, steps - step) >= stride]
    return {round((step - 1) * apart): step for step in (1, *chosen, steps)}
