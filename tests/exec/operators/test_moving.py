"""Slices, pads and other moves of data: NumPy's and onnxruntime's results over many operands."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdlf.errors import ModelError
from hpdlf.exec.backend import Backend
from hpdlf.exec.operators import lowering, step_context
from hpdlf.models.onnxpp import Operator

BOUND = st.integers(-9, 9) | st.sampled_from([2**31 - 1, -(2**31), 2**63 - 1, -(2**63) + 1])


@settings(max_examples=150, deadline=None)
@given(start=BOUND, end=BOUND, step=st.integers(-4, 4).filter(bool), size=st.integers(1, 7))
def test_slices_are_those_of_the_standard(start: int, end: int, step: int, size: int) -> None:
    """Bounds count from the end where negative, then are cut off: to the elements, going down to before the first."""
    x = np.arange(size * 2).reshape(2, size)
    first, last = (v + size if v < 0 else v for v in (start, end))
    low, high = (0, size) if step > 0 else (0, size - 1), (0, size) if step > 0 else (-1, size - 1)
    wanted = x[:, np.arange(np.clip(first, *low), np.clip(last, *high), step)]
    node = Operator(name="n", op_type="Slice", family="view", inputs=("x", "s", "e", "a", "t"), outputs=("y",))
    operands = [np.array([v]) for v in (start, end, -1, step)]
    context = step_context(seed=0, step=0, samples=np.arange(1))
    y = lowering(node, 13)(node, x, *operands, context=context)[0]
    assert y.tolist() == wanted.tolist()


@pytest.mark.parametrize("opset", [11, 18])
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize("pads", [[1, 2, 0, 2, 1, 3], [0, -1, 1, 2, 0, -2], [0, 0, 0, 0, 0, 0]])
def test_pads(pads: list[int], mode: str, opset: int, like_onnxruntime: Callable[..., Any]) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    inputs = {"x": x, "p": np.array(pads), "v": np.float32(1.5)}
    like_onnxruntime(onnx.helper.make_node("Pad", ["x", "p", "v"], ["y"], mode=mode), inputs, opset=opset)


def test_pads_that_wrap_and_pads_of_some_axes(like_onnxruntime: Callable[..., Any]) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    inputs = {"x": x, "p": np.array([2, 1, 3, 0]), "a": np.array([-1, 0])}
    for mode in ("wrap", "edge", "constant"):
        like_onnxruntime(onnx.helper.make_node("Pad", ["x", "p", "", "a"], ["y"], mode=mode), inputs, opset=19)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "float16", "float64", "complex64"])
def test_pads_of_every_type(dtype: str) -> None:
    x = np.array([[1, 0], [1, 1]]).astype(dtype)
    for mode in ("constant", "edge"):
        node = onnx.helper.make_node("Pad", ["x", "p"], ["y"], mode=mode)
        (y,) = Backend.run_node(node, [x, np.array([1, 0, 0, 1])])
        assert y.dtype == x.dtype
        np.testing.assert_array_equal(y, np.pad(x, [(1, 0), (0, 1)], mode=mode))


def test_pads_by_attribute() -> None:
    context = step_context(seed=0, step=0, samples=np.arange(1))
    for opset, name in ((1, "paddings"), (2, "pads")):
        node = Operator(
            name="n", op_type="Pad", family="view", inputs=("x",), outputs=("y",),
            attributes={name: (1, 0), "value": 2.0},
        )  # fmt: skip
        assert lowering(node, opset)(node, np.ones(2, np.float32), context=context)[0].tolist() == [2, 1, 1]


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_and_space(mode: str, like_onnxruntime: Callable[..., Any]) -> None:
    x = np.random.default_rng(0).standard_normal((2, 8, 2, 3)).astype(np.float32)
    node = onnx.helper.make_node("DepthToSpace", ["x"], ["y"], blocksize=2, mode=mode)
    (y,) = like_onnxruntime(node, {"x": x}, opset=13)
    back = onnx.helper.make_node("SpaceToDepth", ["x"], ["y"], blocksize=2, mode=mode)
    np.testing.assert_array_equal(Backend.run_node(back, [y])[0], x)


@pytest.mark.parametrize("shape", [[2, 7], [6, 3], [5, 4]])
def test_crops_and_pads_at_the_centre(shape: list[int], like_onnxruntime: Callable[..., Any]) -> None:
    x = np.random.default_rng(0).standard_normal((1, 4, 5)).astype(np.float32)
    node = onnx.helper.make_node("CenterCropPad", ["x", "s"], ["y"], axes=[-2, -1])
    like_onnxruntime(node, {"x": x, "s": np.array(shape)}, opset=18)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_neighbouring_channels(size: int, like_onnxruntime: Callable[..., Any]) -> None:
    x = np.random.default_rng(0).standard_normal((2, 6, 3, 4)).astype(np.float32)
    node = onnx.helper.make_node("LRN", ["x"], ["y"], size=size, alpha=0.3, beta=0.6, bias=1.2)
    # onnxruntime knows odd sizes alone; of an even one the standard takes one channel more behind than before.
    if size % 2:
        like_onnxruntime(node, {"x": x}, opset=13, rtol=1e-4)
    else:
        wide = np.pad(x**2, [(0, 0), ((size - 1) // 2, size - 1 - (size - 1) // 2), (0, 0), (0, 0)])
        total = sum(wide[:, i : i + 6] for i in range(size))
        np.testing.assert_allclose(Backend.run_node(node, [x])[0], x / (1.2 + 0.3 / size * total) ** 0.6, rtol=1e-5)


EINSUMS = [
    ("ij,jk->ik", [(2, 3), (3, 4)]), ("ii->i", [(3, 3)]), ("ij->ji", [(2, 3)]), ("...ij,...jk->...ik", [(2, 2, 3), (2, 3, 4)]),
    ("bhid,bhjd->bhij", [(2, 2, 3, 4), (2, 2, 5, 4)]), ("ij,ij,ij->", [(2, 3)] * 3), ("ij , jk", [(2, 3), (3, 4)]),
    ("i,j->ij", [(2,), (3,)]), ("ij->", [(2, 3)]), ("...ii->...i", [(2, 3, 3)]), ("b...d,de->b...e", [(2, 5, 3), (3, 4)]),
]  # fmt: skip


@pytest.mark.parametrize(("equation", "shapes"), EINSUMS)
def test_einsum(equation: str, shapes: list[tuple[int, ...]]) -> None:
    rng = np.random.default_rng(0)
    for dtype in ("float32", "int32"):
        operands = [(5 * rng.standard_normal(shape)).astype(dtype) for shape in shapes]
        node = onnx.helper.make_node("Einsum", [f"x{i}" for i in range(len(shapes))], ["y"], equation=equation)
        (y,) = Backend.run_node(node, operands)
        wanted = np.einsum(equation.replace(" ", ""), *operands)
        assert y.dtype == wanted.dtype
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_instance_normalization(dtype: str, like_onnxruntime: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    x = (3 + rng.standard_normal((2, 3, 4, 5))).astype(dtype)
    inputs = {"x": x, "s": rng.standard_normal(3).astype(dtype), "b": rng.standard_normal(3).astype(dtype)}
    node = onnx.helper.make_node("InstanceNormalization", ["x", "s", "b"], ["y"], epsilon=1e-3)
    tolerance = {"float32": 1e-4, "float16": 1e-2}[dtype]
    like_onnxruntime(node, inputs, opset=13, rtol=tolerance, atol=tolerance)


def test_unknown_padding_is_refused() -> None:
    node = onnx.helper.make_node("Pad", ["x", "p"], ["y"], mode="mirror")
    with pytest.raises(ModelError, match="'mirror' is none of constant, reflect, edge, wrap"):
        Backend.run_node(node, [np.ones(2, np.float32), np.array([1, 1])])


NORMS: dict[str, dict[str, Any]] = {
    "GlobalLpPool": {},
    "GroupNormalization": {"num_groups": 2},
    "InstanceNormalization": {},
    "LRN": {"size": 3, "alpha": 1.0},
    "LpNormalization": {"axis": 1},
    "LpPool": {"kernel_shape": [2, 2]},
    "MeanVarianceNormalization": {},
    "ReduceL2": {},
}


@pytest.mark.parametrize("op_type", sorted(NORMS))
def test_squares_of_short_floats_do_not_overflow(op_type: str) -> None:
    x = np.random.default_rng(0).normal(500, 300, (2, 4, 3, 3)).astype(np.float16)
    node = onnx.helper.make_node(op_type, ["x"], ["y"], **NORMS[op_type])
    operands = [x]
    if op_type in ("GroupNormalization", "InstanceNormalization"):
        node.input.extend(["s", "b"])
        operands += [np.ones(4, np.float16), np.zeros(4, np.float16)]
    (y,) = Backend.run_node(node, operands)
    (wanted,) = Backend.run_node(node, [v.astype(np.float32) for v in operands])
    assert y.dtype == np.float16
    np.testing.assert_allclose(y, wanted, rtol=2e-3, atol=2e-3)


def test_a_constant_float16_image_has_no_variance_to_divide_by() -> None:
    node = onnx.helper.make_node("MeanVarianceNormalization", ["x"], ["y"])
    assert (Backend.run_node(node, [np.ones((1, 2, 3, 3), np.float16)])[0] == 0).all()


def test_no_sample_at_all_is_normalised() -> None:
    node = onnx.helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2)
    ones = np.ones(4, np.float32)
    assert Backend.run_node(node, [np.zeros((0, 4, 3), np.float32), ones, ones])[0].shape == (0, 4, 3)


def test_words_are_padded_with_the_empty_string() -> None:
    words, pads = np.array(["b", "c"], object), np.array([1, 2])
    node = onnx.helper.make_node("Pad", ["x", "p"], ["y"])
    assert Backend.run_node(node, [words, pads])[0].tolist() == ["", "b", "c", "", ""]
    node = onnx.helper.make_node("Pad", ["x", "p", "f"], ["y"])
    assert Backend.run_node(node, [words, pads, np.array("z", object)])[0].tolist() == ["z", "b", "c", "z", "z"]


def test_words_are_constants_too() -> None:
    node = onnx.helper.make_node("Constant", [], ["y"], value_strings=["a", "b"])
    assert Backend.run_node(node, [])[0].tolist() == ["a", "b"]
    node = onnx.helper.make_node("Constant", [], ["y"], value_string="a")
    (y,) = Backend.run_node(node, [])
    assert y.shape == ()
    assert y.item() == "a"
