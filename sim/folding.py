"""Folding: ranks that behave alike are simulated once.

Ranks fall into *classes* by colour refinement. A rank's first colour is its role, its speed and everything about its place that a
price can depend on: how its groups and peers lie over nodes, domains and switches, and how many ranks beside it do the same. Then
colours are refined by the colours of the ranks that a rank talks to (its peers, and the set in each of its groups) until nobody
can be told apart any further. What is left is a bisimulation: every rank of a class meets the same classes at the same times,
so one of them stands for all, and a collective among many ranks is one among the classes in it.

A slow rank is told apart from its neighbours, they from theirs; replicas that only meet it in an all-reduce stay together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

from ..hwprofiles import Cluster
from ..hwprofiles.topology import box
from ..models.program import Group, Kind, Mesh, Peer, Program

__all__ = ["Folding", "fold", "unfolded"]

Numbers = NDArray[np.int64]
Hashes = NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class Folding:
    """Which ranks behave alike. `class_of` numbers each rank's class, in the order of their first ranks; -1: not simulated."""

    mesh: Mesh
    class_of: Numbers
    representatives: tuple[int, ...]

    @cached_property
    def multiplicity(self) -> dict[int, int]:
        """{the rank that is simulated: how many it stands for}"""
        counts = np.bincount(self.class_of[self.class_of >= 0], minlength=len(self.representatives))
        return dict(zip(self.representatives, counts.tolist(), strict=True))

    @cached_property
    def _grid(self) -> Numbers:
        return self.class_of.reshape(tuple(self.mesh.axes.values()))

    def met(self, rank: int, group: Group) -> tuple[int, ...]:
        """The classes, ascending, among the ranks that `rank` meets in `group`, its own among them."""
        at = self.mesh.coordinates(rank)
        members = self._grid[tuple(slice(None) if axis in group.axes else at[axis] for axis in self.mesh.axes)]
        found = np.unique(members)
        return tuple(found[found >= 0].tolist())

    def peer(self, rank: int, peer: Peer) -> int:
        """The class of a peer of `rank`."""
        return int(self.class_of[self.mesh.peer(rank, peer)])


def unfolded(mesh: Mesh, ranks: Sequence[int] | None = None) -> Folding:
    """Every rank, or every one of `ranks`, by itself."""
    each = tuple(range(mesh.size)) if ranks is None else tuple(sorted(ranks))
    class_of = np.full(mesh.size, -1, dtype=np.int64)
    class_of[list(each)] = np.arange(len(each))
    return Folding(mesh=mesh, class_of=class_of, representatives=each)


def fold(program: Program, cluster: Cluster | None = None, speed: Sequence[float] | None = None) -> Folding:
    """The classes of the ranks of `program`.

    cluster   where they are; without one, prices do not depend on places
    speed     of each rank, a factor on its times; all alike unless said
    """
    mesh = program.mesh
    colour = _mixed(_roles(program).astype(np.uint64))
    if speed is not None:
        colour = _mixed(colour + np.asarray(speed, dtype=np.float64).view(np.uint64))
    relations = _Relations(program)
    if cluster is not None:
        for salt, feature in enumerate(_places(relations, cluster), start=1):
            colour = _mixed(colour + _mixed(feature.view(np.uint64) + np.uint64(salt)))
    found = np.unique(colour).size
    while True:
        colour = relations.refined(colour)
        # Refined colours tell apart all that the ones before did, so as many means the same ones.
        if (more := np.unique(colour).size) == found:
            break
        found = more
    _, first, inverse = np.unique(colour, return_index=True, return_inverse=True)
    order = np.argsort(first)
    class_of = np.empty_like(order)
    class_of[order] = np.arange(order.size)
    return Folding(mesh=mesh, class_of=class_of[inverse.reshape(-1)], representatives=tuple(np.sort(first).tolist()))


def _roles(program: Program) -> Numbers:
    """The number of every rank's role."""
    found = np.full(tuple(program.mesh.axes.values()), -1, dtype=np.int64)
    for number, role in reversed(list(enumerate(program.roles))):
        found[tuple(role.coordinates.get(axis, slice(None)) for axis in program.mesh.axes)] = number
    return found.reshape(-1)


def _mixed(x: Hashes) -> Hashes:
    """A hash of each number (the finaliser of splitmix64, Steele et al. 2014). Of 100,000 ranks two that differ get the same
    colour with a probability of 3e-10."""
    with np.errstate(over="ignore"):
        x = (x + np.uint64(0x9E3779B97F4A7C15)).astype(np.uint64)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


class _Relations:
    """Who has to do with whom: peers and groups, and by which roles they are used."""

    def __init__(self, program: Program) -> None:
        self.mesh = program.mesh
        self.shape = tuple(self.mesh.axes.values())
        self.axes = list(self.mesh.axes)
        self.role = _roles(program)
        self.sizes = np.arange(self.mesh.size, dtype=np.int64)
        peers: dict[Peer, set[int]] = {}
        sends: dict[Peer, set[int]] = {}
        groups: dict[Group, set[int]] = {}
        meets: dict[Group, set[int]] = {}
        for number, role in enumerate(program.roles):
            for i in role.instructions:
                if i.peer is not None:
                    peers.setdefault(i.peer, set()).add(number)
                    if i.kind is Kind.SEND:
                        sends.setdefault(i.peer, set()).add(number)
                if i.group is not None and self.mesh.group_size(i.group) > 1:
                    groups.setdefault(i.group, set()).add(number)
                    if i.kind.is_collective:
                        meets.setdefault(i.group, set()).add(number)
        self.sends = {peer: np.isin(self.role, list(roles)) for peer, roles in sends.items()}
        self.groups = {group: np.isin(self.role, list(roles)) for group, roles in groups.items()}
        self.meets = [group for group in groups if group in meets]
        # Along an axis whose places play different roles, a line is told apart by the colours on it, in order: what passing
        # colours from peer to peer comes to in the end, at once.
        apart = [all(a in role.coordinates for role in program.roles) for a in self.axes]
        self.lines = sorted({self.axes.index(p.axis) for p in peers if apart[self.axes.index(p.axis)]})
        self.peers = {p: np.isin(self.role, list(r)) for p, r in peers.items() if not apart[self.axes.index(p.axis)]}

    def peer(self, peer: Peer) -> Numbers:
        """Every rank's peer; -1 where there is none."""
        axis, grid = self.axes.index(peer.axis), self.sizes.reshape(self.shape)
        found = np.roll(grid, -peer.offset, axis=axis)
        if not peer.wraps:
            at = np.arange(self.shape[axis]) + peer.offset
            outside = (at < 0) | (at >= self.shape[axis])
            found[(slice(None),) * axis + (outside,)] = -1
        return found.reshape(-1)

    def members(self, group: Group) -> Numbers:
        """The ranks by group, one row each, ascending."""
        inside = [k for k, axis in enumerate(self.axes) if axis in group.axes]
        outside = [k for k, axis in enumerate(self.axes) if axis not in group.axes]
        size = prod(self.shape[k] for k in inside)
        return self.sizes.reshape(self.shape).transpose(*outside, *inside).reshape(-1, size)

    def refined(self, colour: Hashes) -> Hashes:
        """Colours that also tell what the ranks around a rank were coloured."""
        found = _mixed(colour)
        for salt, axis in enumerate(self.lines, start=1):
            place = np.arange(self.shape[axis], dtype=np.uint64).reshape((-1,) + (1,) * (len(self.shape) - axis - 1))
            placed = _mixed(colour.reshape(self.shape) + _mixed(place + np.uint64(salt << 32)))
            line = np.broadcast_to(placed.sum(axis=axis, keepdims=True, dtype=np.uint64), self.shape)
            found = _mixed(found + line.reshape(-1))
        for salt, (peer, used) in enumerate(self.peers.items(), start=101):
            other = self.peer(peer)
            theirs = _mixed(colour[other] + np.uint64(salt))
            found = np.where(used & (other >= 0), _mixed(found + theirs), found)
        for salt, group in enumerate(self.meets, start=201):
            members = self.members(group)
            theirs = np.empty_like(colour)
            theirs[members] = _mixed(colour + np.uint64(salt))[members].sum(axis=1, keepdims=True, dtype=np.uint64)
            found = np.where(self.groups[group], _mixed(found + theirs), found)
        return found


def _places(relations: _Relations, cluster: Cluster) -> Iterator[Numbers]:
    """What prices can depend on, as numbers of every rank."""
    rank = relations.sizes
    place = np.asarray(cluster.placement, dtype=np.int64)[rank] if cluster.placement else rank
    node, domain = place // cluster.devices_per_node, place // cluster.devices_per_domain
    levels = [node, domain, *(node // level for level in cluster.levels)]
    mates = _count(node, relations.role)
    for peer, used in relations.sends.items():
        other = relations.peer(peer)
        there = used & (other >= 0)
        crossed = [np.where(there, where != where[other], False) for where in levels]
        yield from (c.astype(np.int64) for c in crossed)
        yield _total(crossed[1] & there, node, relations.role)
    for group, used in relations.groups.items():
        members = relations.members(group)
        number = np.empty_like(rank)
        number[members] = np.arange(len(members))[:, None]
        yield np.where(used, mates, 0)
        for alike in (_count(node, number), _count(node, number, relations.role)):
            yield np.where(used, alike, 0)
        layout = np.empty_like(rank)
        layout[members] = _layouts(place[members], cluster, levels, place)[:, None]
        yield np.where(used, layout, 0)


def _count(*keys: Numbers) -> Numbers:
    """For each rank, how many agree with it in all keys."""
    return _total(np.ones(keys[0].shape, dtype=np.bool_), *keys)


def _total(flags: NDArray[np.bool_], *keys: Numbers) -> Numbers:
    """For each rank, how many of those that agree with it in all keys have the flag."""
    joined = keys[0]
    for key in keys[1:]:
        joined = joined * (int(key.max()) + 2) + key
    _, inverse = np.unique(joined, return_inverse=True)
    inverse = inverse.reshape(-1)
    return np.bincount(inverse, weights=flags).astype(np.int64)[inverse]


def _layouts(places: Numbers, cluster: Cluster, levels: Sequence[Numbers], place: Numbers) -> Numbers:
    """For each row of members' places a number, the same where they lie alike: which neighbours share a node, a domain and each
    level of switches, and where cables or a torus join devices, how members lie to each other there.
    """
    ordered = np.sort(places, axis=1)
    per_node, per_domain = cluster.devices_per_node, cluster.devices_per_domain
    spans = [per_node, per_domain, *(level * per_node for level in cluster.levels)]
    columns = [ordered[:, 1:] // span != ordered[:, :-1] // span for span in spans]
    inside = ordered % per_domain
    link = cluster.node.link
    if link is not None and link.torus_dims:
        step = 1
        for side in reversed(box(min(per_domain, cluster.n_devices), int(link.torus_dims.value))):
            at = inside // step % side
            columns.append(at - at[:, :1])
            step *= side
    elif link is not None:
        together = ~columns[1]
        if link.wiring:
            beside = np.zeros(ordered.shape, dtype=np.bool_)
            beside[:, 1:] |= together
            beside[:, :-1] |= together
            columns.append(np.where(beside, inside, 0))
        else:
            # Halves of a node, and halves of those, that lie between neighbours; and whether the group is one of them.
            columns.append(np.where(together, inside[:, 1:] ^ inside[:, :-1], 0))
            count = ordered.shape[1]
            whole = (ordered[:, -1] - ordered[:, 0] == count - 1) & (inside[:, 0] % count == 0)
            columns.append(whole[:, None])
    rows = np.concatenate([c.astype(np.int64) for c in columns], axis=1)
    row = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1] * rows.itemsize))).reshape(-1)
    _, inverse = np.unique(row, return_inverse=True)
    return inverse.reshape(-1).astype(np.int64)
