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
    return _convolved(x, _transformed_kernel(kernel, tile).swapaxes(1, 2), conv.pads, tile)


def winograd_input(gradient: Array, kernel: Array, conv: Convolution, *, tile: int) -> Array:
    """The gradient of x: the gradient of y convolved with the kernel, turned by half a turn, filters as channels."""
    pads = []
    for size, output, (before, _) in zip(conv.size, conv.output, conv.pads, strict=True):
        # The result must have `size` elements, the first of which the window saw first at its place `before`.
        pads.append((2 - before, size + before - output))
    return _convolved(gradient, _transformed_kernel(jnp.flip(kernel, (1, 2)), tile), tuple(pads), tile)


def winograd_weight(x: Array, gradient: Array, conv: Convolution, *, tile: int) -> Array:
    """The gradient of the kernel, a few samples at a time."""
    chunks = _chunks(conv, tile)
    if chunks == 1:
        return _weight_gradient(x, gradient, conv.pads, tile)
    xs = x.reshape(chunks, -1, *x.shape[1:])
    gradients = gradient.reshape(chunks, -1, *gradient.shape[1:])

    def add(i: Array, total: Array) -> Array:
        return total + _weight_gradient(xs[i], gradients[i], conv.pads, tile)

    return lax.fori_loop(0, chunks, add, jnp.zeros((conv.filters, 3, 3, conv.channels), x.dtype))


def _chunks(conv: Convolution, tile: int) -> int:
    """Into how many equal parts the samples are split."""
    growth = ((tile + 2) / tile) ** 2
    needed = 4 * growth * conv.samples * prod(conv.output) * (conv.channels + conv.filters)
    return next(
        (n for n in range(1, conv.samples + 1) if conv.samples % n == 0 and needed / n <= CHUNK_BYTES), conv.samples
    )


def _convolved(x: Array, kernels: Array, pads: tuple[tuple[int, int], ...], tile: int) -> Array:
    """(N, H, W, C) and transformed kernels ((tile + 2)^2, C, M) -> (N, *output, M), where pads may be negative."""
    samples, filters = x.shape[0], kernels.shape[2]
    output = [n + sum(p) - 2 for n, p in zip(x.shape[1:3], pads, strict=True)]
    tiles = [-(-n // tile) for n in output]
    products = jnp.matmul(_transformed_data(x, pads, tiles, tile), kernels)
    places = products.reshape(tile + 2, tile + 2, samples, *tiles, filters)
    whole = _both_sides(_TRANSFORMS[tile].result, places, at=(2, 4))  # (N, tiles, tile, tiles, tile, M)
    return whole.reshape(samples, tiles[0] * tile, tiles[1] * tile, filters)[:, : output[0], : output[1]]


def _weight_gradient(x: Array, gradient: Array, pads: tuple[tuple[int, int], ...], tile: int) -> Array:
    """x (N, H, W, C) and gradient (N, *output, M) -> (M, 3, 3, C)."""
    tiles = [-(-n // tile) for n in gradient.shape[1:3]]
    data = _transformed_data(x, pads, tiles, tile)
    rest = [(0, t * tile - n) for t, n in zip(tiles, gradient.shape[1:3], strict=True)]
    arrived = _in_tiles(_padded(gradient, rest), _TRANSFORMS[tile].result.T, tiles, tile)
    products = jnp.einsum("ptm,ptc->pmc", arrived, data)
    places = products.reshape(tile + 2, tile + 2, *products.shape[1:])
    return _both_sides(_TRANSFORMS[tile].kernel.T, places, at=(1, 2))


def _transformed_kernel(kernel: Array, tile: int) -> Array:
    """G g G^T of every filter and channel: (M, 3, 3, C) -> ((tile + 2)^2, M, C)."""
    places = jnp.moveaxis(kernel, (1, 2), (0, 1))
    return _both_sides(_TRANSFORMS[tile].kernel, places, at=(0, 1)).reshape(-1, *places.shape[2:])


def _transformed_data(x: Array, pads: tuple[tuple[int, int], ...], tiles: list[int], tile: int) -> Array:
    """B^T d B of every tile: (N, H, W, C) -> ((tile + 2)^2, N * tiles, C)."""
    sides = [
        (before, count * tile + 2 - before - n) for n, (before, _), count in zip(x.shape[1:3], pads, tiles, strict=True)
    ]
    return _in_tiles(_padded(x, sides), _TRANSFORMS[tile].data, tiles, tile)


def _in_tiles(whole: Array, matrix: np.ndarray, tiles: list[int], tile: int) -> Array:
    """matrix d matrix^T of every tile d, the tiles `tile` apart: (N, H, W, C) -> (places, N * tiles, C)."""
    reach = range(matrix.shape[1])
    seen = [_every(whole, i, step=tile, count=tiles[0], axis=1) for i in reach]
    rows = jnp.stack([_combined(weights, seen) for weights in matrix])
    parts = [_every(rows, j, step=tile, count=tiles[1], axis=3) for j in reach]
    places = jnp.stack([_combined(weights, parts) for weights in matrix], axis=1)
    return places.reshape(matrix.shape[0] ** 2, -1, whole.shape[-1])


def _both_sides(matrix: np.ndarray, places: Array, *, at: tuple[int, int]) -> Array:
    """matrix p matrix^T, where places (rows, columns, ...) are p; rows and columns of the result lie at axes `at`."""
    rows = [_combined(weights, list(places)) for weights in matrix]
    return jnp.stack([jnp.stack([_combined(w, list(row)) for w in matrix], axis=at[1] - 1) for row in rows], axis=at[0])


def _padded(x: Array, sides: list[tuple[int, int]]) -> Array:
    """(N, H, W, C) with zeros around; what is negative is cut off."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((a, z, 0) for a, z in sides), (0, 0, 0)])


def _every(x: Array, first: int, *, step: int, count: int, axis: int) -> Array:
    """`count` elements along an axis, from `first` on, `step` apart."""
    return lax.slice_in_dim(x, first, first + (count - 1) * step + 1, step, axis)


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
