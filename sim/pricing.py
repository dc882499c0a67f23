"""What every instruction of a program costs on a cluster: the bridge from programs to the cost model.

Each instruction of each rank becomes a workload, which the cost model prices and which a measurement of the same task can be held
against. Ranks are placed on devices in order (rank = device), so the last axis of the mesh lies closest together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..errors import PlanError
from ..hwprofiles import Cluster, Device
from ..models.cost import (
    CostModel,
    Estimate,
    Workload,
    collective_workload,
    compute_workload,
    host_workload,
    one_sided_workload,
    transfer_workload,
    update_workload,
)
from ..models.cost.attention import newest, share_of_peak
from ..models.cost.interference import interference
from ..models.cost.power import busy_energy
from ..models.cost.roofline import MATRIX_FAMILIES
from ..models.cost.software import Software
from ..models.cost.workload import together
from ..models.onnxpp import Graph
from ..models.program import Group, Instruction, Kind, Peer, Phase, Program, Role

__all__ = ["Pricing", "product_share"]

BESIDE = frozenset({"reduce", "gather"})  # streams of collectives that run while a device computes
_FREE = Estimate(
    seconds=0.0, low_s=0.0, high_s=0.0, joules=0.0, low_j=0.0, high_j=0.0, provenance="modelled", bound="host"
)


@dataclass(frozen=True, kw_only=True)
class Pricing:
    """Prices of one program on one cluster.

    Raises:
        PlanError: the program has more ranks than the cluster has devices.
    """

    program: Program
    graph: Graph
    cluster: Cluster
    model: CostModel
    software: Software | None = None
    precision: str = "float32"
    mixed: bool = False
    optimizer: str = "adam"

    def __post_init__(self) -> None:
        ranks, devices = self.program.mesh.size, self.cluster.n_devices
        if ranks > devices:
            raise PlanError(
                f"The plan needs {ranks} devices, cluster {self.cluster.name} has {devices} "
                f"({self.cluster.n_nodes} nodes of {self.cluster.devices_per_node}): use fewer ranks, or a larger cluster "
                f"(`--on {self.cluster.name.partition(':')[0]}:{-(-ranks // self.cluster.devices_per_node)}`)."
            )

    @cached_property
    def _compute(self) -> Mapping[tuple[str, str], Workload]:
        return {(r.name, i.id): self._computed(r, i) for r in self.program.roles for i in r.instructions if i.parts}

    @cached_property
    def _alike(self) -> Mapping[str, Mapping[str, Estimate]]:
        """By role and instruction, the estimates that do not depend on where a rank stands."""
        return {
            role.name: {
                i.id: self.estimate(self.program.ranks_of(role)[0], i)
                for i in role.instructions
                if i.kind is not Kind.SEND and i.group is None
            }
            for role in self.program.roles
        }

    @property
    def _ranks_on_node(self) -> int:
        """Ranks fill a node before the next."""
        return min(self.program.mesh.size, self.cluster.devices_per_node)

    @cached_property
    def _estimates(self) -> dict[tuple[object, ...], Estimate]:
        return {}

    @cached_property
    def _communication(self) -> dict[tuple[object, ...], Workload | None]:
        return {}

    @cached_property
    def _on_node(self) -> dict[tuple[object, ...], Counter[int]]:
        return {}

    def workload(self, rank: int, instruction: Instruction) -> Workload | None:
        """What `instruction` does on `rank`; None for what costs nothing by itself (a receive, a report)."""
        mesh, cluster = self.program.mesh, self.cluster
        role = self.program.role_of(rank)
        if instruction.kind is Kind.COMPUTE:
            return self._compute[role.name, instruction.id]
        if instruction.kind is Kind.SEND:
            assert instruction.peer is not None
            link = cluster.link_between(rank, mesh.peer(rank, instruction.peer))
            siblings = self.siblings(rank, instruction.peer)
            key: tuple[object, ...] = (role.name, instruction.id, link.name, siblings)
            payload_bytes = role.payload_bytes(instruction)
            return self._once(key, lambda: transfer_workload(payload_bytes, link, siblings=siblings))
        if instruction.group is not None:
            meeting = self._meeting(rank, instruction, instruction.group)
            key = (instruction.kind, role.payload_bytes(instruction), instruction.group, *meeting)
            return self._once(key, lambda: self._grouped(rank, role, instruction))
        if instruction.kind is Kind.LOAD:
            loaded = sum(role.buffer[b].nbytes for b in instruction.writes)
            return self._once((role.name, instruction.id), lambda: host_workload("load", loaded, cluster.node))
        if instruction.kind is Kind.CHECKPOINT:
            kept = sum(role.buffer[b].nbytes for b in instruction.reads)
            return self._once((role.name, instruction.id), lambda: host_workload("checkpoint", kept, cluster.node))
        return None

    def siblings(self, rank: int, peer: Peer) -> int:
        """How many ranks of the node send to such a peer out of their domain at the same time, `rank` among them; 1 within it."""
        cluster, mesh = self.cluster, self.program.mesh
        if cluster.domain_of(rank) == cluster.domain_of(mesh.peer(rank, peer)):
            return 1
        role, node = self.program.role_of(rank), cluster.node_of(rank)
        key = (role.name, node, peer)
        if key not in self._siblings:
            self._siblings[key] = sum(
                cluster.domain_of(mate) != cluster.domain_of(mesh.peer(mate, peer)) for mate in self._mates(rank)
            )
        return self._siblings[key]

    @cached_property
    def _siblings(self) -> dict[tuple[str, int, Peer], int]:
        return {}

    def _mates(self, rank: int) -> list[int]:
        """The ranks on the node of `rank` that play its role."""
        role = self.program.role_of(rank)
        return [mate for mate in self._neighbours(rank) if self.program.role_of(mate) is role]

    def _neighbours(self, rank: int) -> Sequence[int]:
        """All ranks on the node of `rank`. They follow each other, unless the cluster places them."""
        size, node = self.cluster.devices_per_node, self.cluster.node_of(rank)
        if not self.cluster.placement:
            return range(node * size, min((node + 1) * size, self.program.mesh.size))
        return self._by_node[node]

    @cached_property
    def _by_node(self) -> Mapping[int, Sequence[int]]:
        found: dict[int, list[int]] = {}
        for rank in range(self.program.mesh.size):
            found.setdefault(self.cluster.node_of(rank), []).append(rank)
        return found

    def _once(self, key: tuple[object, ...], make: Callable[[], Workload | None]) -> Workload | None:
        if key not in self._communication:
            self._communication[key] = make()
        return self._communication[key]

    def _meeting(self, rank: int, instruction: Instruction, group: Group) -> tuple[object, ...]:
        """What tells the price of a group's communication apart: which group it is, which all members see alike, and for a
        one-sided access how many of the others share the caller's node."""
        mesh = self.program.mesh
        outside = tuple(index for axis, index in mesh.coordinates(rank).items() if axis not in group.axes)
        if not instruction.kind.is_one_sided:
            return *outside, self.active(rank, group)
        if (key := (group, outside)) not in self._on_node:
            self._on_node[key] = Counter(self.cluster.node_of(member) for member in mesh.group(rank, group))
        return *outside, self._on_node[key][self.cluster.node_of(rank)]

    def active(self, rank: int, group: Group) -> int:
        """The devices of the node that are in such a collective at the same time: those of the group, and those whose ranks play
        the same role in a group of their own.
        """
        key = (rank, group)
        if key not in self._actives:
            mesh, role = self.program.mesh, self.program.role_of(rank)
            mine = {a: i for a, i in mesh.coordinates(rank).items() if a not in group.axes}
            self._actives[key] = sum(
                self.program.role_of(mate) is role
                or all(at == mesh.coordinates(mate)[axis] for axis, at in mine.items())
                for mate in self._neighbours(rank)
            )
        return self._actives[key]

    @cached_property
    def _actives(self) -> dict[tuple[int, Group], int]:
        return {}

    def _grouped(self, rank: int, role: Role, instruction: Instruction) -> Workload | None:
        assert instruction.group is not None
        members = self.program.mesh.group(rank, instruction.group)
        payload_bytes = role.payload_bytes(instruction)
        if instruction.kind.is_one_sided:
            ordered = (rank, *(m for m in members if m != rank))
            return one_sided_workload(instruction.kind.value, payload_bytes, ordered, self.cluster)
        return collective_workload(
            instruction.kind.value,
            payload_bytes,
            ranks=members,
            cluster=self.cluster,
            active=self.active(rank, instruction.group),
        )

    def estimate(self, rank: int, instruction: Instruction) -> Estimate:
        """Time and energy of `instruction` on `rank`."""
        workload = self.workload(rank, instruction)
        if workload is None:
            return _FREE
        # A workload's own key names the size of a group, not how its ranks lie over nodes: the components tell that.
        key = (workload.subject, workload.kind, workload.key, *workload.components.values())
        if key not in self._estimates:
            device = None if workload.kind == "host" else self.cluster.device
            found = self.model.price(workload, device, ranks_on_node=self._ranks_on_node)
            self._estimates[key] = _by_software(found, workload, self.software, device)
        return self._estimates[key]

    def estimates(self, rank: int) -> Mapping[str, Estimate]:
        """Of every instruction of `rank`, by id."""
        role = self.program.role_of(rank)
        alike = self._alike[role.name]
        return {i.id: alike[i.id] if i.id in alike else self.estimate(rank, i) for i in role.instructions}

    @cached_property
    def interference(self) -> float:
        """The share of a device's computing that collectives beside it take, and it of theirs: the mean over the reductions and
        gatherings that run while a device computes, by the time that they take (:mod:`hpdlf.models.cost.interference`).
        """
        exposed = 1.0 - float(self.cluster.device.communication_overlap)
        if self.cluster.device.kind == "cpu":
            return exposed
        taken_s = shared_s = 0.0
        for role in self.program.roles:
            rank = self.program.ranks_of(role)[0]
            for instruction in role.instructions:
                if instruction.stream not in BESIDE or instruction.group is None or not instruction.kind.is_collective:
                    continue
                seconds = self.estimate(rank, instruction).seconds
                taken_s += seconds
                shared_s += seconds * self._interference(rank, role, instruction, instruction.group)
        return shared_s / taken_s if taken_s else exposed

    def _interference(self, rank: int, role: Role, instruction: Instruction, group: Group) -> float:
        payload_bytes = role.payload_bytes(instruction)
        key = (instruction.kind, payload_bytes, group, *self._meeting(rank, instruction, group))
        if key not in self._shares:
            self._shares[key] = interference(
                instruction.kind.value,
                payload_bytes,
                self.program.mesh.group(rank, group),
                self.cluster,
                active=self.active(rank, group),
            )
        return self._shares[key]

    @cached_property
    def _shares(self) -> dict[tuple[object, ...], float]:
        return {}

    def _computed(self, role: Role, instruction: Instruction) -> Workload:
        samples, device = self.program.microbatch_samples, self.cluster.device
        segments = [
            (self.program.segments[p.segment].operators, p.phase.value)
            for p in instruction.parts
            if p.phase is not Phase.UPDATE
        ]
        workloads = []
        if segments:
            workloads.append(
                compute_workload(
                    self.graph,
                    segments,
                    batch=samples,
                    device=device,
                    precision=self.precision,
                    fuses=self.software.fuses if self.software else "all",
                )
            )
        if any(p.phase is Phase.UPDATE for p in instruction.parts):
            elements = self.program.updated[role.name]
            workloads.append(
                update_workload(
                    elements, optimizer=self.optimizer, device=device, precision=self.precision, mixed=self.mixed
                )
            )
        return together(workloads)


def _by_software(found: Estimate, workload: Workload, software: Software | None, device: Device | None) -> Estimate:
    """The estimate as `software` takes it: its parts longer by their factors, and no shorter than the host takes to call the kernels.
    Over a longer time a device is used less, and draws less; in the gap between two steps, after the update, it waits.
    """
    if software is None or workload.kind == "host":
        return found
    if workload.payload_bytes:
        factor, least_s = software.communication.value, 0.0
    else:
        share = product_share(workload)
        factor = share * software.products.value + (1.0 - share) * software.rows.value
        factor += software.products.value * _older_attention(workload, software, device)
        least_s = software.call_s * sum(o.count * o.own_kernel for o in workload.operations)
    seconds = max(found.seconds * factor, least_s)
    energy = busy_energy(workload, seconds, device) if device is not None and seconds != found.seconds else None
    if energy is not None:
        found = replace(found, joules=energy.value, low_j=energy.low, high_j=energy.high)
    gap_s = software.step_s.value if any(name.startswith("update") for name in workload.components) else 0.0
    if gap_s and device is not None and device.idle_w is not None and found.joules is not None:
        waiting_j = gap_s * device.idle_w.value
        low_j, high_j = found.low_j, found.high_j
        found = replace(
            found,
            joules=found.joules + waiting_j,
            low_j=None if low_j is None else low_j + waiting_j,
            high_j=None if high_j is None else high_j + waiting_j,
        )
    return replace(
        found,
        seconds=seconds + gap_s,
        low_s=max(found.low_s * factor, least_s) + gap_s,
        high_s=max(found.high_s * factor, least_s) + gap_s,
    )


def _older_attention(workload: Workload, software: Software, device: Device | None) -> float:
    """How much longer than priced the work takes, as a share, where attention runs by kernels older than the device could."""
    if device is None or software.attention >= newest(device):
        return 0.0
    longer = 0.0
    for name, seconds in workload.components.items():
        family, *rest = name.split(".")
        if family == "attention":
            backward = "backward" in rest
            shares = [share_of_peak(device, g, backward=backward) for g in (newest(device), software.attention)]
            longer += seconds * (shares[0] / shares[1] - 1.0)
    return longer / max(sum(workload.components.values()), 1e-30)


def product_share(workload: Workload) -> float:
    """The part of a device's work that is matrix products, convolutions and attention."""
    products = sum(s for name, s in workload.components.items() if name.partition(".")[0] in MATRIX_FAMILIES)
    return products / max(sum(workload.components.values()), 1e-30)
