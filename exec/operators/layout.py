"""Layouts: pictures with channels last through chains of operators.

ONNX keeps channels first, convolutions on a processor want them last, and XLA keeps every array in the order of its
dims: a transpose is a copy. So what a convolution makes stays as it is, as a :class:`ChannelsLast`, until an operator
comes that does not know of it. Each lowering says so with ``@lowers(..., layout=...)``:

first     the default: it gets arrays as ONNX has them
follows   element by element: operands are brought to the layout that one of them has
any       the function takes a :class:`ChannelsLast` as it takes an array, and may return one
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...models.onnxpp.graph import Operator

__all__ = [
    "ChannelsLast",
    "channel_sums",
    "channels_first",
    "channels_last",
    "followed",
    "normalised_in_training",
    "plus_channels",
]

# Sums over samples of so many terms are written out, so that XLA makes one loop of them.
MOST_TERMS = 16


@dataclass(frozen=True)
class ChannelsLast:
    """A tensor (N, C, *spatial) whose `array` is (N, *spatial, C)."""

    array: Array

    @property
    def dtype(self) -> Any:
        """Of its elements."""
        return self.array.dtype

    @property
    def ndim(self) -> int:
        """Number of dims."""
        return self.array.ndim

    @property
    def shape(self) -> tuple[int, ...]:
        """As ONNX counts: channels second."""
        n, *spatial, c = self.array.shape
        return (n, c, *spatial)

    def astype(self, dtype: Any) -> ChannelsLast:
        """With elements of another type."""
        return ChannelsLast(self.array.astype(dtype))


def channels_first(value: Any) -> Any:
    """The array as ONNX has it; everything else as it is."""
    return jnp.moveaxis(value.array, -1, 1) if isinstance(value, ChannelsLast) else value


def channels_last(value: Any) -> Array:
    """The array with channels last."""
    return value.array if isinstance(value, ChannelsLast) else jnp.moveaxis(jnp.asarray(value), 1, -1)


def followed(node: Operator, operands: Sequence[Any]) -> list[Any] | None:
    """Operands of an element-wise operator, all with channels last; None where they cannot be."""
    rank = next(v.ndim for v in operands if isinstance(v, ChannelsLast))
    if node.attributes.get("broadcast"):
        return None
    moved: list[Any] = []
    for value in operands:
        if value is None or isinstance(value, ChannelsLast):
            if value is not None and value.ndim != rank:
                return None
            moved.append(value if value is None else value.array)
            continue
        if not hasattr(value, "ndim") or value.ndim > rank:
            return None
        if value.ndim > 0:
            value = value.reshape((1,) * (rank - value.ndim) + value.shape)
            value = (np if isinstance(value, np.ndarray) else jnp).moveaxis(value, 1, -1)
        moved.append(value)
    return moved


# --- sums over everything but channels ---------------------------------------------------------------------------------


@jax.custom_vjp
def channel_sums(x: Array) -> Array:
    """(N, ..., C) -> (C,): samples are added up element by element, what is left is a product with ones. XLA's own sum
    over all dims but the last goes through memory column by column on a processor."""
    return _channel_sums(x)


def _channel_sums(x: Array) -> Array:
    samples = x.shape[0]
    parts = next((n for n in range(min(MOST_TERMS, samples), 1, -1) if samples % n == 0), 1)
    split = x.reshape(parts, -1, x.shape[-1])
    rest = reduce(add, [split[i] for i in range(parts)])
    return (jnp.ones((1, len(rest)), x.dtype) @ rest)[0]


def _channel_sums_forward(x: Array) -> tuple[Array, Array]:
    # An empty array carries the shape through the residuals.
    return _channel_sums(x), jnp.zeros((0, *x.shape), x.dtype)


def _channel_sums_backward(like: Array, gradient: Array) -> tuple[Array]:
    return (jnp.broadcast_to(gradient, like.shape[1:]),)


channel_sums.defvjp(_channel_sums_forward, _channel_sums_backward)


@jax.custom_vjp
def plus_channels(x: Array, bias: Array) -> Array:
    """x (N, ..., C) + bias (C,)."""
    return x + bias


def _plus_backward(_: None, gradient: Array) -> tuple[Array, Array]:
    return gradient, channel_sums(gradient)


plus_channels.defvjp(lambda x, bias: (x + bias, None), _plus_backward)


# --- batch normalisation -----------------------------------------------------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalised_in_training(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """x (N, ..., C) by the mean and variance of its channels: (y, mean, variance); no gradient through the last two."""
    y, mean, variance, _ = _normalised(x, scale, bias, epsilon)
    return y, mean, variance


def _normalised(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array, Array]:
    count = x.size // x.shape[-1]
    mean = channel_sums(x) / count
    variance = channel_sums(jnp.square(x - mean)) / count
    inverse = jax.lax.rsqrt(variance + jnp.asarray(epsilon, x.dtype))
    return (x - mean) * (inverse * scale) + bias, mean, variance, inverse


def _normalised_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Any, Any]:
    y, mean, variance, inverse = _normalised(x, scale, bias, epsilon)
    return (y, mean, variance), (x, scale, mean, inverse)


def _normalised_backward(epsilon: float, kept: Any, gradients: Any) -> tuple[Array, Array, Array]:
    """Ioffe and Szegedy 2015 (arXiv 1502.03167), section 3; what was normalised is computed again."""
    x, scale, mean, inverse = kept
    gradient = gradients[0]
    count = x.size // x.shape[-1]
    into_bias = channel_sums(gradient)
    into_scale = channel_sums(gradient * (x - mean)) * inverse
    along = into_scale * inverse / count
    into_x = (gradient - into_bias / count - (x - mean) * along) * (scale * inverse)
    return into_x, into_scale, into_bias


normalised_in_training.defvjp(_normalised_forward, _normalised_backward)
