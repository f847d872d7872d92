"""Run folders as the trainer would leave them, for tests that read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tpcli.registry import folder

RESOLVED = """\
[model]
source = "scratch"

[credit]
allocation = "trajectory_percentile"

[credit.schedule]
curve = "linear"
initial = 0.99
start = 0.1
end = 0.8

[optim]
betas = [0.9, 0.999]
"""


def lines_of(steps: int) -> list[dict[str, Any]]:
    """Metrics of a run that learns steadily: reward .3 + .01 a step, an evaluation at both ends."""
    lines: list[dict[str, Any]] = [
        {"step": 0, "time": 1000.0, "eval/sampled": 0.25, "eval/greedy": 0.3}
    ]
    for step in range(1, steps + 1):
        lines.append(
            {
                "step": step,
                "time": 1000.0 + 10 * step,
                "reward/mean": 0.3 + 0.01 * step,
                "entropy/all": 0.8 - 0.01 * step,
                "entropy/percentile": [0.5, None, 0.25],
                "time/step": 10.0,
            }
        )
    if steps:
        lines[-1] |= {"eval/sampled": 0.5, "eval/greedy": 0.625}
    return lines


def make_run(
    runs_dir: Path,
    run_id: str,
    *,
    lines: Sequence[dict[str, Any]] = (),
    state: dict[str, Any] | None = None,
    **identity: Any,
) -> Path:
    """Write a whole run folder and return it. ``state=None`` leaves out state.json."""
    run_dir = runs_dir / run_id
    run_dir.mkdir(parents=True)
    run = {
        "id": run_id,
        "name": f"tiny-{run_id}",
        "created": 1000.0,
        "fingerprint": "f" * 12,
        "seed": 3,
        "recipe": "recipes/tiny.toml",
        "model": "scratch",
        "allocation": "trajectory_percentile",
        "curve": "linear",
        "steps": 20,
        "horizon": 20,
        "tags": ["ramp"],
        "note": "",
        "code": "0.1.0-abc",
        "git": "3f2c1a9",
    }
    (run_dir / folder.RUN).write_text(json.dumps(run | identity))
    (run_dir / folder.RECIPE).write_text('extends = "base.toml"\n')
    (run_dir / folder.RESOLVED).write_text(RESOLVED)
    if state is not None:
        (run_dir / folder.STATE).write_text(json.dumps(state))
    write_metrics(run_dir, lines)
    return run_dir


def write_metrics(run_dir: Path, lines: Sequence[dict[str, Any]]) -> None:
    """Replace metrics.jsonl."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run_dir / folder.METRICS).write_text(text)


FINISHED: dict[str, Any] = {
    "status": "finished",
    "pid": 1,
    "pid_started": 5.0,
    "host": "elsewhere",
    "heartbeat": 1200.0,
    "finished": 1200.0,
    "exit_code": 0,
    "error": None,
    "hint": None,
}
