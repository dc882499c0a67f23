"""The verb `plan`: search, annotate the model with the winner's cut, and write a plan that a person can approve.

Three files come of it, side by side: PLAN.json, the ONNX++ file with every operator's stage and segment (PLAN.onnx), and the simulated
trace (PLAN.trace.jsonl) that a run is later held against.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import PlanError
from ..hwprofiles import Cluster
from ..models.cost import CostModel
from ..models.onnxpp import Onnxpp, annotate, save_onnxpp
from ..models.plan import HashedFile, Plan, Recipe, file_sha256, load_recipe, write_plan
from ..models.trace import write_trace
from ..sim import Candidate, Search, build, search
from ..sim.search import Objective

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["PlanResult", "plan"]


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """A written plan, the candidate that it follows, and the search that it came from."""

    path: Path
    plan: Plan
    chosen: Candidate
    search: Search

    def to_frame(self) -> pd.DataFrame:
        """One row a candidate."""
        return self.search.to_frame()

    def plot(self) -> Figure:
        """The chosen candidate's Gantt chart."""
        assert self.chosen.simulation is not None
        return self.chosen.simulation.plot()


def plan(
    model: Onnxpp,
    *,
    on: Cluster,
    batch: int,
    out: str | Path,
    objective: Objective = "time",
    recipe: Recipe | str | Path | None = None,
    ranks: int | None = None,
    solver: str = "synchronous",
    precision: str | None = None,
    choose: int = 1,
    max_restarts: int = 3,
    cost_model: CostModel | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PlanResult:
    """Search for the best way to train `model` on `on`, and write it to `out`.

    batch       samples per optimiser update over all ranks
    recipe      the training, or the TOML file that says it; its data is checked against the model
    ranks       only strategies with so many ranks
    precision   of a prediction; a plan that is to be executed has the recipe's
    choose      take this place of the ranking (1: the winner)

    Raises:
        PlanError: nothing fits, the recipe is wrong, or `choose` is beyond the ranking.
        DataError: the recipe's data does not fit the model.
    """
    path = Path(out).resolve()
    written = Path(recipe) if isinstance(recipe, str | Path) else None
    training = load_recipe(written) if written else recipe if isinstance(recipe, Recipe) else Recipe()
    if written:
        training = training.moved(written.resolve().parent, path.parent)
    samples, data_sha256 = _check_data(model, training, path.parent)
    found = search(
        model.graph,
        on,
        batch=batch,
        objective=objective,
        model=cost_model,
        optimizer=training.optimizer.name,
        precision=precision or training.precision,
        solver=solver,
        ranks=ranks,
        samples_per_epoch=training.train_samples(samples) if samples else None,
    )
    if not 1 <= choose <= len(found.ranked):
        raise PlanError(f"There are {len(found.ranked)} ranked combinations; `--choose {choose}` is none of them.")
    chosen = found.ranked[choose - 1]
    assert chosen.simulation is not None
    return _write(model, on, training, chosen, found, path, data_sha256, objective, max_restarts, cost_model)


def _check_data(model: Onnxpp, recipe: Recipe, folder: Path) -> tuple[int | None, str | None]:
    """(samples, hash) of the recipe's data, after it was found to fit; (None, None) where the recipe names none."""
    if recipe.data.source is None:
        return None, None
    from ..exec.data import check_dataset, data_sha256, open_dataset

    dataset = open_dataset(recipe.data, base_folder=folder)
    check_dataset(dataset, model.graph, scale=recipe.data.scale, precision=recipe.precision)
    return dataset.samples, data_sha256(recipe.data.source, base_folder=folder)


def _write(
    model: Onnxpp,
    on: Cluster,
    recipe: Recipe,
    chosen: Candidate,
    found: Search,
    path: Path,
    data_sha256: str | None,
    objective: Objective,
    max_restarts: int,
    cost_model: CostModel | None,
) -> PlanResult:
    strategy, simulation = chosen.strategy, chosen.simulation
    assert simulation is not None
    cut, _ = build(model.graph, on, strategy, model=cost_model, optimizer=recipe.optimizer.name)
    told = json.dumps([strategy.model_dump(mode="json"), sorted(cut.segments.items())])
    configuration = f"hpdlf-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    annotated = annotate(
        model, configuration=configuration, stages=cut.stages, segments=cut.segments, n_devices=strategy.ranks
    )
    onnx_path = path.with_suffix(".onnx")
    save_onnxpp(annotated, onnx_path)
    write_trace(simulation.trace, path.with_suffix(".trace.jsonl"))
    external = sorted({e.value for t in annotated.proto.graph.initializer for e in t.external_data if e.key == "location"})
    result = Plan(
        configuration=configuration,
        model=HashedFile(path=onnx_path.name, sha256=file_sha256(onnx_path)),
        external=tuple(HashedFile(path=e, sha256=file_sha256(path.parent / e)) for e in external),
        data_sha256=data_sha256,
        cluster=on.name,
        cluster_sha256=on.sha256,
        cluster_toml=on.to_toml(),
        strategy=strategy,
        recipe=recipe,
        placement=tuple(range(strategy.ranks)),
        max_restarts=max_restarts,
        objective=objective,
        reason=found.reason if chosen is found.best else f"Chosen by hand. {found.reason}",
        prediction=simulation.to_dict(),
    )
    write_plan(result, path)
    return PlanResult(path=path, plan=result, chosen=chosen, search=found)
