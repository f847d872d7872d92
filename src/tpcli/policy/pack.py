"""Lines of a forward pass: what responses have in common stands once, and none sees another.

A row is a tree: the tokens that all its prompts begin with, each prompt's own rest, each response.
A micro-batch is one line of the rows' tokens, without padding. Every token looks at its own branch
back to the root, so hidden states and gradients are those of the plain form. The last token of a
response predicts nothing that is scored, so it is not an input.

Letters: M tokens of a line, B responses of the step, b responses of a micro-batch, T padded tokens
of a response.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from os.path import commonprefix
from typing import Self

import torch
from torch import Tensor

from tpcli.policy.attention import Layout
from tpcli.policy.segments import Segment
from tpcli.types import Prompt, TokenBatch


@dataclass(frozen=True, slots=True)
class Row:
    """Responses (indices into the batch), by the prompt they answer.

    Attributes:
        shared: tokens at the head that all prompts of the row begin with.
        branches: (prompt, its responses).
        tokens: that the row has.
    """

    shared: int
    branches: tuple[tuple[int, tuple[int, ...]], ...]
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """Tokens that go through the model together.

    Attributes:
        input_M: int64 token ids.
        position_M: int64; every response continues its prompt's positions.
        layout: who sees whom.
    """

    input_M: Tensor
    position_M: Tensor
    layout: Layout

    def to(self, device: torch.device) -> Self:
        """The same line on another device."""
        return type(self)(
            self.input_M.to(device), self.position_M.to(device), self.layout.to(device)
        )


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """One micro-batch, ready for the model.

    Attributes:
        responses_b: int64, which responses of the batch these are.
        lines: one; or two, of which the first is context that gets no gradient.
        predictor_bT: int64, index into the tokens of the lines, one after the other, of the one
            that predicts response token (b, t); 0 on padding.
        target_bT: int64 response tokens.
        mask_bT: bool, True on response tokens.
    """

    responses_b: Tensor
    lines: tuple[Line, ...]
    predictor_bT: Tensor
    target_bT: Tensor
    mask_bT: Tensor

    def to(self, device: torch.device) -> Self:
        """The same micro-batch on another device."""
        return type(self)(
            self.responses_b.to(device),
            tuple(line.to(device) for line in self.lines),
            self.predictor_bT.to(device),
            self.target_bT.to(device),
            self.mask_bT.to(device),
        )


def plan_rows(
    batch: TokenBatch, responses: Sequence[int], *, budget: int, share: bool = True
) -> list[list[Row]]:
    """Divide responses into micro-batches of like size, each of at most ``budget`` tokens.

    Responses of one prompt share a row while it fits; so do prompts, where most of each is the same
    for all (worked examples). A single response that is longer than the budget gets a micro-batch
    of its own.

    Args:
        responses: indices into the batch; those of a prompt stand together.
        budget: tokens, at least 1.
        share: False gives every response a row of its own (the plain form, for comparison).
    """
    lengths = batch.mask_BT.sum(-1).tolist()
    shared = shared_prefix(batch.prompts) if share else 0
    inputs = {index: max(int(lengths[index]) - 1, 0) for index in responses}
    rests = {i // batch.group_size: 0 for i in responses}
    for prompt in rests:
        rests[prompt] = len(batch.prompts[prompt].tokens) - shared
    total = shared + sum(rests.values()) + sum(inputs.values())
    # Rows no larger than an even share, so that a group too large for one is cut evenly.
    even = -(-total // -(-total // budget)) if total else 1
    limit = min(budget, even + max(inputs.values(), default=0))
    rows: list[Row] = []
    for index in responses:
        prompt = index // batch.group_size
        grown = _grown(rows[-1], prompt, index, inputs[index], rests[prompt]) if rows else None
        if share and grown and grown.tokens <= limit:
            rows[-1] = grown
        else:
            alone = shared + rests[prompt] + inputs[index]
            rows.append(Row(shared, ((prompt, (index,)),), alone))
    return _balanced(rows, budget)


def _balanced(rows: Sequence[Row], budget: int) -> list[list[Row]]:
    """As few micro-batches as this finds, the longest row always to the one with the least."""
    order = sorted(rows, key=lambda row: -row.tokens)
    for bins in count(max(1, -(-sum(row.tokens for row in rows) // budget))):
        batches: list[list[Row]] = [[] for _ in range(bins)]
        loads = [0] * bins
        for row in order:
            least = loads.index(min(loads))
            batches[least].append(row)
            loads[least] += row.tokens
        filled = [rows_ for rows_ in batches if rows_]
        if all(len(one) == 1 or sum(r.tokens for r in one) <= budget for one in filled):
            return filled
    raise AssertionError("as many micro-batches as rows always fit")


def shared_prefix(prompts: Sequence[Prompt]) -> int:
    """Tokens that all prompts begin with, if they are half of the average prompt; else 0.

    Every prompt keeps a token of its own. Prompts that share little gain nothing from one row, and
    attention over a row grows with the square of its length.
    """
    if len(prompts) < 2:
        return 0
    common = len(commonprefix([p.tokens[:-1] for p in prompts]))  # noqa: RUF071 (not paths)
    return common if 2 * common * len(prompts) >= sum(len(p.tokens) for p in prompts) else 0


def _grown(row: Row, prompt: int, index: int, inputs: int, rest: int) -> Row | None:
    """``row`` with one more response; None where it may not join."""
    *before, (last, responses) = row.branches
    if last == prompt:
        branches = (*before, (last, (*responses, index)))
        return Row(row.shared, branches, row.tokens + inputs)
    if not row.shared:
        return None
    return Row(row.shared, (*row.branches, (prompt, (index,))), row.tokens + rest + inputs)


def pack(
    rows: Sequence[Row], batch: TokenBatch, *, learns_from: Sequence[int] | None = None
) -> Packed:
    """Lay out ``rows`` as one micro-batch.

    Args:
        learns_from: by response of the batch, its first token whose log-prob gets a gradient; what
            precedes that token's predictor then goes into a first line, to be run without gradient.
            None is the exact form.
    """
    responses_b = torch.tensor([i for row in rows for _, every in row.branches for i in every])
    mask_bT = batch.mask_BT[responses_b]
    predictor_bT = torch.zeros_like(mask_bT, dtype=torch.int64)
    head, tail = _Sheet(), _Sheet()
    parts = [part for row in rows for part in _write(row, batch, head, tail, learns_from)]
    for b, (first, early, late) in enumerate(parts):
        predictor_bT[b, :first] = torch.tensor(early, dtype=torch.int64)
        predictor_bT[b, first : first + len(late)] = torch.tensor(late) + head.tokens
    lines = [head.line(kept=learns_from is not None)]
    if learns_from is not None:
        lines.append(tail.line(before=lines[0].layout))
    return Packed(
        responses_b=responses_b,
        lines=tuple(lines),
        predictor_bT=torch.where(mask_bT, predictor_bT, 0),
        target_bT=torch.where(mask_bT, batch.tokens_BT[responses_b], 0),
        mask_bT=mask_bT,
    )


_Run = tuple[int, int]


class _Sheet:
    """A line while it is written."""

    def __init__(self) -> None:
        self._inputs: list[int] = []
        self._positions: list[int] = []
        self._segments: list[Segment] = []

    @property
    def tokens(self) -> int:
        """Written so far."""
        return len(self._inputs)

    def write(
        self, tokens: Sequence[int], *, position: int, context: Sequence[_Run] = (), join: bool
    ) -> _Run:
        """Append tokens as a segment of their own, or to the last one; returns where they stand."""
        run = (len(self._inputs), len(tokens))
        if not tokens:
            return run
        self._inputs += tokens
        self._positions += range(position, position + len(tokens))
        if join:
            last = self._segments.pop()
            self._segments.append(Segment(last.start, last.length + len(tokens), last.context))
        else:
            runs = tuple(one for one in context if one[1])
            self._segments.append(Segment(*run, runs))
        return run

    def line(self, *, before: Layout | None = None, kept: bool = False) -> Line:
        """What has been written."""
        return Line(
            torch.tensor(self._inputs),
            torch.tensor(self._positions),
            Layout(self._segments, before=before, kept=kept),
        )


def _write(
    row: Row, batch: TokenBatch, head: _Sheet, tail: _Sheet, learns_from: Sequence[int] | None
) -> Iterator[tuple[int, list[int], range]]:
    """Write a row; of each response, its first token that is predicted from the second line, and
    the predictors in either line."""
    # A single response has no branch: one causal segment.
    lone = len(row.branches) == len(row.branches[0][1]) == 1
    root = batch.prompts[row.branches[0][0]].tokens[: row.shared]
    trunk = head.write(root, position=0, join=False)
    for prompt, responses in row.branches:
        rest = batch.prompts[prompt].tokens[row.shared :]
        asked = row.shared + len(rest)
        stem = head.write(rest, position=row.shared, context=(trunk,), join=lone and row.shared > 0)
        for index in responses:
            length = int(batch.mask_BT[index].sum())
            tokens = batch.tokens_BT[index, :length].tolist()
            first = length if learns_from is None else min(learns_from[index], length)
            early = tokens[: max(first - 1, 0)]
            leaf = head.write(early, position=asked, context=(trunk, stem), join=lone)
            # The prompt's last token predicts the first response token, each one the next.
            ahead = [sum(stem) - 1, *range(leaf[0], sum(leaf))] if first else []
            late = range(0)
            if first < length:
                # The predictor of the first learning token is learned through as well.
                inputs = [*rest[-1:], *tokens][first:length]
                before = (trunk, stem, leaf) if first else (trunk, (stem[0], stem[1] - 1))
                run = tail.write(inputs, position=asked + first - 1, context=before, join=False)
                late = range(run[0], sum(run))
            yield first, ahead, late
