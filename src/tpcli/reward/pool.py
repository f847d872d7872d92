"""Processes that run what may hang, eat memory or die, and that are killed when it does.

Each process has a pool of pebble's to itself, so it is always known whose job it died of. It is
forked from a server that has loaded math-verify, which makes a new one ready in about 0.1 s.
"""

import contextlib
import os
import resource
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any, Literal

import psutil
from pebble import ProcessExpired, ProcessPool

from tpcli.errors import RunFailedError

PRELOADED = ("tpcli.reward.pool", "tpcli.reward.mathematics", "math_verify")
START_LIMIT = 120.0
"""Seconds that a process may take to load what it needs."""
GRACE = 2.0
"""Seconds after the deadline when a process ends itself: nobody has, so its parent is dead."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job. ``value`` is what it returned, ``error`` the exception it raised.

    A process that a job ends counts as "crash", and with exit code 0 as "timeout": it is missed
    when the deadline has passed.
    """

    status: Literal["done", "timeout", "crash"]
    value: Any = None
    error: str = ""
    ms: float = 0.0


class _Process(ForkServerProcess):
    """Its end is certain, as a job may have set SIGTERM aside; what it started ends with it."""

    def terminate(self) -> None:
        _end_group(self.pid)
        self.kill()


class _Context(ForkServerContext):
    Process = _Process


class Pool:
    """``workers`` processes, started with the first job; a job at a time each."""

    def __init__(
        self,
        *,
        workers: int,
        deadline: float,
        memory_gib: float,
        load: Callable[..., object] | None = None,
        load_args: tuple[Any, ...] = (),
    ) -> None:
        """Nothing is started yet.

        Args:
            workers: processes.
            deadline: seconds a job may take.
            memory_gib: what a process may take beyond what it has once loaded.
            load: called in each new process, before the deadline of its first job begins.
            load_args: what ``load`` is called with.
        """
        self._workers, self._deadline = workers, deadline
        self._start = (int(memory_gib * 2**30), load, load_args)
        self._seats: list[_Seat] = []

    def run(
        self,
        function: Callable[..., Any],
        jobs: Iterable[tuple[Any, ...]],
        *,
        deadline: float | None = None,
    ) -> list[Outcome]:
        """``function(*job)`` for each job, in order.

        Args:
            function: of a module's top level; it returns plain data.
            jobs: its arguments.
            deadline: another than the pool's.

        Raises:
            RunFailedError: the processes cannot be started, or do not answer.
        """
        limit = self._deadline if deadline is None else deadline
        todo = list(jobs)
        found: list[Outcome | None] = [None] * len(todo)
        if todo and not self._seats:
            self._open()
        idle, busy = list(self._seats), dict[Future[Outcome], tuple[int, _Seat]]()
        given = 0
        while given < len(todo) or busy:
            while idle and given < len(todo):
                seat = idle.pop()
                busy[seat.give(function, todo[given], limit)] = given, seat
                given += 1
            for future in _any_of(busy, limit):
                index, seat = busy.pop(future)
                found[index] = _outcome(future, limit)
                idle.append(seat)
        return [one for one in found if one is not None]

    def close(self) -> None:
        """End every process; a later job starts new ones."""
        seats, self._seats = self._seats, []
        for seat in seats:
            seat.stop()
        for seat in seats:
            seat.join()

    def _open(self) -> None:
        self._seats = [_Seat(self._start) for _ in range(self._workers)]
        starting = {seat.give(_present, (), START_LIMIT): seat for seat in self._seats}
        while starting:
            for future in _any_of(starting, START_LIMIT):
                del starting[future]
                if _outcome(future, START_LIMIT).status != "done":
                    self.close()
                    raise RunFailedError(
                        "the processes that verify do not start",
                        hint="raise [reward].memory_gib, or look whether the machine has run out "
                        "of memory or processes",
                    )


class _Seat:
    """One process after the other, in a pool of its own."""

    def __init__(self, start: tuple[Any, ...]) -> None:
        self._start = start
        self._pool = self._new()

    def give(
        self, function: Callable[..., Any], job: Sequence[Any], limit: float
    ) -> Future[Outcome]:
        arguments = (function, tuple(job), limit + GRACE)
        try:
            return self._pool.schedule(_attempt, args=arguments, timeout=limit)
        except RuntimeError:  # its process died of the last job, or while it had none
            self.stop()
            self.join()
            self._pool = self._new()
            return self._pool.schedule(_attempt, args=arguments, timeout=limit)

    def stop(self) -> None:
        self._pool.stop()  # type: ignore[no-untyped-call]

    def join(self) -> None:
        self._pool.join()

    def _new(self) -> ProcessPool:
        context = _Context()
        # Known to the server only if it is this call that starts it; a process loads the rest.
        context.set_forkserver_preload(list(PRELOADED))
        return ProcessPool(max_workers=1, initializer=_begin, initargs=self._start, context=context)


def _any_of(futures: Iterable[Future[Outcome]], limit: float) -> set[Future[Outcome]]:
    """Those that are done, one at least."""
    done, _ = wait(futures, timeout=limit + START_LIMIT, return_when=FIRST_COMPLETED)
    if not done:
        raise RunFailedError(
            "the processes that verify do not answer",
            hint="look whether the machine has run out of memory or processes",
        )
    return done


def _outcome(future: Future[Outcome], limit: float) -> Outcome:
    try:
        return future.result()
    except TimeoutError:
        return Outcome("timeout", ms=1_000 * limit)
    except (ProcessExpired, BrokenProcessPool) as error:
        _end_group(getattr(error, "pid", None))
        return Outcome("crash", error=type(error).__name__)


def _end_group(pid: int | None) -> None:
    """Kill what the process ``pid``, itself dead or alive, has started and left in its group."""
    if pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def _begin(memory: int, load: Callable[..., object] | None, load_args: tuple[Any, ...]) -> None:
    """In a new process: be silent, be easy to end, load, then take no more memory than allowed."""
    os.setpgid(0, 0)  # what a job starts ends with it
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    # Ctrl-C is the parent's to answer; the others end the process at once, also inside C code.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)
    if load is not None:
        load(*load_args)
    limit = psutil.Process().memory_info().vms + memory
    for kind, value in ((resource.RLIMIT_AS, limit), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(ValueError, OSError):  # macOS knows no limit of this kind
            resource.setrlimit(kind, (value, value))


def _attempt(function: Callable[..., Any], job: tuple[Any, ...], limit: float) -> Outcome:
    """In a process: run the job; any exception becomes plain text.

    Without memory the process ends, since what the job has kept would be missing for good. Two
    timers see to a dead parent, as a job may use ``signal.alarm`` itself; the second counts the
    time of all processors.
    """
    signal.setitimer(signal.ITIMER_REAL, limit)
    signal.setitimer(signal.ITIMER_PROF, limit * (os.cpu_count() or 1))
    began = time.perf_counter()
    try:
        value, error = function(*job), ""
    except MemoryError:
        os._exit(1)
    except BaseException as raised:
        value, error = None, type(raised).__name__
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.setitimer(signal.ITIMER_PROF, 0)
    ms = 1_000 * (time.perf_counter() - began)
    return Outcome("crash" if error else "done", value, error, ms)


def _present() -> bool:
    return True
