"""Processes that verify: every end that a job can come to, and that the next job is answered."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.reward import jobs

from tpcli.errors import RunFailedError
from tpcli.reward.pool import GRACE, Pool

DEADLINE = 0.5


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(workers=2, deadline=DEADLINE, memory_gib=0.25)
    yield made
    made.close()


def children() -> list[psutil.Process]:
    return [
        one
        for one in psutil.Process().children(recursive=True)
        if any("forkserver" in part for part in one.cmdline())
    ]


def test_results_come_in_order(pool: Pool) -> None:
    found = pool.run(jobs.double, [(i,) for i in range(100)])
    assert [one.value for one in found] == list(range(0, 200, 2))
    assert {one.status for one in found} == {"done"}
    naps = [(0.2,), (0.0,), (0.1,), (0.0,)]
    assert [one.value for one in pool.run(jobs.nap, naps)] == [0.2, 0.0, 0.1, 0.0]
    assert pool.run(jobs.nap, naps)[0].ms == pytest.approx(200, abs=100)


def test_nothing_starts_without_a_job() -> None:
    before = {one.pid for one in children()}
    pool = Pool(workers=2, deadline=1, memory_gib=1)
    assert pool.run(jobs.double, []) == []
    assert {one.pid for one in children()} == before
    pool.close()


def test_two_processes_work_at_once() -> None:
    pool = Pool(workers=2, deadline=10, memory_gib=0.25)
    pool.run(jobs.pid, [()])
    began = time.perf_counter()
    pool.run(jobs.nap, [(1.0,)] * 4)
    assert 1.9 < time.perf_counter() - began < 3.8
    pool.close()


@pytest.mark.parametrize("job", [jobs.hang, jobs.deaf, jobs.threads, jobs.stop_itself])
def test_what_hangs_is_killed_in_time(pool: Pool, job: Any) -> None:
    """Also when it sets signals aside, holds the interpreter, has threads or stands still."""
    (before,) = {one.value for one in pool.run(jobs.pid, [()])}
    began = time.perf_counter()
    found = pool.run(job, [()])
    assert time.perf_counter() - began < DEADLINE + 5
    assert found[0].status == "timeout"
    again = [one.value for one in pool.run(jobs.pid, [()] * 20)]
    assert len(set(again)) <= 2
    assert pool.run(jobs.double, [(4,)])[0].value == 8
    pool.close()
    assert not psutil.pid_exists(before)
    assert not any(psutil.pid_exists(pid) for pid in again)


@pytest.mark.parametrize(
    ("job", "arguments"),
    [
        (jobs.die, (3,)),
        (jobs.abort, ()),
        (jobs.leave, ()),
        (jobs.fill, (1.0,)),
        (jobs.odd, ()),
    ],
)
def test_what_dies_or_raises_is_a_crash(pool: Pool, job: Any, arguments: tuple[Any, ...]) -> None:
    """One among others: nobody else pays for it."""
    began = time.perf_counter()
    for _ in range(3):
        (found,) = pool.run(job, [arguments])
        assert (found.status, found.value) == ("crash", None)
        assert [one.value for one in pool.run(jobs.double, [(1,), (2,), (3,)])] == [2, 4, 6]
    assert time.perf_counter() - began < 30


def test_a_quiet_end_is_missed_at_the_deadline(pool: Pool) -> None:
    assert pool.run(jobs.die, [(0,)])[0].status == "timeout"
    assert pool.run(jobs.double, [(1,)])[0].value == 2


def test_memory_is_limited_beyond_what_was_loaded(pool: Pool) -> None:
    assert pool.run(jobs.fill, [(0.1,)])[0].status == "done"
    assert pool.run(jobs.fill, [(0.4,)])[0].status == "crash"
    assert pool.run(jobs.fill, [(0.1,)])[0].status == "done"


@pytest.mark.parametrize("then", ["hang", "die"])
def test_what_a_job_started_ends_with_its_process(pool: Pool, then: str) -> None:
    def sleeping() -> set[int]:
        found = psutil.process_iter(["pid", "cmdline"])
        return {one.pid for one in found if one.info["cmdline"] == ["sleep", "77"]}

    before = sleeping()
    assert pool.run(jobs.start_another, [(then,)])[0].status != "done"
    limit = time.monotonic() + 20
    while time.monotonic() < limit and sleeping() - before:
        time.sleep(0.05)
    assert not sleeping() - before


def test_a_process_that_was_killed_while_idle_is_replaced(pool: Pool) -> None:
    pids = {one.value for one in pool.run(jobs.pid, [()] * 20)}
    for pid in pids:
        psutil.Process(pid).kill()
    time.sleep(0.3)
    found = pool.run(jobs.pid, [()] * 20)
    assert {one.status for one in found} == {"done"}
    assert not pids & {one.value for one in found}


def test_closed_it_starts_anew(pool: Pool) -> None:
    (first,) = pool.run(jobs.pid, [()])
    pool.close()
    assert not psutil.pid_exists(first.value)
    assert pool.run(jobs.double, [(2,)])[0].value == 4


def test_what_is_printed_goes_nowhere(pool: Pool, capfd: pytest.CaptureFixture[str]) -> None:
    assert pool.run(jobs.talk, [()])[0].value == ""
    assert capfd.readouterr() == ("", "")


def test_a_process_that_cannot_start_is_an_error() -> None:
    pool = Pool(workers=1, deadline=1, memory_gib=1, load=jobs.die, load_args=(1,))
    with pytest.raises(RunFailedError, match="do not start") as caught:
        pool.run(jobs.double, [(1,)])
    assert "memory_gib" in caught.value.hint


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


ORPHAN = """
import os, signal, threading, time
from tests.reward import jobs
from tpcli.reward.pool import Pool

pool = Pool(workers=2, deadline=1.0, memory_gib=1)
pids = sorted({one.value for one in pool.run(jobs.nap_and_pid, [(0.05,)] * 8)})
print(*pids, flush=True)
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
pool.run(jobs.JOB, [()], deadline=0.7)
"""


@pytest.mark.parametrize("job", ["hang", "hang_without_alarm"])
def test_nothing_outlives_a_parent_that_was_killed(tmp_path: Path, job: str) -> None:
    """One process is idle then and one hangs in C code; no one is left to see to the deadline."""
    told = tmp_path / "told"
    with told.open("w") as out:  # no pipe: what outlives its parent would keep it open
        subprocess.run(
            [sys.executable, "-c", ORPHAN.replace("JOB", job)],
            stdout=out,
            stderr=out,
            check=False,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
    pids = [int(word) for word in told.read_text().split("\n")[0].split()]
    assert len(pids) == 2, told.read_text()
    # The second guard counts the time of all processors, of which this uses one.
    guard = (0.7 + GRACE) * (1 if job == "hang" else os.cpu_count() or 1)
    limit = time.monotonic() + 2 * guard + 20
    while time.monotonic() < limit and any(map(alive, pids)):
        time.sleep(0.05)
    left = [pid for pid in pids if alive(pid)]
    for pid in left:
        psutil.Process(pid).kill()
    assert not left
