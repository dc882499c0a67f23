"""How far gradients reach, and which losses grow with the batch."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hpdlf.models.onnxpp import Graph, import_model
from hpdlf.models.onnxpp.gradients import sums_over_samples, trained_in_vain, without_gradient
from hpdlf.models.plan import Partition, Strategy
from hpdlf.models.program.lower import lower


def node(op_type: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), [output], name=f"make_{output}", **attributes)


def imported(folder: Path, *nodes: onnx.NodeProto) -> Graph:
    """Products of x [batch, 4] with w and v [4, 4], and what `nodes` make of "h", the first; the last gives the loss."""
    weights = {
        "w": np.eye(4, dtype=np.float32), "v": np.eye(4, dtype=np.float32), "two": np.float32(2),
        "axes": np.int64([0, 1]), "last": np.int64([1]),
    }  # fmt: skip
    graph = helper.make_graph(
        [node("MatMul", "x w", "h"), *nodes],
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, ["N"]),
        ],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("h", "loss")],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, folder / "m.onnx")
    return import_model(folder / "m.onnx", loss_output="loss").graph


def test_a_gradient_ends_where_numbers_are_rounded(tmp_path: Path) -> None:
    graph = imported(
        tmp_path, node("Round", "h", "r"), node("MatMul", "r v", "z"), node("ReduceMean", "z", "loss", keepdims=0)
    )
    assert without_gradient(graph) == (("w",), ("make_r",))
    assert trained_in_vain(graph) is None
    graph = imported(
        tmp_path,
        node("MatMul", "h v", "z"),
        node("Greater", "z two", "p"),
        node("Cast", "p", "c", to=TensorProto.FLOAT),
        node("ReduceMean", "c", "loss", keepdims=0),
    )
    why = trained_in_vain(graph)
    assert why is not None
    assert why.startswith("no gradient of the loss reaches a parameter: all end at Greater node 'make_p'")


def test_a_loss_apart_from_the_parameters_says_so(tmp_path: Path) -> None:
    graph = imported(tmp_path, node("ReduceMean", "x", "loss", keepdims=0))
    assert trained_in_vain(graph) == "the loss 'loss' depends on none of the 1 parameters"


ENTROPY = {
    f"entropy_{r}": ([node("SoftmaxCrossEntropyLoss", "h labels", "loss", reduction=r)], r == "sum")
    for r in ("sum", "mean")
}
LOSSES: dict[str, tuple[list[onnx.NodeProto], bool]] = {
    **ENTROPY,
    "squares": ([node("ReduceSumSquare", "h axes", "s", keepdims=0), node("Div", "s two", "loss")], True),
    "mean_of_sums": (
        [node("ReduceSum", "h last", "s", keepdims=0), node("ReduceMean", "s", "loss", keepdims=0)],
        False,
    ),
    "divided_by_the_batch": (
        [
            node("ReduceSum", "h axes", "s", keepdims=0),
            node("Size", "labels", "n"),
            node("Cast", "n", "f", to=TensorProto.FLOAT),
            node("Div", "s f", "loss"),
        ],
        False,
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_sum_over_samples_is_not_averaged_over_the_cut(name: str, tmp_path: Path) -> None:
    nodes, sums = LOSSES[name]
    graph = imported(tmp_path, *nodes)
    assert sums_over_samples(graph) == sums
    partition = Partition(stages=dict.fromkeys(graph.operator, 0), segments=dict.fromkeys(graph.operator, "0.0"))
    program = lower(graph, partition, Strategy(batch=12, data=2, microbatches=3))
    assert program.loss_weight == pytest.approx(1 if sums else 1 / 6)
