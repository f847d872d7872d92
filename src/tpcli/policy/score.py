"""Log-probs, entropies and KL from hidden states, a chunk of tokens at a time.

Letters: K scored tokens, D hidden size, V vocabulary, c tokens of a chunk. In float32 no function
here holds more than a chunk's logits, the reference's and what ``chunk`` needs to work on them (in
half precision a copy of the former besides): memory is flat in K.

    z = h W^T / temperature,  p = softmax(z)
    logprob = z[target] - logsumexp(z)
    H = -sum_v p_v log p_v                        (nats)
    KL = sum_v p_v (log p_v - log q_v)            (nats, q the reference policy)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpcli.policy.chunk import chunk_for, logits_of, spans, to_gradient, to_probabilities, wide


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The reference policy at the same tokens: hidden states and output head."""

    hidden_KD: Tensor
    weight_VD: Tensor


class _ChunkedLogprob(torch.autograd.Function):
    """logprob_K and entropy_K with [c, V] recomputed in the backward pass."""

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
        for here in spans(len(target_K), ctx.chunk):
            hidden_cD = hidden_KD[here].to(ctx.dtype)
            grad_cV = logits_of(hidden_cD, head_VD, ctx.temperature)
            to_gradient(
                grad_cV,
                target_K[here],
                grad_logprob_K[here] / ctx.temperature,
                entropy_K[here],
                grad_entropy_K[here] / ctx.temperature if with_entropy else None,
            )
            grad_cV = grad_cV.to(ctx.dtype)
            grad_hidden_KD[here] = (grad_cV @ head_VD).to(grad_hidden_KD.dtype)
            _add_product(grad_weight_VD, grad_cV.T, hidden_cD)
            del grad_cV  # before the next chunk's logits are made
        grad = None if ctx.grad_into_VD is not None else grad_weight_VD.to(weight_VD.dtype)
        return grad_hidden_KD, grad, None, None, None, None


def logprob_and_entropy(
    hidden_KD: Tensor,
    weight_VD: Tensor,
    target_K: Tensor,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    grad_into_VD: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Differentiable log-prob of each target and entropy of each distribution.

    Args:
        hidden_KD: the last layer's output at the predicting positions.
        weight_VD: the output head, without bias.
        target_K: int64 token ids.
        temperature: > 0.
        chunk: tokens whose logits exist at once; None means ``chunk_for`` the vocabulary.
        grad_into_VD: what the backward pass adds the head's gradient to, in place of giving it to
            autograd, which saves a tensor of the head's size.

    Returns:
        (logprob_K, entropy_K), nats, float32 (float64 for a float64 model).
    """
    chunk = _tokens(chunk, weight_VD)
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
    chunk: int | None = None,
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
    chunk = _tokens(chunk, weight_VD)
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
    chunk: int | None = None,
    reference: Reference | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Score tokens under the policy and measure the exact KL to a reference, without gradient.

    The KL is summed over the whole vocabulary: no sampling noise beyond which tokens were visited.

    Returns:
        (logprob_K, entropy_K, kl_K, ref_logprob_K), nats, float32 (float64 for a float64 model);
        the last two 0 without a reference.
    """
    chunk = _tokens(chunk, weight_VD)
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
    out_4K = torch.zeros(4, len(target_K), dtype=wide(dtype), device=hidden_KD.device)
    ref_VD = reference.weight_VD.to(dtype) if reference else None
    # Autocast would take the sums in half precision.
    with torch.autocast(hidden_KD.device.type, enabled=False):
        for here in spans(len(target_K), chunk):
            p_cV = logits_of(hidden_KD[here].to(dtype), head_VD, temperature)
            ref_logits_cV = None
            if reference and ref_VD is not None:
                ref_logits_cV = logits_of(reference.hidden_KD[here].to(dtype), ref_VD, temperature)
            to_probabilities(p_cV, target_K[here], out_4K[:, here], ref_logits_cV)
            del ref_logits_cV
            if visit:
                visit(here, p_cV)
            del p_cV  # before the next chunk's are made
    return out_4K


def _tokens(chunk: int | None, weight_VD: Tensor) -> int:
    return chunk_for(len(weight_VD), weight_VD.device.type) if chunk is None else chunk


def _gradient_sum(weight_VD: Tensor, grad_into_VD: Tensor | None) -> Tensor:
    """What a head's gradient is added up in: as given, or zeros."""
    if grad_into_VD is not None:
        return grad_into_VD
    return torch.zeros_like(weight_VD, dtype=wide(weight_VD.dtype))


def _add_product(sum_VD: Tensor, left_Vc: Tensor, right_cD: Tensor) -> None:
    """In place; without another [V, D] tensor where all are of one type."""
    if sum_VD.dtype == right_cD.dtype:
        sum_VD.addmm_(left_Vc, right_cD)
    else:
        sum_VD.add_(left_Vc @ right_cD)


def _matmul_dtype(hidden: Tensor) -> torch.dtype:
    """What a matrix product would be computed in here: autocast's type, or the tensor's own."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
