"""How good a response was among its group: B responses = P prompts x G, group by group.

``reward_B`` holds the rewards of the whole step, of all processes: ``batch_std`` and ``gpg`` look
beyond a group. A group of one and a group of equal rewards carry no signal: their advantage is
exactly 0 under every name.
"""

import math
from typing import assert_never

import torch
from torch import Tensor

from tpcli.names import AdvantageName


def advantages(
    name: AdvantageName,
    reward_B: Tensor,
    *,
    group_size: int,
    eps: float = 1e-6,
    ddof: int = 1,
    k: int = 1,
) -> Tensor:
    """Advantage of every response under ``name``, float32.

    Args:
        reward_B: float, the G rewards of a prompt stand together; G divides B.
        group_size: G >= 1.
        eps: added to the standard deviation of group_std and batch_std; unused by the others.
        ddof: of that deviation: 1 divides by n - 1 (TRL, verl), 0 by n.
        k: of pass_at_k.

    Raises:
        ValueError: B is not a multiple of ``group_size``; or what pass_at_k is not defined for.
    """
    match name:
        case "group_std":
            return group_std(reward_B, group_size=group_size, eps=eps, ddof=ddof)
        case "group_mean":
            return group_mean(reward_B, group_size=group_size)
        case "leave_one_out":
            return leave_one_out(reward_B, group_size=group_size)
        case "batch_std":
            return batch_std(reward_B, group_size=group_size, eps=eps, ddof=ddof)
        case "pass_at_k":
            return pass_at_k(reward_B, group_size=group_size, k=k)
        case "gpg":
            return gpg(reward_B, group_size=group_size)
        case _:
            assert_never(name)


def group_std(reward_B: Tensor, *, group_size: int, eps: float = 1e-6, ddof: int = 1) -> Tensor:
    """Group-normalised advantage (R - mean) / (std + eps) (GRPO).

    Args:
        reward_B: float, the G rewards of a prompt stand together; G divides B.
        group_size: G >= 1.
        eps: added to the standard deviation.
        ddof: 1 divides the squares by G - 1, 0 by G.

    Raises:
        ValueError: B is not a multiple of ``group_size``.

    Ref: https://arxiv.org/abs/2402.03300
    """
    reward_PG = _groups(reward_B, group_size)
    if group_size == 1:
        return torch.zeros_like(reward_PG).reshape(-1)
    std_P1 = reward_PG.std(-1, keepdim=True, correction=ddof)
    scaled_PG = _centred(reward_PG) / (std_P1 + eps)
    return torch.where(_signal(reward_PG), scaled_PG, 0.0).reshape(-1)


def group_mean(reward_B: Tensor, *, group_size: int) -> Tensor:
    """Centred advantage R - mean, not divided by the spread (Dr.GRPO).

    Ref: https://arxiv.org/abs/2503.20783
    """
    return _centred(_groups(reward_B, group_size)).reshape(-1)


def leave_one_out(reward_B: Tensor, *, group_size: int) -> Tensor:
    """R minus the mean of the other G - 1 rewards (RLOO), which is G / (G - 1) (R - mean).

    Ref: https://arxiv.org/abs/2402.14740
    """
    centred_PG = _centred(_groups(reward_B, group_size))
    return (centred_PG * (group_size / max(group_size - 1, 1))).reshape(-1)


def batch_std(reward_B: Tensor, *, group_size: int, eps: float = 1e-6, ddof: int = 1) -> Tensor:
    """(R - group mean) / (std + eps), with the std of all B rewards of the step.

    The spread is that of the rewards, as in TRL's scale_rewards = "batch". REINFORCE++ with a
    baseline (arXiv 2501.03262) divides by that of the centred rewards instead, which is smaller.

    Ref: https://arxiv.org/abs/2508.08221
    """
    reward_PG = _groups(reward_B, group_size)
    centred_PG = _centred(reward_PG)
    if not _signal(reward_PG).any():  # also where one reward has no std
        return centred_PG.reshape(-1)
    return (centred_PG / (reward_PG.std(correction=ddof) + eps)).reshape(-1)


def pass_at_k(reward_B: Tensor, *, group_size: int, k: int) -> Tensor:
    """Advantage of pass@k training, in closed form over all subsets of k responses.

    A subset's reward is 1 if any of its responses is correct. A response's advantage is the mean
    of (subset reward - mean) / std over the subsets that hold it, with mean and (population) std
    of all C(G, k) subsets. With F = C(wrong, k) / C(G, k), the share of subsets that fail:

        correct: F / std        wrong: (F - C(wrong - 1, k - 1) / C(G - 1, k - 1)) / std

    and std = sqrt(F (1 - F)). k = 1 is ``group_std`` with ddof = 0 and eps = 0. A group has no
    signal when all its subsets agree: none correct, or fewer than k wrong.

    Args:
        reward_B: 0 or 1.
        k: 1 <= k <= G.

    Raises:
        ValueError: a reward other than 0 and 1, or k outside 1..G.

    Ref: https://arxiv.org/abs/2508.10751
    """
    reward_PG = _groups(reward_B, group_size)
    if not 1 <= k <= group_size:
        raise ValueError(f"k ({k}) must lie between 1 and the group's {group_size} responses")
    if not ((reward_PG == 0) | (reward_PG == 1)).all():
        raise ValueError("pass_at_k needs rewards that are 0 or 1")
    table = torch.tensor(
        [_pass_at_k_pair(correct, group_size, k) for correct in range(group_size + 1)],
        device=reward_PG.device,
    )
    correct_P1 = reward_PG.sum(-1, keepdim=True).long()
    return table[correct_P1, reward_PG.long()].reshape(-1)


def gpg(reward_B: Tensor, *, group_size: int) -> Tensor:
    """(R - mean) * B / (responses in groups with signal) (GPG).

    The factor makes up for responses whose group is all alike: they add nothing to the gradient and
    yet count in its mean. (verl divides by the number of responses with a reward instead.)

    Ref: https://arxiv.org/abs/2504.02546
    """
    reward_PG = _groups(reward_B, group_size)
    groups = max(int(_signal(reward_PG).sum()), 1)
    return (_centred(reward_PG) * (len(reward_PG) / groups)).reshape(-1)


def _pass_at_k_pair(correct: int, group_size: int, k: int) -> tuple[float, float]:
    """Advantages of a wrong and of a correct response where ``correct`` of G are correct."""
    wrong = group_size - correct
    failing, subsets = math.comb(wrong, k), math.comb(group_size, k)
    if failing in (0, subsets):
        return 0.0, 0.0
    fail = failing / subsets
    std = math.sqrt(fail * (1.0 - fail))
    fail_with_a_wrong = math.comb(wrong - 1, k - 1) / math.comb(group_size - 1, k - 1)
    return (fail - fail_with_a_wrong) / std, fail / std


def _groups(reward_B: Tensor, group_size: int) -> Tensor:
    if group_size < 1 or reward_B.numel() % group_size:
        raise ValueError(f"{reward_B.numel()} rewards do not make groups of {group_size}")
    return reward_B.float().reshape(-1, group_size)


def _signal(reward_PG: Tensor) -> Tensor:
    """[P, 1], True for a group whose rewards differ."""
    return reward_PG.amax(-1, keepdim=True) != reward_PG.amin(-1, keepdim=True)


def _centred(reward_PG: Tensor) -> Tensor:
    """R - mean; exactly 0 for equal rewards, whose float mean may be off by a bit."""
    return torch.where(_signal(reward_PG), reward_PG - reward_PG.mean(-1, keepdim=True), 0.0)
