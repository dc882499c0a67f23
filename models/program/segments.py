"""From a partition to segments: what each reads, computes and hands on."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

from ...errors import PlanError
from ..cost.residuals import wants_gradient
from ..onnxpp.graph import Graph
from ..plan.partition import Partition, crossing_tensors
from .instruction import Segment

__all__ = ["build_segments"]


def build_segments(graph: Graph, partition: Partition) -> tuple[Segment, ...]:
    """The segments in order of execution.

    Raises:
        PlanError: the partition does not follow the graph's order, or separates the users of a tied parameter.
    """
    crossing = crossing_tensors(graph)
    trained = wants_gradient(graph)
    constants = frozenset(graph.constants) - set(graph.state)
    labels = {*graph.inputs, *graph.targets}
    owner: dict[str, int] = {}
    segments: list[Segment] = []
    seen: set[str] = set()
    start = 0
    for name, members in groupby(graph.operators, key=lambda o: partition.segments[o.name]):
        operators = tuple(members)
        end = start + len(operators)
        if name in seen:
            raise PlanError(
                f"Segment {name} of {graph.name} is not a run of neighbours: plan it again with `hpdlf plan`."
            )
        seen.add(name)
        read = dict.fromkeys(t for o in operators for t in o.inputs)
        parameters = tuple(t for t in read if t in graph.trainable)
        for parameter in parameters:
            if owner.setdefault(parameter, len(segments)) != len(segments):
                raise PlanError(
                    f"Parameter {parameter} of {graph.name} is used in two segments; the users of a tied parameter must stay "
                    "together: plan it again with `hpdlf plan`."
                )
        segments.append(
            Segment(
                number=len(segments),
                stage=partition.stages[operators[0].name],
                operators=tuple(o.name for o in operators),
                inputs=crossing[start],
                outputs=crossing[end],
                differentiable=tuple(t for t in crossing[start] if t in trained),
                data=tuple(t for t in read if t in labels),
                parameters=parameters,
                constants=tuple(t for t in read if t in constants),
                state=tuple(t for t in read if t in graph.state),
                has_loss=any(graph.loss in o.outputs for o in operators),
                backward=False,
            )
        )
        start = end
    return _mark_backward(segments)


def _mark_backward(segments: list[Segment]) -> tuple[Segment, ...]:
    """A segment has a backward pass if gradients reach it (its own loss, or its successor's inputs) and it has a use for them."""
    marked: list[Segment] = []
    arrives = False
    for segment in reversed(segments):
        arrives = arrives or segment.has_loss
        backward = arrives and bool(segment.parameters or segment.differentiable)
        marked.append(replace(segment, backward=backward))
        arrives = backward and bool(segment.differentiable)
    return tuple(reversed(marked))
