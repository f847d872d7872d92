"""The cache of prepared models: each folder appears whole, and is made once."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tpcli.errors import TpcliError

Report = Callable[[str, float, float], None]
"""What is being done, how much of it is done, and how much there is (0 when unknown)."""

_NO_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def silent(what: str, done: float, total: float) -> None:
    """A ``Report`` that says nothing."""


def cache_dir() -> Path:
    """$TPCLI_CACHE, else ``tpcli`` in the user's cache folder ($XDG_CACHE_HOME or ~/.cache)."""
    own = os.environ.get("TPCLI_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tpcli"


def save_model(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a folder that transformers loads, from whichever process this is.

    Under torch.distributed ``save_pretrained`` writes nothing but on rank 0, while what ``once``
    makes is made by the process that has the lock, on every machine.
    """
    model.should_save_on_this_rank = lambda is_main_process: True
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    finally:
        del model.should_save_on_this_rank


def once(folder: Path, build: Callable[[Path], None], *, report: Report = silent) -> Path:
    """``folder``, made by ``build`` unless it is there already.

    ``build`` fills a folder aside, which is renamed when it is complete; a lock lets other
    processes wait for the first one. What a killed process left behind is cleared away.
    """
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _hold(FileLock(folder.with_name(f".{folder.name}.lock")), folder, report):
            if not folder.is_dir():
                _build_aside(folder, build)
    except OSError as error:
        if error.errno not in _NO_PLACE:
            raise
        raise TpcliError(
            f"cannot write {folder}: {error.strerror}",
            hint="make room or permit writing there, or set TPCLI_CACHE to another folder",
        ) from error
    return folder


def _build_aside(folder: Path, build: Callable[[Path], None]) -> None:
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        build(aside)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _hold(lock: FileLock, folder: Path, report: Report) -> Iterator[None]:
    """Hold the lock, and say so when another process has it first."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(f"waiting for another process to finish {folder.name}", 0, 0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
