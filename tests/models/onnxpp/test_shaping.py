"""Which dimension is the batch, how a frozen one is released, branches taken, and batches that stay fixed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hpdlf.errors import ModelError, PlanError
from hpdlf.experiments.verbs import simulate
from hpdlf.models.onnxpp import Onnxpp, import_model, load_onnxpp, save_onnxpp
from hpdlf.models.onnxpp.graph import Body, Dim, Tensor
from hpdlf.models.onnxpp.shapes import read_tensor, value_info

SHARED = Path(__file__).parents[4] / "shared" / "onnx"
NODE = helper.make_node
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def write(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[object]],
    outputs: list[str],
    version: int = 18,
    **constants: Any,
) -> Path:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def both(original: Path, model: Onnxpp, folder: Path, samples: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """The first output for samples one by one in the file as it was, and for all together in the imported one."""
    save_onnxpp(model, folder / "pp.onnx")
    alone, together = (
        ort.InferenceSession(p, providers=["CPUExecutionProvider"]) for p in (original, folder / "pp.onnx")
    )
    name = alone.get_inputs()[0].name
    rows = [normal(*alone.get_inputs()[0].shape) for _ in range(samples)]
    expected = [alone.run(None, {name: row})[0] for row in rows]
    axis = next(i for i, d in enumerate(model.graph.tensors[model.graph.outputs[0]].shape) if d.per_sample)
    return np.concatenate(expected, axis), together.run(None, {name: np.concatenate(rows)})[0]


def sequence_first_attention(path: Path) -> Path:
    """What PyTorch's MultiheadAttention leaves of one sample: tokens first, heads in the batch, everything written out."""
    nodes = [
        NODE("Concat", ["token", "x"], ["all"], axis=1),
        NODE("Transpose", ["all"], ["first"], perm=[1, 0, 2]),
        NODE("Reshape", ["first", "in_heads"], ["heads"]),
        NODE("Transpose", ["heads"], ["q"], perm=[1, 0, 2]),
        NODE("Transpose", ["heads"], ["k"], perm=[1, 2, 0]),
        NODE("Reshape", ["q", "four"], ["q4"]),
        NODE("Reshape", ["k", "four_turned"], ["k4"]),
        NODE("MatMul", ["q4", "k4"], ["scores"]),
        NODE("Softmax", ["scores"], ["weights"], axis=-1),
        NODE("MatMul", ["weights", "q4"], ["seen"]),
        NODE("Transpose", ["seen"], ["back"], perm=[2, 0, 1, 3]),
        NODE("Reshape", ["back", "rows"], ["flat"]),
        NODE("Gemm", ["flat", "w"], ["out"]),
        NODE("Reshape", ["out", "three"], ["apart"]),
        NODE("Transpose", ["apart"], ["result"], perm=[1, 0, 2]),
        NODE("Add", ["all", "result"], ["y"]),
    ]
    shapes = {
        "in_heads": [6, 4, 2],
        "four": [1, 4, 6, 2],
        "four_turned": [1, 4, 2, 6],
        "rows": [6, 8],
        "three": [6, 1, 8],
    }
    constants = {k: np.int64(v) for k, v in shapes.items()}
    return write(path, nodes, {"x": [1, 5, 8]}, ["y"], token=normal(1, 1, 8), w=normal(8, 8), **constants)


def test_a_batch_of_one_is_released_wherever_it_went(tmp_path: Path) -> None:
    path = sequence_first_attention(tmp_path / "m.onnx")
    model = import_model(path)
    assert model.graph.fixed_batch is None
    assert model.graph.tensors["y"].shape == (Dim(per_sample=1), Dim(6), Dim(8))
    expected, found = both(path, model, tmp_path)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_initial_states_of_a_batch_of_one_are_released(tmp_path: Path) -> None:
    nodes = [
        NODE("Transpose", ["x"], ["xt"], perm=[1, 0, 2]),
        NODE("LSTM", ["xt", "w", "r", "b", "", "h", "c"], ["o", "last", ""], hidden_size=3),
        NODE("Squeeze", ["o", "one"], ["os"]),
        NODE("Transpose", ["os"], ["y"], perm=[1, 0, 2]),
    ]
    weights = {"w": normal(1, 12, 5), "r": normal(1, 12, 3), "b": normal(1, 24)}
    states = {"h": np.zeros((1, 1, 3), np.float32), "c": normal(1, 1, 3)}
    path = write(tmp_path / "m.onnx", nodes, {"x": [1, 6, 5]}, ["y"], **weights, **states, one=np.int64([1]))
    model = import_model(path)
    assert model.graph.tensors["y"].shape == (Dim(per_sample=1), Dim(6), Dim(3))
    expected, found = both(path, model, tmp_path)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_ordered_gathers_are_reshapes(tmp_path: Path) -> None:
    table = np.arange(24, dtype=np.int64).reshape(1, 24, 1)
    nodes = [
        NODE("Relu", ["x"], ["r"]),
        NODE("Reshape", ["r", "flat"], ["f"]),
        NODE("Gather", ["f", "table"], ["g"], axis=0),
        NODE("Squeeze", ["g", "two"], ["y"]),
    ]
    path = write(tmp_path / "m.onnx", nodes, {"x": [1, 24]}, ["y"], flat=np.int64([-1]), table=table, two=np.int64([2]))
    stated = onnx.load(path)
    stated.graph.value_info.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, [1, 24]))
    onnx.save(stated, path)
    model = import_model(path)
    assert model.graph.tensors["y"].shape == (Dim(per_sample=1), Dim(24))
    expected, found = both(path, model, tmp_path)
    np.testing.assert_array_equal(found, expected)


def test_a_batch_that_cannot_be_released_stays_and_is_not_trained(tmp_path: Path) -> None:
    nodes = [NODE("Reshape", ["x", "shape"], ["y0"]), NODE("MatMul", ["y0", "w"], ["y"])]
    path = write(tmp_path / "m.onnx", nodes, {"x": [3, 8, 8]}, ["y"], shape=np.int64([64, 3]), w=normal(3, 2))
    model = import_model(path)
    assert model.graph.fixed_batch == 1
    assert model.graph.tensors["y"].shape == (Dim(64), Dim(2))
    save_onnxpp(model, tmp_path / "pp.onnx")
    assert load_onnxpp(tmp_path / "pp.onnx").graph == model.graph
    with pytest.raises(ModelError, match="cannot be trained: it was exported for a fixed batch"):
        import_model(path, loss="mse")
    found = simulate(path, on="xeon-128", batch=4, data=2, microbatches=2)
    assert "forward pass alone" in found.strategy
    with pytest.raises(PlanError, match="exported for a batch of 1, which nothing can change"):
        simulate(path, on="xeon-128", batch=4)


def test_a_branch_whose_condition_is_known_takes_the_place_of_its_if(tmp_path: Path) -> None:
    inner = helper.make_graph(
        [NODE("Constant", [], ["w"], value=numpy_helper.from_array(normal(5, 5))), NODE("MatMul", ["h", "w"], ["t"])],
        "then",
        [],
        [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [NODE("Relu", ["h"], ["e"])], "else", [], [helper.make_tensor_value_info("e", TensorProto.FLOAT, None)]
    )
    nodes = [
        NODE("Relu", ["x"], ["h"]),
        NODE("Shape", ["x"], ["s"], start=1),
        NODE("Squeeze", ["s"], ["n"]),
        NODE("Equal", ["n", "five"], ["c"]),
        NODE("If", ["c"], ["y"], then_branch=inner, else_branch=other, name="if"),
    ]
    path = write(tmp_path / "m.onnx", nodes, {"x": ["N", 5]}, ["y"], five=np.int64(5))
    model = import_model(path, loss="mse")
    assert "If" not in {o.op_type for o in model.graph.operators}
    assert model.graph.parameter_count == 25
    assert "y" in model.graph.outputs


def test_what_stays_control_flow_knows_its_shapes(tmp_path: Path) -> None:
    body = helper.make_graph(
        [NODE("Identity", ["go"], ["on"]), NODE("Add", ["a", "x"], ["b"]), NODE("Relu", ["b"], ["out"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("out", TensorProto.FLOAT, None),
        ],
    )
    nodes = [NODE("Relu", ["x0"], ["x"]), NODE("Loop", ["n", "yes", "x"], ["last", "all"], body=body, name="loop")]
    path = write(tmp_path / "m.onnx", nodes, {"x0": ["N", 5]}, ["last", "all"], n=np.int64(7), yes=np.array(True))
    model = import_model(path)
    loop = model.graph.operator["loop"]
    assert loop.trips == Dim(7)
    assert loop.captured == ("x",)
    inner = loop.attributes["body"]
    assert isinstance(inner, Body)
    assert inner.tensors["b"].shape == (Dim(per_sample=1), Dim(5))
    save_onnxpp(model, tmp_path / "pp.onnx")
    assert load_onnxpp(tmp_path / "pp.onnx").graph.operator["loop"].trips == Dim(7)


def test_dimensions_that_follow_from_others_are_worked_out(tmp_path: Path) -> None:
    inputs: dict[str, list[object]] = {"x": ["N", "past", 4], "z": ["N", "past + 1", 4]}
    path = write(tmp_path / "m.onnx", [NODE("Concat", ["x", "z"], ["y"], axis=1)], inputs, ["y"])
    graph = import_model(path, bind={"past": 7}).graph
    assert graph.tensors["y"].shape == (Dim(per_sample=1), Dim(15), Dim(4))
    graph = import_model(path, bind={"past": 7, "z:1": 2}).graph
    assert graph.tensors["y"].shape == (Dim(per_sample=1), Dim(9), Dim(4))


def test_the_dimension_that_is_left_open_is_the_batch(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", [NODE("Relu", ["x"], ["y"])], {"x": ["T", "N", 4]}, ["y"])
    assert import_model(path, bind={"T": 6}).graph.tensors["y"].shape == (Dim(6), Dim(per_sample=1), Dim(4))
    # Where everything is bound, the first is the batch all the same.
    assert import_model(path, bind={"T": 6, "N": 2}).graph.tensors["y"].shape == (Dim(per_sample=1), Dim(2), Dim(4))


def test_operator_sets_that_cannot_be_converted_stay(tmp_path: Path) -> None:
    nodes = [NODE("Upsample", ["x", "scales"], ["y"], mode="nearest")]
    scales = np.float32([1, 1, 2, 2])
    path = write(tmp_path / "m.onnx", nodes, {"x": ["N", 3, 4, 4]}, ["y"], version=9, scales=scales)
    graph = import_model(path).graph
    assert graph.tensors["y"].shape == (Dim(per_sample=1), Dim(3), Dim(8), Dim(8))


DIMS = st.tuples(st.integers(0, 9), st.integers(0, 3)).map(lambda pair: Dim(*pair))
DTYPES = st.sampled_from(
    ["float32", "bfloat16", "int64", "string", "sequence(float32)", "optional(int64)", "sequence(map(int64,float32))"]
)


@given(dtype=DTYPES, shape=st.lists(DIMS, min_size=1, max_size=4), data=st.data())
def test_types_and_bounds_survive_a_file(dtype: str, shape: list[Dim], data: st.DataObject) -> None:
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1)))
    tensor = Tensor(name="t", dtype=dtype, shape=tuple(shape), at_most=tuple(sorted(axes)))
    assert read_tensor(value_info(tensor)) == tensor


@pytest.mark.skipif(not SHARED.is_dir(), reason="the corpus of exported graphs is not beside the project")
@pytest.mark.parametrize(
    ("name", "bind", "outputs"),
    [
        ("silero_vad_16k_op15", {"sequence": 512}, {"output": ["batch", "1"], "stateN": ["2", "batch", "128"]}),
        ("scaler_mlp", {}, {"variable": ["batch", "1"]}),
        ("ppocr_cls", {"x:2": 48, "x:3": 192}, {"save_infer_model/scale_0.tmp_1": ["batch", "2"]}),
        ("fcn_resnet50.dynamo", {}, {"y": ["batch", "21", "256", "256"]}),
        ("gpt2.dynamo_dynbatch", {"s21": 64}, {"y": ["batch", "64", "50257"]}),
    ],
)
def test_graphs_of_exporters_and_packages_have_shapes(
    name: str, bind: dict[str, int], outputs: dict[str, list[str]]
) -> None:
    graph = import_model(SHARED / f"{name}.onnx", bind=bind, without_weights=True).graph
    assert {o: [str(d) for d in graph.tensors[o].shape] for o in graph.outputs} == outputs
    assert "If" not in {o.op_type for o in graph.operators}
