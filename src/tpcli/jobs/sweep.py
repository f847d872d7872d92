"""A sweep's folder, runs/sweeps/<id>/: what was asked, and which run answers each cell of the grid.

How a cell stands is never written down: its run's own folder says so.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tpcli.errors import NotFoundError, UsageError
from tpcli.jobs.grid import Variant, slug
from tpcli.jobs.provenance import code_identity, without_secrets
from tpcli.jobs.runs import runs_dir
from tpcli.jobs.train import Plan, new_id, plan
from tpcli.recipe.load import load_recipe
from tpcli.recipe.render import diff, to_toml
from tpcli.registry import folder

SWEEPS = "sweeps"
FILE = "sweep.json"
RECIPE = "recipe.toml"


@dataclass(frozen=True, slots=True)
class Cell:
    """One variant with one seed.

    Attributes:
        variant: its place in the sweep.
        fingerprint: of the whole recipe.
        run: that answers it; None before there is one.
        reused: the run was there before the sweep.
    """

    variant: int
    seed: int
    fingerprint: str
    run: str | None = None
    reused: bool = False


@dataclass(frozen=True, slots=True)
class Sweep:
    """A grid of runs: variants by seeds.

    Attributes:
        recipe: the file, absolute: a sweep may be resumed from another folder.
        overrides: of every variant.
        code: of tpcli, when it was begun.
        metric: that the grid shows.
        baseline: place of the variant that the others are compared with.
        cells: variant by variant, seeds in order.
    """

    id: str
    name: str
    created: float
    recipe: Path
    overrides: tuple[str, ...]
    code: str
    argv: tuple[str, ...]
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    metric: str
    baseline: int
    cells: tuple[Cell, ...]

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return runs_dir() / SWEEPS / self.id

    @property
    def path(self) -> Path:
        """The recipe as one would type it here."""
        near = Path(os.path.relpath(self.recipe))
        return self.recipe if near.parts[:1] == ("..",) else near

    def tag(self, variant: int) -> str:
        """What the runs of a variant are tagged with, so that @TAG names them."""
        return f"{self.id}.{self.variants[variant].slug}"

    def plan(self, cell: Cell) -> Plan:
        """The run of a cell.

        Raises:
            UsageError: the recipe is no longer the one that the sweep was begun with.
        """
        variant = self.variants[cell.variant]
        planned = plan(
            self.path,
            overrides=[*self.overrides, *variant.overrides],
            seed=cell.seed,
            name=f"{slug(self.recipe.stem)}-{variant.slug}-s{cell.seed}",
            tags=[self.id, self.tag(cell.variant)],
            argv=self.argv,
        )
        if cell.fingerprint and planned.fingerprint != cell.fingerprint:
            raise self._changed(planned)
        return planned

    def with_run(self, at: int, run: str, *, reused: bool) -> Sweep:
        """The sweep with a run in cell number ``at``."""
        cells = [*self.cells]
        cells[at] = replace(cells[at], run=run, reused=reused)
        return replace(self, cells=tuple(cells))

    def save(self) -> None:
        """Write it, whole or not at all."""
        value = asdict(self) | {"recipe": str(self.recipe)}
        folder.write_json_atomic(self.folder / FILE, value)

    def _changed(self, planned: Plan) -> UsageError:
        before = load_recipe(self.folder / RECIPE).recipe
        now = load_recipe(self.recipe, overrides=self.overrides).recipe
        keys = [key for key, *_ in diff(before, now)] or ["a variant"]
        return UsageError(
            f"{planned.loaded.path} is not what sweep {self.id} was begun with: it differs in "
            + ", ".join(keys[:5]),
            hint="restore it, or type the whole command again for a new sweep",
        )


def begin(
    recipe: Path,
    *,
    name: str,
    overrides: Sequence[str],
    variants: Sequence[Variant],
    seeds: Sequence[int],
    metric: str | None,
    baseline: str | None,
    argv: Sequence[str] = (),
) -> Sweep:
    """A new sweep, which is nowhere but in memory until it is stored."""
    places = {label: i for i, v in enumerate(variants) for label in (v.label, v.slug)}
    if baseline is not None and baseline not in places:
        raise UsageError(
            f'--baseline: there is no variant "{baseline}"',
            hint="there are " + ", ".join(v.label for v in variants),
        )
    base = load_recipe(recipe, overrides=overrides).recipe
    sweep = Sweep(
        id=new_id(runs_dir() / SWEEPS, length=4),
        name=name,
        created=time.time(),
        recipe=recipe.resolve(),
        overrides=tuple(overrides),
        code=code_identity(),
        argv=tuple(without_secrets(argv)),
        variants=tuple(variants),
        seeds=tuple(seeds),
        metric=metric or ("sampled" if base.eval.questions else "reward"),
        baseline=places[baseline] if baseline else 0,
        cells=(),
    )
    asked = [Cell(v, seed, "") for v in range(len(variants)) for seed in seeds]
    cells = [replace(cell, fingerprint=sweep.plan(cell).fingerprint) for cell in asked]
    return replace(sweep, cells=tuple(cells))


def store(sweep: Sweep) -> Sweep:
    """Make its folder."""
    sweep.folder.mkdir(parents=True, exist_ok=True)
    base = load_recipe(sweep.recipe, overrides=sweep.overrides).recipe
    (sweep.folder / RECIPE).write_text(to_toml(base), encoding="utf-8")
    sweep.save()
    return sweep


def same(sweep: Sweep) -> Sweep | None:
    """The newest stored sweep that asks for the same runs of the same code."""
    for other in sorted(listing(), key=lambda one: -one.created):
        if (other.code, other.variants, _asked(other)) == (
            sweep.code,
            sweep.variants,
            _asked(sweep),
        ):
            return replace(other, metric=sweep.metric, baseline=sweep.baseline)
    return None


def _asked(sweep: Sweep) -> list[tuple[int, int, str]]:
    return [(cell.variant, cell.seed, cell.fingerprint) for cell in sweep.cells]


def listing() -> list[Sweep]:
    """Every stored sweep; what cannot be read is left out."""
    found = []
    for path in sorted((runs_dir() / SWEEPS).glob(f"*/{FILE}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found.append(_read(path))
    return found


def find(key: str) -> Sweep:
    """The sweep with this id or start of an id.

    Raises:
        NotFoundError: there is none, or more than one.
    """
    every = listing()
    found = [one for one in every if key and one.id.startswith(key)]
    if len(found) == 1:
        return found[0]
    known = ", ".join(f"{one.id} ({one.name})" for one in (found or every)[-8:])
    raise NotFoundError(
        f"{key} could be any of {len(found)} sweeps" if found else f"no sweep {key or '(empty)'}",
        hint=f"there are {known}" if known else "there are none yet: tpcli ablate --help",
    )


@contextlib.contextmanager
def alone(sweep: Sweep) -> Iterator[None]:
    """One process carries out a sweep."""
    from filelock import FileLock, Timeout

    lock = FileLock(sweep.folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(
            f"sweep {sweep.id} is being carried out by another process",
            hint=f"watch its runs: tpcli runs --where tag={sweep.id}",
        ) from error
    try:
        yield
    finally:
        lock.release()


def _read(path: Path) -> Sweep:
    value: dict[str, Any] = folder.read_json(path)
    return Sweep(
        **{key: value[key] for key in ("id", "name", "created", "code", "metric", "baseline")},
        overrides=tuple(value["overrides"]),
        argv=tuple(value["argv"]),
        seeds=tuple(value["seeds"]),
        recipe=Path(value["recipe"]),
        variants=tuple(Variant(v["label"], tuple(v["overrides"])) for v in value["variants"]),
        cells=tuple(Cell(**cell) for cell in value["cells"]),
    )
