"""Both sides of the benchmark simulate the same step."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from hpdlf.experiments.benchmark_scale import CASES, measure
from hpdlf.experiments.benchmark_scale import main as scale_main
from hpdlf.experiments.benchmark_simulator import (
    Workload,
    benchmark,
    folded_end_s,
    main,
    program_of,
    replayed_end_s,
    unfolded_end_s,
)
from hpdlf.models.program import check

SMALL = [Workload(1, 1, 1, 1), Workload(1, 4, 3, 2), Workload(4, 1, 2, 3), Workload(3, 4, 2, 5), Workload(4, 8, 3, 4)]


@pytest.mark.parametrize("workload", SMALL)
def test_all_ways_end_at_the_same_time(workload: Workload) -> None:
    program = program_of(workload)
    assert check(program) == []
    expected_s = replayed_end_s(workload)
    assert abs(folded_end_s(workload, program) - expected_s) < 1e-9
    assert abs(unfolded_end_s(workload, program) - expected_s) < 1e-9


@pytest.mark.parametrize("workload", SMALL)
def test_ranks_of_different_speeds_end_when_the_replay_says(workload: Workload) -> None:
    speed = np.random.default_rng(3).lognormal(0.0, 0.1, workload.stages * workload.replicas).tolist()
    assert abs(unfolded_end_s(workload, program_of(workload), speed) - replayed_end_s(workload, speed)) < 1e-9


def test_the_step_ends_when_one_can_work_it_out() -> None:
    """One stage, one microbatch: 3 layers of 3 ms, the last reduced when all others are; hidden but for what is longer."""
    ring_s = 2 * 3 * (500e-9 + 64 * 2**20 / 50e9)
    assert replayed_end_s(Workload(1, 4, 3, 1)) == pytest.approx(3 * 1e-3 + 2e-3 + 3 * ring_s)


def test_folding_is_much_faster() -> None:
    """The bars are for a quiet machine; here it is only seen that they are not far away."""
    row = benchmark(Workload(8, 8, 12, 64), repeats=2)
    assert row.tasks == 116_224
    assert row.speedup > 4.0
    assert row.unfolded_s < row.replay_s


def test_a_large_plan_is_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    case = replace(CASES[0], layers=4, hidden=256, heads=4, pipeline=2, microbatches=4)
    scale = measure(case)
    assert (scale.devices, scale.classes, scale.microbatches) == (8 * 2 * 6, 2, 4)
    assert scale.step_s > 0.0
    with pytest.raises(SystemExit):
        scale_main(["no such case"])
    assert "there are" in capsys.readouterr().err


def test_figures_come_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpdlf.experiments.benchmark_simulator.WORKLOADS", (Workload(2, 2, 2, 2),))
    assert main(["--json", "--no-scale", "--repeats", "1"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said) == {"workloads", "scale"}
    assert set(said["workloads"][0]) >= {"name", "tasks", "replay_s", "generate_s", "folded_s", "unfolded_s"}
