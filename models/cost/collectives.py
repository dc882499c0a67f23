"""Collective operations by the alpha-beta model: how many messages follow each other, and how many bytes pass a rank.

A message of n bytes takes ``alpha + n * beta`` (latency, seconds per byte). The formulas are those of Thakur,
Rabenseifner, Gropp, "Optimization of collective communication operations in MPICH", IJHPCA 19(1), 2005, sections 4.1
to 4.5, without the time of the reduction's arithmetic (it overlaps or vanishes in the factor that measurements give).
For p ranks and a buffer of n bytes:

| kind | algorithm | latency | bytes per rank |
|---|---|---|---|
| all_reduce | ring (reduce-scatter, then all-gather) | 2 (p-1) | 2 n (p-1)/p |
| | recursive doubling | lg p | n lg p |
| | recursive halving and doubling (Rabenseifner), p a power of two | 2 lg p | 2 n (p-1)/p |
| all_gather | ring | p-1 | n (p-1)/p |
| | recursive doubling, p a power of two | lg p | n (p-1)/p |
| | Bruck | ceil lg p | n (p-1)/p |
| reduce_scatter | pairwise | p-1 | n (p-1)/p |
| | recursive halving, p a power of two | lg p | n (p-1)/p |
| broadcast | binomial tree | ceil lg p | n ceil lg p |
| | scatter and ring all-gather | ceil lg p + p-1 | 2 n (p-1)/p |
| all_to_all | pairwise | p-1 | n (p-1)/p |
| | Bruck | ceil lg p | n/2 ceil lg p |

n is the whole buffer that every rank holds: the result of an all-gather, the operand of a reduce-scatter. Libraries
choose by size and number of ranks what is fastest, so the smallest time is taken; where p is no power of two,
recursive doubling pays two steps more than for the power below.

>>> steps, nbytes = flat("all_reduce", 1_000_000, 4, latency_s=1e-6, bandwidth_bytes_per_s=1e9)
>>> steps, nbytes
(4, 1500000.0)
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from math import ceil, log2
from typing import NamedTuple

from ...errors import PlanError
from ...hwprofiles import Cluster, Link

__all__ = ["KINDS", "Leg", "collective_legs", "flat"]

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all")


class Leg(NamedTuple):
    """A phase of a collective over one link: seconds of latency and of transmission."""

    link: Link
    latency_s: float
    transmission_s: float


class _Steps(NamedTuple):
    messages: float
    nbytes: float


def flat(
    kind: str, nbytes: float, ranks: int, *, latency_s: float, bandwidth_bytes_per_s: float
) -> tuple[float, float]:
    """Messages one after the other and bytes through one rank, of the algorithm that is fastest on equal links.

    Raises:
        PlanError: no such collective.
    """
    if kind not in KINDS:
        close = get_close_matches(kind, KINDS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(KINDS)}."
        raise PlanError(f"collective '{kind}' is not known; {hint}")
    if ranks <= 1 or nbytes < 0:
        return 0.0, 0.0
    best = min(
        _algorithms(kind, nbytes, ranks), key=lambda s: s.messages * latency_s + s.nbytes / bandwidth_bytes_per_s
    )
    return best.messages, best.nbytes


def _algorithms(kind: str, n: float, p: int) -> tuple[_Steps, ...]:
    lg = ceil(log2(p))
    power = p == 1 << lg
    share = n * (p - 1) / p
    match kind:
        case "all_reduce":
            doubling = _Steps(lg, n * lg) if power else _Steps(lg + 1, n * (lg + 1))
            halving = (_Steps(2 * lg, 2 * share),) if power else ()
            return (_Steps(2 * (p - 1), 2 * share), doubling, *halving)
        case "all_gather":
            return (_Steps(p - 1, share), _Steps(lg, share))
        case "reduce_scatter":
            return (_Steps(p - 1, share), *((_Steps(lg, share),) if power else ()))
        case "broadcast":
            return (_Steps(lg, n * lg), _Steps(lg + p - 1, 2 * share))
        case _:
            return (_Steps(p - 1, share), _Steps(lg, n / 2 * lg))


def collective_legs(kind: str, nbytes: float, ranks: tuple[int, ...], cluster: Cluster) -> tuple[Leg, ...]:
    """The legs of a collective among the devices `ranks` of `cluster`, one after the other; none for a single rank.

    Ranks of one node use the node's link, ranks with one per node the cluster's. Several ranks on each of several
    nodes use the faster of

    * hierarchical: within the nodes, then between them, then within again where the kind needs it, every rank
      carrying its part between the nodes, all of a node's ranks over the node's share of its adapters;
    * one ring through all ranks that enters and leaves each node once, which is pipelined, so that its slowest link
      counts (NCCL).

    A group with fewer ranks in a node than the node has devices gets its part of the adapters: other groups use the
    rest.

    Raises:
        PlanError: no such collective, a rank outside the cluster or named twice.
    """
    if len(set(ranks)) != len(ranks):
        raise PlanError(f"{kind} among the ranks {list(ranks)}: a rank stands there twice")
    members: dict[int, int] = {}
    for rank in ranks:
        node = cluster.node_of(rank)
        members[node] = members.get(node, 0) + 1
    nodes, local = len(members), max(members.values(), default=0)
    inner = cluster.node.link
    if len(ranks) <= 1:
        flat(kind, nbytes, 1, latency_s=1.0, bandwidth_bytes_per_s=1.0)  # an unknown kind is refused all the same
        return ()
    if nodes == 1:
        assert inner is not None
        return (_leg(kind, nbytes, local, inner, inner.collective_bandwidth_bytes_per_s),)
    outer = cluster.link
    assert outer is not None
    outer_bandwidth = outer.collective_bandwidth_bytes_per_s * _share_of_adapters(local, cluster, outer)
    if local == 1:
        return (_leg(kind, nbytes, nodes, outer, outer_bandwidth),)
    assert inner is not None
    return min(
        _hierarchical(kind, nbytes, nodes, local, inner, outer, outer_bandwidth),
        _ring(kind, nbytes, len(ranks), nodes, inner, outer, outer_bandwidth),
        key=lambda legs: sum(leg.latency_s + leg.transmission_s for leg in legs) if legs else float("inf"),
    )


def _leg(kind: str, nbytes: float, ranks: int, link: Link, bandwidth_bytes_per_s: float) -> Leg:
    latency_s = link.latency_s.value
    messages, moved = flat(kind, nbytes, ranks, latency_s=latency_s, bandwidth_bytes_per_s=bandwidth_bytes_per_s)
    return Leg(link, messages * latency_s, moved / bandwidth_bytes_per_s)


def _share_of_adapters(local: int, cluster: Cluster, link: Link) -> float:
    """The part of a node's adapters that `local` of its devices drive."""
    if link.adapters is None:
        return 1.0
    per_device = max(1.0, link.adapters.value / cluster.devices_per_node)
    return min(1.0, local * per_device / link.adapters.value)


def _hierarchical(
    kind: str, n: float, nodes: int, local: int, inner: Link, outer: Link, outer_bandwidth: float
) -> tuple[Leg, ...]:
    inside = inner.collective_bandwidth_bytes_per_s
    match kind:
        case "all_reduce":
            # Each of a node's ranks reduces its part n/local across nodes; together they move n over the node's
            # adapters.
            return (
                _leg("reduce_scatter", n, local, inner, inside),
                _leg("all_reduce", n, nodes, outer, outer_bandwidth),
                _leg("all_gather", n, local, inner, inside),
            )
        case "reduce_scatter":
            return (
                _leg("reduce_scatter", n, local, inner, inside),
                _leg("reduce_scatter", n, nodes, outer, outer_bandwidth),
            )
        case "all_gather":
            return (_leg("all_gather", n, nodes, outer, outer_bandwidth), _leg("all_gather", n, local, inner, inside))
        case "broadcast":
            return (_leg("broadcast", n, nodes, outer, outer_bandwidth), _leg("broadcast", n, local, inner, inside))
        case _:
            # Every rank sends 1/p of its buffer to each other rank: what leaves a node is n * local * (p - local) / p.
            p = nodes * local
            leaving = n * local * (p - local) / p
            between = Leg(outer, (nodes - 1) * outer.latency_s.value, leaving / outer_bandwidth)
            return (_leg("all_to_all", n * local / p, local, inner, inside), between)


def _ring(kind: str, n: float, p: int, nodes: int, inner: Link, outer: Link, outer_bandwidth: float) -> tuple[Leg, ...]:
    rounds: Mapping[str, int] = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}
    if kind not in rounds:
        return ()
    # In each step every rank sends to its neighbour; the step takes as long as its slowest hop, which leaves a node.
    latency_s = rounds[kind] * (p - 1) * max(inner.latency_s.value, outer.latency_s.value)
    bandwidth = min(inner.collective_bandwidth_bytes_per_s, outer_bandwidth)
    return (Leg(outer, latency_s, rounds[kind] * n * (p - 1) / p / bandwidth),)
