"""Arrays seen through sliding windows: what convolution and pooling share."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import jax.numpy as jnp
from jax import Array, lax

from ...models.onnxpp.windows import Window, window_of

__all__ = ["Window", "padded", "taps", "window_of"]


def padded(x: Array, window: Window, fill: float | int | bool, *, first_spatial: int = 1) -> Array:
    """`x` with the window's pads around its spatial dims, from axis `first_spatial` on (1 for NHWC, 2 for NCHW)."""
    config = [(0, 0, 0)] * x.ndim
    for i, ((low, high), more) in enumerate(zip(window.pads, window.ceil_extra, strict=True)):
        config[first_spatial + i] = (low, high + more, 0)
    return lax.pad(x, jnp.asarray(fill, x.dtype), config) if any(c != (0, 0, 0) for c in config) else jnp.asarray(x)


def taps(x: Array, window: Window, *, first_spatial: int = 1) -> Iterator[Array]:
    """For each position in the window, what it sees: strided slices of a padded `x`, in row-major kernel order."""
    for position in product(*map(range, window.kernel)):
        begin, end, stride = [0] * x.ndim, list(x.shape), [1] * x.ndim
        for i, (k, s, d, count) in enumerate(
            zip(position, window.strides, window.dilations, window.output, strict=True)
        ):
            begin[first_spatial + i] = k * d
            end[first_spatial + i] = k * d + (count - 1) * s + 1
            stride[first_spatial + i] = s
        yield lax.slice(x, begin, end, stride)
