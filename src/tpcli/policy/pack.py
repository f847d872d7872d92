"""Rows of a forward pass: what responses have in common stands once, and none sees another.

A row is a tree written out in one line: the tokens that all its prompts begin with, each prompt's
own rest, each response. Every token looks at its own branch back to the root, so hidden states and
gradients are those of the plain form. The last token of a response predicts nothing that is scored,
so it is not an input.

Letters: R rows, N padded row length, M = R * N, B responses of the step, b responses of a
micro-batch, T padded response tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from os.path import commonprefix
from typing import Any, Self

import torch
from torch import Tensor

from tpcli.types import Prompt, TokenBatch

PAD = -1
ROOT = 0


@dataclass(frozen=True, slots=True)
class Row:
    """Responses (indices into the batch), by the prompt they answer.

    Attributes:
        shared: tokens at the head that all prompts of the row begin with.
        branches: (prompt, its responses).
        tokens: length of the row.
    """

    shared: int
    branches: tuple[tuple[int, tuple[int, ...]], ...]
    tokens: int


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """One micro-batch, ready for the model.

    Attributes:
        responses_b: int64, which responses of the batch these are.
        input_RN: int64 token ids, right-padded.
        position_RN: int64; every response continues its prompt's positions.
        attend_R1NN: bool, True where the row's token may look at the column's; None where plain
            causal attention says the same (one response a row).
        predictor_bT: int64, index into the M flattened positions of the one that predicts
            response token (b, t); 0 on padding.
        target_bT: int64 response tokens.
        mask_bT: bool, True on response tokens.
    """

    responses_b: Tensor
    input_RN: Tensor
    position_RN: Tensor
    attend_R1NN: Tensor | None
    predictor_bT: Tensor
    target_bT: Tensor
    mask_bT: Tensor

    def to(self, device: torch.device) -> Self:
        """The same micro-batch on another device."""
        every: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {k: v if v is None else v.to(device) for k, v in every.items()}
        return type(self)(**moved)


def plan_rows(
    batch: TokenBatch, responses: Sequence[int], *, budget: int, share: bool = True
) -> list[list[Row]]:
    """Divide responses into micro-batches of rows, each at most ``budget`` padded tokens.

    Responses of one prompt share a row while it fits the budget; so do prompts, where most of each
    is the same for all (worked examples). A single response that is longer than the budget gets a
    micro-batch of its own. Rows of like length stand together.

    Args:
        responses: indices into the batch; those of a prompt stand together.
        budget: tokens, at least 1.
        share: False gives every response a row of its own (the plain form, for comparison).
    """
    lengths = batch.mask_BT.sum(-1).tolist()
    shared = shared_prefix(batch.prompts) if share else 0
    rows: list[Row] = []
    for index in responses:
        prompt = index // batch.group_size
        inputs = max(int(lengths[index]) - 1, 0)
        rest = len(batch.prompts[prompt].tokens) - shared
        grown = _grown(rows[-1], prompt, index, inputs, rest) if rows and share else None
        if grown and grown.tokens <= budget:
            rows[-1] = grown
        else:
            rows.append(Row(shared, ((prompt, (index,)),), shared + rest + inputs))
    rows.sort(key=lambda row: -row.tokens)
    batches: list[list[Row]] = []
    for row in rows:
        # The first row of a micro-batch is its longest: it sets the padded length.
        if batches and (len(batches[-1]) + 1) * batches[-1][0].tokens <= budget:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


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


def pack(rows: Sequence[Row], batch: TokenBatch, *, pad_id: int) -> Packed:
    """Lay out ``rows`` as one micro-batch."""
    responses_b = torch.tensor([i for row in rows for _, every in row.branches for i in every])
    mask_bT = batch.mask_BT[responses_b]
    sheet = _Sheet(len(rows), max(row.tokens for row in rows), pad_id)
    predictor_bT = torch.zeros_like(mask_bT, dtype=torch.int64)
    b = 0
    for r, row in enumerate(rows):
        sheet.begin(r)
        root = batch.prompts[row.branches[0][0]].tokens[: row.shared]
        sheet.write(torch.tensor(root, dtype=torch.int64), position=0, parent=ROOT, segment=ROOT)
        for prompt, responses in row.branches:
            rest = torch.tensor(batch.prompts[prompt].tokens[row.shared :], dtype=torch.int64)
            stem, at = sheet.write(rest, position=row.shared, parent=ROOT)
            for index in responses:
                length = int(batch.mask_BT[index].sum())
                inputs = batch.tokens_BT[index, : max(length - 1, 0)]
                _, leaf = sheet.write(inputs, position=row.shared + len(rest), parent=stem)
                # The prompt's last token predicts the first response token, each one the next.
                predictor_bT[b, :1] = at + len(rest) - 1
                predictor_bT[b, 1:length] = leaf + torch.arange(len(inputs))
                b += 1
    alone = all(len(row.branches) == 1 and len(row.branches[0][1]) == 1 for row in rows)
    return Packed(
        responses_b=responses_b,
        input_RN=sheet.input_RN,
        position_RN=sheet.position_RN,
        attend_R1NN=None if alone else attention(sheet.segment_RN, sheet.parent_RN),
        predictor_bT=torch.where(mask_bT, predictor_bT, 0),
        target_bT=torch.where(mask_bT, batch.tokens_BT[responses_b], 0),
        mask_bT=mask_bT,
    )


class _Sheet:
    """The rows while they are written, segment by segment."""

    def __init__(self, rows: int, width: int, pad_id: int) -> None:
        self.input_RN = torch.full((rows, width), pad_id, dtype=torch.int64)
        self.position_RN = torch.arange(width).repeat(rows, 1)
        self.segment_RN = torch.full((rows, width), PAD, dtype=torch.int64)
        self.parent_RN = torch.full((rows, width), PAD, dtype=torch.int64)
        self._row = self._cursor = self._segment = 0

    def begin(self, row: int) -> None:
        """Start a row."""
        self._row, self._cursor, self._segment = row, 0, ROOT

    def write(
        self, tokens: Tensor, *, position: int, parent: int, segment: int | None = None
    ) -> tuple[int, int]:
        """Append a segment; returns its number and its flat index in the micro-batch."""
        if segment is None:
            self._segment += 1
            segment = self._segment
        here = slice(self._cursor, self._cursor + len(tokens))
        self.input_RN[self._row, here] = tokens
        self.position_RN[self._row, here] = torch.arange(position, position + len(tokens))
        self.segment_RN[self._row, here] = segment
        self.parent_RN[self._row, here] = parent
        flat = self._row * self.input_RN.shape[1] + self._cursor
        self._cursor += len(tokens)
        return segment, flat


def attention(segment_RN: Tensor, parent_RN: Tensor) -> Tensor:
    """Who may look at whom: the past of one's own segment, its parent and the root.

    Returns:
        bool [R, 1, N, N]; no row of it is empty, so the softmax is defined on padding too.
    """
    width = segment_RN.shape[1]
    causal_NN = torch.ones(width, width, dtype=torch.bool, device=segment_RN.device).tril()
    key_R1N = segment_RN[:, None, :]
    own_RNN = key_R1N == segment_RN[:, :, None]
    branch_RNN = own_RNN | (key_R1N == parent_RN[:, :, None]) | (key_R1N == ROOT)
    return (branch_RNN & causal_NN)[:, None]
