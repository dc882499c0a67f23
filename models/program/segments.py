"""From a partition to segments: what each reads, computes and hands on, and what is communicated in between."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby

from ...errors import PlanError
from ..cost.residuals import wants_gradient
from ..onnxpp.graph import Graph, Operator
from ..plan.blocks import Blocks
from ..plan.cores import core_operators
from ..plan.partition import Partition, crossing_tensors
from .instruction import Exchange, Segment

__all__ = ["build_segments"]


def build_segments(
    graph: Graph, partition: Partition, *, blocks: Blocks | None = None, untied: bool = False
) -> tuple[Segment, ...]:
    """The segments in order of execution; collectives that stand in the graph become exchanges between them.

    blocks   of the graph, where somebody wants to know which segment belongs to which
    untied   a parameter may be used in several segments: in each stage the first owns it

    Raises:
        PlanError: the partition does not follow the graph's order, or separates the users of a tied parameter.
    """
    crossing = crossing_tensors(graph)
    trained = wants_gradient(graph)
    constants = frozenset(graph.constants) - set(graph.state)
    labels = {*graph.inputs, *graph.targets}
    cores = core_operators(graph) if blocks else frozenset()
    owner: dict[str, tuple[int, int]] = {}  # stage and segment
    segments: list[Segment] = []
    seen: set[str] = set()
    same = _unchanged(graph)
    start = 0
    for name, members in groupby(graph.operators, key=lambda o: _place(partition, o)):
        operators = tuple(members)
        end = start + len(operators)
        if operators[0].family == "collective":
            exchanges = tuple(e for o in operators if (e := _exchange(o, trained)))
            if exchanges:
                segments[-1] = replace(segments[-1], exchanges=(*segments[-1].exchanges, *exchanges))
            start = end
            continue
        if name in seen and not any(o.family == "collective" for o in graph.operators[:start]):
            raise PlanError(
                f"Segment {name} of {graph.name} is not a run of neighbours: plan it again with `hpdlf plan`."
            )
        seen.add(name)
        stage = partition.stages[operators[0].name]
        read = dict.fromkeys(same.get(t, t) for o in operators for t in o.inputs)
        owned, borrowed = [], []
        for parameter in (t for t in read if t in graph.trainable):
            known = owner.get(parameter)
            if known is None or (untied and known[0] != stage):
                owner[parameter] = stage, len(segments)
                owned.append(parameter)
            elif untied:
                borrowed.append(parameter)
            else:
                raise PlanError(
                    f"Parameter {parameter} of {graph.name} is used in two segments; the users of a tied parameter must stay "
                    "together: plan it again with `hpdlf plan`."
                )
        segments.append(
            Segment(
                number=len(segments),
                stage=stage,
                operators=tuple(o.name for o in operators),
                inputs=crossing[start],
                outputs=crossing[end],
                differentiable=tuple(t for t in crossing[start] if t in trained),
                data=tuple(t for t in read if t in labels),
                parameters=tuple(owned),
                constants=tuple(t for t in read if t in constants),
                state=tuple(t for t in read if t in graph.state),
                has_loss=any(graph.loss in o.outputs for o in operators),
                backward=False,
                borrowed=tuple(borrowed),
                block=_block(blocks, start),
                core=bool(cores) and all(o.name in cores for o in operators),
            )
        )
        start = end
    return _mark_backward(segments)


def _place(partition: Partition, operator: Operator) -> str:
    kind = "collective " if operator.family == "collective" else ""
    return kind + partition.segments[operator.name]


def _exchange(operator: Operator, trained: frozenset[str]) -> Exchange | None:
    """None where nothing is communicated: forward it only cuts out a part, and there is no gradient to bring back."""
    a, given = operator.attributes, operator.inputs[0]
    backward = a["backward"] if given in trained else ""
    if not (a["forward"] or backward):
        return None
    return Exchange(a["axis"], a["forward"], backward, given, operator.outputs[0])


def _unchanged(graph: Graph) -> dict[str, str]:
    """Tensors that are another one, or a part of it, forward: by the name of the other."""
    same: dict[str, str] = {}
    for operator in graph.operators:
        if operator.family == "collective" and not operator.attributes["forward"]:
            given = operator.inputs[0]
            same[operator.outputs[0]] = same.get(given, given)
    return same


def _block(blocks: Blocks | None, start: int) -> int | None:
    if blocks is None or not blocks.starts[0] <= start < blocks.end:
        return None
    return bisect_right(blocks.starts, start) - 1


def _mark_backward(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """A segment has a backward pass if gradients reach it (its own loss, or its successor's inputs) and it has a use for them."""
    marked: list[Segment] = []
    arrives = False
    for segment in reversed(list(segments)):
        arrives = arrives or segment.has_loss
        backward = arrives and bool(segment.parameters or segment.borrowed or segment.differentiable)
        marked.append(replace(segment, backward=backward))
        arrives = backward and bool(segment.differentiable)
    return tuple(reversed(marked))
