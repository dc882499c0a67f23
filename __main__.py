"""The command line: ``hpdlf COMMAND``. A command reads its options, calls a verb and shows the result.

Everything heavy is imported inside a command, so that ``hpdlf --help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from . import __version__
from .errors import ApprovalError, HpdlfError, ModelError, PlanError
from .experiments import options as o
from .experiments.console import complain, draw, help_alone, print_json, show, status
from .experiments.cost_commands import commands as cost_commands
from .experiments.grouped_help import Grouped
from .experiments.profile_commands import commands as profile_commands
from .experiments.tuning_commands import tune

__all__ = ["app", "main"]

INTERRUPTED = 130
"""What typer returns for Ctrl-C."""

WRONG_USAGE: Any = typer.BadParameter.__base__
"""What all errors about commands and options share; typer has no public name for it."""

app = typer.Typer(
    name="hpdlf",
    help="Predict, plan, approve and run the training of any ONNX model on any cluster.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 100},
)
app.add_typer(profile_commands, name="profile")
app.add_typer(cost_commands, name="cost")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show an error's traceback; also after the command.")] = False,
) -> None:
    if version:
        typer.echo(f"hpdlf {__version__}")
        raise typer.Exit
    help_alone(context)


# --- models ----------------------------------------------------------------------------------------------------------


@app.command("import")
def import_(
    model: o.Model,
    out: o.OnnxppOut,
    loss: o.Loss = None,
    loss_output: o.LossOutput = None,
    train: o.Train = None,
    freeze: o.Freeze = None,
    batch_dim: o.BatchDim = None,
    bind: o.Bind = None,
    allow_external: o.AllowExternal = None,
    without_weights: o.WithoutWeights = False,
) -> None:
    """Check an ONNX file, find its parameters and loss, write ONNX++."""
    from .experiments.tables import model_sentence
    from .models.onnxpp import import_model, save_onnxpp

    if out.exists() and model.exists() and out.samefile(model):
        raise ModelError(f"{out} is the model itself, which would be lost: choose another place with `-o FILE`.")
    found = import_model(
        model,
        loss=loss,
        loss_output=loss_output,
        train=train,
        freeze=freeze,
        batch_dim=batch_dim,
        bind=_bindings(bind or []),
        allow_external=allow_external or (),
        without_weights=without_weights,
    )
    save_onnxpp(found, out)
    show(f"Wrote {out}: {model_sentence(found.graph)}")


def _bindings(given: list[str]) -> dict[str, int]:
    bound = {}
    for text in given:
        name, _, size = text.partition("=")
        if not (name and size.isdecimal() and int(size) > 0):
            raise ModelError(f"--bind {text}: write NAME=SIZE with a positive SIZE, as in `--bind sequence=128`.")
        bound[name] = int(size)
    return bound


@app.command()
def inspect(
    model: o.Model,
    batch: o.InspectBatch = 1,
    loss: o.Loss = None,
    bind: o.Bind = None,
    allow_external: o.AllowExternal = None,
    as_json: o.Json = False,
) -> None:
    """Show operators: family, FLOPs, bytes, parameters, shapes."""
    from dataclasses import asdict

    from .experiments.tables import operators_table
    from .experiments.verbs import counts, load_model
    from .models.onnxpp import strategies

    found = load_model(
        model, loss=loss, allow_external=allow_external or (), bind=_bindings(bind or []), loss_optional=True
    )
    graph, annotated = found.graph, strategies(found.proto)
    if as_json:
        print_json(counts(graph, batch=batch) | {"configurations": [asdict(s) for s in annotated]})
    else:
        show(operators_table(graph, batch=batch, annotated=annotated))


# --- predicting ------------------------------------------------------------------------------------------------------


@app.command(cls=Grouped)
def simulate(
    model: o.Model,
    on: o.Cluster,
    batch: o.Batch,
    data: o.Data = 1,
    pipeline: o.Pipeline = 1,
    tensor: o.Tensor = 1,
    context: o.Context = 1,
    expert: o.Expert = 1,
    sequence_parallel: o.SequenceParallel = False,
    microbatches: o.Microbatches = None,
    schedule: o.Schedule = "1f1b",
    interleave: o.Interleave = 1,
    cut: o.Cut = "time",
    solver: o.AnySolver = "synchronous",
    synchronise_every: o.SynchroniseEvery = 1,
    zero: o.Zero = 0,
    recompute: o.Recompute = "none",
    precision: o.AnyPrecision = None,
    mixed: o.Mixed = False,
    optimizer: o.Optimizer = "adam",
    samples: o.Samples = None,
    power_limit: o.PowerLimit = None,
    clock: o.Clock = None,
    price: o.Price = None,
    region: o.Region = None,
    loss: o.Loss = "softmax_xent",
    bind: o.Bind = None,
    allow_external: o.AllowExternal = None,
    database: o.Database = None,
    as_json: o.Json = False,
    trace: o.Trace = None,
    gantt: o.Gantt = None,
    breakdown: o.Breakdown = False,
    power: o.PowerPicture = None,
    versus: o.Versus = None,
) -> None:
    """Predict time, energy, cost and memory of one strategy.

    What cannot be trained, as it has no weights or a fixed batch, is run forward alone.
    """
    from .experiments.looking import breakdown_table, comparison_table, told, variant
    from .experiments.tables import memory_table, simulation_table
    from .experiments.verbs import cluster_of
    from .experiments.verbs import simulate as run
    from .sim.perfetto import write_perfetto

    cluster = cluster_of(on, power_limit_w=power_limit, clock_hz=clock and clock * 1e6, price=price, region=region)
    asked: dict[str, Any] = {
        "on": cluster,
        "batch": batch,
        "loss": loss,
        "allow_external": allow_external or (),
        "bind": _bindings(bind or []),
        "optimizer": optimizer,
        "samples": samples,
        "database": database,
        "data": data,
        "pipeline": pipeline,
        "tensor": tensor,
        "context": context,
        "expert": expert,
        "sequence_parallel": sequence_parallel,
        "microbatches": microbatches or pipeline,
        "schedule": schedule,
        "interleave": interleave,
        "cut": cut,
        "solver": solver,
        "synchronise_every": synchronise_every,
        "zero": zero,
        "recompute": recompute,
        "precision": precision,
        "mixed": mixed,
    }
    found = run(model, **asked)
    other = run(model, **variant(asked, versus)) if versus else None
    if trace:
        write_perfetto(found.trace, trace)
    if gantt:
        draw(found.plot(), gantt)
    if power:
        draw(found.power_trace().plot(), power)
    if as_json:
        print_json(told(found, breakdown=breakdown, other=other))
        return
    show(simulation_table(found), memory_table(found))
    if breakdown:
        show(breakdown_table(found))
    if other is not None:
        show(comparison_table(found, other), found.compare(other).reason)
    for written in (trace, gantt, power):
        if written:
            show(f"Wrote {written}.")


@app.command(cls=Grouped)
def whatif(
    model: o.ModelOrName,
    on: o.Clusters = "xeon-128,dgx-a100,dgx-h100",
    devices: o.Devices = "8,16,32,64,128,256,512",
    batch_per_device: o.BatchPerDevice = 32,
    tensor: o.Tensor = 1,
    context: o.Context = 1,
    expert: o.Expert = 1,
    sequence_parallel: o.SequenceParallel = False,
    interleave: o.Interleave = 1,
    cut: o.Cut = "time",
    zero: o.Zero = 0,
    recompute: o.Recompute = "none",
    precision: o.AnyPrecision = None,
    mixed: o.Mixed = False,
    power_limit: o.PowerLimit = None,
    clock: o.Clock = None,
    price: o.Price = None,
    region: o.Region = None,
    loss: o.Loss = "softmax_xent",
    database: o.Database = None,
    out: o.PictureOut = None,
    as_json: o.Json = False,
) -> None:
    """Compare clusters and numbers of devices for one model."""
    from .experiments.verbs import cluster_of
    from .experiments.verbs import whatif as run

    if not all(count.strip().isdecimal() for count in devices.split(",")):
        raise PlanError(f"--devices {devices}: write whole numbers separated by commas, as in `--devices 8,64,512`.")
    settings = {"power_limit_w": power_limit, "clock_hz": clock and clock * 1e6}
    clusters = [cluster_of(name.strip(), **settings, price=price, region=region) for name in on.split(",")]
    with status("simulating") as now:
        found = run(
            model,
            clusters,
            [int(count) for count in devices.split(",")],
            loss=loss,
            database=database,
            batch_per_device=batch_per_device,
            precision=precision or "float32",
            tensor=tensor,
            context=context,
            expert=expert,
            sequence_parallel=sequence_parallel,
            interleave=interleave,
            cut=cut,
            zero=zero,
            recompute=recompute,
            mixed=mixed,
            progress=lambda cluster, count: now.update(f"simulating {count} devices of {cluster}"),
        )
    if out:
        draw(found.plot(), out)
    if as_json:
        typer.echo(found.to_frame().to_json(orient="records", indent=1))
    else:
        show(found.table(), *([f"Wrote {out}."] if out else []))


app.command()(tune)


# --- planning, approving, training -----------------------------------------------------------------------------------


@app.command()
def plan(
    model: o.Model,
    on: o.Cluster,
    batch: o.Batch,
    out: o.PlanOut,
    objective: o.Objective = "time",
    recipe: o.Recipe = None,
    ranks: o.Ranks = None,
    data: o.FixedData = None,
    pipeline: o.FixedPipeline = None,
    microbatches: o.FixedMicrobatches = None,
    schedule: o.FixedSchedule = None,
    solver: o.Solver = "synchronous",
    precision: o.Precision = None,
    choose: o.Choose = 1,
    max_restarts: o.MaxRestarts = 3,
    loss: o.Loss = "softmax_xent",
    allow_external: o.AllowExternal = None,
    database: o.Database = None,
    as_json: o.Json = False,
) -> None:
    """Rank the ways to train on a cluster, write the best as a plan."""
    from .experiments.tables import candidates_table, refused_table
    from .experiments.verbs import plan as write

    with status("simulating") as now:
        found = write(
            model,
            on=on,
            batch=batch,
            out=out,
            objective=objective,
            recipe=recipe,
            ranks=ranks,
            data=data,
            pipeline=pipeline,
            microbatches=microbatches,
            schedule=schedule,
            solver=solver,
            precision=precision,
            choose=choose,
            max_restarts=max_restarts,
            loss=loss,
            allow_external=allow_external or (),
            database=database,
            progress=lambda done, total: now.update(f"simulating: {done} of {total} combinations"),
        )
    if as_json:
        print_json(found.plan.model_dump(mode="json"))
        return
    refused = [refused_table(found.search)] if found.search.refused else []
    show(*refused, candidates_table(found.search), found.plan.reason)  # what matters most is read last
    if found.hinted.unmeasured:
        show(found.hinted.advice(model, loss=loss, allow_external=allow_external or (), database=database))
    show(f"\nWrote {out}. Look at it and approve it with `hpdlf approve {out}`.")


@app.command()
def approve(plan: o.Plan, approved_by: o.Approver = None, yes: o.Yes = False) -> None:
    """Show what a plan runs and is predicted to take; approve it."""
    from .experiments.tables import approval_table
    from .experiments.verbs import approve as record
    from .experiments.verbs import steps_of
    from .models.plan import approval_path, file_sha256, load_plan

    found = load_plan(plan)
    shown = file_sha256(plan)
    show(approval_table(found, steps=steps_of(plan)))
    if not yes:
        if not sys.stdin.isatty():
            raise ApprovalError(
                f"There is no terminal to ask on: read the above and approve it with `hpdlf approve {plan} --yes`."
            )
        if not typer.confirm("Approve this plan?"):
            show("Not approved.")
            raise typer.Exit(1)
    approval = record(plan, approved_by=approved_by, shown_sha256=shown)
    show(f"Approved by {approval.approved_by} at {approval.approved_at}: {approval_path(plan)}.")
    show(f"Run it with `hpdlf train {plan} --out RUN`.")


@app.command()
def train(plan: o.Plan, out: o.RunOut, resume: o.Resume = False) -> None:
    """Run an approved plan: start its ranks, or join mpiexec or srun."""
    from .exec.mpi import detect_mpi_context
    from .exec.train import train as run
    from .experiments.watching import watch

    if detect_mpi_context():
        run(plan, out, resume=resume)
        return
    try:
        with watch(plan) as progress:
            found = run(plan, out, resume=resume, progress=progress, tell=progress.tell)
    except KeyboardInterrupt:
        complain(f"Stopped. Go on from the last checkpoint with `hpdlf train {plan} --out {out} --resume`.")
        raise typer.Exit(1) from None
    show(*progress.summary(), f"Wrote {found.folder}. See it with `hpdlf report {out} -o report.html`.")


@app.command()
def refine(run: o.Run, database: o.Database = None, as_json: o.Json = False) -> None:
    """Learn from what a run measured; show the error before and after."""
    from .experiments.refine import refine as learn
    from .experiments.tables import refinement_table

    found = learn(run, database)
    if as_json:
        typer.echo(found.to_frame().to_json(orient="records", indent=1))
        return
    show(
        f"{found.observations} workloads of {run} are in the database.",
        refinement_table(found),
        *found.lines(),
        *found.findings(),
    )


@app.command()
def report(run: o.Run, out: o.HtmlOut) -> None:
    """Write a page: predicted beside measured, loss, energy, memory."""
    from .experiments.report import report as write

    show(f"Wrote {write(run, out)}.")


@app.command()
def export(run: o.Run, out: o.OnnxOut) -> None:
    """Write the trained weights in the original graph."""
    from .experiments.verbs import export as write

    show(f"Wrote {write(run, out)}.")


@app.command()
def doctor(as_json: o.Json = False) -> None:
    """Examine this installation, and say how to mend what is amiss."""
    from .exec.doctor import examine
    from .experiments.tables import doctor_table

    findings = examine()
    if as_json:
        print_json([finding.as_dict() for finding in findings])
    else:
        show(doctor_table(findings))
    if any(finding.status == "missing" for finding in findings):
        raise typer.Exit(1)


# --- errors ----------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 2 for a mistake of the user's, 1 for a failure while running."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        code = app(args=[a for a in given if a != "--debug"], prog_name="hpdlf", standalone_mode=False)
        if code != INTERRUPTED:
            return code if isinstance(code, int) else 0
        complain("Stopped.")
    except HpdlfError as error:
        _trace(error, debug)
        complain(str(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        complain("Stopped.")
    except WRONG_USAGE as error:
        said, command = error.format_message(), error.ctx.command_path if error.ctx else "hpdlf"
        complain(f"{said}{'' if said.endswith(('.', '?')) else '.'} See `{command} --help`.")
        return 2
    except Exception as error:
        _trace(error, debug)
        complain(f"hpdlf failed: {type(error).__name__}: {error}. Run it again with --debug to see where.")
    return 1


def _trace(error: Exception, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exception(error)


if __name__ == "__main__":
    sys.exit(main())
