"""Looking at runs: which there are, how each stands, what one of them is, where its files are."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpcli.errors import NotFoundError, TpcliError
from tpcli.registry import folder
from tpcli.registry.run import Evaluation, Run, read_status
from tpcli.registry.store import Registry

ENDED = ("finished", "stopped", "failed", "dead")
POLL = 0.5
"""Seconds between two looks at a growing log."""


def runs_dir() -> Path:
    """The runs folder: $TPCLI_RUNS, else ``runs`` here."""
    return Path(os.environ.get("TPCLI_RUNS") or "runs")


@dataclass(frozen=True, slots=True)
class Listing:
    """The newest runs, and how many there are in all."""

    runs: list[Run]
    total: int


def listing(limit: int | None = None) -> Listing:
    """The newest runs; those under way are read afresh from their folders."""
    registry = Registry(runs_dir())
    runs = registry.list(limit=limit)
    stale = [run for run in runs if run.recorded in ("created", "running")]
    if stale:
        for run in stale:
            _refresh(registry, run)
        runs = registry.list(limit=limit)
    return Listing(runs, registry.count())


def find(key: str) -> Run:
    """The run with this id, start of an id, or name, as its folder has it now."""
    registry = Registry(runs_dir())
    run = registry.find(key)
    _refresh(registry, run)
    return registry.find(run.id)


def _refresh(registry: Registry, run: Run) -> None:
    # A folder that is gone or broken leaves the row as it was; `tpcli db check` reports it.
    with contextlib.suppress(TpcliError):
        registry.index(run.folder)


def record(run: Run) -> dict[str, Any]:
    """A run as JSON: its columns, the status to believe in place of the recorded one."""
    columns = dataclasses.asdict(run)
    del columns["recorded"]
    return columns | {"status": run.status, "folder": str(run.folder)}


def details(run: Run) -> dict[str, Any]:
    """``record`` and the rest: results on benchmarks, files, checkpoints, MLflow, what to type."""
    return record(run) | {
        "evaluations": [dataclasses.asdict(one) for one in evaluations(run)],
        "files": files(run),
        "checkpoints": checkpoints(run),
        "mlflow": mlflow(run),
        "next": next_commands(run),
    }


def evaluations(run: Run) -> list[Evaluation]:
    """Its results on benchmarks, newest first."""
    return Registry(runs_dir()).evaluations(run=run.id)


def files(run: Run) -> list[str]:
    """What the folder holds, checkpoints apart, by name."""
    names = [p.name for p in run.folder.glob("*") if p.is_file() and not p.name.startswith(".")]
    figures = [f"{folder.FIGURES}/{p.name}" for p in (run.folder / folder.FIGURES).glob("*.png")]
    return sorted(names) + sorted(figures)


def checkpoints(run: Run) -> list[str]:
    """The complete checkpoints, oldest first."""
    found = (run.folder / folder.CHECKPOINTS).glob("step-*")
    return sorted(p.name for p in found if p.is_dir() and p.name.removeprefix("step-").isdigit())


def mlflow(run: Run) -> dict[str, Any] | None:
    """MLflow's id of the run and the last step it has; None where it has none."""
    try:
        return folder.read_json(run.folder / folder.MLFLOW)
    except (OSError, ValueError):
        return None


def next_commands(run: Run) -> list[str]:
    """What one would type now."""
    if run.status == "running":
        return [f"tpcli logs -f {run.id}"]
    commands = [] if run.status == "finished" else [f"tpcli resume {run.id}"]
    if run.status in ("failed", "dead"):
        commands.append(f"tpcli logs {run.id}")
    return commands


def log(run: Run, *, lines: int, follow: bool) -> Iterator[str]:
    """The last ``lines`` of the run's log, and then what is added to it until the run ends."""
    path = run.folder / folder.LOG
    under_way = follow and run.status not in ENDED
    if not path.exists() and not under_way:
        raise NotFoundError(f"run {run.id} has no log", hint=f"tpcli runs show {run.id}")
    text, position = _read_on(path, 0, whole_lines=under_way)
    yield "".join(text.splitlines(keepends=True)[-lines:])
    while under_way:
        time.sleep(POLL)
        under_way = read_status(run.folder) not in ENDED  # first: what it wrote before is read
        text, position = _read_on(path, position, whole_lines=under_way)
        yield text


def _read_on(path: Path, position: int, *, whole_lines: bool) -> tuple[str, int]:
    """What a file holds from ``position`` on, and where that ends."""
    if not path.exists():
        return "", position
    with path.open("rb") as file:
        file.seek(position)
        data = file.read()
    if whole_lines:
        data = data[: data.rfind(b"\n") + 1]
    return data.decode(errors="replace"), position + len(data)
