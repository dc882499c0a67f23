"""However a training is cut, it is the same training: losses, tasks, bytes, order, state and what is exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from hpdlf.errors import RunError
from hpdlf.exec.checkpoint import latest
from hpdlf.exec.mpi import find_mpiexec
from hpdlf.exec.run_folder import RunFolder
from hpdlf.exec.sampling import Sampler, split_samples
from hpdlf.exec.train import export
from hpdlf.experiments.compare import violations
from hpdlf.models.plan import Strategy
from hpdlf.models.trace import Trace, read_trace

pytestmark = pytest.mark.mpi

try:
    find_mpiexec()
except RunError as error:
    pytest.skip(str(error), allow_module_level=True)

BATCH, EVERY = 64, 8
DOUBLE: dict[str, Any] = {"batch": BATCH, "precision": "float64"}
SINGLE: dict[str, Any] = {"batch": BATCH, "precision": "float32"}
CUTS: dict[str, dict[str, Any]] = {
    "dp2": {"data": 2, "bucket_bytes": 1000},
    "pp2": {"pipeline": 2, "microbatches": 4},
    "async": {"data": 2, "solver": "asynchronous"},
    "dp2pp2": {"data": 2, "pipeline": 2, "microbatches": 2},
}
SYNCHRONOUS = ["dp2", "pp2", "dp2pp2"]
MORE_CUTS: dict[str, dict[str, Any]] = {
    "gpipe": {"pipeline": 2, "microbatches": 4, "schedule": "gpipe"},
    "dp4": {"data": 4, "microbatches": 2},
    "pp4": {"pipeline": 4, "microbatches": 8},
    "async4": {"data": 4, "solver": "asynchronous"},
}


def dropout_net() -> onnx.ModelProto:
    """Dense, dropout that trains, dense."""
    rng = np.random.default_rng(3)
    weights = {"w1": rng.standard_normal((8, 32)) / 2, "w2": rng.standard_normal((32, 4)) / 4}
    constants = {"ratio": np.float32(0.4), "training": np.bool_(True)}
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"], name="dense1"),
        helper.make_node("Dropout", ["h", "ratio", "training"], ["d"], name="drop"),
        helper.make_node("Relu", ["d"], ["r"], name="act"),
        helper.make_node("MatMul", ["r", "w2"], ["logits"], name="dense2"),
    ]
    return _model(nodes, {k: v.astype(np.float32) for k, v in weights.items()} | constants)


def normalised_net() -> onnx.ModelProto:
    """BatchNormalization of the input itself, so that its running mean has a closed form; then dense."""
    weights = {
        "scale": np.ones(8),
        "bias": np.zeros(8),
        "mean": np.zeros(8),
        "var": np.ones(8),
        "w": np.random.default_rng(3).standard_normal((8, 4)) / 2,
    }
    nodes = [
        helper.make_node("BatchNormalization", ["x", "scale", "bias", "mean", "var"], ["n"], name="bn", momentum=0.75),
        helper.make_node("MatMul", ["n", "w"], ["logits"], name="dense"),
    ]
    return _model(nodes, {k: v.astype(np.float32) for k, v in weights.items()})


def _model(nodes: list[onnx.NodeProto], values: dict[str, Any]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


class Runs:
    """Runs by name, with their plans. Ranks are started once for all runs of that many ranks."""

    def __init__(self, planner: Any, folder: Path, run_under_mpiexec: Any) -> None:
        self.planner, self.folder, self._run = planner, folder, run_under_mpiexec
        self.planned: dict[str, Any] = {}

    def plan(self, name: str, strategy: dict[str, Any], **options: Any) -> None:
        self.planned[name] = self.planner(name, Strategy(**strategy), **options)

    def train(self, ranks: int, *names: str) -> None:
        """Names like "part2 in parts" go on with the run "parts"; the first of them makes it."""
        trainings = []
        for name in names:
            plan, _, folder = name.partition(" in ")
            out = self.folder / (folder or plan)
            resume = out.exists() or any(out == o for _, o, _ in trainings)
            trainings.append((self.planned[plan].path, out, resume))
        done = self._run(ranks, *trainings)
        assert done.returncode == 0, done.stderr[-4000:]

    def __getitem__(self, name: str) -> Path:
        return self.folder / name


EVALUATED: dict[str, Any] = {"evaluation": {"fraction": 0.2}}
MOMENTUM: dict[str, Any] = {"optimizer": {"name": "momentum", "learning_rate": 0.1}}


@pytest.fixture(scope="module")
def runs(planner: Any, run_under_mpiexec: Any, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    found = Runs(planner, tmp_path_factory.mktemp("runs"), run_under_mpiexec)
    found.plan("one", DOUBLE, checkpoint_every=EVERY, **EVALUATED)
    for name, cut in CUTS.items():
        found.plan(name, DOUBLE | cut, checkpoint_every=EVERY, **EVALUATED)
    found.plan("one32", SINGLE, **MOMENTUM)
    found.plan("dp2 32", SINGLE | CUTS["dp2"], **MOMENTUM)
    found.plan("drop one", DOUBLE, model=dropout_net())
    found.plan("drop dp2", DOUBLE | CUTS["dp2"], model=dropout_net())
    found.plan("bn", DOUBLE | CUTS["dp2"], model=normalised_net(), checkpoint_every=EVERY)
    # One training in three parts, each cut in another way.
    for name, cut, steps in (("part1", CUTS["dp2"], 8), ("part2", CUTS["pp2"], 14), ("part3", {}, 20)):
        found.plan(name, DOUBLE | cut, steps=steps, **EVALUATED)
    found.train(2, "dp2", "pp2", "async", "drop dp2", "bn", "part1 in parts", "part2 in parts", "dp2 32")
    found.train(1, "one", "drop one", "part3 in parts", "one32")
    found.train(4, "dp2pp2")
    return found


@pytest.fixture(scope="module")
def more_runs(runs: Runs) -> Runs:
    for name, cut in MORE_CUTS.items():
        runs.plan(name, DOUBLE | cut, checkpoint_every=EVERY, **EVALUATED)
    runs.plan("pp2 32", SINGLE | CUTS["pp2"], **MOMENTUM)
    runs.plan("drop pp2", DOUBLE | CUTS["pp2"], model=dropout_net())
    runs.train(2, "gpipe", "drop pp2", "pp2 32")
    runs.train(4, "dp4", "pp4", "async4")
    return runs


def _trace(run: Path) -> Trace:
    return read_trace(*RunFolder(run).traces())


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_losses_are_those_of_one_rank(runs: Runs, losses: Callable[[Path], list[float]], name: str) -> None:
    expected = losses(runs["one"])
    assert len(expected) == 20
    assert expected[-1] < expected[0] / 2
    np.testing.assert_allclose(losses(runs[name]), expected, rtol=1e-10)


def test_losses_in_single_precision(runs: Runs, losses: Callable[[Path], list[float]]) -> None:
    np.testing.assert_allclose(losses(runs["dp2 32"]), losses(runs["one32"]), rtol=1e-5)


def test_dropout_masks_do_not_depend_on_the_cut(runs: Runs, losses: Callable[[Path], list[float]]) -> None:
    np.testing.assert_allclose(losses(runs["drop dp2"]), losses(runs["drop one"]), rtol=1e-10)


@pytest.mark.slow
def test_more_cuts_are_the_same_training_too(more_runs: Runs, losses: Callable[[Path], list[float]]) -> None:
    expected = losses(more_runs["one"])
    for name, cut in MORE_CUTS.items():
        planned, measured = more_runs.planned[name], _trace(more_runs[name])
        assert measured.task_ids == planned.simulation.trace.task_ids, name
        assert violations(planned.program, measured) == [], name
        if cut.get("solver") != "asynchronous":
            np.testing.assert_allclose(losses(more_runs[name]), expected, rtol=1e-10, err_msg=name)
    np.testing.assert_allclose(losses(more_runs["drop pp2"]), losses(more_runs["drop one"]), rtol=1e-10)
    np.testing.assert_allclose(losses(more_runs["pp2 32"]), losses(more_runs["one32"]), rtol=1e-5)


def test_asynchronous_training_learns(runs: Runs, losses: Callable[[Path], list[float]]) -> None:
    found = losses(runs["async"])
    assert len(found) == 20
    assert found[-1] < found[0] / 2
    about = RunFolder(runs["async"]).read()
    assert set(about["mean_staleness"]) == {"0", "1"}
    assert all(0 <= s <= 20 for s in about["mean_staleness"].values())


@pytest.mark.parametrize("name", CUTS)
def test_simulated_and_measured_tasks_are_the_same(runs: Runs, name: str) -> None:
    simulated, measured = runs.planned[name].simulation.trace, _trace(runs[name])
    assert measured.source == "measured"
    assert measured.task_ids == simulated.task_ids
    checkpoints = {e.step for e in measured.events if e.instruction == "checkpoint"}
    assert checkpoints == {EVERY - 1, 2 * EVERY - 1}


@pytest.mark.parametrize("name", CUTS)
def test_bytes_on_the_wire_are_those_of_the_simulation(runs: Runs, name: str) -> None:
    def by_task(trace: Trace) -> dict[str, int]:
        return {e.task_id: e.payload_bytes for e in trace.events}

    simulated, measured = by_task(runs.planned[name].simulation.trace), by_task(_trace(runs[name]))
    assert measured == simulated
    assert sum(measured.values()) > 0


@pytest.mark.parametrize("name", CUTS)
def test_measured_times_honour_the_program(runs: Runs, name: str) -> None:
    assert violations(runs.planned[name].program, _trace(runs[name])) == []


def test_every_cut_scores_the_same(runs: Runs) -> None:
    def accuracy(run: Path) -> Any:
        return [e["evaluation"]["value"] for e in _metrics(run) if "evaluation" in e][-1]

    assert {accuracy(runs[name]) for name in ("one", *SYNCHRONOUS)} == {accuracy(runs["one"])}
    assert 0.5 < accuracy(runs["async"]) <= 1.0


def _metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_another_cut_takes_up_the_same_training(runs: Runs, losses: Callable[[Path], list[float]]) -> None:
    """Steps 0 to 7 on two replicas, to 13 on two stages, to 19 on one rank: Adam's moments travel along."""
    np.testing.assert_allclose(losses(runs["parts"]), losses(runs["one"]), rtol=1e-10)
    about = RunFolder(runs["parts"]).read()
    assert [(a["ranks"], a["first_attempt"]) for a in about["attempts"]] == [(2, 0), (2, 1), (1, 2)]
    whole, parts = (latest(RunFolder(runs[n]).checkpoints) for n in ("one", "parts"))
    assert whole is not None
    assert parts is not None
    assert whole.names == parts.names
    assert any(n.startswith("opt/") for n in whole.names)
    expected, found = whole.read(), parts.read()
    for tensor in whole.names:
        np.testing.assert_allclose(found[tensor], expected[tensor], rtol=1e-9, atol=1e-12, err_msg=tensor)


def test_running_statistics_are_those_of_the_first_replica(runs: Runs) -> None:
    """mean' = 0.75 mean + 0.25 mean of the replica's own part of the batch, every step."""
    plan, samples = runs.planned["bn"].plan, np.load(runs.planner.folder / "samples.npz")["x"]
    train, _ = split_samples(len(samples), plan.recipe)
    sampler = Sampler(train=train, batch=BATCH, seed=plan.recipe.seed)
    mean = np.zeros(8)
    for step in range(20):
        mine = sampler.rank_indices(step, 0, 0, replicas=2, microbatches=1)
        mean = 0.75 * mean + 0.25 * samples[mine].mean(axis=0)
    found = latest(RunFolder(runs["bn"]).checkpoints)
    assert found is not None
    np.testing.assert_allclose(found.read(["state/mean"])["state/mean"], mean, rtol=1e-10, atol=1e-12)


def test_what_is_exported_scores_as_the_run_did(runs: Runs, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(export(runs["dp2pp2"], tmp_path / "trained.onnx"))
    plan, data = runs.planned["dp2pp2"].plan, np.load(runs.planner.folder / "samples.npz")
    _, kept = split_samples(len(data["x"]), plan.recipe)
    (scores,) = session.run(None, {"x": data["x"][kept].astype(np.float32)})
    accuracy = float((scores.argmax(axis=1) == data["labels"][kept]).mean())
    reported = [e["evaluation"]["value"] for e in _metrics(runs["dp2pp2"]) if "evaluation" in e][-1]
    assert accuracy == pytest.approx(reported, abs=1e-12)


def test_a_run_keeps_what_was_approved_and_predicted(runs: Runs) -> None:
    folder, planned = RunFolder(runs["dp2"]), runs.planned["dp2"]
    assert folder.plan.read_bytes() == planned.path.read_bytes()
    assert read_trace(folder.predicted).task_ids == planned.simulation.trace.task_ids
    about = folder.read()
    assert (about["state"], about["ranks"], about["energy_j"]) == ("finished", 2, None)
    assert about["energy_unavailable"]
    assert set(about["peak_bytes"]) == {"0", "1"}
