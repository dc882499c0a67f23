"""Simulating a training step: fold ranks that behave alike, replay one of each, and read time, energy and money off the timeline.

Nothing here looks at single tasks: a step of a trillion parameters has a hundred million of them. Counts come from passes and their
schedule, times from the lines of :mod:`.played`, and the trace is written out when it is asked for.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from functools import cached_property
from math import inf, lcm

import numpy as np

from ..errors import PlanError
from ..hwprofiles import Cluster
from ..models.cost import CostModel
from ..models.cost.software import Software
from ..models.onnxpp import Graph
from ..models.program import Kind, Phase, Program, Role, peak_memory
from ..models.trace import Trace
from .energy import NodePower, node_power
from .engine import play
from .folding import Folding, unfolded
from .folding import fold as fold_ranks
from .money import energy, money
from .played import Played
from .pricing import Pricing
from .result import Figures, Interval, RoleMemory, Simulation
from .sharing import link_shares
from .uncertainty import Makeup, bounds_of, priced

__all__ = ["middle_figures", "role_memory", "simulate_program"]

MOST_STEPS = 8
MOST_TASKS_DRAWN = 4000


def simulate_program(
    program: Program,
    graph: Graph,
    cluster: Cluster,
    *,
    model: CostModel | None = None,
    software: Software | None = None,
    precision: str = "float32",
    mixed: bool = False,
    optimizer: str = "adam",
    steps: int | None = None,
    fold: bool = True,
    contention: bool = False,
    jitter: float = 0.0,
    slowdown: Mapping[int, float] | None = None,
    seed: int = 0,
    strategy: str = "",
    samples_per_epoch: int | None = None,
) -> Simulation:
    """Replay steps of `program` on `cluster`.

    software   whose kernels and collectives run (None: the executor's)
    mixed      the optimiser works on float32 copies of 16-bit parameters
    steps      how many to replay, the first of which warms up; as many as it takes to become steady unless said
    fold       simulate one rank for all that behave alike
    contention   let transfers that meet on a link share it, max-min fairly (unfolds all ranks: they meet one by one). Without it
               each takes what it takes beside its siblings alone
    jitter     standard deviation of the logarithm of every rank's own speed (unfolds all ranks)
    slowdown   {rank: factor on its computing times} for stragglers (unfolds their replicas)
    seed       of the jitter

    Raises:
        PlanError: the program needs more devices than there are, or deadlocks; a rank that does not exist is slowed down,
            or a factor is not above 0.
    """
    model = model or CostModel.default()
    replaying = _Replaying(
        program,
        graph,
        cluster,
        model,
        precision,
        optimizer,
        steps,
        fold,
        jitter,
        slowdown or {},
        seed,
        software,
        mixed,
        contention,
    )
    steady = replaying.run(replaying.prices())
    low_s, high_s = _bounds(replaying, steady, seed)
    step_s = Interval(value=steady.step_s, low=low_s, high=high_s, provenance=replaying.provenance)
    return Simulation(
        model=graph.name,
        cluster=cluster.name,
        strategy=strategy,
        ranks=program.mesh.size,
        batch=replaying.batch,
        figures=_figures(replaying, steady, step_s),
        memory=role_memory(program, cluster),
        trace=_Trace.of(steady.played, {"cluster": cluster.name, "strategy": strategy}),
        multiplicity=replaying.multiplicity,
        samples_per_epoch=samples_per_epoch,
        program=program,
        hardware=cluster,
        estimates=replaying.estimates,
        prices=replaying.prices(),
    )


def middle_figures(
    program: Program,
    graph: Graph,
    cluster: Cluster,
    *,
    model: CostModel,
    software: Software | None = None,
    precision: str = "float32",
    mixed: bool = False,
    optimizer: str = "adam",
    steps: int | None = None,
) -> Figures:
    """The figures of :func:`simulate_program` for a third of its time: the step's bounds are not computed, its value stands
    for them. A search ranks by them.
    """
    replaying = _Replaying(program, graph, cluster, model, precision, optimizer, steps, software=software, mixed=mixed)
    steady = replaying.run(replaying.prices())
    step_s = steady.step_s
    return _figures(replaying, steady, Interval(value=step_s, low=step_s, high=step_s, provenance=replaying.provenance))


class _Trace(Trace):
    """The trace of a replay, whose events are written out when somebody looks at them."""

    _played: Played

    @classmethod
    def of(cls, played: Played, about: Mapping[str, str]) -> _Trace:
        trace = object.__new__(cls)
        for name, value in (("source", "simulated"), ("about", about), ("_played", played)):
            object.__setattr__(trace, name, value)
        return trace

    def __getattr__(self, name: str) -> object:
        if name != "events":
            raise AttributeError(name)
        events = self._played.events
        object.__setattr__(self, "events", events)
        return events


class _Steady:
    """A replay and its last period: the steps after which everything repeats (one, unless something runs in every so many)."""

    def __init__(self, played: Played, period: int) -> None:
        self.played, self.period = played, min(period, max(played.steps - 1, 1))

    @property
    def start_s(self) -> float:
        """When the period begins."""
        before = self.played.steps - self.period
        return self.played.step_ends_s[before - 1] if before else 0.0

    @property
    def span_s(self) -> float:
        """How long it takes."""
        return max(self.played.end_s - self.start_s, 1e-300)

    @property
    def step_s(self) -> float:
        """The mean of its steps."""
        return (self.played.end_s - self.start_s) / self.period

    @property
    def is_steady(self) -> bool:
        """Whether it ended as the one before it ended: then all that follow are like it."""
        if self.played.steps < 2 * self.period:
            return False
        now, before = (self.played.offsets_s(self.played.steps - 1 - k) for k in (0, self.period))
        return bool(np.allclose(now, before, rtol=0.0, atol=1e-9 * self.step_s))


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
        steps: int | None,
        fold: bool = True,
        jitter: float = 0.0,
        slowdown: Mapping[int, float] | None = None,
        seed: int = 0,
        software: Software | None = None,
        mixed: bool = False,
        contention: bool = False,
    ) -> None:
        self.program, self.cluster, self.model, self.steps = program, cluster, model, steps
        self.pricing = pricing = Pricing(
            program=program,
            graph=graph,
            cluster=cluster,
            model=model,
            software=software,
            precision=precision,
            mixed=mixed,
            optimizer=optimizer,
        )
        self.speed = _speeds(program.mesh.size, jitter, slowdown or {}, seed)
        self.jitters = jitter > 0.0
        fold = fold and not contention
        self.shares = link_shares(pricing) if contention else None
        self.folding: Folding = (
            fold_ranks(program, cluster, self.speed) if fold and not jitter else unfolded(program.mesh)
        )
        self.multiplicity = self.folding.multiplicity
        self.estimates = {rank: pricing.estimates(rank) for rank in self.multiplicity}

    @property
    def batch(self) -> int:
        """Samples in one step."""
        program = self.program
        replicas = program.mesh.axes["data"] * program.mesh.axes.get("expert", 1)  # experts are dealt over replicas
        return program.microbatch_samples * program.microbatches * replicas

    @property
    def provenance(self) -> str:
        """The least trusted provenance among what takes at least a tenth of the tasks' time."""
        seconds = dict.fromkeys(("modelled", "learned", "interpolated", "measured"), 0.0)
        for rank, estimates in self.estimates.items():
            times = self.counts[self.program.role_of(rank).name]
            for name, estimate in estimates.items():
                seconds[estimate.provenance] += estimate.seconds * times[name] * self.multiplicity[rank]
        total = sum(seconds.values())
        return next((p for p, s in seconds.items() if s > 0.0 and s >= 0.1 * total), "modelled")

    @cached_property
    def counts(self) -> Mapping[str, Counter[str]]:
        """By role, how often each instruction runs in a step in which it runs."""
        return {role.name: _counts(role) for role in self.program.roles}

    @cached_property
    def period(self) -> int:
        """Steps after which training repeats: checkpoints and reports are left out, a run has them on top."""
        instructions = [i for role in self.program.roles for i in role.instructions if i.phase is not Phase.HOST]
        return lcm(*{i.every for i in instructions}, 1)

    def prices(self, drawn: Mapping[Hashable, float] | None = None) -> dict[int, dict[str, float]]:
        """Seconds of every instruction of every simulated rank, a rank's own slowness included; `drawn` are the seconds of the
        prices by their keys, in place of what was estimated.
        """
        seconds = {}
        for rank, estimates in self.estimates.items():
            prices = {name: estimate.seconds for name, estimate in estimates.items()}
            if drawn is not None:
                prices |= {name: drawn[key] for name, key in self.makeup[1][rank].items()}
            if self.speed[rank] != 1.0:
                for instruction in self.program.role_of(rank).instructions:
                    if instruction.kind is Kind.COMPUTE:
                        prices[instruction.id] *= self.speed[rank]
            seconds[rank] = prices
        return seconds

    @cached_property
    def makeup(self) -> tuple[Makeup, Mapping[int, Mapping[str, Hashable]]]:
        """What the prices consist of, and by rank and instruction the key of its price."""
        return priced(self.pricing, self.multiplicity)

    def run(self, seconds: Mapping[int, Mapping[str, float]]) -> _Steady:
        """A replay at these prices.

        One warm and one steady period suffice where both end alike: what comes after depends on what came before only through
        when each stream of each rank is free, so it repeats. Where they do not, longer replays are tried.
        """
        overlap = 1.0 - self.pricing.interference
        periods = 2
        while True:
            steps = self.steps or periods * self.period
            played = play(
                self.program,
                seconds,
                folding=self.folding,
                steps=steps,
                communication_overlap=overlap,
                collective_share=overlap if self.cluster.device.kind != "cpu" else 1.0,
                shares=self.shares,
            )
            steady = _Steady(played, self.period)
            if self.steps or steady.is_steady or 2 * steps > MOST_STEPS * self.period:
                return steady
            periods *= 2


def _bounds(replaying: _Replaying, steady: _Steady, seed: int) -> tuple[float, float]:
    """Between what the step lies in nine cases of ten: replayed for a number of draws of all errors, or, where that would take long,
    by how much of the step each price fills.
    """
    makeup, keys = replaying.makeup
    tasks = sum(sum(counts.values()) for counts in replaying.counts.values())
    # Ranks that all differ are all replayed. Otherwise the choice must not depend on how many are: folding changes no figure.
    if tasks * (len(replaying.multiplicity) if replaying.jitters else 1) <= MOST_TASKS_DRAWN:
        drawn = [replaying.run(replaying.prices(draw)).step_s for draw in makeup.draws(seed=seed)]
        return bounds_of(steady.step_s, drawn)
    kinds: dict[bool, dict[Hashable, float]] = {True: defaultdict(float), False: defaultdict(float)}
    for rank, times in replaying.multiplicity.items():
        role = replaying.program.role_of(rank)
        for i in role.instructions:
            if i.id in keys[rank] and i.phase is not Phase.HOST:
                seconds = times * replaying.counts[role.name][i.id] * replaying.estimates[rank][i.id].seconds / i.every
                kinds[i.kind is Kind.COMPUTE][keys[rank][i.id]] += seconds
    covered = steady.played.busy_s(steady.start_s)
    computing = sum(n * covered[r][0] for r, n in replaying.multiplicity.items())
    either = sum(n * covered[r][1] for r, n in replaying.multiplicity.items())
    filled = {True: computing / max(either, 1e-300), False: 1.0 - computing / max(either, 1e-300)}
    weights = {
        key: filled[kind] * seconds / max(sum(found.values()), 1e-300)
        for kind, found in kinds.items()
        for key, seconds in found.items()
    }
    low, high = makeup.bounds(weights)
    return steady.step_s * low, steady.step_s * high


def _counts(role: Role) -> Counter[str]:
    passes = Counter(name for name, _ in role.schedule)
    counts: Counter[str] = Counter()
    for name, times in passes.items():
        for instruction in role.passes[name]:
            counts[instruction] += times
    return counts


def _speeds(size: int, jitter: float, slowdown: Mapping[int, float], seed: int) -> list[float]:
    strange = {rank: factor for rank, factor in slowdown.items() if not (0 <= rank < size and 0.0 < factor < inf)}
    if strange:
        raise PlanError(f"Slow ranks {strange}: give ranks from 0 to {size - 1} and factors above 0, as in {{3: 1.5}}.")
    if not 0.0 <= jitter < inf:
        raise PlanError(f"A jitter of {jitter} cannot be: give 0, or a small number such as 0.05.")
    drawn = np.random.Generator(np.random.Philox(seed)).lognormal(0.0, jitter, size) if jitter else np.ones(size)
    return [float(drawn[rank]) * slowdown.get(rank, 1.0) for rank in range(size)]


def _figures(replaying: _Replaying, steady: _Steady, step_s: Interval) -> Figures:
    """Read the steady steps off the timeline."""
    multiplicity, span_s = replaying.multiplicity, steady.span_s
    ranks = sum(multiplicity.values())
    covered = steady.played.busy_s(steady.start_s)
    busy = sum(n * covered[r][0] for r, n in multiplicity.items()) / ranks / span_s
    either = sum(n * covered[r][1] for r, n in multiplicity.items()) / ranks / span_s
    power = _power(replaying, steady, busy * ranks * span_s, either * ranks * span_s)
    energy_j = energy(step_s, power, replaying.cluster)
    cost, basis = money(step_s, energy_j, ranks, replaying.cluster, replaying.model)
    carbon = replaying.cluster.carbon_kg_per_j
    return Figures(
        step_s=step_s,
        samples_per_s=step_s.inverse(replaying.batch),
        energy_j=energy_j,
        cost_usd=cost,
        cost_basis=basis,
        carbon_kg=energy_j.times(carbon.value) if energy_j and carbon else None,
        utilisation=min(busy, 1.0),
        exposed_communication=max(min(either, 1.0) - busy, 0.0),
        bubble=max(1.0 - either, 0.0),
        power=power,
    )


def _power(replaying: _Replaying, steady: _Steady, computing_s: float, occupied_s: float) -> NodePower | None:
    """Mean power of the nodes through a steady step."""
    steps = range(steady.played.steps - steady.period, steady.played.steps)
    tasks = (
        (times * replaying.counts[role.name][i.id] * sum(map(i.runs_in, steps)), replaying.estimates[rank][i.id])
        for rank, times in replaying.multiplicity.items()
        for role in (replaying.program.role_of(rank),)
        for i in role.instructions
        if i.kind is Kind.COMPUTE
    )
    return node_power(
        replaying.cluster,
        tasks,
        ranks=sum(replaying.multiplicity.values()),
        span_s=steady.span_s,
        computing_s=computing_s,
        occupied_s=occupied_s,
    )


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
