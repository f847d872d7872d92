"""A comparison as one HTML file that needs nothing else: words, tables, and figures inside it."""

from __future__ import annotations

import base64
import io
import os
from dataclasses import dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from tpcli.analysis import prose
from tpcli.analysis.arm_figures import alone, plates_of
from tpcli.analysis.arms import AlignName, Arm, budget
from tpcli.analysis.compare import BEST, Comparison, last_step
from tpcli.analysis.plates import AXES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATE = "report.html.j2"


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as the page holds it; ``source`` is a data URI."""

    title: str
    alt: str
    caption: str
    source: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What an arm's runs have cost, each the mean over them, as text."""

    arm: str
    seeds: str
    generated: str
    credited: str
    time: str


def write(
    comparison: Comparison,
    path: Path,
    *,
    command: str,
    align: AlignName,
    now: datetime | None = None,
) -> None:
    """Write the report, whole or not at all.

    Args:
        command: that made the comparison, as typed.
        align: what the curves run along.
        now: the time that the page tells; None means this moment. All else is a function of the
            comparison, to the byte.

    Raises:
        OSError: the file cannot be written.
    """
    text = page(comparison, command=command, align=align, now=now or datetime.now().astimezone())
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def page(comparison: Comparison, *, command: str, align: AlignName, now: datetime) -> str:
    """The report as HTML; whatever runs are called, they are text in it."""
    from jinja2 import Environment, StrictUndefined

    source = resources.files("tpcli.analysis").joinpath(TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    arms = comparison.arms
    kept = [row for row in comparison.rows if row.when != BEST]
    return environment.from_string(source).render(
        comparison=comparison,
        labels=[arm.label for arm in arms],
        command=command,
        when=now.isoformat(sep=" ", timespec="minutes"),
        align=AXES[align],
        verdicts=[prose.verdict(row, one) for row in kept for one in row.versus],
        limits=prose.limits(kept),
        corrected=any(one.p_holm is not None for row in comparison.rows for one in row.versus),
        seeds=sorted({seed for arm in arms for seed in arm.seeds}),
        best=any(row.when == BEST for row in comparison.rows),
        costs=[cost(arm) for arm in arms],
        pictures=pictures(comparison, align),
        last_step=last_step,
        prose=prose,
    )


def cost(arm: Arm) -> Cost:
    """Tokens and time of an arm's runs, their mean; a dash where nothing was recorded."""
    costs = [budget(run) for run in arm.runs]
    generated, credited, seconds = (
        fmean(getattr(one, name) for one in costs) for name in ("generated", "credited", "seconds")
    )
    return Cost(
        arm=arm.label,
        seeds=", ".join(map(str, arm.seeds)),
        generated=prose.shown(generated or None),
        credited=prose.shown(credited or None),
        time=prose.duration(seconds) if seconds else prose.NOTHING,
    )


def pictures(comparison: Comparison, align: AlignName) -> list[Picture]:
    """Every figure that can be drawn, as an SVG inside the page."""
    arms = comparison.arms
    who = ", ".join(arm.label for arm in arms)
    return [
        Picture(
            title=plate.title,
            alt=f"{plate.title}: a chart of {who}. The caption says how to read it.",
            caption=plate.caption,
            source=_embedded(alone(plate, arms)),
        )
        for plate in plates_of(arms, comparison.metrics, align)
    ]


def _embedded(figure: Figure) -> str:
    import matplotlib as mpl

    file = io.BytesIO()
    # Without a salt an SVG's ids, and without this its date, differ each time.
    with mpl.rc_context({"svg.hashsalt": "tpcli", "svg.fonttype": "path"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode("ascii")
