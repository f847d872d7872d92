"""Numbers, bars and curves as characters. Plain strings: colour and layout are the caller's."""

import math
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
SHADES = " ░▒▓█"
SHORT = {
    "trajectory_percentile": "tp",
    "forking_tokens": "forking",
    "entropy_advantage": "entropy",
    "low_probability": "lowprob",
    "random_tokens": "random",
    "expert_prefix": "expert",
}


def sparkline(
    values: Sequence[float | None],
    width: int,
    *,
    low: float | None = None,
    high: float | None = None,
) -> str:
    """A curve as eight-level blocks, a cell a value; longer series are averaged down to ``width``.

    The levels run from ``low`` to ``high``, by default the cells' own extremes; a curve that never
    moves lies in the middle. A cell without a value is blank.
    """
    cells = downsample(values, width)
    known = [cell for cell in cells if cell is not None]
    if not known:
        return " " * len(cells)
    bottom = min(known) if low is None else low
    span = (max(known) if high is None else high) - bottom
    return "".join(_block(cell, bottom, span) for cell in cells)


def _block(cell: float | None, bottom: float, span: float) -> str:
    if cell is None:
        return " "
    if span <= 0:
        return BLOCKS[3]
    share = min(max((cell - bottom) / span, 0.0), 1.0)
    return BLOCKS[round(share * (len(BLOCKS) - 1))]


def downsample(values: Sequence[float | None], width: int) -> list[float | None]:
    """At most ``width`` cells, each the mean of its equal share of the values that are there."""
    count = len(values)
    if width <= 0:
        return []
    if count <= width:
        return list(values)
    cells: list[float | None] = []
    for i in range(width):
        known = [v for v in values[i * count // width : (i + 1) * count // width] if v is not None]
        cells.append(sum(known) / len(known) if known else None)
    return cells


def shades(shares: Sequence[float | None], width: int) -> str:
    """Shares in [0, 1] as shading from blank to full, stretched over ``width`` cells."""
    stretched = [shares[i * len(shares) // width] for i in range(width)] if shares else []
    return "".join(SHADES[math.ceil(min(max(s or 0.0, 0.0), 1.0) * 4)] for s in stretched)


def bar(share: float, width: int) -> tuple[str, str]:
    """A progress bar in half cells: the part done and the part left, ``width`` cells together."""
    halves = int(min(max(share, 0.0), 1.0) * width * 2)
    done = "━" * (halves // 2) + "╸" * (halves % 2)
    return done, "─" * (width - len(done))


def number(value: float | None) -> str:
    """A number in about five characters: .612, 18.4, 1842, 41.2k, .0004, 5e-6; "–" for none."""
    if value is None or not math.isfinite(value):
        return "–"
    text = _size(abs(value))
    return ("−" if value < 0 else "") + (text[1:] if text.startswith("0.") else text)


def _size(size: float) -> str:
    for least, unit in ((999_950, 1e6), (9_999.5, 1e3)):
        if size >= least:
            return f"{size / unit:.3g}" + ("M" if unit == 1e6 else "k")
    # Three significant digits where there is room, so that neighbours in a column look alike.
    for least, digits in ((99.95, 0), (9.995, 1), (0.9995, 2), (0.00995, 3), (0.000095, 4)):
        if size >= least:
            return f"{size:.{digits}f}"
    return f"{size:.0e}".replace("e-0", "e-") if size else "0"


def signed(value: float | None) -> str:
    """``number`` with its sign: +.381, −.012; 0 has none."""
    text = number(value)
    return f"+{text}" if value is not None and value > 0 else text


def percent(share: float) -> str:
    """A share as per cent: 3%, 2.1%, 41%; tenths only below ten."""
    hundredths = 100 * share
    return f"{hundredths:.{int(hundredths < 9.95)}f}".removesuffix(".0") + "%"


def whole(count: float) -> str:
    """A count: all of its digits up to 9999, then as ``number`` has it."""
    return f"{count:.0f}" if count < 10_000 else number(count)


def duration(seconds: float) -> str:
    """Two units of time at most: 36s, 6m12s, 2h07m, 1d04h."""
    whole = max(0, round(seconds))
    minutes, hours, days = whole // 60, whole // 3600, whole // 86_400
    if days:
        return f"{days}d{hours % 24:02}h"
    if hours:
        return f"{hours}h{minutes % 60:02}m"
    return f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"


def allocation_name(label: str) -> str:
    """Allocations in short: "trajectory_percentile+forking_tokens" is tp+forking."""
    return "+".join(SHORT.get(name, name) for name in label.split("+"))


def model_name(source: str) -> str:
    """A model source in short: "Qwen/Qwen3-4B" is Qwen3-4B, "pypi:a==1" is a 1."""
    if source.startswith("pypi:"):
        return source.removeprefix("pypi:").replace("==", " ")
    return source.rstrip("/").rsplit("/", 1)[-1] or source
