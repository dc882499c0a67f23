"""Element by element: old broadcasting rules, shifts, remainders, the types that the standard allows."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

from hpdlf.exec.backend import Backend

Compare = Callable[..., list[np.ndarray]]


@pytest.mark.parametrize(
    ("shape", "attributes", "placed"),
    [
        ((), {"broadcast": 1}, ()),
        ((3, 4), {"axis": 1, "broadcast": 1}, (3, 4, 1)),
        ((2,), {"axis": 0, "broadcast": 1}, (2, 1, 1, 1)),
        ((4, 5), {"broadcast": 1}, (4, 5)),
        ((3, 4), {"axis": -3, "broadcast": 1}, (3, 4, 1)),
        ((2, 3, 4, 5), {}, (2, 3, 4, 5)),
    ],
)
def test_before_opset_7_operands_align_at_an_axis(shape: Any, attributes: dict[str, int], placed: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(1, 2, (2, 3, 4, 5)).astype(np.float32), rng.uniform(1, 2, shape).astype(np.float32)
    for op_type, function in {"Add": np.add, "Div": np.divide, "Pow": np.power, "Less": np.less}.items():
        node = helper.make_node(op_type, ["a", "b"], ["y"], **attributes)
        (y,) = Backend.run_node(node, [a, b], opset_version=1)
        np.testing.assert_allclose(y, function(a, b.reshape(placed)), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_shifts(dtype: str, direction: str) -> None:
    limits = np.iinfo(dtype)
    x = np.array([limits.min, limits.max, 1, 5, 100], dtype)[:, None]
    places = np.array([0, 1, 3, limits.bits - 1, limits.bits, limits.bits + 1], dtype)
    node = helper.make_node("BitShift", ["x", "n"], ["y"], direction=direction)
    (y,) = Backend.run_node(node, [x, places])
    moved = [[int(a) << int(n) if direction == "LEFT" else int(a) >> int(n) for n in places] for a in x[:, 0]]
    wanted = np.array([[v & (2**limits.bits - 1) for v in row] for row in moved], f"uint{limits.bits}").astype(dtype)
    np.testing.assert_array_equal(y, wanted)


@pytest.mark.parametrize("fmod", [0, 1])
def test_remainders(fmod: int) -> None:
    rng = np.random.default_rng(0)
    for dtype in ("int8", "int32", "uint16", "float32", "float64", ml_dtypes.bfloat16):
        low = 0 if np.dtype(dtype).kind == "u" else -9
        a, b = rng.integers(low, 9, 40).astype(dtype), rng.integers(1, 5, 40).astype(dtype)
        b = b * rng.choice([1] if low == 0 else [-1, 1], 40).astype(dtype)
        (y,) = Backend.run_node(helper.make_node("Mod", ["a", "b"], ["y"], fmod=fmod), [a, b])
        wide = np.float64 if y.dtype.kind not in "iu" else np.int64
        wanted = (np.fmod if fmod else np.mod)(a.astype(wide), b.astype(wide))
        np.testing.assert_array_equal(y.astype(wide), wanted)
        assert y.dtype == np.dtype(dtype)


# The standard's operators on one tensor, or on several of one type.
OPERATORS = (
    "Abs Add And BitwiseAnd BitwiseNot Ceil Celu Cos Div Elu Equal Erf Exp Floor Greater HardSigmoid HardSwish IsInf "
    "IsNaN LeakyRelu Less Log Max Mean Min Mish Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign "
    "Softplus Softsign Sqrt Sub Sum Tanh ThresholdedRelu Xor"
)


@pytest.mark.parametrize("op_type", OPERATORS.split())
def test_every_type_that_the_newest_version_allows(op_type: str) -> None:
    schema = onnx.defs.get_schema(op_type)
    allowed = {t.type_param_str: t.allowed_type_strs for t in schema.type_constraints}
    source, kind = schema.inputs[0].type_str, schema.outputs[0].type_str
    dtypes = [numpy_type(text) for text in allowed[source]]
    x = np.array([[1, 0, 2], [3, 1, 1]])
    given = {f"x{i}": x.astype(dtype) for i, dtype in enumerate(dtypes)}
    nodes = [helper.make_node(op_type, [name] * len(schema.inputs), [name.replace("x", "y")]) for name in given]
    wanted = (
        dtypes if kind == source else [numpy_type(kind if kind[:6] == "tensor" else allowed[kind][0])] * len(dtypes)
    )
    graph = helper.make_graph(
        nodes,
        "types",
        [value(name, array.dtype) for name, array in given.items()],
        [value(node.output[0], dtype) for node, dtype in zip(nodes, wanted, strict=True)],
    )
    found = Backend.run_model(helper.make_model(graph), given)
    assert [(y.dtype, y.shape) for y in found] == [(dtype, x.shape) for dtype in wanted]


def value(name: str, dtype: np.dtype[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), (2, 3))


def numpy_type(text: str) -> np.dtype[Any]:
    """The NumPy type of a type as schemas write it.

    >>> numpy_type("tensor(float)")
    dtype('float32')
    """
    name = text.removeprefix("tensor(").removesuffix(")")
    names = {"float": "FLOAT", "double": "DOUBLE"}
    return np.dtype(helper.tensor_dtype_to_np_dtype(getattr(onnx.TensorProto, names.get(name, name.upper()))))
