"""Energy counters of this machine, one vendor a module. A meter counts joules; what has no counter says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .nvml import find_nvml_meters
from .rapl import find_rapl_meters

__all__ = ["Meter", "Meters", "find_meters", "find_nvml_meters", "find_rapl_meters"]


class Meter(NamedTuple):
    """A counter: `read_j()` is the energy in joules since some moment, of a "cpu" package or a "gpu" (`scope`)."""

    name: str
    scope: str
    read_j: Callable[[], float]


class Meters(NamedTuple):
    """The counters found, and for each kind that is missing the reason and the mend."""

    found: tuple[Meter, ...]
    missing: tuple[str, ...]


def find_meters() -> Meters:
    """The energy counters that this process may read."""
    found: list[Meter] = []
    missing: list[str] = []
    for scope, finder in (("cpu", find_rapl_meters), ("gpu", find_nvml_meters)):
        readers, reason = finder()
        found += [Meter(name, scope, read_j) for name, read_j in readers]
        if not readers:
            missing.append(reason)
    return Meters(tuple(found), tuple(missing))
