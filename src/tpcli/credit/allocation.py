"""Where credit goes: which response tokens learn at magnitude m, and with what advantage.

Letters: B responses, T padded response tokens; ``mask_BT`` is True on response tokens.
A *weight* multiplies a token's loss (0: context only); an *advantage* says how it learns.
m = 1 credits only the targeted tokens, m = 0 every token alike. No allocation empties a response.

A function here reads only which tokens its mask names, not where they stand, so the mask may have
holes: that is how allocations compose.
"""

from collections.abc import Mapping, Sequence
from typing import assert_never

import torch
from torch import Tensor

from tpcli.names import AllocationName, FocusName

NEEDS_ENTROPY: frozenset[AllocationName] = frozenset({"forking_tokens", "entropy_advantage"})
"""Allocations that read the old policy's entropy."""

NEEDS_LOGPROB: frozenset[AllocationName] = frozenset({"low_probability"})
"""Allocations that read the old policy's log-probs."""

NEEDS_SCORING: frozenset[AllocationName] = NEEDS_ENTROPY | NEEDS_LOGPROB
"""Allocations that need a scoring pass of the old policy before the update."""

IS_RANDOM: frozenset[AllocationName] = frozenset({"random_tokens", "shuffled"})
"""Controls: they need one seed a response."""

FOCI: dict[FocusName, tuple[float, float]] = {
    "late": (1.0, 1.0),
    "early": (0.0, 0.0),
    "middle": (0.5, 0.5),
}
"""The stretch (a, b) of a trajectory that ``focus_weight`` closes in on, by name."""


def allocate(
    allocations: Sequence[AllocationName],
    *,
    magnitudes: Mapping[AllocationName, float],
    mask_BT: Tensor,
    advantage_B: Tensor,
    entropy_BT: Tensor | None = None,
    logprob_BT: Tensor | None = None,
    focus: tuple[float, float] = (1.0, 1.0),
    alpha: float = 0.4,
    kappa: float = 2.0,
    seeds: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """Weight and advantage of every token under ``allocations``, one after the other.

    Each works on the tokens that those before it have left (weight != 0), and weights multiply:
    trajectory_percentile, then forking_tokens credits the most uncertain share *of the suffix*.
    ``entropy_advantage`` shapes advantages and leaves weights alone. ``shuffled`` stands last and
    shuffles what stands before it over all response tokens. ``uniform`` changes nothing; nor does
    ``expert_prefix``, which has acted before the rollout.

    Args:
        magnitudes: m in [0, 1] of each allocation that has one (shuffled has none).
        mask_BT: bool, True on response tokens, right-padded.
        advantage_B: one a response, as the group gives it.
        entropy_BT: nats, full vocabulary, of the old policy.
        logprob_BT: nats, of the old policy.
        focus: of trajectory_percentile and of its control random_tokens (see ``focus_weight``).
        alpha, kappa: of entropy_advantage.
        seeds: one a response; a response's draw depends on its own seed only.

    Returns:
        (weight_BT, advantage_BT), float32; both 0 on padding.

    Raises:
        ValueError: an allocation lacks the entropy, the log-probs or the seeds it needs.
    """
    weight_BT = mask_BT.float()
    advantage_BT = torch.where(mask_BT, advantage_B.float()[:, None], 0.0)
    for name in allocations:
        left_BT = weight_BT != 0
        match name:
            case "uniform" | "expert_prefix":
                pass
            case "trajectory_percentile":
                weight_BT = weight_BT * focus_weight(
                    left_BT, magnitude=magnitudes[name], focus=focus
                )
            case "forking_tokens":
                entropy = _given(entropy_BT, name, "entropy")
                weight_BT = weight_BT * forking_weight(left_BT, entropy, magnitude=magnitudes[name])
            case "entropy_advantage":
                advantage_BT = entropy_advantage(
                    advantage_BT,
                    _given(entropy_BT, name, "entropy"),
                    mask_BT,
                    magnitude=magnitudes[name],
                    alpha=alpha,
                    kappa=kappa,
                )
            case "low_probability":
                logprob = _given(logprob_BT, name, "log-probs")
                weight_BT = weight_BT * low_probability(
                    logprob, left_BT, magnitude=magnitudes[name]
                )
            case "random_tokens":
                weight_BT = weight_BT * random_tokens(
                    left_BT, magnitude=magnitudes[name], seeds=seeds, focus=focus
                )
            case "shuffled":
                weight_BT, advantage_BT = shuffled(weight_BT, advantage_BT, mask_BT, seeds=seeds)
            case _:
                assert_never(name)
    return weight_BT, advantage_BT


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
    return focus_weight(mask_BT, magnitude=start, focus=FOCI["late"])


def focus_weight(mask_BT: Tensor, *, magnitude: float, focus: tuple[float, float]) -> Tensor:
    """Keep a window of the trajectory that closes in on ``focus`` as m goes to 1.

    At m the window is the stretch from a m to 1 - m (1 - b): everything at m = 0, from a to b at
    m = 1. Of a response of L tokens the first int(L * (m * a)) and the last int(L * (m * (1 - b)))
    are context. (1, 1) is late-first, (0, 0) early-first, (0.5, 0.5) middle-out.

    Where this would leave nothing one token stays: the leading context is at most L - 1 tokens, and
    the trailing one gives way to it. Two roundings down leave middle-out one token more than
    late-first at some m.

    Args:
        mask_BT: bool, True on the tokens that count.
        magnitude: m in [0, 1].
        focus: (a, b), 0 <= a <= b <= 1, fractions of each response's own length.

    Returns:
        weight_BT: float32 in {0, 1}.

    Raises:
        ValueError: a focus that is not 0 <= a <= b <= 1.

    Ref: trajectory-percentile criterion of https://arxiv.org/abs/2605.25381, which is late-first
    """
    a, b = focus
    if not 0 <= a <= b <= 1:
        raise ValueError(f"the focus ({a:g}, {b:g}) must be 0 <= a <= b <= 1")
    length_B1 = mask_BT.sum(-1, keepdim=True)
    # float64: int(100 * 0.29) is 28 in Python, 29 in float32.
    exact_B1 = length_B1.double()
    first_B1 = (exact_B1 * (magnitude * a)).floor().clamp(max=length_B1 - 1)
    last_B1 = (exact_B1 * (magnitude * (1.0 - b))).floor().clamp(max=length_B1 - 1 - first_B1)
    position_BT = mask_BT.cumsum(-1) - 1
    inside_BT = (position_BT >= first_B1) & (position_BT < length_B1 - last_B1)
    return (inside_BT & mask_BT).float()


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


def low_probability(logprob_BT: Tensor, mask_BT: Tensor, *, magnitude: float) -> Tensor:
    """Weigh a token by its probability: 1 - m + m * pi_old(token), detached.

    Rare tokens have the largest gradients; this takes their excess away. The weight stays above 0
    also where exp underflows, so that the token still counts as credited.

    Args:
        logprob_BT: nats, of the old policy; values on padding are ignored.
        magnitude: m in [0, 1], the paper's alpha; its static form has 0.1 to 0.3.

    Returns:
        weight_BT: float32 in (0, 1].

    Ref: advantage reweighting of https://arxiv.org/abs/2505.12929
    """
    probability_BT = logprob_BT.detach().float().exp()
    weight_BT = (1.0 - magnitude) + magnitude * probability_BT
    smallest = torch.finfo(torch.float32).tiny
    return torch.where(mask_BT, weight_BT.clamp(min=smallest), 0.0)


def random_tokens(
    mask_BT: Tensor,
    *,
    magnitude: float,
    seeds: Sequence[int],
    focus: tuple[float, float] = (1.0, 1.0),
) -> Tensor:
    """Keep as many tokens as ``focus_weight`` does, anywhere: a control of equal credited area.

    They are drawn uniformly without replacement. Under one seed the tokens kept at a larger m are
    among those kept at a smaller one.

    Args:
        mask_BT: bool, True on the tokens that count.
        magnitude: m in [0, 1].
        focus: of the window whose area this is; (1, 1) is that of ``suffix_weight``.
        seeds: one a response, of which the low 32 bits count. The draw is made on the CPU, so it
            depends neither on the device nor on padding, order or batch.

    Returns:
        weight_BT: float32 in {0, 1}.

    Raises:
        ValueError: not one seed a response.
    """
    area_B = focus_weight(mask_BT, magnitude=magnitude, focus=focus).sum(-1).long().tolist()
    weight_BT = torch.zeros(mask_BT.shape)
    for place_L, row, seed in _rows(mask_BT, seeds):
        weight_BT[row, place_L[_order(len(place_L), seed)[: area_B[row]]]] = 1.0
    return weight_BT.to(mask_BT.device)


def shuffled(
    weight_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor, *, seeds: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Permute (weight, advantage) pairs among a response's tokens: the same weights elsewhere.

    The control for any allocation: it keeps every statistic of the weights but their place.

    Args:
        mask_BT: bool, True on all response tokens, credited or not.
        seeds: as for ``random_tokens``.

    Returns:
        (weight_BT, advantage_BT), as given but for their order.

    Raises:
        ValueError: not one seed a response.
    """
    source_BT = torch.arange(mask_BT.shape[-1]).repeat(len(mask_BT), 1)
    for place_L, row, seed in _rows(mask_BT, seeds):
        # ~seed: another stream than that of random_tokens, which may stand before.
        source_BT[row, place_L] = place_L[_order(len(place_L), ~seed)]
    source_BT = source_BT.to(mask_BT.device)
    return weight_BT.gather(-1, source_BT), advantage_BT.gather(-1, source_BT)


def _rows(mask_BT: Tensor, seeds: Sequence[int]) -> list[tuple[Tensor, int, int]]:
    """Token places, row number and seed of every non-empty response."""
    if len(seeds) != len(mask_BT):
        raise ValueError(f"{len(mask_BT)} responses need one seed each, not {len(seeds)} in all")
    places = [mask_T.nonzero().flatten() for mask_T in mask_BT.cpu()]
    return [(place_L, row, seeds[row]) for row, place_L in enumerate(places) if len(place_L)]


def _order(length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed & 0xFFFFFFFF)
    return torch.randperm(length, generator=generator)


def _given(values_BT: Tensor | None, name: AllocationName, what: str) -> Tensor:
    if values_BT is None:
        raise ValueError(f"allocation {name} needs the old policy's {what}")
    return values_BT
