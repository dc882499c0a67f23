"""The verbs of the public API: what the command line and notebooks call, on paths or on objects.

Each takes a model as an :class:`Onnxpp` value or the path of an ONNX or ONNX++ file, and a cluster as a
:class:`Cluster` or its name.
"""

from __future__ import annotations

import getpass
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ApprovalError, ModelError
from ..hwprofiles import Cluster, load_region
from ..hwprofiles import load_cluster as read_cluster
from ..models.onnxpp import Graph, Onnxpp, import_model, is_onnxpp, load_onnxpp, work
from ..models.plan import Approval, Strategy, file_sha256, load_plan, write_approval

if TYPE_CHECKING:
    from ..exec.microbenchmarks import Measurement
    from ..models.cost import CostModel
    from ..sim import Search, Simulation
    from .planning import PlanResult
    from .whatif import WhatIf

__all__ = [
    "approve",
    "cluster_of",
    "counts",
    "export",
    "load_model",
    "measure",
    "plan",
    "search",
    "simulate",
    "steps_of",
    "whatif",
]

Model = Onnxpp | str | Path


def load_model(
    model: Model,
    *,
    loss: str | None = None,
    allow_external: Iterable[str | Path] = (),
    bind: Mapping[str, int] | None = None,
    loss_optional: bool = False,
) -> Onnxpp:
    """An ONNX++ file as it is; any other ONNX file is imported, with the `loss` appended if it has none.

    bind            sizes of symbolic dimensions besides the batch
    loss_optional   go without the loss where none can be appended, or where there is nothing to train

    Raises:
        ModelError: the file is no ONNX model that can be used.
    """
    if isinstance(model, Onnxpp):
        return model
    path = Path(model)
    if is_onnxpp(path):
        return load_onnxpp(path, allow_external=allow_external)
    return import_model(
        path, loss=loss, allow_external=allow_external, bind=bind, without_weights=True, loss_optional=loss_optional
    )


def counts(graph: Graph, *, batch: int) -> dict[str, Any]:
    """What a model's operators do for `batch` samples, as plain values: FLOPs, bytes, parameters, shapes.

    `activation_bytes` are those of an operator's results, `intensity` is FLOPs of the forward pass by bytes that it moves
    (None where it moves nothing), `on_host` says that XLA cannot compile it.
    """
    from ..models.onnxpp.host import on_host

    trained = graph.trainable
    rows = []
    for operator in graph.operators:
        row: dict[str, Any] = {"name": operator.name, "op_type": operator.op_type, "family": operator.family}
        for phase in ("forward", "backward"):
            row[phase] = work(operator, graph, batch=batch, phase=phase)._asdict()
        row["parameters"] = sum(graph.tensors[i].elements(1) for i in dict.fromkeys(operator.inputs) if i in trained)
        row["parameter_bytes"] = sum(graph.tensors[i].nbytes(1) for i in dict.fromkeys(operator.inputs) if i in trained)
        results = [graph.tensors[t] for t in operator.outputs if t in graph.tensors]
        row["activation_bytes"] = sum(tensor.nbytes(batch) for tensor in results)
        moved = row["forward"]["read_bytes"] + row["forward"]["write_bytes"]
        row["intensity"] = row["forward"]["flops"] / moved if moved else None
        row["on_host"] = on_host(operator.op_type, operator.domain)
        row["results"] = {t: [str(d) for d in graph.tensors[t].shape] for t in operator.outputs if t in graph.tensors}
        rows.append(row)
    return {
        "name": graph.name,
        "batch": batch,
        "parameters": graph.parameter_count,
        "parameter_bytes": graph.parameter_bytes(),
        "inputs": list(graph.inputs),
        "targets": list(graph.targets),
        "loss": graph.loss,
        "operators": rows,
    }


def cluster_of(
    on: Cluster | str,
    *,
    power_limit_w: float | None = None,
    clock_hz: float | None = None,
    price: str | None = None,
    region: str | None = None,
) -> Cluster:
    """A cluster by name or path, perhaps with its devices capped, at another kind of price, in another region.

    Raises:
        ProfileError: there is no such cluster, price or region.
    """
    found = on if isinstance(on, Cluster) else read_cluster(on)
    if price is not None:
        found = found.priced(price)
    if region is not None:
        found = found.in_region(load_region(region))
    return found.limited(limit_w=power_limit_w, clock_hz=clock_hz)


def _costs(database: str | Path | None) -> CostModel:
    from ..models.cost import CostModel

    return CostModel.load(database)


def simulate(
    model: Model,
    *,
    on: Cluster | str,
    batch: int,
    loss: str | None = "softmax_xent",
    allow_external: Iterable[str | Path] = (),
    optimizer: str = "adam",
    samples: int | None = None,
    database: str | Path | None = None,
    fold: bool = True,
    slowdown: dict[int, float] | None = None,
    bind: Mapping[str, int] | None = None,
    **strategy: Any,
) -> Simulation:
    """Predict training `model` on a cluster as a strategy says; what cannot be trained is run forward alone.

    bind       sizes of symbolic dimensions besides the batch
    samples    in one epoch, for figures of epochs
    strategy   fields of :class:`hpdlf.Strategy`: data, pipeline, microbatches, schedule, solver, precision,
               bucket_bytes

    Raises:
        PlanError: the strategy does not divide, does not fit the cluster, or the model has no loss.
    """
    from ..models.onnxpp.gradients import trained_in_vain
    from ..sim import simulate as run

    graph = load_model(model, loss=loss, allow_external=allow_external, bind=bind, loss_optional=True).graph
    return run(
        graph,
        cluster_of(on),
        Strategy.of(batch=batch, **strategy),
        training=graph.loss is not None and bool(graph.parameters) and not trained_in_vain(graph),
        model=_costs(database),
        optimizer=optimizer,
        samples_per_epoch=samples,
        fold=fold,
        slowdown=slowdown,
    )


def search(
    model: Model,
    *,
    on: Cluster | str,
    batch: int,
    loss: str | None = "softmax_xent",
    database: str | Path | None = None,
    **options: Any,
) -> Search:
    """Simulate every admissible strategy and rank them; `options` as :func:`hpdlf.sim.search`."""
    from ..sim import search as run

    return run(load_model(model, loss=loss).graph, cluster_of(on), batch=batch, model=_costs(database), **options)


def plan(
    model: Model,
    *,
    on: Cluster | str,
    batch: int,
    out: str | Path = "plan.json",
    loss: str | None = "softmax_xent",
    allow_external: Iterable[str | Path] = (),
    database: str | Path | None = None,
    **options: Any,
) -> PlanResult:
    """Search for the best way to train `model`, and write it; `options` as :func:`hpdlf.experiments.planning.plan`."""
    from ..models.cost import ObservationDatabase
    from .planning import plan as write

    return write(
        _with_weights(model, loss, allow_external),
        on=cluster_of(on),
        batch=batch,
        out=out,
        cost_model=_costs(database),
        timed=ObservationDatabase(Path(database)) if database else ObservationDatabase(),
        **options,
    )


def _with_weights(model: Model, loss: str | None, allow_external: Iterable[str | Path]) -> Onnxpp:
    """The model as a plan wants it: what is imported here keeps its weights.

    Raises:
        ModelError: the model cannot be imported, or its loss is the same whatever it says.
    """
    if isinstance(model, Onnxpp):
        found = model
    elif is_onnxpp(Path(model)):
        found = load_onnxpp(Path(model), without_weights=False, allow_external=allow_external)
    else:
        found = import_model(Path(model), loss=loss, allow_external=allow_external)
    from ..models.onnxpp.gradients import constant_loss

    if why := constant_loss(found.graph):
        raise ModelError(f"{found.graph.name} cannot be trained: {why}.")
    return found


def approve(plan_path: str | Path, *, approved_by: str | None = None, shown_sha256: str | None = None) -> Approval:
    """Approve a plan as it lies there.

    approved_by    the login name unless given
    shown_sha256   hash of the plan that the person saw, if it is to be that and no other

    Raises:
        ApprovalError: the model or the data are not those that were planned, or the plan is not the one that was shown.
    """
    path = Path(plan_path).resolve()
    if shown_sha256 is not None and file_sha256(path) != shown_sha256:
        raise ApprovalError(f"{plan_path} changed since it was shown: look again with `hpdlf approve {plan_path}`.")
    recipe = load_plan(path).recipe
    found = None
    if recipe.data.source is not None:
        from ..exec.data import data_sha256

        found = data_sha256(recipe.data.source, recipe.evaluation.source, base_folder=path.parent)
    return write_approval(path, approved_by=_login() if approved_by is None else approved_by, data_sha256=found)


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        raise ApprovalError(
            "This account has no login name: say who approves with `hpdlf approve PLAN --as NAME`."
        ) from None


def export(run: str | Path, out: str | Path) -> Path:
    """Write the trained weights of a run in the original graph; see :func:`hpdlf.exec.train.export`."""
    from ..exec.train import export as write

    return write(run, out)


def whatif(
    model: Model,
    on: Iterable[Cluster | str],
    devices: Iterable[int],
    *,
    loss: str | None = "softmax_xent",
    database: str | Path | None = None,
    **options: Any,
) -> WhatIf:
    """A model on several clusters and numbers of devices; `options` as :func:`hpdlf.experiments.whatif.whatif`."""
    from .whatif import resnet50
    from .whatif import whatif as run

    loaded = resnet50() if model == "resnet50" else load_model(model, loss=loss)
    return run(loaded, list(on), list(devices), cost_model=_costs(database), **options)


def measure(
    *,
    budget_s: float = 150.0,
    database: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Measurement:
    """Measure this machine: write the profile ``local`` and put every timed chain of operators into the database, and
    what small trainings in real ranks show, if there is a minute for it.
    """
    from dataclasses import replace

    from ..exec.microbenchmarks import measure_machine
    from ..models.cost import ObservationDatabase
    from .calibration import record
    from .rehearsal import REHEARSAL_S

    rehearsals = budget_s >= 3 * REHEARSAL_S
    measurement = measure_machine(budget_s=budget_s - rehearsals * REHEARSAL_S, progress=progress)
    if rehearsals and progress:
        progress("small trainings in real ranks", 1, 1)
    said: list[str] = []
    record(
        measurement, ObservationDatabase(Path(database)) if database else None, rehearsals=rehearsals, tell=said.append
    )
    return replace(measurement, skipped=(*measurement.skipped, *said))


def steps_of(plan_path: str | Path) -> int | None:
    """Optimiser updates in the whole training of a plan; None where it names no data.

    Raises:
        DataError: the data is not there, or does not fill one batch.
    """
    path = Path(plan_path).resolve()
    found = load_plan(path)
    if found.recipe.data.source is None:
        return None
    from ..exec.data import open_dataset

    dataset = open_dataset(found.recipe.data, base_folder=path.parent)
    return found.recipe.total_steps(samples=dataset.samples, batch=found.strategy.batch)
