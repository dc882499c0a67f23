"""What goes wrong inside an operator is one sentence that names it."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from hpdlf.errors import ModelError
from hpdlf.exec.backend import Backend


def test_operands_that_do_not_fit_name_the_node() -> None:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", n]) for n in ("a", "b", "c")]
    nodes = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Add", ["r", "b"], ["c"], name="sum")]
    graph = helper.make_graph(nodes, "g", ends[:2], ends[2:])
    prepared = Backend.prepare(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10))
    with pytest.raises(ModelError, match=r"the model, node 'sum' \(Add\) cannot be computed \("):
        prepared.run([np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32)])
    assert prepared.run([np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)])[0].sum() == 12


def test_too_little_memory_is_not_called_a_misfit() -> None:
    node = helper.make_node("ConstantOfShape", ["s"], ["y"], name="huge")
    with pytest.raises(ModelError, match="needs more memory than there is"):
        Backend.run_node(node, [np.array([2**42])])
