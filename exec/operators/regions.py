"""Regions of interest in an image, as detectors use them: RoiAlign, MaxRoiPool, NonMaxSuppression."""

from __future__ import annotations

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .registry import OnlyOnHostError, Value, lowers, text

__all__ = ["max_roi_pool", "non_max_suppression", "roi_align"]

# Up to this many samples per bin and axis each is read on its own; more become weights of rows and columns.
FEW_SAMPLES = 4


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


def _mode(node: Operator) -> str:
    mode = text(node, "mode", "avg").lower()
    if mode not in ("avg", "max"):
        raise ModelError(f"RoiAlign node {node.name!r}: mode {mode!r} is neither avg nor max.")
    return mode


def _aligned(node: Operator, x: Value, rois: Value, batch: Value, offset: float) -> Array:
    get, image = node.attributes.get, jnp.asarray(x)
    ratio, mode = int(get("sampling_ratio", 0)), _mode(node)
    if ratio <= 0 and mode == "max":
        raise OnlyOnHostError(
            f"RoiAlign node {node.name!r} takes the maximum of as many samples as each region needs, which cannot be "
            "compiled. Export the model with a sampling_ratio to train it."
        )
    real = jnp.promote_types(image.dtype, jnp.float32)
    edges = lax.stop_gradient(jnp.asarray(rois)).astype(real) * float(get("spatial_scale", 1.0)) - offset
    axes = []
    for axis, (size, bins) in enumerate(
        zip(image.shape[2:], (int(get("output_height", 1)), int(get("output_width", 1))), strict=True)
    ):
        start, length = edges[:, 1 - axis], edges[:, 3 - axis] - edges[:, 1 - axis]
        length = length if offset else jnp.maximum(length, 1)
        axes.append((start, length / bins, bins, size))
    last, which = jnp.moveaxis(image, 1, -1), jnp.asarray(batch).astype(jnp.int32)
    if 0 < ratio <= FEW_SAMPLES or mode == "max":
        y = _by_samples(last, which, axes, ratio, mode)
    else:
        y = _by_weights(last, which, axes, ratio)
    return jnp.moveaxis(y, -1, 1).astype(image.dtype)


Axis = tuple[Array, Array, int, int]
"""(start of each region, length of its bins, how many bins, elements of the image)."""


def _corners(at: Array, size: int) -> Iterator[tuple[Array, Array]]:
    """The two elements around positions, with their weights: zero for positions outside by more than one element."""
    inside = (at >= -1) & (at <= size)
    at = jnp.clip(at, 0, size - 1)
    low = jnp.floor(at)
    part = at - low
    index = low.astype(jnp.int32)
    yield index, jnp.where(inside, 1 - part, 0)
    yield jnp.minimum(index + 1, size - 1), jnp.where(inside, part, 0)


def _by_samples(x: Array, which: Array, axes: list[Axis], ratio: int, mode: str) -> Array:
    """x (N, H, W, C) -> (R, height, width, C), sample by sample: gathers of whole channels."""
    flat = x.reshape(-1, x.shape[-1])
    sampled: list[list[list[tuple[Array, Array]]]] = []
    for start, length, bins, size in axes:
        first = start[:, None] + jnp.arange(bins) * length[:, None]
        sampled.append([list(_corners(first + (i + 0.5) / ratio * length[:, None], size)) for i in range(ratio)])
    image = which[:, None, None] * (x.shape[1] * x.shape[2])
    total = None
    for in_row in sampled[0]:
        for in_column in sampled[1]:
            for row, row_weight in in_row:
                for column, column_weight in in_column:
                    index = image + row[:, :, None] * x.shape[2] + column[:, None, :]
                    weight = row_weight[:, :, None] * column_weight[:, None, :]
                    part = flat.at[index].get(mode="clip") * weight[..., None]
                    if total is None:
                        total = part
                    else:
                        # The standard's maximum is that of the weighted elements, not of the samples.
                        total = jnp.maximum(total, part) if mode == "max" else total + part
    assert total is not None
    return total if mode == "max" else total / ratio**2


def _by_weights(x: Array, which: Array, axes: list[Axis], ratio: int) -> Array:
    """The same as a product of each image with weights of its rows and of its columns: any number of samples."""
    rows, columns = (_weights(axis, ratio) for axis in axes)

    def region(given: tuple[Array, Array, Array]) -> Array:
        image, by_row, by_column = given
        return jnp.einsum("ph,hwc,qw->pqc", by_row, x[image].astype(by_row.dtype), by_column)

    return lax.map(region, (which, rows, columns))


def _weights(axis: Axis, ratio: int) -> Array:
    """What each element of the image's axis counts in each bin of each region: (R, bins, size)."""
    start, length, bins, size = axis
    count = jnp.full(length.shape, ratio, jnp.int32) if ratio else jnp.ceil(length).astype(jnp.int32)
    first = start[:, None] + jnp.arange(bins) * length[:, None]
    region, place = jnp.arange(start.size)[:, None], jnp.arange(bins)

    def add(i: Array, weights: Array) -> Array:
        part = ((i + 0.5) / jnp.maximum(count, 1) * length)[:, None]
        for index, weight in _corners(first + part, size):
            weights = weights.at[region, place, index].add(jnp.where(i < count[:, None], weight, 0))
        return weights

    empty = jnp.zeros((start.size, bins, size), first.dtype)
    total = lax.fori_loop(0, jnp.max(count, initial=0), add, empty)
    return lax.stop_gradient(total / jnp.maximum(count, 1)[:, None, None])


@lowers("RoiAlign", since=16, host=True)
def roi_align_on_host(node: Operator, x: np.ndarray, rois: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """The maximum of as many samples as each region needs."""
    return _largest(node, x, rois, batch, 0.5 if _shifts(node) else 0.0)


@lowers("RoiAlign", since=10, host=True)
def roi_align_unshifted_on_host(node: Operator, x: np.ndarray, rois: np.ndarray, batch: np.ndarray) -> np.ndarray:
    """The same before opset 16."""
    return _largest(node, x, rois, batch, 0.0)


def _largest(node: Operator, x: np.ndarray, rois: np.ndarray, batch: np.ndarray, offset: float) -> np.ndarray:
    get = node.attributes.get
    bins = (int(get("output_height", 1)), int(get("output_width", 1)))
    result = np.zeros((len(rois), x.shape[1], *bins), x.dtype)
    real = np.promote_types(x.dtype, np.float32)
    for r, (edges, image) in enumerate(zip(np.asarray(rois, real), batch, strict=True)):
        edges = edges * real.type(get("spatial_scale", 1.0)) - real.type(offset)
        sampled = []
        for axis, size in enumerate(x.shape[2:]):
            start, length = edges[1 - axis], edges[3 - axis] - edges[1 - axis]
            width = (length if offset else max(length, real.type(1))) / bins[axis]
            count = int(np.ceil(width))
            at = start + (np.arange(bins[axis])[:, None] + (np.arange(count) + 0.5) / max(count, 1)) * width
            inside = (at >= -1) & (at <= size)
            at = np.clip(at, 0, size - 1)
            low = np.floor(at).astype(int)
            part = at - low
            index = np.stack([low, np.minimum(low + 1, size - 1)], axis=-1)
            weight = np.stack([1 - part, part], axis=-1) * inside[..., None]
            sampled.append((index.reshape(bins[axis], -1), weight.reshape(bins[axis], -1).astype(real)))
        (rows, by_row), (columns, by_column) = sampled
        if rows.shape[1] and columns.shape[1]:
            seen = x[int(image)][:, rows][:, :, :, columns]
            seen = seen * by_row[:, :, None, None] * by_column
            result[r] = seen.max(axis=(2, 4))
    return result


@lowers("MaxRoiPool")
def max_roi_pool(node: Operator, x: Value, rois: Value) -> Array:
    """x (N, C, H, W), rois (R, 5) as image, x1, y1, x2, y2 -> (R, C, *pooled_shape): maxima of whole elements.

    Bins of a region may share a row or column of elements; an empty one is 0 (Girshick 2015).
    """
    image = jnp.asarray(x)
    given = lax.stop_gradient(jnp.asarray(rois))
    scaled = given[:, 1:] * float(node.attributes.get("spatial_scale", 1.0))
    # Halves go away from zero.
    edges = (jnp.sign(scaled) * jnp.floor(jnp.abs(scaled) + 0.5)).astype(jnp.int32)
    masks = []
    for axis, (size, bins) in enumerate(zip(image.shape[2:], node.attributes["pooled_shape"], strict=True)):
        start, end = edges[:, 1 - axis, None], edges[:, 3 - axis, None]
        length, number = jnp.maximum(end - start + 1, 1), jnp.arange(int(bins), dtype=jnp.int32)
        low = jnp.clip(number * length // int(bins) + start, 0, size)
        high = jnp.clip(-(-(number + 1) * length // int(bins)) + start, 0, size)
        at = jnp.arange(size)
        masks.append((at >= low[..., None]) & (at < high[..., None]))

    def region(given: tuple[Array, Array, Array]) -> Array:
        which, rows, columns = given
        by_row = jnp.max(image[which][:, None], axis=2, where=rows[..., None], initial=-jnp.inf)
        pooled = jnp.max(by_row[:, :, None], axis=3, where=columns, initial=-jnp.inf)
        return jnp.where(jnp.isneginf(pooled), 0, pooled)

    return lax.map(region, (given[:, 0].astype(jnp.int32), *masks)).astype(image.dtype)


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
