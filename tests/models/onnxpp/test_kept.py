"""What a file says beside its graph survives every step of the import, and the export."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from hpdlf.errors import ModelError
from hpdlf.models.onnxpp import Onnxpp, annotate, export_trained, import_model, load_onnxpp, save_onnxpp
from hpdlf.models.zoo import mlp


def remarked(opset: int) -> ModelProto:
    """A network that says something in every place that the standard has for it."""
    model = mlp((8, 12, 4))
    model.ir_version, model.opset_import[0].version = 11, opset
    model.domain, model.model_version, model.doc_string = "org.example", 7, "a model"
    model.metadata_props.add(key="author", value="somebody")
    model.configuration.add(name="pp", num_devices=2, device=["a", "b"])
    graph = model.graph
    graph.doc_string = "a graph"
    graph.metadata_props.add(key="layout", value="rows")
    note = graph.quantization_annotation.add(tensor_name="act1")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="dense2.bias")
    training = model.training_info.add()
    training.algorithm.name = "sgd"
    training.update_binding.add(key="dense1.weight", value="next")
    for i, node in enumerate(graph.node):
        node.doc_string = f"line {i}"
        node.metadata_props.add(key="namespace", value=f"layer{i}")
        node.device_configurations.add(configuration_id="pp", pipeline_stage=i // 2)
    for tensor in graph.initializer:
        tensor.doc_string = f"the {tensor.name}"
        tensor.metadata_props.add(key="origin", value="trained")
    for value in (graph.input[0], graph.output[0]):
        value.doc_string, value.type.denotation = "an end", "TENSOR"
        value.metadata_props.add(key="unit", value="m")
        value.type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    inner = graph.value_info.add(name="act1", doc_string="inside")
    inner.metadata_props.add(key="unit", value="V")
    inner.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 12]))
    return model


def assert_says_the_same(found: ModelProto, model: ModelProto) -> None:
    assert (found.domain, found.model_version, found.doc_string) == ("org.example", 7, "a model")
    assert found.graph.doc_string == "a graph"
    for field in ("configuration", "training_info"):
        assert list(getattr(found, field)) == list(getattr(model, field))
    for field in ("quantization_annotation", "metadata_props"):
        assert list(getattr(found.graph, field)) == list(getattr(model.graph, field))
    assert {p.key: p.value for p in found.metadata_props}["author"] == "somebody"
    nodes = {n.name: n for n in found.graph.node}
    for node in model.graph.node:
        same = nodes[node.name]
        assert same.doc_string == node.doc_string
        assert list(same.device_configurations) == list(node.device_configurations)
        assert [p for p in same.metadata_props if not p.key.startswith("hpdlf.")] == list(node.metadata_props)
    tensors = {t.name: t for t in found.graph.initializer}
    for tensor in model.graph.initializer:
        assert tensors[tensor.name].doc_string == tensor.doc_string
        assert [p.value for p in tensors[tensor.name].metadata_props if p.key == "origin"] == ["trained"]
    values = {v.name: v for v in (*found.graph.input, *found.graph.output, *found.graph.value_info)}
    for name in ("x", "logits"):
        assert (values[name].doc_string, values[name].type.denotation) == ("an end", "TENSOR")
        assert [p.key for p in values[name].metadata_props] == ["unit"]
        assert values[name].type.tensor_type.shape.dim[0].denotation == "DATA_BATCH"
    assert values["act1"].doc_string == "inside"
    assert [p.value for p in values["act1"].metadata_props] == ["V"]


@pytest.mark.parametrize("opset", [20, 13])
def test_everything_said_survives_import_and_export(opset: int, tmp_path: Path) -> None:
    model = remarked(opset)
    onnx.save(model, tmp_path / "m.onnx")
    imported = import_model(tmp_path / "m.onnx", loss="mse")
    save_onnxpp(imported, tmp_path / "pp.onnx")
    loaded = load_onnxpp(tmp_path / "pp.onnx")
    export_trained(loaded, {"dense1.bias": np.ones(12)}, tmp_path / "trained.onnx")
    exported = onnx.load(tmp_path / "trained.onnx")
    for found in (imported.proto, loaded.proto, exported):
        assert_says_the_same(found, model)
    assert not any(p.key.startswith("hpdlf.") for p in exported.metadata_props)
    assert exported.opset_import[0].version == opset


def places(model: ModelProto) -> list[tuple[str, list[int], list[str]]]:
    return [
        (
            node.op_type,
            [p.pipeline_stage for p in node.device_configurations],
            [s.tensor_name for p in node.device_configurations for s in p.sharding_spec],
        )
        for node in model.graph.node
    ]


def test_calls_of_functions_hand_their_stage_to_what_they_hold(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 11, opset_import: ["" : 21, "local" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) { h = local.f (x)  y = local.f (h) }
        <domain: "local", opset_import: ["" : 21]> f (a) => (b) { c = Relu (a)  b = Neg (c) }"""
    )
    model.configuration.add(name="p", num_devices=2)
    model.training_info.add().algorithm.name = "kept"
    for stage, node in enumerate(model.graph.node):
        place = node.device_configurations.add(configuration_id="p", pipeline_stage=stage)
        place.sharding_spec.add(tensor_name=node.output[0], device=[0])
    onnx.save(model, tmp_path / "m.onnx")
    found = import_model(tmp_path / "m.onnx").proto
    assert places(found) == [("Relu", [0], []), ("Neg", [0], ["h"]), ("Relu", [1], []), ("Neg", [1], ["y"])]
    assert found.training_info[0].algorithm.name == "kept"


def test_shardings_inside_functions_follow_the_names_of_their_calls(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 11, opset_import: ["" : 21, "local" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) { h = local.f (x)  y = local.f (h) }
        <domain: "local", opset_import: ["" : 21]> f (a) => (b) { c = Relu (a)  b = Neg (c) }"""
    )
    model.configuration.add(name="p", num_devices=2)
    for node in model.functions[0].node:
        place = node.device_configurations.add(configuration_id="p")
        for name in (node.input[0], node.output[0]):
            spec = place.sharding_spec.add(tensor_name=name, device=[0, 1])
            spec.sharded_dim.add(axis=1).simple_sharding.add(num_shards=2)
    onnx.save(model, tmp_path / "m.onnx")
    found = import_model(tmp_path / "m.onnx").proto
    for node in found.graph.node:
        (place,) = node.device_configurations
        assert [s.tensor_name for s in place.sharding_spec] == [node.input[0], node.output[0]]
    model.functions[0].node[0].device_configurations[0].sharding_spec[0].tensor_name = "nobody"
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="'nobody', which is no operand"):
        import_model(tmp_path / "m.onnx")


def test_operators_that_are_written_out_stay_where_they_were(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["h"], name="relu"),
            helper.make_node("FastGelu", ["h", "w"], ["y"], name="gelu", domain="com.microsoft"),
        ],
        "contrib",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.ones(4, np.float32), "w")],
    )
    sets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=sets, ir_version=11)
    model.configuration.add(name="p", num_devices=2)
    for stage, node in enumerate(model.graph.node):
        place = node.device_configurations.add(configuration_id="p", pipeline_stage=stage)
        for name in (*node.input, *node.output):
            place.sharding_spec.add(tensor_name=name, device=[0])
    onnx.save(model, tmp_path / "m.onnx")
    found = import_model(tmp_path / "m.onnx").proto
    assert len(found.graph.node) > 2
    assert [stages for _, stages, _ in places(found)] == [[0], *[[1]] * (len(found.graph.node) - 1)]
    assert {n for _, stages, names in places(found) for n in names if stages == [1]} == {"h", "w", "y"}


def test_merged_weights_that_come_apart_take_their_shardings_along(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("BatchNormalization", ["x", "one", "zero", "zero", "one"], ["h"], name="bn"),
        helper.make_node("Relu", ["h"], ["y"], name="relu"),
    ]
    one, zero = (numpy_helper.from_array(np.full(3, v, np.float32), n) for v, n in ((1, "one"), (0, "zero")))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3, 2]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "merged", ends[:1], ends[1:], [one, zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=11)
    model.configuration.add(name="p", num_devices=2)
    place = model.graph.node[0].device_configurations.add(configuration_id="p")
    place.sharding_spec.add(tensor_name="one", device=[0])
    onnx.save(model, tmp_path / "m.onnx")
    found = import_model(tmp_path / "m.onnx", loss="mse").proto
    (spec,) = found.graph.node[0].device_configurations[0].sharding_spec
    assert spec.tensor_name in found.graph.node[0].input


def whole(model: Onnxpp) -> Onnxpp:
    stages = {o.name: 0 for o in model.graph.operators}
    return annotate(model, configuration="plan", stages=stages, segments=dict.fromkeys(stages, "0"), n_devices=1)


def test_a_second_import_changes_nothing(small: Onnxpp, tmp_path: Path) -> None:
    save_onnxpp(whole(small), tmp_path / "pp.onnx")
    for loss in (None, "softmax_xent"):
        again = import_model(tmp_path / "pp.onnx", loss=loss)
        assert again.proto == whole(small).proto
        assert again.source_sha256 == small.source_sha256
    with pytest.raises(ModelError, match=r"anew with --loss, --freeze: .*'plan'.*import the original"):
        import_model(tmp_path / "pp.onnx", loss="softmax_xent", freeze="conv1.*")


def test_other_parameters_and_a_loss_are_those_of_a_first_import(tmp_path: Path) -> None:
    onnx.save(remarked(13), tmp_path / "m.onnx")
    save_onnxpp(import_model(tmp_path / "m.onnx"), tmp_path / "plain.onnx")
    save_onnxpp(import_model(tmp_path / "m.onnx", loss="mse"), tmp_path / "pp.onnx")
    wanted = import_model(tmp_path / "m.onnx", loss="mse", train="dense2.*")
    for name in ("plain.onnx", "pp.onnx"):
        again = import_model(tmp_path / name, loss="mse", train="dense2.*")
        assert again.graph == wanted.graph
        assert again.proto == wanted.proto
    with pytest.raises(ModelError, match="name it again with --loss"):
        import_model(tmp_path / "pp.onnx", train="dense2.*")


def test_what_others_annotate_on_our_file_goes_along(tmp_path: Path) -> None:
    onnx.save(mlp((8, 12, 4)), tmp_path / "m.onnx")
    save_onnxpp(import_model(tmp_path / "m.onnx"), tmp_path / "pp.onnx")
    model = onnx.load(tmp_path / "pp.onnx")
    model.configuration.add(name="later", num_devices=2)
    model.metadata_props.add(key="reviewed", value="yes")
    model.graph.node[1].device_configurations.add(configuration_id="later", pipeline_stage=1)
    onnx.save(model, tmp_path / "pp.onnx")
    found = import_model(tmp_path / "pp.onnx", loss="mse").proto
    assert [c.name for c in found.configuration] == ["later"]
    assert [p.value for p in found.metadata_props if p.key == "reviewed"] == ["yes"]
    assert places(found)[:3] == [("Gemm", [], []), ("Relu", [1], []), ("Gemm", [], [])]


def test_a_file_whose_metadata_a_tool_took_out_is_imported_like_any_other(small_file: Path, tmp_path: Path) -> None:
    model = onnx.load(small_file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "m.onnx")
    save_onnxpp(import_model(tmp_path / "m.onnx"), tmp_path / "pp.onnx")
    assert load_onnxpp(tmp_path / "pp.onnx").graph.loss == "loss"
