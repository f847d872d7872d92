"""Which prompts a step asks: a pure function of the seed, so a resumed run needs no history."""

from collections.abc import Container, Iterator, Sequence
from functools import lru_cache

import torch

from tpcli.types import Prompt


def prompts_of(step: int, prompts: Sequence[Prompt], *, count: int, seed: int) -> list[Prompt]:
    """The prompts of ``step`` (from 1): epoch after epoch, each in a shuffled order of its own.

    Args:
        count: prompts a step, over all processes.
    """
    first = (step - 1) * count
    chosen = []
    for position in range(first, first + count):
        epoch, place = divmod(position, len(prompts))
        chosen.append(prompts[_shuffled(len(prompts), seed, epoch)[place]])
    return chosen


@lru_cache(maxsize=2)
def _shuffled(length: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(_mix(seed, epoch))
    order: list[int] = torch.randperm(length, generator=generator).tolist()
    return order


def further_prompts(
    step: int, prompts: Sequence[Prompt], *, asked: Container[str], seed: int
) -> Iterator[Prompt]:
    """Prompts to ask in place of others at ``step``, each once, in a shuffled order of its own.

    Args:
        asked: ids of the questions that the step has asked already; they are left out.
    """
    generator = torch.Generator().manual_seed(_mix(seed, step) ^ 0x369DEA0F31A53F85)
    for place in torch.randperm(len(prompts), generator=generator).tolist():
        if prompts[place].question.id not in asked:
            yield prompts[place]


def sampler_seed(seed: int, step: int, round_: int = 0) -> int:
    """Seed of the rollouts of ``step``; each refill round has its own."""
    base = _mix(seed, step) ^ 0x5DEECE66D
    return _mix(base, round_) if round_ else base


def response_seed(seed: int, step: int, response: int) -> int:
    """Seed of what is drawn at random for response number ``response`` of ``step``."""
    return _mix(_mix(seed, step), response) ^ 0x2545F4914F6CDD1D


def _mix(a: int, b: int) -> int:
    # splitmix64's increments: neighbouring pairs land far apart.
    mixed = (a * 0x9E3779B97F4A7C15 + (b + 1) * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 31)) * 0x94D049BB133111EB) % 2**64
    return mixed >> 1
