"""Runs as a table: the columns of a plain list, or those that were asked for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tpcli.cli.columns import GAP, Column, fitting, joined

if TYPE_CHECKING:
    from rich.text import Text

    from tpcli.jobs.listing import Listing
    from tpcli.registry.run import Run

MARKS = {
    "created": ("◌", "dim"),
    "running": ("▶", "cyan"),
    "finished": ("✓", "green"),
    "stopped": ("■", "yellow"),
    "failed": ("✗", "red"),
    "dead": ("☠", "red"),
}
SPARKS = 8


def table(
    rows: Sequence[tuple[str, Run]], asked: Sequence[str], width: int, now: float
) -> list[Text]:
    """One line a run, under a head line. What does not fit is left out, the id never is.

    Args:
        rows: runs, each with what is drawn in front of its id.
        asked: keys to show in place of the usual columns.
    """
    from rich.text import Text

    runs = [run for _, run in rows]
    id_column = Column("id", [mark + run.id for mark, run in rows], 0)
    others = _asked(runs, asked) if asked else _columns(runs, now)
    columns = fitting([id_column, *others], width - 1 - GAP)
    lines = [Text(" " * (1 + GAP) + joined(columns, None), "dim")]
    marks = [MARKS[run.status] for run in runs]
    for row, (mark, style) in enumerate(marks):
        lines.append(Text.assemble((mark, style), " " * GAP, joined(columns, row)))
    return lines


def _asked(runs: Sequence[Run], words: Sequence[str]) -> list[Column]:
    """A column a key; those named last go first when there is no room."""
    from tpcli.jobs.listing import value_of

    columns = []
    for rank, word in enumerate(dict.fromkeys(words), start=1):
        if word != "id":
            values = [value_of(run, word) for run in runs]
            numbers = all(isinstance(value, int | float | None) for value in values)
            cells = [_cell(word, value) for value in values]
            columns.append(Column(word, cells, rank, right=numbers))
    return columns


def _cell(word: str, value: Any) -> str:
    from tpcli.jobs.listing import TIMES, is_setting, text_of

    if value is None or value in ("", []):
        return "–"
    if word == "age":
        return age(value)
    if word in TIMES:
        return moment(value)
    if isinstance(value, list) and word == "tag":
        return ",".join(value)
    if isinstance(value, float) and not is_setting(word):
        return plain(value)
    return text_of(value)


def _columns(runs: Sequence[Run], now: float) -> list[Column]:
    from tpcli.cli.glyphs import sparkline

    sparks = [sparkline(run.reward_history, SPARKS) for run in runs]
    rewards = [f"{plain(run.reward_last):>4} {s}" for run, s in zip(runs, sparks, strict=True)]
    held_out = [_change(run.sampled_first, run.sampled_last) for run in runs]
    return [
        Column("name", [run.name + "*" * run.dirty for run in runs], 1),
        Column("schedule", [schedule(run) for run in runs], 7),
        Column("step", [_progress(run) for run in runs], 2, right=True),
        Column("reward", rewards, 3),
        Column("entropy", [plain(run.entropy_last) for run in runs], 6, right=True),
        Column("held-out", held_out, 4, right=True),
        Column("age", [age(now - run.created) for run in runs], 5, right=True),
    ]


def footer(found: Listing, now: float) -> str:
    """How many there are, and what is wrong with them and what to type."""
    runs = found.runs
    parts = [f"{len(runs)} of {found.total}", *found.notes]
    if any(run.dirty for run in runs):
        parts.append("* dirty tree")
    for run in runs:
        if run.status == "dead":
            silence = age(now - (run.heartbeat or run.created))
            parts.append(f"☠ no heartbeat {silence}: tpcli resume {run.id}")
            break
    for run in runs:
        if run.status == "failed":
            parts.append(f"✗ {run.error or 'failed'}: tpcli runs show {run.id}")
            break
    return " · ".join(parts)


def schedule(run: Run) -> str:
    """Curve and window, "linear .1–.8"; the allocations too where they are not the usual one."""
    from tpcli.cli.glyphs import allocation_name

    if run.allocation == "uniform":
        return "uniform"
    if run.allocation == "trajectory_percentile":
        return _curve(run)
    return f"{allocation_name(run.allocation)}·{_curve(run)}"


def _curve(run: Run) -> str:
    if run.curve == "constant" or run.window_start is None or run.window_end is None:
        return run.curve
    ends = (f"{end:g}".replace("0.", ".") for end in (run.window_start, run.window_end))
    return f"{run.curve} {'–'.join(ends)}"


def _progress(run: Run) -> str:
    return str(run.step) if run.step >= run.steps else f"{run.step}/{run.steps}"


def plain(value: float | None) -> str:
    """A number in about five characters."""
    from tpcli.cli.glyphs import number

    return number(value)


def _change(first: float | None, last: float | None) -> str:
    return plain(last) if first is None or first == last else f"{plain(first)}→{plain(last)}"


def age(seconds: float) -> str:
    """The largest unit alone: 5s, 12m, 2h, 3d."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def moment(seconds: float) -> str:
    """A time, as the clock here shows it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
