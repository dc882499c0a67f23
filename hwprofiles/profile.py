"""What a profile says once it is read: quantities with their sources, devices, links and nodes.

Every value is a :class:`Quantity` in SI base units that carries where it comes from. A value that nobody knows is
None, never 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from .topology import Wiring, parse_wiring, rings

__all__ = ["FABRICS", "KINDS", "PRECISIONS", "TIERS", "Device", "Link", "Node", "Quantity"]

# measured: timed or metered, here or by the source named. datasheet: published as a specification, read in the source
# named. modelled: computed from other values by the formula in the source. recalled: from memory, not looked up.
TIERS = ("measured", "datasheet", "modelled", "recalled")
# int8 counts operations of integers where the others count those of floating point.
PRECISIONS = ("float64", "float32", "tf32", "bfloat16", "float16", "float8", "int8")
KINDS = ("cpu", "gpu", "accelerator")
# What a link is made of: it decides which protocols a GPU library may use (models/cost/nccl.py). "nvlink-sharp" is
# NVLink through switches that add up themselves (NVLink 4 and 5).
FABRICS = (
    "nvlink",
    "nvlink-sharp",
    "xgmi",
    "pcie",
    "infiniband",
    "ethernet",
    "efa",
    "omni-path",
    "ici",
    "shared-memory",
)
# Two devices that no cable joins copy through the host: about half of what one cable carries.
STAGED = 0.5


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A value in the SI unit named by `unit`, with its source and tier; `low` and `high` bound what was seen, where
    known.

    `date` is the ISO date for which the value holds (prices and carbon intensities change).

    >>> bandwidth = Quantity(value=1.5e12, unit="B/s", source="vendor datasheet", tier="datasheet")
    >>> float(bandwidth) * 2
    3000000000000.0
    """

    value: float
    unit: str
    source: str
    tier: str
    low: float | None = None
    high: float | None = None
    date: str | None = None

    def __float__(self) -> float:
        return self.value

    def per(self, factor: float, unit: str) -> Quantity:
        """The same quantity in another unit, of which one SI unit is `factor`."""

        def scaled(number: float | None) -> float | None:
            return None if number is None else number * factor

        low, high = scaled(self.low), scaled(self.high)
        return dataclasses.replace(self, value=self.value * factor, low=low, high=high, unit=unit)


@dataclass(frozen=True, kw_only=True)
class Device:
    """What computes: a GPU, a CPU socket, another accelerator (a TPU chip, say), or one core of the machine at hand.

    vendor, architecture  such as "nvidia" and "ampere", in small letters; "" where the file does not say
    memory_kind           "hbm" (stacked), "gddr" or "ddr"; "" where the file does not say
    aliases               other names of the same device in published tables
    peak_flops_per_s      dense matrix peak by precision; what the units could do, the roofline's roof
    achieved_flops_per_s  the best matrix product that anybody measured, by precision
    vector_flops_per_s    peak outside the matrix units, by precision
    memory_bytes, memory_bandwidth_bytes_per_s   the device's own memory
    launch_overhead_s     time that one call or kernel costs before any work is done
    communication_overlap share of the communication time that the device hides behind its own computation when
                          the program allows it: 1 where adapters move the data, 0 where the computing core has to
    idle_w, limit_w       power without work, and the most that the device draws as it is delivered
    least_limit_w, greatest_limit_w   the range in which the power limit can be set
    compute_units         streaming multiprocessors, compute units, cores
    clock_hz              boost clock of a GPU; of a CPU the turbo clock of all cores, where known
    base_clock_hz         the clock that is guaranteed
    l1_cache_bytes        of one compute unit
    l2_cache_bytes, l3_cache_bytes   of the whole device
    price_usd             of purchase
    """

    name: str
    kind: str
    description: str = ""
    vendor: str = ""
    architecture: str = ""
    memory_kind: str = ""
    aliases: tuple[str, ...] = ()
    peak_flops_per_s: Mapping[str, Quantity]
    achieved_flops_per_s: Mapping[str, Quantity] = field(default_factory=dict)
    vector_flops_per_s: Mapping[str, Quantity] = field(default_factory=dict)
    memory_bytes: Quantity
    memory_bandwidth_bytes_per_s: Quantity
    launch_overhead_s: Quantity
    communication_overlap: Quantity
    idle_w: Quantity | None = None
    limit_w: Quantity | None = None
    least_limit_w: Quantity | None = None
    greatest_limit_w: Quantity | None = None
    compute_units: Quantity | None = None
    clock_hz: Quantity | None = None
    base_clock_hz: Quantity | None = None
    l1_cache_bytes: Quantity | None = None
    l2_cache_bytes: Quantity | None = None
    l3_cache_bytes: Quantity | None = None
    price_usd: Quantity | None = None
    set_limit_w: float | None = None
    set_clock_hz: float | None = None

    def limited(self, *, limit_w: float | None = None, clock_hz: float | None = None) -> Device:
        """This device under a power limit or at a clock that is set, for "what if we cap at 250 W"."""
        return dataclasses.replace(self, set_limit_w=limit_w, set_clock_hz=clock_hz)

    def joined(self, cores: int) -> Device:
        """So many of this device, a core, as one that computes on all of them.

        What a core can do counts as many times, at the most: the lower end of every interval is what one core does, as some
        operators gain nothing. Where operators of such a device are measured, the cost model learns what they really gain.
        """

        def times(quantity: Quantity | None, low: float) -> Quantity | None:
            if quantity is None:
                return None
            return dataclasses.replace(
                quantity,
                value=quantity.value * cores,
                low=(quantity.value if quantity.low is None else quantity.low) * low,
                high=(quantity.value if quantity.high is None else quantity.high) * cores,
                source=f"{cores} cores, each: {quantity.source}",
                tier="modelled",
                date=None,
            )

        def rates(table: Mapping[str, Quantity]) -> dict[str, Quantity]:
            return {name: found for name, q in table.items() if (found := times(q, 1.0)) is not None}

        memory, bandwidth = times(self.memory_bytes, cores), times(self.memory_bandwidth_bytes_per_s, 1.0)
        units = dataclasses.replace(
            self.compute_units or self.memory_bytes, value=float(cores), unit="1", low=None, high=None,
            source="asked for: cores of one rank", tier="modelled", date=None,
        )  # fmt: skip
        assert memory is not None
        assert bandwidth is not None
        return dataclasses.replace(
            self,
            name=f"{self.name}-x{cores}",
            description=f"{cores} times: {self.description}",
            aliases=(),
            peak_flops_per_s=rates(self.peak_flops_per_s),
            achieved_flops_per_s=rates(self.achieved_flops_per_s),
            vector_flops_per_s=rates(self.vector_flops_per_s),
            memory_bytes=memory,
            memory_bandwidth_bytes_per_s=bandwidth,
            idle_w=times(self.idle_w, cores),
            limit_w=times(self.limit_w, cores),
            compute_units=units,
            l2_cache_bytes=times(self.l2_cache_bytes, cores),
            price_usd=times(self.price_usd, cores),
        )


@dataclass(frozen=True, kw_only=True)
class Link:
    """A connection. `bandwidth_bytes_per_s` is nominal, in one direction: of one *device* for a link within a node, of
    one *node* (all its adapters together) for a link between nodes.

    fabric                what it is made of, one of FABRICS; "" where the file does not say
    latency_s             of a small message between two programs, one way
    efficiency            share of the nominal bandwidth that a large message between two programs sees
    half_bandwidth_bytes  bandwidth builds up around this size: far shorter messages see half of what long ones see.
                          None: there is no such loss
    adapters              over how many equal adapters the bandwidth spreads; one message uses one adapter
    collective_efficiency share of the nominal bandwidth that a large all-reduce sees (its bus bandwidth)
    collective_overhead_s what a collective costs beyond the messages of its algorithm: starting, synchronising
    group_share           by number of ranks: the share of that bandwidth which a group of so many sees, where it sees
                          less than the largest (links in a mesh; read it by `share_of` and `share_among`)
    wiring                which pairs of a node's devices a cable joins, such as "0-1" and "0-3 x2"; empty where all meet
                          in switches (see :mod:`.topology`)
    torus_dims            in how many dimensions a torus of such links joins the devices of a domain; None: no torus
    torus_rings_from      devices in a dimension of the torus from which on it is closed to a ring
    """

    name: str
    description: str = ""
    fabric: str = ""
    latency_s: Quantity
    bandwidth_bytes_per_s: Quantity
    efficiency: Quantity
    half_bandwidth_bytes: Quantity | None = None
    adapters: Quantity | None = None
    collective_efficiency: Quantity | None = None
    collective_overhead_s: Quantity | None = None
    group_share: Mapping[str, Quantity] = field(default_factory=dict)
    wiring: tuple[str, ...] = ()
    torus_dims: Quantity | None = None
    torus_rings_from: Quantity | None = None

    @property
    def effective_bandwidth_bytes_per_s(self) -> float:
        """What large messages see, all adapters together."""
        return self.bandwidth_bytes_per_s.value * self.efficiency.value

    @property
    def collective_bandwidth_bytes_per_s(self) -> float:
        """What a large all-reduce sees; that of large messages where no all-reduce was measured."""
        share = self.collective_efficiency or self.efficiency
        return self.bandwidth_bytes_per_s.value * share.value

    @property
    def message_bandwidth_bytes_per_s(self) -> float:
        """What one large message sees, through one adapter."""
        return self.effective_bandwidth_bytes_per_s / (self.adapters.value if self.adapters else 1)

    @cached_property
    def _shares(self) -> tuple[tuple[int, float], ...]:
        return tuple(sorted((int(ranks), share.value) for ranks, share in self.group_share.items()))

    def share_of(self, ranks: int) -> float:
        """The share of `collective_bandwidth_bytes_per_s` that a group of `ranks` sees: 1 where nothing is said, and
        between two numbers of ranks on the line through them.
        """
        known = self._shares
        if not known:
            return 1.0
        before = [one for one in known if one[0] <= ranks]
        after = [one for one in known if one[0] >= ranks]
        if not before or not after:
            return (before or after)[-1 if before else 0][1]
        (low, share_low), (high, share_high) = before[-1], after[0]
        return share_low if low == high else share_low + (share_high - share_low) * (ranks - low) / (high - low)

    @cached_property
    def cables(self) -> Wiring:
        """`wiring`, parsed. Raises ValueError for a text that is no cable."""
        return parse_wiring(self.wiring)

    def share_among(self, members: tuple[int, ...]) -> float:
        """The share of `collective_bandwidth_bytes_per_s` that `members` (ascending numbers in the node) see, while the
        other devices of the node do the same in groups of their own.

        The first devices of a node see `share_of` their number, and so does every group where all meet in switches. Over
        cables it goes by the rings that fit among the members. Where few see more than many (a bridge between halves of
        the node), a group that spans several such halves shares with those between its members what crosses the bridge.
        """
        count, block = len(members), 1
        share = self.share_of(count)
        if members[-1] - members[0] == count - 1 and members[0] % count == 0 and not (self.wiring and members[0]):
            return share
        if self.wiring:
            everybody = tuple(sorted({device for a, b, _ in self.cables for device in (a, b)}))
            if found := rings(self.cables, members):
                return self.share_of(len(everybody)) * found / rings(self.cables, everybody)
            return share * (STAGED if count == 2 else 1.0)
        while members[0] // block != members[-1] // block:
            block *= 2
        across = self.share_of(block)
        return across * count / block if across < share else share


@dataclass(frozen=True, kw_only=True)
class Node:
    """A host with equal devices. `link` is None where there is a single device. Host power excludes the devices'."""

    name: str
    description: str = ""
    device: Device
    devices: Quantity
    link: Link | None = None
    host_idle_w: Quantity | None = None
    host_active_w: Quantity | None = None
    host_memory_bytes: Quantity | None = None
    limit_w: Quantity | None = None

    @property
    def devices_per_node(self) -> int:
        """How many devices a node has."""
        return int(self.devices.value)
