"""MLflow ends up with every step exactly once, whatever happened on the way."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from tests.registry.folders import FINISHED, lines_of, make_run, write_metrics

from tpcli.jobs import mirror
from tpcli.metrics.mlflow import Mirror, default_store
from tpcli.registry import folder


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs: making one takes seconds, copying it none."""
    runs_dir = tmp_path_factory.mktemp("store")
    run_dir = make_run(runs_dir, "xxxxxxx")
    mirror.sync(run_dir, default_store(runs_dir), "other")
    return runs_dir / "mlflow.db"


class Store:
    """A runs folder with one run, and what MLflow says of it."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir, self.uri = runs_dir, default_store(runs_dir)
        self.run_dir = make_run(runs_dir, "aaaaaaa", lines=lines_of(6), state=FINISHED)

    def sync(self) -> int:
        return mirror.sync(self.run_dir, self.uri, "tpcli")

    def runs(self) -> list[Any]:
        experiment = self.client.get_experiment_by_name("tpcli")
        assert experiment is not None
        return list(self.client.search_runs([experiment.experiment_id]))

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.uri)

    def history(self, key: str) -> list[tuple[int, float]]:
        [run] = self.runs()
        found = self.client.get_metric_history(run.info.run_id, key)
        return sorted((metric.step, metric.value) for metric in found)

    def steps(self, key: str = "reward/mean") -> list[int]:
        return [step for step, _ in self.history(key)]


@pytest.fixture
def store(tmp_path: Path, empty_store: Path) -> Store:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return Store(tmp_path)


class TestSync:
    def test_everything_is_there(self, store: Store) -> None:
        (store.run_dir / folder.FIGURES).mkdir()
        (store.run_dir / folder.FIGURES / "training.png").write_bytes(b"png")
        assert store.sync() == 7
        [run] = store.runs()
        assert (run.info.run_name, run.info.status) == ("tiny-aaaaaaa", "FINISHED")
        assert (run.info.start_time, run.info.end_time) == (1_000_000, 1_200_000)
        assert run.data.tags["tpcli.run"] == "aaaaaaa"
        assert run.data.params["credit.schedule.start"] == "0.1"
        assert run.data.params["seed"] == "3"
        assert store.steps() == [1, 2, 3, 4, 5, 6]
        assert store.history("eval/sampled") == [(0, 0.25), (6, 0.5)]
        assert store.history("entropy/percentile/02") == [(1, 0.25)]
        assert store.history("entropy/percentile/01") == []
        paths = {a.path for a in store.client.list_artifacts(run.info.run_id)}
        assert paths == {"recipe.toml", "resolved.toml", "figures"}
        assert (store.runs_dir / "mlartifacts").is_dir()

    def test_a_second_time_nothing_is_left_to_do(self, store: Store) -> None:
        store.sync()
        assert store.sync() == 0
        assert store.steps() == [1, 2, 3, 4, 5, 6]

    def test_only_the_rest_is_logged(self, store: Store) -> None:
        write_metrics(store.run_dir, lines_of(2))
        assert store.sync() == 3
        write_metrics(store.run_dir, lines_of(5))
        assert store.sync() == 3
        assert store.steps() == [1, 2, 3, 4, 5]
        assert folder.read_json(store.run_dir / folder.MLFLOW)["logged_step"] == 5

    def test_a_run_cut_back_and_resumed_logs_no_step_twice(self, store: Store) -> None:
        """The times of a repeated step differ, so MLflow's own check would let it pass."""
        store.sync()
        write_metrics(store.run_dir, lines_of(3))
        assert store.sync() == 0
        again = [line | {"time": line["time"] + 500} for line in lines_of(8)]
        write_metrics(store.run_dir, again)
        assert store.sync() == 2
        assert store.steps() == [1, 2, 3, 4, 5, 6, 7, 8]
        assert len(store.history("time/step")) == 8

    @pytest.mark.parametrize("content", [None, "{", '{"run_id": "gone", "logged_step": 2}'])
    def test_mlflow_is_asked_not_the_file(self, store: Store, content: str | None) -> None:
        store.sync()
        path = store.run_dir / folder.MLFLOW
        path.unlink() if content is None else path.write_text(content)
        write_metrics(store.run_dir, lines_of(7))
        assert store.sync() == 1
        assert store.steps() == [1, 2, 3, 4, 5, 6, 7]

    def test_a_lost_store_is_filled_again(self, store: Store, empty_store: Path) -> None:
        store.sync()
        shutil.copy(empty_store, store.runs_dir / "mlflow.db")
        assert store.sync() == 7
        assert store.steps() == [1, 2, 3, 4, 5, 6]

    def test_a_value_that_is_no_number_survives(self, store: Store) -> None:
        lines = lines_of(2)
        lines[2]["loss/total"] = math.nan
        write_metrics(store.run_dir, lines)
        store.sync()
        [(step, value)] = store.history("loss/total")
        assert step == 2
        assert math.isnan(value)

    @pytest.mark.parametrize(
        ("status", "expected"), [("failed", "FAILED"), ("stopped", "KILLED"), ("running", "FAILED")]
    )
    def test_how_it_ended(self, store: Store, status: str, expected: str) -> None:
        """A run that says "running" long after its last heartbeat is dead."""
        (store.run_dir / folder.STATE).write_text(json.dumps(FINISHED | {"status": status}))
        store.sync()
        assert store.runs()[0].info.status == expected

    def test_a_password_in_the_recipe_is_hidden(self, store: Store) -> None:
        path = store.run_dir / folder.RESOLVED
        path.write_text('[track]\nmlflow = "https://me:pass@host"\n')
        store.sync()
        assert store.runs()[0].data.params["track.mlflow"] == "https://***@host"

    def test_two_at_once_wait_for_each_other(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both would find no run in MLflow, and create one."""
        inside, most = 0, 0
        real = Mirror.open

        def slow(self: Mirror, *args: Any, **options: Any) -> str:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            time.sleep(0.2)
            inside -= 1
            return real(self, *args, **options)

        monkeypatch.setattr(Mirror, "open", slow)
        threads = [threading.Thread(target=store.sync) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 1
        assert store.steps() == [1, 2, 3, 4, 5, 6]


class TestThread:
    def test_it_follows_the_run_and_finishes_with_it(self, store: Store) -> None:
        write_metrics(store.run_dir, lines_of(2))
        (store.run_dir / folder.STATE).unlink()
        thread = mirror.MirrorThread(store.run_dir, store.uri, "tpcli", interval=0.05)
        thread.start()
        path = store.run_dir / folder.MLFLOW
        while not path.exists():
            assert thread.is_alive()
            time.sleep(0.01)
        write_metrics(store.run_dir, lines_of(4))
        (store.run_dir / folder.STATE).write_text(json.dumps(FINISHED))
        thread.stop(timeout=60)
        assert thread.error is None
        assert not thread.is_alive()
        assert store.steps() == [1, 2, 3, 4]
        assert store.runs()[0].info.status == "FINISHED"

    def test_a_read_only_store_is_remembered_and_filled_later(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)  # MLflow makes a folder of the URI
        read_only = f"sqlite:///file:{store.runs_dir}/mlflow.db?mode=ro&uri=true"
        thread = mirror.MirrorThread(store.run_dir, read_only, "tpcli", interval=0.05)
        thread.start()
        thread.stop(timeout=60)
        assert thread.error is not None
        assert "readonly" in thread.error
        assert "\n" not in thread.error
        assert store.sync() == 7
        assert store.steps() == [1, 2, 3, 4, 5, 6]

    def test_it_recovers_by_itself(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """The server fails in the middle of the steps, twice, then answers."""
        calls = 0
        real = Mirror.log

        def failing(self: Mirror, lines: list[dict[str, Any]]) -> None:
            nonlocal calls
            errors.append(thread.error)
            calls += 1
            if calls < 3:
                real(self, lines[: 2 * calls])
                raise ConnectionError(f"https://me:pass@host is down ({calls})")
            real(self, lines)

        monkeypatch.setattr(Mirror, "log", failing)
        errors: list[str | None] = []
        thread = mirror.MirrorThread(store.run_dir, store.uri, "tpcli", interval=0.02)
        thread.start()
        while calls < 3:
            time.sleep(0.01)
        thread.stop(timeout=60)
        assert errors[:3] == [None, *(f"https://***@host is down ({n})" for n in (1, 2))]
        assert thread.error is None
        assert store.steps() == [1, 2, 3, 4, 5, 6]

    def test_an_unreachable_server_does_not_hold_up_the_end(self, store: Store) -> None:
        thread = mirror.MirrorThread(store.run_dir, "http://127.0.0.1:9", "tpcli", interval=0.01)
        thread.start()
        thread.stop(timeout=30)
        assert thread.error is not None
        assert store.sync() == 7

    def test_a_broken_folder_does_not_raise_either(self, store: Store) -> None:
        (store.run_dir / folder.RUN).unlink()
        thread = mirror.MirrorThread(store.run_dir, store.uri, "tpcli", interval=0.01)
        thread.start()
        thread.stop(timeout=60)
        assert thread.error is not None
        assert "run.json" in thread.error


@pytest.mark.parametrize(
    ("track", "expected"),
    [
        ("", ("sqlite", "tpcli")),
        ('mlflow = "http://host:5000"\nexperiment = "e"', ("http://host:5000", "e")),
        ("mlflow = false", None),
    ],
)
def test_tracking_follows_the_recipe(
    tmp_path: Path, track: str, expected: tuple[str, str] | None
) -> None:
    run_dir = make_run(tmp_path, "aaaaaaa")
    (run_dir / folder.RESOLVED).write_text(f"[track]\n{track}\n")
    if expected is not None and expected[0] == "sqlite":
        expected = (f"sqlite:///{tmp_path}/mlflow.db", expected[1])
    assert mirror.tracking(run_dir) == expected


SILENT = """
import sys
from pathlib import Path
from tpcli.jobs.mirror import sync
from tpcli.metrics.mlflow import default_store
assert "mlflow" not in sys.modules
run_dir = Path(sys.argv[1])
print(sync(run_dir, default_store(run_dir.parent), "tpcli"))
"""


def test_creating_the_store_prints_nothing(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, "aaaaaaa", lines=lines_of(2), state=FINISHED)
    done = subprocess.run(
        [sys.executable, "-c", SILENT, str(run_dir)], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("3\n", "", 0)


def result(base: Path, value: float, *, created: float, **more: Any) -> None:
    """Write the result of an evaluation below a run's or a model's folder."""
    path = base / "evals" / f"aime24-{created:g}" / "result-n8-int.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    summary = {
        "n": 8,
        "avg": {"value": value, "low": 0.125, "high": 1.0},
        "maj": {"value": 0.5},
        "passed": {"1": {"value": value}, "8": {"value": 0.75}},
        "truncated": 0.125,
        "shares": {"no_answer": 0.0, "timeout": 0.0, "crash": 0.0},
    }
    told = {"bench": "aime24", "step": None, "limit": None, "created": created}
    path.write_text(json.dumps(told | {"summary": summary} | more))


class TestEvaluations:
    def test_whole_benchmarks_oldest_first(self, tmp_path: Path) -> None:
        result(tmp_path, 0.25, created=20.0, step=6)
        result(tmp_path, 0.5, created=10.0, bench="rg:a", step=None)
        result(tmp_path, 1.0, created=5.0, limit=3)
        first, second = mirror.evaluations(tmp_path)
        assert (first[:2], second[:2]) == ((0, 10.0), (6, 20.0))
        assert first[2]["bench/rg:a/avg_8"] == 0.5
        assert second[2] == {
            "bench/aime24/avg_8": 0.25,
            "bench/aime24/maj_8": 0.5,
            "bench/aime24/pass_1": 0.25,
            "bench/aime24/pass_8": 0.75,
            "bench/aime24/truncated": 0.125,
            "bench/aime24/no_answer": 0.0,
            "bench/aime24/timeout": 0.0,
            "bench/aime24/crash": 0.0,
            "bench/aime24/avg_8_low": 0.125,
            "bench/aime24/avg_8_high": 1.0,
        }

    def test_comparisons_too(self, tmp_path: Path) -> None:
        """A p that does not exist is left out."""
        (tmp_path / "evals").mkdir()
        one = {"bench": "aime24", "paired": {"difference": -0.25}, "p_holm": None}
        two = {"bench": "aime25", "paired": {"difference": 0.5}, "p_holm": 0.03}
        told = {"step": 6, "created": 7.0, "benches": [one, two]}
        (tmp_path / "evals" / "versus-a-b-n8-c.json").write_text(json.dumps(told))
        assert mirror.evaluations(tmp_path) == [
            (6, 7.0, {"bench/aime24/vs_difference": -0.25}),
            (6, 7.0, {"bench/aime25/vs_difference": 0.5, "bench/aime25/vs_p_holm": 0.03}),
        ]

    def test_a_run_has_them_at_the_checkpoints_step_once(self, store: Store) -> None:
        result(store.run_dir, 0.25, created=20.0, step=6)
        for _ in range(2):
            store.sync()
            assert store.history("bench/aime24/avg_8") == [(6, 0.25)]
        result(store.run_dir, 0.375, created=30.0, step=4)
        result(store.run_dir, 0.25, created=40.0, step=6)  # graded again, to the same end
        store.sync()
        store.sync()
        assert store.history("bench/aime24/avg_8") == [(4, 0.375), (6, 0.25)]
        assert store.history("bench/aime24/pass_8") == [(4, 0.75), (6, 0.75)]
        assert store.steps() == [1, 2, 3, 4, 5, 6]

    def test_a_model_has_a_run_of_its_own(self, store: Store) -> None:
        model_dir = store.runs_dir / "models" / "some-model"
        result(model_dir, 0.25, created=20.0)
        for _ in range(2):
            assert mirror.sync_model(model_dir, "some/model") is None
        [run] = store.runs()
        assert (run.info.run_name, run.info.status) == ("some/model", "FINISHED")
        assert run.data.tags["tpcli.run"] == "model:some-model"
        assert store.history("bench/aime24/avg_8") == [(0, 0.25)]

    def test_what_goes_wrong_is_one_line(self, tmp_path: Path) -> None:
        model_dir = tmp_path / "models" / "some-model"
        result(model_dir, 0.25, created=20.0)
        (tmp_path / "mlflow.db").mkdir()
        told = mirror.sync_model(model_dir, "some/model")
        assert told is not None
        assert "cannot be written" in told
        assert "\n" not in told
