"""Cutting a graph into pipeline stages of equal time (or of equally many blocks), and stages into segments.

Operators keep their topological order, so a cut is a position in it. The longest of the stages is made as short as can be, what
crosses its cuts included (linear partitioning by dynamic programming). Within a stage, segments are cut where a bucket of
gradients is full, so that its all-reduce can start while earlier layers still compute.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import inf

import numpy as np

from ...errors import PlanError
from ..onnxpp.graph import Graph
from .blocks import find_blocks, waists
from .cores import core_spans
from .crossing import crossing_tensors
from .strategy import Strategy

__all__ = ["Partition", "crossing_tensors", "partition", "segment_borders"]

# Every position of more operators than that takes too long to try, and most of them cut a layer in two.
MOST_POSITIONS = 500


@dataclass(frozen=True, kw_only=True)
class Partition:
    """`stages` and `segments` say for every operator, by name, the stage (from 0) and the segment ("stage.segment")."""

    stages: Mapping[str, int]
    segments: Mapping[str, str]


def partition(
    graph: Graph,
    *,
    operator_s: Sequence[float],
    stages: int,
    bucket_bytes: int | None,
    samples: int,
    seconds_per_byte: float,
    layers: bool = False,
    borders: Collection[int] = (),
    untied: bool = False,
) -> Partition:
    """Cut `graph` into `stages`.

    operator_s        seconds of every operator, forward and backward, in the graph's order
    bucket_bytes      gradients per segment; None: one segment a stage
    samples           microbatch size, for the bytes that cross
    seconds_per_byte  what a byte across a cut costs
    layers            deal out whole blocks, the same number to every stage, instead of balancing times
    borders           positions at which a segment ends whatever else
    untied            the users of a tied parameter may be separated: every stage has a copy

    Raises:
        PlanError: there are fewer operators (or blocks) than stages.
    """
    count = len(graph.operators)
    weighty = sum(1 for s in operator_s if s > 0) or count
    if stages > weighty:
        raise PlanError(f"{graph.name} has {weighty} operators that compute, too few for {stages} pipeline stages.")
    if stages == 1:
        ends = [count]
    elif layers:
        ends = _deal(graph, stages)
    else:
        ends = _by_time(graph, operator_s, stages, samples, seconds_per_byte, untied)
    if not untied and any(first < end <= last for first, last in _uses(graph, 0, count).values() for end in ends[:-1]):
        raise PlanError(
            f"{graph.name} cannot be cut into {stages} pipeline stages without separating the users of a tied parameter."
        )
    stage_of: dict[str, int] = {}
    segment_of: dict[str, str] = {}
    start = 0
    for stage, end in enumerate(ends):
        opens = {i for i in borders if start < i < end} | _buckets(graph, start, end, bucket_bytes, untied)
        numbers = accumulate(int(i in opens) for i in range(start, end))
        for operator, segment in zip(graph.operators[start:end], numbers, strict=True):
            stage_of[operator.name] = stage
            segment_of[operator.name] = f"{stage}.{segment}"
        start = end
    return Partition(stages=stage_of, segments=segment_of)


def segment_borders(graph: Graph, strategy: Strategy) -> frozenset[int]:
    """Positions at which `strategy` wants a segment to end: at collectives; at blocks, which are gathered, reduced or computed again as
    one; and at the cores of attention where these alone are computed again.
    """
    found: set[int] = set()
    for i, operator in enumerate(graph.operators):
        if operator.family == "collective":
            found.update((i, i + 1))
    replicas = strategy.data * strategy.context
    if strategy.recompute == "full" or (replicas > 1 and strategy.simulated_only):
        found.update(find_blocks(graph).borders)
    if strategy.recompute == "selective":
        found.update(at for first, last in core_spans(graph) for at in (first, last + 1))
    return frozenset(found)


def _by_time(
    graph: Graph, operator_s: Sequence[float], stages: int, samples: int, seconds_per_byte: float, untied: bool
) -> list[int]:
    """Ends of stages that take equally long. Large networks are cut at their waists alone."""
    count = len(graph.operators)
    among = list(range(count + 1))
    if count > MOST_POSITIONS or any(o.family == "collective" for o in graph.operators):
        among = [0, *waists(graph), count]
    if stages > len(among) - 1:
        raise PlanError(f"{graph.name} has {len(among) - 1} parts in a row, too few for {stages} pipeline stages.")
    crossing = crossing_tensors(graph)
    wire_s = [seconds_per_byte * sum(graph.tensors[t].nbytes(samples) for t in crossing[at]) for at in among]
    wire_s[0] = wire_s[-1] = 0.0
    if not untied:  # the users of a tied parameter stay together
        for first, last in _uses(graph, 0, count).values():
            wire_s = [inf if first < at <= last else wire for at, wire in zip(among, wire_s, strict=True)]
    done_s = np.concatenate([[0.0], np.cumsum(np.asarray(operator_s, dtype=float))])[among]
    return [among[end] for end in _balance(np.diff(done_s), np.asarray(wire_s), stages)]


def _deal(graph: Graph, stages: int) -> list[int]:
    """Ends of stages of as many blocks each. Where they do not divide, the stem and the head count as a block each, as trainings of
    deep networks do it (126 layers on 128 stages).
    """
    blocks = find_blocks(graph)
    count, borders = len(graph.operators), blocks.borders
    if len(blocks) % stages == 0:
        each = len(blocks) // stages
        return [*borders[each:-1:each], count]
    links = sorted({*borders, count} - {0})  # ends of the stem, of the blocks, of the head
    if len(links) < stages:
        raise PlanError(f"{graph.name} has {len(blocks)} blocks, too few for {stages} pipeline stages.")
    taken = [-(-len(links) * (stage + 1) // stages) for stage in range(stages)]
    return [*(links[n - 1] for n in taken[:-1]), count]


def _balance(operator_s: np.ndarray, wire_s: np.ndarray, stages: int) -> list[int]:
    """End positions of stages: least of the longest (stage time + the wire time of its two cuts)."""
    count = len(operator_s)
    done_s = np.concatenate([[0.0], np.cumsum(operator_s)])
    best = np.full(count + 1, np.inf)
    best[0] = 0.0
    choice = np.zeros((stages, count + 1), dtype=int)
    for stage in range(stages):
        reached = np.full(count + 1, np.inf)
        for end in range(stage + 1, count + 1 - (stages - stage - 1)):
            starts = np.arange(stage, end)
            longest = np.maximum(best[starts], done_s[end] - done_s[starts] + wire_s[starts] + wire_s[end])
            chosen = int(np.argmin(longest))
            reached[end], choice[stage, end] = longest[chosen], starts[chosen]
        best = reached
    ends = [count]
    for stage in range(stages - 1, 0, -1):
        ends.append(int(choice[stage, ends[-1]]))
    return ends[::-1]


def _buckets(graph: Graph, start: int, end: int, bucket_bytes: int | None, untied: bool) -> set[int]:
    """Positions among start..end at which a segment begins. Buckets are filled from the back, as gradients appear, and a cut never
    separates the users of a parameter that is used more than once (tied).
    """
    if bucket_bytes is None:
        return set()
    uses = _uses(graph, start, end)
    ready: dict[int, int] = {}  # bytes of gradients that an operator's backward pass completes
    for name, (first, _) in uses.items():
        ready[first] = ready.get(first, 0) + graph.tensors[name].nbytes(1)
    tied = set() if untied else {i for first, last in uses.values() for i in range(first + 1, last + 1)}
    cuts, filled = [], 0
    for i in range(end - 1, start, -1):
        filled += ready.get(i, 0)
        if filled >= bucket_bytes and i not in tied:
            cuts.append(i)
            filled = 0
    # What is left at the front has no gradients of its own to send: no bucket.
    if cuts and not any(first < cuts[-1] for first, _ in uses.values()):
        cuts.pop()
    return set(cuts)


def _uses(graph: Graph, start: int, end: int) -> dict[str, tuple[int, int]]:
    """The first and the last operator among start..end that uses each trainable parameter."""
    uses: dict[str, tuple[int, int]] = {}
    for i in range(start, end):
        for name in graph.operators[i].inputs:
            if name in graph.trainable:
                uses[name] = (uses.get(name, (i, i))[0], i)
    return uses
