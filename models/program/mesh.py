"""Ranks as points of a mesh whose axes are kinds of parallelism.

>>> mesh = Mesh(axes={"pipeline": 2, "data": 3})
>>> mesh.size, dict(mesh.coordinates(4)), mesh.group(4, Group(axes=("data",)))
(6, {'pipeline': 1, 'data': 1}, (3, 4, 5))
>>> mesh.peer(1, Peer(axis="pipeline", offset=1))
4
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

__all__ = ["Group", "Mesh", "Peer"]


class Group(NamedTuple):
    """The ranks that differ from me only along `axes`."""

    axes: tuple[str, ...]


class Peer(NamedTuple):
    """The rank `offset` further along `axis`, all other coordinates the same; where it `wraps`, the axis is a ring."""

    axis: str
    offset: int
    wraps: bool = False


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """`axes` maps an axis to its size, outermost first: ranks that differ in the last axis are neighbours."""

    axes: Mapping[str, int]

    @property
    def size(self) -> int:
        """The number of ranks."""
        return prod(self.axes.values())

    def coordinates(self, rank: int) -> Mapping[str, int]:
        """Where `rank` stands on each axis."""
        if not 0 <= rank < self.size:
            raise IndexError(f"rank {rank} is outside a mesh of {self.size}")
        at = {}
        for axis, size in reversed(list(self.axes.items())):
            rank, at[axis] = divmod(rank, size)
        return {axis: at[axis] for axis in self.axes}

    def rank(self, coordinates: Mapping[str, int]) -> int:
        """The rank at `coordinates` (every axis named)."""
        rank = 0
        for axis, size in self.axes.items():
            rank = rank * size + coordinates[axis]
        return rank

    def ranks_at(self, fixed: Mapping[str, int]) -> Iterator[int]:
        """The ranks, ascending, whose coordinates agree with `fixed`; axes it leaves out run over their whole size."""
        ranks = [0]
        for axis, size in self.axes.items():
            span = (fixed[axis],) if axis in fixed else range(size)
            ranks = [rank * size + index for rank in ranks for index in span]
        return iter(ranks)

    def group(self, rank: int, group: Group) -> tuple[int, ...]:
        """The members, ascending, of `rank`'s group."""
        return tuple(self.ranks_at({a: i for a, i in self.coordinates(rank).items() if a not in group.axes}))

    def group_size(self, group: Group) -> int:
        """Members of any such group."""
        return prod(self.axes[a] for a in group.axes)

    def peer(self, rank: int, peer: Peer) -> int:
        """The rank that `peer` names, as seen from `rank`."""
        at = dict(self.coordinates(rank))
        at[peer.axis] += peer.offset
        if peer.wraps:
            at[peer.axis] %= self.axes[peer.axis]
        if not 0 <= at[peer.axis] < self.axes[peer.axis]:
            raise IndexError(f"rank {rank} has no peer at {peer.axis} {peer.offset:+d}")
        return self.rank(at)
