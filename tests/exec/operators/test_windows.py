"""Convolutions and pooling: shapes and values of onnxruntime over random windows."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import onnx
import pytest

from hpdlf.exec.backend import Backend
from hpdlf.exec.operators import lowering, step_context
from hpdlf.models.onnxpp import Operator


def window(rng: np.random.Generator, rank: int, kernel: list[int], pads_below_kernel: bool) -> dict[str, Any]:
    """Random strides, and pads or a rule for them."""
    given: dict[str, Any] = {"strides": [int(n) for n in rng.integers(1, 4, rank)]}
    if rng.random() < 0.5:
        most = kernel * 2 if pads_below_kernel else [3] * 2 * rank
        given["pads"] = [int(rng.integers(0, n)) for n in most]
    elif rng.random() < 0.6:
        given["auto_pad"] = str(rng.choice(["SAME_UPPER", "SAME_LOWER", "VALID"]))
    if rng.random() < 0.4 and not given.get("auto_pad", "").startswith("SAME"):
        given["dilations"] = [int(n) for n in rng.integers(1, 3, rank)]
    return given


def sizes(rng: np.random.Generator, rank: int) -> tuple[list[int], list[int]]:
    """(kernel, image): no stride is larger than a kernel, and every dilated window fits."""
    return [3] * rank if rng.random() < 0.5 else [int(n) for n in rng.integers(3, 5, rank)], [
        int(n) for n in rng.integers(7, 11, rank)
    ]


@pytest.mark.parametrize("seed", range(12))
def test_convolutions(seed: int, like_onnxruntime: Callable[..., Any]) -> None:
    rng = np.random.default_rng(seed)
    rank, groups, transposed = 1 + seed % 3, (1, 2, 4)[seed % 3], seed % 2
    kernel, image = sizes(rng, rank)
    x = rng.standard_normal((2, 4, *image)).astype(np.float32)
    shape = (4, 3, *kernel) if transposed else (8, 4 // groups, *kernel)
    w = rng.standard_normal(shape).astype(np.float32)
    b = rng.standard_normal(3 * groups if transposed else 8).astype(np.float32)
    attributes = window(rng, rank, kernel, False)
    if transposed and rng.random() < 0.5:
        attributes["output_padding"] = [int(rng.integers(0, s)) for s in attributes["strides"]]
    node = onnx.helper.make_node(
        "ConvTranspose" if transposed else "Conv", ["x", "w", "b"], ["y"], group=groups, **attributes
    )
    like_onnxruntime(node, {"x": x, "w": w, "b": b}, opset=(11, 22)[seed % 2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "attributes",
    [
        # What pads cut off reaches beyond the window on one side and not on the other.
        {"pads": [2, 2, 2, 0]},
        # Windows leave gaps, also behind the last one.
        {"strides": [3, 4], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "output_shape": [11, 8]},
    ],
)
def test_transposed_convolutions_at_their_edges(
    attributes: dict[str, Any], like_onnxruntime: Callable[..., Any]
) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 2, 5, 4)).astype(np.float32), rng.standard_normal((2, 3, 3, 2)).astype(np.float32)
    node = onnx.helper.make_node("ConvTranspose", ["x", "w"], ["y"], **attributes)
    like_onnxruntime(node, {"x": x, "w": w}, opset=11, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(15))
def test_pooling(seed: int, like_onnxruntime: Callable[..., Any]) -> None:
    rng = np.random.default_rng(seed)
    op_type, rank, opset = ("MaxPool", "AveragePool", "LpPool")[seed % 3], 1 + seed // 3 % 3, (13, 22)[seed % 2]
    kernel, image = sizes(rng, rank)
    x = rng.standard_normal((2, 3, *image)).astype(np.float32)
    attributes = {"kernel_shape": kernel, **window(rng, rank, kernel, True)}
    if op_type != "MaxPool" and opset < 18:
        attributes.pop("dilations", None)
    if "auto_pad" not in attributes and (op_type != "LpPool" or opset >= 18):
        attributes["ceil_mode"] = 1
    attributes |= {"AveragePool": {"count_include_pad": seed % 2}, "LpPool": {"p": 1 + seed % 4}}.get(op_type, {})
    outputs = ["y", "i"] if op_type == "MaxPool" and seed % 2 else ["y"]
    node = onnx.helper.make_node(op_type, ["x"], outputs, **attributes)
    like_onnxruntime(node, {"x": x}, opset=opset, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_norm_over_an_image(p: int, like_onnxruntime: Callable[..., Any]) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    like_onnxruntime(onnx.helper.make_node("GlobalLpPool", ["x"], ["y"], p=p), {"x": x}, opset=11)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": (3, 3), "strides": (2, 2), "pads": [1, 1, 1, 1]},
        {"kernel_shape": (3, 2), "strides": (1, 3), "pads": [2, 0, 0, 1]},
        {"kernel_shape": (2, 3), "strides": (3, 2), "dilations": (2, 3)},
        {"kernel_shape": (3, 3), "strides": (2, 2), "ceil_mode": 1},
        {"kernel_shape": (2, 2), "strides": (2, 2)},
        {"kernel_shape": (4,), "strides": (3,), "pads": [3, 2]},
        {"kernel_shape": (2, 3, 2), "strides": (2, 1, 1), "pads": [0, 1, 1, 1, 0, 0]},
    ],
    ids=lambda a: "x".join(map(str, a["kernel_shape"])) + "/" + "x".join(map(str, a["strides"])),
)
def test_the_gradient_of_a_maximum_goes_to_where_it_was(attributes: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, *(9, 10, 7)[: len(attributes["kernel_shape"])]))
    fields: dict[str, Any] = {"op_type": "MaxPool", "family": "pool", "inputs": ("x",), "attributes": attributes}
    pool = Operator(name="p", outputs=("y",), **fields)
    found = Operator(name="p", outputs=("y", "i"), **fields)
    context = step_context(seed=0, step=0, samples=np.arange(2))
    y, index = lowering(found, 22)(found, x, context=context)
    arrived = rng.standard_normal(y.shape)
    wanted = np.zeros(x.size)
    np.add.at(wanted, np.asarray(index).ravel(), arrived.ravel())
    _, backward = jax.vjp(lambda x: lowering(pool, 22)(pool, x, context=context)[0], x)
    np.testing.assert_allclose(jax.jit(backward)(arrived)[0].ravel(), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("op_type", ["LpPool", "GlobalLpPool", "LpNormalization", "MeanVarianceNormalization"])
def test_a_norm_of_zero_has_a_gradient(op_type: str) -> None:
    node = Operator(
        name="n", op_type=op_type, family="pooling", inputs=("x",), outputs=("y",), attributes={"kernel_shape": (2, 2)}
    )
    function, context = lowering(node, 18), step_context(seed=0, step=0, samples=np.arange(1))
    gradient = jax.jit(jax.grad(lambda x: function(node, x, context=context)[0].sum()))(np.zeros((1, 1, 2, 2)))
    assert gradient.tolist() == np.zeros((1, 1, 2, 2)).tolist()


COLUMNS = [
    {"strides": [2, 1], "pads": [1, 0, 1, 2]},
    {"dilations": [2, 1]},
    {},
]


@pytest.mark.parametrize("attributes", COLUMNS)
def test_columns_become_an_image(attributes: dict[str, Any], like_onnxruntime: Callable[..., Any]) -> None:
    image, block = (6, 5), (2, 3)
    pads, strides = attributes.get("pads", [0] * 4), attributes.get("strides", [1, 1])
    dilations = attributes.get("dilations", [1, 1])
    count = [(image[i] + pads[i] + pads[i + 2] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1 for i in range(2)]
    x = np.random.default_rng(0).standard_normal((2, 4 * 6, count[0] * count[1])).astype(np.float32)
    node = onnx.helper.make_node("Col2Im", ["x", "i", "b"], ["y"], **attributes)
    like_onnxruntime(node, {"x": x, "i": np.array(image), "b": np.array(block)}, opset=18)


def test_one_slope_for_each_channel_before_opset_7() -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    slope = np.array([0.1, 0.2, 0.3], np.float32)
    node = Operator(name="n", op_type="PRelu", family="elementwise", inputs=("x", "s"), outputs=("y",))
    context = step_context(seed=0, step=0, samples=np.arange(1))
    y = lowering(node, 6)(node, x, slope, context=context)[0]
    np.testing.assert_array_equal(y, np.where(x >= 0, x, slope[:, None, None] * x))


def test_softmax_of_huge_scores_is_finite() -> None:
    """XLA may compute a score twice and round it differently: with scores like these by more than 1000."""
    x = np.random.default_rng(0).uniform(1e9, 1e10, (1, 64, 13, 13)).astype(np.float32)
    nodes = [
        onnx.helper.make_node("GlobalAveragePool", ["x"], ["m"]),
        onnx.helper.make_node("Concat", ["m"] * 8, ["c"], axis=1),
        onnx.helper.make_node("Softmax", ["c"], ["y"], axis=1),
    ]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(nodes, "g", [info("x", 1, x.shape)], [info("y", 1, (1, 512, 1, 1))])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 13)], ir_version=9)
    (y,) = Backend.run_model(model, [x])
    assert np.isfinite(y).all()
    assert float(y.sum()) == pytest.approx(1)


@pytest.mark.parametrize("lowest", [np.uint8(0), np.int8(-128), np.float32(-np.inf)])
@pytest.mark.parametrize("storage_order", [0, 1])
def test_the_maximum_is_never_a_pad(lowest: Any, storage_order: int) -> None:
    """Where all elements are as low as a pad, the first of them is the maximum."""
    node = onnx.helper.make_node(
        "MaxPool",
        ["x"],
        ["y", "i"],
        kernel_shape=[3, 3],
        pads=[1, 1, 1, 1],
        strides=[2, 2],
        storage_order=storage_order,
    )
    y, index = Backend.run_node(node, [np.full((2, 1, 3, 3), lowest)])
    assert (y == lowest).all()
    wanted = np.array([[0, 1], [3, 4]])
    wanted = wanted.T if storage_order else wanted
    assert index[:, 0].tolist() == [wanted.tolist(), (wanted + 9).tolist()]


@pytest.mark.parametrize(("opset", "shape"), [(13, (2, 0)), (11, (0, 3)), (11, (2, 0))])
@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
def test_softmax_of_nothing_is_nothing(op_type: str, opset: int, shape: tuple[int, ...]) -> None:
    node = onnx.helper.make_node(op_type, ["x"], ["y"])
    (y,) = Backend.run_node(node, [np.zeros(shape, np.float32)], opset_version=opset)
    assert y.shape == shape


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_of_no_sample_is_none(kernel: int) -> None:
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"])
    w = np.ones((3, 2, kernel, kernel), np.float32)
    (y,) = Backend.run_node(node, [np.zeros((0, 2, 5, 5), np.float32), w])
    assert y.shape == (0, 3, 6 - kernel, 6 - kernel)


def test_what_is_no_number_shows_in_training_too() -> None:
    node = Operator(
        name="p", op_type="MaxPool", family="pool", inputs=("x",), outputs=("y",), attributes={"kernel_shape": (2, 2)}
    )
    context = step_context(seed=0, step=0, samples=np.arange(1))
    for at in range(4):
        x = np.arange(4, dtype=np.float32)
        x[at] = np.nan

        def pooled(x: Any) -> Any:
            return lowering(node, 22)(node, x, context=context)[0]

        y, _ = jax.vjp(pooled, x.reshape(1, 1, 2, 2))
        assert np.isnan(y).all()
        assert np.isnan(pooled(x.reshape(1, 1, 2, 2))).all()
