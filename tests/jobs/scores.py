"""Results of benchmarks as evaluations leave them, for tests of what is made of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.registry.folders import FINISHED, RESOLVED, make_run

from tpcli.registry import folder


def trained(base: Path, run_id: str, *, seed: int, name: str = "math-linear", **more: Any) -> Path:
    """A finished run named after its seed; ``recipe`` is what its resolved recipe has besides."""
    recipe = more.pop("recipe", "")
    run = make_run(base, run_id, state=FINISHED, name=f"{name}-s{seed}", seed=seed, **more)
    table = f"\n[train]\nsteps = 20\nseed = {seed}\n"
    (run / folder.RESOLVED).write_text(RESOLVED + table + recipe)
    return run


def scored(
    base: Path,
    policy: str,
    bench: str,
    value: float,
    *,
    step: int | None = 20,
    n: int = 8,
    created: float = 5000.0,
    limit: int | None = None,
    verifier: str = "int",
    **sampling: Any,
) -> Path:
    """A result of a run by id, or of a model by source where no folder has that name."""
    is_run = (base / policy / folder.RUN).exists()
    settings = {
        "bench": bench,
        "revision": "a" * 40,
        "questions": hashlib.sha256(bench.encode()).hexdigest(),
        "policy": hashlib.sha256(f"{policy} {step}".encode()).hexdigest(),
        "chat_template": policy,
        "sampling": {"temperature": 0.6, "max_tokens": 64, "seed": 0} | sampling,
    }
    key = hashlib.sha256(json.dumps([settings, n]).encode()).hexdigest()[:10]
    place = base / policy if is_run else base / "models" / policy.replace("/", "-")
    path = place / "evals" / f"{bench}-{key}" / f"result-n{n}-{created:.0f}-{verifier}.json"
    estimate = {"value": value, "se": 0.01, "low": value - 0.02, "high": value + 0.02}
    result = {
        "bench": bench,
        "label": f"{policy} · step {step}" if is_run else policy,
        "run": policy if is_run else None,
        "step": step if is_run else None,
        "digest": settings["policy"],
        "limit": limit,
        "verifier": verifier,
        "settings": settings,
        "settings_key": key,
        "created": created,
        "summary": {
            "n": n,
            "correct": {"q": 1},
            "avg": estimate,
            "maj": estimate,
            "passed": {"1": estimate},
            "truncated": 0.0,
            "shares": {"no_answer": 0.0, "timeout": 0.0, "crash": 0.0},
            "tokens": 100.0,
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result))
    return path


def paper(base: Path) -> None:
    """A base model, uniform credit with one seed and scheduled credit with three."""
    table = {
        "Qwen/Qwen3-4B": (0.712, 0.629, 0.541, 0.614),
        "off": (0.731, 0.653, 0.556, 0.609),
        "tps0": (0.742, 0.671, 0.601, 0.629),
        "tps1": (0.752, 0.661, 0.611, 0.639),
        "tps2": (0.732, 0.681, 0.591, 0.619),
    }
    trained(base, "off", seed=0, name="math-off", recipe="[loss]\nkl_coef = 0.0\n")
    for seed in range(3):
        trained(base, f"tps{seed}", seed=seed)
    for policy, values in table.items():
        for bench, value in zip(("aime24", "aime25", "gpqa-diamond", "musr"), values, strict=True):
            kind = "int" if bench.startswith("aime") else "choice"
            scored(base, policy, bench, value, verifier=kind)
