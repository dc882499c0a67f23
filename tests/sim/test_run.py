"""Whole runs in closed form: steps, evaluations, checkpoints, input that is too slow, and what they draw."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpdlf.errors import PlanError
from hpdlf.hwprofiles import load_cluster
from hpdlf.models.onnxpp import Graph
from hpdlf.models.plan import Strategy
from hpdlf.sim import Simulation, simulate
from hpdlf.sim.run import CheckpointPlan, EvaluationPlan, InputPlan, Run, evaluation_strategy, run_of, simulate_run

CLUSTER = load_cluster("dgx-a100:2")


@pytest.fixture(scope="module")
def step(digits: Graph) -> Simulation:
    return simulate(digits, CLUSTER, Strategy(batch=256, data=16))


@pytest.fixture(scope="module")
def forward(digits: Graph) -> Simulation:
    return simulate(digits, CLUSTER, Strategy(batch=256, data=16), training=False)


def test_a_run_of_steps_alone_takes_their_time(step: Simulation) -> None:
    found = run_of(step, Run(total_steps=100, startup_s=30.0))
    assert found.time_to_train_s.value == pytest.approx(100 * step.figures.step_s.value)
    assert found.time_to_train_s.high == pytest.approx(100 * step.figures.step_s.high)
    assert found.total_s.value == pytest.approx(30.0 + 100 * step.figures.step_s.value)
    assert found.samples_per_s.value == pytest.approx(step.figures.samples_per_s.value)
    assert step.figures.power is not None
    power = found.node_power_w("dc")
    assert power is not None
    assert power.value == pytest.approx(step.figures.power.dc_w.value)


def test_samples_and_epochs_fill_whole_steps() -> None:
    assert Run(samples=1000).steps(batch=256) == 4
    assert Run(epochs=2, samples_per_epoch=512).steps(batch=256) == 4
    assert Run(epochs=0.5, samples_per_epoch=512).steps(batch=256) == 1


def test_evaluations_come_as_often_as_planned_and_at_the_end(step: Simulation, forward: Simulation) -> None:
    plan = EvaluationPlan(every_samples=2560, samples=1000, first_samples=5120, overhead_s=0.5)
    found = run_of(step, Run(samples=256 * 45, evaluation=plan), evaluation=forward)
    evaluation = found.phases[-1]
    # After 20, 30 and 40 steps, and at the end after 45; 1,000 samples are four steps.
    assert (evaluation.name, evaluation.times) == ("evaluation", 4)
    assert evaluation.seconds.value == pytest.approx(4 * (4 * forward.figures.step_s.value + 0.5))
    assert found.time_to_train_s.value == pytest.approx(45 * step.figures.step_s.value + evaluation.seconds.value)
    exact = run_of(step, Run(samples=256 * 40, evaluation=plan), evaluation=forward)
    assert exact.phases[-1].times == 3  # the last one is the one at the end


def test_a_blocking_checkpoint_stops_training_and_another_only_when_the_last_is_not_written(step: Simulation) -> None:
    step_s = step.figures.step_s.value
    nbytes = 2 * 1e9 * 5 * step_s  # five steps at 1 GB/s of two nodes
    plan = CheckpointPlan(every_samples=2560, nbytes=nbytes, bytes_per_s=1e9)
    blocking = run_of(step, Run(total_steps=25, checkpoint=plan))
    assert blocking.total_s.value == pytest.approx((25 + 2 * 5) * step_s)
    behind = run_of(step, Run(total_steps=25, checkpoint=replace(plan, blocking=False)))
    assert behind.total_s.value == pytest.approx(25 * step_s)
    slow = run_of(step, Run(total_steps=20, checkpoint=replace(plan, nbytes=3 * nbytes, blocking=False)))
    # The second waits five steps for the first to be written, and is written itself for fifteen more.
    assert slow.total_s.value == pytest.approx((20 + 5 + 15) * step_s)
    assert slow.phases[-1].times == 2


@settings(max_examples=50, deadline=None)
@given(ratio=st.floats(0.05, 5.0), steps=st.integers(1, 200), prefetch=st.floats(1.0, 8.0))
def test_the_slower_of_hosts_and_devices_sets_the_pace(
    step: Simulation, ratio: float, steps: int, prefetch: float
) -> None:
    step_s = step.figures.step_s.value
    load_s = ratio * step_s
    feeding = InputPlan(core_s_per_sample=load_s / 128 * 4, cores=4, prefetch_steps=prefetch)
    found = run_of(step, Run(total_steps=steps, input=feeding)).total_s.value
    assert found == pytest.approx(load_s + (steps - 1) * max(load_s, step_s) + step_s)
    # Steps that were made ready during start-up are consumed first.
    warm = run_of(step, Run(total_steps=steps, input=feeding, startup_s=100 * load_s)).time_to_train_s.value
    assert warm == pytest.approx(max(steps * step_s, (steps - prefetch) * load_s + step_s))


def test_storage_can_be_what_input_waits_for() -> None:
    assert InputPlan(bytes_per_sample=1e5, bytes_per_s=1e9).samples_per_s == pytest.approx(1e4)
    assert InputPlan(core_s_per_sample=0.01, cores=64, bytes_per_sample=1e5, bytes_per_s=1e9).samples_per_s == 6400
    assert InputPlan().samples_per_s == float("inf")


def test_energy_money_and_carbon_of_a_run(digits: Graph) -> None:
    plan = EvaluationPlan(every_samples=2560, samples=512)
    checkpoint = CheckpointPlan(every_samples=5120)
    run = Run(samples=10_000, startup_s=60, evaluation=plan, checkpoint=checkpoint)
    found = simulate_run(digits, CLUSTER, Strategy(batch=256, data=16), run)
    energy, nodes_ac, nodes_dc = found.energy_j, found.node_energy_j("ac"), found.node_energy_j("dc")
    assert energy is not None
    assert nodes_ac is not None
    assert nodes_dc is not None
    assert 0 < nodes_dc.value < nodes_ac.value < energy.value
    assert energy.low < energy.value < energy.high
    frame = found.to_frame()
    assert list(frame["phase"]) == ["start-up", "training", "evaluation", "checkpoint"]
    assert frame["seconds"].sum() == pytest.approx(found.total_s.value)
    assert found.cost_usd is not None
    plain = found.to_dict()
    assert plain["steps"] == 40
    assert plain["phases"][0]["times"] == 1


def test_the_batch_of_an_evaluation_is_cut_as_far_as_it_divides() -> None:
    training = Strategy(batch=256, data=4, microbatches=8)
    assert evaluation_strategy(training, 96).microbatches == 8
    assert evaluation_strategy(training, 20).microbatches == 5
    with pytest.raises(PlanError, match="use 8"):
        evaluation_strategy(training, 10)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({}, "none"),
        ({"samples": 1, "total_steps": 1}, "give one"),
        ({"epochs": 1}, "samples_per_epoch"),
        ({"samples": -1}, "above 0"),
    ],
)
def test_runs_that_cannot_be_are_refused(said: dict[str, float], problem: str) -> None:
    with pytest.raises(PlanError, match=problem):
        Run(**said)  # type: ignore[arg-type]


def test_what_a_run_needs_is_asked_for(step: Simulation) -> None:
    with pytest.raises(PlanError, match="evaluation="):
        run_of(step, Run(samples=10, evaluation=EvaluationPlan(every_samples=5, samples=5)))
    with pytest.raises(PlanError, match="nbytes"):
        run_of(step, Run(samples=10, checkpoint=CheckpointPlan(every_samples=5)))
