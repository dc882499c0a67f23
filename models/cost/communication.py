"""Everything that moves bytes between ranks, or between a rank and its host, as workloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from ...errors import PlanError
from ...hwprofiles import Cluster, Device, Link, Node
from ..onnxpp.graph import item_bytes
from .collectives import collective_legs, placement_of, slowdown
from .links import spreads_of
from .operation import Operation, component_name
from .roofline import roof_of, storage
from .workload import Workload

__all__ = [
    "HOST_BYTES_PER_S",
    "OPTIMIZER_TRAFFIC",
    "collective_workload",
    "host_workload",
    "one_sided_workload",
    "transfer_workload",
    "update_workload",
]

# Words that one parameter's update reads and writes: the parameter and its gradient, and each state tensor read and
# written.
OPTIMIZER_TRAFFIC: Mapping[str, int] = {
    "sgd": 3,
    "momentum": 5,
    "nesterov": 5,
    "adagrad": 5,
    "rmsprop": 5,
    "lion": 5,
    "adam": 7,
    "adamw": 7,
    "nadam": 7,
    "lamb": 9,  # the trust ratio reads the parameter and the update again
    "lars": 7,
}
# No profile says how fast a host's storage is. This is an NVMe disk or a good parallel file system seen from one
# node, and the prior's interval around it is wide.
HOST_BYTES_PER_S: Mapping[str, float] = {"load": 2e9, "checkpoint": 5e8}
HOST_LATENCY_S: Mapping[str, float] = {"load": 20e-6, "checkpoint": 5e-3}


def transfer_workload(nbytes: int, link: Link, *, siblings: int = 1) -> Workload:
    """One message of `nbytes` over `link`, sender to receiver, through one adapter.

    ``latency + nbytes / bandwidth * (1 + h / (nbytes + h))``, h the link's `half_bandwidth_bytes`: grows with the size.
    `siblings` is how many messages leave the node over the link at the same time, this one among them: where they are
    more than its adapters, they share them.
    """
    bandwidth = min(link.message_bandwidth_bytes_per_s, link.effective_bandwidth_bytes_per_s / siblings)
    sent_s = nbytes / bandwidth * slowdown(link, nbytes)
    components = {"transfer.latency": link.latency_s.value, "transfer.bandwidth": sent_s}
    return Workload(
        subject=link.name,
        subject_kind="link",
        kind="transfer",
        key=f"transfer:{nbytes}" if siblings == 1 else f"transfer:{nbytes}:{siblings} at once",
        components=components,
        spreads=spreads_of(link, components),
        n_launches=1,
        payload_bytes=nbytes,
        bound="network",
    )


def collective_workload(
    kind: str,
    nbytes: int,
    *,
    ranks: Sequence[int],
    cluster: Cluster,
    algorithm: str = "",
    active: int | None = None,
) -> Workload | None:
    """A collective on a buffer of `nbytes` among the devices `ranks`; None for a single rank: nothing moves.

    `nbytes` is the whole buffer: the operand of a reduce-scatter, the result of an all-gather (see :mod:`.algorithms`).
    `algorithm` keeps NCCL to a kind of algorithm, as its NCCL_ALGO does ("ring"). `active` is how many devices of a node
    are in such a collective at the same time (see :func:`collective_legs`).

    The subject is the link between nodes where ranks span nodes, and the link within the node stands before its
    components then ("nvlink3:all_gather.latency").
    """
    ranks = tuple(ranks)
    legs = collective_legs(kind, nbytes, ranks, cluster, algorithm=algorithm, active=active)
    if not legs:
        return None
    at = placement_of(kind, ranks, cluster, active=active)
    spanning = at.outer or at.inner
    assert spanning is not None
    components: dict[str, float] = {}
    spreads: dict[str, float] = {}
    for leg in legs:
        name = kind if leg.link.name == spanning.name else f"{leg.link.name}:{kind}"
        found = {f"{name}.latency": leg.latency_s, f"{name}.bandwidth": leg.transmission_s}
        for component, seconds in found.items():
            components[component] = components.get(component, 0.0) + seconds
        spreads |= spreads_of(leg.link, found, at.nodes if leg.link is at.outer else at.local)
    return Workload(
        subject=spanning.name,
        subject_kind="link",
        kind="collective",
        key=f"{kind}:{nbytes}:{len(ranks)}/{at.nodes}",
        components=components,
        spreads=spreads,
        n_launches=1,
        payload_bytes=nbytes,
        bound="network",
    )


def one_sided_workload(kind: str, nbytes: int, ranks: Sequence[int], cluster: Cluster) -> Workload | None:
    """A put, get or notify of one rank on a buffer of `nbytes` whose equal parts lie with `ranks` (the calling rank
    first).

    Each of the p-1 other owners gets one message with its part, over the slowest link among them: ``(p-1) alpha + n
    (p-1)/p beta``. A notify carries no data. None for a single rank.

    Raises:
        PlanError: `kind` is not "put", "get" or "notify".
    """
    if kind not in ("put", "get", "notify"):
        raise PlanError(f"one-sided operation '{kind}' is not known; known are put, get, notify.")
    others = [r for r in ranks if r != ranks[0]]
    if not others:
        return None
    links = [cluster.link_between(ranks[0], r) for r in others]
    link = min(links, key=lambda each: each.message_bandwidth_bytes_per_s)
    p = len(others) + 1
    moved = 0.0 if kind == "notify" else nbytes * (p - 1) / p
    sent_s = moved / link.message_bandwidth_bytes_per_s * slowdown(link, moved / (p - 1))
    components = {f"{kind}.latency": (p - 1) * link.latency_s.value, f"{kind}.bandwidth": sent_s}
    return Workload(
        subject=link.name,
        subject_kind="link",
        kind="transfer",
        key=f"{kind}:{nbytes}:{p}",
        components=components,
        spreads=spreads_of(link, components),
        n_launches=p - 1,
        payload_bytes=0 if kind == "notify" else nbytes,
        bound="network",
    )


def host_workload(kind: str, nbytes: int, node: Node) -> Workload:
    """Reading a batch ("load") or writing a checkpoint ("checkpoint") of `nbytes` on a host.

    Raises:
        PlanError: another kind.
    """
    if kind not in HOST_BYTES_PER_S:
        raise PlanError(f"host operation '{kind}' is not known; known are {', '.join(HOST_BYTES_PER_S)}.")
    return Workload(
        subject=node.name,
        subject_kind="host",
        kind="host",
        key=f"{kind}:{nbytes}",
        components={f"{kind}.latency": HOST_LATENCY_S[kind], f"{kind}.bandwidth": nbytes / HOST_BYTES_PER_S[kind]},
        n_launches=1,
        payload_bytes=nbytes,
        bound="host",
    )


def update_workload(
    parameter_elements: int, *, optimizer: str, device: Device, precision: str = "float32", mixed: bool = False
) -> Workload:
    """One optimiser update of `parameter_elements`: memory traffic of :data:`OPTIMIZER_TRAFFIC` words each, one launch.
    `mixed`: the words are float32, and a copy in `precision` is written besides.

    Raises:
        PlanError: an optimiser that the table does not have.
        ProfileError: the profile lacks a peak that `precision` needs.
    """
    if optimizer not in OPTIMIZER_TRAFFIC:
        close = get_close_matches(optimizer, OPTIMIZER_TRAFFIC, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known are {', '.join(OPTIMIZER_TRAFFIC)}."
        raise PlanError(f"optimiser '{optimizer}' is not known; {hint}")
    roof = roof_of(device, precision)
    words = OPTIMIZER_TRAFFIC[optimizer]
    copied = 0
    item = item_bytes("bfloat16" if precision == "float8" else storage(precision))
    if mixed and item < item_bytes("float32"):
        copied, item = item * parameter_elements, item_bytes("float32")
    nbytes = parameter_elements * words * item + copied
    flops = 2.0 * words * parameter_elements
    arithmetic_s, traffic_s = roof.times("elementwise", flops, nbytes)
    written = (words - 1) // 2 * parameter_elements * item + copied  # the parameter, its copy, and each state tensor
    operation = Operation(
        family="update",
        op=optimizer,
        dims=(1, parameter_elements),
        flops=flops,
        read_bytes=float(nbytes - written),
        write_bytes=float(written),
        phase="update",
        precision=precision,
        item_bytes=item,
    )
    return Workload(
        subject=device.name,
        subject_kind="cpu" if device.kind == "cpu" else "gpu",
        kind="update",
        key=f"{optimizer}:{parameter_elements}:{precision}{':mixed' if copied else ''}",
        operations=(operation,) if device.kind == "cpu" else (),
        components={
            component_name("update", phase="update", precision=precision): max(arithmetic_s, traffic_s),
            "dispatch": roof.launch_s,
        },
        n_launches=1,
        compute_s=arithmetic_s,
        memory_s=traffic_s,
        flops=flops,
        traffic_bytes=float(nbytes),
        bound="launch" if roof.launch_s > traffic_s else "memory",
    )
