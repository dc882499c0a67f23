"""Regions of interest in an image, as detectors use them: RoiAlign, MaxRoiPool, NonMaxSuppression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .registry import Value, lowers, text

__all__ = ["max_roi_pool", "non_max_suppression", "roi_align"]


@lowers("RoiAlign", since=16)
def roi_align(node: Operator, x: Value, rois: Value, batch: Value) -> Array:
    """x (N, C, H, W), rois (R, 4) as x1, y1, x2, y2, batch (R,) -> (R, C, height, width); He et al. 2017.

    Each region is cut into bins, each bin is the mean or the maximum of samples that are interpolated linearly. With
    a `sampling_ratio` of 0 there are as many samples as the bin has elements, which differs from region to region.
    Gradients go to x alone, as in the paper.
    """
    return _aligned(node, x, rois, batch, 0.5 if _shifts(node) else 0.0)


@lowers("RoiAlign", since=10)
def roi_align_unshifted(node: Operator, x: Value, rois: Value, batch: Value) -> Array:
    """Before opset 16 coordinates are those of elements, not of their edges."""
    return _aligned(node, x, rois, batch, 0.0)


def _shifts(node: Operator) -> bool:
    how = text(node, "coordinate_transformation_mode", "half_pixel")
    if how not in ("half_pixel", "output_half_pixel"):
        raise ModelError(
            f"RoiAlign node {node.name!r}: coordinate_transformation_mode {how!r} is neither half_pixel nor "
            "output_half_pixel."
        )
    return how == "half_pixel"


def _aligned(node: Operator, x: Value, rois: Value, batch: Value, offset: float) -> Array:
    get, image = node.attributes.get, jnp.asarray(x)
    ratio, mode = int(get("sampling_ratio", 0)), text(node, "mode", "avg").lower()
    if mode not in ("avg", "max"):
        raise ModelError(f"RoiAlign node {node.name!r}: mode {mode!r} is neither avg nor max.")
    real = jnp.promote_types(image.dtype, jnp.float32)
    edges = jnp.asarray(rois).astype(real) * float(get("spatial_scale", 1.0)) - offset
    bins = (int(get("output_height", 1)), int(get("output_width", 1)))
    axes = []
    for axis, count in enumerate(bins):
        start, length = edges[:, 1 - axis], edges[:, 3 - axis] - edges[:, 1 - axis]
        length = (length if offset else jnp.maximum(length, 1)) / count
        samples = jnp.full(length.shape, ratio, jnp.int32) if ratio > 0 else jnp.ceil(length).astype(jnp.int32)
        axes.append((start, length, jnp.maximum(samples, 0)))
    return _pooled(image, batch, tuple(axes), _Bins(size=image.shape[2:], bins=bins, mode=mode, between=True))


@lowers("MaxRoiPool")
def max_roi_pool(node: Operator, x: Value, rois: Value) -> Array:
    """x (N, C, H, W), rois (R, 5) as image, x1, y1, x2, y2 -> (R, C, *pooled_shape): maxima of whole elements.

    Bins of a region may share a row or column of elements; an empty one is 0 (Girshick 2015).
    """
    image, given = jnp.asarray(x), jnp.asarray(rois)
    scaled = given[:, 1:] * float(node.attributes.get("spatial_scale", 1.0))
    # Halves go away from zero.
    edges = (jnp.sign(scaled) * jnp.floor(jnp.abs(scaled) + 0.5)).astype(jnp.int32)
    bins = tuple(int(n) for n in node.attributes["pooled_shape"])
    axes = []
    for axis, (size, count) in enumerate(zip(image.shape[2:], bins, strict=True)):
        start, end = edges[:, 1 - axis, None], edges[:, 3 - axis, None]
        length, number = jnp.maximum(end - start + 1, 1), jnp.arange(count, dtype=jnp.int32)
        low = jnp.clip(number * length // count + start, 0, size)
        high = jnp.clip(-(-(number + 1) * length // count) + start, 0, size)
        axes.append((low, high))
    return _pooled(image, given[:, 0], tuple(axes), _Bins(size=image.shape[2:], bins=bins, mode="max", between=False))


@dataclass(frozen=True, kw_only=True)
class _Bins:
    """How regions are pooled.

    size     of the image; bins   of every region, along both axes
    mode     avg or max
    between  whether bins are sampled between elements: an axis is then (start of each region, length of its bins, samples
             per bin), each (R,); else it is (first element of each bin, the one after its last), each (R, bins)
    """

    size: tuple[int, ...]
    bins: tuple[int, ...]
    mode: str
    between: bool


Axes = tuple[tuple[Array, ...], ...]
Read = tuple[Array, Array]
"""(indices, weights): of elements of an axis (R, bins), or of an image (R, height, width)."""


def _pooled(image: Array, batch: Value, axes: Axes, how: _Bins) -> Array:
    """(N, C, H, W) -> (R, C, *bins)."""
    real = jnp.promote_types(image.dtype, jnp.float32)
    which = jnp.asarray(batch).astype(jnp.int32)
    # Channels last, so that what is read is a run of memory.
    y = _pool(jnp.moveaxis(image, 1, -1).astype(real), which, lax.stop_gradient(axes), how)
    return jnp.moveaxis(y, -1, 1).astype(image.dtype)


def _along(axis: tuple[Array, ...], how: _Bins, number: int, i: Array) -> tuple[list[Read], Array]:
    """What sample i of every bin reads along an axis, and whether the bin has so many: (R, bins)."""
    size = how.size[number]
    if not how.between:
        low, high = axis
        return [(jnp.minimum(low + i, size - 1), jnp.ones_like(low, jnp.float32))], low + i < high
    start, length, count = (v[:, None] for v in axis)
    at = start + (jnp.arange(how.bins[number]) + (i + 0.5) / jnp.maximum(count, 1)) * length
    # Up to one element outside counts as the border, beyond it as zero.
    inside = (at >= -1) & (at <= size)
    at = jnp.clip(at, 0, size - 1)
    part = at - jnp.floor(at)
    first = jnp.floor(at).astype(jnp.int32)
    reads = [
        (first, jnp.where(inside, 1 - part, 0)),
        (jnp.minimum(first + 1, size - 1), jnp.where(inside, part, 0)),
    ]
    return reads, jnp.broadcast_to(i < count, at.shape)


def _samples(axes: Axes, which: Array, how: _Bins) -> tuple[Array, Callable[[Array], tuple[list[Read], Array]]]:
    """(how many samples the fullest bin has, what sample k reads in the flattened images and where there is one)."""
    rows, columns = (jnp.max(a[2] if how.between else a[1] - a[0], initial=0) for a in axes)

    def sample(k: Array) -> tuple[list[Read], Array]:
        (in_row, has_row), (in_column, has_column) = (
            _along(axis, how, number, i) for number, (axis, i) in enumerate(zip(axes, divmod(k, columns), strict=True))
        )
        image = which[:, None, None] * (how.size[0] * how.size[1])
        reads = [
            (image + row[:, :, None] * how.size[1] + column[:, None, :], a[:, :, None] * b[:, None, :])
            for row, a in in_row
            for column, b in in_column
        ]
        return reads, has_row[:, :, None] & has_column[:, None, :]

    return rows * columns, sample


def _counts(axes: Axes) -> Array:
    """Samples per bin, at least one: (R, 1, 1, 1)."""
    return jnp.maximum(axes[0][2] * axes[1][2], 1)[:, None, None, None]


# Loops whose length the regions decide have no derived gradient; and one sum in place beats the sum of many sparse ones.
@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _pool(x: Array, which: Array, axes: Axes, how: _Bins) -> Array:
    """x (N, H, W, C) -> (R, height, width, C), one sample of every bin after the other."""
    flat = x.reshape(-1, x.shape[-1])
    most, sample = _samples(axes, which, how)
    empty = jnp.full((which.size, *how.bins, x.shape[-1]), -jnp.inf if how.mode == "max" else 0, x.dtype)

    def add(k: Array, total: Array) -> Array:
        reads, there = sample(k)
        parts = [flat.at[index].get(mode="clip") * weight[..., None].astype(x.dtype) for index, weight in reads]
        if how.mode == "avg":
            return total + jnp.where(there[..., None], reduce(jnp.add, parts), 0)
        # The standard's maximum is that of the weighted elements, not of the samples.
        return jnp.where(there[..., None], jnp.maximum(total, reduce(jnp.maximum, parts)), total)

    total = lax.fori_loop(0, most, add, empty)
    if how.mode == "avg":
        return total / _counts(axes).astype(x.dtype)
    return jnp.where(jnp.isneginf(total), 0, total)


def _pool_forward(x: Array, which: Array, axes: Axes, how: _Bins) -> tuple[Array, Any]:
    y = _pool(x, which, axes, how)
    return y, (x, which, axes, y)


def _pool_backward(how: _Bins, kept: Any, gradient: Array) -> tuple[Array, None, None]:
    """Of equal maxima the first gets it all."""
    x, which, axes, y = kept
    flat = x.reshape(-1, x.shape[-1])
    most, sample = _samples(axes, which, how)
    if how.mode == "avg":
        gradient = gradient / _counts(axes).astype(gradient.dtype)

    def add(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        into, left = state
        reads, there = sample(k)
        for index, weight in reads:
            weight = jnp.where(there, weight, 0)[..., None].astype(x.dtype)
            share = left
            if how.mode == "max":
                found = there[..., None] & (flat.at[index].get(mode="clip") * weight == y)
                share, left = jnp.where(found, left, 0), jnp.where(found, 0, left)
            into = into.at[index].add(share * weight, mode="drop")
        return into, left

    into, _ = lax.fori_loop(0, most, add, (jnp.zeros_like(flat), gradient))
    return into.reshape(x.shape), None, None


_pool.defvjp(_pool_forward, _pool_backward)


@lowers("NonMaxSuppression", since=10, host=True)
def non_max_suppression(
    node: Operator,
    boxes: np.ndarray,
    scores: np.ndarray,
    most: np.ndarray | None = None,
    overlap: np.ndarray | None = None,
    lowest: np.ndarray | None = None,
) -> np.ndarray:
    """boxes (N, B, 4), scores (N, classes, B) -> int64 (chosen, 3): image, class and box of what is left.

    From the highest score down, a box is taken unless it overlaps one taken before by more than `overlap`
    (intersection over union). At most `most` per image and class (default 0: none), only scores above `lowest`.
    """
    limit = 0 if most is None else int(np.reshape(most, -1)[0])
    threshold = np.float32(0 if overlap is None else np.reshape(overlap, -1)[0])
    chosen: list[tuple[int, int, int]] = []
    for image, per_class in enumerate(scores):
        corners = _box_corners(boxes[image], bool(node.attributes.get("center_point_box", 0)))
        for label, score in enumerate(per_class):
            left = np.arange(score.size) if lowest is None else np.flatnonzero(score > np.reshape(lowest, -1)[0])
            left = left[np.argsort(-score[left], kind="stable")]
            count = 0
            while left.size and count < limit:
                best, left = left[0], left[1:]
                chosen.append((image, label, int(best)))
                count += 1
                left = left[_overlaps(corners[best], corners[left]) <= threshold]
    return np.array(chosen, np.int64).reshape(-1, 3)


def _box_corners(boxes: np.ndarray, centred: bool) -> np.ndarray:
    """Boxes as (low, low, high, high), from any two opposite corners, or from centre, width and height."""
    first, second = boxes[:, :2], boxes[:, 2:]
    if centred:
        first, second = first - second / 2, first + second / 2
    return np.concatenate([np.minimum(first, second), np.maximum(first, second)], axis=1)


def _overlaps(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of one box with each of others; 0 where either has no area."""
    low, high = np.maximum(one[:2], others[:, :2]), np.minimum(one[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    area = np.prod(one[2:] - one[:2])
    union = area + areas - shared
    counts = (area > 0) & (areas > 0) & (shared > 0)
    return np.where(counts, shared / np.where(counts, union, 1), 0)
