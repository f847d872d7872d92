"""runs/registry.db: an index over the run folders, which can be rebuilt from them at any time."""

from __future__ import annotations

import difflib
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, NullPool, create_engine, delete, event, func, select
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session

from tpcli.errors import NotFoundError, TpcliError
from tpcli.registry import folder, migrations
from tpcli.registry.index import comparisons_of, evaluation_of, row_of
from tpcli.registry.models import ComparisonRow, EvaluationRow, RunRow
from tpcli.registry.run import Comparison, Evaluation, Run

DATABASE = "registry.db"


class BrokenFolderError(TpcliError):
    """A run folder that cannot be read as one."""


class Registry:
    """The runs under ``runs_dir``. Opens its database when first asked, and creates it then.

    Safe to use from many processes at once. Failures of the database are TpcliErrors.
    """

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self.path = runs_dir / DATABASE

    # writing

    def index(self, run_dir: Path) -> None:
        """Bring the row of one run up to date with its folder; the only writer of rows.

        Raises:
            BrokenFolderError: the folder is incomplete or damaged.
            TpcliError: the database cannot be written.
        """
        self._recover()
        with self._session(write=True) as session:
            # Read inside the transaction: of two writers, the later one has read the later state.
            with _readable(f"the run in {run_dir}"):
                row = row_of(run_dir)
            session.merge(row)

    def index_evaluation(self, path: Path) -> None:
        """Bring the row of one result up to date with its file.

        Raises:
            BrokenFolderError: the file is incomplete or damaged.
            TpcliError: the database cannot be written.
        """
        self._recover()
        with self._session(write=True) as session:
            with _readable(f"the result {path}"):
                row = evaluation_of(self.runs_dir, path)
            session.merge(row)

    def index_comparison(self, path: Path) -> None:
        """Bring the rows of one comparison up to date with its file. Raises as the above."""
        self._recover()
        with self._session(write=True) as session:
            with _readable(f"the comparison {path}"):
                rows = comparisons_of(self.runs_dir, path)
            for row in rows:
                session.merge(row)

    def rebuild(self, report: Callable[[str], None] = lambda message: None) -> int:
        """Forget every row, read every folder, and return how many runs there are.

        A broken folder is left out, and reported. A database damaged beyond reading is set aside.
        Each folder is its own transaction: runs may go on training, and begin, meanwhile.
        """
        if self.path.exists() and self._is_damaged():
            aside = self.path.with_name(f"{DATABASE}.damaged-{int(time.time())}")
            self.path.rename(aside)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(DATABASE + suffix).unlink(missing_ok=True)
            report(f"{self.path} was damaged; kept as {aside.name}")
        self.migrate()
        listed = self.folders()
        keep: set[str] = set()
        for run_dir in listed:
            try:
                self.index(run_dir)
                keep.add(run_dir.name)
            except BrokenFolderError as error:
                report(error.message)
        count = len(keep)
        with self._session(write=True) as session:
            keep |= {path.name for path in self.folders()} - {path.name for path in listed}
            session.execute(delete(RunRow).where(RunRow.id.not_in(keep)))
        self._rebuild_evaluations(report)
        return count

    def _rebuild_evaluations(self, report: Callable[[str], None]) -> None:
        for files, index, row in (
            (self.results, self.index_evaluation, EvaluationRow),
            (self.versus, self.index_comparison, ComparisonRow),
        ):
            listed, broken = files(), set()
            for path in listed:
                try:
                    index(path)
                except BrokenFolderError as error:
                    broken.add(path)
                    report(error.message)
            with self._session(write=True) as session:
                # Those that came meanwhile stay: the files are listed again, under the write lock.
                keep = {p.relative_to(self.runs_dir).as_posix() for p in {*files()} - broken}
                session.execute(delete(row).where(row.path.not_in(keep)))

    # reading

    def folders(self) -> list[Path]:
        """The run folders: those that hold a run.json."""
        return sorted(path.parent for path in self.runs_dir.glob(f"*/{folder.RUN}"))

    def results(self) -> Sequence[Path]:
        """The results of evaluations, of runs and of models that belong to none."""
        return self._below_evals("*/result-*.json")

    def versus(self) -> Sequence[Path]:
        """The comparisons of two policies."""
        return self._below_evals("versus-*.json")

    def _below_evals(self, pattern: str) -> Sequence[Path]:
        found = (self.runs_dir.glob(f"{place}/evals/{pattern}") for place in ("*", "models/*"))
        return sorted(path for paths in found for path in paths)

    def comparisons(self) -> Sequence[Comparison]:
        """Comparisons of two policies by benchmark, newest first."""
        newest = (ComparisonRow.created.desc(), ComparisonRow.path, ComparisonRow.bench)
        self._recover()
        if not self.path.exists():
            return []
        columns = [column.key for column in ComparisonRow.__table__.columns]
        with self._session() as session:
            return [
                Comparison(**{key: getattr(row, key) for key in columns})
                for row in session.scalars(select(ComparisonRow).order_by(*newest))
            ]

    def evaluations(self, *, run: str | None = None, bench: str | None = None) -> list[Evaluation]:
        """Results of evaluations, newest first."""
        statement = select(EvaluationRow).order_by(EvaluationRow.created.desc(), EvaluationRow.path)
        if run is not None:
            statement = statement.where(EvaluationRow.run == run)
        if bench is not None:
            statement = statement.where(EvaluationRow.bench == bench)
        self._recover()
        if not self.path.exists():
            return []
        columns = [column.key for column in EvaluationRow.__table__.columns]
        with self._session() as session:
            return [
                Evaluation(**{key: getattr(row, key) for key in columns})
                for row in session.scalars(statement)
            ]

    def list(self, *, limit: int | None = None) -> list[Run]:
        """Runs, newest first."""
        return [*self._runs(select(RunRow).order_by(*_NEWEST).limit(limit))]

    def count(self) -> int:
        """How many runs there are."""
        self._recover()
        if not self.path.exists():
            return 0
        with self._session() as session:
            return session.scalar(select(func.count()).select_from(RunRow)) or 0

    def newest_finished(self) -> Run | None:
        """The run created last, of those that reached their end."""
        return self._first(select(RunRow).where(RunRow.status == "finished"))

    def same(self, fingerprint: str, code: str) -> Run | None:
        """A finished run of this resolved recipe by this code: the newest."""
        return self._first(
            select(RunRow).where(
                RunRow.status == "finished",
                RunRow.fingerprint == fingerprint,
                RunRow.code == code,
            )
        )

    def find(self, key: str) -> Run:
        """The run with this id, this start of an id, or this name.

        Raises:
            NotFoundError: there is none, or more than one; the hint lists what was meant.
        """
        runs = self.list()
        exact = [run for run in runs if run.id == key]
        found = exact or [
            run for run in runs if run.name == key or (key and run.id.startswith(key))
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise NotFoundError(
                f"{key} could be any of {len(found)} runs",
                hint="type more of the id: " + ", ".join(f"{r.id} ({r.name})" for r in found[:8]),
            )
        raise NotFoundError(
            f"no run {key or '(empty)'} in {self.runs_dir}", hint=_nearest(key, runs)
        )

    # looking after the database

    def version(self) -> int | None:
        """The schema version as it stands, without migrating; None where there is no database."""
        if not self.path.exists():
            return None
        with self._plain() as connection:
            return migrations.version_of(connection)

    def migrate(self) -> Sequence[Path]:
        """Bring the schema up to date now; the copies made before doing so."""
        with self._translated():
            self.runs_dir.mkdir(parents=True, exist_ok=True)
            return migrations.migrate(self.path)

    def backup(self, target: Path) -> None:
        """Copy the database, also while others write to it."""
        if not self.path.exists():
            raise NotFoundError(f"no {self.path}", hint="tpcli db rebuild")
        with self._translated():
            migrations.backup(self.path, target)

    def check(self) -> Sequence[str]:
        """What is wrong: damage in the file, rows without a folder, folders without a row."""
        if not self.path.exists():
            return [f"no {self.path}"] if self.folders() else []
        with self._plain() as connection:
            damage = [row[0] for row in connection.execute("PRAGMA integrity_check")]
        rows = {run.id for run in self.list()}
        folders = {path.name for path in self.folders()}
        known = {evaluation.path for evaluation in self.evaluations()}
        results = {path.relative_to(self.runs_dir).as_posix() for path in self.results()}
        return [
            *(line for line in damage if line != "ok"),
            *(f"{run_id} has no folder" for run_id in sorted(rows - folders)),
            *(f"{run_id} is not indexed" for run_id in sorted(folders - rows)),
            *(f"{path} has no file" for path in sorted(known - results)),
            *(f"{path} is not indexed" for path in sorted(results - known)),
        ]

    # inside

    def _recover(self) -> None:
        """Read the folders again where the database was lost."""
        if not self.path.exists() and (self.folders() or self.results()):
            self.rebuild()

    def _runs(self, statement: Any) -> Sequence[Run]:
        self._recover()
        if not self.path.exists():  # nothing to read, so nothing to create
            return []
        with self._session() as session:
            return [self._run(row) for row in session.scalars(statement)]

    def _first(self, statement: Any) -> Run | None:
        return next(iter(self._runs(statement.order_by(*_NEWEST).limit(1))), None)

    def _run(self, row: RunRow) -> Run:
        columns = {column.key: getattr(row, column.key) for column in RunRow.__table__.columns}
        columns["recorded"] = columns.pop("status")
        columns["tags"] = tuple(columns["tags"])
        columns["reward_history"] = tuple(columns["reward_history"])
        return Run(folder=self.runs_dir / row.id, **columns)

    def _is_damaged(self) -> bool:
        try:
            with closing(sqlite3.connect(self.path)) as connection:
                return bool(connection.execute("PRAGMA integrity_check").fetchone()[0] != "ok")
        except sqlite3.OperationalError:  # locked, or not readable: not for us to replace
            return False
        except sqlite3.DatabaseError:
            return True

    @contextmanager
    def _session(self, *, write: bool = False) -> Iterator[Session]:
        with self._translated():
            engine = self._engine.execution_options(write=write)
            with Session(engine, expire_on_commit=False) as session, session.begin():
                session.connection()  # BEGIN now, not at the first query
                yield session

    @contextmanager
    def _plain(self) -> Iterator[sqlite3.Connection]:
        with self._translated(), closing(sqlite3.connect(self.path, timeout=30)) as connection:
            yield connection

    @cached_property
    def _engine(self) -> Engine:
        self.migrate()
        engine = create_engine(
            URL.create("sqlite", database=str(self.path)),
            poolclass=NullPool,
            connect_args={"timeout": 30, "isolation_level": None},  # we say BEGIN ourselves
        )

        @event.listens_for(engine, "begin")
        def _begin(connection: Any) -> None:
            # A plain BEGIN takes the write lock late, and then fails at once if another has it.
            write = connection.get_execution_options().get("write", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

        return engine

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (DatabaseError, sqlite3.DatabaseError, OSError) as error:
            reason = error.orig if isinstance(error, DatabaseError) else error
            raise TpcliError(f"{self.path}: {reason}", hint=_mend(str(reason))) from error


@contextmanager
def _readable(what: str) -> Iterator[None]:
    """What is incomplete or damaged on disk becomes a BrokenFolderError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise BrokenFolderError(
            f"cannot read {what}: {reason}",
            hint="restore the file, or move the folder out of the runs folder",
        ) from error


_NEWEST = (RunRow.created.desc(), RunRow.id)


def _mend(reason: str) -> str:
    if "not a database" in reason or "malformed" in reason:
        return "tpcli db rebuild (the run folders hold everything that was in it)"
    if "locked" in reason:
        return "another process held the registry for 30 seconds; try again"
    if "no such" in reason:
        return "its schema is not the expected one: tpcli db check"
    return "check that the runs folder exists and can be written, or set TPCLI_RUNS to another"


def _nearest(key: str, runs: Sequence[Run]) -> str:
    if not runs:
        return "there are no runs yet: tpcli train recipes/math.toml"
    names = [word for run in runs for word in (run.id, run.name)]
    near = difflib.get_close_matches(key, dict.fromkeys(names), n=3)
    return f"did you mean {' or '.join(near)}?" if near else "tpcli runs lists them"
