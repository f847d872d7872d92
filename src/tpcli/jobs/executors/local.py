"""Runs on this machine, so many at a time, each with GPUs of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tpcli.errors import UsageError
from tpcli.jobs.executors import cell
from tpcli.jobs.executors.attempt import Attempt
from tpcli.jobs.executors.gpus import Lease, Pool
from tpcli.jobs.supervise import cores

if TYPE_CHECKING:
    from tpcli.recipe.sections import LaunchSection


class LocalJob:
    """A run in a process of this machine."""

    def __init__(self, attempt: Attempt, process: subprocess.Popen[bytes], lease: Lease) -> None:
        self.run_dir = attempt.run_dir
        self._attempt, self._process, self._lease = attempt, process, lease

    def done(self) -> bool:
        """Its process has ended. Its GPUs are given back when this is first seen."""
        if self._process.poll() is None:
            self._attempt.remind()
            return False
        self._lease.release()
        return True

    def stop(self) -> None:
        """Ask it to stop after its step."""
        self._attempt.stop()

    def kill(self) -> None:
        """End its process now."""
        self._attempt.stop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def trouble(self) -> str | None:
        """Why its process ended without a word."""
        if not self.done():
            return None
        return self._attempt.trouble(f"its process ended with {_named(self._process.returncode)}")


class Local:
    """At most ``jobs`` runs at once, and never two on one GPU."""

    name = "local"

    def __init__(self, jobs: int) -> None:
        if jobs < 1:
            raise UsageError(f"{jobs} jobs at once do nothing", hint="--jobs 1 or more")
        self._limit = jobs
        self._jobs: list[LocalJob] = []
        self._pool = Pool()

    def room(self, launch: LaunchSection) -> int:
        """Jobs that may still be added, by number and by free GPUs."""
        self._jobs = [job for job in self._jobs if not job.done()]
        room = self._limit - len(self._jobs)
        each = self._gpus(launch)
        return min(room, self._pool.free() // each) if each and room else room

    def submit(self, run_dir: Path, launch: LaunchSection) -> LocalJob | None:
        """Start it now; None where its GPUs have just gone to somebody else."""
        lease = self._pool.take(self._gpus(launch))
        if lease is None:
            return None
        try:
            attempt = Attempt(run_dir)
            environment = os.environ | self._threads(launch) | lease.environment
            job = LocalJob(attempt, cell.start(attempt.run_dir, environment), lease)
        except BaseException:
            lease.release()
            raise
        self._jobs.append(job)
        return job

    def close(self) -> None:
        """Nothing is held but by jobs: they stop after their step once this process is gone."""

    def _gpus(self, launch: LaunchSection) -> int:
        """GPUs a job; 0 where there are none to hand out."""
        if launch.cpu or not self._pool.size:
            return 0
        each = launch.processes // launch.machines
        if each > self._pool.size:
            raise UsageError(
                f"a run needs {each} GPUs and this machine has {self._pool.size} to use",
                hint=f"--set launch.processes={self._pool.size}, or look at CUDA_VISIBLE_DEVICES",
            )
        return each

    def _threads(self, launch: LaunchSection) -> dict[str, str]:
        """Processors are shared out evenly, unless the user says how many threads he wants."""
        if os.environ.get("OMP_NUM_THREADS"):
            return {}
        processes = self._limit * (launch.processes // launch.machines)
        return {"OMP_NUM_THREADS": str(max(cores() // processes, 1))}


def _named(returncode: int) -> str:
    return signal.Signals(-returncode).name if returncode < 0 else f"code {returncode}"
