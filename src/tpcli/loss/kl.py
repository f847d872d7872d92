"""Estimators of KL(policy || reference) from the log-probs of sampled tokens, in nats.

Any shape. Ref: J. Schulman, "Approximating KL Divergence" (2020), http://joschu.net/blog/kl-approx.html
"""

from collections.abc import Callable

from torch import Tensor

from tpcli.names import KlName

MAX_LOG_RATIO = 20.0


def k1(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """log p - log q: unbiased, high variance, negative for half of the tokens."""
    return logprob - ref_logprob


def k2(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """(log p - log q)^2 / 2: biased, low variance; its gradient is that of the true KL."""
    return 0.5 * (logprob - ref_logprob).square()


def k3(logprob: Tensor, ref_logprob: Tensor) -> Tensor:
    """q / p - 1 - log(q / p): unbiased, never negative. The log-ratio is clamped to +-20."""
    log_ratio = (ref_logprob - logprob).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return log_ratio.exp() - 1.0 - log_ratio


ESTIMATORS: dict[KlName, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
