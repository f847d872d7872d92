"""A seed for each prompt: what makes a response the same in any batch and order."""

from collections import Counter
from collections.abc import Sequence
from hashlib import sha256

from tpcli.types import Prompt


def streams(seed: int, prompts: Sequence[Prompt]) -> list[int]:
    """One seed a prompt: of the question, and of how often it was asked before in this call.

    So a prompt draws the same numbers in any order and batch. Each is below 2^56: it and the few
    that follow it fit a signed 64-bit integer.
    """
    asked: Counter[str] = Counter()
    found = []
    for prompt in prompts:
        name = f"{seed}\0{prompt.question.id}\0{asked[prompt.question.id]}"
        found.append(int.from_bytes(sha256(name.encode()).digest()[:7]))
        asked[prompt.question.id] += 1
    return found
