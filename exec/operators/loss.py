"""Losses: cross entropy and negative log-likelihood, per the ONNX specification."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .registry import lowers, text

__all__ = ["negative_log_likelihood_loss", "softmax_cross_entropy_loss"]


@lowers("SoftmaxCrossEntropyLoss", since=12)
def softmax_cross_entropy_loss(
    node: Operator, scores: Array, labels: Array, weights: Array | None = None
) -> tuple[Array, Array]:
    """(loss, log probabilities): scores (N, C, ...), labels (N, ...) of classes, weights (C,)."""
    log_probabilities = jax.nn.log_softmax(scores, axis=1)
    return _loss(node, log_probabilities, labels, weights), log_probabilities


@lowers("NegativeLogLikelihoodLoss", since=12)
def negative_log_likelihood_loss(
    node: Operator, log_probabilities: Array, labels: Array, weights: Array | None = None
) -> Array:
    """log_probabilities (N, C, ...), labels (N, ...) of classes, weights (C,)."""
    return _loss(node, log_probabilities, labels, weights)


def _loss(node: Operator, log_probabilities: Array, labels: Array, weights: Array | None) -> Array:
    """Minus the label's log probability times its class's weight, reduced; `mean` divides by the sum of weights."""
    ignored = node.attributes.get("ignore_index")
    labels = jnp.asarray(labels)
    counted = jnp.ones(labels.shape, bool) if ignored is None else labels != ignored
    safe = jnp.where(counted, labels, 0)
    picked = jnp.take_along_axis(log_probabilities, safe[:, None], axis=1)[:, 0]
    if weights is None:
        weight = counted.astype(picked.dtype)
    else:
        weight = jnp.where(counted, jnp.asarray(weights)[safe], 0).astype(picked.dtype)
    losses = jnp.where(counted, -picked * weight, 0)
    reduction = text(node, "reduction", "mean")
    if reduction == "none":
        return losses
    if reduction == "sum":
        return jnp.sum(losses)
    if reduction == "mean":
        return jnp.sum(losses) / jnp.sum(weight) if ignored is not None or weights is not None else jnp.mean(losses)
    raise ModelError(f"{node.op_type} node {node.name!r}: reduction {reduction!r} is none of 'none', 'sum', 'mean'.")
