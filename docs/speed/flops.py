"""Floating-point operations of an update, counted from the shapes of what was run.

A multiplication and an addition are two operations. Letters: N parameters of the body's matrices,
M tokens of a forward pass, D hidden size, V vocabulary, H heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """A model.

    Attributes:
        body: N, parameters of the matrices between embedding and head.
        attention: H * E summed over the layers.
        hidden: D.
        vocabulary: V.
    """

    body: int
    attention: int
    hidden: int
    vocabulary: int

    @classmethod
    def of(cls, model: Any) -> Shape:
        """Of a transformers model whose head is a linear map."""
        body, head = model.base_model, model.get_output_embeddings()
        embedding = body.get_input_embeddings().weight
        matrices = [p for p in body.parameters() if p.ndim == 2 and p is not embedding]
        config = model.config.get_text_config()
        width = getattr(config, "head_dim", None)
        width = width or config.hidden_size // config.num_attention_heads
        return cls(
            body=sum(p.numel() for p in matrices),
            attention=config.num_hidden_layers * config.num_attention_heads * width,
            hidden=head.weight.shape[1],
            vocabulary=head.weight.shape[0],
        )


@dataclass(frozen=True, slots=True)
class Pass:
    """One run of the body.

    Attributes:
        tokens: M.
        pairs: (query, key) pairs that a head attends to, padding left out.
        learns: a backward pass follows.
    """

    tokens: int
    pairs: int
    learns: bool


def causal_pairs(length: int, context: int = 0) -> int:
    """Pairs of ``length`` queries that see ``context`` keys, themselves and what precedes them."""
    return length * context + length * (length + 1) // 2


def body_flops(shape: Shape, one: Pass) -> int:
    """2 N M of the matrices and 4 H E pairs of attention (scores, then values).

    Backward costs twice that: the gradient of the input and of the weight, or of both factors.
    What attention computes again in its backward pass is not counted: it is a choice of the kernel.
    """
    forward = 2 * shape.body * one.tokens + 4 * shape.attention * one.pairs
    return 3 * forward if one.learns else forward


def head_flops(shape: Shape, *, scored: int, learned: int) -> int:
    """2 D V for the logits of each scored token, and 4 D V more where it is learned from.

    The gradient is formed while the logits exist, so no logits are computed twice.
    """
    return shape.hidden * shape.vocabulary * (2 * scored + 4 * learned)


def update_flops(shape: Shape, passes: Sequence[Pass], *, scored: int, learned: int) -> int:
    """Of a whole update: its runs of the body, and its passes over the head.

    The optimiser is left out: a few operations a parameter, bound by memory.
    """
    body = sum(body_flops(shape, one) for one in passes)
    return body + head_flops(shape, scored=scored, learned=learned)
