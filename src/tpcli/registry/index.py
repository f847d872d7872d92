"""From the folder of a run, and from the result of an evaluation, to its row: pure reading."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from tpcli.names import RunStatus
from tpcli.registry import folder
from tpcli.registry.models import ComparisonRow, EvaluationRow, RunRow

HISTORY = 24
"""Values kept of the reward's course."""


def row_of(run_dir: Path) -> RunRow:
    """Read the folder. OSError or ValueError (KeyError, TypeError) where it is incomplete."""
    run = folder.read_json(run_dir / folder.RUN)
    if run["id"] != run_dir.name:
        raise ValueError(f"holds run {run['id']}; a run's folder carries its id as its name")
    lines = folder.read_metrics(run_dir)
    recipe = _recipe(run_dir)
    start, end = _window(recipe)
    parent = run.get("parent") or {"run": None, "step": None}
    removed = run.get("removed")
    return RunRow(
        **{k: str(run[k]) for k in ("id", "name", "fingerprint", "recipe", "model")},
        **{k: str(run[k]) for k in ("allocation", "curve", "code")},
        **{k: str(run.get(k) or "") for k in ("note", "git")},
        **{k: int(run[k]) for k in ("seed", "steps", "horizon")},
        created=float(run["created"]),
        tags=[str(tag) for tag in run.get("tags") or ()],
        window_start=start,
        window_end=end,
        parent=None if parent["run"] is None else str(parent["run"]),
        parent_step=None if parent["step"] is None else int(parent["step"]),
        removed=None if removed is None else float(removed),
        settings=dict(_flat(recipe)),
        metrics=_last(lines),
        **_state(run_dir),
        **_numbers(lines),
    )


def evaluation_of(runs_dir: Path, path: Path) -> EvaluationRow:
    """Read a result. OSError or ValueError (KeyError, TypeError) where it is incomplete."""
    result = folder.read_json(path)
    summary = result["summary"]
    average = summary["avg"]
    return EvaluationRow(
        path=path.relative_to(runs_dir).as_posix(),
        **{key: result[key] for key in ("run", "step", "limit")},
        **{key: str(result[key]) for key in ("label", "digest", "bench", "verifier")},
        settings=str(result["settings_key"]),
        n=int(summary["n"]),
        questions=len(summary["correct"]),
        seed=int(result["settings"]["sampling"]["seed"]),
        **{key: average[key] for key in ("value", "se", "low", "high")},
        maj=float(summary["maj"]["value"]),
        truncated=float(summary["truncated"]),
        **{key: float(summary["shares"][key]) for key in ("no_answer", "timeout", "crash")},
        passed={str(k): float(one["value"]) for k, one in summary["passed"].items()},
        tokens=float(summary["tokens"]),
        created=float(result["created"]),
    )


def comparisons_of(runs_dir: Path, path: Path) -> list[ComparisonRow]:
    """Read a comparison, a row a benchmark. Errors as ``evaluation_of``."""
    found = folder.read_json(path)
    whose = {key: found[key] for key in ("run", "step", "label", "other", "created")}
    paired = ("difference", "se", "low", "high", "p_t", "p_sign_flip")
    return [
        ComparisonRow(
            path=path.relative_to(runs_dir).as_posix(),
            bench=str(one["bench"]),
            **whose,
            **{key: one["paired"][key] for key in paired},
            p_holm=one["p_holm"],
            **{key: one["solved"][key] for key in ("only_new", "lost", "both", "neither")},
        )
        for one in found["benches"]
    ]


def _state(run_dir: Path) -> dict[str, Any]:
    """state.json's columns; a run whose state was never written is "created"."""
    try:
        state = folder.read_json(run_dir / folder.STATE)
    except FileNotFoundError:
        return {"status": "created"}
    if state["status"] not in get_args(RunStatus):
        raise ValueError(f"{folder.STATE}: unknown status {state['status']!r}")
    optional = ("pid", "pid_started", "host", "heartbeat", "finished", "exit_code", "error", "hint")
    return {"status": state["status"], **{key: state.get(key) for key in optional}}


def _recipe(run_dir: Path) -> dict[str, Any]:
    """The resolved recipe, as TOML has it; empty where there is none."""
    try:
        return tomllib.loads((run_dir / folder.RESOLVED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}


def _flat(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not a table, by its dotted key."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", _plain(value)


def _plain(value: Any) -> Any:
    """As JSON has it: what JSON lacks (an infinity, a date) becomes text."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, bool | int | float | str) else str(value)


def _last(lines: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The last finite value of every metric that is one number."""
    return {
        key: float(value)
        for line in lines
        for key, value in line.items()
        if key not in ("step", "time")
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


def _window(recipe: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The window of the first allocation's magnitude, where it has one."""
    credit = recipe.get("credit", {})
    named = credit.get("allocation", ())
    first = [named] if isinstance(named, str) else [*named]
    own = credit.get(first[0], {}).get("magnitude") if first else None
    schedule = credit.get("schedule") if own is None else own
    if not isinstance(schedule, dict):
        return None, None
    return schedule.get("start"), schedule.get("end")


def _numbers(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    columns: dict[str, Any] = {"step": int(lines[-1]["step"]) if lines else 0}
    for column, key in (
        ("reward", "reward/mean"),
        ("entropy", "entropy/all"),
        ("sampled", "eval/sampled"),
        ("greedy", "eval/greedy"),
    ):
        found = [line.get(key) for line in lines]
        values = [value for value in found if value is not None and math.isfinite(value)]
        columns[f"{column}_first"] = values[0] if values else None
        columns[f"{column}_last"] = values[-1] if values else None
        if column == "reward":
            columns["reward_history"] = averaged(values, HISTORY)
    return columns


def averaged(values: Sequence[float], count: int) -> list[float]:
    """``values`` cut into at most ``count`` stretches of near-equal length, the mean of each."""
    count = min(count, len(values))
    edges = [len(values) * i // count for i in range(count + 1)] if count else []
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
