"""A run as the registry hands it out."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from tpcli.names import RunStatus
from tpcli.registry import folder

HEARTBEAT_LIMIT = 60.0
"""Seconds without a sign of life after which a run on another machine counts as dead."""
CLOCK_SLACK = 2.0
"""Seconds by which two readings of one process's start time may differ."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run: what ``run.json`` says of it, how it stands, first and last of its main numbers.

    Attributes:
        folder: where everything else about it is.
        recorded: the status as last written; ``status`` is the one to believe.
        window_start, window_end: the credit schedule's window, as shares of the horizon; None
            where the magnitude is a plain number.
        step: the last step with metrics; 0 before the first.
        sampled_first, sampled_last, greedy_first, greedy_last: held-out accuracy.
        reward_history: mean reward over the run, averaged down to a few values.
        parent, parent_step: the run and the step that it was forked from.
        removed: when it was removed; its folder stays until ``tpcli runs gc``.
        settings: the resolved recipe by dotted key.
        metrics: the last finite value of every metric that is one number.
    """

    folder: Path
    id: str
    name: str
    created: float
    fingerprint: str
    seed: int
    recipe: str
    model: str
    allocation: str
    curve: str
    window_start: float | None
    window_end: float | None
    steps: int
    horizon: int
    tags: tuple[str, ...]
    note: str
    code: str
    git: str
    recorded: RunStatus
    pid: int | None
    pid_started: float | None
    host: str | None
    heartbeat: float | None
    finished: float | None
    exit_code: int | None
    error: str | None
    hint: str | None
    step: int
    reward_first: float | None
    reward_last: float | None
    entropy_first: float | None
    entropy_last: float | None
    sampled_first: float | None
    sampled_last: float | None
    greedy_first: float | None
    greedy_last: float | None
    reward_history: tuple[float, ...]
    parent: str | None
    parent_step: int | None
    removed: float | None
    settings: dict[str, Any] = field(hash=False)
    metrics: dict[str, float] = field(hash=False)

    @property
    def status(self) -> RunStatus:
        """The recorded status, or "dead" where whoever kept it is gone."""
        return derive_status(
            self.recorded,
            pid=self.pid,
            pid_started=self.pid_started,
            host=self.host,
            seen=self.heartbeat or self.created,
        )

    @property
    def dirty(self) -> bool:
        """The working tree held uncommitted changes."""
        return self.git.endswith("+dirty")


@dataclass(frozen=True, slots=True)
class Key:
    """Where a value of a run stands: in a column, or in the settings or metrics under a name."""

    place: Literal["column", "settings", "metrics"]
    name: str


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One result of a benchmark, as the registry hands it out.

    Attributes:
        path: the result's file, from the runs folder.
        run, step: of the checkpoint; None for a model that belongs to no run.
        digest: SHA-256 over the weights.
        settings: digest of weights, questions, prompt and sampling: equal for one policy alone.
        verifier: what judged the answers.
        limit: questions asked for, where not all were.
        value, se, low, high: accuracy, its standard error and 95% interval.
        maj, truncated, no_answer, timeout, crash: shares.
        passed: pass@k by k, as text.
        tokens: mean length of a response.
    """

    path: str
    run: str | None
    step: int | None
    label: str
    digest: str
    bench: str
    settings: str
    verifier: str
    n: int
    questions: int
    limit: int | None
    seed: int
    value: float
    se: float | None
    low: float
    high: float
    maj: float
    truncated: float
    no_answer: float
    timeout: float
    crash: float
    passed: dict[str, float]
    tokens: float
    created: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One policy against another on one benchmark, as the registry hands it out.

    Attributes:
        path: the comparison's file, from the runs folder.
        difference: mean over questions, of ``label`` minus ``other``; se, low and high are its.
        p_holm: p of the paired t test, corrected over the benchmarks of the file.
        only_new, lost, both, neither: questions by who solves them.
    """

    path: str
    bench: str
    run: str | None
    step: int | None
    label: str
    other: str
    difference: float
    se: float | None
    low: float | None
    high: float | None
    p_t: float | None
    p_holm: float | None
    p_sign_flip: float
    only_new: int
    lost: int
    both: int
    neither: int
    created: float


def derive_status(
    recorded: str, *, pid: int | None, pid_started: float | None, host: str | None, seen: float
) -> RunStatus:
    """What a recorded status is worth now.

    A run that says it is under way is dead when its supervisor is gone: on this machine when no
    process has its pid and start time, elsewhere when it gave no sign of life for a minute
    (``seen``: the time of the last one).
    """
    if recorded in ("created", "running"):
        if pid is not None and host == socket.gethostname():
            alive = _is_alive(pid, pid_started)
        else:
            alive = time.time() - seen <= HEARTBEAT_LIMIT
        if not alive:
            return "dead"
    return cast(RunStatus, recorded)


def read_status(run_dir: Path) -> RunStatus:
    """How the run in a folder stands now, from the folder alone."""
    try:
        state = folder.read_json(run_dir / folder.STATE)
    except FileNotFoundError:
        state = {}
    return derive_status(
        state.get("status", "created"),
        pid=state.get("pid"),
        pid_started=state.get("pid_started"),
        host=state.get("host"),
        seen=state.get("heartbeat") or (run_dir / folder.RUN).stat().st_mtime,
    )


def _is_alive(pid: int, started: float | None) -> bool:
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return started is None or abs(process.create_time() - started) <= CLOCK_SLACK
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
