"""A rank from start to end: when it evaluates, what it saves, how it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpdlf.errors import RunError
from hpdlf.exec.checkpoint import checkpoints
from hpdlf.exec.mpi import find_mpiexec
from hpdlf.exec.run_folder import RunFolder
from hpdlf.models.plan import Strategy

pytestmark = pytest.mark.mpi

try:
    find_mpiexec()
except RunError as error:
    pytest.skip(str(error), allow_module_level=True)


def test_evaluations_and_checkpoints_of_a_run_that_goes_on_at_the_end_of_an_epoch(
    planner: Any, run_under_mpiexec: Any, tmp_path: Path
) -> None:
    """Four steps an epoch. A run that goes on just where an evaluation is due makes up for it: it may have been missed."""
    evaluated = {"evaluation": {"fraction": 0.2}, "checkpoint_every": 3, "keep_checkpoints": 9}
    short = planner("short", Strategy(batch=64), steps=8, **evaluated)
    long = planner("long", Strategy(batch=64), steps=14, **evaluated)
    folder = RunFolder(tmp_path / "run")
    done = run_under_mpiexec(
        1, (short.path, folder.path, False), (long.path, folder.path, True), (long.path, folder.path, True)
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "step" in line] == [
        "Going on after step 8.",
        "Going on after step 14.",
    ]
    entries = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    found = [(e["attempt"], e["step"], "evaluation" in e) for e in entries]
    assert [f for f in found if f[2]] == [
        (0, 4, True), (0, 8, True), (1, 8, True), (1, 12, True), (1, 14, True), (2, 14, True)
    ]  # fmt: skip
    assert [f[:2] for f in found if not f[2]] == [(0, s) for s in range(8)] + [(1, s) for s in range(8, 14)]
    scores = {e["step"]: e["evaluation"]["value"] for e in entries if "evaluation" in e}
    assert all(0.25 < score <= 1.0 for score in scores.values())
    assert [c.step for c in checkpoints(folder.checkpoints)] == [3, 6, 8, 9, 12, 14]
    assert folder.read()["state"] == "finished"
    assert sorted(p.name for p in folder.traces()) == [f"trace.rank0.attempt{a}.jsonl" for a in range(3)]
    assert folder.read()["energy_unavailable"] == [
        "energy: only a run that `hpdlf train` starts itself reads the counters"
    ]
