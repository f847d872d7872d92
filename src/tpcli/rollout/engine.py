"""What the trainer asks of whatever generates."""

from collections.abc import Callable, Sequence
from typing import Protocol

from tpcli.types import Prompt, Rollout

Progress = Callable[[int, int], None]
"""Called with (responses finished, responses asked for) while an engine works."""

Finished = Callable[[int, list[Rollout]], None]
"""Called with the index of a prompt and its complete group, in the thread of ``sample``."""


class RolloutEngine(Protocol):
    """Continues prompts under the weights last loaded."""

    def sample(
        self,
        prompts: Sequence[Prompt],
        *,
        group_size: int,
        seed: int,
        temperature: float,
        max_new_tokens: int,
        top_p: float = 1.0,
        top_k: int = 0,
        progress: Progress | None = None,
        finished: Finished | None = None,
    ) -> list[list[Rollout]]:
        """One group a prompt, in order, each of exactly ``group_size`` responses.

        Args:
            seed: the same prompts, weights and seed give the same responses.
            temperature: > 0; or 0 for the most likely token each time.
            top_p: sample from the fewest most likely tokens that have this much probability in
                all; not read when ``temperature`` is 0.
            top_k: before that, keep so many most likely tokens alone; 0 keeps all.
            max_new_tokens: a response that reaches it without ending is unfinished.
            finished: called once a group, as soon as all of it has ended; groups end in any order.

        Returns:
            Rollouts whose ``logprobs_L`` are those of the distribution sampled from (of
            temperature 1 where ``temperature`` is 0).
        """
        ...
