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
from functools import reduce
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
    "folded",
    "followed",
    "largest_divisor",
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


def whole(value: Any) -> Any:
    """The same, computed once and kept, and so is its gradient."""
    if isinstance(value, jax.core.Tracer) and jnp.issubdtype(value.dtype, jnp.floating):
        return jax.lax.optimization_barrier(value)
    return value


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
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # a sum of many numbers rounds too much in 16 bits
    rest = folded(wide).reshape(-1, x.shape[-1])
    return (jnp.ones((1, len(rest)), wide.dtype) @ rest)[0].astype(x.dtype)


def largest_divisor(count: int, most: int = MOST_TERMS) -> int:
    """Of `count`, no more than `most`: into how many equal parts so many things are split to be added up."""
    return next((n for n in range(min(most, count), 1, -1) if count % n == 0), 1)


def folded(x: Array) -> Array:
    """(n, ...) -> (n / largest_divisor(n), ...): the parts added up, element by element."""
    parts = largest_divisor(len(x))
    split = x.reshape(parts, -1, *x.shape[1:])
    return reduce(add, [split[i] for i in range(parts)])


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
    gradient = jax.lax.optimization_barrier(gradient)
    return gradient, channel_sums(gradient)


plus_channels.defvjp(lambda x, bias: (x + bias, None), _plus_backward)
