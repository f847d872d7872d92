"""Which prompts a step asks: a pure function of the seed, so a resumed run needs no history."""

from collections.abc import Sequence
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


def sampler_seed(seed: int, step: int) -> int:
    """Seed of the rollouts of ``step``."""
    return _mix(seed, step) ^ 0x5DEECE66D


def _mix(a: int, b: int) -> int:
    # splitmix64's increments: neighbouring pairs land far apart.
    mixed = (a * 0x9E3779B97F4A7C15 + (b + 1) * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 31)) * 0x94D049BB133111EB) % 2**64
    return mixed >> 1
