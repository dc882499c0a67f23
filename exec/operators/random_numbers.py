"""Random tensors: RandomUniform, RandomNormal, their -Like forms, Bernoulli, Multinomial.

All numbers follow from the run's seed, its step and the operator's name; where a tensor has samples along an axis, those
of a sample follow from its global index too, so that how a batch is cut changes nothing. An operator's own `seed` is
mixed in.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...models.onnxpp.graph import Operator
from .casting import element_type_of
from .registry import Context, Value, lowers

__all__ = ["bernoulli", "multinomial", "normal", "uniform"]


def _drawn(node: Operator, context: Context, shape: tuple[int, ...], dtype: Any) -> Array:
    """Uniform numbers in [0, 1), at least float32."""
    seed = node.attributes.get("seed")
    if seed is not None:
        bits = int(np.float32(seed).view(np.uint32))
        context = replace(context, key=jax.random.fold_in(context.key, bits))
    return context.uniform(shape, jnp.promote_types(dtype, jnp.float32))


def _uniform(node: Operator, context: Context, shape: tuple[int, ...], dtype: Any) -> Array:
    low, high = float(node.attributes.get("low", 0.0)), float(node.attributes.get("high", 1.0))
    return (_drawn(node, context, shape, dtype) * (high - low) + low).astype(dtype)


def _normal(node: Operator, context: Context, shape: tuple[int, ...], dtype: Any) -> Array:
    mean, scale = float(node.attributes.get("mean", 0.0)), float(node.attributes.get("scale", 1.0))
    drawn = _drawn(node, context, shape, dtype)
    # The inverse of the normal distribution function; at 0 it is infinite.
    smallest = np.nextafter(np.array(-1, drawn.dtype), np.array(0, drawn.dtype))
    standard = np.sqrt(2) * jax.scipy.special.erfinv(jnp.maximum(2 * drawn - 1, smallest))
    return (standard * scale + mean).astype(dtype)


def _shape(node: Operator) -> tuple[int, ...]:
    return tuple(int(d) for d in node.attributes["shape"])


@lowers("RandomUniform")
def uniform(node: Operator, *, context: Context) -> Array:
    """Numbers from `low` to `high` of `shape`, the same for every sample of a batch."""
    return _uniform(node, replace(context, batch_axis=None), _shape(node), element_type_of(node, "dtype", np.float32))


@lowers("RandomNormal")
def normal(node: Operator, *, context: Context) -> Array:
    """Numbers around `mean` with the standard deviation `scale`, of `shape`, the same for every sample of a batch."""
    return _normal(node, replace(context, batch_axis=None), _shape(node), element_type_of(node, "dtype", np.float32))


@lowers("RandomUniformLike")
def uniform_like(node: Operator, x: Value, *, context: Context) -> Array:
    """Numbers from `low` to `high` in x's shape, and its type unless `dtype` says another."""
    return _uniform(node, context, x.shape, element_type_of(node, "dtype", x.dtype))


@lowers("RandomNormalLike")
def normal_like(node: Operator, x: Value, *, context: Context) -> Array:
    """Numbers around `mean` with the deviation `scale` in x's shape, and its type unless `dtype` says another."""
    return _normal(node, context, x.shape, element_type_of(node, "dtype", x.dtype))


@lowers("Bernoulli", since=15)
def bernoulli(node: Operator, x: Value, *, context: Context) -> Array:
    """1 with the probability x, element by element, else 0; of x's type unless `dtype` says another."""
    probability = jnp.asarray(x)
    drawn = _drawn(node, context, x.shape, probability.dtype)
    return (drawn < probability).astype(element_type_of(node, "dtype", x.dtype))


@lowers("Multinomial", since=7)
def multinomial(node: Operator, x: Value, *, context: Context) -> Array:
    """Logarithms of (unnormalised) probabilities (batch, classes) -> `sample_size` classes for each row, as `dtype`."""
    logits = jnp.asarray(x).astype(jnp.promote_types(x.dtype, jnp.float32))
    drawn = _drawn(node, context, (x.shape[0], int(node.attributes.get("sample_size", 1))), logits.dtype)
    share = jnp.cumsum(jax.nn.softmax(logits, axis=-1), axis=-1)
    # By the last share, which rounding may keep below 1.
    found = jax.vmap(lambda edges, places: jnp.searchsorted(edges, places, side="right"))(share, drawn * share[:, -1:])
    return jnp.minimum(found, x.shape[1] - 1).astype(element_type_of(node, "dtype", np.int32))
