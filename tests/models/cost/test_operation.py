"""Operations of operators: closed forms of their shapes and work."""

from __future__ import annotations

from typing import Any

import pytest

from hpdlf.models.cost.operation import Operation, operations_of
from hpdlf.models.onnxpp.graph import Dim, Graph, Operator, Tensor
from hpdlf.models.zoo import import_network


def _graph(op_type: str, family: str, shapes: dict[str, tuple[int, ...]], **attributes: Any) -> tuple[Operator, Graph]:
    """One operator whose result is `y`; the second operand is a parameter."""
    tensors = {n: Tensor(name=n, dtype="float32", shape=tuple(Dim(d) for d in dims)) for n, dims in shapes.items()}
    names = [n for n in shapes if n != "y"]
    operator = Operator(
        name="o", op_type=op_type, family=family, inputs=tuple(names), outputs=("y",), attributes=attributes
    )
    graph = Graph(
        name="g", opset=20, operators=(operator,), tensors=tensors, inputs=("x",), targets=(), outputs=("y",),
        loss=None, parameters=tuple(names[1:]), state={}, constants=(),
    )  # fmt: skip
    return operator, graph


def _of(
    phase: Any, op_type: str, family: str, shapes: dict[str, tuple[int, ...]], **more: Any
) -> tuple[Operation, ...]:
    operator, graph = _graph(op_type, family, shapes, **more)
    return operations_of(operator, graph, batch=1, phase=phase)


LINEAR = {"x": (4, 128, 32), "w": (32, 64), "y": (4, 128, 64)}


def test_a_product_with_a_weight_is_one_product_of_all_rows() -> None:
    (found,) = _of("forward", "MatMul", "matmul", LINEAR)
    assert (found.op, found.dims, found.flops) == ("linear", (1, 512, 64, 32), 2 * 512 * 64 * 32)
    assert found.traffic_bytes == 4 * (512 * 32 + 32 * 64 + 512 * 64)


def test_its_gradients_are_products_with_turned_dimensions() -> None:
    data, weight = _of("backward", "MatMul", "matmul", LINEAR)
    assert (data.phase, data.dims) == ("backward_input", (1, 512, 32, 64))
    assert (weight.phase, weight.dims) == ("backward_weight", (1, 32, 64, 512))
    assert data.flops == weight.flops == 2 * 512 * 64 * 32


def test_a_product_of_two_batches_is_batched() -> None:
    shapes = {"x": (2, 8, 128, 64), "k": (2, 8, 64, 128), "y": (2, 8, 128, 128)}
    (found,) = _of("forward", "MatMul", "matmul", shapes)
    assert (found.op, found.dims) == ("bmm", (16, 128, 128, 64))


def test_gemm_takes_its_depth_from_the_transposed_side() -> None:
    shapes = {"x": (32, 16), "w": (32, 8), "y": (16, 8)}
    (found,) = _of("forward", "Gemm", "matmul", shapes, transA=1)
    assert found.dims == (1, 16, 8, 32)


def test_a_convolution_says_filters_groups_and_stride() -> None:
    shapes = {"x": (2, 64, 56, 56), "w": (128, 32, 3, 3), "y": (2, 128, 28, 28)}
    (found,) = _of("forward", "Conv", "conv", shapes, strides=(2, 2), group=2)
    assert found.dims == (2, 64, 128, 3, 3, 28, 28, 2, 2)
    assert found.dim("groups") == 2


def test_a_transposed_convolution_is_the_gradient_of_one() -> None:
    shapes = {"x": (1, 64, 8, 8), "w": (64, 32, 2, 2), "y": (1, 32, 16, 16)}
    (found,) = _of("forward", "ConvTranspose", "conv", shapes, strides=(2, 2))
    assert found.phase == "backward_input"
    assert (found.dim("c"), found.dim("k"), found.dim("p")) == (32, 64, 8)


def test_rows_are_what_is_normalised_together() -> None:
    image = {"x": (2, 64, 8, 8), "y": (2, 64, 8, 8)}
    (softmax,) = _of("forward", "Softmax", "softmax", {"x": (2, 10, 7), "y": (2, 10, 7)}, axis=-1)
    (layer,) = _of("forward", "LayerNormalization", "normalisation", {"x": (6, 5, 32), "y": (6, 5, 32)}, axis=-1)
    (batch,) = _of("forward", "BatchNormalization", "normalisation", image)
    assert (softmax.dims, layer.dims, batch.dims) == ((20, 7), (30, 32), (64, 128))


def test_a_recurrent_layer_counts_its_steps() -> None:
    shapes = {"x": (20, 4, 16), "w": (1, 64, 16), "r": (1, 64, 16), "y": (20, 1, 4, 16)}
    (found,) = _of("forward", "LSTM", "rnn", shapes, hidden_size=16)
    assert (found.count, found.dims) == (20, (1, 4, 64, 32))
    assert found.flops * found.count == pytest.approx(2 * 20 * 4 * (64 * 16 * 2) + 20 * 4 * 10 * 64)


def test_a_view_asks_for_nothing() -> None:
    assert _of("forward", "Reshape", "view", {"x": (4, 4), "y": (16,)}) == ()


def test_operations_of_one_batch_are_not_those_of_another() -> None:
    graph = import_network("resnet18", image=32).graph
    conv = next(o for o in graph.operators if o.op_type == "Conv")
    small, large = (operations_of(conv, graph, batch=batch, phase="forward") for batch in (2, 16))
    assert large[0].flops == 8 * small[0].flops
    again = operations_of(conv, graph, batch=2, phase="forward")
    assert again == small


def eight_bits(phase: str, *, casts_read: bool = True):
    from hpdlf.models.zoo import import_network

    graph = import_network("gpt", layers=1, hidden=128, heads=2, seq_len=16, vocab=64, attention="fused").graph
    found = {}
    for operator in graph.operators:
        for each in operations_of(
            operator, graph, batch=4, phase=phase, precision="float8", stored="bfloat16", casts_read=casts_read
        ):
            found.setdefault(operator.name, []).append(each)
    return graph, found


def test_eight_bits_are_for_products_with_weights() -> None:
    graph, found = eight_bits("forward")
    narrow = {name for name, each in found.items() if any(o.precision == "float8" for o in each)}
    products = {o.name for o in graph.operators if o.op_type == "MatMul" and "head" not in o.name}
    assert narrow == products
    assert all(o.precision == "bfloat16" for name in found.keys() - narrow for o in found[name])


def test_what_enters_a_product_of_eight_bits_is_cast_first() -> None:
    _, found = eight_bits("forward")
    cast, product = next(each for each in found.values() if len(each) == 2)
    elements = 4 * 16 * 128
    assert (cast.op, cast.read_bytes, cast.write_bytes) == ("cast", 2 * elements, 2 * elements)
    batch, m, n, k = product.dims
    assert product.read_bytes == batch * (m * k + k * n)
    assert product.write_bytes == 2 * batch * m * n
    _, fused = eight_bits("forward", casts_read=False)
    assert next(each for each in fused.values() if len(each) == 2)[0].read_bytes == 0


def test_both_gradients_share_one_cast() -> None:
    _, found = eight_bits("backward")
    for each in found.values():
        if any(o.precision == "float8" for o in each):
            assert [o.op for o in each] == ["cast", "linear", "linear"]
