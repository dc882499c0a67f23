"""What the classifiers and regressors of ai.onnx.ml have in common: transforms of scores, and classes for labels."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .registry import OnlyOnHostError, Value

__all__ = [
    "DOMAIN",
    "as_rows",
    "class_labels",
    "float_list",
    "labelled",
    "pair_of_scores",
    "scores_on_host",
    "transformed",
]

Scores = Callable[[Any, Value], tuple[Array, Array]]

DOMAIN = "ai.onnx.ml"
TRANSFORMS = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")


def float_list(
    node: Operator, attribute: str, default: Sequence[float] = (), sizes: Sequence[int] | None = None
) -> np.ndarray:
    """An attribute that is a list of floats, as float32. Raises ModelError where its length is none of `sizes`."""
    values = np.asarray(node.attributes.get(attribute) or default, np.float32).reshape(-1)
    if sizes is not None and values.size not in sizes:
        raise ModelError(
            f"{node.op_type} node {node.name!r} has {values.size} {attribute}; it needs {' or '.join(map(str, sizes))}"
        )
    return values


def as_rows(x: Value) -> Array:
    """Features as float32 (N, F); of shape (F,) they are one row."""
    x = jnp.asarray(x).astype(jnp.float32)
    return x[None] if x.ndim == 1 else x


def transformed(node: Operator, scores: Array, transform: str) -> Array:
    """Scores (N, K) after a `post_transform`: along the classes, or element by element."""
    if transform == "NONE":
        return scores
    if transform == "SOFTMAX":
        return jax.nn.softmax(scores, axis=-1)
    if transform == "LOGISTIC":
        return jax.nn.sigmoid(scores)
    if transform == "SOFTMAX_ZERO":
        # A softmax over what is not 0; zeros stay. Where all are 0, so is the result.
        counts = jnp.abs(scores) > 1e-7
        exponents = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
        total = jnp.sum(jnp.where(counts, exponents, 0), axis=-1, keepdims=True)
        return jnp.where(counts, exponents, 0) / jnp.where(total > 0, total, 1)
    if transform == "PROBIT":
        # The inverse of the normal distribution's cumulative function.
        return jax.scipy.special.ndtri(scores)
    raise ModelError(
        f"{node.op_type} node {node.name!r} has the post_transform {transform!r}; it is one of {', '.join(TRANSFORMS)}"
    )


def pair_of_scores(node: Operator, score: Array, transform: str, *, probability: bool) -> Array:
    """Scores (N, 2) of two classes from the one (N, 1) of the second: it is a probability, or has its sign as margin."""
    if transform == "LOGISTIC":
        return jax.nn.sigmoid(jnp.concatenate([-score, score], axis=1))
    pair = jnp.concatenate([1 - score if probability else -score, score], axis=1)
    return transformed(node, pair, transform) if transform == "PROBIT" else pair


def class_labels(node: Operator, integers: str = "classlabels_ints") -> tuple[int, ...] | tuple[str, ...]:
    """The classes of a classifier: numbers or strings. Raises ModelError where it names none."""
    found = node.attributes.get(integers) or node.attributes.get("classlabels_strings")
    if not found:
        raise ModelError(f"{node.op_type} node {node.name!r} names no classes ({integers} or classlabels_strings)")
    return tuple(found)


def labelled(node: Operator, places: Value, labels: Sequence[int] | Sequence[str], on_host: bool) -> Value:
    """The labels at `places` (N,), int64 or strings. Strings are for the host."""
    if isinstance(labels[0], str):
        if not on_host:
            raise OnlyOnHostError(f"{node.op_type} node {node.name!r} gives names of classes.")
        return np.array(labels, object)[np.asarray(places)]
    return jnp.asarray(np.array(labels, np.int64))[places]


_KEPT: dict[tuple[int, Scores], Callable[[Value], tuple[Array, Array]]] = {}


def scores_on_host(scores: Scores, node: Operator, x: Value) -> tuple[Array, Array]:
    """What `scores` computes of `node` and `x`, compiled: once for a node that lives on, not once for every run."""
    key = (id(node), scores)
    if key not in _KEPT:
        living = weakref.ref(node)
        _KEPT[key] = jax.jit(lambda x: scores(living(), x))
        weakref.finalize(node, _KEPT.pop, key, None)
    return _KEPT[key](x)
