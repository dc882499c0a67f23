"""Gradients against finite differences in 64 bits, and closed forms where there are any."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hpdlf.exec.operators import convolution, lowering, step_context
from hpdlf.exec.operators.layout import channels_first
from hpdlf.exec.operators.window import window_of
from hpdlf.models.onnxpp import Operator

Check = Callable[..., None]

pytestmark = pytest.mark.usefixtures("x64")


def node(op_type: str, n_outputs: int = 1, **attributes: Any) -> Operator:
    outputs = tuple(f"y{i}" for i in range(n_outputs))
    return Operator(
        name="n", op_type=op_type, family="elementwise", inputs=("x",), outputs=outputs, attributes=attributes
    )


@pytest.fixture
def check(check_gradients: Check) -> Check:
    """check(operator, *operands, fixed=(), opset=20): the first output's gradients; `fixed` operands follow the others."""

    def run(operator: Operator, *operands: np.ndarray, fixed: tuple[Any, ...] = (), opset: int = 20) -> None:
        function, context = lowering(operator, opset), step_context(seed=0, step=0, samples=np.arange(2))
        check_gradients(lambda *moving: function(operator, *moving, *fixed, context=context)[0], *operands)

    return run


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def distinct(*shape: int) -> np.ndarray:
    """Values so far apart that a finite difference changes no maximum."""
    return np.random.default_rng(1).permutation(np.prod(shape)).reshape(shape).astype(float) / 10


# x, w, attributes
CONVOLUTIONS = {
    "matmul": ((2, 3, 5, 4), (4, 3, 1, 1), {"strides": (2, 1)}),
    "im2col": ((2, 3, 5, 4), (4, 3, 3, 2), {"pads": (1, 0, 1, 2), "strides": (2, 1)}),
    "taps": ((1, 9, 9, 8), (2, 9, 3, 3), {"pads": (1, 1, 1, 1)}),
    "xla": ((1, 8, 19, 17), (1, 8, 3, 3), {"dilations": (2, 1)}),
    "long": ((1, 1, 300), (2, 1, 100), {"strides": (50,)}),
    "groups": ((2, 4, 5, 5), (6, 2, 3, 3), {"group": 2, "strides": (2, 2), "pads": (1, 1, 1, 1)}),
    "one_dim": ((2, 3, 9), (4, 3, 3), {"auto_pad": "SAME_UPPER", "strides": (2,)}),
    "three_dims": ((1, 2, 4, 5, 4), (3, 2, 2, 3, 2), {"pads": (0, 1, 0, 1, 1, 0)}),
}


# How some of them are computed, whatever would be expected to be the fastest.
WAYS = {
    **{way: dict.fromkeys(("forward", "input", "weight"), way) for way in ("matmul", "im2col", "xla")},
    "taps": {"weight": "taps"},
    "groups": {"forward": "split", "input": "split"},
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution(case: str, check: Check) -> None:
    x, w, attributes = CONVOLUTIONS[case]
    operator = replace(node("Conv", **attributes), lowering=WAYS.get(case, {}))
    check(operator, normal(*x), normal(*w, seed=1), normal(w[0], seed=2))


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_is_what_xla_computes(case: str) -> None:
    x_shape, w_shape, attributes = CONVOLUTIONS[case]
    operator = replace(node("Conv", **attributes), lowering=WAYS.get(case, {}))
    x, w = normal(*x_shape), normal(*w_shape, seed=1)
    window = window_of(operator, x.shape[2:], w.shape[2:])

    @jax.jit
    def both(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        wanted = jax.lax.conv_general_dilated(
            x,
            w,
            window.strides,
            window.pads,
            rhs_dilation=window.dilations,
            feature_group_count=attributes.get("group", 1),
        )
        return channels_first(convolution.conv(operator, x, w)), wanted

    found, wanted = both(x, w)
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_convolution_transpose(check: Check) -> None:
    attributes = {"strides": (2, 1), "pads": (1, 0, 0, 1), "output_padding": (1, 0)}
    check(node("ConvTranspose", **attributes), normal(2, 3, 4, 3), normal(3, 2, 3, 2, seed=1))


@pytest.mark.parametrize(
    "attributes",
    [
        {"kernel_shape": (2, 2), "strides": (2, 2)},
        {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)},
        {"kernel_shape": (2, 3), "dilations": (2, 1), "pads": (0, 1, 1, 0)},
        {"kernel_shape": (3, 2), "strides": (3, 2), "ceil_mode": 1},
    ],
    ids=["tiling", "overlapping", "dilated", "ceiling"],
)
@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool"])
def test_pooling(op_type: str, attributes: dict[str, Any], check: Check) -> None:
    check(node(op_type, **attributes), distinct(2, 2, 7, 5))


def test_tiling_pool_ignores_what_no_window_reads() -> None:
    """Of 5 x 5 a 2 x 2 pool reads 4 x 4: the last row and column have no gradient."""
    operator = node("MaxPool", kernel_shape=(2, 2), strides=(2, 2))
    function, context = lowering(operator, 20), step_context(seed=0, step=0, samples=np.arange(1))
    x = distinct(1, 1, 5, 5)
    gradient = jax.jit(jax.grad(lambda x: function(operator, x, context=context)[0].sum()))(x)
    assert gradient.sum() == 4
    assert not np.any(gradient[..., 4, :]) and not np.any(gradient[..., 4])  # noqa: PT018


def test_equal_maxima_give_the_gradient_to_the_first() -> None:
    operator = node("MaxPool", kernel_shape=(2, 2), strides=(2, 2))
    function, context = lowering(operator, 20), step_context(seed=0, step=0, samples=np.arange(1))
    gradient = jax.jit(jax.grad(lambda x: function(operator, x, context=context)[0].sum()))(jnp.zeros((1, 1, 2, 2)))
    np.testing.assert_array_equal(gradient[0, 0], [[1, 0], [0, 0]])


def test_gemm(check: Check) -> None:
    operator = node("Gemm", transA=1, transB=1, alpha=0.5, beta=2.0)
    check(operator, normal(3, 4), normal(5, 3, seed=1), normal(5, seed=2))


def test_batch_normalization_in_training(check: Check) -> None:
    operator = node("BatchNormalization", n_outputs=3, training_mode=1, momentum=0.75)
    x, scale, bias = normal(4, 3, 2, 2), normal(3, seed=1), normal(3, seed=2)
    running = (np.zeros(3), np.ones(3))
    check(operator, x, scale, bias, fixed=running)
    context = step_context(seed=0, step=0, samples=np.arange(4))
    function = jax.jit(lambda *given: lowering(operator, 20)(operator, *given, context=context))
    y, mean, variance = function(x, scale, bias, *running)
    np.testing.assert_allclose(mean, 0.25 * x.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(variance, 0.75 + 0.25 * x.var((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(np.mean(y, (0, 2, 3)), bias, atol=1e-12)


@pytest.mark.parametrize("op_type", ["LayerNormalization", "InstanceNormalization"])
def test_normalization(op_type: str, check: Check) -> None:
    size = 4 if op_type == "LayerNormalization" else 3
    check(node(op_type), normal(2, 3, 4), normal(size, seed=1), normal(size, seed=2))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignore_index", [None, 1])
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0)])
def test_cross_entropy(
    reduction: str, ignore_index: int | None, weights: tuple[float, ...] | None, check: Check
) -> None:
    attributes: dict[str, Any] = {"reduction": reduction}
    if ignore_index is not None:
        attributes["ignore_index"] = ignore_index
    fixed = (np.array([[0, 1], [2, 1]]), None if weights is None else np.array(weights))
    check(node("SoftmaxCrossEntropyLoss", **attributes), normal(2, 3, 2), fixed=fixed)


@pytest.mark.parametrize(
    "op_type",
    ["Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSwish", "Elu", "Selu", "Softplus", "Softsign", "Gelu", "Erf"],
)
def test_activation(op_type: str, check: Check) -> None:
    check(node(op_type), np.array([-3.5, -1.2, -0.3, 0.4, 1.1, 40.0]))


def test_relu_has_no_gradient_at_zero_and_elu_no_nan_far_away() -> None:
    context = step_context(seed=0, step=0, samples=np.arange(1))
    for op_type, x, wanted in (("Relu", 0.0, 0.0), ("Elu", 1e4, 1.0), ("Selu", 1e4, 1.05070102214813232421875)):
        operator = node(op_type)
        gradient = jax.grad(lambda v, o=operator: lowering(o, 20)(o, v, context=context)[0])(x)
        assert float(gradient) == wanted


def test_whole_powers_of_negative_numbers_have_gradients(check: Check) -> None:
    check(node("Pow"), np.array([-2.0, -0.5, 0.0, 1.5]), fixed=(np.array(3.0),))


def test_what_moves_and_sums_numbers(check: Check) -> None:
    x = distinct(3, 4)
    for attributes in ({}, {"exclusive": 1}, {"reverse": 1}, {"exclusive": 1, "reverse": 1}):
        check(node("CumSum", **attributes), x, fixed=(np.array(1),))
        check(node("CumProd", **attributes), x + 1, fixed=(np.array(0),), opset=26)
    check(node("Trilu"), x, fixed=(np.array(1),))
    check(node("Det"), normal(2, 3, 3))
    check(node("TopK", 2), x, fixed=(np.array([2]),))
    check(node("TopK", 2, largest=0, axis=0), x, fixed=(np.array([2]),))


def test_scales_of_quantised_weights(check_gradients: Check) -> None:
    stored = np.random.default_rng(0).integers(-9, 9, (3, 4)).astype(np.int8)
    operator = node("DequantizeLinear", axis=0)
    function, context = lowering(operator, 21), step_context(seed=0, step=0, samples=np.arange(2))
    check_gradients(lambda s: function(operator, stored, s, context=context)[0], normal(3))


# Where a branch that is not taken divides by 0, or overflows.
EDGES = np.array([0, -0.0, 1, -1, 3, -3, 50, -50, 800, -800, 1e-30])


@pytest.mark.parametrize(
    "op_type",
    [
        "Abs", "Celu", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "LogSoftmax", "LpNormalization",
        "Mish", "ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceProd", "Relu", "Selu", "Shrink", "Sigmoid", "Softmax",
        "Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu",
    ],
)  # fmt: skip
def test_gradients_are_numbers_everywhere(op_type: str) -> None:
    operator = node(op_type)
    function, context = lowering(operator, 24), step_context(seed=0, step=0, samples=np.arange(1))
    gradients = jax.jit(jax.grad(lambda given: sum(jnp.sum(function(operator, x, context=context)[0]) for x in given)))
    for gradient in gradients((EDGES, np.zeros(3))):
        assert np.isfinite(gradient).all(), gradient
