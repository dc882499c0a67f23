"""What must hold between the values of one profile, whatever the machine.

Ranges catch a single value that cannot be; relations catch two that do not fit together: an L2 cache in MB where kB
were meant, a bandwidth in MB/s, limit and idle power swapped. Only relations without known exceptions are refused. That
an accelerator's int8 peak exceeds its float16 peak, say, is usual but not true of every one.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from .cluster import Cluster, Region
from .profile import Device, Link, Node, Quantity
from .topology import parse_wiring
from .units import COMPUTE_RATE, DATA, FREQUENCY, POWER, PRICE_PER_TIME, Dimension, format_value

__all__ = ["broken_relations"]

# (slower, not slower): a unit that computes in the second precision is at least as fast as one for the first.
_PEAK_ORDER = (
    ("float64", "float32"),
    ("float32", "tf32"),
    ("float32", "bfloat16"),
    ("float32", "float16"),
    ("tf32", "bfloat16"),
    ("tf32", "float16"),
    ("bfloat16", "float8"),
    ("float16", "float8"),
)
# FLOPs in float32 (in the first precision where there is none) per byte of memory traffic. From one core (5) and Xeons
# of 2016 (11) to an RTX 4090 (82), an L40S (106) and Gaudi 2 (176 in bfloat16): a factor of 1,000 in either of the two
# numbers leaves the range.
_RIDGE = (0.5, 3000.0)


def broken_relations(value: Device | Link | Node | Cluster | Region) -> list[tuple[str, str]]:
    """(field of the file, what is wrong) for every relation that does not hold."""
    if isinstance(value, Device):
        return [*_peaks(value), *_powers(value), *_caches(value), *_rates(value)]
    if isinstance(value, Link):
        return list(_link(value))
    if isinstance(value, Node):
        return list(_node(value))
    return list(_cluster(value)) if isinstance(value, Cluster) else []


def _peaks(device: Device) -> Iterator[tuple[str, str]]:
    peaks = device.peak_flops_per_s
    # What was measured is what programs see: a core that emulates a type is slower in it, and noise has no order.
    said = {precision: peak for precision, peak in peaks.items() if peak.tier != "measured"}
    for slower, faster in _PEAK_ORDER:
        if slower in said and faster in said and said[faster].value < said[slower].value * (1 - 1e-9):
            text = _below(peaks[faster], f"peak_flops.{slower}", peaks[slower], COMPUTE_RATE)
            why = f"leave {faster} out where the device computes it in {slower}"
            yield f"peak_flops.{faster}", f"{text}; {why}"
    for key, rates in (("achieved_flops", device.achieved_flops_per_s), ("vector_flops", device.vector_flops_per_s)):
        for precision, rate in rates.items():
            peak = peaks.get(precision)
            if peak is not None and rate.value > peak.value * (1 + 1e-9):
                yield f"{key}.{precision}", _above(rate, f"peak_flops.{precision}", peak, COMPUTE_RATE)


def _powers(device: Device) -> Iterator[tuple[str, str]]:
    idle, limit = device.idle_w, device.limit_w
    least, greatest = device.least_limit_w, device.greatest_limit_w
    if idle and limit and idle.value >= limit.value:
        yield "idle_power", f"{_above(idle, 'limit_power', limit, POWER)}; are the two swapped?"
    if least and limit and least.value > limit.value:
        yield "least_limit_power", _above(least, "limit_power", limit, POWER)
    if greatest and limit and greatest.value < limit.value:
        yield "greatest_limit_power", _below(greatest, "limit_power", limit, POWER)


def _caches(device: Device) -> Iterator[tuple[str, str]]:
    l1, l2, l3 = device.l1_cache_bytes, device.l2_cache_bytes, device.l3_cache_bytes
    if l1 and l2 and l1.value >= l2.value:
        yield "l1_cache", f"{_above(l1, 'l2_cache', l2, DATA)}; l1_cache is that of one compute unit, l2_cache of all"
    for key, cache in (("l2_cache", l2), ("l3_cache", l3)):
        if cache and cache.value >= device.memory_bytes.value:
            yield key, f"{_above(cache, 'memory', device.memory_bytes, DATA)}; is the unit's prefix right?"


def _rates(device: Device) -> Iterator[tuple[str, str]]:
    base, boost = device.base_clock_hz, device.clock_hz
    if base and boost and base.value > boost.value:
        yield "base_clock", f"{_above(base, 'clock', boost, FREQUENCY)}; clock is the boost clock"
    name = "float32" if "float32" in device.peak_flops_per_s else next(iter(device.peak_flops_per_s))
    peak, bandwidth = device.peak_flops_per_s[name], device.memory_bandwidth_bytes_per_s
    ridge = peak.value / bandwidth.value
    if not _RIDGE[0] <= ridge <= _RIDGE[1]:
        yield (
            f"peak_flops.{name}",
            f"{format_value(peak.value, COMPUTE_RATE)} is {ridge:,.3g} FLOPs per byte of memory_bandwidth, outside "
            f"{_RIDGE[0]:g} to {_RIDGE[1]:,g}; is the prefix of one of the two units right?",
        )


def _link(link: Link) -> Iterator[tuple[str, str]]:
    try:
        parse_wiring(link.wiring)
    except ValueError as error:
        yield "wiring", str(error)
    if link.torus_rings_from and not link.torus_dims:
        yield "torus_rings_from", "says where a torus is closed, but there is none; write torus_dims too"
    if link.torus_dims and link.wiring:
        yield "wiring", "a link is a torus or a mesh of cables, not both; leave out wiring or torus_dims"


def _node(node: Node) -> Iterator[tuple[str, str]]:
    idle, active, limit = node.host_idle_w, node.host_active_w, node.limit_w
    if idle and active and idle.value > active.value:
        yield "host_idle_power", f"{_above(idle, 'host_active_power', active, POWER)}; are the two swapped?"
    if limit and node.device.idle_w:
        least_w = node.devices_per_node * node.device.idle_w.value + (idle.value if idle else 0.0)
        if limit.value < least_w:
            at_rest = format_value(least_w, POWER)
            yield (
                "limit_power",
                f"{format_value(limit.value, POWER)} is less than the {at_rest} that host and devices draw at rest",
            )


def _cluster(cluster: Cluster) -> Iterator[tuple[str, str]]:
    if cluster.domain_nodes and cluster.domain_nodes.value > 1 and cluster.node.link is None:
        yield "domain_nodes", f"node '{cluster.node.name}' has no link that could join several nodes"
    levels = sorted((int(nodes), one.value) for nodes, one in cluster.oversubscription.items())
    for (nodes, ratio), (more, above) in pairwise(levels):
        if more % nodes:
            yield f"oversubscription.{more}", f"{more} nodes are no multiple of the {nodes} of the level below"
        elif above < ratio:
            yield (
                f"oversubscription.{more}",
                f"{above:g} is below the {ratio:g} of the level below, which already thins",
            )
    rent, spot = cluster.price_usd_per_node_s, cluster.spot_usd_per_node_s
    if rent and spot and spot.value > rent.value:
        text = _above(spot, "price_per_node_hour", rent, PRICE_PER_TIME)
        yield "spot_price_per_node_hour", f"{text}, the price on demand; are the two swapped?"


def _above(one: Quantity, name: str, other: Quantity, dimension: Dimension) -> str:
    return f"{format_value(one.value, dimension)} is not below {name}, {format_value(other.value, dimension)}"


def _below(one: Quantity, name: str, other: Quantity, dimension: Dimension) -> str:
    return f"{format_value(one.value, dimension)} is below {name}, {format_value(other.value, dimension)}"
