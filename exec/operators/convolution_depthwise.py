"""Depthwise convolutions as sums of shifted pictures: one channel in each group, nothing to multiply matrices for.

Channels last: x (N, *size, C), kernel (M, *kernel, 1), y (N, *output, M), where each of the C channels has M / C filters.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import product
from operator import add

import jax.numpy as jnp
from jax import Array, lax

from ...models.cost.lowerings import Convolution
from .convolution_products import positions, window_of_shape
from .layout import channel_sums, folded, largest_divisor
from .window import padded, taps

__all__ = ["rows_weight", "shifted_forward", "shifted_input", "shifted_weight"]

# What of the gradient is read for all places of the window before the next part is: it and its inputs stay in the cache.
BLOCK_BYTES = 64 << 10


def shifted_forward(x: Array, kernel: Array, conv: Convolution) -> Array:
    """What each place of the window saw, times its weight, added up."""
    window = window_of_shape(conv)
    weights = kernel.reshape(conv.filters, -1).T
    seen = taps(padded(x, window, 0), window)
    return reduce(add, (_each_filter(tap, conv) * weight for tap, weight in zip(seen, weights, strict=True)))


def shifted_input(gradient: Array, kernel: Array, conv: Convolution) -> Array:
    """The elements of x that lie a stride apart were seen by the same places of the window: of each such phase a sum of the
    gradient, shifted, times these places' weights; then the phases are interleaved."""
    weights = kernel.reshape(conv.filters, -1).T
    phases = list(product(*map(range, conv.strides)))
    counts = [-(-n // s) for n, s in zip(conv.size, conv.strides, strict=True)]
    shifts = {(p, k): _shift(p, k, conv) for p in phases for k in positions(conv)}
    known = [shift for shift in shifts.values() if shift is not None]
    before = [max(0, *(-shift[i] for shift in known)) for i in range(len(counts))]
    after = [
        max(0, *(shift[i] + n - o for shift in known)) for i, (n, o) in enumerate(zip(counts, conv.output, strict=True))
    ]
    config = [(0, 0, 0), *((a, z, 0) for a, z in zip(before, after, strict=True)), (0, 0, 0)]
    whole = lax.optimization_barrier(lax.pad(gradient, jnp.zeros((), gradient.dtype), config))

    def phase(p: tuple[int, ...]) -> Array:
        total = jnp.zeros((conv.samples, *counts, conv.channels), gradient.dtype)
        for weight, k in zip(weights, positions(conv), strict=True):
            shift = shifts[p, k]
            if shift is not None:
                begin = [b + s for b, s in zip(before, shift, strict=True)]
                end = [b + n for b, n in zip(begin, counts, strict=True)]
                seen = lax.slice(whole, [0, *begin, 0], [conv.samples, *end, conv.filters])
                total = total + _each_channel(seen * weight, conv)
        return total

    x = _interleaved([phase(p) for p in phases], conv.strides)
    return x[(slice(None), *(slice(n) for n in conv.size))]


def _shift(phase: tuple[int, ...], position: tuple[int, ...], conv: Convolution) -> tuple[int, ...] | None:
    """From an element of this phase, counted within it, to the output whose window saw it at `position`; None: no window did."""
    found = []
    for p, k, (pad, _), stride, dilation in zip(phase, position, conv.pads, conv.strides, conv.dilations, strict=True):
        shift, rest = divmod(p + pad - k * dilation, stride)
        if rest:
            return None
        found.append(shift)
    return tuple(found)


def _interleaved(parts: list[Array], strides: tuple[int, ...]) -> Array:
    """Phases in row-major order, each (N, *counts, C) -> (N, *(counts * strides), C)."""
    for axis in range(len(strides), 0, -1):
        groups = [parts[i : i + strides[axis - 1]] for i in range(0, len(parts), strides[axis - 1])]
        parts = [
            jnp.stack(group, axis + 1).reshape(*group[0].shape[:axis], -1, *group[0].shape[axis + 1 :])
            for group in groups
        ]
    return parts[0]


def shifted_weight(x: Array, gradient: Array, conv: Convolution) -> Array:
    """Per place of the window, the sum over samples and positions of what it saw times the gradient.

    A loop goes over samples or over rows of pictures (what lies along the first spatial dim), whichever are fewer, and
    adds up the others element by element, so that what it reads stays in the cache. XLA's own sum over all dims but the
    last runs column by column on a processor.
    """
    x = padded(x, window_of_shape(conv), 0)
    by_row = conv.output[0] <= conv.samples
    turns, others = sorted((conv.output[0], conv.samples))
    zeros = jnp.zeros((others // largest_divisor(others), *gradient.shape[2:]), gradient.dtype)

    def turn(i: Array, totals: tuple[Array, ...]) -> tuple[Array, ...]:
        new = []
        for total, position in zip(totals, positions(conv), strict=True):
            seen, arrived = _seen_and_arrived(x, gradient, position, i, conv, by_row)
            new.append(total + folded(_each_filter(seen, conv) * arrived))
        return tuple(new)

    totals = lax.fori_loop(0, turns, turn, tuple(zeros for _ in positions(conv)))
    return jnp.stack([channel_sums(total) for total in totals], axis=-1).reshape(conv.filters, *conv.kernel, 1)


def _seen_and_arrived(
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


def rows_weight(x: Array, gradient: Array, conv: Convolution) -> Array:
    """Per place of the window, what it saw times the gradient, added up along whole rows of a picture (two spatial dims).

    A loop goes over blocks of rows within a sample: as many rows as divide the height and have BLOCK_BYTES at most, but
    one at least. A sum along a row stays in registers, where :func:`shifted_weight` reads and writes totals for every
    element or few of them, so it takes a third of the time on one core where rows are long and channels many. Blocks are
    not added up in the same sum: over two dims at once XLA goes column by column.
    """
    height, width = conv.output
    rows = largest_divisor(height, BLOCK_BYTES // max(1, width * conv.filters * gradient.dtype.itemsize))
    blocks = height // rows
    x = padded(x, window_of_shape(conv), 0)
    tall, broad = ((n - 1) * stride + 1 for n, stride in zip((rows, width), conv.strides, strict=True))
    wide = jnp.promote_types(gradient.dtype, jnp.float32)  # a sum of many numbers rounds too much in 16 bits

    def turn(i: Array, totals: Array) -> Array:
        sample, first = i // blocks, i % blocks * rows
        arrived = lax.dynamic_slice(gradient, (sample, first, 0, 0), (1, rows, width, conv.filters))[0].astype(wide)
        sums = []
        for row, column in positions(conv):
            top, left = first * conv.strides[0] + row * conv.dilations[0], column * conv.dilations[1]
            seen = lax.dynamic_slice(x, (sample, top, 0, 0), (1, tall, *x.shape[2:]))[0]
            seen = lax.slice(seen, (0, left, 0), (tall, left + broad, conv.channels), (*conv.strides, 1))
            sums.append(jnp.sum(_each_filter(seen, conv) * arrived, axis=1))
        return totals + jnp.stack(sums)

    zeros = jnp.zeros((len(positions(conv)), rows, conv.filters), wide)
    totals = lax.fori_loop(0, conv.samples * blocks, turn, zeros)
    return totals.sum(1).T.reshape(conv.filters, *conv.kernel, 1).astype(gradient.dtype)


def _each_filter(x: Array, conv: Convolution) -> Array:
    """(..., C) -> (..., M): each channel once for each of its filters."""
    times = conv.filters // conv.channels
    return x if times == 1 else jnp.repeat(x, times, axis=-1)


def _each_channel(y: Array, conv: Convolution) -> Array:
    """(..., M) -> (..., C): the sum over the filters of each channel."""
    times = conv.filters // conv.channels
    return y if times == 1 else y.reshape(*y.shape[:-1], conv.channels, times).sum(-1)
