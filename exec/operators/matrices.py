"""Matrices of a known pattern, and what is read off one: EyeLike, OneHot, Trilu, Det, CumSum, CumProd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...models.onnxpp.graph import Operator
from .casting import element_type_of
from .registry import Value, lowers, static

__all__ = ["determinant", "eye_like", "one_hot", "triangle"]


@lowers("EyeLike", since=9)
def eye_like(node: Operator, x: Value) -> Array:
    """A matrix of x's shape: 1 on the diagonal `k` places right of the main one, 0 elsewhere; of `dtype` or x's type."""
    rows, columns = x.shape
    return jnp.eye(rows, columns, k=int(node.attributes.get("k", 0)), dtype=element_type_of(node, "dtype", x.dtype))


@lowers("OneHot", since=9)
def one_hot(node: Operator, indices: Value, depth: Value, values: Value) -> Array:
    """A new dim of `depth` at `axis` (default last): values[1] at the index, values[0] elsewhere.

    Negative indices count from the end; those beyond it are nowhere.
    """
    count = int(static(node, "depth", depth).reshape(()))
    axis = int(node.attributes.get("axis", -1))
    at = jnp.asarray(indices)
    if jnp.issubdtype(at.dtype, jnp.integer):
        # The depth may be more than 8 bits hold.
        at = at.astype(jax.dtypes.canonicalize_dtype(np.int64))
    at = jnp.expand_dims(jnp.where(at < 0, at + jnp.asarray(count, at.dtype), at), axis)
    shape = [1] * at.ndim
    shape[axis] = count
    hot = at == jnp.arange(count).astype(at.dtype).reshape(shape)
    return jnp.where(hot, jnp.asarray(values)[1], jnp.asarray(values)[0])


@lowers("Trilu", since=14)
def triangle(node: Operator, x: Value, k: Value | None = None) -> Array:
    """The upper (or with `upper` 0 lower) triangle of each matrix (..., N, M), 0 elsewhere; the diagonal `k` places
    right of the main one belongs to it."""
    rows, columns = x.shape[-2:]
    ahead = jnp.arange(columns)[None, :] - jnp.arange(rows)[:, None]
    edge = 0 if k is None else jnp.asarray(k).reshape(())
    kept = ahead >= edge if node.attributes.get("upper", 1) else ahead <= edge
    return jnp.where(kept, x, jnp.zeros((), x.dtype))


@lowers("Det", since=11)
def determinant(node: Operator, x: Value) -> Array:
    """The determinants of matrices (..., M, M)."""
    data = jnp.asarray(x)
    return jnp.linalg.det(data.astype(jnp.promote_types(data.dtype, jnp.float32))).astype(data.dtype)


def _cumulated(node: Operator, x: Value, axis: Value, total: Callable[..., Any], nothing: int) -> Array:
    """Totals up to each element along an axis (with `reverse` from it on), or with `exclusive` without it."""
    data = jnp.asarray(x)
    along = int(static(node, "axis", axis).reshape(())) % data.ndim
    backwards = bool(node.attributes.get("reverse", 0))
    if node.attributes.get("exclusive", 0):
        # Moved by one before summing: subtracting afterwards would lose digits.
        pads = [(0, 0, 0)] * data.ndim
        pads[along] = (-1, 1, 0) if backwards else (1, -1, 0)
        data = lax.pad(data, jnp.asarray(nothing, data.dtype), pads)
    return total(data, axis=along, reverse=backwards)


@lowers("CumSum", since=11)
def cumulative_sum(node: Operator, x: Value, axis: Value) -> Array:
    """Sums of the elements before and at each along `axis`."""
    return _cumulated(node, x, axis, lax.cumsum, 0)


@lowers("CumProd", since=26)
def cumulative_product(node: Operator, x: Value, axis: Value) -> Array:
    """Products of the elements before and at each along `axis`."""
    return _cumulated(node, x, axis, lax.cumprod, 1)
