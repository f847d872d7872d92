"""Runs as SLURM jobs, by way of submitit. Needs the extra ``slurm``."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import subprocess
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcli.errors import TERMINATED, TpcliError, UsageError
from tpcli.jobs.executors import UNLIMITED, cell
from tpcli.jobs.executors.attempt import Attempt
from tpcli.registry import folder

if TYPE_CHECKING:
    from tpcli.recipe.sections import LaunchSection

MINUTES = 24 * 60
"""Time limit of a job where none is given; at its end the job is queued again."""
TIMEOUTS = 100
"""How often a job may reach its time limit."""
SIGNAL_DELAY = 120
"""Seconds before its end at which a job is told."""
GRACE = 300.0
"""Seconds between the two signals of a preemption, at most."""
LOOK = 5.0
"""Seconds between two questions about a job that was killed."""
NUMBERS: Mapping[str, type[int] | type[float]] = {
    "timeout_min": int,
    "mem_gb": float,
    "nodes": int,
    "cpus_per_task": int,
    "tasks_per_node": int,
    "signal_delay_s": int,
}
"""Settings that submitit wants as numbers."""


class SlurmJob:
    """A run in a SLURM job; ``job`` is submitit's, or the reason why there is none."""

    def __init__(self, attempt: Attempt, job: Any) -> None:
        self.run_dir = attempt.run_dir
        self._attempt, self._job = attempt, job
        self._taken_back = False
        self._look_at: float | None = None

    def done(self) -> bool:
        """The job has left the queue. One that is queued again has not."""
        if isinstance(self._job, str) or self._taken_back:
            return True
        # submitit asks SLURM ever more seldom: too seldom for somebody who waits for the end.
        now = time.monotonic()
        force = self._look_at is not None and now >= self._look_at
        if force:
            self._look_at = now + LOOK
        if self._job.done(force_check=force):
            return True
        self._attempt.remind()
        return False

    def stop(self) -> None:
        """Ask it to stop after its step, or take it out of the queue."""
        self._attempt.stop()
        if not self.done() and not self._attempt.started():
            self._job.cancel(check=False)
            self._taken_back = True

    def kill(self) -> None:
        """Cancel it: SLURM ends what it started."""
        self._attempt.stop()
        if not self.done():
            self._job.cancel(check=False)
            self._look_at = time.monotonic()

    def trouble(self) -> str | None:
        """Why SLURM refused it, or the state in which it was lost."""
        if isinstance(self._job, str):
            return self._attempt.trouble(self._job)
        if not self.done():
            return None
        return self._attempt.trouble(f"SLURM job {self._job.job_id} ended as {self._job.state}")


class Slurm:
    """A cluster's queue."""

    name = "slurm"

    def __init__(self, folder: Path, options: Mapping[str, str], cluster: str = "slurm") -> None:
        """Everything about the jobs goes into ``folder``, which all machines must see.

        Args:
            options: of sbatch or submitit, by name: time (minutes), partition, account, mem_gb,
                cpus_per_task, signal_delay_s (seconds a job is told before its time is over) ...
            cluster: submitit's name; "local" carries the jobs out here.

        Raises:
            UsageError: an option's value is not usable.
            TpcliError: submitit is not installed, or there is no SLURM here.
        """
        self._submitit = _submitit()
        self._folder, self._cluster = folder.resolve(), cluster
        self._parameters = _parameters(options, self._submitit.SlurmExecutor._valid_parameters())
        delay = self._parameters["slurm_signal_delay_s"]
        self._patience = delay / 2
        try:
            self._queue()
        except RuntimeError as error:
            raise TpcliError(f"no SLURM here: {error}", hint="submit from a login node") from error

    def room(self, launch: LaunchSection) -> int:
        """SLURM queues what has no place yet."""
        return UNLIMITED

    def submit(self, run_dir: Path, launch: LaunchSection) -> SlurmJob:
        """Queue the run; a refusal is the job's trouble."""
        attempt = Attempt(run_dir)
        name = f"tpcli-{attempt.run_dir.name}"
        self._withdraw(name)
        queue = self._queue()
        queue.update_parameters(name=name)
        if not launch.cpu:
            queue.update_parameters(gpus_per_node=launch.processes // launch.machines)
        errors = self._submitit.core.utils
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # it prints what sbatch says
                job = queue.submit(Task(attempt.run_dir, self._patience))
        except (errors.FailedJobError, errors.FailedSubmissionError, OSError) as error:
            said = str(error).strip().splitlines() or ["no reason given"]
            return SlurmJob(attempt, f"SLURM refused it: {said[-1]}")
        return SlurmJob(attempt, job)

    def close(self) -> None:
        """Nothing is held: jobs go on without the sweep, which finds them when it is resumed."""

    def _withdraw(self, name: str) -> None:
        """Take back a job of this name: a sweep that was killed may have left one in the queue."""
        if self._cluster == "slurm":
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                command = ["scancel", f"--name={name}"]
                subprocess.run(command, capture_output=True, timeout=60, check=False)

    def _queue(self) -> Any:
        """A new one each time: what one job needs must not stay for the next."""
        queue = self._submitit.AutoExecutor(
            self._folder, cluster=self._cluster, slurm_max_num_timeout=TIMEOUTS
        )
        queue.update_parameters(**self._parameters)
        return queue


class Task:
    """What the SLURM job does: a process for the run, begun again where SLURM cuts it off."""

    def __init__(self, run_dir: Path, patience: float, *, again: bool = False) -> None:
        """``patience``: seconds that a step may take to end when SLURM wants the job's place."""
        self._run_dir, self._patience, self._again = run_dir, patience, again
        self._cell: subprocess.Popen[bytes] | None = None

    def __call__(self) -> int:
        """Carry out the run; returns the exit code of its process."""
        if self._again:
            (self._run_dir / folder.STOP).unlink(missing_ok=True)
        # SLURM sends its warning to every process of the job; who does not know it would die of it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGUSR2))
        try:
            self._cell = cell.start(self._run_dir, os.environ)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = cell.wait(self._cell)
        if code == TERMINATED:  # a preemption: the next signal has us queued again, or kills us
            time.sleep(GRACE)
        return code

    def checkpoint(self) -> Any:
        """submitit calls this when SLURM wants the job's place, and queues what it returns."""
        from submitit.helpers import DelayedSubmission

        (self._run_dir / folder.STOP).touch()
        limit = time.monotonic() + self._patience
        while self._cell and self._cell.poll() is None and time.monotonic() < limit:
            time.sleep(cell.POLL)
        return DelayedSubmission(Task(self._run_dir, self._patience, again=True))


def _parameters(options: Mapping[str, str], known: Collection[str]) -> dict[str, Any]:
    """The options under the names and types that submitit wants."""
    found: dict[str, Any] = {"timeout_min": MINUTES, "slurm_signal_delay_s": SIGNAL_DELAY}
    more: dict[str, str] = {}
    for typed, text in options.items():
        name = typed.replace("-", "_")
        name = "timeout_min" if name == "time" else name
        kind = NUMBERS.get(name, str)
        try:
            value = kind(text)
        except ValueError as error:
            raise UsageError(
                f'SLURM option {typed} = "{text}" is not a number',
                hint="time counts minutes, mem_gb gigabytes",
            ) from error
        if name in NUMBERS and name != "signal_delay_s":
            found[name] = value
        elif name in known:
            found[f"slurm_{name}"] = value
        else:
            more[name] = text  # sbatch knows more options than submitit, and refuses what is none
    if more:
        found["slurm_additional_parameters"] = more
    return found


def _submitit() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise TpcliError("submitit is not installed", hint="pip install 'tpcli[slurm]'") from error
    logging.getLogger("submitit").setLevel(logging.CRITICAL)  # it writes over the display
    return submitit
