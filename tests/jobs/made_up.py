"""An executor for tests: it trains nothing, and leaves in a run's folder what a run would."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from tpcli.recipe.sections import LaunchSection
from tpcli.registry import folder
from tpcli.registry.run import read_status
from tpcli.registry.store import Registry

Ending = Callable[[Path], None]


def finish(run_dir: Path, reward: float = 0.5) -> None:
    """Leave what a run of 150 steps leaves at its end."""
    lines = [
        {"step": step, "time": 1.0, "reward/mean": reward, "eval/sampled": reward, "time/step": 2.0}
        for step in (1, 150)
    ]
    (run_dir / folder.METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    end(run_dir, "finished")


def end(run_dir: Path, status: str, error: str | None = None) -> None:
    state = {"status": status, "finished": time.time(), "exit_code": 0, "error": error}
    folder.write_json_atomic(run_dir / folder.STATE, state)
    Registry(run_dir.parent).index(run_dir)


class FakeJob:
    def __init__(self, run_dir: Path, ending: Ending) -> None:
        self.run_dir = run_dir
        self._ending = ending
        self.stopped = self.killed = self.over = False

    def done(self) -> bool:
        if not self.over:
            self._ending(self.run_dir)
            self.over = read_status(self.run_dir) not in ("created", "running")
        return self.over

    def stop(self) -> None:
        self.stopped = True
        self.over = True
        end(self.run_dir, "stopped")

    def kill(self) -> None:
        self.killed = True

    def trouble(self) -> str | None:
        return None


class FakeExecutor:
    """Two at once; what becomes of a run is ``ending``'s to say."""

    name = "fake"

    def __init__(self, ending: Ending = finish) -> None:
        self._ending = ending
        self.submitted: list[FakeJob] = []

    def room(self, launch: LaunchSection) -> int:
        return 2 - sum(not job.over for job in self.submitted)

    def submit(self, run_dir: Path, launch: LaunchSection) -> FakeJob:
        job = FakeJob(run_dir, self._ending)
        self.submitted.append(job)
        return job

    def close(self) -> None:
        pass
