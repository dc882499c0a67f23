"""``hpdlf cost``: what the cost model says of a model's operators, and how accurate it is."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options as o
from .console import help_alone, print_json, show

__all__ = ["commands"]

commands = typer.Typer(help="The cost model: explain what it says of a model's operators.", rich_markup_mode=None)

Device = Annotated[
    str, typer.Option("--on", metavar="DEVICE", help="A device or cluster of `hpdlf profile list`, or a TOML file.")
]
Rows = Annotated[int, typer.Option("--rows", metavar="N", min=1, help="How many operators to show.")]
Phase = Annotated[str, typer.Option("--phase", help="forward, backward or both (default: what the model has).")]


@commands.callback(invoke_without_command=True)
def _cost(context: typer.Context) -> None:
    help_alone(context)


@commands.command("explain")
def cost_explain(
    model: o.ModelOrName,
    on: Device,
    batch: o.InspectBatch = 1,
    precision: o.Precision = None,
    phase: Phase = "",
    rows: Rows = 20,
    loss: o.Loss = None,
    database: o.Database = None,
    as_json: o.Json = False,
) -> None:
    """The operators that matter on a device: time, bound, utilisation, interval."""
    from ..errors import PlanError
    from ..models.cost import CostModel
    from .explain import device_of, explain
    from .tables import explanation_table
    from .verbs import load_model
    from .whatif import resnet50

    phases = {"": None, "both": ("forward", "backward"), "forward": ("forward",), "backward": ("backward",)}
    if phase not in phases:
        raise PlanError(f"--phase {phase}: choose forward, backward or both.")
    loaded = resnet50() if model == "resnet50" else load_model(model, loss=loss)
    found = explain(
        loaded.graph,
        device_of(on),
        batch=batch,
        precision=precision or "float32",
        phases=phases[phase],
        model=CostModel.load(database),
    )
    if as_json:
        print_json(found.to_dict())
    else:
        show(explanation_table(found, rows=rows))


@commands.command("accuracy")
def cost_accuracy(
    every: Annotated[bool, typer.Option("--every", help="Show every operator, not only the sums.")] = False,
    as_json: o.Json = False,
) -> None:
    """How well the shipped operator times did on measurements left out of fitting."""
    from ..models.cost.operator_times import OperatorTimes
    from .tables import accuracy_table

    report = OperatorTimes.default().report
    if as_json:
        print_json(list(report))
    else:
        show(accuracy_table([row for row in report if every or row["op"].startswith("all")]))
