"""Runs by what one calls them: one or a group, how each stands, its files, its log, its end."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpcli.errors import NotFoundError, TpcliError, UsageError
from tpcli.registry import folder
from tpcli.registry.run import CLOCK_SLACK, Evaluation, Key, Run, read_status
from tpcli.registry.store import Registry

ENDED = ("finished", "stopped", "failed", "dead")
POLL = 0.5
"""Seconds between two looks at a growing log."""
PATIENCE = 10.0
"""Seconds that a supervisor has to take a signal, and to end after the second."""
_NAME = Key("column", "name")


def runs_dir() -> Path:
    """The runs folder: $TPCLI_RUNS, else ``runs`` here."""
    return Path(os.environ.get("TPCLI_RUNS") or "runs")


def find(key: str, *, removed: bool | None = False) -> Run:
    """The run with this id, start of an id, or name, as its folder has it now.

    Args:
        removed: among the kept runs; among the removed ones (True), or both (None).
    """
    registry = Registry(runs_dir())
    run = registry.find(key, removed=removed)
    _index(registry, run)
    return registry.find(run.id, removed=None)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What one word on the command line stands for.

    Attributes:
        label: the group's name, or the run's.
        runs: one a seed, in order of seed.
        notes: what was left out, a sentence each.
    """

    label: str
    runs: list[Run]
    notes: list[str]


def choose(word: str) -> Chosen:
    """The run, or with "@name" the group of runs, that a word names.

    A group is every run that carries the tag; where none does, the runs named ``name-s<seed>``.
    Of several runs of a seed the newest finished one counts, else the newest.

    Raises:
        NotFoundError: there is none; the hint names the nearest.
    """
    if not word.startswith("@"):
        run = find(word)
        names = [name for _, name in Registry(runs_dir()).values([_NAME])]
        return Chosen(run.name if names.count(run.name) == 1 else run.id, [run], [])
    by_seed: dict[int, list[Run]] = {}
    for run in members(word):
        by_seed.setdefault(run.seed, []).append(run)
    runs, notes = [], []
    for seed, rivals in sorted(by_seed.items()):
        kept = next((run for run in rivals if run.status == "finished"), rivals[0])
        runs.append(kept)
        if len(rivals) > 1:
            out = ", ".join(f"{run.id} ({run.status})" for run in rivals if run is not kept)
            notes.append(f"{word}, seed {seed}: {kept.id} counts; left out: {out}")
    return Chosen(word[1:], runs, notes)


def members(word: str) -> list[Run]:
    """Every run of the group "@name", newest first. Raises NotFoundError where it is empty."""
    wanted = word.removeprefix("@")
    registry = Registry(runs_dir())
    rows = registry.values([_NAME, Key("column", "tags")])
    ids = [run_id for run_id, _, tags in rows if wanted in tags]
    if not ids:
        seeds = re.compile(re.escape(wanted) + r"-s\d+")
        ids = [run_id for run_id, name, _ in rows if seeds.fullmatch(name)]
    if not ids:
        raise NotFoundError(f"no runs in the group {word}", hint=_nearest_group(wanted, rows))
    refresh(registry, registry.get(ids))
    return [*registry.get(ids)]


def _nearest_group(wanted: str, rows: Sequence[tuple[Any, ...]]) -> str:
    tags = [tag for *_, tags in rows for tag in tags]
    named = [found[1] for _, name, _ in rows if (found := re.fullmatch(r"(.+)-s\d+", name))]
    groups = dict.fromkeys(tags + named)
    near = difflib.get_close_matches(wanted, groups, n=3) or list(groups)[:8]
    words = ", ".join(f"@{group}" for group in near)
    return f"the nearest groups: {words}" if near else "tag runs: tpcli runs tag RUN NAME"


def refresh(registry: Registry, runs: Sequence[Run]) -> bool:
    """Read afresh those under way whose folder has moved on; whether there was one."""
    stale = [run for run in runs if run.recorded not in ENDED and _has_moved_on(run)]
    for run in stale:
        _index(registry, run)
    return bool(stale)


def _has_moved_on(run: Run) -> bool:
    try:
        state = folder.read_json(run.folder / folder.STATE)
    except (OSError, ValueError):
        state = {}
    told = state.get("status", "created"), state.get("heartbeat")
    return told != (run.recorded, run.heartbeat) or folder.last_step(run.folder) != run.step


def _index(registry: Registry, run: Run) -> None:
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
        "forks": [fork.id for fork in forks(run)],
        "evaluations": [dataclasses.asdict(one) for one in evaluations(run)],
        "files": files(run),
        "checkpoints": checkpoints(run),
        "mlflow": mlflow(run),
        "next": next_commands(run),
    }


def evaluations(run: Run) -> list[Evaluation]:
    """Its results on benchmarks, newest first."""
    return Registry(runs_dir()).evaluations(run=run.id)


def forks(run: Run) -> list[Run]:
    """The runs that were forked from it, the oldest first."""
    return [*Registry(runs_dir()).forks(run.id)]


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
    if run.removed is not None:
        return [f"tpcli runs restore {run.id}"]
    if run.status == "running":
        return [f"tpcli logs -f {run.id}"]
    commands = [] if run.status == "finished" else [f"tpcli resume {run.id}"]
    if run.status in ("failed", "dead"):
        commands.append(f"tpcli logs {run.id}")
    return commands


def stop(key: str) -> Run:
    """Ask a running run to stop after its step. UsageError where it does not run."""
    run = _running(key)
    (run.folder / folder.STOP).touch()
    return run


def end(key: str) -> Run:
    """End a running run of this machine at once; as it is afterwards.

    Its supervisor kills it at the second SIGTERM; a signal that waits would swallow another, so
    the second is sent once the first has left its mark, the file ``STOP``.

    Raises:
        UsageError: it does not run, or not here.
        TpcliError: its supervisor does not answer.
    """
    import psutil

    run = _running(key)
    if run.pid is None or run.host != socket.gethostname():
        raise UsageError(
            f"run {run.id} runs on {run.host}, and this is {socket.gethostname()}",
            hint=f"there: tpcli stop {run.id} --now; from here: tpcli stop {run.id}",
        )
    mark = run.folder / folder.STOP
    with contextlib.suppress(psutil.NoSuchProcess):  # it has just ended
        supervisor = psutil.Process(run.pid)
        if abs(supervisor.create_time() - (run.pid_started or 0.0)) <= CLOCK_SLACK:
            before = _changed(mark)
            supervisor.send_signal(signal.SIGTERM)
            _wait(run, lambda: _changed(mark) != before or not supervisor.is_running())
            supervisor.send_signal(signal.SIGTERM)
    _wait(run, lambda: read_status(run.folder) in ENDED)
    return find(run.id)


def _running(key: str) -> Run:
    run = find(key)
    if run.status != "running":
        raise UsageError(
            f"run {run.id} is not running: it is {run.status}", hint=f"tpcli runs show {run.id}"
        )
    return run


def _changed(path: Path) -> int | None:
    """When a file was last written; None where there is none."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _wait(run: Run, holds: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > limit:
            raise TpcliError(
                f"the supervisor of run {run.id}, process {run.pid}, does not answer",
                hint=f"end it yourself: kill -9 {run.pid}",
            )
        time.sleep(0.02)


def log(run: Run, *, lines: int, follow: bool) -> Iterator[str]:
    """The last ``lines`` of the run's log, and then what is added to it until the run ends."""
    path = run.folder / folder.LOG
    under_way = follow and run.status not in ENDED
    if not under_way and not (path.exists() and path.stat().st_size):
        raise NotFoundError(f"run {run.id} has written no log", hint=f"tpcli runs show {run.id}")
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
