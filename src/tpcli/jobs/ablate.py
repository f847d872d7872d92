"""Carry out a sweep: what is there is reused, what stopped goes on, a failure ends no other run.

The sweep's process only starts runs and reads their folders. It may be killed at any moment: the
same command goes on where it was.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

from tpcli import errors
from tpcli.analysis.arms import Trace, at_end
from tpcli.errors import TpcliError, UsageError
from tpcli.jobs import sweep as sweeps
from tpcli.jobs.beside import Beside, lacks
from tpcli.jobs.provenance import code_identity
from tpcli.jobs.runs import runs_dir
from tpcli.jobs.sweep import Cell, Sweep
from tpcli.jobs.train import Plan, create
from tpcli.names import RunStatus
from tpcli.registry import folder
from tpcli.registry.run import read_status
from tpcli.registry.store import Registry

if TYPE_CHECKING:
    from tpcli.jobs.executors import Executor, Job

TICK = 0.5
"""Seconds between two looks at the folders."""
GOING_ON: tuple[RunStatus, ...] = ("created", "stopped", "dead")
"""How a run of an earlier attempt may stand that simply goes on."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How one cell stands.

    Attributes:
        status: of its run; "queued" before there is one, or while it waits for its turn.
        value: of the sweep's metric, once it is finished.
        step: done so far.
        share: of all its steps.
        seconds: that its steps took.
        error: why it failed, in one line.
    """

    cell: Cell
    status: RunStatus | Literal["queued"]
    value: float | None = None
    step: int = 0
    share: float = 0.0
    seconds: float = 0.0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """The whole grid at one moment.

    Attributes:
        queue: places of the cells that wait, in order.
        stopping: the number of the signal that asked for it; 0 before.
        at_once: how many runs are under way together.
        warnings: of MLflow and the figures, which are behind.
    """

    sweep: Sweep
    cells: tuple[Standing, ...]
    queue: tuple[int, ...]
    at_once: int
    stopping: int
    warnings: tuple[str, ...] = ()

    @property
    def counts(self) -> Counter[str]:
        """Cells by status."""
        return Counter(standing.status for standing in self.cells)

    @property
    def eta(self) -> float | None:
        """Seconds to the end, from what the finished runs took; None before the first."""
        whole = [s.seconds for s in self.cells if s.status == "finished" and s.seconds]
        left = sum(1 - s.share for s in self.cells if s.status in ("queued", "running"))
        if not whole or not left:
            return None
        return left * sum(whole) / len(whole) / max(self.at_once, 1)

    @property
    def exit_code(self) -> int:
        """What the command should end with."""
        done = self.counts["finished"]
        if done == len(self.cells):
            return errors.OK
        if self.stopping:
            return errors.TERMINATED if self.stopping == signal.SIGTERM else errors.INTERRUPTED
        return errors.PARTLY_FAILED if done else errors.RUN_FAILED


Observer = Callable[[Progress], None]


def carry_out(
    sweep: Sweep, executor: Executor, observe: Observer, *, retry_failed: bool = False
) -> Progress:
    """Train every cell that has no finished run; the first Ctrl-C ends the runs after their step.

    Args:
        retry_failed: runs that failed go on too, from their newest checkpoint.

    Raises:
        UsageError: another process carries it out, or code or recipe changed since it began.
    """
    check_code(sweep)
    plans = [sweep.plan(cell) for cell in sweep.cells]
    with (
        sweeps.alone(sweep),
        contextlib.closing(Beside()) as beside,
        contextlib.closing(executor),
    ):
        _adopt(sweep)
        work = _Work(sweep, plans, executor, beside, retry_failed)
        with _signals(work):
            while True:
                work.look()
                work.fill()
                observe(work.progress())
                if work.idle:
                    break
                time.sleep(TICK)
    return work.progress()


def claim(sweep: Sweep, *, reuse: bool = True) -> Sweep:
    """The sweep with a run in every cell that has one, its own or a finished one to be reused."""
    registry = Registry(runs_dir())
    own = {run.fingerprint: run for run in registry.list() if sweep.id in run.tags}
    there = {run.id for run in registry.list()}  # a removed run answers nothing
    for at, cell in enumerate(sweep.cells):
        if cell.run in there:
            continue
        mine = own.get(cell.fingerprint)
        found = mine or (registry.same(cell.fingerprint, sweep.code) if reuse else None)
        if found is not None:
            sweep = sweep.with_run(at, found.id, reused=mine is None)
        elif cell.run is not None:  # removed or deleted since
            cells = [*sweep.cells]
            cells[at] = replace(cell, run=None, reused=False)
            sweep = replace(sweep, cells=tuple(cells))
    return sweep


def standing(cell: Cell, metric: str) -> Standing:
    """How a cell stands, from its run's folder."""
    run_dir = runs_dir() / (cell.run or "")
    if cell.run is None or not (run_dir / folder.RUN).exists():
        return Standing(cell, "queued")
    status = read_status(run_dir)
    steps = int(folder.read_json(run_dir / folder.RUN)["steps"])
    if status == "running":
        step = _under_way(run_dir)
        return Standing(cell, status, step=step, share=step / steps)
    metrics = folder.read_metrics(run_dir)
    step = int(metrics[-1]["step"]) if metrics else 0
    trace = Trace(cell.run, "", cell.seed, status, steps, run_dir, {}, {}, metrics)
    return Standing(
        cell,
        status,
        value=at_end(trace, metric) if status == "finished" else None,
        step=step,
        share=step / steps,
        seconds=sum(line.get("time/step") or 0.0 for line in metrics),
        error=_error(run_dir),
    )


def _adopt(sweep: Sweep) -> None:
    """Write down which runs answer which cells, and tag those that were there before."""
    from tpcli.jobs.curate import tag

    for cell in sweep.cells:
        if cell.reused and cell.run:
            tag([cell.run], [sweep.id, sweep.tag(cell.variant)])
    sweep.save()


class _Work:
    """The cells, the jobs under way, and the queue."""

    def __init__(
        self,
        sweep: Sweep,
        plans: Sequence[Plan],
        executor: Executor,
        beside: Beside,
        retry_failed: bool,
    ) -> None:
        self.sweep, self.executor = sweep, executor
        self._plans, self._beside = plans, beside
        self.jobs: dict[int, Job] = {}
        self.stopping = 0
        self._cells = {at: standing(cell, sweep.metric) for at, cell in enumerate(sweep.cells)}
        again = (*GOING_ON, *(("failed",) if retry_failed else ()))
        # Seed by seed, so that whatever is there early can already be paired.
        order = sorted(self._cells, key=lambda at: sweep.seeds.index(sweep.cells[at].seed))
        self._queue = deque(at for at in order if self._cells[at].status in ("queued", *again))
        self._others = {at for at in order if self._cells[at].status == "running"}
        for at in self._others:
            beside.begin(self._folder(at))
        for at in order:
            own = self._cells[at].status == "finished" and not sweep.cells[at].reused
            if own and lacks(self._folder(at)):
                beside.end(self._folder(at))

    @property
    def idle(self) -> bool:
        """Nothing is under way, and nothing will be."""
        return not self.jobs and (self.stopping > 0 or not (self._queue or self._others))

    def look(self) -> None:
        """See how the runs under way have come along."""
        for at, job in [*self.jobs.items()]:
            if job.done():
                del self.jobs[at]
                self._beside.end(self._folder(at))
                self._cells[at] = self._ended(at, job)
            else:
                self._cells[at] = standing(self.sweep.cells[at], self.sweep.metric)
        for at in [*self._others]:  # left behind by a sweep that was killed: they end by themselves
            self._cells[at] = standing(self.sweep.cells[at], self.sweep.metric)
            if self._cells[at].status != "running":
                self._others.remove(at)
                self._beside.end(self._folder(at))
                if self._cells[at].status in GOING_ON:
                    self._queue.append(at)

    def fill(self) -> None:
        """Start what there is room for."""
        while self._queue and not self.stopping:
            at = self._queue[0]
            if self.executor.room(self._plans[at].recipe.launch) < 1 or not self._start(at):
                return
            self._queue.popleft()

    def stop(self, number: int) -> None:
        """Once: every run ends after its step. Twice: now."""
        for job in self.jobs.values():
            job.kill() if self.stopping else job.stop()
        self.stopping = number

    def progress(self) -> Progress:
        """The grid as it stands."""
        cells = [self._cells[at] for at in range(len(self._cells))]
        for at in self._queue:
            cells[at] = replace(cells[at], status="queued")
        return Progress(
            sweep=self.sweep,
            cells=tuple(cells),
            queue=tuple(self._queue),
            at_once=len(self.jobs) + len(self._others),
            stopping=self.stopping,
            warnings=tuple(self._beside.warnings),
        )

    def _start(self, at: int) -> bool:
        """Whether the executor has taken the run."""
        cell, planned = self.sweep.cells[at], self._plans[at]
        if cell.run is None:
            run_dir = create(planned)
            self.sweep = self.sweep.with_run(at, run_dir.name, reused=False)
            self.sweep.save()
        else:
            run_dir = self._folder(at)
        _reserve(run_dir)
        if self.stopping:  # a signal came meanwhile
            return False
        job = self.executor.submit(run_dir, planned.recipe.launch)
        if job is not None:
            self.jobs[at] = job
            if self.stopping:  # or just now, before the job was known
                job.stop()
            self._beside.begin(run_dir)
            self._cells[at] = standing(self.sweep.cells[at], self.sweep.metric)
        return job is not None

    def _folder(self, at: int) -> Path:
        return runs_dir() / (self.sweep.cells[at].run or "")

    def _ended(self, at: int, job: Job) -> Standing:
        found = standing(self.sweep.cells[at], self.sweep.metric)
        if found.status in ("created", "running", "dead"):
            reason = job.trouble() or "its process ended without a word"
            return replace(found, status="dead", error=reason)
        return found


def _reserve(run_dir: Path) -> None:
    """Say that the run waits for its turn with this process, before the executor has started it."""
    import psutil

    me = psutil.Process()
    path = run_dir / folder.STATE
    before: dict[str, Any] = folder.read_json(path) if path.exists() else {}
    folder.write_json_atomic(
        path,
        before
        | {
            "status": "created",
            "pid": os.getpid(),
            "pid_started": me.create_time(),
            "host": socket.gethostname(),
            "heartbeat": time.time(),
            "error": None,
            "hint": None,
        },
    )
    with contextlib.suppress(TpcliError):
        Registry(run_dir.parent).index(run_dir)


def check_code(sweep: Sweep) -> None:
    """UsageError where the sweep was begun with other code than this."""
    if sweep.code != code_identity():
        raise UsageError(
            f"sweep {sweep.id} was begun with tpcli {sweep.code}; this is {code_identity()}",
            hint="its runs would not compare: go back to that code, or type the whole command "
            "again for a new sweep",
        )


@contextlib.contextmanager
def _signals(work: _Work) -> Iterator[None]:
    def stop(number: int, _frame: FrameType | None) -> None:
        work.stop(number)

    numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _under_way(run_dir: Path) -> int:
    """Steps that a running run has done."""
    try:
        progress = folder.read_json(run_dir / folder.PROGRESS)
    except (OSError, ValueError):
        return 0
    step = int(progress.get("step") or 0)
    return step if progress.get("phase") == "done" else max(step - 1, 0)


def _error(run_dir: Path) -> str | None:
    try:
        error = folder.read_json(run_dir / folder.STATE).get("error")
    except (OSError, ValueError):
        return None
    return str(error) if error else None
