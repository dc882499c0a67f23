"""The search for a plan: enumerate what is admissible, estimate it, simulate what may be the best, rank it, and say why the winner wins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

from ..errors import PlanError
from ..hwprofiles import Cluster
from ..models.cost import CostModel
from ..models.cost.software import Software
from ..models.onnxpp import Graph
from ..models.plan import Strategy
from .cutting import Cutter
from .result import Figures, Interval, RoleMemory, Simulation
from .screening import FACTOR, screen
from .simulate import middle_figures, role_memory, simulate_program

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Candidate", "Objective", "Search", "search", "simulate", "strategies"]

Objective = Literal["time", "energy", "cost"]
MOST_STAGES = 16
BEST = 12  # so many of a search's candidates are simulated with their bounds at once


def simulate(
    graph: Graph,
    cluster: Cluster,
    strategy: Strategy,
    *,
    model: CostModel | None = None,
    software: Software | None = None,
    optimizer: str | None = "adam",
    training: bool = True,
    samples_per_epoch: int | None = None,
    fold: bool = True,
    contention: bool = False,
    jitter: float = 0.0,
    slowdown: Mapping[int, float] | None = None,
    seed: int = 0,
) -> Simulation:
    """Predict a step of `graph` on `cluster` as `strategy` says: see :func:`hpdlf.sim.simulate.simulate_program`.

    software    what computes and communicates (:func:`hpdlf.models.cost.software.load_software`); None: as the executor does
    optimizer   None: gradients alone, no update
    training    False: the forward pass alone
    """
    return _simulate(
        Cutter(graph, cluster, model or CostModel.default(), software),
        strategy,
        optimizer=optimizer,
        training=training,
        samples_per_epoch=samples_per_epoch,
        fold=fold,
        contention=contention,
        jitter=jitter,
        slowdown=slowdown,
        seed=seed,
    )


def _simulate(
    cutter: Cutter, strategy: Strategy, *, optimizer: str | None, training: bool = True, **options: Any
) -> Simulation:
    program = cutter.lower(strategy, optimizer=optimizer) if training else cutter.lower_evaluation(strategy)
    return simulate_program(
        program,
        cutter.local(strategy).graph,
        cutter.cluster,
        model=cutter.model,
        software=cutter.software,
        precision=strategy.precision,
        optimizer=optimizer or "sgd",
        mixed=strategy.mixed,
        strategy=str(strategy) + ("" if training else ", the forward pass alone"),
        **options,
    )


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A strategy and what became of it: a simulation, or the reason why it was refused.

    estimate_s   of a step, by which it was chosen for a simulation or set aside (:mod:`.screening`); None: not estimated
    figures   by which it was ranked: the bounds of the step's time are not computed, its value stands for them
    memory    of each role
    """

    strategy: Strategy
    refused: str = ""
    estimate_s: float | None = None
    figures: Figures | None = None
    memory: tuple[RoleMemory, ...] = ()
    complete: Callable[[], Simulation] | None = field(default=None, repr=False, compare=False)

    @cached_property
    def simulation(self) -> Simulation | None:
        """The whole simulation with its bounds, None if it was refused. That of the best few is there; that of any other is
        simulated when it is first asked for.
        """
        return self.complete() if self.complete else None

    def objective(self, objective: Objective) -> float | None:
        """Seconds, joules or dollars of one step; None where unknown."""
        if self.figures is None:
            return None
        f = self.figures
        interval = {"time": f.step_s, "energy": f.energy_j, "cost": f.cost_usd}[objective]
        return interval.value if interval else None


@dataclass(frozen=True, kw_only=True)
class Search:
    """All candidates: `ranked` by the objective, best first, those that were `refused` with the reason, and those that by their
    estimate cannot be the best and were `set_aside` without a simulation.
    """

    objective: Objective
    ranked: tuple[Candidate, ...]
    refused: tuple[Candidate, ...]
    set_aside: tuple[Candidate, ...] = ()

    @property
    def best(self) -> Candidate:
        """The winner."""
        return self.ranked[0]

    @property
    def reason(self) -> str:
        """Why the winner wins, in words."""
        return _reason(self)

    def to_frame(self) -> pd.DataFrame:
        """One row a candidate, the ranked first. Bounds are missing where they were not simulated, figures where refused."""
        import pandas as pd

        rows = [_row(c) for c in (*self.ranked, *self.set_aside, *self.refused)]
        return pd.DataFrame(rows, columns=list(dict.fromkeys(name for row in rows for name in row)))


def _row(candidate: Candidate) -> dict[str, Any]:
    strategy, f = candidate.strategy, candidate.figures
    row: dict[str, Any] = {"strategy": str(strategy), "ranks": strategy.ranks, "batch": strategy.batch}
    row["estimate_s"] = candidate.estimate_s
    if f is not None:
        simulation = vars(candidate).get("simulation")
        complete = f if simulation is None else simulation.figures
        for name in ("step_s", "samples_per_s", "energy_j", "cost_usd", "carbon_kg"):
            interval = getattr(complete, name)
            known = interval is not None and (simulation is not None or name in ("energy_j", "carbon_kg"))
            row[name] = interval.value if interval else None
            row[f"{name}_low"] = interval.low if known else None
            row[f"{name}_high"] = interval.high if known else None
        row |= {"utilisation": f.utilisation, "exposed_communication": f.exposed_communication, "bubble": f.bubble}
        row |= {"peak_bytes": max((m.peak_bytes for m in candidate.memory), default=None)}
        row |= {"provenance": f.step_s.provenance}
    return row | {"refused": candidate.refused}


def strategies(
    batch: int,
    devices: int,
    *,
    precision: str = "float32",
    solver: str = "synchronous",
    ranks: int | None = None,
    operators: int = MOST_STAGES,
    domain: int = 1,
    mixed: bool = False,
) -> Iterator[Strategy]:
    """The combinations worth a simulation: replicas and stages that are powers of two, or that divide the number of devices (of
    ranks, where it is given), as far as the batch divides.

    ranks       only those with exactly so many ranks
    operators   the graph's operators: no more stages than that
    domain      devices that a fast link joins: tensor parallelism over up to so many, sharded states and recomputation are
                tried as well where it is more than 1 (which only the simulator can do)
    mixed       with float32 copies of 16-bit parameters
    """
    for plain in _plain_strategies(
        batch, devices, precision=precision, solver=solver, ranks=ranks, operators=operators
    ):
        if domain == 1:
            if not ranks or plain.ranks == ranks:
                yield plain
        else:
            yield from _richer(plain, devices, ranks, domain, mixed)


def _richer(plain: Strategy, devices: int, ranks: int | None, domain: int, mixed: bool) -> Iterator[Strategy]:
    """`plain` with tensor parallelism, sharded states and recomputation, each where it can help."""
    fields = {**plain.model_dump(), "mixed": mixed}
    for tensor in (1 << i for i in range(domain.bit_length())):
        size = plain.ranks * tensor
        if tensor > domain or size > devices or (ranks and size != ranks):
            continue
        shares = plain.data > 1 and plain.solver == "synchronous"
        for zero in (0, 1, 3) if shares and plain.pipeline == 1 else (0, 1) if shares else (0,):
            for recompute in ("none", "full"):
                more = {"tensor": tensor, "sequence_parallel": tensor > 1, "zero": zero, "recompute": recompute}
                yield Strategy(**{**fields, **more})


def _plain_strategies(
    batch: int, devices: int, *, precision: str, solver: str, ranks: int | None, operators: int
) -> Iterator[Strategy]:
    """Data and pipeline parallelism alone."""
    powers = (1 << i for i in range(devices.bit_length()))
    divisors = (n for whole in {devices, ranks or 1} for n in range(1, whole + 1) if whole % n == 0)
    sizes = sorted({n for n in (*powers, *divisors) if n <= devices})
    for data in sizes:
        if batch % data:
            continue
        for pipeline in sizes:
            if (
                data * pipeline > devices
                or pipeline > min(MOST_STAGES, operators)
                or (ranks and ranks % (data * pipeline))
            ):
                continue
            if solver == "asynchronous" and (pipeline > 1 or data == 1):
                continue
            counts = [1, 2, 4, 8] if pipeline == 1 else [pipeline * k for k in (1, 2, 4)]
            for microbatches in counts:
                if (batch // data) % microbatches:
                    continue
                for schedule in ("1f1b",) if pipeline == 1 else ("1f1b", "gpipe"):
                    yield Strategy(
                        batch=batch,
                        data=data,
                        pipeline=pipeline,
                        microbatches=microbatches,
                        schedule=schedule,  # type: ignore[arg-type]
                        solver=solver,  # type: ignore[arg-type]
                        precision=precision,  # type: ignore[arg-type]
                    )


def search(
    graph: Graph,
    cluster: Cluster,
    *,
    batch: int,
    objective: Objective = "time",
    model: CostModel | None = None,
    optimizer: str = "adam",
    precision: str = "float32",
    solver: str = "synchronous",
    ranks: int | None = None,
    samples_per_epoch: int | None = None,
    among: Iterable[Strategy] | None = None,
    simulated_only: bool = False,
    exhaustive: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Search:
    """Simulate every admissible strategy that may be the best, and rank them.

    simulated_only   try tensor parallelism, sharded states and recomputation too, which the executor cannot run
    exhaustive  simulate those as well whose estimate says that they are not
    among      these strategies instead of all that :func:`strategies` yields for `batch`, `precision`, `solver`, `ranks`
    progress   called with (done, total) simulations as the search goes on

    Raises:
        PlanError: none fits, or the objective cannot be computed for any; the message says why.
    """
    model = model or CostModel.default()
    if ranks and ranks > cluster.n_devices:
        raise PlanError(
            f"{ranks} ranks were asked for, cluster {cluster.name} has {cluster.n_devices} devices "
            f"({cluster.n_nodes} nodes of {cluster.devices_per_node}): use `--ranks {cluster.n_devices}` or a larger cluster."
        )
    computing = sum(1 for o in graph.operators if o.family != "view")
    if among is None:
        among = strategies(
            batch,
            cluster.n_devices,
            precision=precision,
            solver=solver,
            ranks=ranks,
            operators=computing,
            domain=min(cluster.devices_per_domain, 8) if simulated_only else 1,
            mixed=simulated_only and precision in ("bfloat16", "float16", "float8"),
        )
    tried = list(among)
    if not tried:
        raise PlanError(
            f"No combination is possible: batch {batch} does not divide over "
            f"{ranks or cluster.n_devices} ranks of {cluster.name}. Choose a batch with more divisors, a power of two say."
        )
    done, total = 0, len(tried) + min(BEST, len(tried))

    def tell() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    cutter = Cutter(graph, cluster, model)
    candidates: list[Candidate] = []
    set_aside: list[Candidate] = []
    best: float | None = None
    for estimated in _in_order(cutter, tried, optimizer, objective):
        weight = _weight(estimated.strategy, cluster, objective)
        hopeless = best is not None and estimated.estimate_s is not None and weight is not None
        if hopeless and not exhaustive and estimated.estimate_s * weight > FACTOR * best:  # type: ignore[operator]
            set_aside.append(estimated)
        else:
            candidates.append(_try(cutter, estimated, optimizer, samples_per_epoch))
            figures = candidates[-1].figures
            if figures is not None and weight is not None:
                value = figures.step_s.value * weight
                best = value if best is None else min(best, value)
        tell()
    found = _ranked(graph, cluster, candidates, objective, tuple(set_aside))
    for candidate in found.ranked[:BEST]:
        _ = candidate.simulation
        tell()
    if progress and done < total:
        progress(total, total)
    return found


def _in_order(cutter: Cutter, tried: Sequence[Strategy], optimizer: str, objective: Objective) -> list[Candidate]:
    """All strategies with their estimates, those first that look best; what cannot be estimated comes first and is tried."""
    found = []
    for strategy in tried:
        try:
            found.append(Candidate(strategy=strategy, estimate_s=screen(cutter, strategy, optimizer=optimizer).step_s))
        except PlanError:  # the simulation says why
            found.append(Candidate(strategy=strategy))
    if objective == "energy":
        return found

    def key(candidate: Candidate) -> float:
        weight = _weight(candidate.strategy, cutter.cluster, objective)
        return (candidate.estimate_s or 0.0) * (weight or 1.0)

    return sorted(found, key=key)


def _weight(strategy: Strategy, cluster: Cluster, objective: Objective) -> float | None:
    """What the objective is proportional to, times the time of a step; None where that is not known beforehand."""
    if objective == "energy":
        return None
    return 1.0 if objective == "time" else float(-(-strategy.ranks // cluster.devices_per_node))


def _ranked(
    graph: Graph,
    cluster: Cluster,
    candidates: Sequence[Candidate],
    objective: Objective,
    set_aside: tuple[Candidate, ...] = (),
) -> Search:
    refused = tuple(c for c in candidates if c.refused)
    if len(refused) == len(candidates):
        reasons = "\n  ".join(f"{c.strategy}: {c.refused}" for c in refused[:8])
        raise PlanError(
            f"{graph.name} does not fit on {cluster.name} in any combination tried:\n  {reasons}\n"
            "Use a smaller batch or larger devices."
        )
    valued = [c for c in candidates if c.objective(objective) is not None]
    if not valued:
        raise PlanError(
            f"The {objective} of {graph.name} on {cluster.name} is unavailable: the cluster's profile lacks the power or "
            f"price that it needs. See `hpdlf profile show {cluster.name}`, or use `--objective time`."
        )
    # Ties: fewer devices, then the simpler strategy.
    valued.sort(key=lambda c: (c.objective(objective), c.strategy.ranks, c.strategy.pipeline, c.strategy.microbatches))
    return Search(objective=objective, ranked=tuple(valued), refused=refused, set_aside=set_aside)


def _try(cutter: Cutter, candidate: Candidate, optimizer: str, samples_per_epoch: int | None) -> Candidate:
    cluster, model, strategy = cutter.cluster, cutter.model, candidate.strategy
    try:
        program = cutter.lower(strategy, optimizer=optimizer)
        memory = role_memory(program, cluster)
        if crowded := next((m for m in memory if not m.fits), None):
            return replace(candidate, memory=memory, refused=_too_large(crowded))
        figures = middle_figures(
            program,
            cutter.local(strategy).graph,
            cluster,
            model=model,
            software=cutter.software,
            precision=strategy.precision,
            mixed=strategy.mixed,
            optimizer=optimizer,
        )
    except PlanError as error:
        return replace(candidate, refused=str(error))
    complete = partial(_simulate, cutter, strategy, optimizer=optimizer, samples_per_epoch=samples_per_epoch)
    return replace(candidate, figures=figures, memory=memory, complete=complete)


def _too_large(memory: RoleMemory) -> str:
    contents = ", ".join(f"{name} {nbytes / 1e9:.2f}" for name, nbytes in memory.by_content.items() if nbytes >= 5e6)
    return (
        f"{memory.role} needs {memory.peak_bytes / 1e9:.2f} GB ({contents}) at {memory.at}, "
        f"the device has {memory.capacity_bytes / 1e9:.2f} GB"
    )


_WORDS = {
    "time": ("fastest", "slower"),
    "energy": ("most frugal in energy", "more energy"),
    "cost": ("cheapest", "dearer"),
}


def _reason(found: Search) -> str:
    best = found.best
    assert best.figures is not None
    f = best.figures
    superlative, worse = _WORDS[found.objective]
    sentences = [
        f"{best.strategy} is the {superlative} of {len(found.ranked) + len(found.set_aside)} combinations that fit"
        + (f" ({len(found.refused)} do not)" if found.refused else "")
        + f": its {best.strategy.ranks} device{'s' if best.strategy.ranks > 1 else ''} compute {f.utilisation:.0%} of the "
        f"time, wait for communication {f.exposed_communication:.0%} and for each other {f.bubble:.0%}."
    ]
    if len(found.ranked) > 1:
        sentences += _beside_the_second(found, worse)
    return " ".join(sentences)


def _beside_the_second(found: Search, worse: str) -> list[str]:
    best, second = found.ranked[:2]
    ours, theirs = best.objective(found.objective), second.objective(found.objective)
    assert ours is not None
    assert theirs is not None
    assert best.simulation is not None
    assert second.simulation is not None
    f, s = best.simulation.figures, second.simulation.figures
    causes = {
        "computes less of the time": f.utilisation - s.utilisation,
        "waits more for communication": s.exposed_communication - f.exposed_communication,
        "waits more for other stages": s.bubble - f.bubble,
    }
    cause, size = max(causes.items(), key=lambda item: item[1])
    comparable = size > 0.005 and second.strategy.ranks == best.strategy.ranks
    more = f" because it {cause} ({size:+.0%} of the step)" if comparable else ""
    gap = theirs / ours - 1
    sentences = [f"The next, {second.strategy}, is {gap:.1%} {worse}{more}."]
    if _overlap(f.step_s, s.step_s) and gap > 0:
        sentences.append("Their intervals overlap: `hpdlf profile measure` and a refined model would tell them apart.")
    return sentences


def _overlap(a: Interval, b: Interval) -> bool:
    return a.low <= b.high and b.low <= a.high
