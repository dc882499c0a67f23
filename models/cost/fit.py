r"""Fitting factors to observations: least squares in relative error, held near the prior where little was measured.

For one subject (device, link, host), observation i takes :math:`t_i` seconds and has :math:`a_{ij}` seconds of
component j at the roofline. With prior factors :math:`p_j` of log-spread :math:`s_j`, and factors
:math:`f_j = p_j x_j`, the fit minimises

.. math:: \sum_i \Big(\frac{\sum_j a_{ij} p_j x_j - t_i}{\sigma_i t_i}\Big)^2
          + \sum_j \Big(\frac{x_j - 1}{s_j}\Big)^2, \quad x_j \ge 0

the maximum of the posterior for normal errors (ridge regression toward the prior; Hoerl, Kennard, Technometrics 12(1),
1970), by non-negative least squares (Lawson, Hanson, "Solving least squares problems", 1974). :math:`\sigma_i` joins
the scatter of workloads around one factor per family with the observation's own noise; a row counts by its weight
(:mod:`.recency`). A component that nothing observed stays at the prior. Where relatives of a device were measured too, the
prior is what they say (:mod:`.relatives`).

Of processors more is learned: what their observations say operation by operation (:mod:`.local_times`), which then
stands in for the factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from .factors import NINETY, Factor, Factors
from .local_times import LocalTimes, Measured
from .observations import Observation
from .recency import merge, weights
from .relatives import Kin, Relatives, kin_of

__all__ = ["Fit", "FitReport", "fit"]

# Relative scatter of operators of one family around a common factor, where nothing says otherwise.
SCATTER = 0.15
# The default scatter counts as this many observations when the residuals' own is estimated.
SCATTER_WEIGHT = 3.0
LEAST_SCATTER = 0.02


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """How well a subject's observations are predicted: median relative errors (fractions).

    before    by the prior; after   by the fitted factors; left_out   each by factors fitted on all others (None for
              a single one)
    noise     the median half width of the observations' own intervals: what no model can beat
    """

    subject: str
    observations: int
    before: float
    after: float
    left_out: float | None
    noise: float


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Factors that hold what was learned, and a report for each subject."""

    factors: Factors
    reports: tuple[FitReport, ...]


def fit(observations: Iterable[Observation], prior: Factors) -> Fit:
    """Fit the factors of every subject that was observed; the same observations in any order give the same factors.

    Observations of the same work (subject, kind, key) count as one, and recent ones more (:mod:`.recency`).
    """
    by_subject: dict[tuple[str, str], list[Observation]] = {}
    for observation in merge(observations):
        by_subject.setdefault((observation.subject, observation.subject_kind), []).append(observation)
    learned: dict[tuple[str, str], Factor] = {}
    local: dict[str, LocalTimes] = {}
    reports = []
    kin = kin_of(o for rows in by_subject.values() for o in rows)
    relatives = _relatives(by_subject, kin, prior) if len(kin) > 1 else None
    for (subject, kind), rows in sorted(by_subject.items()):
        related = (relatives, kin[subject]) if relatives is not None and subject in kin else None
        factors, report = _fit_subject(subject, kind, rows, prior, related)
        learned.update({(subject, name): factor for name, factor in factors.items()})
        if kind == "cpu" and (times := _by_operation(rows)) is not None:
            local[subject] = times
            _, after, left_out = times.quality
            report = replace(report, after=after, left_out=left_out)
        reports.append(report)
    return Fit(factors=Factors(prior=prior.prior, learned=learned, local=local), reports=tuple(reports))


def _by_operation(rows: list[Observation]) -> LocalTimes | None:
    """What observations with operations say; None where there are none."""
    measured = [
        Measured(
            operations=o.operations,
            seconds=o.seconds,
            noise=(o.high_s - o.low_s) / (2 * NINETY * o.seconds),
            weight=weight,
        )
        for o, weight in zip(rows, weights(rows), strict=True)
        if o.operations
    ]
    found = LocalTimes.fit(measured) if measured else None
    return found if found is not None and found.learned else None


def _relatives(
    by_subject: Mapping[tuple[str, str], list[Observation]], kin: Mapping[str, Kin], prior: Factors
) -> Relatives:
    """What each measured device by itself says of the others."""
    alone: dict[tuple[str, str], Factor] = {}
    for (subject, kind), rows in sorted(by_subject.items()):
        if subject in kin:
            factors, _ = _fit_subject(subject, kind, rows, prior)
            alone.update({(subject, name): factor for name, factor in factors.items()})
    return Relatives.of(Factors(prior=prior.prior, learned=alone), kin)


def _fit_subject(
    subject: str,
    kind: str,
    rows: list[Observation],
    prior: Factors,
    related: tuple[Relatives, Kin] | None = None,
) -> tuple[dict[str, Factor], FitReport]:
    from scipy.optimize import nnls

    names = sorted({c for o in rows for c, seconds in o.components.items() if seconds > 0})
    priors = [prior.prior_factor(kind, name) for name in names]
    if related is not None:
        relatives, kin = related
        priors = [relatives.factor(kin, name, factor) for name, factor in zip(names, priors, strict=True)]
    times = np.array([o.seconds for o in rows])
    roof = np.array([[o.components.get(name, 0.0) for name in names] for o in rows])
    # Relative to prior and measured time, so that 1 everywhere means that the prior was right.
    relative = roof * np.array([p.value for p in priors]) / times[:, None]
    noise = np.array([(o.high_s - o.low_s) / (2 * NINETY * o.seconds) for o in rows])
    weight = np.sqrt(np.array(weights(rows))) / np.sqrt(SCATTER**2 + noise**2)
    stiffness = 1.0 / np.array([p.spread for p in priors])
    system = np.vstack([relative * weight[:, None], np.diag(stiffness)])
    wanted = np.concatenate([weight, stiffness])
    x, _ = nnls(system, wanted)

    predicted = relative @ x
    active = x > 0
    covariance = np.zeros((len(names), len(names)))
    covariance[np.ix_(active, active)] = np.linalg.inv(system[:, active].T @ system[:, active])
    weighted = relative * weight[:, None]
    # The residual of a row that the fit never saw is its residual over 1 - leverage (exact for the active set).
    leverage = np.clip(np.einsum("ij,jk,ik->i", weighted, covariance, weighted), 0.0, 1.0 - 1e-9)
    left_out = np.abs(predicted - 1.0) / (1.0 - leverage)

    misfit = np.log(np.maximum(predicted, 1e-3)) / np.sqrt(1.0 - leverage)
    scatter = sqrt((float(np.sum(misfit**2)) + SCATTER_WEIGHT * SCATTER**2) / (len(rows) + SCATTER_WEIGHT))
    scatter = max(scatter, LEAST_SCATTER)
    factors = {}
    for j, (name, before) in enumerate(zip(names, priors, strict=True)):
        if not active[j]:
            factors[name] = Factor(value=0.0, spread=before.spread, observations=len(rows))
            continue
        uncertainty = sqrt(covariance[j, j]) / x[j]
        count = int(np.count_nonzero(roof[:, j]))
        # What the data say cannot leave it less certain than the prior was.
        spread = min(sqrt(uncertainty**2 + scatter**2), max(before.spread, scatter))
        factors[name] = Factor(value=float(before.value * x[j]), spread=spread, observations=count)
    report = FitReport(
        subject=subject,
        observations=len(rows),
        before=float(np.median(np.abs(relative.sum(axis=1) - 1.0))),
        after=float(np.median(np.abs(predicted - 1.0))),
        left_out=float(np.median(left_out)) if len(rows) > 1 else None,
        noise=float(np.median([(o.high_s - o.low_s) / (2 * o.seconds) for o in rows])),
    )
    return factors, report
