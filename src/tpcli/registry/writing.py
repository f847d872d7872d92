"""Writing rows: the one place where SQLAlchemy, which takes long to load, is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, NullPool, create_engine, event
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from tpcli.registry.models import Base


def put(path: Path, read: Callable[[], Sequence[Base]]) -> None:
    """Read rows and write them over those with their keys, in one transaction.

    ``read`` is called inside it: of two writers, the later one has read the later state.
    Failures of the database are those of ``sqlite3``.
    """
    try:
        with Session(_engine(path)) as session, session.begin():
            session.connection()  # BEGIN now, not at the first write
            for row in read():
                session.merge(row)
    except DatabaseError as error:
        raise (error.orig or error) from error


@cache
def _engine(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        connect_args={"timeout": 30, "isolation_level": None},  # we say BEGIN ourselves
    )

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        # A plain BEGIN takes the write lock late, and then fails at once if another has it.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
