"""What a profile says once it is read: quantities with their sources, devices, links, nodes and clusters.

Every value is a :class:`Quantity` in SI base units that carries where it comes from. A value that nobody knows is
None, never 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ..errors import PlanError, ProfileError

__all__ = ["KINDS", "PRECISIONS", "TIERS", "Cluster", "Device", "Link", "Node", "Quantity"]

# measured: timed or metered, here or by the source named. datasheet: published as a specification, read in the source
# named. modelled: computed from other values by the formula in the source. recalled: from memory, not looked up.
TIERS = ("measured", "datasheet", "modelled", "recalled")
# int8 counts operations of integers where the others count those of floating point.
PRECISIONS = ("float64", "float32", "tf32", "bfloat16", "float16", "float8", "int8")
KINDS = ("cpu", "gpu", "accelerator")


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


@dataclass(frozen=True, kw_only=True)
class Link:
    """A connection. `bandwidth_bytes_per_s` is nominal, in one direction: of one *device* for a link within a node, of
    one *node* (all its adapters together) for a link between nodes.

    latency_s             of a small message between two programs, one way
    efficiency            share of the nominal bandwidth that a large message between two programs sees
    collective_efficiency share of the nominal bandwidth that a large all-reduce sees (its bus bandwidth)
    adapters              over how many equal adapters the bandwidth spreads; one message uses one adapter
    """

    name: str
    description: str = ""
    latency_s: Quantity
    bandwidth_bytes_per_s: Quantity
    efficiency: Quantity
    collective_efficiency: Quantity | None = None
    adapters: Quantity | None = None

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


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Equal nodes on one network. `link`, None for a single node, has the bandwidth of a node (see :class:`Link`)."""

    name: str
    description: str = ""
    node: Node
    n_nodes: int
    link: Link | None = None
    price_usd_per_node_s: Quantity | None = None
    energy_price_usd_per_j: Quantity | None = None
    carbon_kg_per_j: Quantity | None = None
    pue: Quantity | None = None

    @property
    def device(self) -> Device:
        """The device that every node has."""
        return self.node.device

    @property
    def devices_per_node(self) -> int:
        """How many devices a node has."""
        return self.node.devices_per_node

    @property
    def n_devices(self) -> int:
        """How many devices there are."""
        return self.n_nodes * self.node.devices_per_node

    @property
    def price_usd_per_node_hour(self) -> Quantity | None:
        """The price in dollars per node and hour."""
        return self.price_usd_per_node_s and self.price_usd_per_node_s.per(3600.0, "USD/h")

    @property
    def energy_price_usd_per_kwh(self) -> Quantity | None:
        """The price of electricity in dollars per kWh."""
        return self.energy_price_usd_per_j and self.energy_price_usd_per_j.per(3.6e6, "USD/kWh")

    @property
    def carbon_kg_per_kwh(self) -> Quantity | None:
        """The mass of CO2 emitted per kWh in kilograms."""
        return self.carbon_kg_per_j and self.carbon_kg_per_j.per(3.6e6, "kgCO2/kWh")

    def node_of(self, device: int) -> int:
        """The node that holds device `device`; devices are numbered node by node."""
        if not 0 <= device < self.n_devices:
            raise PlanError(
                f"cluster '{self.name}' has the devices 0 to {self.n_devices - 1}, but device {device} is asked for"
            )
        return device // self.node.devices_per_node

    def link_between(self, a: int, b: int) -> Link:
        """The link that a message from device `a` to device `b` takes.

        Raises PlanError for a device that does not exist, and ValueError for a message of a device to itself.
        """
        if self.node_of(a) == self.node_of(b):
            link = self.node.link
            if a == b:
                raise ValueError(f"device {a} needs no link to itself")
        else:
            link = self.link
        assert link is not None  # the constructor checks it
        return link

    def with_nodes(self, n_nodes: int, devices_per_node: int | None = None) -> Cluster:
        """This cluster with another number of nodes, and of devices in each if given. The name says so:
        ``dgx-a100:16``.

        Raises ProfileError where the profile has no link that the larger cluster needs.
        """
        per_node = self.node.devices_per_node if devices_per_node is None else devices_per_node
        if (n_nodes, per_node) == (self.n_nodes, self.node.devices_per_node):
            return self
        node, size = self.node, f"{n_nodes}"
        base = self.name.partition(":")[0]
        if per_node != node.devices_per_node:
            if not 1 <= per_node <= MOST_DEVICES_PER_NODE:
                raise ProfileError(f"'{base}': a node has 1 to {MOST_DEVICES_PER_NODE} devices, not {per_node}")
            size += f"x{per_node}"
            source = f"asked for in place of the {node.devices_per_node} of node '{node.name}'"
            count = Quantity(value=float(per_node), unit="1", source=source, tier="modelled")
            # What the profile says of a node of another size is not known of this one.
            node = dataclasses.replace(node, devices=count, limit_w=None)
        return dataclasses.replace(self, name=f"{base}:{size}", node=node, n_nodes=n_nodes)

    def __post_init__(self) -> None:
        if not 1 <= self.n_nodes <= MOST_NODES:
            raise ProfileError(f"cluster '{self.name}': a cluster has 1 to {MOST_NODES:,} nodes, not {self.n_nodes:,}")
        mend = "Add one to the profile, or choose a cluster of `hpdlf profile list`."
        if self.n_nodes > 1 and self.link is None:
            raise ProfileError(
                f"cluster '{self.name}' with {self.n_nodes} nodes: the profile has no link between nodes. {mend}"
            )
        if self.node.devices_per_node > 1 and self.node.link is None:
            raise ProfileError(
                f"node '{self.node.name}' with {self.node.devices_per_node} devices: "
                f"the profile has no link between the devices of a node. {mend}"
            )

    @cached_property
    def sha256(self) -> str:
        """A hash of everything in this profile, sources included; the units in which a file wrote it do not matter."""
        from hashlib import sha256
        from json import dumps

        text = dumps(_plain(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return sha256(text.encode()).hexdigest()

    def to_toml(self) -> str:
        """This cluster with its node, device and links as one self-contained file, which load_cluster reads back."""
        from .writing import cluster_to_toml

        return cluster_to_toml(self)


MOST_NODES = 1_000_000
MOST_DEVICES_PER_NODE = 1024


def _plain(value: object) -> object:
    """Dataclasses and mappings as dicts without what is absent, so that a field added later leaves old hashes alone."""
    if dataclasses.is_dataclass(value):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: _plain(part) for name, part in pairs if part not in (None, {}, "", ())}
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    return value
