"""The largest, the first, the different: TopK, Unique, NonZero, Compress. Only TopK's result has a known shape."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .registry import Value, lowers, static

__all__ = ["compress", "non_zero", "top_k", "unique"]


@lowers("TopK", since=10)
def top_k(node: Operator, x: Value, k: Value) -> tuple[Array, Array]:
    """(values, indices) of the k largest (or with `largest` 0 smallest) along `axis`, sorted; of equal ones the first.

    Shapes are x's with k in place of the axis; indices are int64.
    """
    count = int(static(node, "K", k).reshape(()))
    axis = int(node.attributes.get("axis", -1))
    data = jnp.moveaxis(jnp.asarray(x), axis, -1)
    if not 0 <= count <= data.shape[-1]:
        raise ModelError(
            f"TopK node {node.name!r} asks for {count} of the {data.shape[-1]} elements along axis {axis}."
        )
    if bool(node.attributes.get("largest", 1)):
        values, at = lax.top_k(data, count)
    elif jnp.issubdtype(data.dtype, jnp.integer):
        # Turning every bit turns the order round, and unlike a minus sign it overflows nowhere.
        values, at = lax.top_k(~data, count)
        values = ~values
    else:
        values, at = lax.top_k(-data, count)
        values = -values
    whole = jax.dtypes.canonicalize_dtype(np.int64)
    return jnp.moveaxis(values, -1, axis), jnp.moveaxis(at, -1, axis).astype(whole)


@lowers("TopK")
def top_k_by_attribute(node: Operator, x: Value) -> tuple[Array, Array]:
    """Before opset 10 `k` is an attribute."""
    return top_k(node, x, np.asarray(node.attributes["k"]))


@lowers("NonZero", since=9, host=True)
def non_zero(node: Operator, x: np.ndarray) -> np.ndarray:
    """Where x is not 0 (nor the empty string): (rank, count), row by row. A scalar has rank 0."""
    if x.dtype.kind == "O":
        x = x != ""
    if x.ndim == 0:
        return np.zeros((0, int(bool(x))), np.int64)
    return np.array(np.nonzero(x), np.int64)


@lowers("Compress", since=9, host=True)
def compress(node: Operator, x: np.ndarray, condition: np.ndarray) -> np.ndarray:
    """The slices of x along `axis` (without it: elements of x) where the condition, which may be shorter, holds."""
    axis = node.attributes.get("axis")
    return np.compress(condition, x, axis=None if axis is None else int(axis))


@lowers("Unique", since=11, host=True)
def unique(node: Operator, x: np.ndarray) -> tuple[np.ndarray, ...]:
    """(different values, where each is first, which of them each is, how often each is); of slices along `axis`.

    Sorted, or with `sorted` 0 in the order of their first occurrence. Slices are sorted by their first elements.
    """
    axis = node.attributes.get("axis")
    along = None if axis is None else int(axis)
    text = x.dtype.kind == "O"
    # NumPy sorts neither slices of Python strings nor of the small float types; float32 holds all of these.
    plain = x.astype(str) if text else x if x.dtype.kind in "biufc" else x.astype(np.float32)
    values, first, which, count = np.unique(
        plain, return_index=True, return_inverse=True, return_counts=True, axis=along
    )
    which = which.reshape(-1)
    if not node.attributes.get("sorted", 1):
        order = np.argsort(first, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(order.size)
        values = np.take(values, order, axis=0 if along is None else along)
        first, count, which = first[order], count[order], place[which]
    whole = (first, which, count)
    return (values.astype(x.dtype), *(part.astype(np.int64) for part in whole))
