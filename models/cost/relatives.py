r"""What measurements of one device say about its relatives: of the same architecture, vendor, kind.

How far the model errs for a component on device a, as a logarithm, is a sum of parts that devices share,
:math:`\theta_a = k + v + g + o` (kind, vendor, generation or architecture, own), each normal around 0. So errors of two
devices covary by what they share,

.. math:: \operatorname{cov}(\theta_a, \theta_b) = \tau^2 \sum_{l:\, a \sim_l b} w_l

and what was measured of some devices gives the mean and the spread of any other by the rule for conditional normal
distributions: hierarchical shrinkage (Gelman et al., "Bayesian data analysis", 2013, chapter 5). n measured devices of an
architecture pull a new one towards their mean by n / (n + own share / shared share), and its interval stays wider by
the own share.

:math:`\tau^2` is :data:`DEVICE_SHARE` of the component's variance in the prior; the rest scatters between workloads of a
device. Both shares are from published tables: medians per device of the logarithm of time over roofline, of eight
families on 15 GPUs, have within a vendor a variance of 0.056 and within an architecture (11 pairs) of 0.021, and
workloads of a device one of 0.146. Between vendors nothing but one device was there to tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from ...hwprofiles import Device
from .factors import Factor, Factors
from .observations import Observation

__all__ = ["DEVICE_SHARE", "SHARES", "Kin", "Relatives", "Shift", "kin_of", "kin_of_device"]

SHARES: Mapping[str, float] = {"kind": 0.15, "vendor": 0.10, "architecture": 0.45, "own": 0.30}
DEVICE_SHARE = 0.3


class Kin(NamedTuple):
    """Whom a device is related to; None where its profile does not say."""

    name: str
    kind: str
    vendor: str | None = None
    architecture: str | None = None


class Shift(NamedTuple):
    """A logarithm by which the model errs, its standard deviation, and the measured devices behind it."""

    mean: float
    spread: float
    devices: tuple[str, ...] = ()


def kin_of_device(device: Device) -> Kin:
    """A device's relations, by its profile."""
    return Kin(device.name, "cpu" if device.kind == "cpu" else "gpu", device.vendor or None, device.architecture or None)


def kin_of(observations: Iterable[Observation]) -> dict[str, Kin]:
    """The measured devices by name, with what their observations say of vendor and architecture."""
    found: dict[str, Kin] = {}
    for o in observations:
        if o.subject_kind in ("cpu", "gpu"):
            known = found.get(o.subject, Kin(o.subject, o.subject_kind))
            vendor, architecture = (str(o.conditions.get(name, "")) or None for name in ("vendor", "architecture"))
            found[o.subject] = Kin(
                o.subject, o.subject_kind, vendor or known.vendor, architecture or known.architecture
            )
    return found


def related(a: Kin, b: Kin) -> float:
    """The share of their errors' variance that two devices have in common: 1 for a device and itself."""
    if a.name == b.name:
        return 1.0
    if a.kind != b.kind:
        return 0.0
    share = SHARES["kind"]
    if a.vendor is not None and a.vendor == b.vendor:
        share += SHARES["vendor"]
        if a.architecture is not None and a.architecture == b.architecture:
            share += SHARES["architecture"]
    return share


class Relatives:
    """What measured devices tell of others.

    measured   by device, how far the model was found to err for each component: mean and standard deviation of a logarithm
    """

    def __init__(self, measured: Mapping[Kin, Mapping[str, Shift]]) -> None:
        self._by_component: dict[str, list[tuple[Kin, Shift]]] = {}
        for kin, shifts in sorted(measured.items(), key=lambda pair: pair[0].name):
            for component, shift in shifts.items():
                self._by_component.setdefault(component, []).append((kin, shift))

    @classmethod
    def of(cls, factors: Factors, kin: Mapping[str, Kin]) -> Relatives:
        """From factors that were learned for the devices of `kin`, against the prior's."""
        measured: dict[Kin, dict[str, Shift]] = {}
        for (subject, component), factor in factors.learned.items():
            if subject in kin and factor.value > 0.0 and factor.observations > 0:
                prior = factors.prior_factor(kin[subject].kind, component)
                # What remains unknown of a device's mean after so many workloads.
                error = max(factor.spread / math.sqrt(factor.observations), 0.02)
                shift = Shift(math.log(factor.value / prior.value), error, (subject,))
                measured.setdefault(kin[subject], {})[component] = shift
        return cls(measured)

    def shift(self, device: Kin, component: str, prior: Factor) -> Shift | None:
        """By how much the model errs for a component on `device`, as far as others tell; None where nobody was measured
        that shares anything with it. Its spread is that of one workload.
        """
        rows = [
            (related(device, kin), kin, shift)
            for kin, shift in self._by_component.get(component, ())
            if kin.name != device.name and related(device, kin) > 0.0
        ]
        if not rows:
            return None
        variance = DEVICE_SHARE * prior.spread**2
        shared = variance * np.array([share for share, _, _ in rows])
        among = variance * np.array([[related(a, b) for _, b, _ in rows] for _, a, _ in rows])
        errors = np.array([shift.spread for _, _, shift in rows])
        means = np.array([shift.mean for _, _, shift in rows])
        weights = np.linalg.solve(among + np.diag(errors**2), shared)
        left = variance - float(weights @ shared)
        spread = math.sqrt(left + (1.0 - DEVICE_SHARE) * prior.spread**2)
        return Shift(float(weights @ means), spread, tuple(kin.name for _, kin, _ in rows))

    def factor(self, device: Kin, component: str, prior: Factor) -> Factor:
        """The prior's factor for a component, moved as far as relatives of `device` say."""
        shift = self.shift(device, component, prior)
        if shift is None:
            return prior
        return Factor(value=prior.value * math.exp(shift.mean), spread=shift.spread)
