"""The cluster that a row ran on.

1. A cluster whose profile the text names is taken (:data:`.system_text.SYSTEMS`, instances of clouds).
2. Else the shipped cluster with the same device, of these the one with as many devices in a node, then the one whose nodes have the
   network bandwidth that the row gives.
3. Else a node is put together from the device and the link that such devices mostly have (:data:`WITHIN`).

Then the row has its way: the number of nodes, devices in a node, the bandwidth and fabric of the network between nodes, the power
limit. A "device" is what one rank computes on: a GPU, a TPU chip, a socket of a CPU node (rows of CPUs count nodes).
"""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from math import ceil, log

from ...errors import PlanError
from ...hwprofiles import Cluster, Device, Link, Node, Quantity, load_cluster, load_device, load_link
from ...hwprofiles.loader import profile_files
from .system_cases import Case
from .system_text import Machine, machine

__all__ = ["cluster_of", "narrowed", "ranks_of"]

# The link within a node by the device's profile and, where it matters, how many devices a node has at most.
WITHIN: tuple[tuple[str, int | None, str], ...] = (
    (r"^(GB|B)[23]00", None, "nvlink5"),
    (r"^(H100|H200)-SXM", 4, "nvlink4-mesh"),
    (r"^(H100|H200)-SXM", None, "nvlink4"),
    (r"^A100-SXM", 4, "nvlink3-mesh"),
    (r"^A100-SXM", None, "nvlink3"),
    (r"^V100-SXM3", None, "nvlink2-switch"),
    (r"^V100-SXM2", 4, "nvlink2-mesh"),
    (r"^V100-SXM2", None, "nvlink2"),
    (r"^P100-SXM2", None, "nvlink1"),
    (r"^MI3[05]", None, "xgmi-mi350x"),
    (r"^MI3", None, "xgmi-mi300x"),
    (r"^MI2[15]", None, "xgmi-mi250x"),
    (r"^TPU-v[23]", None, "ici-v3"),
    (r"^TPU-v4", None, "ici-v4"),
    (r"^TPU-v5e", None, "ici-v5e"),
    (r"^TPU-v5p", None, "ici-v5p"),
    (r"^TPU", None, "ici-v6e"),
    (r"^Gaudi3", None, "gaudi3-mesh"),
    (r"^Gaudi2", None, "gaudi2-mesh"),
    (r"^Gaudi", None, "roce-gaudi-hls-1h"),
    (r"^(H100|H200|L40S|RTX-PRO|GH200)", None, "pcie5"),
    (r"^(A\d|L4|RTX-[34A6]|MI[12])", None, "pcie4"),
    (r"^(Xeon|EPYC|generic-x86)", None, "upi-2-socket"),
    (r"", None, "pcie3"),
)
# The network of nodes of which nothing is said.
BETWEEN = "infiniband-hdr-1"
# Networks that the text and the bandwidth of a row choose from.
NETWORKS = (
    *(
        "infiniband-fdr-1",
        "infiniband-edr-1",
        "infiniband-edr-4",
        "infiniband-edr-8",
        "infiniband-hdr-1",
        "infiniband-hdr-4",
    ),
    *(
        "infiniband-hdr-8",
        "infiniband-ndr-1",
        "infiniband-ndr-8",
        "infiniband-xdr-8",
        "omni-path-4",
    ),
    *("ethernet-10g", "ethernet-25g", "ethernet-50g", "ethernet-100g", "roce-400g-8", "efa-4", "efa-32"),
)
# GPUs that NVLink joins in a rack, and how many of them runs of several racks use: a power of two.
RACK, RACK_USED = 72, 64
_SAME = 0.02
# What the rest of a node draws, as shares of the sum of its devices' limits (models/cost/power_node.py).
HOST_IDLE, HOST_ACTIVE = 0.15, 0.33
# Dense products in 4 bits, FLOP/s: NVIDIA's datasheets of Blackwell and Blackwell Ultra, recalled. A strategy has no such precision
# (nor integers): such a row is simulated in float8 on a device whose products in float8 are as fast.
FOUR_BIT_FLOPS = {"B200-SXM": 9e15, "GB200": 10e15, "B300-SXM": 14e15, "GB300": 15e15}


def cluster_of(case: Case) -> Cluster:
    """The cluster of a row, just large enough for it.

    Raises:
        ProfileError: no profile is known for the device.
        PlanError: the row's number of devices is 0.
    """
    said = machine(case)
    if case.n_devices < 1 or case.devices_per_node < 1:
        raise PlanError(f"{case.n_devices} devices, {case.devices_per_node} in a node, are no cluster.")
    device = load_device(said.device)
    ranks = ranks_of(case)
    base = load_cluster(said.system) if said.system else _shipped(case, device)
    racks = base is not None and base.devices_per_node == RACK
    per_node = _per_node(case, said, device, base)
    if base is None or base.device.name != device.name:
        base = _assembled(device, per_node)
    link = _between(case, said, base, per_node=per_node if racks else None)
    nodes = ceil(ranks / per_node)
    sized = dataclasses.replace(base, link=link).with_nodes(nodes, per_node)
    if case.schedule.startswith("synchronous data parallel, parameter_server"):
        sized = dataclasses.replace(sized, node=dataclasses.replace(sized.node, link=load_link("pcie3")))
    if said.link_bytes_per_s is not None and sized.node.link is not None:
        within = _scaled(sized.node.link, said.link_bytes_per_s)
        sized = dataclasses.replace(sized, node=dataclasses.replace(sized.node, link=within))
    limit = sized.device.limit_w
    if said.limit_w is not None and (limit is None or abs(said.limit_w / limit.value - 1.0) > _SAME):
        sized = sized.limited(limit_w=said.limit_w)
    return sized


def narrowed(cluster: Cluster) -> Cluster:
    """The cluster with products in float8 as fast as those of its narrowest units: 4 bits on Blackwell, integers of 8 bits on
    TPU v5; itself where it has none that are faster.
    """
    device = cluster.device
    flops = FOUR_BIT_FLOPS.get(device.name)
    fast = (
        Quantity(value=flops, unit="FLOP/s", source="dense products in 4 bits, NVIDIA datasheet", tier="recalled")
        if flops
        else None
    )
    if fast is None and device.name.startswith("TPU-v5"):
        fast = device.peak_flops_per_s.get("int8")
    if fast is None:
        return cluster
    narrow = dataclasses.replace(device, peak_flops_per_s={**device.peak_flops_per_s, "float8": fast})
    return dataclasses.replace(
        cluster, name=f"{cluster.name}, narrow", node=dataclasses.replace(cluster.node, device=narrow)
    )


def ranks_of(case: Case) -> int:
    """Ranks of a row: its devices; of CPUs, of which rows count nodes, the sockets."""
    said = machine(case)
    return case.n_devices * (said.sockets or 2 if load_device(said.device).kind == "cpu" else 1)


def _per_node(case: Case, said: Machine, device: Device, base: Cluster | None) -> int:
    """Devices in a node: the profile's for TPU slices, the row's elsewhere; of racks that NVLink joins, those in use."""
    if device.kind == "cpu":
        return said.sockets or (base.devices_per_node if base else 2)
    if base is not None and base.devices_per_node == RACK:
        return max(case.n_devices, 1) if case.n_devices <= RACK else RACK_USED
    if device.name.startswith("TPU"):
        return min(base.devices_per_node if base else 4, case.n_devices)
    return max(case.devices_per_node, 1)


@cache
def _clusters() -> tuple[Cluster, ...]:
    return tuple(load_cluster(name) for name, _ in profile_files("cluster"))


def _shipped(case: Case, device: Device) -> Cluster | None:
    """The shipped cluster that is most like the row's: see the module's text."""
    asked = case.nic_gbytes_per_s_per_node

    def unlike(cluster: Cluster) -> tuple[float, ...]:
        offered = cluster.link.bandwidth_bytes_per_s.value / 1e9 if cluster.link else 1.0
        return (
            cluster.devices_per_node != case.devices_per_node,
            not cluster.name.startswith(("dgx", "hgx")),
            abs(log(offered / asked)) if asked else 0.0,
        )

    same = [cluster for cluster in _clusters() if cluster.device.name == device.name]
    return min(same, key=unlike, default=None)


def _assembled(device: Device, per_node: int) -> Cluster:
    """A node of `per_node` devices with the link that such devices mostly have, on a usual network."""
    link = next(n for p, most, n in WITHIN if re.search(p, device.name) and (most is None or per_node <= most))
    count = Quantity(value=float(per_node), unit="1", source="the row", tier="datasheet")
    watts = {share: _host_w(device, share * per_node) for share in (HOST_IDLE, HOST_ACTIVE)}
    node = Node(
        name=f"{device.name} x{per_node}",
        device=device,
        devices=count,
        link=load_link(link),
        host_idle_w=watts[HOST_IDLE],
        host_active_w=watts[HOST_ACTIVE],
    )
    return Cluster(name=node.name, node=node, n_nodes=1, link=load_link(BETWEEN))


def _host_w(device: Device, limits: float) -> Quantity | None:
    """So many times the device's limit; None where that is not known."""
    if device.limit_w is None:
        return None
    watts, source = limits * device.limit_w.value, "share of the devices' limits, as of measured nodes"
    return Quantity(value=watts, unit="W", source=source, tier="modelled", low=0.6 * watts, high=1.7 * watts)


def _between(case: Case, said: Machine, base: Cluster, *, per_node: int | None) -> Link | None:
    """The network between nodes: the base's, or the shipped one of the row's fabric that is nearest to the row's bandwidth, at the
    row's bandwidth. `per_node` GPUs of a rack have the adapters of as many trays.
    """
    asked = case.nic_gbytes_per_s_per_node
    if per_node is not None:  # a rack: the row's bandwidth, or the profile's, is that of one tray
        trays = per_node / max(case.devices_per_node, 1)
        assert base.link is not None
        whole = base.link.bandwidth_bytes_per_s.value * per_node / base.devices_per_node
        return _scaled(base.link, asked * 1e9 * trays if asked else whole, adapters=per_node)
    link = base.link
    fabric = said.fabric or (link.fabric if link else "infiniband")
    other = (
        asked is not None and link is not None and abs(link.bandwidth_bytes_per_s.value / (asked * 1e9) - 1.0) > _SAME
    )
    if link is None or link.fabric != fabric or other:
        link = _nearest(fabric, asked, said.adapters)
    return _scaled(link, asked * 1e9) if asked else link


@cache
def _nearest(fabric: str, gbytes_per_s: float | None, adapters: int | None) -> Link:
    """The shipped network of this fabric with as many adapters in a node, if one is known, and the nearest bandwidth."""
    same = [link for name in NETWORKS if (link := load_link(name)).fabric == fabric] or [load_link(BETWEEN)]
    asked = (gbytes_per_s or 25.0) * 1e9

    def unlike(link: Link) -> tuple[bool, float]:
        own = link.adapters.value if link.adapters else 1.0
        return adapters is not None and own != adapters, abs(log(link.bandwidth_bytes_per_s.value / asked))

    return min(same, key=unlike)


def _scaled(link: Link, bandwidth_bytes_per_s: float, adapters: int | None = None) -> Link:
    if abs(link.bandwidth_bytes_per_s.value / bandwidth_bytes_per_s - 1.0) <= _SAME and adapters is None:
        return link
    bandwidth = Quantity(value=bandwidth_bytes_per_s, unit="B/s", source="the row", tier="datasheet")
    many = (
        link.adapters
        if adapters is None
        else Quantity(value=float(adapters), unit="1", source="one a GPU", tier="datasheet")
    )
    return dataclasses.replace(link, bandwidth_bytes_per_s=bandwidth, adapters=many)
