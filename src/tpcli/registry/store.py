"""runs/registry.db: an index over the run folders, which can be rebuilt from them at any time.

Reading loads ``sqlite3`` and nothing else, so a list of runs is there at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from tpcli.errors import NotFoundError
from tpcli.registry import database, folder, migrations
from tpcli.registry.folder import BrokenFolderError, readable
from tpcli.registry.run import Comparison, Evaluation, Key, Run

DATABASE = "registry.db"
FILLED_AT_ONCE = 100
"""Rows that are filled from their folders in one transaction after a migration."""


class Registry:
    """The runs under ``runs_dir``. Opens its database when first asked, and creates it then.

    Safe to use from many processes at once. Failures of the database are TpcliErrors.
    """

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self.path = runs_dir / DATABASE
        self._ready = False

    # writing

    def index(self, run_dir: Path) -> None:
        """Bring the row of one run up to date with its folder; the only writer of rows.

        Raises:
            BrokenFolderError: the folder is incomplete or damaged.
            TpcliError: the database cannot be written.
        """
        from tpcli.registry.index import row_of

        self._recover()
        self._put(lambda: [row_of(run_dir)], f"the run in {run_dir}")

    def index_evaluation(self, path: Path) -> None:
        """Bring the row of one result up to date with its file.

        Raises:
            BrokenFolderError: the file is incomplete or damaged.
            TpcliError: the database cannot be written.
        """
        from tpcli.registry.index import evaluation_of

        self._recover()
        self._put(lambda: [evaluation_of(self.runs_dir, path)], f"the result {path}")

    def index_comparison(self, path: Path) -> None:
        """Bring the rows of one comparison up to date with its file. Raises as the above."""
        from tpcli.registry.index import comparisons_of

        self._recover()
        self._put(lambda: comparisons_of(self.runs_dir, path), f"the comparison {path}")

    def forget(self, run_id: str) -> None:
        """Drop the rows of a run whose folder is gone, and those of its results."""
        self._make_ready()
        database.change(self.path, "DELETE FROM runs WHERE id = ?", [run_id])
        for table in ("evaluations", "comparisons"):
            below = f"DELETE FROM {table} WHERE substr(path, 1, length(?)) = ?"
            database.change(self.path, below, [f"{run_id}/", f"{run_id}/"])

    def rebuild(self, report: Callable[[str], None] = lambda message: None) -> int:
        """Forget every row, read every folder, and return how many runs there are.

        A broken folder is left out, and reported. A database damaged beyond reading is set aside.
        Each folder is its own transaction: runs may go on training, and begin, meanwhile.
        """
        if self.path.exists() and database.is_damaged(self.path):
            aside = self.path.with_name(f"{DATABASE}.damaged-{int(time.time())}")
            self.path.rename(aside)
            for suffix in ("-wal", "-shm"):
                self.path.with_name(DATABASE + suffix).unlink(missing_ok=True)
            report(f"{self.path} was damaged; kept as {aside.name}")
        self.migrate()
        whole = self._read_again(self.folders, self.index, "runs", "id", report)
        self._read_again(self.results, self.index_evaluation, "evaluations", "path", report)
        self._read_again(self.versus, self.index_comparison, "comparisons", "path", report)
        return whole

    def _read_again(
        self,
        listed: Callable[[], Sequence[Path]],
        index: Callable[[Path], None],
        table: str,
        key: str,
        report: Callable[[str], None],
    ) -> int:
        """Index every path; drop the rows of the others. How many could be read."""
        broken: set[Path] = set()
        paths = listed()
        for path in paths:
            try:
                index(path)
            except BrokenFolderError as error:
                broken.add(path)
                report(error.message)
        with database.opened(self.path) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            # Those that came meanwhile stay: the files are listed again, under the write lock.
            keep = [p.relative_to(self.runs_dir).as_posix() for p in {*listed()} - broken]
            kept = "(SELECT value FROM json_each(?))"
            connection.execute(f"DELETE FROM {table} WHERE {key} NOT IN {kept}", [json.dumps(keep)])
        return len(paths) - len(broken)

    # reading

    def folders(self) -> list[Path]:
        """The run folders: those that hold a run.json and are not being written or deleted."""
        found = (path.parent for path in self.runs_dir.glob(f"*/{folder.RUN}"))
        return sorted(path for path in found if not path.name.startswith("."))

    def results(self) -> Sequence[Path]:
        """The results of evaluations, of runs and of models that belong to none."""
        return self._below_evals("*/result-*.json")

    def versus(self) -> Sequence[Path]:
        """The comparisons of two policies."""
        return self._below_evals("versus-*.json")

    def _below_evals(self, pattern: str) -> Sequence[Path]:
        found = (self.runs_dir.glob(f"{place}/evals/{pattern}") for place in ("*", "models/*"))
        paths = (path for paths in found for path in paths)
        hidden = len(self.runs_dir.parts)
        return sorted(path for path in paths if not path.parts[hidden].startswith("."))

    def comparisons(self) -> Sequence[Comparison]:
        """Comparisons of two policies by benchmark, newest first."""
        found = self._rows("SELECT * FROM comparisons ORDER BY created DESC, path, bench")
        return [Comparison(**row) for row in found]

    def evaluations(
        self, *, run: str | None = None, bench: str | None = None, kept: bool = False
    ) -> list[Evaluation]:
        """Results of evaluations, newest first. ``kept``: without those of removed runs."""
        wanted = {k: v for k, v in (("run", run), ("bench", bench)) if v is not None}
        where = " AND ".join(f"{column} = ?" for column in wanted) or "true"
        if kept:
            removed = "SELECT id FROM runs WHERE removed IS NOT NULL"
            where += f" AND (run IS NULL OR run NOT IN ({removed}))"
        found = self._rows(
            f"SELECT * FROM evaluations WHERE {where} ORDER BY created DESC, path",
            [*wanted.values()],
        )
        return [Evaluation(**row | {"passed": json.loads(row["passed"])}) for row in found]

    def list(self, *, limit: int | None = None, removed: bool | None = False) -> list[Run]:
        """Runs, newest first: those that are kept, the removed ones, or (None) both."""
        return [*self._runs(_KEPT[removed], limit=limit)]

    def under_way(self, *, removed: bool = False) -> Sequence[Run]:
        """Runs that were last recorded as not at their end, newest first."""
        return self._runs(f"{_KEPT[removed]} AND status IN ('created', 'running')")

    def get(self, ids: Sequence[str]) -> Sequence[Run]:
        """The runs with these ids, in this order; those that do not exist are left out."""
        found = self._runs("id IN (SELECT value FROM json_each(?))", [json.dumps([*ids])])
        by_id = {run.id: run for run in found}
        return [by_id[run_id] for run_id in ids if run_id in by_id]

    def values(self, keys: Sequence[Key], *, removed: bool = False) -> Sequence[tuple[Any, ...]]:
        """The id of every run, newest first, and what stands at each key; None for nothing."""
        selected = ["id", *(key.name for key in keys if key.place == "column")]
        paths = {}
        for place in ("settings", "metrics"):
            named = [key.name for key in keys if key.place == place]
            paths[place] = named
            if named:  # of one path alone SQLite would make true 1
                arguments = ", ".join("?" for _ in (*named, ""))
                selected.append(f"json_extract({place}, {arguments}) AS {place}")
        asked = [_path(name) for named in paths.values() if named for name in (*named, named[0])]
        found = self._rows(
            f"SELECT {', '.join(dict.fromkeys(selected))} FROM runs "
            f"WHERE {_KEPT[removed]} ORDER BY {_NEWEST}",
            asked,
        )
        for row in found:
            for place, named in paths.items():
                if named:
                    row[place] = dict(zip(named, json.loads(row[place]), strict=False))
            if "tags" in row:
                row["tags"] = json.loads(row["tags"])
        return [
            (row["id"], *((row if k.place == "column" else row[k.place])[k.name] for k in keys))
            for row in found
        ]

    def has(self, key: Key) -> bool:
        """Whether any run, removed or not, has something at a key."""
        is_column = key.place == "column"
        held = key.name if is_column else f"json_type({key.place}, ?)"
        sql = f"SELECT 1 FROM runs WHERE {held} IS NOT NULL LIMIT 1"
        return bool(self._rows(sql, [] if is_column else [_path(key.name)]))

    def names(self, place: Literal["settings", "metrics"]) -> set[str]:
        """The keys of every run's settings, or metrics."""
        found = self._rows(f"SELECT DISTINCT key FROM runs, json_each(runs.{place})")
        return {row["key"] for row in found}

    def count(self, *, removed: bool = False) -> int:
        """How many runs there are, not counting the removed ones; or of these."""
        found = self._rows(f"SELECT count(*) AS runs FROM runs WHERE {_KEPT[removed]}")
        return int(found[0]["runs"]) if found else 0

    def newest_finished(self) -> Run | None:
        """The run created last, of those that reached their end."""
        return self._first("status = 'finished'")

    def same(self, fingerprint: str, code: str) -> Run | None:
        """A finished run of this resolved recipe by this code: the newest."""
        where = "status = 'finished' AND fingerprint = ? AND code = ?"
        return self._first(where, [fingerprint, code])

    def forks(self, run_id: str) -> Sequence[Run]:
        """The runs that were forked from one, the oldest first."""
        found = self._runs(f"{_KEPT[False]} AND parent = ?", [run_id])
        return sorted(found, key=lambda run: (run.created, run.id))

    def find(self, key: str, *, removed: bool | None = False) -> Run:
        """The run with this id, this start of an id, or this name.

        Args:
            removed: look at the kept runs, at the removed ones (True), or at both (None), where
                a kept one comes before a removed one.

        Raises:
            NotFoundError: there is none, or more than one; the hint lists what was meant.
        """
        every = self._rows(
            "SELECT id, name, removed FROM runs WHERE id = ? OR name = ? "
            f"OR (? != '' AND substr(id, 1, length(?)) = ?) ORDER BY {_NEWEST}",
            [key] * 5,
        )
        every = [row for row in every if row["id"] == key] or every
        kept = [row for row in every if row["removed"] is None]
        gone = [row for row in every if row["removed"] is not None]
        found = gone if removed else kept or (gone if removed is None else [])
        if len(found) == 1:
            return self.get([found[0]["id"]])[0]
        if found:
            raise NotFoundError(
                f"{key} could be any of {len(found)} runs",
                hint="type more of the id: "
                + ", ".join(f"{row['id']} ({row['name']})" for row in found[:8]),
            )
        if every and removed:
            raise NotFoundError(
                f"run {every[0]['id']} is not removed", hint="those that are: tpcli runs --removed"
            )
        if every:
            run_id = every[0]["id"]
            raise NotFoundError(f"run {run_id} was removed", hint=f"tpcli runs restore {run_id}")
        raise NotFoundError(f"no run {key or '(empty)'} in {self.runs_dir}", hint=self._near(key))

    def _near(self, key: str) -> str:
        found = self._rows(f"SELECT id, name FROM runs WHERE {_KEPT[False]} ORDER BY {_NEWEST}")
        if not found:
            return "there are no runs yet: tpcli train recipes/math.toml"
        words = dict.fromkeys(word for row in found for word in (row["id"], row["name"]))
        near = difflib.get_close_matches(key, words, n=3)
        return f"did you mean {' or '.join(near)}?" if near else "tpcli runs lists them"

    # looking after the database

    def version(self) -> int | None:
        """The schema version as it stands, without migrating; None where there is no database."""
        if not self.path.exists():
            return None
        with database.opened(self.path) as connection:
            return migrations.version_of(connection)

    def migrate(self) -> Sequence[Path]:
        """Bring the schema, and rows of an older one, up to date; the copies made before."""
        with database.translated(self.path):
            self.runs_dir.mkdir(parents=True, exist_ok=True)
            copies = migrations.migrate(self.path)
        self._fill()
        self._ready = True
        return copies

    def backup(self, target: Path) -> None:
        """Copy the database, also while others write to it."""
        if not self.path.exists():
            raise NotFoundError(f"no {self.path}", hint="tpcli db rebuild")
        with database.translated(self.path):
            migrations.backup(self.path, target)

    def check(self) -> Sequence[str]:
        """What is wrong: damage in the file, rows without a folder, folders without a row."""
        if not self.path.exists():
            return [f"no {self.path}"] if self.folders() else []
        with database.opened(self.path) as connection:
            damage = [row[0] for row in connection.execute("PRAGMA integrity_check")]
        rows = {row["id"] for row in self._rows("SELECT id FROM runs")}
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

    def _make_ready(self) -> None:
        if not self._ready:
            self.migrate()

    def _put(self, read: Callable[[], Sequence[Any]], what: str) -> None:
        from tpcli.registry.writing import put

        def rows() -> Sequence[Any]:
            with readable(what):
                return read()

        self._make_ready()
        with database.translated(self.path):
            put(self.path, rows)

    def _fill(self) -> None:
        """Read the folders of the rows that a migration left unread, also one that was cut off.

        A folder that is gone or broken leaves its row without settings and metrics.
        """
        unread = f"SELECT id FROM runs WHERE {database.UNREAD} LIMIT {FILLED_AT_ONCE}"
        while found := [row["id"] for row in database.rows(self.path, unread)]:
            from tpcli.registry.index import row_of
            from tpcli.registry.writing import put

            def read(ids: Sequence[str] = tuple(found)) -> Sequence[Any]:
                whole = []
                for run_id in ids:
                    with suppress(BrokenFolderError), readable(run_id):
                        whole.append(row_of(self.runs_dir / run_id))
                return whole

            with database.translated(self.path):
                put(self.path, read)
            database.change(
                self.path,
                f"UPDATE runs SET settings = '{{}}' WHERE {database.UNREAD} "
                "AND id IN (SELECT value FROM json_each(?))",
                [json.dumps(found)],
            )

    def _rows(self, sql: str, arguments: Sequence[Any] = ()) -> Sequence[dict[str, Any]]:
        self._recover()
        if not self.path.exists():  # nothing to read, so nothing to create
            return []
        self._make_ready()
        return database.rows(self.path, sql, arguments)

    def _runs(
        self, where: str, arguments: Sequence[Any] = (), *, limit: int | None = None
    ) -> Sequence[Run]:
        columns = [f.name for f in dataclasses.fields(Run) if f.name not in ("folder", "recorded")]
        some = "" if limit is None else f" LIMIT {limit}"
        found = self._rows(
            f"SELECT {', '.join(columns)}, status AS recorded FROM runs "
            f"WHERE {where} ORDER BY {_NEWEST}{some}",
            arguments,
        )
        return [self._run(row) for row in found]

    def _first(self, where: str, arguments: Sequence[Any] = ()) -> Run | None:
        found = self._runs(f"{_KEPT[False]} AND {where}", arguments, limit=1)
        return found[0] if found else None

    def _run(self, row: dict[str, Any]) -> Run:
        read = {key: json.loads(row[key]) for key in ("tags", "reward_history", "settings")}
        read["tags"], read["reward_history"] = tuple(read["tags"]), tuple(read["reward_history"])
        metrics = json.loads(row["metrics"])
        return Run(folder=self.runs_dir / row["id"], **row | read | {"metrics": metrics})


_NEWEST = "created DESC, id"
_KEPT: dict[bool | None, str] = {
    False: "removed IS NULL",
    True: "removed IS NOT NULL",
    None: "true",
}


def _path(key: str) -> str:
    """Where a key stands in a flat JSON object, in SQLite's words; no key of ours has a quote."""
    return '$."' + key.replace('"', "") + '"'
