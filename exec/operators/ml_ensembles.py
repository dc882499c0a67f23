"""Ensembles of trees (domain ai.onnx.ml): regression, classification, and the operator that stands for both since 5."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .ml_forests import Forest, forest_of_ids, forest_of_places, leaves_reached
from .ml_scores import (
    DOMAIN,
    TRANSFORMS,
    class_labels,
    float_list,
    labelled,
    pair_of_scores,
    scores_on_host,
    transformed,
)
from .registry import OnlyOnHostError, Value, lowers, text

__all__ = ["tree_ensemble", "tree_ensemble_classifier", "tree_ensemble_regressor"]

AGGREGATES = ("AVERAGE", "SUM", "MIN", "MAX")


@lowers("TreeEnsemble", domain=DOMAIN, since=5)
def tree_ensemble(node: Operator, x: Value) -> Array:
    """The leaves' weights of all trees, aggregated by target: x (N, F) -> (N, n_targets), of x's type."""
    get, x = node.attributes.get, _rows(x)
    forest, targets = forest_of_places(node), int(get("n_targets", 1))
    aggregate, transform = int(get("aggregate_function", 1)), int(get("post_transform", 0))
    if not (0 <= aggregate < len(AGGREGATES) and 0 <= transform < len(TRANSFORMS) and targets > 0):
        raise ModelError(
            f"TreeEnsemble node {node.name!r} has aggregate_function {aggregate}, post_transform {transform} and "
            f"n_targets {targets}; they are 0..3, 0..4 and above 0"
        )
    scores = _aggregated(node, forest, leaves_reached(forest, x), targets, AGGREGATES[aggregate])
    return transformed(node, scores.astype(x.dtype), TRANSFORMS[transform])


@lowers("TreeEnsembleRegressor", domain=DOMAIN)
def tree_ensemble_regressor(node: Operator, x: Value) -> Array:
    """The leaves' votes of all trees, aggregated by target, and base values: x (N, F) -> float32 (N, n_targets)."""
    forest, targets = forest_of_ids(node, "target"), int(node.attributes.get("n_targets", 1))
    x = _comparable(x, forest)
    aggregate = text(node, "aggregate_function", "SUM")
    if aggregate not in AGGREGATES:
        raise ModelError(
            f"{node.op_type} node {node.name!r} aggregates by {aggregate!r}; it is AVERAGE, SUM, MIN or MAX"
        )
    scores = _aggregated(node, forest, leaves_reached(forest, x), targets, aggregate)
    base = _base_values(node, targets)
    scores = (scores if base is None else scores + base).astype(jnp.float32)
    return transformed(node, scores, text(node, "post_transform", "NONE"))


def _classifier_scores(node: Operator, x: Value) -> tuple[Array, Array]:
    """(places of the classes (N,), scores (N, K)) of a classifier of trees."""
    forest, labels = forest_of_ids(node, "class"), class_labels(node, "classlabels_int64s")
    transform = text(node, "post_transform", "NONE")
    leaves = leaves_reached(forest, _comparable(x, forest))
    voted = sorted(set(forest.votes.targets[forest.votes.targets >= 0].tolist()))
    scores = _aggregated(node, forest, leaves, len(labels), "SUM")
    base = _base_values(node, len(labels))
    if len(labels) == 2 and len(voted) == 1 and (base is None or base.size == 1):
        # Votes for one of two classes: its probability where all are positive, else a margin with 0 between the two.
        score = scores[:, voted] + (0 if base is None else base)
        probability = bool((forest.votes.weights >= 0).all())
        places = (score[:, 0] > (0.5 if probability else 0)).astype(jnp.int32)
        score = score.astype(jnp.float32)
        if voted == [0]:
            return places, pair_of_scores(node, score, transform, probability=probability)
        return places, transformed(node, jnp.concatenate([jnp.zeros_like(score), score], axis=1), transform)
    if base is not None:
        scores = scores + base
    elif len(voted) < len(labels):
        # A class that no leaf knows has the score 0, and does not win over negative ones.
        unknown = np.array([k not in voted for k in range(len(labels))])
        ranked = jnp.where(unknown, -jnp.inf, scores)
        return jnp.argmax(ranked, axis=1), transformed(node, scores.astype(jnp.float32), transform)
    return jnp.argmax(scores, axis=1), transformed(node, scores.astype(jnp.float32), transform)


@lowers("TreeEnsembleClassifier", domain=DOMAIN)
def tree_ensemble_classifier(node: Operator, x: Value) -> tuple[Value, Array]:
    """(class (N,), scores float32 (N, K)) of x (N, F): the class with the most votes of the trees' leaves."""
    labels = class_labels(node, "classlabels_int64s")
    if isinstance(labels[0], str):
        raise OnlyOnHostError(f"{node.op_type} node {node.name!r} gives names of classes.")
    places, scores = _classifier_scores(node, x)
    return labelled(node, places, labels, on_host=False), scores


@lowers("TreeEnsembleClassifier", domain=DOMAIN, host=True)
def tree_ensemble_classifier_with_names(node: Operator, x: np.ndarray) -> tuple[Value, Array]:
    """The same with classes that have names."""
    places, scores = scores_on_host(_classifier_scores, node, x)
    return labelled(node, places, class_labels(node, "classlabels_int64s"), on_host=True), scores


def _rows(x: Value) -> Array:
    x = jnp.asarray(x)
    return x[None] if x.ndim == 1 else x


def _comparable(x: Value, forest: Forest) -> Array:
    """Features in the type of the comparisons: float64 where they or the thresholds are, else float32."""
    x = _rows(x)
    own = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
    return x.astype(jnp.promote_types(own, forest.threshold.dtype))


def _base_values(node: Operator, size: int) -> np.ndarray | None:
    """What is added to the scores: one value, one for each score, or nothing."""
    tensor = node.attributes.get("base_values_as_tensor")
    values = float_list(node, "base_values") if tensor is None else np.asarray(tensor).reshape(-1)
    if values.size not in (0, 1, size):
        raise ModelError(f"{node.op_type} node {node.name!r} has {values.size} base values for {size} scores")
    return values if values.size else None


def _aggregated(node: Operator, forest: Forest, leaves: Array, size: int, aggregate: str) -> Array:
    """The votes of the leaves (N, T), by target: (N, size). A target without votes has 0."""
    targets, weights = forest.votes.targets, forest.votes.weights
    if targets.size and targets.max() >= size:
        raise ModelError(f"{node.op_type} node {node.name!r} has a vote for score {targets.max()} of {size}")
    rows = leaves.shape[0]
    given = jnp.asarray(weights)[leaves]
    if (targets == targets[:1]).all() and len(set(targets[0].tolist())) == targets.shape[1] and (targets >= 0).all():
        # Every leaf votes for the same: one reduction over the trees.
        whole = {"MIN": jnp.min, "MAX": jnp.max}.get(aggregate, jnp.sum)(given, axis=1)
        result = jnp.zeros((rows, size), given.dtype).at[:, targets[0]].set(whole)
    else:
        at = jnp.asarray(targets)[leaves]
        # What is no vote goes to a score behind the last.
        place = (jnp.arange(rows)[:, None, None], jnp.where(at < 0, size, at))
        if aggregate in ("SUM", "AVERAGE"):
            result = jnp.zeros((rows, size + 1), given.dtype).at[place].add(given)[:, :size]
        else:
            voted = jnp.zeros((rows, size + 1), bool).at[place].set(True)[:, :size]
            start = jnp.full((rows, size + 1), jnp.inf if aggregate == "MIN" else -jnp.inf, given.dtype).at[place]
            best = (start.min(given) if aggregate == "MIN" else start.max(given))[:, :size]
            result = jnp.where(voted, best, 0)
    return result / len(forest.roots) if aggregate == "AVERAGE" else result
