"""GPUs are handed out to one job each, against a driver's command of our own."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tpcli.errors import TpcliError, UsageError
from tpcli.jobs.executors import cell, gpus
from tpcli.jobs.executors.gpus import Lease, Pool, visible
from tpcli.jobs.executors.local import Local
from tpcli.recipe.sections import LaunchSection

SMI = """#!/bin/sh
case "$1" in
    --query-gpu=index,uuid) cat "{folder}/gpus" ;;
    --query-compute-apps=gpu_uuid,pid) cat "{folder}/processes" ;;
    *) exit 2 ;;
esac
"""
OTHER_SWEEP = """
import sys
from pathlib import Path
from tpcli.jobs.executors import gpus
gpus.LOCKS = Path(sys.argv[1])
lease = gpus.Pool().take(int(sys.argv[2]))
print([gpu.name for gpu in lease.gpus] if lease else None, flush=True)
sys.stdin.read()
"""


class Driver:
    """What nvidia-smi says in a test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.command = folder / "nvidia-smi"
        self.command.write_text(SMI.format(folder=folder))
        self.command.chmod(0o755)
        self.has(4)
        self.computes()

    def has(self, count: int) -> None:
        rows = [f"{i}, GPU-{i}{i}{i}-abc" for i in range(count)]
        (self.folder / "gpus").write_text("".join(f"{row}\n" for row in rows))

    def computes(self, *numbers: int) -> None:
        rows = [f"GPU-{i}{i}{i}-abc, 4711" for i in numbers]
        (self.folder / "processes").write_text("".join(f"{row}\n" for row in rows))


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Four idle GPUs, and locks that are this test's own."""
    folder = tmp_path / "driver"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "LOCKS", tmp_path / "locks")
    monkeypatch.setattr(gpus, "FRESH", 0.0)
    return Driver(folder)


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Jobs wait for a line that never comes instead of training; their environments, in order."""
    seen: list[dict[str, str]] = []

    def start(run_dir: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        seen.append(environment)
        return subprocess.Popen(["sleep", "60"], start_new_session=True)

    monkeypatch.setattr(cell, "start", start)
    return seen


def names(lease: Lease | None) -> list[str]:
    assert lease is not None
    return [gpu.name for gpu in lease.gpus]


def test_those_of_cuda_visible_devices_and_no_others(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [gpu.name for gpu in visible()] == ["0", "1", "2", "3"]
    for told, expected in {
        "2,0": ["2", "0"],
        "GPU-333-abc,1": ["3", "1"],
        "GPU-11": ["1"],  # the start of a UUID is enough for CUDA
        "1,1": ["1"],
        "1,7,2": ["1"],  # CUDA stops at the first that is not there
        "MIG-5,0": ["MIG-5", "0"],
        "": [],
        "-1": [],
    }.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", told)
        assert [gpu.name for gpu in visible()] == expected, told


def test_without_a_driver_there_are_none(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.command.write_text("#!/bin/sh\nexit 9\n")
    assert visible() == []
    monkeypatch.setenv("PATH", "")
    assert visible() == []


def test_a_driver_that_hangs_is_told(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.command.write_text("#!/bin/sh\nexec sleep 60\n")
    monkeypatch.setattr(gpus, "PATIENCE", 0.2)
    with pytest.raises(TpcliError, match="no answer within"):
        visible()


def test_two_sweeps_never_share_a_gpu(driver: Driver) -> None:
    """The other one is a process of its own; when it dies its GPUs are free again."""
    mine = Pool()
    first = mine.take(1)
    assert names(first) == ["0"]
    with subprocess.Popen(
        [sys.executable, "-c", OTHER_SWEEP, str(gpus.LOCKS), "2"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "['1', '2']\n"
        assert mine.free() == 1
        assert mine.take(2) is None
        assert mine.free() == 1  # what was locked on the way to two is given back
        last = mine.take(1)
        assert names(last) == ["3"]
        other.kill()
    assert mine.free() == 2
    for lease in (first, last):
        assert lease is not None
        lease.release()
    assert mine.free() == 4


def test_a_gpu_where_somebody_computes_is_not_used(driver: Driver) -> None:
    pool = Pool()
    driver.computes(0, 2)
    assert pool.free() == 2
    lease = pool.take(2)
    assert names(lease) == ["1", "3"]
    driver.computes()
    assert pool.free() == 2


def test_the_locks_are_open_to_every_user(driver: Driver) -> None:
    before = os.umask(0o077)
    try:
        Pool().take(1)
    finally:
        os.umask(before)
    assert stat.S_IMODE(gpus.LOCKS.stat().st_mode) == 0o1777
    (lock,) = gpus.LOCKS.iterdir()
    assert stat.S_IMODE(lock.stat().st_mode) == 0o666


def test_locks_that_cannot_be_made_are_told(driver: Driver) -> None:
    gpus.LOCKS.write_text("a file where the folder should be")
    with pytest.raises(TpcliError, match="cannot lock GPUs"):
        Pool().free()


def test_jobs_get_gpus_of_their_own_and_give_them_back(
    driver: Driver, waiting: list[dict[str, str]], tmp_path: Path
) -> None:
    """Two processes need two GPUs; a fifth GPU is not there, whatever --jobs says."""
    sweep, pair = Local(jobs=8), LaunchSection(processes=2)
    assert (sweep.room(pair), sweep.room(LaunchSection())) == (2, 4)
    jobs = [sweep.submit(tmp_path, pair), sweep.submit(tmp_path, LaunchSection())]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in waiting] == ["0,1", "2"]
    assert {one["CUDA_DEVICE_ORDER"] for one in waiting} == {"PCI_BUS_ID"}
    assert (sweep.room(pair), sweep.room(LaunchSection())) == (0, 1)
    assert sweep.submit(tmp_path, pair) is None
    for job in jobs:
        assert job is not None
        assert not job.done()
        job.kill()
        job._process.wait(timeout=60)
        assert job.done()
    assert sweep.room(pair) == 2


def test_a_job_that_does_not_start_keeps_no_gpu(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def start(run_dir: Path, environment: dict[str, str]) -> None:
        raise OSError("no process")

    monkeypatch.setattr(cell, "start", start)
    sweep = Local(jobs=2)
    with pytest.raises(OSError, match="no process"):
        sweep.submit(tmp_path, LaunchSection())
    assert sweep.room(LaunchSection(processes=4)) == 1


def test_more_gpus_than_there_are_is_told_at_once(driver: Driver, tmp_path: Path) -> None:
    for ask in (Local(jobs=1).room, lambda launch: Local(jobs=1).submit(tmp_path, launch)):
        with pytest.raises(UsageError, match="needs 5 GPUs and this machine has 4"):
            ask(LaunchSection(processes=5))


def test_on_the_cpu_only_the_number_of_jobs_counts(
    driver: Driver, waiting: list[dict[str, str]], tmp_path: Path
) -> None:
    sweep, launch = Local(jobs=6), LaunchSection(cpu=True)
    driver.computes(0, 1, 2, 3)
    assert sweep.room(launch) == 6
    job = sweep.submit(tmp_path, launch)
    assert job is not None
    assert "CUDA_VISIBLE_DEVICES" not in waiting[0]
    assert sweep.room(launch) == 5
    job.kill()


def test_processors_are_shared_out_unless_the_user_says(
    driver: Driver,
    waiting: list[dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("tpcli.jobs.executors.local.cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    sweep = Local(jobs=2)
    jobs = [sweep.submit(tmp_path, LaunchSection(cpu=True))]
    jobs.append(sweep.submit(tmp_path, LaunchSection(cpu=True, processes=4)))
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    jobs.append(sweep.submit(tmp_path, LaunchSection(cpu=True)))
    assert [one["OMP_NUM_THREADS"] for one in waiting] == ["8", "2", "5"]
    for job in jobs:
        assert job is not None
        job.kill()
