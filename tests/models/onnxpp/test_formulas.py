"""Counts of operators that are neither products nor element by element, and that none of the standard's is forgotten."""

from __future__ import annotations

from itertools import pairwise
from math import ceil, log2
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hpdlf.models.onnxpp import Graph, Operator, work
from hpdlf.models.onnxpp.bodies import body_of
from hpdlf.models.onnxpp.families import ELEMENTWISE, FAMILY_OF, FAMILY_OPERATORS, family
from hpdlf.models.onnxpp.formulas import FORMULAS
from hpdlf.models.onnxpp.graph import Dim, Tensor


def _graph(operators: tuple[Operator, ...], **shapes: tuple[int | Dim, ...]) -> Graph:
    tensors = {
        name: Tensor(name=name, dtype="float32", shape=tuple(d if isinstance(d, Dim) else Dim(d) for d in shape))
        for name, shape in shapes.items()
    }
    return Graph(
        name="g", opset=20, operators=operators, tensors=tensors, inputs=("x",), targets=(), outputs=("y",), loss=None,
        parameters=(), state={}, constants=(),
    )  # fmt: skip


def _flops(
    op_type: str, inputs: str, /, batch: int = 1, attributes: dict[str, Any] | None = None, **shapes: Any
) -> int:
    operator = Operator(
        name="n",
        op_type=op_type,
        family=family(op_type),
        inputs=tuple(inputs.split()),
        outputs=("y",),
        attributes=attributes or {},
    )
    return work(operator, _graph((operator,), **shapes), batch=batch, phase="forward").flops


def test_every_operator_of_the_standard_is_in_a_family_on_purpose() -> None:
    known = ELEMENTWISE | set(FAMILY_OF)
    schemas = onnx.defs.get_all_schemas_with_history()
    assert {schema.name for schema in schemas} - known == set()
    assert set(FAMILY_OF) & ELEMENTWISE == set()
    named = [name for names in FAMILY_OPERATORS.values() for name in names.split()]
    assert len(named) == len(set(named))
    assert set(FORMULAS) <= known


def test_transforms_take_five_n_log_n() -> None:
    assert _flops("DFT", "x", x=(3, 64, 1), y=(3, 64, 2), attributes={"axis": 1}) == 3 * 5 * 64 * 6
    half = _flops("STFT", "x s", x=(2, 400, 1), s=(), y=(2, 22, 33, 2))
    assert half == 2 * 22 * (5 * 64 * 6 + 64)


def test_linear_resizing_takes_three_per_axis() -> None:
    linear = {"mode": "linear"}
    assert _flops("Resize", "x", x=(2, 3, 4, 4), y=(2, 3, 8, 16), attributes=linear) == 3 * 6 * (8 * 4 + 8 * 16)
    assert _flops("Resize", "x", x=(2, 3, 4, 4), y=(2, 3, 8, 16), attributes={"mode": "nearest"}) == 0


def test_trees_are_as_deep_as_balanced_ones() -> None:
    attributes = {"nodes_treeids": (0,) * 7 + (1,) * 3}
    assert _flops("TreeEnsembleRegressor", "x", batch=5, x=(Dim(per_sample=1), 4), y=(Dim(per_sample=1), 1),
                  attributes=attributes) == 5 * ((3 + 1) + (2 + 1))  # fmt: skip


def test_pairs_of_boxes_are_counted_at_their_most() -> None:
    assert _flops("NonMaxSuppression", "x s", x=(2, 10, 4), s=(2, 3, 10), y=(60, 3)) == 2 * 3 * 45 * 12


def test_determinant_and_top_k() -> None:
    assert _flops("Det", "x", x=(4, 6, 6), y=(4,)) == 4 * (2 * 216 // 3)
    assert _flops("TopK", "x k", x=(4, 100), k=(1,), y=(4, 8)) == 400 * ceil(log2(8))


def _branch(op_type: str, times: int) -> onnx.GraphProto:
    names = ["x", *(f"t{i}" for i in range(times))]
    nodes = [helper.make_node(op_type, [a], [b]) for a, b in pairwise(names)]
    return helper.make_graph(
        nodes, op_type, [], [helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, [4])],
        value_info=[helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in names[1:-1]],
    )  # fmt: skip


def _with_shapes(operator: Operator, **shapes: tuple[int, ...]) -> Operator:
    from dataclasses import replace

    def filled(body: Any) -> Any:
        made = [n for o in body.operators for n in o.outputs]
        tensors = {n: Tensor(name=n, dtype="float32", shape=tuple(map(Dim, shapes.get(n, (4,))))) for n in made}
        return replace(body, tensors={**body.tensors, **tensors})

    return replace(operator, attributes={k: filled(v) for k, v in operator.attributes.items()})


def _holding(op_type: str, inputs: tuple[str, ...], **bodies: onnx.GraphProto) -> Operator:
    return _with_shapes(
        Operator(
            name="n", op_type=op_type, family=family(op_type), inputs=inputs, outputs=("y",),
            attributes={name: body_of(graph, {"": 20}) for name, graph in bodies.items()}, captured=("x",),
        )
    )  # fmt: skip


def test_branch_with_more_to_do_is_counted() -> None:
    operator = _holding("If", ("c", "x"), then_branch=_branch("Relu", 3), else_branch=_branch("Sigmoid", 1))
    graph = _graph((operator,), c=(), x=(4,), y=(4,))
    assert work(operator, graph, batch=1, phase="forward").flops == 4 * 4
    assert work(operator, graph, batch=1, phase="backward_input").flops == 2 * 4 * 4


@pytest.mark.parametrize("trips", [1, 7])
def test_loop_does_its_body_as_often_as_it_runs(trips: int) -> None:
    from dataclasses import replace

    operator = replace(_holding("Loop", ("m", "c", "x"), body=_branch("Relu", 2)), trips=Dim(trips))
    graph = _graph((operator,), m=(), c=(), x=(4,), y=(4,))
    assert work(operator, graph, batch=1, phase="forward").flops == trips * 2 * 4


def test_quantisation_per_element() -> None:
    assert _flops("QuantizeLinear", "x s", x=(8,), s=(), y=(8,)) == 4 * 8
    assert _flops("DequantizeLinear", "x s", x=(8,), s=(), y=(8,)) == 2 * 8
    assert np.isclose(_flops("SwiGLU", "x", x=(2, 8), y=(2, 8)), 6 * 16)
