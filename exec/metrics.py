"""Metrics as (sum, count) pairs, which add up over microbatches and ranks; the metric is their quotient.

>>> scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
>>> accuracy(scores, np.array([1, 1, 1])).tolist()
[2.0, 3.0]
>>> value(accuracy(scores[:2], np.array([1, 1])) + accuracy(scores[2:], np.array([1])))
0.6666666666666666
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import DataError

__all__ = ["METRICS", "accuracy", "mse", "value"]


def accuracy(scores: np.ndarray, labels: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """[right, counted]: how often the highest of `scores` [n, classes, ...] along axis 1 is the label [n, ...]; of scores
    of tokens [n, tokens, classes] along the last, as in the loss that an import appends.

    Labels are integers; negative ones (a loss's ignore_index) are not counted. `valid` (bool [n]) says which samples
    count.

    Raises:
        DataError: the shapes do not belong together, or labels are no integers.
    """
    if scores.ndim == 3 and scores.shape[:2] == labels.shape:
        scores = np.moveaxis(scores, -1, 1)
    if scores.ndim < 2 or scores.shape[:1] + scores.shape[2:] != labels.shape or labels.dtype.kind not in "iu":
        raise DataError(
            'The metric "accuracy" wants scores (n, classes, ...) and integer labels (n, ...); the model gives '
            f"{scores.shape} and the "
            f'labels are {labels.shape} {labels.dtype}. Set metric = "mse" or "none" under [evaluation] in the recipe.'
        )
    counts = labels >= 0
    if valid is not None:
        counts &= valid.reshape(-1, *(1,) * (labels.ndim - 1))
    right = (np.argmax(scores, axis=1) == labels) & counts
    return np.array([right.sum(), counts.sum()], dtype=np.float64)


def mse(predictions: np.ndarray, targets: np.ndarray, valid: np.ndarray | None = None) -> np.ndarray:
    """[sum of squared differences, elements], float64; shapes [n, ...] are the same. `valid` (bool [n]) says which
    samples count.

    Raises:
        DataError: the shapes differ.
    """
    if predictions.shape != targets.shape:
        raise DataError(
            f'The metric "mse" wants targets shaped as the predictions {predictions.shape}; they are {targets.shape}. '
            "Set "
            'metric = "accuracy" or "none" under [evaluation] in the recipe, or reshape the targets.'
        )
    if valid is not None:
        predictions, targets = predictions[valid], targets[valid]
    difference = predictions.astype(np.float64) - targets.astype(np.float64)
    return np.array([np.square(difference).sum(), difference.size], dtype=np.float64)


def value(pair: np.ndarray) -> float | None:
    """sum / count; None where nothing was counted."""
    return float(pair[0] / pair[1]) if pair[1] else None


METRICS: dict[str, Callable[..., np.ndarray]] = {"accuracy": accuracy, "mse": mse}
