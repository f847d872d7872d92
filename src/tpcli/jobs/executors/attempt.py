"""An attempt at a run as its folder shows it, wherever it is carried out."""

from __future__ import annotations

from pathlib import Path

from tpcli.registry import folder

_ENDED = ("finished", "stopped", "failed")


class Attempt:
    """Made before the job is submitted: what the folder said then belongs to earlier attempts."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir.resolve()
        for name in (folder.STOP, folder.FAILURE):
            (self.run_dir / name).unlink(missing_ok=True)
        self._before = self._state()
        self._asked = False

    def stop(self) -> None:
        """Leave the file that asks the run to stop after its step."""
        self._asked = True
        (self.run_dir / folder.STOP).touch()

    def remind(self) -> None:
        """Ask again where that was forgotten: a run clears the file away when it starts."""
        if self._asked:
            (self.run_dir / folder.STOP).touch()

    def started(self) -> bool:
        """A supervisor has taken the run up."""
        return self._state() != self._before

    def trouble(self, reason: str) -> str | None:
        """``reason``, or the run's own, unless it was asked to stop or its folder tells its end."""
        if self._asked or (self.started() and self._state().get("status") in _ENDED):
            return None
        try:
            told = folder.read_json(self.run_dir / folder.FAILURE)["error"]
        except (OSError, ValueError, KeyError):
            told = reason
        return (str(told).splitlines() or [reason])[0]

    def _state(self) -> dict[str, object]:
        try:
            return folder.read_json(self.run_dir / folder.STATE)
        except (OSError, ValueError):
            return {}
