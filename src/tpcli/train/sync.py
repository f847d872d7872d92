"""Weights for an engine that keeps a copy: handed over after every update, and seen to arrive."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from tpcli.errors import RunFailedError
from tpcli.policy.model import Policy
from tpcli.policy.pack import pack, plan_rows
from tpcli.rollout.engine import OwnWeights
from tpcli.types import Prompt, Question, TokenBatch

KNOWN = 192
"""Tokens of the text that is scored on both sides, at most: more than a cached block."""
SCORED = 32
"""Of them the last so many are compared."""
MOVED = 1e-4
"""Nats a token. An engine whose scores are the same to the bit although the trainer's have moved
so far has not taken the weights."""


def known_text(prompts: Sequence[Prompt], limit: int | None) -> tuple[int, ...]:
    """Prompts one after the other: a text that every process and engine can score."""
    tokens = tuple(token for prompt in prompts[:KNOWN] for token in prompt.tokens)
    return tokens[: min(KNOWN, limit - 1 if limit else KNOWN)]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far engine and trainer are apart on the known text.

    Attributes:
        gap: mean absolute difference of the log-probs, nats a token.
        largest: of the differences.
    """

    gap: float
    largest: float


class Sync:
    """The trainer's weights, in the engine.

    Letters: L tokens compared.
    """

    def __init__(
        self,
        engine: OwnWeights,
        model: PreTrainedModel,
        policy: Policy,
        accelerator: Accelerator,
        *,
        text: Sequence[int],
        tolerance: float,
        shared: bool,
    ) -> None:
        """Remember what is compared.

        Args:
            text: token ids, at least 2.
            tolerance: largest mean gap, nats a token.
            shared: all processes use one engine; the main one then hands the weights over.
        """
        self._engine, self._model, self._policy = engine, model, policy
        self._accelerator, self._tolerance, self._shared = accelerator, tolerance, shared
        self._tokens = tuple(text)
        self._first = max(1, len(self._tokens) - SCORED)
        self._before: tuple[Tensor, Tensor] | None = None

    def push(self, version: int) -> Agreement:
        """Hand the weights over and compare.

        Raises:
            RunFailedError: the engine's scores are not the trainer's, or did not change with them.
        """
        if self._shared:  # nobody may still be drawing when the weights change
            self._accelerator.wait_for_everyone()
        if self._accelerator.is_main_process or not self._shared:
            self._engine.load(self._model.named_parameters(), version=version)
        self._accelerator.wait_for_everyone()
        theirs_L = self._engine.score(self._tokens, first=self._first, temperature=1.0)
        ours_L = self._ours()
        apart_L = (theirs_L.double() - ours_L.double()).abs()
        found = Agreement(float(apart_L.mean()), float(apart_L.max()))
        before, self._before = self._before, (theirs_L, ours_L)
        hint = (
            "nothing was learned from stale weights; resume from the last checkpoint, and if it "
            "happens again see docs/vllm.md"
        )
        # Not "greater than": a gap that is not a number is over every tolerance.
        if not found.gap <= self._tolerance:
            raise RunFailedError(
                f"after step {version} the engine's log-probs of a known text are {found.gap:.3g} "
                f"nats a token from the trainer's, over the tolerance of {self._tolerance:g}",
                hint=hint,
            )
        if before is not None and torch.equal(before[0], theirs_L):
            moved = float((before[1] - ours_L).abs().mean())
            if moved > MOVED:
                raise RunFailedError(
                    f"after step {version} the engine scores a known text as before to the bit, "
                    f"though the trainer's log-probs moved by {moved:.3g} nats a token: it has not "
                    "taken the new weights",
                    hint=hint,
                )
        return found

    def sleep(self) -> None:
        """No response is drawn for a while."""
        self._engine.sleep()

    def close(self) -> None:
        """The engine is of no more use."""
        self._engine.close()

    @torch.no_grad()
    def _ours(self) -> Tensor:
        tokens, first = self._tokens, self._first
        response_1L = torch.tensor([tokens[first:]])
        nothing_1L, nothing_1 = torch.zeros(response_1L.shape), torch.zeros(1)
        batch = TokenBatch(
            prompts=[Prompt(Question("known", "", ""), tokens[:first])],
            tokens_BT=response_1L,
            mask_BT=torch.ones(response_1L.shape, dtype=torch.bool),
            rollout_logprob_BT=nothing_1L,
            reward_B=nothing_1,
            advantage_B=nothing_1,
            group_size=1,
        )
        ((row,),) = plan_rows(batch, [0], budget=len(tokens))
        packed = pack([row], batch).to(self._accelerator.device)
        with self._accelerator.autocast():
            scores = self._policy.score(packed, packed.mask_bT, temperature=1.0)
        return scores.logprob_bT[0].float().cpu()
