"""Resize and Upsample: against onnxruntime over sizes and attributes, and gradients against finite differences."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from hpdlf.errors import ModelError
from hpdlf.exec.backend import Backend
from hpdlf.exec.operators import lowering, step_context
from hpdlf.models.onnxpp import Operator

CASES = [
    {"mode": "nearest", "nearest_mode": how, "coordinate_transformation_mode": where}
    for how in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
    for where in ("half_pixel", "asymmetric", "align_corners")
] + [
    {"mode": mode, "coordinate_transformation_mode": where}
    for mode in ("linear", "cubic")
    for where in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
]


@pytest.mark.parametrize("seed", range(len(CASES)))
def test_sizes_are_onnxruntimes(seed: int, like_onnxruntime: Callable[..., Any]) -> None:
    rng = np.random.default_rng(seed)
    before, after = rng.integers(1, 14, 2), rng.integers(1, 29, 2)
    x = rng.standard_normal((1, 2, *before)).astype(np.float32)
    inputs = {"x": x, "sizes": np.array([1, 2, *after])}
    node = onnx.helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], **CASES[seed])
    like_onnxruntime(node, inputs, opset=(13, 18, 19)[seed % 3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_scales_are_onnxruntimes(seed: int, like_onnxruntime: Callable[..., Any]) -> None:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((2, 1, *rng.integers(2, 12, 2))).astype(np.float32)
    scales = np.array([1, 1, *rng.choice([0.5, 0.6, 0.7, 1.5, 2, 3.3], 2)], np.float32)
    mode = ("nearest", "linear", "cubic")[seed % 3]
    antialias = {"antialias": 1} if seed % 2 and mode != "nearest" else {}
    node = onnx.helper.make_node("Resize", ["x", "", "scales"], ["y"], mode=mode, **antialias)
    like_onnxruntime(node, {"x": x, "scales": scales}, opset=18, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_aspect_ratio_is_kept(policy: str, mode: str, like_onnxruntime: Callable[..., Any]) -> None:
    x = np.random.default_rng(0).standard_normal((1, 1, 5, 8)).astype(np.float32)
    node = onnx.helper.make_node(
        "Resize", ["x", "", "", "sizes"], ["y"], mode=mode, axes=[2, 3], keep_aspect_ratio_policy=policy
    )
    like_onnxruntime(node, {"x": x, "sizes": np.array([9, 9])}, opset=18)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("op_type", "opset"), [("Upsample", 9), ("Resize", 10)])
def test_old_forms(op_type: str, opset: int, mode: str, like_onnxruntime: Callable[..., Any]) -> None:
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 5)).astype(np.float32)
    for scales in ([1, 1, 2, 3], [1, 1, 0.6, 0.5] if op_type == "Resize" else [1, 1, 1.5, 2.5]):
        node = onnx.helper.make_node(op_type, ["x", "scales"], ["y"], mode=mode)
        like_onnxruntime(node, {"x": x, "scales": np.array(scales, np.float32)}, opset=opset)


def test_upsample_by_attributes() -> None:
    x = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    wanted = x.repeat(2, axis=2).repeat(3, axis=3)
    seven = onnx.helper.make_node("Upsample", ["x"], ["y"], scales=[1.0, 1.0, 2.0, 3.0])
    one = onnx.helper.make_node("Upsample", ["x"], ["y"], height_scale=2.0, width_scale=3.0)
    for node, opset in ((seven, 7), (one, 1)):
        function = lowering(_operator(node), opset)
        got = function(_operator(node), x, context=step_context(seed=0, step=0, samples=np.arange(1)))[0]
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "float16"])
def test_element_types(dtype: str, like_onnxruntime: Callable[..., Any]) -> None:
    x = np.random.default_rng(0).integers(0, 100, (1, 1, 4, 6)).astype(dtype)
    sizes = np.array([1, 1, 8, 12])
    modes = ("nearest", "linear") if dtype != "float16" else ("nearest",)
    for mode in modes:
        node = onnx.helper.make_node(
            "Resize", ["x", "", "", "sizes"], ["y"], mode=mode, coordinate_transformation_mode="asymmetric"
        )
        like_onnxruntime(node, {"x": x, "sizes": sizes}, opset=13)


def test_bfloat16_is_interpolated_in_float32() -> None:
    import ml_dtypes

    x = np.random.default_rng(0).standard_normal((1, 1, 5, 7)).astype(ml_dtypes.bfloat16)
    node = onnx.helper.make_node("Resize", ["x", "", "", "s"], ["y"], mode="linear")
    sizes = np.array([1, 1, 9, 12])
    (got,) = Backend.run_node(node, [x, sizes])
    (exact,) = Backend.run_node(node, [x.astype(np.float32), sizes])
    assert got.dtype == x.dtype
    np.testing.assert_array_equal(got, exact.astype(ml_dtypes.bfloat16))


def test_region_of_a_crop_may_lie_outside() -> None:
    x = np.arange(5, dtype=np.float32)
    node = onnx.helper.make_node(
        "Resize", ["x", "roi", "", "sizes"], ["y"], mode="linear", extrapolation_value=9.0,
        coordinate_transformation_mode="tf_crop_and_resize",
    )  # fmt: skip
    (y,) = Backend.run_node(node, [x, np.array([0.5, 1.5], np.float32), np.array([5])])
    np.testing.assert_allclose(y, [2, 3, 4, 9, 9])


def test_nothing_resized_to_nothing() -> None:
    node = onnx.helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear")
    (y,) = Backend.run_node(node, [np.ones((1, 1, 4, 0), np.float32), np.array([1, 1, 8, 0])])
    assert y.shape == (1, 1, 8, 0)
    with pytest.raises(ModelError, match="without elements"):
        Backend.run_node(node, [np.ones((1, 1, 4, 0), np.float32), np.array([1, 1, 8, 2])])


def test_sizes_of_the_wrong_length_are_refused() -> None:
    node = onnx.helper.make_node("Resize", ["x", "", "", "sizes"], ["y"])
    with pytest.raises(ModelError, match=r"sizes \[8.0, 2.0\] do not fit 4 axes"):
        Backend.run_node(node, [np.ones((1, 1, 4, 4), np.float32), np.array([8, 2])])


def _operator(node: onnx.NodeProto) -> Operator:
    return Operator(
        name="n",
        op_type=node.op_type,
        family="elementwise",
        inputs=tuple(node.input),
        outputs=tuple(node.output),
        attributes={a.name: onnx.helper.get_attribute_value(a) for a in node.attribute},
    )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("sizes", [(8, 10), (7, 3), (13, 4), (80, 5)])
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_gradients(mode: str, sizes: tuple[int, int], check_gradients: Callable[..., Any]) -> None:
    node = _operator(
        onnx.helper.make_node("Resize", ["x", "", "", "s"], ["y"], mode=mode, antialias=int(mode == "cubic"))
    )
    function, context = lowering(node, 19), step_context(seed=0, step=0, samples=np.arange(1))
    x = np.random.default_rng(0).standard_normal((1, 2, 4, 5))

    def resized(x: Any) -> Any:
        return function(node, x, None, None, np.array([1, 2, *sizes]), context=context)[0]

    check_gradients(resized, x)
