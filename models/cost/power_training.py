"""Power of a GPU that trains a network whose load was measured before, at any batch, power limit and on any GPU.

``demand = active + full * intensity * busy(batch)``: `full` is what float32 arithmetic at the vector peak draws
(:func:`.power.full_vector_w`), `intensity` how hard a network drives a GPU with full batches, and ``busy = 1 / (1 +
(half_batch * capability / batch) ** steepness)`` the share of the time that the GPU has work: small batches leave it
waiting for the host, the sooner the faster it is. The limit acts as in :mod:`.power`. These few numbers per network are
the same on all devices; where a network was measured on the very device, a low-order polynomial in the logarithms of
batch and limit corrects them.

Intervals say what is known: the pair of network and device, only the network, or neither.

>>> from hpdlf.hwprofiles import load_device
>>> a40 = load_device("A40")
>>> free = training_power("resnet50/imagenet", a40, batch=128)
>>> capped = training_power("resnet50/imagenet", a40, batch=128, limit_w=150)
>>> 200 < free.watts.value < 300, capped.watts.value < 151, capped.slowdown.value > 1.05, free.known
(True, True, True, 'network')
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import ProfileError
from ...hwprofiles import Device
from .power import Energy, active_w, full_vector_w, vector_flops_per_s
from .power_parameters import PowerParameters, limited, power_file, power_parameters, stretched

__all__ = [
    "Correction",
    "Known",
    "NetworkLoad",
    "TrainingEstimate",
    "basis",
    "network_loads",
    "training_power",
]

Known = Literal["network on this device", "network", "nothing"]
# Reference of the capability: between a P100 and an RTX 6000.
_FLOPS_PER_S, _BYTES_PER_S = 13e12, 750e9
# Degrees of the polynomials in log batch and log limit.
_DEGREES, _TOTAL = (3, 2), 1.5
# Times per epoch differ by as much from run to run.
NOISE = 0.07


@dataclass(frozen=True, kw_only=True)
class Correction:
    """A polynomial in the logarithms of batch and limit, scaled to -1..1 over what was measured and held beyond."""

    batch: tuple[float, float]
    limit_w: tuple[float, float]
    coefficients: tuple[float, ...]

    def log_factor(self, batch: ArrayLike, limit_w: ArrayLike) -> NDArray[np.float64]:
        """The logarithm of the factor on power [n]."""
        columns, _ = basis(scaled(batch, self.batch), scaled(limit_w, self.limit_w))
        found: NDArray[np.float64] = columns @ np.asarray(self.coefficients)
        return found


@dataclass(frozen=True, kw_only=True)
class NetworkLoad:
    """How a network loads any GPU, see the module; `clock_share` of the busy time follows the core clock.

    spread  half-widths of the 90 % interval, as logarithms of power, where the pair was measured
    """

    intensity: float
    half_batch: float
    steepness: float
    clock_share: float
    spread: tuple[float, float] = (0.0, 0.0)
    corrections: Mapping[str, Correction] = field(default_factory=dict)


class TrainingEstimate(NamedTuple):
    """Mean watts, and time relative to the device's own limit, with what they rest on."""

    watts: Energy
    slowdown: Energy
    known: Known


def training_power(network: str, device: Device, *, batch: int, limit_w: float | None = None) -> TrainingEstimate:
    """Power and slowdown of `device` that trains `network` ("resnet50/imagenet", see :func:`network_loads`) with `batch`
    samples a step under a power limit (None: its own).

    An unknown network gets a mean load and a wide interval.

    Raises:
        ProfileError: the device's profile has no power limit.
    """
    if device.limit_w is None:
        raise ProfileError(f"{device.name} has no limit_power in its profile, without which its power is not known.")
    p, loads = power_parameters(), network_loads()
    found = loads.get(network)
    load = found if found is not None else loads[""]
    top, limit = device.limit_w.value, device.limit_w.value if limit_w is None else limit_w
    demand, active, busy = (float(v) for v in demand_of(load, device, batch, p))
    watts = float(limited(demand, active, limit, p.softness))
    correction = load.corrections.get(device.name)
    known: Known = "nothing" if found is None else "network" if correction is None else "network on this device"
    if correction is not None:
        watts = min(watts * math.exp(float(correction.log_factor(batch, limit)[0])), limit * 1.02)
        low, high = watts * math.exp(load.spread[0]), watts * math.exp(load.spread[1])
    else:
        width = p.interval[known]
        low, high = (
            float(limited(max(demand * factor, active * min(factor, 1.0)), active * min(factor, 1.0), limit, p.softness))
            for factor in width
        )
        low, high = 0.96 * low, 1.04 * high
    interval = Energy(watts, min(low, watts), max(min(high, limit * 1.02), watts))
    share = load.clock_share * busy
    ratio = float(stretched(p.clock_at(demand, active, limit), share) / stretched(p.clock_at(demand, active, top), share))
    ratio = max(ratio, 1.0) if limit <= top else ratio
    less, more = p.interval["slowdown"]
    slower = Energy(ratio, 1 + (ratio - 1) * less - NOISE, 1 + (ratio - 1) * more + NOISE)
    return TrainingEstimate(interval, slower, known)


def demand_of(
    load: NetworkLoad, device: Device, batch: ArrayLike, p: PowerParameters
) -> tuple[NDArray[np.float64], float, NDArray[np.float64]]:
    """(demand in watts [n], active watts, busy share [n])."""
    active = active_w(device, p)
    assert active is not None, "callers refuse devices without a limit"
    busy = busy_share(batch, load.half_batch * capability(device), load.steepness)
    return active + full_vector_w(device, p) * load.intensity * busy, active, busy


def busy_share(batch: ArrayLike, half_batch: ArrayLike, steepness: ArrayLike) -> NDArray[np.float64]:
    """The share of the time that a GPU has work; a half at `half_batch`."""
    found: NDArray[np.float64] = 1.0 / (1.0 + (np.asarray(half_batch) / np.asarray(batch, float)) ** np.asarray(steepness))
    return found


def capability(device: Device) -> float:
    """How fast a device is, relative to the reference: the geometric mean of arithmetic and bandwidth."""
    bandwidth = device.memory_bandwidth_bytes_per_s.value
    return math.sqrt(vector_flops_per_s(device) / _FLOPS_PER_S * bandwidth / _BYTES_PER_S)


def basis(x: NDArray[np.float64], z: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Products of Chebyshev polynomials [n, terms], and the degree of each term."""
    nx, nz = _DEGREES
    pairs = [(i, j) for i in range(nx + 1) for j in range(nz + 1) if i / nx + j / nz <= _TOTAL]
    cheb = np.polynomial.chebyshev.chebvander
    tx, tz = cheb(x, nx), cheb(z, nz)
    return np.stack([tx[:, i] * tz[:, j] for i, j in pairs], axis=1), np.array([float(i + j) for i, j in pairs])


def scaled(values: ArrayLike, bounds: tuple[float, float]) -> NDArray[np.float64]:
    """Logarithms from -1 to 1 within `bounds`, held beyond."""
    low, high = math.log(bounds[0]), math.log(bounds[1])
    middle, half = (low + high) / 2, max((high - low) / 2, 1e-9)
    return np.clip((np.log(np.atleast_1d(np.asarray(values, float))) - middle) / half, -1.0, 1.0)


@cache
def network_loads() -> Mapping[str, NetworkLoad]:
    """The loads that ship with the package by name ("network/data set"); "" is the mean of all."""
    return loads_from_plain(power_file()["networks"])


def loads_from_plain(plain: Mapping[str, Any]) -> dict[str, NetworkLoad]:
    """The "networks" part of a parsed file."""

    def correction(values: Mapping[str, Any]) -> Correction:
        return Correction(
            batch=tuple(values["batch"]), limit_w=tuple(values["limit_w"]), coefficients=tuple(values["coefficients"])
        )

    return {
        name: NetworkLoad(
            intensity=v["intensity"],
            half_batch=v["half_batch"],
            steepness=v["steepness"],
            clock_share=v["clock_share"],
            spread=tuple(v["spread"]),
            corrections={device: correction(c) for device, c in v["corrections"].items()},
        )
        for name, v in plain.items()
    }
