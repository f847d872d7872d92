"""Attention over a line of segments: each token sees its segment's context, then its own past.

A line holds responses to several prompts and each prompt once. Attending to all of it under a mask
would cost the square of its length; here every segment meets only the keys it may see. Registered
with transformers under ``NAME``: a model whose attention goes through its AttentionInterface calls
it in every layer and hands it the layout.

Letters: M tokens of the line, C of the line before it (0 where there is none), S segments of a
bundle, q and k padded queries and keys of a segment, H query heads, J key-value heads, E width of a
head, G groups of query heads that are computed with the same keys, n rows of a table.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tpcli.errors import UsageError
from tpcli.names import AttentionName
from tpcli.policy.segments import HeadBundle, HeadBundles, Segment, bundles_of, keys_of, with_heads

NAME = "tpcli_segments"

CHEAP = 512
"""Keys a query, padding counted, up to which attention is computed again in the backward pass: the
padded copies then take more memory than the line itself, and next to nothing to compute. Not where
``_LeanAttention`` is: it keeps no padded copies anyway."""


class Layout:
    """Who sees whom in one line, and the keys and values that a later line sees of it."""

    def __init__(
        self, segments: Sequence[Segment], *, before: "Layout | None" = None, kept: bool = False
    ) -> None:
        """Lay the segments out.

        Args:
            segments: in the order of the line, without gaps.
            before: the layout of the line before, which has been run.
            kept: keep every layer's keys and values for a line that follows.
        """
        self.segments = tuple(segments)
        self.tokens = sum(segment.length for segment in segments)
        self.before = before
        self.kept: dict[int, tuple[Tensor, Tensor]] | None = {} if kept else None
        self.calls = 0
        earlier = before.tokens if before else 0
        self._bundles = bundles_of(self.segments, earlier)
        pairs = sum(b.query_Sq.numel() * b.key_Sk.shape[1] for b in self._bundles)
        self._cheap = pairs <= CHEAP * self.tokens
        self._for_heads: dict[Hashable, HeadBundles] = {}
        self._spans = _Spans.of(self.segments, earlier)

    def to(self, device: torch.device) -> "Layout":
        """The same layout for a model on ``device``; in place. Bundles follow when asked for."""
        self._spans = self._spans.to(device)
        return self

    def padded(self, query_MHE: Tensor, key_JE: Tensor, value_JE: Tensor, scale: float) -> Tensor:
        """Attention bundle by bundle, [M, H, E]: torch's scaled dot product on padded segments."""
        bundles = self._with_heads(query_MHE, key_JE)
        inputs = (query_MHE, key_JE, value_JE, bundles, scale)
        if _has_cpu_kernels(query_MHE, value_JE):
            lean: Tensor = _LeanAttention.apply(*inputs)  # type: ignore[no-untyped-call]
            return lean
        if not (self._cheap and torch.is_grad_enabled()):
            return _attend_anywhere(*inputs)
        again: Any = checkpoint(
            _attend_anywhere, *inputs, use_reentrant=False, preserve_rng_state=False
        )
        attended_MHE: Tensor = again
        return attended_MHE

    def _with_heads(self, query_MHE: Tensor, key_JE: Tensor) -> HeadBundles:
        """The bundles for a model with these heads; its other layers find them made."""
        heads, kv_heads = query_MHE.shape[1], key_JE.shape[1]
        key = (heads, kv_heads, query_MHE.device, query_MHE.dtype)
        if key not in self._for_heads:
            made = with_heads(self._bundles, heads, kv_heads)
            self._for_heads[key] = made.to(query_MHE.device, query_MHE.dtype)
        return self._for_heads[key]

    def ragged(self, query_MHE: Tensor, key_JE: Tensor, value_JE: Tensor, scale: float) -> Tensor:
        """The same in one call of flash attention's variable-length form: no padding, no mask."""
        from torch.nn.attention.varlen import varlen_attn

        spans = self._spans
        out: Any = varlen_attn(
            query_MHE,
            _tokens(key_JE, spans.key_K),
            _tokens(value_JE, spans.key_K),
            spans.query_at,
            spans.key_at,
            spans.longest_query,
            spans.longest_key,
            scale=scale,
            # The last query of a segment is aligned with its last key: causal over what is its own,
            # and all of the context is in the past.
            window_size=(-1, 0),
            enable_gqa=True,
        )
        attended_MHE: Tensor = out
        return attended_MHE


@dataclass(frozen=True, slots=True, eq=False)
class _Spans:
    """The segments as flash attention's variable-length form wants them."""

    key_K: Tensor
    query_at: Tensor
    key_at: Tensor
    longest_query: int
    longest_key: int

    @classmethod
    def of(cls, segments: Sequence[Segment], earlier: int) -> "_Spans":
        def cumulated(sizes: Sequence[int]) -> Tensor:
            return torch.tensor([0, *sizes]).cumsum(0).int()

        return cls(
            key_K=torch.cat([keys_of(segment, earlier) for segment in segments]),
            query_at=cumulated([segment.length for segment in segments]),
            key_at=cumulated([segment.keys for segment in segments]),
            longest_query=max(segment.length for segment in segments),
            longest_key=max(segment.keys for segment in segments),
        )

    def to(self, device: torch.device) -> "_Spans":
        return _Spans(
            self.key_K.to(device),
            self.query_at.to(device),
            self.key_at.to(device),
            self.longest_query,
            self.longest_key,
        )


def attend_by_segments(model: PreTrainedModel) -> None:
    """From now on the model attends by segments where it is handed a layout, else as before."""
    model.set_attn_implementation(NAME)


def check_used(layout: Layout, model: PreTrainedModel) -> None:
    """Every layer has asked for its attention here; else its mask would be silently wrong."""
    layers = model.config.get_text_config().num_hidden_layers
    if layout.calls != layers:
        raise UsageError(
            f"{type(model).__name__} does not take its attention from transformers' "
            f"AttentionInterface ({layout.calls} of {layers} layers did)",
            hint="use a model of the Llama or Qwen families",
        )


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    kernel: AttentionName = "sdpa",
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What a layer calls, with [1, heads, M, E] each; returns [1, M, H, E]."""
    if layout is None:
        out: Any = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return out[0], None
    layout.calls += 1
    # Under autocast the rotary embedding leaves float32 behind; value has the projections' type.
    query, key = query.to(value.dtype), key.to(value.dtype)
    query_MHE, key_JE, value_JE = (x[0].transpose(0, 1) for x in (query, key, value))
    layer: Any = module.layer_idx
    if layout.kept is not None:
        layout.kept[layer] = (key_JE.detach(), value_JE.detach())
    if layout.before is not None:
        assert layout.before.kept is not None
        earlier_key, earlier_value = layout.before.kept[layer]
        key_JE, value_JE = torch.cat((earlier_key, key_JE)), torch.cat((earlier_value, value_JE))
    scale = query_MHE.shape[-1] ** -0.5 if scaling is None else scaling
    attend = layout.ragged if kernel == "varlen" else layout.padded
    return attend(query_MHE, key_JE, value_JE, scale)[None], None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


class _LeanAttention(torch.autograd.Function):
    """On a CPU; keeps queries, keys, values and results of the line, and pads them once more when
    the gradient is formed: the kernel's forward pass is not run again.

    These are the kernels that ``scaled_dot_product_attention`` chooses there.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_MHE: Tensor,
        key_JE: Tensor,
        value_JE: Tensor,
        bundles: HeadBundles,
        scale: float,
    ) -> Tensor:
        lines = (query_MHE, key_JE, value_JE)
        out, normalisers = [], []
        for bundle in bundles.bundles:
            attended, normaliser = _flash(*_padded(bundle, *lines), **_mask(bundle), scale=scale)
            out.append(_rows_of(attended))
            normalisers.append(normaliser)
        out_MHE = _line(out, bundles, query_MHE.shape)
        ctx.save_for_backward(*lines, out_MHE, *normalisers)
        ctx.bundles, ctx.scale = bundles, scale
        return out_MHE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query_MHE, key_JE, value_JE, out_MHE, *normalisers = ctx.saved_tensors
        grad_query = []
        grad_lines = [line.new_zeros(line.shape) for line in (key_JE, value_JE)]  # contiguous
        for bundle, normaliser in zip(ctx.bundles.bundles, normalisers, strict=True):
            # What stands for nothing has no result, so nothing may come back for it.
            grad = _rows(grads[0], bundle.query_n).index_fill_(0, bundle.padding_n, 0.0)
            found = _flash_backward(
                _heads(grad, bundle),
                *_padded(bundle, query_MHE, key_JE, value_JE),
                _heads(_rows(out_MHE, bundle.query_n), bundle),
                normaliser,
                0.0,
                **_mask(bundle),
                scale=ctx.scale,
            )
            grad_query.append(_rows_of(found[0]))
            for line, padded in zip(grad_lines, found[1:], strict=True):
                table = line.view(-1, line.shape[-1])
                table += torch.ops.aten.embedding_dense_backward(
                    _rows_of(padded), bundle.key_n, len(table), -1, False
                )
        return _line(grad_query, ctx.bundles, query_MHE.shape), *grad_lines, None, None


def _has_cpu_kernels(query_MHE: Tensor, value_JE: Tensor) -> bool:
    """Whether torch's kernels for CPUs compute this: they want values as wide as queries."""
    same = query_MHE.device.type == "cpu" and query_MHE.shape[-1] == value_JE.shape[-1]
    return same and hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward")


def _flash(*inputs: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *inputs, **options
    )
    return found


def _flash_backward(*inputs: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
    operator: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    found: tuple[Tensor, Tensor, Tensor] = operator(*inputs, **options)
    return found


def _attend_anywhere(
    query_MHE: Tensor, key_JE: Tensor, value_JE: Tensor, bundles: HeadBundles, scale: float
) -> Tensor:
    """The same by ``scaled_dot_product_attention``, anywhere; autograd keeps padded copies."""
    out = []
    for bundle in bundles.bundles:
        query, key, value = _padded(bundle, query_MHE, key_JE, value_JE)
        attended = functional.scaled_dot_product_attention(
            query, key, value, **_mask(bundle), scale=scale
        )
        out.append(_rows_of(attended))
    return _line(out, bundles, (*query_MHE.shape[:2], value_JE.shape[-1]))


def _padded(
    bundle: HeadBundle, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """A bundle's queries, keys and values, [S, G, .., E] each."""
    return (
        _heads(_rows(query, bundle.query_n), bundle),
        _heads(_rows(key, bundle.key_n), bundle),
        _heads(_rows(value, bundle.key_n), bundle),
    )


def _mask(bundle: HeadBundle) -> dict[str, Any]:
    return {"attn_mask": bundle.bias_S1qk, "is_causal": bundle.bias_S1qk is None}


def _heads(rows_nE: Tensor, bundle: HeadBundle) -> Tensor:
    """[S, G, .., E] of rows that stand as [S, .., G, E]."""
    split = rows_nE.view(bundle.segments, -1, bundle.groups, rows_nE.shape[-1])
    return split.transpose(1, 2)


def _rows_of(heads: Tensor) -> Tensor:
    """The inverse of ``_heads``; a view of what a CPU's kernels give."""
    return heads.transpose(1, 2).reshape(-1, heads.shape[-1])


def _line(rows: Sequence[Tensor], bundles: HeadBundles, shape: Sequence[int]) -> Tensor:
    """Each token's rows, from those of all bundles one after the other."""
    table = rows[0] if len(rows) == 1 else torch.cat(list(rows))
    return _rows(table, bundles.place_n).view(*shape)


def _rows(table: Tensor, index_n: Tensor) -> Tensor:
    """Rows of E numbers. As an embedding: its gradient adds in a fixed order, fast."""
    return functional.embedding(index_n, table.reshape(-1, table.shape[-1]))


def _tokens(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]`` along dim 0, likewise."""
    return functional.embedding(index, table.flatten(1)).view(len(index), *table.shape[1:])
