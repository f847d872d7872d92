"""From logits to tokens: one uniform number draws one token.

Letters: A rows, V vocabulary, K tokens looked at of the most likely ones.
"""

import torch
from torch import Tensor


def inverse_cdf(
    logits_AV: Tensor,
    uniform_A: Tensor,
    temperature: float,
    *,
    top_p: float = 1.0,
    top_k: int = 0,
) -> tuple[Tensor, Tensor]:
    """Draw one token a row from softmax(logits / temperature) by inverting its CDF.

    Args:
        uniform_A: in [0, 1); not read when ``temperature`` is 0.
        top_p, top_k: the nucleus drawn from; 1 and 0 are the whole distribution, and so is
            temperature 0.

    Returns:
        (token_A, logprob_A). A token of probability 0 is never drawn.
    """
    logits_AV = logits_AV.float()
    if temperature == 0:
        token_A1 = logits_AV.argmax(-1, keepdim=True)
        logprob_A1 = logits_AV.gather(1, token_A1) - logits_AV.logsumexp(-1, keepdim=True)
        return token_A1[:, 0], logprob_A1[:, 0]
    if top_p < 1 or top_k:
        log_p_AV = torch.log_softmax(logits_AV / temperature, dim=-1)
        logits_AV, temperature = nucleus(log_p_AV, top_p, top_k=top_k), 1.0
    top_A1 = logits_AV.amax(-1, keepdim=True)
    # The CDF times its total: the total is the normaliser, so no pass of its own is needed for it.
    cdf_AV = (logits_AV - top_A1).div_(temperature).exp_().cumsum_(-1)
    total_A1 = cdf_AV[:, -1:]
    # Rounding must not reach the total: the search would then run past the last possible token.
    below_A1 = torch.nextafter(total_A1, torch.zeros_like(total_A1))
    point_A1 = torch.minimum(uniform_A[:, None] * total_A1, below_A1)
    token_A1 = torch.searchsorted(cdf_AV, point_A1, right=True)
    logprob_A1 = (logits_AV.gather(1, token_A1) - top_A1) / temperature - total_A1.log()
    return token_A1[:, 0], logprob_A1[:, 0]


def nucleus(log_p_AV: Tensor, top_p: float, *, top_k: int = 0) -> Tensor:
    """Log-probs of the nucleus alone: the fewest most likely tokens with ``top_p`` together.

    The token that reaches ``top_p`` is in; of equal tokens the one with the lower id comes first.
    With ``top_k`` the nucleus is that of the k most likely tokens, made to sum to 1 (which of equal
    tokens is the k-th is then open).

    Ref: https://arxiv.org/abs/1904.09751
    """
    if 0 < top_k < log_p_AV.shape[-1]:  # far cheaper than sorting the vocabulary
        sorted_AK, order_AK = log_p_AV.topk(top_k, dim=-1)
    else:
        sorted_AK, order_AK = log_p_AV.sort(dim=-1, descending=True, stable=True)
    p_AK = torch.softmax(sorted_AK, dim=-1)
    outside_AK = p_AK.cumsum(-1) - p_AK >= top_p
    outside_AK[:, 0] = False
    kept_AV = torch.full_like(log_p_AV, -torch.inf).scatter_(
        -1, order_AK, sorted_AK.masked_fill(outside_AK, -torch.inf)
    )
    return kept_AV - kept_AV.logsumexp(-1, keepdim=True)
