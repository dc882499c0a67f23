import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hpdlf.errors import ModelError
from hpdlf.models.onnxpp import Dim, Onnxpp, import_model, load_onnxpp, load_values, save_onnxpp, work
from hpdlf.models.zoo import conv_bn_net, digits_cnn, mlp

ort = pytest.importorskip("onnxruntime")
SHARED = Path(__file__).parents[4] / "shared" / "onnx"


def session(path: Path) -> "ort.InferenceSession":
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def test_resnet50_counts_as_published(resnet50: Onnxpp) -> None:
    """4.1 GMAC and 25.557 M parameters: He et al., CVPR 2016, with the stride in the 3 × 3 convolutions."""
    graph = resnet50.graph
    products = [o for o in graph.operators if o.family in ("conv", "matmul")]
    flops = sum(work(o, graph, batch=1, phase="forward").flops for o in products)
    assert flops == pytest.approx(8.2e9, rel=0.01)
    assert sum(work(o, graph, batch=1, phase="forward").flops for o in graph.operators) == pytest.approx(
        8.2e9, rel=0.01
    )
    assert graph.parameter_count == 25_557_032
    assert len(graph.state) == 2 * 53
    assert len(products) == 54


def test_resnet50_is_symbolic_in_the_batch(resnet50: Onnxpp) -> None:
    graph = resnet50.graph
    assert graph.tensors[graph.inputs[0]].shape == (Dim(per_sample=1), Dim(3), Dim(224), Dim(224))
    assert graph.tensors[graph.outputs[0]].shape == (Dim(per_sample=1), Dim(1000))
    assert all(graph.tensors[o.outputs[0]].shape[0] == Dim(per_sample=1) for o in graph.operators if o.family == "conv")


def test_resnet50_bypasses_the_softmax_and_stays_small(resnet50: Onnxpp, tmp_path: Path) -> None:
    graph = resnet50.graph
    loss = graph.producer[graph.loss]
    assert loss.op_type == "SoftmaxCrossEntropyLoss"
    assert graph.producer[loss.inputs[0]].op_type == "Gemm"
    assert graph.targets == (loss.inputs[1],)
    save_onnxpp(resnet50, tmp_path / "pp.onnx")
    assert (tmp_path / "pp.onnx").stat().st_size < 300_000


@pytest.mark.parametrize("name", ["light_resnet50", "light_shufflenet", "light_squeezenet"])
def test_imported_without_loss_predicts_what_the_original_does(name: str, light: Path, tmp_path: Path) -> None:
    model = import_model(light / f"{name}.onnx")
    save_onnxpp(model, tmp_path / "pp.onnx")
    onnx.checker.check_model(str(tmp_path / "pp.onnx"), full_check=True)
    original, ours = session(light / f"{name}.onnx"), session(tmp_path / "pp.onnx")
    x = np.random.default_rng(0).standard_normal((3, 3, 224, 224), dtype=np.float32)
    [together] = ours.run(None, {model.graph.inputs[0]: x})
    for i in range(3):
        [alone] = original.run(None, {original.get_inputs()[0].name: x[i : i + 1]})
        np.testing.assert_allclose(together[i : i + 1], alone, rtol=1e-4, atol=1e-6)


def test_loss_in_onnxruntime_is_the_closed_form(tmp_path: Path) -> None:
    onnx.save(mlp((6, 5, 4), dtype="float64"), tmp_path / "mlp.onnx")
    rng = np.random.default_rng(1)
    x, labels, targets = rng.standard_normal((7, 6)), rng.integers(0, 4, 7), rng.standard_normal((7, 4))
    for kind, fed in (("softmax_xent", {"labels": labels}), ("mse", {"targets": targets})):
        model = import_model(tmp_path / "mlp.onnx", loss=kind)
        save_onnxpp(model, tmp_path / "pp.onnx")
        assert model.graph.targets == tuple(fed)
        logits, loss = session(tmp_path / "pp.onnx").run(["logits", model.graph.loss], {"x": x, **fed})
        if kind == "mse":
            expected = np.mean((logits - targets) ** 2)
        else:
            log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            expected = -log_p[np.arange(7), labels].mean()
        assert loss == pytest.approx(expected, rel=1e-12)


def test_batch_normalisation_trains_unless_frozen(small: Onnxpp, tmp_path: Path) -> None:
    graph = small.graph
    norms = [o for o in graph.operators if o.op_type == "BatchNormalization"]
    assert [o.attributes["training_mode"] for o in norms] == [1, 1, 1]
    assert graph.state == {r: n for o in norms for r, n in zip(o.inputs[3:], o.outputs[1:], strict=True)}
    assert {"bn1.weight", "bn1.bias"} < set(graph.parameters)
    onnx.save(conv_bn_net(), tmp_path / "net.onnx")
    frozen = import_model(tmp_path / "net.onnx", loss="softmax_xent", freeze=r"^bn1\.").graph
    assert "training_mode" not in frozen.operator["bn1"].attributes
    assert "bn1.running_mean" in frozen.constants
    assert len(frozen.state) == 4
    assert not import_model(tmp_path / "net.onnx").graph.state


def test_training_form_updates_running_statistics_in_onnxruntime(small: Onnxpp, small_file: Path) -> None:
    x = np.random.default_rng(2).standard_normal((5, 3, 8, 8), dtype=np.float32)
    proto = onnx.load(small_file)
    updated = small.graph.state["bn1.running_mean"]
    proto.graph.output.append(helper.make_tensor_value_info(updated, TensorProto.FLOAT, [8]))
    proto.graph.output.append(helper.make_tensor_value_info("conv1", TensorProto.FLOAT, None))
    feeds = {"x": x, "labels": np.zeros(5, np.int64)}
    try:
        run = ort.InferenceSession(proto.SerializeToString()).run([updated, "conv1"], feeds)
    except ort.capi.onnxruntime_pybind11_state.RuntimeException as error:
        pytest.skip(f"this onnxruntime has no BatchNormalization in training mode: {error}")
    np.testing.assert_allclose(run[0], 0.1 * run[1].mean((0, 2, 3)), rtol=1e-4, atol=1e-6)


def test_train_and_freeze_select_by_name(tmp_path: Path) -> None:
    onnx.save(digits_cnn(), tmp_path / "net.onnx")
    everything = import_model(tmp_path / "net.onnx").graph.parameters
    assert len(everything) == 8
    assert import_model(tmp_path / "net.onnx", train="dense2").graph.parameters == ("dense2.weight", "dense2.bias")
    kept = import_model(tmp_path / "net.onnx", freeze="^conv").graph
    assert kept.parameters == everything[4:]
    assert set(everything[:4]) <= set(kept.constants)
    with pytest.raises(ModelError, match=r"--train 'dense1.wieght' matches no tensor.*did you mean dense1.weight"):
        import_model(tmp_path / "net.onnx", train="dense1.wieght")
    with pytest.raises(ModelError, match="no regular expression"):
        import_model(tmp_path / "net.onnx", freeze="(")


def test_file_round_trip_keeps_the_graph(small: Onnxpp, small_file: Path) -> None:
    loaded = load_onnxpp(small_file)
    assert loaded.graph == small.graph
    assert loaded.source_sha256 == small.source_sha256
    assert loaded.proto.ir_version >= 11
    values = load_values(loaded, loaded.graph.parameters)
    for name, value in load_values(small, small.graph.parameters).items():
        np.testing.assert_array_equal(values[name], value)


def test_constant_nodes_and_subgraphs_are_parameters(tmp_path: Path) -> None:
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight)),
        helper.make_node("Transpose", ["w"], ["wt"]),
        helper.make_node("ConstantOfShape", ["three"], ["b"], value=numpy_helper.from_array(np.float32([2.5]))),
        helper.make_node("MatMul", ["x", "wt"], ["xw"]),
        helper.make_node("Add", ["xw", "b"], ["y"]),
    ]
    save(tmp_path / "m.onnx", nodes, [("x", ["N", 4])], ["y"], three=np.int64([3]))
    model = import_model(tmp_path / "m.onnx")
    assert model.graph.parameters == ("wt", "b")
    assert [o.op_type for o in model.graph.operators] == ["MatMul", "Add"]
    values = load_values(model, ["wt", "b"])
    np.testing.assert_array_equal(values["wt"], weight.T)
    np.testing.assert_array_equal(values["b"], np.full(3, 2.5))


def test_tied_weights_stay_one_parameter_and_merged_vectors_do_not(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "wt"], ["z"]),
        helper.make_node("LayerNormalization", ["z", "ones", "zeros"], ["l"]),
        helper.make_node("LayerNormalization", ["l", "ones", "zeros"], ["y"]),
    ]
    w = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    save(
        tmp_path / "m.onnx",
        nodes,
        [("x", ["N", 4])],
        ["y"],
        w=w,
        ones=np.ones(4, np.float32),
        zeros=np.zeros(4, np.float32),
    )
    graph = import_model(tmp_path / "m.onnx").graph
    assert graph.parameters == ("w", "ones", "zeros", "ones_1", "zeros_1")
    assert "Transpose" in [o.op_type for o in graph.operators]
    assert graph.parameter_count == 12 + 4 * 4


def test_shape_arithmetic_is_affine_and_free(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Mul", ["n", "two"], ["n2"]),
        helper.make_node("Concat", ["n2", "minus"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["r"]),
        helper.make_node("Range", ["start", "end", "one"], ["positions"]),
        helper.make_node("Squeeze", ["n2"], ["end"]),
        helper.make_node("Cast", ["positions"], ["p"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["p", "minus"], ["p1"]),
        helper.make_node("Add", ["r", "p1"], ["y"]),
    ]
    values = {"zero": [0], "two": [2], "minus": [-1], "start": 0, "one": 1}
    save(tmp_path / "m.onnx", nodes, [("x", ["N", 6])], ["y"], **{k: np.int64(v) for k, v in values.items()})
    graph = import_model(tmp_path / "m.onnx").graph
    assert graph.tensors["y"].shape == (Dim(per_sample=2), Dim(3))
    assert {o.family for o in graph.operators} == {"view", "elementwise"}
    assert [o.name for o in graph.operators if o.family == "elementwise"] == ["Add_9"]


def test_existing_loss_is_kept_and_its_labels_found(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["logits"]),
        helper.make_node("SoftmaxCrossEntropyLoss", ["logits", "y"], ["cost"]),
    ]
    w = np.ones((4, 3), np.float32)
    for outputs in (["cost"], ["logits", "cost"]):
        save(tmp_path / "m.onnx", nodes, [("x", ["N", 4]), ("y", ["N"])], outputs, w=w)
        graph = import_model(tmp_path / "m.onnx", loss="softmax_xent").graph
        assert (graph.loss, graph.targets, graph.inputs) == ("cost", ("y",), ("x",))


def test_dimensions_are_bound_by_name(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    save(tmp_path / "m.onnx", nodes, [("x", ["N", "seq", 4])], ["y"])
    with pytest.raises(ModelError, match=r"'seq' is not bound.*--bind seq=128"):
        import_model(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="did you mean seq"):
        import_model(tmp_path / "m.onnx", bind={"sequ": 3})
    assert import_model(tmp_path / "m.onnx", bind={"seq": 3}).graph.tensors["y"].shape[1] == Dim(3)
    by_sequence = import_model(tmp_path / "m.onnx", batch_dim="seq", bind={"N": 2}).graph
    assert by_sequence.tensors["y"].shape == (Dim(2), Dim(per_sample=1), Dim(4))


def test_metadata_says_what_was_found(small: Onnxpp) -> None:
    said = {p.key: p.value for p in small.proto.metadata_props}
    assert said["hpdlf.format"] == "1"
    assert json.loads(said["hpdlf.parameters"]) == list(small.graph.parameters)
    node = next(n for n in small.proto.graph.node if n.name == "conv1")
    # 8 channels out of 3 by 3 × 3 kernels over 8 × 8 places, two FLOPs per multiply-add
    assert {p.key: p.value for p in node.metadata_props} == {
        "hpdlf.family": "conv",
        "hpdlf.flops": str(2 * 8 * 64 * 27),
    }


@pytest.mark.skipif(not SHARED.is_dir(), reason="the corpus of exported graphs is not beside the project")
@pytest.mark.parametrize(
    ("name", "millions", "gflops"),
    [("resnet18.train", 11.690, 3.63), ("resnet50.script", 25.530, 8.18), ("vgg16.dynamo_dynbatch", 138.358, 30.94)],
)
def test_exporters_graphs_count_as_torchvision_says(name: str, millions: float, gflops: float) -> None:
    with pytest.raises(ModelError, match=r"is missing; put the file into .*--without-weights"):
        import_model(SHARED / f"{name}.onnx")
    graph = import_model(SHARED / f"{name}.onnx", loss="softmax_xent", without_weights=True).graph
    assert graph.parameter_count / 1e6 == pytest.approx(millions, rel=2e-3)
    flops = sum(work(o, graph, batch=1, phase="forward").flops for o in graph.operators)
    assert flops / 1e9 == pytest.approx(gflops, rel=0.01)


def save(
    path: Path, nodes: list[onnx.NodeProto], inputs: list[tuple[str, list]], outputs: list[str], **weights: np.ndarray
) -> None:
    """A file of these nodes, sorted or not; "y" as an input is int64, everything else float32."""
    kinds = {"y": TensorProto.INT64}
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), d) for n, d in inputs],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)


def test_the_loss_of_tokens_is_the_closed_form_and_moves_nothing(tmp_path: Path) -> None:
    w = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    save(tmp_path / "m.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], [("x", ["N", 5, 4])], ["y"], w=w)
    model = import_model(tmp_path / "m.onnx", loss="softmax_xent")
    save_onnxpp(model, tmp_path / "pp.onnx")
    assert [str(d) for d in model.graph.tensors["labels"].shape] == ["batch", "5"]
    assert {o.family for o in model.graph.operators} == {"matmul", "view", "loss"}
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((2, 5, 4), dtype=np.float32), rng.integers(0, 3, (2, 5))
    y, loss = session(tmp_path / "pp.onnx").run(["y", "loss"], {"x": x, "labels": labels})
    log_p = y - np.log(np.exp(y).sum(-1, keepdims=True))
    assert loss == pytest.approx(-np.take_along_axis(log_p, labels[..., None], -1).mean(), rel=1e-5)


def test_a_file_may_say_what_is_trained(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("Gather", ["table", "row"], ["places"]),
        helper.make_node("Add", ["h", "places"], ["z"]),
        helper.make_node("LayerNormalization", ["z", "scale", "shift"], ["l"]),
        helper.make_node("LayerNormalization", ["l", "scale", "shift"], ["y"]),
    ]
    values = {"w": np.ones((4, 3)), "table": np.ones((7, 3)), "scale": np.ones(3), "shift": np.zeros(3)}
    save(
        tmp_path / "m.onnx",
        nodes,
        [("x", ["N", 4])],
        ["y"],
        row=np.array(2),
        **{k: v.astype(np.float32) for k, v in values.items()},
    )
    model = onnx.load(tmp_path / "m.onnx")
    said = {"w": "false", "table": "true", "scale": "true"}
    for tensor in model.graph.initializer:
        if tensor.name in said:
            tensor.metadata_props.add(key="hpdlf.trained", value=said[tensor.name])
    model.ir_version = 11
    onnx.save(model, tmp_path / "m.onnx")
    graph = import_model(tmp_path / "m.onnx").graph
    assert set(graph.parameters) == {"table", "scale", "shift", "shift_1"}
    assert "w" in graph.constants
    assert graph.operator["Gather_1"].family == "gather"
    assert "w" in import_model(tmp_path / "m.onnx", train="^w$").graph.parameters


def test_table_for_one_batch_size_is_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["n"], axis=0),
        helper.make_node("Range", ["zero", "n", "one"], ["at"]),
        helper.make_node("Gather", ["table", "at"], ["rows"], axis=0, name="take"),
        helper.make_node("Add", ["x", "rows"], ["y"]),
    ]
    constants = {"table": np.zeros((4, 1), np.float32), "zero": np.int64(0), "one": np.int64(1)}
    graph = helper.make_graph(
        nodes,
        "table",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    with pytest.raises(ModelError, match=r"'take'.*row 10 is taken of 'table', which has 4"):
        import_model(path)
