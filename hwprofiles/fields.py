"""The fields that a profile file may have: their names, dimensions, ranges and meaning.

A file writes ``memory_bandwidth = { value = 1555, unit = "GB/s", source = "...", tier = "datasheet" }``; the dataclass
has ``memory_bandwidth_bytes_per_s`` in SI units. Ranges are generous: they catch a wrong prefix, no unusual machine.
"""

from __future__ import annotations

from typing import NamedTuple

from .cluster import PRICE_KINDS
from .profile import FABRICS, KINDS
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
    YEAR_S,
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
    by_ranks: bool = False
    integer: bool = False
    dated: bool = False
    older: str = ""


class Text(NamedTuple):
    """A text of a profile, or a list of texts (`many`): its key, which is also its name in the dataclass."""

    key: str
    required: bool = False
    many: bool = False
    choices: tuple[str, ...] = ()


MEMORY_KINDS = ("hbm", "gddr", "ddr")
_EVERY = (Text("name", required=True), Text("description"))
_NAMED = (*_EVERY, Text("aliases", many=True))
TEXTS: dict[str, tuple[Text, ...]] = {
    "device": (
        *_EVERY,
        Text("kind", required=True, choices=KINDS),
        Text("vendor"),
        Text("architecture"),
        Text("memory_kind", choices=MEMORY_KINDS),
        _NAMED[-1],
    ),
    "link": (*_EVERY, Text("fabric", choices=FABRICS), Text("wiring", many=True)),
    "node": _EVERY,
    "cluster": (*_EVERY, Text("price_kind", choices=PRICE_KINDS)),
    "region": _NAMED,
}
_HOUR, _KWH = 3600.0, 3.6e6
_ENERGY = (
    Field("energy_price", "energy_price_usd_per_j", PRICE_PER_ENERGY, 1e-4 / _KWH, 10 / _KWH, dated=True),
    Field("carbon_intensity", "carbon_kg_per_j", CARBON_PER_ENERGY, 1e-4 / _KWH, 3 / _KWH, dated=True),
)
FIELDS: dict[str, tuple[Field, ...]] = {
    "device": (
        Field("peak_flops", "peak_flops_per_s", COMPUTE_RATE, 1e7, 1e17, required=True, by_precision=True),
        Field("achieved_flops", "achieved_flops_per_s", COMPUTE_RATE, 1e7, 1e17, by_precision=True),
        Field("vector_flops", "vector_flops_per_s", COMPUTE_RATE, 1e7, 1e17, by_precision=True),
        Field("memory", "memory_bytes", DATA, 1e6, 1e15, required=True),
        Field("memory_bandwidth", "memory_bandwidth_bytes_per_s", DATA_RATE, 1e8, 1e14, required=True),
        Field("launch_overhead", "launch_overhead_s", TIME, 1e-9, 1.0),
        Field("communication_overlap", "communication_overlap", AMOUNT, 0.0, 1.0),
        Field("idle_power", "idle_w", POWER, 1e-3, 1e4),
        Field("limit_power", "limit_w", POWER, 1e-3, 1e4),
        Field("least_limit_power", "least_limit_w", POWER, 1e-3, 1e4),
        Field("greatest_limit_power", "greatest_limit_w", POWER, 1e-3, 1e4),
        Field("compute_units", "compute_units", AMOUNT, 1, 1e7, integer=True, older="cores"),
        Field("clock", "clock_hz", FREQUENCY, 1e7, 1e10),
        Field("base_clock", "base_clock_hz", FREQUENCY, 1e7, 1e10),
        Field("l1_cache", "l1_cache_bytes", DATA, 1e3, 1e7),
        Field("l2_cache", "l2_cache_bytes", DATA, 1e4, 2e9),
        Field("l3_cache", "l3_cache_bytes", DATA, 1e5, 2e10),
        Field("price", "price_usd", PRICE, 1.0, 1e6, dated=True),
    ),
    "link": (
        Field("latency", "latency_s", TIME, 1e-9, 10.0, required=True),
        Field("bandwidth", "bandwidth_bytes_per_s", DATA_RATE, 1e3, 1e14, required=True),
        Field("efficiency", "efficiency", AMOUNT, 1e-4, 1.0, required=True),
        Field("half_bandwidth_size", "half_bandwidth_bytes", DATA, 1.0, 1e12),
        Field("adapters", "adapters", AMOUNT, 1, 256, integer=True),
        Field("collective_efficiency", "collective_efficiency", AMOUNT, 1e-4, 10.0),
        Field("collective_overhead", "collective_overhead_s", TIME, 1e-9, 10.0),
        Field("group_share", "group_share", AMOUNT, 1e-3, 1.0, by_ranks=True),
        Field("torus_dims", "torus_dims", AMOUNT, 1, 3, integer=True),
        Field("torus_rings_from", "torus_rings_from", AMOUNT, 2, 1e6, integer=True),
    ),
    "node": (
        Field("devices", "devices", AMOUNT, 1, 1024, required=True, integer=True),
        Field("host_idle_power", "host_idle_w", POWER, 1e-2, 1e5),
        Field("host_active_power", "host_active_w", POWER, 1e-2, 1e5),
        Field("host_memory", "host_memory_bytes", DATA, 1e6, 1e15),
        Field("limit_power", "limit_w", POWER, 1.0, 1e6),
    ),
    "cluster": (
        Field("domain_nodes", "domain_nodes", AMOUNT, 1, 1e6, integer=True),
        Field("oversubscription", "oversubscription", AMOUNT, 1.0, 100.0, by_ranks=True),
        Field("price_per_node_hour", "price_usd_per_node_s", PRICE_PER_TIME, 1e-4 / _HOUR, 1e5 / _HOUR, dated=True),
        Field("spot_price_per_node_hour", "spot_usd_per_node_s", PRICE_PER_TIME, 1e-4 / _HOUR, 1e5 / _HOUR, dated=True),
        Field("purchase_price_per_node", "purchase_usd_per_node", PRICE, 10.0, 1e8, dated=True),
        Field("lifetime", "lifetime_s", TIME, 0.1 * YEAR_S, 50 * YEAR_S),
        Field("occupancy", "occupancy", AMOUNT, 1e-3, 1.0),
        Field("hosting_per_node_hour", "hosting_usd_per_node_s", PRICE_PER_TIME, 1e-5 / _HOUR, 1e4 / _HOUR, dated=True),
        *_ENERGY,
        Field("pue", "pue", AMOUNT, 1.0, 5.0, dated=True),
        Field("network_power_per_node", "network_w_per_node", POWER, 1e-2, 1e5),
    ),
    "region": _ENERGY,
}
# Other profiles that a profile holds, by name or as a table of its own: (key, kind, required).
PARTS: dict[str, tuple[tuple[str, str, bool], ...]] = {
    "device": (),
    "link": (),
    "node": (("device", "device", True), ("link", "link", False)),
    "cluster": (("node", "node", True), ("link", "link", False), ("region", "region", False)),
    "region": (),
}
FOLDERS = {"device": "devices", "link": "links", "node": "nodes", "cluster": "clusters", "region": "regions"}
