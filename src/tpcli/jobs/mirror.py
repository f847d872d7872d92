"""Keep MLflow up to date with a run's folder: beside the training, or any time later.

MLflow is a copy. It may be down, late or wrong; nothing here may harm the run.
"""

from __future__ import annotations

import contextlib
import threading
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpcli.jobs.provenance import redact
from tpcli.metrics.mlflow import Mirror, MlflowStatus, default_store, flatten
from tpcli.names import RunStatus
from tpcli.registry import folder
from tpcli.registry.run import read_status

INTERVAL = 10.0
"""Seconds between two synchronisations."""
IDLE = 400.0
"""Times as long as an update took, the next one waits: a long run has much to read."""
LONGEST_WAIT = 300.0
"""Seconds between two updates, at most."""
STATUS: dict[RunStatus, MlflowStatus] = {
    "created": "RUNNING",
    "running": "RUNNING",
    "finished": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
    "dead": "FAILED",
}


def store_uri(runs_dir: Path, setting: str) -> str:
    """MLflow's tracking URI for the recipe's [track].mlflow: "sqlite" is ours."""
    return default_store(runs_dir) if setting == "sqlite" else setting


def tracking(run_dir: Path) -> tuple[str, str] | None:
    """Where the run's own recipe mirrors it: (URI, experiment), or None where it does not."""
    track = _resolved(run_dir).get("track", {})
    setting = track.get("mlflow", "sqlite")
    if not setting:
        return None
    return store_uri(run_dir.parent, setting), track.get("experiment", "tpcli")


def missing(run_dir: Path) -> int:
    """Steps that MLflow lacks, as far as the folder knows; 0 where the recipe wants no mirror."""
    if tracking(run_dir) is None:
        return 0
    try:
        logged = int(folder.read_json(run_dir / folder.MLFLOW)["logged_step"])
    except (OSError, ValueError, KeyError):
        logged = -1
    return sum(line["step"] > logged for line in folder.read_metrics(run_dir))


def late(runs: Path) -> list[Path]:
    """The run folders whose steps MLflow lacks; broken folders are left out."""
    found = []
    for path in sorted(runs.glob(f"*/{folder.RUN}")):
        with contextlib.suppress(OSError, ValueError):
            if missing(path.parent):
                found.append(path.parent)
    return found


def sync(run_dir: Path, uri: str, experiment: str) -> int:
    """Bring MLflow up to date with the folder, files included; return the steps it had missed.

    How far it is, MLflow itself is asked: a step is never logged twice. The values of a step do
    not change when a run is cut back and resumed, so what is there stays. Raises what MLflow
    raises; steps logged until then stay logged.
    """
    return _Copy(run_dir, uri, experiment).update(final=True)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one run's synchronisation: ``error`` in one line, or ``text``."""

    text: str = ""
    error: str | None = None


def sync_tracked(run_dir: Path) -> Outcome:
    """``sync`` to where the run's own recipe says; whatever goes wrong is in the outcome."""
    try:
        target = tracking(run_dir)
        if target is None:
            return Outcome("not mirrored: its recipe says mlflow = false")
        steps = sync(run_dir, *target)
    except Exception as error:
        return Outcome(error=_line(error))
    return Outcome(f"{steps} steps added" if steps else "up to date")


def _line(error: Exception) -> str:
    """An error in one line, without the passwords of URLs."""
    return redact((str(error).splitlines() or [type(error).__name__])[0])


def evaluations(folder_: Path) -> list[tuple[int, float, dict[str, float]]]:
    """The results of whole benchmarks below a run's or a model's folder, oldest first.

    Named bench/<name>/<what>; of one benchmark sampled in several ways, all values are logged.
    """
    found = []
    for path in folder_.glob("evals/*/result-*.json"):
        result = folder.read_json(path)
        if result["limit"] is not None:
            continue
        summary, name = result["summary"], f"bench/{result['bench']}"
        values = {
            f"{name}/avg_{summary['n']}": summary["avg"]["value"],
            f"{name}/maj_{summary['n']}": summary["maj"]["value"],
            **{f"{name}/pass_{k}": one["value"] for k, one in summary["passed"].items()},
            f"{name}/truncated": summary["truncated"],
            **{f"{name}/avg_{summary['n']}_{end}": summary["avg"][end] for end in ("low", "high")},
            **{f"{name}/{s}": summary["shares"][s] for s in ("no_answer", "timeout", "crash")},
        }
        found.append((int(result["step"] or 0), float(result["created"]), values))
    for path in folder_.glob("evals/versus-*.json"):
        versus = folder.read_json(path)
        for one in versus["benches"]:
            told = {"difference": one["paired"]["difference"], "p_holm": one["p_holm"]}
            values = {f"bench/{one['bench']}/vs_{k}": v for k, v in told.items() if v is not None}
            found.append((int(versus["step"] or 0), float(versus["created"]), values))
    return sorted(found, key=lambda one: one[1])


def sync_model(model_dir: Path, label: str, experiment: str = "tpcli") -> str | None:
    """Log the results of a model that belongs to no run; what went wrong in one line."""
    try:
        uri = default_store(model_dir.parents[1])
        copy = Mirror(uri, experiment)
        copy.open(f"model:{model_dir.name}", label, {"model": label}, {"tpcli.kind": "evaluation"})
        copy.evaluations(evaluations(model_dir))
        copy.close("FINISHED")
    except Exception as error:
        return _line(error)
    return None


class _Copy:
    """One folder and its run in MLflow, opened at the first update."""

    def __init__(self, run_dir: Path, uri: str, experiment: str) -> None:
        self.run_dir = run_dir
        self.mirror = Mirror(uri, experiment)
        self.mlflow_id = ""

    def update(self, *, final: bool) -> int:
        """Log what MLflow lacks. ``final``: the files and the status too."""
        from filelock import FileLock

        # Two at once would each create a run, or log a step twice.
        with FileLock(self.run_dir / f".{folder.MLFLOW}.lock", timeout=60):
            if not self.mlflow_id:
                self.mlflow_id = self._open()
            lines = folder.read_metrics(self.run_dir)
            before = self.mirror.logged_step
            try:
                self.mirror.log(lines)
            finally:
                self._remember()
            if final:
                self.mirror.evaluations(evaluations(self.run_dir))
                self.mirror.artifacts(self.run_dir)
                self._close()
            return sum(line["step"] > before for line in lines)

    def _open(self) -> str:
        run = folder.read_json(self.run_dir / folder.RUN)
        tags = {
            "tpcli.fingerprint": str(run["fingerprint"]),
            "tpcli.code": str(run["code"]),
            "tpcli.git": str(run.get("git") or ""),
            "tpcli.tags": ",".join(run.get("tags") or ()),
            "mlflow.note.content": str(run.get("note") or ""),
        }
        params = {"seed": run["seed"], **flatten(_resolved(self.run_dir))}
        params = {key: redact(str(value)) for key, value in params.items()}
        mlflow_id = self.mirror.open(run["id"], run["name"], params, tags, created=run["created"])
        self.mirror.artifacts(self.run_dir)
        return mlflow_id

    def _remember(self) -> None:
        """How far MLflow is, for those who ask the folder."""
        value = {"run_id": self.mlflow_id, "logged_step": self.mirror.logged_step}
        folder.write_json_atomic(self.run_dir / folder.MLFLOW, value)

    def _close(self) -> None:
        status = STATUS[read_status(self.run_dir)]
        if status == "RUNNING":
            return
        path = self.run_dir / folder.STATE  # missing where a run died before it began
        state = folder.read_json(path) if path.exists() else {}
        self.mirror.close(status, state.get("finished"))


class MirrorThread(threading.Thread):
    """Synchronises in the background while a run trains. Never raises into it.

    ``error`` says in one line why MLflow is behind; None while it is not.
    """

    def __init__(
        self, run_dir: Path, uri: str, experiment: str, *, interval: float = INTERVAL
    ) -> None:
        super().__init__(name="mlflow-mirror", daemon=True)
        self.error: str | None = None
        self._copy = (run_dir, uri, experiment)
        self._interval = interval
        self._ended = threading.Event()

    def run(self) -> None:
        """Update every ``interval`` seconds, once more at the end.

        Less often while it fails, and where an update takes more than a 400th of that time.
        """
        copy, wait = _Copy(*self._copy), self._interval
        while True:
            final = self._ended.wait(wait)
            begun = time.thread_time()
            try:
                copy.update(final=final)
                rest = min(IDLE * (time.thread_time() - begun), LONGEST_WAIT)
                self.error, wait = None, max(self._interval, rest)
            except Exception as error:
                self.error, wait = _line(error), min(2 * wait, LONGEST_WAIT)
                copy = _Copy(*self._copy)
            if final:
                return

    def stop(self, timeout: float) -> None:
        """Update a last time and wait for it, ``timeout`` seconds at most.

        Write state.json and the figures before: the last update takes them along.
        """
        self._ended.set()
        if self.is_alive():
            self.join(timeout)
            if self.is_alive():
                self.error = f"MLflow did not answer within {timeout:.0f} s"


def _resolved(run_dir: Path) -> dict[str, Any]:
    return tomllib.loads((run_dir / folder.RESOLVED).read_text(encoding="utf-8"))
