"""Normalisations that went into the convolution before them: the same numbers, fewer operators, and none where it is not exact."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import hpdlf
from hpdlf.exec.folding import Fold, inference
from hpdlf.exec.operators import step_context
from hpdlf.exec.prediction import Prediction, _windows
from hpdlf.exec.segments import build_segment
from hpdlf.models.onnxpp import Dim, Onnxpp, import_model, load_values
from hpdlf.models.zoo import resnet18


def network(
    *, kind: str = "Conv", group: int = 1, bias: bool = True, second_reader: bool = False, fed_weight: bool = False
) -> onnx.ModelProto:
    """x (batch, 4, 6, 6) -> convolution to 6 (or 4, where grouped) channels -> normalisation -> Relu."""
    rng = np.random.default_rng(3)
    channels = 4 if group > 1 else 6
    shape = (channels, 4 // group, 3, 3) if kind == "Conv" else (4, channels // group, 3, 3)
    values = {
        "w": rng.standard_normal(shape),
        "b": rng.standard_normal(channels),
        "scale": rng.uniform(0.5, 2, channels),
        "shift": rng.standard_normal(channels),
        "mean": rng.standard_normal(channels),
        "variance": rng.uniform(0.1, 3, channels),
    }
    weight = "x2" if fed_weight else "w"
    nodes = [
        helper.make_node(kind, ["x", weight, *(["b"] if bias else [])], ["c"], name="conv", group=group),
        helper.make_node(
            "BatchNormalization", ["c", "scale", "shift", "mean", "variance"], ["n"], name="norm", epsilon=1e-3
        ),
        helper.make_node("Relu", ["n"], ["y"], name="relu"),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    if second_reader:
        outputs.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, None))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 6, 6])]
    if fed_weight:
        inputs.append(helper.make_tensor_value_info("x2", TensorProto.FLOAT, list(shape)))
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "net",
        inputs,
        outputs,
        [numpy_helper.from_array(v.astype(np.float32), n) for n, v in values.items() if n in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def imported(model: onnx.ModelProto, **options: Any) -> Onnxpp:
    return import_model("net.onnx", content=model.SerializeToString(), **options)


def test_the_closed_form() -> None:
    """One channel, weight 2, bias 1; scale 3, shift 0.5, mean 4, variance 8 + epsilon 1: s = 3 / 3."""
    names = ("old_weight", "old_bias", "scale", "shift", "mean", "variance")
    fold = Fold(weight="W", bias="B", axis=0, epsilon=1.0, **{n: n for n in names})
    held = {
        "old_weight": np.full((1, 1, 1, 1), 2, np.float32),
        **{n: np.array([v], np.float32) for n, v in zip(names[1:], (1, 3, 0.5, 4, 8), strict=True)},
    }
    found = fold.values(held)
    assert found["W"].item() == 2.0
    assert found["B"].item() == 0.5 + (1 - 4) * 1.0
    assert found["W"].dtype == np.float32
    without = replace(fold, old_bias="").values(held)
    assert without["B"].item() == 0.5 - 4.0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"group": 2},
        {"group": 4},
        {"kind": "ConvTranspose"},
        {"kind": "ConvTranspose", "group": 2},
        {"second_reader": True},
    ],
)
def test_predictions_are_those_of_the_network(options: dict[str, Any]) -> None:
    model = network(**options)
    x = np.random.default_rng(1).standard_normal((3, 4, 6, 6), dtype=np.float32)
    expected = hpdlf.Backend.prepare(model).run([x])
    net = hpdlf.compile(model)
    found = net.predict(x)
    for name, wanted in zip(net.model.graph.outputs, expected, strict=True):
        got = found[name] if isinstance(found, dict) else found
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "folded"),
    [
        ({}, True),
        ({"group": 4}, True),
        ({"kind": "ConvTranspose"}, True),
        ({"kind": "ConvTranspose", "group": 2}, False),
        ({"second_reader": True}, False),
        ({"fed_weight": True}, False),
    ],
)
def test_only_what_is_exact_is_folded(options: dict[str, Any], folded: bool) -> None:
    graph = inference(imported(network(**options)).graph).graph
    assert ("BatchNormalization" not in {o.op_type for o in graph.operators}) == folded


def test_a_trained_network_predicts_by_its_running_statistics() -> None:
    model = imported(network(), loss="mse")
    assert model.graph.state
    found = inference(model.graph)
    assert [o.op_type for o in found.graph.operators] == ["Conv", "Relu"]
    assert found.graph.loss is None
    assert found.graph.state == {}
    assert found.graph.targets == ()
    assert set(found.reads) == {*model.graph.parameters, *model.graph.state}


def test_the_loss_can_be_asked_for() -> None:
    model = imported(network(), loss="mse")
    found = inference(model.graph, [str(model.graph.loss)])
    assert found.graph.outputs == (model.graph.loss,)
    assert set(model.graph.targets) <= set(found.graph.inputs)


def test_all_of_a_residual_network_is_folded() -> None:
    proto = resnet18(image=32, classes=10)
    graph = inference(imported(proto, loss="softmax_xent").graph).graph
    kinds = [o.op_type for o in graph.operators]
    assert kinds.count("BatchNormalization") == 0
    assert kinds.count("Conv") == 20


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
def test_weights_are_turned_once(kind: str) -> None:
    """Windows lie with channels last before the first call, and again when there are new ones; nothing is compiled in."""
    model = imported(network(kind=kind))
    held = load_values(model, (*model.graph.parameters, *model.graph.constants))
    x = np.random.default_rng(1).standard_normal((3, 4, 6, 6), dtype=np.float32)
    (expected,) = hpdlf.Backend.prepare(network(kind=kind)).run([x])
    predict = Prediction(model.graph, constants=held, held=held, precision="float32", seed=0)
    (name,) = predict._turned
    m, c, *window = inference(model.graph).graph.tensors[name].dims(1)
    for factor in (1.0, 2.0):
        predict.bind({**held, "scale": factor * held["scale"], "shift": factor * held["shift"]})
        assert predict._parameters[name].shape == (m, *window, c)
        found = np.asarray(predict({"x": x}, 3)["y"])
        np.testing.assert_allclose(found, factor * expected, rtol=1e-5, atol=1e-5)


def test_weights_that_others_read_stay_as_they_are() -> None:
    graph = imported(network(second_reader=True)).graph
    assert set(_windows(graph)) == {"w"}
    other = replace(graph.operators[-1], name="total", op_type="ReduceSum", inputs=("w",), outputs=("total",))
    assert not set(_windows(replace(graph, operators=(*graph.operators, other))))
    assert not set(_windows(replace(graph, outputs=("w",))))
    flat = replace(graph.tensors["w"], shape=(Dim(fixed=6), Dim(fixed=4), Dim(fixed=1), Dim(fixed=1)))
    assert not set(_windows(replace(graph, tensors={**graph.tensors, "w": flat})))  # it lies the same either way


def test_a_segment_takes_weights_with_channels_last() -> None:
    graph = inference(imported(network()).graph).graph
    whole = build_segment(graph, list(graph.operator), graph.inputs, graph.outputs, {}, "float32")
    (weight,) = (p for p in whole.parameters if "weight" in p)
    rng = np.random.default_rng(2)
    held = {p: rng.standard_normal(graph.tensors[p].dims(1), dtype=np.float32) for p in whole.parameters}
    context = step_context(seed=0, step=0, samples=np.arange(2), training=False)
    x = rng.standard_normal((2, 4, 6, 6), dtype=np.float32)
    turned = {**held, weight: np.moveaxis(held[weight], 1, -1)}
    mine, _ = whole.with_channels_last({weight, "no parameter of it"}).forward(turned, {}, {"x": x}, context)
    as_it_is, _ = whole.forward(held, {}, {"x": x}, context)
    np.testing.assert_allclose(mine["y"], as_it_is["y"], rtol=1e-6)
