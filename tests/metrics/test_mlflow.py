"""What of a metrics line reaches MLflow, and in what portions."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from mlflow.entities import Metric

from tpcli.errors import TpcliError
from tpcli.metrics import mlflow as m


def test_lists_become_numbered_metrics_and_nulls_are_left_out() -> None:
    line = {"step": 20, "a/b": 1, "c": [0.5, None, 2], "d": None, "note": "text", "e": True}
    assert m.scalars(line) == {"step": 20.0, "a/b": 1.0, "c/00": 0.5, "c/02": 2.0, "e": 1.0}


def test_lists_are_taken_of_the_first_and_of_every_tenth_step() -> None:
    taken = [step for step in range(1, 31) if "c/00" in m.scalars({"step": step, "c": [1.0]})]
    assert taken == [1, 10, 20, 30]


def test_names_mlflow_refuses_are_respelt() -> None:
    assert list(m.scalars({"step": 1, "x@y(z)ä/k-1.2 _:": 1.0}))[1:] == ["x_y_z__/k-1.2 _:"]


def test_flatten() -> None:
    table = {"a": {"b": {"c": 1}, "d": [1, 2]}, "e": "f"}
    assert m.flatten(table) == {"a.b.c": 1, "a.d": [1, 2], "e": "f"}


def _line(step: int, metrics: int) -> dict[str, object]:
    return {"step": step, "time": 10.0 + step, **{f"m{i}": float(i) for i in range(metrics)}}


def _marks(batch: list[Metric]) -> list[int]:
    return [metric.step for metric in batch if metric.key == m.LOGGED_STEP]


def test_batches_hold_whole_lines_below_the_limit() -> None:
    """400 metrics and the mark: two lines fit into 1000, three do not."""
    batches = list(m._batches([_line(step, 400) for step in range(5)]))
    assert [len(batch) for batch in batches] == [802, 802, 401]
    assert [_marks(batch) for batch in batches] == [[0, 1], [2, 3], [4]]
    assert {metric.timestamp for metric in batches[2]} == {14_000}


def test_a_line_beyond_the_limit_is_marked_last() -> None:
    """Cut off in between, it counts as not logged."""
    batches = list(m._batches([_line(0, 10), _line(1, 2_100), _line(2, 10)]))
    assert [len(batch) for batch in batches] == [11, 1_000, 1_000, 112]
    assert [_marks(batch) for batch in batches] == [[0], [], [], [1, 2]]
    logged = [metric.key for batch in batches for metric in batch if metric.step == 1]
    assert len(logged) == len(set(logged)) == 2_101


@pytest.mark.parametrize("where", ["folder", "file/mlflow.db"])
def test_a_store_that_cannot_be_opened_is_named_at_once(tmp_path: Path, where: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(TpcliError, match="cannot be written") as caught:
        m.probe(f"sqlite:///{tmp_path / where}")
    assert "sync-mlflow" in caught.value.hint


def test_probing_leaves_the_store_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE t (x)")
    before = path.read_bytes()
    m.probe(f"sqlite:///{path}")
    m.probe("http://127.0.0.1:9")
    assert path.read_bytes() == before
