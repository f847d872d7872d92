"""Train a recipe, or go on with a run: plan, create the folder, launch, supervise."""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcli.analysis.schedules import curve, leading
from tpcli.errors import NotFoundError, RunFailedError, UsageError
from tpcli.jobs.provenance import code_identity, git_label, provenance, redact
from tpcli.jobs.runs import find, runs_dir
from tpcli.jobs.supervise import Observer, Snapshot, newest_checkpoint, supervise
from tpcli.recipe.load import Loaded, load_recipe
from tpcli.recipe.render import fingerprint, to_toml
from tpcli.registry import folder
from tpcli.registry.run import Run
from tpcli.registry.store import Registry

if TYPE_CHECKING:
    from tpcli.recipe.schema import Recipe

_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"


@dataclass(frozen=True, slots=True)
class Parent:
    """The checkpoint of another run that a fork goes on from."""

    run: str
    step: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe that is ready to run, and what it will be called.

    Attributes:
        parent: of a fork.
        fill: puts what a fork starts from into the new folder, before anybody sees it.
    """

    loaded: Loaded
    name: str
    tags: tuple[str, ...]
    note: str
    fingerprint: str
    argv: tuple[str, ...]
    parent: Parent | None = None
    fill: Callable[[Path], None] | None = None

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return self.loaded.recipe


def plan(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    name: str | None = None,
    tags: Sequence[str] = (),
    note: str = "",
    argv: Sequence[str] = (),
) -> Plan:
    """Load and check everything that can be checked before a GPU is taken.

    Raises:
        RecipeError, UsageError: the recipe or the name is not usable.
    """
    loaded = load_recipe(path, overrides=overrides, seed=seed)
    check_words(*([name] if name else []), *tags)
    return Plan(
        loaded=loaded,
        name=name or default_name(path, loaded.recipe),
        tags=tuple(tags),
        note=note,
        fingerprint=fingerprint(loaded.recipe),
        argv=tuple(argv),
    )


def check_words(*words: str) -> None:
    """Names and tags: letters, digits, ``.``, ``_`` and ``-``. UsageError for anything else."""
    for word in words:
        if not _NAME.fullmatch(word):
            raise UsageError(
                f'"{word}" cannot be a name or a tag',
                hint="use up to 100 letters, digits, dots, underscores and hyphens",
            )


def identity_of(recipe: Recipe, parent: Parent | None) -> str:
    """Fingerprint of what a run does: of a fork, its recipe and where it begins."""
    if parent is None:
        return fingerprint(recipe)
    text = f"{fingerprint(recipe)} from {parent.run}@{parent.step}"
    return hashlib.sha256(text.encode()).hexdigest()


def parent_of(run_dir: Path) -> Parent | None:
    """Of a fork; None of any other run."""
    told = folder.read_json(run_dir / folder.RUN).get("parent")
    return Parent(str(told["run"]), int(told["step"])) if told else None


def default_name(path: Path, recipe: Recipe) -> str:
    """``<recipe>-<schedule>-s<seed>``, such as math-linear-s3."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem) or "run"
    return f"{stem}-{curve_of(recipe)}-s{recipe.train.seed}"


def curve_of(recipe: Recipe) -> str:
    """The first allocation's schedule in a word; "uniform" credit has none."""
    key = leading(recipe)
    return curve(recipe, key) if key else "uniform"


def already_done(plan: Plan) -> Run | None:
    """A finished run of the same recipe, seed and code."""
    return Registry(runs_dir()).same(plan.fingerprint, code_identity())


def unfinished(plan: Plan) -> Run:
    """The newest run of this very recipe and seed that has not reached its end.

    Raises:
        NotFoundError: there is none.
    """
    runs = [run for run in Registry(runs_dir()).list() if run.fingerprint == plan.fingerprint]
    for run in runs:
        if run.status not in ("finished", "running"):
            return run
    raise NotFoundError(
        f"no unfinished run of {plan.loaded.path} with seed {plan.recipe.train.seed}",
        hint=f"{runs[0].id} is {runs[0].status}" if runs else "leave --resume out to start one",
    )


def create(plan: Plan) -> Path:
    """The run's folder, with everything that is known before it starts.

    Filled aside and renamed, so a folder with a run's name is always a run.
    """
    base = runs_dir()
    base.mkdir(parents=True, exist_ok=True)
    run_id = new_id(base)
    aside = base / f".{run_id}.partial"
    aside.mkdir()
    try:
        recipe = plan.recipe
        (aside / folder.RECIPE).write_bytes(plan.loaded.text)
        (aside / folder.RESOLVED).write_text(to_toml(recipe), encoding="utf-8")
        seeds = {"train": recipe.train.seed, "data": recipe.data.seed}
        facts = provenance(plan.argv, plan.loaded.path, seeds, {})
        folder.write_json_atomic(aside / folder.PROVENANCE, facts)
        folder.write_json_atomic(aside / folder.RUN, _identity(plan, run_id))
        if plan.fill:
            plan.fill(aside)
        aside.rename(base / run_id)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return base / run_id


def launch(plan: Plan, observe: Observer) -> Snapshot:
    """Create the run and train it to its end."""
    run_dir = create(plan)
    return supervise(run_dir, plan.recipe.launch, observe)


def detach(plan: Plan) -> Path:
    """Create the run and leave it to a supervisor of its own that outlives this terminal."""
    run_dir = create(plan)
    Registry(run_dir.parent).index(run_dir)
    with (run_dir / folder.LOG).open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "tpcli", "resume", run_dir.name],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    return run_dir


def join(run_id: str, plan: Plan) -> int:
    """Start this machine's processes of a run that node 0 created on a shared folder."""
    from tpcli.jobs.supervise import command

    launch_section = plan.recipe.launch
    if launch_section.machine_rank == 0:
        raise UsageError(
            "--join is for the other machines of a run",
            hint="add --set launch.machine_rank=1 (or 2, ...); node 0 runs without --join",
        )
    run = find(run_id)
    done = subprocess.run(command(run.folder, launch_section, new_horizon=False), check=False)
    if done.returncode != 0:
        raise RunFailedError(
            f"this machine's processes ended with code {done.returncode}",
            hint=f"node 0 keeps the log: tpcli logs {run.id}",
        )
    return 0


@dataclass(frozen=True, slots=True)
class Resumption:
    """A run that may go on, with the recipe it goes on with."""

    run_dir: Path
    recipe: Recipe
    new_horizon: bool


def resume(ready: Resumption, observe: Observer, *, bare: bool = False) -> Snapshot:
    """Go on from the newest checkpoint to the end. ``bare``: as ``supervise`` has it."""
    return supervise(
        ready.run_dir, ready.recipe.launch, observe, new_horizon=ready.new_horizon, bare=bare
    )


def prepare(key: str, *, steps: int | None = None, horizon: int | None = None) -> Resumption:
    """Check that a run can go on, and move its end where that is asked for.

    Args:
        steps: a new last step. The schedule keeps its horizon unless ``horizon`` names one.
        horizon: let the schedule stretch over this many steps from here on.

    Raises:
        UsageError: it is running, it is finished, or its schedule would move unnamed.
    """
    run = find(key)
    _wait_for_orphans(run)
    run = find(run.id)
    if run.status == "running":
        raise UsageError(
            f"run {run.id} is running as process {run.pid} on {run.host}",
            hint=f"watch it: tpcli logs -f {run.id}",
        )
    recipe = load_recipe(run.folder / folder.RESOLVED).recipe
    target = steps or recipe.train.steps
    done = newest_checkpoint(run.folder) or 0
    # A run that died after its last step is not finished yet: going on concludes it.
    if target < done or (run.status == "finished" and target == done):
        raise UsageError(
            f"run {run.id} has done {done} of {target} steps",
            hint=f"to go further: tpcli resume {run.id} --steps {done + 100} --horizon ...",
        )
    if steps is not None or horizon is not None:
        recipe = _moved(run, recipe, target, horizon)
    return Resumption(run.folder, recipe, new_horizon=horizon is not None)


def _moved(run: Run, recipe: Recipe, steps: int, horizon: int | None) -> Recipe:
    """The recipe with another end; its schedule moves only if that was named."""
    if horizon is None and steps > recipe.horizon:
        raise UsageError(
            f"{steps} steps are asked, and the schedule of {run.id} ends with {recipe.horizon}",
            hint=f"name what it should do: --horizon {steps} stretches it from here on "
            "(the past steps keep their credit)",
        )
    overrides = [f"train.steps={steps}", f"train.horizon={horizon or recipe.horizon}"]
    path = run.folder / folder.RESOLVED
    moved = load_recipe(path, overrides=overrides).recipe
    aside = path.with_suffix(".partial")
    aside.write_text(to_toml(moved), encoding="utf-8")
    aside.replace(path)
    changed = {
        "steps": moved.train.steps,
        "horizon": moved.horizon,
        "fingerprint": identity_of(moved, parent_of(run.folder)),
    }
    with folder.editing(run.folder) as identity:
        identity.update(changed)
    return moved


def _wait_for_orphans(run: Run) -> None:
    """A worker whose supervisor was killed ends within a second: do not race it."""
    import psutil

    limit = time.monotonic() + 10
    marks = ("-m tpcli.train ", str(run.folder.resolve()))
    while time.monotonic() < limit:
        lines = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
        if not any(all(mark in line for mark in marks) for line in lines):
            return
        if run.status == "running":
            return
        time.sleep(0.2)
    raise UsageError(
        f"processes of run {run.id} are still there without their supervisor",
        hint=f'end them first: pkill -9 -f "m tpcli.train .*{run.id}"',
    )


def _identity(plan: Plan, run_id: str) -> dict[str, Any]:
    recipe = plan.recipe
    return {
        "id": run_id,
        "name": plan.name,
        "created": time.time(),
        "fingerprint": plan.fingerprint,
        "seed": recipe.train.seed,
        "recipe": str(plan.loaded.path),
        "model": recipe.model.source,
        "allocation": recipe.credit.label,
        "curve": curve_of(recipe),
        "steps": recipe.train.steps,
        "horizon": recipe.horizon,
        "tags": list(plan.tags),
        "note": redact(plan.note),
        "code": code_identity(),
        "git": git_label(plan.loaded.path.resolve().parent),
        **({"parent": asdict(plan.parent)} if plan.parent else {}),
    }


def new_id(base: Path, length: int = 7) -> str:
    """A name that no file in ``base`` has: ``length`` random characters of base32."""
    while True:
        name = "".join(secrets.choice(_ALPHABET) for _ in range(length))
        if not (base / name).exists():
            return name
