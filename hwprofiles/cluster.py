"""Clusters: equal nodes on one network, with what a node-hour, a kWh and its CO2 cost there.

>>> from hpdlf.hwprofiles import load_cluster, load_region
>>> cluster = load_cluster("dgx-a100").in_region(load_region("norway"))
>>> cluster.carbon_kg_per_kwh.value < 0.1
True
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from ..errors import PlanError, ProfileError
from .profile import Device, Link, Node, Quantity
from .topology import Port, uplinks

__all__ = ["PRICE_KINDS", "Cluster", "Region"]

# What a node-hour costs: rented on demand, rented with interruption or in blocks, or owned.
PRICE_KINDS = ("on_demand", "spot", "own")


@dataclass(frozen=True, kw_only=True)
class Region:
    """Where electricity comes from: what a kWh costs and how much CO2 it stands for. `aliases` are its other names."""

    name: str
    description: str = ""
    aliases: tuple[str, ...] = ()
    energy_price_usd_per_j: Quantity | None = None
    carbon_kg_per_j: Quantity | None = None


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Equal nodes on one network. `link`, None for a single domain, has the bandwidth of a node (see :class:`Link`).

    domain_nodes            how many nodes the link of the nodes joins (trays of a rack with NVLink between them, hosts of a
                            torus); None: each node by itself. `link` leads from domain to domain
    oversubscription        by nodes under a switch: bandwidth of these nodes over that of the switch's links upwards
    price_kind              which of the prices counts: one of PRICE_KINDS
    price_usd_per_node_s    rent on demand
    spot_usd_per_node_s     rent of capacity that can be taken away, or that is booked in blocks
    purchase_usd_per_node   what a node and its share of network and storage cost to buy
    lifetime_s, occupancy   how long it is used, and in which share of that time it has work
    hosting_usd_per_node_s  space, staff and maintenance of an own node, without energy
    energy_price_usd_per_j, carbon_kg_per_j   of electricity; those of `region` where a file does not say them
    pue                     energy that enters the building over energy that enters nodes and network
    network_w_per_node      a node's share of the switches
    placement               the device that every rank is on; empty where they are numbered alike (see `placed`)
    """

    name: str
    description: str = ""
    node: Node
    n_nodes: int
    link: Link | None = None
    domain_nodes: Quantity | None = None
    oversubscription: Mapping[str, Quantity] = field(default_factory=dict)
    price_kind: str = "on_demand"
    price_usd_per_node_s: Quantity | None = None
    spot_usd_per_node_s: Quantity | None = None
    purchase_usd_per_node: Quantity | None = None
    lifetime_s: Quantity | None = None
    occupancy: Quantity | None = None
    hosting_usd_per_node_s: Quantity | None = None
    energy_price_usd_per_j: Quantity | None = None
    carbon_kg_per_j: Quantity | None = None
    pue: Quantity | None = None
    network_w_per_node: Quantity | None = None
    region: Region | None = None
    placement: tuple[int, ...] = ()

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

    def placed(self, placement: tuple[int, ...]) -> Cluster:
        """This cluster as ranks see it that do not lie in order: rank r is on device `placement[r]`. Where a device is asked
        for, its rank is then meant.

        Raises PlanError for a device that does not exist or holds two ranks.

        >>> from hpdlf.hwprofiles import load_cluster
        >>> load_cluster("dgx-a100:2").placed((0, 8, 1, 9)).node_of(1)
        1
        """
        bad = next((one for one in placement if not 0 <= one < self.n_devices), None)
        if bad is not None:
            raise PlanError(
                f"the placement names device {bad}, but cluster '{self.name}' has 0 to {self.n_devices - 1}"
            )
        if len(set(placement)) < len(placement):
            twice = next(one for one in placement if placement.count(one) > 1)
            raise PlanError(f"the placement puts two ranks on device {twice}; each device takes one")
        return dataclasses.replace(self, placement=() if placement == tuple(range(len(placement))) else placement)

    def place_of(self, device: int) -> int:
        """Where `device` is, counted node by node: its own number unless there is a placement."""
        if not 0 <= device < (len(self.placement) or self.n_devices):
            last = (len(self.placement) or self.n_devices) - 1
            raise PlanError(f"cluster '{self.name}' has the devices 0 to {last}, but device {device} is asked for")
        return self.placement[device] if self.placement else device

    def node_of(self, device: int) -> int:
        """The node that holds device `device`; devices are numbered node by node."""
        return self.place_of(device) // self.node.devices_per_node

    @cached_property
    def devices_per_domain(self) -> int:
        """How many devices the link of the nodes joins: those of a node, or of all nodes of a domain."""
        nodes = int(self.domain_nodes.value) if self.domain_nodes else 1
        return nodes * self.node.devices_per_node

    def domain_of(self, device: int) -> int:
        """The domain that holds device `device`."""
        return self.place_of(device) // self.devices_per_domain

    def link_between(self, a: int, b: int) -> Link:
        """The link that a message from device `a` to device `b` takes.

        Raises PlanError for a device that does not exist, and ValueError for a message of a device to itself.
        """
        if self.domain_of(a) == self.domain_of(b):
            link = self.node.link
            if a == b:
                raise ValueError(f"device {a} needs no link to itself")
        else:
            link = self.link
        assert link is not None  # the constructor checks it
        return link

    @cached_property
    def levels(self) -> Mapping[int, float]:
        """The levels of switches between nodes whose links upwards are fewer than those down: nodes below, how many
        times."""
        return {int(nodes): ratio.value for nodes, ratio in self.oversubscription.items() if ratio.value > 1.0}

    def route(self, a: int, b: int) -> tuple[Port, ...]:
        """The shared links that a message from device `a` to device `b` crosses, in order.

        >>> from hpdlf.hwprofiles import load_cluster
        >>> [port.kind for port in load_cluster("dgx-a100:2").route(0, 9)]
        ['adapters', 'adapters']

        Raises PlanError and ValueError as `link_between` does.
        """
        self.link_between(a, b)  # refuses what cannot be
        if self.domain_of(a) == self.domain_of(b):
            return Port("device", self.place_of(a), False), Port("device", self.place_of(b), True)
        here, there = self.node_of(a), self.node_of(b)
        crossed = uplinks(here, there, self.levels)
        return (
            Port("adapters", here, False),
            *(Port("switch", here // level, False, level) for level in crossed),
            *(Port("switch", there // level, True, level) for level in reversed(crossed)),
            Port("adapters", there, True),
        )

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
            bare = dataclasses.replace(
                self, price_usd_per_node_s=None, spot_usd_per_node_s=None, purchase_usd_per_node=None
            )
            return dataclasses.replace(bare, name=f"{base}:{size}", node=node, n_nodes=n_nodes)
        return dataclasses.replace(self, name=f"{base}:{size}", node=node, n_nodes=n_nodes)

    def with_cores(self, cores: int) -> Cluster:
        """This cluster, whose devices are cores, with devices of so many cores each: one rank then computes on all of them.
        The name says so: ``generic-x86:1x1x4`` is one node with one device of four cores.

        Raises ProfileError where a device is no single core, or for fewer than one.

        >>> from hpdlf.hwprofiles import load_cluster
        >>> load_cluster("generic-x86:1x1x4").device.compute_units.value
        4.0
        """
        device = self.device
        if device.kind != "cpu" or device.compute_units is None or device.compute_units.value != 1:
            raise ProfileError(
                f"'{self.name}': a device is {device.name}, no single core, so it cannot be made of {cores} cores; leave them "
                f"out, '{self.name.partition(':')[0]}:{self.n_nodes}x{self.node.devices_per_node}'"
            )
        if not 1 <= cores <= MOST_DEVICES_PER_NODE:
            raise ProfileError(f"'{self.name}': a device has 1 to {MOST_DEVICES_PER_NODE} cores, not {cores}")
        if cores == 1:
            return self
        base = self.name.partition(":")[0]
        name = f"{base}:{self.n_nodes}x{self.node.devices_per_node}x{cores}"
        return dataclasses.replace(self, name=name, node=dataclasses.replace(self.node, device=device.joined(cores)))

    def in_region(self, region: Region) -> Cluster:
        """This cluster with the electricity of another region; what is not known of that is not known any more."""
        price, carbon = region.energy_price_usd_per_j, region.carbon_kg_per_j
        return dataclasses.replace(self, region=region, energy_price_usd_per_j=price, carbon_kg_per_j=carbon)

    def priced(self, kind: str) -> Cluster:
        """This cluster with another kind of price: "on_demand", "spot" or "own".

        Raises ProfileError for a kind that does not exist.
        """
        return dataclasses.replace(self, price_kind=kind)

    def limited(self, *, limit_w: float | None = None, clock_hz: float | None = None) -> Cluster:
        """This cluster with its devices under a power limit or at a clock that is set; the name says so."""
        if limit_w is None and clock_hz is None:
            return self
        said = []
        if limit_w is not None:
            said.append(f"{limit_w:g} W")
        if clock_hz is not None:
            said.append(f"{clock_hz / 1e6:g} MHz")
        device = self.device.limited(limit_w=limit_w, clock_hz=clock_hz)
        node = dataclasses.replace(self.node, device=device)
        return dataclasses.replace(self, name=f"{self.name} at {' and '.join(said)}", node=node)

    def __post_init__(self) -> None:
        if self.price_kind not in PRICE_KINDS:
            raise ProfileError(
                f"cluster '{self.name}': there is no price '{self.price_kind}'; it is one of {', '.join(PRICE_KINDS)}"
            )
        if not 1 <= self.n_nodes <= MOST_NODES:
            raise ProfileError(f"cluster '{self.name}': a cluster has 1 to {MOST_NODES:,} nodes, not {self.n_nodes:,}")
        mend = "Add one to the profile, or choose a cluster of `hpdlf profile list`."
        if self.n_devices > self.devices_per_domain and self.link is None:
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
        pairs = ((f.name, getattr(value, f.name), f.default) for f in dataclasses.fields(value))
        return {name: _plain(part) for name, part, default in pairs if part not in (None, {}, "", (), default)}
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    return value
