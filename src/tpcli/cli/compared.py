"""The screens of ``tpcli compare``: tables, footnotes and curves, for a terminal or a file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from tpcli.cli.columns import GAP, Column, fitting, joined, latex, markdown
from tpcli.cli.glyphs import number, signed

if TYPE_CHECKING:
    from rich.text import Text

    from tpcli.analysis.arms import AlignName
    from tpcli.analysis.compare import Cell, Comparison, Row, Versus
    from tpcli.analysis.gate import Trip

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
PLOT = 6
"""Lines of a plot."""
WIDEST = 100
"""Characters of a plot, at most, its axes and labels included."""
KEY, VALUE, NARROW = 36, 40, 8
"""Characters of a key and of a value in the table of differences, and of a value at least."""
MARKS = 10
"""Seeds that are marked one by one, at most."""
NAME = 20
"""Characters of an arm's name beside its curve."""
ALONG = {"step": "step", "magnitude": "magnitude", "tokens": "tokens with credit"}


def show(found: Comparison, align: AlignName) -> None:
    """Write the comparison on stdout, fitted to the terminal."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    lines = [*_table(difference_columns(found, console.width), console.width), Text()]
    if found.rows:
        columns = metric_columns(found)
        if fitting(columns, console.width) != columns:
            columns = metric_columns(found, marks=False)
        lines += _table(columns, console.width)
        lines += [Text(note, "dim") for note in footnotes(found)]
    for metric in found.metrics:
        lines += _curves(found, metric, align, min(console.width, WIDEST))
    if found.warnings:
        lines.append(Text())
    for warning in found.warnings:
        lines.append(Text.assemble(("warning: ", "yellow"), warning))
    for line in lines:
        console.print(line, soft_wrap=True)


def tripped(trip: Trip) -> str:
    """One tripped condition as a line."""
    if trip.value is None:
        return f"tripped: {trip.condition}: cannot be told of {trip.arm}: {trip.reason}"
    return f"tripped: {trip.condition}: {trip.arm} has {trip.value:.6g}"


def to_markdown(found: Comparison) -> str:
    """The whole comparison, curves apart, as a page of Markdown."""
    others = ", ".join(arm.label for arm in found.arms[1:])
    parts = [f"# {others} against {found.arms[0].label}"]
    if found.rows:
        parts.append(markdown(metric_columns(found)))
        parts.append("\n".join(f"- {note}" for note in footnotes(found)))
    parts += ["## What differs", markdown(difference_columns(found))]
    if found.warnings:
        parts += ["## Warnings", "\n".join(f"- {warning}" for warning in found.warnings)]
    return "\n\n".join(parts)


def to_latex(found: Comparison) -> str:
    """The table of metrics and that of differences, notes and warnings as comments."""
    told = [f"% {line}" for line in (*footnotes(found), *found.warnings)]
    tables = [metric_columns(found, marks=False)] if found.rows else []
    return "\n".join([*map(latex, [*tables, difference_columns(found)]), *told])


TABLES: dict[str, Callable[[Comparison], str]] = {".md": to_markdown, ".tex": to_latex}
"""The formats of ``--out`` that are tables of text, by ending."""


# metrics


def metric_columns(found: Comparison, *, marks: bool = True) -> list[Column]:
    """A row a metric where two arms are compared; with more, a row an arm of each metric."""
    if len(found.arms) > 2:
        return _by_arm(found, marks)
    base, other = found.arms
    against = [row.versus[0] for row in found.rows]
    return [
        Column("metric", [_title(found, row) for row in found.rows], 0),
        *(
            Column(f"{arm.label} n={len(arm.runs)}", _means(found, which), rank, right=True)
            for which, (arm, rank) in enumerate(((base, 5), (other, 1)))
        ),
        Column("Δ paired", [signed(one.difference) for one in against], 1, right=True),
        *_tests(against, marks),
    ]


def _by_arm(found: Comparison, marks: bool) -> list[Column]:
    base = found.arms[0].label
    titles, arms, means, against = [], [], [], list[Any]()
    for row in found.rows:
        for which, cell in enumerate(row.cells):
            titles.append("" if which else _title(found, row))
            arms.append(f"{cell.arm} n={cell.n}")
            means.append(_mean(cell, cell.n))
            against.append(row.versus[which - 1] if which else None)
    corrected = ["" if one is None else number(one.p_holm) for one in against]
    deltas = ["" if one is None else signed(one.difference) for one in against]
    return [
        Column("metric", titles, 0),
        Column("arm", arms, 0),
        Column("mean", means, 1, right=True),
        Column(f"Δ {base}", deltas, 1, right=True),
        *_tests(against, marks),
        Column("p Holm", corrected, 4, right=True),
    ]


def _tests(against: Sequence[Versus | None], marks: bool) -> list[Column]:
    """The interval, both p and the seeds, a row each; None leaves the row blank."""

    def told(cell: Callable[[Versus], str]) -> list[str]:
        return ["" if one is None else cell(one) for one in against]

    return [
        Column("95% CI", told(_interval), 2, right=True),
        Column("p", told(lambda one: number(one.p)), 1, right=True),
        Column("p t-test", told(lambda one: number(one.p_t)), 6, right=True),
        Column("seeds up", told(lambda one: _seeds(one, marks)), 3, right=True),
    ]


def _title(found: Comparison, row: Row) -> str:
    if row.when.startswith("step "):
        return f"{row.metric}@{row.when.removeprefix('step ')}"
    runs = [run for arm in found.arms for run in arm.runs]
    samples = {run.scores[row.metric].n for run in runs if row.metric in run.scores}
    if len(samples) == 1:
        return f"{row.metric} avg@{samples.pop()}"
    return row.metric if row.when == "end" else f"{row.metric} {row.when}"


def _means(found: Comparison, which: int) -> list[str]:
    return [_mean(row.cells[which], len(found.arms[which].runs)) for row in found.rows]


def _mean(cell: Cell, expected: int) -> str:
    spread = "" if cell.sd is None else f" ±{number(cell.sd)}"
    few = "" if cell.n in (0, expected) else f" n={cell.n}"
    return number(cell.mean) + spread + few


def _interval(one: Versus) -> str:
    return "–" if one.low is None else f"[{signed(one.low)}, {signed(one.high)}]"


def _seeds(one: Versus, marks: bool) -> str:
    if not one.pairs:
        return "–"
    share = f"{one.up}/{len(one.pairs)}"
    return f"{one.marks} {share}" if marks and len(one.pairs) <= MARKS else share


def footnotes(found: Comparison) -> list[str]:
    """What one must know to read the numbers."""
    from tpcli.analysis.compare import FLIPS

    notes = ["values are means of the last tenth of the steps"]
    if any(cell.sd is not None for row in found.rows for cell in row.cells):
        notes[0] += "; ±: standard deviation over seeds"
    if any(row.when == "best" for row in found.rows):
        notes.append("best: the largest of many noisy values of a run, so it is optimistic")
    against = [one for row in found.rows for one in row.versus]
    for n in sorted({len(one.pairs) for one in against if one.smallest_p is not None}):
        one = next(one for one in against if len(one.pairs) == n)
        kind = "exact sign-flip" if 2**n <= FLIPS else f"sign-flip, {FLIPS:,} random flips"
        notes.append(f"{kind}: {_reach(one)}")
    if any(one.p_holm is not None for one in against):
        notes.append("p Holm: p corrected over the arms of a metric, not over metrics")
    silent: dict[str, list[str]] = {}
    for row in found.rows:
        for one in row.versus:
            if one.says:
                silent.setdefault(f"{one.arm}: {one.says}", []).append(_title(found, row))
            if one.left_out:
                out = f"{one.arm}: seeds without a pair are left out: {_listed(one.left_out)}"
                silent.setdefault(out, []).append(_title(found, row))
    every = {_title(found, row) for row in found.rows}
    for sentence, metrics in silent.items():
        where = "" if {*metrics} == every else f" ({', '.join(metrics)})"
        notes.append(sentence + where)
    return notes


def _reach(one: Versus) -> str:
    """The smallest p at so many seeds, and how many more would do."""
    reach = f"the smallest p at n={len(one.pairs)} is {number(one.smallest_p)}"
    if not one.more:
        return reach
    return f"{reach}; {one.more} more seed{'s' * (one.more > 1)} could reach .05"


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


# what differs


def difference_columns(found: Comparison, width: int | None = None) -> list[Column]:
    """Recipe, git and origin, only what differs; cut to ``width`` characters where it is given."""
    rows = [*((one.key, one.values) for one in found.recipe)]
    equal = f"… {found.equal:,} key{'s' * (found.equal != 1)} equal"
    commits = tuple(tuple(dict.fromkeys(r.origin.get("git") for r in a.runs)) for a in found.arms)
    rows.append((equal, commits))
    rows += [(one.key, one.values) for one in found.origin if one.key != "git"]
    keys = [_cut(key, KEY if width else len(key)) for key, _ in rows]
    room = VALUE
    if width is not None:
        left = width - max(map(len, ("recipe diff", *keys))) - GAP * len(found.arms)
        room = max(NARROW, min(VALUE, left // len(found.arms)))
    columns = [Column("recipe diff", keys, 0)]
    for which, arm in enumerate(found.arms):
        told = [("git " if key == equal else "") + _told(values[which]) for key, values in rows]
        cut = [_cut(text, room if width else len(text)) for text in told]
        columns.append(Column(_cut(arm.label, room) if width else arm.label, cut, 1 + which))
    return columns


def _told(values: Sequence[Any]) -> str:
    return " | ".join(_value(value) for value in values)


def _value(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if not isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return value[:12] if re.fullmatch(r"[0-9a-f]{40,64}", value) else value


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


# the terminal


def _table(columns: Sequence[Column], width: int) -> list[Text]:
    from rich.text import Text

    kept = fitting(columns, width)
    head = joined(kept, None)
    body = [joined(kept, row) for row in range(len(kept[0].cells))]
    rule = "─" * max(map(len, (head, *body)))
    lines = [Text(head, "dim"), Text(rule, "dim"), *map(Text, body)]
    gone = [column.title for column in columns if column not in kept]
    if gone:
        lines.append(Text(f"no room for {', '.join(gone)}: --out FILE.md has all", "dim"))
    return lines


def _curves(found: Comparison, metric: str, align: AlignName, width: int) -> list[Text]:
    """The mean over seeds of every arm, its name and last value at the right end of its curve."""
    from rich.text import Text

    from tpcli.analysis.compare import mean_course
    from tpcli.cli.chart import LABEL, overlay

    bands = [mean_course(arm, metric, align) for arm in found.arms]
    known = [band for band in bands if band.x]
    if not known or min(band.x[0] for band in known) == max(band.x[-1] for band in known):
        return []
    flip = align == "magnitude"
    ends = [None if not b.x else b.mean[0 if flip else -1] for b in bands]
    names = [
        "" if end is None else f"{_cut(arm.label, NAME)} {number(end)}"
        for arm, end in zip(found.arms, ends, strict=True)
    ]
    room = width - LABEL - 2 - 1 - max(map(len, names))
    height = max(PLOT, len(bands))
    lines, owners = overlay([(b.x, b.mean) for b in bands], width=room, height=height, flip=flip)
    values = [value for band in known for value in band.mean]
    beside = _beside(ends, min(values), max(values), height)
    out = [Text(f"\n{metric}", "bold").append(f" over {ALONG[align]}, mean over seeds", "dim")]
    for row, line in enumerate(lines):
        text = Text(line)
        for place, owner in enumerate(owners[row] if row < height else ()):
            if owner is not None:
                text.stylize(COLOURS[owner % len(COLOURS)], place + LABEL + 2, place + LABEL + 3)
        if row in beside:
            text.append(f" {names[beside[row]]}", COLOURS[beside[row] % len(COLOURS)])
        out.append(text)
    return out


def _beside(ends: Sequence[float | None], bottom: float, top: float, height: int) -> dict[int, int]:
    """The line that each curve's name stands on: its last value's, or the nearest that is free."""
    taken: dict[int, int] = {}
    for which, end in enumerate(ends):
        if end is None:
            continue
        share = (end - bottom) / ((top - bottom) or 1.0)
        wanted = height - 1 - round(share * (height - 1))
        free = [row for row in range(height) if row not in taken]
        taken[min(free, key=lambda row: abs(row - wanted))] = which
    return taken
