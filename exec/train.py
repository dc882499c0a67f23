"""Training an approved plan: check the approval, lay out the run's folder, start the ranks, see them through."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import PlanError, RunError
from ..models.onnxpp import export_trained, load_onnxpp
from ..models.plan import Plan, approval_path, check_approval, file_sha256
from .checkpoint import latest
from .data import data_sha256
from .environment import examine_machine, package_versions
from .run_folder import RunFolder

if TYPE_CHECKING:
    from .progress import Progress

__all__ = ["Run", "export", "train"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that ended well: its folder, and what its run.json says."""

    folder: Path
    about: dict[str, Any]


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

    Raises:
        ApprovalError: the plan is not approved, or something changed since.
        PlanError: the plan names no data, or was made for another number of ranks than were started.
        RunError: the run failed, or `out` already holds one.
    """
    plan_path, folder = Path(plan_path).resolve(), RunFolder(Path(out).resolve())
    plan = _approved(plan_path)
    from .mpi import detect_mpi_context

    context = detect_mpi_context()
    if context and context.size != plan.strategy.ranks:
        raise PlanError(
            f"{plan_path.name} is a plan for {plan.strategy.ranks} ranks, {context.launcher} started {context.size}: start "
            f"{plan.strategy.ranks}, or plan for {context.size} with `hpdlf plan --ranks {context.size}`."
        )
    if context is None or context.rank == 0:
        _lay_out(plan_path, plan, folder, resume)
    if context:
        return _join(folder, resume, context.size)
    return _start(plan, folder, resume, progress, tell)


def _approved(plan_path: Path) -> Plan:
    from ..models.plan import load_plan

    plan = load_plan(plan_path)
    source = plan.recipe.data.source
    if source is None:
        raise PlanError(
            f"{plan_path} names no data to train on: write a recipe with `[data]` and `source = ...`, then plan again with "
            "`hpdlf plan --recipe RECIPE`."
        )
    plan, _ = check_approval(plan_path, data_sha256=data_sha256(source, base_folder=plan_path.parent))
    return plan


def _lay_out(plan_path: Path, plan: Plan, folder: RunFolder, resume: bool) -> None:
    exists = (folder.path / "run.json").is_file()
    if exists and not resume:
        raise RunError(f"{folder.path} already holds a run: go on with it by `--resume`, or choose another `--out`.")
    if not exists and folder.path.is_dir() and any(folder.path.iterdir()):
        raise RunError(f"{folder.path} is not empty and holds no run: choose another `--out`.")
    before = folder.read() if exists else {}
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        folder.checkpoints.mkdir(exist_ok=True)
        shutil.copyfile(plan_path, folder.plan)
        shutil.copyfile(approval_path(plan_path), folder.approval)
        model = plan_path.parent / plan.model.path
        shutil.copyfile(model, folder.model)
    except OSError as error:
        raise RunError(f"{folder.path}: the run's folder cannot be written: {error.strerror}. Choose another `--out`.") from None
    folder.write(
        {
            "state": "running",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "ended": None,
            "plan": str(plan_path),
            "plan_sha256": file_sha256(plan_path),
            "model": str(model),
            "base_folder": str(plan_path.parent),
            "ranks": plan.strategy.ranks,
            "machine": examine_machine().as_dict(),
            "versions": package_versions(),
            "attempts": [*before.get("attempts", []), {"plan_sha256": file_sha256(plan_path), "ranks": plan.strategy.ranks}],
            "first_attempt": _attempts(folder),
            "energy_j": None,
            "peak_bytes": {},
        }
    )
    _predict(plan, folder)


def _predict(plan: Plan, folder: RunFolder) -> None:
    """Keep the simulated trace that came with the plan beside the run: the planner wrote it next to the plan's model."""
    source = Path(folder.read()["plan"]).with_suffix(".trace.jsonl")
    if source.is_file():
        shutil.copyfile(source, folder.predicted)


def _join(folder: RunFolder, resume: bool, ranks: int) -> Run:
    """Be one of the ranks that somebody else started."""
    if ranks > 1:
        from mpi4py import MPI

        MPI.COMM_WORLD.Barrier()  # rank 0 has laid out the folder
    from .worker import work

    if code := work(folder, resume=resume):
        raise SystemExit(code)
    return _finish(folder, "finished")


def _start(plan: Plan, folder: RunFolder, resume: bool, progress: Progress | None, tell: Callable[[str], None] | None) -> Run:
    from .energy_meters import find_meters
    from .launcher import launch

    command = [sys.executable, "-m", "hpdlf.exec.worker", str(folder.path), *(["--resume"] if resume else [])]
    meters = find_meters().found
    before_j = [m.read_j() for m in meters]
    try:
        if progress:
            progress.follow(folder.metrics)
        launched = launch(
            command,
            plan.strategy.ranks,
            run_folder=folder.path,
            checkpoint_folder=folder.checkpoints,
            max_restarts=plan.max_restarts,
            tell=tell,
        )
    except BaseException:
        _finish(folder, "failed")
        raise
    finally:
        if progress:
            progress.stop()
    about = folder.read()
    about["energy_j"] = sum(m.read_j() - j for m, j in zip(meters, before_j, strict=True)) if meters else None
    about["restarts"] = [f.reason for f in launched.failures]
    folder.write(about)
    return _finish(folder, "finished")


def _attempts(folder: RunFolder) -> int:
    """How often ranks were started in this folder before."""
    return len({p.name.rpartition("attempt")[2] for p in folder.traces()})


def _finish(folder: RunFolder, state: str) -> Run:
    about = folder.read()
    about |= {"state": state, "ended": datetime.now(UTC).isoformat(timespec="seconds")}
    folder.write(about)
    return Run(folder=folder.path, about=about)


def export(run: str | Path, out: str | Path) -> Path:
    """Write the trained weights of a run's last checkpoint in the original graph.

    Raises:
        RunError: the run has no checkpoint yet.
    """
    folder, target = RunFolder(Path(run)), Path(out)
    about = folder.read()
    found = latest(folder.checkpoints)
    if found is None:
        raise RunError(f"{folder.path} has no checkpoint to export: train it first with `hpdlf train PLAN --out {folder.path}`.")
    model = load_onnxpp(Path(about["model"]) if os.path.isfile(about["model"]) else folder.model)
    names = {n: n.partition("/")[2] for n in found.names if n.startswith(("parameter/", "state/"))}
    export_trained(model, {names[k]: v for k, v in found.read(names).items()}, target)
    return target
