"""The registry's file, read with ``sqlite3`` alone: opened, and its failures in our words."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tpcli.errors import TpcliError

UNREAD = "settings = 'null'"
"""Rows that a migration left to be filled from their folders."""


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Failures of the database at ``path`` become TpcliErrors."""
    try:
        yield
    except (sqlite3.DatabaseError, OSError) as error:
        raise TpcliError(f"{path}: {error}", hint=_mend(str(error))) from error


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that waits for others; failures are TpcliErrors."""
    with translated(path), closing(sqlite3.connect(path, timeout=30)) as connection:
        yield connection


def rows(path: Path, sql: str, arguments: Sequence[Any] = ()) -> list[dict[str, Any]]:
    """What a query finds, each row by its columns."""
    with opened(path) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(sql, arguments)]


def change(path: Path, sql: str, arguments: Sequence[Any] = ()) -> None:
    """Carry out one statement and keep what it did."""
    with opened(path) as connection, connection:
        connection.execute(sql, arguments)


def is_damaged(path: Path) -> bool:
    """Beyond reading: no database at all, or one with holes."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            return bool(connection.execute("PRAGMA integrity_check").fetchone()[0] != "ok")
    except sqlite3.OperationalError:  # locked, or not readable: not for us to replace
        return False
    except sqlite3.DatabaseError:
        return True


def _mend(reason: str) -> str:
    if "not a database" in reason or "malformed" in reason:
        return "tpcli db rebuild (the run folders hold everything that was in it)"
    if "locked" in reason:
        return "another process held the registry for 30 seconds; try again"
    if "no such" in reason:
        return "its schema is not the expected one: tpcli db check"
    return "check that the runs folder exists and can be written, or set TPCLI_RUNS to another"
