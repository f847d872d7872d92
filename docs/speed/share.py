"""What the tool itself costs beside training: processor time of everything but the worker.

A real ``tpcli train`` is watched from outside: the command with its registry, MLflow mirror and
display, and the launcher between it and the training process. The verifiers are the worker's.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from tpcli.errors import RunFailedError

LOOK = 0.1
"""Seconds between two looks at the processes."""


def measure(recipe: Path, overrides: list[str]) -> dict[str, Any]:
    """Train ``recipe`` in a folder of its own.

    Returns:
        tool, worker: processor seconds between the first and the last line of metrics; wall: of
        the same time; steps: in it; start, end: processor seconds of the tool before and after.

    Raises:
        RunFailedError: the run did, or it was too short to be seen.
    """
    with tempfile.TemporaryDirectory() as folder:
        runs, log = Path(folder) / "runs", Path(folder) / "log"
        settings = [word for override in overrides for word in ("--set", override)]
        command = [sys.executable, "-m", "tpcli", "train", str(recipe), *settings]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env={**os.environ, "TPCLI_RUNS": str(runs)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            looks = _watch(process, runs)
        if process.returncode != 0:
            raise RunFailedError(
                f"tpcli train {recipe.name} ended with code {process.returncode}",
                hint=log.read_text(encoding="utf-8", errors="replace")[-500:],
            )
    return between(looks)


Look = tuple[float, int, float, float]
"""Seconds since the start, lines of metrics, processor seconds of the tool and of the worker."""


def between(looks: list[Look]) -> dict[str, Any]:
    """From what was seen to the numbers of ``measure``."""
    last = looks[-1][1]
    first = next((look for look in looks if 0 < look[1] < last), None)
    until = next((look for look in looks if look[1] == last), None)
    if first is None or until is None:
        raise RunFailedError(
            f"of {last} steps none was seen to begin", hint="ask for more or for longer steps"
        )
    return {
        "tool": until[2] - first[2],
        "worker": until[3] - first[3],
        "wall": until[0] - first[0],
        "steps": last - first[1],
        "start": first[2],
        "end": looks[-1][2] - until[2],
    }


def _watch(process: subprocess.Popen[bytes], runs: Path) -> list[Look]:
    began, spent = time.perf_counter(), dict[tuple[int, float], tuple[float, bool]]()
    looks: list[Look] = []
    tool = psutil.Process(process.pid)
    while process.poll() is None:
        _count(tool, spent)
        lines = sum(path.read_bytes().count(b"\n") for path in runs.glob("*/metrics.jsonl"))
        tools = sum(seconds for seconds, of_worker in spent.values() if not of_worker)
        workers = sum(seconds for seconds, of_worker in spent.values() if of_worker)
        looks.append((time.perf_counter() - began, lines, tools, workers))
        time.sleep(LOOK)
    return looks


def _count(tool: psutil.Process, spent: dict[tuple[int, float], tuple[float, bool]]) -> None:
    """Bring the processor seconds of every process up to date; those that ended keep theirs.

    Once the worker, always the worker: a process that is ending has no command for a while.
    """
    try:
        tree = [(tool, False)]
        while tree:
            process, of_worker = tree.pop()
            command = process.cmdline()
            # The launcher names it as well, after arguments of its own.
            of_worker = of_worker or ("-m", "tpcli.train") in pairwise(command[:5])
            key = (process.pid, process.create_time())
            of_worker = of_worker or spent.get(key, (0.0, False))[1]
            times = process.cpu_times()
            spent[key] = (times.user + times.system, of_worker)
            tree += [(child, of_worker) for child in process.children()]
    except psutil.NoSuchProcess:
        return  # the next look sees the rest
