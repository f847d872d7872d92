"""The grid of a sweep, as text."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from tpcli.cli import grid
from tpcli.jobs.ablate import Progress, Standing
from tpcli.jobs.grid import Variant
from tpcli.jobs.sweep import Cell, Sweep

LABELS = ("off", "linear", "cosine")


def done(variant: int, seed: int, value: float, *, reused: bool = False) -> Standing:
    cell = Cell(variant, seed, "f", f"run{variant}{seed}", reused)
    return Standing(cell, "finished", value, step=100, share=1.0, seconds=60.0)


def progress() -> Progress:
    """Two variants whole, the third in every other state."""
    off = [done(0, seed, value) for seed, value in enumerate((0.302, 0.315, 0.318, 0.31, 0.311))]
    linear = [done(1, s, v) for s, v in enumerate((0.319, 0.331, 0.325, 0.34))]
    linear.append(done(1, 4, 0.3, reused=True))
    cosine = [
        done(2, 0, 0.322),
        Standing(Cell(2, 1, "f", "b6t1yga"), "running", step=61, share=0.61, seconds=36.6),
        Standing(Cell(2, 2, "f", "b6t1ygb"), "stopped", step=40, share=0.4),
        Standing(Cell(2, 3, "f", "b6t1yge"), "failed", step=12, share=0.12, error="out of memory"),
        Standing(Cell(2, 4, "f"), "queued"),
    ]
    cells = (*off, *linear, *cosine)
    sweep = Sweep(
        id="h2k6",
        name="math-sched",
        created=0.0,
        recipe=Path("recipes/math.toml"),
        overrides=(),
        code="c",
        argv=(),
        variants=tuple(map(Variant, LABELS)),
        seeds=(0, 1, 2, 3, 4),
        metric="sampled",
        baseline=0,
        cells=tuple(one.cell for one in cells),
    )
    return Progress(sweep, cells, (14,), 1, stopping=0)


def test_the_whole_table() -> None:
    assert [line.plain for line in grid.table(progress(), 120)] == [
        "math-sched h2k6  s0     s1     s2     s3     s4     sampled      Δ off",
        "off              ✓.302  ✓.315  ✓.318  ✓.310  ✓.311  .311 ±.0061",
        "linear           ✓.319  ✓.331  ✓.325  ✓.340  ↺.300  .323 ±.015   +.012 ▲4/5",
        "cosine           ✓.322  ▶ 61%  ■ 40%  ✗ @12  ◌ q1   .322  n=1    +.020 ?",
        "11/15 done · 1 running · 1 queued · 1 stopped · 1 failed · ↺ 1 reused · eta 1m23s",
        "✗ cosine·s3 out of memory @12   tpcli logs b6t1yge",
        "go on with what failed: tpcli ablate --resume h2k6 --retry-failed",
    ]


def test_the_spread_is_that_of_a_sample_and_the_difference_is_paired() -> None:
    """sd of 1, 2, 4 with n - 1 is 1.53; differences 1, 2 and 4 - 1 = 3 have mean 2."""
    assert grid.spread({0: 1.0, 1: 2.0, 2: 4.0}) == "2.33 ±1.53"
    assert grid.delta({0: 2.0, 1: 4.0, 2: 4.0, 9: 99.0}, {0: 1.0, 1: 2.0, 2: 1.0}) == "+2.00 ▲3/3"
    assert grid.delta({0: 1.0, 1: 5.0}, {0: 2.0, 1: 7.0}) == "−1.50 ▼2/2"


@pytest.mark.parametrize(
    ("values", "base", "text"),
    [
        ({}, {0: 1.0}, "–"),
        ({1: 2.0}, {0: 1.0}, "–"),
        ({0: 2.0}, {0: 1.0}, "+1.00 ?"),
        ({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}, "0 ="),
    ],
)
def test_what_cannot_be_said_is_not_said(
    values: dict[int, float], base: dict[int, float], text: str
) -> None:
    assert grid.delta(values, base) == text


def test_a_narrow_terminal_loses_the_latest_seeds_never_the_result() -> None:
    lines = [line.plain for line in grid.table(progress(), 60)]
    assert all(len(line) <= 60 for line in lines[:4])
    assert "Δ off" in lines[0]
    assert "s0" in lines[0]
    assert "s4" not in lines[0]


def test_marks_are_coloured() -> None:
    line = grid.table(progress(), 120)[3]
    styles = {line.plain[span.start]: span.style for span in line.spans}
    assert styles == {"✓": "green", "▶": "cyan", "■": "yellow", "✗": "red", "◌": "dim"}


def test_plain_lines_tell_what_ended() -> None:
    out = StringIO()
    display = grid.GridDisplay(Console(file=out, width=200))
    now = progress()
    before = replace(now.cells[11], status="running")
    display.update(replace(now, cells=(*now.cells[:10], before, *now.cells[11:])))
    ended = replace(before, status="finished", value=0.4, seconds=61.0)
    display.update(replace(now, cells=(*now.cells[:11], ended, *now.cells[12:])))
    display.update(replace(now, cells=(*now.cells[:11], ended, *now.cells[12:])))
    text = out.getvalue().splitlines()
    assert "cosine·s1 ✓.400 · b6t1yga · 1m01s" in text
    assert sum("done" in line for line in text) == 2, "once at first, once when one ended"


def test_stopping_says_what_a_second_time_does() -> None:
    assert "again: now" in grid.summary(replace(progress(), stopping=2))


def test_json_names_every_cell_and_the_groups() -> None:
    told = grid.record(progress())
    assert len(told["cells"]) == 15
    assert told["cells"][9] == {
        "variant": "linear",
        "seed": 4,
        "run": "run14",
        "status": "finished",
        "reused": True,
        "step": 100,
        "value": 0.3,
        "error": None,
    }
    assert [one["group"] for one in told["variants"]] == [
        "@h2k6.off",
        "@h2k6.linear",
        "@h2k6.cosine",
    ]
