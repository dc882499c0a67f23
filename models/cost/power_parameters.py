"""The parameters of :mod:`.power`, read from ``power.json`` once, and the curves that they describe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import DataError

__all__ = [
    "FORMAT",
    "VERSION",
    "PowerParameters",
    "limited",
    "parameters_from_plain",
    "power_file",
    "power_parameters",
    "stretched",
]

FORMAT, VERSION = "hpdlf power", 1
PATH = Path(__file__).with_name("power.json")
# GPUs do not clock lower than a fifth of their boost clock under a limit.
LEAST_CLOCK = 0.2


@dataclass(frozen=True, kw_only=True)
class PowerParameters:
    """What the formulas of :mod:`.power` need. Shares are of the power limit.

    active_share     by memory technology ("hbm", "gddr")
    hbm_from_bytes_per_s  by architecture ("" for others): the bandwidth from which on a memory is HBM
    joules_per_flop, silicon  float32 on vector units: energy of one operation on the reference silicon (16 nm), and
                     relative to it by architecture ("" for others)
    compute_share, compute_power, memory_share, memory_power, network_share   of the demand, see :mod:`.power`
    softness         how sharply mean power bends below a limit: of a whole training step, with its ups and downs
    steady_softness  the same of one kind of work
    static_share     of the active power that no clock reduces
    clock_exponent, clock_floor  dynamic power goes with this power of the clock down to the floor, then in proportion
    interval         by what is known: measured over predicted, 5 and 95 %; of "slowdown" the excess over 1
    """

    active_share: Mapping[str, float]
    hbm_from_bytes_per_s: Mapping[str, float]
    joules_per_flop: float
    silicon: Mapping[str, float]
    compute_share: float
    compute_power: float
    memory_share: float
    memory_power: float
    network_share: float
    softness: float
    steady_softness: float
    static_share: float
    clock_exponent: float
    clock_floor: float
    interval: Mapping[str, tuple[float, float]]

    def dynamic_share(self, clock: ArrayLike) -> NDArray[np.float64]:
        """Dynamic power at `clock` (a share of the boost clock), relative to the boost clock."""
        clock = np.asarray(clock, float)
        below = self.clock_floor ** (self.clock_exponent - 1.0) * clock
        found: NDArray[np.float64] = np.where(clock > self.clock_floor, clock**self.clock_exponent, below)
        return found

    def clock_at(self, demand: ArrayLike, active: ArrayLike, limit: ArrayLike, *, steady: bool = False) -> Any:
        """The mean clock, as a share of the boost clock, at which `demand` watts shrink to what `limit` allows."""
        demand, active = np.asarray(demand, float), np.asarray(active, float)
        static = self.static_share * active
        softness = self.steady_softness if steady else self.softness
        room = limited(demand, active, limit, softness) - static
        share = np.clip(room / np.maximum(demand - static, 1e-9), 1e-6, 1.0)
        top = share ** (1.0 / self.clock_exponent)
        clock = np.where(top > self.clock_floor, top, share / self.clock_floor ** (self.clock_exponent - 1.0))
        return np.maximum(clock, LEAST_CLOCK)


def limited(demand: ArrayLike, active: ArrayLike, limit: ArrayLike, softness: float) -> NDArray[np.float64]:
    """Mean watts where `demand` is asked for and `limit` allowed; `active` is the part of the demand that is steady."""
    demand, limit = np.asarray(demand, float), np.asarray(limit, float)
    sharpness = np.minimum(softness * demand / np.maximum(demand - active, 1e-3), 60.0)
    found: NDArray[np.float64] = demand * (1.0 + (demand / limit) ** sharpness) ** (-1.0 / sharpness)
    return found


def stretched(clock: ArrayLike, share: ArrayLike) -> NDArray[np.float64]:
    """Time relative to the full clock where `share` of it follows the clock (a share of the boost clock)."""
    found: NDArray[np.float64] = 1.0 + np.asarray(share) * (1.0 / np.asarray(clock) - 1.0)
    return found


def parameters_from_plain(plain: Mapping[str, Any]) -> PowerParameters:
    """The "device" part of a parsed file."""
    values = dict(plain)
    values["interval"] = {name: (low, high) for name, (low, high) in plain["interval"].items()}
    return PowerParameters(**values)


@cache
def power_file() -> Mapping[str, Any]:
    """The parsed file of the package.

    Raises:
        DataError: it is damaged or of another version.
    """
    try:
        plain = json.loads(PATH.read_text(encoding="utf-8"))
        if (plain["format"], plain["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {plain['format']!r} version {plain['version']!r} instead of {FORMAT!r} {VERSION}")
        parameters_from_plain(plain["device"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{PATH}: cannot be used as parameters of power ({error}). "
            "Reinstall hpdlf, or rebuild the file with: python -m hpdlf.experiments.fit_power DATA_DIR"
        ) from None
    checked: Mapping[str, Any] = plain
    return checked


@cache
def power_parameters() -> PowerParameters:
    """The device parameters that ship with the package."""
    return parameters_from_plain(power_file()["device"])
