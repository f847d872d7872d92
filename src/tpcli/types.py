"""The nouns handed from stage to stage. Frozen: a stage makes a new one, it never edits another's.

Letters: B responses, T padded response tokens, L tokens of one response, G responses a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tpcli.names import VerdictStatus

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Question:
    """One verifiable question.

    ``id`` is a hash of ``text``: the same question has the same id in every data set and process.
    ``solution`` is a worked answer, where the data has one (warm-up and expert prefixes need it).
    """

    id: str
    text: str
    answer: str
    solution: str | None = None


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question as the model reads it: chat template applied, tokenised, ready to be continued.

    The last ``prefix`` tokens are the beginning of a worked solution, given as context: they belong
    to the response when it is verified, and are never learned from.
    """

    question: Question
    tokens: tuple[int, ...]
    prefix: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """One sampled response.

    Attributes:
        tokens_L: int64 on the CPU, the end-of-sequence token included when the model wrote one.
        logprobs_L: float32, nats, one a token, under the distribution it was sampled from.
        finished: the model ended the response itself; False when it hit the token limit.
    """

    tokens_L: Tensor
    logprobs_L: Tensor
    finished: bool


@dataclass(frozen=True, slots=True)
class Answered:
    """One whole response and what it should have said.

    Attributes:
        text: all that the model wrote, thinking included (never a suffix of it).
        gold: the right answer.
        finished: the model ended the response itself.
        opened: the prompt ended inside an open ``<think>``, so the response began in thought.
    """

    text: str
    gold: str
    finished: bool
    opened: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one response. ``ms`` is the time it took."""

    reward: float
    status: VerdictStatus
    extracted: str | None = None
    canonical: str | None = None
    ms: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """Everything the update needs of one rollout phase; the responses of a prompt stand together.

    Attributes:
        prompts: the P = B / G prompts, in order; response b answers ``prompts[b // G]``.
        tokens_BT: int64, right-padded responses.
        mask_BT: bool, True on response tokens (built from lengths, never from ids).
        rollout_logprob_BT: float32, nats, the engine's; 0 on padding.
        reward_B: float32.
        advantage_B: float32, from the whole group's rewards.
        group_size: G.
        learns_B: bool, False where a response is left out of the loss; None where none is.
        seeds: B integers for allocations that draw tokens at random; the same response has the
            same seed however the step is divided among processes.
    """

    prompts: Sequence[Prompt]
    tokens_BT: Tensor
    mask_BT: Tensor
    rollout_logprob_BT: Tensor
    reward_B: Tensor
    advantage_B: Tensor
    group_size: int
    learns_B: Tensor | None = None
    seeds: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class StepStats:
    """One line of ``metrics.jsonl``: scalars by name, and curves over trajectory percentile."""

    step: int
    scalars: dict[str, float] = field(default_factory=dict)
    percentiles: dict[str, list[float | None]] = field(default_factory=dict)
