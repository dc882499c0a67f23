"""What `train` refuses before a rank starts, how it lays out a run, and ranks that somebody else has started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpdlf.errors import ApprovalError, DataError, HpdlfError, PlanError, RunError
from hpdlf.exec.checkpoint import write_manifest, write_shard
from hpdlf.exec.run_folder import RunFolder
from hpdlf.exec.train import Run, export, train
from hpdlf.models.plan import Strategy, approval_path


@pytest.fixture(scope="module")
def made(planner: Any) -> Any:
    """One approved plan for one rank."""
    return planner("one", Strategy(batch=64))


@pytest.fixture
def plan(made: Any, tmp_path: Path) -> Path:
    """A copy of it, with its model and data, to spoil."""
    folder = tmp_path / "plans"
    shutil.copytree(made.path.parent, folder)
    return folder / made.path.name


def refused(plan: Path, kind: type[HpdlfError], match: str, **options: Any) -> None:
    """It is refused with this message, and no folder of a run is left."""
    out = plan.parent.parent / "run"
    with pytest.raises(kind, match=match):
        train(plan, out, **options)
    assert not out.exists()


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def test_a_plan_that_nobody_approved(plan: Path) -> None:
    approval_path(plan).unlink()
    refused(plan, ApprovalError, rf"is not approved.*`hpdlf approve {plan}`")


def test_a_plan_that_changed(plan: Path) -> None:
    plan.write_text(plan.read_text().replace('"max_restarts": 3', '"max_restarts": 4'))
    refused(plan, ApprovalError, r"changed since it was approved.*\n  the plan one\.json")


@pytest.mark.parametrize(("file", "told"), [("one.onnx", "one.onnx"), ("samples.npz", "the training data")])
def test_a_byte_of_the_model_or_the_data_changed(plan: Path, file: str, told: str) -> None:
    change_a_byte(plan.parent / file)
    refused(plan, ApprovalError, rf"changed since it was approved.*\n  {told}")


def test_everything_changed_is_told_at_once(plan: Path) -> None:
    for file in ("one.onnx", "samples.npz"):
        change_a_byte(plan.parent / file)
    refused(plan, ApprovalError, r"one\.onnx\n  the training data")


def test_data_that_is_gone(plan: Path) -> None:
    (plan.parent / "samples.npz").unlink()
    refused(plan, DataError, r"samples\.npz")


def test_a_plan_without_data(plan: Path) -> None:
    table = json.loads(plan.read_text())
    table["recipe"]["data"]["source"] = None
    plan.write_text(json.dumps(table))
    refused(plan, PlanError, "names no data to train on")


def test_refusals_are_the_users_mistakes() -> None:
    assert (ApprovalError.exit_code, PlanError.exit_code, RunError.exit_code) == (2, 2, 1)


def test_a_folder_that_holds_a_run_or_something_else(plan: Path, tmp_path: Path) -> None:
    other = tmp_path / "holiday"
    other.mkdir()
    (other / "picture.jpg").write_bytes(b"1")
    with pytest.raises(RunError, match="is not empty and holds no run"):
        train(plan, other)
    assert [p.name for p in other.iterdir()] == ["picture.jpg"]
    RunFolder(other).write({})
    with pytest.raises(RunError, match="already holds a run: go on with it by `--resume`"):
        train(plan, other)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_folder_that_cannot_be_made(plan: Path) -> None:
    with pytest.raises(RunError, match="the run's folder cannot be written"):
        train(plan, Path("/dev/full/run"))


def test_files_that_cannot_all_be_kept_leave_those_before(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.plan.write_text("the plan before")
    (tmp_path / "new").write_text("the new plan")
    with pytest.raises(FileNotFoundError):
        folder.keep({folder.plan: tmp_path / "new", folder.model: tmp_path / "absent"})
    assert folder.plan.read_text() == "the plan before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "plan.json"]


def test_attempts_are_numbered_on_whatever_ranks_have_left(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.next_attempt() == 0
    folder.trace(1, 0).touch()
    folder.trace(0, 4).touch()
    assert folder.next_attempt() == 5


def test_a_run_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        export(tmp_path, tmp_path / "trained.onnx")


# --- ranks that somebody else started --------------------------------------------------------------------------------


def as_rank(plan: Path, out: Path, *more: str, size: int = 2) -> subprocess.CompletedProcess[str]:
    """`hpdlf train` as rank 0 of a world that mpiexec did not really start."""
    world = {"OMPI_COMM_WORLD_SIZE": str(size), "OMPI_COMM_WORLD_RANK": "0"}
    command = [sys.executable, "-m", "hpdlf", "train", str(plan), "--out", str(out), *more]
    return subprocess.run(
        command, env={**os.environ, **world}, capture_output=True, text=True, timeout=100, check=False
    )


@pytest.mark.mpi
def test_an_mpiexec_that_is_not_that_of_mpi4py(plan: Path, tmp_path: Path) -> None:
    done = as_rank(plan, tmp_path / "run")
    assert done.returncode == 1
    assert "started 2 ranks, but mpi4py's MPI" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.mpi
def test_a_world_of_another_size_than_the_plan(
    plan: Path, tmp_path: Path, run_under_mpiexec: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run_under_mpiexec(2, (plan, tmp_path / "run", False))
    assert done.returncode == 2
    told = "one.json is a plan for 1 ranks, mpiexec (Open MPI) started 2: start 1, or plan for 2 with `hpdlf plan --ranks 2`."
    assert done.stderr.count(told) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.mpi
def test_a_checkpoint_of_another_training(planner: Any, tmp_path: Path) -> None:
    """Refused by the only rank of a world that somebody else started."""
    folder = RunFolder(tmp_path / "run")
    shard = write_shard(folder.checkpoints, step=30, name="stage0", tensors={"parameter/w": np.zeros(3)})
    model = planner("other", Strategy(batch=64))
    about = {"model": "of another", "batch": 64, "seed": 0}
    write_manifest(
        folder.checkpoints, step=30, epoch=0, seed=0, plan_sha256="", shards=[shard], about=about
    )
    folder.write({})
    done = as_rank(model.path, folder.path, "--resume", size=1)
    assert done.returncode == 1
    assert "is of another training: model of another there" in done.stderr
    assert "Traceback" not in done.stderr
    assert folder.read()["state"] == "failed"


def test_a_run_turns_into_a_table_and_a_picture(tmp_path: Path) -> None:
    lines = [
        {"step": 0, "loss": 2.0, "samples_per_s": None, "time_s": 0.1, "attempt": 0},
        {"step": 1, "loss": 9.0, "samples_per_s": 5.0, "time_s": 0.2, "attempt": 0},
        {"step": 1, "loss": 1.0, "samples_per_s": 5.0, "time_s": 0.2, "attempt": 1},
        {"step": 2, "evaluation": {"metric": "accuracy", "value": 0.5}, "attempt": 1},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = Run(folder=tmp_path, about={})
    assert run.to_frame()[["step", "loss", "attempt"]].to_numpy().tolist() == [[0, 2.0, 0], [1, 1.0, 1]]
    assert run.plot().axes[0].lines[0].get_ydata().tolist() == [2.0, 1.0]
