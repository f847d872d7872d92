"""A run whose figures move as those of real runs do: smooth curves with a small ripple."""

from __future__ import annotations

import math
from typing import Any

from tpcli.cli.view import RunView
from tpcli.recipe.schema import Recipe

STARTED = 1_700_000_000.0
STEP_SECONDS = 18.5
EVAL_SECONDS = 60.0


def recipe(steps: int = 1000, *, fresh: bool = False, **tables: Any) -> Recipe:
    """A TP-Schedule recipe: linear, window .1 to .8, evaluated and saved every 50 steps.

    ``tables`` are merged in; with ``fresh`` they stand in place of what is here.
    """
    base: dict[str, Any] = {
        "model": {"source": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        "data": {"source": "running_sum"},
        "credit": {"schedule": {"curve": "linear", "start": 0.1, "end": 0.8}},
        "train": {"steps": steps, "save_every": 50},
        "eval": {"every": 50},
    }
    for table, values in tables.items():
        merge = not fresh and isinstance(values, dict) and isinstance(base.get(table), dict)
        base[table] = base[table] | values if merge else values
    return Recipe.model_validate(base)


def line(step: int, of: int = 1000, *, eval_every: int = 50) -> dict[str, Any]:
    """One line of metrics.jsonl."""
    p = step / of
    ripple = 0.012 * math.sin(1.7 * step) + 0.008 * math.sin(0.31 * step)
    found: dict[str, Any] = {"step": step, "time": STARTED + 120 + STEP_SECONDS * step}
    if step % eval_every == 0 or step == of:
        found |= {"eval/sampled": 0.23 + 0.38 * p, "eval/greedy": 0.31 + 0.37 * p}
        found |= {"time/eval": EVAL_SECONDS}
    if step == 0:
        return found
    magnitude = 0.99 * min(max((0.8 - p) / 0.7, 0.0), 1.0)
    at = [(b + 0.5) / 20 for b in range(20)]
    entropy = [(0.25 + 0.5 * math.exp(-2.5 * p)) * (1.2 - 0.7 * q) + ripple for q in at]
    kl = [0.02 * p * (0.3 + q) for q in at]
    evaluation = found.get("time/eval", 0.0)
    return found | {
        "reward/mean": 0.13 + 0.5 * (1 - math.exp(-3 * p)) + ripple,
        "reward/groups_without_signal": 0.12 + 0.3 * p + ripple,
        "length/mean": 1500 + 400 * p + 900 * ripple,
        "length/truncated": max(0.0, 0.08 * (1 - p) ** 2),
        "entropy/all": sum(entropy) / 20,
        "entropy/first": entropy[0],
        "entropy/middle": entropy[10],
        "entropy/last": entropy[-1],
        "entropy/percentile": entropy,
        "kl/all": sum(kl) / 20,
        "kl/percentile": kl,
        "schedule/progress": min(max((p - 0.1) / 0.7, 0.0), 1.0),
        "schedule/magnitude": magnitude,
        "credit/share": 1 - magnitude,
        "credit/percentile": [min(max((q - magnitude) * 20 + 0.5, 0.0), 1.0) for q in at],
        "time/rollout": 11.3,
        "time/reward": 0.1,
        "time/update": 6.5,
        "time/eval": evaluation,
        "time/checkpoint": 0.0,
        "time/other": 0.6,
        "time/step": STEP_SECONDS + evaluation,
        "speed/tokens_per_s": 412.0 + 300 * ripple,
        "memory/peak_gb": 4.1,
    }


def lines(last: int, of: int = 1000) -> list[dict[str, Any]]:
    """The evaluation before training and every step up to ``last``."""
    return [line(step, of) for step in range(last + 1)]


def view(done: int = 412, steps: int = 1000, **changes: Any) -> RunView:
    """A run in the rollout of the step after ``done``."""
    metrics = lines(done, steps) if done >= 0 else []
    now = (metrics[-1]["time"] if metrics else STARTED) + 5.0
    fields: dict[str, Any] = {
        "run": {"id": "k7m2xqd", "name": "math-linear-s3", "git": "3f2c1a9+dirty"},
        "recipe": recipe(steps),
        "folder": "runs/k7m2xqd",
        "started": STARTED,
        "now": now,
        "state": {"status": "running"},
        "progress": progress("rollout", done + 1, steps, done=30, total=64, since=now - 5),
        "metrics": metrics,
        "checkpoint": done // 50 * 50 or None,
    }
    return RunView(**(fields | changes))


def progress(phase: str, step: int, steps: int = 1000, **more: Any) -> dict[str, Any]:
    """progress.json."""
    empty = {"done": 0.0, "total": 0.0, "since": STARTED, "note": ""}
    return {"phase": phase, "step": step, "steps": steps} | empty | more
