"""Reading and writing at places that indices say: GatherND, Scatter and its relatives, MaxUnpool, ReverseSequence.

Indices count from the end where they are negative. One beyond the tensor is an error by the standard; compiled code
cannot raise, so there it reads the nearest element and writes nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .registry import Value, lowers, static, text

__all__ = ["gather_nd", "reverse_sequence", "scatter_elements", "scatter_nd", "tensor_scatter"]


def _from_start(indices: Value, size: int) -> Array:
    at = jnp.asarray(indices)
    return jnp.where(at < 0, at + size, at)


def _written(node: Operator, x: Array, where: tuple[Array, ...], updates: Array) -> Array:
    """`x` with `updates` at `where`: in place of what was there, or combined with it by the attribute `reduction`."""
    # JAX would count negative indices from the end once more.
    where = tuple(jnp.where(at < 0, size, at) for at, size in zip(where, x.shape, strict=False))
    updates = updates.astype(x.dtype)
    reduction = text(node, "reduction", "none")
    match reduction:
        case "none":
            return x.at[where].set(updates, mode="drop")
        case "add":
            return x.at[where].add(updates, mode="drop")
        case "mul" | "max" | "min" if jnp.issubdtype(x.dtype, jnp.inexact):
            return _combined(reduction, x, where, updates)
        case "mul" | "max" | "min":
            return _combine(reduction, x, where, updates)
    raise ModelError(f"{node.op_type} node {node.name!r}: reduction {reduction!r} is none of none, add, mul, max, min.")


def _combine(reduction: str, x: Array, where: tuple[Array, ...], updates: Array) -> Array:
    target = x.at[where]
    function = {"mul": target.mul, "max": target.max, "min": target.min}[reduction]
    return function(updates, mode="drop")


# JAX has no gradient for these where several updates meet in one place.
@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _combined(reduction: str, x: Array, where: tuple[Array, ...], updates: Array) -> Array:
    return _combine(reduction, x, where, updates)


def _combined_forward(reduction: str, x: Array, where: tuple[Array, ...], updates: Array) -> tuple[Array, Any]:
    result = _combine(reduction, x, where, updates)
    return result, (x, where, updates, result)


def _combined_backward(reduction: str, kept: Any, gradient: Array) -> tuple[Array, Any, Array]:
    """Of equal extrema each gets the same part; a product's factors get the product of all others, zero or not."""
    x, where, updates, result = kept

    def at(values: Array) -> Array:
        return values.at[where].get(mode="fill", fill_value=0)

    if reduction == "mul":
        zeros = (x == 0).astype(jnp.int32).at[where].add((updates == 0).astype(jnp.int32), mode="drop")
        others = jnp.where(x == 0, 1, x).at[where].mul(jnp.where(updates == 0, 1, updates), mode="drop")

        def share(factor: Array, product: Array, count: Array, gradient: Array) -> Array:
            alone = (count == 0) | ((count == 1) & (factor == 0))
            return jnp.where(alone, gradient * product / jnp.where(factor == 0, 1, factor), 0)

        into_x, into_updates = share(x, others, zeros, gradient), share(updates, at(others), at(zeros), at(gradient))
    else:
        mine, theirs = x == result, updates == at(result)
        count = mine.astype(x.dtype).at[where].add(theirs.astype(x.dtype), mode="drop")
        part = gradient / jnp.maximum(count, 1)
        into_x, into_updates = jnp.where(mine, part, 0), jnp.where(theirs, at(part), 0)
    return into_x, jax.tree.map(lambda v: np.zeros(v.shape, jax.dtypes.float0), where), into_updates


_combined.defvjp(_combined_forward, _combined_backward)


@lowers("Scatter", since=9)
@lowers("ScatterElements", since=11)
def scatter_elements(node: Operator, data: Value, indices: Value, updates: Value) -> Array:
    """data with ``updates[i, j]`` at ``[indices[i, j], j]`` (for `axis` 0); updates and indices are of one shape."""
    x = jnp.asarray(data)
    axis = int(node.attributes.get("axis", 0)) % x.ndim
    shape = indices.shape
    # Where each update goes along the other axes is its own place.
    where = [jnp.arange(n).reshape(-1, *(1,) * (len(shape) - 1 - i)) for i, n in enumerate(shape)]
    where[axis] = _from_start(indices, x.shape[axis])
    return _written(node, x, tuple(where), jnp.asarray(updates))


@lowers("ScatterND", since=11)
def scatter_nd(node: Operator, data: Value, indices: Value, updates: Value) -> Array:
    """data with ``updates[i]`` at ``data[indices[i]]``: indices (*batch, k), updates (*batch, *data.shape[k:])."""
    x = jnp.asarray(data)
    where = tuple(_from_start(indices[..., k], x.shape[k]) for k in range(indices.shape[-1]))
    return _written(node, x, where, jnp.asarray(updates))


@lowers("TensorScatter", since=24)
def tensor_scatter(node: Operator, cache: Value, update: Value, indices: Value | None = None) -> Array:
    """cache (batch, ..., size, ...) with `update` (batch, ..., length, ...) from ``indices[sample]`` (default 0) on.

    Beyond the end it goes on at the beginning where `mode` is "circular".
    """
    x, values = jnp.asarray(cache), jnp.asarray(update)
    axis = int(node.attributes.get("axis", -2)) % x.ndim
    mode = text(node, "mode", "linear")
    if mode not in ("linear", "circular") or axis == 0:
        raise ModelError(
            f"TensorScatter node {node.name!r}: mode {mode!r} along axis {axis}; the standard has linear and circular, "
            "along any axis but the batch."
        )
    length, size = values.shape[axis], x.shape[axis]
    first = jnp.zeros(x.shape[0], jnp.int32) if indices is None else jnp.asarray(indices)
    at = first[:, None] + jnp.arange(length)
    at = at % size if mode == "circular" else at
    rows, written = jnp.moveaxis(x, axis, 1), jnp.moveaxis(values, axis, 1)
    result = rows.at[jnp.arange(x.shape[0])[:, None], at].set(written.astype(x.dtype), mode="drop")
    return jnp.moveaxis(result, 1, axis)


@lowers("GatherND", since=11)
def gather_nd(node: Operator, data: Value, indices: Value) -> Value:
    """``data[indices[i]]`` for each i: (*batch, k) indices give (*batch, *data.shape[k:]).

    The first `batch_dims` axes of both are the same and are walked together.
    """
    batch = int(node.attributes.get("batch_dims", 0))
    count = indices.shape[-1]
    if isinstance(data, np.ndarray) and isinstance(indices, np.ndarray) and not batch:
        return data[tuple(indices[..., k] for k in range(count))]
    x, at = jnp.asarray(data), jnp.asarray(indices)
    shape = at.shape[:-1]
    leading = tuple(jnp.arange(x.shape[i]).reshape(-1, *(1,) * (len(shape) - 1 - i)) for i in range(batch))
    where = tuple(_from_start(at[..., k], x.shape[batch + k]) for k in range(count))
    return x.at[(*leading, *where)].get(mode="clip")


@lowers("ReverseSequence", since=10)
def reverse_sequence(node: Operator, x: Value, lengths: Value) -> Array:
    """The first ``lengths[i]`` elements of sequence i along `time_axis` (default 0) reversed, what follows kept."""
    values = jnp.asarray(x)
    time = int(node.attributes.get("time_axis", 0)) % values.ndim
    batch = int(node.attributes.get("batch_axis", 1)) % values.ndim
    rows = jnp.moveaxis(values, (batch, time), (0, 1))
    step = jnp.arange(rows.shape[1])
    count = jnp.asarray(lengths)[:, None]
    at = jnp.where(step < count, count - 1 - step, step)
    turned = rows[jnp.arange(rows.shape[0])[:, None], at]
    return jnp.moveaxis(turned, (0, 1), (batch, time))


@lowers("MaxUnpool", since=9)
def max_unpool(node: Operator, x: Value, indices: Value, output_shape: Value | None = None) -> Array:
    """x (N, C, *spatial) at the flat `indices` of a tensor of the size that was pooled; zeros elsewhere.

    Indices are those of MaxPool over the size that kernel, strides and pads imply; a larger `output_shape` only adds
    zeros behind.
    """
    get, values = node.attributes.get, jnp.asarray(x)
    kernel = tuple(node.attributes["kernel_shape"])
    rank = len(kernel)
    strides, pads = tuple(get("strides") or (1,) * rank), tuple(get("pads") or (0,) * 2 * rank)
    spatial = [
        (n - 1) * s - pads[i] - pads[i + rank] + k
        for i, (n, s, k) in enumerate(zip(values.shape[2:], strides, kernel, strict=True))
    ]
    shape = (*values.shape[:2], *spatial)
    flat = jnp.zeros(int(np.prod(shape)), values.dtype)
    result = flat.at[jnp.asarray(indices).reshape(-1)].set(values.reshape(-1), mode="drop").reshape(shape)
    if output_shape is None:
        return result
    wanted = tuple(int(n) for n in static(node, "output_shape", output_shape))
    if len(wanted) != len(shape) or any(n < have for n, have in zip(wanted, shape, strict=True)):
        raise ModelError(
            f"MaxUnpool node {node.name!r}: output_shape {wanted} is smaller than {shape}, which kernel, strides and pads "
            "imply. Correct the model's output_shape."
        )
    return jnp.pad(result, [(0, n - have) for n, have in zip(wanted, shape, strict=True)])
