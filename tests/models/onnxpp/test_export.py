from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from hpdlf.errors import ModelError
from hpdlf.models.onnxpp import Onnxpp, export_trained, import_model, load_onnxpp, load_values, save_onnxpp
from hpdlf.models.zoo import conv_bn_net, mlp

ort = pytest.importorskip("onnxruntime")


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def test_unchanged_values_export_the_original(tmp_path: Path) -> None:
    onnx.save(conv_bn_net(seed=3), tmp_path / "net.onnx")
    save_onnxpp(import_model(tmp_path / "net.onnx", loss="softmax_xent"), tmp_path / "pp" / "net.onnx")
    (tmp_path / "net.onnx").rename(tmp_path / "original.onnx")
    model = load_onnxpp(tmp_path / "pp" / "net.onnx")
    export_trained(model, {}, tmp_path / "trained.onnx")
    onnx.checker.check_model(str(tmp_path / "trained.onnx"), full_check=True)
    before, after = onnx.load(tmp_path / "original.onnx"), onnx.load(tmp_path / "trained.onnx")
    assert list(after.graph.node) == list(before.graph.node)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    x = np.random.default_rng(0).standard_normal((4, 3, 8, 8), dtype=np.float32)
    np.testing.assert_array_equal(run(tmp_path / "trained.onnx", x), run(tmp_path / "original.onnx", x))


def test_trained_values_and_statistics_reach_the_inference_form(small: Onnxpp, tmp_path: Path) -> None:
    names = (*small.graph.parameters, *small.graph.state)
    rng = np.random.default_rng(1)
    values = {n: rng.uniform(0.1, 0.3, v.shape) for n, v in load_values(small, names).items()}
    export_trained(small, values, tmp_path / "trained.onnx")
    exported = onnx.load(tmp_path / "trained.onnx")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in exported.graph.initializer}
    for name, value in values.items():
        np.testing.assert_array_equal(stored[name], value.astype(np.float32))
    assert not any(a.name == "training_mode" for n in exported.graph.node for a in n.attribute)
    assert [o.name for o in exported.graph.output] == ["logits"]
    x = rng.standard_normal((2, 3, 8, 8)).astype(np.float32)
    assert np.isfinite(run(tmp_path / "trained.onnx", x)).all()


def test_resnet50_keeps_its_operator_set_and_batch(resnet50: Onnxpp, tmp_path: Path) -> None:
    values = load_values(resnet50, (*resnet50.graph.parameters, *resnet50.graph.state))
    export_trained(resnet50, values, tmp_path / "trained.onnx")
    exported = onnx.load(tmp_path / "trained.onnx")
    assert exported.opset_import[0].version == 9
    assert [d.dim_value for d in exported.graph.input[0].type.tensor_type.shape.dim] == [1, 3, 224, 224]
    assert "ConstantOfShape" not in {n.op_type for n in exported.graph.node}
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    original = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / "light_resnet50.onnx"
    np.testing.assert_allclose(run(tmp_path / "trained.onnx", x), run(original, x), rtol=1e-5, atol=1e-7)


def test_external_weights_are_copied_along_and_exported(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    onnx.save_model(mlp((40, 30, 10)), tmp_path / "a" / "m.onnx", save_as_external_data=True, location="m.bin")
    model = import_model(tmp_path / "a" / "m.onnx", loss="mse")
    save_onnxpp(model, tmp_path / "b" / "pp.onnx")
    assert (tmp_path / "b" / "m.bin").read_bytes() == (tmp_path / "a" / "m.bin").read_bytes()
    loaded = load_onnxpp(tmp_path / "b" / "pp.onnx")
    export_trained(loaded, {"dense2.bias": np.ones(10)}, tmp_path / "trained.onnx")
    x = np.random.default_rng(0).standard_normal((3, 40), dtype=np.float32)
    np.testing.assert_allclose(run(tmp_path / "trained.onnx", x), run(tmp_path / "a" / "m.onnx", x) + 1, rtol=1e-5)
    (tmp_path / "b" / "m.bin").write_bytes(b"other")
    with pytest.raises(ModelError, match="is not the model's external data"):
        save_onnxpp(model, tmp_path / "b" / "pp.onnx")


def test_wrong_names_and_shapes_come_together(small: Onnxpp, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        export_trained(small, {"conv1.wieght": np.zeros(3), "bn1.bias": np.zeros(3)}, tmp_path / "trained.onnx")
    assert "did you mean conv1.weight" in str(caught.value)
    assert "'bn1.bias' has shape (3,), expected (8,)" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_failed_write_leaves_the_old_file(small: Onnxpp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "trained.onnx"
    target.write_bytes(b"good")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ModelError, match="No space left on device"):
        export_trained(small, {}, target)
    assert target.read_bytes() == b"good"
    assert list(tmp_path.iterdir()) == [target]


def test_shared_constant_becomes_two_initializers(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("BatchNormalization", ["x", "one", "zero", "zero", "one"], ["h"]),
        helper.make_node("Relu", ["h"], ["y"]),
    ]
    one, zero = (onnx.numpy_helper.from_array(np.full(3, v, np.float32), n) for v, n in ((1, "one"), (0, "zero")))
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", 3, 2]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "merged", ends[:1], ends[1:], [one, zero])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    model = import_model(tmp_path / "m.onnx", loss="mse")
    assert model.graph.parameters == ("one", "zero")
    assert set(model.graph.state) == {"zero_1", "one_1"}
    export_trained(model, {"one": np.full(3, 2.0), "one_1": np.full(3, 4.0)}, tmp_path / "trained.onnx")
    x = np.random.default_rng(0).standard_normal((2, 3, 2), dtype=np.float32)
    np.testing.assert_allclose(run(tmp_path / "trained.onnx", x), np.maximum(2 * x / np.sqrt(4 + 1e-5), 0), rtol=1e-6)
