"""Element by element: arithmetic, activations, comparisons, logic. Inputs broadcast as NumPy does."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...models.onnxpp.graph import Operator
from .layout import plus_channels
from .registry import Value, lowers, text

__all__ = ["clip"]


@jax.custom_vjp
def _relu(x: Any) -> Array:
    """x where positive, else 0. Its gradient reads the result, which the next operator keeps anyway; at 0 it is 0."""
    return jnp.maximum(x, 0)


def _relu_forward(x: Any) -> tuple[Array, Array]:
    y = jnp.maximum(x, 0)
    return y, y


def _relu_backward(y: Array, gradient: Array) -> tuple[Array]:
    return (jnp.where(y > 0, gradient, 0),)


_relu.defvjp(_relu_forward, _relu_backward)


def _floats(x: Any) -> Any:
    """Whole numbers as float32, floats as they are."""
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32)


# Operators that are one function of one tensor.
_UNARY: dict[str, Callable[[Any], Any]] = {
    "Abs": jnp.abs,
    "Acos": jnp.arccos,
    "Acosh": jnp.arccosh,
    "Asin": jnp.arcsin,
    "Asinh": jnp.arcsinh,
    "Atan": jnp.arctan,
    "Atanh": jnp.arctanh,
    "BitwiseNot": jnp.bitwise_not,
    "Ceil": jnp.ceil,
    "Cos": jnp.cos,
    "Cosh": jnp.cosh,
    "Erf": lambda x: lax.erf(_floats(x)).astype(x.dtype),
    "Exp": jnp.exp,
    "Floor": jnp.floor,
    "IsNaN": jnp.isnan,
    "Log": jnp.log,
    "Neg": jnp.negative,
    "Not": jnp.logical_not,
    "Reciprocal": lambda x: 1 / x,
    "Relu": _relu,
    "Round": jnp.round,
    "Sigmoid": jax.nn.sigmoid,
    "Sign": jnp.sign,
    "Sin": jnp.sin,
    "Sinh": jnp.sinh,
    "Softplus": jax.nn.softplus,
    "Softsign": lambda x: x / (1 + jnp.abs(x)),
    "Sqrt": jnp.sqrt,
    "Tan": jnp.tan,
    "Tanh": jnp.tanh,
    # Checkpointed: the gradient computes again what lies between, which costs less than to keep it.
    "HardSwish": jax.checkpoint(lambda x: x * jnp.clip(x / 6 + 0.5, 0, 1)),
    "Mish": jax.checkpoint(lambda x: x * jnp.tanh(jax.nn.softplus(x))),
    "Identity": lambda x: x,
}


def _divided(a: Any, b: Any) -> Array:
    """Quotient; of integers the one that truncates towards zero."""
    a, b = jnp.broadcast_arrays(a, b)
    return lax.div(a, b)


def _added(a: Any, b: Any) -> Array:
    """The sum. What has one number per channel (the last dim) has a gradient that is a sum over everything else."""
    for x, summand in ((a, b), (b, a)):
        wide = x.shape[-1:] if x.ndim > 1 else ()
        if wide and summand.shape[-1:] == wide == (summand.size,) and x.dtype == summand.dtype:
            return plus_channels(jnp.asarray(x), jnp.asarray(summand).reshape(-1))
    return jnp.add(a, b)


_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "Add": _added,
    "And": jnp.logical_and,
    "BitwiseAnd": jnp.bitwise_and,
    "BitwiseOr": jnp.bitwise_or,
    "BitwiseXor": jnp.bitwise_xor,
    "Div": _divided,
    "Equal": jnp.equal,
    "Greater": jnp.greater,
    "GreaterOrEqual": jnp.greater_equal,
    "Less": jnp.less,
    "LessOrEqual": jnp.less_equal,
    "Mul": jnp.multiply,
    "Or": jnp.logical_or,
    "Sub": jnp.subtract,
    "Xor": jnp.logical_xor,
}

_VARIADIC: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    "Max": lambda values: reduce(jnp.maximum, values),
    "Mean": lambda values: reduce(jnp.add, values) / len(values),
    "Min": lambda values: reduce(jnp.minimum, values),
    "Sum": lambda values: reduce(jnp.add, values),
}


def _aligned(node: Operator, a: Any, b: Any) -> Any:
    """b with dims of 1 behind its last, so that its first stands at a's `axis`: how it broadcast before opset 7."""
    axis = node.attributes.get("axis")
    if axis is None or not node.attributes.get("broadcast", 0):
        return b
    start = int(axis) % max(a.ndim, 1)
    return b.reshape(b.shape + (1,) * max(a.ndim - start - b.ndim, 0))


def _register_tables() -> None:
    for op_type, unary in _UNARY.items():
        lowers(op_type, layout="follows")(lambda node, x, _f=unary: _f(x))
    for op_type, binary in _BINARY.items():
        lowers(op_type, layout="follows")(lambda node, a, b, _f=binary: _f(a, _aligned(node, a, b)))
    for op_type, variadic in _VARIADIC.items():
        lowers(op_type, layout="follows")(lambda node, *values, _f=variadic: jnp.asarray(_f(values)))


_register_tables()


@lowers("BitShift", since=11)
def bit_shift(node: Operator, x: Value, places: Value) -> Array:
    """The bits of x moved LEFT or RIGHT (`direction`); a sign stays. By fewer than 0 or all places: out, all of them."""
    x, places = jnp.broadcast_arrays(x, places)
    bits = jnp.iinfo(x.dtype).bits
    inside = (places >= 0) & (places < bits)
    by = jnp.where(inside, places, 0)
    if text(node, "direction", "LEFT") == "LEFT":
        return jnp.where(inside, lax.shift_left(x, by), 0)
    if jnp.issubdtype(x.dtype, jnp.unsignedinteger):
        return jnp.where(inside, lax.shift_right_logical(x, by), 0)
    return jnp.where(inside, lax.shift_right_arithmetic(x, by), jnp.where(x < 0, -1, 0).astype(x.dtype))


@lowers("Pow")
def power(node: Operator, x: Array, exponent: Value) -> Array:
    """x ** exponent in the dtype of x; a known whole exponent needs no logarithm: negative bases have gradients."""
    exponent = _aligned(node, x, exponent)
    if isinstance(exponent, np.ndarray) and exponent.size == 1 and exponent.ndim <= jnp.ndim(x):
        known = float(exponent.reshape(()))
        if known.is_integer() and abs(known) <= 16 and jnp.issubdtype(x.dtype, jnp.floating):
            return lax.integer_pow(x, int(known))
    return jnp.power(x, exponent).astype(x.dtype)


@lowers("LeakyRelu", layout="follows")
def leaky_relu(node: Operator, x: Array) -> Array:
    """x where positive, alpha x elsewhere."""
    return jnp.where(x >= 0, x, node.attributes.get("alpha", 0.01) * x)


@lowers("PRelu", since=7, layout="follows")
def prelu(node: Operator, x: Array, slope: Array) -> Array:
    """x where positive, slope x elsewhere."""
    return jnp.where(x >= 0, x, slope * x)


@lowers("PRelu")
def prelu_by_channel(node: Operator, x: Array, slope: Array) -> Array:
    """Before opset 7 there is one slope, or one for each channel (axis 1)."""
    by_channel = jnp.ndim(slope) == 1 and slope.size > 1 and x.ndim > 1
    return prelu(node, x, jnp.reshape(slope, (-1, *(1,) * (x.ndim - 2))) if by_channel else slope)


@lowers("ThresholdedRelu", layout="follows")
def thresholded_relu(node: Operator, x: Array) -> Array:
    """x above alpha, 0 elsewhere."""
    return jnp.where(x > node.attributes.get("alpha", 1.0), x, 0)


@lowers("HardSigmoid", layout="follows")
def hard_sigmoid(node: Operator, x: Array) -> Array:
    """alpha x + beta, clipped to 0..1."""
    return jnp.clip(node.attributes.get("alpha", 0.2) * x + node.attributes.get("beta", 0.5), 0, 1)


@lowers("Shrink", since=9)
def shrink(node: Operator, x: Array) -> Array:
    """x pulled towards 0 by `bias` where it is further than `lambd` from it, else 0."""
    lambd, bias = node.attributes.get("lambd", 0.5), node.attributes.get("bias", 0.0)
    return jnp.where(x > lambd, x - bias, jnp.where(x < -lambd, x + bias, 0)).astype(x.dtype)


@lowers("Elu", layout="follows")
def elu(node: Operator, x: Array) -> Array:
    """x where positive, alpha (exp(x) - 1) elsewhere."""
    return jnp.where(x > 0, x, node.attributes.get("alpha", 1.0) * _expm1_of_negative(x))


@lowers("Celu", layout="follows")
def celu(node: Operator, x: Array) -> Array:
    """x where positive, alpha (exp(x / alpha) - 1) elsewhere."""
    alpha = node.attributes.get("alpha", 1.0)
    return jnp.where(x > 0, x, alpha * _expm1_of_negative(x / alpha))


@lowers("Selu", layout="follows")
def selu(node: Operator, x: Array) -> Array:
    """gamma (x where positive, alpha (exp(x) - 1) elsewhere)."""
    alpha = node.attributes.get("alpha", 1.67326319217681884765625)
    return node.attributes.get("gamma", 1.05070102214813232421875) * jnp.where(x > 0, x, alpha * _expm1_of_negative(x))


def _expm1_of_negative(x: Array) -> Array:
    """exp(x) - 1 where x is negative, else 0: the branch not taken must not overflow, or its gradient is NaN."""
    return jnp.expm1(jnp.minimum(x, 0))


@lowers("Gelu", since=20, layout="follows")
def gelu(node: Operator, x: Array) -> Array:
    """x times the normal distribution function of x, or its tanh approximation."""
    if text(node, "approximate", "none") == "tanh":
        return jax.checkpoint(lambda x: jax.nn.gelu(x, approximate=True))(x)
    # JAX's own goes by erfc, which takes more than twice as long on a processor.
    half, root = jnp.asarray(0.5, x.dtype), jnp.asarray(np.sqrt(0.5), x.dtype)
    return jax.checkpoint(lambda x: half * x * (1 + lax.erf(x * root)))(x)


@lowers("Swish", since=24, layout="follows")
def swish(node: Operator, x: Array) -> Array:
    """x sigmoid(alpha x)."""
    alpha = node.attributes.get("alpha", 1.0)
    return jax.checkpoint(lambda x: x * jax.nn.sigmoid(alpha * x))(x)


@lowers("Clip", layout="follows")
def clip_by_attribute(node: Operator, x: Array) -> Array:
    """x between the attributes `min` and `max`."""
    return jnp.clip(x, node.attributes.get("min"), node.attributes.get("max"))


@lowers("Clip", since=11, layout="follows")
def clip(node: Operator, x: Array, low: Value | None = None, high: Value | None = None) -> Array:
    """x between two scalars, either of which may be absent; `high` wins where they cross."""
    return jnp.clip(x, low, high)


@lowers("Where", since=9)
def where(node: Operator, condition: Array, x: Array, y: Array) -> Array:
    """x where the condition holds, else y."""
    return jnp.where(condition, x, y)


@lowers("IsInf", since=10)
def is_inf(node: Operator, x: Array) -> Array:
    """Whether x is infinite, of the signs asked for."""
    positive, negative = node.attributes.get("detect_positive", 1), node.attributes.get("detect_negative", 1)
    return jnp.isinf(x) & (((x > 0) & bool(positive)) | ((x < 0) & bool(negative)))


@lowers("Mod", since=10)
def mod(node: Operator, a: Array, b: Array) -> Array:
    """Remainder with the sign of the divisor, or with fmod=1 of the dividend."""
    return jnp.fmod(a, b) if node.attributes.get("fmod", 0) else jnp.mod(a, b)
