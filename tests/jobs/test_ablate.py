"""A sweep from the first run to the last, with an executor that writes what a run would leave."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from tests.jobs.bench import RECIPES
from tests.jobs.made_up import FakeExecutor, FakeJob, end, finish

from tpcli import errors
from tpcli.errors import TpcliError, UsageError
from tpcli.jobs import ablate, sweep
from tpcli.jobs.beside import lacks
from tpcli.jobs.curate import remove
from tpcli.jobs.grid import variants
from tpcli.jobs.sweep import Sweep
from tpcli.jobs.train import Plan, create
from tpcli.recipe.sections import LaunchSection
from tpcli.registry import folder
from tpcli.registry.run import read_status
from tpcli.registry.store import Registry

TINY = RECIPES / "tiny.toml"


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TPCLI_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(ablate, "TICK", 0.0)
    return tmp_path / "runs"


def ask(seeds: tuple[int, ...] = (0, 1), **more: object) -> Sweep:
    found = variants(TINY, schedules=["linear", "cosine"])
    asked: dict[str, object] = {
        "name": "tiny-sched",
        "overrides": ["track.mlflow=false"],
        "variants": found,
        "seeds": seeds,
        "metric": None,
        "baseline": None,
    }
    return sweep.begin(TINY, **asked | more)  # type: ignore[arg-type]


def carry_out(
    asked: Sweep, executor: FakeExecutor, *, retry_failed: bool = False
) -> ablate.Progress:
    return ablate.carry_out(asked, executor, lambda progress: None, retry_failed=retry_failed)


def names(executor: FakeExecutor) -> list[str]:
    return [folder.read_json(j.run_dir / folder.RUN)["name"] for j in executor.submitted]


def test_every_cell_is_trained_seed_by_seed(runs: Path) -> None:
    executor = FakeExecutor()
    progress = carry_out(sweep.store(ask()), executor)
    assert progress.exit_code == errors.OK
    assert names(executor) == [
        "tiny-linear-s0",
        "tiny-cosine-s0",
        "tiny-linear-s1",
        "tiny-cosine-s1",
    ]
    assert [one.value for one in progress.cells] == [0.5] * 4
    again = sweep.find(progress.sweep.id)
    assert [cell.run for cell in again.cells] == [one.cell.run for one in progress.cells]
    run = Registry(runs).find(again.cells[0].run or "")
    assert run.tags == (again.id, f"{again.id}.linear")


def test_figures_and_mlflow_are_the_sweeps_to_look_after(runs: Path) -> None:
    """Also those of a run that ended while no sweep was there to see it."""
    asked = sweep.store(ask(seeds=(0,), overrides=["track.mlflow='sqlite'"]))
    progress = carry_out(asked, FakeExecutor())
    folders = [runs / (one.cell.run or "") for one in progress.cells]
    assert not any(map(lacks, folders))
    (folders[0] / folder.MLFLOW).unlink()
    shutil.rmtree(folders[1] / folder.FIGURES)
    assert all(map(lacks, folders))
    idle = FakeExecutor()
    carry_out(progress.sweep, idle)
    assert idle.submitted == []
    assert not any(map(lacks, folders))


def test_what_is_there_is_reused_and_marked() -> None:
    first = carry_out(sweep.store(ask()), FakeExecutor())
    wider = ablate.claim(ask(seeds=(0, 1, 2)))
    assert [cell.reused for cell in wider.cells] == [True, True, False, True, True, False]
    assert {cell.run for cell in wider.cells if cell.run} == {one.cell.run for one in first.cells}
    executor = FakeExecutor()
    progress = carry_out(sweep.store(wider), executor)
    assert names(executor) == ["tiny-linear-s2", "tiny-cosine-s2"]
    assert progress.counts == {"finished": 6}
    assert not any(cell.run for cell in ablate.claim(ask(), reuse=False).cells)


def test_the_same_command_finds_its_sweep_and_goes_on() -> None:
    """Killed between two runs, and between making a run's folder and writing the sweep down."""
    asked = sweep.store(ask())

    def die(run_dir: Path) -> None:
        if folder.read_json(run_dir / folder.RUN)["name"] == "tiny-linear-s1":
            raise KeyboardInterrupt
        finish(run_dir)

    with pytest.raises(KeyboardInterrupt):
        carry_out(asked, FakeExecutor(die))
    folder.write_json_atomic(
        asked.folder / sweep.FILE,
        folder.read_json(asked.folder / sweep.FILE)
        | {
            "cells": [
                {"variant": c.variant, "seed": c.seed, "fingerprint": c.fingerprint}
                for c in asked.cells
            ]
        },
    )
    found = sweep.same(ask())
    assert found is not None
    assert found.id == asked.id
    claimed = ablate.claim(found)
    assert [cell.run is not None for cell in claimed.cells] == [True, True, True, True]
    assert not any(cell.reused for cell in claimed.cells), "they are its own"
    # The two under way belong to this very process, which is alive: as if it had been killed.
    for cell in claimed.cells:
        run_dir = asked.folder.parents[1] / (cell.run or "")
        if read_status(run_dir) == "created":
            end(run_dir, "stopped")
    executor = FakeExecutor()
    assert carry_out(claimed, executor).exit_code == errors.OK
    assert sorted(names(executor)) == ["tiny-cosine-s1", "tiny-linear-s1"]


def test_a_failure_leaves_the_others_alone_and_waits_to_be_retried() -> None:
    def fail(run_dir: Path) -> None:
        if folder.read_json(run_dir / folder.RUN)["name"] == "tiny-cosine-s0":
            end(run_dir, "failed", "out of memory")
        else:
            finish(run_dir)

    progress = carry_out(sweep.store(ask()), FakeExecutor(fail))
    assert progress.exit_code == errors.PARTLY_FAILED
    assert progress.counts == {"finished": 3, "failed": 1}
    assert [one.error for one in progress.cells if one.error] == ["out of memory"]
    idle = FakeExecutor()
    assert carry_out(progress.sweep, idle).counts["failed"] == 1
    assert idle.submitted == []
    executor = FakeExecutor()
    assert carry_out(progress.sweep, executor, retry_failed=True).exit_code == errors.OK
    assert names(executor) == ["tiny-cosine-s0"]


def test_all_failed() -> None:
    def fail(run_dir: Path) -> None:
        end(run_dir, "failed", "no")

    assert carry_out(sweep.store(ask()), FakeExecutor(fail)).exit_code == errors.RUN_FAILED


def test_a_job_that_vanishes_is_told_and_not_tried_again_at_once() -> None:
    def vanish(run_dir: Path) -> None:
        """Leave the state as it was."""

    class Vanishing(FakeExecutor):
        def submit(self, run_dir: Path, launch: LaunchSection) -> FakeJob:
            job = super().submit(run_dir, launch)
            job.over = True
            job.trouble = lambda: "the node went away"  # type: ignore[method-assign]
            return job

    executor = Vanishing(vanish)
    progress = carry_out(sweep.store(ask(seeds=(0,))), executor)
    assert [(one.status, one.error) for one in progress.cells] == [
        ("dead", "the node went away")
    ] * 2
    assert len(executor.submitted) == 2


def test_ctrl_c_stops_the_running_and_starts_no_more() -> None:
    executor = FakeExecutor(lambda run_dir: None)
    sent: list[ablate.Progress] = []

    def observe(progress: ablate.Progress) -> None:
        if not sent:
            sent.append(progress)
            os.kill(os.getpid(), signal.SIGINT)

    progress = ablate.carry_out(sweep.store(ask()), executor, observe)
    assert progress.exit_code == errors.INTERRUPTED
    assert [job.stopped for job in executor.submitted] == [True, True]
    assert progress.counts == {"stopped": 2, "queued": 2}
    going_on = FakeExecutor()
    assert carry_out(progress.sweep, going_on).exit_code == errors.OK
    assert len(going_on.submitted) == 4
    assert {job.run_dir for job in executor.submitted} < {job.run_dir for job in going_on.submitted}


@pytest.mark.parametrize("moment", ["create", "submit"])
def test_ctrl_c_while_a_run_is_being_started(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It reaches the run that was not yet known, or the run is not started at all."""

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    if moment == "create":

        def create_and_interrupt(planned: Plan) -> Path:
            run_dir = create(planned)
            interrupt()
            return run_dir

        monkeypatch.setattr(ablate, "create", create_and_interrupt)

    class Interrupted(FakeExecutor):
        def submit(self, run_dir: Path, launch: LaunchSection) -> FakeJob:
            job = super().submit(run_dir, launch)
            if moment == "submit":
                interrupt()
            return job

    executor = Interrupted(lambda run_dir: None)
    progress = carry_out(sweep.store(ask()), executor)
    assert progress.exit_code == errors.INTERRUPTED
    assert len(executor.submitted) == (moment == "submit")
    assert all(job.stopped for job in executor.submitted)


def test_sigterm_has_its_own_code() -> None:
    executor = FakeExecutor(lambda run_dir: None)

    def observe(progress: ablate.Progress) -> None:
        if not progress.stopping:
            os.kill(os.getpid(), signal.SIGTERM)

    progress = ablate.carry_out(sweep.store(ask()), executor, observe)
    assert progress.exit_code == errors.TERMINATED


def test_a_removed_run_answers_no_cell() -> None:
    done = carry_out(sweep.store(ask(seeds=(0,))), FakeExecutor())
    gone = done.sweep.cells[0].run or ""
    remove([gone])
    claimed = ablate.claim(sweep.find(done.sweep.id))
    assert [cell.run is None for cell in claimed.cells] == [True, False]
    executor = FakeExecutor()
    assert carry_out(claimed, executor).exit_code == errors.OK
    assert names(executor) == ["tiny-linear-s0"]


def test_a_second_ctrl_c_kills() -> None:
    class Stubborn(FakeExecutor):
        def submit(self, run_dir: Path, launch: LaunchSection) -> FakeJob:
            job = super().submit(run_dir, launch)
            job.stop = lambda: None  # type: ignore[method-assign]
            kill = job.kill

            def killed() -> None:
                kill()
                job.over = True

            job.kill = killed  # type: ignore[method-assign]
            return job

    executor = Stubborn(lambda run_dir: None)

    def observe(progress: ablate.Progress) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    ablate.carry_out(sweep.store(ask()), executor, observe)
    assert [job.killed for job in executor.submitted] == [True, True]


def test_runs_left_behind_are_waited_for_not_started_twice(runs: Path) -> None:
    """After kill -9 a run may still be finishing its step under its own supervisor."""
    asked = sweep.store(ask(seeds=(0,)))
    first = carry_out(asked, FakeExecutor())
    run_dir = runs / (first.cells[0].cell.run or "")
    me = {"pid": os.getpid(), "pid_started": None, "host": os.uname().nodename}
    folder.write_json_atomic(run_dir / folder.STATE, {"status": "running", **me})
    seen: list[ablate.Progress] = []

    def observe(progress: ablate.Progress) -> None:
        seen.append(progress)
        if len(seen) == 3:
            end(run_dir, "stopped")

    executor = FakeExecutor()
    progress = ablate.carry_out(first.sweep, executor, observe)
    assert [one.counts["running"] for one in seen[:3]] == [1, 1, 1]
    assert names(executor) == ["tiny-linear-s0"], "only when it had stopped"
    assert progress.exit_code == errors.OK


def test_two_processes_do_not_carry_out_one_sweep() -> None:
    asked = sweep.store(ask())
    with sweep.alone(asked), pytest.raises(UsageError, match="another process"):
        carry_out(asked, FakeExecutor())


def test_another_code_or_recipe_is_refused(tmp_path: Path) -> None:
    asked = sweep.store(ask())
    older = replace(asked, code="0.0-old")
    with pytest.raises(UsageError, match=r"begun with tpcli 0\.0-old"):
        carry_out(older, FakeExecutor())
    path = tmp_path / "own.toml"
    path.write_text(f'extends = "{TINY}"\n')
    mine = sweep.begin(
        path,
        name="own",
        overrides=[],
        variants=variants(path, schedules=["linear"]),
        seeds=[0],
        metric=None,
        baseline=None,
    )
    sweep.store(mine)
    path.write_text(f'extends = "{TINY}"\n[optim]\nlr = 3e-4\n')
    with pytest.raises(UsageError, match=r"differs in optim\.lr"):
        carry_out(mine, FakeExecutor())


def test_a_sweep_is_found_by_the_start_of_its_id() -> None:
    asked = sweep.store(ask())
    assert sweep.find(asked.id[:3]) == asked
    with pytest.raises(TpcliError, match="no sweep zzzz9") as caught:
        sweep.find("zzzz9")
    assert asked.id in caught.value.hint


def test_an_unknown_baseline_lists_the_variants() -> None:
    with pytest.raises(UsageError, match="no variant") as caught:
        ask(baseline="lineal")
    assert "linear, cosine" in caught.value.hint
    assert ask(baseline="cosine").baseline == 1
