"""What the training process writes into the run's folder as it goes: progress, metrics, responses.

Only the main process writes; on the others every method does nothing.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tpcli.registry.folder import METRICS, PROGRESS, RESPONSES
from tpcli.types import StepStats

PROGRESS_SECONDS = 0.25


class Journal:
    """One run's files."""

    def __init__(self, run_dir: Path, *, steps: int, writes: bool = True) -> None:
        self._run_dir, self._steps, self._writes = run_dir, steps, writes
        self._phase: dict[str, Any] = {}
        self._written = 0.0
        self._clock: dict[str, float] = {}

    @property
    def folder(self) -> Path:
        """The run's."""
        return self._run_dir

    def enter(self, phase: str, step: int, note: str = "") -> None:
        """A new phase begins."""
        self._phase = {
            "phase": phase,
            "step": step,
            "steps": self._steps,
            "done": 0,
            "total": 0,
            "since": time.time(),
            "note": note,
        }
        self._write_progress()

    def advance(self, done: float, total: float, note: str | None = None) -> None:
        """How far the phase has come; written a few times a second at most."""
        self._phase |= {"done": done, "total": total}
        if note is not None:
            self._phase["note"] = note
        if time.monotonic() - self._written > PROGRESS_SECONDS:
            self._write_progress()

    @contextmanager
    def phase(self, name: str, step: int) -> Iterator[Callable[[float, float], None]]:
        """Enter a phase and time it; gives what to report progress to."""
        self.enter(name, step)
        began = time.perf_counter()
        try:
            yield self.advance
        finally:
            spent = time.perf_counter() - began
            self._clock[name] = self._clock.get(name, 0.0) + spent

    def take_seconds(self) -> dict[str, float]:
        """Seconds by phase since the last call."""
        taken, self._clock = self._clock, {}
        return taken

    def cut_back(self, step: int) -> None:
        """Forget what a run that was stopped hard had written after ``step``."""
        if not self._writes:
            return
        for name in (METRICS, RESPONSES):
            path = self._run_dir / name
            if not path.exists():
                continue
            lines = path.read_bytes().split(b"\n")[:-1]  # a torn last line goes too
            kept = [line for line in lines if line and json.loads(line)["step"] <= step]
            aside = path.with_suffix(".partial")
            with aside.open("wb") as file:
                file.write(b"".join(line + b"\n" for line in kept))
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)

    def metrics(self, stats: StepStats) -> None:
        """Append one line, on the disk before this returns."""
        line = {"step": stats.step, "time": time.time(), **stats.scalars, **stats.percentiles}
        self._append(METRICS, [line])

    def responses(self, lines: Sequence[dict[str, Any]]) -> None:
        """Append sampled responses."""
        self._append(RESPONSES, lines)

    def _append(self, name: str, lines: Sequence[dict[str, Any]]) -> None:
        if not self._writes or not lines:
            return
        text = "".join(json.dumps(x, ensure_ascii=False, allow_nan=False) + "\n" for x in lines)
        with (self._run_dir / name).open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _write_progress(self) -> None:
        self._written = time.monotonic()
        if self._writes:
            # Whole for every reader, but worth no wait for the disk.
            aside = self._run_dir / f".{PROGRESS}.partial"
            aside.write_text(json.dumps(self._phase), encoding="utf-8")
            aside.replace(self._run_dir / PROGRESS)
