"""``tpcli ablate``: a grid of runs over seeds, and what it says."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from tpcli.jobs.ablate import Progress
    from tpcli.jobs.executors import Executor
    from tpcli.jobs.sweep import Sweep

Where = Literal["local", "ray", "slurm"]
MAIN = Path("recipes/math.toml")
"""The recipe where none is named."""


def ablate(
    recipe: Annotated[
        Path | None, typer.Argument(help="The recipe. [recipes/math.toml]", show_default=False)
    ] = None,
    schedule: Annotated[
        str, typer.Option(metavar="A,B", help="Curves, or off for uniform credit.")
    ] = "",
    allocation: Annotated[
        str, typer.Option(metavar="A,B", help="Allocations; + joins several into one.")
    ] = "",
    vary: Annotated[
        list[str] | None, typer.Option(metavar="KEY=A,B", help="Any key of the recipe; repeatable.")
    ] = None,
    zipped: Annotated[
        bool, typer.Option("--zip", help="Varied keys go together, value by value.")
    ] = False,
    controls: Annotated[
        str, typer.Option(metavar="A,B", help="Also train: reversed, random, constant.")
    ] = "",
    seeds: Annotated[str, typer.Option(help="0-4 or 0,3,7; by default the recipe's own.")] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key in every variant."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Variant to compare with; by default the first.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="What the grid shows; by default held-out accuracy.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once.")] = 1,
    on: Annotated[Where, typer.Option(help="Where the runs are executed.")] = "local",
    slurm: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Parameter of a SLURM job; repeatable."),
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Show the grid and its cost; train nothing.")
    ] = False,
    detect: Annotated[
        float | None, typer.Option(help="With --plan: the difference that should be found.")
    ] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="SWEEP", help="Go on with this sweep.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Runs that failed go on too.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Train again what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train variants of RECIPE over seeds, and compare them; typed again, it goes on."""
    from tpcli.jobs import ablate as job
    from tpcli.jobs import sweep as sweeps

    _check_flags(
        on,
        detect_alone=detect is not None and not plan,
        jobs=jobs,
        resumed={
            "--schedule": schedule,
            "--allocation": allocation,
            "--vary": vary,
            "--zip": zipped,
            "--controls": controls,
            "--seeds": seeds,
            "--set": overrides,
            "--baseline": baseline,
            "--metric": metric,
            "--force": force,
            "RECIPE": recipe is not None,
        }
        if resume is not None
        else {},
    )
    if resume is not None:
        sweep = sweeps.find(resume)
    else:
        sweep = _asked(
            recipe or MAIN,
            schedules=_words(schedule),
            allocations=_words(allocation),
            vary=vary or [],
            zipped=zipped,
            controls=_words(controls),
            seeds=seeds,
            overrides=overrides or [],
            baseline=baseline,
            metric=metric,
        )
        known = None if force else sweeps.same(sweep)
        sweep = known or sweep
    sweep = job.claim(sweep, reuse=not force)
    if plan:
        job.check_code(sweep)
        _show_plan(sweep, detect, jobs, as_json)
        return
    executor = _executor(on, sweep, jobs, slurm or [])
    if not (sweep.folder / sweeps.FILE).exists():
        sweep = sweeps.store(sweep)
    progress = _watch(sweep, executor, retry_failed)
    _conclude(progress, as_json)
    raise typer.Exit(progress.exit_code)


def _check_flags(
    on: Where, *, detect_alone: bool, jobs: int, resumed: Mapping[str, object]
) -> None:
    """Refuse flags that would change nothing."""
    from tpcli.errors import UsageError

    given = [flag for flag, value in resumed.items() if value]
    if given:
        raise UsageError(
            f"--resume goes on with a sweep as it is; {', '.join(given)} would change it",
            hint="leave it out, or leave --resume out: what is there is reused",
        )
    if detect_alone:
        raise UsageError("--detect belongs to --plan", hint="add --plan, or leave it out")
    if jobs > 1 and on != "local":
        raise UsageError(f"--jobs is for runs here; {on} has its own queue", hint="leave it out")


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _asked(
    recipe: Path,
    *,
    schedules: list[str],
    allocations: list[str],
    vary: list[str],
    zipped: bool,
    controls: list[str],
    seeds: str,
    overrides: list[str],
    baseline: str | None,
    metric: str | None,
) -> Sweep:
    """The sweep that the command line describes."""
    from tpcli.errors import UsageError
    from tpcli.jobs import sweep as sweeps
    from tpcli.jobs.grid import seeds_of, slug, variants
    from tpcli.recipe.load import load_recipe

    if not (schedules or allocations or vary or seeds):
        raise UsageError(
            "there is nothing to vary", hint="tpcli ablate --schedule linear,cosine --seeds 0-4"
        )
    loaded = load_recipe(recipe, overrides=overrides)
    found = variants(
        recipe,
        overrides=overrides,
        schedules=schedules,
        allocations=allocations,
        vary=vary,
        zipped=zipped,
        controls=controls,
    )
    named = {"sched": schedules, "alloc": allocations, "vary": vary}
    kinds = [kind for kind, asked in named.items() if asked] or ["seeds"]
    return sweeps.begin(
        recipe,
        name="-".join([slug(recipe.stem), *kinds]),
        overrides=overrides,
        variants=found,
        seeds=seeds_of(seeds) if seeds else [loaded.recipe.train.seed],
        metric=metric,
        baseline=baseline,
        argv=sys.argv,
    )


def _executor(on: Where, sweep: Sweep, jobs: int, slurm: list[str]) -> Executor:
    from tpcli.errors import UsageError

    if slurm and on != "slurm":
        raise UsageError("--slurm belongs to --on slurm", hint="add --on slurm, or leave it out")
    if on == "ray":
        from tpcli.jobs.executors.ray import Ray

        return Ray()
    if on == "slurm":
        from tpcli.jobs.executors.slurm import Slurm

        pairs = [text.partition("=") for text in slurm]
        wrong = [text for text, (_, equals, _) in zip(slurm, pairs, strict=True) if not equals]
        if wrong:
            raise UsageError(f"--slurm {wrong[0]} has no value", hint="--slurm partition=gpu")
        return Slurm(sweep.folder / "slurm", {key: value for key, _, value in pairs})
    from tpcli.jobs.executors.local import Local

    return Local(jobs)


def _watch(sweep: Sweep, executor: Executor, retry_failed: bool) -> Progress:
    from rich.console import Console

    from tpcli.cli.grid import GridDisplay
    from tpcli.jobs import ablate as job

    display = GridDisplay(Console(stderr=True, highlight=False))
    try:
        return job.carry_out(sweep, executor, display.update, retry_failed=retry_failed)
    finally:
        display.stop()


def _show_plan(sweep: Sweep, difference: float | None, jobs: int, as_json: bool) -> None:
    from rich.console import Console

    from tpcli.cli.sweep_plan import record, sheet
    from tpcli.jobs.outlook import outlook

    found = outlook(sweep, difference=difference)
    if as_json:
        typer.echo(json.dumps(record(sweep, found), ensure_ascii=False, indent=2))
        return
    console = Console(highlight=False)
    lines = sheet(sweep, found, jobs=jobs, difference=difference, width=console.width)
    console.print(*lines, sep="\n", soft_wrap=True)


def _conclude(progress: Progress, as_json: bool) -> None:
    """The grid, the comparison with the baseline and the report; how to go on where it stopped."""
    from rich.console import Console

    from tpcli.cli import compared, grid
    from tpcli.jobs.compare import Compared, record
    from tpcli.jobs.conclusion import conclude, report

    comparison = conclude(progress)
    path = report(progress, comparison) if comparison else None
    if as_json:
        told = grid.record(progress) | {
            "comparison": record(Compared(comparison)) if comparison else None,
            "report": str(path) if path else None,
        }
        typer.echo(json.dumps(told, ensure_ascii=False, indent=2))
    else:
        console = Console(highlight=False)
        console.print(*grid.table(progress, console.width), sep="\n", soft_wrap=True)
        if comparison:
            typer.echo()
            compared.show(comparison, "step")
    groups = " ".join(f"@{progress.sweep.tag(at)}" for at in range(len(progress.sweep.variants)))
    if path:
        typer.echo(f"report     {path}", err=True)
        typer.echo(f"compare    tpcli compare {groups}", err=True)
    if progress.counts["finished"] < len(progress.cells):
        typer.echo(f"go on      tpcli ablate --resume {progress.sweep.id}", err=True)
