r"""Between two steps of a run: how many times longer than predicted each family of operators takes, corrected as it runs.

The state is the logarithm of one scale per family, Gaussian, starting at 0 (the prediction) with the spread
:data:`SPREAD`. A task whose parts :math:`p_f` were predicted per family, and that took t seconds, measures

.. math:: \log t = \log \sum_f p_f e^{x_f} + \varepsilon, \quad
          \operatorname{var} \varepsilon = \sigma_t^2 + n \sigma_s^2

where n is the number of tasks of a step that mostly do the same: what one step's tasks have in common
(:math:`\sigma_s`) does not average out. All tasks of a step update the state at once, in a few Gauss-Newton steps of the
iterated extended Kalman filter (Bell, Cathey, IEEE Trans. Automatic Control 38(2), 1993), outliers with Huber's weights.
Before each update the covariance grows by the forgetting factor (recursive least squares with exponential forgetting;
Ljung, "System identification", 1999, section 11.2), never above what it started with, so a family that nothing
measures keeps its scale and is forgotten to be known.

The work is one pass over the tasks and a few systems of as many equations as there are families, whatever the tasks:
about 3 ms for 1,000 tasks. NumPy alone, no random numbers, no clock.

>>> scales = OnlineScales(["conv", "matmul"])
>>> for _ in range(50):
...     found = scales.update([Timed(parts={"conv": 1.0}, seconds=2.0), Timed(parts={"conv": 0.5, "matmul": 0.5}, seconds=1.5)])
>>> {name: round(value, 2) for name, value in found.items()}
{'conv': 2.0, 'matmul': 1.0}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .factors import NINETY

__all__ = ["OnlineScales", "Timed"]

SPREAD = 0.7
TASK_SPREAD = 0.10
STEP_SPREAD = 0.05
FORGETTING = 0.95
ITERATIONS = 4
# Residuals beyond so many standard deviations count as if they were there (Huber 1981: 95 % efficient for normal errors).
HUBER = 1.345


@dataclass(frozen=True, kw_only=True, slots=True)
class Timed:
    """A task: the seconds that were predicted for it, by family, and those that it took."""

    parts: Mapping[str, float]
    seconds: float


class OnlineScales:
    """Scales of `families`, 1.0 where nothing was measured yet."""

    def __init__(self, families: Iterable[str]) -> None:
        self._place = {name: i for i, name in enumerate(dict.fromkeys(families))}
        self._x = np.zeros(len(self._place))
        self._covariance = SPREAD**2 * np.eye(len(self._place))

    @property
    def scales(self) -> dict[str, float]:
        """How many times longer than predicted each family takes."""
        return {name: math.exp(self._x[i]) for name, i in self._place.items()}

    @property
    def spreads(self) -> dict[str, float]:
        """Standard deviations of the logarithms of the scales."""
        return {name: math.sqrt(self._covariance[i, i]) for name, i in self._place.items()}

    def update(self, tasks: Iterable[Timed]) -> dict[str, float]:
        """Take in the tasks of one step, in any order; returns the new scales.

        Tasks that took no time, or that nothing was predicted for, say nothing and are passed over.

        Raises:
            KeyError: a task has a family that was not named at the beginning.
        """
        parts, seconds = self._rows(tasks)
        if len(seconds):
            self._forget()
            self._learn(parts, seconds)
        return self.scales

    def corrected(self, parts: Mapping[str, float]) -> tuple[float, float, float]:
        """What work takes that was predicted to take `parts`: seconds, and the bounds that hold in nine cases of ten."""
        row = np.zeros(len(self._place))
        for name, predicted_s in parts.items():
            row[self._place[name]] += predicted_s
        scaled = row * np.exp(self._x)
        total = float(scaled.sum())
        if total <= 0.0:
            return 0.0, 0.0, 0.0
        share = scaled / total
        sd = math.sqrt(float(share @ self._covariance @ share) + STEP_SPREAD**2)
        return total, total * math.exp(-NINETY * sd), total * math.exp(NINETY * sd)

    def _rows(self, tasks: Iterable[Timed]) -> tuple[np.ndarray, np.ndarray]:
        """Predicted parts [n, families] and measured seconds [n]; one dictionary of parts is read once."""
        rows: dict[int, int] = {}
        kinds: list[Sequence[float]] = []
        of_task, seconds, kept = [], [], []
        for task in tasks:
            if not 0.0 < task.seconds < math.inf:
                continue
            kept.append(task)  # so that no two dictionaries ever have one id
            if id(task.parts) not in rows:
                row = [0.0] * len(self._place)
                for name, predicted_s in task.parts.items():
                    row[self._place[name]] += max(predicted_s, 0.0)
                rows[id(task.parts)] = len(kinds)
                kinds.append(row)
            of_task.append(rows[id(task.parts)])
            seconds.append(task.seconds)
        parts = np.array(kinds, dtype=np.float64).reshape(len(kinds), len(self._place))[
            np.array(of_task, dtype=np.intp)
        ]
        told = parts.sum(axis=1) > 0.0
        return parts[told], np.array(seconds)[told]

    def _forget(self) -> None:
        grown = self._covariance / FORGETTING
        shrink = np.minimum(1.0, SPREAD / np.sqrt(np.diag(grown)))
        self._covariance = shrink[:, None] * grown * shrink

    def _learn(self, parts: np.ndarray, seconds: np.ndarray) -> None:
        mostly = np.argmax(parts, axis=1)
        alike = np.bincount(mostly, minlength=len(self._place))[mostly]
        noise = TASK_SPREAD**2 + alike * STEP_SPREAD**2
        before, x = self._x, self._x
        precision = np.linalg.inv(self._covariance)
        logarithm = np.log(seconds)
        for iteration in range(ITERATIONS):
            scaled = parts * np.exp(x)
            total = scaled.sum(axis=1)
            share = scaled / total[:, None]
            residual = logarithm - np.log(total)
            weight = 1.0 / noise
            if iteration:
                # By what tasks scatter among themselves; that all of them differ from the prediction makes none an outlier.
                limit = HUBER * TASK_SPREAD
                away = np.abs(residual - _median_by(residual, mostly))
                weight = weight * np.minimum(1.0, limit / np.maximum(away, 1e-12))
            information = precision + (share * weight[:, None]).T @ share
            gradient = share.T @ (weight * residual) + precision @ (before - x)
            x = x + np.linalg.solve(information, gradient)
        self._x = x
        covariance = np.linalg.inv(information)
        self._covariance = (covariance + covariance.T) / 2


def _median_by(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """For each value, the median of those of its group."""
    found = np.empty_like(values)
    for group in np.unique(groups):
        here = groups == group
        found[here] = np.median(values[here])
    return found
