"""The loss of each token: policy-gradient surrogates, before any averaging.

Letters: B responses, T padded response tokens. Every objective takes, [B, T]:

    logprob_BT      nats, under the sampling temperature, of the policy that learns; the gradient
                    flows through it.
    old_logprob_BT  the same of the policy that sampled; detached.
    advantage_BT    A; detached.

and r = exp(logprob - old_logprob) throughout. At r = 1 every one of them has the gradient of the
plain policy gradient, -A per unit of log-probability; they differ in what happens further away.
A token's loss depends on other tokens in ``gspo`` alone.
"""

from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from tpcli.names import ObjectiveName

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 before the exponential, so that every loss is finite; beyond it
ppo_clip and sapo give a token no gradient."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenLoss:
    """Per-token loss and, as bool masks, which tokens met which bound.

    In ``ppo_clip`` and ``gspo`` such a token has lost its gradient. In ``cispo`` and
    ``cispo_upper`` it keeps it and only the weight in front is bounded, whatever the sign of A:
    low is r < 1 - clip_low, high is r > 1 + clip_high. ``reinforce`` and ``sapo`` have no bounds.

    Attributes:
        loss_BT: to be minimised.
        low_BT: ppo_clip, gspo: A < 0 and the ratio is under 1 - clip_low.
        high_BT: ppo_clip, gspo: A > 0 and the ratio is over 1 + clip_high.
        dual_BT: ppo_clip: A < 0 and the loss is over dual_clip * |A|.
        log_ratio_BT: logprob - old_logprob, detached; in gspo the response's mean of it.
    """

    loss_BT: Tensor
    low_BT: Tensor
    high_BT: Tensor
    dual_BT: Tensor
    log_ratio_BT: Tensor


def token_loss(
    objective: ObjectiveName,
    logprob_BT: Tensor,
    old_logprob_BT: Tensor,
    advantage_BT: Tensor,
    weight_BT: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
) -> TokenLoss:
    """The loss of each token under ``objective``, which reads the settings that are its own.

    Args:
        weight_BT: from the allocation; not part of the loss, but gspo's ratio is over credited
            tokens (weight other than 0).

    Raises:
        ValueError: a ``dual_clip`` outside ppo_clip, where it would do nothing.
    """
    if dual_clip is not None and objective != "ppo_clip":
        raise ValueError(f"dual_clip belongs to ppo_clip, {objective} has none")
    tokens = (logprob_BT, old_logprob_BT, advantage_BT)
    match objective:
        case "ppo_clip":
            return ppo_clip(*tokens, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)
        case "gspo":
            return gspo(*tokens, weight_BT, clip_low=clip_low, clip_high=clip_high)
        case "cispo":
            return cispo(*tokens, clip_low=clip_low, clip_high=clip_high)
        case "cispo_upper":
            return cispo_upper(*tokens, clip_high=clip_high)
        case "reinforce":
            return reinforce(*tokens)
        case "sapo":
            return sapo(*tokens, tau_positive=tau_positive, tau_negative=tau_negative)
        case _:
            assert_never(objective)


def ppo_clip(
    logprob_BT: Tensor,
    old_logprob_BT: Tensor,
    advantage_BT: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
) -> TokenLoss:
    """PPO's clipped surrogate with separate bounds, optionally clipped again from below.

    loss = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))
    and, where A < 0 and dual_clip = c is given, at most -A c.

    Args:
        clip_low: in [0, 1].
        clip_high: >= 0; larger than ``clip_low`` is DAPO's clip-higher.
        dual_clip: > 1, or None.

    Raises:
        ValueError: dual_clip <= 1.

    Ref: https://arxiv.org/abs/1707.06347; clip-higher https://arxiv.org/abs/2503.14476;
        dual clip https://arxiv.org/abs/1912.09729
    """
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip must be above 1, got {dual_clip:g}")
    advantage_BT = advantage_BT.detach()
    log_ratio_BT = logprob_BT - old_logprob_BT.detach()
    token = _clipped(_exp(log_ratio_BT), advantage_BT, clip_low, clip_high, log_ratio_BT.detach())
    if dual_clip is None:
        return token
    ceiling_BT = -advantage_BT * dual_clip
    dual_BT = (advantage_BT < 0) & (token.loss_BT.detach() > ceiling_BT)
    return TokenLoss(
        loss_BT=torch.where(dual_BT, ceiling_BT, token.loss_BT),
        low_BT=token.low_BT,
        high_BT=token.high_BT,
        dual_BT=dual_BT,
        log_ratio_BT=token.log_ratio_BT,
    )


def gspo(
    logprob_BT: Tensor,
    old_logprob_BT: Tensor,
    advantage_BT: Tensor,
    weight_BT: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> TokenLoss:
    """GSPO in its token form: a sequence's ratio, a token's gradient.

    The ratio of a response is the geometric mean over its credited tokens,
    s = exp(mean_t(logprob_t - old_logprob_t)); each token uses sg[s] * exp(logprob - sg[logprob]),
    whose value is s and whose gradient is that token's own. Then clipped as in ``ppo_clip``.

    In the plain form every token's loss is s itself, so the loss of a credited token pushes every
    token that s is made of, credited or not, and a token's own weight does not decide how much it
    learns. With equal weights both forms have the same value and the same gradient.

    Args:
        weight_BT: tokens with weight 0 do not count towards s.
        clip_low: far smaller than a token's; the paper has 3e-4.
        clip_high: the same; the paper has 4e-4.

    Ref: https://arxiv.org/abs/2507.18071, equations 5 and 7 ff. (GSPO-token)
    """
    counted_BT = weight_BT != 0
    log_ratio_BT = (logprob_BT - old_logprob_BT).detach()
    length_B1 = counted_BT.sum(-1, keepdim=True).clamp(min=1)
    mean_B1 = torch.where(counted_BT, log_ratio_BT, 0.0).sum(-1, keepdim=True) / length_B1
    # exp(10) is far outside any clip range: the bound only keeps the exponential finite.
    log_s_BT = (logprob_BT - logprob_BT.detach() + mean_B1).clamp(max=10.0)
    sequence_BT = mean_B1.expand_as(log_ratio_BT)
    return _clipped(log_s_BT.exp(), advantage_BT.detach(), clip_low, clip_high, sequence_BT)


def cispo(
    logprob_BT: Tensor,
    old_logprob_BT: Tensor,
    advantage_BT: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
) -> TokenLoss:
    """CISPO: REINFORCE weighted by a clipped importance ratio; no token loses its gradient.

    loss = -sg[clip(r, 1 - clip_low, 1 + clip_high)] * A * logprob

    Args:
        clip_low: in [0, 1]; 1 leaves small ratios alone, which is ``cispo_upper``.
        clip_high: >= 0.

    Ref: https://arxiv.org/abs/2506.13585
    """
    log_ratio_BT = (logprob_BT - old_logprob_BT).detach()
    ratio_BT = _exp(log_ratio_BT)
    bounded_BT = ratio_BT.clamp(1.0 - clip_low, 1.0 + clip_high)
    return TokenLoss(
        loss_BT=-bounded_BT * advantage_BT.detach() * logprob_BT,
        low_BT=ratio_BT < bounded_BT,
        high_BT=ratio_BT > bounded_BT,
        dual_BT=torch.zeros_like(ratio_BT, dtype=torch.bool),
        log_ratio_BT=log_ratio_BT,
    )


def cispo_upper(
    logprob_BT: Tensor,
    old_logprob_BT: Tensor,
    advantage_BT: Tensor,
    *,
    clip_high: float = 4.0,
) -> TokenLoss:
    """CISPO as ScaleRL and TRL have it, bounded from above only.

    loss = -sg[min(r, 1 + clip_high)] * A * logprob

    Args:
        clip_high: >= 0, over 1 as everywhere here. ScaleRL's eps_max and TRL's epsilon_high are
            the largest ratio itself: their 5 is a clip_high of 4.

    Ref: https://arxiv.org/abs/2510.13786
    """
    return cispo(logprob_BT, old_logprob_BT, advantage_BT, clip_low=1.0, clip_high=clip_high)


def reinforce(logprob_BT: Tensor, old_logprob_BT: Tensor, advantage_BT: Tensor) -> TokenLoss:
    """The policy gradient itself: no ratio, no bound. With its own advantage it is GPG's loss.

    loss = -A * logprob

    Off policy (r far from 1) it is biased; ``old_logprob_BT`` is read for ``log_ratio_BT`` only.

    Ref: R. J. Williams (1992), https://doi.org/10.1007/BF00992696; GPG
        https://arxiv.org/abs/2504.02546
    """
    log_ratio_BT = (logprob_BT - old_logprob_BT).detach()
    return _unbounded(-advantage_BT.detach() * logprob_BT, log_ratio_BT)


def sapo(
    logprob_BT: Tensor,
    old_logprob_BT: Tensor,
    advantage_BT: Tensor,
    *,
    tau_positive: float = 1.0,
    tau_negative: float = 1.05,
) -> TokenLoss:
    """SAPO: a smooth gate on the ratio instead of a clip.

    loss = -A * (4 / tau) * sigmoid(tau * (r - 1)), tau = tau_positive where A > 0, else
    tau_negative.

    The gradient is that of -A r times 4 s (1 - s), s the sigmoid: 1 at r = 1 for any tau, falling
    smoothly to both sides. The value at r = 1 is -2 A / tau, not -A.

    Args:
        tau_positive: > 0; larger closes the gate sooner.
        tau_negative: > 0; the paper's is the larger, for stability.

    Raises:
        ValueError: a tau that is not above 0.

    Ref: https://arxiv.org/abs/2511.20347
    """
    if min(tau_positive, tau_negative) <= 0:
        raise ValueError(f"tau must be above 0, got {tau_positive:g} and {tau_negative:g}")
    advantage_BT = advantage_BT.detach()
    log_ratio_BT = logprob_BT - old_logprob_BT.detach()
    tau_BT = torch.where(advantage_BT > 0, tau_positive, tau_negative)
    gate_BT = torch.sigmoid(tau_BT * (_exp(log_ratio_BT) - 1.0)) * 4.0 / tau_BT
    return _unbounded(-advantage_BT * gate_BT, log_ratio_BT.detach())


def _exp(log_ratio_BT: Tensor) -> Tensor:
    return log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def _clipped(
    ratio_BT: Tensor, advantage_BT: Tensor, low: float, high: float, log_ratio_BT: Tensor
) -> TokenLoss:
    free_BT = -advantage_BT * ratio_BT
    bound_BT = -advantage_BT * ratio_BT.clamp(1.0 - low, 1.0 + high)
    clipped_BT = bound_BT.detach() > free_BT.detach()
    return TokenLoss(
        loss_BT=torch.maximum(free_BT, bound_BT),
        low_BT=clipped_BT & (advantage_BT < 0),
        high_BT=clipped_BT & (advantage_BT > 0),
        dual_BT=torch.zeros_like(clipped_BT),
        log_ratio_BT=log_ratio_BT,
    )


def _unbounded(loss_BT: Tensor, log_ratio_BT: Tensor) -> TokenLoss:
    never_BT = torch.zeros_like(log_ratio_BT, dtype=torch.bool)
    return TokenLoss(loss_BT, never_BT, never_BT, never_BT, log_ratio_BT)
