"""The verb `plan`: search, annotate the model with the winner's cut, and write a plan that a person can approve.

Three files come of it, side by side: PLAN.json, the ONNX++ file with every operator's stage and segment (PLAN.onnx),
and the simulated trace (PLAN.trace.jsonl) that a run is later held against.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ..errors import PlanError
from ..hwprofiles import Cluster
from ..models.cost import CostModel, ObservationDatabase
from ..models.onnxpp import Onnxpp, annotate, is_onnxpp, save_onnxpp
from ..models.onnxpp.hints import with_hints
from ..models.plan import HashedFile, Plan, Recipe, Strategy, file_sha256, load_recipe, write_plan
from ..models.trace import write_trace
from ..sim import Candidate, Search, Simulation, build, search, simulate_program
from ..sim.search import Objective
from .hinting import EXECUTED, Hinted, hint_lowerings
from .narrowing import narrowed_search

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["PlanResult", "plan"]


@dataclass(frozen=True, kw_only=True)
class PlanResult:
    """A written plan, its prediction, the candidate that it follows, and the search that it came from.

    hinted   how each convolution is computed, as the planned model says
    """

    path: Path
    plan: Plan
    simulation: Simulation
    chosen: Candidate
    search: Search
    hinted: Hinted

    def to_frame(self) -> pd.DataFrame:
        """One row a candidate."""
        return self.search.to_frame()

    def plot(self) -> Figure:
        """The chosen candidate's Gantt chart."""
        return self.simulation.plot()


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
    data: int | None = None,
    pipeline: int | None = None,
    microbatches: int | None = None,
    schedule: str | None = None,
    choose: int = 1,
    max_restarts: int = 3,
    cost_model: CostModel | None = None,
    timed: ObservationDatabase | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PlanResult:
    """Search for the best way to train `model` on `on`, and write it to `out`.

    batch       samples per optimiser update over all ranks
    recipe      the training, or the TOML file that says it; its data is checked against the model. A recipe without
                data makes a plan that can be looked at but not trained
    ranks       only strategies with so many ranks
    data, pipeline, microbatches, schedule   fix a part of the strategy; what is left out is searched
    precision   None: the recipe's
    choose      take this place of the ranking (1: the winner)
    timed       holds what `hpdlf tune` measured, from which operators are told how to compute; None: by what is expected
    progress    told of (combinations simulated, all)

    Raises:
        PlanError: nothing fits, the recipe is wrong, `choose` is beyond the ranking, or a file would be overwritten.
        DataError: the recipe's data does not fit the model.
    """
    path = Path(out).resolve()
    if objective not in get_args(Objective):
        raise PlanError(f"There is no objective {objective!r}: use `--objective` {', '.join(get_args(Objective))}.")
    if batch < 1:
        raise PlanError(f"A batch of {batch} samples cannot be: use `--batch` with 1 or more.")
    training = _training(recipe, path.parent, precision)
    _check_place(path, recipe)
    samples, data_sha256 = _check_data(model, training, path.parent, precision)
    options: dict[str, Any] = {
        "batch": batch,
        "objective": objective,
        "model": cost_model,
        "optimizer": training.optimizer.name,
        "precision": precision or training.precision,
        "solver": solver,
        "ranks": ranks,
        "samples_per_epoch": training.train_samples(samples) if samples else None,
    }
    if samples:
        training.total_steps(samples=samples, batch=batch)  # raises where the data does not fill one batch
    parts = {"data": data, "pipeline": pipeline, "microbatches": microbatches, "schedule": schedule}
    fixed = {name: value for name, value in parts.items() if value is not None}
    _check_executable({**fixed, "solver": solver, "precision": options["precision"]})
    if progress:
        options["progress"] = progress
    found = narrowed_search(model.graph, on, fixed=fixed, **options) if fixed else search(model.graph, on, **options)
    if not 1 <= choose <= len(found.ranked):
        places = f"choose 1 to {len(found.ranked)}" if len(found.ranked) > 1 else "there is only 1"
        raise PlanError(f"`--choose {choose}` is no place of the ranking: {places}.")
    return _write(
        model, on, training, found, choose, fixed, path, samples, data_sha256, max_restarts, cost_model, timed
    )


def _check_executable(parts: Mapping[str, object]) -> None:
    """That the executor can run a strategy with these parts."""
    beyond = Strategy.model_construct(batch=1, **parts).simulated_only  # type: ignore[arg-type]
    if beyond:
        left_out = " and ".join(f"`--{what.split()[0]}`" for what in beyond)
        raise PlanError(
            f"A plan is for running, and {' and '.join(beyond)} can only be simulated so far: leave {left_out} out, or "
            "predict it with `hpdlf simulate`."
        )


def _training(recipe: Recipe | str | Path | None, folder: Path, precision: str | None) -> Recipe:
    """The recipe for a plan in `folder`: relative paths still lead to the data, its precision is that of the plan."""
    if isinstance(recipe, str | Path):
        training = load_recipe(recipe).moved(Path(recipe).resolve().parent, folder)
    else:
        training = (recipe or Recipe()).moved(Path.cwd(), folder)
    if precision is None or precision == training.precision or precision not in EXECUTED:
        return training
    if "precision" in training.model_fields_set:
        raise PlanError(
            f"`--precision {precision}` contradicts the recipe, which says {training.precision}: leave the option out, "
            "or correct the recipe."
        )
    return training.model_copy(update={"precision": precision})


def _check_place(path: Path, recipe: Recipe | str | Path | None) -> None:
    """That writing the plan and what belongs to it overwrites nothing but an earlier plan's files."""
    if path.is_dir():
        raise PlanError(f"{path} is a folder: name a file in it, `-o {path / 'plan.json'}`.")
    if path.suffix in (".onnx", ".toml", ".npz") or (isinstance(recipe, str | Path) and Path(recipe).resolve() == path):
        name = path.with_suffix(".json").name
        raise PlanError(f"A plan is a JSON file, and {path.name} is no name for one: use `-o {name}`.")
    model = path.with_suffix(".onnx")
    if model.exists() and not _from_plan(path, model):
        raise PlanError(
            f"{model} exists and belongs to no earlier plan {path.name}; the planned model would take its place: "
            f"choose another name, `-o {path.stem}-plan.json` say."
        )


def _from_plan(path: Path, model: Path) -> bool:
    """Whether `model` is an ONNX++ file that the plan in `path` names."""
    try:
        named = json.loads(path.read_text())["model"]["path"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(named == model.name) and is_onnxpp(model)


def _check_data(model: Onnxpp, recipe: Recipe, folder: Path, precision: str | None) -> tuple[int | None, str | None]:
    """(samples, hash) of the recipe's data, after it was found to fit; (None, None) where the recipe names none."""
    if recipe.data.source is None:
        return None, None
    if precision is not None and precision not in EXECUTED:
        raise PlanError(
            f"Training runs in {' or '.join(EXECUTED)}, {precision} can only be simulated: leave `--precision` out, or "
            "plan without data in the recipe."
        )
    from ..exec.data import check_dataset, data_sha256, open_dataset

    sources = [recipe.data.source, *([recipe.evaluation.source] if recipe.evaluation.source else [])]
    counts = []
    for source in sources:
        dataset = open_dataset(recipe.data, base_folder=folder, source=source)
        check_dataset(dataset, model.graph, scale=recipe.data.scale, precision=recipe.precision)
        counts.append(dataset.samples)
    return counts[0], data_sha256(recipe.data.source, recipe.evaluation.source, base_folder=folder)


def _write(
    model: Onnxpp,
    on: Cluster,
    recipe: Recipe,
    found: Search,
    choose: int,
    fixed: Mapping[str, object],
    path: Path,
    samples: int | None,
    data_sha256: str | None,
    max_restarts: int,
    cost_model: CostModel | None,
    timed: ObservationDatabase | None,
) -> PlanResult:
    chosen = found.ranked[choose - 1]
    strategy, optimizer = chosen.strategy, recipe.optimizer.name
    # The program that will run, checkpoints included, so that a run's tasks are found in the prediction by their ids.
    cut, program = build(
        model.graph, on, strategy, model=cost_model, optimizer=optimizer, checkpoint_every=recipe.checkpoint_every
    )
    simulation = simulate_program(
        program,
        model.graph,
        on,
        model=cost_model,
        precision=strategy.precision,
        optimizer=optimizer,
        strategy=str(strategy),
        samples_per_epoch=recipe.train_samples(samples) if samples else None,
    )
    told = json.dumps([model.source_sha256, strategy.model_dump(mode="json"), sorted(cut.segments.items())])
    configuration = f"hpdlf-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
    annotated = annotate(
        model, configuration=configuration, stages=cut.stages, segments=cut.segments, n_devices=strategy.ranks
    )
    hinted = hint_lowerings(model.graph, on, strategy, timed)
    annotated = with_hints(annotated, configuration, hinted.hints)
    onnx_path = path.with_suffix(".onnx")
    external = _external(annotated, path.parent)
    save_onnxpp(annotated, onnx_path)
    result = Plan(
        configuration=configuration,
        model=HashedFile(path=onnx_path.name, sha256=file_sha256(onnx_path)),
        external=tuple(HashedFile(path=name, sha256=file_sha256(path.parent / name)) for name in external),
        data_sha256=data_sha256,
        cluster=on.name,
        cluster_sha256=on.sha256,
        cluster_toml=on.to_toml(),
        strategy=strategy,
        recipe=recipe,
        placement=tuple(range(strategy.ranks)),
        max_restarts=max_restarts,
        objective=found.objective,
        reason=_reason(found, choose, fixed),
        prediction=json.loads(json.dumps(simulation.to_dict())),  # as it will be read
    )
    try:
        write_trace(simulation.trace, path.with_suffix(".trace.jsonl"))
    except OSError as error:
        raise PlanError(
            f"{path}: the trace beside the plan cannot be written: {error.strerror}. Choose another place with "
            "`-o FILE`."
        ) from None
    write_plan(result, path)
    return PlanResult(path=path, plan=result, simulation=simulation, chosen=chosen, search=found, hinted=hinted)


def _external(model: Onnxpp, folder: Path) -> list[str]:
    """The files of external weights by their places, which must be in the plan's folder to be run from there."""
    entries = (entry for tensor in model.proto.graph.initializer for entry in tensor.external_data)
    names = sorted({entry.value for entry in entries if entry.key == "location"})
    for name in names:
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            raise PlanError(
                f"The weights {name} lie outside the plan's folder {folder}, and a run reads nothing outside it: put "
                "them beside the model, save it with that location, and import it again."
            )
    return names


def _reason(found: Search, choose: int, fixed: Mapping[str, object]) -> str:
    words = []
    if fixed:
        words.append(f"Asked for: {', '.join(f'{name} {value}' for name, value in fixed.items())}.")
    if choose > 1:
        words.append(f"Number {choose} of the ranking was chosen by hand: {found.ranked[choose - 1].strategy}.")
    return " ".join([*words, found.reason])
