"""How good a response was among its group: B responses = P prompts x G, group by group."""

from collections.abc import Callable

import torch
from torch import Tensor

from tpcli.names import AdvantageName


def group_std(reward_B: Tensor, *, group_size: int, eps: float = 1e-6) -> Tensor:
    """Group-normalised advantage (R - mean) / (std + eps), std with ddof = 1 (GRPO).

    Args:
        reward_B: float, the G rewards of a prompt stand together; G divides B.
        group_size: G >= 1. A group of one has no baseline: its advantage is 0.
        eps: added to the standard deviation, so a group of equal rewards gets exactly 0.

    Raises:
        ValueError: B is not a multiple of ``group_size``.

    Ref: https://arxiv.org/abs/2402.03300
    """
    reward_PG = _groups(reward_B, group_size)
    if group_size == 1:
        return torch.zeros_like(reward_B)
    centred_PG = reward_PG - reward_PG.mean(-1, keepdim=True)
    return (centred_PG / (reward_PG.std(-1, keepdim=True) + eps)).reshape(-1)


def group_mean(reward_B: Tensor, *, group_size: int, eps: float = 0.0) -> Tensor:
    """Centred advantage R - mean, not divided by the spread (Dr.GRPO). ``eps`` is not used.

    Raises:
        ValueError: B is not a multiple of ``group_size``.

    Ref: https://arxiv.org/abs/2503.20783
    """
    reward_PG = _groups(reward_B, group_size)
    return (reward_PG - reward_PG.mean(-1, keepdim=True)).reshape(-1)


def _groups(reward_B: Tensor, group_size: int) -> Tensor:
    if group_size < 1 or reward_B.numel() % group_size:
        raise ValueError(f"{reward_B.numel()} rewards do not make groups of {group_size}")
    return reward_B.float().view(-1, group_size)


ADVANTAGES: dict[AdvantageName, Callable[..., Tensor]] = {
    "group_std": group_std,
    "group_mean": group_mean,
}
