"""Where the runs of a sweep are carried out: on this machine, on a Ray cluster, by SLURM.

An executor starts a run whose folder exists and knows when its process has ended. How the run went
stands in the folder, whoever carried it out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from tpcli.recipe.sections import LaunchSection

__all__ = ["UNLIMITED", "Executor", "Job"]

UNLIMITED = 1_000_000
"""The room of an executor that leaves queueing to somebody else."""


class Job(Protocol):
    """One attempt at a run."""

    @property
    def run_dir(self) -> Path:
        """The run's folder, absolute."""
        ...

    def done(self) -> bool:
        """Its process has ended or will never start. How the run went, its folder says.

        Ask this now and then: it is also where a job looks after what it holds.
        """
        ...

    def stop(self) -> None:
        """Ask it to stop after its step; one that still waits for its turn is taken back."""
        ...

    def kill(self) -> None:
        """End it now. Its training process ends as soon as it sees that nobody watches."""
        ...

    def trouble(self) -> str | None:
        """Why it ended without its folder saying so, in one line; None for every other job.

        A run that fails says so in its folder; a job that was stopped or killed is no trouble.
        """
        ...


class Executor(Protocol):
    """Somewhere to carry out runs."""

    name: str

    def room(self, launch: LaunchSection) -> int:
        """How many more jobs of this kind may be submitted now.

        Raises:
            UsageError: such a job could never run here.
        """
        ...

    def submit(self, run_dir: Path, launch: LaunchSection) -> Job | None:
        """Carry out the run in this folder, from its newest checkpoint on.

        Returns:
            None where somebody else has taken what was free a moment ago: try again later.
        """
        ...

    def close(self) -> None:
        """Let go of what belongs to the executor.

        Jobs under way here and on Ray stop after their step; those of SLURM go on.
        """
        ...
