"""`tpcli db`: the indexes brought back to what the folders say."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
import typer
from mlflow.tracking import MlflowClient
from tests.registry.folders import FINISHED, lines_of, make_run, write_metrics
from typer.testing import CliRunner, Result

from tpcli.cli.db import app as db_app
from tpcli.errors import PARTLY_FAILED, RUN_FAILED, NotFoundError, TpcliError, UsageError
from tpcli.metrics.mlflow import default_store
from tpcli.registry import folder
from tpcli.registry.migrations import LATEST
from tpcli.registry.store import Registry

app = typer.Typer()
app.add_typer(db_app, name="db")


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["db", *arguments], catch_exceptions=False)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "runs"
    monkeypatch.setenv("TPCLI_RUNS", str(path))
    for run_id in ("aaaaaaa", "bbbbbbb"):
        make_run(path, run_id, lines=lines_of(3), state=FINISHED)
    return path


def test_status_before_and_after(runs: Path) -> None:
    facts = json.loads(invoke("status", "--json").stdout)
    assert facts["folders"] == 2
    assert facts["mlflow_late"] == ["aaaaaaa", "bbbbbbb"]
    text = invoke("status").stdout
    assert "2 of 2 folders" in text
    assert "behind on aaaaaaa, bbbbbbb: tpcli db sync-mlflow" in text


def test_rebuild_and_check(runs: Path) -> None:
    Registry(runs).list()
    (runs / "bbbbbbb" / folder.RUN).write_text("{}")
    make_run(runs, "ccccccc")
    with pytest.raises(TpcliError, match="registry: 1") as caught:
        invoke("check")
    assert caught.value.exit_code == RUN_FAILED
    result = invoke("rebuild")
    assert result.stdout.startswith("2 runs in ")
    assert "bbbbbbb" in result.stderr
    (runs / "bbbbbbb").rename(runs.parent / "elsewhere")
    assert invoke("check").stdout == "the registry is sound\n"


def test_backup_writes_once(runs: Path) -> None:
    with pytest.raises(NotFoundError):
        invoke("backup")
    invoke("rebuild")
    target = Path(invoke("backup").stdout.strip())
    with sqlite3.connect(target) as connection:
        assert connection.execute("SELECT count(*) FROM runs").fetchone() == (2,)
    with pytest.raises(UsageError, match="exists"):
        invoke("backup", str(target))


def test_migrate_says_from_where_to_where(runs: Path) -> None:
    assert invoke("migrate").stdout == f"schema 0 → {LATEST}\n"
    assert invoke("migrate").stdout == f"schema {LATEST} → {LATEST}\n"


class TestSyncMlflow:
    def test_the_gap_is_filled_exactly_once(self, runs: Path) -> None:
        first = invoke("sync-mlflow", "aaa")
        assert first.stdout == "aaaaaaa  4 steps added\n"
        write_metrics(runs / "aaaaaaa", lines_of(5))
        second = invoke("sync-mlflow")
        assert second.stdout == "aaaaaaa  2 steps added\nbbbbbbb  4 steps added\n"
        assert json.loads(invoke("status", "--json").stdout)["mlflow_late"] == []
        client = MlflowClient(default_store(runs))
        mlflow_id = folder.read_json(runs / "aaaaaaa" / folder.MLFLOW)["run_id"]
        history = client.get_metric_history(mlflow_id, "reward/mean")
        assert sorted(metric.step for metric in history) == [1, 2, 3, 4, 5]

    def test_one_of_two_fails(self, runs: Path) -> None:
        """The other run's recipe wants no mirror; that is no failure."""
        (runs / "aaaaaaa" / folder.RESOLVED).write_text("[track]\nmlflow = false\n")
        (runs / "mlflow.db").mkdir()
        result = invoke("sync-mlflow")
        assert result.exit_code == PARTLY_FAILED
        assert "aaaaaaa  not mirrored" in result.stdout
        assert "bbbbbbb  failed: MLflow's store" in result.stderr

    def test_all_fail(self, runs: Path) -> None:
        (runs / "mlflow.db").mkdir()
        with pytest.raises(TpcliError, match="none of 2 runs"):
            invoke("sync-mlflow")
