"""Losses: cross entropy and negative log-likelihood, per the ONNX specification.

Logarithms of probabilities and sums are computed in float32 at least, whatever the scores' type. A label that is no
class makes the loss not a number, rather than count as some other class.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from ...errors import ModelError
from ...models.onnxpp.graph import Operator
from .registry import Value, lowers, text
from .softmax import log_softmax

__all__ = ["negative_log_likelihood_loss", "softmax_cross_entropy_loss"]


@lowers("SoftmaxCrossEntropyLoss", since=12)
def softmax_cross_entropy_loss(
    node: Operator, scores: Value, labels: Value, weights: Value | None = None
) -> tuple[Array, Array]:
    """(loss, log probabilities): scores (N, C, ...), labels (N, ...) of classes, weights (C,)."""
    log_probabilities = log_softmax(_wide(scores), 1)
    loss = _loss(node, log_probabilities, labels, weights)
    return loss.astype(scores.dtype), log_probabilities.astype(scores.dtype)


@lowers("NegativeLogLikelihoodLoss", since=12)
def negative_log_likelihood_loss(
    node: Operator, log_probabilities: Value, labels: Value, weights: Value | None = None
) -> Array:
    """log_probabilities (N, C, ...), labels (N, ...) of classes, weights (C,)."""
    return _loss(node, _wide(log_probabilities), labels, weights).astype(log_probabilities.dtype)


def _wide(x: Value) -> Array:
    return jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))


def _loss(node: Operator, log_probabilities: Array, labels: Value, weights: Value | None) -> Array:
    """Minus the label's log probability times its class's weight, reduced.

    `mean` divides by the sum of the weights; labels equal to `ignore_index` weigh nothing. Where nothing has a weight,
    in a microbatch of masked labels, say, the mean is 0, so that it passes no gradient on.
    """
    ignored: Any = node.attributes.get("ignore_index")
    labels = jnp.asarray(labels)
    counted = jnp.ones(labels.shape, bool) if ignored is None else labels != ignored
    # Negative numbers would count from the end: no label does.
    known = (labels >= 0) & (labels < log_probabilities.shape[1])
    safe = jnp.where(counted & known, labels, 0)
    picked = jnp.take_along_axis(log_probabilities, safe[:, None], axis=1)[:, 0]
    if weights is None:
        weight = counted.astype(picked.dtype)
    else:
        weight = jnp.where(counted, jnp.asarray(weights, picked.dtype)[safe], 0)
    # Not minus infinity times nothing: what does not count may have any probability.
    losses = jnp.where(counted, jnp.where(known, -picked, jnp.nan) * weight, 0)
    reduction = text(node, "reduction", "mean")
    if reduction == "none":
        return losses
    if reduction == "sum":
        return jnp.sum(losses)
    if reduction == "mean":
        if ignored is None and weights is None:
            return jnp.mean(losses)
        total = jnp.sum(weight)
        return jnp.where(total == 0, 0, jnp.sum(losses) / jnp.where(total == 0, 1, total))
    raise ModelError(f"{node.op_type} node {node.name!r}: reduction {reduction!r} is none of 'none', 'sum', 'mean'.")
