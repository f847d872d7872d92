"""Log-probs, entropies and KL from hidden states, a chunk of tokens at a time.

Letters: K scored tokens, D hidden size, V vocabulary, c tokens of a chunk, r of a block of it. No
function here holds more than a chunk's logits (and the reference's) and a few [r, V] tensors:
memory is flat in K.

    z = h W^T / temperature,  p = softmax(z)
    logprob = z[target] - logsumexp(z)
    H = -sum_v p_v log p_v                        (nats)
    KL = sum_v p_v (log p_v - log q_v)            (nats, q the reference policy)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

ROWS = 32
"""oneDNN is handed a multiple of so many rows; a ``chunk`` that is none is padded."""
MOST_ROWS = 1_024
"""Tokens of a chunk beyond which a product of matrices gains nothing."""
LOGITS = {"cpu": 24 * 2**20}
"""Bytes of a chunk's float32 logits, by device. On a CPU glibc maps larger ones anew each time."""
LOGITS_ELSEWHERE = 256 * 2**20
"""Some 400 tokens of 150,000 words: with fewer, reading the head takes longer than its product."""
BLOCKS = 8
"""Of a chunk, one after the other: what lies between logits and probabilities stays in caches."""


def chunk_for(vocabulary: int, device: str) -> int:
    """Tokens whose logits exist at once where nobody says: the larger the vocabulary, the fewer."""
    rows = LOGITS.get(device, LOGITS_ELSEWHERE) // (4 * vocabulary)
    return min(max(rows // ROWS * ROWS, ROWS), MOST_ROWS)


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The reference policy at the same tokens: hidden states and output head."""

    hidden_KD: Tensor
    weight_VD: Tensor


class _ChunkedLogprob(torch.autograd.Function):
    """logprob_K and entropy_K with [c, V] recomputed in the backward pass.

    d logprob / d z = onehot(target) - p;  d H / d z = -p (log p + H).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_KD: Tensor,
        weight_VD: Tensor,
        target_K: Tensor,
        temperature: float,
        chunk: int,
        grad_into_VD: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.dtype = _matmul_dtype(hidden_KD)
        logprob_K, entropy_K, _, _ = _measure(hidden_KD, weight_VD, target_K, temperature, chunk)
        ctx.save_for_backward(hidden_KD, weight_VD, target_K, entropy_K)
        ctx.temperature, ctx.chunk, ctx.grad_into_VD = temperature, chunk, grad_into_VD
        return logprob_K, entropy_K

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_logprob_K, grad_entropy_K = grads
        hidden_KD, weight_VD, target_K, entropy_K = ctx.saved_tensors
        head_VD = weight_VD.to(ctx.dtype)
        grad_hidden_KD = torch.empty_like(hidden_KD)
        grad_weight_VD = _gradient_sum(weight_VD, ctx.grad_into_VD)
        with_entropy = bool(grad_entropy_K.any())
        (log_p_xV,) = _scratch(1, ctx.chunk, entropy_K, len(head_VD))
        for here in _chunks(len(target_K), ctx.chunk):
            hidden_cD = hidden_KD[here].to(ctx.dtype)
            grad_cV = _logits(hidden_cD, head_VD, ctx.temperature)
            for block, at in _blocks(here, len(log_p_xV)):
                grad_rV = grad_cV[block]
                log_p_rV = _log_softmax(grad_rV, log_p_xV[: len(grad_rV)])
                torch.exp(log_p_rV, out=grad_rV)
                if with_entropy:
                    log_p_rV.add_(entropy_K[at, None]).mul_(-grad_entropy_K[at, None])
                    grad_rV *= log_p_rV.sub_(grad_logprob_K[at, None])
                else:
                    grad_rV *= -grad_logprob_K[at, None]
            grad_cV.scatter_add_(1, target_K[here, None], grad_logprob_K[here, None])
            grad_cV = grad_cV.div_(ctx.temperature).to(ctx.dtype)
            grad_hidden_KD[here] = (grad_cV @ head_VD).to(grad_hidden_KD.dtype)
            _add_product(grad_weight_VD, grad_cV.T, hidden_cD)
            del grad_cV, grad_rV  # before the next chunk's logits are made
        grad = None if ctx.grad_into_VD is not None else grad_weight_VD.to(weight_VD.dtype)
        return grad_hidden_KD, grad, None, None, None, None


def logprob_and_entropy(
    hidden_KD: Tensor,
    weight_VD: Tensor,
    target_K: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 256,
    grad_into_VD: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Differentiable log-prob of each target and entropy of each distribution.

    Args:
        hidden_KD: the last layer's output at the predicting positions.
        weight_VD: the output head, without bias.
        target_K: int64 token ids.
        temperature: > 0.
        chunk: tokens whose logits exist at once.
        grad_into_VD: what the backward pass adds the head's gradient to, in place of giving it to
            autograd, which saves a tensor of the head's size.

    Returns:
        (logprob_K, entropy_K), nats, float32 (float64 for a float64 model).
    """
    scores = _ChunkedLogprob.apply(  # type: ignore[no-untyped-call]
        hidden_KD, weight_VD, target_K, temperature, chunk, grad_into_VD
    )
    logprob_K, entropy_K = scores
    return logprob_K, entropy_K


class _PushedLogprob(torch.autograd.Function):
    """sum_k push_k logprob_k, with its gradient formed while the logits exist."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_KD: Tensor,
        weight_VD: Tensor,
        target_K: Tensor,
        push_k: Tensor,
        temperature: float,
        chunk: int,
        reference: Reference | None,
        grad_into_VD: Tensor | None,
    ) -> tuple[Tensor, ...]:
        dtype = _matmul_dtype(hidden_KD)
        head_VD = weight_VD.to(dtype)
        scale_k1 = (push_k / temperature)[:, None]
        grad_hidden_KD = torch.zeros_like(hidden_KD)
        grad_weight_VD = _gradient_sum(weight_VD, grad_into_VD)

        def push(here: slice, p_cV: Tensor) -> None:
            """d logprob / d z = onehot(target) - p; the chunk's first tokens are those pushed."""
            pushed = slice(here.start, min(here.stop, len(push_k)))
            if pushed.start >= pushed.stop:
                return
            grad_cV = p_cV[: pushed.stop - pushed.start].mul_(-scale_k1[pushed])
            grad_cV.scatter_add_(1, target_K[pushed, None], scale_k1[pushed])
            grad_cV = grad_cV.to(dtype)
            hidden_cD = hidden_KD[pushed].to(dtype)
            grad_hidden_KD[pushed] = (grad_cV @ head_VD).to(grad_hidden_KD.dtype)
            _add_product(grad_weight_VD, grad_cV.T, hidden_cD)

        found_4K = _measure(
            hidden_KD, weight_VD, target_K, temperature, chunk, reference=reference, visit=push
        )
        ctx.save_for_backward(grad_hidden_KD, *([grad_weight_VD] if grad_into_VD is None else []))
        ctx.added, ctx.weight_dtype = grad_into_VD is not None, weight_VD.dtype
        logprob_K, entropy_K, kl_K, ref_logprob_K = found_4K
        total = (push_k * logprob_K[: len(push_k)]).sum()
        ctx.mark_non_differentiable(logprob_K, entropy_K, kl_K, ref_logprob_K)
        return total, logprob_K, entropy_K, kl_K, ref_logprob_K

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad_hidden_KD, *sums = ctx.saved_tensors
        if ctx.added:
            if grads[0] != 1:
                raise ValueError("the head's gradient was added as it was: scale push_k instead")
            return (grad_hidden_KD, *[None] * 7)
        # In place: a second copy of the head's gradient would be the largest tensor there is.
        grad_weight_VD = sums[0].mul_(grads[0]).to(ctx.weight_dtype)
        return (grad_hidden_KD.mul_(grads[0]), grad_weight_VD, *[None] * 6)


def push_logprobs(
    hidden_KD: Tensor,
    weight_VD: Tensor,
    target_K: Tensor,
    push_k: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 256,
    reference: Reference | None = None,
    grad_into_VD: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Measure K tokens and learn from the first k of them, in one pass over the vocabulary.

    Where the derivative of the loss by each log-prob is known beforehand - on policy the ratio is
    1 - nothing need be computed twice: the gradient is formed while a chunk's logits exist.

    Args:
        push_k: d loss / d logprob of the first k tokens, a constant.
        grad_into_VD: what the head's gradient is added to right away, in place of giving it to
            autograd, which saves a tensor of the head's size. ``backward()`` must then start from
            the sum itself, not from a multiple.

    Returns:
        (sum push logprob, differentiable; logprob_K, entropy_K, kl_K, ref_logprob_K, constants).
    """
    found = _PushedLogprob.apply(  # type: ignore[no-untyped-call]
        hidden_KD, weight_VD, target_K, push_k, temperature, chunk, reference, grad_into_VD
    )
    total, logprob_K, entropy_K, kl_K, ref_logprob_K = found
    return total, logprob_K, entropy_K, kl_K, ref_logprob_K


@torch.no_grad()
def measure(
    hidden_KD: Tensor,
    weight_VD: Tensor,
    target_K: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int = 256,
    reference: Reference | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Score tokens under the policy and measure the exact KL to a reference, without gradient.

    The KL is summed over the whole vocabulary: no sampling noise beyond which tokens were visited.

    Returns:
        (logprob_K, entropy_K, kl_K, ref_logprob_K), nats, float32 (float64 for a float64 model);
        the last two 0 without a reference.
    """
    found_4K = _measure(hidden_KD, weight_VD, target_K, temperature, chunk, reference=reference)
    return found_4K[0], found_4K[1], found_4K[2], found_4K[3]


def _measure(
    hidden_KD: Tensor,
    weight_VD: Tensor,
    target_K: Tensor,
    temperature: float,
    chunk: int,
    *,
    reference: Reference | None = None,
    visit: Callable[[slice, Tensor], None] | None = None,
) -> Tensor:
    """[4, K]; ``visit`` sees each chunk's probabilities, and may use them up."""
    dtype = _matmul_dtype(hidden_KD)
    head_VD = weight_VD.to(dtype)
    out_4K = torch.zeros(4, len(target_K), dtype=_wide(dtype), device=hidden_KD.device)
    log_p_xV, other_xV = _scratch(2, chunk, out_4K[0], len(head_VD))
    # Autocast would take the sums in half precision.
    with torch.autocast(hidden_KD.device.type, enabled=False):
        for here in _chunks(len(target_K), chunk):
            p_cV = _logits(hidden_KD[here].to(dtype), head_VD, temperature)
            if reference:
                ref_cD, ref_VD = reference.hidden_KD[here].to(dtype), reference.weight_VD.to(dtype)
                ref_logits_cV = _logits(ref_cD, ref_VD, temperature)
            for block, at in _blocks(here, len(log_p_xV)):
                p_rV, target_r1 = p_cV[block], target_K[at, None]
                log_p_rV, other_rV = log_p_xV[: len(p_rV)], other_xV[: len(p_rV)]
                _log_softmax(p_rV, log_p_rV)
                torch.exp(log_p_rV, out=p_rV)
                out_4K[0, at] = log_p_rV.gather(1, target_r1)[:, 0]
                out_4K[1, at] = -torch.mul(p_rV, log_p_rV, out=other_rV).sum(-1)
                if reference:
                    log_q_rV = _log_softmax(ref_logits_cV[block], other_rV)
                    out_4K[3, at] = log_q_rV.gather(1, target_r1)[:, 0]
                    out_4K[2, at] = log_p_rV.sub_(log_q_rV).mul_(p_rV).sum(-1)
            if reference:
                del ref_logits_cV
            if visit:
                visit(here, p_cV)
            del p_cV, p_rV  # before the next chunk's are made
    return out_4K


def _gradient_sum(weight_VD: Tensor, grad_into_VD: Tensor | None) -> Tensor:
    """What a head's gradient is added up in: as given, or zeros."""
    if grad_into_VD is not None:
        return grad_into_VD
    return torch.zeros_like(weight_VD, dtype=_wide(weight_VD.dtype))


def _add_product(sum_VD: Tensor, left_Vc: Tensor, right_cD: Tensor) -> None:
    """In place; without another [V, D] tensor where all are of one type."""
    if sum_VD.dtype == right_cD.dtype:
        sum_VD.addmm_(left_Vc, right_cD)
    else:
        sum_VD.add_(left_Vc @ right_cD)


def _logits(hidden_cD: Tensor, head_VD: Tensor, temperature: float) -> Tensor:
    """Over the temperature, and in float32 or wider."""
    logits_cV = _head_product(hidden_cD, head_VD)
    return logits_cV.to(_wide(logits_cV.dtype)).div_(temperature)


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


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Softmax, sums and results are in float32, or in float64 where the model is."""
    return torch.promote_types(dtype, torch.float32)


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    """What a matrix product would be computed in here: autocast's type, or the tensor's own."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _scratch(number: int, chunk: int, like_K: Tensor, vocabulary: int) -> list[Tensor]:
    """Tensors of a block's size, made once: on a CPU fresh memory costs as much as writing it."""
    rows = min(-(-chunk // BLOCKS), len(like_K))
    return [like_K.new_empty(rows, vocabulary) for _ in range(number)]


def _blocks(chunk: slice, size: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of a chunk: where in it, and where among all tokens."""
    for block in _chunks(chunk.stop - chunk.start, size):
        yield block, slice(chunk.start + block.start, chunk.start + block.stop)


def _chunks(total: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, total)) for at in range(0, total, size)]
