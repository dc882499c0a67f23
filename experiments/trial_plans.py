"""Plans of trainings that are run to be measured: the experiment says the strategy, and approves what it wrote itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..hwprofiles import Cluster
from ..models.cost import CostModel
from ..models.onnxpp import Onnxpp, annotate, save_onnxpp
from ..models.onnxpp.hints import Hints, with_hints
from ..models.plan import HashedFile, Plan, Recipe, Strategy, file_sha256, write_approval, write_plan
from ..sim import build

__all__ = ["write_trial_plan"]


def write_trial_plan(
    model: Onnxpp,
    cluster: Cluster,
    strategy: Strategy,
    recipe: Recipe,
    folder: Path,
    *,
    trial: str,
    hints: Hints | None = None,
    cost_model: CostModel | None = None,
    **fields: Any,
) -> None:
    """Write plan.json, its approval and model.onnx into `folder`, where the data of the recipe lie already.

    trial        the plan's configuration, and who approves it
    hints        how operators are computed; None: as is expected to be fastest
    cost_model   by which layers are cut into segments
    fields       of the plan, beside those that follow from the rest
    """
    from ..exec.data import data_sha256

    cut, _ = build(model.graph, cluster, strategy, model=cost_model, optimizer=recipe.optimizer.name)
    placed = annotate(model, configuration=trial, stages=cut.stages, segments=cut.segments, n_devices=strategy.ranks)
    save_onnxpp(with_hints(placed, trial, hints or {}), folder / "model.onnx")
    plan = Plan(
        configuration=trial,
        model=HashedFile(path="model.onnx", sha256=file_sha256(folder / "model.onnx")),
        data_sha256=data_sha256(str(recipe.data.source), base_folder=folder),
        cluster=cluster.name,
        cluster_sha256=cluster.sha256,
        cluster_toml=cluster.to_toml(),
        strategy=strategy,
        recipe=recipe,
        placement=tuple(range(strategy.ranks)),
        **fields,
    )
    write_plan(plan, folder / "plan.json")
    write_approval(folder / "plan.json", approved_by=trial, data_sha256=plan.data_sha256)
