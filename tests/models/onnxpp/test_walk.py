"""Shapes: what the standard's own tests give, bounds where data decide, loops, branches, and what nothing bounds."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case.node import collect_testcases

from hpdlf.models.onnxpp.known import Known, line
from hpdlf.models.onnxpp.walk import Shapes, Walk
from hpdlf.models.onnxpp.weights import dtype_name

# Standard operators whose results nothing bounds, and one old form.
UNBOUNDED = ("test_image_decoder", "test_string_split", "test_scan_sum", "test_gradient")
SIZES = (11, 23, 37)


@cache
def cases() -> list[Any]:
    with np.errstate(all="ignore"):
        return [c for c in collect_testcases(None) if c.model is not None and c.data_sets]


def tensor_of(value: Any) -> TensorProto | None:
    if isinstance(value, TensorProto):
        return value
    return numpy_helper.from_array(np.asarray(value)) if isinstance(value, np.ndarray) or np.isscalar(value) else None


def with_shapes(case: Any) -> onnx.ModelProto | None:
    """The test's model, its inputs as its data have them; whole numbers become constants, as they may be shapes."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for value, held in zip(model.graph.input, case.data_sets[0][0], strict=True):
        tensor = tensor_of(held) if value.type.HasField("tensor_type") else None
        if tensor is None:
            return None
        value.type.tensor_type.ClearField("shape")
        value.type.tensor_type.shape.SetInParent()
        for extent in tensor.dims:
            value.type.tensor_type.shape.dim.add().dim_value = extent
        shaping = case.name.startswith(("test_range", "test_resize", "test_upsample", "test_onehot"))
        if tensor.data_type in (TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL) or shaping:
            tensor.name = value.name
            model.graph.initializer.append(tensor)
    for index, node in enumerate(model.graph.node):
        node.name = f"node_{index}"
    return model


@pytest.mark.slow
def test_shapes_and_values_are_those_of_the_standards_tests() -> None:
    wrong: list[str] = []
    count = 0
    for case in cases():
        model = with_shapes(case)
        if model is None or case.name.startswith(UNBOUNDED):
            continue
        count += 1
        walk = Walk(model, (1,))
        found = walk.run()
        if found.problems:
            wrong.append(f"{case.name}: {found.problems[0]}")
            continue
        for value, held in zip(model.graph.output, case.data_sets[0][1], strict=True):
            tensor = tensor_of(held) if value.type.HasField("tensor_type") else None
            if tensor is None:
                continue
            one = found.tensors[value.name]
            dims = [fixed + each for fixed, each in one.dims]
            fits = len(dims) == len(tensor.dims) and all(
                a >= b if axis in one.loose else a == b
                for axis, (a, b) in enumerate(zip(dims, tensor.dims, strict=True))
            )
            if not fits or one.dtype != dtype_name(tensor.data_type):
                wrong.append(f"{case.name}: {one} for {list(tensor.dims)}")
            known = walk.scopes[0].known[value.name].exact
            if known is not None and tensor.data_type in (TensorProto.INT64, TensorProto.BOOL):
                np.testing.assert_array_equal(known, numpy_helper.to_array(tensor), case.name)
    assert count > 1700
    assert not wrong


def walked(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[object]],
    outputs: list[str],
    release: int | None = None,
    **constants: Any,
) -> Shapes:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, d) for n, d in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    for index, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return Walk(model, SIZES, release).run()


def shape(found: Shapes, name: str) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
    assert not found.problems, found.problems
    return [tuple(d) for d in found.tensors[name].dims], found.tensors[name].loose


BODY_INPUTS = [("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("a", TensorProto.FLOAT, None)]


def body(nodes: list[onnx.NodeProto], outputs: list[str]) -> onnx.GraphProto:
    return helper.make_graph(
        nodes,
        "body",
        [helper.make_tensor_value_info(*v) for v in BODY_INPUTS],
        [helper.make_tensor_value_info(n, TensorProto.BOOL if n == "on" else TensorProto.FLOAT, None) for n in outputs],
    )


NODE = helper.make_node
NMS = ["boxes", "scores", "most", "overlap", "least"]


def test_boxes_are_bounded_by_what_is_kept() -> None:
    found = walked(
        [
            NODE("NonMaxSuppression", NMS, ["kept"]),
            NODE("Gather", ["kept", "two"], ["index"], axis=1),
            NODE("Reshape", ["boxes", "rows"], ["flat"]),
            NODE("Gather", ["flat", "index"], ["chosen"]),
            NODE("Shape", ["chosen"], ["s"]),
            NODE("Gather", ["s", "zero"], ["count"]),
            NODE("Min", ["count", "hundred"], ["k"]),
            NODE("Reshape", ["k", "one"], ["k1"]),
            NODE("ReduceMax", ["chosen", "last"], ["best"], keepdims=0),
            NODE("TopK", ["best", "k1"], ["top", "place"], axis=0),
        ],
        {"boxes": ["batch", 100, 4], "scores": ["batch", 3, 100]},
        ["top"],
        most=np.int64([20]),
        overlap=np.float32([0.5]),
        least=np.float32([0.1]),
        two=np.int64(2),
        rows=np.int64([-1, 4]),
        zero=np.int64(0),
        hundred=np.int64(100),
        one=np.int64([1]),
        last=np.int64([1]),
    )
    assert shape(found, "kept") == ([(0, 60), (3, 0)], (0,))
    assert shape(found, "chosen") == ([(0, 60), (4, 0)], (0,))
    assert shape(found, "top") == ([(100, 0)], (0,))


def test_what_meets_something_exact_is_exact() -> None:
    found = walked(
        [
            NODE("NonZero", ["x"], ["where"]),
            NODE("Transpose", ["where"], ["places"]),
            NODE("GatherND", ["x", "places"], ["values"]),
            NODE("ReduceSum", ["values"], ["total"], keepdims=0),
            NODE("Mul", ["x", "total"], ["y"]),
        ],
        {"x": ["batch", 5]},
        ["y"],
    )
    assert shape(found, "where") == ([(2, 0), (0, 5)], (1,))
    assert shape(found, "values") == ([(0, 5)], (0,))
    assert shape(found, "y") == ([(0, 1), (5, 0)], ())


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        (
            [NODE("ReduceMax", ["x"], ["m"], keepdims=0), NODE("Range", ["zero", "m", "step"], ["y"])],
            "Range.*depends on data",
        ),
        (
            [NODE("Cast", ["x"], ["t"], to=TensorProto.INT64), NODE("Expand", ["x", "t"], ["y"])],
            "values of 't'.*nothing bounds",
        ),
        ([NODE("Concat", ["x", "x"], ["c"], axis=1), NODE("Add", ["x", "c"], ["y"])], "do not fit"),
    ],
)
def test_what_nothing_bounds_is_refused_by_name(nodes: list[onnx.NodeProto], said: str) -> None:
    dims: list[object] = [2] if "values" in said else ["batch", 2]
    found = walked(nodes, {"x": dims}, ["y"], zero=np.float32(0), step=np.float32(1))
    assert len(found.problems) == 1
    assert re.search(said, found.problems[0])


def test_loops_say_how_often_they_run_and_what_they_stack() -> None:
    still = body(
        [NODE("Identity", ["go"], ["on"]), NODE("Add", ["a", "x"], ["b"]), NODE("Relu", ["b"], ["out"])],
        ["on", "b", "out"],
    )
    found = walked(
        [NODE("Loop", ["seven", "yes", "x"], ["last", "all"], body=still, name="loop")],
        {"x": ["batch", 5]},
        ["last", "all"],
        seven=np.int64(7),
        yes=np.array(True),
    )
    assert shape(found, "last") == ([(0, 1), (5, 0)], ())
    assert shape(found, "all") == ([(7, 0), (0, 1), (5, 0)], ())
    assert found.trips == {"loop": (7, 0)}
    assert found.bodies["loop/body"]["b"].dims == ((0, 1), (5, 0))


def test_a_loop_that_may_stop_early_stacks_at_most_so_many() -> None:
    stops = body(
        [
            NODE("ReduceSum", ["a"], ["s"], keepdims=0),
            NODE("Greater", ["s", "none"], ["on"]),
            NODE("Relu", ["a"], ["b"]),
            NODE("Identity", ["b"], ["out"]),
        ],
        ["on", "b", "out"],
    )
    found = walked(
        [NODE("Loop", ["seven", "yes", "x"], ["last", "all"], body=stops, name="loop")],
        {"x": ["batch", 5]},
        ["all"],
        seven=np.int64(7),
        yes=np.array(True),
        none=np.float32(0),
    )
    assert shape(found, "all") == ([(7, 0), (0, 1), (5, 0)], (0,))


@given(rounds=st.integers(0, 40), width=st.integers(1, 6))
def test_a_loop_that_grows_steadily_ends_where_its_rounds_say(rounds: int, width: int) -> None:
    grows = body([NODE("Identity", ["go"], ["on"]), NODE("Concat", ["a", "x"], ["b"], axis=1)], ["on", "b"])
    found = walked(
        [NODE("Loop", ["n", "yes", "x"], ["y"], body=grows, name="loop")],
        {"x": ["batch", width]},
        ["y"],
        n=np.int64(rounds),
        yes=np.array(True),
    )
    assert shape(found, "y") == ([(0, 1), ((rounds + 1) * width, 0)], ())


def test_branches_that_differ_are_bounded_and_known_conditions_decide() -> None:
    long = helper.make_graph(
        [NODE("Concat", ["x", "x"], ["t"], axis=1)], "t", [], [helper.make_tensor_value_info("t", 1, None)]
    )
    short = helper.make_graph([NODE("Relu", ["x"], ["e"])], "e", [], [helper.make_tensor_value_info("e", 1, None)])
    decide = [NODE("ReduceSum", ["x"], ["s"], keepdims=0), NODE("Greater", ["s", "none"], ["c"])]
    branch = NODE("If", ["c"], ["y"], then_branch=long, else_branch=short, name="if")
    found = walked([*decide, branch], {"x": ["batch", 5]}, ["y"], none=np.float32(0))
    assert shape(found, "y") == ([(0, 1), (10, 0)], (1,))
    assert not found.branches
    known = [NODE("Shape", ["x"], ["d"], start=1), NODE("Squeeze", ["d"], ["n"]), NODE("Equal", ["n", "five"], ["c"])]
    found = walked([*known, branch], {"x": ["batch", 5]}, ["y"], five=np.int64(5))
    assert found.branches == {"if": "then_branch"}
    assert shape(found, "y") == ([(0, 1), (10, 0)], ())


def test_sequences_have_a_length_and_the_largest_of_their_elements() -> None:
    found = walked(
        [
            NODE("SplitToSequence", ["x", "three"], ["parts"], axis=1),
            NODE("SequenceLength", ["parts"], ["n"]),
            NODE("SequenceAt", ["parts", "zero"], ["first"]),
            NODE("ConcatFromSequence", ["parts"], ["y"], axis=1),
        ],
        {"x": ["batch", 7]},
        ["y"],
        three=np.int64(3),
        zero=np.int64(0),
    )
    assert found.tensors["parts"].dtype == "sequence(float32)"
    assert shape(found, "parts") == ([(3, 0), (0, 1), (3, 0)], (2,))
    assert shape(found, "first") == ([(0, 1), (3, 0)], (1,))


@given(st.lists(st.integers(0, 50), min_size=2, max_size=2), st.integers(1, 40), st.integers(1, 900))
def test_a_line_bounds_the_least_of_two_lines_everywhere(first: list[int], each: int, cap: int) -> None:
    def extent(n: int) -> int:
        return min(first[0] + each * n, first[1] + cap)

    law = line(SIZES, [extent(n) for n in SIZES], loose=True)
    assert law is not None
    assert all(law[0] + law[1] * n >= extent(n) for n in range(1, 200))


@given(
    low=st.lists(st.integers(-5, 20), min_size=3, max_size=3),
    more=st.lists(st.integers(0, 9), min_size=3, max_size=3),
    data=st.data(),
)
def test_bounds_of_arithmetic_hold_for_everything_between(low: list[int], more: list[int], data: st.DataObject) -> None:
    from hpdlf.models.onnxpp.arithmetic import bounds

    op_type = data.draw(st.sampled_from(["Add", "Sub", "Mul", "Min", "Max", "Less", "Equal", "GreaterOrEqual"]))
    least, most = np.int64(low), np.int64(low) + np.int64(more)
    other = np.int64(data.draw(st.lists(st.integers(-5, 20), min_size=3, max_size=3)))
    inside = np.int64([data.draw(st.integers(int(a), int(b))) for a, b in zip(least, most, strict=True)])
    boolean = op_type in ("Less", "Equal", "GreaterOrEqual")
    node = NODE(op_type, ["a", "b"], ["c"])
    found = bounds(
        node, {}, [least, other], [most, other], [(3,)], [np.dtype(bool if boolean else np.int64)], onnx.ModelProto()
    )
    if found is None:
        assert op_type == "Mul"
        return
    functions = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Min": np.minimum, "Max": np.maximum}
    functions |= {"Less": np.less, "Equal": np.equal, "GreaterOrEqual": np.greater_equal}
    result = functions[op_type](inside, other)
    assert (found[0][0] <= result).all()
    assert (result <= found[0][1]).all()


def test_a_known_value_says_its_type() -> None:
    assert Known(TensorProto.FLOAT, (2, 3), kind="sequence").type_name == "sequence(float32)"
    assert Known("map(int64,float32)", (2, 3), kind="sequence").type_name == "sequence(map(int64,float32))"
