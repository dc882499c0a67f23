"""The loss: found by name or by itself, appended, and behind the last Softmax or Sigmoid."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hpdlf.errors import ModelError
from hpdlf.models.onnxpp import Onnxpp, import_model, save_onnxpp

ort = pytest.importorskip("onnxruntime")


def node(op_type: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), outputs.split(), **attributes)


def written(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    outputs: str,
    *,
    opset: int = 18,
    **weights: Any,
) -> Path:
    """A file of these nodes; inputs called "labels" are int64, everything else float32."""
    kinds = {"labels": TensorProto.INT64}
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, kinds.get(n, TensorProto.FLOAT), d) for n, d in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs.split()],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return path


def run(model: Onnxpp, folder: Path, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    save_onnxpp(model, folder / "pp.onnx")
    session = ort.InferenceSession(str(folder / "pp.onnx"), providers=["CPUExecutionProvider"])
    return list(session.run(names, feeds))


W = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
CRITERION = [
    node("MatMul", "x w", "logits"),
    node("SoftmaxCrossEntropyLoss", "logits labels", "entropy"),
    node("ReduceMean", "logits", "penalty", keepdims=0),
    node("Add", "entropy penalty", "total"),
    node("ReduceSum", "w", "spread", keepdims=1),
]


def test_an_output_is_named_as_the_loss(tmp_path: Path) -> None:
    inputs = {"x": ["N", 4], "labels": ["N"]}
    path = written(tmp_path / "m.onnx", CRITERION, inputs, "penalty logits entropy total", w=W)
    assert import_model(path).graph.loss == "penalty"
    for name in ("entropy", "total"):
        graph = import_model(path, loss_output=name).graph
        assert (graph.loss, graph.targets, graph.inputs) == (name, ("labels",), ("x",))
        assert graph.parameters == ("w",)


def test_a_loss_with_dims_of_one_becomes_a_scalar(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "y"), node("Mul", "y y", "z"), node("ReduceMean", "z", "loss")]
    graph = import_model(written(tmp_path / "m.onnx", nodes, {"x": ["N", 4]}, "y loss", w=W), loss_output="loss").graph
    assert graph.loss is not None
    assert graph.tensors[graph.loss].shape == ()
    assert graph.producer[graph.loss].op_type == "Squeeze"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("logits", r"shape \[batch, 3\], but a loss is one number"),
        ("entropie", "does not exist; did you mean entropy"),
        ("penalty", "is computed inside the graph, but no output of it"),
        ("count", "int64, which has no gradient"),
    ],
)
def test_what_is_no_loss_is_refused(name: str, said: str, tmp_path: Path) -> None:
    nodes = [*CRITERION, node("Size", "w", "count")]
    path = written(tmp_path / "m.onnx", nodes, {"x": ["N", 4], "labels": ["N"]}, "logits entropy", w=W)
    model = onnx.load(path)
    model.graph.output.append(helper.make_tensor_value_info("count", TensorProto.INT64, []))
    onnx.save(model, path)
    with pytest.raises(ModelError, match=said):
        import_model(path, loss_output=name)


@pytest.mark.parametrize("last", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset", [11, 18])
def test_a_final_softmax_is_bypassed_through_views(last: str, opset: int, tmp_path: Path) -> None:
    """[tokens, classes] turned into [batch, tokens, classes] behind the Softmax."""
    nodes = [
        node("Reshape", "x rows", "flat"),
        node("MatMul", "flat w", "scores"),
        node(last, "scores", "p", axis=1),
        node("Reshape", "p tokens", "y"),
    ]
    shapes = {"rows": np.int64([-1, 4]), "tokens": np.int64([-1, 5, 3])}
    path = written(tmp_path / "m.onnx", nodes, {"x": ["N", 5, 4]}, "y", opset=opset, w=W, **shapes)
    model = import_model(path, loss="softmax_xent")
    assert [str(d) for d in model.graph.tensors["labels"].shape] == ["batch", "5"]
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((2, 5, 4), dtype=np.float32), rng.integers(0, 3, (2, 5))
    labels[0, 2:] = -100
    y, loss = run(model, tmp_path, ["y", "loss"], {"x": x, "labels": labels})
    log_p = y if last == "LogSoftmax" else np.log(y)
    picked = np.take_along_axis(log_p, np.where(labels < 0, 0, labels)[..., None], -1)[..., 0]
    assert loss == pytest.approx(-picked[labels >= 0].mean(), rel=1e-5)


def test_a_softmax_over_something_else_is_not_bypassed(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "scores"), node("Softmax", "scores", "y", axis=1)]
    graph = import_model(written(tmp_path / "m.onnx", nodes, {"x": ["N", 5, 4]}, "y", w=W), loss="softmax_xent").graph
    [loss] = [o for o in graph.operators if o.op_type == "SoftmaxCrossEntropyLoss"]
    assert graph.producer[loss.inputs[0]].inputs[0] == "y"


def test_labels_come_by_sample_where_the_batch_is_the_second_axis(tmp_path: Path) -> None:
    """Recurrent recognisers give [time, batch, classes]."""
    nodes = [node("Transpose", "x", "turned", perm=[1, 0, 2]), node("MatMul", "turned w", "y")]
    model = import_model(written(tmp_path / "m.onnx", nodes, {"x": ["N", 5, 4]}, "y", w=W), loss="softmax_xent")
    assert [str(d) for d in model.graph.tensors["labels"].shape] == ["batch", "5"]
    rng = np.random.default_rng(2)
    x, labels = rng.standard_normal((2, 5, 4), dtype=np.float32), rng.integers(0, 3, (2, 5))
    y, loss = run(model, tmp_path, ["y", "loss"], {"x": x, "labels": labels})
    log_p = y - np.log(np.exp(y).sum(-1, keepdims=True))
    picked = np.take_along_axis(log_p, labels.T[..., None], -1)
    assert loss == pytest.approx(-picked.mean(), rel=1e-5)


def test_binary_cross_entropy_reads_what_the_sigmoid_reads(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "scores"), node("Sigmoid", "scores", "p"), node("Unsqueeze", "p axis", "y")]
    path = written(tmp_path / "m.onnx", nodes, {"x": ["N", 4]}, "y", w=40 * W, axis=np.int64([1]))
    model = import_model(path, loss="sigmoid_xent")
    assert [str(d) for d in model.graph.tensors["targets"].shape] == ["batch", "1", "3"]
    x = np.random.default_rng(3).standard_normal((6, 4), dtype=np.float32)
    targets = np.random.default_rng(4).random((6, 1, 3), dtype=np.float32)
    [loss] = run(model, tmp_path, ["loss"], {"x": x, "targets": targets})
    scores = (x @ (40 * W)).astype(np.float64)[:, None]
    expected = np.mean(np.logaddexp(0, scores) - scores * targets)
    assert np.isfinite(loss)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_a_loss_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    nodes = [node("ReduceSum", "x axis", "y", keepdims=0)]
    path = written(tmp_path / "m.onnx", nodes, {"x": ["N", 4]}, "y", axis=np.int64([1]))
    with pytest.raises(ModelError, match="one number per sample, no score per class: choose --loss mse"):
        import_model(path, loss="softmax_xent")
    with pytest.raises(ModelError, match="did you mean softmax_xent"):
        import_model(path, loss="softmax_xnet")
    assert import_model(path, loss="mse").graph.targets == ("targets",)


def test_a_softmax_in_half_precision_is_bypassed_through_its_cast(tmp_path: Path) -> None:
    nodes = [
        node("Cast", "x", "half", to=TensorProto.FLOAT16),
        node("MatMul", "half w", "scores"),
        node("Softmax", "scores", "p"),
        node("Cast", "p", "y", to=TensorProto.FLOAT),
    ]
    path = written(tmp_path / "m.onnx", nodes, {"x": ["N", 4]}, "y", w=W.astype(np.float16))
    graph = import_model(path, loss="softmax_xent").graph
    [loss] = [o for o in graph.operators if o.op_type == "SoftmaxCrossEntropyLoss"]
    cast = graph.producer[loss.inputs[0]]
    assert (cast.op_type, cast.inputs[0]) == ("Cast", "scores")
    assert graph.tensors["loss"].dtype == "float32"


def test_what_is_selected_by_data_has_no_labels(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "scores"), node("NonZero", "scores", "at"), node("Cast", "at", "y", to=1)]
    path = written(tmp_path / "m.onnx", nodes, {"x": ["N", 4]}, "y", w=W)
    with pytest.raises(ModelError, match="the size of output 'y' depends on data"):
        import_model(path, loss="softmax_xent")
    both = written(tmp_path / "both.onnx", nodes, {"x": ["N", 4]}, "y scores", w=W)
    graph = import_model(both, loss="softmax_xent").graph
    assert graph.producer[graph.loss or ""].inputs[0] == "scores"
