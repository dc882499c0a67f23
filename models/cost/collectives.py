"""Collectives on a cluster: which algorithm a library takes over which links, and the seconds it spends on each.

GPUs whose links say what they are made of (`fabric`) communicate by NCCL (:mod:`.nccl`), everybody else by MPI
(:mod:`.algorithms`). Several ranks on each of several nodes use, in MPI, the faster of

* hierarchical: within the nodes, then between them, then within again where the kind needs it; every rank carries its
  part between the nodes, all of a node's ranks over the node's adapters;
* one ring through all ranks that enters and leaves each node once, which is pipelined, so that its slowest link counts.

All-reduces among the ranks of one node of CPUs go through memory that they share, as the executor does them
(:mod:`hpdlf.exec.node_reduction`): four meetings, and every rank copies and adds the same number of bytes however many
take part, so that n of them count.

A step of m bytes takes ``latency + m / bandwidth * (1 + h / (m + h))``, where h is the link's `half_bandwidth_bytes`:
messages far below h see half of the bandwidth, those far above lose h / bandwidth once. NCCL's chunks are in flight
together, so there m is the whole buffer.

A group with fewer ranks in a node than the node has devices gets their part of its adapters: the other devices belong
to groups that do the same at the same time.

>>> from hpdlf.hwprofiles import load_cluster
>>> cluster = load_cluster("dgx-a100:2")
>>> for leg in collective_legs("all_reduce", 100_000_000, tuple(range(16)), cluster):
...     print(leg.algorithm, leg.link.name, 1e-6 < leg.latency_s < 1e-3, leg.transmission_s > 0)
tree, Simple nvlink3 True True
tree, Simple infiniband-hdr-8 True False
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from ...errors import PlanError
from ...hwprofiles import Cluster, Link
from . import nccl
from .algorithms import KINDS, Steps, check_kind, fastest

__all__ = ["KINDS", "Leg", "collective_legs", "slowdown"]

# A rank waits for the others before it copies, before it adds, after it, and at the end.
MEETINGS = 4


class Leg(NamedTuple):
    """A phase of a collective over one link: seconds of latency and of transmission, and the algorithm."""

    link: Link
    latency_s: float
    transmission_s: float
    algorithm: str


def slowdown(link: Link, nbytes: float) -> float:
    """How many times longer the transmission of `nbytes` takes than at the bandwidth of long messages: 1 to 2.

    Size times slowdown grows with the size.
    """
    half = link.half_bandwidth_bytes
    return 1.0 if half is None else 1.0 + half.value / (nbytes + half.value)


def collective_legs(
    kind: str, nbytes: float, ranks: tuple[int, ...], cluster: Cluster, *, algorithm: str = ""
) -> tuple[Leg, ...]:
    """The legs of a collective among the devices `ranks` of `cluster`, one after the other; none for a single rank.

    `nbytes` is the whole buffer, as :mod:`.algorithms` defines it. `algorithm` keeps NCCL to those whose names start so
    ("ring", "tree, LL"), where there are any.

    Raises:
        PlanError: no such collective, a rank outside the cluster or named twice.
    """
    check_kind(kind)
    if len(set(ranks)) != len(ranks):
        raise PlanError(f"{kind} among the ranks {list(ranks)}: a rank stands there twice")
    members: dict[int, int] = {}
    for rank in ranks:
        node = cluster.node_of(rank)
        members[node] = members.get(node, 0) + 1
    if len(ranks) <= 1:
        return ()
    at = _placement(len(ranks), len(members), max(members.values()), cluster)
    if cluster.device.kind == "gpu" and nccl.is_known(at.inner) and nccl.is_known(at.outer):
        return _by_nccl(kind, nbytes, at, algorithm)
    return _by_mpi(kind, nbytes, at)


def _placement(ranks: int, nodes: int, local: int, cluster: Cluster) -> nccl.Placement:
    inner = cluster.node.link if local > 1 else None
    outer = cluster.link if nodes > 1 else None
    assert inner or local == 1
    assert outer or nodes == 1
    return nccl.Placement(
        ranks,
        nodes,
        local,
        inner,
        inner.collective_bandwidth_bytes_per_s * inner.share_of(local) if inner else inf,
        outer,
        outer.collective_bandwidth_bytes_per_s * outer.share_of(nodes) * _share_of_adapters(local, cluster)
        if outer
        else inf,
    )


def _share_of_adapters(local: int, cluster: Cluster) -> float:
    """The part of a node's adapters that `local` of its devices have while the others use the rest."""
    return min(1.0, local / cluster.devices_per_node)


def _by_nccl(kind: str, n: float, at: nccl.Placement, algorithm: str) -> tuple[Leg, ...]:
    ways = list(nccl.candidates(kind, n, at))
    kept = [way for way in ways if way.algorithm.startswith(algorithm)]
    return min((_legs_of(way, n, at) for way in kept or ways), key=_seconds)


def _legs_of(way: nccl.Candidate, n: float, at: nccl.Placement) -> tuple[Leg, ...]:
    # Chunks follow each other through a node and out of it, so that only the slower part counts.
    inner_s, outer_s = (way.inner_s, 0.0) if way.inner_s > way.outer_s else (0.0, way.outer_s)
    if at.outer is None:
        assert at.inner is not None
        parts = [(at.inner, way.inner_latency_s + way.outer_latency_s, inner_s)]
    elif at.inner is None:
        parts = [(at.outer, way.inner_latency_s + way.outer_latency_s, outer_s)]
    else:
        parts = [(at.inner, way.inner_latency_s, inner_s), (at.outer, way.outer_latency_s, outer_s)]
    legs = [Leg(link, latency_s, sent_s * slowdown(link, n), way.algorithm) for link, latency_s, sent_s in parts]
    return _started(tuple(legs))


def _seconds(legs: tuple[Leg, ...]) -> float:
    return sum(leg.latency_s + leg.transmission_s for leg in legs) if legs else inf


def _started(legs: tuple[Leg, ...]) -> tuple[Leg, ...]:
    """With what the collective costs once, the most that any of its links says, on the link that spans its ranks."""
    said = [leg.link.collective_overhead_s.value for leg in legs if leg.link.collective_overhead_s]
    last = legs[-1]
    return (*legs[:-1], last._replace(latency_s=last.latency_s + max(said))) if said else legs


def _by_mpi(kind: str, n: float, at: nccl.Placement) -> tuple[Leg, ...]:
    if at.inner is None or at.outer is None:
        link, ranks = (at.inner, at.local) if at.inner else (at.outer, at.nodes)
        assert link is not None
        bandwidth = at.inner_bytes_per_s if at.inner else at.outer_bytes_per_s
        if at.inner and kind == "all_reduce" and link.fabric == "shared-memory":
            legs: tuple[Leg, ...] = (_timed(Steps("shared memory", MEETINGS, n), link, bandwidth),)
        else:
            legs = (_leg(kind, n, ranks, link, bandwidth),)
    else:
        legs = min(_hierarchical(kind, n, at), _ring(kind, n, at), key=_seconds)
    return _started(legs)


def _leg(kind: str, n: float, ranks: int, link: Link, bandwidth_bytes_per_s: float) -> Leg:
    steps = fastest(kind, n, ranks, latency_s=link.latency_s.value, bandwidth_bytes_per_s=bandwidth_bytes_per_s)
    return _timed(steps, link, bandwidth_bytes_per_s)


def _timed(steps: Steps, link: Link, bandwidth_bytes_per_s: float) -> Leg:
    each = steps.nbytes / max(steps.messages, 1)
    transmission_s = steps.nbytes / bandwidth_bytes_per_s * slowdown(link, each)
    return Leg(link, steps.messages * link.latency_s.value, transmission_s, steps.algorithm)


def _hierarchical(kind: str, n: float, at: nccl.Placement) -> tuple[Leg, ...]:
    inner, outer, nodes, local = at.inner, at.outer, at.nodes, at.local
    assert inner is not None
    assert outer is not None

    def inside(phase: str, nbytes: float = n) -> Leg:
        return _leg(phase, nbytes, local, inner, at.inner_bytes_per_s)

    def between(phase: str) -> Leg:
        return _leg(phase, n, nodes, outer, at.outer_bytes_per_s)

    match kind:
        case "all_reduce":
            # Each of a node's ranks reduces its part n/local across nodes; together they move n over the node's
            # adapters.
            return inside("reduce_scatter"), between("all_reduce"), inside("all_gather")
        case "reduce_scatter":
            return inside("reduce_scatter"), between("reduce_scatter")
        case "all_gather":
            return between("all_gather"), inside("all_gather")
        case "broadcast":
            return between("broadcast"), inside("broadcast")
        case _:
            # Every rank sends 1/p of its buffer to each other rank: what leaves a node is n * local * (p - local) / p.
            p = at.ranks
            leaving = Steps("pairwise", nodes - 1, n * local * (p - local) / p)
            return inside("all_to_all", n * local / p), _timed(leaving, outer, at.outer_bytes_per_s)


def _ring(kind: str, n: float, at: nccl.Placement) -> tuple[Leg, ...]:
    rounds = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}.get(kind)
    if rounds is None:
        return ()
    inner, outer, p = at.inner, at.outer, at.ranks
    assert inner is not None
    assert outer is not None
    # In each step every rank sends to its neighbour; the step takes as long as its slowest hop, which leaves a node.
    messages = rounds * (p - 1)
    latency_s = messages * max(inner.latency_s.value, outer.latency_s.value)
    nbytes, bandwidth = rounds * n * (p - 1) / p, min(at.inner_bytes_per_s, at.outer_bytes_per_s)
    return (Leg(outer, latency_s, nbytes / bandwidth * slowdown(outer, nbytes / messages), "ring through all ranks"),)
