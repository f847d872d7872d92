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
from tpcli.registry.folder import BrokenFolderError
from tpcli.registry.index import averaged, row_of
from tpcli.registry.models import RunRow
from tpcli.registry.store import Registry


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


def test_the_recipe_and_the_last_metrics_of_a_run(tmp_path: Path) -> None:
    """What JSON lacks becomes text; lists, null and what is not finite are no metric."""
    lines = lines_of(3)
    lines[1] |= {"kl/all": 0.5, "odd": float("nan")}
    lines[2] |= {"kl/all": None, "flag": True}
    run_dir = make_run(tmp_path, "aaaaaaa", lines=lines)
    with (run_dir / folder.RESOLVED).open("a") as file:
        file.write("clip = inf\nsince = 2026-01-02\n[loss]\nkl.on = false\nparts = [{ a = 1 }]\n")
    registry = Registry(tmp_path)
    registry.index(run_dir)
    [run] = registry.list()
    assert run.settings == {
        "model.source": "scratch",
        "credit.allocation": "trajectory_percentile",
        "credit.schedule.curve": "linear",
        "credit.schedule.initial": 0.99,
        "credit.schedule.start": 0.1,
        "credit.schedule.end": 0.8,
        "optim.betas": [0.9, 0.999],
        "optim.clip": "inf",
        "optim.since": "2026-01-02",
        "loss.kl.on": False,
        "loss.parts": [{"a": 1}],
    }
    assert run.metrics == pytest.approx(
        {
            "eval/sampled": 0.5,
            "eval/greedy": 0.625,
            "reward/mean": 0.33,
            "entropy/all": 0.77,
            "time/step": 10.0,
            "kl/all": 0.5,
        }
    )
    assert (run.parent, run.parent_step, run.removed) == (None, None, None)


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

    monkeypatch.setattr("tpcli.registry.index.row_of", row_of_a_locked_database)
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


class TestEvaluations:
    """Results of benchmarks: indexed one by one, and found again in the folders."""

    def result(self, base: Path, name: str = "result-n8-int.json", **more: Any) -> Path:
        """Write the result of an evaluation below ``base``, a run's or a model's folder."""
        path = base / "evals" / "aime24-0123456789" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        estimate = {"value": 0.25, "se": None, "low": 0.125, "high": 0.5}
        result = {
            "bench": "aime24",
            "label": "tiny · step 6",
            "run": None,
            "step": None,
            "digest": "d" * 64,
            "limit": None,
            "verifier": "int",
            "settings": {"sampling": {"seed": 7}},
            "settings_key": "0123456789",
            "summary": {
                "n": 8,
                "correct": {"a": 2, "b": 2},
                "avg": estimate,
                "maj": estimate | {"value": 0.5},
                "passed": {"1": estimate, "8": estimate | {"value": 0.75}},
                "shares": {"no_answer": 0.0625, "timeout": 0.125, "crash": 0.25},
                "truncated": 0.75,
                "tokens": 12.5,
            },
            "created": 100.0,
        }
        path.write_text(json.dumps(result | more))
        return path

    def test_a_row_holds_what_the_file_says(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path)
        run_dir = make_run(tmp_path, "aaaaaaa")
        registry.index_evaluation(self.result(run_dir, run="aaaaaaa", step=6, limit=2))
        [one] = registry.evaluations()
        assert one.path == "aaaaaaa/evals/aime24-0123456789/result-n8-int.json"
        assert (one.run, one.step, one.limit, one.seed) == ("aaaaaaa", 6, 2, 7)
        assert (one.bench, one.n, one.questions, one.verifier) == ("aime24", 8, 2, "int")
        assert (one.value, one.se, one.low, one.high, one.maj) == (0.25, None, 0.125, 0.5, 0.5)
        assert (one.truncated, one.no_answer, one.tokens) == (0.75, 0.0625, 12.5)
        assert (one.timeout, one.crash, one.passed) == (0.125, 0.25, {"1": 0.25, "8": 0.75})
        assert (one.settings, one.digest, one.created) == ("0123456789", "d" * 64, 100.0)

    def versus(self, base: Path, created: float = 5.0) -> Path:
        """Write a comparison on two benchmarks below ``base``."""
        path = base / "evals" / "versus-0123456789-abcdefabcd-n8-fedcba.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        paired = {"difference": 0.125, "se": None, "low": None, "high": None, "p_t": None}
        paired |= {"p_sign_flip": 0.5, "smallest_p": 0.25}
        solved = {"only_new": 3, "lost": 1, "both": 2, "neither": 4}
        benches = [
            {"bench": name, "old": {}, "paired": paired, "solved": solved, "p_holm": 0.75}
            for name in ("aime24", "aime25")
        ]
        whose = {"label": "tiny", "other": "base", "run": "aaaaaaa", "step": 6}
        path.write_text(json.dumps(whose | {"created": created, "benches": benches}))
        return path

    def test_a_comparison_is_a_row_a_benchmark_and_comes_back_from_its_file(
        self, tmp_path: Path
    ) -> None:
        registry = Registry(tmp_path)
        run_dir = make_run(tmp_path, "aaaaaaa")
        registry.index_comparison(self.versus(run_dir))
        registry.index_comparison(self.versus(run_dir, created=6.0))
        first, second = registry.comparisons()
        assert (first.bench, second.bench) == ("aime24", "aime25")
        assert (first.label, first.other, first.run, first.step) == ("tiny", "base", "aaaaaaa", 6)
        assert (first.difference, first.p_t, first.p_holm, first.p_sign_flip) == (
            *(0.125, None, 0.75, 0.5),
        )
        assert (first.only_new, first.lost, first.both, first.neither) == (3, 1, 2, 4)
        assert first.created == 6.0
        registry.path.unlink()
        assert registry.comparisons() == [first, second]
        self.versus(run_dir).unlink()
        registry.rebuild()
        assert registry.comparisons() == []

    def test_indexing_again_follows_the_file(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path)
        for created in (1.0, 2.0):
            registry.index_evaluation(self.result(tmp_path / "models" / "m", created=created))
        assert [one.created for one in registry.evaluations()] == [2.0]

    def test_newest_first_and_by_run_or_bench(self, tmp_path: Path) -> None:
        registry = Registry(tmp_path)
        run_dir = make_run(tmp_path, "aaaaaaa")
        registry.index_evaluation(self.result(run_dir, "result-1.json", run="aaaaaaa", created=1))
        registry.index_evaluation(self.result(run_dir, "result-2.json", run="aaaaaaa", created=3))
        model = tmp_path / "models" / "m"
        registry.index_evaluation(self.result(model, bench="gpqa-diamond", created=2))
        assert [one.created for one in registry.evaluations()] == [3, 2, 1]
        assert [one.created for one in registry.evaluations(run="aaaaaaa")] == [3, 1]
        assert [one.created for one in registry.evaluations(bench="gpqa-diamond")] == [2]
        assert registry.evaluations(run="aaaaaaa", bench="gpqa-diamond") == []

    def test_reading_creates_nothing(self, tmp_path: Path) -> None:
        assert Registry(tmp_path / "runs").evaluations() == []
        assert not (tmp_path / "runs").exists()

    def test_a_lost_database_comes_back_also_without_runs(self, tmp_path: Path) -> None:
        self.result(tmp_path / "models" / "m")
        self.result(make_run(tmp_path, "aaaaaaa"), run="aaaaaaa")
        before = Registry(tmp_path).evaluations()
        assert [one.run for one in before] == ["aaaaaaa", None]
        Registry(tmp_path).path.unlink()
        assert Registry(tmp_path).evaluations() == before

    def test_rebuild_skips_reports_and_forgets(self, tmp_path: Path) -> None:
        registry, model = Registry(tmp_path), tmp_path / "models" / "m"
        kept, broken, gone = (self.result(model, f"result-{i}.json") for i in range(3))
        for path in (kept, broken, gone):
            registry.index_evaluation(path)
        broken.write_text('{"summary": {}}')
        gone.unlink()
        reported: list[str] = []
        assert registry.rebuild(reported.append) == 0
        assert [Path(one.path).name for one in registry.evaluations()] == ["result-0.json"]
        [message] = reported
        assert "result-1.json: no 'avg'" in message

    def test_a_broken_result_is_named(self, tmp_path: Path) -> None:
        path = self.result(tmp_path / "models" / "m")
        path.write_text("{")
        with pytest.raises(BrokenFolderError, match=r"result-n8-int\.json"):
            Registry(tmp_path).index_evaluation(path)

    def test_check_compares_rows_and_files(self, tmp_path: Path) -> None:
        registry, model = Registry(tmp_path), tmp_path / "models" / "m"
        first = self.result(model)
        registry.index_evaluation(first)
        assert registry.check() == []
        first.rename(first.with_name("result-n9-int.json"))
        place = "models/m/evals/aime24-0123456789"
        assert registry.check() == [
            f"{place}/result-n8-int.json has no file",
            f"{place}/result-n9-int.json is not indexed",
        ]
