"""What the bench asks of its worker processes, and how it asks.

Each side lives in a process of its own, which stays alive between rounds; only one works at a time.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tpcli.errors import RunFailedError
from tpcli.jobs.supervise import environment
from tpcli.recipe.load import load_recipe
from tpcli.recipe.schema import Recipe
from tpcli.recipe.sections import LaunchSection

ROOT = Path(__file__).parents[2]
PATIENCE = 3_600.0
"""Seconds that one answer may take."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker builds before it is asked anything.

    Attributes:
        small: a random model of two layers instead of SmolLM2.
        longest: most tokens of a response.
        vocabulary: of a random model with SmolLM2's body; None for the model of the recipe.
        own_questions: those of the recipe, which the model answers right now and then; else sums
            too long for it, in prompts of 46 tokens (small: the recipe's own in any case).
        extra: further overrides of the recipe.
    """

    small: bool
    prompts: int
    group_size: int
    longest: int
    vocabulary: int | None = None
    own_questions: bool = False
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Work:
    """One step.

    Attributes:
        lengths: tokens of each response, prompt by prompt.
        sample: draw the responses; False takes random tokens, for what concerns the update alone.
        updates: over the same responses, one after the other: the magnitude of TP-Schedule, and
            whether tokens that are not credited are measured all the same (entropy, log-prob).
    """

    lengths: list[list[int]]
    seed: int
    sample: bool = True
    updates: tuple[tuple[float, bool], ...] = ((0.0, True),)


@dataclass(frozen=True, slots=True)
class Timing:
    """What one phase of a step took.

    Attributes:
        seconds: by part; "whole" is all of it.
        peak: most resident memory meanwhile, GiB; None where the system does not say.
        base: resident memory before it, GiB.
        flops: floating-point operations; 0 where they are not counted.
        gradient: norm before clipping; 0 for generation.
    """

    seconds: dict[str, float]
    peak: float | None
    base: float | None
    flops: float = 0.0
    gradient: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A step of one side.

    Attributes:
        tokens: of all responses, as the update saw them.
        prompt_tokens: of all prompts, each counted once.
        shared_tokens: that all prompts begin with.
        state: bytes of weights, gradients and optimiser state.
        probe: GFLOP/s of a matrix product, by shape, the best found beside this step.
        updates: in the order of the work.
    """

    tokens: int
    prompt_tokens: int
    shared_tokens: int
    state: int
    probe: dict[str, float]
    generation: Timing | None
    updates: list[Timing] = field(default_factory=list)


TRAINED = ("ours", "phases")
"""Modules that get the environment in which ``tpcli train`` starts its training process."""

Serve = Callable[[Setup, Callable[[], Any], Callable[[Any], None]], None]
"""What a side's module calls ``serve``: (setup, ask for work, answer), until the work is None."""


class Worker:
    """A process that answers."""

    def __init__(self, module: str, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_child, args=(module, setup, there), daemon=False)
        self._name = module
        with _as_trained() if module in TRAINED else nullcontext():
            self._process.start()
        there.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._here.send(None)
            self._process.join(60)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    def ask(self, work: Any) -> Any:
        """Hand over work and wait for the answer.

        Raises:
            RunFailedError: the process ended or took too long; its own words are on stderr.
        """
        try:
            self._here.send(work)
            if not self._here.poll(PATIENCE):
                raise RunFailedError(
                    f"no answer from {self._name}.py within {PATIENCE:g} s",
                    hint="try again on a machine that does nothing else",
                )
            return self._here.recv()
        except (EOFError, OSError) as error:
            raise RunFailedError(
                f"{self._name}.py ended before it answered",
                hint="its last words are above; the kernel kills without any when memory is short",
            ) from error


@contextmanager
def _as_trained() -> Iterator[None]:
    """A process started inside has the environment of ``tpcli train`` on a CPU."""
    before = dict(os.environ)
    os.environ.update(environment(LaunchSection(cpu=True)))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _child(module: str, setup: Setup, connection: Connection) -> None:
    os.dup2(2, 1)  # stdout is for the tables
    serve: Serve = importlib.import_module(module).serve
    try:
        serve(setup, connection.recv, connection.send)
    except BaseException:
        traceback.print_exc()
        sys.exit(1)


def recipe_of(setup: Setup) -> Recipe:
    """The recipe with the bench's sizes."""
    return load_recipe(recipe_path(setup), overrides=overrides(setup)).recipe


def recipe_path(setup: Setup) -> Path:
    """The recipe that is measured."""
    return ROOT / "recipes" / ("tiny.toml" if setup.small else "math.toml")


def overrides(setup: Setup) -> list[str]:
    """Sizes, temperature 1 and no reference model, unless ``extra`` says otherwise.

    Seven terms and a system message of one word make prompts of 46 tokens.
    """
    settings = [
        f"rollout.prompts={setup.prompts}",
        f"rollout.group_size={setup.group_size}",
        f"rollout.max_new_tokens={setup.longest}",
        "rollout.temperature=1.0",
        "track.kl=false",
    ]
    if setup.small:
        settings += [
            "model.scratch.hidden_size=32",
            "model.scratch.intermediate_size=64",
            "model.scratch.layers=2",
            "warmup.steps=1",
            "warmup.batch_size=2",
            "data.size=200",
            "eval.questions=4",
        ]
    elif not setup.own_questions:
        terms = "min_terms = 7, max_terms = 7, min_digits = 1, max_digits = 1"
        settings += ["data.examples=[]", f"data.config={{ {terms} }}", 'data.system="Add"']
        # A group fits; more tokens are no faster here, and take memory.
        settings += ["train.micro_batch_tokens=384"]
    return [*settings, *setup.extra]
