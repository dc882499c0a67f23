"""Dropout: elements of a sample are zeroed by numbers that depend on seed, step, operator and the sample alone.

So a sample loses the same elements however a batch is cut into microbatches and over ranks. While a run evaluates,
Dropout is the identity. Whether it drops while a run trains is for the graph to say from operator set 12 on
(`training_mode`, off where absent); until set 6 `is_test` says so, in between the run alone decides.

A graph that is run as it stands, by the standard's backend interface, drops where it says so itself. There a `seed` of
an operator means what it means to the standard's tests: the numbers of NumPy's Mersenne Twister with that seed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...models.onnxpp.graph import Operator
from .registry import Context, OnlyOnHostError, Value, lowers

__all__ = ["dropout"]


@lowers("Dropout")
def dropout_by_is_test(node: Operator, x: Value, *, context: Context) -> tuple[Array, Array]:
    """The ratio is an attribute, and the mask has the type of x."""
    ratio = 0.0 if node.attributes.get("is_test", 0) else _by_run(node, context)
    y, mask = _dropped(x, ratio, context)
    return y, mask.astype(x.dtype)


@lowers("Dropout", since=7)
def dropout_by_run(node: Operator, x: Value, *, context: Context) -> tuple[Array, Array]:
    """The same without `is_test`."""
    return dropout_by_is_test(node, x, context=context)


@lowers("Dropout", since=10)
def dropout_by_run_with_mask(node: Operator, x: Value, *, context: Context) -> tuple[Array, Array]:
    """The mask is of truth values."""
    return _dropped(x, _by_run(node, context), context)


@lowers("Dropout", since=12)
def dropout(
    node: Operator, x: Value, ratio: Value | None = None, training_mode: Value | None = None, *, context: Context
) -> tuple[Array, Array]:
    """(y, mask): zeroes a share `ratio`, scales the rest by 1 / (1 - ratio), where graph and run both train."""
    share = 0.5 if ratio is None else ratio
    if training_mode is None:
        share = 0.0
    elif isinstance(training_mode, jax.core.Tracer):
        share = jnp.where(jnp.reshape(training_mode, ()), share, 0)
    elif not bool(training_mode):
        share = 0.0
    known = not isinstance(share, jax.core.Tracer)
    if context.training is None and "seed" in node.attributes and not (known and float(share) == 0):
        raise OnlyOnHostError(f"Dropout node {node.name!r} has a seed, whose numbers NumPy draws.")
    return _dropped(x, share, context)


@lowers("Dropout", since=12, host=True)
def dropout_by_seed(
    node: Operator, x: np.ndarray, ratio: np.ndarray | None = None, training_mode: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(y, mask) by the operator's own `seed`, for a graph that is run as it stands."""
    if training_mode is None or not bool(training_mode):
        return x, np.ones(x.shape, bool)
    share = 0.5 if ratio is None else float(ratio)
    draws = np.random.RandomState(int(node.attributes["seed"]) & 0xFFFFFFFF)
    mask = draws.uniform(size=x.shape) >= share
    scale = np.asarray(1 / (1 - share) if share < 1 else 0).astype(x.dtype)
    return np.where(mask, x * scale, np.zeros((), x.dtype)), mask


def _by_run(node: Operator, context: Context) -> float:
    """The attribute `ratio`; 0 where no run says that it trains."""
    return float(node.attributes.get("ratio", 0.5)) if context.training else 0.0


def _dropped(x: Value, ratio: Any, context: Context) -> tuple[Array, Array]:
    known = not isinstance(ratio, jax.core.Tracer)
    if context.training is False or (known and float(ratio) == 0):
        return jnp.asarray(x), jnp.ones(x.shape, bool)
    ratio = jnp.asarray(ratio, jnp.float32).reshape(())
    mask = context.uniform(x.shape, jnp.float32) >= ratio
    # A ratio of 1 drops everything: nothing is left to scale, and infinity times nothing is no number.
    scale = jnp.where(ratio < 1, 1 / jnp.where(ratio < 1, 1 - ratio, 1), 0).astype(x.dtype)
    return jnp.where(mask, x * scale, 0).astype(x.dtype), mask
