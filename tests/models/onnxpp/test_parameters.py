"""Which tensors are trained, which are one and the same, and how a file's operators come into training."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from hpdlf.models.onnxpp import Graph, Onnxpp, import_model, load_values
from hpdlf.models.onnxpp.untie import untie

ONES, ZEROS = np.ones(4, np.float32), np.zeros(4, np.float32)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


def imported(
    folder: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    outputs: str = "y",
    *,
    opset: int = 18,
    kinds: dict[str, int] | None = None,
    options: dict[str, Any] | None = None,
    **weights: np.ndarray,
) -> Onnxpp:
    """A file of these nodes, imported; inputs are float32 unless `kinds` says otherwise."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, (kinds or {}).get(n, TensorProto.FLOAT), d) for n, d in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs.split()],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    path = folder / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return import_model(path, **(options or {}))


def operands(graph: Graph, op_type: str, slot: int) -> list[str]:
    return [o.inputs[slot] for o in graph.operators if o.op_type == op_type]


def test_a_scale_and_a_variance_that_start_equal_come_apart(tmp_path: Path) -> None:
    """Densely connected networks as torch exports them: each normalisation's scale and variance are one tensor."""
    nodes = [
        node("Conv", "x k1", "c1"),
        node("BatchNormalization", "c1 ones zeros zeros ones", "b1"),
        node("Conv", "b1 k2", "c2"),
        node("BatchNormalization", "c2 ones zeros zeros ones", "y"),
    ]
    weights = {"k1": normal(4, 4, 1, 1), "k2": normal(4, 4, 1, 1, seed=1), "ones": ONES, "zeros": ZEROS}
    graph = imported(tmp_path, nodes, {"x": ["N", 4, 2, 2]}, options={"loss": "mse"}, **weights).graph
    names = [n for o in graph.operators if o.op_type == "BatchNormalization" for n in o.inputs[1:]]
    assert len(set(names)) == 8
    assert len(graph.parameters) == 6
    assert len(graph.state) == 4


def test_merged_biases_come_apart_and_those_of_one_layer_do_not(tmp_path: Path) -> None:
    """Three products share a bias of zeros; two of them share their matrix as well, so they are one layer."""
    nodes = [
        node("MatMul", "x w1", "m1"),
        node("Add", "m1 zeros", "a1"),
        node("MatMul", "a1 w2", "m2"),
        node("Add", "m2 zeros", "a2"),
        node("MatMul", "a2 w2", "m3"),
        node("Add", "zeros m3", "y"),
    ]
    graph = imported(tmp_path, nodes, {"x": ["N", 4]}, w1=normal(4, 4), w2=normal(4, 4, seed=1), zeros=ZEROS).graph
    first, second = operands(graph, "Add", 1)[:2]
    third = operands(graph, "Add", 0)[2]
    assert first != second == third
    assert len(graph.parameters) == 4


def test_a_head_over_several_levels_stays_one(tmp_path: Path) -> None:
    nodes = [
        node("Conv", "x k", "c1"),
        node("Relu", "c1", "r1"),
        node("Conv", "r1 head bias", "h1"),
        node("AveragePool", "r1", "p", kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", "p head bias", "h2"),
        node("Conv", "c1 other bias", "h3"),
        *(node("GlobalAveragePool", f"h{i}", f"g{i}") for i in (1, 2, 3)),
        node("Sum", "g1 g2 g3", "y"),
    ]
    weights = {"k": normal(4, 4, 1, 1), "head": normal(4, 4, 1, 1, seed=1), "other": normal(4, 4, 1, 1, seed=2)}
    graph = imported(tmp_path, nodes, {"x": ["N", 4, 4, 4]}, bias=ZEROS, **weights).graph
    head, level, other = [o.inputs[2] for o in graph.operators if o.op_type == "Conv" and len(o.inputs) == 3]
    assert head == level != other


def test_a_vector_of_different_numbers_is_shared_on_purpose(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x w1", "m1"),
        node("LayerNormalization", "m1 scale", "l1"),
        node("MatMul", "l1 w2", "m2"),
        node("LayerNormalization", "m2 scale", "y"),
    ]
    given = {"w1": normal(4, 4), "w2": normal(4, 4, seed=1)}
    apart = imported(tmp_path, nodes, {"x": ["N", 4]}, scale=ONES, **given).graph
    assert len(set(operands(apart, "LayerNormalization", 1))) == 2
    shared = imported(tmp_path, nodes, {"x": ["N", 4]}, scale=normal(4), **given).graph
    assert set(operands(shared, "LayerNormalization", 1)) == {"scale"}


def test_copies_get_the_names_that_the_exporter_left(tmp_path: Path) -> None:
    """torch's older exporter writes Identity nodes of one initializer, named as the parameters were."""
    nodes = [
        node("Identity", "layer1.bias", "layer2.bias"),
        node("Gemm", "x w1 layer1.bias", "h"),
        node("Gemm", "h w2 layer2.bias", "y"),
    ]
    weights = {"w1": normal(4, 4), "w2": normal(4, 4, seed=1), "layer1.bias": ZEROS}
    model = imported(tmp_path, nodes, {"x": ["N", 4]}, **weights)
    assert model.graph.parameters == ("w1", "layer1.bias", "w2", "layer2.bias")
    assert [o.op_type for o in model.graph.operators] == ["Gemm", "Gemm"]


def test_a_merged_vector_comes_apart_behind_its_rearrangements(tmp_path: Path) -> None:
    """One Unsqueeze of a merged scale, read by two layers; and a reader that is no layer keeps the original."""
    nodes = [
        node("Unsqueeze", "scale axes", "column"),
        node("Conv", "x k1", "c1"),
        node("Mul", "c1 column", "s1"),
        node("Conv", "s1 k2", "c2"),
        node("Mul", "c2 column", "s2"),
        node("Where", "mask s2 column", "w"),
        node("GlobalAveragePool", "w", "y"),
    ]
    weights = {"k1": normal(4, 4, 1, 1), "k2": normal(4, 4, 1, 1, seed=1), "scale": np.full(4, 1e-6, np.float32)}
    model = imported(
        tmp_path, nodes, {"x": ["N", 4, 2, 2]}, axes=np.int64([1, 2]), mask=np.ones((1, 4, 1, 1), bool), **weights
    )
    graph = model.graph
    scales = operands(graph, "Mul", 1)
    assert len(set(scales)) == 2
    assert set(scales) < set(graph.parameters)
    assert operands(graph, "Where", 2) == ["column"]
    assert "column" in graph.constants
    for value in load_values(model, scales).values():
        np.testing.assert_array_equal(value, np.full((4, 1, 1), 1e-6, np.float32))


LAYERS = {
    "dense": [("MatMul", "{x} w{i}", "m{i}"), ("Add", "m{i} {zeros}", "{y}")],
    "shared": [("MatMul", "{x} w", "m{i}"), ("Add", "{zeros} m{i}", "{y}")],
    "norm": [("LayerNormalization", "{x} {ones} {zeros}", "{y}")],
    "scale": [("Unsqueeze", "{ones} axis", "u{i}"), ("Mul", "{x} u{i}", "{y}")],
    "identity": [("Identity", "{zeros}", "z{i}"), ("Add", "{x} z{i}", "{y}")],
    "residual": [("Add", "{x} x", "{y}")],
    "select": [("Where", "on {x} {zeros}", "{y}")],
}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(sorted(LAYERS)), min_size=1, max_size=8), st.booleans())
def test_untying_changes_nothing_that_is_computed(layers: list[str], uniform: bool) -> None:
    nodes, weights = [], {"w": normal(4, 4), "axis": np.int64([0]), "on": np.asarray([True, False, True, True])}
    weights |= {"ones": ONES if uniform else normal(4), "zeros": ZEROS if uniform else normal(4, seed=1)}
    x = "x"
    for i, layer in enumerate(layers):
        weights[f"w{i}"] = normal(4, 4, seed=i)
        names = {"x": x, "y": f"y{i}", "i": i, "ones": "ones", "zeros": "zeros"}
        nodes += [node(op, read.format(**names), made.format(**names)) for op, read, made in LAYERS[layer]]
        x = f"y{i}"
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    feeds = {"x": normal(3, 4, seed=9)}
    [before] = ReferenceEvaluator(model).run(None, feeds)
    untie(model)
    onnx.checker.check_model(model)
    [after] = ReferenceEvaluator(model).run(None, feeds)
    np.testing.assert_array_equal(after, before)
    if not uniform:
        assert len(model.graph.initializer) == len(weights)


@pytest.mark.parametrize("between", ["", "Identity", "Cast"])
def test_an_embedding_that_is_also_the_head_stays_one(between: str, tmp_path: Path) -> None:
    source, looked_up = ("source", "wide") if between == "Cast" else ("source" if between else "table", "table")
    first = {
        "": [],
        "Identity": [node("Identity", "table", "source")],
        "Cast": [node("Cast", "table", "wide", to=1), node("Cast", "table", "source", to=1)],
    }
    nodes = [
        *first[between],
        node("Gather", f"{looked_up} ids", "e"),
        node("Relu", "e", "h"),
        node("Transpose", source, "wt", perm=[1, 0]),
        node("MatMul", "h wt", "y"),
    ]
    table = normal(7, 4).astype(np.float16 if between == "Cast" else np.float32)
    model = imported(tmp_path, nodes, {"ids": ["N", 3]}, kinds={"ids": TensorProto.INT64}, table=table)
    assert model.graph.parameters == ("table",)


def test_half_precision_weights_that_are_cast_are_parameters(tmp_path: Path) -> None:
    nodes = [node("Cast", "w", "wide", to=1), node("MatMul", "x wide", "y")]
    model = imported(tmp_path, nodes, {"x": ["N", 4]}, w=normal(4, 3).astype(np.float16))
    assert model.graph.parameters == ("wide",)
    assert model.graph.tensors["wide"].dtype == "float32"


def test_a_token_that_is_repeated_for_every_sample_is_learned(tmp_path: Path) -> None:
    nodes = [
        node("Shape", "x", "s", start=0, end=1),
        node("Concat", "s minus", "target", axis=0),
        node("Expand", "token target", "tokens"),
        node("Concat", "tokens x", "z", axis=1),
        node("MatMul", "z w", "y"),
    ]
    graph = imported(
        tmp_path, nodes, {"x": ["N", 5, 4]}, token=normal(1, 1, 4), minus=np.int64([1, 1]), w=normal(4, 3)
    ).graph
    assert graph.parameters == ("token", "w")


def test_angles_masks_anchors_and_preprocessing_are_not_learned(tmp_path: Path) -> None:
    """Rotary frequencies, a causal mask, the channels' means, and anchors behind the last layer; a position table is."""
    ninf = np.float32(-1e9)
    nodes = [
        node("Sub", "x mean", "centred"),
        node("Mul", "centred spread", "scaled"),
        node("MatMul", "scaled wq", "q"),
        node("Cast", "positions", "p", to=1),
        node("MatMul", "p frequencies", "angles"),
        node("Cos", "angles", "cosines"),
        node("Mul", "q cosines", "turned"),
        node("Add", "turned places", "placed"),
        node("MatMul", "placed wk", "scores"),
        node("Add", "scores mask", "masked"),
        node("Softmax", "masked", "weights"),
        node("MatMul", "weights head", "boxes"),
        node("Slice", "boxes zero two last", "corners"),
        node("Add", "corners anchors", "y"),
    ]
    weights = {
        "mean": normal(4), "spread": normal(4, seed=1), "wq": normal(4, 4, seed=2), "frequencies": normal(1, 4, seed=3),
        "places": normal(5, 4, seed=4), "wk": normal(4, 5, seed=5), "mask": np.triu(np.full((5, 5), ninf), 1),
        "head": normal(5, 4, seed=6), "anchors": normal(5, 2, seed=7),
    }  # fmt: skip
    shapes = {"zero": np.int64([0]), "two": np.int64([2]), "last": np.int64([2])}
    graph = imported(
        tmp_path,
        nodes,
        {"x": ["N", 5, 4], "positions": ["N", 5, 1]},
        kinds={"positions": TensorProto.INT64},
        **weights,
        **shapes,
    ).graph
    assert graph.parameters == ("wq", "places", "wk", "head")


def test_the_places_of_bins_are_not_learned(tmp_path: Path) -> None:
    """Detectors take the mean of a distribution over distances: a product with 0, 1, 2 …"""
    nodes = [node("MatMul", "x w", "h"), node("Softmax", "h", "p"), node("MatMul", "p bins", "y")]
    bins = np.arange(8, dtype=np.float32)[:, None]
    graph = imported(tmp_path, nodes, {"x": ["N", 4]}, w=normal(4, 8), bins=bins).graph
    assert graph.parameters == ("w",)


def test_weights_in_integers_are_not_trained(tmp_path: Path) -> None:
    nodes = [
        node("DequantizeLinear", "w8 step", "w"),
        node("MatMul", "x w", "h"),
        node("Add", "h bias", "y"),
    ]
    graph = imported(
        tmp_path, nodes, {"x": ["N", 4]}, w8=np.ones((4, 4), np.int8), step=np.float32(0.1), bias=normal(4)
    ).graph
    assert graph.parameters == ("bias",)
    told = imported(
        tmp_path,
        nodes,
        {"x": ["N", 4]},
        w8=np.ones((4, 4), np.int8),
        step=np.float32(0.1),
        bias=normal(4),
        options={"train": "^w$"},
    ).graph
    assert told.parameters == ("w",)


def test_single_numbers_are_learned_where_they_scale_and_shift_a_layer(tmp_path: Path) -> None:
    """As in PP-LCNetV3's learnable affine blocks; a formula's constants (a hard sigmoid's) are not."""
    nodes = [
        node("Conv", "x k1", "c1"),
        node("Mul", "c1 scale", "s1"),
        node("Add", "s1 shift", "a1"),
        node("Mul", "a1 sixth", "s2"),
        node("Add", "s2 half", "a2"),
        node("Clip", "a2 zero one", "gate"),
        node("Mul", "gate a1", "g"),
        node("Conv", "g k2 b2", "y"),
    ]
    one = np.float32([1])
    graph = imported(
        tmp_path, nodes, {"x": ["N", 4, 2, 2]}, k1=normal(4, 4, 1, 1), scale=one, shift=0 * one, sixth=one / 6,
        half=one / 2, zero=np.float32(0), one=np.float32(1), k2=normal(1, 4, 1, 1), b2=0 * one,
    ).graph  # fmt: skip
    assert graph.parameters == ("k1", "scale", "shift", "k2", "b2")


# How operators come into training


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 15])
@pytest.mark.parametrize("results", [1, 3, 5])
def test_batch_normalisation_trains_in_every_form(opset: int, results: int, tmp_path: Path) -> None:
    """The inference form of an export that lost its training mode, and the forms that have the statistics as results."""
    if results == (5 if opset >= 14 else 3):
        pytest.skip("three results from operator set 14 on, five before")
    attributes = {"training_mode": 1} if opset >= 14 and results > 1 else {}
    names = " ".join(["y", "new_mean", "new_var", "saved_mean", "saved_var"][:results])
    weights = {"k": normal(4, 4, 1, 1), "scale": ONES, "bias": ZEROS, "mean": normal(4), "var": np.abs(normal(4)) + 1}
    nodes = [node("Conv", "x k", "c"), node("BatchNormalization", "c scale bias mean var", names, **attributes)]
    model = imported(tmp_path, nodes, {"x": ["N", 4, 2, 2]}, opset=opset, options={"loss": "mse"}, **weights)
    norm = next(o for o in model.graph.operators if o.op_type == "BatchNormalization")
    assert norm.attributes["training_mode"] == 1
    assert model.graph.state == dict(zip(norm.inputs[3:], norm.outputs[1:3], strict=True))
    assert set(norm.inputs[1:3]) < set(model.graph.parameters)
    plain = imported(tmp_path, nodes, {"x": ["N", 4, 2, 2]}, opset=opset, **weights)
    assert bool(plain.graph.state) == (results > 1), "without a loss a file keeps the mode that it has"


@pytest.mark.parametrize("opset", [6, 7, 10, 11, 12, 13, 22])
def test_dropout_trains_where_the_file_asks_for_it_or_leaves_it_open(opset: int, tmp_path: Path) -> None:
    def switched(attributes: dict[str, Any], extra: str = "", **weights: np.ndarray) -> list[bool]:
        nodes = [node("MatMul", "x w", "h"), node("Dropout", f"h{extra}", "y", **attributes)]
        options = {"loss": "mse"}
        model = imported(tmp_path, nodes, {"x": ["N", 4]}, opset=opset, options=options, w=normal(4, 4), **weights)
        [dropout] = [o for o in model.graph.operators if o.op_type == "Dropout"]
        if len(dropout.inputs) < 3 or not dropout.inputs[2]:
            return [False]
        return [bool(load_values(model, [dropout.inputs[2]])[dropout.inputs[2]])]

    if opset < 12:
        assert switched({"ratio": 0.3}) == [True]
        if opset < 7:
            assert switched({"ratio": 0.3, "is_test": 1}) == [False]
    else:
        ratio = {"ratio": np.float32(0.3)}
        assert switched({}, " ratio", **ratio) == [False]
        assert switched({}, " ratio on", on=np.asarray(True), **ratio) == [True]
        assert switched({}, " ratio on", on=np.asarray(False), **ratio) == [False]
