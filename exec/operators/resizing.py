"""Resize and Upsample: every output element is a weighted sum of a few input elements along each axis.

Which elements and which weights depends on sizes alone, so both are computed before the run, in NumPy; the compiled code
is one weighted sum after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .registry import Value, lowers, static, text

__all__ = ["Taps", "resize", "taps_of", "upsample"]

# More taps than this are one matrix product: they would make the code long, and read everything over and over.
FEW_TAPS = 32


@dataclass(frozen=True, kw_only=True)
class Taps:
    """What one axis reads: output element i is the sum over t of ``weights[i, t] * x[index[i, t]]``.

    index    int64 (output, taps), may lie outside of the input: its border elements stand for all beyond
    weights  float64 (output, taps), None where every output element is one input element
    outside  bool (output,), output elements that the input does not reach (`tf_crop_and_resize`), or None
    """

    size: int
    index: np.ndarray
    weights: np.ndarray | None = None
    outside: np.ndarray | None = None

    @property
    def output(self) -> int:
        """Elements along the axis after resizing."""
        return int(self.index.shape[0])


@dataclass(frozen=True, kw_only=True)
class _Rule:
    """The attributes of a Resize node."""

    mode: str
    transform: str
    nearest: str
    cubic: float
    exclude_outside: bool
    antialias: bool


def taps_of(
    rule: _Rule, size: int, output: int, scale: float, wanted: float, roi: tuple[float, float] = (0.0, 1.0)
) -> Taps:
    """What an axis of `size` elements reads to become `output` ones.

    scale   output over input, as given; wanted   the output's length before it was rounded
    """
    if output and not size:
        raise ModelError(f"an axis without elements cannot be resized to {output}")
    x = _coordinates(rule, size, output, scale, wanted, roi)
    outside = (x < 0) | (x > size - 1) if rule.transform == "tf_crop_and_resize" else None
    if rule.mode == "nearest":
        return Taps(size=size, index=_rounded(rule.nearest, x, scale)[:, None].astype(np.int64), outside=outside)
    stretch = max(1.0, 1.0 / scale) if rule.antialias else 1.0
    reach = 1 if rule.mode == "linear" else 2
    # The taps lie within `reach * stretch` of x; of an odd number of equally near ones the left is taken.
    count = 2 * int(np.ceil(reach * stretch))
    first = np.ceil(x).astype(np.int64) - count // 2
    index = first[:, None] + np.arange(count)
    distance = np.abs(index - x[:, None]) / stretch
    weights = np.clip(1 - distance, 0, 1) if rule.mode == "linear" else _cubic(distance, rule.cubic)
    if rule.antialias:
        weights = weights / weights.sum(axis=1, keepdims=True)
    if rule.exclude_outside:
        weights = np.where((index >= 0) & (index < size), weights, 0)
        weights = weights / weights.sum(axis=1, keepdims=True)
    return Taps(size=size, index=index, weights=weights, outside=outside)


def _coordinates(
    rule: _Rule, size: int, output: int, scale: float, wanted: float, roi: tuple[float, float]
) -> np.ndarray:
    """Where each output element lies in the input: float64 (output,). Formulas of the ONNX specification.

    Where a rounding error decides what is read, it is computed in 32 bits, as other runtimes do.
    """
    real: Any = np.float32 if rule.mode == "nearest" or rule.transform == "tf_crop_and_resize" else np.float64
    at = np.arange(output, dtype=real)
    scale, wanted = real(scale), real(wanted)
    half, last = real(0.5), real(size - 1)
    start, end = map(real, roi)
    match rule.transform:
        case "half_pixel":
            x = (at + half) / scale - half
        case "half_pixel_symmetric":
            x = real(size) / 2 * (1 - real(output) / wanted) + (at + half) / scale - half
        case "pytorch_half_pixel":
            x = (at + half) / scale - half if output > 1 else at * 0
        case "align_corners":
            x = at * last / (wanted - 1) if wanted != 1 else at * 0
        case "asymmetric":
            x = at / scale
        case "tf_half_pixel_for_nn":
            x = (at + half) / scale
        case "tf_crop_and_resize" if output > 1:
            x = start * last + at * (end - start) * last / real(output - 1)
        case "tf_crop_and_resize":
            x = at * 0 + half * (start + end) * last
        case other:
            raise ModelError(f"coordinate_transformation_mode {other!r} is none that the standard knows")
    return x.astype(np.float64)


def _rounded(how: str, x: np.ndarray, scale: float) -> np.ndarray:
    match how:
        case "round_prefer_floor":
            return np.ceil(x - 0.5)
        case "round_prefer_ceil":
            return np.floor(x + 0.5)
        case "floor":
            return np.floor(x)
        case "ceil":
            return np.ceil(x)
        case "before opset 11":
            # The standard left it open; this is what its tests and every runtime agree on.
            return np.ceil(x) if scale < 1 else np.floor(x)
    raise ModelError(f"nearest_mode {how!r} is none of round_prefer_floor, round_prefer_ceil, floor, ceil")


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys 1981, "Cubic convolution interpolation for digital image processing", equation 4."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))


def _along(x: Array, axis: int, taps: Taps) -> Array:
    """`x` resampled along one axis.

    Its gradient is written down, not derived: what an input element gets is a weighted sum of output elements, and
    reading those is up to 30 times faster than adding to where they came from (measured on one x86 core).
    """
    index = np.clip(taps.index, 0, taps.size - 1)
    if taps.weights is None:
        pattern = _regular(x, axis, index[:, 0], taps.size)
        if pattern is not None:
            return pattern
    weights = np.ones(index.shape) if taps.weights is None else taps.weights
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return jnp.take(x, index[:, 0], axis=axis, mode="clip")

    @jax.custom_vjp
    def resampled(x: Array) -> Array:
        return _summed(x, axis, index, weights)

    def backward(_: None, gradient: Array) -> tuple[Array]:
        return (_summed(gradient, axis, *_transposed(index, weights, taps.size)),)

    resampled.defvjp(lambda x: (resampled(x), None), backward)
    return resampled(x)


def _regular(x: Array, axis: int, index: np.ndarray, size: int) -> Array | None:
    """One input element each, where a broadcast or a slice says which."""
    factor = index.size // size
    if index.size == factor * size and np.array_equal(index, np.arange(index.size) // max(factor, 1)):
        return jnp.repeat(x, factor, axis=axis)
    steps = np.diff(index)
    if steps.size and steps[0] > 0 and np.all(steps == steps[0]):
        return lax.slice_in_dim(x, int(index[0]), int(index[-1]) + 1, int(steps[0]), axis)
    return None


def _summed(x: Array, axis: int, index: np.ndarray, weights: np.ndarray) -> Array:
    """The sum over t of ``weights[:, t] * x[index[:, t]]`` along one axis: tap by tap, which XLA fuses into one loop.

    Many taps are a product with the matrix of weights instead.
    """
    if index.shape[1] > FEW_TAPS:
        matrix = np.zeros((x.shape[axis], index.shape[0]))
        np.add.at(matrix, (index, np.arange(index.shape[0])[:, None]), weights)
        product = jnp.tensordot(x, jnp.asarray(matrix, x.dtype), axes=((axis,), (0,)), precision="highest")
        return jnp.moveaxis(product, -1, axis)
    shape = (-1, *(1,) * (x.ndim - 1 - axis))
    total = None
    for places, share in zip(index.T, weights.T, strict=True):
        if not np.any(share):
            continue
        part = jnp.take(x, places, axis=axis, mode="clip")
        part = part if np.all(share == 1) else part * jnp.asarray(share, x.dtype).reshape(shape)
        total = part if total is None else total + part
    empty = (*x.shape[:axis], index.shape[0], *x.shape[axis + 1 :])
    return jnp.zeros(empty, x.dtype) if total is None else total


def _transposed(index: np.ndarray, weights: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """For each of `size` input elements the output elements that read it, and with what weight: (size, most)."""
    source = index.reshape(-1)
    target = np.repeat(np.arange(index.shape[0]), index.shape[1])
    order = np.argsort(source, kind="stable")
    counts = np.bincount(source, minlength=size)
    place = np.arange(source.size) - np.repeat(np.cumsum(counts) - counts, counts)
    most = max(int(counts.max(initial=0)), 1)
    where, share = np.zeros((size, most), np.int64), np.zeros((size, most))
    where[source[order], place] = target[order]
    share[source[order], place] = weights.reshape(-1)[order]
    return where, share


def _resampled(x: Value, axes: Sequence[tuple[int, Taps]], extrapolation: float) -> Array:
    """`x` resampled along each axis; integers and short floats are computed with in 32 (or 64) bits."""
    x = jnp.asarray(x)
    kind = x.dtype
    changed = [(axis, taps) for axis, taps in axes if not _is_identity(taps)]
    weighted = any(taps.weights is not None for _, taps in changed)
    # The axes that shrink most come first: less to do for the others.
    for axis, taps in sorted(changed, key=lambda pair: pair[1].output / max(pair[1].size, 1)):
        if weighted and x.dtype == kind and not jnp.issubdtype(kind, jnp.complexfloating):
            x = x.astype(_wide(kind))
        x = _along(x, axis, taps)
    if weighted and jnp.issubdtype(kind, jnp.integer):
        x = jnp.clip(x, jnp.iinfo(kind).min, jnp.iinfo(kind).max)
    x = x.astype(kind)
    for axis, taps in axes:
        if taps.outside is not None and taps.outside.any():
            mask = taps.outside.reshape(-1, *(1,) * (x.ndim - 1 - axis))
            x = jnp.where(mask, jnp.asarray(extrapolation, kind), x)
    return x


def _wide(kind: Any) -> Any:
    if jnp.issubdtype(kind, jnp.integer) and kind.itemsize >= 4:
        return jax.dtypes.canonicalize_dtype(np.float64)
    return jnp.promote_types(kind, jnp.float32)


def _is_identity(taps: Taps) -> bool:
    if taps.output != taps.size or (taps.outside is not None and taps.outside.any()):
        return False
    if taps.weights is None:
        return np.array_equal(np.clip(taps.index[:, 0], 0, taps.size - 1), np.arange(taps.size))
    matrix = np.where(taps.index == np.arange(taps.size)[:, None], taps.weights, 0).sum(axis=1)
    return bool(np.abs(matrix - 1).max(initial=0) < 1e-9)


@lowers("Resize", since=11)
def resize(
    node: Operator, x: Value, roi: Value | None = None, scales: Value | None = None, sizes: Value | None = None
) -> Array:
    """x resampled to `sizes`, or by `scales`, along `axes` (default all).

    The output has ``floor(size * scale)`` elements along an axis; with a `keep_aspect_ratio_policy` one scale serves all
    axes. In `tf_crop_and_resize`, `roi` (starts, then ends, in parts of the input) says what is resampled.
    """
    get = node.attributes.get
    axes = [int(a) % x.ndim for a in get("axes") or range(x.ndim)]
    rule = _Rule(
        mode=text(node, "mode", "nearest"),
        transform=text(node, "coordinate_transformation_mode", "half_pixel"),
        nearest=text(node, "nearest_mode", "round_prefer_floor"),
        cubic=float(get("cubic_coeff_a", -0.75)),
        exclude_outside=bool(get("exclude_outside", 0)),
        antialias=bool(get("antialias", 0)),
    )
    if rule.mode not in ("nearest", "linear", "cubic"):
        raise ModelError(f"Resize node {node.name!r}: mode {rule.mode!r} is none of nearest, linear, cubic.")
    region = [(0.0, 1.0)] * len(axes)
    if rule.transform == "tf_crop_and_resize":
        flat = [float(v) for v in static(node, "roi", roi).reshape(-1)]
        region = list(zip(flat[: len(axes)], flat[len(axes) :], strict=True))
    before = [x.shape[a] for a in axes]
    after, factors, wanted = _sizes(node, before, scales, sizes, region, rule)
    try:
        plans = [taps_of(rule, *given) for given in zip(before, after, factors, wanted, region, strict=True)]
    except ModelError as error:
        raise ModelError(f"Resize node {node.name!r}: {error}.") from None
    return _resampled(x, list(zip(axes, plans, strict=True)), float(get("extrapolation_value", 0.0)))


def _sizes(
    node: Operator,
    before: Sequence[int],
    scales: Value | None,
    sizes: Value | None,
    region: Sequence[tuple[float, float]],
    rule: _Rule,
) -> tuple[list[int], list[float], list[float]]:
    """(output sizes, scales, output sizes before rounding) of the resized axes."""
    if scales is not None and scales.size:
        factors = static(node, "scales", scales).astype(np.float32)
        _match(node, "scales", factors, before)
        lengths = np.asarray(before, np.float32) * factors
        if rule.transform == "tf_crop_and_resize":
            lengths = lengths * np.asarray([z - a for a, z in region], np.float32)
        wanted = [size * float(f) for size, f in zip(before, factors, strict=True)]
        return [int(n) for n in np.floor(lengths)], [float(f) for f in factors], wanted
    if sizes is None:
        raise ModelError(f"Resize node {node.name!r} has neither scales nor sizes. Export the model again.")
    given = [int(n) for n in static(node, "sizes", sizes)]
    _match(node, "sizes", given, before)
    policy = text(node, "keep_aspect_ratio_policy", "stretch")
    ratios = [n / size if size else 1.0 for n, size in zip(given, before, strict=True)]
    if policy == "stretch":
        return given, ratios, [float(n) for n in given]
    if policy not in ("not_larger", "not_smaller"):
        raise ModelError(
            f"Resize node {node.name!r}: keep_aspect_ratio_policy {policy!r} is none of stretch, not_larger, not_smaller."
        )
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    after = [int(np.floor(scale * size + 0.5)) for size in before]
    return after, [scale] * len(before), [scale * size for size in before]


def _match(node: Operator, name: str, given: Sequence[Any] | np.ndarray, before: Sequence[int]) -> None:
    if len(given) != len(before) or any(v < 0 or (v == 0 and name == "scales") for v in given):
        raise ModelError(
            f"{node.op_type} node {node.name!r}: {name} {list(map(float, given))} do not fit {len(before)} axes of "
            f"{list(before)} elements. Correct the model's {name}, or bind its dims (hpdlf import --bind NAME=N)."
        )


@lowers("Resize", since=10)
@lowers("Upsample", since=9)
def upsample(node: Operator, x: Value, scales: Value) -> Array:
    """x resampled by `scales` along every axis; an element's left edge decides where it lies."""
    mode = text(node, "mode", "nearest")
    # What the standard calls linear, exporters of that time also called bilinear.
    mode = "linear" if mode in ("linear", "bilinear") else mode
    if mode not in ("nearest", "linear"):
        raise ModelError(f"{node.op_type} node {node.name!r}: mode {mode!r} is neither nearest nor linear.")
    rule = _Rule(
        mode=mode,
        transform="asymmetric",
        nearest="before opset 11",
        cubic=-0.75,
        exclude_outside=False,
        antialias=False,
    )
    after, factors, wanted = _sizes(node, x.shape, scales, None, [(0.0, 1.0)] * x.ndim, rule)
    plans = [taps_of(rule, *given) for given in zip(x.shape, after, factors, wanted, strict=True)]
    return _resampled(x, list(enumerate(plans)), 0.0)


@lowers("Upsample", since=7)
def upsample_by_attribute(node: Operator, x: Value) -> Array:
    """In opset 7 and 8 the scales are an attribute."""
    return upsample(node, x, np.asarray(node.attributes["scales"], np.float32))


@lowers("Upsample", since=1)
def upsample_image(node: Operator, x: Value) -> Array:
    """Before opset 7: (N, C, H, W), with one scale for H and one for W."""
    get = node.attributes
    return upsample(node, x, np.asarray([1, 1, get["height_scale"], get["width_scale"]], np.float32))
