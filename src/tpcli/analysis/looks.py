"""How an arm looks in every figure: its colour, line style, name, and the legend below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Literal, cast

from tpcli.analysis.arms import Arm
from tpcli.analysis.compare import Band
from tpcli.analysis.heatmaps import COLOURS, STYLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LineStyle = Literal["-", "--", "-.", ":"]

LONGEST = 40
"""Characters of an arm's name in a legend."""
LETTER, KEY = 0.085, 0.75
"""Inches of a letter of the legend, and of an entry's line and spaces."""
ROW = 0.22
"""Inches of a row of the legend."""
FEW = 30
"""A line over as many points at most shows each as a dot."""
HATCHES = ("", "///", "...", "xxx")


def colour(arm: int) -> str:
    """Of the arm with this number; with ``style`` a pair of its own for the first twelve."""
    return COLOURS[arm % len(COLOURS)]


def style(arm: int) -> LineStyle:
    """Of the line of the arm with this number."""
    return cast(LineStyle, STYLES[arm % len(STYLES)])


def hatch(arm: int) -> str:
    """Of the arm's bars: another one each time the colours begin again."""
    return HATCHES[arm // len(COLOURS) % len(HATCHES)]


def shortened(labels: Sequence[str], longest: int = LONGEST) -> list[str]:
    """Names that fit: the middle of a long one gives way; equal ones are numbered."""
    half = (longest - 1) // 2
    cut = [s if len(s) <= longest else f"{s[:half]}…{s[-half:]}" for s in labels]
    total, seen, found = Counter(cut), Counter[str](), []
    for label in cut:
        seen[label] += 1
        found.append(f"{label} ({seen[label]})" if total[label] > 1 else label)
    return found


def names(arms: Sequence[Arm]) -> list[str]:
    """Of the arms, with the number of their runs where there are several."""
    return [
        f"{label}, n = {len(arm.runs)}" if len(arm.runs) > 1 else label
        for label, arm in zip(shortened([arm.label for arm in arms]), arms, strict=True)
    ]


def legend_height(arms: Sequence[Arm], width: float) -> float:
    """Inches of a legend that is ``width`` inches wide."""
    return 0.15 + ROW * -(-len(arms) // _columns(arms, width))


def legend(
    figure: Figure, arms: Sequence[Arm], width: float, *, bars: bool = False, above: bool = False
) -> None:
    """One legend for all panels, outside them; names are shown as they are, not as formulas."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys = [
        Patch(facecolor=colour(i), hatch=hatch(i), edgecolor="white")
        if bars
        else Line2D([], [], color=colour(i), linestyle=style(i), lw=2)
        for i in range(len(arms))
    ]
    made = figure.legend(
        keys,
        [str(i) for i in range(len(arms))],  # a name that begins with _ would be left out
        loc="outside upper center" if above else "outside lower center",
        ncols=_columns(arms, width),
        frameon=False,
        handlelength=2.6,
    )
    for text, name in zip(made.get_texts(), names(arms), strict=True):
        text.set_parse_math(False)
        text.set_text(readable(name))


def band(axis: Axes, arm: int, one: Band) -> None:
    """An arm's line, and the band around it unless it has no width; few points show as dots."""
    marker = "o" if len(one.x) <= FEW else ""
    axis.plot(one.x, one.mean, style(arm), color=colour(arm), lw=1.6, marker=marker, ms=3.5)
    if one.low != one.high:
        axis.fill_between(one.x, one.low, one.high, facecolor=colour(arm), alpha=0.15, linewidth=0)


def frame(axis: Axes) -> None:
    """A light grid and two sides; no legend, the figure has one."""
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def readable(text: str) -> str:
    """Letters that the font of the figures lacks, by their number: ``\\u4f60``."""
    known = _letters()
    return "".join(
        char if ord(char) in known else char.encode("unicode_escape").decode() for char in text
    )


@cache
def _letters() -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def _columns(arms: Sequence[Arm], width: float) -> int:
    """As few rows as the names allow, and these as even as can be."""
    entry = KEY + LETTER * max(map(len, names(arms)))
    rows = -(-len(arms) // max(1, int(width / entry)))
    return -(-len(arms) // rows)
