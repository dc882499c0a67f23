"""Collective algorithms of MPI libraries by the alpha-beta model: messages that follow each other, bytes through a rank.

A message of n bytes takes ``alpha + n * beta`` (latency, seconds per byte). The formulas are those of Thakur,
Rabenseifner, Gropp, "Optimization of collective communication operations in MPICH", IJHPCA 19(1), 2005, sections 4.1
to 4.5, without the time of the reduction's arithmetic (it overlaps or vanishes in the efficiency that measurements
give). For p ranks and a buffer of n bytes:

| kind | algorithm | messages | bytes per rank | used |
|---|---|---|---|---|
| all_reduce | ring (reduce-scatter, then all-gather) | 2 (p-1) | 2 n (p-1)/p | always |
| | recursive doubling | lg p | n lg p | to 10 kB (Open MPI; MPICH 2 kB) |
| | recursive halving and doubling (Rabenseifner), p a power of two | 2 lg p | 2 n (p-1)/p | always |
| all_gather | ring | p-1 | n (p-1)/p | always |
| | recursive doubling, p a power of two | lg p | n (p-1)/p | to 512 kB (MPICH) |
| | Bruck | ceil lg p | n (p-1)/p | to 80 kB (MPICH) |
| reduce_scatter | pairwise | p-1 | n (p-1)/p | always |
| | recursive halving, p a power of two | lg p | n (p-1)/p | to 512 kB (MPICH) |
| broadcast | binomial tree | ceil lg p | n ceil lg p | to 12 kB, or p below 8 (MPICH) |
| | scatter and ring all-gather | ceil lg p + p-1 | 2 n (p-1)/p | always |
| all_to_all | pairwise | p-1 | n (p-1)/p | always |
| | Bruck | ceil lg p | n/2 ceil lg p | blocks n/p to 256 B (MPICH) |

n is the whole buffer that a rank holds: the operand of a reduce-scatter, the result of an all-gather, all that a rank
sends in an all-to-all, and what is summed or sent in the others.

Libraries choose by tables of size and number of ranks that were tuned for the fastest. So does this module: the
smallest time is taken among the algorithms that libraries use at that size. The limits are those of section 4 of the
paper, and of Open MPI's fixed decision for the all-reduce (coll_tuned_decision_fixed.c). As an algorithm only ever
drops out as n grows, time never falls with size. Where p is no power of two, recursive doubling pays two steps more
than for the power below.

>>> fastest("all_reduce", 1_000_000, 4, latency_s=1e-6, bandwidth_bytes_per_s=1e9)
Steps(algorithm='halving and doubling', messages=4, nbytes=1500000.0)
>>> fastest("all_reduce", 8, 64, latency_s=1e-6, bandwidth_bytes_per_s=1e9).algorithm
'recursive doubling'
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from math import ceil, inf, log2
from typing import NamedTuple

from ...errors import PlanError

__all__ = ["KINDS", "Steps", "candidates", "check_kind", "fastest", "moved_bytes"]

KINDS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast", "all_to_all")


class Steps(NamedTuple):
    """An algorithm as the messages that follow each other and the bytes that pass a rank in one direction."""

    algorithm: str
    messages: float
    nbytes: float


def fastest(kind: str, nbytes: float, ranks: int, *, latency_s: float, bandwidth_bytes_per_s: float) -> Steps:
    """The algorithm that is fastest on equal links among those that libraries use for `nbytes`.

    Raises:
        PlanError: no such collective.
    """
    check_kind(kind)
    if ranks <= 1 or nbytes < 0:
        return Steps("none", 0.0, 0.0)
    return min(candidates(kind, nbytes, ranks), key=lambda s: s.messages * latency_s + s.nbytes / bandwidth_bytes_per_s)


def candidates(kind: str, n: float, p: int) -> Iterator[Steps]:
    """The algorithms that libraries use for a buffer of `n` bytes among `p` > 1 ranks."""
    lg = ceil(log2(p))
    power = p == 1 << lg
    share = n * (p - 1) / p
    match kind:
        case "all_reduce":
            yield Steps("ring", 2 * (p - 1), 2 * share)
            if power:
                yield Steps("halving and doubling", 2 * lg, 2 * share)
            if n <= 10_000:
                rounds = lg if power else lg + 1
                yield Steps("recursive doubling", rounds, n * rounds)
        case "all_gather":
            yield Steps("ring", p - 1, share)
            if n <= (512_000 if power else 80_000):
                yield Steps("recursive doubling" if power else "Bruck", lg, share)
        case "reduce_scatter":
            yield Steps("pairwise", p - 1, share)
            if power and n <= 512_000:
                yield Steps("recursive halving", lg, share)
        case "broadcast":
            yield Steps("scatter and all-gather", lg + p - 1, 2 * share)
            if n <= (inf if p < 8 else 12_000):
                yield Steps("binomial tree", lg, n * lg)
        case "all_to_all":
            yield Steps("pairwise", p - 1, share)
            if n / p <= 256:
                yield Steps("Bruck", lg, n / 2 * lg)


def moved_bytes(kind: str, nbytes: float, ranks: int) -> float:
    """The bytes of a large buffer that pass each of `ranks` in one direction, whatever the latency: what the
    algorithms for large buffers move.
    """
    check_kind(kind)
    share = nbytes * (ranks - 1) / ranks
    return {"all_reduce": 2 * share, "broadcast": nbytes if ranks > 1 else 0.0}.get(kind, share)


def check_kind(kind: str) -> None:
    """Refuse a collective that does not exist.

    Raises:
        PlanError: with the nearest name.
    """
    if kind not in KINDS:
        close = get_close_matches(kind, KINDS, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(KINDS)}."
        raise PlanError(f"collective '{kind}' is not known; {hint}")
