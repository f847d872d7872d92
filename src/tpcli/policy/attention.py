"""Attention over a line of segments: each token sees its segment's context, then its own past.

A line holds responses to several prompts and each prompt once. Attending to all of it under a mask
would cost the square of its length; here every segment meets only the keys it may see. Registered
with transformers under ``NAME``: a model whose attention goes through its AttentionInterface calls
it in every layer and hands it the layout.

Letters: M tokens of the line, C of the line before it (0 where there is none), S segments of a
bundle, q and k padded queries and keys of a segment, H query heads, J key-value heads, E width of a
head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
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
from tpcli.policy import heap

NAME = "tpcli_segments"

SMALL = 1 << 20
"""Query-key pairs that are computed in one call whatever the padding: the call itself costs."""
SLACK = 1.3
"""Otherwise a bundle may be so many times larger than what it holds."""
CHEAP = 512
"""Keys a query, padding counted, up to which attention is computed again in the backward pass: the
padded copies then take more memory than the line itself, and next to nothing to compute."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Successive queries of a line.

    Attributes:
        start, length: of its own tokens in the line.
        context: runs (start, length) of keys that every query of it sees, counted from the first
            key of the line before.
    """

    start: int
    length: int
    context: tuple[tuple[int, int], ...] = ()

    @property
    def keys(self) -> int:
        """That its last query sees."""
        return sum(length for _, length in self.context) + self.length


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """Segments of one call, padded to the longest context and the longest segment.

    Attributes:
        query_Sq, key_Sk: int64 indices into the line, and into both lines' keys.
        bias_S1qk: 0 where the query sees the key, else -inf; None for plain causal attention.
    """

    query_Sq: Tensor
    key_Sk: Tensor
    bias_S1qk: Tensor | None


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
        self._bundles = [_bundle(part, earlier) for part in _parts(self.segments)]
        pairs = sum(b.query_Sq.numel() * b.key_Sk.shape[1] for b in self._bundles)
        self._cheap = pairs <= CHEAP * self.tokens
        self._place_M = _places(self.segments, self._bundles)
        self._spans = _Spans.of(self.segments, earlier)

    def to(self, device: torch.device) -> "Layout":
        """The same layout with its indices on ``device``; in place."""
        self._bundles = [
            Bundle(
                bundle.query_Sq.to(device),
                bundle.key_Sk.to(device),
                None if bundle.bias_S1qk is None else bundle.bias_S1qk.to(device),
            )
            for bundle in self._bundles
        ]
        self._place_M = self._place_M.to(device)
        self._spans = self._spans.to(device)
        return self

    def padded(self, query_MHE: Tensor, key_JE: Tensor, value_JE: Tensor, scale: float) -> Tensor:
        """Attention bundle by bundle, [M, H, E]: torch's scaled dot product on padded segments."""
        if not (self._cheap and torch.is_grad_enabled()):
            return self._padded(query_MHE, key_JE, value_JE, scale)
        again: Any = checkpoint(
            self._padded,
            query_MHE,
            key_JE,
            value_JE,
            scale,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        attended_MHE: Tensor = again
        return attended_MHE

    def _padded(self, query_MHE: Tensor, key_JE: Tensor, value_JE: Tensor, scale: float) -> Tensor:
        out = [
            _attend(query_MHE, key_JE, value_JE, bundle, scale).flatten(0, 1)
            for bundle in self._bundles
        ]
        if len(out) == 1 and len(out[0]) == self.tokens and len(self.segments) == 1:
            return out[0]
        return _rows(torch.cat(out), self._place_M)

    def ragged(self, query_MHE: Tensor, key_JE: Tensor, value_JE: Tensor, scale: float) -> Tensor:
        """The same in one call of flash attention's variable-length form: no padding, no mask."""
        from torch.nn.attention.varlen import varlen_attn

        spans = self._spans
        out: Any = varlen_attn(
            query_MHE,
            _rows(key_JE, spans.key_K),
            _rows(value_JE, spans.key_K),
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
            key_K=torch.cat([_keys(segment, earlier) for segment in segments]),
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
    if layout.calls % heap.LAYERS == 0 and query.device.type == "cpu" and torch.is_grad_enabled():
        heap.trim()
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


def _attend(
    query_MHE: Tensor, key_JE: Tensor, value_JE: Tensor, bundle: Bundle, scale: float
) -> Tensor:
    """One bundle, [S, q, H, E]."""
    (segments, queries), (_, keys) = bundle.query_Sq.shape, bundle.key_Sk.shape
    heads, width = query_MHE.shape[1:]
    kv_heads = key_JE.shape[1]
    query = _rows(query_MHE, bundle.query_Sq.flatten()).view(segments, queries, heads, width)
    key, value = (
        _rows(x, bundle.key_Sk.flatten()).view(segments, keys, kv_heads, width)
        for x in (key_JE, value_JE)
    )
    bias = bundle.bias_S1qk
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    shared = heads // kv_heads
    if shared > 1 and bias is not None and bias.numel() <= SMALL:
        # The query heads of a group as further queries: no copy of keys and values for each.
        query = query.reshape(segments, kv_heads, shared * queries, width)
        bias = bias.repeat(1, 1, shared, 1)
    elif shared > 1:
        key, value = (x.repeat_interleave(shared, dim=1) for x in (key, value))
    out_SHqE = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if bias is None else bias.to(query.dtype),
        is_causal=bias is None,
        scale=scale,
    )
    # Not view: kernels for CUDA lay the result out in another order.
    return out_SHqE.reshape(segments, heads, queries, width).transpose(1, 2)


def _rows(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]`` along dim 0. As an embedding: its gradient adds in a fixed order, fast."""
    return functional.embedding(index, table.flatten(1)).view(len(index), *table.shape[1:])


def _keys(segment: Segment, earlier: int) -> Tensor:
    runs = (*segment.context, (earlier + segment.start, segment.length))
    return torch.cat([torch.arange(start, start + length) for start, length in runs])


def _parts(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Segments of like size together, so that padding stays small."""
    found: list[list[Segment]] = []
    for segment in sorted(segments, key=lambda s: (-s.length, -s.keys)):
        if found and _fits([*found[-1], segment]):
            found[-1].append(segment)
        else:
            found.append([segment])
    return found


def _fits(part: Sequence[Segment]) -> bool:
    longest = max(segment.length for segment in part)
    context = max(segment.keys - segment.length for segment in part)
    padded = len(part) * longest * (longest + context)
    return padded <= max(SMALL, SLACK * sum(segment.length * segment.keys for segment in part))


def _bundle(part: Sequence[Segment], earlier: int) -> Bundle:
    """Contexts stand right, own tokens left of where they meet: causality is then the same."""
    queries = max(segment.length for segment in part)
    context = max(segment.keys - segment.length for segment in part)
    query_Sq = torch.zeros(len(part), queries, dtype=torch.int64)
    key_Sk = torch.zeros(len(part), context + queries, dtype=torch.int64)
    seen_Sk = torch.zeros(key_Sk.shape, dtype=torch.bool)
    for s, segment in enumerate(part):
        keys = _keys(segment, earlier)
        first = context - (len(keys) - segment.length)
        query_Sq[s, : segment.length] = torch.arange(segment.start, segment.start + segment.length)
        key_Sk[s, first : first + len(keys)] = keys
        seen_Sk[s, first : first + len(keys)] = True
    if not context and bool(seen_Sk.all()):
        return Bundle(query_Sq, key_Sk, None)
    causal_qk = torch.ones(queries, context + queries, dtype=torch.bool).tril(context)
    # A padding query may see its own column: a softmax over nothing is undefined.
    own_qk = torch.eye(queries, dtype=torch.bool)
    own_qk = functional.pad(own_qk, (context, 0))
    sees_Sqk = (causal_qk & seen_Sk[:, None]) | own_qk
    bias_S1qk = torch.zeros(sees_Sqk.shape).masked_fill_(~sees_Sqk, -torch.inf)[:, None]
    return Bundle(query_Sq, key_Sk, bias_S1qk)


def _places(segments: Sequence[Segment], bundles: Sequence[Bundle]) -> Tensor:
    """Where each token of the line stands in the bundles' flattened, concatenated queries."""
    place_M = torch.zeros(sum(segment.length for segment in segments), dtype=torch.int64)
    sizes = [bundle.query_Sq.numel() for bundle in bundles]
    starts = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    for part, bundle, (start, _) in zip(_parts(segments), bundles, pairwise(starts), strict=True):
        width = bundle.query_Sq.shape[1]
        for s, segment in enumerate(part):
            at = start + s * width
            place_M[segment.start : segment.start + segment.length] = torch.arange(
                at, at + segment.length
            )
    return place_M
