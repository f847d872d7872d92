"""Segments of a line, and their padded bundles as indices: who meets whom, without any numbers.

Letters: M tokens of the line, S segments of a bundle, q and k padded queries and keys of a segment,
H query heads, J key-value heads, E width of a head, G groups of query heads that are computed with
the same keys, n rows of a table.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALL = 1 << 20
"""Query-key pairs that are computed in one call whatever the padding: the call itself costs."""
SLACK = 1.3
"""Otherwise a bundle may be so many times larger than what it holds."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Successive queries of a line.

    Attributes:
        start, length: of its own tokens in the line; at least one.
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


def keys_of(segment: Segment, earlier: int) -> Tensor:
    """Where the keys of a segment stand, with ``earlier`` keys of the line before in front."""
    runs = (*segment.context, (earlier + segment.start, segment.length))
    return torch.cat([torch.arange(start, start + length) for start, length in runs])


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """Segments of one call, padded to the longest context and the longest segment.

    Attributes:
        parts: the segments.
        query_Sq, key_Sk: int64 indices into the line, and into both lines' keys.
        padding_Sq: bool, True where ``query_Sq`` stands for nothing.
        bias_S1qk: 0 where the query sees the key, else -inf; None for plain causal attention.
    """

    parts: tuple[Segment, ...]
    query_Sq: Tensor
    key_Sk: Tensor
    padding_Sq: Tensor
    bias_S1qk: Tensor | None


def bundles_of(segments: Sequence[Segment], earlier: int) -> list[Bundle]:
    """Segments of like size together, so that padding stays small."""
    found: list[list[Segment]] = []
    for segment in sorted(segments, key=lambda s: (-s.length, -s.keys)):
        if found and _fits([*found[-1], segment]):
            found[-1].append(segment)
        else:
            found.append([segment])
    return [_bundle(part, earlier) for part in found]


@dataclass(frozen=True, slots=True, eq=False)
class HeadBundle:
    """A bundle for a model's heads: rows of E numbers, in the order in which kernels read them.

    Attributes:
        query_n: int64, rows of the line's queries, [M * H, E], for [S, q * H / G, G, E].
        key_n: int64, rows of both lines' keys, [.. * J, E], for [S, k, G, E].
        padding_n: int64, rows of the former that stand for nothing.
        bias_S1qk: for the q * H / G queries of a group, or None.
        segments, groups: S and G.
    """

    query_n: Tensor
    key_n: Tensor
    padding_n: Tensor
    bias_S1qk: Tensor | None
    segments: int
    groups: int


@dataclass(frozen=True, slots=True, eq=False)
class HeadBundles:
    """All bundles of a line for a model's heads.

    Attributes:
        place_n: int64 [M * H], where each query's row stands among the bundles' results, which
            follow each other.
    """

    bundles: tuple[HeadBundle, ...]
    place_n: Tensor

    def to(self, device: torch.device, dtype: torch.dtype) -> "HeadBundles":
        """Indices on ``device``, biases of ``dtype`` as well."""
        moved = tuple(
            HeadBundle(
                bundle.query_n.to(device),
                bundle.key_n.to(device),
                bundle.padding_n.to(device),
                None if bundle.bias_S1qk is None else bundle.bias_S1qk.to(device, dtype),
                bundle.segments,
                bundle.groups,
            )
            for bundle in self.bundles
        )
        return HeadBundles(moved, self.place_n.to(device))


def with_heads(bundles: Sequence[Bundle], heads: int, kv_heads: int) -> HeadBundles:
    """Lay bundles out for a model of ``heads`` query and ``kv_heads`` key-value heads.

    Where a bundle has a mask and it is small, the query heads of a group are further queries of one
    head, so that no key is copied for each of them; else they are heads with copies of their keys.
    """
    laid = []
    place_MH = torch.zeros(sum(s.length for b in bundles for s in b.parts), heads).long()
    start = 0
    for bundle in bundles:
        bias = bundle.bias_S1qk
        groups = kv_heads if bias is not None and bias.numel() <= SMALL else heads
        shared = heads // groups
        # Head g * shared + s is query s of group g.
        head_sG = torch.arange(heads).view(groups, shared).T
        key_head_G = torch.arange(groups) * kv_heads // groups
        query_SqsG = bundle.query_Sq[..., None, None] * heads + head_sG
        padding_SqsG = bundle.padding_Sq[..., None, None].expand_as(query_SqsG)
        row_SqsG = torch.arange(query_SqsG.numel()).view_as(query_SqsG) + start
        start += query_SqsG.numel()
        place_MH.view(-1)[query_SqsG[~padding_SqsG]] = row_SqsG[~padding_SqsG]
        if bias is not None and shared > 1:
            bias = bias.repeat_interleave(shared, dim=2)
        laid.append(
            HeadBundle(
                query_n=query_SqsG.flatten(),
                key_n=(bundle.key_Sk[..., None] * kv_heads + key_head_G).flatten(),
                padding_n=padding_SqsG.flatten().nonzero()[:, 0],
                bias_S1qk=bias,
                segments=len(bundle.parts),
                groups=groups,
            )
        )
    return HeadBundles(tuple(laid), place_MH.flatten())


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
    padding_Sq = torch.ones(query_Sq.shape, dtype=torch.bool)
    for s, segment in enumerate(part):
        keys = keys_of(segment, earlier)
        first = context - (len(keys) - segment.length)
        query_Sq[s, : segment.length] = torch.arange(segment.start, segment.start + segment.length)
        padding_Sq[s, : segment.length] = False
        key_Sk[s, first : first + len(keys)] = keys
        seen_Sk[s, first : first + len(keys)] = True
    parts = tuple(part)
    if not context:  # padding keys stand behind all that is seen
        return Bundle(parts, query_Sq, key_Sk, padding_Sq, None)
    causal_qk = torch.ones(queries, context + queries, dtype=torch.bool).tril(context)
    # Padding queries see their segment, so that none sees nothing: its softmax would be undefined.
    sees_Sqk = causal_qk & seen_Sk[:, None]
    bias_S1qk = torch.zeros(sees_Sqk.shape).masked_fill_(~sees_Sqk, -torch.inf)[:, None]
    return Bundle(parts, query_Sq, key_Sk, padding_Sq, bias_S1qk)
