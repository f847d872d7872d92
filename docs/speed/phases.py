"""Where the time of a step goes: the training loop itself, with a clock around each of its parts.

The clocks are put on from outside. While an inner part runs, the outer one's clock stands, so the
seconds add up; what no clock claims is "not accounted".
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from work import Setup, recipe_of

from tpcli.policy import model as policy_model
from tpcli.policy.model import Policy
from tpcli.rollout import transformers as engine
from tpcli.train import collect, loop, step
from tpcli.train.build import build, grader_of, settings
from tpcli.train.journal import Journal
from tpcli.train.worker import settle_on_cpu

REST = "not accounted"
EVAL, CHECKPOINT = "held-out evaluation", "checkpoint"
WHOLE = (EVAL, CHECKPOINT)
"""Parts that happen now and then; they are not divided."""

Name = str | Callable[..., str]


class Clock:
    """Seconds and calls by part, each without the parts inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: Counter[str] = Counter()
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what is done inside, unless that belongs to a part that is not divided."""
        if self._open and self._open[-1] in WHOLE:
            yield
            return
        self._pass_on()
        self._open.append(name)
        self.calls[name] += 1
        try:
            yield
        finally:
            self._pass_on()
            self._open.pop()

    def _pass_on(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def around(self, owner: Any, attribute: str, name: Name) -> None:
        """Replace a function of a module, class or object by one that is timed.

        A name that is no longer there is reported: its time is then that of whatever calls it.

        Args:
            name: of the part, or what gives it from the arguments of the call.
        """
        found = getattr(owner, attribute, None)
        if found is None:
            print(f"no {attribute} to time in {owner}", file=sys.stderr)
            return

        @wraps(found)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name if isinstance(name, str) else name(*args)):
                return found(*args, **kwargs)

        setattr(owner, attribute, timed)


def watch_generation(clock: Clock) -> None:
    """Clocks on the engine."""
    clock.around(engine.TransformersEngine, "sample", "generation: order of the rows")
    batch = getattr(engine, "_Batch", None)
    clock.around(batch, "_read", "generation: prompts")
    clock.around(batch, "step", "generation: lists and tensors")
    clock.around(batch, "enter", "generation: lists and tensors")
    clock.around(batch, "_hidden", lambda _, token_AW, *__: _pass_of(token_AW))
    clock.around(batch, "_logits", "generation: head")
    clock.around(engine, "inverse_cdf", "generation: drawing tokens")
    slots = getattr(engine, "Slots", None)
    clock.around(slots, "copy", "generation: moving the cache")
    clock.around(slots, "step", "generation: masks")


def _pass_of(token_AW: torch.Tensor) -> str:
    return "generation: prompts" if token_AW.shape[1] > 1 else "generation: decoding"


def watch_update(clock: Clock, parts: loop.Parts) -> None:
    """Clocks on the learner and what it calls."""
    learner, accelerator = parts.learner, parts.accelerator
    clock.around(step.Learner, "update", "update: credit, losses, records")
    clock.around(step, "plan_rows", "update: packing")
    clock.around(step, "pack", "update: packing")
    clock.around(
        Policy,
        "hidden",
        lambda policy, *_: (
            "update: reference body"
            if policy is learner.reference
            else ("update: body forward" if torch.is_grad_enabled() else "update: body, measured")
        ),
    )
    clock.around(Policy, "forward", "update: places of tokens")
    clock.around(Policy, "score", "update: places of tokens")
    for name in ("push_logprobs", "logprob_and_entropy", "measure"):
        clock.around(policy_model, name, "update: head, softmax, entropy, KL")
    clock.around(accelerator, "backward", "update: backward")
    clock.around(accelerator, "clip_grad_norm_", "update: clipping")
    clock.around(learner.optimizer, "step", "update: AdamW")
    clock.around(learner.optimizer, "zero_grad", "update: AdamW")


def watch_loop(clock: Clock) -> None:
    """Clocks on the loop's own parts."""
    clock.around(collect, "grade_all", "text and grading")
    clock.around(loop.Loop, "_collate", "advantages and batch")
    clock.around(loop, "tally", "statistics")
    clock.around(loop, "finish", "statistics")
    clock.around(loop.Loop, "_samples", "journal: token by token")
    for name in ("metrics", "responses", "enter", "advance"):
        clock.around(Journal, name, "journal: writing")
    clock.around(loop.Loop, "_evaluate", EVAL)
    clock.around(loop.Loop, "_save", CHECKPOINT)
    clock.around(loop.Loop, "_step", REST)
    clock.around(loop.Loop, "run", REST)


def serve(
    setup: Setup, ask: Callable[[], int | None], answer: Callable[[dict[str, Any]], None]
) -> None:
    """Answer each number of steps with the profile of so many."""
    while (steps := ask()) is not None:
        answer(profile(setup, steps))


def profile(setup: Setup, steps: int) -> dict[str, Any]:
    """Train ``steps`` steps after one that warms up; seconds a step, by part.

    Returns:
        parts: seconds by part, over all steps; occasions: seconds and calls of evaluation and
        checkpoint; whole: wall time of the steps, occasions left out; steps.
    """
    settle_on_cpu()
    extra = (*setup.extra, f"train.steps={steps + 1}", f"train.save_every={steps + 1}")
    recipe = recipe_of(replace(setup, extra=extra))
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, grader_of(recipe) as grader:
        journal = Journal(Path(folder), steps=recipe.train.steps)
        parts, _ = build(recipe, Accelerator(cpu=True), journal, grader)
        training = loop.Loop(Path(folder), parts, settings(recipe), journal)
        training._step(1)
        journal.take_seconds()
        watch_generation(clock)
        watch_update(clock, parts)
        watch_loop(clock)
        began = time.perf_counter()
        training.run(1)
        whole = time.perf_counter() - began
    occasions = {
        name: {"seconds": clock.seconds.pop(name), "calls": clock.calls[name]}
        for name in WHOLE
        if clock.calls[name]
    }
    whole -= sum(one["seconds"] for one in occasions.values())
    named = sum(seconds for name, seconds in clock.seconds.items() if name != REST)
    return {
        "parts": {**_without(clock.seconds, REST), REST: whole - named},
        "occasions": occasions,
        "whole": whole,
        "steps": steps,
    }


def _without(seconds: dict[str, float], name: str) -> dict[str, float]:
    return {key: value for key, value in seconds.items() if key != name}
