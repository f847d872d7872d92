"""What ``tpcli ablate --plan`` prints: the grid, what it will cost, and what its seeds can tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tpcli.cli.columns import Column, fitting, joined
from tpcli.cli.glyphs import duration, number
from tpcli.cli.grid import cell_text
from tpcli.jobs.ablate import standing

if TYPE_CHECKING:
    from rich.text import Text

    from tpcli.jobs.outlook import Outlook
    from tpcli.jobs.sweep import Sweep

SHOWN = 6
"""Runs that are named as the source of a figure."""


def sheet(
    sweep: Sweep, found: Outlook, *, jobs: int, difference: float | None, width: int
) -> list[Text]:
    """The grid with what is there already, then facts."""
    from rich.text import Text

    columns = fitting(_columns(sweep), width)
    total = len(sweep.cells)
    head = f" · {sweep.path} · {_count(len(sweep.variants), 'variant')} × "
    head += f"{_count(len(sweep.seeds), 'seed')} = {_count(total, 'run')}"
    rows = range(len(sweep.variants))
    facts = [
        ("to train", _open(found, total)),
        ("time", _time(found, jobs)),
        ("seeds", _seeds(sweep, found)),
        ("exact test", _exact(len(sweep.seeds))),
        *([("to find", _needed(found, difference))] if difference is not None else []),
    ]
    return [
        Text.assemble((sweep.name, "bold"), head),
        Text(),
        Text(joined(columns, None), "dim"),
        *(Text(joined(columns, row)) for row in rows),
        Text(),
        *(Text.assemble((f"{label:<12}", "dim"), text) for label, text in facts),
    ]


def _columns(sweep: Sweep) -> list[Column]:
    wide = len(sweep.seeds)
    texts = [cell_text(standing(cell, sweep.metric), 0) for cell in sweep.cells]
    labels = [
        variant.label + " (baseline)" * (at == sweep.baseline and len(sweep.variants) > 1)
        for at, variant in enumerate(sweep.variants)
    ]
    changes = [", ".join(variant.overrides) or "as it is" for variant in sweep.variants]
    return [
        Column("variant", labels, 0),
        Column("differs in", changes, 1),
        *(
            Column(f"s{seed}", texts[place::wide], 2 + place)
            for place, seed in enumerate(sweep.seeds)
        ),
    ]


def _open(found: Outlook, total: int) -> str:
    there = total - found.runs
    return f"{found.runs} of {_count(total, 'run')}" + (f"; {there} are there" if there else "")


def _time(found: Outlook, jobs: int) -> str:
    if found.seconds_a_step is None or found.seconds is None:
        return "not known: no finished run of this model, rollout and evaluation yet"
    runs = _named(found.timed)
    whole = f"{duration(found.seconds)} one after the other"
    if jobs > 1:
        whole += f", {duration(found.seconds / jobs)} if {jobs} at once go as fast"
    return f"{whole}: {number(found.seconds_a_step)} s/step, the median of {runs}"


def _named(ids: Sequence[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")


def _seeds(sweep: Sweep, found: Outlook) -> str:
    if found.sd is None:
        return (
            "their variance is not known: it takes two finished seeds of a variant "
            f"that differ in {sweep.metric}"
        )
    detects = ", ".join(f"{n} find {number(value)}" for n, value in found.detects.items())
    return (
        f"differences in {sweep.metric} vary by ±{number(found.sd)} ({found.spread_of}): "
        f"{detects}, with probability .8"
    )


def _exact(seeds: int) -> str:
    """What the sign-flip test can reach with so many seeds: p = 2 / 2^n."""
    if seeds < 2:
        return "one seed: no interval and no test; --seeds 0-5 would allow both"
    smallest = 2 / 2**seeds
    enough = math.ceil(math.log2(2 / 0.05))
    more = "" if smallest <= 0.05 else f"; {enough} seeds can reach .05"
    return f"{seeds} seeds can reach p = {number(smallest)} at best{more}"


def _needed(found: Outlook, difference: float | None) -> str:
    if found.sd is None:
        return f"{number(difference)}: not known without the seeds' variance"
    needed = "more than 10,000 seeds" if found.needed is None else _count(found.needed, "seed")
    return f"{number(difference)} with probability .8: {needed}"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' if count != 1 else ''}"


def record(sweep: Sweep, found: Outlook) -> dict[str, Any]:
    """The plan as JSON."""
    return {
        "name": sweep.name,
        "recipe": str(sweep.path),
        "metric": sweep.metric,
        "baseline": sweep.variants[sweep.baseline].label,
        "seeds": list(sweep.seeds),
        "variants": [asdict(variant) for variant in sweep.variants],
        "cells": [asdict(cell) for cell in sweep.cells],
        **asdict(found),
    }
