"""Segments: any cut of a network computes what the whole does, and compiles once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from hpdlf.errors import ModelError
from hpdlf.exec.operators import Context, registry, step_context
from hpdlf.exec.segments import BAKED_BYTES, Segment, build_segment
from hpdlf.models.onnxpp import Graph, import_model, load_values
from hpdlf.models.zoo.small import conv_bn_net, digits_cnn, mlp

BATCH = 6


@dataclass(frozen=True, kw_only=True)
class Network:
    graph: Graph
    parameters: dict[str, jax.Array]
    state: dict[str, jax.Array]
    static: dict[str, np.ndarray]
    data: dict[str, jax.Array]
    context: Context

    def segment(self, first: int, last: int, inputs: Sequence[str], outputs: Sequence[str]) -> Segment:
        names = [o.name for o in self.graph.operators[first:last]]
        return build_segment(self.graph, names, inputs, outputs, self.static, "float64")


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def imported(model: onnx.ModelProto, folder: Path, loss: str | None = "softmax_xent") -> Network:
    onnx.save(model, folder / "model.onnx")
    onnxpp = import_model(folder / "model.onnx", loss=loss)
    graph = onnxpp.graph
    values = load_values(onnxpp, [*graph.parameters, *graph.state, *graph.constants])
    rng = np.random.default_rng(7)
    data = {}
    for name in (*graph.inputs, *graph.targets):
        tensor = graph.tensors[name]
        dims = tensor.dims(BATCH)
        data[name] = jnp.asarray(rng.standard_normal(dims) if tensor.is_float else rng.integers(0, 3, dims))
    return Network(
        graph=graph,
        parameters={n: jnp.asarray(values[n], jnp.float64) for n in graph.parameters},
        state={n: jnp.asarray(values[n], jnp.float64) for n in graph.state},
        static={n: values[n] for n in graph.constants},
        data=data,
        context=step_context(seed=1, step=5, samples=np.arange(BATCH) + 10),
    )


def whole(network: Network) -> tuple[float, Mapping[str, jax.Array], Mapping[str, jax.Array]]:
    graph = network.graph
    segment = network.segment(0, len(graph.operators), [*graph.inputs, *graph.targets], [graph.loss or ""])
    outputs, state, gradients, _ = segment.forward_backward(
        network.parameters, network.state, network.data, network.context, {graph.loss or "": 1.0}
    )
    return float(outputs[graph.loss or ""]), state, gradients


def cut(network: Network, place: int) -> tuple[float, Mapping[str, jax.Array], Mapping[str, jax.Array]]:
    """The same in two segments; what the second reads of before the cut travels as the first one's outputs."""
    graph = network.graph
    first, second = graph.operators[:place], graph.operators[place:]
    read = {name for o in second for name in o.inputs}
    crossing = [n for o in first for n in o.outputs if n in read]
    relayed = [n for n in graph.inputs if n in read]
    left = network.segment(0, place, graph.inputs, [*crossing, *relayed])
    loss_name = graph.loss or ""
    right = network.segment(place, len(graph.operators), [*crossing, *relayed, *graph.targets], [loss_name])
    outputs, state, residual = left.forward_residual(network.parameters, network.state, network.data, network.context)
    loss, right_state, gradients, cotangents = right.forward_backward(
        network.parameters, network.state, {**network.data, **outputs}, network.context, {graph.loss or "": 1.0}
    )
    left_gradients, _ = left.backward(residual, cotangents)
    total = {n: left_gradients.get(n, 0) + gradients.get(n, 0) for n in {**left_gradients, **gradients}}
    return float(loss[graph.loss or ""]), {**state, **right_state}, total


def check_cuts(network: Network, places: Iterable[int]) -> None:
    loss, state, gradients = whole(network)
    assert set(gradients) == set(network.graph.parameters)
    assert set(state) == set(network.graph.state)
    for place in places:
        loss_cut, state_cut, gradients_cut = cut(network, place)
        assert loss_cut == pytest.approx(loss, rel=1e-12)
        for n, gradient in gradients.items():
            np.testing.assert_allclose(gradients_cut[n], gradient, rtol=1e-11, atol=1e-12, err_msg=f"{n} at {place}")
        for n, value in state.items():
            np.testing.assert_allclose(state_cut[n], value, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_cnn", "mlp", "conv_bn_net"])
def test_any_cut_computes_what_the_whole_does(name: str, tmp_path: Path) -> None:
    models = {
        "digits_cnn": digits_cnn(channels=(4, 6), hidden=8, dtype="float64"),
        "mlp": mlp((5, 7, 4), dtype="float64"),
        "conv_bn_net": conv_bn_net(channels=(4, 6), dtype="float64"),
    }
    network = imported(models[name], tmp_path)
    check_cuts(network, range(1, len(network.graph.operators)))


def test_skip_connection_is_relayed_without_a_copy(tmp_path: Path) -> None:
    """Three segments around a residual block: the middle one hands on the shortcut and adds up its cotangents."""
    network = imported(conv_bn_net(channels=(4, 6), dtype="float64"), tmp_path)
    graph, names = network.graph, [o.name for o in network.graph.operators]
    fork, join, end = names.index("conv_res"), names.index("residual"), len(names)
    shortcut = graph.operator["residual"].inputs[1]
    given, context = (network.parameters, network.state), network.context
    a = network.segment(0, fork, graph.inputs, [shortcut])
    b = network.segment(fork, join, [shortcut], [shortcut, "bn_res"])
    c = network.segment(join, end, [shortcut, "bn_res", "labels"], ["loss"])
    out_a, _, residual_a = a.forward_residual(*given, network.data, context)
    out_b, _, residual_b = b.forward_residual(*given, out_a, context)
    assert out_b[shortcut] is out_a[shortcut]
    out_c, _, gradients_c, into_c = c.forward_backward(*given, {**network.data, **out_b}, context, {"loss": 1.0})
    gradients_b, into_b = b.backward(residual_b, into_c)
    gradients_a, _ = a.backward(residual_a, into_b)
    loss, _, gradients = whole(network)
    assert float(out_c["loss"]) == pytest.approx(loss, rel=1e-12)
    for n, gradient in {**gradients_a, **gradients_b, **gradients_c}.items():
        np.testing.assert_allclose(gradient, gradients[n], rtol=1e-11, atol=1e-12)


def test_microbatches_accumulate_to_the_whole_batch(tmp_path: Path) -> None:
    network = imported(mlp((5, 7, 4), dtype="float64"), tmp_path)
    _, _, gradients = whole(network)
    segment = network.segment(0, len(network.graph.operators), ["x", "labels"], ["loss"])
    accumulated = None
    for part in (slice(0, 2), slice(2, 4), slice(4, 6)):
        data = {n: v[part] for n, v in network.data.items()}
        context = step_context(seed=1, step=5, samples=np.arange(10, 16)[part])
        _, _, residual = segment.forward_residual(network.parameters, {}, data, context)
        accumulated, _ = segment.backward(residual, {"loss": 1 / 3}, accumulated)
    assert accumulated is not None
    for n, gradient in gradients.items():
        np.testing.assert_allclose(accumulated[n], gradient, rtol=1e-12, atol=1e-14)


def test_forms_agree_and_a_missing_cotangent_is_zero(tmp_path: Path) -> None:
    network = imported(mlp((5, 7, 4), dtype="float64"), tmp_path)
    segment = network.segment(0, len(network.graph.operators), ["x", "labels"], ["loss", "logits"])
    given = (network.parameters, network.state, network.data, network.context)
    outputs, _ = segment.forward(*given)
    outputs_residual, _, residual = segment.forward_residual(*given)
    gradients, _ = segment.backward(residual, {"loss": 2.0})
    outputs_fused, _, gradients_fused, _ = segment.forward_backward(*given, {"loss": 2.0})
    for n in ("loss", "logits"):
        np.testing.assert_allclose(outputs_residual[n], outputs[n], rtol=1e-13)
        np.testing.assert_allclose(outputs_fused[n], outputs[n], rtol=1e-13)
    for n, gradient in gradients.items():
        np.testing.assert_allclose(gradients_fused[n], gradient, rtol=1e-12, atol=1e-14)
    nothing, _ = segment.backward(residual, {})
    assert not any(np.any(g) for g in nothing.values())


def test_microbatches_do_not_compile_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = imported(mlp((5, 7, 4), dtype="float64"), tmp_path)
    traced = []
    original = registry.Lowering.as_made
    monkeypatch.setattr(registry.Lowering, "as_made", lambda *a, **k: traced.append(a[1].name) or original(*a, **k))
    segment = network.segment(0, len(network.graph.operators), ["x", "labels"], ["loss"])
    accumulated = None
    for step in range(4):
        context = step_context(seed=1, step=step, samples=np.arange(BATCH) + BATCH * step)
        extra = {"unrelated": jnp.zeros(step)}
        parameters, data = {**network.parameters, **extra}, {**network.data, **extra}
        _, _, residual = segment.forward_residual(parameters, {}, data, context)
        first, _ = segment.backward(residual, {"loss": 1.0}, accumulated)
        accumulated = first
    assert sorted(traced) == sorted(o.name for o in network.graph.operators)
    backward = segment._compiled["backward_accumulating"]
    assert backward._cache_size() == 1  # type: ignore[attr-defined]


def test_residual_borrows_weights_and_inputs(tmp_path: Path) -> None:
    network = imported(mlp((64, 64, 4), dtype="float64"), tmp_path)
    segment = network.segment(0, 3, ["x"], ["logits"])
    outputs, _, residual = segment.forward_residual(network.parameters, {}, network.data, network.context)
    held = {id(v) for v in (*network.parameters.values(), *network.data.values(), *outputs.values())}
    assert residual.borrowed
    assert all(id(leaf) in held for leaf in residual.borrowed)
    assert residual.nbytes < network.parameters["dense1.weight"].nbytes


def test_evaluation_leaves_the_running_statistics_alone(tmp_path: Path) -> None:
    network = imported(conv_bn_net(channels=(4,), dtype="float64"), tmp_path)
    segment = network.segment(0, len(network.graph.operators), ["x", "labels"], ["logits"])
    training = step_context(seed=1, step=0, samples=np.arange(BATCH))
    evaluating = step_context(seed=1, step=0, samples=np.arange(BATCH), training=False)
    _, trained = segment.forward(network.parameters, network.state, network.data, training)
    outputs, kept = segment.forward(network.parameters, network.state, network.data, evaluating)
    assert any(np.any(trained[n] != network.state[n]) for n in trained)
    for n, value in kept.items():
        np.testing.assert_array_equal(value, network.state[n])
    one = {n: v[:1] for n, v in network.data.items()}
    alone, _ = segment.forward(
        network.parameters, network.state, one, step_context(seed=1, step=0, samples=np.arange(1), training=False)
    )
    np.testing.assert_allclose(alone["logits"][0], outputs["logits"][0], rtol=1e-12)


def _dropout_graph(ratio: float = 0.5) -> onnx.ModelProto:
    node = onnx.helper.make_node("Dropout", ["x", "ratio", "on"], ["y"], name="drop")
    second = onnx.helper.make_node("Dropout", ["x", "ratio", "on"], ["z"], name="other")
    graph = onnx.helper.make_graph(
        [node, second],
        "dropout",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 40])],
        [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 40]) for n in "yz"],
        [
            onnx.numpy_helper.from_array(np.asarray(ratio, np.float32), "ratio"),
            onnx.numpy_helper.from_array(np.asarray(True), "on"),
        ],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)


def test_dropout_depends_on_the_sample_and_not_on_the_cut(tmp_path: Path) -> None:
    network = imported(_dropout_graph(), tmp_path, loss=None)
    segment = network.segment(0, 2, ["x"], ["y", "z"])
    x = jnp.ones((BATCH, 40))

    def masks(samples: np.ndarray, step: int = 0, rows: int = BATCH) -> dict[str, jax.Array]:
        return segment.forward({}, {}, {"x": x[:rows]}, step_context(seed=3, step=step, samples=samples))[0]

    together = masks(np.arange(BATCH))
    apart = [masks(np.arange(BATCH)[part], rows=2) for part in (slice(0, 2), slice(2, 4), slice(4, 6))]
    for n in "yz":
        np.testing.assert_array_equal(together[n], np.concatenate([p[n] for p in apart]))
    assert set(np.unique(together["y"])) == {0.0, 2.0}
    assert np.any(together["y"] != together["z"]), "operators draw different masks"
    assert np.any(together["y"] != masks(np.arange(BATCH), step=1)["y"]), "steps draw different masks"


def test_large_constants_are_arguments_and_shapes_are_static() -> None:
    node = onnx.helper.make_node("Add", ["x", "big"], ["sum"], name="add")
    shape = onnx.helper.make_node("Reshape", ["sum", "shape"], ["y"], name="reshape")
    from hpdlf.models.onnxpp import Dim, Operator, Tensor

    operators = tuple(
        Operator(name=n.name, op_type=n.op_type, family="elementwise", inputs=tuple(n.input), outputs=tuple(n.output))
        for n in (node, shape)
    )
    big = np.arange(400, dtype=np.float32)
    graph = Graph(
        name="constants",
        opset=20,
        operators=operators,
        tensors={"x": Tensor(name="x", dtype="float32", shape=(Dim(0, 1), Dim(400)))},
        inputs=("x",),
        targets=(),
        outputs=("y",),
        loss=None,
        parameters=(),
        state={},
        constants=("big", "shape"),
    )
    static = {"big": big, "shape": np.array([0, 20, -1])}
    segment = build_segment(graph, ["add", "reshape"], ["x"], ["y"], static)
    assert big.nbytes > BAKED_BYTES
    assert set(segment.constants) == {"big"}
    outputs, _ = segment.forward({}, {}, {"x": jnp.zeros((2, 400), jnp.float32)}, step_context(0, 0, np.arange(2)))
    np.testing.assert_array_equal(outputs["y"], np.broadcast_to(big.reshape(20, 20), (2, 20, 20)))


def test_operators_keep_their_names_in_the_compiled_program(tmp_path: Path) -> None:
    network = imported(mlp((5, 7, 4), dtype="float64"), tmp_path)
    segment = network.segment(0, 3, ["x"], ["logits"])
    lowered = jax.jit(segment.function).lower(network.parameters, {}, {"x": network.data["x"]}, network.context)
    text = lowered.as_text(debug_info=True)
    assert all(f"onnx:{o.name}" in text for o in segment.operators)


def test_all_problems_of_a_cut_come_together(tmp_path: Path) -> None:
    network = imported(mlp((5, 7, 4), dtype="float64"), tmp_path)
    with pytest.raises(ModelError) as caught:
        build_segment(network.graph, ["dense2", "dense3"], [], ["logit"], {})
    message = str(caught.value)
    assert "'dense3' does not exist; did you mean" in message
    assert "'act1' is neither computed" in message
    assert "output 'logit' does not exist; did you mean 'logits'?" in message
