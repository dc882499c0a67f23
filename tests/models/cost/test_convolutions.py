"""The convolutions of a graph: their shapes, and the directions that lead to a parameter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hpdlf.models.cost.convolutions import convolution_of, convolutions, directions
from hpdlf.models.onnxpp import Graph
from hpdlf.models.onnxpp.graph import Dim, Operator, Tensor

IMAGE = (Dim(per_sample=1), Dim(4), Dim(9), Dim(7))


def conv_graph(*inputs: str, **attributes: Any) -> Graph:
    """y = conv(x, w), then its sum as the loss."""
    node = Operator(
        name="c", op_type="Conv", family="conv", inputs=inputs or ("x", "w"), outputs=("y",), attributes=attributes
    )
    total = Operator(name="sum", op_type="ReduceSum", family="reduction", inputs=("y",), outputs=("loss",))
    shapes = {"x": IMAGE, "w": (Dim(6), Dim(4), Dim(3), Dim(3)), "y": IMAGE, "loss": (), "v": IMAGE}
    return Graph(
        name="g",
        opset=20,
        operators=(node, total),
        tensors={n: Tensor(name=n, dtype="float32", shape=s) for n, s in shapes.items()},
        inputs=("x",),
        targets=(),
        outputs=("y",),
        loss="loss",
        parameters=("w",),
        state={},
        constants=(),
    )


@pytest.mark.parametrize(
    ("attributes", "pads", "output"),
    [
        ({}, ((0, 0), (0, 0)), (7, 5)),
        ({"pads": [1, 1, 1, 1]}, ((1, 1), (1, 1)), (9, 7)),
        ({"strides": [2, 2], "auto_pad": b"SAME_UPPER"}, ((1, 1), (1, 1)), (5, 4)),
        ({"strides": [2, 3], "auto_pad": "SAME_LOWER"}, ((1, 1), (1, 1)), (5, 3)),
        ({"auto_pad": "VALID", "dilations": [2, 2]}, ((0, 0), (0, 0)), (5, 3)),
    ],
)
def test_a_node_says_its_shape(attributes: dict[str, Any], pads: Any, output: tuple[int, ...]) -> None:
    (conv,) = convolutions(conv_graph(**attributes), samples=3).values()
    assert (conv.samples, conv.channels, conv.filters, conv.groups) == (3, 4, 6, 1)
    assert (conv.size, conv.kernel, conv.pads, conv.output) == ((9, 7), (3, 3), pads, output)


def test_shapes_are_those_that_shape_inference_found(small_network: Graph) -> None:
    for name, conv in convolutions(small_network, samples=5).items():
        node = small_network.operator[name]
        x, w = (small_network.tensors[t].dims(5) for t in node.inputs[:2])
        assert convolution_of(node, x, w) == conv
        assert (conv.samples, conv.filters, *conv.output) == small_network.tensors[node.outputs[0]].dims(5)


def test_sizes_that_depend_on_data_are_left_out() -> None:
    graph = conv_graph()
    tensors = {**graph.tensors, "x": replace(graph.tensors["x"], at_most=(2,))}
    assert convolutions(replace(graph, tensors=tensors), samples=1) == {}


def test_gradients_are_computed_where_they_lead_to_a_parameter() -> None:
    graph = conv_graph()
    assert directions(graph) == {"c": ("forward", "weight")}
    assert directions(replace(graph, loss=None)) == {"c": ("forward",)}
    assert directions(replace(graph, parameters=())) == {"c": ("forward",)}
    before = Operator(name="b", op_type="Mul", family="elementwise", inputs=("x", "v"), outputs=("u",))
    tensors = {**graph.tensors, "u": replace(graph.tensors["x"], name="u")}
    behind = replace(conv_graph("u", "w"), tensors=tensors, parameters=("v",))
    assert directions(replace(behind, operators=(before, *behind.operators))) == {"c": ("forward", "input")}


def test_what_the_loss_does_not_read_is_run_forward_alone() -> None:
    graph = conv_graph()
    other = Operator(name="aside", op_type="Conv", family="conv", inputs=("x", "w"), outputs=("z",))
    tensors = {**graph.tensors, "z": replace(graph.tensors["y"], name="z")}
    found = directions(replace(graph, operators=(other, *graph.operators), tensors=tensors))
    assert found == {"aside": ("forward",), "c": ("forward", "weight")}
