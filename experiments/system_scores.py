"""Scores of predicted systems: by group, by source, by rank, over all. Rows count by their weight.

>>> weighted_quantile([0.1, 0.2, 0.9], [1.0, 1.0, 1.0], 0.5), weighted_quantile([0.1, 0.2, 0.9], [0.0, 1.0, 1.0], 0.5)
(0.2, 0.55)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .published.system_cases import QUANTITIES, Case

__all__ = ["Row", "score", "weighted_quantile"]

# Groups that are not times or throughputs of training, which the mean over sources is about.
APART = ("energy",)
FEWEST_RANKED = 5


@dataclass(frozen=True, kw_only=True)
class Row:
    """A case with its prediction and bounds, in SI units, or the sentence that says why there is none."""

    case: Case
    predicted: float | None = None
    low: float | None = None
    high: float | None = None
    peak_bytes: int | None = None
    refused: str | None = None
    how: str = ""

    @property
    def unit(self) -> float:
        """How much one of the table's unit is in SI units; 1 where it is not known."""
        return QUANTITIES.get(self.case.measured_quantity, {}).get(self.case.unit, 1.0)

    @property
    def error(self) -> float:
        """predicted / measured - 1; -1 for a refused row."""
        return -1.0 if self.predicted is None else self.predicted / self.unit / self.case.measured_value - 1.0

    @property
    def inside(self) -> bool | None:
        """Whether the measurement lies within the bounds; None for a refused row."""
        if self.low is None or self.high is None:
            return None
        return self.low <= self.case.measured_value * self.unit <= self.high

    def to_dict(self) -> dict[str, Any]:
        """The row in the table's own unit."""

        def own(value: float | None) -> float | None:
            return None if value is None else value / self.unit

        measured = self.case.measured_value
        return {
            "case_id": self.case.case_id,
            "group": self.case.group,
            "measured": measured if np.isfinite(measured) else None,
            "predicted": own(self.predicted),
            "low": own(self.low),
            "high": own(self.high),
            "ape": abs(self.error),
            "refused": self.refused,
        }


def score(rows: Sequence[Row]) -> dict[str, Any]:
    """{"groups": [...], "sources": [...], "ranks": [...], "overall": {...}}; all errors and shares are fractions.

    overall: "mean_over_sources" is the mean over sources of the weighted median error (energy apart), "coverage90" the share of
    measurements within their bounds, "spearman" the median over "ranks", "peak_memory_median_ape" that of `peak alloc`.
    """
    usable = [row for row in rows if np.isfinite(row.case.measured_value) and row.case.measured_value > 0.0]
    times = [row for row in usable if row.case.group not in APART]
    sources = [{"source": name[:60], **_summary(found)} for name, found in _by(times, lambda row: row.case.source)]
    ranks = [
        {"source": source[:60], "model": model, "rows": len(found), "spearman": _spearman(found)}
        for (source, model), found in _by(times, lambda row: (row.case.source, row.case.model))
        if sum(1 for row in found if row.predicted is not None) >= FEWEST_RANKED and len({r.case.measured_quantity for r in found}) == 1
    ]  # fmt: skip
    return {
        "groups": [{"group": name, **_summary(found)} for name, found in _by(usable, lambda row: row.case.group)],
        "sources": sources,
        "ranks": ranks,
        "overall": _overall(usable, sources, ranks),
    }


def _by(rows: Iterable[Row], key: Callable[[Row], Any]) -> list[tuple[Any, list[Row]]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        if row.case.scored > 0.0:
            found.setdefault(key(row), []).append(row)
    return sorted(found.items())


def _summary(rows: Sequence[Row]) -> dict[str, Any]:
    weights = [row.case.scored for row in rows]
    errors = [abs(row.error) for row in rows]
    said = [row for row in rows if row.predicted is not None]
    kept = [row.case.scored for row in said]
    widths = [
        (row.high - row.low) / row.predicted
        for row in said
        if row.low is not None and row.high is not None and row.predicted
    ]
    return {
        "rows": len(rows),
        "refused": len(rows) - len(said),
        "median_ape": weighted_quantile(errors, weights, 0.5),
        "p90_ape": weighted_quantile(errors, weights, 0.9),
        "bias": weighted_quantile([row.error for row in said], kept, 0.5),
        "coverage90": float(np.average([bool(row.inside) for row in said], weights=kept)) if said else None,
        "relative_width": weighted_quantile(widths, kept, 0.5),
    }


def _overall(
    rows: Sequence[Row], sources: Sequence[Mapping[str, Any]], ranks: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    counted = [row for row in rows if row.case.scored > 0.0]
    said = [row for row in counted if row.predicted is not None]
    peaks = [abs(row.peak_bytes / row.case.peak_bytes - 1.0) for row in said if row.peak_bytes and row.case.peak_bytes]
    energy = [abs(row.error) for row in counted if row.case.group in APART]
    rank = [found["spearman"] for found in ranks if found["spearman"] is not None]
    weights = [row.case.scored for row in said]
    return {
        "rows": len(counted),
        "refused": len(counted) - len(said),
        "mean_over_sources": float(np.mean([found["median_ape"] for found in sources])) if sources else None,
        "median_ape": weighted_quantile([abs(row.error) for row in counted], [row.case.scored for row in counted], 0.5),
        "coverage90": float(np.average([bool(row.inside) for row in said], weights=weights)) if said else None,
        "spearman": float(np.median(rank)) if rank else None,
        "energy_median_ape": float(np.median(energy)) if energy else None,
        "energy_worst_ape": float(np.max(energy)) if energy else None,
        "peak_memory_rows": len(peaks),
        "peak_memory_median_ape": float(np.median(peaks)) if peaks else None,
    }


def weighted_quantile(values: Sequence[float], weights: Sequence[float], q: float) -> float | None:
    """The quantile `q` of `values` that count `weights` each, between two values on the line through them; None where nothing counts.
    With equal weights it is NumPy's.
    """
    kept = sorted((value, weight) for value, weight in zip(values, weights, strict=True) if weight > 0.0)
    if not kept:
        return None
    v, w = np.array(kept).T
    places = np.cumsum(w) - w
    last = places[-1]
    return float(np.interp(q * last, places, v)) if last > 0.0 else float(v[0])


def _spearman(rows: Sequence[Row]) -> float | None:
    """Rank correlation of predicted and measured; None where one of them is the same throughout."""
    from scipy.stats import rankdata

    said = [row for row in rows if row.predicted is not None]
    predicted = rankdata([row.predicted for row in said])
    measured = rankdata([row.case.measured_value for row in said])
    if np.ptp(predicted) == 0.0 or np.ptp(measured) == 0.0:
        return None
    return float(np.corrcoef(predicted, measured)[0, 1])
