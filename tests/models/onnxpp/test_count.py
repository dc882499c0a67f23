from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hpdlf.models.onnxpp import FAMILIES, PHASES, Graph, Onnxpp, Work, family, import_model, work
from hpdlf.models.onnxpp.graph import Dim, Operator, Tensor
from hpdlf.models.zoo import digits_cnn, mlp


def imported(model: onnx.ModelProto, tmp_path: Path, **options: str) -> Graph:
    onnx.save(model, tmp_path / "m.onnx")
    return import_model(tmp_path / "m.onnx", **options).graph


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_dense_layer_closed_form(tmp_path: Path, precision: str) -> None:
    """y[b, n] = x[b, k] wᵀ + c: 2bkn + bn FLOPs; every gradient of a factor costs 2bkn, the bias's bn."""
    graph = imported(mlp((6, 5, 4)), tmp_path)
    b, k, n, item = 7, 6, 5, {"float32": 4, "float64": 8, "bfloat16": 2}[precision]
    dense = graph.operator["dense1"]
    forward = work(dense, graph, batch=b, phase="forward", precision=precision)
    assert forward == Work(2 * b * k * n + b * n, item * (b * k + n * k + n), item * b * n)
    data = work(dense, graph, batch=b, phase="backward_input", precision=precision)
    assert data == Work(2 * b * k * n, item * (b * n + n * k), item * b * k)
    weight = work(dense, graph, batch=b, phase="backward_weight", precision=precision)
    assert weight == Work(2 * b * k * n + b * n, item * (b * n + b * k + b * n), item * (n * k + n))
    assert work(dense, graph, batch=b, phase="backward", precision=precision) == data.plus(weight)


def test_convolution_closed_form(tmp_path: Path) -> None:
    graph = imported(digits_cnn(channels=(4, 6)), tmp_path)
    conv2 = graph.operator["conv2"]
    b, places = 3, 4 * 4
    flops = 2 * b * 6 * places * 4 * 9
    assert work(conv2, graph, batch=b, phase="forward").flops == flops + b * 6 * places
    assert work(conv2, graph, batch=b, phase="backward_input").flops == flops
    assert work(conv2, graph, batch=b, phase="backward_weight").flops == flops + b * 6 * places
    assert work(graph.operator["flatten"], graph, batch=b, phase="forward") == Work(0, 0, 0)
    assert work(graph.operator["relu1"], graph, batch=b, phase="forward") == Work(b * 256, 4 * b * 256, 4 * b * 256)


@pytest.mark.parametrize(
    ("op_type", "shape", "weight", "attributes", "macs"),
    [
        ("Conv", [8, 6, 6], [8, 1, 3, 3], {"group": 8, "pads": [1] * 4}, 8 * 36 * 9),
        ("Conv", [4, 10], [6, 2, 3], {"group": 2, "strides": [2]}, 6 * 4 * 2 * 3),
        ("ConvTranspose", [4, 5, 5], [4, 3, 2, 2], {"strides": [2, 2]}, 4 * 25 * 3 * 4),
        ("MatMul", [2, 5, 7], [7, 3], {}, 2 * 5 * 7 * 3),
        ("Einsum", [5, 7], [7, 3], {"equation": "bij,jk->bik"}, 5 * 7 * 3),
    ],
)
def test_products_closed_form(
    tmp_path: Path, op_type: str, shape: list[int], weight: list[int], attributes: dict, macs: int
) -> None:
    node = helper.make_node(op_type, ["x", "w"], ["y"], name="op", **attributes)
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    w = numpy_helper.from_array(np.ones(weight, np.float32), "w")
    model = helper.make_model(
        helper.make_graph([node], "g", ends, outputs, [w]), opset_imports=[helper.make_opsetid("", 18)]
    )
    model.ir_version = 10
    graph = imported(model, tmp_path)
    assert graph.parameters == ("w",)
    for phase in ("forward", "backward_input", "backward_weight"):
        assert work(graph.operators[0], graph, batch=2, phase=phase).flops == 2 * 2 * macs


def test_work_is_affine_in_the_batch(small: Onnxpp) -> None:
    graph = small.graph
    for operator in graph.operators:
        for phase in PHASES:
            one, two, nine = (np.array(work(operator, graph, batch=b, phase=phase)) for b in (1, 2, 9))
            np.testing.assert_array_equal(nine, one + 8 * (two - one), err_msg=f"{operator.name} {phase}")


@given(st.integers(1, 512))
def test_frozen_weights_need_no_gradient(small: Onnxpp, batch: int) -> None:
    graph = small.graph
    assert all(
        work(o, graph, batch=batch, phase="backward_weight") == Work(0, 0, 0)
        for o in graph.operators
        if not graph.trainable.intersection(o.inputs)
    )


def test_every_standard_operator_has_a_family() -> None:
    assert {family(schema.name) for schema in onnx.defs.get_all_schemas()} <= set(FAMILIES)


def test_unknown_phase(small: Onnxpp) -> None:
    with pytest.raises(ValueError, match="expected one of forward"):
        work(small.graph.operators[0], small.graph, batch=1, phase="sideways")  # type: ignore[arg-type]


@pytest.mark.parametrize("causal", [False, True])
def test_attention_closed_form(tmp_path: Path, causal: bool) -> None:
    """Two products of the pairs that see each other, heads of width d; backward five (Dao et al. 2022)."""
    s, heads, kv, d = 6, 4, 2, 3
    attributes = {"q_num_heads": heads, "kv_num_heads": kv, "is_causal": int(causal)}
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="op", **attributes)
    widths = {"q": heads * d, "k": kv * d, "v": kv * d}
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", s, w]) for n, w in widths.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    model = helper.make_model(
        helper.make_graph([node], "g", ends, outputs), opset_imports=[helper.make_opsetid("", 24)]
    )
    graph = imported(model, tmp_path)
    product = 2 * 5 * heads * d * (s * (s + 1) // 2 if causal else s * s)
    assert work(graph.operators[0], graph, batch=5, phase="forward").flops == 2 * product
    assert work(graph.operators[0], graph, batch=5, phase="backward_input").flops == 5 * product
    assert work(graph.operators[0], graph, batch=5, phase="backward_weight") == Work(0, 0, 0)


def elementwise_graph(
    op_type: str, shapes: dict[str, tuple[int, ...]], *, parameters: tuple[str, ...] = (), **attributes
):
    from hpdlf.models.onnxpp import Dim, Operator, Tensor

    tensors = {
        name: Tensor(
            name=name, dtype="float32", shape=(Dim(per_sample=1), *map(Dim, shape)) if shape[:1] != (0,) else ()
        )
        for name, shape in shapes.items()
    }
    for name in parameters:
        tensors[name] = Tensor(name=name, dtype="float32", shape=tuple(map(Dim, shapes[name])))
    *inputs, output = shapes
    operator = Operator(
        name="o",
        op_type=op_type,
        family=family(op_type),
        inputs=tuple(inputs),
        outputs=(output,),
        attributes=attributes,
    )
    return operator, Graph(
        name="g", opset=20, operators=(operator,), tensors=tensors, inputs=tuple(i for i in inputs if i not in parameters),
        targets=(), outputs=(output,), loss=None, parameters=parameters, state={}, constants=(),
    )  # fmt: skip


def test_a_sum_hands_its_gradient_on() -> None:
    operator, graph = elementwise_graph("Add", {"x": (8,), "b": (8,), "y": (8,)}, parameters=("b",))
    assert work(operator, graph, batch=4, phase="backward_input") == Work(0, 0, 0)
    assert work(operator, graph, batch=4, phase="backward_weight").read_bytes >= 4 * 4 * 8


def test_where_two_activations_join_their_gradients_are_added_once() -> None:
    operator, graph = elementwise_graph("Add", {"x": (8,), "z": (8,), "y": (8,)})
    assert work(operator, graph, batch=4, phase="backward_input") == Work(4 * 8, 2 * 4 * 4 * 8, 4 * 4 * 8)


@pytest.mark.parametrize(("op_type", "read"), [("Relu", 2), ("Dropout", 1.25), ("Cast", 1)])
def test_gradients_read_what_their_derivative_depends_on(op_type: str, read: float) -> None:
    operator, graph = elementwise_graph(op_type, {"x": (8,), "y": (8,)})
    assert work(operator, graph, batch=4, phase="backward_input").read_bytes == (
        read * 4 * 4 * 8 if family(op_type) == "elementwise" else 4 * 4 * 8
    )


def test_a_batch_norm_that_trains_reads_twice() -> None:
    shapes = {"x": (3, 5), "s": (3,), "b": (3,), "m": (3,), "v": (3,), "y": (3, 5)}
    for training, reads in ((0, 1), (1, 2)):
        operator, graph = elementwise_graph(
            "BatchNormalization", shapes, parameters=("s", "b", "m", "v"), training_mode=training
        )
        assert work(operator, graph, batch=2, phase="forward").read_bytes == 4 * (reads * 2 * 15 + 4 * 3)


def _alone(operator: Operator, shapes: dict[str, tuple[Dim, ...]], *parameters: str) -> Graph:
    return Graph(
        name="g",
        opset=18,
        operators=(operator,),
        tensors={name: Tensor(name=name, dtype="float32", shape=shape) for name, shape in shapes.items()},
        inputs=tuple(name for name in operator.inputs if name not in parameters),
        targets=(),
        outputs=tuple(filter(None, operator.outputs)),
        loss=None,
        parameters=parameters,
        state={},
        constants=(),
    )


@pytest.mark.parametrize("outputs", [("", "h"), ("y", "h"), ("", "h", "c")])
def test_recurrent_networks_may_give_their_last_state_alone(outputs: tuple[str, ...]) -> None:
    steps, units, data, batch = Dim(5), Dim(8), Dim(4), Dim(per_sample=1)
    last = (Dim(1), batch, units)
    shapes = {"x": (steps, batch, data), "w": (Dim(1), Dim(32), data), "r": (Dim(1), Dim(32), units)}
    shapes |= {"y": (steps, *last), "h": last, "c": last}
    operator = Operator(name="o", op_type="LSTM", family="rnn", inputs=("x", "w", "r"), outputs=outputs)
    graph = _alone(operator, shapes, "w", "r")
    forward = work(operator, graph, batch=2, phase="forward").flops
    assert work(operator, graph, batch=2, phase="backward_input").flops == 2 * forward
    assert work(operator, graph, batch=2, phase="backward_weight").flops == forward


@pytest.mark.parametrize(
    ("equation", "a", "b", "y", "macs"),
    [
        ("...ij,...jk->...ik", (2, 3), (3, 100), (2, 100), 2 * 3 * 100),
        ("...ij,...jk->...ik", (7, 2, 300), (1, 300, 4), (7, 2, 4), 7 * 2 * 300 * 4),
        ("...ij,jk", (5, 7, 2, 3), (3, 4), (5, 7, 2, 4), 5 * 7 * 2 * 3 * 4),
        ("b...i,io->b...o", (4, 5, 6, 8), (8, 3), (4, 5, 6, 3), 4 * 5 * 6 * 8 * 3),
        ("bij,bjk->bik", (4, 5, 6), (4, 6, 3), (4, 5, 3), 4 * 5 * 6 * 3),
    ],
)
def test_einsum_does_the_product_of_all_its_labels(
    equation: str, a: tuple[int, ...], b: tuple[int, ...], y: tuple[int, ...], macs: int
) -> None:
    operator = Operator(
        name="e",
        op_type="Einsum",
        family="matmul",
        inputs=("a", "b"),
        outputs=("y",),
        attributes={"equation": equation},
    )
    graph = _alone(operator, {n: tuple(map(Dim, s)) for n, s in (("a", a), ("b", b), ("y", y))})
    assert work(operator, graph, batch=1, phase="forward").flops == 2 * macs
