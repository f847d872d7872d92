"""Runs as tasks of a Ray cluster, whose scheduler places them. Needs the extra ``ray``."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcli.errors import TpcliError, UsageError
from tpcli.jobs.executors import UNLIMITED, cell
from tpcli.jobs.executors.attempt import Attempt
from tpcli.jobs.supervise import cores

if TYPE_CHECKING:
    from tpcli.recipe.sections import LaunchSection

STORE = 80_000_000
"""Bytes of shared memory for a cluster of our own; nothing but exit codes goes through it."""
PATIENCE = 10.0
"""Seconds in which a cluster must answer."""
PASSED = ("TPCLI_", "PYTHONPATH", "HF_HOME", "HF_HUB_OFFLINE", "OMP_NUM_THREADS")
"""Starts of the variables that go along. No token: each machine has its own login."""


class RayJob:
    """A run in a task of Ray."""

    def __init__(self, attempt: Attempt, ray: Any, task: Any) -> None:
        self.run_dir = attempt.run_dir
        self._attempt, self._ray, self._task = attempt, ray, task

    def done(self) -> bool:
        """The task has ended, or was taken back."""
        ended, _ = self._ray.wait([self._task], timeout=0)
        if not ended:
            self._attempt.remind()
        return bool(ended)

    def stop(self) -> None:
        """Ask it to stop after its step, or take it back where it has not begun."""
        self._attempt.stop()
        if not self._attempt.started():
            self._cancel()

    def kill(self) -> None:
        """Interrupt the task, which ends its cell."""
        self._attempt.stop()
        self._cancel()

    def trouble(self) -> str | None:
        """What Ray says of a task that did not end by itself."""
        if not self.done():
            return None
        try:
            reason = f"its process ended with code {self._ray.get(self._task)}"
        except self._ray.exceptions.RayError as error:
            reason = f"Ray lost it: {error}"
        return self._attempt.trouble(reason)

    def _cancel(self) -> None:
        self._ray.cancel(self._task)


class Ray:
    """A cluster's scheduler: jobs wait there for the processors and GPUs they need."""

    name = "ray"

    def __init__(self, address: str | None = None, *, cpus: int = 1) -> None:
        """Join the cluster at ``address`` or $RAY_ADDRESS; without one, make one of this machine.

        Args:
            cpus: processors that a job reserves.
        """
        self._cpus = cpus
        self._folder: Path | None = None
        self._ray = _ray()
        told: dict[str, Any] = {"address": address or os.environ.get("RAY_ADDRESS") or "local"}
        if told["address"] == "local":
            # Directly below /tmp: the names of Ray's sockets may have 107 characters.
            self._folder = Path(tempfile.mkdtemp(prefix="tpcli-ray-", dir="/tmp"))
            told |= {"_temp_dir": str(self._folder), "object_store_memory": STORE}
            told |= {"num_cpus": max(cores(), cpus), "include_dashboard": False}
        handler = signal.getsignal(signal.SIGTERM)
        try:
            _knock(told["address"])
            self._ray.init(**told, logging_level=logging.ERROR, log_to_driver=False)
        except (OSError, RuntimeError, ValueError) as error:
            self.close()
            raise TpcliError(
                f"no Ray cluster at {told['address']}: {str(error).splitlines()[0]}",
                hint="ray status --address ... shows whether it is up",
            ) from error
        signal.signal(signal.SIGTERM, handler)  # Ray puts one of its own there

    def room(self, launch: LaunchSection) -> int:
        """Ray queues what has no place yet."""
        self._gpus(launch)
        return UNLIMITED

    def submit(self, run_dir: Path, launch: LaunchSection) -> RayJob:
        """Give the run to Ray. Its folder must be there on every machine of the cluster."""
        attempt = Attempt(run_dir)
        variables = {name: os.environ[name] for name in os.environ if name.startswith(PASSED)}
        remote = self._ray.remote(num_cpus=self._cpus, num_gpus=self._gpus(launch), max_retries=0)
        task = remote(_carry_out).remote(str(attempt.run_dir), variables, str(Path.cwd()))
        return RayJob(attempt, self._ray, task)

    def close(self) -> None:
        """Leave the cluster; one of our own ends, and its files go."""
        self._ray.shutdown()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _gpus(self, launch: LaunchSection) -> int:
        """GPUs a job; 0 where the cluster has none."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        most_gpus = int(max((node.get("GPU", 0) for node in nodes), default=0))
        most_cpus = max((node.get("CPU", 0) for node in nodes), default=0)
        each = 0 if launch.cpu or not most_gpus else launch.processes // launch.machines
        if each > most_gpus or self._cpus > most_cpus:
            raise UsageError(
                f"a run needs {each} GPUs and {self._cpus} processors; "
                f"no machine of the Ray cluster has more than {most_gpus} and {most_cpus:.0f}",
                hint="ask for less: launch.processes in the recipe",
            )
        return each


def _carry_out(run_dir: str, variables: dict[str, str], cwd: str) -> int:
    """What the task does: a process for the run, for signals need a main thread."""
    path = Path(run_dir)
    if not path.is_dir():
        raise FileNotFoundError(f"{run_dir} is not on this machine: the runs must be shared")
    here = cwd if Path(cwd).is_dir() else None
    return cell.wait(cell.start(path, os.environ | variables, here))


def _knock(address: str) -> None:
    """See that somebody listens: Ray itself tries for more than a minute, and writes of it."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise TpcliError("Ray is not installed", hint="pip install 'tpcli[ray]'") from error
    return ray
