"""A learner around the small model, and the plain form of one update to hold it against."""

from dataclasses import replace
from typing import Any, get_args

import torch
from accelerate import Accelerator
from tests.tiny import random_batch, tiny_llama
from torch import Tensor
from transformers import LlamaForCausalLM

from tpcli.names import AllocationName
from tpcli.policy.model import Policy
from tpcli.train.method import Knobs, Method
from tpcli.train.step import Learner
from tpcli.types import TokenBatch

KNOBS = Knobs(
    temperature=1.3,
    top_p=1.0,
    penalty=1.0,
    alpha=0.4,
    kappa=2.0,
    tau_positive=1.0,
    tau_negative=1.05,
    correction_low=0.0,
    correction_high=2.0,
    magnitudes=dict.fromkeys(get_args(AllocationName), 0.4),
    clip_low=0.2,
    clip_high=0.28,
    kl_coef=0.0,
    entropy_coef=0.0,
    lr=1.0,
)
METHOD = Method(
    allocations=("trajectory_percentile",),
    focus=(1.0, 1.0),
    objective="ppo_clip",
    dual_clip=3.0,
    correction="none",
    correction_level="token",
    reduction="token-mean",
    denominator="selected",
    constant=9.0,
    kl_estimator="k3",
    updates=1,
    max_grad_norm=1e9,
    micro_batch_tokens=10_000,
)
LENGTHS = [5, 1, 7, 2, 3, 6, 9, 4]


def step_batch() -> TokenBatch:
    """Four prompts of two responses; the second group has no signal."""
    batch = random_batch(LENGTHS, [4, 9, 2, 5], group_size=2)
    advantage_B = batch.advantage_B.clone()
    advantage_B[2:4] = 0
    return replace(batch, advantage_B=advantage_B, seeds=range(len(LENGTHS)))


def loud_batch() -> TokenBatch:
    """Eight responses of unequal length, all of which teach something."""
    return replace(random_batch(LENGTHS, [4, 9, 2, 5], group_size=2), seeds=range(len(LENGTHS)))


def learner(
    *,
    reference: bool = False,
    accelerator: Accelerator | None = None,
    tied: bool = True,
    **changes: Any,
) -> tuple[Learner, LlamaForCausalLM]:
    """Plain gradient descent with rate 1, so that the step *is* the gradient.

    Args:
        changes: of METHOD.
    """
    model = tiny_llama(tied=tied)
    policy = Policy(model, head_chunk=3)
    made = Learner(
        accelerator or Accelerator(cpu=True),
        policy,
        torch.optim.SGD(policy.parameters(), lr=1.0),
        Policy(tiny_llama(1)).requires_grad_(False) if reference else None,
        replace(METHOD, **changes),
    )
    return made, model


def weights(model: LlamaForCausalLM) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def step_taken(before: dict[str, Tensor], model: LlamaForCausalLM) -> Tensor:
    """All parameters' change in one vector."""
    return torch.cat([(before[n] - p.detach()).flatten() for n, p in model.named_parameters()])


def distance(a: Tensor, b: Tensor) -> float:
    """Relative to the length of ``b``."""
    return float((a - b).double().norm() / b.double().norm())
