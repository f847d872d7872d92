"""Processes that share one engine: they ask it for the same things at the same time.

A tensor-parallel engine spans several training processes, and each of them has to take part in
every call. So the processes of a team draw the responses of all of them, and each keeps its share.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self, TypeVar

from torch import distributed

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Team:
    """A process's place.

    Attributes:
        number: of the team, among ``teams``.
        place: of the process in its team, of ``size`` consecutive processes.
    """

    number: int
    teams: int
    place: int = 0
    size: int = 1
    _group: Any = None

    @classmethod
    def of(cls, rank: int, ranks: int, *, size: int = 1) -> Self:
        """Divide all processes into teams; every process calls it, at the same time.

        Args:
            size: divides ``ranks``.
        """
        if size == 1:
            return cls(rank, ranks)
        # The first to finish its responses waits for the last. Objects travel between processors.
        groups = [
            distributed.new_group(
                [*range(first, first + size)], timeout=timedelta(hours=12), backend="gloo"
            )
            for first in range(0, ranks, size)
        ]
        return cls(rank // size, ranks // size, rank % size, size, groups[rank // size])

    @property
    def leads(self) -> bool:
        """Whether what a team does once is this process's to do."""
        return self.place == 0

    def agreed(self, value: T | None) -> T:
        """What the leading process gives, in all of the team."""
        box = [value]
        if self.size > 1:
            distributed.broadcast_object_list(box, self.number * self.size, self._group)
        assert box[0] is not None
        return box[0]

    def mine(self, items: Sequence[T]) -> list[T]:
        """This process's share of what the team has."""
        share = len(items) // self.size
        return list(items[self.place * share : (self.place + 1) * share])
