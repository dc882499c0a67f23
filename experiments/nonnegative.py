"""Times as sums of non-negative shares: least squares in the logarithm of time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["ROUNDS", "fit_logarithms"]

ROUNDS = 16

Array = NDArray[np.float64]


def fit_logarithms(design: Array, seconds: Array, *, trust: Array, means: Array, spreads: Array) -> Array:
    """Theta >= 0 (terms,) for which ``design @ theta`` is nearest to `seconds` (rows,) in the logarithm.

    Non-negative least squares (Lawson, Hanson 1974), linearised anew in every round around the last thetas; in the second half of
    them outliers, residuals beyond three standard deviations, have less weight (Huber).

    design   (rows, terms): seconds of each term
    trust    (rows,): one over the standard deviation of the logarithm
    means, spreads   (terms,): of the prior of theta, which is normal
    """
    from scipy.optimize import nnls

    theta, weight = means, trust
    for round_ in range(ROUNDS):
        predicted = np.maximum(design @ theta, 1e-9)
        # What is left of the logarithm; steps of at most e.
        left = np.clip(np.log(seconds / predicted), -1.0, 1.0)
        if round_ >= ROUNDS // 2:
            far = np.maximum(np.abs(left) * trust, 1e-9)
            weight = trust * np.sqrt(np.where(far > 3.0, 3.0 / far, 1.0))
        system = np.vstack([design / predicted[:, None] * weight[:, None], np.diag(1.0 / spreads)])
        wanted = np.concatenate([(1.0 + left) * weight, means / spreads])
        theta, _ = nnls(system, wanted, maxiter=50 * len(means))
    found: Array = theta
    return found
