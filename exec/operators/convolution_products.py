"""Convolutions as matrix products, channels last: x (N, *size, C), kernel (M, *kernel, C), y (N, *output, M)."""

from __future__ import annotations

from itertools import product
from math import prod

import jax.numpy as jnp
from jax import Array, lax

from ...models.cost.lowerings import Convolution
from .linear import over_rows
from .window import Window, padded, taps

__all__ = [
    "im2col_forward",
    "im2col_input",
    "im2col_weight",
    "matmul_forward",
    "matmul_input",
    "matmul_weight",
    "taps_weight",
]


def window_of_shape(conv: Convolution) -> Window:
    """The window that slides in `conv`."""
    reach = [(k - 1) * d + 1 for k, d in zip(conv.kernel, conv.dilations, strict=True)]
    extra = [
        max((o - 1) * s + r - n - sum(p), 0)
        for o, s, r, n, p in zip(conv.output, conv.strides, reach, conv.size, conv.pads, strict=True)
    ]
    return Window(
        kernel=conv.kernel,
        strides=conv.strides,
        dilations=conv.dilations,
        pads=conv.pads,
        output=conv.output,
        ceil_extra=tuple(extra),
    )


def placed(parts: Array, position: tuple[int, ...], conv: Convolution) -> Array:
    """What the window's place `position` saw, (N, *output, C), put back where it saw it: (N, *size, C), else zeros."""
    config = [(0, 0, 0)]
    for i, k in enumerate(position):
        begin = k * conv.dilations[i] - conv.pads[i][0]
        end = begin + (conv.output[i] - 1) * conv.strides[i] + 1
        config.append((begin, conv.size[i] - end, conv.strides[i] - 1))
    # Negative pads cut off what lay in the window's padding.
    return lax.pad(parts, jnp.zeros((), parts.dtype), [*config, (0, 0, 0)])


def positions(conv: Convolution) -> list[tuple[int, ...]]:
    """The places in a window, in row-major order."""
    return list(product(*map(range, conv.kernel)))


# --- windows of one element -------------------------------------------------------------------------------------------


def matmul_forward(x: Array, kernel: Array, conv: Convolution) -> Array:
    """A product over channels."""
    seen = next(taps(x, window_of_shape(conv)))
    y = seen.reshape(-1, conv.channels) @ kernel.reshape(conv.filters, conv.channels).T
    return y.reshape(conv.samples, *conv.output, conv.filters)


def matmul_input(gradient: Array, kernel: Array, conv: Convolution) -> Array:
    """A product over filters, spread out where the strides skipped."""
    parts = gradient.reshape(-1, conv.filters) @ kernel.reshape(conv.filters, conv.channels)
    return placed(parts.reshape(conv.samples, *conv.output, conv.channels), positions(conv)[0], conv)


def matmul_weight(x: Array, gradient: Array, conv: Convolution) -> Array:
    """A product over samples and positions."""
    seen = next(taps(x, window_of_shape(conv)))
    into = over_rows(gradient.reshape(-1, conv.filters), seen.reshape(-1, conv.channels))
    return into.reshape(conv.filters, *conv.kernel, conv.channels)


# --- windows copied into rows ------------------------------------------------------------------------------------------


def _rows(x: Array, conv: Convolution) -> Array:
    """(N * output positions, places in the window * C)."""
    window = window_of_shape(conv)
    rows = jnp.concatenate(list(taps(padded(x, window, 0), window)), axis=-1)
    return rows.reshape(-1, prod(conv.kernel) * conv.channels)


def im2col_forward(x: Array, kernel: Array, conv: Convolution) -> Array:
    """Every window a row, then one product."""
    y = _rows(x, conv) @ kernel.reshape(conv.filters, -1).T
    return y.reshape(conv.samples, *conv.output, conv.filters)


def im2col_input(gradient: Array, kernel: Array, conv: Convolution) -> Array:
    """One product gives what every window adds to its elements; then these are added up."""
    rows = gradient.reshape(-1, conv.filters) @ kernel.reshape(conv.filters, -1)
    parts = rows.reshape(conv.samples, *conv.output, prod(conv.kernel), conv.channels)
    total = None
    for number, position in enumerate(positions(conv)):
        share = placed(parts[..., number, :], position, conv)
        total = share if total is None else total + share
    assert total is not None
    return total


def im2col_weight(x: Array, gradient: Array, conv: Convolution) -> Array:
    """Every window a row, then one product over them."""
    into = over_rows(gradient.reshape(-1, conv.filters), _rows(x, conv))
    return into.reshape(conv.filters, *conv.kernel, conv.channels)


def taps_weight(x: Array, gradient: Array, conv: Convolution) -> Array:
    """One product per place in the window: what it saw, by the gradient of what came out."""
    window, rows = window_of_shape(conv), gradient.reshape(-1, conv.filters)
    products = [over_rows(rows, tap.reshape(-1, conv.channels)) for tap in taps(padded(x, window, 0), window)]
    return jnp.stack(products, axis=1).reshape(conv.filters, *conv.kernel, conv.channels)
