"""What a sweep says: its variants against the baseline, and the report of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tpcli.analysis.arms import Arm

if TYPE_CHECKING:
    from tpcli.analysis.compare import Comparison
    from tpcli.jobs.ablate import Progress

REPORT = "report.html"


def conclude(progress: Progress) -> Comparison | None:
    """The variants' finished runs side by side, the baseline first; None with less than two."""
    from tpcli.jobs.compare import of_arms, trace
    from tpcli.jobs.runs import find

    sweep = progress.sweep
    order = sorted(range(len(sweep.variants)), key=lambda at: at != sweep.baseline)
    finished: dict[int, list[str]] = {at: [] for at in order}
    for one in progress.cells:
        if one.status == "finished" and one.cell.run:
            finished[one.cell.variant].append(one.cell.run)
    arms = [
        Arm(sweep.variants[at].label, tuple(trace(find(run)) for run in runs))
        for at, runs in finished.items()
        if runs
    ]
    if len(arms) < 2 or not finished[sweep.baseline]:
        return None
    return of_arms(arms, sweep.metric)


def report(progress: Progress, comparison: Comparison) -> Path:
    """Write the report into the sweep's folder."""
    import shlex

    from tpcli.analysis import report as html

    path = progress.sweep.folder / REPORT
    command = shlex.join(["tpcli", *progress.sweep.argv[1:]])
    html.write(comparison, path, command=command, align="step")
    return path
