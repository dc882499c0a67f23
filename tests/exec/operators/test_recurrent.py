"""RNN, LSTM and GRU: all variants against onnxruntime, gradients against differences."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from onnx import NodeProto, helper

from hpdlf.errors import ModelError
from hpdlf.exec.backend import Backend
from hpdlf.exec.operators import lowering, step_context
from hpdlf.models.onnxpp.bodies import operator_of

Compare = Callable[..., list[np.ndarray]]
GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}


def operands(
    op: str, directions: int, *, optional: bool, batch_first: bool = False, seed: int = 0
) -> dict[str, np.ndarray]:
    """Random operands: 5 steps, 3 samples, 4 inputs, 6 units."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return rng.uniform(-1, 1, shape).astype(np.float32)

    given = {"x": draw(5, 3, 4), "w": draw(directions, GATES[op] * 6, 4), "r": draw(directions, GATES[op] * 6, 6)}
    if optional:
        given["b"] = draw(directions, 2 * GATES[op] * 6)
        given["lengths"] = np.array([5, 2, 3], np.int32)
        given["h"] = draw(directions, 3, 6)
        if op == "LSTM":
            given["c"], given["p"] = draw(directions, 3, 6), draw(directions, 18)
    if batch_first:
        given.update({name: np.swapaxes(given[name], 0, 1).copy() for name in ("x", "h", "c") if name in given})
    return given


def node_of(op: str, given: dict[str, np.ndarray], **attributes: object) -> NodeProto:
    outputs = ["y", "yh", "yc"] if op == "LSTM" else ["y", "yh"]
    return helper.make_node(op, list(given), outputs, hidden_size=6, **attributes)


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize(("direction", "optional"), [("forward", False), ("reverse", True), ("bidirectional", True)])
def test_like_onnxruntime(op: str, direction: str, optional: bool, like_onnxruntime: Compare) -> None:
    given = operands(op, 2 if direction == "bidirectional" else 1, optional=optional)
    like_onnxruntime(node_of(op, given, direction=direction), given, opset=14)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("GRU", {"linear_before_reset": 1, "clip": 0.3}),
        ("GRU", {"clip": 0.2}),
        ("RNN", {"clip": 0.4}),
        ("LSTM", {"input_forget": 1}),
        ("LSTM", {"clip": 0.3}),
        (
            "LSTM",
            {
                "activations": ["HardSigmoid", "LeakyRelu", "Elu", "Sigmoid", "ScaledTanh", "Softsign"],
                "activation_alpha": [0.3, 0.1, 0.6, 0.7],
                "activation_beta": [0.4, 0.5],
            },
        ),
        (
            "LSTM",
            {
                "activations": ["Affine", "Relu", "Softplus", "HardSigmoid", "ThresholdedRelu", "Tanh"],
                "activation_alpha": [0.7, 0.25, 0.3],
                "activation_beta": [0.1, 0.4],
            },
        ),
        ("GRU", {"activations": ["HardSigmoid", "Softsign"]}),
    ],
)
def test_variants_like_onnxruntime(op: str, attributes: dict[str, object], like_onnxruntime: Compare) -> None:
    both = len(attributes.get("activations", ())) == 6  # type: ignore[arg-type]
    given = operands(op, 2 if both else 1, optional=True, seed=1)
    node = node_of(op, given, direction="bidirectional" if both else "forward", **attributes)
    like_onnxruntime(node, given, opset=14)


@pytest.mark.parametrize("op", GATES)
def test_batch_first_is_the_same_with_axes_swapped(op: str) -> None:
    first, second = operands(op, 2, optional=True), operands(op, 2, optional=True, batch_first=True)
    names = {"direction": "bidirectional"}
    one = Backend.run_node(node_of(op, first, **names), list(first.values()), opset_version=22)
    other = Backend.run_node(node_of(op, second, layout=1, **names), list(second.values()), opset_version=22)
    np.testing.assert_allclose(np.transpose(one[0], (2, 0, 1, 3)), other[0], rtol=1e-6)
    for a, b in zip(one[1:], other[1:], strict=True):
        np.testing.assert_allclose(np.swapaxes(a, 0, 1), b, rtol=1e-6)


@pytest.mark.parametrize("op", GATES)
def test_gradients_agree_with_differences(op: str, x64: None, check_gradients: Callable[..., Any]) -> None:
    given = operands(op, 1, optional=True)
    node = operator_of(node_of(op, given), {"": 22}, "a node")
    values = {n: v.astype(np.float64) if v.dtype == np.float32 else v for n, v in given.items()}
    function, context = lowering(node, 22), step_context(seed=0, step=0, samples=np.arange(3))
    floats = {n: v for n, v in values.items() if v.dtype == np.float64}

    def results(*moving: jax.Array) -> tuple[jax.Array, ...]:
        operands = values | dict(zip(floats, moving, strict=True))
        return function(node, *(operands[n] for n in given), context=context)

    check_gradients(results, *floats.values())


def test_an_unknown_activation_is_refused() -> None:
    given = operands("RNN", 1, optional=False)
    with pytest.raises(ModelError, match="activation 'Sine'; the standard knows affine, elu"):
        Backend.run_node(node_of("RNN", given, activations=["Sine"]), list(given.values()))


def test_weights_that_do_not_fit_the_direction_are_refused() -> None:
    given = operands("GRU", 1, optional=False)
    with pytest.raises(ModelError, match=r"must have 2 direction\(s\) of 3 gates"):
        Backend.run_node(node_of("GRU", given, direction="bidirectional"), list(given.values()))
