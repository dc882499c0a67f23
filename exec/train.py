"""Training an approved plan: check the approval, lay out the run's folder, start the ranks, see them through."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ApprovalError, PlanError, RunError
from ..hwprofiles import cluster_from_toml
from ..models.onnxpp import export_trained, load_onnxpp
from ..models.plan import Plan, approval_path, check_approval, file_sha256, load_plan
from .checkpoint import latest
from .data import data_sha256
from .environment import examine_machine, package_versions, rank_environment
from .mpi import MpiContext, detect_mpi_context
from .run_folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from .progress import Progress

__all__ = ["Run", "export", "train"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that ended well: its folder, and what its run.json says."""

    folder: Path
    about: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row a step: step, loss, samples_per_s, time_s and attempt; of a step that was run again the last attempt's."""
        import pandas as pd

        lines = RunFolder(self.folder).metrics.read_text().splitlines()
        rows = [row for row in map(json.loads, lines) if "loss" in row]
        return pd.DataFrame(rows).drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)

    def plot(self) -> Figure:
        """The loss over the steps."""
        from matplotlib.figure import Figure

        frame = self.to_frame()
        figure = Figure(figsize=(7, 3.5), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(frame["step"], frame["loss"])
        axes.set(xlabel="step", ylabel="loss", title=self.folder.name)
        return figure


def train(
    plan_path: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Run:
    """Run an approved plan and wait for its end.

    Under an existing ``mpiexec`` or ``srun`` this process becomes one of the plan's ranks; otherwise it starts them.

    out        the run's folder; it must be new, unless `resume`
    resume     go on from the last checkpoint in `out`, whatever plan it was written under
    tell       sentences about restarts and checkpoints; default: this process's error output

    Raises:
        ApprovalError: the plan is not approved, or something changed since.
        PlanError: the plan names no data, or was made for another number of ranks than were started.
        RunError: the run failed, or `out` already holds one.
    """
    plan_path, folder = Path(plan_path).resolve(), RunFolder(Path(out).resolve())
    say = tell or (lambda text: print(text, file=sys.stderr, flush=True))
    if context := detect_mpi_context():
        return _join(context, plan_path, folder, resume, say)
    plan = _prepare(plan_path, folder, resume, say)
    return _start(plan, folder, resume, progress, say)


# --- before the ranks -------------------------------------------------------------------------------------------------


def _prepare(plan_path: Path, folder: RunFolder, resume: bool, say: Callable[[str], None]) -> Plan:
    """Check everything that can be checked before a rank starts, and lay out the folder."""
    plan = load_plan(plan_path)
    if beyond := plan.strategy.simulated_only:
        raise PlanError(
            f"{plan_path} asks for {' and '.join(beyond)}, which can only be simulated so far: plan again without, with "
            "`hpdlf plan`."
        )
    source = plan.recipe.data.source
    if source is None:
        raise PlanError(
            f"{plan_path} names no data to train on: write a recipe with `[data]` and `source = ...`, then plan again "
            "with `hpdlf plan --recipe RECIPE`."
        )
    found = data_sha256(source, plan.recipe.evaluation.source, base_folder=plan_path.parent)
    plan, _ = check_approval(plan_path, data_sha256=found)
    _lay_out(plan_path, plan, folder, resume)
    if resume:
        _tell_origin(folder, say)
    return plan


def _lay_out(plan_path: Path, plan: Plan, folder: RunFolder, resume: bool) -> None:
    exists = folder.about.is_file()
    if exists and not resume:
        raise RunError(f"{folder.path} already holds a run: go on with it by `--resume`, or choose another `--out`.")
    if not exists and folder.path.is_dir() and any(folder.path.iterdir()):
        raise RunError(f"{folder.path} is not empty and holds no run: choose another `--out`.")
    before = folder.read() if exists else {}
    model, predicted = plan_path.parent / plan.model.path, plan_path.with_suffix(".trace.jsonl")
    copies = {folder.plan: plan_path, folder.approval: approval_path(plan_path), folder.model: model}
    if predicted.is_file():
        copies[folder.predicted] = predicted
    try:
        folder.checkpoints.mkdir(parents=True, exist_ok=True)
        folder.keep(copies)
        if not predicted.is_file():
            folder.predicted.unlink(missing_ok=True)  # that of the plan before
    except OSError as error:
        if not exists:
            with suppress(OSError):
                folder.checkpoints.rmdir()
                folder.path.rmdir()
        raise RunError(
            f"{folder.path}: the run's folder cannot be written: {error.strerror}. Make room, or choose another "
            "`--out`."
        ) from None
    if file_sha256(folder.model) != plan.model.sha256:
        raise ApprovalError(f"{model} changed while it was copied: plan and approve again.")
    plan_sha256, first_attempt = file_sha256(folder.plan), folder.next_attempt()
    attempt = {"plan_sha256": plan_sha256, "ranks": plan.strategy.ranks, "first_attempt": first_attempt}
    folder.write(
        {
            "state": "running",
            "started": _now(),
            "ended": None,
            "plan": str(plan_path),
            "plan_sha256": plan_sha256,
            # External weights lie beside the plan's own file; without them the copy is all there is to read.
            "model": str(model if plan.external else folder.model),
            "base_folder": str(plan_path.parent),
            "ranks": plan.strategy.ranks,
            "machine": examine_machine().as_dict(),
            "versions": package_versions(),
            "attempts": [*before.get("attempts", []), attempt],
            "first_attempt": first_attempt,
            "energy_j": None,
            "energy_unavailable": [],
            "peak_bytes": {},
        }
    )


def _tell_origin(folder: RunFolder, say: Callable[[str], None]) -> None:
    found = latest(folder.checkpoints)
    for reason in found.skipped if found else ():
        say(f"Passed over: {reason}.")
    say(f"Going on after step {found.step}." if found else "There is no checkpoint yet: starting from the beginning.")


# --- the ranks --------------------------------------------------------------------------------------------------------


def _join(
    context: MpiContext, plan_path: Path, folder: RunFolder, resume: bool, say: Callable[[str], None]
) -> Run:
    """Be one of the ranks that somebody else started. Rank 0 checks and speaks for all."""
    for name, value in rank_environment({}).items():
        os.environ.setdefault(name, value)
    comm = _world(context)
    problem: BaseException | None = None
    if context.rank == 0:
        try:
            _check_ranks(context, plan_path)
            _prepare(plan_path, folder, resume, say)
        except BaseException as error:
            problem = error
    code = getattr(problem, "exit_code", 1) if problem else 0
    if comm:
        code = comm.bcast(code)
    if problem:
        raise problem
    if code:
        raise SystemExit(code)
    from .worker import leave, work

    try:
        work(folder, resume=resume)
    except BaseException as error:
        with suppress(RunError):
            _finish(folder, "failed")
        if comm is None:
            raise
        say(f"Rank {context.rank}: {error}")
        leave(error, getattr(error, "exit_code", 1))
    if context.rank == 0:
        reason = "energy: only a run that `hpdlf train` starts itself reads the counters"
        _finish(folder, "finished", energy_unavailable=[reason])
    if comm:
        comm.Barrier()
    return Run(folder=folder.path, about=folder.read())


def _world(context: MpiContext) -> Any:
    """MPI's world; None for a single rank, which needs no MPI."""
    if context.size == 1:
        return None
    from mpi4py import MPI

    if MPI.COMM_WORLD.size != context.size:
        raise RunError(
            f"{context.launcher} started {context.size} ranks, but mpi4py's MPI "
            f"({MPI.Get_library_version().split(',')[0]}) sees {MPI.COMM_WORLD.size}: start them with that MPI's own "
            "mpiexec, or let `hpdlf train` do it. `hpdlf doctor` shows both."
        )
    return MPI.COMM_WORLD


def _check_ranks(context: MpiContext, plan_path: Path) -> None:
    ranks = load_plan(plan_path).strategy.ranks
    if context.size != ranks:
        raise PlanError(
            f"{plan_path.name} is a plan for {ranks} ranks, {context.launcher} started {context.size}: start {ranks}, "
            f"or plan for {context.size} with `hpdlf plan --ranks {context.size}`."
        )


def _start(
    plan: Plan, folder: RunFolder, resume: bool, progress: Progress | None, say: Callable[[str], None]
) -> Run:
    from .affinity import cores_of_rank
    from .energy import EnergyCount
    from .launcher import launch

    available = examine_machine().allowed_cpus
    cluster = cluster_from_toml(plan.cluster_toml, origin=f"the cluster in {folder.plan}")
    threads, wanted = cores_of_rank(cluster, plan.strategy.ranks, available=available)
    if threads < wanted:
        say(f"The plan's devices have {wanted} cores; with {available} here, ranks use {threads} each.")

    command = [sys.executable, "-m", "hpdlf.exec.worker", str(folder.path), *(["--resume"] if resume else [])]
    energy = EnergyCount()
    try:
        if progress:
            progress.follow(folder.metrics)
        with energy:
            launched = launch(
                command,
                plan.strategy.ranks,
                run_folder=folder.path,
                checkpoint_folder=folder.checkpoints,
                max_restarts=plan.max_restarts,
                threads=threads,
                tell=say,
            )
    except BaseException:
        with suppress(RunError):  # the disk may be what failed
            _finish(folder, "failed")
        raise
    finally:
        if progress:
            progress.stop()
    return _finish(
        folder,
        "finished",
        energy_j=energy.energy_j,
        energy_unavailable=energy.unavailable,
        restarts=[f.reason for f in launched.failures],
    )


def _finish(folder: RunFolder, state: str, **more: Any) -> Run:
    about = folder.read() | {"state": state, "ended": _now()} | more
    folder.write(about)
    return Run(folder=folder.path, about=about)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- afterwards -------------------------------------------------------------------------------------------------------


def export(run: str | Path, out: str | Path) -> Path:
    """Write the trained weights of a run's last checkpoint in the original graph.

    Raises:
        RunError: the run has no checkpoint yet.
    """
    folder, target = RunFolder(Path(run)), Path(out)
    about = folder.read()
    found = latest(folder.checkpoints)
    if found is None:
        raise RunError(
            f"{folder.path} has no checkpoint to export: train it first with `hpdlf train PLAN --out {folder.path}`."
        )
    beside = Path(about["model"])
    model = load_onnxpp(beside if beside.is_file() else folder.model)
    names = {n: n.partition("/")[2] for n in found.names if n.startswith(("parameter/", "state/"))}
    export_trained(model, {names[k]: v for k, v in found.read(names).items()}, target)
    return target
