"""Optimisers inside graphs, and gradients of the graph around them."""

from typing import Any

import numpy as np
import optax
import pytest
from onnx import helper, parser

from hpdlf.errors import ModelError
from hpdlf.exec.backend import Backend

DOMAIN = "ai.onnx.preview.training"


def update(op: str, *values: Any, **attributes: Any) -> list[np.ndarray]:
    kinds = 4 if op == "Adam" else 3
    count = (len(values) - 2) // kinds * (kinds - 1)
    node = helper.make_node(
        op, [f"x{i}" for i in range(len(values))], [f"y{i}" for i in range(count)], domain=DOMAIN, **attributes
    )
    return list(Backend.run_node(node, [np.asarray(v) for v in values], opset_version=1))


def test_adam_is_that_of_optax() -> None:
    rng = np.random.default_rng(0)
    x, gradients = rng.standard_normal(5).astype(np.float32), rng.standard_normal((3, 5)).astype(np.float32)
    optimiser = optax.adam(np.float32(0.1), eps=0)
    state, theirs = optimiser.init(x), x
    v = h = np.zeros(5, np.float32)
    for step, g in enumerate(gradients, 1):
        change, state = optimiser.update(g, state)
        theirs = optax.apply_updates(theirs, change)
        x, v, h = update("Adam", np.float32(0.1), np.int64(step), x, g, v, h, epsilon=0.0)
    np.testing.assert_allclose(x, theirs, rtol=1e-5)


def test_the_first_update_of_adam_is_not_corrected() -> None:
    x, _, _ = update("Adam", np.float32(0.1), np.int64(0), *np.float32([[1], [2], [0], [0]]), epsilon=0.0)
    np.testing.assert_allclose(x, 1 - 0.1 * 0.1 / np.sqrt(0.001), rtol=1e-5)


@pytest.mark.parametrize("mode", ["standard", "nesterov"])
def test_momentum_is_that_of_optax(mode: str) -> None:
    rng = np.random.default_rng(0)
    x, gradients = rng.standard_normal(5).astype(np.float32), rng.standard_normal((3, 5)).astype(np.float32)
    optimiser = optax.sgd(0.1, momentum=0.9, nesterov=mode == "nesterov")
    state, theirs, v = optimiser.init(x), x, np.zeros(5, np.float32)
    for step, g in enumerate(gradients):
        change, state = optimiser.update(g, state)
        theirs = optax.apply_updates(theirs, change)
        x, v = update(
            "Momentum", np.float32(0.1), np.int64(step), x, g, v, alpha=0.9, beta=1.0, norm_coefficient=0.0, mode=mode
        )
    np.testing.assert_allclose(x, theirs, rtol=1e-5)


def test_adagrad_of_two_tensors() -> None:
    results = update(
        "Adagrad",
        np.float32(0.5),
        np.int64(3),
        *np.float32([[1], [2], [3], [4], [5], [6]]),
        decay_factor=0.1,
        epsilon=0.0,
    )
    expected = [1 - 0.5 / 1.3 * 3 / np.sqrt(14), 2 - 0.5 / 1.3 * 4 / np.sqrt(22), 14, 22]
    np.testing.assert_allclose(np.ravel(results), expected, rtol=1e-6)


def test_operands_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ModelError, match="has 2 tensors; it needs 3 for each"):
        update("Adagrad", np.float32(0.5), np.int64(3), *np.float32([[1], [2]]))


GRAPH = """<ir_version: 10, opset_import: ["" : 21, "ai.onnx.preview.training" : 1]>
g (float x, float w, float[3] z) => (float dx, float dw, float second)
<float two = {2.0}>
{
    a = Mul(x, x)
    b = Mul(a, w)
    c = Pow(b, two)
    sum = ReduceSum<keepdims = 0>(z)
    y = Mul(c, sum)
    dx, dw = ai.onnx.preview.training.Gradient<xs = ["x", "w"], zs = ["z"], y = "y">(x, w, z)
    second = ai.onnx.preview.training.Gradient<xs = ["x"], y = "dw">(x)
}"""


def test_gradients_of_the_graph_and_of_gradients() -> None:
    # y = x⁴ w² s
    x, w, z = np.float32(1.5), np.float32(-2), np.float32([1, 2, 3])
    dx, dw, second = Backend.prepare(parser.parse_model(GRAPH)).run([x, w, z])
    np.testing.assert_allclose([dx, dw, second], [4 * x**3 * w**2 * 6, 2 * x**4 * w * 6, 8 * x**3 * w * 6], rtol=1e-5)


def test_gradients_at_other_values_than_the_graph_has() -> None:
    model = parser.parse_model(GRAPH.replace(">(x, w, z)", ">(w, x, z)"))
    dx, _, _ = Backend.prepare(model).run([np.float32(1.5), np.float32(-2), np.float32([1, 2, 3])])
    np.testing.assert_allclose(dx, 4 * (-2) ** 3 * 1.5**2 * 6, rtol=1e-5)


def test_a_gradient_of_what_is_not_computed_is_refused() -> None:
    model = parser.parse_model(GRAPH.replace('y = "y"', 'y = "nothing"'))
    with pytest.raises(ModelError, match="its graph does not compute 'nothing'"):
        Backend.prepare(model).run([np.float32(1), np.float32(1), np.zeros(3, np.float32)])
