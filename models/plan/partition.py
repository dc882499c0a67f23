"""Cutting a graph into pipeline stages of equal time, and stages into segments.

Operators keep their topological order, so a cut is a position in it. The longest of the stages is made as short as can be, what
crosses its cuts included (linear partitioning by dynamic programming). Within a stage, segments are cut where a bucket of
gradients is full, so that its all-reduce can start while earlier layers still compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from ...errors import PlanError
from ..onnxpp.graph import Graph

__all__ = ["Partition", "crossing_tensors", "partition"]


@dataclass(frozen=True, kw_only=True)
class Partition:
    """`stages` and `segments` say for every operator, by name, the stage (from 0) and the segment ("stage.segment")."""

    stages: Mapping[str, int]
    segments: Mapping[str, str]


def crossing_tensors(graph: Graph) -> list[tuple[str, ...]]:
    """For every position 0..n: the data-dependent tensors that operators before it compute and operators from it on read.

    The model's outputs (the loss excepted) count as read at the end, so position n carries them.
    """
    position = {o.name: i for i, o in enumerate(graph.operators)}
    last_use: dict[str, int] = {}
    for i, operator in enumerate(graph.operators):
        for name in operator.inputs:
            if name in graph.producer:
                last_use[name] = i
    count = len(graph.operators)
    for name in graph.outputs:
        if name in graph.producer and name != graph.loss:
            last_use[name] = count
    crossing: list[list[str]] = [[] for _ in range(count + 1)]
    for name, last in last_use.items():
        for i in range(position[graph.producer[name].name] + 1, last + 1):
            crossing[i].append(name)
    return [tuple(sorted(names, key=lambda n: (position[graph.producer[n].name], n))) for names in crossing]


def partition(
    graph: Graph,
    *,
    operator_s: Sequence[float],
    stages: int,
    bucket_bytes: int | None,
    samples: int,
    seconds_per_byte: float,
) -> Partition:
    """Cut `graph` into `stages`.

    operator_s        seconds of every operator, forward and backward, in the graph's order
    bucket_bytes      gradients per segment; None: one segment a stage
    samples           microbatch size, for the bytes that cross
    seconds_per_byte  what a byte across a cut costs

    Raises:
        PlanError: there are fewer operators than stages.
    """
    count = len(graph.operators)
    weighty = sum(1 for s in operator_s if s > 0) or count
    if stages > weighty:
        raise PlanError(f"{graph.name} has {weighty} operators that compute, too few for {stages} pipeline stages.")
    crossing = crossing_tensors(graph)
    wire_s = [seconds_per_byte * sum(graph.tensors[t].nbytes(samples) for t in names) for names in crossing]
    wire_s[0] = wire_s[count] = 0.0
    for first, last in _uses(graph, 0, count).values():  # the users of a tied parameter stay together
        wire_s[first + 1 : last + 1] = [np.inf] * (last - first)
    ends = _balance(np.asarray(operator_s, dtype=float), np.asarray(wire_s), stages)
    if any(wire_s[end] == np.inf for end in ends):
        raise PlanError(
            f"{graph.name} cannot be cut into {stages} pipeline stages without separating the users of a tied parameter."
        )
    stage_of: dict[str, int] = {}
    segment_of: dict[str, str] = {}
    start = 0
    for stage, end in enumerate(ends):
        members = graph.operators[start:end]
        for operator, segment in zip(members, _buckets(graph, start, end, bucket_bytes), strict=True):
            stage_of[operator.name] = stage
            segment_of[operator.name] = f"{stage}.{segment}"
        start = end
    return Partition(stages=stage_of, segments=segment_of)


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


def _buckets(graph: Graph, start: int, end: int, bucket_bytes: int | None) -> list[int]:
    """Segment numbers of the operators start..end. Buckets are filled from the back, as gradients appear, and a cut never
    separates the users of a parameter that is used more than once (tied).
    """
    if bucket_bytes is None:
        return [0] * (end - start)
    uses = _uses(graph, start, end)
    ready: dict[int, int] = {}  # bytes of gradients that an operator's backward pass completes
    for name, (first, _) in uses.items():
        ready[first] = ready.get(first, 0) + graph.tensors[name].nbytes(1)
    tied = {i for first, last in uses.values() for i in range(first + 1, last + 1)}
    cuts, filled = [], 0
    for i in range(end - 1, start, -1):
        filled += ready.get(i, 0)
        if filled >= bucket_bytes and i not in tied:
            cuts.append(i)
            filled = 0
    # What is left at the front has no gradients of its own to send: no bucket.
    if cuts and not any(first < cuts[-1] for first, _ in uses.values()):
        cuts.pop()
    opens = set(cuts)
    return list(accumulate(int(i in opens) for i in range(start, end)))


def _uses(graph: Graph, start: int, end: int) -> dict[str, tuple[int, int]]:
    """The first and the last operator among start..end that uses each trainable parameter."""
    uses: dict[str, tuple[int, int]] = {}
    for i in range(start, end):
        for name in graph.operators[i].inputs:
            if name in graph.trainable:
                uses[name] = (uses.get(name, (i, i))[0], i)
    return uses
