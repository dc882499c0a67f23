"""How old what an asynchronous rank read is by the time it writes: other ranks' updates in between.

Between a rank's get of the shared parameters and the end of its put, others may have put theirs; its update was computed without
them. Once under way, ranks of equal speed miss one update of every other rank; a rank of half the speed misses two.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple

from ..models.program import Kind
from ..models.trace import Event

__all__ = ["Update", "staleness"]


class Update(NamedTuple):
    """A rank's update of one step, and how many of other ranks it was computed without."""

    rank: int
    step: int
    missed: int


def staleness(events: Iterable[Event]) -> tuple[Update, ...]:
    """Every update in `events`, by rank and step; empty where nobody trains asynchronously.

    All ranks must be in the events (simulate with `fold=False`). Of what happens at the same time, lower ranks come first.
    """
    read_s: dict[tuple[int, int], float] = {}
    put_s: dict[tuple[int, int], float] = {}
    for event in events:
        if event.kind == Kind.GET:
            read_s[event.rank, event.step] = event.start_s
        elif event.kind == Kind.PUT:
            put_s[event.rank, event.step] = event.end_s
    order = sorted((end_s, rank) for (rank, _), end_s in put_s.items())
    found = []
    for (rank, step), end_s in sorted(put_s.items()):
        if (rank, step) not in read_s:
            continue
        # Its own updates follow each other, so none of them lies between.
        between = bisect_left(order, (end_s, rank)) - bisect_left(order, (read_s[rank, step], rank + 0.5))
        found.append(Update(rank, step, max(between, 0)))
    return tuple(found)
