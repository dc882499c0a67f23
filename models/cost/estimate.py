"""What a prediction looks like: a time with its interval, the energy that goes with it, where it comes from and what
bounds it.

>>> a = Estimate(seconds=2.0, low_s=1.5, high_s=3.0, joules=10.0, provenance="learned", bound="compute")
>>> b = Estimate(seconds=1.0, low_s=0.5, high_s=1.5, provenance="modelled", bound="memory")
>>> total = a + b
>>> total.seconds, total.low_s, total.high_s, total.joules, total.provenance, total.bound
(3.0, 2.0, 4.5, None, 'modelled', 'compute')
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Bound", "Estimate", "Provenance"]

Provenance = Literal["measured", "interpolated", "learned", "modelled"]
Bound = Literal["compute", "memory", "launch", "network", "host"]

# A sum is only as good as its worst part.
_TRUST = {"modelled": 0, "learned": 1, "interpolated": 2, "measured": 3}


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A predicted duration in seconds, between `low_s` and `high_s` in nine cases of ten.

    joules      energy of the device that is busy, its idle power included, with `low_j` and `high_j`; None where the
                profile does not say what the device draws, never 0
    provenance  "measured": the median of the user's own measurements of this very thing; "interpolated": measured
                around it, in size or shape; "learned": a model fitted on measurements of this device or its
                relatives; "modelled": what ships with the package
    bound       what most of the time goes to
    """

    seconds: float
    low_s: float
    high_s: float
    joules: float | None = None
    low_j: float | None = None
    high_j: float | None = None
    provenance: Provenance
    bound: Bound

    def __post_init__(self) -> None:
        if not (0.0 <= self.low_s <= self.seconds <= self.high_s < math.inf):
            raise ValueError(f"an estimate of {self.seconds} s cannot lie between {self.low_s} and {self.high_s} s")

    def __add__(self, other: Estimate) -> Estimate:
        """One after the other.

        Intervals add linearly: their parts err together (the same factor of a family stands in all of its
        operators), so the root of the sum of squares would promise too much. Energy is unknown as soon as one part's
        is.
        """
        if not isinstance(other, Estimate):
            return NotImplemented
        weaker = min(self.provenance, other.provenance, key=_TRUST.__getitem__)
        return Estimate(
            seconds=self.seconds + other.seconds,
            low_s=self.low_s + other.low_s,
            high_s=self.high_s + other.high_s,
            joules=_add(self.joules, other.joules),
            low_j=_add(self.low_j, other.low_j),
            high_j=_add(self.high_j, other.high_j),
            provenance=weaker,
            bound=self.bound if self.seconds >= other.seconds else other.bound,
        )

    def __radd__(self, other: object) -> Estimate:
        # sum() starts from the integer 0.
        if other == 0:
            return self
        return NotImplemented

    def __mul__(self, times: float) -> Estimate:
        """The same thing `times` over."""
        if not 0.0 <= times < math.inf:
            raise ValueError(f"an estimate cannot be taken {times} times")
        return Estimate(
            seconds=self.seconds * times,
            low_s=self.low_s * times,
            high_s=self.high_s * times,
            joules=_scale(self.joules, times),
            low_j=_scale(self.low_j, times),
            high_j=_scale(self.high_j, times),
            provenance=self.provenance,
            bound=self.bound,
        )

    __rmul__ = __mul__

    @property
    def relative_width(self) -> float | None:
        """Width of the interval over the estimate; None for an estimate of 0."""
        return (self.high_s - self.low_s) / self.seconds if self.seconds else None


def _add(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def _scale(a: float | None, times: float) -> float | None:
    return None if a is None else a * times
