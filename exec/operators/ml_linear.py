"""Linear models and support vector machines (domain ai.onnx.ml), compiled; names of classes are put in on the host."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .ml_scores import DOMAIN, as_rows, class_labels, float_list, labelled, pair_of_scores, scores_on_host, transformed
from .registry import OnlyOnHostError, Value, lowers, text

__all__ = ["linear_classifier", "linear_regressor", "svm_classifier", "svm_regressor"]


@lowers("LinearRegressor", domain=DOMAIN)
def linear_regressor(node: Operator, x: Value) -> Array:
    """x Cᵀ + intercepts, transformed: x (N, F) -> (N, targets), float32."""
    x = as_rows(x)
    targets = int(node.attributes.get("targets", 1))
    scores = x @ _table(node, "coefficients", (targets, x.shape[1])).T
    intercepts = float_list(node, "intercepts", sizes=(0, scores.shape[1]))
    if intercepts.size:
        scores = scores + intercepts
    return transformed(node, scores, text(node, "post_transform", "NONE"))


def _linear_scores(node: Operator, x: Value) -> tuple[Array, Array]:
    """(places of the classes (N,), scores (N, K)) of a linear classifier."""
    x, labels = as_rows(x), class_labels(node)
    coefficients = float_list(node, "coefficients")
    if not coefficients.size or coefficients.size % x.shape[1]:
        raise ModelError(
            f"LinearClassifier node {node.name!r} has {coefficients.size} coefficients for {x.shape[1]} features"
        )
    scores = x @ coefficients.reshape(-1, x.shape[1]).T
    intercepts = float_list(node, "intercepts", sizes=(0, scores.shape[1]))
    if intercepts.size:
        scores = scores + intercepts
    transform = text(node, "post_transform", "NONE")
    if scores.shape[1] == 1 and len(labels) == 2:
        return (scores[:, 0] > 0).astype(jnp.int32), pair_of_scores(node, scores, transform, probability=True)
    return jnp.argmax(scores, axis=1), transformed(node, scores, transform)


@lowers("LinearClassifier", domain=DOMAIN)
def linear_classifier(node: Operator, x: Value) -> tuple[Value, Array]:
    """(class (N,), scores (N, K)) of x (N, F): the class with the largest x Cᵀ + intercepts.

    One row of coefficients for two classes has the sign for its decision, and the scores 1 - s and s.
    """
    if isinstance(class_labels(node)[0], str):
        raise OnlyOnHostError(f"LinearClassifier node {node.name!r} gives names of classes.")
    places, scores = _linear_scores(node, x)
    return labelled(node, places, class_labels(node), on_host=False), scores


@lowers("LinearClassifier", domain=DOMAIN, host=True)
def linear_classifier_with_names(node: Operator, x: np.ndarray) -> tuple[Value, Array]:
    """The same with classes that have names."""
    places, scores = scores_on_host(_linear_scores, node, x)
    return labelled(node, places, class_labels(node), on_host=True), scores


def _table(node: Operator, attribute: str, shape: tuple[int, ...]) -> np.ndarray:
    values = float_list(node, attribute)
    if values.size != np.prod(shape):
        raise ModelError(f"{node.op_type} node {node.name!r} has {values.size} {attribute}; it needs {shape}")
    return np.reshape(values, shape)


def _kernel(node: Operator, x: Array, vectors: np.ndarray, kind: str | None = None) -> Array:
    """The products of x (N, F) with vectors (V, F) in the kernel's space: (N, V)."""
    gamma, constant, degree = float_list(node, "kernel_params", (0.0, 0.0, 0.0), sizes=(3,)).tolist()
    kind = kind or text(node, "kernel_type", "LINEAR")
    if kind == "RBF":
        # |x - v|² by differences: squares alone would cancel where the two are close.
        return jnp.exp(-gamma * jnp.sum(jnp.square(x[:, None] - vectors), axis=-1))
    products = x @ vectors.T
    if kind == "LINEAR":
        return products
    if kind == "POLY":
        power: Any = int(degree) if float(degree).is_integer() else degree
        return jnp.power(gamma * products + constant, power)
    if kind == "SIGMOID":
        return jnp.tanh(gamma * products + constant)
    raise ModelError(f"{node.op_type} node {node.name!r} has the kernel {kind!r}; it is LINEAR, POLY, RBF or SIGMOID")


@lowers("SVMRegressor", domain=DOMAIN)
def svm_regressor(node: Operator, x: Value) -> Array:
    """Σ coefficient * kernel(x, support vector) + rho: x (N, F) -> (N, 1), float32. Without support vectors a linear
    model. `one_class` gives 1 for what is inside, -1 for outliers."""
    x = as_rows(x)
    rho = float_list(node, "rho", (0.0,), sizes=(1,))[0]
    supports = int(node.attributes.get("n_supports", 0))
    if supports:
        products = _kernel(node, x, _table(node, "support_vectors", (supports, x.shape[1])))
        scores = products @ _table(node, "coefficients", (supports, 1)) + rho
    else:
        scores = _kernel(node, x, _table(node, "coefficients", (1, x.shape[1])), "LINEAR") + rho
    if node.attributes.get("one_class", 0):
        return jnp.where(scores > 0, 1.0, -1.0).astype(jnp.float32)
    return transformed(node, scores, text(node, "post_transform", "NONE"))


def _svm_scores(node: Operator, x: Value) -> tuple[Array, Array]:
    """(places of the classes (N,), scores (N, K)) of a support vector machine."""
    x, labels = as_rows(x), class_labels(node)
    counts = tuple(node.attributes.get("vectors_per_class") or ())
    pairs = [(i, j) for i in range(len(counts)) for j in range(i + 1, len(counts))]
    rho = float_list(node, "rho", (0.0,), sizes=(len(pairs),) if pairs else (1, len(labels)))
    transform = text(node, "post_transform", "NONE")
    if not sum(counts):
        scores = x @ _table(node, "coefficients", (len(labels), x.shape[1])).T + rho[0]
        places = jnp.argmax(scores, axis=1)
        if len(labels) == 2:
            # With two classes the sign decides where one of the scores is above 0.
            places = jnp.where(jnp.max(scores, axis=1) > 0, 1, places)
        return places, transformed(node, scores, transform)
    if len(counts) != len(labels) or min(counts) < 0:
        raise ModelError(
            f"SVMClassifier node {node.name!r} has vectors of {len(counts)} classes, and {len(labels)} labels"
        )
    products = _kernel(node, x, _table(node, "support_vectors", (sum(counts), x.shape[1])))
    margins = products @ _weights_of_pairs(node, counts, pairs) + rho
    wins = margins > 0
    one, other = (np.eye(len(counts), dtype=np.float32)[[p[k] for p in pairs]] for k in (0, 1))
    places = jnp.argmax(wins @ one + ~wins @ other, axis=1)
    a, b = (float_list(node, name, sizes=(0, len(pairs))) for name in ("prob_a", "prob_b"))
    if a.size and b.size:
        # Platt 1999: margins to probabilities of pairs.
        chances = 1 - jax.nn.sigmoid(margins * a + b)
        scores = _coupled(jnp.clip(chances, 1e-7, 1 - 1e-7), len(counts), pairs)
        return places, transformed(node, scores, transform)
    if len(pairs) == 1:
        return places, pair_of_scores(node, margins, transform, probability=transform != "NONE")
    return places, transformed(node, margins, transform)


def _weights_of_pairs(node: Operator, counts: tuple[int, ...], pairs: list[tuple[int, int]]) -> np.ndarray:
    """(V, pairs): the weight of each support vector in each decision between two classes i < j. Row j - 1 of the
    coefficients has class i's vectors against j, row i those of class j against i."""
    table = _table(node, "coefficients", (len(counts) - 1, sum(counts)))
    ends = np.cumsum(counts)
    weights = np.zeros((sum(counts), len(pairs)), np.float32)
    for column, (i, j) in enumerate(pairs):
        of_i, of_j = slice(ends[i] - counts[i], ends[i]), slice(ends[j] - counts[j], ends[j])
        weights[of_i, column] = table[j - 1, of_i]
        weights[of_j, column] = table[i, of_j]
    return weights


def _coupled(chances: Array, classes: int, pairs: list[tuple[int, int]]) -> Array:
    """Probabilities (N, classes) from those of pairs (N, pairs): the second method of Wu, Lin and Weng (2004), by
    their iteration, which ends where no class is further than 0.005 / classes from the optimum."""
    i, j = np.array(pairs).T
    r = jnp.zeros((len(chances), classes, classes), chances.dtype).at[:, i, j].set(chances).at[:, j, i].set(1 - chances)
    q = -r * jnp.swapaxes(r, 1, 2)
    diagonal = jnp.sum(jnp.square(r), axis=1)
    q = q + jnp.eye(classes, dtype=q.dtype) * diagonal[:, None]

    def sample(q: Array) -> Array:
        def far(state: tuple[Array, Array]) -> Array:
            p, round_ = state
            qp = q @ p
            return (jnp.max(jnp.abs(qp - p @ qp)) >= 0.005 / classes) & (round_ < 100)

        def improve(state: tuple[Array, Array]) -> tuple[Array, Array]:
            p, round_ = state
            qp = q @ p
            pqp = p @ qp
            for t in range(classes):
                step = (pqp - qp[t]) / q[t, t]
                pqp = (pqp + step * (step * q[t, t] + 2 * qp[t])) / (1 + step) ** 2
                qp = (qp + step * q[t]) / (1 + step)
                p = p.at[t].add(step) / (1 + step)
            return p, round_ + 1

        return lax.while_loop(far, improve, (jnp.full(classes, 1 / classes, q.dtype), jnp.zeros((), jnp.int32)))[0]

    return jax.vmap(sample)(q)


@lowers("SVMClassifier", domain=DOMAIN)
def svm_classifier(node: Operator, x: Value) -> tuple[Value, Array]:
    """(class (N,), scores (N, K)) of x (N, F): each pair of classes votes; scores are probabilities where `prob_a` and
    `prob_b` are given, else the margins of the pairs. Without support vectors a linear model."""
    if isinstance(class_labels(node)[0], str):
        raise OnlyOnHostError(f"SVMClassifier node {node.name!r} gives names of classes.")
    places, scores = _svm_scores(node, x)
    return labelled(node, places, class_labels(node), on_host=False), scores


@lowers("SVMClassifier", domain=DOMAIN, host=True)
def svm_classifier_with_names(node: Operator, x: np.ndarray) -> tuple[Value, Array]:
    """The same with classes that have names."""
    places, scores = scores_on_host(_svm_scores, node, x)
    return labelled(node, places, class_labels(node), on_host=True), scores
