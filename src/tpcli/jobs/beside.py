"""What a sweep does for its runs while they train: MLflow kept up to date, figures at the end.

One process does it for all of them: loading MLflow and matplotlib costs more than either then does
for a short run.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tpcli.jobs.mirror import MirrorThread, missing, sync_tracked, tracking
from tpcli.jobs.supervise import MLFLOW_PATIENCE, draw_figures
from tpcli.registry import folder


class Beside:
    """Mirrors and draws for the runs that are under way. Nothing here may harm a run."""

    def __init__(self) -> None:
        self._mirrors: dict[Path, MirrorThread] = {}
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="figures")
        self.warnings: dict[str, None] = {}

    def begin(self, run_dir: Path) -> None:
        """A run is under way."""
        target = tracking(run_dir)
        if target is not None:
            self._mirrors[run_dir] = MirrorThread(run_dir, *target)
            self._mirrors[run_dir].start()

    def end(self, run_dir: Path) -> None:
        """A run has ended: draw its figures, then let MLflow have all there is."""
        self._worker.submit(self._finish, run_dir, self._mirrors.pop(run_dir, None))

    def close(self) -> None:
        """Wait until all that ended is drawn and mirrored."""
        for run_dir in [*self._mirrors]:
            self.end(run_dir)
        self._worker.shutdown()

    def _finish(self, run_dir: Path, mirror: MirrorThread | None) -> None:
        told = [*draw_figures(run_dir)]
        if mirror is None:
            error = sync_tracked(run_dir).error
        else:
            mirror.stop(MLFLOW_PATIENCE)
            error = mirror.error
        told += [f"MLflow is behind: {error}"] if error else []
        self.warnings |= dict.fromkeys(told)


def lacks(run_dir: Path) -> bool:
    """Whether a run that ended while nobody looked has no figures, or is not all in MLflow."""
    return not (run_dir / folder.FIGURES).exists() or missing(run_dir) > 0
