"""What a busy device draws: between its idle power and its limit, by how busy its units and its memory are.

``power = idle + (limit - idle) * (active + (1 - active) * max(compute utilisation, memory utilisation))``

Utilisations are shares of the device's peaks over the time that the work takes. `active` is what any running kernel
adds (clocks up, caches and control logic awake). It is a modelled constant with an interval: the profile has no
utilisation curve.

>>> power_share(0.0).value, power_share(1.0).value
(0.4, 1.0)
"""

from __future__ import annotations

from typing import NamedTuple

from ...hwprofiles import Device
from .workload import Workload

__all__ = ["Energy", "busy_energy", "idle_energy", "power_share"]

# Training BERT and ResNet-50, a P100, V100 and RTX 6000 draw 57 to 97 % of their limit (median power of the Zeus
# measurements, You et al., NSDI 2023, at the highest limit); networks that leave a GPU waiting draw from 13 %.
ACTIVE, ACTIVE_LOW, ACTIVE_HIGH = 0.4, 0.2, 0.65


class Energy(NamedTuple):
    """A value between `low` and `high`: joules, or a share."""

    value: float
    low: float
    high: float


def power_share(utilisation: float) -> Energy:
    """The share of the range between idle and limit that a device draws at a utilisation of 0 to 1."""
    busy = min(max(utilisation, 0.0), 1.0)
    value, low, high = (active + (1.0 - active) * busy for active in (ACTIVE, ACTIVE_LOW, ACTIVE_HIGH))
    return Energy(value, low, high)


def busy_energy(workload: Workload, seconds: float, device: Device) -> Energy | None:
    """Joules of `device` while it works on `workload` for `seconds`, idle power included; None where the profile
    lacks a power.
    """
    if device.idle_w is None or device.limit_w is None:
        return None
    idle, limit = device.idle_w.value, device.limit_w.value
    utilisation = max(workload.compute_s, workload.memory_s) / seconds if seconds > 0 else 0.0
    share = power_share(utilisation)
    value, low, high = (seconds * (idle + (limit - idle) * part) for part in share)
    return Energy(value, low, high)


def idle_energy(device: Device, seconds: float) -> float | None:
    """Joules of a device that waits; None where the profile has no idle power."""
    return None if device.idle_w is None else device.idle_w.value * seconds
