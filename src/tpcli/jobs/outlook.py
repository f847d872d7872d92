"""What a sweep will cost, and how many seeds its question needs, judged by past runs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tpcli.analysis.power import detectable, seeds_needed
from tpcli.jobs.ablate import standing
from tpcli.jobs.runs import runs_dir
from tpcli.jobs.sweep import Cell, Sweep
from tpcli.recipe.load import load_recipe
from tpcli.recipe.render import flat
from tpcli.registry import folder
from tpcli.registry.run import Run
from tpcli.registry.store import Registry

COST = ("model.", "rollout.", "launch.", "eval.", "data.max_prompt_tokens", "train.updates")
"""Settings by which two steps cost alike."""
SEEDS = (3, 5, 10)
"""Numbers of seeds for which the difference that they can find is told."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What is known before a sweep.

    Attributes:
        runs: that are still to be trained, of the whole grid.
        seconds_a_step: of past runs that cost alike; None where there is none.
        timed: the ids of those runs.
        seconds: of the runs to be trained, one after the other; None as above.
        sd: standard deviation over seeds of the difference from the baseline.
        spread_of: what ``sd`` is taken from: "paired differences of 5 seeds", or "".
        detects: by number of seeds, the difference found with probability .8.
        needed: seeds for the difference that was asked about; None where it is not known.
    """

    runs: int
    seconds_a_step: float | None
    timed: tuple[str, ...]
    seconds: float | None
    sd: float | None
    spread_of: str
    detects: Mapping[int, float]
    needed: int | None


def outlook(sweep: Sweep, *, difference: float | None = None) -> Outlook:
    """Judge a sweep by the runs there are.

    Args:
        difference: of the sweep's metric, that the sweep should find.
    """
    found = [standing(cell, sweep.metric) for cell in sweep.cells]
    open_ = [one for one in found if one.status != "finished"]
    pace, timed = _pace(sweep)
    steps = sum(_steps(sweep, one.cell) - one.step for one in open_)
    sd, source = _spread(sweep)
    return Outlook(
        runs=len(open_),
        seconds_a_step=pace,
        timed=timed,
        seconds=None if pace is None else pace * steps,
        sd=sd,
        spread_of=source,
        detects={n: detectable(n, sd) for n in SEEDS} if sd else {},
        needed=seeds_needed(difference, sd) if difference and sd else None,
    )


def _steps(sweep: Sweep, cell: Cell) -> int:
    return sweep.plan(cell).recipe.train.steps


def _pace(sweep: Sweep) -> tuple[float | None, tuple[str, ...]]:
    """Median seconds a step of the newest few runs that cost alike."""
    recipe = load_recipe(sweep.recipe, overrides=sweep.overrides).recipe
    wanted = _costly(flat(recipe))
    paces: dict[str, float] = {}
    for run in Registry(runs_dir()).list():
        if run.status == "finished" and run.model == recipe.model.source:
            metrics = folder.read_metrics(run.folder) if _costly(run.settings) == wanted else []
            seconds = [line["time/step"] for line in metrics if "time/step" in line]
            if seconds:
                paces[run.id] = sum(seconds) / len(seconds)
        if len(paces) == 5:
            break
    return (statistics.median(paces.values()) if paces else None), tuple(paces)


def _costly(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key.startswith(COST)}


def _spread(sweep: Sweep) -> tuple[float | None, str]:
    """The seeds' own variance: of paired differences where there are some, else of one variant.

    Every finished run of a variant counts, whatever its seed and code. From one variant alone the
    difference of two is taken to vary as that of independent runs: sqrt(2) times as much.
    """
    values = _values(sweep)
    base = values.get(sweep.baseline, {})
    centred: list[float] = []
    spent = 0
    for variant, by_seed in values.items():
        common = [by_seed[seed] - base[seed] for seed in by_seed if seed in base]
        if variant != sweep.baseline and len(common) > 1:
            mean = statistics.fmean(common)
            centred += [value - mean for value in common]
            spent += 1
    if spent:
        sd = (sum(value**2 for value in centred) / (len(centred) - spent)) ** 0.5
        return sd or None, f"{len(centred)} paired differences"
    for by_seed in [base, *values.values()]:
        if len(by_seed) > 1:
            sd = statistics.stdev(by_seed.values()) * 2**0.5
            return sd or None, f"{len(by_seed)} seeds of one variant, as if unpaired"
    return None, ""


def _values(sweep: Sweep) -> dict[int, dict[int, float]]:
    """The metric of every finished run of each variant, by seed; of several the newest."""
    wanted = {
        _seedless(flat(sweep.plan(cell).recipe)): cell.variant
        for cell in sweep.cells
        if cell.seed == sweep.seeds[0]
    }
    found: defaultdict[int, dict[int, float]] = defaultdict(dict)
    for run in _finished(sweep):
        variant = wanted.get(_seedless(run.settings))
        if variant is not None and run.seed not in found[variant]:
            one = standing(Cell(variant, run.seed, run.fingerprint, run.id), sweep.metric)
            if one.value is not None:
                found[variant][run.seed] = one.value
    return found


def _finished(sweep: Sweep) -> Sequence[Run]:
    model = load_recipe(sweep.recipe, overrides=sweep.overrides).recipe.model.source
    every = Registry(runs_dir()).list()
    return [run for run in every if run.status == "finished" and run.model == model]


def _seedless(settings: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in settings.items() if key != "train.seed"}
    return repr(sorted(kept.items()))
