"""Where credit goes: which response tokens learn at magnitude m, and with what advantage.

Letters: B responses, T padded response tokens; ``mask_BT`` is True on response tokens.
A *weight* multiplies a token's loss (0: context only); an *advantage* says how it learns.
m = 1 credits only the targeted tokens, m = 0 every token alike.
"""

import torch
from torch import Tensor

from tpcli.names import AllocationName

NEEDS_ENTROPY: frozenset[AllocationName] = frozenset({"forking_tokens", "entropy_advantage"})
"""Allocations that read the old policy's entropy, so they need a scoring pass before the update."""


def allocate(
    allocation: AllocationName,
    *,
    magnitude: float,
    mask_BT: Tensor,
    advantage_B: Tensor,
    entropy_BT: Tensor | None = None,
    alpha: float = 0.4,
    kappa: float = 2.0,
) -> tuple[Tensor, Tensor]:
    """Weight and advantage of every token under ``allocation`` at ``magnitude``.

    Returns:
        (weight_BT, advantage_BT), float32; both 0 on padding.

    Raises:
        ValueError: the allocation reads entropy and ``entropy_BT`` is None.
    """
    advantage_BT = torch.where(mask_BT, advantage_B.float()[:, None], 0.0)
    if allocation in NEEDS_ENTROPY and entropy_BT is None:
        raise ValueError(f"allocation {allocation} needs the old policy's entropy")
    if allocation == "trajectory_percentile":
        return suffix_weight(mask_BT, start=magnitude), advantage_BT
    if allocation == "forking_tokens":
        assert entropy_BT is not None
        return forking_weight(mask_BT, entropy_BT, magnitude=magnitude), advantage_BT
    if allocation == "entropy_advantage":
        assert entropy_BT is not None
        shaped_BT = entropy_advantage(
            advantage_BT, entropy_BT, mask_BT, magnitude=magnitude, alpha=alpha, kappa=kappa
        )
        return mask_BT.float(), shaped_BT
    return mask_BT.float(), advantage_BT


def suffix_weight(mask_BT: Tensor, *, start: float) -> Tensor:
    """Keep tokens at or after trajectory percentile ``start``; the prefix is context only.

    Of a response of L tokens the first min(int(L * start), L - 1) carry no credit.

    Args:
        mask_BT: bool, True on response tokens, right-padded.
        start: fraction of each response's own length, in [0, 1].

    Returns:
        weight_BT: float32 in {0, 1}; a non-empty response keeps at least its last token.

    Ref: trajectory-percentile criterion of https://arxiv.org/abs/2605.25381
    """
    length_B1 = mask_BT.sum(-1, keepdim=True)
    # float64: int(100 * 0.29) is 28 in Python, 29 in float32.
    first_B1 = (length_B1.double() * start).floor().clamp(max=length_B1 - 1)
    position_BT = mask_BT.cumsum(-1) - 1
    return ((position_BT >= first_B1) & mask_BT).float()


def forking_weight(mask_BT: Tensor, entropy_BT: Tensor, *, magnitude: float) -> Tensor:
    """Keep each response's most uncertain tokens: the top ceil(L * (1 - m)) by entropy.

    Ties go to the earlier token. At m = 1 nothing would be left; one token is kept then, as the
    limit m -> 1 has it.

    Args:
        entropy_BT: nats, full vocabulary, of the old policy; values on padding are ignored.
        magnitude: m in [0, 1]; 0.8 is the static form (top 20%).

    Returns:
        weight_BT: float32 in {0, 1}.

    Ref: https://arxiv.org/abs/2506.01939, scheduled in https://arxiv.org/abs/2605.25381
    """
    length_B1 = mask_BT.sum(-1, keepdim=True)
    kept_B1 = (length_B1.double() * (1.0 - magnitude)).ceil().clamp(min=1)
    ranked_BT = torch.where(mask_BT, entropy_BT.float(), -torch.inf)
    order_BT = ranked_BT.argsort(dim=-1, descending=True, stable=True)
    rank_BT = torch.empty_like(order_BT).scatter_(
        -1, order_BT, torch.arange(mask_BT.shape[-1], device=mask_BT.device).expand_as(order_BT)
    )
    return ((rank_BT < kept_B1) & mask_BT).float()


def entropy_advantage(
    advantage_BT: Tensor,
    entropy_BT: Tensor,
    mask_BT: Tensor,
    *,
    magnitude: float,
    alpha: float = 0.4,
    kappa: float = 2.0,
) -> Tensor:
    """Add an entropy term to the advantage: A + m * min(alpha * H, |A| / kappa).

    The term is never negative, also where A is: an uncertain token of a wrong response is blamed
    less. H is detached. Padding gets 0.

    Args:
        entropy_BT: H, nats, full vocabulary, of the old policy.
        magnitude: m in [0, 1]; 1 is the static form.

    Ref: https://arxiv.org/abs/2506.14758, scheduled in https://arxiv.org/abs/2605.25381
    """
    bonus_BT = torch.minimum(alpha * entropy_BT.detach(), advantage_BT.abs() / kappa)
    return torch.where(mask_BT, advantage_BT + magnitude * bonus_BT, 0.0)
