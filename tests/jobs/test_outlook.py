"""What a sweep is expected to cost and to find, from past runs with known numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.jobs.bench import RECIPES
from tests.jobs.made_up import finish

from tpcli.analysis.power import detectable, seeds_needed
from tpcli.jobs import sweep
from tpcli.jobs.ablate import claim
from tpcli.jobs.grid import variants
from tpcli.jobs.outlook import outlook
from tpcli.jobs.sweep import Sweep
from tpcli.jobs.train import create, plan
from tpcli.registry.store import Registry

TINY = RECIPES / "tiny.toml"


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TPCLI_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def ask(seeds: tuple[int, ...] = (0, 1, 2)) -> Sweep:
    asked = sweep.begin(
        TINY,
        name="tiny-sched",
        overrides=[],
        variants=variants(TINY, schedules=["linear", "cosine"]),
        seeds=seeds,
        metric=None,
        baseline=None,
    )
    return claim(asked)


def past(curve: str, seed: int, value: float, *more: str) -> str:
    """A finished run with this held-out accuracy; its two recorded steps took 2 s each."""
    overrides = [f'credit.schedule.curve="{curve}"', *more]
    run_dir = create(plan(TINY, overrides=overrides, seed=seed))
    finish(run_dir, value)
    return run_dir.name


def test_without_past_runs_nothing_is_known() -> None:
    found = outlook(ask(), difference=0.02)
    assert found.runs == 6
    assert (found.seconds, found.sd, found.needed, found.detects) == (None, None, None, {})


def test_the_cost_is_that_of_the_steps_left() -> None:
    """Of six runs one is there: 5 x 150 steps of 2 s."""
    one = past("linear", 0, 0.7)
    found = outlook(ask())
    assert (found.runs, found.seconds_a_step, found.timed) == (5, 2.0, (one,))
    assert found.seconds == 5 * 150 * 2.0


def test_a_run_of_another_cost_is_no_measure() -> None:
    past("linear", 0, 0.7, "rollout.max_new_tokens=32")
    assert outlook(ask()).seconds is None


def test_the_spread_is_that_of_paired_differences() -> None:
    """Differences .02, .04 and .09: mean .05, variance (9 + 1 + 16) / 2 = 13 hundredths of .01."""
    for seed, (base, other) in enumerate([(0.5, 0.52), (0.6, 0.64), (0.4, 0.49)]):
        past("linear", seed, base)
        past("cosine", seed, other)
    found = outlook(ask(), difference=0.05)
    assert found.sd == pytest.approx(0.13**0.5 / 10)
    assert found.spread_of == "3 paired differences"
    assert found.needed == seeds_needed(0.05, 0.13**0.5 / 10)
    assert found.detects[5] == pytest.approx(detectable(5, 0.13**0.5 / 10))


def test_from_one_variant_alone_the_difference_varies_as_of_two() -> None:
    """Two seeds, .5 and .6: sd .0707; the difference of two independent runs has .1."""
    past("linear", 7, 0.5)
    past("linear", 8, 0.6)
    found = outlook(ask())
    assert found.sd == pytest.approx(0.1)
    assert "as if unpaired" in found.spread_of


def test_removed_runs_and_unfinished_ones_do_not_count(runs: Path) -> None:
    create(plan(TINY, overrides=['credit.schedule.curve="linear"'], seed=0))
    Registry(runs).rebuild()
    assert outlook(ask()).seconds is None
