"""Held-out accuracy: the same questions at every evaluation, sampled and greedy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import Accelerator

from tpcli.reward.verify import Grader
from tpcli.rollout.engine import RolloutEngine
from tpcli.train.team import Team
from tpcli.types import Answered, Prompt, Rollout, Verdict

Read = Callable[[Prompt, Sequence[Rollout]], list[Answered]]
"""The whole responses to a prompt as text, given solution prefix included."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What is asked, and how the answers are sampled."""

    prompts: Sequence[Prompt]
    samples: int
    every: int
    temperature: float | None
    max_new_tokens: int
    seed: int


def grade_all(
    groups: Sequence[Sequence[Rollout]], prompts: Sequence[Prompt], read: Read, grader: Grader
) -> list[Verdict]:
    """A verdict on every whole response, group by group."""
    return grader.grade(
        [
            answered
            for prompt, group in zip(prompts, groups, strict=True)
            for answered in read(prompt, group)
        ]
    )


def accuracy(
    held_out: HeldOut,
    engine: RolloutEngine,
    read: Read,
    grader: Grader,
    accelerator: Accelerator,
    team: Team,
    *,
    temperature: float,
    top_p: float,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """avg@samples and greedy accuracy over all processes, with truncation and no-answer rates.

    The seed is the run's and does not change: two evaluations differ by the policy alone, and by
    the temperature where that of the rollouts is scheduled and [eval].temperature not set.
    """
    mine = list(held_out.prompts[team.number :: team.teams])
    work = len(mine) * (held_out.samples + 1)
    counts = torch.zeros(5, dtype=torch.float64)  # sampled, greedy, truncated, no answer, asked
    for greedy in (False, True):
        done = len(mine) * held_out.samples if greedy else 0
        groups = engine.sample(
            mine,
            group_size=1 if greedy else held_out.samples,
            seed=held_out.seed,
            temperature=0.0 if greedy else held_out.temperature or temperature,
            top_p=top_p,
            max_new_tokens=held_out.max_new_tokens,
            progress=partial(_count_on, progress, done, work) if progress else None,
        )
        verdicts = team.agreed(grade_all(groups, mine, read, grader) if team.leads else None)
        counts[int(greedy)] = sum(v.reward for v in verdicts)
        if not greedy:
            counts[2] = sum(v.status == "unfinished" for v in verdicts)
            counts[3] = sum(v.status == "no_answer" for v in verdicts)
    counts[4] = len(mine)
    counts *= team.leads  # once a team
    if accelerator.num_processes > 1:
        counts = accelerator.reduce(counts.to(accelerator.device), "sum").cpu()
    sampled, best, truncated, silent, asked = counts.tolist()
    drawn = asked * held_out.samples
    return {
        "eval/sampled": sampled / drawn,
        "eval/greedy": best / asked,
        "eval/truncated": truncated / drawn,
        "eval/no_answer": silent / drawn,
        "eval/questions": asked,
    }


def _count_on(
    progress: Callable[[int, int], None], before: int, total: int, finished: int, _asked: int
) -> None:
    progress(before + finished, total)
