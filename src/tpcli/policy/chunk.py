"""One chunk of tokens: how many, their logits, and what becomes of these in place.

Letters: D hidden size, V vocabulary, c tokens of a chunk, r of a block of it, x rows of a buffer.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 32
"""oneDNN is handed a multiple of so many rows; a ``chunk`` that is none is padded."""
MOST_ROWS = 1_024
"""Tokens of a chunk beyond which a product of matrices gains nothing."""
CHUNK_BYTES = {"cpu": 24 * 2**20}
"""Of a chunk's float32 logits, by device. On a CPU less than ``heap.LARGE``, from which on all that
is asked for comes in fresh pages."""
CHUNK_BYTES_ELSEWHERE = 256 * 2**20
"""Some 400 tokens of 150,000 words; an estimate of what keeps a GPU busy, not measured."""
BLOCK_BYTES = {"cpu": 3 * 2**20}
"""Of a chunk's logits, as many as stay in a CPU's caches while they become probabilities. Elsewhere
a block is a chunk: there it is the number of calls that costs."""


def chunk_for(vocabulary: int, device: str) -> int:
    """Tokens whose logits exist at once where nobody says: the larger the vocabulary, the fewer.

    At least ``ROWS``: on a CPU memory is flat up to a vocabulary of some 200,000.
    """
    rows = CHUNK_BYTES.get(device, CHUNK_BYTES_ELSEWHERE) // (4 * vocabulary)
    return min(max(rows // ROWS * ROWS, ROWS), MOST_ROWS)


def logits_of(hidden_cD: Tensor, head_VD: Tensor, temperature: float) -> Tensor:
    """[c, V], over the temperature, in float32 or wider."""
    logits_cV = _head_product(hidden_cD, head_VD)
    logits_cV = logits_cV.to(wide(logits_cV.dtype))
    return logits_cV if temperature == 1 else logits_cV.div_(temperature)


def to_probabilities(
    p_cV: Tensor, target_c: Tensor, out_4c: Tensor, ref_logits_cV: Tensor | None
) -> None:
    """Logits become probabilities, in place.

    Args:
        out_4c: gets log-prob, entropy and, against ``ref_logits_cV``, KL and the reference's
            log-prob, as ``score.measure`` returns them.
    """
    log_p_xV, buffer_xV = _block(p_cV), _block(p_cV)
    for here in spans(len(p_cV), len(log_p_xV)):
        p_rV, target_r1 = p_cV[here], target_c[here, None]
        log_p_rV = _log_softmax(p_rV, log_p_xV[: len(p_rV)])
        buffer_rV = buffer_xV[: len(p_rV)]
        torch.exp(log_p_rV, out=p_rV)
        out_4c[0, here] = log_p_rV.gather(1, target_r1)[:, 0]
        out_4c[1, here] = -torch.mul(p_rV, log_p_rV, out=buffer_rV).sum(-1)
        if ref_logits_cV is not None:
            log_q_rV = _log_softmax(ref_logits_cV[here], buffer_rV)
            out_4c[3, here] = log_q_rV.gather(1, target_r1)[:, 0]
            out_4c[2, here] = log_p_rV.sub_(log_q_rV).mul_(p_rV).sum(-1)


def to_gradient(
    logits_cV: Tensor,
    target_c: Tensor,
    grad_logprob_c: Tensor,
    entropy_c: Tensor,
    grad_entropy_c: Tensor | None,
) -> None:
    """Logits become the derivative by them, in place.

    d logprob / d z = onehot(target) - p;  d H / d z = -p (log p + H).

    Args:
        grad_logprob_c, grad_entropy_c: d loss / d of each, over the temperature; None for no
            derivative of entropies.
    """
    log_p_xV = _block(logits_cV)
    for here in spans(len(logits_cV), len(log_p_xV)):
        grad_rV, grad_logprob_r1 = logits_cV[here], grad_logprob_c[here, None]
        log_p_rV = _log_softmax(grad_rV, log_p_xV[: len(grad_rV)])
        torch.exp(log_p_rV, out=grad_rV)
        if grad_entropy_c is None:
            grad_rV *= -grad_logprob_r1
        else:
            log_p_rV.add_(entropy_c[here, None]).mul_(-grad_entropy_c[here, None])
            grad_rV *= log_p_rV.sub_(grad_logprob_r1)
        grad_rV.scatter_add_(1, target_c[here, None], grad_logprob_r1)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Softmax, sums and results are in float32, or in float64 where the model is."""
    return torch.promote_types(dtype, torch.float32)


def spans(total: int, size: int) -> list[slice]:
    """``total`` things, ``size`` at a time."""
    return [slice(at, min(at + size, total)) for at in range(0, total, size)]


def _block(logits_cV: Tensor) -> Tensor:
    """[x, V], room for one block of a chunk: a row for each thread at least."""
    tokens, vocabulary = logits_cV.shape
    rows = tokens
    if room := BLOCK_BYTES.get(logits_cV.device.type):
        rows = max(room // (4 * vocabulary), torch.get_num_threads())
    return logits_cV.new_empty(min(rows, tokens), vocabulary)


def _log_softmax(logits_cV: Tensor, out_cV: Tensor) -> Tensor:
    log_p_cV: Tensor = torch.ops.aten._log_softmax.out(logits_cV, -1, False, out=out_cV)
    return log_p_cV


def _head_product(left_cD: Tensor, right_VD: Tensor) -> Tensor:
    """``left @ right.T``. On a CPU in float32 oneDNN's is twice as fast as MKL's for few rows.

    It compiles and keeps a kernel for each number of rows: so these are rounded up.
    """
    if left_cD.dtype != torch.float32 or left_cD.device.type != "cpu" or not _onednn():
        return left_cD @ right_VD.T
    rows = len(left_cD)
    padded_xD = functional.pad(left_cD, (0, 0, 0, -rows % ROWS))
    product: Any = torch.ops.mkldnn._linear_pointwise
    product_xV: Tensor = product(padded_xD, right_VD, None, "none", [], "")
    return product_xV[:rows]


@cache
def _onednn() -> bool:
    """Whether torch came with the operator, which Inductor writes into compiled models."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return available and hasattr(torch.ops.mkldnn, "_linear_pointwise")
