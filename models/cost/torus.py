"""Collectives on a torus of devices (TPU): all dimensions at once, both directions of every ring.

A device of a D-dimensional torus has 2 D cables, and `bandwidth` of the link is that of all of them together. Along a
closed dimension a member of a group sends over two cables, along an open one the member at its end over one; where others
that do the same lie between the members, they share the cables. With u cables in use, each of bandwidth b:

| kind | bytes through a device's cables | time |
|---|---|---|
| all_gather, reduce_scatter | n (p-1)/p | n (p-1)/p / (u b) |
| all_reduce | both, one after the other | 2 n (p-1)/p / (u b) |
| broadcast | n, pipelined | n / (u b) |
| all_to_all | n k/4 in a ring of k, n k/2 (at its middle) in a line | the largest over the dimensions of n k / (8 b), n k / (4 b) |

A byte hops k/2 times along a ring and k-1 times along a line, and each hop is a latency. That the parts of a buffer can
rotate through the dimensions, so that all cables work all the time, is shown by Jain and Sabharwal, "Optimal bucket
algorithms for large MPI collectives on torus interconnects", ICS 2010; Austin et al., "How to scale your model" (2025), find
XLA's collectives on TPU to go by the same bounds.

>>> from hpdlf.hwprofiles.topology import Extent
>>> steps_on_torus("all_gather", 1600.0, (Extent(4, True, 1.0), Extent(4, True, 1.0)), dims=2).nbytes
1500.0
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ...hwprofiles.topology import Extent
from .algorithms import Steps, check_kind

__all__ = ["steps_on_torus"]


def steps_on_torus(kind: str, n: float, along: Sequence[Extent], *, dims: int) -> Steps:
    """A collective on `n` bytes among a group that lies `along` the dimensions so, in a torus of `dims` dimensions.

    `nbytes` of the answer is in terms of the bandwidth of all 2 `dims` cables of a device.

    Raises:
        PlanError: no such collective.
    """
    check_kind(kind)
    p = prod(one.members for one in along)
    if p <= 1 or n <= 0:
        return Steps("none", 0.0, 0.0)
    hops = sum(one.members / 2 if one.ring else one.members - 1 for one in along)
    if kind == "all_to_all":
        busiest = max(n * one.members / (8 if one.ring else 4) / one.share for one in along)
        return Steps("torus", hops, busiest * 2 * dims)
    cables = sum((2 if one.ring else 1) * one.share for one in along)
    moved = n if kind == "broadcast" else n * (p - 1) / p
    rounds = 2 if kind == "all_reduce" else 1
    return Steps("torus", rounds * hops, rounds * moved * 2 * dims / cables)
