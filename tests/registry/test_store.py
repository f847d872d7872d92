"""Indexing, finding, rebuilding."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.registry.folders import FINISHED, lines_of, make_run, write_metrics

from tpcli.errors import NOT_FOUND, NotFoundError, TpcliError
from tpcli.registry import folder
from tpcli.registry.index import averaged, row_of
from tpcli.registry.models import RunRow
from tpcli.registry.store import BrokenFolderError, Registry


def test_a_row_holds_what_the_folder_says(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.index(make_run(tmp_path, "aaaaaaa", lines=lines_of(20), state=FINISHED))
    [run] = registry.list()
    assert (run.id, run.name, run.seed, run.tags) == ("aaaaaaa", "tiny-aaaaaaa", 3, ("ramp",))
    assert (run.window_start, run.window_end) == (0.1, 0.8)
    assert (run.status, run.step, run.steps, run.exit_code) == ("finished", 20, 20, 0)
    assert (run.sampled_first, run.sampled_last) == (0.25, 0.5)
    assert (run.greedy_first, run.greedy_last) == (0.3, 0.625)
    assert run.reward_first == pytest.approx(0.31)
    assert run.reward_last == pytest.approx(0.5)
    assert run.entropy_last == pytest.approx(0.6)
    assert len(run.reward_history) == 20
    assert run.folder == tmp_path / "aaaaaaa"


def test_the_window_is_that_of_the_first_allocation(tmp_path: Path) -> None:
    """Where it has a magnitude of its own, the common schedule is another's."""
    run_dir = make_run(tmp_path, "own")
    (run_dir / folder.RESOLVED).write_text(
        """
        [credit]
        allocation = ["forking_tokens", "trajectory_percentile"]
        forking_tokens.magnitude = { curve = "cosine", start = 0.2, end = 0.5 }
        schedule = { curve = "linear", start = 0.0, end = 0.8 }
        """
    )
    registry = Registry(tmp_path)
    registry.index(run_dir)
    assert (registry.list()[0].window_start, registry.list()[0].window_end) == (0.2, 0.5)


def test_indexing_again_follows_the_folder(tmp_path: Path) -> None:
    """A run that grew, then was cut back, then failed: one row, always as the folder is."""
    registry = Registry(tmp_path)
    run_dir = make_run(tmp_path, "aaaaaaa")
    registry.index(run_dir)
    assert registry.list()[0].reward_last is None
    for steps in (5, 3):
        write_metrics(run_dir, lines_of(steps))
        registry.index(run_dir)
        assert registry.list()[0].step == steps
    failed = FINISHED | {"status": "failed", "exit_code": 4, "error": "out of memory"}
    (run_dir / folder.STATE).write_text(json.dumps(failed))
    registry.index(run_dir)
    assert [(r.status, r.error) for r in registry.list()] == [("failed", "out of memory")]


def test_list_is_newest_first(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for run_id, created in (("aaaaaaa", 1.0), ("bbbbbbb", 3.0), ("ccccccc", 2.0)):
        registry.index(make_run(tmp_path, run_id, created=created))
    assert [r.id for r in registry.list()] == ["bbbbbbb", "ccccccc", "aaaaaaa"]
    assert [r.id for r in registry.list(limit=1)] == ["bbbbbbb"]
    assert registry.count() == 3


def test_reading_creates_nothing(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "runs")
    assert registry.list() == []
    assert registry.count() == 0
    assert registry.newest_finished() is None
    assert not (tmp_path / "runs").exists()


class TestFind:
    @pytest.fixture
    def registry(self, tmp_path: Path) -> Registry:
        registry = Registry(tmp_path)
        for run_id, name in (
            ("k7m2xqd", "math-linear-s3"),
            ("k7zzzzz", "math-linear-s4"),
            ("w5c8n2e", "twice"),
            ("d9r4jfa", "twice"),
            ("w5c8n2f", "w5c8n2e"),
        ):
            registry.index(make_run(tmp_path, run_id, name=name))
        return registry

    @pytest.mark.parametrize(
        ("key", "run_id"),
        [("k7m", "k7m2xqd"), ("k7m2xqd", "k7m2xqd"), ("math-linear-s4", "k7zzzzz")],
    )
    def test_by_id_prefix_or_name(self, registry: Registry, key: str, run_id: str) -> None:
        assert registry.find(key).id == run_id

    def test_an_exact_id_wins_over_a_name_that_looks_like_it(self, registry: Registry) -> None:
        assert registry.find("w5c8n2e").id == "w5c8n2e"

    @pytest.mark.parametrize("key", ["k7", "twice"])
    def test_ambiguous_keys_list_the_candidates(self, registry: Registry, key: str) -> None:
        with pytest.raises(NotFoundError, match="2 runs") as caught:
            registry.find(key)
        assert caught.value.exit_code == NOT_FOUND
        ids = ("k7m2xqd", "k7zzzzz") if key == "k7" else ("w5c8n2e", "d9r4jfa")
        assert all(run_id in caught.value.hint for run_id in ids)

    def test_a_misspelt_name_gets_the_nearest(self, registry: Registry) -> None:
        with pytest.raises(NotFoundError) as caught:
            registry.find("math-liner-s3")
        assert "math-linear-s3" in caught.value.hint

    @pytest.mark.parametrize("key", ["", "%", "_7m2xqd"])
    def test_no_wildcards(self, registry: Registry, key: str) -> None:
        with pytest.raises(NotFoundError):
            registry.find(key)

    def test_an_empty_registry_says_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(NotFoundError) as caught:
            Registry(tmp_path / "none").find("k7")
        assert "tpcli train" in caught.value.hint


def test_newest_finished_and_same_look_at_finished_runs_only(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for run_id, created, status, code in (
        ("aaaaaaa", 1.0, "finished", "c1"),
        ("bbbbbbb", 2.0, "finished", "c1"),
        ("ccccccc", 3.0, "finished", "c2"),
        ("ddddddd", 4.0, "stopped", "c1"),
    ):
        state = FINISHED | {"status": status}
        registry.index(make_run(tmp_path, run_id, state=state, created=created, code=code))
    newest, same = registry.newest_finished(), registry.same("f" * 12, "c1")
    assert newest is not None
    assert newest.id == "ccccccc"
    assert same is not None
    assert same.id == "bbbbbbb"
    assert registry.same("f" * 12, "c3") is None
    assert registry.same("e" * 12, "c1") is None


class TestBroken:
    def test_a_broken_folder_is_named(self, tmp_path: Path) -> None:
        run_dir = make_run(tmp_path, "aaaaaaa")
        (run_dir / folder.RUN).write_text('{"id": "aaaaaaa"}')
        with pytest.raises(BrokenFolderError, match="aaaaaaa: no 'name'"):
            Registry(tmp_path).index(run_dir)

    def test_a_copied_folder_does_not_overwrite_the_original(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path)
        registry.index(make_run(tmp_path, "aaaaaaa"))
        copy = make_run(tmp_path, "copy")
        (copy / folder.RUN).write_text((tmp_path / "aaaaaaa" / folder.RUN).read_text())
        with pytest.raises(BrokenFolderError, match="holds run aaaaaaa"):
            registry.index(copy)

    def test_an_unknown_status_is_refused(self, tmp_path: Path) -> None:
        run_dir = make_run(tmp_path, "aaaaaaa", state={"status": "paused"})
        with pytest.raises(BrokenFolderError, match="paused"):
            Registry(tmp_path).index(run_dir)

    def test_rebuild_skips_reports_and_forgets(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path)
        for run_id in ("aaaaaaa", "bbbbbbb", "ccccccc"):
            registry.index(make_run(tmp_path, run_id))
        (tmp_path / "bbbbbbb" / folder.RUN).write_text("{")
        (tmp_path / "ccccccc" / folder.RUN).unlink()
        reported: list[str] = []
        assert registry.rebuild(reported.append) == 1
        assert [r.id for r in registry.list()] == ["aaaaaaa"]
        [message] = reported
        assert "bbbbbbb" in message

    def test_rebuild_replaces_a_damaged_database_and_keeps_it(self, tmp_path: Path) -> None:
        make_run(tmp_path, "aaaaaaa")
        (tmp_path / "registry.db").write_bytes(b"this is no database" * 100)
        with pytest.raises(TpcliError) as caught:
            Registry(tmp_path).list()
        assert "tpcli db rebuild" in caught.value.hint
        reported: list[str] = []
        assert Registry(tmp_path).rebuild(reported.append) == 1
        assert len(list(tmp_path.glob("registry.db.damaged-*"))) == 1
        assert len(reported) == 1

    def test_a_lost_database_comes_back_by_itself(self, tmp_path: Path) -> None:
        make_run(tmp_path, "aaaaaaa")
        assert [r.id for r in Registry(tmp_path).list()] == ["aaaaaaa"]

    def test_a_runs_folder_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "runs").write_text("")
        with pytest.raises(TpcliError) as caught:
            Registry(tmp_path / "runs").migrate()
        assert "TPCLI_RUNS" in caught.value.hint


def test_check_compares_rows_and_folders(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for run_id in ("aaaaaaa", "bbbbbbb"):
        registry.index(make_run(tmp_path, run_id))
    assert registry.check() == []
    (tmp_path / "aaaaaaa").rename(tmp_path / "ccccccc")
    assert registry.check() == ["aaaaaaa has no folder", "ccccccc is not indexed"]


def test_backup_is_a_whole_database(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.index(make_run(tmp_path, "aaaaaaa"))
    registry.backup(tmp_path / "copy.db")
    with sqlite3.connect(tmp_path / "copy.db") as connection:
        assert connection.execute("SELECT id FROM runs").fetchall() == [("aaaaaaa",)]


class TestStatus:
    def status(self, tmp_path: Path, **state: Any) -> str:
        registry = Registry(tmp_path)
        registry.index(make_run(tmp_path, "aaaaaaa", state=FINISHED | state))
        return registry.list()[0].status

    def test_this_very_process_is_running(self, tmp_path: Path) -> None:
        """Its heartbeat is years old: on this machine the process itself is the proof."""
        own = psutil.Process().create_time()
        state = {"pid": os.getpid(), "pid_started": own, "host": socket.gethostname()}
        assert self.status(tmp_path, status="running", **state) == "running"

    def test_another_process_with_the_same_pid_is_not_ours(self, tmp_path: Path) -> None:
        started = psutil.Process().create_time() - 3600
        state = {"pid": os.getpid(), "pid_started": started, "host": socket.gethostname()}
        assert self.status(tmp_path, status="running", **state) == "dead"

    def test_a_process_that_is_gone(self, tmp_path: Path) -> None:
        gone = multiprocessing.get_context("spawn").Process(target=print, args=("",))
        gone.start()
        gone.join()
        state = {"pid": gone.pid, "host": socket.gethostname()}
        assert self.status(tmp_path, status="created", **state) == "dead"

    @pytest.mark.parametrize(("age", "expected"), [(50.0, "running"), (70.0, "dead")])
    def test_on_another_machine_the_heartbeat_decides(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age: float, expected: str
    ) -> None:
        monkeypatch.setattr("time.time", lambda: 1200.0 + age)
        assert self.status(tmp_path, status="running") == expected

    @pytest.mark.parametrize("status", ["finished", "stopped", "failed"])
    def test_an_ended_run_stays_ended(self, tmp_path: Path, status: str) -> None:
        assert self.status(tmp_path, status=status, host=socket.gethostname()) == status


def test_averaged() -> None:
    assert averaged([], 3) == []
    assert averaged([1.0, 2.0], 3) == [1.0, 2.0]
    assert averaged([1.0, 3.0, 5.0, 7.0], 2) == [2.0, 6.0]
    assert averaged([1.0, 2.0, 3.0, 10.0, 20.0], 2) == [1.5, 11.0]


def test_a_folder_is_read_under_the_write_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a writer that read an older state could write its row after a newer one."""
    run_dir = make_run(tmp_path, "locked")
    registry = Registry(tmp_path)
    registry.index(run_dir)
    read: list[str] = []

    def row_of_a_locked_database(folder: Path) -> RunRow:
        with (
            closing(sqlite3.connect(registry.path, timeout=0)) as other,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            other.execute("BEGIN IMMEDIATE")
        read.append(folder.name)
        return row_of(folder)

    monkeypatch.setattr("tpcli.registry.store.row_of", row_of_a_locked_database)
    registry.index(run_dir)
    assert read == ["locked"]


def _write(runs_dir: str, writer: int, runs: int) -> None:
    registry = Registry(Path(runs_dir))
    for number in range(runs):
        run_dir = make_run(Path(runs_dir), f"w{writer:02d}x{number:03d}")
        for steps in (1, 2):
            write_metrics(run_dir, lines_of(steps))
            registry.index(run_dir)
        registry.find(run_dir.name)


def test_sixteen_writers_lose_nothing(tmp_path: Path) -> None:
    """All begin with no database at all, so creating it is raced as well."""
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=_write, args=(str(tmp_path), writer, 6)) for writer in range(16)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 16
    runs = Registry(tmp_path).list()
    assert len(runs) == 16 * 6
    assert {run.step for run in runs} == {2}
