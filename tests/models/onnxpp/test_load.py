"""Bad input: each file gets one message with place, reason and mend, and all its problems together."""

import os
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper

from hpdlf.errors import ModelError
from hpdlf.models.onnxpp import Onnxpp, import_model, load_onnxpp
from hpdlf.models.onnxpp.load import check
from hpdlf.models.zoo import mlp


def model_of(nodes: list[NodeProto], weights: list[TensorProto] = (), **more: object) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "bad", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, **more)


def refused(path: Path, content: bytes | onnx.ModelProto, **options: object) -> str:
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    with pytest.raises(ModelError) as caught:
        import_model(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_no_onnx_empty_absent_folder(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    assert "is empty" in refused(path, b"")
    assert "is no ONNX file" in refused(path, b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert "is no ONNX file" in refused(path, b"import this\n" * 50)
    assert "holds no graph" in refused(path, onnx.ModelProto(ir_version=8))
    with pytest.raises(ModelError, match="is no file"):
        import_model(tmp_path)
    with pytest.raises(ModelError, match=r"does not exist; did you mean m.onnx"):
        import_model(tmp_path / "n.onnx")


def test_unknown_operators_come_together_by_name(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relue", ["x"], ["a"], name="first"),
        helper.make_node("FusedConv", ["a"], ["b"], domain="com.example"),
        helper.make_node("Add", ["b", "nowhere"], ["y"], name="sum"),
    ]
    said = refused(tmp_path / "m.onnx", model_of(nodes))
    assert "'first': operator 'Relue' is unknown in operator set 18; did you mean" in said
    assert "FusedConv" in said
    assert "'nowhere', is no input, no initializer" in said


def choice(nodes: list[NodeProto], weights: list[TensorProto] = (), output: str = "r") -> onnx.ModelProto:
    """A model whose only node, "choice", has `nodes` in both of its branches."""
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    branch = helper.make_graph(nodes, "b", [], [result], weights)
    node = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=branch, else_branch=branch)
    return model_of([node], [numpy_helper.from_array(np.asarray(True), "c")])


def test_branches_are_checked_as_the_graph_around_them_is(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(choice([helper.make_node("Relu", ["x"], ["r"])]), path)
    assert [o.op_type for o in import_model(path).graph.operators] == ["Relu"]
    said = refused(path, choice([helper.make_node("Relue", ["x"], ["r"], name="first")]))
    assert "node 'first' and 1 more: operator 'Relue' is unknown in operator set 18; did you mean Relu" in said
    said = refused(path, choice([helper.make_node("Add", ["x", "w"], ["r"], name="sum")]))
    assert "node 'choice' (If), then_branch: node 'sum' (Add): operand 1, 'w', is no input" in said
    short = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], raw_data=bytes(12))
    said = refused(path, choice([helper.make_node("Add", ["x", "w"], ["r"])], [short]))
    assert "initializer 'w' in then_branch of node 'choice' (If): shape [4] needs 16 bytes" in said
    loop = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"], name="back")]
    assert "then_branch: the graph has a cycle" in refused(path, choice(loop, output="b"))
    assert "'choice' → 'choice'" in refused(path, choice([helper.make_node("Relu", ["y"], ["r"])]))


def test_nodes_inside_branches_are_sorted_and_so_are_nodes_that_branches_read(tmp_path: Path) -> None:
    model = choice([helper.make_node("Relu", ["late"], ["r"]), helper.make_node("Tanh", ["outer"], ["late"])])
    model.graph.node.append(helper.make_node("Neg", ["x"], ["outer"]))
    onnx.save(model, tmp_path / "m.onnx")
    assert [o.op_type for o in import_model(tmp_path / "m.onnx").graph.operators] == ["Neg", "Tanh", "Relu"]


def test_graphs_that_nest_too_deep_are_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["r"])]
    for _ in range(20):
        result = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
        body = helper.make_graph(nodes, "b", [], [result])
        nodes = [helper.make_node("If", ["c"], ["r"], then_branch=body, else_branch=helper.make_graph([], "e", [], []))]
    assert "graphs inside operators nest" in refused(tmp_path / "m.onnx", choice(nodes))


def test_cycle_is_shown(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "c"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["b"], name="two"),
        helper.make_node("Relu", ["b"], ["c"], name="three"),
        helper.make_node("Relu", ["c"], ["y"], name="four"),
    ]
    said = refused(tmp_path / "m.onnx", model_of(nodes))
    assert "cycle" in said
    assert all(f"'{name}'" in said for name in ("one", "two", "three"))
    assert "four" not in said


def test_unsorted_nodes_are_sorted(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Tanh", ["x"], ["a"])]
    onnx.save(model_of(nodes), tmp_path / "m.onnx")
    assert [o.op_type for o in import_model(tmp_path / "m.onnx").graph.operators] == ["Tanh", "Relu"]


@pytest.mark.parametrize("dims", [[2**40], [2**20, 2**20], [2**62, 4], [-3]])
def test_declared_elements_are_not_believed(tmp_path: Path, dims: list[int]) -> None:
    huge = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, raw_data=bytes(8))
    start = time.perf_counter()
    said = refused(tmp_path / "m.onnx", model_of([helper.make_node("Add", ["x", "w"], ["y"])], [huge]))
    assert time.perf_counter() - start < 2
    assert "initializer 'w'" in said


def test_huge_constant_of_shape_is_refused(tmp_path: Path) -> None:
    nodes = [helper.make_node("ConstantOfShape", ["s"], ["w"]), helper.make_node("MatMul", ["x", "w"], ["y"])]
    shape = numpy_helper.from_array(np.int64([4, 2**40]), "s")
    assert "elements" in refused(tmp_path / "m.onnx", model_of(nodes, [shape]))


def test_weights_cut_short(tmp_path: Path) -> None:
    short = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], raw_data=bytes(12))
    said = refused(tmp_path / "m.onnx", model_of([helper.make_node("Add", ["x", "w"], ["y"])], [short]))
    assert "shape [4] needs 16 bytes, the file has 12" in said


def external(location: str, **entries: int) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def test_external_data_stays_in_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "short.bin").write_bytes(bytes(8))
    node = [helper.make_node("Add", ["x", "w"], ["y"])]
    for location in ("../secret.bin", str(tmp_path / "secret.bin"), "link.bin"):
        said = refused(folder / "m.onnx", model_of(node, [external(location)]))
        assert "lies outside the model's folder" in said
        assert f"--allow-external {tmp_path}" in said
        assert import_model(folder / "m.onnx", allow_external=[tmp_path]).graph.constants == ("w",)
    assert "is missing" in refused(folder / "m.onnx", model_of(node, [external("absent.bin")]))
    assert "needed; copy the file again" in refused(folder / "m.onnx", model_of(node, [external("short.bin")]))
    assert "needed" in refused(folder / "m.onnx", model_of(node, [external("short.bin", offset=-8)]))
    assert "needs 16" in refused(folder / "m.onnx", model_of(node, [external("short.bin", length=8)]))


def test_functions_that_explode_or_recurse_are_refused_at_once(tmp_path: Path) -> None:
    opset = [helper.make_opsetid("", 18), helper.make_opsetid("f", 1)]

    def doubling(level: int) -> onnx.FunctionProto:
        callee, domain = (f"f{level - 1}", "f") if level else ("Relu", "")
        nodes = [
            helper.make_node(callee, ["a"], ["b"], domain=domain),
            helper.make_node(callee, ["b"], ["c"], domain=domain),
        ]
        return helper.make_function("f", f"f{level}", ["a"], ["c"], nodes, opset)

    model = model_of([helper.make_node("f39", ["x"], ["y"], domain="f")], functions=[doubling(i) for i in range(40)])
    model.opset_import.append(opset[1])
    assert "nodes once its functions are written out" in refused(tmp_path / "m.onnx", model)
    itself = helper.make_function("f", "g", ["a"], ["b"], [helper.make_node("g", ["a"], ["b"], domain="f")], opset)
    model = model_of([helper.make_node("g", ["x"], ["y"], domain="f")], functions=[itself])
    model.opset_import.append(opset[1])
    assert "calls itself" in refused(tmp_path / "m.onnx", model)
    small = model_of([helper.make_node("f1", ["x"], ["y"], domain="f")], functions=[doubling(0), doubling(1)])
    small.opset_import.append(opset[1])
    onnx.save(small, tmp_path / "m.onnx")
    assert [o.op_type for o in import_model(tmp_path / "m.onnx").graph.operators] == ["Relu"] * 4


def test_data_dependent_shape_names_the_node(tmp_path: Path) -> None:
    one = [numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in (("zero", 0), ("one", 1))]
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Range", ["zero", "most", "one"], ["y"], name="count"),
    ]
    said = refused(tmp_path / "m.onnx", model_of(nodes, one))
    assert "'count' (Range)" in said
    assert "depends on data" in said


def test_shapes_that_do_not_fit_name_the_node(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.ones((5, 3), np.float32), "w")
    said = refused(
        tmp_path / "m.onnx", model_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="dense")], [weight])
    )
    assert "shapes do not fit" in said
    assert "dense" in said


def test_a_loss_that_does_not_exist(tmp_path: Path) -> None:
    said = refused(tmp_path / "m.onnx", mlp((4, 2)), loss="softmax_xnt", train="nothing_like_it")
    assert "did you mean softmax_xent" in said
    assert "--train 'nothing_like_it' matches no tensor" in said


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**9), change=st.binary(min_size=1, max_size=4))
def test_damaged_files_never_end_in_anything_but_a_model_error(tmp_path: Path, place: int, change: bytes) -> None:
    content = bytearray(mlp((4, 3, 2)).SerializeToString())
    place %= len(content)
    content[place : place + len(change)] = change
    path = tmp_path / "m.onnx"
    path.write_bytes(bytes(content))
    try:
        import_model(path, loss="mse")
    except ModelError as error:
        said = str(error)
    else:
        return
    assert str(path) in said


def test_plain_onnx_is_no_onnxpp(tmp_path: Path) -> None:
    onnx.save(mlp((4, 2)), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="hpdlf import"):
        load_onnxpp(tmp_path / "m.onnx")


def test_every_wrong_annotation_is_reported(small: Onnxpp, tmp_path: Path) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(small.proto)
    said = {p.key: p for p in proto.metadata_props}
    said["hpdlf.loss"].value = "lost"
    said["hpdlf.targets"].value = "{"
    proto.metadata_props.add(key="hpdlf.parametres", value="[]")
    proto.graph.node[0].metadata_props[0].value = "convv"
    proto.graph.node[0].device_configurations.add(configuration_id="none", pipeline_stage=1)
    onnx.save(proto, tmp_path / "pp.onnx")
    with pytest.raises(ModelError) as caught:
        load_onnxpp(tmp_path / "pp.onnx")
    message = str(caught.value)
    for part in ("no output 'lost'; did you mean loss", "no JSON list", "did you mean parameters", "did you mean conv"):
        assert part in message
    assert "no configuration 'none'" in message
    said["hpdlf.format"].value = "99"
    os.remove(tmp_path / "pp.onnx")
    onnx.save(proto, tmp_path / "pp.onnx")
    with pytest.raises(ModelError, match="format '99'"):
        load_onnxpp(tmp_path / "pp.onnx")


def test_a_model_of_another_domain_alone(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in ("x", "y")]
    node = helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[1.0], scale=[2.0])
    graph = helper.make_graph([node], "ml", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("ai.onnx.ml", 3)]), tmp_path / "m.onnx")
    assert [o.op_type for o in import_model(tmp_path / "m.onnx").graph.operators] == ["Scaler"]
    relu = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = helper.make_model(relu, opset_imports=[helper.make_opsetid("ai.onnx.ml", 3)])
    assert "no operator set of the standard domain is imported" in refused(tmp_path / "m.onnx", model)


def test_inputs_that_are_no_tensors_are_refused_when_planning(tmp_path: Path) -> None:
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, [4])
    x = helper.make_value_info("x", helper.make_sequence_type_proto(element))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("ConcatFromSequence", ["x"], ["y"], axis=0)], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    check(model, "m.onnx")
    assert "input 'x' is no tensor (sequence)" in refused(tmp_path / "m.onnx", model)
