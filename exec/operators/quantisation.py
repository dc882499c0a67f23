"""From real numbers to few bits and back: QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear.

A scale (and a zero point of its shape) holds for the whole tensor, for a slice along `axis`, or for a block of
`block_size` elements along it.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .casting import converted, element_type, element_type_of
from .registry import Value, lowers

__all__ = ["dequantize", "is_whole", "quantize", "spread"]


def is_whole(dtype: Any) -> bool:
    """Whether a type holds whole numbers."""
    return bool(jnp.issubdtype(dtype, jnp.integer))


def spread(node: Operator, values: Value, shape: tuple[int, ...]) -> Array:
    """Scales or zero points in a shape that broadcasts with a tensor of `shape`: as they are for the whole tensor, along
    the attribute `axis` (default 1), or each repeated over its block."""
    known = jnp.asarray(values)
    if known.size == 1:
        return known.reshape(())
    axis = int(node.attributes.get("axis", 1))
    rank = len(shape)
    if not -rank <= axis < rank:
        raise ModelError(f"{node.op_type} node {node.name!r}: axis {axis} is none of a tensor with {rank} dims.")
    axis %= rank
    block = int(node.attributes.get("block_size", 0))
    if known.ndim == 1 and not block:
        if known.size != shape[axis]:
            raise ModelError(
                f"{node.op_type} node {node.name!r} has {known.size} scales for {shape[axis]} slices along axis {axis}."
            )
        return known.reshape(*(-1 if i == axis else 1 for i in range(rank)))
    # Without a block size there is one that fits.
    block = block or -(-shape[axis] // known.shape[axis])
    wanted = tuple(-(-n // block) if i == axis else n for i, n in enumerate(shape))
    if known.shape != wanted:
        raise ModelError(
            f"{node.op_type} node {node.name!r} has scales of shape {known.shape}; blocks of {block} along axis {axis} "
            f"of {shape} need {wanted}."
        )
    return jnp.repeat(known, block, axis=axis)[tuple(slice(n) for n in shape)]


def quantize(ratio: Array, zero_point: Array | None, dtype: Any, *, saturate: bool = True) -> Array:
    """round(ratio) + zero point (of shapes that broadcast), cut off at the limits of `dtype`; halves go to the even
    number. 8- and 4-bit floats round to what they can hold instead."""
    dtype = jnp.dtype(dtype)
    if is_whole(dtype):
        limits = jnp.iinfo(dtype)
        # Added as float32: float16 does not hold 65535.
        whole = jnp.round(ratio.astype(jnp.promote_types(ratio.dtype, jnp.float32)))
        if zero_point is not None:
            whole = whole + zero_point.astype(whole.dtype)
        return jnp.clip(whole, int(limits.min), int(limits.max)).astype(jnp.int32).astype(dtype)
    if zero_point is not None:
        ratio = ratio + zero_point.astype(ratio.dtype)
    return jnp.asarray(converted(ratio, dtype, saturate=saturate))


def dequantize(x: Value, scale: Array, zero_point: Array | None, dtype: Any) -> Array:
    """(x - zero point) · scale as `dtype`, of shapes that broadcast; the difference is exact, the product computed in
    float32 at least: float16 need not hold the difference."""
    data = jnp.asarray(x)
    if is_whole(data.dtype):
        difference = data.astype(jnp.int32)
        if zero_point is not None:
            difference = difference - zero_point.astype(jnp.int32)
    else:
        difference = data.astype(jnp.float32)
        if zero_point is not None:
            difference = difference - zero_point.astype(jnp.float32)
    wide = jnp.promote_types(dtype, jnp.float32)
    return (difference.astype(wide) * jnp.asarray(converted(scale, wide))).astype(dtype)


@lowers("QuantizeLinear", since=10)
def quantize_linear(node: Operator, x: Array, scale: Value, zero_point: Value | None = None) -> Array:
    """x (N-D floats or int32) over its scale, rounded, plus the zero point, in the zero point's type (default uint8).

    `precision` is the type that the quotient is computed in, by default the scale's.
    """
    dtype = element_type_of(node, "output_dtype", np.uint8 if zero_point is None else zero_point.dtype)
    precision = element_type_of(node, "precision", scale.dtype)
    if is_whole(precision) or precision.itemsize == 1:
        precision = jnp.dtype(jnp.float32)
    factors = jnp.asarray(converted(spread(node, scale, x.shape), precision))
    zero = None if zero_point is None else spread(node, zero_point, x.shape)
    ratio = jnp.asarray(x).astype(precision) / factors
    return quantize(ratio, zero, dtype, saturate=bool(node.attributes.get("saturate", 1)))


@lowers("DequantizeLinear", since=10)
def dequantize_linear(node: Operator, x: Value, scale: Value, zero_point: Value | None = None) -> Array:
    """(x - zero point) · scale, in the scale's type or `output_dtype`."""
    code = int(node.attributes.get("output_dtype", 0))
    default = jnp.float32 if scale.dtype.itemsize == 1 else scale.dtype
    dtype = element_type(node, code) if code else jnp.dtype(default)
    zero = None if zero_point is None else spread(node, zero_point, x.shape)
    return dequantize(x, spread(node, scale, x.shape), zero, dtype)


@lowers("DynamicQuantizeLinear", since=11)
def dynamic_quantize_linear(node: Operator, x: Array) -> tuple[Array, Array, Array]:
    """(y, scale, zero point): x as uint8, by a scale that spans its values and 0.

    scale = (max(x, 0) - min(x, 0)) / 255, zero point = round(-min / scale). Zeros alone have the scale 1, so that
    nothing is divided by 0.
    """
    low, high = jnp.minimum(jnp.min(x, initial=0), 0), jnp.maximum(jnp.max(x, initial=0), 0)
    span = (high - low) / 255
    scale = jnp.where(span == 0, 1, span).astype(x.dtype)
    zero = jnp.clip(jnp.round(-low / scale), 0, 255).astype(jnp.uint8)
    return quantize(x / scale, zero, jnp.uint8), scale, zero
