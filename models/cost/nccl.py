"""Collectives as NCCL does them on GPUs: protocols and algorithms, each with its latency and bandwidth, the fastest wins.

NCCL moves data by three protocols. *Simple* moves large chunks behind memory fences: all of the bandwidth, microseconds
per step. *LL* sends four bytes of flag with four of data: half of the bandwidth at most, a fraction of a microsecond
per step. *LL128* sends eight bytes of flag with 120 of data: 120/128 of the bandwidth, little latency, and only where
links keep 128 bytes together (NVLink). Its tuner computes latency and bandwidth of every algorithm with every protocol
and takes the smallest ``latency + bytes / bandwidth``; so do we, with its constants.

Sources: NCCL 2.2x, src/graph/tuning.cc (ncclTopoTuneModel: base latencies, hardware latencies per step, shares); Hu et
al., "Demystifying NCCL", arXiv:2507.04786 (what the protocols are). For p ranks on N nodes of l, a buffer of n
bytes, S the latency of a step within a node and T between nodes:

| kind | algorithm | latency | bytes within a node | bytes between nodes |
|---|---|---|---|---|
| all_reduce | ring | 2 (p-N) S + 2 (N-1) T | 2 n (p-1)/p | 2 n (p-1)/p |
| | double binary tree, a chain in each node | 2 (l-1) S + 2 lg N T | 2 n | 2 n; n of two nodes since Hopper |
| | NVLS: the switch adds up (then a tree) | 25 us + 2 lg N T | 2 n (l-1)/l | 2 n; n of two nodes |
| all_gather, reduce_scatter | ring | (p-N) S + (N-1) T | n (p-1)/p | n (p-1)/p |
| broadcast | ring, pipelined | (p-N) S + (N-1) T | n | n |
| all_to_all | sends and receives | T + 1 us (p-1) | n (l-1)/p | n l (p-l)/p of a node |

A ring runs through all ranks and leaves each node once; NCCL lays one ring per adapter, so that together they have the
adapters of the node. Of two nodes, each is the root of one of the two trees, so that a byte leaves a node once, and the
two can be faster than the network's bandwidth suggests (NVIDIA/nccl-tests, issue 196). That is so since Hopper; large
all-reduces of two nodes of V100 and A100 went at the rate of rings (NVIDIA/nccl, issue 1048; tensor parallelism over 16
GPUs in the data of vTrain and of DLPerf), so nodes without NVLink SHARP have no such trees.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import log2
from typing import NamedTuple

from ...hwprofiles import Link
from ...hwprofiles.topology import Extent

__all__ = ["PROTOCOLS", "Candidate", "Placement", "candidates", "is_known"]


class Protocol(NamedTuple):
    """Latency before the first step and per step, and the share of the bandwidth, of rings and of trees."""

    name: str
    ring_start_s: float
    ring_step_s: float
    ring_share: float
    tree_start_s: float
    tree_step_s: float
    tree_share: float


_US = 1e-6
# Within a node the tree is a chain; NCCL gives it 0.92 of the ring's bandwidth, and 7/9 and 1/3.8 of that with the fast
# protocols. LL is limited by the GPU, at 0.26 to 0.31 of the nominal NVLink bandwidth from Volta to Blackwell, which is
# about 0.35 of what a ring sees.
_NVLINK = (
    Protocol("LL", 6.6 * _US, 0.6 * _US, 0.35, 6.8 * _US, 0.6 * _US, 0.24),
    Protocol("LL128", 14.0 * _US, 1.9 * _US, 0.92, 14.0 * _US, 1.25 * _US, 0.72),
    Protocol("Simple", 8.4 * _US, 3.4 * _US, 1.0, 8.4 * _US, 4.0 * _US, 0.92),
)
_PCIE = (
    Protocol("LL", 6.6 * _US, 1.0 * _US, 0.5, 6.8 * _US, 1.0 * _US, 0.24),
    Protocol("Simple", 8.4 * _US, 5.7 * _US, 1.0, 8.4 * _US, 4.0 * _US, 0.92),
)
_NETWORK = (
    Protocol("LL", 6.6 * _US, 2.7 * _US, 0.5, 6.8 * _US, 5.0 * _US, 0.24),
    Protocol("LL128", 14.0 * _US, 4.0 * _US, 0.92, 14.0 * _US, 8.5 * _US, 0.86),
    Protocol("Simple", 8.4 * _US, 14.0 * _US, 1.0, 8.4 * _US, 14.0 * _US, 0.92),
)
PROTOCOLS: Mapping[str, tuple[Protocol, ...]] = {
    "nvlink": _NVLINK,
    "nvlink-sharp": _NVLINK,
    "xgmi": _NVLINK,
    "pcie": _PCIE,
    "infiniband": _NETWORK,
    "ethernet": _NETWORK,
    "efa": _NETWORK,
    "omni-path": _NETWORK,
}
# NVLS reads and writes memory once for all GPUs of a node: 480 GB/s of bus bandwidth on 8 H100, where the ring has 370
# (NVIDIA/nccl-tests, issues 212 and 290). Its latency is NCCL's constant.
NVLS_SHARE = 1.3
NVLS_S = 25.0 * _US
# Within a group of sends and receives, what each further peer costs (NCCL's network post overhead).
PEER_S = 1.0 * _US
# A large ring over several nodes waits for its slowest member in every step; NCCL's own correction.
PLATEAU = 1.4


class Placement(NamedTuple):
    """Where the ranks of a collective are, and the bytes per second that they see.

    A node is here whatever the inner link joins: a host, a rack of NVLink, a slice of a torus. `local` is the most ranks in
    a node. `inner` is None for one rank per node, `outer` for a single node; `outer_bytes_per_s` is that of the group's
    part of a node's adapters. `along` says how the ranks of a node lie in a torus, where it is one,
    and `hosts` how many hosts they are on.
    """

    ranks: int
    nodes: int
    local: int
    inner: Link | None
    inner_bytes_per_s: float
    outer: Link | None
    outer_bytes_per_s: float
    along: tuple[Extent, ...] = ()
    hosts: int = 1


class Candidate(NamedTuple):
    """An algorithm with a protocol: seconds of latency and of transmission on either kind of link."""

    algorithm: str
    inner_latency_s: float
    outer_latency_s: float
    inner_s: float
    outer_s: float

    @property
    def seconds(self) -> float:
        """The time; transmission within and between nodes overlaps, since chunks follow each other."""
        return self.inner_latency_s + self.outer_latency_s + max(self.inner_s, self.outer_s)


def is_known(link: Link | None) -> bool:
    """Whether NCCL's constants cover the link."""
    return link is None or link.fabric in PROTOCOLS


def candidates(kind: str, n: float, at: Placement) -> Iterator[Candidate]:
    """The ways in which NCCL can do a collective on `n` bytes among at least two ranks on links that it knows."""
    inside = {p.name: p for p in PROTOCOLS[at.inner.fabric]} if at.inner else {}
    between = {p.name: p for p in PROTOCOLS[at.outer.fabric]} if at.outer else {}
    for name in inside.keys() & between.keys() if inside and between else inside.keys() | between.keys():
        yield from _by_protocol(kind, n, at, inside.get(name), between.get(name))
    if kind == "all_reduce" and at.inner and at.inner.fabric == "nvlink-sharp" and at.local > 2:
        yield _switched(n, at, between.get("Simple"))


def _by_protocol(
    kind: str, n: float, at: Placement, inside: Protocol | None, between: Protocol | None
) -> Iterator[Candidate]:
    either = between or inside
    assert either is not None
    p, hops = at.ranks, at.nodes - 1
    share = n * (p - 1) / p
    rounds, moved = {"all_reduce": (2, 2 * share), "broadcast": (1, n)}.get(kind, (1, share))
    name = either.name
    if kind == "all_to_all":
        if name == "Simple":
            yield _exchange(n, at, either)
        return
    # One rank per node waits for the whole latency of a message; NCCL takes the tree's for it.
    out_s = 0.0 if between is None else between.tree_step_s if at.local == 1 else between.ring_step_s
    plateau = PLATEAU if kind == "all_reduce" and name == "Simple" and hops else 1.0
    yield Candidate(
        f"ring, {name}",
        either.ring_start_s + plateau * rounds * (p - at.nodes) * (inside.ring_step_s if inside else 0.0),
        plateau * rounds * hops * _reaching(at, out_s),
        moved / (at.inner_bytes_per_s * inside.ring_share) if inside else 0.0,
        moved / (at.outer_bytes_per_s * between.ring_share) if between else 0.0,
    )
    if kind == "all_reduce" and between is not None:
        sharp = at.inner is not None and at.inner.fabric == "nvlink-sharp"
        yield Candidate(
            f"tree, {name}",
            between.tree_start_s + 2 * (at.local - 1) * (inside.tree_step_s if inside else 0.0),
            2 * log2(at.nodes) * _reaching(at, between.tree_step_s),
            2 * n / (at.inner_bytes_per_s * inside.tree_share) if inside else 0.0,
            (min(hops, 2) if sharp else 2) * n / (at.outer_bytes_per_s * between.tree_share),
        )


def _reaching(at: Placement, step_s: float) -> float:
    """A step between nodes, at least what a message between two programs takes: sockets are slower than InfiniBand."""
    return max(step_s, at.outer.latency_s.value) if at.outer else step_s


def _switched(n: float, at: Placement, between: Protocol | None) -> Candidate:
    moved = 2 * n * (at.local - 1) / at.local
    return Candidate(
        "NVLS",
        NVLS_S,
        2 * log2(at.nodes) * _reaching(at, between.tree_step_s) if between else 0.0,
        moved / (at.inner_bytes_per_s * NVLS_SHARE),
        min(at.nodes - 1, 2) * n / (at.outer_bytes_per_s * between.tree_share) if between else 0.0,
    )


def _exchange(n: float, at: Placement, protocol: Protocol) -> Candidate:
    p, local = at.ranks, at.local
    start_s = protocol.ring_start_s + PEER_S * (p - 1)
    leaving = n * local * (p - local) / p
    return Candidate(
        "sends and receives",
        start_s + (protocol.ring_step_s if at.nodes == 1 else 0.0),
        _reaching(at, protocol.tree_step_s) if at.nodes > 1 else 0.0,
        n * (local - 1) / p / at.inner_bytes_per_s if at.inner else 0.0,
        leaving / at.outer_bytes_per_s if at.outer else 0.0,
    )
