"""The fields that a profile file may have: their names, dimensions, ranges and meaning.

A file writes ``memory_bandwidth = { value = 1555, unit = "GB/s", source = "...", tier = "datasheet" }``; the dataclass
has ``memory_bandwidth_bytes_per_s`` in SI units. Ranges are generous: they catch a wrong prefix, no unusual machine.
"""

from __future__ import annotations

from typing import NamedTuple

from .profile import KINDS
from .units import (
    AMOUNT,
    CARBON_PER_ENERGY,
    COMPUTE_RATE,
    DATA,
    DATA_RATE,
    FREQUENCY,
    POWER,
    PRICE,
    PRICE_PER_ENERGY,
    PRICE_PER_TIME,
    TIME,
    Dimension,
)

__all__ = ["FIELDS", "FOLDERS", "PARTS", "TEXTS", "Field", "Text"]


class Field(NamedTuple):
    """One value of a profile: its key in the file, its name in the dataclass, its dimension and range in SI units.

    `older` is what the key was called by earlier versions, whose files are still read.
    """

    key: str
    attribute: str
    dimension: Dimension
    low: float
    high: float
    required: bool = False
    by_precision: bool = False
    integer: bool = False
    dated: bool = False
    older: str = ""


class Text(NamedTuple):
    """A text of a profile, or a list of texts (`many`): its key, which is also its name in the dataclass."""

    key: str
    required: bool = False
    many: bool = False
    choices: tuple[str, ...] = ()


_EVERY = (Text("name", required=True), Text("description"))
TEXTS: dict[str, tuple[Text, ...]] = {
    "device": (
        *_EVERY,
        Text("kind", required=True, choices=KINDS),
        Text("vendor"),
        Text("architecture"),
        Text("aliases", many=True),
    ),
    "link": _EVERY,
    "node": _EVERY,
    "cluster": _EVERY,
}
FIELDS: dict[str, tuple[Field, ...]] = {
    "device": (
        Field("peak_flops", "peak_flops_per_s", COMPUTE_RATE, 1e7, 1e18, required=True, by_precision=True),
        Field("achieved_flops", "achieved_flops_per_s", COMPUTE_RATE, 1e7, 1e18, by_precision=True),
        Field("vector_flops", "vector_flops_per_s", COMPUTE_RATE, 1e7, 1e18, by_precision=True),
        Field("memory", "memory_bytes", DATA, 1e6, 1e15, required=True),
        Field("memory_bandwidth", "memory_bandwidth_bytes_per_s", DATA_RATE, 1e7, 1e15, required=True),
        Field("launch_overhead", "launch_overhead_s", TIME, 1e-9, 1.0),
        Field("communication_overlap", "communication_overlap", AMOUNT, 0.0, 1.0),
        Field("idle_power", "idle_w", POWER, 1e-3, 1e5),
        Field("limit_power", "limit_w", POWER, 1e-3, 1e5),
        Field("least_limit_power", "least_limit_w", POWER, 1e-3, 1e5),
        Field("greatest_limit_power", "greatest_limit_w", POWER, 1e-3, 1e5),
        Field("compute_units", "compute_units", AMOUNT, 1, 1e7, integer=True, older="cores"),
        Field("clock", "clock_hz", FREQUENCY, 1e6, 1e11),
        Field("base_clock", "base_clock_hz", FREQUENCY, 1e6, 1e11),
        Field("l1_cache", "l1_cache_bytes", DATA, 1e2, 1e12),
        Field("l2_cache", "l2_cache_bytes", DATA, 1e2, 1e12),
        Field("l3_cache", "l3_cache_bytes", DATA, 1e2, 1e12),
        Field("price", "price_usd", PRICE, 1.0, 1e7, dated=True),
    ),
    "link": (
        Field("latency", "latency_s", TIME, 1e-9, 10.0, required=True),
        Field("bandwidth", "bandwidth_bytes_per_s", DATA_RATE, 1e3, 1e14, required=True),
        Field("efficiency", "efficiency", AMOUNT, 1e-4, 1.0, required=True),
        Field("collective_efficiency", "collective_efficiency", AMOUNT, 1e-4, 10.0),
        Field("adapters", "adapters", AMOUNT, 1, 256, integer=True),
    ),
    "node": (
        Field("devices", "devices", AMOUNT, 1, 1024, required=True, integer=True),
        Field("host_idle_power", "host_idle_w", POWER, 1e-2, 1e5),
        Field("host_active_power", "host_active_w", POWER, 1e-2, 1e5),
        Field("host_memory", "host_memory_bytes", DATA, 1e6, 1e15),
        Field("limit_power", "limit_w", POWER, 1.0, 1e6),
    ),
    "cluster": (
        Field("price_per_node_hour", "price_usd_per_node_s", PRICE_PER_TIME, 1e-4 / 3600, 1e5 / 3600, dated=True),
        Field("energy_price", "energy_price_usd_per_j", PRICE_PER_ENERGY, 1e-4 / 3.6e6, 10 / 3.6e6, dated=True),
        Field("carbon_intensity", "carbon_kg_per_j", CARBON_PER_ENERGY, 1e-4 / 3.6e6, 3 / 3.6e6, dated=True),
        Field("pue", "pue", AMOUNT, 1.0, 5.0, dated=True),
    ),
}
# Other profiles that a profile holds, by name or as a table of its own: (key, kind, required).
PARTS: dict[str, tuple[tuple[str, str, bool], ...]] = {
    "device": (),
    "link": (),
    "node": (("device", "device", True), ("link", "link", False)),
    "cluster": (("node", "node", True), ("link", "link", False)),
}
FOLDERS = {"device": "devices", "link": "links", "node": "nodes", "cluster": "clusters"}
