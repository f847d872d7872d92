"""Start the training process and watch over it: heartbeat, registry, MLflow, signals, the end.

The worker only writes into the run's folder; whoever wants to know how it goes reads it there.
When the supervisor dies the worker ends too, so nothing trains unseen.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import psutil

from tpcli import errors
from tpcli.errors import TpcliError, UsageError
from tpcli.jobs.mirror import MirrorThread, tracking
from tpcli.names import RunStatus
from tpcli.policy import heap
from tpcli.registry import folder
from tpcli.registry.store import Registry

if TYPE_CHECKING:
    from tpcli.recipe.sections import LaunchSection

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
TICK = 0.25
"""Seconds between two looks at the folder."""
BARE_TICK = 1.0
"""The same where nobody watches."""
IDLE = 500.0
"""Times as long as an update of the registry took, the next one waits."""
GPU_DEVICES = (Path("/dev/nvidiactl"), Path("/dev/kfd"))
"""What stands there where a driver for GPUs is loaded: NVIDIA's, AMD's."""
HEARTBEAT = 10.0
"""Seconds between two signs of life."""
MLFLOW_PATIENCE = 60.0
"""Seconds that the last synchronisation may take."""


@dataclass(slots=True)
class Snapshot:
    """The folder of a run at one moment, and what only its supervisor knows."""

    run: dict[str, Any]
    folder: Path
    started: float
    now: float
    state: dict[str, Any] = field(default_factory=dict)
    progress: dict[str, Any] = field(default_factory=dict)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    checkpoint: int | None = None
    warnings: tuple[str, ...] = ()
    stopping: bool = False

    @property
    def exit_code(self) -> int:
        """What the command should end with."""
        code = self.state.get("exit_code")
        return errors.BUG if code is None else int(code)


Observer = Callable[[Snapshot], None]


def supervise(
    run_dir: Path,
    launch: LaunchSection,
    observe: Observer,
    *,
    new_horizon: bool = False,
    bare: bool = False,
) -> Snapshot:
    """Run the worker to its end; returns the last snapshot, whose state says how it ended.

    The first Ctrl-C, SIGTERM or SIGHUP asks the worker to stop after its step, the second
    kills it.

    Args:
        bare: somebody else mirrors the run to MLflow and draws its figures.
    """
    with _alone(run_dir):
        return _supervise(run_dir, launch, observe, new_horizon, bare)


def _supervise(
    run_dir: Path, launch: LaunchSection, observe: Observer, new_horizon: bool, bare: bool
) -> Snapshot:
    for name in (folder.STOP, folder.FAILURE, folder.PROGRESS):
        (run_dir / name).unlink(missing_ok=True)
    registry = Registry(run_dir.parent)
    watch = _Watch(run_dir, observe)
    watch.write_state("running")
    with _worker(run_dir, launch, new_horizon) as worker, _signals(run_dir, worker, watch):
        _index(registry, run_dir)
        target = None if bare else tracking(run_dir)
        mirror = MirrorThread(run_dir, *target) if target else None
        if mirror:
            mirror.start()
        beat = indexed = time.monotonic()
        rest = 0.0
        while worker.poll() is None:
            time.sleep(BARE_TICK if bare else TICK)
            watch.look(mirror)
            if time.monotonic() - beat > HEARTBEAT:
                beat = time.monotonic()
                watch.write_state("running")
                if beat - indexed > rest:
                    rest = IDLE * _index(registry, run_dir)
                    indexed = time.monotonic()
    watch.conclude(worker.returncode)
    warnings = () if bare else draw_figures(run_dir)
    _index(registry, run_dir)
    if mirror:
        mirror.stop(MLFLOW_PATIENCE)
    return watch.look(mirror, warnings)


@contextlib.contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """One supervisor a run: two would each write, and delete, what the other does."""
    from filelock import FileLock, Timeout

    lock = FileLock(run_dir / ".supervisor.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(
            f"run {run_dir.name} already has a supervisor",
            hint=f"watch it: tpcli logs -f {run_dir.name}",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _index(registry: Registry, run_dir: Path) -> float:
    """Seconds that it took. The registry is an index: what goes wrong must not touch the run."""
    begun = time.monotonic()
    with contextlib.suppress(TpcliError):
        registry.index(run_dir)
    return time.monotonic() - begun


def command(run_dir: Path, launch: LaunchSection, *, new_horizon: bool) -> list[str]:
    """The launcher's command line. Its settings stand in a file, so none of the user's leak in."""
    config = run_dir / f"accelerate-{launch.machine_rank}.json"
    settings = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU" if launch.processes > 1 else "NO",
        "num_processes": launch.processes,
        "num_machines": launch.machines,
        "machine_rank": launch.machine_rank,
        "main_process_ip": launch.main_address,
        "main_process_port": launch.main_port or (free_port() if launch.processes > 1 else None),
        "mixed_precision": launch.mixed_precision,
        "use_cpu": False,  # the worker decides; the launcher starts only one process on a CPU
        "gpu_ids": "all",
        "rdzv_backend": "static",
        "same_network": True,
        "main_training_function": "main",
        "downcast_bf16": "no",
        "debug": False,
    }
    folder.write_json_atomic(config, {k: v for k, v in settings.items() if v is not None})
    local = launch.processes // launch.machines
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(cores() // local, 1))
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", str(config)),
        *("--num_cpu_threads_per_process", threads),
        *("-m", "tpcli.train", str(run_dir.resolve()), "--supervisor", str(os.getpid())),
        *(["--new-horizon"] if new_horizon else []),
    ]


def environment(launch: LaunchSection) -> dict[str, str]:
    """The launcher's environment: this process's own, and what training wants from its start."""
    told = os.environ | {
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    gpu = any(device.exists() for device in GPU_DEVICES) and told.get("CUDA_VISIBLE_DEVICES") != ""
    return told | (heap.variables() if launch.cpu or not gpu else {})


def cores() -> int:
    """Processors this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_port() -> int:
    """A port nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _worker(
    run_dir: Path, launch: LaunchSection, new_horizon: bool
) -> Iterator[subprocess.Popen[bytes]]:
    """The launcher in a session of its own: the terminal's Ctrl-C does not reach it."""
    with (run_dir / folder.LOG).open("ab") as log:
        worker = subprocess.Popen(
            command(run_dir, launch, new_horizon=new_horizon),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(launch),
            start_new_session=True,
        )
    try:
        yield worker
    finally:
        kill(worker)


def kill(worker: subprocess.Popen[bytes]) -> None:
    """End the launcher and everything it started, now."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


@contextlib.contextmanager
def _signals(run_dir: Path, worker: subprocess.Popen[bytes], watch: _Watch) -> Iterator[None]:
    """Once: leave the file that the worker looks for after each step. Twice: kill it."""

    def stop(number: int, _frame: FrameType | None) -> None:
        if watch.stopping:
            kill_now()
        watch.stopping = number
        (run_dir / folder.STOP).touch()

    def kill_now() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)

    before = {number: signal.signal(number, stop) for number in _STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Watch:
    """Reads the folder as it grows, and writes state.json."""

    def __init__(self, run_dir: Path, observe: Observer) -> None:
        self._run_dir, self._observe = run_dir, observe
        self._started = time.time()
        self._tail = _Tail(run_dir / folder.METRICS)
        self._state: dict[str, Any] = {}
        self._showing = True
        self.stopping = 0

    def look(self, mirror: MirrorThread | None, warnings: tuple[str, ...] = ()) -> Snapshot:
        """Read what is new and show it."""
        if mirror and mirror.error:
            warnings = (*warnings, f"MLflow is behind: {mirror.error}")
        snapshot = Snapshot(
            run=folder.read_json(self._run_dir / folder.RUN),
            folder=self._run_dir,
            started=self._started,
            now=time.time(),
            state=self._state,
            progress=self._progress(),
            metrics=self._tail.read(),
            checkpoint=newest_checkpoint(self._run_dir),
            warnings=warnings,
            stopping=bool(self.stopping),
        )
        if self._showing:
            try:
                self._observe(snapshot)
            except Exception as error:  # a display that fails must not end the run
                self._showing = False
                print(f"the display stopped ({error}); the run goes on", file=sys.stderr)
        return snapshot

    def write_state(self, status: RunStatus, **more: Any) -> None:
        """Say how the run stands, and that somebody is watching it."""
        me = psutil.Process()
        self._state = {
            "status": status,
            "pid": me.pid,
            "pid_started": me.create_time(),
            "host": socket.gethostname(),
            "heartbeat": time.time(),
            "finished": None,
            "exit_code": None,
            "error": None,
            "hint": None,
        } | more
        folder.write_json_atomic(self._run_dir / folder.STATE, self._state)

    def conclude(self, returncode: int) -> None:
        """The worker has ended: say how."""
        phase = self._progress().get("phase")
        if phase == "done":
            self._end("finished", errors.OK)
        elif (self._run_dir / folder.FAILURE).exists():
            self._end("failed", **self._failure(returncode))
        elif phase == "stopped" or self.stopping:
            code = errors.TERMINATED if self.stopping == signal.SIGTERM else errors.INTERRUPTED
            self._end("stopped", code)
        else:
            self._end("failed", **self._failure(returncode))

    def _end(self, status: RunStatus, exit_code: int, **more: Any) -> None:
        self.write_state(status, finished=time.time(), exit_code=exit_code, **more)

    def _failure(self, returncode: int) -> dict[str, Any]:
        """What the worker left as its reason; without one it was killed."""
        try:
            told = folder.read_json(self._run_dir / folder.FAILURE)
            # What the user can mend in the recipe keeps its own code; our bug stays a bug.
            return {key: told[key] for key in ("exit_code", "error", "hint")}
        except (OSError, ValueError, KeyError):
            name = signal.Signals(-returncode).name if returncode < 0 else f"code {returncode}"
            return {
                "exit_code": errors.RUN_FAILED,
                "error": f"the training process ended with {name} and left no reason",
                "hint": "the kernel kills what runs out of memory: see the log, then resume",
            }

    def _progress(self) -> dict[str, Any]:
        try:
            return folder.read_json(self._run_dir / folder.PROGRESS)
        except (OSError, ValueError):
            return {}


class _Tail:
    """The whole lines of a file that grows, reading only what is new."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity: int | None = None
        self._position = 0
        self._lines: list[dict[str, Any]] = []

    def read(self) -> list[dict[str, Any]]:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return []
        if found.st_ino != self._identity or found.st_size < self._position:  # cut back: replaced
            self._identity, self._position, self._lines = found.st_ino, 0, []
        if found.st_size > self._position:
            with self._path.open("rb") as file:
                file.seek(self._position)
                new = file.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._lines = self._lines + [json.loads(line) for line in whole.splitlines()]
            self._position += len(whole)
        return self._lines


def newest_checkpoint(run_dir: Path) -> int | None:
    """Step of the newest complete checkpoint."""
    names = [p.name.removeprefix("step-") for p in (run_dir / folder.CHECKPOINTS).glob("step-*")]
    return max((int(name) for name in names if name.isdigit()), default=None)


def draw_figures(run_dir: Path) -> tuple[str, ...]:
    """Draw the run's figures; a figure that fails must not fail the run, and is told of."""
    from tpcli.analysis.figures import draw

    try:
        draw(run_dir)
    except Exception as error:
        return (f"the figures could not be drawn: {error}",)
    return ()
