"""Learning from a run: its tasks become observations, the cost model is fitted again, the plan is predicted again, and
what else the database shows is said: what got better, what drifted, whom it helps.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError
from ..hwprofiles import Device, load_device
from ..hwprofiles.loader import profile_files
from ..models.cost import CostModel, Drift, FitReport, ObservationDatabase
from ..models.cost.relatives import kin_of_device
from ..models.trace import Trace, write_trace
from ..sim import Interval, Simulation, simulate_program
from .compare import ClassRow, Comparison, StepTimes, compare
from .observing import observe
from .recorded import Recorded, read_run

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["Refinement", "observe", "refine"]

MOST_NAMES = 4
# Factors that move by less are not worth a word.
WORTH_TELLING = 0.01


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """What a run taught.

    predicted_before    step time that the plan was approved on; predicted_after: what the refined model says
    before, after       both predictions beside the measured trace, class by class
    observations        workloads that went into the database
    reports             how well each device's and link's factors explain all observations in the database
    drifts              what changed on the devices and links of this run, or is slower on one of its nodes
    helped              whom these measurements help, in sentences
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
    drifts: tuple[Drift, ...]
    helped: tuple[str, ...]
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

    def findings(self) -> tuple[str, ...]:
        """In sentences: how well each device and link is now explained, what drifted, and whom it helps."""
        found = []
        for report in self.reports:
            left_out = (
                "" if report.left_out is None else f", {report.left_out:.0%} where each is predicted by the others"
            )
            found.append(
                f"{report.subject}: median error over {report.observations} workload{'s' * (report.observations > 1)} "
                f"{report.before:.0%} by what ships, "
                f"{report.after:.0%} refined{left_out}; noise ± {report.noise:.0%}"
            )
        return (*found, *(f"Drift: {drift}" for drift in self.drifts), *self.helped)

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
    subjects = {o.subject for o in found}
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
        reports=tuple(r for r in model.reports if r.subject in subjects),
        drifts=tuple(d for d in model.drifts if d.subject in subjects),
        helped=_helped(run.cluster.device, model),
        simulation=simulation,
    )


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


def _helped(device: Device, model: CostModel) -> tuple[str, ...]:
    """Whom the measurements of `device` help: others of its architecture, and by how much."""
    if not device.architecture:
        return ()
    others = [
        name
        for name, _ in profile_files("device")
        if (kin := load_device(name)).architecture == device.architecture
        and kin.vendor == device.vendor
        and name != device.name
    ]
    if not others:
        return ()
    sibling = kin_of_device(device)._replace(name="")
    moved = []
    for subject, component in sorted(model.factors.learned):
        prior = model.factors.prior_factor(sibling.kind, component)
        ratio = model.relatives.factor(sibling, component, prior).value / prior.value
        if subject == device.name and abs(ratio - 1) >= WORTH_TELLING:
            moved.append(f"{component} x {ratio:.2f}")
    if not moved:
        return ()
    more = f" and {len(others) - MOST_NAMES} more" if len(others) > MOST_NAMES else ""
    named = ", ".join(others[:MOST_NAMES]) + more
    return (f"Others of architecture {device.architecture} are predicted with it too ({named}): {', '.join(moved)}.",)


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
