"""Keys and values of rows that come, grow and leave one by one, in room that is taken once.

Letters: A rows of a forward pass, N new tokens a row, H key-value heads, S columns seen, D width of
a head.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache


class Slots(Cache):
    """A cache whose row a holds its own token n in column n, whatever the other rows hold.

    ``span`` or ``step`` says where the next forward pass writes; the pass then sees every column up
    to the last one written. What stands in a column beyond a row's own end is left over from
    another response: only the mask that ``step`` returns hides it.
    """

    def __init__(self, rows: int, columns: int, device: torch.device) -> None:
        super().__init__(layers=[])
        self._rows, self._columns, self._device = rows, columns, device
        self._store: dict[int, tuple[Tensor, Tensor]] = {}
        self._into: tuple[Any, ...] = ()
        self._seen: tuple[slice, slice, slice] = (slice(0), slice(0), slice(0))
        self._before = 0

    def span(self, first: int, rows: int, column: int, width: int) -> Tensor | None:
        """The next pass writes columns ``column`` to ``column + width`` of ``rows`` rows.

        Args:
            first: the first of those rows, which stand together.

        Returns:
            Whom each of them attends to (bool, 1 x 1 x N x S); None for plain causal attention.
        """
        block, end = slice(first, first + rows), column + width
        self._into = (block, slice(None), slice(column, end))
        self._seen, self._before = (block, slice(None), slice(end)), column
        if column == 0 or width == 1:
            return None
        device = self._device
        return torch.ones(width, end, dtype=torch.bool, device=device).tril(column)[None, None]

    def step(self, columns: Sequence[int]) -> Tensor | None:
        """The next pass writes one token a row: row a's in ``columns[a]``.

        Returns:
            Whom each of them attends to (bool, A x 1 x 1 x S); None where rows are equally long.
        """
        rows, before = len(columns), max(columns)
        if min(columns) == before:
            return self.span(0, rows, before, 1)
        column_A = torch.tensor(columns, device=self._device)
        self._into = (torch.arange(rows, device=self._device), slice(None), column_A)
        self._seen = (slice(rows), slice(None), slice(before + 1))
        self._before = before
        own_AS = torch.arange(before + 1, device=self._device) <= column_A[:, None]
        return own_AS[:, None, None]

    def copy(self, source: Sequence[int], target: Sequence[int], columns: int) -> None:
        """Rows ``target`` get the first ``columns`` columns of rows ``source``, all at once."""
        if not target:
            return
        from_A = torch.tensor(source, device=self._device)
        to_A = torch.tensor(target, device=self._device)
        for pair in self._store.values():
            for store in pair:
                store[to_A, :, :columns] = store[from_A, :, :columns]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens (A x H x N x D); views of all that the pass sees (A x H x S x D)."""
        if layer_idx not in self._store:
            self._store[layer_idx] = (self._room(key_states), self._room(value_states))
        keys, values = self._store[layer_idx]
        for store, new in ((keys, key_states), (values, value_states)):
            store[self._into] = new[:, :, 0] if isinstance(self._into[0], Tensor) else new
        return keys[self._seen], values[self._seen]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns before those that the next pass writes."""
        return self._before

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Columns that the next pass sees, and the first of them."""
        return self._before + query_length, 0

    def _room(self, states: Tensor) -> Tensor:
        """Zeros: a column that was never written is hidden, but must not hold a NaN."""
        _, heads, _, width = states.shape
        return states.new_zeros(self._rows, heads, self._columns, width)


def hidden_states(
    forward: Callable[..., Any],
    slots: Slots,
    input_AN: Tensor,
    position_AN: Tensor,
    mask: Tensor | None,
) -> Tensor:
    """What a base model makes of new tokens, A x N x hidden size, once the slots know where to.

    Args:
        forward: the base model, or what stands for it.
        position_AN: A x N or 1 x N.
        mask: what ``span`` or ``step`` gave.
    """
    hidden: Tensor = forward(
        input_ids=input_AN,
        position_ids=position_AN,
        attention_mask=mask,
        past_key_values=slots,
        use_cache=True,
    ).last_hidden_state
    return hidden
