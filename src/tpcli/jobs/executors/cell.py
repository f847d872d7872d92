"""The process that carries out one run of a sweep: ``python -m tpcli.jobs.executors.cell RUN_DIR``.

It supervises the run as ``tpcli resume`` does, without a screen; MLflow and the figures are the
sweep's to look after. When the process that started it
disappears it asks its run to stop after the step: nothing trains unseen, and nothing is lost.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from tpcli.errors import INTERRUPTED, TpcliError
from tpcli.registry import folder
from tpcli.registry.run import HEARTBEAT_LIMIT, read_status

LOOK = 0.5
"""Seconds between two looks at the parent."""
POLL = 0.1
"""Seconds between two looks at a cell."""


def start(
    run_dir: Path, environment: Mapping[str, str], cwd: str | None = None
) -> subprocess.Popen[bytes]:
    """A cell for the run, as a child of this process; what it prints goes to the run's log."""
    with (run_dir / folder.LOG).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", __name__, str(run_dir), "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=cwd,
            start_new_session=True,
        )


def wait(cell: subprocess.Popen[bytes]) -> int:
    """The cell's exit code. Whatever interrupts this ends the cell as well."""
    try:
        while cell.poll() is None:
            time.sleep(POLL)
        return cell.returncode
    finally:
        cell.kill()


def main() -> None:
    """Read the arguments, carry out the run, exit with its code."""
    parser = argparse.ArgumentParser(description="Carry out one run.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--parent", type=int, required=True, help="stop when it is gone")
    args = parser.parse_args()
    sys.exit(_carry_out(args.run_dir.resolve(), args.parent))


def _carry_out(run_dir: Path, parent: int) -> int:
    """Go on with the run to its end. What keeps it from starting is left in its folder."""
    from tpcli.jobs.train import prepare, resume
    from tpcli.registry.store import Registry

    os.environ["TPCLI_RUNS"] = str(run_dir.parent)
    threading.Thread(target=_follow, args=(parent, run_dir), daemon=True).start()
    try:
        Registry(run_dir.parent).index(run_dir)
        _outwait(run_dir)
        ready = prepare(run_dir.name)
        if (run_dir / folder.STOP).exists():  # asked while it waited for its turn
            return INTERRUPTED
        return resume(ready, lambda _snapshot: None, bare=True).exit_code
    except TpcliError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        told = {"error": str(error), "hint": error.hint, "exit_code": error.exit_code}
        folder.write_json_atomic(run_dir / folder.FAILURE, told)
        return error.exit_code


def _follow(parent: int, run_dir: Path) -> None:
    """A process whose parent ends gets another one."""
    while os.getppid() == parent:
        time.sleep(LOOK)
    while True:  # more than once: a run clears the file away when it starts
        (run_dir / folder.STOP).touch()
        time.sleep(LOOK)


def _outwait(run_dir: Path) -> None:
    """Wait until an attempt that was cut off on another machine counts as dead."""
    limit = time.monotonic() + HEARTBEAT_LIMIT + 1
    while time.monotonic() < limit and read_status(run_dir) == "running":
        if folder.read_json(run_dir / folder.STATE)["host"] == socket.gethostname():
            return
        time.sleep(LOOK)


if __name__ == "__main__":
    main()
