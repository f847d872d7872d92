"""The registry's schema, as the list of steps that built it. Append only: never edit a step.

A database stands at version ``PRAGMA user_version``: the number of steps it has been through.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tpcli.errors import TpcliError

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    # 1: runs, an index over the run folders
    (
        """
        CREATE TABLE runs (
            id TEXT NOT NULL,
            name TEXT NOT NULL,
            created FLOAT NOT NULL,
            fingerprint TEXT NOT NULL,
            seed INTEGER NOT NULL,
            recipe TEXT NOT NULL,
            model TEXT NOT NULL,
            allocation TEXT NOT NULL,
            curve TEXT NOT NULL,
            window_start FLOAT,
            window_end FLOAT,
            steps INTEGER NOT NULL,
            horizon INTEGER NOT NULL,
            tags JSON NOT NULL,
            note TEXT NOT NULL,
            code TEXT NOT NULL,
            git TEXT NOT NULL,
            status TEXT NOT NULL,
            pid INTEGER,
            pid_started FLOAT,
            host TEXT,
            heartbeat FLOAT,
            finished FLOAT,
            exit_code INTEGER,
            error TEXT,
            hint TEXT,
            step INTEGER NOT NULL,
            reward_first FLOAT,
            reward_last FLOAT,
            entropy_first FLOAT,
            entropy_last FLOAT,
            sampled_first FLOAT,
            sampled_last FLOAT,
            greedy_first FLOAT,
            greedy_last FLOAT,
            reward_history JSON NOT NULL,
            PRIMARY KEY (id)
        )
        """,
        "CREATE INDEX runs_by_name ON runs (name)",
        "CREATE INDEX runs_by_created ON runs (created)",
        "CREATE INDEX runs_by_fingerprint ON runs (fingerprint)",
    ),
    # 2: evaluations, an index over the results in the folders of runs and models
    (
        """
        CREATE TABLE evaluations (
            path TEXT NOT NULL,
            run TEXT,
            step INTEGER,
            label TEXT NOT NULL,
            digest TEXT NOT NULL,
            bench TEXT NOT NULL,
            settings TEXT NOT NULL,
            verifier TEXT NOT NULL,
            n INTEGER NOT NULL,
            questions INTEGER NOT NULL,
            "limit" INTEGER,
            seed INTEGER NOT NULL,
            value FLOAT NOT NULL,
            se FLOAT,
            low FLOAT NOT NULL,
            high FLOAT NOT NULL,
            maj FLOAT NOT NULL,
            truncated FLOAT NOT NULL,
            no_answer FLOAT NOT NULL,
            timeout FLOAT NOT NULL,
            crash FLOAT NOT NULL,
            passed JSON NOT NULL,
            tokens FLOAT NOT NULL,
            created FLOAT NOT NULL,
            PRIMARY KEY (path)
        )
        """,
        "CREATE INDEX evaluations_by_run ON evaluations (run)",
        "CREATE INDEX evaluations_by_bench ON evaluations (bench)",
        """
        CREATE TABLE comparisons (
            path TEXT NOT NULL,
            bench TEXT NOT NULL,
            run TEXT,
            step INTEGER,
            label TEXT NOT NULL,
            other TEXT NOT NULL,
            difference FLOAT NOT NULL,
            se FLOAT,
            low FLOAT,
            high FLOAT,
            p_t FLOAT,
            p_holm FLOAT,
            p_sign_flip FLOAT NOT NULL,
            only_new INTEGER NOT NULL,
            lost INTEGER NOT NULL,
            both INTEGER NOT NULL,
            neither INTEGER NOT NULL,
            created FLOAT NOT NULL,
            PRIMARY KEY (path, bench)
        )
        """,
    ),
    # 3: what a run came from, whether it was removed, its recipe and its last metrics. The two new
    # JSON columns are filled from the folders afterwards: 'null' marks a row not read again yet
    (
        "ALTER TABLE runs RENAME TO runs_before",
        """
        CREATE TABLE runs (
            id TEXT NOT NULL,
            name TEXT NOT NULL,
            created FLOAT NOT NULL,
            fingerprint TEXT NOT NULL,
            seed INTEGER NOT NULL,
            recipe TEXT NOT NULL,
            model TEXT NOT NULL,
            allocation TEXT NOT NULL,
            curve TEXT NOT NULL,
            window_start FLOAT,
            window_end FLOAT,
            steps INTEGER NOT NULL,
            horizon INTEGER NOT NULL,
            tags JSON NOT NULL,
            note TEXT NOT NULL,
            code TEXT NOT NULL,
            git TEXT NOT NULL,
            status TEXT NOT NULL,
            pid INTEGER,
            pid_started FLOAT,
            host TEXT,
            heartbeat FLOAT,
            finished FLOAT,
            exit_code INTEGER,
            error TEXT,
            hint TEXT,
            step INTEGER NOT NULL,
            reward_first FLOAT,
            reward_last FLOAT,
            entropy_first FLOAT,
            entropy_last FLOAT,
            sampled_first FLOAT,
            sampled_last FLOAT,
            greedy_first FLOAT,
            greedy_last FLOAT,
            reward_history JSON NOT NULL,
            parent TEXT,
            parent_step INTEGER,
            removed FLOAT,
            settings JSON NOT NULL,
            metrics JSON NOT NULL,
            PRIMARY KEY (id)
        )
        """,
        """
        INSERT INTO runs
        SELECT id, name, created, fingerprint, seed, recipe, model, allocation, curve,
               window_start, window_end, steps, horizon, tags, note, code, git, status, pid,
               pid_started, host, heartbeat, finished, exit_code, error, hint, step,
               reward_first, reward_last, entropy_first, entropy_last, sampled_first,
               sampled_last, greedy_first, greedy_last, reward_history,
               NULL, NULL, NULL, 'null', '{}'
        FROM runs_before
        """,
        "DROP TABLE runs_before",
        "CREATE INDEX runs_by_name ON runs (name)",
        "CREATE INDEX runs_by_created ON runs (created)",
        "CREATE INDEX runs_by_fingerprint ON runs (fingerprint)",
        "CREATE INDEX runs_unread ON runs (id) WHERE settings = 'null'",
    ),
)
LATEST = len(MIGRATIONS)


def version_of(connection: sqlite3.Connection) -> int:
    """How many migrations the database has been through."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def migrate(path: Path, migrations: tuple[tuple[str, ...], ...] = MIGRATIONS) -> list[Path]:
    """Bring the database at ``path`` up to date, in one transaction; create it if need be.

    A database that already holds something is copied first; the copies made are returned. Safe
    when several processes do it at once: the others wait, then find nothing left to do.
    """
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    try:
        if version_of(connection) == len(migrations):
            return []
        connection.execute("PRAGMA journal_mode = WAL")  # remembered in the file
        connection.execute("BEGIN IMMEDIATE")
        version = version_of(connection)
        if version > len(migrations):
            raise TpcliError(
                f"{path.name} was written by a newer tpcli "
                f"(schema {version}, this one knows {len(migrations)})",
                hint=f"upgrade tpcli, or move {path} away and run: tpcli db rebuild",
            )
        copies = [_copy_before(path, version)] if 0 < version < len(migrations) else []
        for statements in migrations[version:]:
            for statement in statements:
                connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {len(migrations)}")
        connection.execute("COMMIT")
        return copies
    finally:
        connection.close()  # an open transaction is rolled back


def _copy_before(path: Path, version: int) -> Path:
    target = path.with_name(f"{path.name}.before-migration-{version + 1}")
    backup(path, target)
    return target


def backup(path: Path, target: Path) -> None:
    """Copy a database that others may be writing to, as one consistent snapshot."""
    source, copy = sqlite3.connect(path, timeout=30), sqlite3.connect(target)
    try:
        source.backup(copy)
    finally:
        source.close()
        copy.close()
