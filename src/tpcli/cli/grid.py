"""The grid of a sweep: variants by seeds, as it fills."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tpcli.cli.columns import Column, fitting, joined
from tpcli.cli.glyphs import duration, number, percent, signed
from tpcli.cli.runs_list import MARKS

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from tpcli.jobs.ablate import Progress, Standing
    from tpcli.jobs.sweep import Sweep

REUSED = ("↺", "blue")
QUEUED = MARKS["created"]
LIVE_INTERVAL = 0.5
PLAIN_INTERVAL = 60.0
SHOWN = 4
"""Failures that are told one by one."""


class GridDisplay:
    """Shows a sweep on ``console`` (stderr): the grid on a terminal, else plain lines.

    Plain lines come when a run ends, once a minute, and at the end.
    """

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        self._console = console
        self._ended: set[int] | None = None
        self._printed = 0.0
        self._last: Progress | None = None
        self._said = ""
        self._live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(
                console=console, auto_refresh=False, redirect_stdout=False, transient=True
            )
            self._live.start()

    def update(self, progress: Progress) -> None:
        """Show ``progress``; call it as often as you like."""
        from rich.console import Group

        self._last = progress
        due = time.monotonic() - self._printed
        if self._live and due >= LIVE_INTERVAL:
            self._live.update(Group(*table(progress, self._console.width)), refresh=True)
            self._printed = time.monotonic()
        elif not self._live:
            self._tell(progress, due >= PLAIN_INTERVAL)

    def stop(self) -> None:
        """Give the terminal back; the grid is printed by whoever has the result."""
        if self._live:
            self._live.stop()
        elif self._last and summary(self._last) != self._said:
            self._write(summary(self._last))

    def _tell(self, progress: Progress, due: bool) -> None:
        over = ("finished", "failed", "dead", "stopped")
        ended = {at for at, one in enumerate(progress.cells) if one.status in over}
        before = ended if self._ended is None else self._ended
        for at in sorted(ended - before):
            one = progress.cells[at]
            what = f"{name(progress.sweep, one)} {cell_text(one, 0)}"
            self._write(f"{what} · {one.cell.run} · {duration(one.seconds)}")
        if self._ended is None or ended - before or due:
            self._said = summary(progress)
            self._write(self._said)
            self._printed = time.monotonic()
        self._ended = ended

    def _write(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False, emoji=False)


def table(progress: Progress, width: int) -> list[Text]:
    """A row a variant, a column a seed; what does not fit is left out, the latest seeds first."""
    from rich.text import Text

    columns = fitting(_columns(progress), width)
    lines = [Text(joined(columns, None), "dim")]
    for row in range(len(progress.sweep.variants)):
        line = Text(joined(columns, row))
        for mark, style in (*MARKS.values(), REUSED):
            line.highlight_words([mark], style)
        lines.append(line)
    told = [Text(f"warning: {text}", "yellow") for text in progress.warnings]
    return [*lines, Text(summary(progress), "dim"), *_failures(progress), *told]


def _columns(progress: Progress) -> list[Column]:
    sweep = progress.sweep
    rows = by_variant(progress)
    places = {at: place for place, at in enumerate(progress.queue, start=1)}
    texts = [cell_text(one, places.get(at, 0)) for at, one in enumerate(progress.cells)]
    wide = len(sweep.seeds)
    base = values(rows[sweep.baseline])
    found = [
        Column(f"{sweep.name} {sweep.id}", [variant.label for variant in sweep.variants], 0),
        *(
            Column(f"s{seed}", texts[place::wide], 3 + place)
            for place, seed in enumerate(sweep.seeds)
        ),
        Column(sweep.metric, [spread(values(row)) for row in rows], 1),
    ]
    if len(rows) > 1:
        deltas = [
            "" if at == sweep.baseline else delta(values(row), base) for at, row in enumerate(rows)
        ]
        found.append(Column(f"Δ {sweep.variants[sweep.baseline].label}", deltas, 2))
    return found


def by_variant(progress: Progress) -> list[list[Standing]]:
    """The cells of each variant, seed by seed."""
    wide = len(progress.sweep.seeds)
    return [[*progress.cells[at : at + wide]] for at in range(0, len(progress.cells), wide)]


def values(row: Sequence[Standing]) -> dict[int, float]:
    """The metric by seed, of the runs that are finished."""
    return {one.cell.seed: one.value for one in row if one.value is not None}


def cell_text(one: Standing, place: int) -> str:
    """One cell in about six characters. ``place``: in the queue, from 1."""
    if one.status == "finished":
        mark = REUSED[0] if one.cell.reused else MARKS["finished"][0]
        return f"{mark}{number(one.value)}"
    if one.status in ("queued", "created"):
        done = f" {percent(one.share)}" if one.share else ""
        return f"{QUEUED[0]}{done}{f' q{place}' if place else ''}"
    mark = MARKS[one.status][0]
    if one.status in ("failed", "dead"):
        return f"{mark} @{one.step}"
    return f"{mark} {percent(one.share)}"


def spread(by_seed: Mapping[int, float]) -> str:
    """Mean and standard deviation over seeds; of one seed there is none."""
    if not by_seed:
        return "–"
    mean = number(statistics.fmean(by_seed.values()))
    if len(by_seed) == 1:
        return f"{mean}  n=1"
    return f"{mean} ±{number(statistics.stdev(by_seed.values()))}"


def delta(by_seed: Mapping[int, float], base: Mapping[int, float]) -> str:
    """The mean paired difference and in how many seeds it goes that way; "?" for one seed."""
    pairs = [value - base[seed] for seed, value in by_seed.items() if seed in base]
    if not pairs:
        return "–"
    mean = statistics.fmean(pairs)
    if len(pairs) == 1:
        return f"{signed(mean)} ?"
    if mean == 0:
        return "0 ="
    mark = "▲" if mean >= 0 else "▼"
    agree = sum(pair > 0 if mean >= 0 else pair < 0 for pair in pairs)
    return f"{signed(mean)} {mark}{agree}/{len(pairs)}"


def summary(progress: Progress) -> str:
    """How many cells stand how, and when the last one will be done."""
    counts, total = progress.counts, len(progress.cells)
    parts = [f"{counts['finished']}/{total} done"]
    queued = counts["queued"] + counts["created"]
    named = {"running": counts["running"], "queued": queued}
    named |= {status: counts[status] for status in ("stopped", "failed", "dead")}
    parts += [f"{count} {status}" for status, count in named.items() if count]
    reused = sum(one.cell.reused for one in progress.cells)
    if reused:
        parts.append(f"{REUSED[0]} {reused} reused")
    if progress.stopping and progress.at_once:
        parts.append("stopping after this step (again: now)")
    elif progress.eta is not None:
        parts.append(f"eta {duration(progress.eta)}")
    return " · ".join(parts)


def _failures(progress: Progress) -> list[Text]:
    from rich.text import Text

    failed = [one for one in progress.cells if one.status in ("failed", "dead")]
    lines = []
    for one in failed[:SHOWN]:
        what = f"{MARKS[one.status][0]} {name(progress.sweep, one)} {one.error or one.status}"
        lines.append(Text(f"{what} @{one.step}   tpcli logs {one.cell.run}", "red"))
    if len(failed) > SHOWN:
        lines.append(Text(f"… and {len(failed) - SHOWN} more", "red"))
    if failed:
        again = f"tpcli ablate --resume {progress.sweep.id} --retry-failed"
        lines.append(Text(f"go on with what failed: {again}", "dim"))
    return lines


def name(sweep: Sweep, one: Standing) -> str:
    """A cell in a word: linear·s3."""
    return f"{sweep.variants[one.cell.variant].label}·s{one.cell.seed}"


def record(progress: Progress) -> dict[str, Any]:
    """The grid as JSON."""
    sweep = progress.sweep
    return {
        "id": sweep.id,
        "name": sweep.name,
        "recipe": str(sweep.path),
        "metric": sweep.metric,
        "baseline": sweep.variants[sweep.baseline].label,
        "variants": [
            {"label": v.label, "overrides": list(v.overrides), "group": f"@{sweep.tag(at)}"}
            for at, v in enumerate(sweep.variants)
        ],
        "cells": [
            {
                "variant": sweep.variants[one.cell.variant].label,
                "seed": one.cell.seed,
                "run": one.cell.run,
                "status": one.status,
                "reused": one.cell.reused,
                "step": one.step,
                "value": one.value,
                "error": one.error,
            }
            for one in progress.cells
        ],
        "folder": str(sweep.folder),
    }
