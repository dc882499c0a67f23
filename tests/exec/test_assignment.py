"""What ranks read from a run's folder, and which checkpoints they may go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpdlf.errors import RunError
from hpdlf.exec.assignment import Assignment, TrainingData
from hpdlf.exec.checkpoint import write_manifest, write_shard
from hpdlf.exec.run_folder import RunFolder
from hpdlf.models.plan import Strategy


@pytest.fixture
def assignment(planner: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Assignment:
    monkeypatch.setenv("HPDLF_ATTEMPT", "2")
    strategy = Strategy(batch=64, data=2, pipeline=2, precision="float64")
    made = planner("mine", strategy, evaluation={"fraction": 0.25}, steps=None, epochs=3, checkpoint_every=5)
    folder = RunFolder(tmp_path)
    folder.keep({folder.plan: made.path, folder.model: made.path.with_suffix(".onnx")})
    base = str(made.path.parent)
    folder.write({"first_attempt": 3, "model": str(folder.model), "base_folder": base, "plan_sha256": "0"})
    return Assignment.read(folder)


def checkpoint(assignment: Assignment, step: int, **changes: Any) -> None:
    folder = assignment.folder.checkpoints
    shard = write_shard(folder, step=step, name="stage0", tensors={"parameter/w": np.zeros(3)})
    about = assignment.identity | changes
    write_manifest(folder, step=step, epoch=0, seed=0, plan_sha256="", shards=[shard], about=about)


def test_programs_attempt_and_data(assignment: Assignment) -> None:
    assert assignment.attempt == 5
    assert assignment.program.mesh.size == assignment.evaluation.mesh.size == 4
    assert any(i.every == 5 for r in assignment.program.roles for i in r.instructions)
    data = TrainingData.open(assignment)
    assert (data.sampler.steps_per_epoch, data.steps, len(data.held_out)) == (3, 9, 80)
    assert data.scored is data.dataset
    assert data.dataset.read(np.arange(2), ["x"])["x"].dtype == np.float64


def test_no_checkpoint_yet(assignment: Assignment) -> None:
    assert assignment.checkpoint(steps=20) is None


def test_another_cut_may_go_on(assignment: Assignment) -> None:
    checkpoint(assignment, 12)
    found = assignment.checkpoint(steps=12)
    assert found is not None
    assert found.step == 12


def test_another_training_may_not(assignment: Assignment) -> None:
    checkpoint(assignment, 12, seed=7, batch=32)
    with pytest.raises(RunError, match=r"is of another training: batch 32 there, 64 here; seed 7 there, 0 here\. Give"):
        assignment.checkpoint(steps=20)


def test_a_training_that_ended_before(assignment: Assignment) -> None:
    checkpoint(assignment, 12)
    with pytest.raises(
        RunError, match=r"is after step 12, but the plan's training ends after 11\. Give the recipe more"
    ):
        assignment.checkpoint(steps=11)


def test_ranks_follow_the_hints_of_the_plan(assignment: Assignment) -> None:
    from dataclasses import replace

    from hpdlf.errors import ModelError
    from hpdlf.models.onnxpp import load_onnxpp, save_onnxpp
    from hpdlf.models.onnxpp.hints import Hint, with_hints

    assert not any(o.lowering for o in assignment.model.graph.operators)
    folder = assignment.folder
    name = assignment.model.graph.operators[0].name
    hinted = with_hints(load_onnxpp(folder.model), "mine", {name: {"forward": Hint(way="im2col")}})
    save_onnxpp(replace(hinted, folder=folder.path), folder.model)
    message = rf"{name!r}.*its forward lowering 'im2col' cannot compute linear .*; there are xla, swapped.*hpdlf plan"
    with pytest.raises(ModelError, match=message):
        Assignment.read(folder)
