"""Stopping a run from another process, gently and at once."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.registry.folders import FINISHED, make_run

from tpcli.errors import UsageError
from tpcli.jobs import runs as jobs
from tpcli.registry import folder
from tpcli.registry.store import Registry

SUPERVISOR = """
import subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
from tpcli.jobs.supervise import _Watch, _signals

run_dir = Path(sys.argv[1])
watch = _Watch(run_dir, print)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                          start_new_session=True)
with _signals(run_dir, worker, watch):
    watch.write_state("running")
    while worker.poll() is None:
        time.sleep(0.05)
watch.conclude(worker.returncode)
"""
"""The supervisor's own handling of signals and of the end, around a worker that only sleeps."""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "runs"
    monkeypatch.setenv("TPCLI_RUNS", str(path))
    return path


@pytest.fixture
def supervisor(runs: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Watches over run aaaaaaa."""
    run_dir = make_run(runs, "aaaaaaa")
    process = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(run_dir)])
    try:
        limit = time.monotonic() + 180
        while not (run_dir / folder.STATE).exists():
            assert time.monotonic() < limit, "it never began"
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def add(path: Path, **state: Any) -> Path:
    run_dir = make_run(path, "bbbbbbb", state=FINISHED | state)
    Registry(path).index(run_dir)
    return run_dir


def test_stop_leaves_the_file_that_the_worker_looks_for(
    runs: Path, supervisor: subprocess.Popen[bytes]
) -> None:
    assert jobs.stop("aaa").status == "running"
    assert (runs / "aaaaaaa" / folder.STOP).exists()
    assert supervisor.poll() is None


@pytest.mark.parametrize("asked_before", [False, True])
def test_now_ends_it_at_once(
    runs: Path, supervisor: subprocess.Popen[bytes], asked_before: bool
) -> None:
    if asked_before:
        jobs.stop("aaa")
    start = time.monotonic()
    ended = jobs.end("aaa")
    assert time.monotonic() - start < 20
    assert (ended.status, ended.exit_code) == ("stopped", 143)
    assert supervisor.wait(60) == 0, "the supervisor itself came to its own end"


@pytest.mark.parametrize("act", [jobs.stop, jobs.end])
@pytest.mark.parametrize("status", ["finished", "stopped", "dead"])
def test_a_run_that_does_not_run(runs: Path, act: Any, status: str) -> None:
    run_dir = add(runs, status="running" if status == "dead" else status)
    with pytest.raises(UsageError, match=f"run bbbbbbb is not running: it is {status}"):
        act("bbb")
    assert not (run_dir / folder.STOP).exists()


def test_now_reaches_no_other_machine(runs: Path) -> None:
    add(runs, status="running", heartbeat=time.time(), pid=os.getpid())
    with pytest.raises(UsageError, match=f"runs on elsewhere, and this is {socket.gethostname()}"):
        jobs.end("bbb")


def test_another_process_with_the_same_pid_is_left_alone(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run seemed alive when it was found; when the signal is due its pid is another's."""
    innocent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        started = psutil.Process(innocent.pid).create_time() - 100
        state = {"pid": innocent.pid, "pid_started": started, "host": socket.gethostname()}
        add(runs, status="running", heartbeat=time.time(), **state)
        late = Registry(runs).find("bbb")
        assert late.status == "dead"
        monkeypatch.setattr(jobs, "_running", lambda key: late)
        jobs.end("bbb")
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.wait()
