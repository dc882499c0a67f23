"""Units of measure: what a profile may write, and the SI value behind it.

A unit is a quotient of named units with SI or binary prefixes: ``GB/s``, ``GiB``, ``TFLOP/s``, ``us``, ``kWh``,
``USD/h``, ``gCO2/kWh``. A dimension is the exponents of bytes, seconds, FLOPs, joules, dollars and kilograms.

>>> parse_unit("GB/s").factor, describe_dimension(parse_unit("GB/s").dimension)
(1000000000.0, 'bytes per second')
>>> parse_unit("gCO2/kWh").factor == 1e-3 / 3.6e6
True
"""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

__all__ = [
    "AMOUNT",
    "CARBON_PER_ENERGY",
    "COMPUTE_RATE",
    "DATA",
    "DATA_RATE",
    "ENERGY",
    "EXAMPLE_UNIT",
    "FREQUENCY",
    "POWER",
    "PRICE",
    "PRICE_PER_ENERGY",
    "PRICE_PER_TIME",
    "SI_UNIT",
    "TIME",
    "YEAR_S",
    "Dimension",
    "Unit",
    "UnitError",
    "describe_dimension",
    "format_value",
    "parse_unit",
    "readable_units",
    "to_si",
]


class Dimension(NamedTuple):
    """Exponents of the base units; all zero for counts and ratios."""

    byte: int = 0
    second: int = 0
    flop: int = 0
    joule: int = 0
    usd: int = 0
    kilogram: int = 0


class Unit(NamedTuple):
    """A unit's factor to SI base units and its dimension."""

    factor: float
    dimension: Dimension


class UnitError(ValueError):
    """A unit that nobody knows; the message says which and what was probably meant."""


AMOUNT = Dimension()
DATA = Dimension(byte=1)
DATA_RATE = Dimension(byte=1, second=-1)
TIME = Dimension(second=1)
FREQUENCY = Dimension(second=-1)
COMPUTE_RATE = Dimension(flop=1, second=-1)
ENERGY = Dimension(joule=1)
POWER = Dimension(joule=1, second=-1)
PRICE = Dimension(usd=1)
PRICE_PER_TIME = Dimension(usd=1, second=-1)
PRICE_PER_ENERGY = Dimension(usd=1, joule=-1)
CARBON_PER_ENERGY = Dimension(kilogram=1, joule=-1)

YEAR_S = 365 * 86400.0

SI_UNIT = {
    AMOUNT: "1",
    DATA: "B",
    DATA_RATE: "B/s",
    TIME: "s",
    FREQUENCY: "Hz",
    COMPUTE_RATE: "FLOP/s",
    ENERGY: "J",
    POWER: "W",
    PRICE: "USD",
    PRICE_PER_TIME: "USD/s",
    PRICE_PER_ENERGY: "USD/J",
    CARBON_PER_ENERGY: "kgCO2/J",
}
EXAMPLE_UNIT = {
    AMOUNT: "1",
    DATA: "GB",
    DATA_RATE: "GB/s",
    TIME: "us",
    FREQUENCY: "GHz",
    COMPUTE_RATE: "TFLOP/s",
    ENERGY: "J",
    POWER: "W",
    PRICE: "USD",
    PRICE_PER_TIME: "USD/h",
    PRICE_PER_ENERGY: "USD/kWh",
    CARBON_PER_ENERGY: "gCO2/kWh",
}
_DIMENSION_WORDS = {
    AMOUNT: "a plain number",
    DATA: "bytes",
    DATA_RATE: "bytes per second",
    TIME: "seconds",
    FREQUENCY: "cycles per second",
    COMPUTE_RATE: "FLOPs per second",
    ENERGY: "joules",
    POWER: "watts",
    PRICE_PER_TIME: "dollars per time",
    PRICE_PER_ENERGY: "dollars per energy",
    CARBON_PER_ENERGY: "mass of CO2 per energy",
    Dimension(flop=1): "an amount of FLOPs, not a rate",
    PRICE: "an amount of dollars",
    Dimension(kilogram=1): "a mass",
}

_LARGE = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_SMALL = {"m": 1e-3, "u": 1e-6, "µ": 1e-6, "n": 1e-9, "p": 1e-12}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
# Seconds of a prefix above one and fractions of a byte are misprints, so each unit names the prefixes that it takes.
_UNITS: dict[str, tuple[float, Dimension, dict[str, float]]] = {
    "B": (1.0, DATA, _LARGE | _BINARY),
    "bit": (0.125, DATA, _LARGE | _BINARY),
    "s": (1.0, TIME, _SMALL),
    "min": (60.0, TIME, {}),
    "h": (3600.0, TIME, {}),
    "year": (YEAR_S, TIME, {}),
    "FLOP": (1.0, Dimension(flop=1), _LARGE),
    "Hz": (1.0, FREQUENCY, _LARGE),
    "J": (1.0, ENERGY, _LARGE | _SMALL),
    "Wh": (3600.0, ENERGY, _LARGE),
    "W": (1.0, POWER, _LARGE | _SMALL),
    "USD": (1.0, Dimension(usd=1), {}),
    "gCO2": (1e-3, Dimension(kilogram=1), {"k": 1e3, "m": 1e-3}),
    "tCO2": (1e3, Dimension(kilogram=1), {}),
    "%": (0.01, AMOUNT, {}),
    "1": (1.0, AMOUNT, {}),
}
# What people write instead. They are refused with the right spelling: "Gb/s" is read as bits by some and bytes by
# others.
_INSTEAD = {
    "TFLOPS": "TFLOP/s",
    "GFLOPS": "GFLOP/s",
    "TFLOPs": "TFLOP/s",
    "Gbps": "Gbit/s",
    "Gb/s": "Gbit/s",
    "GBps": "GB/s",
    "MBps": "MB/s",
    "KB": "kB",
    "KB/s": "kB/s",
    "Gb": "GB' or 'Gbit",
    "sec": "s",
    "hour": "h",
    "years": "year",
    "yr": "year",
    "USD/hour": "USD/h",
    "$/h": "USD/h",
    "$/kWh": "USD/kWh",
    "g/kWh": "gCO2/kWh",
    "kg/kWh": "kgCO2/kWh",
    "KWh": "kWh",
}


@lru_cache(maxsize=512)
def parse_unit(text: str) -> Unit:
    """The factor and dimension of a unit such as "GB/s"; raises :class:`UnitError` with a suggestion."""
    factor, exponents = 1.0, [0] * len(Dimension())
    for place, part in enumerate(text.split("/")):
        found = _single(part.strip())
        if found is None:
            raise UnitError(_unknown(text))
        sign = 1 if place == 0 else -1
        factor = factor * found.factor if place == 0 else factor / found.factor
        exponents = [total + sign * one for total, one in zip(exponents, found.dimension, strict=True)]
    return Unit(factor, Dimension(*exponents))


def to_si(number: float, factor: float) -> float:
    """`number` times a unit's factor, rounded as a decimal, so that a value written in any unit comes back exactly.

    >>> to_si(2.3, 1e-6), 2.3 * 1e-6
    (2.3e-06, 2.2999999999999996e-06)
    """
    return float(Decimal(repr(number)) * Decimal(repr(factor)))


def describe_dimension(dimension: Dimension) -> str:
    """The dimension in words."""
    if dimension in _DIMENSION_WORDS:
        return _DIMENSION_WORDS[dimension]
    named = [f"{name}^{power}" for name, power in zip(Dimension._fields, dimension, strict=True) if power]
    return " ".join(named)


def format_value(value: float, dimension: Dimension, digits: int = 4) -> str:
    """An SI value for people: the prefix that leaves one to three digits before the point.

    >>> format_value(1.555e12, DATA_RATE), format_value(2e-6, TIME), format_value(0.1 / 3.6e6, PRICE_PER_ENERGY)
    ('1.555 TB/s', '2 us', '0.1 USD/kWh')
    """
    scaled, unit = _readable(value, dimension)
    text = f"{scaled:.{digits}g}"
    if "e" in text:
        text = f"{scaled:,.0f}"
    return text if unit == "1" else f"{text} {unit}"


def readable_units(dimension: Dimension) -> tuple[str, ...]:
    """The units a person would use for this dimension, the largest first."""
    large = ("E", "P", "T", "G", "M", "k", "")
    if dimension in (DATA, DATA_RATE, COMPUTE_RATE, FREQUENCY):
        return tuple(prefix + SI_UNIT[dimension] for prefix in large)
    if dimension == TIME:
        return ("year", "s", "ms", "us", "ns")
    if dimension == POWER:
        return ("MW", "kW", "W", "mW")
    if dimension == ENERGY:
        return ("GJ", "MJ", "kJ", "J", "mJ", "uJ")
    return (EXAMPLE_UNIT.get(dimension, "1"),)


def _readable(value: float, dimension: Dimension) -> tuple[float, str]:
    units = readable_units(dimension)
    for unit in units:
        scaled = value / parse_unit(unit).factor
        if abs(scaled) >= 0.9995:
            return scaled, unit
    smallest = units[-1]
    return (0.0, SI_UNIT[dimension]) if value == 0 else (value / parse_unit(smallest).factor, smallest)


def _single(part: str) -> Unit | None:
    if part in _UNITS:
        factor, dimension, _ = _UNITS[part]
        return Unit(factor, dimension)
    for name, (factor, dimension, prefixes) in _UNITS.items():
        prefix = part.removesuffix(name)
        if prefix != part and prefix in prefixes:
            return Unit(factor * prefixes[prefix], dimension)
    return None


def _unknown(text: str) -> str:
    if text in _INSTEAD:
        return f"unit {text!r} is not known or ambiguous; write '{_INSTEAD[text]}'"
    from difflib import get_close_matches

    common = sorted({unit for dimension in SI_UNIT for unit in (*readable_units(dimension), SI_UNIT[dimension])})
    common += ["GiB", "MiB", "KiB", "GiB/s", "Gbit/s", "Mbit/s", "Wh", "kWh", "%", "min", "h", "year"]
    # Most misspelt units have their letters right and a capital wrong.
    close = [unit for unit in common if unit.lower() == text.lower()] or get_close_matches(
        text, common, n=1, cutoff=0.4
    )
    hint = (
        f"; did you mean '{close[0]}'?"
        if close
        else "; known are, for example, GB, GiB, GB/s, Gbit/s, TFLOP/s, us, W, USD/h"
    )
    return f"unit {text!r} is not known{hint}"
