"""Supervised learning on known solutions before RL: the policy that a run starts from.

Cached by everything it depends on, so runs that differ only later start from the same weights.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tpcli.data.prompts import sft_tokens
from tpcli.errors import UsageError
from tpcli.optim.adamw import adamw, set_lr
from tpcli.policy.model import Policy
from tpcli.policy.pack import pack, plan_rows
from tpcli.train.order import prompts_of
from tpcli.types import Prompt, TokenBatch

LAYOUT = 2
"""Counts up when the same settings would give other weights."""

Progress = Callable[[float, float], None]


def warmup_key(*depends: Any) -> str:
    """Name of the cached weights: a hash of what they depend on."""
    text = json.dumps([LAYOUT, torch.__version__, *depends], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def solutions_of(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, *, purpose: str = "warm up on"
) -> list[tuple[int, ...]]:
    """Each prompt's worked solution as a response.

    Args:
        purpose: what they are for, as the error says it.

    Raises:
        UsageError: a question has no solution.
    """
    missing = sum(prompt.question.solution is None for prompt in prompts)
    if missing:
        raise UsageError(
            f"{missing} of {len(prompts)} questions have no worked solution to {purpose}",
            hint="set [data].solution_field, use data with solutions, or do without them",
        )
    return [sft_tokens(prompt.question.solution or "", tokenizer) for prompt in prompts]


def warm_up(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    solutions: Sequence[tuple[int, ...]],
    *,
    steps: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    seed: int,
    micro_batch_tokens: int,
    head_chunk: int | None,
    progress: Progress | None = None,
) -> float:
    """Maximise the solutions' log-prob, in place; returns the last step's loss (nats a token).

    The learning rate rises over the first tenth of the steps and falls as a cosine to a tenth of
    its peak; the gradient norm is clipped to 1.
    """
    policy = Policy(model, head_chunk=head_chunk)
    optimizer = adamw(policy.parameters(), lr=lr, weight_decay=weight_decay)
    answer = {id(p): s for p, s in zip(prompts, solutions, strict=True)}
    total = math.nan
    for step in range(1, steps + 1):
        set_lr(optimizer, lr * _share(step, steps))
        chosen = prompts_of(step, prompts, count=batch_size, seed=seed)
        batch = _batch(chosen, [answer[id(p)] for p in chosen])
        tokens = int(batch.mask_BT.sum())
        total = 0.0
        for rows in plan_rows(batch, range(batch_size), budget=micro_batch_tokens):
            packed = pack(rows, batch).to(model.device)
            # Maximum likelihood: every token's log-prob has the same, known derivative.
            push_bT = torch.where(packed.mask_bT, -1.0 / tokens, 0.0)
            loss: Tensor = policy(packed, packed.mask_bT, push_bT=push_bT).surrogate
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if progress:
            progress(step, steps)
    return total


def _share(step: int, steps: int) -> float:
    rise = max(steps // 10, 1)
    if step <= rise:
        return step / rise
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(steps - rise, 1)))


def _batch(prompts: Sequence[Prompt], solutions: Sequence[tuple[int, ...]]) -> TokenBatch:
    lengths_B = torch.tensor([len(s) for s in solutions])
    mask_BT = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
    tokens_BT = torch.zeros(mask_BT.shape, dtype=torch.int64)
    tokens_BT[mask_BT] = torch.tensor([t for s in solutions for t in s])
    nothing_B = torch.zeros(len(solutions))
    return TokenBatch(
        prompts, tokens_BT, mask_BT, torch.zeros(mask_BT.shape), nothing_B, nothing_B, group_size=1
    )
