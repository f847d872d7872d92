"""Maps and matrices as characters: colours on a terminal that has them, else shades and numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tpcli.cli.glyphs import SHADES, downsample, number

if TYPE_CHECKING:
    from rich.text import Text

Row = Sequence[float | None]

HEIGHT = 10
"""Lines of a map; each holds two levels, which are told apart in colour alone."""
MARGIN = 5
KEY = 10
ABSENT, ABSENT_COLOUR = "·", "#777777"


def heat_map(
    columns: Sequence[Row],
    *,
    title: str,
    unit: str,
    top: float,
    beyond: bool,
    steps: tuple[int, int],
    width: int,
    colours: str | None,
) -> list[Text]:
    """Percentile from bottom to top, time from left to right, values from 0 to ``top``.

    Args:
        columns: values by percentile bin, of every step in order.
        beyond: some values are above ``top``.
        steps: the first and the last.
        width: characters of a line; more steps than fit are averaged, fewer are widened.
        colours: matplotlib's name of a colour map; None for shades of grey.
    """
    from rich.text import Text

    room = width - MARGIN
    levels = [_stretched(level, room) for level in _levels(columns)]
    cells = len(levels[0])
    end = f"{'≥ ' * beyond}{number(top)} {unit}"
    lines = [_head(title, end, MARGIN + cells, colours)]
    for i in reversed(range(HEIGHT)):
        label = {HEIGHT - 1: "100", HEIGHT // 2: " 50", 0: "  0"}.get(i, "")
        text = Text.assemble((f"{label:>3} {'┤' if label else '│'}", "dim"))
        for upper, lower in zip(levels[2 * i + 1], levels[2 * i], strict=True):
            text.append(*_cell(upper, lower, top, colours))
        lines.append(text)
    first, last = map(str, steps)
    ends = first + last.rjust(cells - len(first)) if steps[0] != steps[1] else first
    lines.append(Text(" " * MARGIN + ends, "dim"))
    return lines


def _levels(columns: Sequence[Row]) -> list[list[float | None]]:
    """Twice HEIGHT series over the steps, the lowest percentile first."""
    bins = max(map(len, columns))
    full = [[*column, *[None] * (bins - len(column))] for column in columns]
    return [[column[i * bins // (2 * HEIGHT)] for column in full] for i in range(2 * HEIGHT)]


def _stretched(series: Sequence[float | None], room: int) -> list[float | None]:
    times = max(room // len(series), 1)
    return downsample([value for value in series for _ in range(times)], room)


def _head(title: str, end: str, width: int, colours: str | None) -> Text:
    """The title, and at the right end of the line what the colours stand for."""
    from rich.text import Text

    scale = Text("0 ")
    if colours is None:
        scale.append(f"▕{SHADES}▏")
    else:
        for i in range(KEY):
            share = (i + 0.5) / KEY
            scale.append(*_cell(share, share, 1.0, colours))
    scale.append(f" {end}")
    gap = " " * max(width - len(title) - len(scale), 2)
    return Text.assemble((title, "bold"), gap, scale)


def _cell(
    upper: float | None, lower: float | None, top: float, colours: str | None
) -> tuple[str, str]:
    """A character and its style."""
    if colours is not None:
        return "▀", f"{_colour(upper, top, colours)} on {_colour(lower, top, colours)}"
    known = [value for value in (upper, lower) if value is not None]
    if not known:
        return ABSENT, "dim"
    share = min(max(sum(known) / len(known) / top, 0.0), 1.0)
    return SHADES[math.ceil(share * (len(SHADES) - 1))], ""


def _colour(value: float | None, top: float, colours: str) -> str:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if value is None:
        return ABSENT_COLOUR
    return to_hex(colormaps[colours](min(max(value / top, 0.0), 1.0)))


def matrix(
    values: Sequence[Row], *, title: str, labels: Sequence[str], coloured: bool
) -> list[Text]:
    """Cosines, two digits each: red below 0, blue above."""
    from rich.text import Text

    margin = max(map(len, labels)) + 1
    starts = "".join(f"{label.partition('–')[0]:>5} " for label in labels)
    lines = [Text(title, "bold"), Text(" " * margin + starts, "dim")]
    for label, row in zip(labels, values, strict=True):
        text = Text.assemble((f"{label:>{margin - 1}} ", "dim"))
        for value in row:
            style = _shade((value + 1) / 2) if coloured and value is not None else ""
            text.append(f"{cosine(value):>5} ", style)
        lines.append(text)
    return lines


def cosine(value: float | None) -> str:
    """Two digits and a sign: .83, −.04, 1.00; "–" for none."""
    if value is None:
        return "–"
    size = f"{abs(value):.2f}"
    return ("−" if value < 0 and size != "0.00" else "") + size.removeprefix("0")


def _shade(share: float) -> str:
    """The diverging colours of the figure, with ink that can be read on them."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    ink = "#ffffff" if abs(share - 0.5) > 0.3 else "#000000"
    return f"{ink} on {to_hex(colormaps['RdBu'](share))}"
