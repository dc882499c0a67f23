"""What joins the devices of a cluster: domains, the levels of a tree of switches, tori, and meshes of cables.

* A *domain* is the nodes that the link of a node joins: mostly one node; the trays of a rack with NVLink between them; a
  slice of TPU chips. Between domains there is the link of the cluster.
* That link leads to a tree of switches. `oversubscription` says, by how many nodes lie under a switch of a level, how many
  times the bandwidth of those nodes is that of the switch's links upwards. A message that stays under one switch does not
  pay.
* A *torus* is a box of devices, numbered row by row, whose rows are closed to rings where they are long enough.
* A *mesh of cables* (`wiring`) joins some pairs of a node's devices, one of them more than once: a group has as many rings
  as can be laid through its members so that no two go over one cable in the same direction.

>>> box(64, 3), box(256, 2), box(8, 3)
((4, 4, 4), (16, 16), (2, 2, 2))
>>> square = parse_wiring(("0-1 x2", "1-2 x2", "2-3 x2", "3-0 x2"))
>>> rings(square, (0, 1, 2, 3)), rings(square, (0, 2)), rings(square, (0, 1))
(4, 0, 2)
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from math import prod
from typing import NamedTuple

__all__ = ["Extent", "Port", "box", "extents", "parse_wiring", "rings", "stretch", "uplinks"]

CABLE = re.compile(r"(?P<a>[0-9]+)-(?P<b>[0-9]+)(?: x(?P<many>[1-9][0-9]?))?")
# The search for rings gives up after so many tries; what it has found by then is a ring or so short of the most at worst.
MOST_TRIES = 20_000

Wiring = tuple[tuple[int, int, int], ...]


class Port(NamedTuple):
    """A shared link as seen from what it belongs to: `kind` is "device" (its link to the other devices of the domain),
    "adapters" (of a node) or "switch" (its links upwards, `level` its number of nodes); `inward` tells the directions apart.
    """

    kind: str
    number: int
    inward: bool
    level: int = 1


class Extent(NamedTuple):
    """How a group lies along one dimension of a torus: members, whether they form a ring, and the share of the cables
    between them that is theirs (others that do the same lie between).
    """

    members: int
    ring: bool
    share: float


def uplinks(a: int, b: int, levels: Iterable[int]) -> tuple[int, ...]:
    """The levels of switches, by their number of nodes, whose upward links a message from node `a` to node `b` takes."""
    return tuple(level for level in sorted(levels) if a // level != b // level)


def stretch(oversubscription: Mapping[int, float], nodes: Sequence[int], *, everybody: bool) -> float:
    """How many times longer it takes a group of `nodes` to send between them than without oversubscription, when all nodes
    under its switches do the same with their own groups: at least 1.

    everybody   every node sends to every other (an all-to-all); else each to the next, as in a ring or tree, so that of
                m nodes under a switch one sends upwards: of k nodes with oversubscription o there are k/m such groups, and
                o/m times the bandwidth is asked for.
    """
    worst, n = 1.0, len(nodes)
    if n < 2:
        return worst
    for level, ratio in oversubscription.items():
        under: dict[int, int] = {}
        for node in nodes:
            under[node // level] = under.get(node // level, 0) + 1
        if len(under) > 1:
            fewest = min(under.values())
            worst = max(worst, ratio * (n - fewest) / (n - 1) if everybody else ratio / fewest)
    return worst


@lru_cache(maxsize=256)
def box(devices: int, dims: int) -> tuple[int, ...]:
    """The sides, ascending, of the box of `devices` that is nearest to a cube."""
    if dims == 1:
        return (devices,)
    side = max(d for d in range(1, int(devices ** (1 / dims) + 1e-9) + 1) if devices % d == 0)
    return tuple(sorted((side, *box(devices // side, dims - 1))))


@lru_cache(maxsize=4096)
def extents(members: tuple[int, ...], sides: tuple[int, ...], rings_from: int) -> tuple[Extent, ...]:
    """How `members` (numbers of devices in a torus with these sides, numbered row by row) lie along its dimensions.

    Dimensions of at least `rings_from` devices are closed. Members that fill no box are taken to be one line.
    """
    found, step = [], prod(sides)
    for side in sides:
        step //= side
        at = sorted({member // step % side for member in members})
        gaps = {after - before for before, after in pairwise(at)}
        gap = gaps.pop() if len(gaps) == 1 else 1
        closed = side >= rings_from and len(at) * gap == side
        found.append(Extent(len(at), closed, 1.0 if gaps else 1.0 / gap))
    if prod(one.members for one in found) != len(members):
        return (Extent(len(members), False, 1.0),)
    return tuple(one for one in found if one.members > 1)


def parse_wiring(cables: Sequence[str]) -> Wiring:
    """Pairs of devices and how many cables join each, from texts such as "0-3" and "0-4 x2".

    Raises ValueError that names the text which says no such thing.
    """
    found: dict[tuple[int, int], int] = {}
    for text in cables:
        match = CABLE.fullmatch(text)
        if match is None or match["a"] == match["b"]:
            raise ValueError(f"{text!r} is no cable between two devices; write '0-3', or '0-3 x2' for two of them")
        a, b = sorted((int(match["a"]), int(match["b"])))
        if (a, b) in found:
            raise ValueError(f"{text!r} stands there twice; write '{a}-{b} x2' for two cables")
        found[a, b] = int(match["many"] or 1)
    return tuple((a, b, many) for (a, b), many in sorted(found.items()))


@lru_cache(maxsize=1024)
def rings(wiring: Wiring, members: tuple[int, ...]) -> int:
    """How many directed rings through all `members` (device numbers in a node) fit over the cables between them, no two
    of them over the same cable in the same direction; 0 where no ring exists.
    """
    there = set(members)
    free: dict[int, dict[int, int]] = {member: {} for member in sorted(there)}
    for a, b, many in wiring:
        if a in there and b in there:
            free[a][b] = free[b][a] = many
    most = min((sum(neighbours.values()) for neighbours in free.values()), default=0)
    return _packed(free, most, [MOST_TRIES]) if len(there) > 1 else 0


def _packed(free: dict[int, dict[int, int]], most: int, tries: list[int]) -> int:
    """The number of rings, at most `most`, that fit over the cables that are `free` at the same time."""
    if not most:
        return 0
    first, best, found = next(iter(free)), 0, [next(iter(free))]

    def lay(at: int) -> bool:
        """Go on with the ring from `at`; whether enough rings were found."""
        nonlocal best
        tries[0] -= 1
        if tries[0] < 0:
            return True
        if len(found) == len(free):
            if free[at].get(first, 0) < 1:
                return False
            free[at][first] -= 1
            best = max(best, 1 + _packed(free, most - 1, tries))
            free[at][first] += 1
            return best >= most
        for other in sorted(free[at], key=lambda node: (-free[at][node], node)):
            if free[at][other] >= 1 and other not in found:
                found.append(other)
                free[at][other] -= 1
                done = lay(other)
                free[at][other] += 1
                found.pop()
                if done:
                    return True
        return False

    lay(first)
    return best
