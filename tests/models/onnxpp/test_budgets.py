"""Limits: what a tensor declares and what is stored, wherever it stands."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, SparseTensorProto, TensorProto, helper, numpy_helper

from hpdlf.errors import ModelError
from hpdlf.models.onnxpp.budgets import tensor_problem
from hpdlf.models.onnxpp.load import check

KINDS = sorted(set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED, TensorProto.STRING})


def known(kind: int) -> bool:
    try:
        helper.tensor_dtype_to_np_dtype(kind)
    except KeyError:
        return False
    return True


@given(
    kind=st.sampled_from([k for k in KINDS if known(k)]),
    dims=st.lists(st.integers(0, 5), max_size=3),
    raw=st.booleans(),
)
def test_what_onnx_writes_is_as_long_as_it_says(kind: int, dims: list[int], raw: bool) -> None:
    values = np.zeros(dims, helper.tensor_dtype_to_np_dtype(kind))
    if raw:
        tensor = numpy_helper.from_array(values)
    else:
        tensor = helper.make_tensor("w", kind, dims, values.reshape(-1).tolist())
    assert tensor_problem(tensor) is None
    longer = TensorProto()
    longer.CopyFrom(tensor)
    longer.dims.append(17)
    assert (tensor_problem(longer) is None) == (0 in dims)


def test_texts() -> None:
    assert tensor_problem(helper.make_tensor("w", TensorProto.STRING, [2], [b"a", b"b"])) is None
    assert "needs 3 values" in str(tensor_problem(TensorProto(data_type=8, dims=[3], string_data=[b"a"])))
    assert "raw" in str(tensor_problem(TensorProto(data_type=8, dims=[1], raw_data=b"abc")))


def test_values_twice_and_types_that_do_not_exist() -> None:
    tensor = TensorProto(data_type=1, dims=[1], raw_data=bytes(4), float_data=[0.0])
    assert "at once" in str(tensor_problem(tensor))
    for kind in (0, 99, -1):
        assert "is unknown" in str(tensor_problem(TensorProto(data_type=kind, dims=[1])))


def model_with(sparse: SparseTensorProto) -> ModelProto:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", ends[:1], ends[1:])
    graph.sparse_initializer.append(sparse)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def sparse(dims: list[int], places: list[int], shape: list[int] | None = None) -> SparseTensorProto:
    values = numpy_helper.from_array(np.arange(1, len(places) + 1, dtype=np.float32), "w")
    indices = np.asarray(places, np.int64).reshape(shape or [len(places)])
    return helper.make_sparse_tensor(values, numpy_helper.from_array(indices), dims)


def test_sparse_initializers_become_dense_within_limits() -> None:
    model = model_with(sparse([4], [1, 3]))
    check(model, "m.onnx")
    assert numpy_helper.to_array(model.graph.initializer[0]).tolist() == [0, 1, 0, 2]
    for dims in ([2**40], [2**31], [-4]):
        with pytest.raises(ModelError, match="sparse initializer 'w'"):
            check(model_with(sparse(dims, [1, 3])), "m.onnx")
    with pytest.raises(ModelError, match=r"m\.onnx"):
        check(model_with(sparse([4], [1, 9])), "m.onnx")
