"""Reading and writing by indices: against onnxruntime, plain loops, and finite differences."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import onnx
import pytest

from hpdlf.errors import ModelError
from hpdlf.exec.backend import Backend
from hpdlf.exec.operators import lowering, step_context
from hpdlf.models.onnxpp import Operator

REDUCTIONS = ["none", "add", "mul", "max", "min"]


def distinct(rng: np.random.Generator, size: int, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Indices along an axis that repeat nowhere, some of them counted from the end."""
    order = np.argsort(rng.random((*shape[:axis], size, *shape[axis + 1 :])), axis=axis)
    at = np.take(order, np.arange(shape[axis]), axis=axis)
    return np.where(rng.random(shape) < 0.3, at - size, at)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scatter_elements(reduction: str, axis: int, like_onnxruntime: Callable[..., Any]) -> None:
    rng = np.random.default_rng(axis + 5)
    x = rng.standard_normal((4, 5, 6)).astype(np.float32)
    shape = (3, 2, 4)
    at = distinct(rng, x.shape[axis], shape, axis % 3)
    if reduction != "none":
        at = rng.integers(-x.shape[axis], x.shape[axis], shape)
    node = onnx.helper.make_node("ScatterElements", ["x", "i", "u"], ["y"], axis=axis, reduction=reduction)
    updates = rng.standard_normal(shape).astype(np.float32)
    like_onnxruntime(node, {"x": x, "i": at, "u": updates}, opset=18)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_scatter_nd(reduction: str, depth: int, like_onnxruntime: Callable[..., Any]) -> None:
    rng = np.random.default_rng(depth)
    x = rng.standard_normal((4, 5, 6)).astype(np.float32)
    places = rng.permutation(int(np.prod(x.shape[:depth])))[:3]
    at = np.stack(np.unravel_index(places, x.shape[:depth]), axis=-1)
    if reduction != "none":
        at = np.concatenate([at, at[:1] - np.array(x.shape[:depth])])
    node = onnx.helper.make_node("ScatterND", ["x", "i", "u"], ["y"], reduction=reduction)
    updates = rng.standard_normal((len(at), *x.shape[depth:])).astype(np.float32)
    like_onnxruntime(node, {"x": x, "i": at, "u": updates}, opset=18)


@pytest.mark.parametrize(("batch", "depth"), [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (2, 1)])
def test_gather_nd(batch: int, depth: int, like_onnxruntime: Callable[..., Any]) -> None:
    rng = np.random.default_rng(batch)
    x = rng.standard_normal((3, 4, 5)).astype(np.float32)
    at = np.stack([rng.integers(-n, n, (*x.shape[:batch], 2)) for n in x.shape[batch : batch + depth]], axis=-1)
    node = onnx.helper.make_node("GatherND", ["x", "i"], ["y"], batch_dims=batch)
    like_onnxruntime(node, {"x": x, "i": at}, opset=13)


@pytest.mark.parametrize(("batch", "time"), [(0, 1), (1, 0)])
def test_reverse_sequence(batch: int, time: int, like_onnxruntime: Callable[..., Any]) -> None:
    x = np.random.default_rng(0).standard_normal((4, 4, 3)).astype(np.float32)
    node = onnx.helper.make_node("ReverseSequence", ["x", "n"], ["y"], batch_axis=batch, time_axis=time)
    like_onnxruntime(node, {"x": x, "n": np.array([1, 4, 2, 3])}, opset=10)


@pytest.mark.parametrize("mode", ["linear", "circular"])
@pytest.mark.parametrize("axis", [-2, 1, 2])
def test_tensor_scatter(mode: str, axis: int) -> None:
    rng = np.random.default_rng(0)
    cache, first = rng.standard_normal((2, 6, 6, 3)), np.array([4, 1]) if mode == "circular" else np.array([2, 0])
    shape = [2, 6, 6, 3]
    shape[axis] = 4
    update = rng.standard_normal(shape)
    wanted = cache.copy()
    for sample in range(2):
        rows, new = np.moveaxis(wanted[sample], axis % 4 - 1, 0), np.moveaxis(update[sample], axis % 4 - 1, 0)
        for step in range(4):
            rows[(first[sample] + step) % 6] = new[step]
    node = onnx.helper.make_node("TensorScatter", ["c", "u", "i"], ["y"], mode=mode, axis=axis)
    np.testing.assert_array_equal(Backend.run_node(node, [cache, update, first])[0], wanted)


@pytest.mark.parametrize("target", [None, (1, 2, 5, 6)])
def test_max_unpool_undoes_max_pool(target: tuple[int, ...] | None, like_onnxruntime: Callable[..., Any]) -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 6)).astype(np.float32)
    pool = onnx.helper.make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2], strides=[2, 2])
    y, at = like_onnxruntime(pool, {"x": x}, opset=12)
    node = onnx.helper.make_node("MaxUnpool", ["y", "i"], ["z"], kernel_shape=[2, 2], strides=[2, 2])
    (back,) = like_onnxruntime(node, {"y": y, "i": at}, opset=11)
    np.testing.assert_array_equal(back, np.where(np.isin(x, y), x, 0))
    if target is not None:
        # Where the target is larger, onnxruntime counts indices in it; the standard in what was pooled.
        wider = onnx.helper.make_node("MaxUnpool", ["y", "i", "s"], ["z"], kernel_shape=[2, 2], strides=[2, 2])
        (z,) = Backend.run_node(wider, [y, at, np.array(target)])
        np.testing.assert_array_equal(z[:, :, :4, :6], back)
        assert z.shape == target
        with pytest.raises(ModelError, match="smaller"):
            Backend.run_node(wider, [y, at, np.array([1, 2, 3, 6])])


def test_strings_are_scattered_and_gathered() -> None:
    x = np.array([["a", "b"], ["c", "d"]], dtype=object)
    nd = onnx.helper.make_node("ScatterND", ["x", "i", "u"], ["y"])
    (y,) = Backend.run_node(nd, [x, np.array([[1, 0]]), np.array(["z"], dtype=object)])
    assert y.tolist() == [["a", "b"], ["z", "d"]]
    gathered = onnx.helper.make_node("GatherND", ["x", "i"], ["y"])
    assert Backend.run_node(gathered, [x, np.array([[0, 1], [1, 1]])])[0].tolist() == ["b", "d"]


def test_unknown_reduction_is_refused() -> None:
    node = Operator(
        name="n", op_type="ScatterND", family="view", inputs=("x", "i", "u"), outputs=("y",),
        attributes={"reduction": "mean"},
    )  # fmt: skip
    context = step_context(seed=0, step=0, samples=np.arange(1))
    with pytest.raises(ModelError, match="'mean' is none of none, add"):
        lowering(node, 18)(node, np.ones(3), np.array([[0]]), np.ones(1), context=context)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("zeros", [False, True])
def test_gradients(reduction: str, zeros: bool, check_gradients: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    x, updates = rng.permutation(12).reshape(4, 3) + 1.0, rng.permutation(9).reshape(3, 3) + 1.5
    at = np.array([[0, 1, 2], [3, 1, 2], [1, 0, 0]])
    if reduction == "none":
        at = np.array([[0, 1, 2], [3, 0, 1], [1, 2, 0]])
    if zeros and reduction == "mul":
        # One factor, and two factors of one product: what is left of the others is, or is not, nothing.
        updates[0, 0] = updates[0, 1] = updates[1, 1] = 0
        x[3, 0] = 0
    node = Operator(
        name="n", op_type="ScatterElements", family="view", inputs=("x", "i", "u"), outputs=("y",),
        attributes={"reduction": reduction, "axis": 0},
    )  # fmt: skip
    function, context = lowering(node, 18), step_context(seed=0, step=0, samples=np.arange(1))

    def scattered(x: Any, u: Any) -> Any:
        return function(node, x, at, u, context=context)[0]

    check_gradients(scattered, x, updates)


@pytest.mark.usefixtures("x64")
def test_equal_extrema_share_a_gradient() -> None:
    node = Operator(
        name="n", op_type="ScatterND", family="view", inputs=("x", "i", "u"), outputs=("y",),
        attributes={"reduction": "max"},
    )  # fmt: skip
    function, context = lowering(node, 18), step_context(seed=0, step=0, samples=np.arange(1))

    def total(x: Any, u: Any) -> Any:
        return function(node, x, np.array([[0], [0], [1]]), u, context=context)[0].sum()

    into_x, into_updates = jax.grad(total, argnums=(0, 1))(np.array([2.0, 1.0]), np.array([2.0, 1.0, 3.0]))
    assert into_x.tolist() == [0.5, 0]
    assert into_updates.tolist() == [0.5, 0, 1]
