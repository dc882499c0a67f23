"""Reading an image between its elements: GridSample, AffineGrid, DeformConv.

Images are read with channels last, so that one position is one run of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import prod

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .registry import Value, lowers, static, text
from .window import window_of

__all__ = ["affine_grid", "deform_conv", "grid_sample", "read_between"]

# Positions are cut off here before they become integers: far outside of any image.
FAR = 2.0**24
# Coefficient of cubic interpolation that the standard prescribes.
CUBIC = -0.75

Places = Callable[[Array, int], tuple[Array, Array | None]]
"""(positions along an axis, its size) -> (index of an element inside, whether the position lies inside)."""


def _zeros(at: Array, size: int) -> tuple[Array, Array | None]:
    return jnp.clip(at, 0, size - 1), (at >= 0) & (at < size)


def _border(at: Array, size: int) -> tuple[Array, Array | None]:
    return jnp.clip(at, 0, size - 1), None


def read_between(x: Array, taps: Sequence[tuple[Array, Sequence[Array]]], places: Sequence[Places]) -> Array:
    """x (N, *spatial, C) at P positions between its elements: a weighted sum of elements, (N, P, C).

    taps    per axis: (first element's position, weights of it and those that follow), all (N, P)
    places  per axis: which element stands for a position, and whether it counts
    """
    spatial = x.shape[1:-1]
    flat = x.reshape(x.shape[0], prod(spatial), x.shape[-1])
    total = None
    for number in product(*(range(len(weights)) for _, weights in taps)):
        index, weight, inside = jnp.zeros((), jnp.int32), None, None
        for axis, t in enumerate(number):
            first, weights = taps[axis]
            at, counts = places[axis](first + t, spatial[axis])
            index = index * spatial[axis] + at
            weight = weights[t] if weight is None else weight * weights[t]
            if counts is not None:
                inside = counts if inside is None else inside & counts
        assert weight is not None
        weight = weight if inside is None else jnp.where(inside, weight, 0)
        part = jnp.take_along_axis(flat, index[..., None], axis=1, mode="clip") * weight[..., None].astype(x.dtype)
        total = part if total is None else total + part
    assert total is not None
    return total


def _linear(at: Array) -> tuple[Array, Sequence[Array]]:
    first = jnp.floor(at)
    after = at - lax.stop_gradient(first)
    return _integer(first), (1 - after, after)


def _nearest(at: Array) -> tuple[Array, Sequence[Array]]:
    """Halfway the even one."""
    return _integer(jnp.round(at)), (jnp.ones_like(at),)


def _cubic(at: Array) -> tuple[Array, Sequence[Array]]:
    """Keys 1981, equation 4, at the distances of four elements."""
    first = jnp.floor(at)
    t = at - lax.stop_gradient(first)

    def near(d: Array) -> Array:
        return ((CUBIC + 2) * d - (CUBIC + 3)) * d * d + 1

    def far(d: Array) -> Array:
        return ((CUBIC * d - 5 * CUBIC) * d + 8 * CUBIC) * d - 4 * CUBIC

    return _integer(first) - 1, (far(t + 1), near(t), near(1 - t), far(2 - t))


def _integer(at: Array) -> Array:
    return jnp.clip(lax.stop_gradient(at), -FAR, FAR).astype(jnp.int32)


_TAPS = {
    "linear": _linear,
    "bilinear": _linear,
    "nearest": _nearest,
    "cubic": _cubic,
    "bicubic": _cubic,
}


def _reflected(at: Array, low: float, high: float) -> Array:
    """Positions mirrored at `low` and `high` until they lie between."""
    if high <= low:
        return jnp.full_like(at, low)
    period = 2 * (high - low)
    within = jnp.mod(at - low, period)
    return low + jnp.where(within > high - low, period - within, within)


@lowers("GridSample", since=16)
def grid_sample(node: Operator, x: Value, grid: Value) -> Array:
    """x (N, C, *spatial), grid (N, *output, rank) -> (N, C, *output): x at the grid's positions.

    Positions go from -1 to 1 over the image, the last axis first; with `align_corners` these are the centres of the
    outermost elements, without their outer edges. Gradients go to both, x and grid.
    """
    image, where = jnp.asarray(x), jnp.asarray(grid)
    mode, padding = text(node, "mode", "linear"), text(node, "padding_mode", "zeros")
    aligned = bool(node.attributes.get("align_corners", 0))
    if mode not in _TAPS or padding not in ("zeros", "border", "reflection"):
        raise ModelError(
            f"GridSample node {node.name!r}: mode {mode!r} with padding {padding!r}; the standard has linear, nearest and "
            "cubic, with zeros, border and reflection."
        )
    spatial, output = image.shape[2:], where.shape[1:-1]
    real = jnp.promote_types(where.dtype, jnp.float32)
    wide = where.astype(real).reshape(where.shape[0], -1, len(spatial))
    taps, places = [], []
    for axis, size in enumerate(spatial):
        at = wide[..., len(spatial) - 1 - axis]
        at = (at + 1) / 2 * (size - 1) if aligned else ((at + 1) * size - 1) / 2
        low, high = (0.0, size - 1.0) if aligned else (-0.5, size - 0.5)
        if padding == "border":
            at = jnp.clip(at, 0, size - 1) if _TAPS[mode] is not _cubic else at
        elif padding == "reflection" and _TAPS[mode] is not _cubic:
            at = _reflected(at, low, high)
        taps.append(_TAPS[mode](at))
        places.append(_places(padding, low, high, _TAPS[mode] is _cubic))
    read = read_between(jnp.moveaxis(image, 1, -1), taps, places)
    return jnp.moveaxis(read, -1, 1).reshape(image.shape[0], image.shape[1], *output)


def _places(padding: str, low: float, high: float, cubic: bool) -> Places:
    if padding == "zeros":
        return _zeros
    if padding == "border" or not cubic:
        return _border

    def mirrored(at: Array, size: int) -> tuple[Array, Array | None]:
        return jnp.clip(jnp.round(_reflected(at.astype(jnp.float32), low, high)), 0, size - 1).astype(jnp.int32), None

    return mirrored


@lowers("AffineGrid", since=20)
def affine_grid(node: Operator, theta: Value, size: Value) -> Array:
    """theta (N, rank, rank + 1) applied to the positions of an image of `size` (N, C, *spatial): (N, *spatial, rank)."""
    matrices = jnp.asarray(theta)
    spatial = [int(n) for n in static(node, "size", size)[2:]]
    aligned = bool(node.attributes.get("align_corners", 0))
    # One element lies at 0 either way.
    axes = [np.linspace(-1, 1, n) if aligned and n > 1 else (np.arange(n) + 0.5) / n * 2 - 1 for n in spatial]
    grid = np.stack([*np.meshgrid(*axes, indexing="ij")[::-1], np.ones(spatial)], axis=-1)
    return jnp.einsum("...k,nik->n...i", jnp.asarray(grid, matrices.dtype), matrices, precision="highest")


@lowers("DeformConv", since=19)
def deform_conv(
    node: Operator, x: Value, w: Value, offset: Value, b: Value | None = None, mask: Value | None = None
) -> Array:
    """A convolution that reads each window element elsewhere: by `offset`, times `mask` (Zhu et al. 2019).

    x (N, C, *spatial), w (M, C/groups, *kernel), offset (N, offset groups * kernel * rank, *output), mask (N, offset
    groups * kernel, *output) -> (N, M, *output). Between elements x is interpolated linearly, outside it is zero.
    """
    image, weights, moved = jnp.asarray(x), jnp.asarray(w), jnp.asarray(offset)
    get, rank = node.attributes.get, image.ndim - 2
    window = window_of(node, image.shape[2:], get("kernel_shape") or weights.shape[2:])
    groups, sets = int(get("group", 1)), int(get("offset_group", 1))
    kernel, output, batch, channels = prod(window.kernel), window.output, image.shape[0], image.shape[1]
    if moved.shape != (batch, sets * kernel * rank, *output) or channels % sets or channels % groups:
        raise ModelError(
            f"DeformConv node {node.name!r}: offset {moved.shape} does not fit {sets} sets of offsets for {channels} "
            f"channels, a window of {window.kernel} and an output of {output}. Correct the node's attributes."
        )
    # Offsets as (N * sets, rank, kernel, *output); added to where the window's elements lie without them.
    moved = moved.reshape(batch * sets, kernel, rank, *output)
    taps, places = [], []
    for axis in range(rank):
        steps = np.arange(window.kernel[axis]) * window.dilations[axis]
        elements = np.broadcast_to(steps.reshape(-1, *(1,) * (rank - 1 - axis)), window.kernel).reshape(-1)
        starts = np.arange(output[axis]) * window.strides[axis] - window.pads[axis][0]
        regular = elements.reshape(-1, *(1,) * rank) + starts.reshape(-1, *(1,) * (rank - 1 - axis))
        at = (moved[:, :, axis] + jnp.asarray(regular, moved.dtype)).reshape(batch * sets, -1)
        taps.append(_linear(at))
        places.append(_zeros)
    last = jnp.moveaxis(image.reshape(batch * sets, channels // sets, *image.shape[2:]), 1, -1)
    columns = read_between(last, taps, places)
    columns = columns.reshape(batch, sets, kernel, prod(output), channels // sets)
    if mask is not None:
        columns = columns * jnp.asarray(mask).reshape(batch, sets, kernel, prod(output), 1)
    # (N, kernel, positions, C), then one product per group.
    columns = jnp.moveaxis(columns, 1, 3).reshape(batch, kernel, prod(output), groups, channels // groups)
    by_group = weights.reshape(groups, weights.shape[0] // groups, channels // groups, kernel)
    y = jnp.einsum("nkpgc,gmck->ngmp", columns, by_group).reshape(batch, weights.shape[0], *output)
    return y if b is None else y + jnp.asarray(b).reshape(-1, *(1,) * rank)
