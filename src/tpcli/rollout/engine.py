"""What the trainer asks of whatever generates."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from torch import Tensor

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


class OwnWeights(Protocol):
    """What an engine offers besides when its weights are a copy of the trainer's."""

    @property
    def version(self) -> int:
        """The ``version`` of the last ``load``; 0 for the weights the engine was started with."""
        ...

    def load(self, named: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Replace all weights, and forget everything that was computed with the old ones.

        Args:
            named: names and tensors of the checkpoint; a tied head may be left out. The tensors
                are copied: they may change once this returns.

        Raises:
            RunFailedError: the engine did not take them; it is of no use any more.
        """
        ...

    def score(self, tokens: Sequence[int], *, first: int, temperature: float) -> Tensor:
        """The engine's own log-probs of ``tokens[first:]``, each given all tokens before it.

        They come about as those of a response do, cached prefixes included: equal to the trainer's,
        they show that the weights are. A prefix is cached in whole blocks (16 tokens on a GPU, 128
        on a CPU), so ``first`` should lie beyond one.

        Args:
            first: at least 1.
            temperature: what the logits are divided by; 0 is taken for 1, as in ``sample``.

        Returns:
            float32, nats, one a token.
        """
        ...

    def sleep(self) -> None:
        """Make room on the device until the next ``load`` or ``sample``, where it shares one."""
        ...

    def close(self) -> None:
        """Give back what the engine holds. It cannot be used afterwards."""
        ...
