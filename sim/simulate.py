"""Simulating a training step: fold ranks that behave alike, replay the rest, and read time, energy and money off the timeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..hwprofiles import Cluster
from ..models.cost import CostModel, Estimate
from ..models.onnxpp import Graph
from ..models.program import Kind, Program, peak_memory
from ..models.trace import Event, Trace
from .engine import replay
from .pricing import Pricing
from .result import Figures, Interval, RoleMemory, Simulation

__all__ = ["simulate_program"]

WARM_STEPS, STEADY_STEPS = 1, 2


def simulate_program(
    program: Program,
    graph: Graph,
    cluster: Cluster,
    *,
    model: CostModel | None = None,
    precision: str = "float32",
    optimizer: str = "adam",
    steps: int = WARM_STEPS + STEADY_STEPS,
    fold: bool = True,
    jitter: float = 0.0,
    slowdown: Mapping[int, float] | None = None,
    seed: int = 0,
    strategy: str = "",
    samples_per_epoch: int | None = None,
) -> Simulation:
    """Replay `steps` steps of `program` on `cluster`.

    fold       simulate one rank for all that behave alike
    jitter     standard deviation of the logarithm of every rank's own speed (unfolds all ranks)
    slowdown   {rank: factor on its computing times} for stragglers (unfolds those ranks)
    seed       of the jitter

    Raises:
        PlanError: the program needs more devices than there are, or deadlocks.
    """
    model = model or CostModel.default()
    pricing = Pricing(program=program, graph=graph, cluster=cluster, model=model, precision=precision, optimizer=optimizer)
    speed = _speeds(program.mesh.size, jitter, slowdown or {}, seed)
    multiplicity = _fold(pricing, speed) if fold and not jitter else dict.fromkeys(range(program.mesh.size), 1)
    estimates = {rank: pricing.estimates(rank) for rank in multiplicity}
    overlap = float(cluster.device.communication_overlap)

    def run(bound: str) -> tuple[Event, ...]:
        seconds = {
            rank: {
                name: getattr(e, bound) * (speed[rank] if _computes(program, rank, name) else 1.0) for name, e in mine.items()
            }
            for rank, mine in estimates.items()
        }
        return replay(program, seconds, steps=steps, communication_overlap=overlap)

    # Errors of one family and link go the same way everywhere, so the bounds of the step are its times with all tasks at theirs.
    traces = {bound: run(bound) for bound in ("seconds", "low_s", "high_s")}
    step_s = Interval(
        value=_steady_step(traces["seconds"], steps),
        low=_steady_step(traces["low_s"], steps),
        high=_steady_step(traces["high_s"], steps),
        provenance=_provenance(estimates.values()),
    )
    batch = program.microbatch_samples * program.microbatches * program.mesh.axes["data"]
    return Simulation(
        model=graph.name,
        cluster=cluster.name,
        strategy=strategy,
        ranks=program.mesh.size,
        batch=batch,
        figures=_figures(traces["seconds"], step_s, batch, estimates, multiplicity, cluster, model, steps),
        memory=_memory(program, cluster),
        trace=Trace(source="simulated", events=traces["seconds"], about={"cluster": cluster.name, "strategy": strategy}),
        multiplicity=multiplicity,
        samples_per_epoch=samples_per_epoch,
    )


def _speeds(size: int, jitter: float, slowdown: Mapping[int, float], seed: int) -> list[float]:
    drawn = np.random.Generator(np.random.Philox(seed)).lognormal(0.0, jitter, size) if jitter else np.ones(size)
    return [float(drawn[rank]) * slowdown.get(rank, 1.0) for rank in range(size)]


def _computes(program: Program, rank: int, instruction: str) -> bool:
    return program.role_of(rank).instruction[instruction].kind is Kind.COMPUTE


def _fold(pricing: Pricing, speed: Sequence[float]) -> dict[int, int]:
    """Replicas whose ranks all cost the same are simulated once: {simulated rank: ranks that it stands for}.

    A replica is a coordinate on the data axis; messages never leave it, collectives over it meet all replicas at the same time.
    """
    mesh = pricing.program.mesh
    classes: dict[tuple[object, ...], list[int]] = {}
    for replica in range(mesh.axes["data"]):
        ranks = list(mesh.ranks_at({"data": replica}))
        behaviour = tuple((speed[r], tuple(e.seconds for e in pricing.estimates(r).values())) for r in ranks)
        classes.setdefault(behaviour, []).append(replica)
    return {
        rank: len(replicas) for replicas in classes.values() for rank in sorted(mesh.ranks_at({"data": replicas[0]}))
    }


def _steady_step(events: Sequence[Event], steps: int) -> float:
    """Mean distance between the ends of steps after the first."""
    ends = [0.0] * steps
    for event in events:
        ends[event.step] = max(ends[event.step], event.end_s)
    if steps == 1:
        return ends[0]
    return (ends[-1] - ends[0]) / (steps - 1)


def _provenance(estimates: Sequence[Mapping[str, Estimate]] | object) -> str:
    """The least trusted provenance among what takes at least a tenth of the computing time."""
    seconds: dict[str, float] = {}
    for mine in estimates:  # type: ignore[attr-defined]
        for estimate in mine.values():
            seconds[estimate.provenance] = seconds.get(estimate.provenance, 0.0) + estimate.seconds
    total = sum(seconds.values())
    for provenance in ("modelled", "learned", "measured"):
        if total and seconds.get(provenance, 0.0) >= 0.1 * total:
            return provenance
    return "modelled"


def _figures(
    events: Sequence[Event],
    step_s: Interval,
    batch: int,
    estimates: Mapping[int, Mapping[str, Estimate]],
    multiplicity: Mapping[int, int],
    cluster: Cluster,
    model: CostModel,
    steps: int,
) -> Figures:
    """Read the steady steps off the timeline."""
    first, last = (1, steps) if steps > 1 else (0, 1)
    counted = last - first
    start_s = max((e.end_s for e in events if e.step < first), default=0.0)
    end_s = max(e.end_s for e in events)
    span_s = max(end_s - start_s, 1e-300)
    computing: dict[int, list[tuple[float, float]]] = {rank: [] for rank in multiplicity}
    communicating: dict[int, list[tuple[float, float]]] = {rank: [] for rank in multiplicity}
    for event in events:
        if event.end_s <= start_s:
            continue
        interval = (max(event.start_s, start_s), event.end_s)
        if event.kind == Kind.COMPUTE:
            computing[event.rank].append(interval)
        elif event.kind != Kind.RECEIVE and Kind(event.kind).communicates:  # who waits to receive is idle: the sender is busy
            communicating[event.rank].append(interval)
    ranks = sum(multiplicity.values())
    busy = sum(n * _covered(computing[r]) for r, n in multiplicity.items()) / ranks / span_s
    either = sum(n * _covered(computing[r] + communicating[r]) for r, n in multiplicity.items()) / ranks / span_s
    energy = _energy(events, first, counted, span_s, estimates, multiplicity, cluster, step_s)
    return Figures(
        step_s=step_s,
        samples_per_s=step_s.inverse(batch),
        energy_j=energy,
        **_money(step_s, energy, ranks, cluster, model),
        utilisation=min(busy, 1.0),
        exposed_communication=max(min(either, 1.0) - busy, 0.0),
        bubble=max(1.0 - either, 0.0),
    )


def _covered(intervals: list[tuple[float, float]]) -> float:
    """Length of the union."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        if end > until:
            total += end - max(start, until)
            until = end
    return total


def _energy(
    events: Sequence[Event],
    first: int,
    counted: int,
    span_s: float,
    estimates: Mapping[int, Mapping[str, Estimate]],
    multiplicity: Mapping[int, int],
    cluster: Cluster,
    step_s: Interval,
) -> Interval | None:
    """Joules of one step at the meter: devices while they compute and while they idle, hosts, the building's overhead.

    None where the profile lacks the device's idle power, the host's, or the PUE.
    """
    node, device = cluster.node, cluster.device
    if device.idle_w is None or node.host_active_w is None or cluster.pue is None:
        return None
    joules = low = high = 0.0
    for rank, times in multiplicity.items():
        busy_s = 0.0
        for event in events:
            if event.rank == rank and event.step >= first and event.kind == Kind.COMPUTE:
                estimate = estimates[rank][event.instruction]
                if estimate.joules is None or estimate.low_j is None or estimate.high_j is None:
                    return None
                joules, low, high = (
                    joules + times * estimate.joules,
                    low + times * estimate.low_j,
                    high + times * estimate.high_j,
                )
                busy_s += estimate.seconds
        idle_j = times * device.idle_w.value * max(span_s - busy_s, 0.0)
        joules, low, high = joules + idle_j, low + idle_j, high + idle_j
    nodes = -(-sum(multiplicity.values()) // cluster.devices_per_node)
    hosts_j = nodes * node.host_active_w.value * span_s
    scale = cluster.pue.value / counted
    return Interval(
        value=(joules + hosts_j) * scale, low=(low + hosts_j) * scale, high=(high + hosts_j) * scale, provenance=step_s.provenance
    )


def _money(
    step_s: Interval, energy: Interval | None, ranks: int, cluster: Cluster, model: CostModel
) -> dict[str, Interval | str | None]:
    """Rent of the nodes in use where the profile has a price; else the price of the energy; else unknown."""
    nodes = -(-ranks // cluster.devices_per_node)
    used = cluster.with_nodes(nodes) if nodes < cluster.n_nodes else cluster
    cost: Interval | None = None
    basis: str | None = None
    carbon: Interval | None = None
    if (rent := model.money_usd(1.0, used)) is not None:
        cost, basis = step_s.times(rent), "rent"
    elif energy is not None and cluster.energy_price_usd_per_j is not None:
        cost, basis = energy.times(cluster.energy_price_usd_per_j.value), "energy"
    if energy is not None and cluster.carbon_kg_per_j is not None:
        carbon = energy.times(cluster.carbon_kg_per_j.value)
    return {"cost_usd": cost, "cost_basis": basis, "carbon_kg": carbon}


def _memory(program: Program, cluster: Cluster) -> tuple[RoleMemory, ...]:
    capacity_bytes = int(cluster.device.memory_bytes.value)
    rows = []
    for role in program.roles:
        peak = peak_memory(program, role)
        rows.append(
            RoleMemory(
                role=role.name,
                peak_bytes=peak.peak_bytes,
                at=str(peak.task) if peak.task else "always",
                by_content={content.value: nbytes for content, nbytes in sorted(peak.by_content.items())},
                capacity_bytes=capacity_bytes,
            )
        )
    return tuple(rows)
