"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...models.onnxpp.graph import Operator
from .registry import Value, lowers, static

__all__ = ["argmax", "argmin", "reduced"]

Reduction = Callable[..., Any]


def _log_sum_exp(x: Array, **how: Any) -> Array:
    return jax.nn.logsumexp(x, **how)


def _wide(x: Array) -> Array:
    """Short floats as float32: squares of float16 overflow from 256 on, though the length may not."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _root(x: Array) -> Array:
    """The square root; its gradient at 0, which is infinite, counts as 0: so does that of the length of nothing."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.sqrt(x)
    nothing = x == 0
    return jnp.where(nothing, 0, jnp.sqrt(jnp.where(nothing, 1, x)))


_REDUCTIONS: dict[str, Reduction] = {
    "ReduceL1": lambda x, **how: jnp.sum(jnp.abs(x), **how),
    "ReduceL2": lambda x, **how: _root(jnp.sum(jnp.square(_wide(x)), **how)),
    "ReduceLogSum": lambda x, **how: jnp.log(jnp.sum(x, **how)),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": lambda x, **how: jnp.max(x, initial=_bound(x, low=True), **how),
    "ReduceMean": lambda x, **how: jnp.mean(x, **how),
    "ReduceMin": lambda x, **how: jnp.min(x, initial=_bound(x, low=False), **how),
    "ReduceProd": lambda x, **how: jnp.prod(x, **how),
    "ReduceSum": lambda x, **how: jnp.sum(x, **how),
    "ReduceSumSquare": lambda x, **how: jnp.sum(jnp.square(x), **how),
}


def _bound(x: Array, low: bool) -> Any:
    """What the maximum (low) or minimum of nothing is."""
    if x.dtype == bool:
        return not low
    if jnp.issubdtype(x.dtype, jnp.floating):
        return -jnp.inf if low else jnp.inf
    limits = jnp.iinfo(x.dtype)
    return np.asarray(limits.min if low else limits.max, x.dtype)


def reduced(reduction: Reduction, node: Operator, x: Value, axes: Any) -> Array:
    """A reduction over `axes`; none means all, unless `noop_with_empty_axes`: then each element is reduced alone."""
    keep = bool(node.attributes.get("keepdims", 1))
    data = jnp.asarray(x)
    along = tuple(int(a) for a in np.ravel(axes)) if axes is not None else ()
    if not along and node.attributes.get("noop_with_empty_axes", 0):
        result = reduction(data, axis=(), keepdims=keep)
    else:
        result = reduction(data, axis=along or None, keepdims=keep)
    return result.astype(data.dtype)


def _register() -> None:
    def by_attribute(reduction: Reduction) -> Callable[..., Array]:
        return lambda node, x: reduced(reduction, node, x, node.attributes.get("axes"))

    def by_input(reduction: Reduction) -> Callable[..., Array]:
        def function(node: Operator, x: Value, axes: Value | None = None) -> Array:
            known = node.attributes.get("axes") if axes is None else static(node, "axes", axes)
            return reduced(reduction, node, x, known)

        return function

    for op_type, reduction in _REDUCTIONS.items():
        lowers(op_type)(by_attribute(reduction))
        lowers(op_type, since=13 if op_type == "ReduceSum" else 18)(by_input(reduction))


_register()


def _extreme(find: Callable[..., Array], node: Operator, x: Array) -> Array:
    """The index of the first (or, with `select_last_index`, the last) extreme along `axis`."""
    axis, keep = int(node.attributes.get("axis", 0)), bool(node.attributes.get("keepdims", 1))
    if node.attributes.get("select_last_index", 0):
        found = x.shape[axis] - 1 - find(jnp.flip(x, axis), axis=axis, keepdims=keep)
    else:
        found = find(x, axis=axis, keepdims=keep)
    return found.astype(jax.dtypes.canonicalize_dtype(np.int64))


@lowers("ArgMax")
def argmax(node: Operator, x: Array) -> Array:
    """Where the maximum lies along `axis`."""
    return _extreme(jnp.argmax, node, x)


@lowers("ArgMin")
def argmin(node: Operator, x: Array) -> Array:
    """Where the minimum lies along `axis`."""
    return _extreme(jnp.argmin, node, x)
