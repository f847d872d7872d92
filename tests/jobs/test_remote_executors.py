"""Runs of a sweep on a Ray cluster of this machine, and by SLURM: submitit's local stand-in
carries runs out, and commands of our own in place of SLURM's show what is asked of it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from tests.jobs.bench import Bench, metrics

from tpcli.errors import TERMINATED, TpcliError, UsageError
from tpcli.jobs.executors import Executor, Job, slurm
from tpcli.jobs.executors import ray as ray_executor
from tpcli.jobs.executors.ray import Ray
from tpcli.jobs.executors.slurm import Slurm, Task
from tpcli.jobs.train import create, plan
from tpcli.recipe.sections import LaunchSection
from tpcli.registry.run import read_status

LAUNCH = LaunchSection(cpu=True)
SLURM = {
    "sbatch": 'cp "$1" "{folder}/sbatch.sh"; echo Submitted batch job 77',
    "scancel": 'echo "$@" >> "{folder}/cancelled"',
    "sacct": 'echo "JobID|State|NodeList"; echo "77|$(cat "{folder}/state")|node1"',
    "srun": "exit 1",
}


@pytest.fixture
def sums(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes runs of the small recipe: two steps, or what is set."""
    for name in ("TPCLI_CACHE", "TPCLI_RUNS", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, bench.environment[name])

    def make(*overrides: str) -> Path:
        return create(plan(bench.folder / "small.toml", overrides=("train.steps=2", *overrides)))

    return make


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ray]:
    """A cluster of this machine, on which one job has room at a time; nothing of it stays."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    before = {p.pid for p in psutil.process_iter()}
    executor = Ray(cpus=2)
    yield executor
    mine = executor._folder
    assert mine is not None
    assert mine.is_dir()
    executor.close()
    assert not mine.exists()
    until(lambda: not _of_ray(before), 60)


def _of_ray(before: set[int]) -> list[str]:
    lines = [
        " ".join(p.info["cmdline"] or ())
        for p in psutil.process_iter(["cmdline"])
        if p.pid not in before
    ]
    return [line for line in lines if "tpcli-ray-" in line or line.startswith("ray::")]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SLURM's commands, which do nothing but remember; the state of job 77 is in a file."""
    folder = tmp_path / "commands"
    folder.mkdir()
    for name, body in SLURM.items():
        (folder / name).write_text(f"#!/bin/sh\n{body.format(folder=folder)}\n")
        (folder / name).chmod(0o755)
    (folder / "state").write_text("PENDING")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def submit(executor: Executor, run_dir: Path) -> Job:
    job = executor.submit(run_dir, LAUNCH)
    assert job is not None
    return job


def until(happened: Callable[[], bool], seconds: float = 180) -> None:
    limit = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < limit, "it never happened"
        time.sleep(0.05)


def cells(run_dir: Path) -> list[psutil.Process]:
    """Processes that carry out or train this run."""
    marks = (f"executors.cell {run_dir}", f"-m tpcli.train {run_dir}")
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(mark in " ".join(process.info["cmdline"] or ()) for mark in marks)
    ]


def cell_of(run_dir: Path) -> psutil.Process:
    (one,) = (process for process in cells(run_dir) if "executors.cell" in process.cmdline()[2])
    return one


@pytest.mark.slow
def test_ray_carries_runs_out_one_after_the_other(
    sweep: Ray, sums: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """One that fails, one that ends, one that cannot start."""
    bad, good = sums('data.source="nowhere.jsonl"'), sums()
    assert sweep.room(LAUNCH) > 1000
    jobs = [submit(sweep, run_dir) for run_dir in (bad, good)]
    until(lambda: all(job.done() for job in jobs))
    assert [read_status(run_dir) for run_dir in (bad, good)] == ["failed", "finished"]
    assert [line["step"] for line in metrics(good)] == [0, 1, 2]
    assert [job.trouble() for job in jobs] == [None, None]
    again = submit(sweep, good)
    until(again.done)
    assert again.trouble() == f"run {good.name} has done 2 of 2 steps"
    with pytest.raises(UsageError, match="needs 0 GPUs and 3 processors"):
        _with_cpus(sweep, 3).room(LAUNCH)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    # Nothing of this may come over the display.
    assert capfd.readouterr() == ("", "")


def _with_cpus(sweep: Ray, cpus: int) -> Ray:
    """The same cluster, asked for more."""
    greedy = object.__new__(Ray)
    greedy._ray, greedy._cpus = sweep._ray, cpus
    return greedy


@pytest.mark.slow
def test_ray_stops_takes_back_and_kills(sweep: Ray, sums: Callable[..., Path]) -> None:
    first, second, third = (sums("train.steps=500", "train.save_every=500") for _ in range(3))
    running, queued, last = (submit(sweep, run_dir) for run_dir in (first, second, third))
    until(lambda: len(metrics(first)) > 1)
    queued.stop()
    until(queued.done, 60)
    assert not cells(second)
    assert not running.done()
    running.stop()
    until(running.done)
    assert read_status(first) == "stopped"
    reached = metrics(first)[-1]["step"]
    assert (first / "checkpoints" / f"step-{reached:06d}").is_dir()
    until(lambda: len(metrics(third)) > 0)
    last.kill()
    until(last.done, 60)
    until(lambda: not cells(third), 30)
    assert not (second / "state.json").exists()
    assert [job.trouble() for job in (running, queued, last)] == [None, None, None]


@pytest.mark.slow
def test_a_run_that_ray_loses_is_trouble(sweep: Ray, sums: Callable[..., Path]) -> None:
    """Its worker dies; the run stops after its step."""
    run_dir = sums("train.steps=500", "train.save_every=500")
    job = submit(sweep, run_dir)
    until(lambda: bool(cells(run_dir)))
    worker = cell_of(run_dir).parent()
    assert worker is not None
    worker.kill()
    until(job.done, 60)
    said = job.trouble()
    assert said is not None
    assert said.startswith("Ray lost it: ")
    until(lambda: not cells(run_dir), 90)


def test_a_cluster_that_is_not_there_is_told() -> None:
    with pytest.raises(TpcliError, match=r"no Ray cluster at 127\.0\.0\.1:1:"):
        Ray("127.0.0.1:1")


def test_what_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(TpcliError) as told:
        Ray()
    assert told.value.hint == "pip install 'tpcli[ray]'"
    with pytest.raises(TpcliError) as told:
        Slurm(tmp_path, {})
    assert told.value.hint == "pip install 'tpcli[slurm]'"


def test_a_run_that_the_machine_does_not_see(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must be shared"):
        ray_executor._carry_out(str(tmp_path / "gone"), {}, str(tmp_path))


@pytest.mark.slow
def test_submitit_carries_runs_out(
    sums: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One that ends, one that fails, and one that is killed."""
    sweep = Slurm(tmp_path / "slurm", {"time": "60"}, cluster="local")
    good, bad, long = sums(), sums('data.source="nowhere.jsonl"'), sums("train.steps=500")
    jobs = [submit(sweep, run_dir) for run_dir in (bad, good)]
    until(lambda: all(job.done() for job in jobs))
    assert [read_status(run_dir) for run_dir in (bad, good)] == ["failed", "finished"]
    assert [line["step"] for line in metrics(good)] == [0, 1, 2]
    killed = submit(sweep, long)
    until(lambda: bool(metrics(long)))
    assert capfd.readouterr() == ("", "")
    killed.kill()
    until(killed.done, 60)
    until(lambda: not cells(long), 30)
    assert [job.trouble() for job in (*jobs, killed)] == [None, None, None]


@pytest.mark.slow
def test_a_preempted_run_is_queued_again_and_goes_on(
    sums: Callable[..., Path], tmp_path: Path
) -> None:
    """The warning goes to every process of the job, as SLURM sends it; then a stop is heard."""
    sweep = Slurm(tmp_path / "slurm", {}, cluster="local")
    run_dir = sums("train.steps=500", "train.save_every=500")
    job = submit(sweep, run_dir)
    until(lambda: len(metrics(run_dir)) > 1)
    first = {process.pid for process in cells(run_dir)}
    task = cell_of(run_dir).parent()
    assert task is not None
    for process in (*cells(run_dir), task):
        process.send_signal(signal.SIGUSR2)
    until(lambda: bool({p.pid for p in cells(run_dir)} - first))
    assert not job.done()
    (checkpoint,) = (run_dir / "checkpoints").iterdir()
    reached = int(checkpoint.name.removeprefix("step-"))
    assert reached == metrics(run_dir)[-1]["step"]  # its step was finished and saved
    until(lambda: metrics(run_dir)[-1]["step"] > reached)
    assert not {p.pid for p in cells(run_dir)} & first
    job.stop()
    until(job.done)
    assert (read_status(run_dir), job.trouble()) == ("stopped", None)
    steps = [line["step"] for line in metrics(run_dir)]
    assert steps == list(range(len(steps)))


def test_a_run_that_slurm_terminates_waits_for_the_second_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To return would be the job's end, and nothing would be queued again."""
    waited: list[float] = []
    task = Task(tmp_path, 1.0)
    command = f"import sys; sys.exit({TERMINATED})"
    monkeypatch.setattr(
        "tpcli.jobs.executors.cell.start",
        lambda *_: subprocess.Popen([sys.executable, "-c", command]),
    )
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda s: waited.append(s) if s == slurm.GRACE else sleep(s))
    assert task() == TERMINATED
    assert waited == [slurm.GRACE]


def test_what_slurm_is_asked_for(commands: Path, tmp_path: Path) -> None:
    options = {"time": "90", "partition": "gpu", "mem_gb": "24", "cpus-per-task": "6"}
    options |= {"account": "lab", "reservation": "week", "signal_delay_s": "300"}
    sweep = Slurm(tmp_path / "slurm", options)
    run_dir = tmp_path / "k7m2xqd"
    run_dir.mkdir()
    sweep.submit(run_dir, LaunchSection(processes=4))
    script = (commands / "sbatch.sh").read_text()
    for line in (
        *("--time=90", "--partition=gpu", "--mem=24GB", "--cpus-per-task=6", "--account=lab"),
        *("--reservation=week", "--signal=USR2@300", "--gpus-per-node=4"),
        "--job-name=tpcli-k7m2xqd",
    ):
        assert f"#SBATCH {line}\n" in script, script
    sweep.submit(run_dir, LAUNCH)
    assert "gpus" not in (commands / "sbatch.sh").read_text()
    Slurm(tmp_path / "slurm", {}).submit(run_dir, LAUNCH)
    assert "#SBATCH --time=1440\n" in (commands / "sbatch.sh").read_text()


def test_options_that_are_no_numbers(commands: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match='SLURM option time = "2h" is not a number'):
        Slurm(tmp_path, {"time": "2h"})


def test_a_job_that_waits_is_taken_out_of_the_queue(commands: Path, tmp_path: Path) -> None:
    job = Slurm(tmp_path / "slurm", {}).submit(tmp_path, LAUNCH)
    assert not job.done()
    assert job.trouble() is None
    job.stop()
    assert job.done()
    name = f"--name=tpcli-{tmp_path.name}"
    assert (commands / "cancelled").read_text() == f"{name}\n77\n", "an older one first"
    assert job.trouble() is None


def test_what_slurm_refuses_or_loses_is_trouble(
    commands: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = Slurm(tmp_path / "slurm", {})
    lost = sweep.submit(tmp_path, LAUNCH)
    assert not lost.done()
    (commands / "state").write_text("NODE_FAIL")
    lost._job.watcher.update()
    assert lost.done()
    assert lost.trouble() == "SLURM job 77 ended as NODE_FAIL"
    (commands / "sbatch").write_text("#!/bin/sh\necho sbatch: error: no such partition >&2\nexit 1")
    refused = sweep.submit(tmp_path, LAUNCH)
    assert refused.done()
    assert refused.trouble() == "SLURM refused it: sbatch: error: no such partition"
    refused.stop()
    refused.kill()
    assert capfd.readouterr() == ("", "")


def test_no_slurm_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(TpcliError, match="no SLURM here"):
        Slurm(tmp_path, {})
