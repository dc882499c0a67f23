"""What `plan` writes: three files that belong together, from which exactly the predicted program can be run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import convert_model_to_external_data

from hpdlf.errors import DataError, PlanError
from hpdlf.experiments.narrowing import narrowed_search
from hpdlf.experiments.planning import PlanResult, plan
from hpdlf.hwprofiles import Cluster, cluster_from_toml, load_cluster
from hpdlf.models.onnxpp import Onnxpp, annotation, import_model, load_onnxpp, load_values
from hpdlf.models.plan import Partition, Recipe, file_sha256, load_plan
from hpdlf.models.plan.recipe import Data, Evaluation
from hpdlf.models.program.lower import lower
from hpdlf.models.trace import read_trace
from hpdlf.models.zoo import digits_cnn
from hpdlf.sim import simulate_program

ROW = np.ones((1, 1, 8, 8), np.float32)


@pytest.fixture
def model(tmp_path: Path) -> Onnxpp:
    onnx.save(digits_cnn(channels=(4, 8), hidden=16), tmp_path / "digits.onnx")
    return import_model(tmp_path / "digits.onnx", loss="softmax_xent")


@pytest.fixture
def cluster() -> Cluster:
    return load_cluster("generic-x86:1x4")


def write_data(path: Path, samples: int = 160) -> None:
    np.savez(path, x=np.repeat(ROW, samples, axis=0), labels=np.arange(samples) % 10)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe in a folder of its own, its data beside it."""
    folder = tmp_path / "training"
    folder.mkdir()
    write_data(folder / "train.npz")
    (folder / "recipe.toml").write_text('epochs = 3\ncheckpoint_every = 2\n[data]\nsource = "train.npz"\n')
    return folder / "recipe.toml"


def test_files_belong_together(model: Onnxpp, cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "plans" / "p.json"
    out.parent.mkdir()
    found = plan(model, on=cluster, batch=32, ranks=4, recipe=recipe, out=out)
    assert sorted(p.name for p in out.parent.iterdir()) == ["p.json", "p.onnx", "p.trace.jsonl"]
    written = load_plan(out)
    assert written == found.plan
    assert written.model.sha256 == file_sha256(out.with_suffix(".onnx"))
    assert written.placement == (0, 1, 2, 3)
    assert cluster_from_toml(written.cluster_toml, origin="the plan").sha256 == cluster.sha256 == written.cluster_sha256
    assert (out.parent / str(written.recipe.data.source)).resolve() == recipe.with_name("train.npz")
    onnx.checker.check_model(str(out.with_suffix(".onnx")))


def test_the_predicted_program_is_the_one_that_will_run(
    model: Onnxpp, cluster: Cluster, recipe: Path, tmp_path: Path
) -> None:
    """Lowering what the files say gives the very trace and figures that the plan promises, checkpoints included."""
    out = tmp_path / "p.json"
    plan(model, on=cluster, batch=32, recipe=recipe, out=out, data=2, pipeline=2, microbatches=4)
    written, annotated = load_plan(out), load_onnxpp(out.with_suffix(".onnx"))
    placed = annotation(annotated, written.configuration)
    cut = Partition(
        stages={name: p.stage for name, p in placed.items()}, segments={name: p.segment for name, p in placed.items()}
    )
    options = {"optimizer": written.recipe.optimizer.name}
    program = lower(annotated.graph, cut, written.strategy, checkpoint_every=written.recipe.checkpoint_every, **options)
    again = simulate_program(program, annotated.graph, cluster, precision=written.strategy.precision, **options)
    told = read_trace(out.with_suffix(".trace.jsonl"))
    assert told.task_ids == again.trace.task_ids
    assert any("checkpoint" in i.id for role in program.roles for i in role.instructions)
    assert written.prediction["figures"]["step_s"]["value"] == again.figures.step_s.value
    assert written.prediction["samples_per_epoch"] == 160


def test_the_same_question_has_the_same_answer(model: Onnxpp, cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    before: dict[str, bytes] = {}
    for _ in range(2):
        plan(model, on=cluster, batch=32, ranks=2, recipe=recipe, out=tmp_path / "p.json")
        now = {s: (tmp_path / f"p{s}").read_bytes() for s in (".json", ".onnx", ".trace.jsonl")}
        assert before in ({}, now)
        before = now


def test_external_weights_come_along_and_are_hashed(cluster: Cluster, tmp_path: Path) -> None:
    proto = digits_cnn(channels=(4, 8), hidden=16)
    convert_model_to_external_data(proto, location="weights.bin", size_threshold=0)
    (tmp_path / "a").mkdir()
    onnx.save(proto, tmp_path / "a" / "m.onnx")
    model = import_model(tmp_path / "a" / "m.onnx", loss="softmax_xent")
    (tmp_path / "b").mkdir()
    found = plan(model, on=cluster, batch=32, ranks=2, out=tmp_path / "b" / "p.json")
    (weights,) = found.plan.external
    assert weights.path == "weights.bin"
    assert weights.sha256 == file_sha256(tmp_path / "b" / "weights.bin")
    name = model.graph.parameters[0]
    values = load_values(load_onnxpp(tmp_path / "b" / "p.onnx"), [name])
    np.testing.assert_array_equal(values[name], load_values(model, [name])[name])


def test_weights_outside_the_plans_folder_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    proto = digits_cnn(channels=(4, 8), hidden=16)
    convert_model_to_external_data(proto, location="w.bin", size_threshold=0)
    for name in ("weights", "model"):
        (tmp_path / name).mkdir()
    onnx.save(proto, tmp_path / "weights" / "m.onnx")
    moved = onnx.load(tmp_path / "weights" / "m.onnx", load_external_data=False)
    for entry in (e for t in moved.graph.initializer for e in t.external_data if e.key == "location"):
        entry.value = "../weights/w.bin"
    source = tmp_path / "model" / "m.onnx"
    source.write_bytes(moved.SerializeToString())
    model = import_model(source, loss="softmax_xent", allow_external=[tmp_path / "weights"])
    with pytest.raises(PlanError, match="lie outside the plan's folder"):
        plan(model, on=cluster, batch=32, ranks=2, out=tmp_path / "model" / "p.json")
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["m.onnx"]


def test_parts_of_the_strategy_can_be_fixed(model: Onnxpp, cluster: Cluster, tmp_path: Path) -> None:
    def chosen(**parts: object) -> PlanResult:
        return plan(model, on=cluster, batch=24, out=tmp_path / "p.json", **parts)  # type: ignore[arg-type]

    found = chosen(data=3)  # no power of two
    assert {c.strategy.data for c in found.search.ranked} == {3}
    assert found.plan.reason.startswith("Asked for: data 3. ")
    found = chosen(pipeline=2, schedule="gpipe")
    assert {(c.strategy.pipeline, c.strategy.schedule) for c in found.search.ranked} == {(2, "gpipe")}
    found = chosen(data=2, pipeline=2, microbatches=3, schedule="1f1b")
    assert len(found.search.ranked) == 1
    assert found.plan.strategy.microbatches == 3
    with pytest.raises(PlanError, match=r"`--data 5` needs 5 devices, cluster generic-x86:1x4 has 4 devices"):
        chosen(data=5)
    with pytest.raises(PlanError, match="use a multiple of 7"):
        chosen(microbatches=7)
    with pytest.raises(PlanError, match="and 3 ranks"):
        chosen(data=2, ranks=3)


def test_a_narrowed_search_agrees_with_the_whole_one(model: Onnxpp, cluster: Cluster, tmp_path: Path) -> None:
    whole = plan(model, on=cluster, batch=32, out=tmp_path / "p.json").search
    narrow = narrowed_search(model.graph, cluster, fixed={"pipeline": 2}, batch=32)
    tried = {str(c.strategy) for c in (*whole.ranked, *whole.set_aside) if c.strategy.pipeline == 2}
    assert {str(c.strategy) for c in (*narrow.ranked, *narrow.set_aside)} == tried
    expected = {str(c.strategy): c.objective("time") for c in whole.ranked if c.strategy.pipeline == 2}
    found = {str(c.strategy): c.objective("time") for c in narrow.ranked}
    assert {name: found[name] for name in expected if name in found} == pytest.approx(
        {name: value for name, value in expected.items() if name in found}
    )


def test_choosing_another_place(model: Onnxpp, cluster: Cluster, tmp_path: Path) -> None:
    found = plan(model, on=cluster, batch=32, ranks=2, out=tmp_path / "p.json", choose=2)
    assert found.plan.strategy == found.search.ranked[1].strategy
    assert found.plan.reason.startswith("Number 2 of the ranking was chosen by hand: ")
    for place in (0, 1000):
        with pytest.raises(PlanError, match=f"`--choose {place}` is no place of the ranking"):
            plan(model, on=cluster, batch=32, ranks=2, out=tmp_path / "q.json", choose=place)
    assert not (tmp_path / "q.json").exists()


def test_evaluation_data_is_checked_too(model: Onnxpp, cluster: Cluster, tmp_path: Path) -> None:
    write_data(tmp_path / "train.npz")
    np.savez(tmp_path / "test.npz", x=np.ones((20, 1, 9, 9), np.float32), labels=np.zeros(20, np.int64))
    recipe = Recipe(
        data=Data(source=str(tmp_path / "train.npz")), evaluation=Evaluation(source=str(tmp_path / "test.npz"))
    )
    with pytest.raises(DataError, match=r"test\.npz does not fit"):
        plan(model, on=cluster, batch=32, out=tmp_path / "p.json", recipe=recipe)


def test_precision(model: Onnxpp, cluster: Cluster, recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.json"
    found = plan(model, on=cluster, batch=32, ranks=2, out=out, recipe=recipe, precision="float64")
    assert (found.plan.strategy.precision, found.plan.recipe.precision) == ("float64", "float64")
    with pytest.raises(PlanError, match="bfloat16 can only be simulated"):
        plan(model, on=cluster, batch=32, ranks=2, out=out, recipe=recipe, precision="bfloat16")
    with pytest.raises(PlanError, match="contradicts the recipe"):
        plan(model, on=cluster, batch=32, out=out, recipe=Recipe(precision="float32"), precision="float64")


def test_nothing_but_an_earlier_plan_is_overwritten(
    model: Onnxpp, cluster: Cluster, recipe: Path, tmp_path: Path
) -> None:
    for name in ("digits.json", "digits.onnx", "training"):
        before = (tmp_path / "digits.onnx").read_bytes()
        with pytest.raises(PlanError, match="-o "):
            plan(model, on=cluster, batch=32, ranks=2, out=tmp_path / name)
        assert (tmp_path / "digits.onnx").read_bytes() == before
    with pytest.raises(PlanError, match=r"recipe\.json"):
        plan(model, on=cluster, batch=32, ranks=2, recipe=recipe, out=recipe)
    assert recipe.read_text().startswith("epochs = 3")


def test_wrong_questions(model: Onnxpp, cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="time, energy, cost"):
        plan(model, on=cluster, batch=32, out=tmp_path / "p.json", objective="speed")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="A batch of 0"):
        plan(model, on=cluster, batch=0, out=tmp_path / "p.json")
