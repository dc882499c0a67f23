"""Casts: the standard's tables of special values, NumPy's own conversions, strings, bits."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdlf.errors import ModelError
from hpdlf.exec.backend import Backend
from hpdlf.exec.operators import casting
from hpdlf.models.onnxpp import Operator

EIGHT_BITS = {
    "float8_e4m3fn": 448.0,
    "float8_e4m3fnuz": 240.0,
    "float8_e5m2": 57344.0,
    "float8_e5m2fnuz": 57344.0,
}


def cast(x: np.ndarray, to: int, opset: int = 25, **attributes: object) -> np.ndarray:
    node = onnx.helper.make_node("Cast", ["x"], ["y"], to=to, **attributes)
    return Backend.run_node(node, [x], opset_version=opset)[0]


def code(dtype: object) -> int:
    return onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


@pytest.mark.parametrize("name", EIGHT_BITS)
@pytest.mark.parametrize("source", ["float32", "float64", "float16", ml_dtypes.bfloat16])
def test_eight_bit_floats_saturate_unless_told_otherwise(name: str, source: object) -> None:
    dtype, most = np.dtype(getattr(ml_dtypes, name)), EIGHT_BITS[name]
    x = np.array([0, np.nan, np.inf, -np.inf, 1e5, -1e5, 1.0625, most], np.float32).astype(source)
    kept = cast(x, code(dtype)).astype(np.float32)
    np.testing.assert_array_equal(kept[2:6], [most, -most, most, -most])
    assert np.isnan(kept[1])
    lost = cast(x, code(dtype), saturate=0).astype(np.float32)
    beyond = [np.inf, -np.inf, np.inf, -np.inf] if name == "float8_e5m2" else [np.nan] * 4
    np.testing.assert_array_equal(lost[2:6], beyond)
    for result in (kept, lost):
        np.testing.assert_array_equal(result[[0, 6, 7]], [0, 1.0, most])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-400, 400, width=32), min_size=4, max_size=4))
def test_inside_their_range_casts_round_as_numpy_does(values: list[float]) -> None:
    x = np.array(values, np.float32)
    for name in EIGHT_BITS:
        dtype = np.dtype(getattr(ml_dtypes, name))
        clipped = np.clip(x, -EIGHT_BITS[name], EIGHT_BITS[name])
        np.testing.assert_array_equal(np.asarray(casting.converted(x, dtype)), clipped.astype(dtype))


def test_what_does_not_fit_into_few_bits_keeps_the_low_ones() -> None:
    x = np.array([-9, 17, 3.9, -1.2], np.float32)
    np.testing.assert_array_equal(cast(x, code(ml_dtypes.uint4)).astype(int), [7, 1, 3, 15])
    np.testing.assert_array_equal(cast(x, code(ml_dtypes.int4)).astype(int), [7, 1, 3, -1])
    np.testing.assert_array_equal(cast(np.array([200], np.int16), code("int8")), [-56])
    np.testing.assert_array_equal(cast(np.array([300.7, -1], np.float32), code("uint8")), [44, 255])


@pytest.mark.parametrize(
    ("mode", "saturate", "wanted"),
    [
        ("up", 1, [2.0**-127, 1, 2, 2, 4, 2.0**127]),
        ("down", 1, [2.0**-127, 1, 1, 1, 2, 2.0**127]),
        ("nearest", 1, [2.0**-127, 1, 1, 2, 4, 2.0**127]),
        ("nearest", 0, [np.nan, 1, 1, 2, 4, np.nan]),
    ],
)
def test_powers_of_two(mode: str, saturate: int, wanted: list[float]) -> None:
    x = np.array([0, 1, 1.25, 1.5, 3.5, np.inf], np.float32)
    result = cast(x, 24, round_mode=mode, saturate=saturate)
    np.testing.assert_array_equal(result.astype(np.float32), wanted)
    np.testing.assert_array_equal(cast(result, 1), wanted)


def test_strings_both_ways() -> None:
    words = np.array(["1.5", "-2e3", "inf", "+INF", "-Inf", "NaN"], object)
    np.testing.assert_array_equal(cast(words, 1), np.float32([1.5, -2000, np.inf, np.inf, -np.inf, np.nan]))
    np.testing.assert_array_equal(cast(np.array(["100.5", "-7"], object), 7), [100, -7])
    assert cast(np.array([0.1, np.nan, -np.inf, 2], np.float32), 8).tolist() == ["0.1", "NaN", "-INF", "2.0"]
    assert cast(np.array([[3], [-4]]), 8).tolist() == [["3"], ["-4"]]
    assert cast(np.array([True, False]), 8).tolist() == ["1", "0"]
    with pytest.raises(ModelError, match="could not convert string to float: 'Hello'"):
        cast(np.array(["Hello"], object), 1)


def test_numbers_survive_being_written() -> None:
    x = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    np.testing.assert_array_equal(cast(cast(x, 8), 1), x)


def test_opset_1_names_types() -> None:
    node = Operator(name="c", op_type="Cast", family="elementwise", inputs=("x",), outputs=("y",))
    node.attributes["to"] = "INT32"
    assert casting._target(node) == 6
    node.attributes["to"] = "FLOAT7"
    with pytest.raises(ModelError, match="FLOAT7"):
        casting._target(node)


@pytest.mark.parametrize(
    ("source", "to"),
    [("float32", "uint32"), ("uint8", "bool"), ("bool", "int8"), ("complex64", "float64"), ("int64", "complex64")],
)
def test_bits_are_what_numpy_reads(source: str, to: str) -> None:
    x = np.random.default_rng(1).integers(0, 2, 6).astype(source)
    node = onnx.helper.make_node("BitCast", ["x"], ["y"], to=code(to))
    np.testing.assert_array_equal(Backend.run_node(node, [x])[0], x.view(to))


def test_bits_of_another_width_are_refused() -> None:
    node = onnx.helper.make_node("BitCast", ["x"], ["y"], to=code("int16"))
    with pytest.raises(ModelError, match=r"float32 \(32 bits\) as int16 \(16 bits\)"):
        Backend.run_node(node, [np.zeros(2, np.float32)])
