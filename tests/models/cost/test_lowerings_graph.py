"""What of a graph has several ways: shapes, and the directions that lead to a parameter."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hpdlf.models.cost.lowerings import Convolution, Linear, ProductBatch, convolution_of
from hpdlf.models.cost.lowerings_graph import computations, directions
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


def wanted(graph: Graph) -> Any:
    return directions(graph, computations(graph, samples=2))


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
    (conv,) = computations(conv_graph(**attributes), samples=3).values()
    assert isinstance(conv, Convolution)
    assert (conv.samples, conv.channels, conv.filters, conv.groups) == (3, 4, 6, 1)
    assert (conv.size, conv.kernel, conv.pads, conv.output) == ((9, 7), (3, 3), pads, output)


def test_shapes_are_those_that_shape_inference_found(small_network: Graph) -> None:
    for name, conv in computations(small_network, samples=5).items():
        node = small_network.operator[name]
        if not isinstance(conv, Convolution):
            assert node.op_type == "Gemm"
            continue
        x, w = (small_network.tensors[t].dims(5) for t in node.inputs[:2])
        assert convolution_of(node, x, w) == conv
        assert (conv.samples, conv.filters, *conv.output) == small_network.tensors[node.outputs[0]].dims(5)


def test_sizes_that_depend_on_data_are_left_out() -> None:
    graph = conv_graph()
    tensors = {**graph.tensors, "x": replace(graph.tensors["x"], at_most=(2,))}
    assert computations(replace(graph, tensors=tensors), samples=1) == {}


def test_gradients_are_computed_where_they_lead_to_a_parameter() -> None:
    graph = conv_graph()
    assert wanted(graph) == {"c": ("forward", "weight")}
    assert wanted(replace(graph, loss=None)) == {"c": ("forward",)}
    assert wanted(replace(graph, parameters=())) == {"c": ("forward",)}
    before = Operator(name="b", op_type="Mul", family="elementwise", inputs=("x", "v"), outputs=("u",))
    tensors = {**graph.tensors, "u": replace(graph.tensors["x"], name="u")}
    behind = replace(conv_graph("u", "w"), tensors=tensors, parameters=("v",))
    assert wanted(replace(behind, operators=(before, *behind.operators))) == {"c": ("forward", "input")}


def test_what_the_loss_does_not_read_is_run_forward_alone() -> None:
    graph = conv_graph()
    other = Operator(name="aside", op_type="Conv", family="conv", inputs=("x", "w"), outputs=("z",))
    tensors = {**graph.tensors, "z": replace(graph.tensors["y"], name="z")}
    found = wanted(replace(graph, operators=(other, *graph.operators), tensors=tensors))
    assert found == {"aside": ("forward",), "c": ("forward", "weight")}


def product_graph(op_type: str, a: tuple[int, ...], b: tuple[int, ...], **attributes: Any) -> Graph:
    """y = a b, whose loss is y; the first dim of `a` are the samples. Both are trained, so that all directions are wanted."""
    node = Operator(
        name="p", op_type=op_type, family="matmul", inputs=("a", "b"), outputs=("y",), attributes=attributes
    )
    shapes = {"a": (Dim(per_sample=1), *map(Dim, a[1:])), "b": tuple(map(Dim, b)), "y": ()}
    if len(b) > 2:
        shapes["b"] = (Dim(per_sample=1) if b[0] == a[0] else Dim(b[0]), *map(Dim, b[1:]))
    tensors = {n: Tensor(name=n, dtype="float32", shape=s) for n, s in shapes.items()}
    rest: Any = {"inputs": ("a",), "targets": (), "outputs": ("y",), "state": {}, "constants": ()}
    return Graph(name="g", opset=20, operators=(node,), tensors=tensors, loss="y", parameters=("a", "b"), **rest)


@pytest.mark.parametrize(
    ("op_type", "a", "b", "attributes", "shape"),
    [
        ("MatMul", (3, 5), (5, 7), {}, Linear(rows=3, wide=5, result=7)),
        ("MatMul", (3, 4, 5), (5, 7), {}, Linear(rows=12, wide=5, result=7)),
        ("Gemm", (3, 5), (7, 5), {"transB": 1}, Linear(rows=3, wide=5, result=7, transposed=True)),
        ("Gemm", (3, 5), (3, 7), {"transA": 1}, Linear(rows=5, wide=3, result=7)),
        ("MatMul", (3, 2, 4, 5), (3, 2, 5, 7), {}, ProductBatch(batch=6, rows=4, inner=5, columns=7)),
        ("MatMul", (3, 4, 5), (3, 5, 7), {}, ProductBatch(batch=3, rows=4, inner=5, columns=7)),
        ("MatMul", (3, 2, 4, 5), (2, 5, 7), {}, None),  # the right operand is one for all samples
        ("MatMul", (3, 2, 4, 5), (1, 2, 5, 7), {}, None),
        ("MatMul", (3, 5), (5,), {}, None),
        ("MatMul", (3, 0), (0, 7), {}, None),
    ],
)
def test_a_product_says_its_shape(
    op_type: str, a: tuple[int, ...], b: tuple[int, ...], attributes: dict[str, Any], shape: Any
) -> None:
    graph = product_graph(op_type, a, b, **attributes)
    assert computations(graph, samples=3) == ({} if shape is None else {"p": shape})
    if shape is not None:
        gradients = ("left", "right") if isinstance(shape, ProductBatch) else ("input", "weight")
        assert directions(graph, {"p": shape}) == {"p": ("forward", *gradients)}


def test_operands_of_two_types_and_whole_numbers_are_left_to_xla() -> None:
    graph = product_graph("MatMul", (3, 5), (5, 7))
    for dtypes in (("float32", "float64"), ("int64", "int64")):
        tensors = {n: replace(graph.tensors[n], dtype=d) for n, d in zip("ab", dtypes, strict=True)}
        assert computations(replace(graph, tensors={**graph.tensors, **tensors}), samples=3) == {}


def test_an_operator_of_another_domain_is_none_of_ours() -> None:
    graph = product_graph("MatMul", (3, 5), (5, 7))
    elsewhere = replace(graph, operators=tuple(replace(o, domain="com.example") for o in graph.operators))
    assert computations(elsewhere, samples=3) == {}
