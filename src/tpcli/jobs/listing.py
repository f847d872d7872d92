"""Lists of runs: those that fit some conditions, in some order, and forks under their origin.

A key is a word for a run's column ("name", "seed", "status"), "tag", "age", a short name of a
metric ("reward"), a key of metrics.jsonl ("eval/sampled"), or one of the recipe ("optim.lr").
"""

from __future__ import annotations

import difflib
import json
import math
import operator
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, get_args

from tpcli.analysis.arms import SHORT, key_of
from tpcli.errors import UsageError
from tpcli.jobs.runs import refresh, runs_dir
from tpcli.names import RunStatus
from tpcli.registry.run import Key, Run
from tpcli.registry.store import Registry

TIMES = ("created", "finished", "heartbeat", "removed")
"""Columns that hold a time, in seconds."""
COLUMNS = (
    *("id", "name", "status", "seed", "step", "steps", "horizon", "model", "allocation", "curve"),
    *("recipe", "note", "git", "code", "fingerprint", "host", "pid", "exit_code", "error", "hint"),
    *("parent", "parent_step", "window_start", "window_end", *TIMES),
)
_OWN = {
    "tag": "tags",
    "age": "created",
    "reward/mean": "reward_last",
    "entropy/all": "entropy_last",
    "eval/sampled": "sampled_last",
    "eval/greedy": "greedy_last",
}
"""Keys that have a column under another name."""
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_CONDITION = re.compile(r"\s*([^\s=!<>~]+)\s*(==|!=|<=|>=|=|<|>|~)\s*(.*?)\s*", re.DOTALL)
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Condition:
    """``KEY OP VALUE``.

    Attributes:
        number: the value as a number, where it is one; numbers compare as numbers.
    """

    key: str
    op: str
    text: str
    number: float | None

    def holds(self, value: Any) -> bool:
        """For the value of one run; a value that is missing is unequal to everything."""
        if self.key == "tag":
            fits = operator.contains if self.op == "~" else operator.eq
            return any(fits(tag, self.text) for tag in value) != (self.op == "!=")
        if value is None:
            return self.op == "!="
        if self.op == "~":
            return self.text in text_of(value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return _OPERATORS[self.op](text_of(value), self.text)
        if self.number is not None:
            return _OPERATORS[self.op](value, self.number)
        if self.op in ("=", "!="):
            return self.op == "!="
        raise UsageError(
            f'{self.key} is a number, and "{self.text}" is not', hint=f"'{self.key}{self.op}0.5'"
        )


@dataclass(frozen=True, slots=True)
class Query:
    """What is wanted of a list.

    Attributes:
        where: conditions, which must all hold.
        sort: a key, with "-" in front for the largest first; newest first without one.
        columns: keys that will be shown; here they are only checked.
        limit: how many at most.
        removed: the removed runs in place of the others.
    """

    where: Sequence[str] = ()
    sort: str | None = None
    columns: Sequence[str] = ()
    limit: int | None = None
    removed: bool = False


@dataclass(frozen=True, slots=True)
class Listing:
    """Runs in order, how many there are in all, and what one should know about them."""

    runs: list[Run]
    total: int
    notes: list[str] = field(default_factory=list)


def listing(query: Query = Query()) -> Listing:
    """The runs that a query asks for; those under way are read afresh from their folders.

    Raises:
        UsageError: a condition, or a key that no run has.
    """
    registry = Registry(runs_dir())
    conditions = [condition(text) for text in query.where]
    order = None if query.sort is None else query.sort.removeprefix("-")
    words = [*(one.key for one in conditions), *([] if order is None else [order])]
    if words:
        refresh(registry, registry.under_way(removed=query.removed))
        table = _table(registry, words, removed=query.removed)
    known = [*words, *query.columns]
    notes = _check(registry, known)
    if not words:
        runs = registry.list(limit=query.limit, removed=query.removed)
        if refresh(registry, runs):
            runs = registry.list(limit=query.limit, removed=query.removed)
        return Listing(runs, registry.count(removed=query.removed), notes)
    ids = [k for k, row in table.items() if all(one.holds(row[one.key]) for one in conditions)]
    if order is not None:
        descending = query.sort != order
        ids = _sorted(ids, lambda run_id: table[run_id][order], descending=descending)
    return Listing([*registry.get(ids[: query.limit])], len(table), notes)


def condition(text: str) -> Condition:
    """Read ``KEY OP VALUE``; the operators are = != < <= > >= and ~ for "contains"."""
    found = _CONDITION.fullmatch(text)
    if found is None:
        raise UsageError(
            f'"{text}" is no condition',
            hint="KEY OP VALUE, such as status=finished, 'reward>=0.5', 'age<2d' or name~linear",
        )
    key, op, value = found[1], "=" if found[2] == "==" else found[2], found[3]
    if key == "status" and op in ("=", "!=") and value not in get_args(RunStatus):
        raise UsageError(
            f'no status is called "{value}"', hint=_nearest(value, get_args(RunStatus))
        )
    if key == "tag" and op not in ("=", "!=", "~"):
        raise UsageError(f'tags have no order: "{text}"', hint="tag=NAME, tag!=NAME or tag~PART")
    return Condition(key, op, value, _number(key, value))


def _number(key: str, text: str) -> float | None:
    """A value as a number: of an age 30m, 2h or 3d too, of a time a date."""
    try:
        if key == "age" and text[-1:] in _UNITS:
            return float(text[:-1]) * _UNITS[text[-1]]
        value = float(text)
    except ValueError:
        if key not in TIMES:
            return None
        try:
            return datetime.fromisoformat(text).timestamp()
        except ValueError:
            return None
    return None if math.isnan(value) else value


def key_for(word: str) -> Key:
    """Where the values of a key stand."""
    full = key_of(word)
    if word in COLUMNS or full in _OWN:
        return Key("column", _OWN.get(full, word))
    return Key("metrics" if "/" in full else "settings", full)


def value_of(run: Run, word: str) -> Any:
    """A run's value of a key; None where it has none."""
    if word == "age":
        return time.time() - run.created
    if word == "tag":
        return [*run.tags]
    key = key_for(word)
    if key.place == "column":
        return getattr(run, key.name)
    held: Mapping[str, Any] = run.settings if key.place == "settings" else run.metrics
    return held.get(key.name)


def is_setting(word: str) -> bool:
    """Whether a key is one of the recipe."""
    return key_for(word).place == "settings"


def text_of(value: Any) -> str:
    """A value as it is written in a recipe, strings without their quotes."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _table(registry: Registry, words: Sequence[str], *, removed: bool) -> dict[str, dict[str, Any]]:
    """Of every run, newest first, the values of some keys."""
    rows = registry.values([key_for(word) for word in words], removed=removed)
    table = {run_id: dict(zip(words, values, strict=True)) for run_id, *values in rows}
    if "status" in words:
        for run in registry.under_way(removed=removed):
            table[run.id]["status"] = run.status
    if "age" in words:
        now = time.time()
        for row in table.values():
            row["age"] = now - row["age"]
    return table


def _sorted(ids: Sequence[str], value: Callable[[str], Any], *, descending: bool) -> list[str]:
    """In order of their values, numbers before words; those without one come last, both ways."""

    def rank(run_id: str) -> tuple[bool, Any]:
        found = value(run_id)
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        return (not is_number, found if is_number else text_of(found))

    held = [run_id for run_id in ids if value(run_id) is not None]
    without = [run_id for run_id in ids if value(run_id) is None]
    return sorted(held, key=rank, reverse=descending) + without


def _check(registry: Registry, words: Sequence[str]) -> list[str]:
    """Refuse a key that no run has; say it of a metric that is known and was never recorded."""
    if registry.count() + registry.count(removed=True) == 0:
        return []
    notes = []
    for word in dict.fromkeys(words):
        key = key_for(word)
        if word in COLUMNS or word in ("tag", "age") or registry.has(key):
            continue
        if word in SHORT:
            notes.append(f"no run has recorded {word} yet")
            continue
        every = [*COLUMNS, "tag", "age", *SHORT, *registry.names("settings")]
        every += sorted(registry.names("metrics"))
        raise UsageError(f'no run has "{word}"', hint=_nearest(word, every))
    return notes


def _nearest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return "columns: " + ", ".join(known[:10]) + ", ..." if len(known) > 10 else ", ".join(known)


def tree(runs: Sequence[Run]) -> list[tuple[str, Run]]:
    """Forks behind the run that they came from, each with what is drawn in front of it.

    Siblings stand in order of the step that they forked at. A fork whose origin is not in the
    list stands where it was.
    """
    here = {run.id for run in runs}
    below: dict[str, list[Run]] = {}
    for run in runs:
        if run.parent in here and run.parent is not None:
            below.setdefault(run.parent, []).append(run)
    lines: list[tuple[str, Run]] = []

    def place(run: Run, mark: str, indent: str) -> None:
        lines.append((mark, run))
        forks = sorted(
            below.get(run.id, ()), key=lambda fork: (fork.parent_step or 0, fork.created)
        )
        for fork in forks:
            last = fork is forks[-1]
            step = "" if fork.parent_step is None else f"@{fork.parent_step} "
            place(
                fork,
                f"{indent}{'└─' if last else '├─'} {step}",
                indent + ("   " if last else "│  "),
            )

    for run in runs:
        if run.parent not in here:
            place(run, "", "")
    placed = {run.id for _, run in lines}  # two that name each other have no beginning
    return lines + [("", run) for run in runs if run.id not in placed]
