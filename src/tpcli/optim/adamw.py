"""AdamW, and a learning rate that is a pure function of the step."""

import math
from collections.abc import Iterable

import torch
from torch import nn

from tpcli.names import LrScheduleName


def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> torch.optim.AdamW:
    """AdamW with decoupled decay on matrices only; norms and biases are not decayed.

    Ref: https://arxiv.org/abs/1711.05101
    """
    learnable = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in learnable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in learnable if p.ndim < 2], "weight_decay": 0.0},
    ]
    # One pass over memory instead of several; the same numbers on every device.
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=lr, betas=betas, eps=eps, fused=True
    )


def lr_at(
    step: int, horizon: int, *, peak: float, warmup_steps: int = 0, schedule: LrScheduleName
) -> float:
    """Learning rate of ``step`` (from 1): linear rise to ``peak``, then the schedule.

    Step t <= w of a rise over w steps has peak * t / w. After it, p = (t - w) / (horizon - w)
    in (0, 1]: "linear" falls to 0 as 1 - p, "cosine" as (1 + cos(pi p)) / 2.
    """
    if step <= warmup_steps:
        return peak * step / warmup_steps
    if schedule == "constant":
        return peak
    p = min((step - warmup_steps) / max(horizon - warmup_steps, 1), 1.0)
    return peak * (1.0 - p if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * p)))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use ``lr`` for every group from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr
