"""Questions from reasoning-gym, restricted to tasks that a comparison of text can score.

Its own ``score_answer`` is never called: in several tasks it executes the answer. So a task is
allowed only if it has one right answer, written in one way.
"""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from difflib import get_close_matches
from typing import Any

from tpcli.data.rows import Row, check_keys
from tpcli.errors import UsageError

# Tasks with a ``score_answer`` of their own that all the same have a single answer with a single
# spelling (read, not run): theirs only adds partial credit or tolerance of form.
_ONE_ANSWER = {
    "ab",
    "binary_matrix",
    "chain_sum",
    "color_cube_rotation",
    "family_relationships",
    "gsm_symbolic",
    "needle_haystack",
    "products",
    "rectangle_count",
    "self_reference",
    "spell_backward",
    "spiral_matrix",
    "string_insertion",
    "zebra_puzzles",
}


def allowed_tasks() -> list[str]:
    """Tasks whose answer can be compared as text, by name.

    The library asks a task to bring its own ``score_answer`` where "a single oracle answer is not
    available"; those that do not are allowed, and those of the list above.
    """
    from reasoning_gym.dataset import ProceduralDataset

    default = ProceduralDataset.score_answer
    return sorted(
        name
        for name, (task, _) in _registry().items()
        if task.score_answer is default or name in _ONE_ANSWER
    )


def read_reasoning(task: str, config: Mapping[str, Any], *, size: int, seed: int) -> Iterator[Row]:
    """``size`` items of ``task``; item i depends on ``seed + i`` alone."""
    import reasoning_gym

    _check_task(task)
    settings = {field.name for field in dataclasses.fields(_registry()[task][1])}
    check_keys(config, settings - {"size", "seed"}, f"rg:{task}")
    with redirect_stdout(sys.stderr):  # some tasks print, and stdout is for results
        try:
            items = reasoning_gym.create_dataset(task, size=size, seed=seed, **config)
        except (AssertionError, ValueError, TypeError) as error:
            raise UsageError(
                f"rg:{task} refuses [data.config]: {error or type(error).__name__}",
                hint=f"its settings are {', '.join(sorted(settings - {'size', 'seed'}))}",
            ) from error
        rows = [Row(item["question"], str(item["answer"])) for item in items]
    yield from rows


def _registry() -> dict[str, tuple[Any, Any]]:
    import reasoning_gym  # its import fills the table
    from reasoning_gym.factory import DATASETS

    assert reasoning_gym is not None
    return dict(DATASETS)


def _check_task(task: str) -> None:
    allowed = allowed_tasks()
    if task in allowed:
        return
    near = get_close_matches(task, allowed, n=3, cutoff=0.5)
    if task in _registry():
        raise UsageError(
            f"rg:{task} has answers that no comparison of text can score",
            hint=f"choose one of {', '.join(allowed)}",
        )
    raise UsageError(
        f"reasoning-gym has no task {task}",
        hint=f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(allowed)}",
    )
