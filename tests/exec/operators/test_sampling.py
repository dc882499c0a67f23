"""Images read between their elements: against onnxruntime, and gradients against finite differences."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from hpdlf.errors import ModelError
from hpdlf.exec.backend import Backend
from hpdlf.exec.operators import lowering, step_context
from hpdlf.models.onnxpp import Operator


def operator(op_type: str, **attributes: Any) -> Operator:
    return Operator(
        name="n", op_type=op_type, family="elementwise", inputs=("x",), outputs=("y",), attributes=attributes
    )


def computed(node: Operator, *operands: Any, opset: int = 22) -> Any:
    context = step_context(seed=0, step=0, samples=np.arange(1))
    return lowering(node, opset)(node, *operands, context=context)[0]


@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
def test_grid_sample(mode: str, padding: str, aligned: int, like_onnxruntime: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, 5, 4)).astype(np.float32)
    grid = rng.uniform(-1.9, 1.9, (2, 4, 3, 2)).astype(np.float32)
    node = onnx.helper.make_node(
        "GridSample", ["x", "g"], ["y"], mode=mode, padding_mode=padding, align_corners=aligned
    )
    like_onnxruntime(node, {"x": x, "g": grid}, opset=16, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_grid_sample_of_volumes(mode: str, padding: str, aligned: int, like_onnxruntime: Callable[..., Any]) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 2, 4, 3, 5)).astype(np.float32)
    grid = rng.uniform(-1.5, 1.5, (1, 2, 3, 4, 3)).astype(np.float32)
    node = onnx.helper.make_node(
        "GridSample", ["x", "g"], ["y"], mode=mode, padding_mode=padding, align_corners=aligned
    )
    like_onnxruntime(node, {"x": x, "g": grid}, opset=20, rtol=1e-4, atol=1e-4)


def test_positions_far_outside_and_images_of_one_element_are_harmless() -> None:
    grid = np.array([[[[1e30, -1e30], [0, 0]]]], np.float32)
    for padding in ("zeros", "border", "reflection"):
        for mode in ("linear", "nearest", "cubic"):
            node = operator("GridSample", padding_mode=padding, mode=mode, align_corners=1)
            y = computed(node, np.full((1, 1, 1, 1), 3, np.float32), grid)
            assert np.isfinite(y).all()
            assert float(y[0, 0, 0, 1]) == pytest.approx(3)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_gradients_of_grid_sample(mode: str, padding: str, check_gradients: Callable[..., Any]) -> None:
    rng = np.random.default_rng(2)
    x, grid = rng.standard_normal((1, 2, 4, 5)), rng.uniform(-1.3, 1.3, (1, 2, 3, 2))
    node = operator("GridSample", mode=mode, padding_mode=padding)
    check_gradients(lambda x, g: computed(node, x, g), x, grid)


@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("size", [(2, 3, 4, 5), (1, 2, 3, 4, 2)])
def test_affine_grid(aligned: int, size: tuple[int, ...], like_onnxruntime: Callable[..., Any]) -> None:
    rank = len(size) - 2
    theta = np.random.default_rng(0).standard_normal((size[0], rank, rank + 1)).astype(np.float32)
    node = onnx.helper.make_node("AffineGrid", ["t", "s"], ["y"], align_corners=aligned)
    like_onnxruntime(node, {"t": theta, "s": np.array(size)}, opset=20)


def test_one_element_lies_in_the_middle() -> None:
    """The standard's formula divides by zero; PyTorch, where these graphs come from, gives 0."""
    theta = np.array([[[1, 0, 0.25], [0, 1, 0.5]]], np.float32)
    y = computed(operator("AffineGrid", align_corners=1), theta, np.array([1, 1, 1, 2]))
    np.testing.assert_allclose(y, [[[[-0.75, 0.5], [1.25, 0.5]]]])


DEFORMED = {
    "plain": {},
    "strided": {"strides": [2, 1], "pads": [1, 0, 1, 2]},
    "dilated": {"dilations": [2, 1], "pads": [1, 1, 1, 1]},
    "groups": {"group": 2, "offset_group": 2},
}


def deformable(case: str) -> tuple[list[np.ndarray], dict[str, Any]]:
    rng = np.random.default_rng(3)
    given = dict(DEFORMED[case])
    group, sets = given.get("group", 1), given.get("offset_group", 1)
    x, w = rng.standard_normal((2, 4, 6, 7)), rng.standard_normal((6, 4 // group, 3, 2))
    pads, strides, dilations = (
        given.get(k, d) for k, d in (("pads", [0] * 4), ("strides", [1, 1]), ("dilations", [1, 1]))
    )
    output = [
        (x.shape[2 + i] + pads[i] + pads[i + 2] - dilations[i] * (w.shape[2 + i] - 1) - 1) // strides[i] + 1
        for i in range(2)
    ]
    offset = rng.uniform(-2, 2, (2, sets * 12, *output))
    mask, bias = rng.uniform(0, 1, (2, sets * 6, *output)), rng.standard_normal(6)
    return [x, w, offset, bias, mask], given


@pytest.mark.parametrize("case", DEFORMED)
def test_deformable_convolution(case: str, like_onnxruntime: Callable[..., Any]) -> None:
    operands, attributes = deformable(case)
    names = ["x", "w", "o", "b", "m"]
    node = onnx.helper.make_node("DeformConv", names, ["y"], **attributes)
    inputs = {n: v.astype(np.float32) for n, v in zip(names, operands, strict=True)}
    like_onnxruntime(node, inputs, opset=19, rtol=1e-4, atol=1e-4)


def test_deformable_convolution_without_offsets_is_a_convolution() -> None:
    for shape, kernel in (((1, 2, 7), (3, 2, 3)), ((1, 2, 5, 4, 6), (3, 2, 2, 2, 3))):
        rng = np.random.default_rng(0)
        x, w = rng.standard_normal(shape), rng.standard_normal(kernel)
        output = [n - k + 1 for n, k in zip(shape[2:], kernel[2:], strict=True)]
        offset = np.zeros((1, int(np.prod(kernel[2:])) * len(output), *output))
        got = Backend.run_node(onnx.helper.make_node("DeformConv", ["x", "w", "o"], ["y"]), [x, w, offset])[0]
        wanted = Backend.run_node(onnx.helper.make_node("Conv", ["x", "w"], ["y"]), [x, w])[0]
        np.testing.assert_allclose(got, wanted, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_gradients_of_deformable_convolution(check_gradients: Callable[..., Any]) -> None:
    operands, attributes = deformable("groups")
    node = operator("DeformConv", **attributes)
    check_gradients(lambda *v: computed(node, *v), *operands)


def test_offsets_of_the_wrong_shape_are_refused() -> None:
    operands, attributes = deformable("plain")
    operands[2] = operands[2][:, :4]
    with pytest.raises(ModelError, match="does not fit 1 sets of offsets"):
        computed(operator("DeformConv", **attributes), *operands)
