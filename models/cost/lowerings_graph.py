"""What of a graph has several ways: the shape of each node's work, and which of its directions a training step computes."""

from __future__ import annotations

from collections.abc import Mapping

from ..onnxpp.graph import Graph
from .lowerings import Direction, Shape, families_of, family_of

__all__ = ["computations", "directions"]


def computations(graph: Graph, *, samples: int) -> Mapping[str, Shape]:
    """Every node of `graph` that is of a family, for `samples` samples, by its name; without those whose size depends on data.

    Raises:
        ModelError: a node's operands do not fit it.
    """
    found: dict[str, Shape] = {}
    for node in graph.operators:
        for family in families_of(node):
            operands = [graph.tensors[name] for name in node.inputs if name]
            moved = [operands[number] for number in family.directions.values() if number is not None]
            if any(t.at_most for t in operands) or not all(t.is_float and t.dtype == moved[0].dtype for t in moved):
                continue
            shape = family.read(node, [t.dims(samples) for t in operands])
            if shape is not None:
                found[node.name] = shape
                break
    return found


def directions(graph: Graph, shapes: Mapping[str, Shape]) -> Mapping[str, tuple[Direction, ...]]:
    """Which directions of these `shapes` are computed, by the node's name: the gradients only where they lead to a parameter.

    The gradient of the input of a network's first layer leads to none, nor does that of a weight that is not trained.
    Without a loss nothing but the forward pass is run.
    """
    moving, reaching = set(graph.parameters), {graph.loss}
    for node in graph.operators:
        if not moving.isdisjoint(node.inputs):
            moving.update(name for name in node.outputs if name and graph.tensors[name].is_float)
    for node in reversed(graph.operators):
        if not reaching.isdisjoint(node.outputs):
            reaching.update(filter(None, node.inputs))
    found: dict[str, tuple[Direction, ...]] = {}
    for node in graph.operators:
        if node.name not in shapes:
            continue
        trained = graph.loss is not None and node.outputs[0] in reaching
        found[node.name] = tuple(
            direction
            for direction, number in family_of(shapes[node.name]).directions.items()
            if number is None or (trained and node.inputs[number] in moving)
        )
    return found
