"""Regions of interest: against onnxruntime, plain loops, and finite differences."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from hpdlf.exec.backend import Backend
from hpdlf.exec.operators import lowering, step_context
from hpdlf.models.onnxpp import Operator


def regions(seed: int = 0, count: int = 5) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(-2, 10, (count, 2)), rng.uniform(0.2, 9, (count, 2))
    return {
        "x": rng.standard_normal((2, 3, 10, 12)).astype(np.float32),
        "r": np.concatenate([corner, corner + size], axis=1).astype(np.float32),
        "b": rng.integers(0, 2, count),
    }


@pytest.mark.parametrize("opset", [10, 16])
@pytest.mark.parametrize("ratio", [0, 2, 5])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align(mode: str, ratio: int, opset: int, like_onnxruntime: Callable[..., Any]) -> None:
    node = onnx.helper.make_node(
        "RoiAlign", ["x", "r", "b"], ["y"], mode=mode, sampling_ratio=ratio, output_height=3, output_width=2,
        spatial_scale=0.7,
    )  # fmt: skip
    like_onnxruntime(node, regions(), opset=opset, rtol=1e-4, atol=1e-5)


def test_no_region_at_all() -> None:
    given = regions(count=0)
    for mode, ratio in (("avg", 0), ("avg", 2), ("max", 0), ("max", 1)):
        node = onnx.helper.make_node(
            "RoiAlign", ["x", "r", "b"], ["y"], mode=mode, sampling_ratio=ratio, output_height=2
        )
        assert Backend.run_node(node, list(given.values()))[0].shape == (0, 3, 2, 1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("mode", "ratio"), [("avg", 0), ("avg", 2), ("max", 0), ("max", 2)])
def test_gradients_of_roi_align(mode: str, ratio: int, check_gradients: Callable[..., Any]) -> None:
    given = regions(1)
    node = Operator(
        name="n", op_type="RoiAlign", family="pooling", inputs=("x", "r", "b"), outputs=("y",),
        attributes={"mode": mode, "sampling_ratio": ratio, "output_height": 2, "output_width": 2},
    )  # fmt: skip
    function, context = lowering(node, 16), step_context(seed=0, step=0, samples=np.arange(1))

    def aligned(x: Any) -> Any:
        return function(node, x, given["r"].astype(float), given["b"], context=context)[0]

    check_gradients(aligned, given["x"].astype(float))


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_max_roi_pool(scale: float, like_onnxruntime: Callable[..., Any]) -> None:
    given = regions(2, count=6)
    rois = np.concatenate([given["b"][:, None], given["r"]], axis=1).astype(np.float32)
    node = onnx.helper.make_node("MaxRoiPool", ["x", "r"], ["y"], pooled_shape=[3, 2], spatial_scale=scale)
    like_onnxruntime(node, {"x": given["x"], "r": rois}, opset=12)


@pytest.mark.usefixtures("x64")
def test_gradients_of_max_roi_pool(check_gradients: Callable[..., Any]) -> None:
    given = regions(3)
    rois = np.concatenate([given["b"][:, None], given["r"]], axis=1)
    node = Operator(
        name="n", op_type="MaxRoiPool", family="pooling", inputs=("x", "r"), outputs=("y",),
        attributes={"pooled_shape": (2, 3)},
    )  # fmt: skip
    function, context = lowering(node, 16), step_context(seed=0, step=0, samples=np.arange(1))
    check_gradients(lambda x: function(node, x, rois, context=context)[0], given["x"].astype(float))


@pytest.mark.parametrize("centred", [0, 1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_non_max_suppression(seed: int, centred: int, like_onnxruntime: Callable[..., Any]) -> None:
    rng = np.random.default_rng(seed)
    boxes = rng.uniform(0, 10, (2, 40, 4)).astype(np.float32)
    scores = rng.uniform(0, 1, (2, 3, 40)).astype(np.float32)
    node = onnx.helper.make_node(
        "NonMaxSuppression", ["b", "s", "m", "o", "l"][: 5 - seed], ["y"], center_point_box=centred
    )
    inputs = {"b": boxes, "s": scores, "m": np.array([7]), "o": np.float32([0.4]), "l": np.float32([0.3])}
    like_onnxruntime(node, dict(list(inputs.items())[: 5 - seed]), opset=11)


def test_no_box_without_a_limit() -> None:
    node = onnx.helper.make_node("NonMaxSuppression", ["b", "s"], ["y"])
    (y,) = Backend.run_node(node, [np.ones((1, 2, 4), np.float32), np.ones((1, 1, 2), np.float32)])
    assert y.shape == (0, 3)
    assert y.dtype == np.int64
