"""Collectives on a cluster: which algorithm a library takes over which links, and the seconds it spends on each.

GPUs whose links say what they are made of (`fabric`) communicate by NCCL (:mod:`.nccl`), devices of a torus along its
dimensions (:mod:`.torus`), everybody else by MPI (:mod:`.algorithms`). A node is here whatever the link within it joins: the
trays of a rack that NVLink joins are one (`Cluster.domain_of`). Several ranks on each of several nodes use, in MPI, the faster of

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
to groups that do the same at the same time. So it is within a node, where links are cables between pairs or lead over a
bridge (`Link.share_among`), and for the links of switches that are oversubscribed (`stretch` in
:mod:`hpdlf.hwprofiles.topology`).

>>> from hpdlf.hwprofiles import load_cluster
>>> cluster = load_cluster("dgx-a100:2")
>>> for leg in collective_legs("all_reduce", 100_000_000, tuple(range(16)), cluster):
...     print(leg.algorithm, leg.link.name, 1e-6 < leg.latency_s < 1e-3, leg.transmission_s > 0)
ring, LL128 nvlink3 True False
ring, LL128 infiniband-hdr-8 True True
"""

from __future__ import annotations

from math import inf
from typing import NamedTuple

from ...errors import PlanError
from ...hwprofiles import Cluster, Link
from ...hwprofiles.topology import Extent, box, extents, stretch
from . import nccl
from .algorithms import KINDS, Steps, check_kind, fastest
from .memo import memo_of
from .torus import steps_on_torus

__all__ = ["KINDS", "Leg", "adapter_share", "collective_legs", "placement_of", "slowdown"]

# A rank waits for the others before it copies, before it adds, after it, and at the end.
MEETINGS = 4


class Leg(NamedTuple):
    """A phase of a collective over one link: seconds of latency and of transmission, and the algorithm.

    `hidden_s` are the seconds of transmission over it that the transmission over a slower link hides.
    """

    link: Link
    latency_s: float
    transmission_s: float
    algorithm: str
    hidden_s: float = 0.0


def slowdown(link: Link, nbytes: float) -> float:
    """How many times longer the transmission of `nbytes` takes than at the bandwidth of long messages: 1 to 2.

    Size times slowdown grows with the size.
    """
    half = link.half_bandwidth_bytes
    return 1.0 if half is None else 1.0 + half.value / (nbytes + half.value)


def collective_legs(
    kind: str,
    nbytes: float,
    ranks: tuple[int, ...],
    cluster: Cluster,
    *,
    algorithm: str = "",
    active: int | None = None,
) -> tuple[Leg, ...]:
    """The legs of a collective among the devices `ranks` of `cluster`, one after the other; none for a single rank.

    `nbytes` is the whole buffer, as :mod:`.algorithms` defines it. `algorithm` keeps NCCL to those whose names start so
    ("ring", "tree, LL"), where there are any. `active` is how many devices of a node take part in such a collective at the
    same time, in this group or its siblings: all of them unless it is said.

    Raises:
        PlanError: no such collective, a rank outside the cluster or named twice.
    """
    check_kind(kind)
    if len(ranks) <= 1:
        return ()
    memo = memo_of(cluster)
    key = ("legs", kind, nbytes, ranks, algorithm, active)
    if key not in memo:
        at = placement_of(kind, ranks, cluster, active=active)
        by_nccl = cluster.device.kind == "gpu" and nccl.is_known(at.inner) and nccl.is_known(at.outer)
        memo[key] = _by_nccl(kind, nbytes, at, algorithm) if by_nccl else _by_mpi(kind, nbytes, at)
    found: tuple[Leg, ...] = memo[key]
    return found


def placement_of(kind: str, ranks: tuple[int, ...], cluster: Cluster, *, active: int | None = None) -> nccl.Placement:
    """Where the at least two `ranks` of a collective are, and what they see of the links there."""
    memo, everybody = memo_of(cluster), kind == "all_to_all"
    key = ("placement", ranks, active, everybody)
    if key not in memo:
        memo[key] = _placement(ranks, cluster, active, everybody=everybody)
    found: nccl.Placement = memo[key]
    return found


def _placement(ranks: tuple[int, ...], cluster: Cluster, active: int | None, *, everybody: bool) -> nccl.Placement:
    if len(set(ranks)) != len(ranks):
        raise PlanError(f"a collective among the ranks {list(ranks)}: a rank stands there twice")
    domains: dict[int, list[int]] = {}
    for rank in ranks:
        domains.setdefault(cluster.domain_of(rank), []).append(rank)
    fullest = max(domains.items(), key=lambda held: len(held[1]))[1]
    local, size = len(fullest), cluster.devices_per_domain
    inner = cluster.node.link if local > 1 else None
    outer = cluster.link if len(domains) > 1 else None
    assert inner or local == 1
    assert outer or len(domains) == 1
    members = tuple(sorted(cluster.place_of(rank) % size for rank in fullest))
    inner_bytes_per_s = outer_bytes_per_s = inf
    along: tuple[Extent, ...] = ()
    hosts = len({cluster.node_of(rank) for rank in fullest})
    if inner:
        inner_bytes_per_s = inner.collective_bandwidth_bytes_per_s
        if inner.torus_dims:
            sides = box(min(size, cluster.n_devices), int(inner.torus_dims.value))
            closed_from = int(inner.torus_rings_from.value) if inner.torus_rings_from else 3
            along = extents(members, sides, closed_from)
        else:
            inner_bytes_per_s *= inner.share_among(members)
    if outer:
        nodes = sorted({cluster.node_of(rank) for rank in ranks})
        thinned = stretch(cluster.levels, nodes, everybody=everybody)
        share = outer.share_of(len(domains)) * adapter_share(local, cluster, hosts=hosts, active=active) / thinned
        outer_bytes_per_s = outer.collective_bandwidth_bytes_per_s * share
    return nccl.Placement(
        len(ranks), len(domains), local, inner, inner_bytes_per_s, outer, outer_bytes_per_s, along, hosts
    )


def adapter_share(local: int, cluster: Cluster, *, hosts: int = 1, active: int | None = None) -> float:
    """The part of a node's adapters that `local` devices on `hosts` nodes of a domain have (more than 1 on several nodes),
    while `active` devices of each node do the same (all of them unless it is said).

    A device drives the adapters that are its own: none beyond its part of them, of which one may be shared.
    """
    link, devices = cluster.link, cluster.devices_per_node
    share = min(float(hosts), local / min(active or devices, devices))
    if link and link.adapters:
        own = max(1, int(link.adapters.value) // devices)
        share = min(share, local * own / link.adapters.value)
    return share


def _by_nccl(kind: str, n: float, at: nccl.Placement, algorithm: str) -> tuple[Leg, ...]:
    ways = list(nccl.candidates(kind, n, at))
    kept = [way for way in ways if way.algorithm.startswith(algorithm)]
    return min((_legs_of(way, n, at) for way in kept or ways), key=_seconds)


def _legs_of(way: nccl.Candidate, n: float, at: nccl.Placement) -> tuple[Leg, ...]:
    if at.inner is None or at.outer is None:
        link, sent_s = (at.outer, way.outer_s) if at.inner is None else (at.inner, way.inner_s)
        assert link is not None
        latency_s = way.inner_latency_s + way.outer_latency_s
        return _started((Leg(link, latency_s, sent_s * slowdown(link, n), way.algorithm),))
    # Chunks follow each other through a node and out of it, so that only the slower part counts.
    inside_s, between_s = way.inner_s * slowdown(at.inner, n), way.outer_s * slowdown(at.outer, n)
    inner_counts = way.inner_s > way.outer_s
    inside = (inside_s, 0.0) if inner_counts else (0.0, inside_s)
    between = (0.0, between_s) if inner_counts else (between_s, 0.0)
    return _started(
        (
            Leg(at.inner, way.inner_latency_s, inside[0], way.algorithm, inside[1]),
            Leg(at.outer, way.outer_latency_s, between[0], way.algorithm, between[1]),
        )
    )


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
        if at.along:
            legs: tuple[Leg, ...] = (_on_torus(kind, n, at),)
        elif at.inner and kind == "all_reduce" and link.fabric == "shared-memory":
            legs = (_timed(Steps("shared memory", MEETINGS, n), link, bandwidth),)
        else:
            legs = (_leg(kind, n, ranks, link, bandwidth),)
    elif at.along:
        legs = _hierarchical(kind, n, at)
    else:
        legs = min(_hierarchical(kind, n, at), _ring(kind, n, at), key=_seconds)
    return _started(legs)


def _on_torus(kind: str, n: float, at: nccl.Placement) -> Leg:
    assert at.inner is not None
    assert at.inner.torus_dims is not None
    steps = steps_on_torus(kind, n, at.along, dims=int(at.inner.torus_dims.value))
    return _timed(steps, at.inner, at.inner_bytes_per_s)


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
        return _on_torus(phase, nbytes, at) if at.along else _leg(phase, nbytes, local, inner, at.inner_bytes_per_s)

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
