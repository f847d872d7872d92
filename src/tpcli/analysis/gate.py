"""Conditions under which a comparison fails a check, as in ``delta(reward) < 0``. Pure.

``STAT(METRIC) OP NUMBER``, or ``METRIC OP NUMBER`` for its mean. A condition is tripped where it
holds, and where it cannot be told: a gate that cannot look must not let through.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tpcli.analysis.arms import Arm
from tpcli.analysis.compare import (
    END,
    Cell,
    Statistics,
    Versus,
    available,
    check_known,
    incomparable,
    row_of,
)
from tpcli.errors import UsageError

STATS: dict[str, Callable[[Versus], float | None]] = {
    "delta": lambda one: one.difference,
    "low": lambda one: one.low,
    "high": lambda one: one.high,
    "p": lambda one: one.p,
    "p_t": lambda one: one.p_t,
}
"""Of an arm against the first; ``mean`` is of every arm."""
OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
FORM = re.compile(
    r"\s*(?:(?P<stat>\w+)\s*\(\s*(?P<of>[^()]+?)\s*\)|(?P<bare>[^\s()<>]+))"
    r"\s*(?P<op><=|>=|<|>)\s*(?P<number>[^\s<>=]+)\s*"
)


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition as read; ``text`` is what was typed."""

    text: str
    stat: str
    metric: str
    op: str
    number: float


@dataclass(frozen=True, slots=True)
class Trip:
    """A condition that one arm trips.

    Attributes:
        value: what it was compared as; None where there is none, and ``reason`` says why.
    """

    condition: str
    arm: str
    value: float | None
    reason: str


def parse(text: str) -> Condition:
    """Read a condition; UsageError, with the forms there are, where it is none."""
    found = FORM.fullmatch(text)
    forms = "STAT(METRIC) OP NUMBER, as in 'delta(reward) < 0'"
    if found is None:
        raise UsageError(f"--fail-if {text!r} is no condition", hint=forms)
    stat = found["stat"] or "mean"
    if stat not in ("mean", *STATS):
        known = ", ".join(("mean", *STATS))
        raise UsageError(f"--fail-if {text!r}: no statistic {stat}", hint=f"there are {known}")
    try:
        number = float(found["number"])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"--fail-if {text!r}: {found['number']} is no number", hint=forms)
    return Condition(text.strip(), stat, found["of"] or found["bare"], found["op"], number)


def tripped(arms: Sequence[Arm], conditions: Sequence[Condition], tests: Statistics) -> list[Trip]:
    """Every condition that holds or cannot be told, by arm; metrics are taken at the end.

    Raises:
        UsageError: a metric that no run has.
    """
    known = available(arms)
    for condition in conditions:
        check_known(known, condition.metric)
    return [trip for one in conditions for trip in _trips(arms, one, tests)]


def _trips(arms: Sequence[Arm], condition: Condition, tests: Statistics) -> Iterable[Trip]:
    reason = incomparable(arms, condition.metric)
    row = row_of(arms, condition.metric, END, tests)
    looked: Sequence[Cell | Versus] = row.cells if condition.stat == "mean" else row.versus
    for one in looked:
        if reason:
            yield Trip(condition.text, one.arm, None, reason)
            continue
        value = one.mean if isinstance(one, Cell) else STATS[condition.stat](one)
        if value is None:
            why = "it has no value" if isinstance(one, Cell) else one.says
            yield Trip(condition.text, one.arm, None, why)
        elif OPERATORS[condition.op](value, condition.number):
            yield Trip(condition.text, one.arm, value, "")
