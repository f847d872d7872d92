"""The loss of each token: policy-gradient surrogates, before any averaging.

Letters: B responses, T padded response tokens. Log-probs in nats, under the sampling temperature.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tpcli.names import ObjectiveName

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to +-20 before the exponential; a token beyond it gets no gradient."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenLoss:
    """Per-token loss and, as bool masks, which tokens lost their gradient to which bound.

    Attributes:
        loss_BT: to be minimised.
        low_BT: A < 0 and the ratio is under 1 - clip_low.
        high_BT: A > 0 and the ratio is over 1 + clip_high.
        dual_BT: A < 0 and the loss is over dual_clip * |A|.
        log_ratio_BT: logprob - old_logprob, detached.
    """

    loss_BT: Tensor
    low_BT: Tensor
    high_BT: Tensor
    dual_BT: Tensor
    log_ratio_BT: Tensor


def ppo_clip(
    logprob_BT: Tensor,
    old_logprob_BT: Tensor,
    advantage_BT: Tensor,
    weight_BT: Tensor | None = None,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
) -> TokenLoss:
    """PPO's clipped surrogate with separate bounds, optionally clipped again from below.

    With r = exp(logprob - old_logprob):
        loss = max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))
        and, where A < 0 and dual_clip = c is given, at most -A c.

    Args:
        logprob_BT: of the policy that learns; the gradient flows through it.
        old_logprob_BT: of the policy that sampled; detached.
        advantage_BT: A; detached.
        weight_BT: not used, a ratio a token needs no neighbours.
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
    ratio_BT = log_ratio_BT.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    token_loss = _clipped(ratio_BT, advantage_BT, clip_low, clip_high, log_ratio_BT.detach())
    if dual_clip is None:
        return token_loss
    ceiling_BT = -advantage_BT * dual_clip
    dual_BT = (advantage_BT < 0) & (token_loss.loss_BT.detach() > ceiling_BT)
    return TokenLoss(
        loss_BT=torch.where(dual_BT, ceiling_BT, token_loss.loss_BT),
        low_BT=token_loss.low_BT,
        high_BT=token_loss.high_BT,
        dual_BT=dual_BT,
        log_ratio_BT=token_loss.log_ratio_BT,
    )


def gspo(
    logprob_BT: Tensor,
    old_logprob_BT: Tensor,
    advantage_BT: Tensor,
    weight_BT: Tensor | None = None,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float | None = None,
) -> TokenLoss:
    """GSPO in its token form: a sequence's ratio, a token's gradient.

    The ratio of a response is the geometric mean over its credited tokens,
    s = exp(mean_t(logprob_t - old_logprob_t)); each token uses sg[s] * exp(logprob - sg[logprob]),
    whose value is s and whose gradient is that token's own. Then clipped as in ``ppo_clip``.

    Args:
        weight_BT: tokens with weight 0 do not count towards s; required.
        dual_clip: GSPO has none; must be None.

    Raises:
        ValueError: no ``weight_BT``, or a ``dual_clip``.

    Ref: https://arxiv.org/abs/2507.18071, equations 5 and 7 ff. (GSPO-token)
    """
    if weight_BT is None or dual_clip is not None:
        raise ValueError("gspo needs weight_BT and has no dual_clip")
    counted_BT = weight_BT != 0
    log_ratio_BT = (logprob_BT - old_logprob_BT).detach()
    length_B1 = counted_BT.sum(-1, keepdim=True).clamp(min=1)
    mean_B1 = torch.where(counted_BT, log_ratio_BT, 0.0).sum(-1, keepdim=True) / length_B1
    # exp(10) is far outside any clip range: the bound only keeps the exponential finite.
    log_s_BT = (logprob_BT - logprob_BT.detach() + mean_B1).clamp(max=10.0)
    sequence_BT = mean_B1.expand_as(log_ratio_BT)
    return _clipped(log_s_BT.exp(), advantage_BT.detach(), clip_low, clip_high, sequence_BT)


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


OBJECTIVES: dict[ObjectiveName, Callable[..., TokenLoss]] = {"ppo_clip": ppo_clip, "gspo": gspo}
