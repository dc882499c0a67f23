"""Scores of predictions against measurements, the same for every table that is validated.

>>> row = summarise(file="f", device="d", op="o", measured=[1.0, 2.0], predicted=[1.1, 2.0], low=[0.9, 1.5],
...     high=[1.2, 2.5], refused={})
>>> row["n"], round(row["median_ape"], 3), row["coverage90"]
(2, 0.05, 1.0)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["summarise"]


def summarise(
    *,
    file: str,
    device: str,
    op: str,
    measured: Sequence[float],
    predicted: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    refused: Mapping[str, int],
) -> dict[str, Any]:
    """One row of a report; errors and shares are fractions.

    n              measurements, refused ones included; a refused one has an error of 1
    refused        how many were refused, by reason
    median_ape, p90_ape  median and 90th percentile of \\|predicted / measured - 1\\|
    bias           median of predicted / measured - 1, refused ones left out; None where all were refused
    spearman       rank correlation; None for fewer than three
    coverage90     share of measurements within [low, high], refused ones left out
    relative_width median of (high - low) / predicted
    """
    m, p = np.asarray(measured, float), np.asarray(predicted, float)
    lower, upper = np.asarray(low, float), np.asarray(high, float)
    missing = sum(refused.values())
    error = p / m - 1.0
    absolute = np.concatenate([np.abs(error), np.ones(missing)])
    said = len(m) > 0
    return {
        "file": file,
        "device": device,
        "op": op,
        "n": len(absolute),
        "refused": dict(refused),
        "median_ape": float(np.median(absolute)) if len(absolute) else None,
        "p90_ape": float(np.quantile(absolute, 0.9)) if len(absolute) else None,
        "bias": float(np.median(error)) if said else None,
        "spearman": _spearman(m, p),
        "coverage90": float(np.mean((lower <= m) & (m <= upper))) if said else None,
        "relative_width": float(np.median((upper - lower) / p)) if said else None,
    }


def _spearman(a: np.ndarray, b: np.ndarray) -> float | None:
    if len(a) < 3:
        return None
    ranks = [_ranks(a), _ranks(b)]
    if ranks[0].std() == 0 or ranks[1].std() == 0:
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, equal values sharing the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts) + (last - 1))[inverse] / 2.0
