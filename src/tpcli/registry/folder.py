"""The run's own folder: the names in it, and how its files are read and written.

The folder holds everything; the registry and MLflow are built from it and can be rebuilt.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tpcli.errors import TpcliError

RECIPE = "recipe.toml"
RESOLVED = "resolved.toml"
RUN = "run.json"
STATE = "state.json"
PROVENANCE = "provenance.json"
PROGRESS = "progress.json"
METRICS = "metrics.jsonl"
RESPONSES = "responses.jsonl"
LOG = "log.txt"
STOP = "stop"  # its presence asks the worker to stop after this step
FAILURE = "failure.json"
MLFLOW = "mlflow.json"
CHECKPOINTS = "checkpoints"
FIGURES = "figures"
LOCK = ".edit.lock"  # held by whoever changes run.json


class BrokenFolderError(TpcliError):
    """A run folder that cannot be read as one."""


@contextmanager
def readable(what: str) -> Iterator[None]:
    """What is incomplete or damaged on disk becomes a BrokenFolderError."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise BrokenFolderError(
            f"cannot read {what}: {reason}",
            hint="restore the file, or move the folder out of the runs folder",
        ) from error


def write_json_atomic(path: Path, value: Any) -> None:
    """Write ``value`` as JSON: a reader, or a crash at any moment, finds the old file or the new.

    ``nan`` and infinities are refused (ValueError): they are not JSON.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)  # mkstemp's 0600 would hide the file from others
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object. FileNotFoundError where there is no file, ValueError for anything else."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return value


@contextmanager
def editing(run_dir: Path) -> Iterator[dict[str, Any]]:
    """run.json to be changed in place: read and written back under a lock of the folder.

    Raises:
        BrokenFolderError: the folder is gone, or its run.json is damaged.
    """
    from filelock import FileLock

    with readable(f"the run in {run_dir}"):
        (run_dir / RUN).stat()  # the lock would make a folder that is gone again
        with FileLock(run_dir / LOCK):
            identity = read_json(run_dir / RUN)
            yield identity
            write_json_atomic(run_dir / RUN, identity)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Every whole line of metrics.jsonl, in order of step, each step once.

    A last line without its line feed is still being written (or was cut by a crash): left out.
    Of two lines with the same step the later one counts. No file yet: no lines. A broken line
    anywhere else is a ValueError that names it.
    """
    try:
        data = (run_dir / METRICS).read_bytes()
    except FileNotFoundError:
        return []
    by_step: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            by_step[int(value["step"])] = value
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{METRICS}, line {number}: {error!r}") from error
    return [by_step[step] for step in sorted(by_step)]


def last_step(run_dir: Path) -> int:
    """The step of the last whole line of metrics.jsonl; 0 where there is none to read."""
    try:
        with (run_dir / METRICS).open("rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - _TAIL, 0))
            lines = file.read().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["step"])
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return 0


_TAIL = 65_536
"""Bytes at the end of a file that hold at least one line of metrics."""
