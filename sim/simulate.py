"""Simulating a training step: fold ranks that behave alike, replay the rest, and read time, energy and money off the timeline."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import inf

import numpy as np

from ..errors import PlanError
from ..hwprofiles import Cluster
from ..models.cost import CostModel
from ..models.onnxpp import Graph
from ..models.program import Kind, Program, peak_memory
from ..models.trace import Event, Trace
from .engine import replay
from .pricing import Pricing
from .result import Figures, Interval, RoleMemory, Simulation

__all__ = ["middle_figures", "role_memory", "simulate_program"]

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
    slowdown   {rank: factor on its computing times} for stragglers (unfolds their replicas)
    seed       of the jitter

    Raises:
        PlanError: the program needs more devices than there are, or deadlocks; a rank that does not exist is slowed down,
            or a factor is not above 0.
    """
    model = model or CostModel.default()
    replaying = _Replaying(
        program, graph, cluster, model, precision, optimizer, steps, fold, jitter, slowdown or {}, seed
    )
    # Errors of one family and link go the same way everywhere, so the bounds of the step are its times with all tasks at theirs.
    events = replaying.run("seconds")
    step_s = Interval(
        value=_steady_step(events, steps),
        low=_steady_step(replaying.run("low_s"), steps),
        high=_steady_step(replaying.run("high_s"), steps),
        provenance=replaying.provenance,
    )
    return Simulation(
        model=graph.name,
        cluster=cluster.name,
        strategy=strategy,
        ranks=program.mesh.size,
        batch=replaying.batch,
        figures=_figures(replaying, events, step_s),
        memory=role_memory(program, cluster),
        trace=Trace(source="simulated", events=events, about={"cluster": cluster.name, "strategy": strategy}),
        multiplicity=replaying.multiplicity,
        samples_per_epoch=samples_per_epoch,
    )


def middle_figures(
    program: Program,
    graph: Graph,
    cluster: Cluster,
    *,
    model: CostModel,
    precision: str = "float32",
    optimizer: str = "adam",
    steps: int = WARM_STEPS + STEADY_STEPS,
) -> Figures:
    """The figures of :func:`simulate_program` for a third of its time: the step's bounds are not computed, its value stands
    for them. A search ranks by them.
    """
    replaying = _Replaying(program, graph, cluster, model, precision, optimizer, steps)
    events = replaying.run("seconds")
    step_s = _steady_step(events, steps)
    return _figures(replaying, events, Interval(value=step_s, low=step_s, high=step_s, provenance=replaying.provenance))


class _Replaying:
    """A program on a cluster, priced and folded: ready to be replayed at the middle of its prices or at their bounds."""

    def __init__(
        self,
        program: Program,
        graph: Graph,
        cluster: Cluster,
        model: CostModel,
        precision: str,
        optimizer: str,
        steps: int,
        fold: bool = True,
        jitter: float = 0.0,
        slowdown: Mapping[int, float] | None = None,
        seed: int = 0,
    ) -> None:
        self.program, self.cluster, self.model, self.steps = program, cluster, model, steps
        pricing = Pricing(
            program=program, graph=graph, cluster=cluster, model=model, precision=precision, optimizer=optimizer
        )
        self.speed = _speeds(program.mesh.size, jitter, slowdown or {}, seed)
        everybody = dict.fromkeys(range(program.mesh.size), 1)
        self.multiplicity = _fold(pricing, self.speed) if fold and not jitter else everybody
        self.estimates = {rank: pricing.estimates(rank) for rank in self.multiplicity}

    @property
    def batch(self) -> int:
        """Samples in one step."""
        program = self.program
        return program.microbatch_samples * program.microbatches * program.mesh.axes["data"]

    @property
    def provenance(self) -> str:
        """The least trusted provenance among what takes at least a tenth of the tasks' time."""
        seconds = dict.fromkeys(("modelled", "learned", "interpolated", "measured"), 0.0)
        for rank, estimates in self.estimates.items():
            times = Counter(task.instruction for task in self.program.role_of(rank).order)
            for name, estimate in estimates.items():
                seconds[estimate.provenance] += estimate.seconds * times[name] * self.multiplicity[rank]
        total = sum(seconds.values())
        return next((p for p, s in seconds.items() if s > 0.0 and s >= 0.1 * total), "modelled")

    def run(self, bound: str) -> tuple[Event, ...]:
        """The events with every task at one `bound` of its price: "seconds", "low_s" or "high_s"."""
        seconds = {}
        for rank, estimates in self.estimates.items():
            prices = {name: getattr(estimate, bound) for name, estimate in estimates.items()}
            if self.speed[rank] != 1.0:
                for instruction in self.program.role_of(rank).instructions:
                    if instruction.kind is Kind.COMPUTE:
                        prices[instruction.id] *= self.speed[rank]
            seconds[rank] = prices
        overlap = float(self.cluster.device.communication_overlap)
        return replay(self.program, seconds, steps=self.steps, communication_overlap=overlap)


def _speeds(size: int, jitter: float, slowdown: Mapping[int, float], seed: int) -> list[float]:
    strange = {rank: factor for rank, factor in slowdown.items() if not (0 <= rank < size and 0.0 < factor < inf)}
    if strange:
        raise PlanError(f"Slow ranks {strange}: give ranks from 0 to {size - 1} and factors above 0, as in {{3: 1.5}}.")
    if not 0.0 <= jitter < inf:
        raise PlanError(f"A jitter of {jitter} cannot be: give 0, or a small number such as 0.05.")
    drawn = np.random.Generator(np.random.Philox(seed)).lognormal(0.0, jitter, size) if jitter else np.ones(size)
    return [float(drawn[rank]) * slowdown.get(rank, 1.0) for rank in range(size)]


def _fold(pricing: Pricing, speed: Sequence[float]) -> dict[int, int]:
    """Replicas whose ranks all cost the same are simulated once: {simulated rank: ranks that it stands for}.

    A replica is a coordinate on the data axis. Messages never leave it, and a collective over it meets all replicas at the same
    time and takes equally long for all of them; so replicas at equal prices do the same at the same time, and nobody else can
    tell how many they are. Where a replica straddles nodes differently, its messages have other prices and it is unfolded.
    """
    mesh = pricing.program.mesh
    classes: dict[tuple[object, ...], list[tuple[int, ...]]] = {}
    for replica in range(mesh.axes["data"]):
        ranks = tuple(mesh.ranks_at({"data": replica}))
        behaviour = tuple(
            (speed[r], *((e.seconds, e.low_s, e.high_s) for e in pricing.estimates(r).values())) for r in ranks
        )
        classes.setdefault(behaviour, []).append(ranks)
    return dict(sorted((rank, len(replicas)) for replicas in classes.values() for rank in replicas[0]))


def _steady_step(events: Sequence[Event], steps: int) -> float:
    """Mean distance between the ends of steps after the first."""
    ends = [0.0] * steps
    for event in events:
        ends[event.step] = max(ends[event.step], event.end_s)
    if steps == 1:
        return ends[0]
    return (ends[-1] - ends[0]) / (steps - 1)


def _figures(replaying: _Replaying, events: Sequence[Event], step_s: Interval) -> Figures:
    """Read the steady steps off the timeline."""
    steps, multiplicity = replaying.steps, replaying.multiplicity
    first = WARM_STEPS if steps > WARM_STEPS else 0
    start_s = max((e.end_s for e in events if e.step < first), default=0.0)
    span_s = max(max(e.end_s for e in events) - start_s, 1e-300)
    gathered_s = _gathered(replaying.program, events)
    computing: dict[int, list[tuple[float, float]]] = {rank: [] for rank in multiplicity}
    communicating: dict[int, list[tuple[float, float]]] = {rank: [] for rank in multiplicity}
    for event, ready_s in zip(events, gathered_s, strict=True):
        if event.end_s <= start_s:
            continue
        interval = (max(event.start_s, ready_s, start_s), event.end_s)
        if event.kind == Kind.COMPUTE:
            computing[event.rank].append(interval)
        elif event.kind in _OCCUPYING:
            communicating[event.rank].append(interval)
    ranks = sum(multiplicity.values())
    busy = sum(n * _covered(computing[r]) for r, n in multiplicity.items()) / ranks / span_s
    either = sum(n * _covered(computing[r] + communicating[r]) for r, n in multiplicity.items()) / ranks / span_s
    energy = _energy(replaying, events, first, span_s, step_s)
    cost, basis = _money(step_s, energy, ranks, replaying.cluster, replaying.model)
    carbon = replaying.cluster.carbon_kg_per_j
    return Figures(
        step_s=step_s,
        samples_per_s=step_s.inverse(replaying.batch),
        energy_j=energy,
        cost_usd=cost,
        cost_basis=basis,
        carbon_kg=energy.times(carbon.value) if energy and carbon else None,
        utilisation=min(busy, 1.0),
        exposed_communication=max(min(either, 1.0) - busy, 0.0),
        bubble=max(1.0 - either, 0.0),
    )


# Who waits to receive is idle: the sender is busy.
_OCCUPYING = frozenset(kind.value for kind in Kind if kind.communicates and kind is not Kind.RECEIVE)
_COLLECTIVE = frozenset(kind.value for kind in Kind if kind.is_collective)


def _gathered(program: Program, events: Sequence[Event]) -> list[float]:
    """For every event, when its collective had gathered: before that its rank waits for others. 0 for any other event."""
    places: dict[tuple[int, str], tuple[object, ...]] = {}
    last_s: dict[tuple[object, ...], float] = {}
    keys: list[tuple[object, ...] | None] = []
    for event in events:
        if event.kind not in _COLLECTIVE:
            keys.append(None)
            continue
        if (place := (event.rank, event.instruction)) not in places:
            instruction = program.role_of(event.rank).instruction[event.instruction]
            assert instruction.group is not None
            first = program.mesh.group(event.rank, instruction.group)[0]
            places[place] = (first, instruction.group, instruction.message)
        key = (*places[place], event.step, event.microbatch)
        last_s[key] = max(last_s.get(key, 0.0), event.start_s)
        keys.append(key)
    return [0.0 if key is None else last_s[key] for key in keys]


def _covered(intervals: list[tuple[float, float]]) -> float:
    """Length of the union."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        if end > until:
            total += end - max(start, until)
            until = end
    return total


def _energy(
    replaying: _Replaying, events: Sequence[Event], first: int, span_s: float, step_s: Interval
) -> Interval | None:
    """Joules of one step at the meter of the nodes in use: devices while they compute and while they wait or have no rank, hosts,
    network, and the building's overhead. A task costs what it costs at full speed; what slows it (a straggler's own reasons, transfers
    that need its cores) is time at idle power.

    None where the profile lacks the device's idle power, the host's, or the PUE.
    """
    cluster, multiplicity = replaying.cluster, replaying.multiplicity
    node, device = cluster.node, cluster.device
    if device.idle_w is None or node.host_active_w is None or cluster.pue is None:
        return None
    tasks = Counter((e.rank, e.instruction) for e in events if e.step >= first and e.kind == Kind.COMPUTE)
    joules = low = high = busy_s = 0.0
    for (rank, instruction), count in tasks.items():
        estimate, times = replaying.estimates[rank][instruction], count * multiplicity[rank]
        if estimate.joules is None or estimate.low_j is None or estimate.high_j is None:
            return None
        joules, low, high = (
            joules + times * estimate.joules,
            # An estimate's joules are bounded for its own seconds: the bounds of the time come on top.
            low + times * estimate.low_j * _share(estimate.low_s, estimate.seconds),
            high + times * estimate.high_j * _share(estimate.high_s, estimate.seconds),
        )
        busy_s += times * estimate.seconds
    nodes = _nodes_in_use(cluster, sum(multiplicity.values()))
    idle_s = max(nodes * cluster.devices_per_node * span_s - busy_s, 0.0)
    # A share of the switches that the profile does not say is not counted.
    network_w = cluster.network_w_per_node.value if cluster.network_w_per_node is not None else 0.0
    other_j = device.idle_w.value * idle_s + nodes * (node.host_active_w.value + network_w) * span_s
    scale = cluster.pue.value / (replaying.steps - first)
    return Interval(
        value=(joules + other_j) * scale,
        low=(low + other_j * _share(step_s.low, step_s.value)) * scale,
        high=(high + other_j * _share(step_s.high, step_s.value)) * scale,
        provenance=step_s.provenance,
    )


def _share(bound_s: float, value_s: float) -> float:
    return bound_s / value_s if value_s else 1.0


def _nodes_in_use(cluster: Cluster, ranks: int) -> int:
    """Ranks fill node after node; a node in use is in use whole."""
    return -(-ranks // cluster.devices_per_node)


def _money(
    step_s: Interval, energy: Interval | None, ranks: int, cluster: Cluster, model: CostModel
) -> tuple[Interval | None, str | None]:
    """Rent of the nodes in use where the profile has a price; of own nodes, amortisation and energy; else the price of the
    energy; else unknown. And which of them.
    """
    nodes_usd_per_s = model.money_usd(1.0, cluster.with_nodes(_nodes_in_use(cluster, ranks)))
    price = cluster.energy_price_usd_per_j
    electricity = energy.times(price.value) if energy is not None and price is not None else None
    if nodes_usd_per_s is None:
        return (None, None) if electricity is None else (electricity, "energy")
    nodes = step_s.times(nodes_usd_per_s)
    if cluster.price_kind != "own":
        return nodes, "rent"
    return (None, None) if electricity is None else (nodes.plus(electricity), "own")


def role_memory(program: Program, cluster: Cluster) -> tuple[RoleMemory, ...]:
    """Peak memory of every role beside what the device has."""
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
