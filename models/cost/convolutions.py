"""The convolutions of a graph: the shape of each node's work, and which of its directions a training step computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..onnxpp.graph import Graph, Operator
from ..onnxpp.windows import window_of
from .lowerings import Convolution, Direction

__all__ = ["convolution_of", "convolutions", "directions"]


def convolution_of(node: Operator, x_shape: Sequence[int], w_shape: Sequence[int]) -> Convolution:
    """The shape of a Conv node's work: x (N, C, *spatial), w (M, C/groups, *kernel).

    Raises:
        ModelError: the node's window does not fit its input.
    """
    window = window_of(node, x_shape[2:], node.attributes.get("kernel_shape") or w_shape[2:])
    return Convolution(
        samples=x_shape[0],
        channels=x_shape[1],
        filters=w_shape[0],
        groups=int(node.attributes.get("group", 1)),
        size=tuple(x_shape[2:]),
        kernel=window.kernel,
        strides=window.strides,
        dilations=window.dilations,
        pads=window.pads,
        output=window.output,
    )


def convolutions(graph: Graph, *, samples: int) -> Mapping[str, Convolution]:
    """Every Conv of `graph` for `samples` samples, by the node's name; without those whose size depends on data."""
    found = {}
    for node in graph.operators:
        if node.op_type != "Conv" or node.domain:
            continue
        x, w = (graph.tensors[name] for name in node.inputs[:2])
        if not x.at_most and x.is_float:
            found[node.name] = convolution_of(node, x.dims(samples), w.dims(samples))
    return found


def directions(graph: Graph) -> Mapping[str, tuple[Direction, ...]]:
    """Which directions of every Conv are computed, by the node's name: the gradients only where they lead to a parameter.

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
        if node.op_type != "Conv" or node.domain:
            continue
        wanted: list[Direction] = ["forward"]
        if graph.loss is not None and node.outputs[0] in reaching:
            sides: tuple[Direction, ...] = ("input", "weight")
            wanted += [side for side, name in zip(sides, node.inputs, strict=False) if name in moving]
        found[node.name] = tuple(wanted)
    return found
