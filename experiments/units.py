"""Numbers as people read them; inside hpdlf everything is in SI base units.

>>> seconds(0.00123), nbytes(25e9), joules(7.2e6), count(4.1e9), interval(0.0123, 0.011, 0.014, seconds)
('1.23 ms', '25.0 GB', '2.000 kWh', '4.1 G', '12.3 ms (11.0 ms to 14.0 ms)')
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["UNAVAILABLE", "count", "dollars", "interval", "joules", "kilograms", "nbytes", "seconds"]

UNAVAILABLE = "unavailable"


def _scaled(value: float, steps: list[tuple[float, str]]) -> str:
    """Three figures, in the largest unit that leaves at least one before the point."""
    size, unit = next((step for step in steps if abs(value) >= step[0]), steps[-1])
    scaled = value / size
    digits = 2 if abs(scaled) < 10 else 1 if abs(scaled) < 100 else 0
    return f"{scaled:,.{digits}f} {unit}"


def seconds(value: float) -> str:
    """A duration."""
    if value >= 172800:
        return f"{value / 86400:,.1f} days"
    if value >= 7200:
        return f"{value / 3600:,.1f} h"
    if value >= 120:
        return f"{value / 60:,.1f} min"
    return _scaled(value, [(1, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns")])


def nbytes(value: float) -> str:
    """An amount of memory, in powers of ten."""
    if value < 1e3:
        return f"{value:,.0f} B"
    return _scaled(value, [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")])


def joules(value: float) -> str:
    """An energy."""
    if value >= 3.6e5:
        return f"{value / 3.6e6:,.3f} kWh"
    return _scaled(value, [(1e3, "kJ"), (1, "J"), (1e-3, "mJ"), (1e-6, "uJ")])


def dollars(value: float) -> str:
    """An amount of money."""
    if value >= 0.1:
        return f"${value:,.2f}"
    return f"${value:.2g}"


def kilograms(value: float) -> str:
    """A mass of CO2."""
    return _scaled(value, [(1e3, "t"), (1, "kg"), (1e-3, "g"), (1e-6, "mg")])


def count(value: float) -> str:
    """A number of things: operations, parameters."""
    for size, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def interval(value: float, low: float, high: float, unit: Callable[[float], str]) -> str:
    """A value with its bounds."""
    return f"{unit(value)} ({unit(low)} to {unit(high)})"
