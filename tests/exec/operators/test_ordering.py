"""TopK, Unique, NonZero, Compress: against onnxruntime, NumPy and what they promise."""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper

from hpdlf.errors import ModelError
from hpdlf.exec.backend import Backend

Compare = Callable[..., list[np.ndarray]]
TOP_K_TYPES = ["float32", "float64", "float16", "int8", "uint8", "int32", "int64"]


@pytest.mark.parametrize("dtype", TOP_K_TYPES)
@pytest.mark.parametrize("attributes", [{}, {"axis": 0}, {"largest": 0}, {"largest": 0, "axis": 0}])
def test_top_k_with_ties(dtype: str, attributes: dict[str, int], like_onnxruntime: Compare) -> None:
    x = np.random.default_rng(0).integers(0, 4, (4, 6)).astype(dtype)
    node = helper.make_node("TopK", ["x", "k"], ["values", "indices"], **attributes)
    like_onnxruntime(node, {"x": x, "k": np.array([3])}, opset=11)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64"])
def test_the_smallest_of_the_extremes(dtype: str) -> None:
    limits = np.iinfo(dtype)
    x = np.array([limits.max, limits.min, 1, limits.min], dtype)
    node = helper.make_node("TopK", ["x", "k"], ["v", "i"], largest=0)
    values, at = Backend.run_node(node, [x, np.array([3])])
    np.testing.assert_array_equal(values, np.sort(x, kind="stable")[:3])
    np.testing.assert_array_equal(at, np.argsort(x, kind="stable")[:3])


def test_top_k_of_bfloat16_and_by_attribute() -> None:
    x = np.array([[1, 3, 2]]).astype(ml_dtypes.bfloat16)
    values, at = Backend.run_node(helper.make_node("TopK", ["x", "k"], ["v", "i"]), [x, np.array([2])])
    assert values.dtype == x.dtype
    assert (values.astype(int).tolist(), at.tolist()) == ([[3, 2]], [[1, 2]])
    values, at = Backend.run_node(helper.make_node("TopK", ["x"], ["v", "i"], k=1), [x], opset_version=1)
    assert (values.astype(int).tolist(), at.tolist()) == ([[3]], [[1]])


def test_more_than_there_are_is_refused() -> None:
    node = helper.make_node("TopK", ["x", "k"], ["v", "i"])
    with pytest.raises(ModelError, match="asks for 4 of the 3 elements along axis -1"):
        Backend.run_node(node, [np.zeros(3, np.float32), np.array([4])])


ARRAYS = hnp.arrays(np.int64, hnp.array_shapes(max_dims=3, max_side=4), elements=st.integers(0, 2))


@settings(max_examples=50, deadline=None)
@given(ARRAYS, st.booleans(), st.integers(-1, 2))
def test_unique_can_be_undone(x: np.ndarray, ordered: bool, axis: int) -> None:
    attributes = {"sorted": int(ordered)}
    if axis >= 0:
        attributes["axis"] = axis % x.ndim
    node = helper.make_node("Unique", ["x"], ["y", "first", "which", "count"], **attributes)
    y, first, which, count = Backend.run_node(node, [x])
    along = attributes.get("axis")
    flat = x.reshape(-1) if along is None else x
    np.testing.assert_array_equal(np.take(y, which, axis=along or 0), flat)
    np.testing.assert_array_equal(np.take(flat, first, axis=along or 0), y)
    np.testing.assert_array_equal(count, np.bincount(which))
    assert ordered or (np.diff(first) > 0).all()


@pytest.mark.parametrize("attributes", [{}, {"sorted": 0}, {"axis": 0}, {"axis": 1, "sorted": 0}])
@pytest.mark.parametrize("dtype", ["float32", "int8", "object"])
def test_unique(dtype: str, attributes: dict[str, int], like_onnxruntime: Compare) -> None:
    x = np.random.default_rng(0).integers(0, 3, (5, 3)).astype("float32" if dtype == "object" else dtype)
    if dtype == "object":
        node = helper.make_node("Unique", ["x"], ["y", "first", "which", "count"], **attributes)
        words = np.array(["b", "a", "c"], object)[x.astype(int)]
        y, first, which, _ = Backend.run_node(node, [words])
        np.testing.assert_array_equal(
            np.take(y, which, axis=attributes.get("axis", 0)), words if "axis" in attributes else words.reshape(-1)
        )
        assert first.size == y.shape[attributes.get("axis", 0)]
        return
    node = helper.make_node("Unique", ["x"], ["y", "first", "which", "count"], **attributes)
    like_onnxruntime(node, {"x": x}, opset=11)


def test_non_zero(like_onnxruntime: Compare) -> None:
    node = helper.make_node("NonZero", ["x"], ["y"])
    x = np.random.default_rng(0).integers(0, 2, (3, 4)).astype(np.float32)
    like_onnxruntime(node, {"x": x}, opset=13)
    # The standard says so, unlike NumPy and onnxruntime.
    assert Backend.run_node(node, [np.float32(2)])[0].shape == (0, 1)
    assert Backend.run_node(node, [np.float32(0)])[0].shape == (0, 0)
    assert Backend.run_node(node, [np.array(["", "a"], object)])[0].tolist() == [[1]]


@pytest.mark.parametrize("attributes", [{}, {"axis": 0}, {"axis": -1}])
def test_compress(attributes: dict[str, int], like_onnxruntime: Compare) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    node = helper.make_node("Compress", ["x", "c"], ["y"], **attributes)
    like_onnxruntime(node, {"x": x, "c": np.array([True, False, True])}, opset=11)
