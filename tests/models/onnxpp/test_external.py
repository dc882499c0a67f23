"""External data: nothing is read before it is used, nothing outside the folder is opened, nothing but files is read."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from hpdlf.errors import ModelError
from hpdlf.models.onnxpp import import_model, load_values
from hpdlf.models.onnxpp.external import ExternalFiles, open_regular, tensor_values

HUGE = 3 * 2**30


def external(name: str, dims: list[int], location: str, kind: int = TensorProto.FLOAT, **entries: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def saved(path: Path, nodes: list[NodeProto], weights: list[TensorProto], width: int = 4) -> Path:
    ends = [helper.make_tensor_value_info("x", 1, ["N", width]), helper.make_tensor_value_info("y", 1, None)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    )
    return path


def read_bytes() -> int:
    """What this process has read so far, from files that are cached too."""
    said = Path("/proc/self/io").read_text()
    return int(said.split("rchar: ")[1].split()[0])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts what a process reads")
def test_weights_of_three_gigabytes_are_not_read_but_mapped(tmp_path: Path) -> None:
    rows = HUGE // 4 // 1024
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(HUGE)  # takes no place on the disk
        file.seek(4 * 1024 * (rows - 1))
        file.write(np.full(1024, 2.5, "<f4").tobytes())
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    path = saved(tmp_path / "m.onnx", [node], [external("w", [rows, 1024], "w.bin")], width=1024)
    import_model(path)
    before = read_bytes()
    model = import_model(path, loss="mse")
    assert read_bytes() - before < 1_000_000
    assert model.graph.parameters == ("w",)
    values = load_values(model, ["w"])["w"]
    assert values.shape == (rows, 1024)
    assert values[-1, -1] == 2.5
    assert not values.flags.writeable
    assert read_bytes() - before < 2_000_000


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "int8", "bool", "float8_e4m3fn", "int64"])
@pytest.mark.parametrize("offset", [0, 1, 4096, 4097])
def test_values_are_those_of_the_file(tmp_path: Path, kind: str, offset: int) -> None:
    import ml_dtypes  # noqa: F401

    values = np.arange(-3, 9).reshape(3, 4).astype(np.dtype(kind))
    (tmp_path / "w.bin").write_bytes(b"\1" * offset + values.tobytes() + b"\2")
    tensor = external("w", [3, 4], "w.bin", helper.np_dtype_to_tensor_dtype(values.dtype), offset=offset)
    found = tensor_values(tensor, tmp_path)
    assert found.dtype == values.dtype
    assert found.tobytes() == values.tobytes()
    assert found.flags.aligned


def test_packed_types_are_unpacked(tmp_path: Path) -> None:
    tensor = helper.make_tensor("w", TensorProto.INT4, [5], [1, -2, 3, -4, 7])
    packed = bytes(b & 0xFF for b in tensor.int32_data)
    (tmp_path / "w.bin").write_bytes(packed)
    found = tensor_values(external("w", [5], "w.bin", TensorProto.INT4), tmp_path)
    assert found.astype(int).tolist() == [1, -2, 3, -4, 7]


def test_empty_tensors(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(b"")
    assert tensor_values(external("w", [0, 4], "w.bin"), tmp_path).shape == (0, 4)


def refused(path: Path, tensor: TensorProto, **options: object) -> str:
    saved(path, [helper.make_node("Add", ["x", "w"], ["y"])], [tensor])
    with pytest.raises(ModelError) as caught:
        import_model(path, **options)
    return str(caught.value)


def test_only_regular_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for location in ("pipe", "folder", "."):
        assert "is no regular file" in refused(tmp_path / "m.onnx", external("w", [4], location))
    (tmp_path / "round").symlink_to("round")
    assert "weights of 'w'" in refused(tmp_path / "m.onnx", external("w", [4], "round"))
    assert "outside" in refused(tmp_path / "m.onnx", external("w", [4], "/dev/zero"))
    assert "no regular file" in refused(tmp_path / "m.onnx", external("w", [4], "/dev/zero"), allow_external=["/dev"])
    for model in ("pipe", "folder"):
        with pytest.raises(ModelError):
            import_model(tmp_path / model)


def test_hard_links_need_permission(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    os.link(tmp_path / "secret", folder / "w.bin")
    assert "hard links" in refused(folder / "m.onnx", external("w", [4], "w.bin"))
    assert import_model(folder / "m.onnx", allow_external=[folder]).graph.constants == ("w",)


def test_a_file_that_becomes_a_link_is_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "w.bin").write_bytes(b"s" * 16)
    (folder / "sub" / "w.bin").write_bytes(bytes(16))
    tensor = external("w", [4], "sub/w.bin")
    files = ExternalFiles(folder)
    files.place(tensor)
    (folder / "sub" / "w.bin").unlink()
    (folder / "sub" / "w.bin").symlink_to(tmp_path / "out" / "w.bin")
    with pytest.raises(ModelError, match="cannot be read"):
        files.open(tensor)
    (folder / "sub" / "w.bin").unlink()
    (folder / "sub").rmdir()
    (folder / "sub").symlink_to(tmp_path / "out")
    with pytest.raises(ModelError, match="cannot be read"):
        files.open(tensor)
    (folder / "sub").unlink()
    (folder / "sub").mkdir()
    (folder / "sub" / "w.bin").write_bytes(bytes(8))
    with pytest.raises(ModelError, match="became shorter"):
        files.open(tensor)


def test_links_within_the_folder_are_fine(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "a").write_bytes(np.float32([1, 2, 3, 4]).tobytes())
    (tmp_path / "w.bin").symlink_to("blobs/a")
    path = saved(tmp_path / "m.onnx", [helper.make_node("Add", ["x", "w"], ["y"])], [external("w", [4], "w.bin")])
    assert load_values(import_model(path), ["w"])["w"].tolist() == [1, 2, 3, 4]


def test_tensors_of_attributes_and_branches_are_held_to_the_same(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.float32([1, 2, 3, 4]).tobytes())
    for location, says in (("w.bin", ""), ("../w.bin", "lies outside"), ("none.bin", "is missing")):
        made = helper.make_node("Constant", [], ["w"], value=external("v", [4], location))
        path = saved(tmp_path / "m.onnx", [made, helper.make_node("Add", ["x", "w"], ["y"])], [])
        result = helper.make_tensor_value_info("r", 1, None)
        inner = [helper.make_node("Add", ["x", "w"], ["r"])]
        body = helper.make_graph(inner, "b", [], [result], [external("w", [4], location)])
        choice = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
        other = saved(tmp_path / "n.onnx", [choice], [numpy_helper.from_array(np.asarray(True), "c")])
        for file in (path, other):
            if not says:
                model = import_model(file)
                [name] = model.graph.constants
                assert load_values(model, [name])[name].tolist() == [1, 2, 3, 4]
                continue
            with pytest.raises(ModelError, match=says):
                import_model(file)


def test_offsets_and_lengths(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    for entries in ({"offset": 1}, {"offset": -1}, {"length": 2**62}, {"offset": 2**62}, {"length": -16}):
        said = refused(tmp_path / "m.onnx", external("w", [4], "w.bin", **entries))
        assert "weights of 'w'" in said
    for key in ("offset", "length"):
        tensor = external("w", [4], "w.bin")
        tensor.external_data.add(key=key, value="1e3")
        assert "no number" in refused(tmp_path / "m.onnx", tensor)


def test_open_regular_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        open_regular(tmp_path / "pipe")
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [])), tmp_path / "m.onnx")
    with open_regular(tmp_path / "m.onnx") as file:
        assert file.read()
