"""What one changes about runs afterwards: tags, note, name; removing them, and for good.

Each change is one to run.json, under a lock of the folder, and is then indexed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpcli.errors import UsageError
from tpcli.jobs.runs import ENDED, find, members, runs_dir
from tpcli.jobs.train import check_words
from tpcli.registry import folder
from tpcli.registry.run import Run, read_status
from tpcli.registry.store import Registry

DAY = 86_400.0
"""Seconds; a folder of a writer that is older was left by a crash."""


def tag(words: Sequence[str], tags: Sequence[str], *, remove: bool = False) -> list[Run]:
    """Add tags to runs, or take them away; the runs as they are then."""
    check_words(*tags)

    def change(identity: dict[str, Any]) -> None:
        had = [str(one) for one in identity.get("tags") or ()]
        kept = [one for one in had if one not in tags]
        identity["tags"] = kept if remove else list(dict.fromkeys([*had, *tags]))

    return [_edit(run, change) for run in _every(words)]


def note(word: str, text: str) -> Run:
    """Replace a run's note."""
    return _edit(find(word), lambda identity: identity.update(note=text))


def rename(word: str, name: str) -> Run:
    """Give a run another name. UsageError where it cannot be one."""
    check_words(name)
    if Registry(runs_dir()).get([name]):
        raise UsageError(f"{name} is the id of a run", hint="take a name that is none")
    return _edit(find(word), lambda identity: identity.update(name=name))


def remove(words: Sequence[str]) -> list[Run]:
    """Take runs out of every list; their folders stay until ``collect``.

    Raises:
        UsageError: one of them is under way; none is removed then.
    """
    runs = _every(words)
    for run in runs:
        if run.status not in ENDED:
            waits = run.status == "created"
            first = "end the sweep that it waits in" if waits else f"first: tpcli stop {run.id}"
            raise UsageError(f"run {run.id} is {run.status}", hint=first)
    return [_edit(run, lambda identity: identity.update(removed=time.time())) for run in runs]


def restore(words: Sequence[str]) -> list[Run]:
    """Take removed runs back."""
    runs = [find(word, removed=True) for word in words]
    return [_edit(run, lambda identity: identity.pop("removed", None)) for run in runs]


def _every(words: Sequence[str]) -> list[Run]:
    """The runs that words name, each once; "@name" is the whole group."""
    found = [run for word in words for run in (members(word) if word[:1] == "@" else [find(word)])]
    return list({run.id: run for run in found}.values())


def _edit(run: Run, change: Callable[[dict[str, Any]], object]) -> Run:
    """Change run.json, index the run, and return it as it is then."""
    registry = Registry(runs_dir())
    with folder.editing(run.folder) as identity:
        change(identity)
    registry.index(run.folder)
    return registry.find(run.id, removed=None)


@dataclass(frozen=True, slots=True)
class Waste:
    """A folder that can be deleted for good.

    Attributes:
        run: the removed run; None for what a writer left behind that crashed.
        bytes: disk that it takes.
    """

    path: Path
    run: Run | None
    bytes: int


def waste(older: float = 0.0) -> list[Waste]:
    """Removed runs and the leftovers of crashed writers, oldest first.

    Args:
        older: only runs that were removed at least so many days ago.
    """
    base, now = runs_dir(), time.time()
    gone = [
        Waste(run.folder, run, size(run.folder) + size(_aside(run.folder)))
        for run in Registry(base).list(removed=True)
        if run.removed is not None and now - run.removed >= older * DAY
    ]
    left = [path for path in base.glob(".*.partial") if now - path.stat().st_mtime > DAY]
    left = [path for path in left if path not in {_aside(one.path) for one in gone}]
    return sorted(gone, key=lambda one: (one.run and one.run.removed) or 0.0) + [
        Waste(path, None, size(path)) for path in sorted(left)
    ]


def _aside(run_dir: Path) -> Path:
    """What a run's folder is called while it is being deleted."""
    return run_dir.with_name(f".{run_dir.name}.partial")


def size(path: Path) -> int:
    """Bytes of all files in a folder; what vanishes meanwhile counts nothing."""
    total = 0
    for file in path.rglob("*"):
        try:
            total += 0 if file.is_symlink() or not file.is_file() else file.stat().st_size
        except FileNotFoundError:
            continue
    return total


def collect(found: Sequence[Waste]) -> int:
    """Delete what ``waste`` found, a restored run excepted; the bytes freed."""
    return sum(one.bytes for one in found if _delete(one))


def _delete(one: Waste) -> bool:
    from filelock import FileLock

    if one.run is None:
        shutil.rmtree(one.path)
        return True
    registry = Registry(runs_dir())
    # Renamed first: a deletion that is cut off leaves no half run, and the next one ends it.
    aside = _aside(one.path)
    if (one.path / folder.RUN).exists():
        with FileLock(one.path / folder.LOCK), folder.readable(f"the run in {one.path}"):
            identity = folder.read_json(one.path / folder.RUN)
            if identity.get("removed") is None or read_status(one.path) not in ENDED:
                return False
            one.path.rename(aside)
    if aside.exists():
        shutil.rmtree(aside)
    registry.forget(one.run.id)
    return True
