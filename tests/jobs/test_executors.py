"""Runs of a sweep on this machine: to the end, failed, stopped, killed, left alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from tests.jobs.bench import Bench, metrics

from tpcli.errors import UsageError
from tpcli.jobs.executors import Executor, Job
from tpcli.jobs.executors.attempt import Attempt
from tpcli.jobs.executors.local import Local
from tpcli.jobs.train import create, plan
from tpcli.recipe.sections import LaunchSection
from tpcli.registry.folder import read_json, write_json_atomic
from tpcli.registry.run import read_status

SWEEP = """
import sys, time
from pathlib import Path
from tpcli.jobs.executors.local import Local
from tpcli.recipe.sections import LaunchSection
sweep = Local(jobs=1)
job = sweep.submit(Path(sys.argv[1]), LaunchSection(cpu=True))
while True:
    job.done()
    time.sleep(0.1)
"""
LAUNCH = LaunchSection(cpu=True)


@pytest.fixture
def sums(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes runs of the small recipe: two steps, or what is set."""
    for name in ("TPCLI_CACHE", "TPCLI_RUNS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, bench.environment[name])

    def make(*overrides: str) -> Path:
        return create(plan(bench.folder / "small.toml", overrides=("train.steps=2", *overrides)))

    return make


def submit(executor: Executor, run_dir: Path) -> Job:
    job = executor.submit(run_dir, LAUNCH)
    assert job is not None
    return job


def until(happened: Callable[[], bool], seconds: float = 180) -> None:
    limit = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < limit, "it never happened"
        time.sleep(0.05)


def trainers(run_dir: Path) -> list[int]:
    """Processes that train this run."""
    lines = {p.pid: " ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])}
    return [pid for pid, line in lines.items() if f"-m tpcli.train {run_dir}" in line]


@pytest.mark.slow
def test_runs_to_the_end_side_by_side_and_one_that_fails(sums: Callable[..., Path]) -> None:
    sweep = Local(jobs=2)
    assert sweep.room(LAUNCH) == 2
    good = submit(sweep, sums())
    bad = submit(sweep, sums('data.source="nowhere.jsonl"'))
    assert sweep.room(LAUNCH) == 0
    until(lambda: good.done() and bad.done())
    assert sweep.room(LAUNCH) == 2
    assert read_status(good.run_dir) == "finished"
    assert [line["step"] for line in metrics(good.run_dir)] == [0, 1, 2]
    # A run that fails tells so itself: that is no trouble of the job.
    assert read_status(bad.run_dir) == "failed"
    assert "nowhere.jsonl" in read_json(bad.run_dir / "state.json")["error"]
    assert (good.trouble(), bad.trouble()) == (None, None)
    again = submit(sweep, good.run_dir)
    until(again.done)
    assert again.trouble() == f"run {good.run_dir.name} has done 2 of 2 steps"
    assert read_status(good.run_dir) == "finished"


@pytest.mark.slow
def test_stop_keeps_the_step_and_the_run_goes_on_later(sums: Callable[..., Path]) -> None:
    sweep, run_dir = Local(jobs=1), sums("train.steps=40", "train.save_every=40")
    job = submit(sweep, run_dir)
    until(lambda: len(metrics(run_dir)) > 1)
    assert not job.done()
    job.stop()
    until(job.done)
    assert (read_status(run_dir), job.trouble()) == ("stopped", None)
    reached = metrics(run_dir)[-1]["step"]
    assert 1 <= reached < 40
    assert (run_dir / "checkpoints" / f"step-{reached:06d}").is_dir()
    job = submit(sweep, run_dir)
    until(lambda: metrics(run_dir)[-1]["step"] > reached)
    steps = [line["step"] for line in metrics(run_dir)]
    assert steps == list(range(len(steps)))
    job.kill()
    until(job.done, 30)
    assert (read_status(run_dir), job.trouble()) == ("dead", None)
    until(lambda: not trainers(run_dir), 30)


@pytest.mark.slow
def test_stop_before_it_starts(sums: Callable[..., Path]) -> None:
    """The file may come before the run clears old ones away, or just after: either way it ends."""
    sweep, early, late = Local(jobs=2), sums("train.steps=500"), sums("train.steps=500")
    first, second = submit(sweep, early), submit(sweep, late)
    first.stop()
    until((late / "state.json").exists)
    second.stop()
    (late / "stop").unlink()
    until(lambda: first.done() and second.done())
    assert not (early / "state.json").exists()
    assert read_status(late) == "stopped"
    assert len(metrics(late)) < 10
    assert (first.trouble(), second.trouble()) == (None, None)


@pytest.mark.slow
def test_a_cell_that_is_killed_is_trouble(sums: Callable[..., Path]) -> None:
    sweep, run_dir = Local(jobs=1), sums("train.steps=500")
    job = submit(sweep, run_dir)
    until(lambda: bool(trainers(run_dir)))
    os.kill(read_json(run_dir / "state.json")["pid"], signal.SIGKILL)
    until(job.done, 30)
    assert job.trouble() == "its process ended with SIGKILL"
    until(lambda: not trainers(run_dir), 60)


@pytest.mark.slow
def test_a_sweep_that_dies_leaves_no_run_behind(sums: Callable[..., Path]) -> None:
    """Its run stops after the step, with everything saved."""
    run_dir = sums("train.steps=500", "train.save_every=500")
    with subprocess.Popen([sys.executable, "-c", SWEEP, str(run_dir)]) as sweep:
        until(lambda: len(metrics(run_dir)) > 1)
        sweep.kill()
    until(lambda: read_status(run_dir) != "running", 60)
    assert read_status(run_dir) == "stopped"
    reached = metrics(run_dir)[-1]["step"]
    assert (run_dir / "checkpoints" / f"step-{reached:06d}").is_dir()
    until(lambda: not trainers(run_dir), 30)


def test_a_sweep_needs_a_job() -> None:
    with pytest.raises(UsageError, match="0 jobs"):
        Local(jobs=0)


def test_an_attempt_tells_its_own_end_from_an_earlier_one(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "state.json", {"status": "failed", "heartbeat": 1.0})
    write_json_atomic(tmp_path / "failure.json", {"error": "of the earlier one"})
    (tmp_path / "stop").touch()
    attempt = Attempt(tmp_path)
    assert not (tmp_path / "stop").exists()
    assert not attempt.started()
    assert attempt.trouble("lost\nwith its node") == "lost"
    attempt.remind()
    assert not (tmp_path / "stop").exists()
    write_json_atomic(tmp_path / "failure.json", {"error": "no such run\nat all"})
    assert attempt.trouble("lost") == "no such run"
    write_json_atomic(tmp_path / "state.json", {"status": "running", "heartbeat": 2.0})
    assert attempt.started()
    write_json_atomic(tmp_path / "state.json", {"status": "finished", "heartbeat": 3.0})
    assert attempt.trouble("lost") is None


def test_an_attempt_that_was_asked_to_stop_asks_again_and_is_no_trouble(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path)
    attempt.stop()
    (tmp_path / "stop").unlink()
    attempt.remind()
    assert (tmp_path / "stop").exists()
    assert attempt.trouble("lost") is None
