"""QuantizeLinear and its relatives against onnxruntime, and round trips."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from hpdlf.errors import ModelError
from hpdlf.exec.backend import Backend

Compare = Callable[..., list[np.ndarray]]
TYPES = {"uint8": 10, "int8": 10, "uint16": 21, "int16": 21}


def code(dtype: object) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("axis", [None, 0, 2, -2])
def test_scales_of_a_tensor_or_an_axis(name: str, axis: int | None, like_onnxruntime: Compare) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((2, 5, 3)) * 50).astype(np.float32)
    count = () if axis is None else (x.shape[axis],)
    scale = rng.uniform(0.1, 1, count).astype(np.float32)
    zero = rng.integers(0, 9, count).astype(name)
    attributes = {} if axis is None else {"axis": axis}
    opset = max(TYPES[name], 13)
    quantise = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], **attributes)
    (y,) = like_onnxruntime(quantise, {"x": x, "s": scale, "z": zero}, opset=opset)
    restore = helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"], **attributes)
    like_onnxruntime(restore, {"x": y, "s": scale, "z": zero}, opset=opset)


@pytest.mark.parametrize("block", [2, 4])
def test_blocks(block: int, like_onnxruntime: Compare) -> None:
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((2, 6, 3)) * 50).astype(np.float32)
    shape = (2, -(-6 // block), 3)
    scale, zero = rng.uniform(0.1, 1, shape).astype(np.float32), rng.integers(-9, 9, shape).astype(np.int8)
    quantise = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"], axis=1, block_size=block)
    (y,) = like_onnxruntime(quantise, {"x": x, "s": scale, "z": zero}, opset=21)
    restore = helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"], axis=1, block_size=block)
    like_onnxruntime(restore, {"x": y, "s": scale, "z": zero}, opset=21)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([ml_dtypes.uint4, ml_dtypes.int4, ml_dtypes.uint2, ml_dtypes.int2, np.uint8, np.int16]),
    st.floats(0.01, 10),
    st.integers(0, 1),
)
def test_what_is_quantised_comes_back_within_half_a_scale(dtype: object, scale: float, zero: int) -> None:
    limits = ml_dtypes.iinfo(dtype) if np.dtype(dtype).kind == "V" else np.iinfo(dtype)  # type: ignore[arg-type]
    low, high = (max(int(limits.min), -500) - zero) * scale, (min(int(limits.max), 500) - zero) * scale
    x = np.linspace(low, high, 37, dtype=np.float32)
    s, z = np.float32(scale), np.array(zero, dtype)
    quantise = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    y = Backend.run_node(quantise, [x, s, z])[0]
    assert y.dtype == np.dtype(dtype)
    back = Backend.run_node(helper.make_node("DequantizeLinear", ["y", "s", "z"], ["x"]), [y, s, z])[0]
    np.testing.assert_allclose(back, x, atol=scale * 0.501, rtol=0)


@pytest.mark.parametrize("dtype", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.float4_e2m1fn])
def test_small_floats(dtype: object) -> None:
    x = np.array([-1e6, -3, 0.24, 0.5, 2.9, 1e6], np.float32)
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["y"], output_dtype=code(dtype))
    y = Backend.run_node(node, [x, np.float32(0.5)])[0]
    most = float(ml_dtypes.finfo(dtype).max)  # type: ignore[arg-type]
    np.testing.assert_array_equal(y, np.clip(x / 0.5, -most, most).astype(np.dtype(dtype)))  # type: ignore[call-overload]


def test_scales_that_are_powers_of_two() -> None:
    scale = np.array([0.5, 4], np.float32).astype(ml_dtypes.float8_e8m0fnu)
    x = np.array([[3, -2], [1, 7]], np.int8)
    node = helper.make_node("DequantizeLinear", ["x", "s"], ["y"], output_dtype=1, axis=0)
    np.testing.assert_array_equal(Backend.run_node(node, [x, scale])[0], np.float32([[1.5, -1], [4, 28]]))


@pytest.mark.parametrize(("low", "high"), [(-3, 3), (1, 3), (-5, -2), (0, 0)])
def test_dynamic(low: float, high: float, like_onnxruntime: Compare) -> None:
    x = np.random.default_rng(2).uniform(low, high, (20, 3)).astype(np.float32)
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])
    like_onnxruntime(node, {"x": x}, opset=11)


def test_scales_of_a_wrong_shape_are_refused() -> None:
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["y"], axis=1)
    with pytest.raises(ModelError, match="has 3 scales for 5 slices along axis 1"):
        Backend.run_node(node, [np.zeros((2, 5), np.float32), np.ones(3, np.float32)])
    node = helper.make_node("QuantizeLinear", ["x", "s"], ["y"], axis=1, block_size=2)
    with pytest.raises(ModelError, match=r"need \(2, 3\)"):
        Backend.run_node(node, [np.zeros((2, 5), np.float32), np.ones((2, 2), np.float32)])


def test_differences_that_float16_does_not_hold() -> None:
    node = helper.make_node("DequantizeLinear", ["x", "s"], ["y"])
    (y,) = Backend.run_node(node, [np.array([100_000, -100_000], np.int32), np.array(0.001, np.float16)])
    assert y.dtype == np.float16
    np.testing.assert_allclose(y, [100, -100], rtol=2e-3)
