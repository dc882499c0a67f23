"""EyeLike, OneHot, Trilu, Det, CumSum and CumProd against onnxruntime and NumPy."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
from onnx import helper

from hpdlf.exec.backend import Backend

Compare = Callable[..., list[np.ndarray]]


@pytest.mark.parametrize("attributes", [{}, {"k": 1}, {"k": -2, "dtype": 1}, {"dtype": 7}])
def test_eye_like(attributes: dict[str, int], like_onnxruntime: Compare) -> None:
    node = helper.make_node("EyeLike", ["x"], ["y"], **attributes)
    like_onnxruntime(node, {"x": np.zeros((3, 4), np.float32)}, opset=9)
    (y,) = Backend.run_node(node, [np.zeros((2, 2), bool)])
    assert y.dtype == (bool if "dtype" not in attributes else {1: np.float32, 7: np.int64}[attributes["dtype"]])


@pytest.mark.parametrize("axis", [-1, 0, 1, -2])
@pytest.mark.parametrize("dtype", ["int64", "float32", "uint8"])
def test_one_hot(axis: int, dtype: str, like_onnxruntime: Compare) -> None:
    low = 0 if dtype == "uint8" else -6
    indices = np.random.default_rng(0).integers(low, 8, (2, 3)).astype(dtype)
    node = helper.make_node("OneHot", ["i", "d", "v"], ["y"], axis=axis)
    given = {"i": indices, "d": np.array(4), "v": np.array([2, 5], np.float32)}
    if dtype == "int64":
        like_onnxruntime(node, given, opset=11)
    classes = np.where(indices < 0, indices.astype(int) + 4, indices)
    wanted = np.where(
        np.expand_dims(classes, axis) == np.arange(4).reshape([-1 if a == axis % 3 else 1 for a in range(3)]), 5, 2
    )
    np.testing.assert_array_equal(Backend.run_node(node, list(given.values()))[0], wanted)


def test_one_hot_of_words(like_onnxruntime: Compare) -> None:
    node = helper.make_node("OneHot", ["i", "d", "v"], ["y"])
    (y,) = Backend.run_node(node, [np.array([1]), np.array(3), np.array(["no", "yes"], object)])
    assert y.tolist() == [["no", "yes", "no"]]


@pytest.mark.parametrize(("k", "upper"), list(product([None, -2, 0, 1, 9, -9], [0, 1])))
def test_triangles(k: int | None, upper: int, like_onnxruntime: Compare) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    node = helper.make_node("Trilu", ["x", "k"] if k is not None else ["x"], ["y"], upper=upper)
    like_onnxruntime(node, {"x": x} if k is None else {"x": x, "k": np.array(k)}, opset=14)


@pytest.mark.parametrize(("exclusive", "reverse", "axis"), list(product([0, 1], [0, 1], [0, -1])))
def test_cumulated(exclusive: int, reverse: int, axis: int, like_onnxruntime: Compare) -> None:
    x = np.random.default_rng(0).uniform(0.5, 2, (3, 5)).astype(np.float32)
    attributes = {"exclusive": exclusive, "reverse": reverse}
    like_onnxruntime(
        helper.make_node("CumSum", ["x", "a"], ["y"], **attributes), {"x": x, "a": np.array(axis)}, opset=14
    )
    node = helper.make_node("CumProd", ["x", "a"], ["y"], **attributes)
    wanted = np.flip(x, axis) if reverse else x
    if exclusive:
        wanted = np.roll(wanted, 1, axis)
        np.moveaxis(wanted, axis, 0)[0] = 1
    wanted = np.cumprod(wanted, axis)
    wanted = np.flip(wanted, axis) if reverse else wanted
    np.testing.assert_allclose(Backend.run_node(node, [x, np.array(axis)])[0], wanted, rtol=1e-6)


def test_an_exclusive_sum_loses_nothing_to_infinity() -> None:
    node = helper.make_node("CumSum", ["x", "a"], ["y"], exclusive=1)
    (y,) = Backend.run_node(node, [np.array([1, 1e30, np.inf], np.float32), np.array(0)])
    np.testing.assert_array_equal(y, np.float32([0, 1, 1e30]))


def test_determinants(like_onnxruntime: Compare) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 4)).astype(np.float32)
    like_onnxruntime(helper.make_node("Det", ["x"], ["y"]), {"x": x}, opset=11)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_one_hot_deeper_than_its_indices_type_holds(dtype: str) -> None:
    node = helper.make_node("OneHot", ["i", "d", "v"], ["y"])
    (y,) = Backend.run_node(node, [np.array([3], dtype), np.array(300), np.array([0, 1], np.int32)])
    assert y.shape == (1, 300)
    assert np.flatnonzero(y[0]).tolist() == [3]
