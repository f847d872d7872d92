"""The migrations build exactly the schema that the models describe, and lose nothing."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from tpcli.errors import TpcliError
from tpcli.registry.migrations import LATEST, MIGRATIONS, migrate, version_of
from tpcli.registry.models import Base


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
