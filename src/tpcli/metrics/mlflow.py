"""A run's copy in MLflow: parameters, metrics, files. MLflow is slow to load: only functions do."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tpcli.errors import TpcliError

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

RUN_TAG = "tpcli.run"
LOGGED_STEP = "step"
"""Logged with every line, in the same batch: its greatest value is how far MLflow is."""
LISTS_EVERY = 10
"""Steps between two that are logged with their values by percentile."""
BATCH_METRICS = 1_000
BATCH_PARAMS = 100
PARAM_LENGTH = 6_000
ARTIFACTS = ("recipe.toml", "resolved.toml", "provenance.json")
FIGURES = "figures"

MlflowStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]


def default_store(runs_dir: Path) -> str:
    """The tracking URI of the store inside the runs folder."""
    return f"sqlite:///{runs_dir.resolve()}/mlflow.db"


class Mirror:
    """One run in one MLflow experiment. Any call may raise what MLflow raises: it may be down.

    Args:
        uri: MLflow's tracking URI.
        experiment: name of the experiment; created where there is none. Beside an SQLite store
            its files go to ``mlartifacts``, next to the database.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri, self.experiment = uri, experiment
        self._run_id = ""
        self.logged_step = -1

    def open(
        self,
        run_id: str,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        *,
        created: float | None = None,
    ) -> str:
        """Find the MLflow run of our run, or create it; return MLflow's id of it.

        Afterwards ``logged_step`` is the last step that MLflow has; -1 for none.
        """
        probe(self.uri)
        self._client = client = _client(self.uri)
        experiment_id = self._experiment_id()
        found = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1)
        if found:
            run = found[0]
            history = client.get_metric_history(run.info.run_id, LOGGED_STEP)
            self.logged_step = max((metric.step for metric in history), default=-1)
        else:
            start = None if created is None else int(created * 1000)
            run = client.create_run(
                experiment_id, start, tags={RUN_TAG: run_id, **tags}, run_name=name
            )
            self.logged_step = -1
        self._run_id = str(run.info.run_id)
        named = {_accepted(key): value for key, value in params.items()}
        self._log_params({key: named[key] for key in named if key not in run.data.params})
        client.update_run(self._run_id, status="RUNNING")
        return self._run_id

    def log(self, lines: Sequence[dict[str, Any]]) -> None:
        """Log lines of metrics.jsonl, in order of step; those that MLflow has are left out."""
        waiting = [line for line in lines if line["step"] > self.logged_step]
        for batch in _batches(waiting):
            self._client.log_batch(self._run_id, metrics=batch)
            marks = [metric.step for metric in batch if metric.key == LOGGED_STEP]
            self.logged_step = max(marks, default=self.logged_step)

    def evaluations(self, lines: Sequence[tuple[int, float, Mapping[str, float]]]) -> int:
        """Log results of benchmarks: (step, time, values). What MLflow has is left out.

        Returns:
            how many values were new.
        """
        from mlflow.entities import Metric

        known: dict[str, set[tuple[int, float]]] = {}
        fresh: list[Metric] = []
        for step, moment, values in lines:
            for name, value in values.items():
                key = _accepted(name)
                if key not in known:
                    history = self._client.get_metric_history(self._run_id, key)
                    known[key] = {(metric.step, metric.value) for metric in history}
                if (step, value) not in known[key]:
                    known[key].add((step, value))
                    fresh.append(Metric(key, value, int(moment * 1000), step))
        for at in range(0, len(fresh), BATCH_METRICS):
            self._client.log_batch(self._run_id, metrics=fresh[at : at + BATCH_METRICS])
        return len(fresh)

    def artifacts(self, run_dir: Path) -> None:
        """Copy the recipe, the provenance and the figures, those that are there."""
        for name in ARTIFACTS:
            if (run_dir / name).is_file():
                self._client.log_artifact(self._run_id, str(run_dir / name))
        for path in sorted((run_dir / FIGURES).glob("*.png")):
            self._client.log_artifact(self._run_id, str(path), FIGURES)

    def close(self, status: MlflowStatus, finished: float | None = None) -> None:
        """Say how the run ended, and when (Unix seconds)."""
        end = None if finished is None else int(finished * 1000)
        self._client.set_terminated(self._run_id, status, end)

    def _experiment_id(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(self.experiment)
        if found is not None:
            return str(found.experiment_id)
        path = _sqlite_path(self.uri)
        location = None if path is None else (path.parent / "mlartifacts").as_uri()
        try:
            return str(self._client.create_experiment(self.experiment, location))
        except MlflowException:  # another run has just created it
            found = self._client.get_experiment_by_name(self.experiment)
            if found is None:
                raise
            return str(found.experiment_id)

    def _log_params(self, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        listed = [Param(key, str(value)[:PARAM_LENGTH]) for key, value in params.items()]
        for first in range(0, len(listed), BATCH_PARAMS):
            self._client.log_batch(self._run_id, params=listed[first : first + BATCH_PARAMS])


def probe(uri: str) -> None:
    """Fail at once where an SQLite store cannot be written: MLflow itself retries for minutes.

    Raises:
        TpcliError: the file cannot be opened or written.
    """
    path = _sqlite_path(uri)
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE probe (x)")  # BEGIN alone passes on a read-only file
            connection.execute("ROLLBACK")
    except (sqlite3.Error, OSError) as error:
        raise TpcliError(
            f"MLflow's store {path} cannot be written: {error}",
            hint="mend the file, then: tpcli db sync-mlflow",
        ) from error


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as one, with dotted keys: MLflow's parameters."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """One line of metrics.jsonl as MLflow takes it: a list becomes name/00, name/01 and so on.

    Lists are taken of step 1 and of every tenth step: they are two thirds of all numbers, and
    MLflow writes each as a row. Nulls are left out; characters that MLflow refuses in a name
    become "_".
    """
    flat: dict[str, float] = {}
    with_lists = line["step"] == 1 or line["step"] % LISTS_EVERY == 0
    for key, value in line.items():
        if isinstance(value, list) and not with_lists:
            continue
        entries = (
            {f"{key}/{i:02d}": entry for i, entry in enumerate(value)}
            if isinstance(value, list)
            else {key: value}
        )
        for name, entry in entries.items():
            if isinstance(entry, (int, float)):
                flat[_accepted(name)] = float(entry)
    return flat


def _accepted(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)


def _batches(lines: Sequence[dict[str, Any]]) -> Iterator[list[Metric]]:
    """Whole lines together, up to MLflow's limit; a line beyond the limit ends with its mark."""
    from mlflow.entities import Metric

    batch: list[Metric] = []
    for line in lines:
        step, milliseconds = int(line["step"]), int(line["time"] * 1000)
        values = {key: v for key, v in scalars(line).items() if key not in ("time", LOGGED_STEP)}
        values[LOGGED_STEP] = float(step)
        metrics = [Metric(key, value, milliseconds, step) for key, value in values.items()]
        if batch and len(batch) + len(metrics) > BATCH_METRICS:
            yield batch
            batch = []
        batch += metrics
        while len(batch) > BATCH_METRICS:
            yield batch[:BATCH_METRICS]
            batch = batch[BATCH_METRICS:]
    if batch:
        yield batch


def _client(uri: str) -> MlflowClient:
    """A client that says nothing, reports to nobody, and gives up a dead server in seconds."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri)


def _sqlite_path(uri: str) -> Path | None:
    """The file of a plain ``sqlite:///`` URI."""
    if not uri.startswith("sqlite:///") or uri.startswith("sqlite:///file:"):
        return None
    return Path(uri.removeprefix("sqlite:///")).absolute()
