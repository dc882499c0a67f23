"""`hpdlf.compile`: the training of a plan in one process, arrays that stay what they were, and refusals in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import helper

import hpdlf
from hpdlf.errors import DataError, HpdlfError, ModelError, PlanError
from hpdlf.exec import compiled
from hpdlf.exec.mpi import find_mpiexec
from hpdlf.exec.notebook import CompiledModel
from hpdlf.exec.sampling import Sampler
from hpdlf.exec.train import train
from hpdlf.models.onnxpp import import_model, load_values, save_onnxpp
from hpdlf.models.plan import Recipe, Strategy
from hpdlf.models.zoo import digits_cnn, small

FEATURES, CLASSES = 8, 4

try:
    find_mpiexec()
    LAUNCHES = True
except HpdlfError:
    LAUNCHES = False


def perceptron() -> onnx.ModelProto:
    return small.mlp((FEATURES, 16, CLASSES))


def samples(count: int = 32, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, FEATURES), dtype=np.float32)
    return x, np.argmax(x[:, :CLASSES], axis=1)


@pytest.fixture
def net() -> CompiledModel:
    return hpdlf.compile(perceptron(), loss="softmax_xent", learning_rate=0.1)


def by_hand(x: np.ndarray, labels: np.ndarray, *, steps: int, rate: float) -> list[float]:
    """Losses of the perceptron under plain gradient descent, written out."""
    weights = {t.name: jnp.asarray(onnx.numpy_helper.to_array(t)) for t in perceptron().graph.initializer}

    @jax.jit
    @jax.value_and_grad
    def loss(w: dict[str, jax.Array]) -> jax.Array:
        hidden = jnp.maximum(x @ w["dense1.weight"].T + w["dense1.bias"], 0)
        scores = hidden @ w["dense2.weight"].T + w["dense2.bias"]
        return -jnp.mean(jax.nn.log_softmax(scores)[jnp.arange(len(x)), labels])

    found = []
    for _ in range(steps):
        value, gradient = loss(weights)
        weights = {name: weights[name] - rate * gradient[name] for name in weights}
        found.append(float(value))
    return found


def test_steps_are_those_of_gradient_descent(net: CompiledModel) -> None:
    x, labels = samples()
    found = [float(net.step(x, labels)) for _ in range(4)]
    np.testing.assert_allclose(found, by_hand(x, labels, steps=4, rate=0.1), rtol=1e-6)


@pytest.mark.mpi
@pytest.mark.skipif(not LAUNCHES, reason="no mpiexec here")
@pytest.mark.parametrize("microbatches", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_losses_are_those_of_a_plan(planner: Any, tmp_path: Path, microbatches: int) -> None:
    """The same recipe and the same samples give the curve of `hpdlf train`, dropout included."""
    model = with_dropout()
    strategy = Strategy(batch=64, microbatches=microbatches)
    planned = planner(f"notebook{microbatches}", strategy, model=model, steps=8)
    run = train(planned.path, tmp_path / "run").to_frame()
    data = np.load(planned.path.parent / "samples.npz")
    sampler = Sampler(train=np.arange(len(data["x"])), batch=64, seed=planned.plan.recipe.seed)
    net = hpdlf.compile(model, loss="softmax_xent", recipe=planned.plan.recipe, microbatches=microbatches)
    found = []
    for step in range(8):
        chosen = sampler.global_batch(step)
        found.append(float(net.step(data["x"][chosen], data["labels"][chosen], samples=chosen)))
    np.testing.assert_allclose(found, run["loss"], rtol=1e-6)


def with_dropout() -> onnx.ModelProto:
    """A perceptron with dropout behind its hidden layer."""
    model = perceptron()
    nodes = list(model.graph.node)
    hidden = nodes[1].output[0]
    dropped = helper.make_node("Dropout", [hidden], ["dropped"], name="drop")
    nodes[2].input[0] = "dropped"
    del model.graph.node[:]
    model.graph.node.extend([*nodes[:2], dropped, *nodes[2:]])
    return model


def test_microbatches_add_up_to_the_batch(net: CompiledModel) -> None:
    x, labels = samples()
    cut = hpdlf.compile(perceptron(), loss="softmax_xent", learning_rate=0.1, microbatches=4)
    for _ in range(3):
        np.testing.assert_allclose(float(cut.step(x, labels)), float(net.step(x, labels)), rtol=1e-6)
    with pytest.raises(DataError, match="30 samples do not divide into 4 microbatches"):
        cut.step(x[:30], labels[:30])


def test_what_was_read_stays_as_it_was(net: CompiledModel) -> None:
    """The step gives its buffers to the next one, but not those that somebody holds."""
    x, labels = (jnp.asarray(a) for a in samples())
    first = net.step(x, labels)
    read, predicted = net.parameters, net.predict(x)
    kept, seen = {n: a.copy() for n, a in read.items()}, predicted.copy()
    for _ in range(3):
        net.step(x, labels)
    assert all((read[name] == kept[name]).all() for name in kept)
    assert (predicted == seen).all()
    assert np.isfinite(float(first))
    assert not np.array_equal(net.parameters["dense1.weight"], kept["dense1.weight"])
    assert float(x.sum()) == pytest.approx(float(samples()[0].sum()))


def test_arrays_may_be_filled_again_while_the_step_runs() -> None:
    """A large array is handed over later than `step` returns; ours must be read before."""
    wide = small.mlp((4096, 64, CLASSES))
    net, again = (hpdlf.compile(wide, loss="softmax_xent", learning_rate=0.01) for _ in range(2))
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((512, 4096), dtype=np.float32) for _ in range(4)]
    labels = rng.integers(0, CLASSES, 512)
    page = np.empty_like(batches[0])
    lazy = []
    for batch in batches:
        page[:] = batch
        lazy.append(net.step(page, labels))
        page[:] = np.nan
    assert [float(loss) for loss in lazy] == [float(again.step(batch, labels)) for batch in batches]


def test_another_number_of_samples_goes_on_with_the_same_parameters(net: CompiledModel) -> None:
    x, labels = samples()
    net.step(x, labels)
    before = net.parameters
    net.step(x[:8], labels[:8])
    after = net.parameters
    assert not np.array_equal(before["dense1.weight"], after["dense1.weight"])
    assert net.steps == 2
    assert "batches of 8, 32" in net.summary


def test_predictions_are_those_of_the_saved_file(net: CompiledModel, tmp_path: Path) -> None:
    x, labels = samples()
    for _ in range(3):
        net.step(x, labels)
    saved = net.save(tmp_path / "trained.onnx")
    (expected,) = hpdlf.Backend.prepare(saved).run([x])
    np.testing.assert_allclose(net.predict(x), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(hpdlf.compile(saved).predict([x]), expected, rtol=1e-6, atol=1e-6)
    net.step(x, labels)
    assert not np.allclose(net.predict(x), expected)


@pytest.mark.parametrize("loss", [None, "softmax_xent"])
def test_weights_are_held_once(loss: str | None, tmp_path: Path) -> None:
    """By the compiled model and not by its file, too; nobody takes what is gone for weights."""
    proto = small.mlp((64, 128, CLASSES))
    net = hpdlf.compile(proto, loss=loss)
    expected = onnx.numpy_helper.to_array(next(t for t in proto.graph.initializer if t.name == "dense1.weight"))
    assert net.model.proto.ByteSize() < expected.nbytes
    with pytest.raises(ModelError, match=r"dense1\.weight"):
        load_values(net.model, ["dense1.weight"])
    save_onnxpp(net.model, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match=r"dense1\.weight"):
        import_model(tmp_path / "model.onnx")
    saved = import_model(net.save(tmp_path / "saved.onnx"))
    np.testing.assert_array_equal(load_values(saved, ["dense1.weight"])["dense1.weight"], expected)


def test_who_waited_long_leaves_the_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not who did not: a small prediction must not become slower."""
    now = iter([0.0, 1.0, 5.0, 5.001])
    slept: list[float] = []
    monkeypatch.setattr(compiled.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(compiled.time, "sleep", slept.append)
    results = {"y": jnp.ones(3)}
    assert compiled._settle(results) is results
    assert slept == [compiled.PAUSE_S]
    compiled._settle(results)
    assert len(slept) == 1


def test_running_statistics_are_kept_and_used(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((16, 3, 8, 8), dtype=np.float32), rng.integers(0, 10, 16)
    net = hpdlf.compile(small.conv_bn_net(), loss="softmax_xent", learning_rate=0.01)
    before = net.state
    net.step(x, labels)
    assert before
    assert all(not np.array_equal(before[name], now) for name, now in net.state.items())
    (expected,) = hpdlf.Backend.prepare(net.save(tmp_path / "trained.onnx")).run([x])
    np.testing.assert_allclose(net.predict(x), expected, rtol=1e-3, atol=1e-4)


def test_float64_whatever_the_notebook_has_set() -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((8, 1, 8, 8)), rng.integers(0, 10, 8)
    net = hpdlf.compile(
        digits_cnn(channels=(2, 2), hidden=4), loss="softmax_xent", optimizer="adam", precision="float64"
    )
    assert net.step(x, labels).dtype == np.float64
    assert net.predict(x).dtype == np.float64
    assert {a.dtype for a in net.parameters.values()} == {np.dtype(np.float64)}
    assert not jax.config.jax_enable_x64


def test_evaluation_over_any_number_of_samples(net: CompiledModel) -> None:
    x, labels = samples(50)
    scores = net.predict(x)
    right = float(np.mean(np.argmax(scores, axis=1) == labels))
    assert net.evaluate(x, labels) == pytest.approx(right)
    assert net.evaluate(x, labels, batch=16) == pytest.approx(right)
    shifted = scores - scores.max(axis=1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(50), labels]
    assert net.evaluate(x, labels, metric="loss", batch=16) == pytest.approx(losses.mean(), rel=1e-5)
    assert net.evaluate(x, labels, metric="loss") == pytest.approx(float(net.step(x, labels)), rel=1e-5)


def test_inputs_by_name(net: CompiledModel) -> None:
    x, labels = samples()
    other = hpdlf.compile(perceptron(), loss="softmax_xent", learning_rate=0.1)
    assert float(net.step({"x": x, "labels": labels})) == float(other.step([x], {"labels": labels}))
    assert np.array_equal(net.predict({"x": x}), net.predict([x]))


def test_an_imported_model_and_a_schedule() -> None:
    model = import_model("mlp.onnx", content=perceptron().SerializeToString(), loss="softmax_xent")
    recipe = Recipe.model_validate(
        {"steps": 4, "optimizer": {"name": "sgd", "learning_rate": 0.1}, "schedule": {"name": "linear"}}
    )
    x, labels = samples()
    net = hpdlf.compile(model, recipe=recipe)
    for _ in range(4):
        net.step(x, labels)
    held = net.parameters
    net.step(x, labels)  # the rate has come down to 0
    assert all(np.array_equal(held[name], now) for name, now in net.parameters.items())


def test_a_step_that_fails_leaves_the_model_as_it_was(net: CompiledModel) -> None:
    x, labels = samples()
    net.step(x, labels)
    held = net.parameters
    with pytest.raises(DataError, match="x has shape"):
        net.step(x[:, :3], labels)
    assert all(np.array_equal(held[name], now) for name, now in net.parameters.items())
    assert np.isfinite(float(net.step(x, labels)))
    assert net.steps == 2


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"optimizer": "adan"}, PlanError, r"'adan' is not one of.*did you mean 'adam'"),
        ({"optimizer": {"name": "sgd", "momentun": 0.9}}, PlanError, "momentum"),
        ({"learning_rate": -1.0}, PlanError, "learning_rate"),
        ({"precision": "float16"}, PlanError, "float16"),
        ({"recipe": Recipe(), "learning_rate": 0.1}, PlanError, "leave out learning_rate"),
        ({"recipe": Recipe(schedule={"name": "cosine"})}, PlanError, "write `steps` in the recipe"),
        ({"recipe": Recipe(schedule={"name": "step", "every_epochs": 2})}, PlanError, "`every_steps` instead"),
        ({"batch": 10, "microbatches": 4}, PlanError, "does not divide"),
    ],
)
def test_what_cannot_be_compiled(options: dict[str, Any], kind: type[HpdlfError], told: str) -> None:
    with pytest.raises(kind, match=told):
        hpdlf.compile(perceptron(), loss="softmax_xent", **options)


def test_what_cannot_be_asked_for(net: CompiledModel) -> None:
    x, labels = samples()
    with pytest.raises(PlanError, match=r"no metric 'acuracy'.*did you mean accuracy"):
        net.evaluate(x, labels, metric="acuracy")
    with pytest.raises(DataError, match="labels is missing"):
        net.step(x)
    with pytest.raises(DataError, match=r"numbers of 32 samples, an array of shape \(3,\)"):
        net.step(x, labels, samples=[1, 2, 3])
    with pytest.raises(DataError, match="compiled for 16 samples a step, 32 were given"):
        hpdlf.compile(perceptron(), loss="softmax_xent", batch=16).step(x, labels)
    silent = hpdlf.compile(perceptron())
    assert "it predicts" in silent.summary
    with pytest.raises(ModelError, match=r"no loss.*hpdlf\.compile\(model, loss="):
        silent.step(x, labels)
    with pytest.raises(ModelError, match="no loss"):
        silent.evaluate(x, labels, metric="loss")
    assert silent.evaluate(x, labels) <= 1
