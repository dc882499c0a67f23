"""What no single file holds gets its weights beside it, and no weight is read to write a file."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from hpdlf.errors import ModelError
from hpdlf.models.onnxpp import export_trained, import_model, is_onnxpp, load_onnxpp, load_values, save_onnxpp, write
from hpdlf.models.zoo import mlp


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a file held 12 kB."""
    monkeypatch.setattr(write, "MAX_INLINE_BYTES", 12_000)


def network(tmp_path: Path) -> ModelProto:
    model = mlp((40, 60, 10))
    onnx.save(model, tmp_path / "m.onnx")
    return model


def test_weights_beyond_a_files_size_stand_beside_it(tmp_path: Path, small_files: None) -> None:
    weights = {t.name: numpy_helper.to_array(t) for t in network(tmp_path).graph.initializer}
    save_onnxpp(import_model(tmp_path / "m.onnx", loss="mse"), tmp_path / "pp.onnx")
    assert (tmp_path / "pp.onnx").stat().st_size < 12_000 < (tmp_path / "pp.onnx.data").stat().st_size
    loaded = load_onnxpp(tmp_path / "pp.onnx", without_weights=False)
    for name, value in load_values(loaded, weights).items():
        np.testing.assert_array_equal(value, weights[name])
    onnx.checker.check_model(str(tmp_path / "pp.onnx"))
    for tensor in onnx.load(tmp_path / "pp.onnx").graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), weights[tensor.name])
    # Saved elsewhere, they go along; saved again, they stay.
    save_onnxpp(loaded, tmp_path / "b" / "pp.onnx")
    save_onnxpp(loaded, tmp_path / "pp.onnx")
    for folder in (tmp_path, tmp_path / "b"):
        again = load_onnxpp(folder / "pp.onnx", without_weights=False)
        np.testing.assert_array_equal(load_values(again, ["dense1.weight"])["dense1.weight"], weights["dense1.weight"])


def test_trained_weights_beyond_a_files_size_stand_beside_it(tmp_path: Path, small_files: None) -> None:
    ort = pytest.importorskip("onnxruntime")
    network(tmp_path)
    model = import_model(tmp_path / "m.onnx", loss="mse")
    rng = np.random.default_rng(0)
    values = {n: rng.standard_normal(v.shape) for n, v in load_values(model, ["dense1.weight", "dense2.bias"]).items()}
    export_trained(model, values, tmp_path / "out" / "trained.onnx")
    assert (tmp_path / "out" / "trained.onnx.data").is_file()
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out" / "trained.onnx").graph.initializer}
    for name, value in values.items():
        np.testing.assert_array_equal(stored[name], value.astype(np.float32))
    original = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    np.testing.assert_array_equal(stored["dense2.weight"], original["dense2.weight"])
    session = ort.InferenceSession(str(tmp_path / "out" / "trained.onnx"), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones((2, 40), np.float32)})[0].shape == (2, 10)


def test_a_name_that_is_taken_by_the_models_own_weights_is_left_alone(tmp_path: Path, small_files: None) -> None:
    model = network(tmp_path)
    onnx.save_model(
        model, tmp_path / "pp.onnx", save_as_external_data=True, location="pp.onnx.data", size_threshold=9_000
    )
    before = (tmp_path / "pp.onnx.data").read_bytes()
    imported = import_model(tmp_path / "pp.onnx", loss="mse")
    for count in range(8):
        value = numpy_helper.from_array(np.full(500, count, np.float32), f"more{count}")
        imported.proto.graph.initializer.append(value)
    save_onnxpp(imported, tmp_path / "pp.onnx")
    assert (tmp_path / "pp.onnx.data").read_bytes() == before
    assert (tmp_path / "pp.onnx.1.data").is_file()


def test_a_graph_that_no_file_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network(tmp_path)
    monkeypatch.setattr(write, "MAX_INLINE_BYTES", 500)
    with pytest.raises(ModelError, match="a file holds 2 GiB; export the original with external data"):
        save_onnxpp(import_model(tmp_path / "m.onnx"), tmp_path / "pp.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_saving_beside_absent_weights_reads_none(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[50_000, 50_000])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 50_000]) for n in ("x", "y")]
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    graph = helper.make_graph([node], "large", ends[:1], ends[1:], [tensor])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    save_onnxpp(import_model(tmp_path / "m.onnx", loss="mse", without_weights=True), tmp_path / "b" / "pp.onnx")
    assert load_onnxpp(tmp_path / "b" / "pp.onnx").graph.parameter_bytes() == 10**10
    # With the bytes there (a hole in the file), nothing reads them either.
    with open(tmp_path / "w.bin", "wb") as file:
        file.truncate(10**10)
    save_onnxpp(import_model(tmp_path / "m.onnx", loss="mse"), tmp_path / "pp.onnx")
    assert (tmp_path / "pp.onnx").stat().st_size < 10_000
    assert load_onnxpp(tmp_path / "pp.onnx", without_weights=False).graph.parameters == ("w",)


def test_what_says_that_it_is_onnxpp(tmp_path: Path) -> None:
    network(tmp_path)
    save_onnxpp(import_model(tmp_path / "m.onnx"), tmp_path / "pp.onnx")
    (tmp_path / "empty").touch()
    assert is_onnxpp(tmp_path / "pp.onnx")
    assert not any(map(is_onnxpp, (tmp_path / "m.onnx", tmp_path / "empty", tmp_path, tmp_path / "none", "a\0b")))
