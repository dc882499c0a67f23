"""Products of 8-bit numbers: exact against int64, and as onnxruntime computes them."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from hpdlf.exec.operators.integer_products import EXACT, exact_product

Compare = Callable[..., list[np.ndarray]]


def eight_bits(name: str, *shape: int, seed: int = 0) -> np.ndarray:
    limits = np.iinfo(name)
    return np.random.default_rng(seed).integers(limits.min, limits.max + 1, shape).astype(name)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([1, 258, 259, 4112, 4113, 9000]), st.integers(0, 99), st.booleans())
def test_sums_of_any_length_are_exact(length: int, seed: int, extreme: bool) -> None:
    rng = np.random.default_rng(seed)
    choices = [-255, 255] if extreme else np.arange(-255, 256)
    a, b = rng.choice(choices, (2, length)), rng.choice(choices, (length, 3))
    y = exact_product(jnp.matmul, jnp.asarray(a, jnp.int32), jnp.asarray(b, jnp.int32), length)
    assert y.dtype == jnp.int32
    np.testing.assert_array_equal(y, a.astype(np.int64) @ b)


def test_bounds_follow_from_what_float32_holds() -> None:
    assert np.float32(EXACT) - np.float32(1) == EXACT - 1
    assert np.float32(EXACT) + np.float32(1) == EXACT


@pytest.mark.parametrize("pair", [("uint8", "uint8"), ("uint8", "int8"), ("int8", "int8")])
def test_matrix_products(pair: tuple[str, str], like_onnxruntime: Compare) -> None:
    left, right = pair
    a, b = eight_bits(left, 2, 4, 300), eight_bits(right, 300, 5, seed=1)
    zero_a, zero_b = eight_bits(left, seed=2), eight_bits(right, seed=3)
    node = helper.make_node("MatMulInteger", ["a", "b", "za", "zb"], ["y"])
    like_onnxruntime(node, {"a": a, "b": b, "za": zero_a, "zb": zero_b}, opset=10)
    quantised = helper.make_node("QLinearMatMul", ["a", "sa", "za", "b", "sb", "zb", "sy", "zy"], ["y"])
    scales = {"sa": np.float32(0.01), "sb": np.float32(0.02), "sy": np.float32(0.5)}
    given = {"a": a, "za": zero_a, "b": b, "zb": zero_b, **scales, "zy": zero_a}
    order = {name: given[name] for name in quantised.input}
    like_onnxruntime(quantised, order, opset=10, atol=1)


def test_scales_for_every_column(like_onnxruntime: Compare) -> None:
    node = helper.make_node("QLinearMatMul", ["a", "sa", "za", "b", "sb", "zb", "sy", "zy"], ["y"])
    values = {
        "a": eight_bits("uint8", 4, 30),
        "sa": np.float32(0.01),
        "za": np.uint8(120),
        "b": eight_bits("int8", 30, 5, seed=1),
        "sb": np.linspace(0.01, 0.1, 5, dtype=np.float32),
        "zb": np.zeros(5, np.int8),
        "sy": np.float32(1),
        "zy": np.uint8(7),
    }
    like_onnxruntime(node, values, opset=10, atol=1)


@pytest.mark.parametrize("channels", [2, 64, 600])
def test_convolutions(channels: int, like_onnxruntime: Compare) -> None:
    x, w = eight_bits("uint8", 2, channels, 6, 5), eight_bits("int8", 4, channels, 3, 3, seed=1)
    node = helper.make_node("ConvInteger", ["x", "w", "zx"], ["y"], pads=[1, 1, 1, 1], strides=[2, 1])
    like_onnxruntime(node, {"x": x, "w": w, "zx": np.uint8(113)}, opset=10)
    quantised = helper.make_node(
        "QLinearConv", ["x", "sx", "zx", "w", "sw", "zw", "sy", "zy", "b"], ["y"], pads=[1, 1, 1, 1]
    )
    values = {
        "x": x,
        "sx": np.float32(0.02),
        "zx": np.uint8(113),
        "w": w,
        "sw": np.linspace(0.01, 0.1, 4, dtype=np.float32),
        "zw": np.zeros(4, np.int8),
        "sy": np.float32(3),
        "zy": np.uint8(128),
        "b": np.array([-999, 0, 5, 70000], np.int32),
    }
    like_onnxruntime(quantised, values, opset=10, atol=1)
