"""What a comparison may claim, in sentences, and how its numbers and values are written. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from tpcli.analysis.compare import ALPHA, Row, Versus

MINUS = "−"
NOTHING = "—"
DIGITS = 3
LONGEST = 160
"""Characters of a recipe's value."""


def shown(value: float | None, *, signed: bool = False) -> str:
    """Three significant digits, a dash for None; with a plus where ``signed``."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    size = abs(value)
    text = f"{size:,.0f}" if size >= 1000 else f"{size:#.3g}".rstrip(".")
    return (MINUS if value < 0 else "+" * signed) + text


def probability(p: float | None) -> str:
    """Three decimals of a p value."""
    if p is None:
        return NOTHING
    return f"{p:.3f}" if p >= 0.001 else "< 0.001"


def spread(sd: float) -> str:
    """Two significant digits of a standard deviation."""
    return shown(float(f"{sd:.2g}")) if sd >= 1000 else f"{sd:#.2g}".rstrip(".")


def interval(one: Versus) -> str:
    """The 95% interval of a difference: both ends to the digits that the larger one has."""
    if one.low is None or one.high is None:
        return NOTHING
    largest = max(abs(one.low), abs(one.high))
    places = max(0, DIGITS - 1 - math.floor(math.log10(largest)))
    low, high = (f"{end:+,.{places}f}".replace("-", MINUS) for end in (one.low, one.high))
    return f"{low} to {high}"


def duration(seconds: float) -> str:
    """Hours and minutes, or minutes and seconds of what is shorter than an hour."""
    minutes = int(seconds // 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {int(seconds % 60):02d} s"


def setting(values: Sequence[Any]) -> str:
    """The different values that an arm's runs have of a key; what a run lacks is a dash."""
    return " | ".join(map(_value, values))


def moment(row: Row) -> str:
    """When a row's values were taken."""
    return {"end": "at the end", "best": "at its best"}.get(row.when, f"at {row.when}")


def verdict(row: Row, one: Versus) -> str:
    """What can and what cannot be said of one arm against the first, in one metric."""
    base = row.cells[0].arm
    head = f"{row.metric} {moment(row)}: "
    if one.difference is None:
        return f"{head}{one.arm} and {base} cannot be compared: {one.says}."
    found = f"{head}{one.arm} {_against(one.difference, base)}{_spread(one)}."
    if one.left_out:
        found += f" Only one of the two has seed {', '.join(map(str, one.left_out))}: left out."
    if one.p is None:
        return found
    text = f"{found} Exact p = {probability(one.p)}"
    if one.p_holm is not None:
        text += f", {probability(one.p_holm)} corrected for the number of arms"
    if one.more:  # whatever the values, this test cannot reach .05
        normal = "" if one.p_t is None else f"; the t test has p {_compared(one.p_t)}"
        return f"{text}: {len(one.pairs)} seeds can decide nothing by it{normal}."
    p = one.p if one.p_holm is None else one.p_holm
    return f"{text}: {'a difference is shown' if p <= ALPHA else 'no difference is shown'}."


def _compared(p: float) -> str:
    return f"= {probability(p)}" if p >= 0.001 else probability(p)


def limits(rows: Sequence[Row]) -> list[str]:
    """What the pairs of a comparison cannot show, whatever their values, a sentence each."""
    ones = [one for row in rows for one in row.versus if one.pairs]
    few = {len(one.pairs): one for one in ones if one.more or len(one.pairs) == 1}
    found = [_limit(n, one) for n, one in sorted(few.items())]
    if any(one.p is not None and one.p > ALPHA for one in ones):
        found.append(
            "That no difference is shown does not mean that there is none: "
            "the interval holds the differences that the seeds speak for."
        )
    return found


def _limit(n: int, one: Versus) -> str:
    if one.smallest_p is None:
        return "With one seed in common, effect cannot be told from chance: no interval, no test."
    more = "1 more seed" if one.more == 1 else f"{one.more} more seeds"
    corrected = "" if one.p_holm is None else ", before the correction for several arms"
    return (
        f"With {n} seeds in common the exact sign-flip test reaches p = "
        f"{probability(one.smallest_p)} at best, so it shows no difference at .05, whatever the "
        f"values are; with {more} it could{corrected}."
    )


def _against(difference: float, base: str) -> str:
    if difference == 0:
        return f"equals {base}"
    side = "above" if difference > 0 else "below"
    return f"lies {shown(abs(difference))} {side} {base}"


def _spread(one: Versus) -> str:
    n = len(one.pairs)
    if n == 1:
        return " in the one seed that both have"
    down = sum(value < 0 for value in one.pairs.values())
    side = f"{down} of {n} seeds lower" if down > one.up else f"{one.up} of {n} seeds higher"
    if one.low is None:
        return f" ({side}; {one.says})"
    return f" (95% interval {interval(one)}; {side})"


def _value(value: Any) -> str:
    if value is None:
        return NOTHING
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
