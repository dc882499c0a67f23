"""Winograd's minimal filtering for windows of 3 x 3 at strides of one (Lavin and Gray 2016, arXiv 1509.09308).

A tile of t x t outputs y follows from (t + 2) x (t + 2) inputs d and the kernel g by

    y = A^T [ (G g G^T) * (B^T d B) ] A,

where the product * is taken element by element for one channel: over channels, filters and tiles it is a matrix product
for each of the (t + 2)^2 places. Those products are (t + 2)^2 / 9 t^2 of a convolution's: 44 % for t = 2, 25 % for 4.
The weights' gradient is the same read backwards, ``G^T [ sum of (B^T d B) * (A dy A^T) ] G``; the input's gradient is a
convolution of the gradient with the kernel turned around.

Channels last: x (N, H, W, C), kernel (M, 3, 3, C), y (N, *output, M).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...models.cost.lowerings import Convolution

__all__ = ["winograd_forward", "winograd_input", "winograd_weight"]

# The transformed operands of so many samples at once should stay in a processor's last cache.
CHUNK_BYTES = 32 << 20


class _Transforms(NamedTuple):
    """Matrices of tiles of so many outputs: of the data, of the kernel, of the result."""

    data: np.ndarray
    kernel: np.ndarray
    result: np.ndarray


_TRANSFORMS = {
    2: _Transforms(
        data=np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float64),
        kernel=np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
        result=np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float64),
    ),
    4: _Transforms(
        data=np.array(
            [
                [4, 0, -5, 0, 1, 0],
                [0, -4, -4, 1, 1, 0],
                [0, 4, -4, -1, 1, 0],
                [0, -2, -1, 2, 1, 0],
                [0, 2, -1, -2, 1, 0],
                [0, 4, 0, -5, 0, 1],
            ],
            np.float64,
        ),
        kernel=np.array(
            [
                [1 / 4, 0, 0],
                [-1 / 6, -1 / 6, -1 / 6],
                [-1 / 6, 1 / 6, -1 / 6],
                [1 / 24, 1 / 12, 1 / 6],
                [1 / 24, -1 / 12, 1 / 6],
                [0, 0, 1],
            ]
        ),
        result=np.array(
            [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float64
        ),
    ),
}


def winograd_forward(x: Array, kernel: Array, conv: Convolution, *, tile: int) -> Array:
    """The convolution, in tiles of `tile` x `tile` outputs."""
    kernels = [[k.T for k in row] for row in _transformed_kernel(kernel, tile)]
    return _convolved(x, kernels, conv.pads, tile)


def winograd_input(gradient: Array, kernel: Array, conv: Convolution, *, tile: int) -> Array:
    """The gradient of x: the gradient of y convolved with the kernel, turned by half a turn, filters as channels."""
    kernels = _transformed_kernel(jnp.flip(kernel, (1, 2)), tile)
    pads = []
    for size, output, (before, _) in zip(conv.size, conv.output, conv.pads, strict=True):
        # The result must have `size` elements, the first of which the window saw first at its place `before`.
        pads.append((2 - before, size + before - output))
    return _convolved(gradient, kernels, tuple(pads), tile)


def winograd_weight(x: Array, gradient: Array, conv: Convolution, *, tile: int) -> Array:
    """The gradient of the kernel, a few samples at a time."""
    chunks = _chunks(conv, tile)
    if chunks == 1:
        return _weight_gradient(x, gradient, conv.pads, tile)
    xs = x.reshape(chunks, -1, *x.shape[1:])
    gradients = gradient.reshape(chunks, -1, *gradient.shape[1:])

    def add(i: int, total: Array) -> Array:
        return total + _weight_gradient(xs[i], gradients[i], conv.pads, tile)

    return lax.fori_loop(0, chunks, add, jnp.zeros((conv.filters, 3, 3, conv.channels), x.dtype))


def _chunks(conv: Convolution, tile: int) -> int:
    """Into how many equal parts the samples are split."""
    growth = ((tile + 2) / tile) ** 2
    needed = 4 * growth * conv.samples * prod(conv.output) * (conv.channels + conv.filters)
    return next(
        (n for n in range(1, conv.samples + 1) if conv.samples % n == 0 and needed / n <= CHUNK_BYTES), conv.samples
    )


def _transformed_kernel(kernel: Array, tile: int) -> list[list[Array]]:
    """G g G^T, element by element: lists of rows and columns of (M, C)."""
    g = _TRANSFORMS[tile].kernel
    rows = [_combined(weights, [kernel[:, i] for i in range(3)]) for weights in g]
    return [[_combined(weights, [row[:, j] for j in range(3)]) for weights in g] for row in rows]


def _convolved(x: Array, kernels: list[list[Array]], pads: tuple[tuple[int, int], ...], tile: int) -> Array:
    """(N, H, W, C) and transformed kernels of (C, M) -> (N, *output, M), where pads may be negative."""
    a = _TRANSFORMS[tile].result
    samples, (channels, filters) = x.shape[0], kernels[0][0].shape
    output = [n + sum(p) - 2 for n, p in zip(x.shape[1:3], pads, strict=True)]
    tiles = [-(-n // tile) for n in output]
    columns = range(tile + 2)
    products = [
        [row[j].reshape(-1, channels) @ kernels[i][j] for j in columns]
        for i, row in enumerate(_transformed_data(x, pads, tiles, tile))
    ]
    by_column = [[_combined(weights, [p[j] for p in products]) for j in columns] for weights in a]
    results = [[_combined(weights, row).reshape(samples, *tiles, filters) for weights in a] for row in by_column]
    whole = jnp.stack([jnp.stack(row, axis=3) for row in results], axis=2)
    return whole.reshape(samples, tiles[0] * tile, tiles[1] * tile, filters)[:, : output[0], : output[1]]


def _weight_gradient(x: Array, gradient: Array, pads: tuple[tuple[int, int], ...], tile: int) -> Array:
    _, g, a = _TRANSFORMS[tile]
    output = gradient.shape[1:3]
    tiles = [-(-n // tile) for n in output]
    data = _transformed_data(x, pads, tiles, tile)
    rest = [(0, t * tile - n, 0) for t, n in zip(tiles, output, strict=True)]
    whole = lax.pad(gradient, jnp.zeros((), x.dtype), [(0, 0, 0), *rest, (0, 0, 0)])
    rows = partial(_every, tile=tile, tiles=tiles[0], axis=1)
    seen = [rows(whole, i) for i in range(tile)]
    gradients = []
    for weights in a.T:
        row = _combined(weights, seen)
        parts = [_every(row, j, tile=tile, tiles=tiles[1], axis=2) for j in range(tile)]
        gradients.append([_combined(w, parts) for w in a.T])
    products = [
        [e.reshape(-1, e.shape[-1]).T @ d.reshape(-1, d.shape[-1]) for d, e in zip(*pair, strict=True)]
        for pair in zip(data, gradients, strict=True)
    ]
    by_row = [[_combined(weights, column) for column in zip(*products, strict=True)] for weights in g.T]
    return jnp.stack([jnp.stack([_combined(w, row) for w in g.T], axis=1) for row in by_row], axis=1)


def _transformed_data(x: Array, pads: tuple[tuple[int, int], ...], tiles: list[int], tile: int) -> list[list[Array]]:
    """B^T d B of every tile, element by element: lists of rows and columns of (N, *tiles, C)."""
    b = _TRANSFORMS[tile].data
    config = [(0, 0, 0)]
    for n, (before, _), count in zip(x.shape[1:3], pads, tiles, strict=True):
        config.append((before, count * tile + 2 - before - n, 0))
    whole = lax.pad(x, jnp.zeros((), x.dtype), [*config, (0, 0, 0)])
    seen = [_every(whole, i, tile=tile, tiles=tiles[0], axis=1) for i in range(tile + 2)]
    found = []
    for weights in b:
        row = _combined(weights, seen)
        parts = [_every(row, j, tile=tile, tiles=tiles[1], axis=2) for j in range(tile + 2)]
        found.append([_combined(w, parts) for w in b])
    return found


def _every(x: Array, first: int, *, tile: int, tiles: int, axis: int) -> Array:
    """Of each tile the element `first`, along an axis."""
    begin, end, stride = [0] * x.ndim, list(x.shape), [1] * x.ndim
    begin[axis], end[axis], stride[axis] = first, first + (tiles - 1) * tile + 1, tile
    return lax.slice(x, begin, end, stride)


def _combined(weights: np.ndarray, values: Sequence[Array]) -> Array:
    """The weighted sum; without the terms that are zero, and without products by one."""
    total = None
    for weight, value in zip(weights.tolist(), values, strict=True):
        if weight == 0:
            continue
        term = value if abs(weight) == 1 else abs(weight) * value
        if total is None:
            total = term if weight > 0 else -term
        else:
            total = total + term if weight > 0 else total - term
    assert total is not None
    return total
