"""Correcting for a sampler that is not quite the policy the trainer computes.

The tokens come from the rollout engine's own distribution: other kernels, perhaps another
precision, and whatever temperature and top-p did to it. The trainer's log-probs are those of the
policy. Importance weights w = exp(old_logprob - rollout_logprob) make up for the difference; a
bound on them trades variance for bias. Letters: B responses, T padded response tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tpcli.names import CorrectionLevel, CorrectionName

MAX_LOG_RATIO = 20.0
"""A log-ratio, of a token or of a response, is clamped to +-20 before the exponential."""


@dataclass(frozen=True, slots=True, eq=False)
class Correction:
    """Importance weights and which of them a bound has changed.

    Attributes:
        weight_BT: float32, detached, multiplies the policy loss of a token; 0 on padding.
        touched_BT: bool, truncated or masked; False on padding.
    """

    weight_BT: Tensor
    touched_BT: Tensor


def correct(
    old_logprob_BT: Tensor,
    rollout_logprob_BT: Tensor,
    mask_BT: Tensor,
    *,
    kind: CorrectionName,
    level: CorrectionLevel = "token",
    low: float = 0.0,
    high: float = 2.0,
) -> Correction:
    """Importance weights of the tokens of a step, bounded.

        none       1
        truncate   min(w, high)                        (TIS)
        mask       w where low <= w <= high, else 0    (IcePop by token, MIS by sequence)

    w is a ratio a token ("token"), the product over a response ("sequence", unbiased, of a
    variance that grows with the length) or the geometric mean of its tokens ("geometric"); a
    response's ratio applies to each of its tokens.

    The weights belong to the numerator: a masked token has no gradient, but a mean still counts
    it, so the others do not learn faster for it. The KL and entropy terms are not weighted.

    The same by other names, TRL's vllm_importance_sampling_mode: token_truncate, token_mask,
    sequence_truncate and sequence_mask, clip_min = low and clip_max = high (TRL's truncate has a
    lower bound too, off by default). verl's rollout_is, "token" or "sequence", truncates; what its
    rollout_rs rejects leaves the response mask, and so the denominator too.

    Args:
        old_logprob_BT: nats, the trainer's, of the policy that sampled.
        rollout_logprob_BT: nats, the sampler's, temperature and top-p included.
        mask_BT: bool, True on response tokens; what stands elsewhere is not read.
        low: smallest w that is kept, mask only.
        high: largest w.

    Raises:
        ValueError: not 0 <= low <= high, or high is 0.

    Ref: truncate F. Yao et al. (2025), https://fengyao.notion.site/off-policy-rl; mask by token
        https://arxiv.org/abs/2510.18855 (IcePop); by sequence and geometric J. Liu, Y. Li et al.
        (2025), https://richardli.xyz/rl-collapse
    """
    if not 0 <= low <= high or high == 0:
        raise ValueError(f"bounds must be 0 <= low <= high and high above 0: {low:g}, {high:g}")
    if kind == "none":
        return Correction(mask_BT.float(), torch.zeros_like(mask_BT))
    log_ratio_BT = log_ratio(old_logprob_BT, rollout_logprob_BT, mask_BT, level=level)
    ratio_BT = log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    above_BT = mask_BT & (ratio_BT > high)
    if kind == "truncate":
        return Correction(torch.where(mask_BT, ratio_BT.clamp(max=high), 0.0), above_BT)
    outside_BT = above_BT | (mask_BT & (ratio_BT < low))
    return Correction(torch.where(mask_BT & ~outside_BT, ratio_BT, 0.0), outside_BT)


def log_ratio(
    old_logprob_BT: Tensor,
    rollout_logprob_BT: Tensor,
    mask_BT: Tensor,
    *,
    level: CorrectionLevel = "token",
) -> Tensor:
    """log w at ``level``, float32, detached, unbounded; at token level 0 on padding."""
    log_ratio_BT = torch.where(mask_BT, old_logprob_BT - rollout_logprob_BT, 0.0).detach().float()
    if level == "token":
        return log_ratio_BT
    sum_B1 = log_ratio_BT.sum(-1, keepdim=True)
    if level == "geometric":
        sum_B1 = sum_B1 / mask_BT.sum(-1, keepdim=True).clamp(min=1)
    return sum_B1.expand_as(log_ratio_BT)


def mismatch(
    old_logprob_BT: Tensor, rollout_logprob_BT: Tensor, mask_BT: Tensor
) -> dict[str, Tensor]:
    """How far sampler and policy are apart, as sums over response tokens, w a token's ratio.

    Divide by the tokens of the step, all pieces and processes added up:

        k1        sum of -log w         estimates KL(sampler || policy), in nats a token
        k3        sum of w - 1 - log w  the same with less variance, never negative
        weight    sum of w
        weight_2  sum of w^2            effective share of the sample: weight^2 / (n * weight_2)

    Returns:
        float64 scalars.
    """
    log_ratio_BT = log_ratio(old_logprob_BT, rollout_logprob_BT, mask_BT).double()
    log_ratio_BT = log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio_BT = torch.where(mask_BT, log_ratio_BT.exp(), 0.0)
    k3_BT = torch.where(mask_BT, ratio_BT - 1.0 - log_ratio_BT, 0.0)
    return {
        "k1": -log_ratio_BT.sum(),
        "k3": k3_BT.sum(),
        "weight": ratio_BT.sum(),
        "weight_2": ratio_BT.square().sum(),
    }
