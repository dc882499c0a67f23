"""Annotations of several devices, by any tool: read, checked, kept, and no hindrance to other tools."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto

from hpdlf.errors import ModelError
from hpdlf.models.onnxpp import annotate, import_model, load_onnxpp, save_onnxpp, strategies
from hpdlf.models.zoo import mlp

WIDTHS = (8, 12, 4)
SHAPES = {
    "x": (None, 8),
    "dense1.weight": (12, 8),
    "dense1.bias": (12,),
    "dense1": (None, 12),
    "act1": (None, 12),
    "dense2.weight": (4, 12),
    "dense2.bias": (4,),
    "logits": (None, 4),
}


def network(opset: int = 20) -> ModelProto:
    model = mlp(WIDTHS)
    model.ir_version, model.opset_import[0].version = 11, opset
    return model


def shard(node: NodeProto, tensor: str, axis: int, parts: int, devices: list[int], configuration: str = "tp") -> Any:
    place = next((p for p in node.device_configurations if p.configuration_id == configuration), None)
    place = place or node.device_configurations.add(configuration_id=configuration)
    spec = place.sharding_spec.add(tensor_name=tensor, device=devices)
    spec.sharded_dim.add(axis=axis).simple_sharding.add(num_shards=parts)
    return spec


def tensor_parallel() -> ModelProto:
    """As other tools annotate: columns, then rows of two products over two devices, the activation between untold."""
    model = network()
    model.configuration.add(name="tp", num_devices=2, device=["cuda:0", "cuda:1"])
    first, _, second = model.graph.node
    shard(first, "dense1.weight", -2, 2, [0, 1])
    shard(first, "dense1", 1, 2, [0, 1])
    shard(second, "dense2.weight", 1, 2, [0, 1])
    whole = second.device_configurations[0].sharding_spec.add(tensor_name="logits", device=[-1])
    whole.index_to_device_group_map.add(key=-1, value=[0, 1])
    return model


def written(model: ModelProto, tmp_path: Path) -> Path:
    onnx.checker.check_model(model)  # finds nothing wrong with any of these
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def places(model: ModelProto) -> dict[str, list[bytes]]:
    return {n.name: [p.SerializeToString() for p in n.device_configurations] for n in model.graph.node}


def test_another_tools_sharding_is_a_strategy(tmp_path: Path) -> None:
    model = tensor_parallel()
    imported = import_model(written(model, tmp_path), loss="mse")
    (found,) = strategies(imported.proto)
    assert (found.configuration, found.n_devices, found.devices) == ("tp", 2, ("cuda:0", "cuda:1"))
    assert (found.split, found.parts, found.copied, found.placed, found.stages) == (3, 2, 1, 2, ())
    assert "3 tensors split into up to 2 parts, 1 held whole by several devices" in str(found)
    assert {n: p for n, p in places(imported.proto).items() if p} == {n: p for n, p in places(model).items() if p}
    save_onnxpp(imported, tmp_path / "pp.onnx")
    assert strategies(load_onnxpp(tmp_path / "pp.onnx").proto) == (found,)


def test_a_plan_stands_beside_another_tools_configuration(tmp_path: Path) -> None:
    imported = import_model(written(tensor_parallel(), tmp_path), loss="mse")
    stages = {o.name: 0 for o in imported.graph.operators}
    placed = annotate(imported, configuration="plan", stages=stages, segments=dict.fromkeys(stages, "0"), n_devices=1)
    save_onnxpp(placed, tmp_path / "pp.onnx")
    names = [s.configuration for s in strategies(load_onnxpp(tmp_path / "pp.onnx").proto)]
    assert names == ["tp", "plan"]


def first(model: ModelProto) -> Any:
    return model.graph.node[0].device_configurations[0]


def spec(model: ModelProto) -> Any:
    return first(model).sharding_spec[0]


def assign(part: Callable[[ModelProto], Any], field: str, value: object) -> Callable[[ModelProto], None]:
    return lambda model: setattr(part(model), field, value)


WRONG: list[tuple[str, Callable[[ModelProto], Any]]] = [
    ("no configuration 'tpp'; did you mean tp", assign(first, "configuration_id", "tpp")),
    ("'dense1.weigth', which is no operand.*did you mean dense1.weight", assign(spec, "tensor_name", "dense1.weigth")),
    ("'logits', which is no operand and no result of the node", assign(spec, "tensor_name", "logits")),
    ("two shardings", assign(spec, "tensor_name", "dense1")),
    ("axis 2 is out of range, it has rank 2", lambda m: setattr(spec(m).sharded_dim[0], "axis", 2)),
    ("axis -3 is out of range, it has rank 2", lambda m: setattr(spec(m).sharded_dim[0], "axis", -3)),
    ("axis 0 is split twice", lambda m: spec(m).sharded_dim.add(axis=0).simple_sharding.add(num_shards=1)),
    ("device 2 is out of range, the configuration has 2", lambda m: spec(m).device.__setitem__(1, 2)),
    ("device -1 is no group of its map; it has none", lambda m: spec(m).device.__setitem__(1, -1)),
    ("device 7 is out of range", lambda m: spec(m).index_to_device_group_map.add(key=0, value=[7])),
    ("group of devices 0 is empty", lambda m: spec(m).index_to_device_group_map.add(key=0)),
    ("2 parts, but 1 devices or groups", lambda m: spec(m).device.pop()),
    ("0 parts, at least 1", lambda m: setattr(spec(m).sharded_dim[0].simple_sharding[0], "num_shards", 0)),
    ("24 parts of 12 elements", lambda m: setattr(spec(m).sharded_dim[0].simple_sharding[0], "num_shards", 24)),
    ("stated as 10, but it has 12", lambda m: setattr(spec(m).sharded_dim[0].simple_sharding[0], "dim_value", 10)),
    ("not said into how many parts", lambda m: spec(m).sharded_dim[0].simple_sharding.pop()),
    ("pipeline stage -1, stages count from 0", assign(first, "pipeline_stage", -1)),
    ("placed twice", lambda m: m.graph.node[0].device_configurations.add(configuration_id="tp")),
    ("0 devices, at least 1 is needed", lambda m: setattr(m.configuration[0], "num_devices", 0)),
    ("2 devices, but 3 names", lambda m: m.configuration[0].device.append("c")),
    ("'tp' occurs twice", lambda m: m.configuration.add(name="tp", num_devices=2)),
    ("has no name", lambda m: m.configuration.add(num_devices=2)),
]


@pytest.mark.parametrize(("message", "damage"), WRONG, ids=[m for m, _ in WRONG])
def test_what_the_checker_takes_is_refused(message: str, damage: Callable[[ModelProto], Any], tmp_path: Path) -> None:
    model = tensor_parallel()
    damage(model)
    path = written(model, tmp_path)
    with pytest.raises(ModelError, match=message):
        import_model(path)
    onnx.save(tensor_parallel(), path)
    imported = import_model(path, loss="mse")
    damage(imported.proto)
    save_onnxpp(imported, tmp_path / "pp.onnx")
    with pytest.raises(ModelError, match=message):
        load_onnxpp(tmp_path / "pp.onnx")


def test_all_problems_come_together(tmp_path: Path) -> None:
    model = tensor_parallel()
    first(model).pipeline_stage = -2
    spec(model).device[0] = 9
    model.graph.node[2].device_configurations[0].configuration_id = "other"
    with pytest.raises(ModelError, match="3 problems") as caught:
        import_model(written(model, tmp_path))
    for part in ("stage -2", "device 9", "'other'"):
        assert part in str(caught.value)


def test_graphs_inside_operators_are_checked(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 11, opset_import: ["" : 21]>
        g (float[N, 4] x) => (float[N, 4] y) {
            n = Constant <value: tensor = int64 {2}> ()
            t = Constant <value: tensor = bool {1}> ()
            y = Loop <body = b (int64 i, bool c, float[N, 4] a) => (bool d, float[N, 4] s) {
                d = Identity (c)  s = Relu (a) }> (n, t, x) }"""
    )
    model.configuration.add(name="tp", num_devices=2)
    body = model.graph.node[2].attribute[0].g
    shard(body.node[1], "s", 5, 2, [0, 1])
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"node 'Relu' in body .*axis 5 is out of range"):
        import_model(tmp_path / "m.onnx")


@st.composite
def annotated(draw: st.DrawFn) -> ModelProto:
    """A network with sound annotations of any kind that the standard has."""
    model = network(draw(st.sampled_from((13, 20))))
    for name in draw(st.lists(st.sampled_from(["a", "b", "ü 1"]), unique=True, max_size=3)):
        count = draw(st.integers(1, 4))
        names = [f"d{i}" for i in range(count)] if draw(st.booleans()) else []
        model.configuration.add(name=name, num_devices=count, device=names)
        for node in model.graph.node:
            if draw(st.booleans()):
                _annotate(draw, node, name, count)
    for node in model.graph.node:
        for key in draw(st.lists(st.sampled_from(["k", "pkg.x", "ö"]), unique=True, max_size=2)):
            node.metadata_props.add(key=key, value=draw(st.text(max_size=5)))
        if text := draw(st.text(max_size=5)):
            node.doc_string = text
    return model


def _annotate(draw: st.DrawFn, node: NodeProto, name: str, count: int) -> None:
    place = node.device_configurations.add(configuration_id=name)
    if draw(st.booleans()):
        place.pipeline_stage = draw(st.integers(0, 5))
    own = list(dict.fromkeys((*node.input, *node.output)))
    for tensor in draw(st.lists(st.sampled_from(own), unique=True, max_size=3)):
        added = place.sharding_spec.add(tensor_name=tensor)
        rank, parts = len(SHAPES[tensor]), 1
        for axis in draw(st.lists(st.integers(0, rank - 1), unique=True, max_size=rank)):
            into = draw(st.integers(1, 2))
            dim = added.sharded_dim.add(axis=axis - rank if draw(st.booleans()) else axis)
            one = dim.simple_sharding.add(num_shards=into)
            size = SHAPES[tensor][axis]
            if size is None:
                one.dim_param = "N"
            elif draw(st.booleans()):
                one.dim_value = size
            parts *= into
        device = st.integers(0, count - 1)
        if draw(st.booleans()):
            added.device.extend([-1 - i for i in range(parts)])
            for i in range(parts):
                group = draw(st.lists(device, min_size=1, max_size=3))
                added.index_to_device_group_map.add(key=-1 - i, value=group)
        else:
            added.device.extend(draw(st.lists(device, min_size=parts, max_size=parts)))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(model=annotated(), loss=st.sampled_from([None, "mse"]))
def test_annotations_survive_import_write_read_and_import(model: ModelProto, loss: str | None, tmp_path: Path) -> None:
    expected = places(model)
    said = {n.name: {p.key: p.value for p in n.metadata_props} for n in model.graph.node}
    docs = {n.name: n.doc_string for n in model.graph.node}
    onnx.save(model, tmp_path / "m.onnx")
    imported = import_model(tmp_path / "m.onnx", loss=loss)
    save_onnxpp(imported, tmp_path / "pp.onnx")
    onnx.save(onnx.load(tmp_path / "pp.onnx"), tmp_path / "again.onnx")
    for found in (imported, load_onnxpp(tmp_path / "pp.onnx"), import_model(tmp_path / "again.onnx", loss=loss)):
        assert list(found.proto.configuration) == list(model.configuration)
        assert {n: p for n, p in places(found.proto).items() if n in expected} == expected
        for node in found.proto.graph.node:
            if node.name in said:
                others = {p.key: p.value for p in node.metadata_props if not p.key.startswith("hpdlf.")}
                assert (others, node.doc_string) == (said[node.name], docs[node.name])
    assert import_model(tmp_path / "pp.onnx", loss=loss).proto == imported.proto


def test_other_tools_run_check_and_keep_an_annotated_file(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    ir = pytest.importorskip("onnx_ir")
    imported = import_model(written(tensor_parallel(), tmp_path))
    stages = {o.name: int(i > 0) for i, o in enumerate(imported.graph.operators)}
    placed = annotate(imported, configuration="plan", stages=stages, segments=dict.fromkeys(stages, "0"), n_devices=2)
    path = tmp_path / "pp.onnx"
    save_onnxpp(placed, path)
    onnx.checker.check_model(str(path), full_check=True)
    x = np.random.default_rng(0).standard_normal((3, 8), dtype=np.float32)
    before = ort.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    after = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x})
    np.testing.assert_array_equal(before[0], after[0])
    from onnx.reference import ReferenceEvaluator

    np.testing.assert_allclose(ReferenceEvaluator(str(path)).run(None, {"x": x})[0], before[0], rtol=1e-5, atol=1e-6)
    model = onnx.load(path)
    ir.save(ir.load(path), tmp_path / "ir.onnx")
    onnx.save(onnx.shape_inference.infer_shapes(model), tmp_path / "inferred.onnx")
    for name in ("ir.onnx", "inferred.onnx"):
        found = load_onnxpp(tmp_path / name).proto
        assert strategies(found) == strategies(placed.proto)
        assert places(found) == places(placed.proto)
