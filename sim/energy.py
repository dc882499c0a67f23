"""Power and energy of a step, read off its timeline without looking at single tasks.

A device draws what its tasks draw while it computes (their own estimates), what communication draws while it communicates and does
not compute, and what a device with its clocks up draws while it waits for others in the middle of a step. Devices of a node in use
that have no rank are idle. The host draws its active power as long as the job runs: processors, memory, adapters, switches of the
node and the losses of its power supplies. The switches between nodes and the building's overhead (PUE) come on top of what nodes
draw; a meter at the nodes sees neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..hwprofiles import Cluster, Device
from ..models.cost import Estimate
from ..models.cost.power import Energy, active_w, power_at

__all__ = ["SUPPLY_EFFICIENCY", "DeviceStates", "NodePower", "device_states", "idle_node", "node_power", "nodes_in_use"]

SUPPLY_EFFICIENCY = 0.978
"""Direct over alternating current of a node's power supplies: meters on both sides of the same 8-GPU nodes gave 0.972 to 0.988
(mlcommons/training_results_v4.0, smc-ac-power and smc-dc-power)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceStates:
    """Watts of a device that communicates and does nothing else, that waits in the middle of a step, and that nobody uses."""

    communicating_w: Energy
    waiting_w: Energy
    idle_w: float


@dataclass(frozen=True, kw_only=True, slots=True)
class NodePower:
    """Mean watts of one node in use, at its plug: `devices_w` all devices together, `host_w` the rest of the node.

    network_w   a node's share of the switches between nodes, which no meter of the node sees; 0 where the profile does not say
    nodes       how many are in use
    """

    devices_w: Energy
    host_w: Energy
    network_w: float
    nodes: int

    @property
    def ac_w(self) -> Energy:
        """Watts from the grid."""
        return Energy(*(d + h for d, h in zip(self.devices_w, self.host_w, strict=True)))

    @property
    def dc_w(self) -> Energy:
        """Watts behind the node's power supplies."""
        return self.ac_w.times(SUPPLY_EFFICIENCY)

    @property
    def total_w(self) -> Energy:
        """Watts of all nodes in use with their share of the network, before the building's overhead."""
        return Energy(*((w + self.network_w) * self.nodes for w in self.ac_w))


def device_states(device: Device) -> DeviceStates | None:
    """What a device draws when it does not compute; None where its profile lacks a power.

    A GPU keeps its clocks up between kernels. What else there is falls back to its idle power while it waits.
    """
    if device.idle_w is None:
        return None
    idle_w = device.idle_w.value
    waits = Energy(idle_w, idle_w, idle_w)
    if device.kind == "gpu" and (clocks_up := active_w(device)) is not None:
        low, high = sorted((idle_w, clocks_up))
        waits = Energy(max(clocks_up, idle_w), low, 1.5 * high)
    found = power_at(device, compute=0.0, network=1.0, limit_w=device.set_limit_w, clock_hz=device.set_clock_hz)
    return None if found is None else DeviceStates(communicating_w=found, waiting_w=waits, idle_w=idle_w)


def nodes_in_use(cluster: Cluster, ranks: int) -> int:
    """Ranks fill node after node; a node in use is in use whole."""
    return -(-ranks // cluster.devices_per_node)


def node_power(
    cluster: Cluster,
    tasks: Iterable[tuple[float, Estimate]],
    *,
    ranks: int,
    span_s: float,
    computing_s: float,
    occupied_s: float,
) -> NodePower | None:
    """Mean power of the nodes in use over a span of the timeline.

    tasks         how often what was computed in it, over all ranks
    computing_s   seconds in which ranks computed, over all ranks
    occupied_s    seconds in which ranks computed or communicated, over all ranks

    None where the profile lacks the device's power, or the host's.
    """
    node = cluster.node
    states = device_states(cluster.device)
    if states is None or node.host_active_w is None:
        return None
    busy, alone_s = Energy(0.0, 0.0, 0.0), 0.0
    for count, estimate in tasks:
        if estimate.joules is None or estimate.low_j is None or estimate.high_j is None:
            return None
        parts = zip(busy, (estimate.joules, estimate.low_j, estimate.high_j), strict=True)
        busy = Energy(*(sum_j + count * joules for sum_j, joules in parts))
        alone_s += count * estimate.seconds
    nodes = nodes_in_use(cluster, ranks)
    # What makes a task longer than by itself (transfers that need its cores, a rank's own slowness) is no work.
    communicating_s = max(occupied_s - computing_s, 0.0)
    waiting_s = max(ranks * span_s - alone_s - communicating_s, 0.0)
    unused_j = (nodes * cluster.devices_per_node - ranks) * span_s * states.idle_w
    quiet = zip(states.communicating_w, states.waiting_w, strict=True)
    other_j = [communicating_s * c + waiting_s * w + unused_j for c, w in quiet]
    devices = Energy(*((b + o) / (nodes * span_s) for b, o in zip(busy, other_j, strict=True)))
    return NodePower(devices_w=devices, host_w=_host(cluster), network_w=_network_w(cluster), nodes=nodes)


def idle_node(cluster: Cluster, *, nodes: int, waiting: bool = False) -> NodePower | None:
    """Power of nodes whose devices are idle (or wait with their clocks up), while the host works: starting, loading, writing."""
    states = device_states(cluster.device)
    if states is None or cluster.node.host_active_w is None:
        return None
    each = states.waiting_w if waiting else Energy(states.idle_w, states.idle_w, states.idle_w)
    return NodePower(
        devices_w=each.times(cluster.devices_per_node),
        host_w=_host(cluster),
        network_w=_network_w(cluster),
        nodes=nodes,
    )


def _host(cluster: Cluster) -> Energy:
    power = cluster.node.host_active_w
    assert power is not None, "callers refuse profiles without it"
    low, high = (power.value if bound is None else bound for bound in (power.low, power.high))
    return Energy(power.value, low, high)


def _network_w(cluster: Cluster) -> float:
    return cluster.network_w_per_node.value if cluster.network_w_per_node is not None else 0.0
