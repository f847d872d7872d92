"""Numbers about tokens by their place in the trajectory, and about rewards. Pure, torch only.

Letters: B responses, T padded response tokens, Q percentile bins. Token t (from 0) of a response
of L tokens stands at percentile (t + 0.5) / L: the middle of its share of the trajectory.
Sums and counts are kept apart so that pieces and processes add up exactly before the division.
"""

import torch
from torch import Tensor

BINS = 20
STAGES: dict[str, tuple[float, float]] = {
    "first": (0.0, 0.1),
    "middle": (0.45, 0.55),
    "last": (0.9, 1.0),
}
"""Stages of the trajectory as the paper's figures have them; both ends of a window are included."""


def percentile(mask_BT: Tensor) -> Tensor:
    """Where in its own response a token stands, in (0, 1); float64, 0 on padding."""
    length_B1 = mask_BT.sum(-1, keepdim=True).clamp(min=1).double()
    position_BT = mask_BT.cumsum(-1).double() - 0.5
    return torch.where(mask_BT, position_BT / length_B1, 0.0)


def by_percentile(value_BT: Tensor, mask_BT: Tensor, *, bins: int = BINS) -> Tensor:
    """Sum and count of a token value in equal bins of trajectory percentile.

    Returns:
        float64 [2, Q]: sums, counts. Add pieces up, then ``mean_of``.
    """
    bin_BT = (percentile(mask_BT) * bins).long().clamp(max=bins - 1)
    out_2Q = torch.zeros(2, bins, dtype=torch.float64, device=value_BT.device)
    chosen = bin_BT[mask_BT]
    out_2Q[0].index_add_(0, chosen, value_BT[mask_BT].double())
    out_2Q[1].index_add_(0, chosen, torch.ones_like(chosen, dtype=torch.float64))
    return out_2Q


def by_stage(value_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum and count of a token value over [all, *STAGES].

    A response too short to have a token inside a stage lends it the token nearest to its middle,
    so short responses are not silently left out.

    Returns:
        float64 [2, 1 + len(STAGES)]: sums, counts.
    """
    where_BT = percentile(mask_BT)
    masks = [mask_BT]
    for low, high in STAGES.values():
        inside_BT = mask_BT & (where_BT >= low) & (where_BT <= high)
        distance_BT = torch.where(mask_BT, (where_BT - (low + high) / 2).abs(), torch.inf)
        nearest_BT = torch.zeros_like(mask_BT).scatter(-1, distance_BT.argmin(-1, True), True)
        empty_B1 = ~inside_BT.any(-1, keepdim=True)
        masks.append(inside_BT | (nearest_BT & mask_BT & empty_B1))
    sums = [torch.where(m, value_BT, 0.0).double().sum() for m in masks]
    return torch.stack([torch.stack(sums), torch.stack([m.sum().double() for m in masks])])


def mean_of(sum_and_count_2Q: Tensor) -> list[float | None]:
    """Means, None where nothing was counted."""
    sums, counts = sum_and_count_2Q.tolist()
    return [s / n if n else None for s, n in zip(sums, counts, strict=True)]


def groups_without_signal(advantage_B: Tensor, *, group_size: int) -> Tensor:
    """Bool [P]: groups that teach nothing, because every advantage in them is 0."""
    return (advantage_B.view(-1, group_size) == 0).all(-1)
