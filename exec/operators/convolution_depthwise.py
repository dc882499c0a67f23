"""Depthwise convolutions as sums of shifted pictures: one channel in each group, nothing to multiply matrices for.

Channels last: x (N, *size, C), kernel (M, *kernel, 1), y (N, *output, M), where each of the C channels has M / C filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add

import jax.numpy as jnp
from jax import Array, lax

from ...models.cost.lowerings import Convolution
from .convolution_products import placed, positions, window_of_shape
from .layout import channel_sums, equal_parts, folded
from .window import padded, taps

__all__ = ["shifted_forward", "shifted_input", "shifted_weight"]


def shifted_forward(x: Array, kernel: Array, conv: Convolution) -> Array:
    """What each place of the window saw, times its weight, added up."""
    window = window_of_shape(conv)
    weights = kernel.reshape(conv.filters, -1).T
    seen = taps(padded(x, window, 0), window)
    return reduce(add, (_each_filter(tap, conv) * weight for tap, weight in zip(seen, weights, strict=True)))


def shifted_input(gradient: Array, kernel: Array, conv: Convolution) -> Array:
    """The gradient times each place's weight, put back to where that place saw, added up."""
    weights = kernel.reshape(conv.filters, -1).T
    parts = (
        placed(_each_channel(gradient * weight, conv), position, conv)
        for position, weight in zip(positions(conv), weights, strict=True)
    )
    return reduce(add, parts)


def shifted_weight(x: Array, gradient: Array, conv: Convolution) -> Array:
    """Per place of the window, the sum over samples and positions of what it saw times the gradient.

    A loop goes over samples or over rows of pictures (what lies along the first spatial dim), whichever are fewer, and
    adds up the others element by element, so that what it reads stays in the cache. XLA's own sum over all dims but the
    last runs column by column on a processor.
    """
    x = padded(x, window_of_shape(conv), 0)
    by_row = conv.output[0] <= conv.samples
    turns, others = sorted((conv.output[0], conv.samples))
    zeros = jnp.zeros((others // equal_parts(others), *gradient.shape[2:]), gradient.dtype)

    def turn(i: Array, totals: tuple[Array, ...]) -> tuple[Array, ...]:
        new = []
        for total, position in zip(totals, positions(conv), strict=True):
            seen, arrived = _rows(x, gradient, position, i, conv, by_row)
            new.append(total + folded(_each_filter(seen, conv) * arrived))
        return tuple(new)

    totals = lax.fori_loop(0, turns, turn, tuple(zeros for _ in positions(conv)))
    return jnp.stack([channel_sums(total) for total in totals], axis=-1).reshape(conv.filters, *conv.kernel, 1)


def _rows(
    x: Array, gradient: Array, position: Sequence[int], turn: Array, conv: Convolution, by_row: bool
) -> tuple[Array, Array]:
    """Of one sample every row, or of every sample one row: what the place saw and the gradient there, both (samples or
    rows, *rest of the output, channels or filters)."""
    first, stride = position[0] * conv.dilations[0], conv.strides[0]
    if by_row:
        rows = lax.dynamic_index_in_dim(x, turn * stride + first, 1, keepdims=False)
        arrived = lax.dynamic_index_in_dim(gradient, turn, 1, keepdims=False)
    else:
        rows = lax.dynamic_index_in_dim(x, turn, 0, keepdims=False)
        rows = lax.slice_in_dim(rows, first, first + (conv.output[0] - 1) * stride + 1, stride)
        arrived = lax.dynamic_index_in_dim(gradient, turn, 0, keepdims=False)
    for axis, k in enumerate(position[1:], start=1):
        begin, step = k * conv.dilations[axis], conv.strides[axis]
        rows = lax.slice_in_dim(rows, begin, begin + (conv.output[axis] - 1) * step + 1, step, axis)
    return rows, arrived


def _each_filter(x: Array, conv: Convolution) -> Array:
    """(..., C) -> (..., M): each channel once for each of its filters."""
    times = conv.filters // conv.channels
    return x if times == 1 else jnp.repeat(x, times, axis=-1)


def _each_channel(y: Array, conv: Convolution) -> Array:
    """(..., M) -> (..., C): the sum over the filters of each channel."""
    times = conv.filters // conv.channels
    return y if times == 1 else y.reshape(*y.shape[:-1], conv.channels, times).sum(-1)
