"""Pooling: maxima and means over sliding windows.

Both are computed tap by tap (one strided slice per window position), which XLA fuses into one loop. On a CPU that beats
XLA's own `reduce_window` and, by far, the `select_and_scatter` that is its gradient.
"""

from __future__ import annotations

from functools import partial, reduce
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...models.onnxpp.graph import Operator
from .layout import ChannelsLast, channels_last
from .registry import lowers
from .window import Window, padded, taps, window_of

__all__ = ["average_pool", "max_pool"]


@lowers("MaxPool", layout="any")
def max_pool(node: Operator, x: Any) -> Any:
    """(N, C, *spatial) -> (N, C, *output), and where asked the flat index of each maximum in `x`."""
    window = window_of(node, x.shape[2:], node.attributes["kernel_shape"])
    last = channels_last(x)
    if len([o for o in node.outputs if o]) == 1:
        y = _maximum(last, window)
        return ChannelsLast(y) if isinstance(x, ChannelsLast) else jnp.moveaxis(y, -1, 1)
    best, tap = _argmax(last, window)
    where = jnp.asarray(_input_index(window, x.shape[2:], bool(node.attributes.get("storage_order", 0))))
    within = jnp.take_along_axis(where[:, None, ..., None], tap[None].astype(jnp.int32), axis=0)[0]
    plane = np.arange(x.shape[0] * x.shape[1]).reshape(x.shape[0], *(1,) * (x.ndim - 2), x.shape[1])
    index = within + plane * int(np.prod(x.shape[2:]))
    return jnp.moveaxis(best, -1, 1), jnp.moveaxis(index, -1, 1).astype(jax.dtypes.canonicalize_dtype(np.int64))


def _lowest(dtype: np.dtype) -> float | int:
    return -np.inf if jnp.issubdtype(dtype, jnp.floating) else int(jnp.iinfo(dtype).min)


def _argmax(x: Array, window: Window) -> tuple[Array, Array]:
    """(N, *spatial, C) -> the maximum of each window and its tap's number; the first of equal ones."""
    seen = taps(padded(x, window, _lowest(x.dtype)), window)
    best = next(seen)
    tap = jnp.zeros(best.shape, jnp.uint8 if np.prod(window.kernel) <= 256 else jnp.int32)
    for number, value in enumerate(seen, start=1):
        better = value > best
        best, tap = jnp.where(better, value, best), jnp.where(better, jnp.asarray(number, tap.dtype), tap)
    return best, tap


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _maximum(x: Array, window: Window) -> Array:
    """(N, *spatial, C) -> (N, *output, C). Its gradient goes to the first of equal maxima."""
    return reduce(jnp.maximum, taps(padded(x, window, _lowest(x.dtype)), window))


def _maximum_forward(x: Array, window: Window) -> tuple[Array, tuple[Array, Array]]:
    _, tap = _argmax(x, window)
    # Not the best that was found on the way: comparisons pass by what is no number, which training must not hide.
    best = _maximum.fun(x, window)
    # An empty array carries the input's shape, which the backward pass needs, through the residuals.
    return best, (tap, jnp.zeros((0, *x.shape[1:-1]), x.dtype))


def _maximum_backward(window: Window, residual: tuple[Array, Array], gradient: Array) -> tuple[Array]:
    tap, like = residual
    spatial = like.shape[1:]
    if window.is_tiling:
        return (_untiled(tap, gradient, window, spatial),)
    return (_by_phases(tap, gradient, window, spatial),)


def _by_phases(tap: Array, gradient: Array, window: Window, spatial: tuple[int, ...]) -> Array:
    """The gradient of (N, *spatial, C), phase by phase of the strides: the elements at one place between two windows get
    theirs from the same taps, so each phase is a sum of few shifted gradients without gaps, and phases are interleaved at
    the end. Up to three times as fast as all taps added up with gaps (3 x 3 by strides of 2)."""
    rank = len(spatial)
    # Element i lies at i + pad = stride * step + phase.
    steps = [-(-(n + before) // s) for n, s, (before, _) in zip(spatial, window.strides, window.pads, strict=True)]
    sums: dict[tuple[int, ...], Array] = {}
    for number, position in enumerate(product(*map(range, window.kernel))):
        at = [k * d for k, d in zip(position, window.dilations, strict=True)]
        phase = tuple(a % s for a, s in zip(at, window.strides, strict=True))
        share = jnp.where(tap == number, gradient, 0)
        config = [(0, 0, 0)]
        for a, s, n, o in zip(at, window.strides, steps, window.output, strict=True):
            config.append((a // s, n - a // s - o, 0))  # beyond the last element there is padding alone: cut off
        placed = lax.pad(share, jnp.zeros((), share.dtype), [*config, (0, 0, 0)])
        sums[phase] = placed if phase not in sums else sums[phase] + placed
    nothing = jnp.zeros((gradient.shape[0], *steps, gradient.shape[-1]), gradient.dtype)  # strides that skip elements

    def interleaved(phase: tuple[int, ...]) -> Array:
        """All phases that begin like this: the dims of strides from its length on stand behind their steps."""
        axis = len(phase)
        if axis == rank:
            return sums.get(phase, nothing)
        return jnp.stack([interleaved((*phase, i)) for i in range(window.strides[axis])], axis=axis + 2)

    whole = interleaved(())
    whole = whole.reshape(len(gradient), *(n * s for n, s in zip(steps, window.strides, strict=True)), -1)
    inside = [slice(before, before + n) for n, (before, _) in zip(spatial, window.pads, strict=True)]
    return whole[(slice(None), *inside)]


def _untiled(tap: Array, gradient: Array, window: Window, spatial: tuple[int, ...]) -> Array:
    """Windows that tile the input: every input element belongs to one window, so its gradient is a comparison."""
    rank = len(spatial)
    numbers = np.arange(np.prod(window.kernel)).reshape(window.kernel)
    split = [1]
    for k in window.kernel:
        split += [1, k]
    numbers = numbers.reshape(*split, 1)
    spread = [d for axis in range(1, rank + 1) for d in (axis, None)]
    expand = (slice(None), *[slice(None) if d else None for d in spread], slice(None))
    share = jnp.where(tap[expand] == numbers.astype(tap.dtype), gradient[expand], 0)
    covered = [o * k for o, k in zip(window.output, window.kernel, strict=True)]
    merged = share.reshape(gradient.shape[0], *covered, gradient.shape[-1])
    rest = [(0, size - c, 0) for size, c in zip(spatial, covered, strict=True)]
    return lax.pad(merged, jnp.zeros((), merged.dtype), [(0, 0, 0), *rest, (0, 0, 0)])


_maximum.defvjp(_maximum_forward, _maximum_backward)


def _input_index(window: Window, spatial: tuple[int, ...], column_major: bool) -> np.ndarray:
    """For every tap and output position the input's flat spatial index: (taps, *output).

    A pad is as low as the lowest number. So where one counts as the maximum all are equal: the first element of the input
    is meant.
    """
    weights = np.cumprod((1, *spatial[:-1])) if column_major else np.cumprod((1, *spatial[:0:-1]))[::-1]
    rows, inside = [], []
    for position in product(*map(range, window.kernel)):
        total: np.ndarray = np.zeros((), np.int64)
        within: np.ndarray = np.ones((), bool)
        for i, k in enumerate(position):
            at = np.arange(window.output[i]) * window.strides[i] + k * window.dilations[i] - window.pads[i][0]
            total = total[..., None] + at * weights[i]
            within = within[..., None] & (at >= 0) & (at < spatial[i])
        rows.append(total)
        inside.append(within)
    places, real = np.stack(rows), np.stack(inside)
    first = np.take_along_axis(places, real.argmax(axis=0)[None], axis=0)
    return np.where(real, places, first)


@lowers("AveragePool", layout="any")
def average_pool(node: Operator, x: Any) -> Any:
    """(N, C, *spatial) -> (N, C, *output); pads count as zeros where `count_include_pad`, else not at all."""
    window = window_of(node, x.shape[2:], node.attributes["kernel_shape"])
    counts = _counts(window, x.shape[2:], bool(node.attributes.get("count_include_pad", 0)))
    if isinstance(x, ChannelsLast):
        total = reduce(jnp.add, taps(padded(x.array, window, 0), window))
        return ChannelsLast(total / jnp.asarray(counts[..., None], x.dtype))
    total = reduce(jnp.add, taps(padded(x, window, 0, first_spatial=2), window, first_spatial=2))
    return total / jnp.asarray(counts, x.dtype)


def _counts(window: Window, spatial: tuple[int, ...], include_pads: bool) -> np.ndarray:
    """How many elements each window averages over: (*output)."""
    counts: np.ndarray = np.ones((), np.int64)
    for i, size in enumerate(spatial):
        first = np.arange(window.output[i]) * window.strides[i] - window.pads[i][0]
        at = first[:, None] + np.arange(window.kernel[i]) * window.dilations[i]
        low, high = (-window.pads[i][0], size + window.pads[i][1]) if include_pads else (0, size)
        counts = counts[..., None] * ((at >= low) & (at < high)).sum(axis=1)
    return counts


@lowers("LpPool")
def lp_pool(node: Operator, x: Array) -> Array:
    """The p-norm of each window."""
    # In opset 1 the window may be left out: then it is the whole image.
    window = window_of(node, x.shape[2:], node.attributes.get("kernel_shape") or x.shape[2:])
    p = float(node.attributes.get("p", 2))
    powers = _powers(padded(x, window, 0, first_spatial=2), p)
    return _root(reduce(jnp.add, taps(powers, window, first_spatial=2)), p).astype(x.dtype)


@lowers("GlobalLpPool")
def global_lp_pool(node: Operator, x: Array) -> Array:
    """The p-norm over all spatial dims, which stay as 1."""
    p = float(node.attributes.get("p", 2))
    return _root(jnp.sum(_powers(x, p), axis=tuple(range(2, x.ndim)), keepdims=True), p).astype(x.dtype)


def _powers(x: Array, p: float) -> Array:
    """In float32 at least: squares of float16 overflow from 256 on, though the norm may not."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return lax.integer_pow(jnp.abs(x), int(p)) if p.is_integer() else jnp.abs(x) ** p


def _root(total: Array, p: float) -> Array:
    """The p-th root, with a gradient of 0 where it is 0 (by derivation it would be infinite)."""
    if p == 1:
        return total
    empty = total == 0
    return jnp.where(empty, 0, jnp.where(empty, 1, total) ** (1 / p))


@lowers("GlobalAveragePool", layout="any")
def global_average_pool(node: Operator, x: Any) -> Any:
    """The mean over all spatial dims, which stay as 1."""
    if isinstance(x, ChannelsLast):
        return ChannelsLast(jnp.mean(x.array, axis=tuple(range(1, x.ndim - 1)), keepdims=True))
    return jnp.mean(x, axis=tuple(range(2, x.ndim)), keepdims=True)


@lowers("GlobalMaxPool")
def global_max_pool(node: Operator, x: Array) -> Array:
    """The maximum over all spatial dims, which stay as 1."""
    return jnp.max(x, axis=tuple(range(2, x.ndim)), keepdims=True)
