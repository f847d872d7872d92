"""Runs of arms over seeds as folders, for tests that compare them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.registry.folders import FINISHED, RESOLVED, make_run

from tpcli.registry import folder

ORIGIN: dict[str, Any] = {
    "argv": ["tpcli", "train", "x.toml"],
    "git": {"commit": "3f2c1a9", "dirty": False, "diff_sha256": "e3b0"},
    "packages": {"torch": "2.13.0"},
    "data": {"source": "rg:chain_sum", "sha256": "14b4"},
    "compute": {"device": "cpu", "threads": 2},
    "machine": {"host": "somewhere", "cpu": "EPYC", "gpus": []},
}


def course(
    seed: int, steps: int, *, gain: float, share: float = 1.0, noise: float = 0.02
) -> list[dict[str, Any]]:
    """A run whose reward rises by ``gain``; ``share`` of its 100 tokens a step carry credit."""
    draw = random.Random(f"{seed} {gain}")
    lines: list[dict[str, Any]] = [
        {"step": 0, "time": 1000.0, "eval/sampled": 0.25, "eval/greedy": 0.3}
    ]
    for step in range(1, steps + 1):
        done = step / steps
        lines.append(
            {
                "step": step,
                "time": 1000.0 + 10 * step,
                "reward/mean": 0.3 + gain * done + draw.gauss(0, noise),
                "reward/std": 0.4,
                "entropy/all": 0.2 + 0.6 * math.exp(-3 * done * (1.4 - gain)) + draw.gauss(0, 0.01),
                "credit/share": share,
                "credit/tokens": 100.0 * share,
                "schedule/magnitude": max(0.0, 0.99 * (1 - done / 0.8)),
                "time/step": 10.0,
            }
        )
        if step % max(steps // 4, 1) == 0:
            lines[-1]["eval/sampled"] = 0.25 + gain * done + draw.gauss(0, noise)
    return lines


def make_arm(
    runs_dir: Path,
    stem: str,
    seeds: Sequence[int],
    *,
    gain: float,
    share: float = 1.0,
    steps: int = 40,
    resolved: str = RESOLVED,
    origin: dict[str, Any] | None = None,
    **identity: Any,
) -> list[str]:
    """A finished run a seed, named ``stem-s<seed>``, and their ids."""
    ids = []
    for seed in seeds:
        run_id = f"{stem}{seed}"
        run_dir = make_run(
            runs_dir,
            run_id,
            lines=course(seed, steps, gain=gain, share=share),
            state=FINISHED,
            **{"name": f"{stem}-s{seed}", "seed": seed, "steps": steps, "tags": []} | identity,
        )
        (run_dir / folder.RESOLVED).write_text(resolved + f"\n[train]\nseed = {seed}\n")
        (run_dir / folder.PROVENANCE).write_text(json.dumps(ORIGIN | (origin or {})))
        ids.append(run_id)
    return ids


def make_result(runs_dir: Path, run_id: str, bench: str, value: float, **changes: Any) -> Path:
    """A benchmark's result in a run's folder; ``changes`` replace what it says."""
    result: dict[str, Any] = {
        "run": run_id,
        "step": 40,
        "limit": None,
        "label": run_id,
        "digest": "d" * 12,
        "bench": bench,
        "verifier": "int",
        "settings_key": f"key-{run_id}",
        "settings": {"bench": bench, "policy": run_id, "sampling": {"seed": 0, "temperature": 0.6}},
        "created": 2000.0,
        "summary": {
            "n": 16,
            "correct": [0] * 30,
            "avg": {"value": value, "se": 0.05, "low": value - 0.1, "high": value + 0.1},
            "maj": {"value": value},
            "truncated": 0.0,
            "shares": {"no_answer": 0.0, "timeout": 0.0, "crash": 0.0},
            "passed": {"1": {"value": value}},
            "tokens": 100.0,
        },
    } | changes
    place = runs_dir / run_id / "evals" / f"{bench}-{len(json.dumps(result)):x}{result['step']}"
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"result-{result['created']:.0f}.json"
    path.write_text(json.dumps(result))
    return path
