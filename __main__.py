"""The command line: ``hpdlf COMMAND``. Commands are thin: they read options, call a verb of the public API and show its result.

Everything heavy is imported inside a command, so that ``hpdlf --help`` answers at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import __version__
from .errors import HpdlfError

__all__ = ["app", "main"]

app = typer.Typer(
    name="hpdlf",
    help="Predict, plan, approve and run the training of any ONNX model on any cluster.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
profile = typer.Typer(help="Hardware profiles: list them, show one, measure this machine.", no_args_is_help=True)
app.add_typer(profile, name="profile")

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="An ONNX or ONNX++ file.", show_default=False)]
On = Annotated[str, typer.Option("--on", metavar="CLUSTER", help="A cluster: a name of `hpdlf profile list`, NAME:NODES, or a TOML file.")]
Batch = Annotated[int, typer.Option("--batch", help="Samples per optimiser update over all ranks.")]
Loss = Annotated[str | None, typer.Option("--loss", help="softmax_xent or mse: appended where the graph has no loss.")]
Allow = Annotated[list[Path] | None, typer.Option("--allow-external", metavar="DIR", help="A folder that external weights may lie in.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Precision = Annotated[str | None, typer.Option("--precision", help="float64, float32, tf32, bfloat16 or float16.")]
Solver = Annotated[str, typer.Option("--solver", help="synchronous or asynchronous.")]
Optimizer = Annotated[str, typer.Option("--optimizer", help="sgd, momentum, adam, ...: decides the memory of its state.")]
Database = Annotated[Path | None, typer.Option("--database", help="Observations to predict from (default: the user's own).")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    if version:
        typer.echo(f"hpdlf {__version__}")
        raise typer.Exit


def _show(*things: Any) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _width(), highlight=False)
    for thing in things:
        console.print(thing, **({"markup": False, "soft_wrap": True} if isinstance(thing, str) else {}))


def _width() -> int:
    """Columns where nobody looks on at a terminal: $COLUMNS, else 100."""
    import os

    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdigit() and int(given) > 40 else 100


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1))


# --- models --------------------------------------------------------------------------------------------------------------------


@app.command("import")
def import_(
    model: Model,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The ONNX++ file to write.")],
    loss: Loss = None,
    train: Annotated[str | None, typer.Option("--train", metavar="REGEX", help="Train only parameters whose name matches.")] = None,
    freeze: Annotated[str | None, typer.Option("--freeze", metavar="REGEX", help="Do not train parameters whose name matches.")] = None,
    batch_dim: Annotated[str | None, typer.Option("--batch-dim", metavar="NAME|INPUT:AXIS", help="Which dimension is the batch.")] = None,
    bind: Annotated[list[str] | None, typer.Option("--bind", metavar="NAME=SIZE", help="Size of another symbolic dimension.")] = None,
    allow_external: Allow = None,
    without_weights: Annotated[bool, typer.Option("--without-weights", help="Do not look for external weights: enough to simulate.")] = False,
) -> None:
    """Check and convert an ONNX file, find its parameters and its loss, count its work, and write ONNX++."""
    from .experiments.units import count, nbytes
    from .models.onnxpp import import_model, save_onnxpp, work

    found = import_model(
        model,
        loss=loss,
        train=train,
        freeze=freeze,
        batch_dim=batch_dim,
        bind=_bindings(bind or []),
        allow_external=allow_external or (),
        without_weights=without_weights,
    )
    save_onnxpp(found, out)
    graph = found.graph
    flops = sum(work(o, graph, batch=1, phase="forward").flops for o in graph.operators)
    _show(
        f"{out}: {graph.name}, {len(graph.operators)} operators, {count(graph.parameter_count)} trainable parameters "
        f"({nbytes(graph.parameter_bytes())}), {count(flops)} FLOP forward per sample, loss: {graph.loss or 'none'}."
    )


def _bindings(given: list[str]) -> dict[str, int]:
    bound = {}
    for text in given:
        name, equals, size = text.partition("=")
        if not (name and equals and size.isdigit() and int(size) > 0):
            raise HpdlfError(f"--bind {text}: write NAME=SIZE with a positive SIZE, as in `--bind sequence=128`.")
        bound[name] = int(size)
    return bound


@app.command()
def inspect(
    model: Model,
    batch: Annotated[int, typer.Option("--batch", help="Samples to count for.")] = 1,
    loss: Loss = None,
    as_json: Json = False,
) -> None:
    """Show a model's operators with their family, FLOPs, bytes, parameters and shapes."""
    from .experiments.tables import operators_table
    from .experiments.verbs import load_model
    from .models.onnxpp import work

    graph = load_model(model, loss=loss).graph
    if not as_json:
        _show(operators_table(graph, batch=batch))
        return
    operators = []
    for operator in graph.operators:
        row: dict[str, Any] = {"name": operator.name, "op_type": operator.op_type, "family": operator.family}
        for phase in ("forward", "backward"):
            done = work(operator, graph, batch=batch, phase=phase)  # type: ignore[arg-type]
            row[phase] = {"flops": done.flops, "read_bytes": done.read_bytes, "write_bytes": done.write_bytes}
        operators.append(row)
    _print_json(
        {"name": graph.name, "batch": batch, "parameters": graph.parameter_count, "loss": graph.loss, "operators": operators}
    )


# --- profiles ------------------------------------------------------------------------------------------------------------------


@profile.command("list")
def profile_list(as_json: Json = False) -> None:
    """The clusters and devices that there are."""
    from dataclasses import asdict

    from .experiments.tables import profiles_table
    from .hwprofiles import list_profiles

    rows = list_profiles()
    if as_json:
        _print_json([{k: str(v) for k, v in asdict(r).items()} for r in rows])
    else:
        _show(profiles_table(rows))


@profile.command("show")
def profile_show(name: Annotated[str, typer.Argument(help="A cluster, NAME:NODES, or a TOML file.")], as_json: Json = False) -> None:
    """Every value of a cluster's profile, with its source and tier."""
    from dataclasses import asdict

    from .experiments.tables import profile_table
    from .hwprofiles import describe, load_cluster

    cluster = load_cluster(name)
    rows = describe(cluster)
    if as_json:
        _print_json([asdict(r) for r in rows])
    else:
        _show(profile_table(f"{cluster.name}: {cluster.description}", rows))


@profile.command("measure")
def profile_measure(
    budget: Annotated[float, typer.Option("--budget", min=10, max=170, help="Seconds to measure for.")] = 75.0,
    database: Database = None,
) -> None:
    """Measure this machine and write its profile, `local`; its operator times go into the database."""
    from rich.console import Console

    from .experiments.verbs import measure

    with Console(stderr=True).status("measuring") as status:
        found = measure(
            budget_s=budget, database=database, progress=lambda text, done, total: status.update(f"measuring {done + 1}/{total}: {text}")
        )
    _show(f"{found.path}: {found.cluster.description}, measured in {found.seconds:.0f} s.")
    for skipped in found.skipped:
        _show(f"  left out: {skipped}")
    if found.notes:
        _show(f"  {len(found.notes)} measurements were disturbed, for example: {found.notes[0]}")
    _show("Use it with `--on local`.")


# --- predicting ----------------------------------------------------------------------------------------------------------------


@app.command()
def simulate(
    model: Model,
    on: On,
    batch: Batch,
    data: Annotated[int, typer.Option("--data", help="Replicas.")] = 1,
    pipeline: Annotated[int, typer.Option("--pipeline", help="Pipeline stages.")] = 1,
    microbatches: Annotated[int | None, typer.Option("--microbatches", help="Per replica (default: one per stage).")] = None,
    schedule: Annotated[str, typer.Option("--schedule", help="1f1b or gpipe.")] = "1f1b",
    solver: Solver = "synchronous",
    precision: Precision = None,
    optimizer: Optimizer = "adam",
    samples: Annotated[int | None, typer.Option("--samples", help="Samples of an epoch, for figures of epochs.")] = None,
    loss: Loss = "softmax_xent",
    database: Database = None,
    as_json: Json = False,
    trace: Annotated[Path | None, typer.Option("--trace", metavar="FILE", help="Write the timeline for ui.perfetto.dev.")] = None,
    gantt: Annotated[Path | None, typer.Option("--gantt", metavar="FILE", help="Draw the timeline as a picture (.png, .svg).")] = None,
) -> None:
    """Predict step time, energy, cost and memory of one way to train a model on a cluster."""
    from .experiments.tables import memory_table, simulation_table
    from .experiments.verbs import simulate as run

    found = run(
        model,
        on=on,
        batch=batch,
        loss=loss,
        optimizer=optimizer,
        samples=samples,
        database=database,
        data=data,
        pipeline=pipeline,
        microbatches=microbatches or pipeline,
        schedule=schedule,
        solver=solver,
        precision=precision,
    )
    if trace:
        from .sim.perfetto import write_perfetto

        write_perfetto(found.trace, trace)
    if gantt:
        found.plot().savefig(gantt)
    if as_json:
        _print_json(found.to_dict())
        return
    _show(simulation_table(found), memory_table(found))
    for written in (trace, gantt):
        if written:
            _show(f"Wrote {written}.")


@app.command()
def whatif(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="An ONNX file, or `resnet50`: the one that comes with onnx.")],
    on: Annotated[str, typer.Option("--on", help="Clusters, separated by commas.")] = "xeon-128,dgx-a100,dgx-h100",
    devices: Annotated[str, typer.Option("--devices", help="Numbers of devices, separated by commas.")] = "8,16,32,64,128,256,512",
    batch_per_device: Annotated[int, typer.Option("--batch-per-device", help="Samples per device and step.")] = 32,
    precision: Precision = "float32",
    loss: Loss = "softmax_xent",
    database: Database = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="FILE", help="Draw it (.png, .svg).")] = None,
    as_json: Json = False,
) -> None:
    """Compare clusters and numbers of devices for one model: a table and a picture."""
    from rich.console import Console

    from .experiments.verbs import whatif as run

    counts = [int(d) for d in devices.split(",") if d.strip().isdigit()]
    if len(counts) != len(devices.split(",")):
        raise HpdlfError(f"--devices {devices}: write whole numbers separated by commas, as in `--devices 8,64,512`.")
    with Console(stderr=True).status("simulating") as status:
        found = run(
            model,
            [c.strip() for c in on.split(",")],
            counts,
            loss=loss,
            database=database,
            batch_per_device=batch_per_device,
            precision=precision,
            progress=lambda cluster, count: status.update(f"simulating {count} devices of {cluster}"),
        )
    if out:
        found.plot().savefig(out)
    if as_json:
        typer.echo(found.to_frame().to_json(orient="records", indent=1))
        return
    _show(found.table())
    if out:
        _show(f"Wrote {out}.")


# --- planning, approving, training ---------------------------------------------------------------------------------------------


@app.command()
def plan(
    model: Model,
    on: On,
    batch: Batch,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="PLAN", help="The plan to write (.json).")],
    objective: Annotated[str, typer.Option("--objective", help="time, energy or cost.")] = "time",
    recipe: Annotated[Path | None, typer.Option("--recipe", metavar="TOML", help="The training: data, optimiser, length, evaluation.")] = None,
    ranks: Annotated[int | None, typer.Option("--ranks", help="Only strategies with so many ranks.")] = None,
    solver: Solver = "synchronous",
    choose: Annotated[int, typer.Option("--choose", help="Take this place of the ranking.")] = 1,
    max_restarts: Annotated[int, typer.Option("--max-restarts", help="Restarts allowed when a rank dies.")] = 3,
    loss: Loss = "softmax_xent",
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Try all admissible ways to train a model on a cluster, rank them, and write the best as a plan."""
    from rich.console import Console

    from .experiments.tables import candidates_table, refused_table
    from .experiments.verbs import plan as write

    if objective not in ("time", "energy", "cost"):
        raise HpdlfError(f"--objective {objective}: choose time, energy or cost.")
    with Console(stderr=True).status("simulating") as status:
        found = write(
            model,
            on=on,
            batch=batch,
            out=out,
            objective=objective,
            recipe=recipe,
            ranks=ranks,
            solver=solver,
            choose=choose,
            max_restarts=max_restarts,
            loss=loss,
            database=database,
            progress=lambda done, total: status.update(f"simulating: {done} of {total} combinations"),
        )
    if as_json:
        _print_json(found.plan.model_dump(mode="json"))
        return
    _show(candidates_table(found.search))
    if found.search.refused:
        _show(refused_table(found.search))
    _show(found.plan.reason, f"\nWrote {out}. Look at it and approve it with `hpdlf approve {out}`.")


@app.command()
def approve(
    plan: Annotated[Path, typer.Argument(metavar="PLAN")],
    approved_by: Annotated[str | None, typer.Option("--as", metavar="NAME", help="Who approves (default: the login name).")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Show what a plan will run and what it is predicted to take, and record who approved it."""
    from .experiments.tables import approval_table
    from .experiments.verbs import approve as record
    from .experiments.verbs import steps_of
    from .models.plan import approval_path, load_plan

    found = load_plan(plan)
    _show(approval_table(found, steps=steps_of(plan)))
    if not yes:
        if not sys.stdin.isatty():
            raise HpdlfError(f"There is no terminal to ask on: read the above and say so with `hpdlf approve {plan} --yes`.")
        if not typer.confirm("Approve this plan?"):
            _show("Not approved.")
            raise typer.Exit(1)
    approval = record(plan, approved_by=approved_by)
    _show(f"Approved by {approval.approved_by} at {approval.approved_at}: {approval_path(plan)}. Run it with `hpdlf train {plan} --out RUN`.")


@app.command()
def train(
    plan: Annotated[Path, typer.Argument(metavar="PLAN")],
    out: Annotated[Path, typer.Option("--out", metavar="RUN", help="Folder of the run.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in RUN.")] = False,
) -> None:
    """Run an approved plan: on ranks that it starts itself, or as one of those that mpiexec or srun started."""
    from .exec.mpi import detect_mpi_context
    from .exec.train import train as run
    from .experiments.watching import watch

    if detect_mpi_context():
        run(plan, out, resume=resume)
        return
    with watch(plan) as progress:
        found = run(plan, out, resume=resume, progress=progress, tell=progress.tell)
    _show(*progress.summary(), f"Wrote {found.folder}. See it with `hpdlf report {out} -o report.html`.")


@app.command()
def refine(
    run: Annotated[Path, typer.Argument(metavar="RUN")],
    database: Database = None,
    as_json: Json = False,
) -> None:
    """Take what a run measured into the database, refit the cost model, and show the error before and after."""
    from .experiments.refine import refine as learn
    from .experiments.tables import refinement_table

    found = learn(run, database)
    if as_json:
        typer.echo(found.to_frame().to_json(orient="records", indent=1))
        return
    _show(f"{found.observations} workloads of {run} are in the database.", refinement_table(found), *found.lines())


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="HTML", help="The page to write.")],
) -> None:
    """Write one self-contained page: predicted beside measured, loss, energy, memory."""
    from .experiments.report import report as write

    _show(f"Wrote {write(run, out)}.")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="ONNX", help="The model to write.")],
) -> None:
    """Write the trained weights in the original graph."""
    from .experiments.verbs import export as write

    _show(f"Wrote {write(run, out)}.")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Examine this installation: versions, MPI, devices, energy counters, cores; and how to mend what is amiss."""
    from .exec.doctor import examine
    from .experiments.tables import doctor_table

    findings = examine()
    if as_json:
        _print_json([f.as_dict() for f in findings])
    else:
        _show(doctor_table(findings))


def main() -> None:
    """Run a command; a mistake of the user's ends in one message and exit code 2, a failure while running in 1."""
    debug = "--debug" in sys.argv
    arguments = [a for a in sys.argv[1:] if a != "--debug"]
    try:
        app(args=arguments, prog_name="hpdlf", standalone_mode=False)
    except HpdlfError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("Stopped.", 1)
    except BrokenPipeError:
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        if hasattr(error, "format_message"):  # click's usage errors
            context = getattr(error, "ctx", None)
            _fail(f"{error.format_message()} See `{context.command_path if context else 'hpdlf'} --help`.", 2)
        _fail(f"hpdlf failed: {type(error).__name__}: {error}. Run it again with --debug and report what it prints.", 1)


def _fail(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
