"""The migrations build exactly the schema that the models describe, and lose nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from tests.registry.folders import FINISHED, lines_of, make_run

from tpcli.errors import TpcliError
from tpcli.registry.migrations import LATEST, MIGRATIONS, migrate, version_of
from tpcli.registry.models import Base
from tpcli.registry.store import FILLED_AT_ONCE, Registry


def schema(path: Path) -> dict[str, str]:
    """Every table and index by name, its SQL with the white space folded."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        return {name: _folded(sql) for name, sql in rows}


def _folded(sql: str) -> str:
    return " ".join(sql.replace("(", " ( ").replace(")", " ) ").replace(",", " , ").split())


def value(path: Path, sql: str) -> object:
    with sqlite3.connect(path) as connection:
        return connection.execute(sql).fetchone()[0]


def test_the_migrations_build_the_models(tmp_path: Path) -> None:
    migrate(tmp_path / "migrated.db")
    Base.metadata.create_all(create_engine(f"sqlite:///{tmp_path}/models.db"))
    assert schema(tmp_path / "migrated.db") == schema(tmp_path / "models.db")


def test_a_new_database_is_in_wal_mode_at_the_latest_version(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    assert migrate(path) == []
    assert value(path, "PRAGMA user_version") == LATEST
    assert value(path, "PRAGMA journal_mode") == "wal"


EXTENDED = (*MIGRATIONS, ("CREATE TABLE later (x INTEGER)", "INSERT INTO later VALUES (7)"))


def test_an_existing_database_is_copied_and_then_extended(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    migrate(path)
    [copy] = migrate(path, EXTENDED)
    assert value(path, "SELECT x FROM later") == 7
    assert "later" not in schema(copy)
    assert value(copy, "PRAGMA user_version") == LATEST
    assert migrate(path, EXTENDED) == [], "once only"
    assert value(path, "SELECT count(*) FROM later") == 1


def test_a_failing_migration_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    migrate(path)
    before = schema(path)
    with pytest.raises(sqlite3.OperationalError):
        migrate(path, (*MIGRATIONS, ("CREATE TABLE later (x INTEGER)", "nonsense")))
    assert schema(path) == before
    assert value(path, "PRAGMA user_version") == LATEST


def test_a_newer_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "registry.db"
    migrate(path, EXTENDED)
    with pytest.raises(TpcliError, match="newer tpcli") as caught:
        migrate(path)
    assert "upgrade tpcli" in caught.value.hint


def test_version_of_an_empty_database() -> None:
    with sqlite3.connect(":memory:") as connection:
        assert version_of(connection) == 0


class TestRowsOfVersionTwo:
    """A database from before the recipe and the metrics of a run were kept in its row."""

    @pytest.fixture
    def runs(self, tmp_path: Path) -> Path:
        """Rows of two runs, one of which has no folder any more."""
        migrate(tmp_path / "registry.db", MIGRATIONS[:2])
        state = FINISHED | {"status": "stopped"}
        parent = {"run": "bbbbbbb", "step": 2}
        make_run(tmp_path, "aaaaaaa", lines=lines_of(4), state=state, parent=parent)
        with sqlite3.connect(tmp_path / "registry.db") as connection:
            for run_id in ("aaaaaaa", "bbbbbbb"):
                self.insert(connection, run_id)
        return tmp_path

    def insert(self, connection: sqlite3.Connection, run_id: str) -> None:
        columns = list(connection.execute("PRAGMA table_info(runs)"))
        usual = {"TEXT": "word", "INTEGER": 7, "FLOAT": 1.5, "JSON": "[]"}
        row = {name: usual[kind] for _, name, kind, *_ in columns} | {"id": run_id}
        marks = ", ".join("?" * len(row))
        names = ", ".join(row)
        connection.execute(f"INSERT INTO runs ({names}) VALUES ({marks})", [*row.values()])

    def check(self, runs: Path) -> None:
        first, second = sorted(Registry(runs).list(), key=lambda run: run.id)
        assert (first.status, first.parent, first.parent_step) == ("stopped", "bbbbbbb", 2)
        assert first.settings["credit.schedule.curve"] == "linear"
        assert first.metrics["eval/greedy"] == 0.625
        assert (second.name, second.seed, second.created) == ("word", 7, 1.5)
        assert (second.window_start, second.hint, second.greedy_last) == (1.5, "word", 1.5)
        assert (second.settings, second.metrics, second.removed) == ({}, {}, None)
        assert value(runs / "registry.db", "SELECT count(*) FROM runs WHERE settings = 'null'") == 0

    def test_they_are_kept_and_filled_from_their_folders(self, runs: Path) -> None:
        [copy] = Registry(runs).migrate()
        assert value(copy, "SELECT count(*) FROM runs") == 2
        self.check(runs)

    def test_also_where_the_process_died_after_the_migration(self, runs: Path) -> None:
        migrate(runs / "registry.db")
        assert value(runs / "registry.db", "SELECT count(*) FROM runs WHERE settings = 'null'") == 2
        self.check(runs)

    def test_more_than_are_read_at_once(self, runs: Path) -> None:
        with sqlite3.connect(runs / "registry.db") as connection:
            for number in range(FILLED_AT_ONCE):
                self.insert(connection, f"r{number:06d}")
        for run_id in ("r000000", f"r{FILLED_AT_ONCE - 1:06d}"):
            make_run(runs, run_id)
        filled = [run.id for run in Registry(runs).list() if run.settings]
        assert sorted(filled) == ["aaaaaaa", "r000000", f"r{FILLED_AT_ONCE - 1:06d}"]
