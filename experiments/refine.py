"""Learning from a run: its tasks become observations, the cost model is fitted again, the plan is predicted again.

What a task took is counted from when it could have begun (what the machine needs to dispatch it belongs to it), without
its wait for partners, and without what the device spent on communication meanwhile where it cannot hide it (the
simulator adds that back, see ``communication_overlap``).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..models.cost import CostModel, FitReport, Observation, ObservationDatabase, Workload
from ..models.program import Kind
from ..models.trace import Event, Trace, write_trace
from ..sim import Interval, Pricing, Simulation, simulate_program
from ..sim.timeline import Working, from_ready, steps, working
from .compare import ClassRow, Comparison, StepTimes, compare
from .recorded import Recorded, read_run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Refinement", "observe", "refine"]

# Of what a task took, at least this much is its own, however much communication went on meanwhile.
LEAST_OWN = 0.05


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """What a run taught.

    predicted_before    step time that the plan was approved on; predicted_after: what the refined model says
    before, after       both predictions beside the measured trace, class by class
    observations        workloads that went into the database
    reports             how well each device's and link's factors explain all observations in the database
    simulation          of the plan, by the refined model
    """

    run: str
    strategy: str
    cluster: str
    observations: int
    predicted_before: Interval
    predicted_after: Interval
    before: Comparison
    after: Comparison
    reports: tuple[FitReport, ...]
    simulation: Simulation

    @property
    def measured(self) -> StepTimes:
        """The measured steps."""
        return self.after.measured

    @property
    def error_before(self) -> float | None:
        """Predicted over measured step time, minus 1."""
        return _error(self.predicted_before, self.measured)

    @property
    def error_after(self) -> float | None:
        """See `error_before`."""
        return _error(self.predicted_after, self.measured)

    def lines(self) -> tuple[str, ...]:
        """The headline in two lines, before and after.

        Each reads ``step time: predicted 12.3 ms, measured 11.9 ms (+3.4 %)``.
        """
        found = []
        measured_s = self.measured.median_s
        for when, predicted, error in (
            ("before refinement", self.predicted_before, self.error_before),
            ("after refinement", self.predicted_after, self.error_after),
        ):
            beside = "nothing measured"
            if measured_s is not None and error is not None:
                beside = f"measured {measured_s * 1e3:.4g} ms ({100 * error:+.1f} %)"
            found.append(f"step time: predicted {predicted.value * 1e3:.4g} ms, {beside} {when}")
        noise = self.measured.noise
        if noise is not None:
            found.append(f"noise between {self.measured.count} measured steps: ± {100 * noise:.1f} %")
        return tuple(found)

    def to_frame(self) -> pd.DataFrame:
        """One row a class of tasks: predicted before and after, measured, and the errors; the largest share first."""
        import pandas as pd

        later = {(r.kind, r.phase, r.instruction): r for r in self.after.rows}
        earlier = {(r.kind, r.phase, r.instruction): r for r in self.before.rows}
        rows = []
        for key, row in later.items():
            old: ClassRow | None = earlier.get(key)
            rows.append(
                {
                    "kind": row.kind,
                    "phase": row.phase,
                    "instruction": row.instruction,
                    "count": row.count,
                    "share": row.share,
                    "measured_s": row.measured_s,
                    "noise": _spread(row),
                    "predicted_before_s": old.predicted_s if old else None,
                    "predicted_after_s": row.predicted_s,
                    "error_before": old.error if old else None,
                    "error_after": row.error,
                }
            )
        return pd.DataFrame(rows)

    def plot(self) -> Figure:
        """Step times with their intervals, and the error of every class before and after."""
        from .refine_plot import draw

        return draw(self)


def refine(run_folder: str | Path, database: str | Path | None = None) -> Refinement:
    """Take a run into the database of observations, fit the cost model again, and predict the run's plan again.

    database   None: the default one. A run that is in it already is replaced: refining twice changes nothing.

    The refined prediction is kept as RUN/refined.trace.jsonl, for the report.

    Raises:
        RunError: the folder holds no run.
        DataError: it measured nothing, or the database cannot be used.
    """
    run = read_run(run_folder)
    if run.measured is None:
        raise DataError(
            f"{run.folder.path} holds no trace of its plan: the run wrote none. Train it with "
            f"`hpdlf train PLAN --out {run.folder.path}`."
        )
    store = ObservationDatabase(Path(database)) if database is not None else ObservationDatabase()
    predicted = run.predicted or _predict(run, _without(store, run.name)).trace
    found = observe(run)
    store.add(found)
    model = CostModel.load(store.path)
    simulation = _predict(run, model)
    about = {**simulation.trace.about, "step_s": asdict(simulation.figures.step_s), "observations": len(found)}
    write_trace(Trace(source="simulated", events=simulation.trace.events, about=about), run.refined_path)
    return Refinement(
        run=run.name,
        strategy=str(run.plan.strategy),
        cluster=run.plan.cluster,
        observations=len(found),
        predicted_before=_planned_step(run, predicted),
        predicted_after=simulation.figures.step_s,
        before=compare(predicted, run.measured, run.program),
        after=compare(simulation.trace, run.measured, run.program),
        reports=model.reports,
        simulation=simulation,
    )


def observe(run: Recorded) -> tuple[Observation, ...]:
    """What the steady steps of a run say of its workloads: one observation each, over steps, microbatches and ranks.

    Raises:
        DataError: the trace has no step beside each attempt's first, which compiles.
    """
    assert run.measured is not None
    plan, program = run.plan, run.program
    pricing = Pricing(
        program=program,
        graph=run.graph,
        cluster=run.cluster,
        model=CostModel.default(),
        precision=plan.strategy.precision,
        optimizer=plan.recipe.optimizer.name,
    )
    seconds, workloads = _by_workload(run.measured, pricing)
    if not seconds:
        raise DataError(
            f"{run.folder.path}: only first steps were measured, and they compile: train at least two steps, better "
            "ten, and refine again."
        )
    about = run.about
    versions = about.get("versions") or {}
    ended = str(about.get("ended") or about.get("started") or "")
    return tuple(
        Observation.of(
            workloads[key],
            samples_s,
            run=run.name,
            plan=str(about.get("plan_sha256") or ""),
            machine=_machine(about.get("machine"), "fingerprint"),
            host=_machine(about.get("machine"), "name"),
            versions={str(k): str(v) for k, v in versions.items()} if isinstance(versions, Mapping) else {},
            time=ended,
        )
        for key, samples_s in seconds.items()
    )


WorkKey = tuple[str, str, str]


def _by_workload(trace: Trace, pricing: Pricing) -> tuple[dict[WorkKey, list[float]], dict[WorkKey, Workload]]:
    steady = {(s.attempt, s.number) for s in steps(trace) if s.left_out in ("", "checkpoint")}
    trace = from_ready(trace, pricing.program)
    when = working(trace)
    busy = _communicating(trace, when)
    exposed = 1.0 - float(pricing.cluster.device.communication_overlap)
    seconds: dict[WorkKey, list[float]] = {}
    workloads: dict[WorkKey, Workload] = {}
    kinds: dict[tuple[int, str], Workload | None] = {}
    for event in trace.events:
        if (event.attempt, event.step) not in steady or event.kind == Kind.RECEIVE:
            continue
        place = (event.rank, event.instruction)
        if place not in kinds:
            instruction = pricing.program.role_of(event.rank).instruction.get(event.instruction)
            kinds[place] = pricing.workload(event.rank, instruction) if instruction else None
        workload = kinds[place]
        if workload is None or not any(workload.components.values()):
            continue
        took_s = when[event].seconds
        if event.kind == Kind.COMPUTE and exposed:
            shared_s = _overlap(busy.get((event.attempt, event.rank), ((), ())), when[event])
            took_s = max(took_s - exposed * shared_s, LEAST_OWN * took_s)
        if took_s > 0:
            key = (workload.subject, workload.kind, workload.key)
            seconds.setdefault(key, []).append(took_s)
            workloads[key] = workload
    return seconds, workloads


Spans = tuple[tuple[float, ...], tuple[float, ...]]
"""Starts and ends of disjoint intervals, ascending."""


def _communicating(trace: Trace, when: Mapping[Event, Working]) -> dict[tuple[int, int], Spans]:
    """When each (attempt, rank) was sending, or in a collective that had gathered, or reaching into others' memory."""
    found: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in trace.events:
        if Kind(event.kind).communicates and event.kind != Kind.RECEIVE:
            found.setdefault((event.attempt, event.rank), []).append((when[event].start_s, when[event].end_s))
    merged: dict[tuple[int, int], Spans] = {}
    for key, spans in found.items():
        starts: list[float] = []
        ends: list[float] = []
        for start_s, end_s in sorted(spans):
            if ends and start_s <= ends[-1]:
                ends[-1] = max(ends[-1], end_s)
            else:
                starts.append(start_s)
                ends.append(end_s)
        merged[key] = (tuple(starts), tuple(ends))
    return merged


def _overlap(spans: Spans, span: Working) -> float:
    starts, ends = spans
    total = 0.0
    i = bisect_left(ends, span.start_s)
    while i < len(starts) and starts[i] < span.end_s:
        total += max(min(ends[i], span.end_s) - max(starts[i], span.start_s), 0.0)
        i += 1
    return total


def _predict(run: Recorded, model: CostModel) -> Simulation:
    return simulate_program(
        run.program,
        run.graph,
        run.cluster,
        model=model,
        precision=run.plan.strategy.precision,
        optimizer=run.plan.recipe.optimizer.name,
        strategy=str(run.plan.strategy),
    )


def _without(store: ObservationDatabase, run: str) -> CostModel:
    """The model as it was without this run, for a plan whose simulated trace was not kept."""
    return CostModel.fitted([o for o in store.all() if o.run != run])


def _planned_step(run: Recorded, predicted: Trace) -> Interval:
    """The step time in the plan; where a plan has none, that of its simulated trace."""
    said: Any = run.plan.prediction.get("figures", {}).get("step_s")
    if isinstance(said, dict):
        return Interval(**said)
    from .compare import step_times

    median_s = step_times(predicted).median_s
    if median_s is None:
        raise DataError(f"{run.folder.plan} holds no prediction: make it again with `hpdlf plan`.")
    return Interval(value=median_s, low=median_s, high=median_s, provenance="modelled")


def _error(predicted: Interval, measured: StepTimes) -> float | None:
    return predicted.value / measured.median_s - 1 if measured.median_s else None


def _spread(row: ClassRow) -> float | None:
    if row.count < 3 or not row.measured_s or row.low_s is None or row.high_s is None:
        return None
    return (row.high_s - row.low_s) / 2 / row.measured_s


def _machine(about: object, key: str) -> str:
    return str(about.get(key) or "") if isinstance(about, Mapping) else ""
