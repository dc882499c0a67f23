r"""Between measured points and beyond them: the model, held to what was measured near by.

What was measured is an *anchor* for the same work in other shapes (:mod:`.shapes`). With model :math:`m`, times
:math:`t_i` and g the nearest anchor's :math:`t/m`, the relative error :math:`y_i = t_i/(g m_i) - 1` is a Gaussian
process, and the estimate its mean given the anchors (simple kriging; Cressie, "Statistics for spatial data", 1993,
section 3.2), which meets them to within their noise.

Along the sizes n of one work (another batch, another length of message) time is close to ``a + b n``: weights are read and
calls are made once, the rest grows. So the model errs as a whole, in a constant part, in a part that grows, and locally:

.. math:: \operatorname{cov}(y_i, y_j) = s^2 + s_p^2 \frac{m_0^2}{m_i m_j} \Big(1 + \frac{n_i n_j}{n_0^2}\Big)
          + s_l^2 e^{-|\log n_i / n_j| / L}

(0: the nearest anchor; s: how far the model errs, by what it says or by that anchor). One anchor thus scales the
model, two place a straight line, and more bend it where they say so; the distance to the straight line between the
neighbours widens the interval. Since neither part is negative, work that is r times an anchor's takes between 1 and r
times as long; and between two anchors it takes between their times.

Where no anchor differs in size alone, the covariance is :math:`s^2 e^{-d_{ij}/L}` with the distance d of shapes (the
mean over operations of the sum over dimensions of ``|log|`` of their ratio), so that what was measured fades to the model's own.

An estimate is *inside* if anchors lie on both sides (smaller and larger), or around it (in the convex hull of their
shapes); only then it counts as interpolated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .drift import CORRECTED
from .factors import NINETY
from .shapes import SAME, log_ratios, shape, shape_key

if TYPE_CHECKING:
    from .observations import Observation
    from .workload import Workload

__all__ = ["Anchored", "Anchors"]

# Errors of the model's constant and of its growing part, each against that of the whole.
PARTS_SHARE = 0.75
# Relative standard deviations: of local errors, at least and as a share of the whole's; of a measurement repeated another
# day. Chosen so that nine in ten of the times left out of series of published operators (matrix products, element-wise,
# softmax, normalisation at other numbers of rows) lie within, whether the model is a regression or the bare roofline.
LOCAL_SPREAD, LOCAL_SHARE = 0.06, 0.15
REPEAT_SPREAD = 0.015
# So much of the distance to a straight line between neighbours, which knows nothing of the model, is taken for an error.
STRAIGHT_SHARE = 0.6
# What was measured before a drift and brought up to date is known less well.
CORRECTED_SPREAD = 0.04
# So is what was measured while more or fewer ranks shared the node's memory.
CROWD_SPREAD = 0.10
# Lengths, as logarithms of ratios, over which local errors and those of other shapes fade.
LOCAL_LENGTH = math.log(4.0)
SHAPE_LENGTH = math.log(16.0)
# The model errs at least this much, whatever it says, before anything was measured near by.
LEAST_SPREAD = 0.05
NEAREST = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Anchored:
    """An estimate in seconds; `inside`: between measured points; `anchors`: how many stand behind it."""

    seconds: float
    low_s: float
    high_s: float
    inside: bool
    anchors: int


class Anchors:
    """The measured workloads, found by what they do."""

    def __init__(self, observations: Iterable[Observation]) -> None:
        self._groups: dict[tuple[str, str], _Group] = {}
        for observation in observations:
            key = observation.subject, observation.shape_key
            point, starts = shape(observation.key, observation.operations)
            group = self._groups.setdefault(key, _Group(starts=starts))
            group.observations.append(observation)
            group.points.append(point)

    def estimate(
        self,
        workload: Workload,
        modelled: tuple[float, float, float],
        at_anchor: Callable[[Observation], float],
        *,
        ranks_on_node: int | None = None,
    ) -> Anchored | None:
        """What the anchors near `workload` make of the model; None where there are none.

        modelled    seconds by the model alone, and the bounds that hold in nine cases of ten
        at_anchor   the seconds that the model has for what was measured
        ranks_on_node   how many ranks will share the node; what was measured with as many says more
        """
        group = self._groups.get((workload.subject, shape_key(workload.kind, workload.key, workload.operations)))
        if group is None:
            return None
        seconds, low_s, high_s = modelled
        if seconds <= 0.0:
            return None
        near = group.near(shape(workload.key, workload.operations)[0])
        by_model = np.array([seconds, *(max(at_anchor(a), 1e-15) for a in near.anchors)])
        ratios = np.array([a.seconds for a in near.anchors]) / by_model[1:]
        # Where the model was seen to err by more than it says, it errs so elsewhere.
        said = math.log(high_s / low_s) / (2 * NINETY) if low_s > 0.0 else 1.0
        spread = max(said, abs(math.log(ratios[0])), LEAST_SPREAD)
        if near.along:
            covariance = _along(np.array([0.0, *near.places]), by_model, spread)
        else:
            covariance = spread**2 * np.exp(-near.apart / SHAPE_LENGTH)
        factor, sd = _kriged(covariance, ratios, np.array([_noise(a, ranks_on_node) for a in near.anchors]))
        # However far away, the model was seen to err by no more than that.
        sd = min(sd, math.hypot(said, math.log(ratios[0]), LOCAL_SPREAD))
        least_s, most_s = near.bounds()
        found, slack = min(max(seconds * factor, least_s), most_s), math.exp(NINETY * REPEAT_SPREAD)
        straight_s = near.straight_s()
        if straight_s is not None:
            sd = math.hypot(sd, STRAIGHT_SHARE * math.log(straight_s / found))
        low_s, high_s = found * math.exp(-NINETY * sd), found * math.exp(NINETY * sd)
        return Anchored(
            seconds=found,
            low_s=max(low_s, min(least_s, found) / slack),
            high_s=min(high_s, max(most_s, found) * slack),
            inside=near.inside,
            anchors=len(near.anchors),
        )


class _Near(NamedTuple):
    """Anchors, the nearest first. `along`: they differ from the target in size alone, by `places` (logarithms of
    ratios); else `apart` are the distances of shapes among target and anchors [1 + n, 1 + n].
    """

    anchors: list[Observation]
    along: bool
    places: list[float]
    apart: np.ndarray
    inside: bool

    def bounds(self) -> tuple[float, float]:
        """The least and the most seconds that the nearest anchors on either side allow work that is ``a + b size``."""
        if not self.along:
            return 0.0, math.inf
        least, most = [0.0], [math.inf]
        for sign in (-1.0, 1.0):
            side = [(a.seconds, sign * p) for a, p in zip(self.anchors, self.places, strict=True) if sign * p > -SAME]
            if side:
                seconds, away = side[0]
                across = seconds * math.exp(-sign * away)
                least.append(min(seconds, across))
                most.append(max(seconds, across))
        # Noise may put them the other way round.
        low, high = sorted((max(least), min(most)))
        return low, high

    def straight_s(self) -> float | None:
        """Seconds on the straight line between the nearest on either side; None where there are not both."""
        if not self.along or not self.inside:
            return None
        pairs = list(zip(self.places, self.anchors, strict=True))
        smaller = next((math.exp(p), a.seconds) for p, a in pairs if p < SAME)
        larger = next((math.exp(p), a.seconds) for p, a in pairs if p > -SAME)
        share = (1.0 - smaller[0]) / (larger[0] - smaller[0]) if larger[0] > smaller[0] else 0.0
        return smaller[1] + share * (larger[1] - smaller[1])


@dataclass
class _Group:
    """Measured work of one shape key: its points, and where operations begin in each."""

    starts: np.ndarray
    observations: list[Observation] = field(default_factory=list)
    points: list[np.ndarray] = field(default_factory=list)

    @cached_property
    def _stacked(self) -> np.ndarray:
        return np.array(self.points)

    def near(self, target: np.ndarray) -> _Near:
        """Up to :data:`NEAREST` anchors: of the same work, as many of smaller as of larger size; where there is none,
        of any shape.
        """
        ratios = log_ratios(self._stacked, target, self.starts)
        if np.isnan(ratios).all():
            return self._of_any_shape(target)
        order = np.argsort(np.abs(ratios), kind="stable")  # what has no ratio comes last
        chosen = [i for i in order if abs(ratios[i]) <= SAME]
        chosen += [i for i in order if ratios[i] < -SAME][: NEAREST // 2]
        chosen += [i for i in order if ratios[i] > SAME][: NEAREST // 2]
        chosen.sort(key=lambda i: abs(ratios[i]))
        places = [float(ratios[i]) for i in chosen]
        inside = min(places) < SAME and max(places) > -SAME
        return _Near([self.observations[i] for i in chosen], True, places, np.empty(0), inside)

    def _of_any_shape(self, target: np.ndarray) -> _Near:
        order = np.argsort(np.abs(self._stacked - target).sum(axis=1), kind="stable")[:NEAREST]
        points = np.vstack([target, self._stacked[order]])
        apart = np.abs(points[:, None] - points[None]).sum(axis=2) / max(len(self.starts), 1)
        return _Near([self.observations[i] for i in order], False, [], apart, _around(points[1:] - target))


def _along(places: np.ndarray, by_model: np.ndarray, spread: float) -> np.ndarray:
    """Covariance of the model's relative errors at sizes ``exp(places)``, the target's first; see the module's text."""
    nearest = 1 + int(np.argmin(np.abs(places[1:])))
    constant = by_model[nearest] / by_model
    growing = constant * np.exp(places - places[nearest])
    parts = (PARTS_SHARE * spread) ** 2 * (np.outer(constant, constant) + np.outer(growing, growing))
    local = (LOCAL_SPREAD**2 + (LOCAL_SHARE * spread) ** 2) * np.exp(-np.abs(places[:, None] - places[None]) / LOCAL_LENGTH)
    found: np.ndarray = spread**2 + parts + local
    return found


def _kriged(covariance: np.ndarray, ratios: np.ndarray, noise: np.ndarray) -> tuple[float, float]:
    """What to multiply the model's time by, and the standard deviation of its logarithm.

    `covariance` of the target (first) and the anchors [1 + n, 1 + n]; `ratios` measured over modelled, and the relative
    `noise` of the measurements [n], nearest first.
    """
    nearest = ratios[0]
    weights = np.linalg.solve(covariance[1:, 1:] + np.diag(noise**2), covariance[1:, 0])
    known = min(max(float(weights.sum()), 0.0), 1.0)
    bent = max(1.0 + float(weights @ (ratios / nearest - 1.0)), 0.05)
    variance = max(float(covariance[0, 0] - weights @ covariance[1:, 0]), 0.0) + REPEAT_SPREAD**2
    return float(nearest**known) * bent, math.sqrt(variance)


def _noise(observation: Observation, ranks_on_node: int | None) -> float:
    """Relative standard deviation of a measured median: of its repeats (outliers lie on one side), between days, and for
    what was other than it will be.
    """
    below, above = observation.seconds / observation.low_s, observation.high_s / observation.seconds
    one = math.log(min(below, above)) / NINETY
    corrected = CORRECTED_SPREAD if CORRECTED in observation.conditions else 0.0
    crowds = {observation.ranks_on_node, ranks_on_node} - {None}
    crowded = CROWD_SPREAD if len(crowds) > 1 else 0.0
    return math.hypot(1.2533 * one / math.sqrt(observation.repeats), REPEAT_SPREAD, corrected, crowded)


def _around(points: np.ndarray) -> bool:
    """Whether the origin lies in the convex hull of `points` [n, dims]: non-negative weights that sum to 1 and lead
    there (Lawson, Hanson 1974, chapter 23).
    """
    scale = max(float(np.abs(points).max(initial=0.0)), SAME)
    system = np.vstack([(points / scale).T, np.ones(len(points))])
    wanted = np.zeros(len(system))
    wanted[-1] = 1.0
    weights = np.zeros(len(points))
    active = np.zeros(len(points), dtype=bool)
    for _ in range(3 * len(points)):
        gradient = system.T @ (wanted - system @ weights)
        gradient[active] = -np.inf
        if gradient.max(initial=-np.inf) < SAME:
            break
        active[int(np.argmax(gradient))] = True
        while True:
            trial = np.zeros(len(points))
            trial[active] = np.linalg.lstsq(system[:, active], wanted, rcond=None)[0]
            if trial[active].min() > 0.0:
                break
            falling = active & (trial <= 0.0)
            step = float(np.min(weights[falling] / np.maximum(weights[falling] - trial[falling], SAME)))
            weights = weights + step * (trial - weights)
            active &= weights > SAME
            if not active.any():
                break
        weights = trial if active.any() else weights
    return bool(np.linalg.norm(wanted - system @ weights) < 1e-6)
